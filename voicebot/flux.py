"""Deepgram Flux on the wire: the address and the messages of `v2/listen`.

Flux takes turns: it says itself when the caller begins, has probably finished, goes on, and has
finished. Its transcripts are those of the whole turn. Sans-IO: no socket, no clock, no logging.
Two things of v1 are missing: KeepAlive, which would end the stream, and Finalize.

Source: deepgram-api-specs (asyncapi.yml) of 2026-07-22; developers.deepgram.com pages "flux/state",
"flux/configure"; deepgram-python-sdk issue 649.
"""

from __future__ import annotations

from typing import Any, Final

from voicebot import audio, deepgram, ports
from voicebot.deepgram import Skipped
from voicebot.errors import ProviderError, ProviderRejected
from voicebot.recognition import Recognition

CHUNK_MS: Final = 80  # audio per message, strongly recommended
#: Instead of KeepAlive. A zero byte would be loud: mu-law's silence is this.
SILENCE: Final = audio.silence(CHUNK_MS)

_UNPARSABLE: Final = "UNPARSABLE_CLIENT_MESSAGE"


def listen_url(base_url: str, *, model: str, language: str, recognition: Recognition) -> str:
    """Return the ws(s) address of a transcription under an http(s) base.

    The language is a hint to the model that knows several, and no parameter of the other.
    """
    query: list[tuple[str, object]] = [
        ("model", model),
        ("encoding", "mulaw"),
        ("sample_rate", audio.RATE_HZ),
        ("eot_threshold", recognition.eot_threshold),
        ("eot_timeout_ms", recognition.eot_timeout_ms),
    ]
    if recognition.eager_eot_threshold is not None:
        query.append(("eager_eot_threshold", recognition.eager_eot_threshold))
    if model.endswith("-multi") and language != "multi":
        query.append(("language_hint", language.lower().partition("-")[0]))
    query += [("keyterm", term) for term in recognition.keyterms]
    return deepgram.stream_url(base_url, "/v2/listen", query)


class Listening:
    """One transcription's receiving side: message in, transcript or `Skipped` out.

    | TurnInfo                           | with new words | with the same | empty     |
    |------------------------------------|----------------|---------------|-----------|
    | Update, StartOfTurn                | Partial        | skipped       | skipped   |
    | EagerEndOfTurn                     | LikelyEnd      | LikelyEnd     | LikelyEnd |
    | TurnResumed                        | Partial        | Partial       | Partial   |
    | EndOfTurn                          | Final          | Final         | Final     |
    | of a turn that is over, or older   | skipped        | skipped       | skipped   |

    Each turn ends once, whatever is repeated. A turn that another follows without an end has its
    words put before those of the next: nothing that was said is lost.
    """

    def __init__(self) -> None:
        self._turn = 0  # the first that is not over
        self._sequence = -1  # number of the last message about it
        self._unended = ""  # words of turns that were followed by another without an end
        self._told = ""  # words of this turn so far
        self._fatal: tuple[str, str] | None = None  # code and description

    def receive(self, message: str | bytes) -> ports.Transcript | Skipped:
        """Return what one WebSocket message says."""
        fields = deepgram.parse(message)
        if isinstance(fields, Skipped):
            return fields
        match fields.get("type"):
            case "TurnInfo":
                return self._turn_info(fields)
            case "Connected":
                return Skipped("connected")
            case "ConfigureSuccess":
                return Skipped("configure_success")
            case "ConfigureFailure":
                return Skipped("configure_failure", _says(fields))
            case "Warning":
                return Skipped("warning", _says(fields))
            case "Error":
                self._fatal = (
                    str(fields.get("code"))[:80],
                    " ".join(str(fields.get("description")).split())[:200],
                )
                return Skipped("error", _says(fields))
            case other:
                return Skipped("unknown_type", str(other)[:40])

    def closed(self, code: int, reason: str) -> ProviderError:
        """Return the error for the end of the stream: a close follows what was fatal."""
        if self._fatal is None:
            return deepgram.closed(deepgram.STT, code, reason)
        name, said = self._fatal
        return ProviderRejected(
            deepgram.STT,
            f"the stream was ended: {name} {said}",
            code=name,
            retryable=name != _UNPARSABLE,  # a bug of ours, which it will be next time as well
        )

    def _turn_info(self, fields: dict[str, Any]) -> ports.Transcript | Skipped:
        text, turn, sequence = (
            fields.get(name) for name in ("transcript", "turn_index", "sequence_id")
        )
        if not isinstance(text, str) or not isinstance(turn, int):
            return Skipped("malformed_turn_info", f"{turn!r:.40}")
        if turn < self._turn:
            return Skipped("stale_turn", str(fields.get("event"))[:40])
        if turn > self._turn:
            self._begin(turn, self._words(self._told))
        if isinstance(sequence, int):
            if sequence <= self._sequence:
                return Skipped("out_of_order", str(fields.get("event"))[:40])
            self._sequence = sequence
        told, self._told = self._told, text
        match fields.get("event"):
            case "Update" | "StartOfTurn":
                return ports.Partial(self._words(text)) if text != told else Skipped("unchanged")
            case "TurnResumed":
                return ports.Partial(self._words(text))
            case "EagerEndOfTurn":
                return ports.LikelyEnd(self._words(text))
            case "EndOfTurn":
                whole = self._words(text)
                self._begin(turn + 1)
                end_s = fields.get("audio_window_end")
                until = deepgram.until_ms(end_s) if isinstance(end_s, int | float) else None
                return ports.Final(whole, end_of_turn=True, until_ms=until)
            case other:
                self._told = told
                return Skipped("unknown_event", str(other)[:40])

    def _begin(self, turn: int, unended: str = "") -> None:
        self._turn, self._unended, self._told, self._sequence = turn, unended, "", -1

    def _words(self, text: str) -> str:
        return " ".join(filter(None, (self._unended, text)))


def _says(fields: dict[str, Any]) -> str:
    return f"{fields.get('code')}: {fields.get('description')}"[:200]
