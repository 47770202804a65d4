"""The faults by name: for each service a mapping of names to conducts, for hosts to doors.

    standins.inflict("listen", "close-net-0001")
    standins.groq.conducts.once(CHAT_FAULTS["429-tokens"])

The names stay; what they stand for is documented by the vendors, or what happens to any HTTP
service. Where a fault is of a moment in an answer, the moment is early; `replace` moves it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final, Literal, TypeVar

from voicebot.standins import deepgram_rules, groq_rules, twilio_rules
from voicebot.standins.flux import FluxConduct
from voicebot.standins.groq import ChatConduct
from voicebot.standins.http11 import Door
from voicebot.standins.listen import DATA_0000, GOOD_BYE, NET_0000, NET_0001, Close, ListenConduct
from voicebot.standins.script import Canned, Conduct
from voicebot.standins.speak import SpeakConduct
from voicebot.standins.speak_socket import (
    BIG_0000,
    MESSAGE_0000,
    NET_0003,
    SpeakSocketConduct,
)
from voicebot.standins.twilio import RestConduct

C = TypeVar("C", bound=Conduct)
ListenConductT = TypeVar("ListenConductT", bound=ListenConduct)

AUDIO_BYTES: Final = 4_000  # half a second into what is heard or spoken
TOKENS: Final = 2  # words into an answer
JSON_BYTES: Final = 60  # into a body of JSON, none of which is as short
LATE_S: Final = 2.0  # a result that late is behind most turns

_PAGE: Final = b"<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>\n"
_PROXY: Final = Canned(502, "text/html", _PAGE)
_PORTAL: Final = Canned(200, "text/html", b"<!DOCTYPE html>\n<html><body>Log in</body></html>\n")
_GARBAGE: Final = b"\x15\x03\x01\x00\x02\x02\x46 220 mail.example.com ESMTP\r\n"

#: Of a whole host: what meets a connection. "refuse-connect" is ECONNREFUSED, and true of TLS too.
HOST_FAULTS: Final[Mapping[str, Door]] = MappingProxyType(
    {"refuse-connect": "refuse", "reset-connect": "reset", "hang-connect": "hang"}
)


def _named(faults: Mapping[str, C]) -> Mapping[str, C]:
    return MappingProxyType({name: replace(fault, name=name) for name, fault in faults.items()})


def _before_answer(kind: type[C]) -> dict[str, C]:
    """Return the faults that any HTTP service has instead of an answer."""
    return {
        "hang-first-byte": kind(delay_s=math.inf),
        "reset-first-byte": kind(reset=True),
        "garbage": kind(instead=_GARBAGE),
        "proxy-502": kind(instead=_PROXY),
        "portal-200": kind(instead=_PORTAL),
    }


def _in_body(kind: type[C], after: int) -> dict[str, C]:
    """Return the faults that any HTTP service has in the body of its answer."""
    return {
        "wrong-content-type": kind(content_type="text/html"),
        "empty": kind(end_after_bytes=0),
        "truncated": kind(drop_after_bytes=after),
        "reset-mid-body": kind(reset_after_bytes=after),
        "stall": kind(stall_after_bytes=after),
        "short": kind(end_after_bytes=after),
    }


def _deepgram_refusals(kind: Any, *refusals: deepgram_rules.Refusal) -> dict[str, Any]:
    """Return each refusal in the three shapes."""
    shapes: tuple[tuple[str, deepgram_rules.Shape], ...] = (
        ("", "usual"),
        ("-category", "category"),
        ("-text", "text"),
    )
    return {
        f"{refusal.status}{suffix}": kind(refusal=replace(refusal, shape=shape))
        for refusal in refusals
        for suffix, shape in shapes
    }


def _in_stream(kind: Any) -> dict[str, Any]:
    """Return the ends that any WebSocket may come to, half a second of audio into it."""
    return {
        "close-1000": kind(end_after_bytes=AUDIO_BYTES, close=GOOD_BYE),
        "close-net-0000": kind(end_after_bytes=AUDIO_BYTES, close=NET_0000),
        "close-net-0001": kind(end_after_bytes=AUDIO_BYTES, close=NET_0001),
        "close-data-0000": kind(end_after_bytes=AUDIO_BYTES, close=DATA_0000),
        "close-no-code": kind(end_after_bytes=AUDIO_BYTES, close=Close(1005)),
        "close-1006": kind(drop_after_bytes=AUDIO_BYTES),
        "reset": kind(reset_after_bytes=AUDIO_BYTES),
        "stall": kind(stall_after_bytes=AUDIO_BYTES),
    }


def _of_listening(kind: type[ListenConductT]) -> dict[str, ListenConductT]:
    """Return what both interfaces have in common."""
    return {
        **_before_answer(kind),
        **_deepgram_refusals(
            kind,
            deepgram_rules.BAD_QUERY,
            deepgram_rules.INVALID_AUTH,
            deepgram_rules.PAYMENT_REQUIRED,
            deepgram_rules.FORBIDDEN,
            deepgram_rules.NOT_FOUND,
            deepgram_rules.TOO_MANY_REQUESTS,
            deepgram_rules.INTERNAL,
            deepgram_rules.BAD_GATEWAY,
            deepgram_rules.UNAVAILABLE,
            deepgram_rules.GATEWAY_TIMEOUT,
        ),
        **_in_stream(kind),
        "deaf": kind(stall_after_bytes=0),
        "late": kind(result_delay_s=LATE_S),
        "drip": kind(drip_bytes=64, drip_s=0.02),
        "malformed-json": kind(garble="malformed-json"),
        "no-object": kind(garble="no-object"),
        "binary-message": kind(garble="binary-message"),
        "broken-frame": kind(garble="broken-frame"),
        "unknown-type": kind(garble="unknown-type"),
        "unknown-fields": kind(garble="unknown-fields"),
        "missing-fields": kind(garble="missing-fields"),
        "wrong-types": kind(garble="wrong-types"),
        "error-message": kind(garble="error-message"),
        "duplicate": kind(garble="duplicate"),
        "reordered": kind(garble="reordered"),
    }


#: Of `/v1/listen`. Those that close do so after half a second of audio.
LISTEN_FAULTS: Final[Mapping[str, ListenConduct]] = _named(
    {
        **_of_listening(ListenConduct),
        "no-speech-final": ListenConduct(speech_final=False),
        "no-alternatives": ListenConduct(garble="no-alternatives"),
    }
)

#: Of `/v2/listen`. As for v1, and what is fatal is told before the close.
FLUX_FAULTS: Final[Mapping[str, FluxConduct]] = _named(
    {
        **_of_listening(FluxConduct),
        "fatal-error": FluxConduct(end_after_bytes=AUDIO_BYTES, fatal=True, close=Close(1011)),
        "no-end-of-turn": FluxConduct(speech_final=False),
    }
)


def _speak_refusals(kind: type[C]) -> dict[str, C]:
    return _deepgram_refusals(
        kind,
        deepgram_rules.BAD_QUERY,
        deepgram_rules.INVALID_AUTH,
        deepgram_rules.PAYMENT_REQUIRED,
        deepgram_rules.TEXT_TOO_LONG,
        deepgram_rules.UNPROCESSABLE,
        deepgram_rules.TOO_MANY_REQUESTS,
        deepgram_rules.INTERNAL,
        deepgram_rules.BAD_GATEWAY,
        deepgram_rules.UNAVAILABLE,
        deepgram_rules.GATEWAY_TIMEOUT,
    )


#: Of `/v1/speak`.
SPEAK_FAULTS: Final[Mapping[str, SpeakConduct]] = _named(
    {
        **_before_answer(SpeakConduct),
        **_in_body(SpeakConduct, AUDIO_BYTES),
        **_speak_refusals(SpeakConduct),
        "drip": SpeakConduct(drip_bytes=400, drip_s=0.1),  # half of real time
        "wav": SpeakConduct(wav=True),
        "wav-in-disguise": SpeakConduct(wav=True, content_type="audio/mulaw;rate=8000"),
        "one-byte-chunks": SpeakConduct(chunk_bytes=1),
    }
)

#: Of the WebSocket at `/v1/speak`: of a connection, which speaks one piece after the other.
SPEAK_SOCKET_FAULTS: Final[Mapping[str, SpeakSocketConduct]] = _named(
    {
        **_before_answer(SpeakSocketConduct),
        **_speak_refusals(SpeakSocketConduct),
        **_in_stream(SpeakSocketConduct),
        "empty": SpeakSocketConduct(end_after_bytes=0),
        "mute": SpeakSocketConduct(stall_after_bytes=0),
        "close-data-0001": SpeakSocketConduct(chars=1),  # the first text is too much
        "close-big-0000": SpeakSocketConduct(end_after_bytes=AUDIO_BYTES, close=BIG_0000),
        "close-message-0000": SpeakSocketConduct(end_after_bytes=AUDIO_BYTES, close=MESSAGE_0000),
        "close-net-0003": SpeakSocketConduct(end_after_bytes=AUDIO_BYTES, close=NET_0003),
        "excessive-flush": SpeakSocketConduct(flushes=0),  # none is answered
        "slow": SpeakSocketConduct(first_byte_s=LATE_S),
        "drip": SpeakSocketConduct(rate=0.5),
        "small-chunks": SpeakSocketConduct(chunk_bytes=80),
        "late-chunks": SpeakSocketConduct(late_chunks=25),
        "never-cleared": SpeakSocketConduct(cleared=False),
        "flushed-before-cleared": SpeakSocketConduct(flushed_of_cleared="before"),
        "flushed-after-cleared": SpeakSocketConduct(flushed_of_cleared="after"),
    }
)

#: Of `/openai/v1/chat/completions`. Those of tool calls need a reply that has some.
CHAT_FAULTS: Final[Mapping[str, ChatConduct]] = _named(
    {
        **_before_answer(ChatConduct),
        **_in_body(ChatConduct, 500),  # the first chunk has 300
        "400": ChatConduct(refusal=groq_rules.BAD_REQUEST),
        "400-tool-use-failed": ChatConduct(refusal=groq_rules.BAD_CALL),
        "400-json-validate-failed": ChatConduct(refusal=groq_rules.NO_JSON),
        "400-blocked-api-access": ChatConduct(refusal=groq_rules.BLOCKED),
        "400-model-decommissioned": ChatConduct(refusal=groq_rules.DECOMMISSIONED),
        "401": ChatConduct(refusal=groq_rules.INVALID_KEY),
        "403": ChatConduct(refusal=groq_rules.FORBIDDEN),
        "404": ChatConduct(refusal=groq_rules.NO_MODEL),
        "413": ChatConduct(refusal=groq_rules.TOO_LARGE),
        "422": ChatConduct(refusal=groq_rules.UNPROCESSABLE),
        "424": ChatConduct(refusal=groq_rules.FAILED_DEPENDENCY),
        "429-tokens": ChatConduct(refusal=groq_rules.RATE_LIMITED),
        "429-requests": ChatConduct(refusal=groq_rules.REQUESTS_LIMITED),
        "498": ChatConduct(refusal=groq_rules.FLEX_FULL),
        "500": ChatConduct(refusal=groq_rules.INTERNAL),
        "502": ChatConduct(refusal=groq_rules.BAD_GATEWAY),
        "503": ChatConduct(refusal=groq_rules.UNAVAILABLE),
        "stall-before-first-token": ChatConduct(stall_after_tokens=0),
        "stall-mid-answer": ChatConduct(stall_after_tokens=TOKENS),
        "drop-mid-answer": ChatConduct(drop_after_tokens=TOKENS),
        "reset-mid-answer": ChatConduct(reset_after_tokens=TOKENS),
        "end-mid-answer": ChatConduct(end_after_tokens=TOKENS),
        "error-event": ChatConduct(error_after_tokens=TOKENS),
        "error-object": ChatConduct(error_after_tokens=TOKENS, error_event=""),
        "malformed-json": ChatConduct(extra="malformed-json"),
        "no-object": ChatConduct(extra="no-object"),
        "wrong-types": ChatConduct(extra="wrong-types"),
        "no-choices": ChatConduct(extra="no-choices"),
        "reasoning": ChatConduct(extra="reasoning"),
        "comments": ChatConduct(extra="comment"),
        "empty-deltas": ChatConduct(extra="empty-delta"),
        "unknown-fields": ChatConduct(unknown_fields=True),
        "finish-length": ChatConduct(finish_reason="length"),
        "finish-content-filter": ChatConduct(finish_reason="content_filter"),
        "no-done": ChatConduct(done=False),
        "hold-open": ChatConduct(hold_open=True),
        "drip": ChatConduct(drip_bytes=128, drip_s=0.02),
        "same-call-id": ChatConduct(call_id="call_0"),
        "fragmented-arguments": ChatConduct(argument_chars=1),
        "wrong-arguments": ChatConduct(arguments='{"day": '),
    }
)

#: Of Twilio's Calls API. Those in the body leave a call that was placed.
REST_FAULTS: Final[Mapping[str, RestConduct]] = _named(
    {
        **_before_answer(RestConduct),
        **_in_body(RestConduct, JSON_BYTES),
        "20003": RestConduct(refusal=twilio_rules.AUTHENTICATE),
        "20404": RestConduct(refusal=twilio_rules.NOT_FOUND.about("/")),
        "20429": RestConduct(refusal=twilio_rules.TOO_MANY_REQUESTS),
        "10004": RestConduct(refusal=twilio_rules.TOO_MANY_CALLS),
        "21201": RestConduct(refusal=twilio_rules.NO_TO),
        "21205": RestConduct(refusal=twilio_rules.NO_URL),
        "21210": RestConduct(refusal=twilio_rules.UNVERIFIED_FROM.about("+15550100999")),
        "21211": RestConduct(refusal=twilio_rules.INVALID_TO.about("+15550100123")),
        "21212": RestConduct(refusal=twilio_rules.INVALID_FROM.about("+15550100999")),
        "21213": RestConduct(refusal=twilio_rules.NO_FROM),
        "21215": RestConduct(refusal=twilio_rules.NO_PERMISSION.about("+15550100123")),
        "21219": RestConduct(refusal=twilio_rules.UNVERIFIED_TO.about("+15550100123")),
        "21220": RestConduct(refusal=twilio_rules.NOT_IN_PROGRESS),
        "32018": RestConduct(refusal=twilio_rules.TWIML_TOO_LONG),
        "573005": RestConduct(refusal=twilio_rules.UNVERIFIED_TO_TRIAL),
        "500": RestConduct(refusal=twilio_rules.INTERNAL),
        "503": RestConduct(refusal=twilio_rules.UNAVAILABLE),
        "malformed-json": RestConduct(instead=Canned(200, "application/json", b'{"sid": "CA')),
        "no-object": RestConduct(instead=Canned(200, "application/json", b"[]")),
        "no-sid": RestConduct(instead=Canned(200, "application/json", b'{"status": "queued"}')),
        "slow": RestConduct(delay_s=LATE_S),
        "drip": RestConduct(drip_bytes=128, drip_s=0.05),
    }
)

Service = Literal["listen", "flux", "speak", "speak-socket", "chat", "rest"]
Host = Literal["deepgram", "groq", "twilio"]
HOSTS: Final[tuple[Host, ...]] = ("deepgram", "groq", "twilio")

#: All of them, by service and by host.
FAULTS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "listen": LISTEN_FAULTS,
        "flux": FLUX_FAULTS,
        "speak": SPEAK_FAULTS,
        "speak-socket": SPEAK_SOCKET_FAULTS,
        "chat": CHAT_FAULTS,
        "rest": REST_FAULTS,
        **dict.fromkeys(HOSTS, HOST_FAULTS),
    }
)
