"""Records in SQLite and in PostgreSQL: merged, read back, closed when lost, deleted when old."""

from __future__ import annotations

import os
import re
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.exc import OperationalError

from tests.databases import database_url, moment, postgres_server, record, summary, tool, turn
from voicebot import schema
from voicebot.call_record import LOST, CallRecord
from voicebot.database import Database, News, open_database
from voicebot.errors import StoreError
from voicebot.idempotency import InProgress, KeyReused

__all__ = ["database_url", "postgres_server"]  # fixtures


@pytest.fixture
def open_one(database_url: str) -> Iterator[Callable[[], Database]]:
    """Open the database as another process would."""
    opened: list[Database] = []

    def open_it() -> Database:
        opened.append(open_database(database_url))
        return opened[-1]

    yield open_it
    for database in opened:
        database.engine.dispose()


@pytest.fixture
def database(open_one: Callable[[], Database]) -> Database:
    return open_one()


def news(told: CallRecord, *turns: dict[str, Any]) -> News:
    return News(told, {each["number"]: each for each in turns})


# --- What is written is read


def test_a_whole_call_is_read_as_it_was_written(database: Database) -> None:
    turns = (
        turn(0, heard="Hello."),
        turn(
            1,
            "a table for 4, naïve \u2028 😀",
            "Done",
            fell=1.25,
            interrupted=True,
            goodbye=True,
            tools=[tool(arguments={"n": [1, None]}, ended=1.5, result="ok"), tool("other")],
        ),
    )
    whole = record(
        status="completed",
        sequence=3,
        ended_at=moment(12),
        duration_s=12,
        stream="stream-stopped",
        stream_error="31921",
        summary=summary(*turns),
        outcome="hung_up",
        process="p1",
        answered_by="human",
        metadata={"order": {"id": 7}},
        parameters={"lang": "en"},
    )
    database.write([news(whole, *turns)])

    assert database.get("CA1") == whole
    assert database.get("CA2") is None
    assert [r.outcome for r in database.every()] == ["hung_up"]


def test_a_call_that_has_come_back_has_the_turns_of_both_streams(database: Database) -> None:
    first, second = turn(0, heard="Hello."), turn(1, heard="I am back.")
    away = record(process="p1", outcome="pressing_keys", summary=summary(first))
    database.write([news(away, first)])
    back = record(process="p1", streams=2, live=True, summary=summary(first), turns=(second,))
    database.write([news(back, second)])

    found = database.get("CA1")

    assert found == back
    assert database.leave("p1") == ["CA1"]


def test_an_unfinished_call_has_its_turns_so_far(database: Database) -> None:
    database.write([news(record(process="p1"), turn(0, heard="Hello."))])
    late = turn(1, tools=[tool()])
    database.write([news(record(), late)])
    late["tools"][0] |= {"ended": 2.0, "result": "booked"}
    database.write([news(record(), late)])

    found = database.get("CA1")

    assert found is not None
    assert found.summary is None
    assert [t["number"] for t in found.turns] == [0, 1]
    assert found.turns[1]["tools"][0]["result"] == "booked"


def test_many_calls_in_one_transaction_are_listed_the_newest_first(database: Database) -> None:
    database.write([news(record(f"CA{n}", at=n), turn(0)) for n in range(30)])

    assert [r.sid for r in database.latest(3)] == ["CA29", "CA28", "CA27"]
    assert [r.sid for r in database.latest(9, since=moment(28))] == ["CA29", "CA28"]
    assert all(len(r.turns) == 1 for r in database.latest(30))


