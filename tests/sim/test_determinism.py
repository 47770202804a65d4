"""One seed, one interleaving: in this process, in another, with strings hashed otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.fakes import FakeChat, FakeEar, FakeTwilio, plan, ports
from voicebot.nursery import run_call
from voicebot.testing import run_seeded

ROOT = Path(__file__).parents[2]


class _Steps(trio.abc.Instrument):
    """Writes down which task takes each step, and when."""

    def __init__(self) -> None:
        self.trace: list[str] = []

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.trace.append(f"{trio.current_time():.6f} {task.name}")


async def crowd() -> list[str]:
    """Let tasks meet in a channel, a timer and a nursery; return the order they came in."""
    order: list[str] = []
    send, receive = trio.open_memory_channel[str](0)

    async def say(name: str) -> None:
        for n in range(3):
            await send.send(f"{name}{n}")
            await trio.sleep(0.02)

    async def hear() -> None:
        while True:
            order.append(await receive.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hear)
        async with trio.open_nursery() as speakers:
            for name in "abcdef":
                speakers.start_soon(say, name)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    return order


async def conversation() -> list[str]:
    """Hold a whole call with an interruption; return every step of every task."""
    steps = _Steps()
    trio.lowlevel.add_instrument(steps)
    try:
        socket = FakeTwilio(voice=[(1.0, 1.6), (2.4, 3.2)], stop_at=5.0)
        ear, chat = FakeEar(["tell me", "stop"]), FakeChat(["One two three four five."] * 2)
        await run_call(socket, ports(ear, chat), plan(greeting="Hi."))
    finally:
        trio.lowlevel.remove_instrument(steps)
    return steps.trace


SCENES = {"crowd": crowd, "conversation": conversation}


@pytest.mark.parametrize("name", SCENES)
def test_one_seed_is_one_interleaving_and_another_seed_another(name: str) -> None:
    first, again, other = (run_seeded(seed, SCENES[name]) for seed in (1, 1, 2))

    assert first
    assert again == first
    assert other != first


@pytest.mark.parametrize("name", SCENES)
def test_the_interleaving_is_the_same_in_processes_that_hash_otherwise(name: str) -> None:
    # Without Hypothesis, which conftest imports and which makes Trio deterministic by itself.
    code = (
        "import sys\n"
        "from voicebot.testing import run_seeded\n"
        "from tests.sim.test_determinism import SCENES\n"
        f"trace = run_seeded(7, SCENES[{name!r}])\n"
        "assert 'hypothesis' not in sys.modules\n"
        "print('\\n'.join(trace))\n"
    )

    def trace(hash_seed: str) -> list[str]:
        environ = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    assert trace("1") == trace("2") == run_seeded(7, SCENES[name])


def test_the_scheduler_is_left_as_it_was() -> None:
    scheduler: Any = trio._core._run
    before = scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r.getstate()

    async def fail() -> None:
        await trio.sleep(1)
        raise ValueError("as planned")

    with pytest.raises(ValueError, match="as planned"):
        run_seeded(3, fail)

    assert (scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r.getstate()) == before
