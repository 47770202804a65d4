"""Whether the loop runs: how late it is, who holds it, and what is left of calls that are over.

One task beats, 50 times a second; how late a beat is, is how late everything else in the process
is. A thread looks when a beat stays away, and sees who is at it: an `Instrument` would know as
well, and cost something in each of tens of thousands of steps a second (`bench/README.md`). The
thread reads and never waits for the loop, so it can tell of one that never comes back.
"""

from __future__ import annotations

import gc
import logging
import sys
import sysconfig
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from math import inf
from pathlib import Path
from types import FrameType
from typing import Any, Final, NamedTuple

import trio

from voicebot import whose
from voicebot.hidden import open_hidden_nursery
from voicebot.metrics import Metrics

log = logging.getLogger(__name__)

BEAT_S: Final = 0.02  # a frame of audio
HELD_S: Final = 0.05  # a late frame is not heard before this: Twilio is sent 0.2 s ahead
HANGS_S: Final = 5.0  # whoever holds the loop so long may never let go: told before the end
LOG_EVERY_S: Final = 1.0  # a loop that is held all the time must not fill the disk as well
SLOW_SECONDS: Final = 5  # in a row; a deploy or a large import is over sooner
LEFT_S: Final = 3.0  # nothing is left of a call 2 s after it has begun to end; a second for luck
_LINES: Final = 3  # of ours, the innermost
_SAMPLES: Final = 250  # of one hold: five seconds
_PAUSES: Final = 1_000  # of the garbage collector, between two beats
_MISSED: Final = 3_000  # beats of a hold that are counted: a minute
_PACKAGE: Final = Path(__file__).parent
_LIBRARIES: Final = tuple(
    sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")
)
_INSTALLED: Final = frozenset({"site-packages", "dist-packages"})  # wherever else


