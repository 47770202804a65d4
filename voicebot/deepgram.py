"""Deepgram's wire: addresses, messages and refusals of `v1/listen` and `v1/speak`.

Sans-IO: no socket, no clock, no logging. What Deepgram may say that the call has no use for is
a `Skipped`, which the edge counts; nothing that arrives here ends a call.

Source: deepgram-api-specs (asyncapi.yml, openapi.yml) of 2026-07-22; developers.deepgram.com
pages "endpointing", "utterance-end", "errors", "audio-keep-alive".
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

from voicebot import audio, ports
from voicebot.errors import LocalProtocolError, ProviderError, ProviderRejected
from voicebot.recognition import Recognition

STT: Final = "deepgram-stt"
TTS: Final = "deepgram-tts"

KEEP_ALIVE: Final = '{"type":"KeepAlive"}'
FINALIZE: Final = '{"type":"Finalize"}'
CLOSE_STREAM: Final = '{"type":"CloseStream"}'

# Deepgram takes 2,000; a sentence of a phone call has about 100.
MAX_SPEAK_CHARS: Final = 1_900

# RFC 3551 and RFC 4856 call it PCMU and basic; Deepgram says audio/mulaw.
_MULAW_TYPES: Final = frozenset({"audio/mulaw", "audio/x-mulaw", "audio/pcmu", "audio/basic"})

_CLOSE_CODE: Final = re.compile(r"\b(?:NET|DATA)-\d{4}\b")

_ERROR_CODE: Final = re.compile(r"[A-Z0-9_-]+", re.ASCII)

_ADVICE: Final = {
    400: "check the model, whether the project may use it, the language and the other speech "
    "settings",
    401: "check DEEPGRAM_API_KEY and its permissions",
    402: "the Deepgram project is out of credit: add credit in its console",
    403: "this key may not use this model: choose another model or another plan",
    404: "check DEEPGRAM_URL and the model",
    413: "the text is too long for one request",
    429: "too many streams or requests at once for this Deepgram project: lower "
    "VOICEBOT_MAX_CALLS or raise its limit",
}


@dataclass(frozen=True, slots=True)
class Skipped:
    """A message with nothing in it for the call. `kind` is a constant for counters."""

    kind: str
    detail: str = ""


def stream_url(base_url: str, path: str, query: Sequence[tuple[str, object]]) -> str:
    """Return the ws(s) address of a stream under an http(s) base."""
    return f"ws{base_url.removeprefix('http').rstrip('/')}{path}?{urlencode(query)}"


def listen_url(base_url: str, *, model: str, language: str, recognition: Recognition) -> str:
    """Return the ws(s) address of a transcription under an http(s) base.

    `no_delay` keeps `smart_format` from holding words back, up to 3 s, until a number or a date
    is complete. `vad_events` stays off: the call has its own ears.
    """
    query: list[tuple[str, object]] = [
        ("model", model),
        ("language", language),
        ("encoding", "mulaw"),
        ("sample_rate", audio.RATE_HZ),
        ("channels", 1),
        ("interim_results", "true"),
        ("endpointing", recognition.endpointing_ms),
        ("utterance_end_ms", recognition.utterance_end_ms),
        ("smart_format", "true"),
        ("no_delay", "true"),
        *(("keyterm", term) for term in recognition.keyterms),
    ]
    return stream_url(base_url, "/v1/listen", query)


def speak_url(base_url: str, *, model: str) -> str:
    """Return the address of a speech request; `container=none`, as a WAV header is a click."""
    query = {
        "model": model,
        "encoding": "mulaw",
        "sample_rate": audio.RATE_HZ,
        "container": "none",
    }
    return f"{base_url.rstrip('/')}/v1/speak?{urlencode(query)}"


def speak_body(text: str) -> bytes:
    """Return the JSON body of a speech request.

    Raises:
        LocalProtocolError: nothing to say, or more than one request may hold.
    """
    check_speech_text(text)
    return json.dumps({"text": text}).encode()


def check_speech_text(text: str) -> None:
    """Check that Deepgram would speak a text.

    Raises:
        LocalProtocolError: nothing to say, or more than one request may hold.
    """
    if not text.strip():
        raise LocalProtocolError("a speech request needs text")
    if len(text) > MAX_SPEAK_CHARS:
        raise LocalProtocolError(
            f"{len(text)} characters in one speech request; at most {MAX_SPEAK_CHARS}"
        )


def check_speech(content_type: str, head: bytes) -> None:
    """Check by its type and its first bytes that a body is bare mu-law.

    Raises:
        ProviderError: it is not, and would be a noise in the caller's ear.
    """
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type not in _MULAW_TYPES:
        raise ProviderError(
            TTS, f"answered {media_type[:80] or 'no content type'} instead of audio/mulaw"
        )
    if head.startswith(b"RIFF"):
        raise ProviderError(TTS, "answered a WAV file instead of bare mu-law")


def parse(message: str | bytes) -> dict[str, Any] | Skipped:
    """Return the fields of one WebSocket message."""
    if not isinstance(message, str):
        return Skipped("binary_message", f"{len(message)} bytes")
    try:
        fields = json.loads(message)
    except (ValueError, RecursionError) as exc:
        return Skipped("not_json", str(exc)[:80])
    return fields if isinstance(fields, dict) else Skipped("not_an_object")


class Listening:
    """One transcription's receiving side: message in, transcript or `Skipped` out.

    Who ends a turn: a Results with `speech_final` does; an `UtteranceEnd` only if words came
    after the last end of turn.

    | message                                      | turn was open | turn was over |
    |----------------------------------------------|---------------|---------------|
    | Results with words                           | open          | open          |
    | Results with `speech_final`                  | over          | over          |
    | UtteranceEnd                                 | over          | skipped       |
    | UtteranceEnd of words before the last end    | skipped       | skipped       |
    | UtteranceEnd with `last_word_end` -1         | skipped       | skipped       |

    Words still on their way when a turn ends belong to the next one, so the fourth line keeps
    a late UtteranceEnd from ending that one too early.

    Words of audio that final words have come for are skipped: they are the same once more, or too
    late to be in order. What else such a message says counts.
    """

    def __init__(self) -> None:
        self._turn_open = False
        # Audio up to here belongs to a turn that is over; at first, no more than the -1.
        self._settled_s = -1.0
        self._partial_shown = False
        self._final_s = 0.0  # audio up to here has its final words

    def receive(self, message: str | bytes) -> ports.Transcript | Skipped:
        """Return what one WebSocket message says."""
        fields = parse(message)
        if isinstance(fields, Skipped):
            return fields
        match fields.get("type"):
            case "Results":
                return self._results(fields)
            case "UtteranceEnd":
                return self._utterance_end(fields)
            case "Metadata":
                return Skipped("metadata")
            case "SpeechStarted":
                return Skipped("speech_started")
            case "Error":
                # In Deepgram's SDK only, not in its spec. If it is fatal, a close follows.
                return Skipped(
                    "error", str(fields.get("description") or fields.get("message"))[:200]
                )
            case other:
                return Skipped("unknown_type", str(other)[:40])

    def closed(self, code: int, reason: str) -> ProviderError:
        """Return the error for the end of the stream."""
        return closed(STT, code, reason)

    def _results(self, fields: dict[str, Any]) -> ports.Transcript | Skipped:
        try:
            alternatives = fields["channel"]["alternatives"]
            text = alternatives[0]["transcript"] if alternatives else ""
            end_s = float(fields.get("start", 0)) + float(fields.get("duration", 0))
        except (LookupError, TypeError, ValueError, OverflowError) as exc:
            return Skipped("malformed_results", repr(exc)[:80])
        if not isinstance(text, str):
            return Skipped("malformed_results", "transcript")
        old = 0 < end_s <= self._final_s
        end_of_turn = fields.get("speech_final") is True
        finalized = fields.get("from_finalize") is True
        if not end_of_turn and fields.get("is_final") is not True:
            if not text and not self._partial_shown:
                return Skipped("empty_partial")
            if old and text:
                return Skipped("old_results")
            self._turn_open |= bool(text)
            self._partial_shown = bool(text)
            return ports.Partial(text)
        self._final_s = max(self._final_s, end_s)
        if old and text:
            end_of_turn &= self._turn_open
            if not (finalized or end_of_turn):
                return Skipped("old_results")
            text = ""
        self._turn_open |= bool(text)
        self._partial_shown = False
        if end_of_turn:
            self._turn_open = False
            self._settled_s = end_s
        return ports.Final(text, end_of_turn, finalized, until_ms(end_s))

    def _utterance_end(self, fields: dict[str, Any]) -> ports.Transcript | Skipped:
        last_word_end_s = fields.get("last_word_end")
        if not isinstance(last_word_end_s, int | float):
            return Skipped("malformed_utterance_end")
        if not self._turn_open or last_word_end_s <= self._settled_s:
            return Skipped("stale_utterance_end")
        self._turn_open = False
        self._settled_s = last_word_end_s
        return ports.UtteranceEnd()


def until_ms(end_s: float) -> int | None:
    """Return a position in the audio in milliseconds; None if it cannot be one."""
    return int(end_s * 1_000) if 0 <= end_s < math.inf else None


def closed(provider: str, code: int, reason: str) -> ProviderError:
    """Return the error for a stream that Deepgram ended or that was lost."""
    found = _CLOSE_CODE.search(reason)
    name = found.group() if found else None
    if code == 1006 and not reason:  # RFC 6455, 7.1.5: no close frame came
        return ProviderError(provider, "the connection was lost", retryable=True)
    return ProviderRejected(
        provider,
        f"the stream was closed with {code} {_one_line(reason)}".rstrip(),
        code=name or code,
        # DATA-…: the audio cannot be decoded, which it will not be next time either.
        retryable=name is None or name.startswith("NET"),
    )


def refused(
    provider: str, status: int, headers: Mapping[str, str], body: bytes
) -> ProviderRejected:
    """Return the error for an HTTP answer that is not the one hoped for.

    The body has one of three shapes: `err_code` and `err_msg`, `category` and `message`, or
    text. Header names are lower-case or in a mapping that does not care.
    """
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        fields = {"message": body.decode("utf-8", "replace")}
    hint = headers.get("dg-error", "")  # a code or a sentence: Deepgram does not say which
    named = _ERROR_CODE.fullmatch(hint) is not None
    code = fields.get("err_code") or fields.get("category") or (hint if named else None)
    said = fields.get("err_msg") or fields.get("message") or ("" if named else hint)
    request_id = fields.get("request_id") or headers.get("dg-request-id")
    parts = [f"refused with {status}", _one_line(f"{code or ''} {said}"), _ADVICE.get(status, "")]
    if request_id:
        parts.append(f"request id {_one_line(str(request_id))}")
    return ProviderRejected(
        provider,
        "; ".join(filter(None, parts)),
        status=status,
        code=str(code) if code else None,
        retryable=status == 429 or status >= 500,
    )


def _one_line(text: str) -> str:
    # A proxy in between may answer with a page of HTML.
    return " ".join(text.split())[:200]
