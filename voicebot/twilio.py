"""Twilio Media Streams messages: text on the wire to frozen events and back.

Sans-IO: no socket, no clock, no logging. What the peer may get wrong without the call being
lost is an `Anomaly`, which the caller counts and logs; what a stream does not survive is a
`RemoteProtocolError`.

Source: twilio.com/docs/voice/media-streams/websocket-messages. `sequenceNumber`, `chunk` and
`timestamp` are strings there.
"""

from __future__ import annotations

import binascii
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, assert_never

from voicebot.errors import RemoteProtocolError
from voicebot.limits import Limits

USUAL: Final = Limits()

MAX_NUMBER_CHARS: Final = 32  # Twilio's are 8000 and 1; a long one takes quadratic time
# 5 s of audio in one message. Twilio sends 160 bytes; more than this is not live audio.
MAX_AUDIO_BYTES: Final = 40_000


@dataclass(frozen=True, slots=True)
class Connected:
    """First message of a stream; says nothing about the call."""

    protocol: str
    version: str


@dataclass(frozen=True, slots=True)
class Start:
    """The stream belongs to this call. `parameters` come from `<Parameter>` in the TwiML."""

    stream_sid: str
    call_sid: str
    account_sid: str
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Media:
    """Audio of the caller.

    Shape: mu-law, 8,000 Hz, mono; usually 160 bytes, any length is valid.
    Units: `timestamp_ms` counts from the start of the stream.
    """

    timestamp_ms: int
    audio: bytes


@dataclass(frozen=True, slots=True)
class Dtmf:
    """A key of the caller's phone."""

    digit: str


@dataclass(frozen=True, slots=True)
class Mark:
    """Echo of a mark: what was sent before it has been played, or was cleared."""

    name: str


@dataclass(frozen=True, slots=True)
class Stop:
    """The stream has ended; the caller hung up or the call was ended."""


@dataclass(frozen=True, slots=True)
class Anomaly:
    """Something that should not have come, ignored. `kind` is a constant for counters."""

    kind: str
    detail: str = ""


Event = Connected | Start | Media | Dtmf | Mark | Stop
Inbound = Media | Dtmf | Mark | Stop


@dataclass(frozen=True, slots=True)
class SendMedia:
    """Audio for the caller; appended to what Twilio has buffered. Mu-law, any length."""

    audio: bytes


@dataclass(frozen=True, slots=True)
class SendMark:
    """Ask for an echo when everything sent before has been played."""

    name: str


@dataclass(frozen=True, slots=True)
class SendClear:
    """Drop all buffered audio. Twilio echoes every mark still pending."""


Outbound = SendMedia | SendMark | SendClear


class MediaStream:
    """One stream's receiving side: message in, event or anomaly out, with the order checked.

    | state     | connected | start   | media, dtmf, mark | stop  |
    |-----------|-----------|---------|-------------------|-------|
    | new       | ok        | started | anomaly           | ended |
    | started   | anomaly   | fatal   | ok                | ended |
    | ended     | anomaly   | fatal   | anomaly           | anomaly |

    A second `start` is fatal: it is either an attack on a call already authenticated or a
    peer whose idea of the call cannot be trusted.
    """

    def __init__(self, limits: Limits = USUAL) -> None:
        self._limits = limits
        self.start: Start | None = None
        self.ended = False
        self._sequence = 0

    def receive(self, message: str | bytes) -> Event | Anomaly:
        """Return what one WebSocket message says.

        Raises:
            RemoteProtocolError: oversized message or second start; the stream must be closed
                with the error's `close_code`.
        """
        if len(message) > self._limits.message_chars:
            raise RemoteProtocolError(
                "oversized_message", f"{len(message)} characters", close_code=1009
            )
        if not isinstance(message, str):
            return Anomaly("binary_message", f"{len(message or b'')} bytes")
        try:
            fields = _DECODE(message)
        except (ValueError, RecursionError) as exc:
            return Anomaly("not_json", str(exc)[:80])
        most = self._limits.json_depth
        # Brackets in strings count as well, so many of them are only a reason to look.
        if message.count("{") + message.count("[") > most and _depth(fields) > most:
            return Anomaly("too_deep", f"more than {most}")
        if not isinstance(fields, dict):
            return Anomaly("not_an_object", type(fields).__name__)
        try:
            return self._event(fields)
        except _Malformed as exc:
            return Anomaly(exc.kind, exc.detail)

    def _event(self, fields: dict[str, Any]) -> Event | Anomaly:
        name = fields.get("event")
        if name == "media":
            self._check_running(fields, "media")
            media = _object(fields, "media")
            if media.get("track", "inbound") != "inbound":
                return Anomaly("foreign_track", repr(media.get("track"))[:40])
            event: Event = Media(_number(media, "timestamp"), _audio(media))
        elif name == "mark":
            self._check_running(fields, "mark")
            event = Mark(_text(_object(fields, "mark"), "name"))
        elif name == "dtmf":
            self._check_running(fields, "dtmf")
            digit = _text(_object(fields, "dtmf"), "digit")
            if len(digit) != 1 or digit not in "0123456789*#ABCD":
                return Anomaly("bad_digit")
            event = Dtmf(digit)
        elif name == "start":
            if self.start is not None:
                raise RemoteProtocolError("second_start")
            event = self._read_start(fields)
            self._check_sequence(fields)
            self.start = event
            return event
        elif name == "stop":
            if self.ended:
                return Anomaly("after_stop", "stop")
            self._check_sequence(fields)
            self.ended = True
            return Stop()
        elif name == "connected":
            if self.start is not None:
                return Anomaly("late_connected")
            return Connected(str(fields.get("protocol", "")), str(fields.get("version", "")))
        else:
            return Anomaly("unknown_event", repr(name)[:40])
        self._check_sequence(fields)
        return event

    def _check_running(self, fields: dict[str, Any], name: str) -> None:
        if self.start is None:
            raise _Malformed(f"{name}_before_start", "")
        if self.ended:
            raise _Malformed("after_stop", name)
        if fields.get("streamSid") != self.start.stream_sid:
            raise _Malformed("wrong_stream_sid", repr(fields.get("streamSid"))[:40])

    def _check_sequence(self, fields: dict[str, Any]) -> None:
        """Count what is out of order; TCP keeps order, so this is a peer's fault."""
        number = fields.get("sequenceNumber")
        if isinstance(number, str) and number.isascii() and number.isdigit() and len(number) < 16:
            sequence = int(number)
            if sequence <= self._sequence:
                raise _Malformed("out_of_order", f"{sequence} after {self._sequence}")
            self._sequence = sequence

    @staticmethod
    def _read_start(fields: dict[str, Any]) -> Start:
        start = _object(fields, "start")
        media_format = start.get("mediaFormat")
        if isinstance(media_format, dict) and (
            media_format.get("encoding", "audio/x-mulaw"),
            media_format.get("sampleRate", 8000),
            media_format.get("channels", 1),
        ) != ("audio/x-mulaw", 8000, 1):
            raise _Malformed("unsupported_media_format", str(media_format)[:120])
        given = start.get("customParameters")
        parameters = given if isinstance(given, dict) else {}
        return Start(
            stream_sid=_text(start, "streamSid"),
            call_sid=_text(start, "callSid"),
            account_sid=_text(start, "accountSid"),
            parameters={_whole(str(key)): _whole(str(value)) for key, value in parameters.items()},
        )