class Lateness:
    """How late the loop is, second by second. Synchronous.

    Args:
        limit_s: a second with a beat that is later than this is a slow one; 0: none is.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s or inf
        self._second = -1
        self._worst = 0.0  # in this second
        self._slow = 0  # seconds in a row before it

    def beat(self, due: float, late_s: float) -> None:
        """Take a beat that was due then."""
        second = int(due)
        if second != self._second:
            in_a_row = second == self._second + 1 and self._worst > self._limit_s
            self._slow, self._worst = (self._slow + 1 if in_a_row else 0), 0.0
            self._second = second
        self._worst = max(self._worst, late_s)

    @property
    def slow(self) -> bool:
        """Whether each of the last `SLOW_SECONDS` seconds was slow."""
        return self._slow >= SLOW_SECONDS


class Holder(NamedTuple):
    """Who was found at the loop: the task, whose call, and our innermost lines."""

    task: str | None  # None: nobody; the loop itself, or a task that has ended since
    call_sid: str | None
    lines: tuple[str, ...]  # "file:line function", and no values


class Watch:
    """Watches the loop of the thread it is made in; `open_watch` does."""

    def __init__(self, metrics: Metrics, limit_s: float) -> None:
        self.lateness = Lateness(limit_s)
        self._metrics = metrics
        root = trio.lowlevel.current_root_task()
        assert root is not None  # the loop runs
        self._root = root
        self._thread = threading.get_ident()
        self._alive = time.monotonic()  # when the loop was last seen to run
        # Who was found, and at which `_alive`: the thread may be late with what it has found.
        self._found: deque[tuple[float, Holder]] = deque(maxlen=_SAMPLES)
        self._over = threading.Event()
        self._pauses: deque[tuple[int, float]] = deque(maxlen=_PAUSES)
        self._pause_began = 0.0
        self._told_at = -inf
        self._untold = 0

    async def beat(self) -> None:
        """Beat until cancelled."""
        due = trio.current_time()
        while True:
            due += BEAT_S
            await trio.sleep_until(due)
            now = trio.current_time()
            late_s = now - due
            was_alive, self._alive = self._alive, time.monotonic()
            # A beat that was due while the loop was held is late as well, or a long hold would
            # count as little as a short one.
            due = max(due, now - _MISSED * BEAT_S)
            while due <= now:
                self.lateness.beat(due, now - due)
                self._metrics.loop_lag.observe(now - due)
                due += BEAT_S
            due -= BEAT_S
            if late_s > HELD_S:
                self._held(late_s, was_alive)
            self._found.clear()
            while self._pauses:
                generation, seconds = self._pauses.popleft()
                self._metrics.gc_pause.labels(str(generation)).observe(seconds)

    def _held(self, late_s: float, was_alive: float) -> None:
        self._metrics.loop_held.inc()
        now = time.monotonic()
        if now - self._told_at < LOG_EVERY_S:
            self._untold += 1
            return
        extra = {**self._description(late_s, was_alive), "more": self._untold}
        log.warning("loop_held", extra=extra)
        self._told_at, self._untold = now, 0

    def _description(self, held_s: float, alive: float) -> dict[str, Any]:
        """Return who was at the loop most of the time since it was alive."""
        # A copy in one step, for the other side goes on.
        found = Counter(holder for at, holder in tuple(self._found) if at == alive)
        [(holder, seen)] = found.most_common(1) or [(Holder(None, None, ()), 0)]
        extra = {"held_ms": round(held_s * 1_000), "task": holder.task, "at": holder.lines}
        if holder.call_sid is not None:
            extra["call_sid"] = holder.call_sid
        return {**extra, "seen": seen, "looks": found.total()}

    # In the thread.

    def look_on(self) -> None:
        """Look who holds the loop whenever a beat stays away, until `stop`. For a thread."""
        told = -inf
        while True:
            late_at = self._alive + BEAT_S + HELD_S / 2
            if self._over.wait(max(BEAT_S / 2, late_at - time.monotonic())):
                return
            alive = self._alive
            late_s = time.monotonic() - alive - BEAT_S
            if late_s < HELD_S / 2:
                continue
            self._found.append((alive, self._look()))
            if late_s > HANGS_S and told != alive:
                told = alive
                log.error("loop_hangs", extra=self._description(late_s, alive))

    def stop(self) -> None:
        """End `look_on`."""
        self._over.set()

    def _look(self) -> Holder:
        frames = []
        frame: FrameType | None = sys._current_frames().get(self._thread)
        while frame is not None:
            frames.append(frame)
            frame = frame.f_back
        ours = [frame for frame in frames if is_ours(frame.f_code.co_filename)]
        lines = tuple(_line(frame) for frame in (ours or frames)[:_LINES])
        running = {id(frame) for frame in frames}
        for task in tasks_below(self._root):
            if id(getattr(task.coro, "cr_frame", None)) in running:
                return Holder(task.name, task.context.get(whose.call_sid), lines)
        return Holder(None, None, lines)

    # The garbage collector, in whatever thread it runs.

    @contextmanager
    def garbage(self) -> Iterator[None]:
        """Measure each collection while the block runs."""
        gc.callbacks.append(self._collecting)
        try:
            yield
        finally:
            gc.callbacks.remove(self._collecting)

    def _collecting(self, phase: str, info: dict[str, int]) -> None:
        # No lock is taken here: whoever is interrupted may hold it.
        now = time.perf_counter()
        if phase == "start":
            self._pause_began = now
        else:
            self._pauses.append((info["generation"], now - self._pause_began))


@asynccontextmanager
async def open_watch(metrics: Metrics, limit_s: float) -> AsyncGenerator[Watch]:
    """Watch the loop while the block runs.

    Args:
        limit_s: see `Lateness`.

    Owns: the task that beats, and the thread that looks. Both end with the block.
    """
    watch = Watch(metrics, limit_s)
    looking = threading.Thread(target=watch.look_on, name="voicebot watch", daemon=True)
    looking.start()
    try:
        with watch.garbage():
            async with open_hidden_nursery("the service has ended") as nursery:
                nursery.start_soon(watch.beat, name="watch")
                yield watch
    finally:
        watch.stop()


def tasks_below(task: trio.lowlevel.Task) -> Iterator[trio.lowlevel.Task]:
    """Yield a task and all that were started below it. Also for another thread than the loop's."""
    waiting = [task]
    while waiting:
        task = waiting.pop()
        yield task
        for nursery in task.child_nurseries:
            waiting += nursery.child_tasks


def left_of_calls(calls: Iterable[tuple[trio.lowlevel.Task, float | None]], now: float) -> int:
    """Return how many tasks are left of calls that should be gone.

    Args:
        calls: the task that runs each, and since when it ends; None: it goes on.
    """
    return sum(
        sum(1 for _ in tasks_below(task))
        for task, over_since in calls
        if over_since is not None and now - over_since > LEFT_S
    )


def is_ours(file: str) -> bool:
    """Return whether a file is of this package or of a bot, and not of a library."""
    path = Path(file)
    if path.is_relative_to(_PACKAGE):
        return True
    return not (file.startswith((*_LIBRARIES, "<frozen")) or _INSTALLED & {*path.parts})


def _line(frame: FrameType) -> str:
    path, code = Path(frame.f_code.co_filename), frame.f_code
    package = path.is_relative_to(_PACKAGE)
    file = path.relative_to(_PACKAGE.parent) if package else path.name
    return f"{file}:{frame.f_lineno} {code.co_qualname}"
