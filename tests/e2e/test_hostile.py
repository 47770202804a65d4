"""A real server among connections that are wrong in every way: see tests/fuzz/sockets.py."""

from __future__ import annotations

import os
from pathlib import Path

import trio

from tests.fuzz.sockets import KINDS, attack

CONNECTIONS = int(os.environ.get("VOICEBOT_FUZZ_CONNECTIONS", "300"))


async def test_no_connection_leaves_anything_behind_but_its_log_line(tmp_path: Path) -> None:
    with trio.fail_after(240):
        outcome = await attack(CONNECTIONS, seed=2026, folder=tmp_path)
    assert outcome.problems == []
    assert outcome.connections.total() >= CONNECTIONS
    assert set(KINDS) <= set(outcome.connections)
