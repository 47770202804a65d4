"""Twilio's end of one media stream: strict about messages, exact about what was played when.

Sans-IO: takes messages and `now`, gives messages. It plays in the time it is told, so it runs
in real time against a server and in virtual time in a test. Not the codec of the service:
this file shares no code with `twilio.py`, so that each checks the other.

Always true: one byte of the heard channel is one sample, 1/8,000 s after the one before, from
the start of the stream on; what is not media is silence (0xFF). A mark comes back when what
was sent before it has played, at once if nothing is buffered; `clear` drops what is buffered
and brings every pending mark back, in the order they came.

Source: twilio.com/docs/voice/media-streams/websocket-messages; docs/api/errors/31931, 31950
and 31951. That the echoes keep their order is natural but nowhere promised.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import secrets
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from voicebot.audio import BYTES_PER_MS, BYTES_PER_S, SILENCE

BUFFER_BYTES: Final = 600 * BYTES_PER_S  # Twilio queues ten minutes and discards the rest
BUFFER_OVERFLOW: Final = 31931
BINARY_MESSAGE: Final = 31950
INVALID_MESSAGE: Final = 31951

# Half a byte of slack: (0.02 + t0) - t0 is often a hair under 0.02.
_ROUNDING: Final = 0.5
# Mu-law of speech has both signs, so half its bytes are above 0x7F: as many bytes as these
# that are all base64 letters are base64 a second time.
_BASE64_TWICE: Final = re.compile(rb"[A-Za-z0-9+/]{80,}={0,2}")


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose call it is; `parameters` are those of the TwiML."""

    account_sid: str = "AC" + "0" * 32
    call_sid: str = field(default_factory=lambda: "CA" + secrets.token_hex(16))
    stream_sid: str = field(default_factory=lambda: "MZ" + secrets.token_hex(16))
    parameters: Mapping[str, str] = field(default_factory=dict, repr=False)  # holds a token


# ------------------------------------------------------------------ what the server said


@dataclass(frozen=True, slots=True)
class Media:
    """Audio from the server. `buffered_ms`: how much was waiting to be played before it."""

    at_ms: float
    audio: bytes = field(repr=False)
    buffered_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Mark:
    """A mark from the server."""

    at_ms: float
    name: str


@dataclass(frozen=True, slots=True)
class Clear:
    """The server threw away `dropped_ms` of audio that was not played yet."""

    at_ms: float
    dropped_ms: float


@dataclass(frozen=True, slots=True)
class Echo:
    """A mark went back: what was before it has played, or was `cleared`."""

    at_ms: float
    name: str
    cleared: bool


@dataclass(frozen=True, slots=True)
class Warned:
    """Twilio would log this warning for the stream."""

    at_ms: float
    code: int
    reason: str


Happening = Media | Mark | Clear | Echo | Warned


@dataclass(frozen=True, slots=True)
class Played:
    """Media played without a hole. `cut`: a `clear` ended it, not the end of the audio."""

    start_ms: float
    end_ms: float
    cut: bool


# ------------------------------------------------------------------ strict reading


class InvalidMessage(Exception):
    """The message breaks Twilio's contract; `code` is the warning it would log."""

    def __init__(self, code: int, reason: str) -> None:
        self.code = code
        super().__init__(reason)


def read_message(message: str | bytes, stream_sid: str) -> tuple[str, str | bytes]:
    """Return the event and its content: the audio of media, the name of a mark, "" of clear.

    Raises:
        InvalidMessage: a binary message (31950), or one that is not JSON, has an unknown
            event, a field too many or too few or of a wrong kind, or another stream's sid.
    """
    if isinstance(message, bytes):
        raise InvalidMessage(BINARY_MESSAGE, "binary message; Twilio reads text only")
    try:
        body = json.loads(message)
    except ValueError as exc:
        raise InvalidMessage(INVALID_MESSAGE, f"not JSON: {message[:80]!r}") from exc
    if not isinstance(body, dict):
        raise InvalidMessage(INVALID_MESSAGE, f"not a JSON object: {message[:80]!r}")
    event = body.get("event")
    match event:
        case "media":
            _require_fields(body, "message", {"event", "streamSid", "media"})
            _require_fields(body["media"], "media", {"payload"})
            content: str | bytes = _read_payload(body["media"]["payload"])
        case "mark":
            _require_fields(body, "message", {"event", "streamSid", "mark"})
            _require_fields(body["mark"], "mark", {"name"})
            content = body["mark"]["name"]
            if not isinstance(content, str):
                raise InvalidMessage(INVALID_MESSAGE, "mark.name is not a string")
        case "clear":
            _require_fields(body, "message", {"event", "streamSid"})
            content = ""
        case _:
            raise InvalidMessage(INVALID_MESSAGE, f"unknown event {event!r}")
    if body["streamSid"] != stream_sid:
        raise InvalidMessage(INVALID_MESSAGE, f"streamSid {body['streamSid']!r} is not this stream")
    return event, content


