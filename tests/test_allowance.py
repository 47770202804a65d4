"""How many calls may be placed: in memory, and in a database that several processes share."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import pytest
from sqlalchemy import func, select, update

from tests.databases import database_url, postgres_server, record
from tests.postgres import new_database
from voicebot import database as database_module
from voicebot.allowance import (
    AT_ONCE_RETRY_S,
    DAY_S,
    HOUR_S,
    MINUTE_S,
    Dials,
    Outbound,
    Wanted,
    minutes_used,
)
from voicebot.database import Database, News, open_database
from voicebot.errors import CallBarred
from voicebot.schema import dials

__all__ = ["database_url", "postgres_server"]  # fixtures

PLENTY = Outbound(
    per_minute=99, per_minute_per_key=99, at_once=99, at_once_per_key=99,
    minutes_per_day=99_999, per_number_per_hour=99,
)  # fmt: skip


def only(**limits: Any) -> Outbound:
    """Return limits of which these are the only ones that anybody reaches."""
    return replace(PLENTY, **limits)


CALL = Wanted("key-a", "ada", 10, 600.0)


class Ledger(Protocol):
    """Either of the two that count. Time goes on by `later`."""

    def reserve(self, key: str, limits: Outbound, wanted: Wanted) -> None: ...
    def named(self, key: str, sid: str) -> None: ...
    def give_back(self, key: str) -> None: ...
    def over(self, sid: str, minutes: int) -> None: ...
    def later(self, seconds: float) -> None: ...


class InMemory:
    def __init__(self) -> None:
        self.dials = Dials(PLENTY)
        self.now = 0.0

    def reserve(self, key: str, limits: Outbound, wanted: Wanted) -> None:
        self.dials._limits = limits
        self.dials.reserve(key, wanted, self.now)

    def named(self, key: str, sid: str) -> None:
        self.dials.named(key, sid)

    def give_back(self, key: str) -> None:
        self.dials.give_back(key)

    def over(self, sid: str, minutes: int) -> None:
        self.dials.over(sid, minutes)

    def later(self, seconds: float) -> None:
        self.now += seconds


class InDatabase:
    """Two connections of one database take turns, as two processes do."""

    def __init__(self, url: str) -> None:
        self.both = open_database(url), open_database(url)
        self.turn = 0

    def next(self) -> Database:
        self.turn += 1
        return self.both[self.turn % 2]

    def reserve(self, key: str, limits: Outbound, wanted: Wanted) -> None:
        self.next().reserve(key, limits, wanted)

    def named(self, key: str, sid: str) -> None:
        self.next().name_dial(key, sid)

    def give_back(self, key: str) -> None:
        self.next().give_back(key)

    def over(self, sid: str, minutes: int) -> None:
        self.next().write([News(ended(sid, minutes * 60))])

    def later(self, seconds: float) -> None:
        """Make everything older instead."""
        with self.both[0].engine.begin() as connection:
            for row in connection.execute(select(dials)).all():
                at, until = (
                    database_module._moment(datetime.fromisoformat(time), -seconds)
                    for time in (row.at, row.until)
                )
                its = update(dials).where(dials.c.key == row.key)
                connection.execute(its.values(at=at, until=until))


@contextmanager
def in_database(url: str) -> Iterator[InDatabase]:
    ledger = InDatabase(url)
    yield ledger
    for each in ledger.both:
        each.engine.dispose()


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    if request.param == "memory":
        yield InMemory()
    elif request.param == "sqlite":
        with in_database(f"sqlite:///{tmp_path}/calls.db") as found:
            yield found
    else:
        with new_database(request.getfixturevalue("postgres_server")) as url:
            with in_database(url) as found:
                yield found


def ended(sid: str, seconds: int | None, status: str = "completed") -> Any:
    return record(sid, direction="outbound", status=status, sequence=3, duration_s=seconds)


def barred(ledger: Ledger, key: str, limits: Outbound, wanted: Wanted = CALL) -> CallBarred:
    with pytest.raises(CallBarred) as refusal:
        ledger.reserve(key, limits, wanted)
    return refusal.value


@pytest.mark.parametrize("name, other", [("per_minute", True), ("per_minute_per_key", False)])
def test_calls_of_a_minute_are_limited(ledger: Ledger, name: str, other: bool) -> None:
    limits = only(**{name: 2})
    ledger.reserve("1", limits, CALL)
    ledger.later(20)
    ledger.reserve("2", limits, CALL)
    refusal = barred(ledger, "3", limits)
    assert refusal.reason == name
    assert refusal.setting == f"VOICEBOT_OUTBOUND__{name.upper()}"
    assert refusal.retry_after_s is not None
    assert 38 <= refusal.retry_after_s <= 40
    anothers = replace(CALL, who="key-b")
    if other:
        barred(ledger, "3", limits, anothers)
    else:
        ledger.reserve("3", limits, anothers)
    ledger.later(MINUTE_S - 20 + 1)
    ledger.reserve("4", limits, CALL)


def test_one_number_is_not_rung_all_day(ledger: Ledger) -> None:
    limits = only(per_number_per_hour=2)
    for key in "12":
        ledger.reserve(key, limits, CALL)
    ledger.reserve("3", limits, replace(CALL, to="bob"))
    refusal = barred(ledger, "4", limits, replace(CALL, who="key-b"))
    assert refusal.reason == "per_number_per_hour"
    assert HOUR_S - 5 <= (refusal.retry_after_s or 0) <= HOUR_S
    ledger.later(HOUR_S + 1)
    ledger.reserve("4", limits, CALL)


@pytest.mark.parametrize("name", ["at_once", "at_once_per_key"])
def test_calls_at_once_are_limited_until_one_is_over(ledger: Ledger, name: str) -> None:
    limits = only(**{name: 2})
    for key in "12":
        ledger.reserve(key, limits, CALL)
        ledger.named(key, f"CA{key}")
    refusal = barred(ledger, "3", limits)
    assert (refusal.reason, refusal.retry_after_s) == (name, AT_ONCE_RETRY_S)
    if name == "at_once_per_key":
        ledger.reserve("other", limits, replace(CALL, who="key-b"))
    ledger.over("CA1", 0)
    ledger.reserve("3", limits, CALL)
    barred(ledger, "4", limits)
    ledger.later(CALL.hold_s + 1)  # nobody was told of their ends
    ledger.reserve("4", limits, CALL)


def test_minutes_are_held_while_a_call_is_live_and_given_back_when_it_is_over(
    ledger: Ledger,
) -> None:
    limits = only(minutes_per_day=25)
    ledger.reserve("1", limits, CALL)
    ledger.named("1", "CA1")
    ledger.reserve("2", limits, CALL)
    refusal = barred(ledger, "3", limits)
    assert refusal.reason == "minutes_per_day"
    assert "20 are used or held, and a call may take 10" in str(refusal)
    assert DAY_S - 5 <= (refusal.retry_after_s or 0) <= DAY_S
    ledger.over("CA1", 3)
    ledger.reserve("3", limits, CALL)
    assert "23 are used or held" in str(barred(ledger, "4", limits))
    ledger.give_back("3")
    ledger.reserve("4", limits, CALL)
    ledger.later(DAY_S + 1)
    ledger.reserve("5", limits, CALL)
    ledger.reserve("6", limits, CALL)
    assert "20 are used or held" in str(barred(ledger, "7", limits))


def test_the_longest_wait_is_told_and_none_is_shorter_than_a_second(ledger: Ledger) -> None:
    limits = only(per_minute=1, at_once=1, per_number_per_hour=1)
    ledger.reserve("1", limits, CALL)
    ledger.later(HOUR_S - 0.5)
    refusal = barred(ledger, "2", replace(limits, at_once=9))
    assert (refusal.reason, refusal.retry_after_s) == ("per_number_per_hour", 1)


def test_what_does_not_exist_is_neither_named_nor_given_back(ledger: Ledger) -> None:
    ledger.named("none", "CA1")
    ledger.give_back("none")
    ledger.over("CA1", 5)
    ledger.reserve("1", only(minutes_per_day=10), CALL)


def test_a_limit_of_none_lets_nothing_out(ledger: Ledger) -> None:
    assert barred(ledger, "1", only(at_once=0)).reason == "at_once"
    assert barred(ledger, "1", only(minutes_per_day=9)).reason == "minutes_per_day"


@pytest.mark.parametrize(
    "status, duration_s, minutes",
    [
        ("completed", 61, 2),
        ("completed", 60, 1),
        ("completed", 0, 0),
        ("completed", None, None),  # so says the engine, of a call that was put through as well
        ("in-progress", None, None),
        ("no-answer", None, 0),
        ("busy", None, 0),
        ("failed", None, 0),
        ("canceled", None, 0),
    ],
)
def test_minutes_that_were_begun_count_once_twilio_says_that_it_is_over(
    status: str, duration_s: int | None, minutes: int | None
) -> None:
    assert minutes_used(status, duration_s) == minutes


# --- In the database


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = open_database(database_url)
    yield opened
    opened.engine.dispose()


def used(database: Database) -> list[int | None]:
    with database.engine.begin() as connection:
        return list(connection.scalars(select(dials.c.used).order_by(dials.c.key)))


def test_a_call_that_is_over_before_it_is_named_gives_back(database: Database) -> None:
    database.reserve("1", PLENTY, CALL)
    database.write([News(ended("CA1", 61))])
    assert used(database) == [None]
    database.name_dial("1", "CA1")
    assert used(database) == [2]


def test_what_a_record_loses_later_its_minutes_do_not(database: Database) -> None:
    database.reserve("1", PLENTY, CALL)
    database.name_dial("1", "CA1")
    database.write([News(ended("CA1", 61))])
    database.expire(0.0)
    database.write([News(ended("CA1", None, "in-progress"))])
    assert database.get("CA1") is not None
    assert used(database) == [2]


def test_dials_are_forgotten_after_a_day(database_url: str) -> None:
    with in_database(database_url) as ledger:
        for key in "12":
            ledger.reserve(key, PLENTY, CALL)
            ledger.later(DAY_S + 1)
        ledger.reserve("3", PLENTY, CALL)
        with ledger.both[0].engine.begin() as connection:
            assert connection.scalar(select(func.count()).select_from(dials)) == 1


LIMITS: list[tuple[str, int]] = [
    ("at_once", 5), ("per_minute_per_key", 5), ("per_number_per_hour", 5), ("minutes_per_day", 50),
]  # fmt: skip


@pytest.mark.parametrize("name, limit", LIMITS)
def test_of_many_who_ask_at_once_as_many_get_through_as_may(
    database_url: str, name: str, limit: int
) -> None:
    opened = [open_database(database_url) for _ in range(4)]
    limits = only(**{name: limit})
    start, answers = threading.Barrier(20), []

    def ask(number: int) -> None:
        start.wait(10)
        answers.append(ask_once(opened[number % 4], str(number), limits))

    threads = [threading.Thread(target=ask, args=[number]) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for database in opened:
        database.engine.dispose()
    assert sorted(answers) == ["", "", "", "", "", *[name] * 15]


def ask_once(database: Database, key: str, limits: Outbound) -> str:
    try:
        database.reserve(key, limits, CALL)
    except CallBarred as exc:
        return exc.reason
    return ""


def ask_often(url: str, process: str) -> list[str]:
    """Ask ten times. What another program does in the test below."""
    database, limits = open_database(url), only(minutes_per_day=70)
    answers = [ask_once(database, f"{process}-{number}", limits) for number in range(10)]
    database.engine.dispose()
    return answers


def test_two_processes_on_one_database_agree(database_url: str) -> None:
    program = (
        "import json, sys; from tests.test_allowance import ask_often; "
        "print(json.dumps(ask_often(*sys.argv[1:])))"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, database_url, name],
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    told = [process.communicate(timeout=60)[0] for process in processes]
    answers = [answer for text in told for answer in json.loads(text)]
    assert sorted(answers) == [*[""] * 7, *["minutes_per_day"] * 13]


def test_refusals_are_kept_the_newest_first_and_not_for_ever(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "REFUSALS", 3)
    for number in range(5):
        database.note_refusal(
            {
                "at": f"2026-01-0{number + 1}T00:00:00.000+00:00", "who": "local",
                "to_number": f"+1555010010{number}", "reason": "country", "setting": "",
                "process": "p1",
            }
        )  # fmt: skip
    found = database.latest_refusals(10)
    assert [each["to_number"][-1] for each in found] == ["4", "3", "2"]
    assert found[0]["at"].startswith("2026-01-05")
    assert len(database.latest_refusals(1)) == 1
    database.expire(1.0)
    assert database.latest_refusals(10) == []
