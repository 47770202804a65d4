"""The network between Twilio and the server, and Twilio's habits with marks: what a test varies.

Sans-IO: `Pipe` says when a message comes out, `MarkFaults` which echoes come and how late.
`call.py` lets time pass. Every time counts from the start of the stream, in real seconds.

    run_call(line, script, network=Network(delay_ms=40, jitter_ms=80, lost_marks=0.1, seed=7))

Chance comes from `seed` alone, by one generator for each direction and one for the marks, so
that what one of them draws does not depend on how messages of the others interleave. Under a
`MockClock` of its own a call is reproducible to the last bit, if the server's part is.
"""

from __future__ import annotations

import math
import random
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Final, Generic, TypeVar

from voicebot.audio import FRAME_MS

ItemT = TypeVar("ItemT")

_CHANCES: Final = ("lost_marks", "late_marks", "duplicate_marks", "stray_marks")
_MAX_DRIFT: Final = 0.5  # telephone clocks are within 0.0001; more than this is no clock
# Two floats meant to be the same instant differ by less.
_SAME_S: Final = 1e-9
_LAST_NUMBER: Final = re.compile(r"[0-9]{1,9}(?=[^0-9]*$)")
_STRAY_STEP: Final = 1_000_000  # further ahead than any call counts


@dataclass(frozen=True, slots=True)
class Network:
    """What happens to a call on its way; by default nothing.

    Raises:
        ValueError: a value makes no sense; names every one.
    """

    # Audio per caller message. Twilio sends 20 ms; 100 makes a long soak several times cheaper.
    frame_ms: int = FRAME_MS
    # Each way, on top of what the line itself takes. A perfect line takes no time.
    delay_ms: float = 0.0
    # Uniform extra per message, each way; the order is kept, because TCP keeps it.
    jitter_ms: float = 0.0
    # What goes to the server arrives in bunches, this far apart. 0: each message by itself.
    batch_ms: float = 0.0
    # (at_s, for_s): nothing arrives on either side, then everything does at once.
    stalls: tuple[tuple[float, float], ...] = ()
    # Probability that an echo never comes. Twilio promises all of them; peers saw some missing.
    lost_marks: float = 0.0
    # Probability that an echo comes `late_mark_ms` late, overtaken by those behind it.
    late_marks: float = 0.0
    # Longer than bots put marks apart (0.2-0.5 s), or nothing would be overtaken.
    late_mark_ms: float = 700.0
    # Probability that an echo comes twice; each of the two may be late by itself.
    duplicate_marks: float = 0.0
    # Probability, per echo, of another one that was never asked for.
    stray_marks: float = 0.0
    # How much faster the far end's clock runs (0.001: by 0.1 %): it plays, and speaks, faster.
    drift: float = 0.0
    # From then on no message is sent and none is taken off the line, which stays open.
    half_open_at_s: float | None = None
    # From then on none is taken off the line: the server's sends back up. Sending goes on.
    stop_reading_at_s: float | None = None
    # The line is closed without `stop`; what is under way is lost.
    close_at_s: float | None = None
    # Of all chance above: the same seed gives the same call.
    seed: int = 0

    def __post_init__(self) -> None:
        if problems := list(self._problems()):
            raise ValueError("; ".join(problems))

    def _problems(self) -> Iterator[str]:
        if self.frame_ms <= 0 or self.frame_ms % FRAME_MS:
            yield f"frame_ms {self.frame_ms} is no multiple of {FRAME_MS}"
        for field in fields(self):
            value, unit = getattr(self, field.name), field.name.rpartition("_")[2]
            if field.name in _CHANCES and not 0 <= value <= 1:
                yield f"{field.name} {value} is no probability (0 to 1)"
            if unit in ("ms", "s") and value is not None and not 0 <= value < math.inf:
                yield f"{field.name} {value} is no time"
        for at_s, for_s in self.stalls:
            if not (0 <= at_s < math.inf and 0 <= for_s < math.inf):
                yield f"stall {at_s, for_s} is not (at_s, for_s)"
        if not -_MAX_DRIFT <= self.drift <= _MAX_DRIFT:
            yield f"drift {self.drift} is not between -{_MAX_DRIFT} and {_MAX_DRIFT}"

    @property
    def speed(self) -> float:
        """Seconds that pass at the far end in one real second."""
        return 1.0 + self.drift


PERFECT: Final = Network()


class Pipe(Generic[ItemT]):
    """One direction: what is put in comes out in the same order, some time later.

    Units: seconds on the clock on which the stream began at `started`.
    """

    def __init__(self, network: Network, started: float, name: str, batch_ms: float = 0.0) -> None:
        self._delay = network.delay_ms / 1000
        self._jitter = network.jitter_ms / 1000
        self._batch = batch_ms / 1000
        self._started = started
        self._stalls = sorted((started + at_s, started + at_s + s) for at_s, s in network.stalls)
        self._random = random.Random(f"{network.seed} {name}")  # nosec B311  # no secret: replayed
        self._items: deque[tuple[float, ItemT]] = deque()
        self._last = -math.inf

    def __len__(self) -> int:
        return len(self._items)

    @property
    def next_at(self) -> float:
        """When the next item comes out; infinity if there is none."""
        return self._items[0][0] if self._items else math.inf

    def put(self, item: ItemT, now: float) -> float:
        """Send an item on its way; return when it comes out."""
        due = now + self._delay
        if self._jitter:
            due += self._random.uniform(0.0, self._jitter)
        if self._batch:
            bunches = math.ceil((due - self._started) / self._batch - _SAME_S)
            due = max(due, self._started + bunches * self._batch)
        due = max(due, self._last)
        for start, end in self._stalls:
            if start <= due < end:
                due = end
        self._last = due
        self._items.append((due, item))
        return due

    def take(self) -> tuple[float, ItemT]:
        """Return the next item and when it comes out.

        Raises:
            IndexError: there is none.
        """
        return self._items.popleft()

    def clear(self) -> None:
        """Lose whatever is under way."""
        self._items.clear()


class MarkFaults:
    """Which echoes Twilio sends for a mark that is due, and how late."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._random = random.Random(f"{network.seed} marks")  # nosec B311  # as above
        self._none = not any(getattr(network, chance) for chance in _CHANCES)

    def echoes(self, name: str) -> list[tuple[float, str]]:
        """Return (delay in ms, name) of every echo; a lost one is late for ever."""
        if self._none:
            return [(0.0, name)]
        network = self._network
        if self._happens(network.lost_marks):
            found = [(math.inf, name)]
        else:
            copies = 2 if self._happens(network.duplicate_marks) else 1
            found = [(self._lateness(), name) for _ in range(copies)]
        if self._happens(network.stray_marks):
            found.append((0.0, stray_name(name)))
        return found

    def _lateness(self) -> float:
        network = self._network
        return network.late_mark_ms if self._happens(network.late_marks) else 0.0

    def _happens(self, probability: float) -> bool:
        return self._random.random() < probability


def stray_name(name: str) -> str:
    """Return a name that was never sent but looks like one still to come.

    A bot that counts its marks takes it for one of the future, which is the worst case.
    """
    ahead, found = _LAST_NUMBER.subn(lambda digits: str(int(digits[0]) + _STRAY_STEP), name)
    return ahead if found else f"{name} {_STRAY_STEP}"
