"""What it costs to know who holds the loop: instruments at every step, against beats and a thread.

    python -m bench.watching [--rounds 15]

Ten tasks take turns at doing nothing, so that a step is as cheap as it can be and what is done in
each weighs most. Each round has all of them, in an order that changes; CPU time of the process,
threads included, for each step, and its ratio to that without, within the round. `metrics` is what
a scrape costs: all of it at once, and the longest of the parts between which calls go on.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Final

import trio

from voicebot.metrics import Metrics
from voicebot.record import BargeIn, CallSummary, Outcome, ProviderRequest, TurnRecord
from voicebot.watch import open_watch

TASKS: Final = 10
STEPS: Final = 200_000


class Names(trio.abc.Instrument):
    """Remembers the task that runs, for a thread that looks."""

    task: trio.lowlevel.Task | None = None

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.task = task


class Times(trio.abc.Instrument):
    """Measures each step."""

    began = 0.0
    longest = 0.0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.began = time.perf_counter()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        took = time.perf_counter() - self.began
        if took > self.longest and self.began:
            self.longest = took


async def steps(kind: str) -> float:
    """Take steps under a watch of this kind; return the microseconds of CPU time of each."""

    async def task() -> None:
        for _ in range(STEPS // TASKS):
            await trio.lowlevel.checkpoint()

    instruments: dict[str, Callable[[], trio.abc.Instrument]] = {"names": Names, "times": Times}
    async with AsyncExitStack() as stack:
        if kind == "beats and a thread":
            await stack.enter_async_context(open_watch(Metrics(), 0.1))
        elif kind in instruments:
            trio.lowlevel.add_instrument(instruments[kind]())
        began = time.process_time()
        async with trio.open_nursery() as nursery:
            for _ in range(TASKS):
                nursery.start_soon(task)
        return (time.process_time() - began) / STEPS * 1e6


def full_metrics() -> Metrics:
    """Return metrics with every outcome, provider and kind of failure in them."""
    metrics = Metrics()
    for part, provider in (("stt", "a"), ("stt", "b"), ("llm", "c"), ("tts", "a"), ("tts", "b")):
        metrics.request_over(ProviderRequest(part, provider, 1, 0.0, 0.1, 0.2, 0.3))  # type: ignore[arg-type]  # literals
    turn = TurnRecord(1, "", 1.0, 0.5, 1.0, 2.0, 3.0)
    barge_in = BargeIn(1, 1, 2, 3, 4, True, 5, 6, True)
    metrics.call_over(
        CallSummary("", "", Outcome.HUNG_UP, 1.0, (turn,), (), {}, barge_ins=(barge_in,))
    )
    return metrics


def row(name: str, values: list[float], ratios: list[float]) -> str:
    """Return a line of the table."""
    low, middle, high = (f"{f(ratios):.2f}" for f in (min, statistics.median, max))
    return (
        f"| {name} | {statistics.median(values):.2f} | {middle} ({low} to {high}) | {len(values)} |"
    )


def main() -> None:
    """Run the rounds and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    kinds = ["nothing", "names", "times", "beats and a thread"]
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind in random.sample(kinds, len(kinds)):
            found[kind].append(trio.run(steps, kind))
    print(
        "| watch | us of CPU a step, median | of that without (min to max) | n |\n|---|---|---|---|"
    )
    for kind, values in found.items():
        print(row(kind, values, [a / b for a, b in zip(values, found["nothing"], strict=True)]))

    metrics, whole, parts = full_metrics(), list[float](), list[float]()
    for _ in range(rounds * 10):
        began = time.thread_time()
        each = []
        at = began
        for _ in metrics.parts():
            now = time.thread_time()
            each.append((now - at) * 1e3)
            at = now
        whole.append((at - began) * 1e3)
        parts.append(max(each))
    size, lines = len(metrics.text()), metrics.text().count(b"\n")
    print(f"metrics: {size} bytes, {lines} lines, n = {len(whole)}")
    for name, values in (("all", whole), ("the longest part", parts)):
        print(f"{name}: median {statistics.median(values):.2f} ms, max {max(values):.2f} ms")


if __name__ == "__main__":
    main()
