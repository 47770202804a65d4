"""Two channels of a call as it was lived: what the caller said, what they heard of the bot.

Synchronous and pure; mu-law in, mu-law out. Time is Twilio's, the stamps of the caller's audio:
the caller's channel is where its stamps say, and a byte of the bot is where Twilio played it. For
that its place waits until an echoed mark has proved that it was played and shows how late Twilio
is, or until a mark is so overdue that none will come. What a `clear` threw away gets no place.

    written at        the playout clock: 8 bytes a millisecond, from the writing or what was before
    + delay           when an echo of its end would come (`playout.py`)
    - shortest way    the stamp that the caller's audio had which came at that moment

The delay is of the way there and back and the shortest way of the way here, so what is left is
Twilio's own clock when it played, whatever the two ways take.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import inf
from typing import Final

from voicebot import audio
from voicebot.playout import ShortestWay

HOLD_S: Final = 4.0  # nothing newer is given away: a place is known after some 0.3 s, or overdue
OVERDUE_S: Final = 2.0  # behind an echo's time; the ledger has given the mark up by then
JOIN_S: Final = 0.06  # a run of audio is not torn for less: the delay is known to no less than that
LATEST_S: Final = 5.0  # no audio is placed further ahead of the caller, whatever a delay says
STALL_S: Final = 0.2  # audio of the caller that is so late was held up; as in the ledger
CAUGHT_S: Final = 0.08  # written so long before a stall, and jitter had it come too late
RESTART_S: Final = 10.0  # stamps that jump further are another clock: a stream dies of 5 s silence
# A tone may be in the caller's audio before its key is told, and sound on behind it.
KEY_BEFORE_S: Final = 1.0
KEY_BEHIND_S: Final = 0.5


@dataclass(slots=True)
class _Spoken:
    """Audio of the bot without a place; `at`: when, by the playout clock, it begins to play."""

    written: float
    at: float
    chunk: bytes
    goes_on: bool  # directly behind the one before


class Mixer:
    """The two channels of one stream. `now` is in seconds on any clock, the same throughout."""

    def __init__(self) -> None:
        self._given = 0  # samples of each channel that `take` has given away
        self._caller = bytearray()  # what follows them
        self._bot = bytearray()
        self._origin = 0  # the stamp, in samples, at which the recording begins
        self._way = ShortestWay()
        self._delay = 0.0
        self._waiting: deque[_Spoken] = deque()
        self._unplaced = 0  # bytes of them
        self._clock_end = -inf
        self._hidden_to = 0  # samples of the caller that are not for the recording

    def caller_said(
        self, payload: bytes, timestamp_ms: int, now: float, *, hidden: bool = False
    ) -> None:
        """Take audio of the caller that has come; `hidden`: only how long it is.

        A hole is silence, and what comes twice is taken once.
        """
        hole = timestamp_ms * audio.BYTES_PER_MS - self._origin - self._caller_end
        if abs(hole) > RESTART_S * audio.BYTES_PER_S:
            self._origin += hole
            self._way = ShortestWay()
        elif hole >= audio.FRAME_BYTES:  # less is jitter of the stamps
            self._caller += _silence(hole)
        elif hole <= -audio.FRAME_BYTES:
            payload = payload[-hole:]
        begin = self._caller_end
        self._caller += payload
        if hidden:
            self._hidden_to = max(self._hidden_to, self._caller_end)
        if self._hidden_to > begin:
            self._silence_caller(begin, self._hidden_to)
        late = self._way.late(self._caller_end / audio.BYTES_PER_S, now)
        # What had come to Twilio when the line stalled was played in time, whatever echoes say.
        arrived = now - late - CAUGHT_S if late > STALL_S else -inf
        overdue = now - self._delay - OVERDUE_S
        while self._waiting:
            first = self._waiting[0]
            ended = first.at + len(first.chunk) / audio.BYTES_PER_S
            if first.written >= arrived and ended > overdue:
                break
            self._place_first()

    def hide_key(self) -> None:
        """Leave a tone out of the caller's channel that has sounded just now."""
        before = self._caller_end - round(KEY_BEFORE_S * audio.BYTES_PER_S)
        self._silence_caller(before, self._caller_end)
        self._hidden_to = self._caller_end + round(KEY_BEHIND_S * audio.BYTES_PER_S)

    def bot_said(self, chunk: bytes, now: float) -> None:
        """Take audio of the bot, now that the socket has taken it."""
        goes_on = now <= self._clock_end
        at = self._clock_end if goes_on else now
        self._waiting.append(_Spoken(now, at, chunk, goes_on))
        self._unplaced += len(chunk)
        self._clock_end = at + len(chunk) / audio.BYTES_PER_S

    def bot_played(self, unproved: int, delay: float) -> None:
        """Take an echo: everything was played but the last bytes, `delay` behind the clock."""
        self._delay = delay
        self._place(unproved)

    def bot_cut(self, discarded: int, delay: float) -> None:
        """End what the bot is saying: the last bytes of it were never played."""
        self._delay = delay
        self._place(discarded)
        self._waiting.clear()
        self._unplaced = 0
        self._clock_end = -inf

    def take(self, *, rest: bool = False) -> bytes:
        """Return what is new and certain: the caller left, the bot right, sample by sample.

        `rest`: all there is, because the call is over. What the bot would have said behind it
        nobody has heard.
        """
        count = len(self._caller)
        if rest:
            self._place(0)
        else:
            count = max(0, count - round(HOLD_S * audio.BYTES_PER_S))
        both = bytearray(2 * count)
        both[0::2] = self._caller[:count]
        both[1::2] = self._bot[:count].ljust(count, _SILENCE)
        del self._caller[:count], self._bot[:count]
        self._given += count
        return bytes(both)

    @property
    def _caller_end(self) -> int:
        return self._given + len(self._caller)

    def _silence_caller(self, begin: int, end: int) -> None:
        begin, end = max(0, begin - self._given), min(end - self._given, len(self._caller))
        self._caller[begin:end] = _silence(end - begin)

    def _place(self, but: int) -> None:
        """Give all of the bot's audio its place, except for its last bytes."""
        while self._unplaced > but:
            first = self._waiting[0]
            if (beyond := but - (self._unplaced - len(first.chunk))) > 0:
                kept = len(first.chunk) - beyond
                at = first.at + kept / audio.BYTES_PER_S
                rest = _Spoken(first.written, at, first.chunk[kept:], goes_on=True)
                self._waiting.insert(1, rest)
                first.chunk = first.chunk[:kept]
            self._place_first()

    def _place_first(self) -> None:
        spoken = self._waiting.popleft()
        self._unplaced -= len(spoken.chunk)
        latest = self._caller_end / audio.BYTES_PER_S + LATEST_S
        stamp = max(0.0, min(spoken.at + self._delay - self._way.shortest, latest))
        gap = round(stamp * audio.BYTES_PER_S) - self._given - len(self._bot)
        if gap > (JOIN_S * audio.BYTES_PER_S if spoken.goes_on else 0):
            self._bot += _silence(gap)
        self._bot += spoken.chunk


_SILENCE: Final = bytes([audio.SILENCE])


def _silence(count: int) -> bytes:
    return _SILENCE * count