def _require_fields(body: Any, name: str, fields: set[str]) -> None:
    if not isinstance(body, dict):
        raise InvalidMessage(INVALID_MESSAGE, f"{name} is not an object")
    if missing := sorted(fields - body.keys()):
        raise InvalidMessage(INVALID_MESSAGE, f"{name} lacks {', '.join(missing)}")
    if extra := sorted(body.keys() - fields):
        raise InvalidMessage(INVALID_MESSAGE, f"{name} has unknown {', '.join(extra)}")


def _read_payload(payload: Any) -> bytes:
    if not isinstance(payload, str):
        raise InvalidMessage(INVALID_MESSAGE, "media.payload is not a string")
    try:
        audio = base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as exc:  # ValueError: characters outside ASCII
        raise InvalidMessage(INVALID_MESSAGE, "media.payload is not base64") from exc
    if _BASE64_TWICE.fullmatch(audio):
        raise InvalidMessage(INVALID_MESSAGE, "media.payload is base64 of base64")
    return audio


# ------------------------------------------------------------------ play-out


class Playout:
    """The play-out buffer of one stream, on a clock of samples since its start.

    Units: `sample` counts 1/8,000 s since the start of the stream.
    """

    def __init__(self) -> None:
        self.heard = bytearray()  # what has left the loudspeaker so far, silence included
        self.played: list[Played] = []  # closed stretches; the one under way is not in it
        self._buffer = bytearray()
        self._marks: deque[tuple[int, str]] = deque()  # (bytes sent before it, name)
        self._taken = 0  # bytes ever accepted into the buffer
        self._gone = 0  # of these, played or cleared
        self._began: int | None = None  # sample at which the stretch under way began

    @property
    def buffered_bytes(self) -> int:
        """How much waits to be played."""
        return len(self._buffer)

    @property
    def next_mark_sample(self) -> int | None:
        """When the oldest pending mark will be reached."""
        if not self._marks:
            return None
        return len(self.heard) + max(0, self._marks[0][0] - self._gone)

    def advance(self, sample: int) -> list[str]:
        """Play up to this sample; return the marks reached, oldest first."""
        due = sample - len(self.heard)
        if due > 0:
            audio = self._buffer[:due]
            if audio and self._began is None:
                self._began = len(self.heard)
            self.heard += audio
            del self._buffer[:due]
            self._gone += len(audio)
            if len(audio) < due:
                self._end_stretch(cut=False)
                self.heard += bytes([SILENCE]) * (due - len(audio))
        reached = []
        while self._marks and self._marks[0][0] <= self._gone:
            reached.append(self._marks.popleft()[1])
        return reached

    def append(self, audio: bytes) -> bool:
        """Queue audio behind what waits; return False, and discard it, where it does not fit."""
        if len(self._buffer) + len(audio) > BUFFER_BYTES:
            return False
        self._buffer += audio
        self._taken += len(audio)
        return True

    def mark(self, name: str) -> None:
        """Remember to report when everything taken so far has gone."""
        self._marks.append((self._taken, name))

    def clear(self) -> tuple[int, list[str]]:
        """Drop what waits; return how many bytes, and all pending marks."""
        dropped = len(self._buffer)
        self._buffer.clear()
        self._gone = self._taken
        self._end_stretch(cut=dropped > 0)
        pending = [name for _, name in self._marks]
        self._marks.clear()
        return dropped, pending

    def end(self) -> None:
        """Stop for good."""
        self._buffer.clear()
        self._end_stretch(cut=False)

    def _end_stretch(self, *, cut: bool) -> None:
        if self._began is not None:
            start, end = self._began / BYTES_PER_MS, len(self.heard) / BYTES_PER_MS
            self.played.append(Played(start, end, cut))
            self._began = None