def test_a_page_goes_on_behind_the_one_before_also_among_calls_of_one_moment(
    database: Database,
) -> None:
    database.write([news(record(f"CA{n:02}", at=n // 4), turn(0)) for n in range(30)])

    pages, before = [], None
    while page := database.latest(7, before=before):
        pages.append([r.sid for r in page])
        before = page[-1]

    assert [sid for page in pages for sid in page] == [f"CA{n:02}" for n in reversed(range(30))]
    assert [len(page) for page in pages] == [7, 7, 7, 7, 2]


def test_export_gives_every_call_once_whatever_their_times(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voicebot.database.EXPORTED_AT_ONCE", 4)
    database.write([news(record(f"CA{n}", at=n // 6)) for n in range(10, 30)])

    assert [r.sid for r in database.every()] == [f"CA{n}" for n in range(10, 30)]
    assert [r.sid for r in database.every(moment(4))] == [f"CA{n}" for n in range(24, 30)]


# --- Several who know


def test_a_process_that_has_forgotten_the_call_takes_nothing_from_it(
    open_one: Callable[[], Database],
) -> None:
    told = turn(0, heard="Hello.")
    before = record(
        status="completed", sequence=-1, ended_at=moment(9), summary=summary(told),
        outcome="hung_up", process="p1", metadata={"a": 1}, parameters={"b": "2"},
    )  # fmt: skip
    open_one().write([news(before, told)])
    # A status callback after the restart is all that the new process knows.
    after = record(at=10, from_="", to="", status="completed", sequence=4, duration_s=9)
    open_one().write([news(after)])

    found = open_one().get("CA1")

    assert found is not None
    assert (found.duration_s, found.sequence, found.created_at) == (9, 4, moment(0))
    assert (found.outcome, found.summary) == ("hung_up", summary(told))
    assert (found.from_, found.metadata, found.process) == ("+15550100123", {"a": 1}, "p1")


def test_two_processes_writing_the_same_calls_at_once_lose_nothing(
    open_one: Callable[[], Database],
) -> None:
    failures: list[Exception] = []

    def tell(database: Database, me: int) -> None:
        try:
            for n in range(20):
                order = range(5) if me else reversed(range(5))
                database.write([news(record(f"CA{c}"), turn(2 * n + me)) for c in order])
        except Exception as exc:
            failures.append(exc)

    threads = [threading.Thread(target=tell, args=(open_one(), me)) for me in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert failures == []
    assert [len(r.turns) for r in open_one().every()] == [40] * 5


# --- Lost calls


def silent_since(database: Database, process: str, at: str) -> None:
    with database.engine.begin() as connection:
        its = schema.processes.c.id == process
        connection.execute(update(schema.processes).where(its).values(seen_at=at))


def test_what_a_dead_process_left_is_closed_as_lost_and_a_live_neighbours_calls_are_not(
    open_one: Callable[[], Database],
) -> None:
    dead, neighbour, new = open_one(), open_one(), open_one()
    dead.place = neighbour.place = "another machine"  # only the lease tells
    dead.pid = 1
    dead.beat("dead")
    neighbour.beat("neighbour")
    dead.write([news(record("CAdead", at=5, process="dead"), turn(0, heard="Hello."))])
    dead.write([news(record("CAover", process="dead", outcome="hung_up", status="completed"))])
    neighbour.write([news(record("CAlive", process="neighbour"))])
    neighbour.write([news(record("CAringing", status="ringing"))])
    silent_since(new, "dead", "2026-11-01T00:00:00.000+00:00")

    assert new.beat("new") == ["CAdead"]
    assert new.beat("new") == []

    lost = new.get("CAdead")
    assert lost is not None
    assert (lost.outcome, lost.status, lost.ended_at) == (LOST, "completed", moment(5))
    assert [t["heard"] for t in lost.turns] == ["Hello."]
    others = {r.sid: r.outcome for r in new.every()}
    assert others == {"CAdead": LOST, "CAover": "hung_up", "CAlive": None, "CAringing": None}


def test_a_process_of_this_machine_whose_pid_is_gone_is_dead_at_once(
    open_one: Callable[[], Database],
) -> None:
    database = open_one()
    database.beat("gone")
    database.write([news(record(process="gone"))])
    with database.engine.begin() as connection:
        connection.execute(update(schema.processes).values(pid=2**22 + 1))  # above any pid

    assert database.beat("new") == ["CA1"]


def test_a_process_with_our_pid_was_here_before_us(database: Database) -> None:
    database.beat("before")  # in a container every process has pid 1
    database.write([news(record(process="before"))])

    assert database.beat("new") == ["CA1"]


def test_twilios_word_on_a_lost_call_stands(database: Database) -> None:
    database.write([news(record(process="p1", status="failed", ended_at=moment(3)))])
    database.leave("p1")

    found = database.get("CA1")
    assert found is not None
    assert (found.outcome, found.status, found.ended_at) == (LOST, "failed", moment(3))


def test_who_was_given_up_and_lives_knows_better(database: Database) -> None:
    database.beat("slow")
    database.write([news(record(process="slow"), turn(0))])
    database.leave("slow")  # a neighbour took it for dead
    turns = (turn(0), turn(1))
    over = record(process="slow", status="completed", outcome="hung_up", summary=summary(*turns))
    database.write([news(over, *turns)])

    found = database.get("CA1")
    assert found is not None
    assert found.outcome == "hung_up"
    assert found.summary == summary(*turns)


# --- Retention


def test_old_calls_go_with_their_turns_and_tools_and_unfinished_ones_stay(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voicebot.database.EXPIRED_AT_ONCE", 3)
    old = "2020-01-01T00:00:00.000+00:00"
    over: dict[str, Any] = {"created_at": old, "outcome": "hung_up", "status": "completed"}
    calls = [record(f"CA{n}", process="p1", **over) for n in range(5)]
    calls += [record("CAlive", process="p1", created_at=old), record("CAnew", ended_at=moment(5))]
    database.write([news(each, turn(0, tools=[tool()])) for each in calls])

    assert [database.expire(30), database.expire(30), database.expire(30)] == [3, 2, 0]

    assert sorted(r.sid for r in database.every()) == ["CAlive", "CAnew"]
    with database.engine.begin() as connection:
        for table in (schema.turns, schema.tools):
            assert len(connection.execute(select(table)).all()) == 2


# --- Requests that must be done once


def test_a_request_is_done_once_whichever_process_is_asked(
    open_one: Callable[[], Database],
) -> None:
    one, other = open_one(), open_one()

    assert one.begin_request("key", "body") is None
    with pytest.raises(InProgress):
        other.begin_request("key", "body")
    with pytest.raises(KeyReused):
        other.begin_request("key", "another")
    one.end_request("key", ({"call_sid": "CA1"}, 201))
    assert other.begin_request("key", "body") == ({"call_sid": "CA1"}, 201)
    assert other.begin_request("another key", "body") is None
    other.end_request("another key", None)  # nothing was done
    assert one.begin_request("another key", "body") is None


def test_a_key_is_forgotten_after_a_day(database: Database) -> None:
    assert database.begin_request("key", "body") is None
    with database.engine.begin() as connection:
        connection.execute(update(schema.requests).values(at="2020-01-01T00:00:00.000+00:00"))

    assert database.begin_request("key", "another") is None


def test_of_many_who_ask_at_once_one_does_it(open_one: Callable[[], Database]) -> None:
    answers: list[str] = []
    databases = [open_one() for _ in range(6)]
    start = threading.Barrier(len(databases))

    def ask(database: Database) -> None:
        start.wait(10)
        try:
            answers.append("new" if database.begin_request("key", "body") is None else "known")
        except InProgress:
            answers.append("in progress")

    threads = [threading.Thread(target=ask, args=(database,)) for database in databases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert sorted(answers) == ["in progress"] * 5 + ["new"]


# --- Versions


def test_a_database_of_version_1_is_brought_up_to_date_and_keeps_its_calls(
    database_url: str,
) -> None:
    engine = schema.open_engine(database_url)
    schema.upgrade(engine, "1")
    Database(engine).write([news(record(process="p1", outcome="hung_up"), turn(0, heard="Hi."))])
    with engine.connect() as connection:
        assert schema.version(connection) == "1"
    engine.dispose()

    database = open_database(database_url)

    with database.engine.connect() as connection:
        assert schema.version(connection) == schema.HEAD
    found = database.get("CA1")
    assert found is not None
    assert [each["heard"] for each in found.turns] == ["Hi."]
    assert database.begin_request("key", "body") is None
    database.engine.dispose()


def test_a_new_database_is_of_the_newest_version_and_as_the_program_has_it(
    database: Database,
) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    with database.engine.begin() as connection:
        assert schema.version(connection) == schema.HEAD
        differences = compare_metadata(MigrationContext.configure(connection), schema.tables)
    assert differences == []


def test_the_head_that_the_program_names_is_the_head_there_is() -> None:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(schema.__file__).with_name("migrations")))
    assert ScriptDirectory.from_config(config).get_current_head() == schema.HEAD


def test_many_may_open_a_new_database_at_once(database_url: str) -> None:
    assert opened_at_once([database_url] * 8) == []


def test_one_process_may_open_many_new_databases_at_once(tmp_path: Path) -> None:
    assert opened_at_once([f"sqlite:///{tmp_path}/{n}.db" for n in range(8)]) == []


def opened_at_once(urls: Sequence[str]) -> list[Exception]:
    """Open databases, each in a thread; return what went wrong."""
    failures: list[Exception] = []
    start = threading.Barrier(len(urls))

    def open_it(url: str) -> None:
        start.wait(10)
        try:
            open_database(url).engine.dispose()
        except Exception as exc:
            failures.append(exc)

    threads = [threading.Thread(target=open_it, args=[url]) for url in urls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return failures


def test_a_database_of_a_newer_program_is_refused(database_url: str) -> None:
    engine = open_database(database_url).engine
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '999'"))
    engine.dispose()

    with pytest.raises(StoreError, match="newer"):
        open_database(database_url)


def test_a_reader_makes_and_changes_nothing(database_url: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="voicebot serve"):
        open_database(database_url, create=False)

    assert list(tmp_path.iterdir()) == []


# --- What cannot be opened


def test_the_file_is_for_its_owner_only(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path}/calls.db")
    database.write([news(record())])
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    database.engine.dispose()

    assert modes == dict.fromkeys(("calls.db", "calls.db-wal", "calls.db-shm"), 0o600)


@pytest.mark.parametrize(
    "url, why",
    [
        pytest.param("sqlite:////nowhere/at/all/calls.db", "No such file", id="no folder"),
        pytest.param("sqlite:///{tmp}/text.txt", "not a database", id="another file"),
        pytest.param("sqlite:///{tmp}", "unable to open", id="a folder"),
        pytest.param("postgresql://me:planted-secret@127.0.0.1:1/calls", "refused", id="no server"),
        pytest.param("postgresql://me:planted-secret@host.invalid/calls", "", id="no such host"),
        pytest.param("mysql://me:planted-secret@host/calls", "neither", id="another kind"),
        pytest.param("::planted-secret::", "not a URL", id="no URL"),
    ],
)
def test_what_cannot_be_opened_is_said_with_the_setting_and_without_the_password(
    url: str, why: str, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("This is no database at all. " * 100)
    with pytest.raises(StoreError) as caught:
        open_database(url.replace("{tmp}", str(tmp_path)))

    assert re.search(why, str(caught.value), re.IGNORECASE)
    assert "VOICEBOT_DATABASE_URL" in str(caught.value)
    assert "planted-secret" not in str(caught.value)


def test_a_full_disk_may_take_it_later(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path}/calls.db")
    with database.engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
    database.engine.dispose()
    from sqlalchemy import event

    @event.listens_for(database.engine, "connect")
    def full(connection: Any, _: object) -> None:
        connection.execute(f"PRAGMA max_page_count={pages}")

    with pytest.raises(OperationalError, match="full") as caught:
        database.write([news(record(metadata={"much": "x" * 100_000}))])
    database.engine.dispose()

    assert database.is_away(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_a_file_that_may_not_be_written_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "calls.db"
    open_database(f"sqlite:///{path}").engine.dispose()
    path.chmod(0o400)

    with pytest.raises(StoreError, match="VOICEBOT_DATABASE_URL"):
        open_database(f"sqlite:///{path}")
