"""Twilio's end of one media stream: strict about messages, exact about what was played when.

Sans-IO: takes messages and `now`, gives messages. It plays in the time it is told, so it runs
in real time against a server and in virtual time in a test. Not the codec of the service:
this file shares no code with `twilio.py`, so that each checks the other.

Always true: one byte of the heard channel is one sample, 1/8,000 s after the one before, from
the start of the stream on; what is not media is silence (0xFF). A mark comes back when what
was sent before it has played, at once if nothing is buffered; `clear` drops what is buffered
and brings every pending mark back, in the order they came. Faults of `network.py` are asked
for by name: echoes lost, late, twice or stray, and a clock that drifts. Drift changes how long
a sample lasts, never which samples are heard.

Source: twilio.com/docs/voice/media-streams/websocket-messages; docs/api/errors/31931. That the
echoes keep their order is natural but nowhere promised.
"""

from __future__ import annotations

import base64
import heapq
import itertools
import json
import math
import secrets
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from voicebot.audio import BYTES_PER_MS, BYTES_PER_S, SILENCE
from voicebot.simulator.happenings import Clear, Echo, Happening, Mark, Media, Played, Warned
from voicebot.simulator.network import PERFECT, MarkFaults, Network
from voicebot.simulator.strict import InvalidMessage, read_message

__all__ = [  # the record and the strict reader are of Twilio's end, wherever they stand
    "BUFFER_BYTES",
    "Clear",
    "Echo",
    "Happening",
    "Identity",
    "InvalidMessage",
    "Mark",
    "Media",
    "MediaStream",
    "Played",
    "Playout",
    "Warned",
    "read_message",
]

BUFFER_BYTES: Final = 600 * BYTES_PER_S  # Twilio queues ten minutes and discards the rest
BUFFER_OVERFLOW: Final = 31931

# Half a byte of slack: (0.02 + t0) - t0 is often a hair under 0.02.
_ROUNDING: Final = 0.5


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose call it is; `parameters` are those of the TwiML."""

    account_sid: str = "AC" + "0" * 32
    call_sid: str = field(default_factory=lambda: "CA" + secrets.token_hex(16))
    stream_sid: str = field(default_factory=lambda: "MZ" + secrets.token_hex(16))
    parameters: Mapping[str, str] = field(default_factory=dict, repr=False)  # holds a token


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

    def __init__(self, identity: Identity, started: float, network: Network = PERFECT) -> None:
        self.identity = identity
        self.started = started
        self.happenings: list[Happening] = []
        self.playout = Playout()
        self._speed = network.speed
        self._faults = MarkFaults(network)
        self._late: list[tuple[float, int, str]] = []  # a heap of echoes: when, which, name
        self._late_order = itertools.count()
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

    def media(self, audio: bytes | bytearray, timestamp_ms: int) -> str:
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
        """Take one message, with effect at once; return the echoes it, and time, brought about."""
        echoes = self.advance(now)
        taken = self.take(message, now)
        return echoes if taken is None else echoes + self.apply(taken, now)

    def take(self, message: str | bytes, now: float) -> int | None:
        """Check and record one message as it comes off the line; it has no effect yet.

        Returns its place in `happenings`, for `apply`, or None where it never will have any.
        """
        at_ms = self.at_ms(now)
        try:
            event, content = read_message(message, self.identity.stream_sid)
        except InvalidMessage as invalid:
            self.happenings.append(Warned(at_ms, invalid.code, str(invalid)))
            return None
        taken: Media | Mark | Clear
        if event == "clear":
            taken = Clear(at_ms, 0.0, math.inf)
        elif isinstance(content, bytes):
            taken = Media(at_ms, content, 0.0, math.inf)
        else:
            taken = Mark(at_ms, content, math.inf)
        self.happenings.append(taken)
        return len(self.happenings) - 1

    def apply(self, place: int, now: float) -> list[str]:
        """Let a message taken before arrive now; return the echoes it, and time, brought about."""
        echoes = self.advance(now)
        playout, taken, arrival_ms = self.playout, self.happenings[place], self.at_ms(now)
        transit_ms = round(arrival_ms - taken.at_ms, 3)
        match taken:
            case Media(at_ms, audio):
                buffered_ms = playout.buffered_bytes / BYTES_PER_MS
                self.happenings[place] = Media(at_ms, audio, buffered_ms, transit_ms)
                if not playout.append(audio):
                    reason = "more than ten minutes of audio are queued; this media is discarded"
                    self.happenings.append(Warned(arrival_ms, BUFFER_OVERFLOW, reason))
            case Mark(at_ms, name):
                self.happenings[place] = Mark(at_ms, name, transit_ms)
                playout.mark(name)
                echoes += self.advance(now)
            case Clear(at_ms):
                dropped, pending = playout.clear()
                self.happenings[place] = Clear(at_ms, dropped / BYTES_PER_MS, transit_ms)
                for name in pending:
                    echoes += self._echo(name, now, cleared=True)
            case _:
                raise RuntimeError("only what was taken can be applied")  # a bug here
        return echoes

    def advance(self, now: float) -> list[str]:
        """Play up to `now`; return the echoes due, late ones of earlier marks first."""
        echoes = []
        while self._late and self._late[0][0] <= now:
            echoes.append(self._mark(heapq.heappop(self._late)[2]))
        sample = int((now - self.started) * BYTES_PER_S * self._speed + _ROUNDING)
        for name in self.playout.advance(sample):
            echoes += self._echo(name, now, cleared=False)
        return echoes

    def end(self, now: float) -> None:
        """Hang up: what is not played yet never will be, and no echo comes any more."""
        self.advance(now)
        self.playout.end()
        self._late.clear()

    @property
    def next_echo(self) -> float | None:
        """The time at which `advance` will bring the next echo, if nothing comes before."""
        late = self._late[0][0] if self._late else None
        sample = self.playout.next_mark_sample
        if sample is None:
            return late
        due = self.started + sample / BYTES_PER_S / self._speed
        return due if late is None else min(due, late)

    def at_ms(self, now: float) -> float:
        """Return milliseconds since the start of the stream, as the far end counts them."""
        return round((now - self.started) * 1000.0 * self._speed, 3)  # to a microsecond

    def _echo(self, name: str, now: float, *, cleared: bool) -> list[str]:
        """Record the echoes of a mark that is due; return those that go at once."""
        messages = []
        for late_ms, echo in self._faults.echoes(name):
            self.happenings.append(Echo(self.at_ms(now), echo, cleared, late_ms))
            if late_ms == 0.0:
                messages.append(self._mark(echo))
            elif late_ms < math.inf:
                due = now + late_ms / 1000
                heapq.heappush(self._late, (due, next(self._late_order), echo))
        return messages
