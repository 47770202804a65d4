"""Fixtures and Hypothesis profiles for every test."""

from __future__ import annotations

import os

from hypothesis import settings

CI = bool(os.environ.get("CI"))

# dev: quick while writing. ci: reproducible, and the same everywhere.
settings.register_profile("dev", max_examples=50, deadline=None)
settings.register_profile("ci", max_examples=200, deadline=None, derandomize=True)
# Whole conversations are a hundred times slower than other examples: 400 are what a check of all
# has time for on two slow cores, and `tests/sim/soak.py` is for the long count.
settings.register_profile(
    "conversations", max_examples=400 if CI else 50, deadline=None, derandomize=CI
)
settings.load_profile("ci" if CI else "dev")
