"""The ledger of what was written to Twilio, and what of it the caller has heard.

Synchronous; takes the time as an argument. It knows one *epoch* at a time: a stretch of
speaking between two stops, named by turn and number. Positions are bytes of the reply
(`reel.py`); 8 bytes are 1 ms.

How the heard position is found, in order of authority:

1. An echoed mark proves that everything before it was played, unless the epoch was cleared:
   `clear` makes Twilio echo every pending mark, so such an echo proves nothing.
2. A mark not echoed yet proves that what follows it was not played, until it is `mark_grace_ms`
   overdue: then it counts as lost. Twilio loses none; in a call in which one was lost, or came
   behind a later one, a missing echo proves nothing any more.
3. In between, the playout clock: what was written plays at 8 bytes a millisecond from the
   moment it was written or from the end of what was written before.

Each echo shows by how much it comes behind that clock; the smallest of the last few is believed,
because the network only ever adds to it. The smallest of the call is the *round trip*. What is
more than that is *lag*: Twilio ran dry, or plays slower than our clock. A clear travels as long
as the media did, so a clear written now stops Twilio where the clock is, less the lag; what a
message that arrives now proves to have been heard is a round trip older.

A stalled line shows in the caller's own audio: it comes late, all at once. Nothing was delivered
either way meanwhile, so Twilio has played its lead and no more: that is the lag until an echo
tells better.

Nothing here waits for a mark, and no mark can move the position past what was written.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Final, NamedTuple

from voicebot import audio
from voicebot.errors import LocalProtocolError


@dataclass(frozen=True, slots=True)
class Pacing:
    """How far ahead of playout audio is handed to Twilio, and in how large messages."""

    # All that a clear throws away. Less a message it is what network jitter may take: 140.
    lead_ms: int = 220
    chunk_ms: int = 80  # four frames a message: a quarter of the work, still a fine-grained stop
    # Each mark costs a message each way; where Twilio is when a line stalls is known to this.
    mark_every_ms: int = 240
    mark_slack_ms: int = 150  # a mark this late may be on its way: jitter of 80 ms, both ways
    mark_grace_ms: int = 1_000  # a mark later than this is lost; longer than any sane jitter
    keep_ms: int = 3_000  # heard audio kept for going back to a word edge


class Epoch(NamedTuple):
    """A stretch of speaking: the `n`-th of a turn."""

    turn: int
    n: int


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a reply was stopped. `heard` is a position; `discarded` the bytes thrown away."""

    heard: int
    discarded: int
    cleared: bool  # whether a clear was needed


class _Pending(NamedTuple):
    name: str
    position: int  # bytes of this epoch written before the mark
    due: float  # when the playout clock reaches it


_DELAYS: Final = 8  # echoes of a run whose delay is remembered; two seconds of marks
_NO_ECHO_S: Final = 0.2  # how long an echo may take before the first has told
_ROUNDING_S: Final = 1e-6  # sums of times differ in their last bits
_BURST_S: Final = 0.02  # what arrives within a frame of each other came at once
_CAUGHT_S: Final = 0.08  # written so long before a stall, and jitter had it come too late
_WRITES: Final = 512  # messages remembered: of a frame each, as long as a call without media
_WINDOW_S: Final = 5.0  # of media, to know the shortest way: clocks drift by 0.1 ms in it


