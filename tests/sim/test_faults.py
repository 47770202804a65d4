"""Calls whose providers fail at random, and everything that must be true of each.

The long count is that of `fault_soak.py`; a seed that it has found wrong is a test here for good.
"""

from __future__ import annotations

import os

import pytest

from tests.sim.fault_checks import Bounds, violations
from tests.sim.fault_world import hold_schedule
from tests.sim.faults import draw_schedule

#: Seeds in which something was wrong once, and what.
FOUND = {
    40: "no filler where less than a frame of the sentence before had not been sent",
    98: "a busy voice was waited for as long as it said",
}
BLOCKS = 30 if os.environ.get("CI") else 12


@pytest.mark.parametrize("seed", FOUND)
def test_what_was_found_wrong_is_right(seed: int) -> None:
    assert violations(hold_schedule(draw_schedule(seed))) == []


@pytest.mark.parametrize("block", range(BLOCKS))
def test_everything_holds_whatever_fails(block: int) -> None:
    """Six schedules a test, so that a failure is one of a few seeds and names it."""
    for seed in range(1_000_000 + 6 * block, 1_000_006 + 6 * block):
        assert (seed, violations(hold_schedule(draw_schedule(seed)))) == (seed, [])


def test_a_schedule_replays_from_its_seed() -> None:
    schedule = draw_schedule(7)

    assert draw_schedule(7) == schedule
    assert hold_schedule(draw_schedule(7)).trace() == hold_schedule(schedule).trace()


def test_the_bound_of_silence_is_the_plans() -> None:
    """The formulas of `Bounds`, once by hand: the defaults, with every fault possible."""
    for seed in range(3_000):
        schedule = draw_schedule(seed)
        faulty = all(
            any({"stall", "drip", "break off"} & provider.kinds for provider in providers)
            for providers in (schedule.chats, schedule.voices)
        )
        if faulty and schedule.canned == "all" and schedule.plan.timeouts.filler_s == 3.0:
            # A filler, behind the 2 s of a sentence that stalls and the 1 s of its close.
            assert Bounds(schedule).silence_s == pytest.approx(
                3.0 + schedule.plan.timeouts.audio_gap_s + 1.0 + 0.4
            )
            return
    pytest.fail("no such schedule")