# ------------------------------------------------------------------ the stream


class MediaStream:
    """Numbers what goes to the server, checks and plays what comes back, keeps the record.

    Units: `now` in seconds on any clock; the stream began at `started`.
    """

    def __init__(self, identity: Identity, started: float) -> None:
        self.identity = identity
        self.started = started
        self.happenings: list[Happening] = []
        self.playout = Playout()
        self._sequence = 0
        self._chunk = 0

    # To the server: each returns one text message, to be sent in the order of these calls.

    def connected(self) -> str:
        """Return the first message, which says nothing of the call."""
        return json.dumps({"event": "connected", "protocol": "Call", "version": "1.0.0"})

    def start(self) -> str:
        """Return the message that names the call."""
        identity = self.identity
        return self._encode(
            "start",
            {
                "accountSid": identity.account_sid,
                "streamSid": identity.stream_sid,
                "callSid": identity.call_sid,
                "tracks": ["inbound"],
                "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
                "customParameters": dict(identity.parameters),
            },
        )

    def media(self, audio: bytes, timestamp_ms: int) -> str:
        """Return caller audio; `timestamp_ms` is when its first sample was spoken."""
        self._chunk += 1
        body = {
            "track": "inbound",
            "chunk": str(self._chunk),
            "timestamp": str(timestamp_ms),
            "payload": base64.b64encode(audio).decode(),
        }
        return self._encode("media", body)

    def dtmf(self, digit: str) -> str:
        """Return a key press; its track is called `inbound_track`, unlike that of media."""
        return self._encode("dtmf", {"track": "inbound_track", "digit": digit})

    def stop(self) -> str:
        """Return the last message."""
        identity = self.identity
        return self._encode(
            "stop", {"accountSid": identity.account_sid, "callSid": identity.call_sid}
        )

    def _mark(self, name: str) -> str:
        return self._encode("mark", {"name": name})

    def _encode(self, event: Literal["start", "media", "dtmf", "mark", "stop"], body: Any) -> str:
        self._sequence += 1
        return json.dumps(
            {
                "event": event,
                "sequenceNumber": str(self._sequence),
                event: body,
                "streamSid": self.identity.stream_sid,
            }
        )

    # From the server.

    def receive(self, message: str | bytes, now: float) -> list[str]:
        """Take one message as it came; return the mark echoes it, and time, brought about."""
        echoes = self.advance(now)
        at_ms = self.at_ms(now)
        try:
            event, content = read_message(message, self.identity.stream_sid)
        except InvalidMessage as invalid:
            self.happenings.append(Warned(at_ms, invalid.code, str(invalid)))
            return echoes
        playout = self.playout
        if event == "clear":
            dropped, pending = playout.clear()
            self.happenings.append(Clear(at_ms, dropped / BYTES_PER_MS))
            return echoes + [self._echo(name, now, cleared=True) for name in pending]
        if isinstance(content, bytes):
            buffered_ms = playout.buffered_bytes / BYTES_PER_MS
            self.happenings.append(Media(at_ms, content, buffered_ms))
            if not playout.append(content):
                reason = "more than ten minutes of audio are queued; this media is discarded"
                self.happenings.append(Warned(at_ms, BUFFER_OVERFLOW, reason))
            return echoes
        self.happenings.append(Mark(at_ms, content))
        playout.mark(content)
        return echoes + self.advance(now)

    def advance(self, now: float) -> list[str]:
        """Play up to `now`; return the echoes of the marks reached."""
        sample = int((now - self.started) * BYTES_PER_S + _ROUNDING)
        return [self._echo(name, now, cleared=False) for name in self.playout.advance(sample)]

    def end(self, now: float) -> None:
        """Hang up: what is not played yet never will be."""
        self.advance(now)
        self.playout.end()

    @property
    def next_echo(self) -> float | None:
        """The time at which `advance` will bring the next echo, if nothing comes before."""
        sample = self.playout.next_mark_sample
        return None if sample is None else self.started + sample / BYTES_PER_S

    def at_ms(self, now: float) -> float:
        """Return milliseconds since the start of the stream, to a microsecond."""
        return round((now - self.started) * 1000.0, 3)

    def _echo(self, name: str, now: float, *, cleared: bool) -> str:
        self.happenings.append(Echo(self.at_ms(now), name, cleared))
        return self._mark(name)
