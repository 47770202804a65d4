"""Deepgram `GET /v2/listen`: the WebSocket around `flux_hearing.py`.

Everything that `listen.py` can do to a connection can be done to this one. Strict where v2 is
said to be: no parameter of v1, no KeepAlive, no message it cannot parse.

Not documented, and so only one of the ways it may be: the codes that a fatal error and a
silent client are closed with.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import trio

from voicebot.standins.deepgram_rules import (
    ANY,
    BOOL,
    Refusal,
    bad_payload,
    check_auth,
    check_query,
    invalid_parameter,
)
from voicebot.standins.flux_hearing import Thresholds, TurnTaker
from voicebot.standins.hearing import Features, Message
from voicebot.standins.http11 import Exchange
from voicebot.standins.listen import Close, Listen, ListenConduct, Listening, _End, _Stream
from voicebot.standins.websocket import WebSocket

KEYTERMS: Final = 100
IDLE_TIMES: Final = 2  # as long as v1 waits for audio: 20 s

_NUMBER: Final = r"\d{1,6}(\.\d{1,6})?"
_ALLOWED: Final = {
    "model": r"flux-general-(en|multi)",
    "encoding": "mulaw",
    "sample_rate": "8000",
    "eot_threshold": _NUMBER,
    "eager_eot_threshold": _NUMBER,
    "eot_timeout_ms": r"\d{1,6}",
    **dict.fromkeys(("profanity_filter", "numerals", "mip_opt_out"), BOOL),
    **dict.fromkeys(("keyterm", "language_hint", "redact", "tag"), ANY),
}
_REPEATABLE: Final = frozenset(("keyterm", "language_hint", "redact", "tag"))
_RANGES: Final = {
    "eot_threshold": (0.5, 1.0),
    "eager_eot_threshold": (0.3, 0.9),
    "eot_timeout_ms": (500, 60_000),
}


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class FluxConduct(ListenConduct):
    """How one connection is treated."""

    fatal: bool = False  # an Error message comes before the close of `end_after_bytes`


FLUX: Final = FluxConduct()

_GOOD_BYE: Final = _End(Close(1005), flush=True)  # a close frame without a code
_FATAL: Final = _End(Close(1011), flush=True)


class Flux(Listen):
    """The endpoint: control and inspection."""

    def _check(self, exchange: Exchange) -> Refusal | None:
        return _check(exchange, self._api_key)

    def _features(self, exchange: Exchange) -> Features:
        return Features(interim_results=True)  # none of v1's can be asked for

    def _stream(
        self,
        socket: WebSocket,
        listening: Listening,
        conduct: ListenConduct,
        text_of: Callable[[int], str],
    ) -> _Stream:
        return _FluxStream(socket, listening, conduct, text_of)


class _FluxStream(_Stream):
    """One connection after the 101."""

    def __init__(
        self,
        socket: WebSocket,
        listening: Listening,
        conduct: ListenConduct,
        text_of: Callable[[int], str],
    ) -> None:
        super().__init__(socket, listening, conduct, text_of)
        self._recognizer: TurnTaker = TurnTaker(
            _thresholds(dict(listening.exchange.query)),
            text_of,
            self._id,
            speech_dbov=conduct.speech_dbov,
            speech_final=conduct.speech_final,
        )
        self._expect_audio()

    async def _receive(self, outbox: trio.MemorySendChannel[tuple[float, Message]]) -> _End:
        due = trio.current_time() + self._conduct.result_delay_s
        await outbox.send((due, self._recognizer.numbered({"type": "Connected"})))
        return await super()._receive(outbox)

    def _audio(self, audio: bytes) -> tuple[list[Message], _End | None]:
        told, end = super()._audio(audio)
        self._expect_audio()
        if end is not None and isinstance(self._conduct, FluxConduct) and self._conduct.fatal:
            return [self._error("INTERNAL_SERVER_ERROR", "Something went wrong.")], end._replace(
                flush=True
            )
        return told, end

    def _expect_audio(self) -> None:
        self._idle_at = trio.current_time() + IDLE_TIMES * self._conduct.idle_s

    def _control(self, text: str) -> tuple[list[Message], _End | None]:
        try:
            message = json.loads(text)
            kind = message["type"]
        except (ValueError, TypeError, KeyError):
            return self._unparsable("no JSON object with a type")
        self._listening.controls.append(str(kind))
        match kind:
            case "CloseStream":
                return [], _GOOD_BYE
            case "KeepAlive":
                return [], _GOOD_BYE._replace(flush=False)
            case "ForceEndTurn":
                return [self._recognizer.force()], None
            case "Configure":
                return [self._configure(message)], None
            case _:
                return self._unparsable(f"unknown type {str(kind)[:40]}")

    def _unparsable(self, why: str) -> tuple[list[Message], _End | None]:
        return [self._error("UNPARSABLE_CLIENT_MESSAGE", why)], _FATAL

    def _error(self, code: str, why: str) -> Message:
        return self._recognizer.numbered({"type": "Error", "code": code, "description": why})

    def _configure(self, message: Message) -> Message:
        recognizer, asked = self._recognizer, message.get("thresholds", {})
        keyterms = message.get("keyterms", [])
        problem = (
            _out_of_range({**recognizer.thresholds.message(), **asked})
            if isinstance(asked, dict) and asked.keys() <= _RANGES.keys()
            else "thresholds"
        )
        if not isinstance(keyterms, list) or len(keyterms) > KEYTERMS:
            problem = "keyterms"
        if problem:
            return recognizer.numbered(
                {"type": "ConfigureFailure", "code": "INVALID_CONFIGURE", "description": problem}
            )
        recognizer.thresholds = replace(recognizer.thresholds, **asked)
        return recognizer.numbered(
            {
                "type": "ConfigureSuccess",
                "thresholds": recognizer.thresholds.message(),
                "keyterms": keyterms,
            }
        )

    def _finish(self) -> list[Message]:
        return self._recognizer.finish()


def _check(exchange: Exchange, api_key: str) -> Refusal | None:
    if refusal := check_auth(exchange, api_key):
        return refusal
    if refusal := check_query(
        exchange,
        _ALLOWED,
        required=("model", "encoding", "sample_rate"),
        repeatable=_REPEATABLE,
    ):
        return refusal
    query = dict(exchange.query)
    if wrong := _out_of_range({name: float(query[name]) for name in _RANGES if name in query}):
        return invalid_parameter(f"invalid value for `{wrong}`")
    keyterms = sum(name == "keyterm" for name, _ in exchange.query)
    if keyterms > KEYTERMS:
        return invalid_parameter(f"{keyterms} keyterms exceed the limit of {KEYTERMS}")
    if "language_hint" in query and query["model"] != "flux-general-multi":
        return invalid_parameter("language_hint requires model=flux-general-multi")
    if not exchange.wants_websocket:
        return bad_payload("Expected a WebSocket upgrade.")
    return None


def _out_of_range(values: dict[str, Any]) -> str:
    """Return the name of the first threshold that cannot be, or nothing."""
    for name, value in values.items():
        least, most = _RANGES[name]
        if not isinstance(value, int | float) or not least <= value <= most:
            return name
    eot = values.get("eot_threshold", Thresholds().eot_threshold)
    return "eager_eot_threshold" if values.get("eager_eot_threshold", 0) > eot else ""


def _thresholds(query: dict[str, str]) -> Thresholds:
    default = Thresholds()
    eager = query.get("eager_eot_threshold")
    return Thresholds(
        float(query.get("eot_threshold", default.eot_threshold)),
        None if eager is None else float(eager),
        int(query.get("eot_timeout_ms", default.eot_timeout_ms)),
    )
