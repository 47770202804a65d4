"""Fixtures for tests that need a database, and records to put into it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.postgres import NoServer, new_database, running_server
from voicebot.call_record import CallRecord


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    try:
        with running_server() as url:
            yield url
    except NoServer as exc:
        pytest.skip(str(exc))


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Give the URL of an empty database of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/calls.db"
    else:
        with new_database(request.getfixturevalue("postgres_server")) as url:
            yield url


def moment(second: int) -> str:
    return f"2026-11-27T21:{second // 60:02}:{second % 60:02}.000+00:00"


def record(sid: str = "CA1", at: int = 0, **fields: Any) -> CallRecord:
    given: dict[str, Any] = {
        "direction": "inbound",
        "from_": "+15550100123",
        "to": "+15550100456",
        "status": "in-progress",
        "created_at": moment(at),
        "updated_at": moment(at),
        **fields,
    }
    if given.get("process"):  # it has, or had, a stream
        given = {"streams": 1, "live": given.get("outcome") is None, **given}
    return CallRecord(sid, **given)


def turn(number: int, caller: str = "", heard: str = "", **fields: Any) -> dict[str, Any]:
    return {
        "number": number,
        "caller": caller,
        "began": float(number),
        "fell": None,
        "first_text": None,
        "first_audio": None,
        "first_media": None,
        "generated": heard,
        "heard": heard,
        "interrupted": False,
        "goodbye": False,
        "tools": [],
        **fields,
    }


def tool(name: str = "book", **fields: Any) -> dict[str, Any]:
    return {"name": name, "arguments": {}, "began": 0.5, "ended": None, "result": "", **fields}


def summary(*turns: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "call_sid": "CA1",
        "stream_sid": "MZ1",
        "outcome": "hung_up",
        "duration_s": 12.5,
        "turns": list(turns),
        "timeline": [{"at": 1.0, "what": "turn", "detail": {"number": 0}}],
        "counts": {"gaps": 0},
        "barge_ins": [],
        **fields,
    }