class Ledger:
    """Everything written on one call's media socket, by epoch."""

    def __init__(self, pacing: Pacing) -> None:
        self._lead_s = pacing.lead_ms / 1_000
        self._slack_s = pacing.mark_slack_ms / 1_000
        self._grace_s = pacing.mark_grace_ms / 1_000
        self._epoch: Epoch | None = None
        self._base = 0  # position in the reply at which the epoch begins
        self._written = 0  # bytes of this epoch
        self._proved = 0  # bytes of this epoch known to have been played
        self._reported = 0  # the furthest position ever told: it never goes back
        self._run_start = 0.0  # the run being played: when and at which byte it began
        self._run_byte = 0
        self._pending: deque[_Pending] = deque()
        self._writes: deque[tuple[float, int]] = deque(maxlen=_WRITES)  # when up to which byte
        self._sequence = 0
        self._marks_fail = False  # one was lost, or overtaken
        self._delays: deque[float] = deque(maxlen=_DELAYS)  # of the run being played
        self._round_trip: float | None = None  # the smallest delay of the call
        self._first_echo_at = math.inf
        self._levels: list[float] = []  # of each 20 ms frame written
        self._way = ShortestWay()
        self._came_at = -math.inf  # when audio of the caller came last
        self._stall_at = -math.inf  # when the last stall of the line was seen to be over
        self._guessed = False  # the delay of this run is inferred from a stall
        self.stale_marks = 0
        self.underruns = 0
        self.underrun_s = 0.0

    # What the writer and the listen scope report.

    def open(self, epoch: Epoch, position: int) -> None:
        """Begin an epoch that speaks the reply from `position` on.

        Raises:
            LocalProtocolError: another epoch is still open.
        """
        if self._epoch is not None:
            raise LocalProtocolError(f"epoch {epoch} opened while {self._epoch} is open")
        self._epoch, self._base = epoch, position
        self._written = self._proved = self._reported = self._run_byte = self._sequence = 0
        self._pending.clear()
        self._writes.clear()
        self._levels.clear()

    def media_written(self, epoch: Epoch, chunk: bytes, now: float) -> None:
        """Record media, now that the socket has taken it.

        Raises:
            LocalProtocolError: the epoch is not the open one; its audio must not be sent.
        """
        self._check(epoch)
        end = self._clock_end()
        if self._written == 0 or now > end:
            if self._written:
                self.underruns += 1
                self.underrun_s += now - end
            self._run_start, self._run_byte = now, self._written
            self._delays.clear()  # the lag of a run ends with it
            self._guessed = False
        self._written += len(chunk)
        self._writes.append((now, self._written))
        self._levels += [
            audio.dbov(chunk[i : i + audio.FRAME_BYTES])
            for i in range(0, len(chunk), audio.FRAME_BYTES)
        ]

    def next_mark(self, epoch: Epoch) -> str:
        """Return the name of the mark to write next: turn, epoch, sequence."""
        self._check(epoch)
        self._sequence += 1
        return f"{epoch.turn}.{epoch.n}.{self._sequence}"

    def mark_written(self, epoch: Epoch, name: str) -> None:
        """Record a mark behind everything written so far."""
        self._check(epoch)
        self._pending.append(_Pending(name, self._written, self._clock_end()))

    def mark_echoed(self, name: str, now: float) -> bool:
        """Take an echo; return whether it says something about the open epoch.

        An echo of an epoch that was cleared or has ended, one that was never sent and a
        second one of the same mark are counted and change nothing.
        """
        for index, pending in enumerate(self._pending):
            if pending.name == name:
                # Earlier ones still pending are lost or late; what they prove is proved.
                for _ in range(index + 1):
                    self._pending.popleft()
                self._marks_fail = self._marks_fail or index > 0
                self._proved = max(self._proved, pending.position)
                self._take_delay(now - pending.due, now)
                return True
        self.stale_marks += 1
        return False

    def caller_heard(self, timestamp_ms: int, now: float) -> None:
        """Take note of when audio of the caller was sent, by Twilio's stamp, and came."""
        late = self._way.late(timestamp_ms / 1_000, now)
        if late > self._lead_s:
            self._take_stall(late, now)
        self._came_at = now

    def _take_stall(self, late: float, now: float) -> None:
        """Take note of audio of the caller that a stall has held up."""
        # The first of a burst was sent when the stall began; those that follow tell nothing new.
        if self._written and now - self._stall_at > _BURST_S:
            if 0.0 <= now - self._first_echo_at <= _BURST_S:
                self._round_trip = None  # it came in this burst, and was held up as well
                self._delays.clear()
            # It began somewhere between what came last and when this should have come.
            began = min(now - late, self._came_at)
            lag = max(self._lag(), now - self._dry_at(began - _CAUGHT_S))
            self._delays.clear()
            self._delays.append((self._round_trip or 0.0) + lag)
            self._guessed = True
        self._stall_at = now

    def _take_delay(self, delay: float, now: float) -> None:
        """Take note of how long after the clock an echo came."""
        lag = 0.0
        if self._guessed:
            if now - self._stall_at <= _BURST_S:
                return  # held up by the stall
            lag = self._lag()
            self._delays.clear()
            self._guessed = False
        self._delays.append(delay)
        if self._round_trip is None:
            # The first echo of a call cannot tell the two apart.
            self._round_trip, self._first_echo_at = max(0.0, delay - lag), now
        self._round_trip = min(self._round_trip, delay)

    # What the speak scope asks.

    @property
    def open_epoch(self) -> Epoch | None:
        """The epoch that may be written now."""
        return self._epoch

    def buffered_s(self, now: float) -> float:
        """Return the seconds of audio written and, by the clock, not played yet."""
        return max(0.0, self._clock_end() - now) if self._written else 0.0

    @property
    def ends_at(self) -> float:
        """When, by the clock, everything written has been played; -inf if nothing was."""
        return self._clock_end() if self._written else -math.inf

    @property
    def written(self) -> int:
        """Bytes of the open epoch that the socket has taken."""
        return self._written

    def heard(self, now: float) -> int:
        """Return the position up to which the caller had heard when what arrives now was sent."""
        return self._base + self._heard(now, self._delay())

    def played_out(self) -> bool:
        """Return whether everything written is known to have been played."""
        return self._proved == self._written

    @property
    def unproved(self) -> int:
        """The last bytes of the open epoch, which no echo has shown to be played."""
        return self._written - self._proved

    @property
    def delay_s(self) -> float:
        """How long after the clock an echo is expected: there and back, and how late Twilio is."""
        return self._delay()

    def overdue_at(self) -> float:
        """Return when everything written counts as played even if no mark comes back."""
        return self._clock_end() + self._echo_delay() + self._grace_s

    def playing(self, now: float) -> int:
        """Return the position that the caller hears now, by the clock; an estimate and no more."""
        return self._base + (self._clock(now - self._delay()) if self._written else 0)

    def playing_dbov(self, now: float) -> float:
        """Return the level of what the caller hears now; -inf where nothing plays."""
        if self._epoch is None or not self._levels:
            return -math.inf
        byte = self._clock(now - self._delay())
        if byte >= self._written:
            return -math.inf
        return self._levels[min(byte // audio.FRAME_BYTES, len(self._levels) - 1)]

    # How an epoch ends.

    def clear_needed(self) -> bool:
        """Return whether Twilio may still hold audio of the open epoch."""
        return self._written > self._proved

    def close(self, now: float, *, cleared: bool) -> Cut:
        """End the open epoch: its position is frozen and its late echoes prove nothing."""
        if self._epoch is None:
            raise LocalProtocolError("no epoch is open")
        heard = self._heard(now, self._lag())
        cut = Cut(self._base + heard, self._written - heard, cleared)
        self._epoch = None
        self._pending.clear()
        self._levels.clear()
        return cut

    # Arithmetic.

    def _check(self, epoch: Epoch) -> None:
        if epoch != self._epoch:
            raise LocalProtocolError(f"epoch {epoch} is written while {self._epoch} is open")

    def _clock_end(self) -> float:
        """Return when the playout clock reaches the end of what was written."""
        return self._run_start + (self._written - self._run_byte) / audio.BYTES_PER_S

    def _clock(self, now: float) -> int:
        """Return how many bytes of the epoch the playout clock has passed."""
        played = round((now - self._run_start) * audio.BYTES_PER_S)
        return max(0, min(self._run_byte + played, self._written))

    def _delay(self) -> float:
        """Return how long after the clock an echo is expected."""
        return min(self._delays, default=self._round_trip or 0.0)

    def _echo_delay(self) -> float:
        """Return how long after the clock an echo may come and be on time."""
        return max(self._delay(), _NO_ECHO_S) if self._round_trip is None else self._delay()

    def _dry_at(self, stalled: float) -> float:
        """Return when, by the clock of this run, Twilio ran dry of what came before a stall."""
        byte = 0
        for at, written in self._writes:
            if at >= stalled:
                break
            byte = written
        return self._run_start + (byte - self._run_byte) / audio.BYTES_PER_S

    def _lag(self) -> float:
        """Return by how much of that Twilio plays later than the clock."""
        return self._delay() - (self._round_trip or 0.0)

    def _heard(self, now: float, behind: float) -> int:
        if not self._written:
            return 0
        position = self._clock(now - behind)
        delay = self._echo_delay()
        for pending in self._pending:
            late = now - pending.due - delay
            if late < self._slack_s:
                break  # it is not due yet, nor is any that follows
            if late >= self._grace_s - _ROUNDING_S:
                self._marks_fail = True
            elif not self._marks_fail:
                position = min(position, pending.position)
                break
        self._reported = max(self._reported, self._proved, position)
        return self._reported


class ShortestWay:
    """The shortest time that media has lately taken, on two clocks that need not agree."""

    def __init__(self) -> None:
        self._began = -math.inf
        self._before = self._lately = math.inf

    def late(self, sent: float, now: float) -> float:
        """Return how much longer than that a message took that was sent then and came now."""
        if now - self._began > _WINDOW_S:
            self._began, self._before, self._lately = now, self._lately, math.inf
        self._lately = min(self._lately, now - sent)
        return now - sent - self.shortest

    @property
    def shortest(self) -> float:
        """The time itself; infinite before the first message."""
        return min(self._before, self._lately)
