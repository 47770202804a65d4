"""Random conversations, and everything that must be true of each.

Hypothesis draws them, so a failure comes as the smallest conversation that still fails. The
long count is kept by `soak.py`; a seed that it has found wrong is a test here for good.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sim.checks import violations
from tests.sim.conversation import draw
from tests.sim.phases import table, tally
from tests.sim.world import hold

#: Seeds of conversations in which something was wrong once, and what.
FOUND: dict[int, str] = {}


@pytest.fixture(scope="module")
def met() -> Iterator[Counter[tuple[str, str]]]:
    """Yield what was met; `pytest -s` shows it as a table."""
    found: Counter[tuple[str, str]] = Counter()
    yield found
    print(f"\n{table(found)}")  # noqa: T201


@given(chance=st.randoms(use_true_random=False))
@settings(settings.get_profile("conversations"))
def test_everything_holds_in_a_random_conversation(
    met: Counter[tuple[str, str]], chance: random.Random
) -> None:
    held = hold(draw(chance))

    assert violations(held) == []
    met += tally(held)