def encode(stream_sid: str, message: Outbound) -> str:
    """Return the JSON text of one message to Twilio.

    Exactly the fields Twilio knows: any other gives warning 31951 and is ignored there.
    """
    match message:
        case SendMedia(audio):
            # Hot path: base64 needs no escaping, a stream SID is letters and digits.
            payload = binascii.b2a_base64(audio, newline=False).decode("ascii")
            return (
                '{"event":"media","streamSid":"'
                + stream_sid
                + '","media":{"payload":"'
                + payload
                + '"}}'
            )
        case SendMark(name):
            return json.dumps({"event": "mark", "streamSid": stream_sid, "mark": {"name": name}})
        case SendClear():
            return json.dumps({"event": "clear", "streamSid": stream_sid})
        case _ as unreachable:
            assert_never(unreachable)


def _short(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return what converts a number of JSON, unless it is of a length that costs time."""

    def converted(digits: str) -> Any:
        if len(digits) > MAX_NUMBER_CHARS:
            raise ValueError(f"a number of {len(digits)} characters")
        return convert(digits)

    return converted


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")  # NaN and Infinity, which Python would take


# Made once: `json.loads` with arguments makes one for each message. Of a name that comes twice in
# an object the last counts.
_DECODE: Final = json.JSONDecoder(
    parse_int=_short(int), parse_float=_short(float), parse_constant=_no_constant
).decode


def _depth(value: Any) -> int:
    """Return how deep objects and arrays are in each other; without recursion."""
    depth, level = 0, [value]
    while level := [one for one in level if isinstance(one, dict | list)]:
        depth += 1
        level = [
            inner for one in level for inner in (one.values() if isinstance(one, dict) else one)
        ]
    return depth


class _Malformed(Exception):
    """A field is absent or of the wrong kind; becomes an `Anomaly`."""

    def __init__(self, kind: str, detail: str) -> None:
        self.kind = kind
        self.detail = detail
        super().__init__(kind, detail)


def _object(fields: dict[str, Any], name: str) -> dict[str, Any]:
    value = fields.get(name)
    if not isinstance(value, dict):
        raise _Malformed("missing_field", name)
    return value


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    # A name of over 200 characters, or not in ASCII, is nothing that Twilio or this server ever
    # sends; and half of a surrogate pair could be written nowhere.
    if not isinstance(value, str) or not value or len(value) > 200 or not value.isascii():
        raise _Malformed("missing_field", name)
    return value


def _whole(text: str) -> str:
    """Return a text that can be written: with "?" for halves of surrogate pairs."""
    return text.encode("utf-8", "replace").decode()


def _number(fields: dict[str, Any], name: str) -> int:
    value = fields.get(name)
    # isascii: "²".isdigit() is true, and int() of it is an error.
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 16:
        return int(value)
    raise _Malformed("missing_field", name)


def _audio(media: dict[str, Any]) -> bytes:
    payload = media.get("payload")
    if not isinstance(payload, str):
        raise _Malformed("missing_field", "payload")
    try:
        audio = binascii.a2b_base64(payload, strict_mode=True)
    except ValueError as exc:  # binascii.Error, and non-ASCII text
        raise _Malformed("bad_base64", str(exc)) from exc
    if not audio:
        raise _Malformed("empty_media", "")
    if len(audio) > MAX_AUDIO_BYTES:
        raise _Malformed("oversized_media", f"{len(audio)} bytes")
    return audio
