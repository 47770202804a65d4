"""Who holds the loop, how late it is, and what is left of calls."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.test_metrics import samples
from voicebot import watch, whose
from voicebot.metrics import Metrics
from voicebot.watch import Lateness, Watch, left_of_calls, open_watch, tasks_below


def hold_on_purpose(seconds: float) -> None:
    """Hold the loop in Python, as a tool does that computes."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


async def held(
    hold: Callable[[], object], name: str, caplog: pytest.LogCaptureFixture
) -> dict[str, Any]:
    """Let a task hold the loop, and return what is logged of it."""
    metrics = Metrics()

    async def task() -> None:
        whose.call_sid.set("CA1")
        await trio.sleep(0.05)
        hold()
        await trio.sleep(0.3)  # it lives on, as tasks of a call do

    async with open_watch(metrics, 0.0):
        async with trio.open_nursery() as nursery:  # noqa: ASYNC112  # which names the task
            nursery.start_soon(task, name=name)
    records = [record for record in caplog.records if record.msg == "loop_held"]
    assert samples(metrics)["voicebot_loop_held_total"] >= 1
    longest = max(records, key=lambda record: vars(record)["held_ms"])
    return vars(longest)


async def test_who_holds_the_loop_is_named_with_the_line(caplog: pytest.LogCaptureFixture) -> None:
    found = await held(partial(hold_on_purpose, 0.4), "tool slow", caplog)
    assert found["task"] == "tool slow"
    assert found["call_sid"] == "CA1"
    assert found["held_ms"] >= 300
    lines = found["at"]
    assert isinstance(lines, tuple)
    assert lines[0].startswith("test_watch.py:")
    assert lines[0].endswith(" hold_on_purpose")
    assert all("/" not in line or line.startswith("voicebot/") for line in lines)  # no paths


async def test_who_sleeps_in_a_library_is_named_by_our_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    event = threading.Event()
    found = await held(partial(event.wait, 0.4), "tool waits", caplog)
    assert found["task"] == "tool waits"
    assert "test_watch.py" in str(found["at"])
    assert "threading.py" not in str(found["at"])


async def test_a_loop_that_is_not_held_is_not_complained_of(
    caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    metrics = Metrics()
    async with open_watch(metrics, 0.1) as watching:
        await trio.sleep(20)
        assert not watching.lateness.slow
    assert [record.msg for record in caplog.records if record.name == watch.__name__] == []
    assert samples(metrics)["voicebot_loop_lag_seconds_count"] == pytest.approx(1_000, abs=2)
    assert samples(metrics)["voicebot_loop_lag_seconds_bucket{le=0.001}"] == pytest.approx(
        1_000, abs=2
    )


async def test_beats_that_were_due_meanwhile_are_late_as_well(
    mock_clock: trio.testing.MockClock,
) -> None:
    metrics = Metrics()
    watching = Watch(metrics, 0.1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watching.beat)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(1.0)  # as a task that holds the loop for a second less a beat
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    found = samples(metrics)
    assert found["voicebot_loop_lag_seconds_count"] == pytest.approx(50, abs=1)
    assert found["voicebot_loop_lag_seconds_bucket{le=0.5}"] == pytest.approx(25, abs=2)
    assert found["voicebot_loop_held_total"] == 1


async def test_a_machine_that_was_asleep_for_a_day_counts_a_minute_of_it(
    mock_clock: trio.testing.MockClock,
) -> None:
    metrics = Metrics()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Watch(metrics, 0.1).beat)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(86_400)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert samples(metrics)["voicebot_loop_lag_seconds_count"] <= 3_001


async def test_a_loop_that_is_held_again_and_again_is_told_of_once_a_second(
    mock_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Watch(metrics, 0.1).beat)
        for _ in range(20):
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(0.2)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert samples(metrics)["voicebot_loop_held_total"] == 20
    assert sum(record.msg == "loop_held" for record in caplog.records) == 1


async def test_a_loop_that_never_comes_back_is_told_of(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "HANGS_S", 0.1)
    async with open_watch(Metrics(), 0.0):
        await trio.sleep(0.05)
        hold_on_purpose(0.5)
        told = [record for record in caplog.records if record.msg == "loop_hangs"]
    assert len(told) == 1
    assert "hold_on_purpose" in str(vars(told[0])["at"])


async def test_collections_of_garbage_are_measured_while_it_is_open() -> None:
    metrics, before = Metrics(), gc.callbacks[:]
    async with open_watch(metrics, 0.0):
        gc.collect()
        await trio.sleep(0.1)
    assert samples(metrics)["voicebot_gc_pause_seconds_count{generation=2}"] >= 1
    assert gc.callbacks == before


async def test_the_thread_ends_with_the_block() -> None:
    async with open_watch(Metrics(), 0.0):
        [thread] = [one for one in threading.enumerate() if one.name == "voicebot watch"]
    await trio.to_thread.run_sync(thread.join, 5.0)
    assert not thread.is_alive()


def beats(lateness: Lateness, seconds: range, late_s: float) -> None:
    for second in seconds:
        lateness.beat(second + 0.02, late_s)
        lateness.beat(second + 0.52, 0.0)


def test_a_loop_is_slow_when_each_of_five_seconds_was() -> None:
    lateness = Lateness(0.1)
    beats(lateness, range(100, 105), 0.2)
    assert not lateness.slow  # the fifth is not over
    beats(lateness, range(105, 106), 0.2)
    assert lateness.slow
    beats(lateness, range(106, 108), 0.05)
    assert not lateness.slow


@pytest.mark.parametrize(
    "limit_s, late_s, gap", [(0.0, 9.0, 0), (0.1, 0.1, 0), (0.1, 0.2, 2)], ids=str
)
def test_a_loop_is_not_slow(limit_s: float, late_s: float, gap: int) -> None:
    """Not where there is no limit, at the limit, or where seconds between tell nothing."""
    lateness = Lateness(limit_s)
    beats(lateness, range(100, 104), late_s)
    beats(lateness, range(104 + gap, 108 + gap if gap else 120), late_s)
    assert not lateness.slow


@asynccontextmanager
async def a_call(tasks: int) -> AsyncGenerator[trio.lowlevel.Task]:
    """Yield the task of a call that has started so many others."""
    task: list[trio.lowlevel.Task] = []

    async def call() -> None:
        task.append(trio.lowlevel.current_task())
        async with trio.open_nursery() as nursery:
            for _ in range(tasks):
                nursery.start_soon(trio.sleep_forever)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
        yield task[0]
        nursery.cancel_scope.cancel()


async def test_what_is_left_of_calls_that_should_be_gone_is_counted() -> None:
    async with a_call(4) as stuck, a_call(2) as ending, a_call(3) as live:
        assert sum(1 for _ in tasks_below(stuck)) == 5
        calls = [(stuck, 10.0), (ending, 13.5), (live, None)]
        assert left_of_calls(calls, 14.0) == 5
        assert left_of_calls(calls, 12.0) == 0


def test_what_is_ours() -> None:
    assert watch.is_ours(watch.__file__)
    assert watch.is_ours(__file__)
    assert not watch.is_ours(threading.__file__)
    assert not watch.is_ours(trio.__file__)
    assert not watch.is_ours("<frozen importlib._bootstrap>")
    assert watch.is_ours(str(Path("/srv/bot/bot.py")))
