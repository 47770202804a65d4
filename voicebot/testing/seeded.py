"""Runs Trio so that a seed decides the whole interleaving, in whatever process.

Trio runs ready tasks in random order on purpose. The two private names that take the chance out
of it, the same that Trio's own plugin for Hypothesis uses, are used here and nowhere else:

- `_ALLOW_DETERMINISTIC_SCHEDULING` sorts the ready tasks by age before they are shuffled: what
  makes several ready at once, such as deadlines that are equal, goes by memory address;
- `_r` shuffles them.

What is run must not wait for threads, sockets or the wall clock: no seed decides those.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import trio
from trio.testing import MockClock

T = TypeVar("T")


def run_seeded(seed: int | None, async_fn: Callable[..., Awaitable[T]], *args: Any) -> T:
    """Run to the end in virtual time, ready tasks in the order that the seed gives.

    None leaves the order to Trio. Leaves the scheduler as it was, so that other tests keep
    their chance.
    """
    with _scheduling(seed):
        return trio.run(async_fn, *args, clock=MockClock(autojump_threshold=0))


@contextmanager
def _scheduling(seed: int | None) -> Iterator[None]:
    if seed is None:
        yield
        return
    # Any: one of the two is declared Final, and both are private.
    scheduler: Any = trio._core._run
    before = scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r.getstate()
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True
    scheduler._r.seed(seed)
    try:
        yield
    finally:
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING = before[0]
        scheduler._r.setstate(before[1])
