"""Fixtures and Hypothesis profiles for every test."""

from __future__ import annotations

import os

from hypothesis import settings

# dev: quick while writing. ci: reproducible, and the same everywhere.
settings.register_profile("dev", max_examples=50, deadline=None)
settings.register_profile("ci", max_examples=300, deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")
