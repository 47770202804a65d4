"""What a process knows gets into the database, behind the back of its calls."""

from __future__ import annotations

import logging
import secrets
import sqlite3
import threading
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from sqlalchemy.exc import DataError, OperationalError

from tests.databases import database_url, moment, postgres_server, record, summary, tool, turn
from voicebot import archive as archives
from voicebot.archive import Archive, open_archive
from voicebot.call_record import CallRecord
from voicebot.config import Settings, load
from voicebot.database import Database, News, open_database
from voicebot.errors import StoreError
from voicebot.metrics import Metrics
from voicebot.store import CallStore

__all__ = ["database_url", "postgres_server"]  # fixtures


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/calls.db"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make what is patient with a database impatient."""
    monkeypatch.setattr(archives, "GATHER_S", 0.01)
    monkeypatch.setattr(archives, "RETRY_S", (0.01, 0.02))


class Process:
    """A store and its archive, as `serve` has them."""

    def __init__(self, url: str, **environ: str) -> None:
        self.settings: Settings = load({"VOICEBOT_DATABASE_URL": url, **environ})
        self.store = CallStore()
        self.metrics = Metrics()
        self.archive: Archive

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Archive]:
        with trio.fail_after(20):
            async with open_archive(self.settings, self.store, self.metrics) as archive:
                assert archive is not None
                self.archive = archive
                yield archive

    def open(self, sid: str, second: int = 0) -> None:
        self.store.open(
            sid, at=moment(second), direction="inbound", from_="+15550100123", to="+15550100456",
            status="ringing",
        )  # fmt: skip

    async def written(self) -> None:
        """Wait until the database knows everything."""
        while self.metric("records_pending") or self.archive._writing.borrowed_tokens:  # noqa: ASYNC110  # a thread does it
            await trio.sleep(0.005)

    def metric(self, name: str) -> float:
        [line] = [
            line
            for line in self.metrics.text().decode().splitlines()
            if line.startswith((f"voicebot_{name} ", f"voicebot_{name}_total "))
        ]
        return float(line.split()[1])


def read(url: str) -> dict[str, CallRecord]:
    database = open_database(url)
    found = {record.sid: record for record in database.every()}
    database.engine.dispose()
    return found


async def test_calls_turns_and_outcomes_are_written_as_they_happen(database_url: str) -> None:
    process = Process(database_url)
    async with process.running():
        process.open("CA1")
        with process.store.live("CA1", lambda: moment(1), {"lang": "en"}):
            process.store.turns_over("CA1", [turn(0, heard="Hello.")], at=moment(2))
            await process.written()
            live = (await trio.to_thread.run_sync(read, database_url))["CA1"]
            turns = (turn(0, heard="Hello."), turn(1, "a table", tools=[tool()]))
            process.store.summarise("CA1", summary(*turns))
        await process.written()
        over = (await trio.to_thread.run_sync(read, database_url))["CA1"]

    assert (live.outcome, live.status, live.process) == (None, "in-progress", process.store.process)
    assert [t["heard"] for t in live.turns] == ["Hello."]
    assert (over.outcome, over.status, over.parameters) == ("hung_up", "completed", {"lang": "en"})
    assert over.summary == summary(*turns)


async def test_what_is_left_is_written_at_the_end(url: str) -> None:
    process = Process(url)
    async with process.running():
        for n in range(120):
            process.open(f"CA{n}")

    assert len(read(url)) == 120


async def test_a_call_that_ends_after_the_server_is_waited_for(url: str) -> None:
    process = Process(url)
    closed = trio.Event()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:

            async def call(task_status: trio.TaskStatus[None]) -> None:
                with process.store.live("CA1", lambda: moment(1)):
                    task_status.started()
                    await closed.wait()
                    await trio.testing.wait_all_tasks_blocked()
                    process.store.summarise("CA1", summary(outcome="cancelled"))

            with trio.CancelScope() as scope:
                async with process.running():
                    process.open("CA1")
                    await nursery.start(call)
                    await process.written()
                    closed.set()
                    scope.cancel(reason="second signal")

    assert read(url)["CA1"].outcome == "cancelled"


async def test_without_a_database_nothing_is_written() -> None:
    process = Process("")
    async with open_archive(process.settings, process.store, process.metrics) as archive:
        assert archive is None


# --- A database that is away


@asynccontextmanager
async def locked(url: str) -> AsyncGenerator[None]:
    """Hold SQLite's write lock, as a long backup does."""
    connection = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.close()


async def test_a_call_does_not_wait_for_a_locked_database_and_nothing_is_lost(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("voicebot.schema.LOCK_S", 0.05)
    process = Process(url)
    async with process.running():
        async with locked(url):
            process.open("CA1")
            while not process.metric("database_failures"):  # noqa: ASYNC110  # a thread does it
                await trio.sleep(0.005)
            began = trio.current_time()
            for n in range(1_000):
                process.store.turns_over("CA1", [turn(n)], at=moment(1))
            took = trio.current_time() - began
            assert (await process.archive.get("CA1")) is not None  # reading goes on
        await process.written()

    assert took < 1  # 1 ms each would be a hundred times too much
    assert len(read(url)["CA1"].turns) == 1_000
    assert "database_failed" in caplog.messages
    assert not process.metric("records_dropped")


async def test_a_database_that_hangs_delays_neither_the_calls_nor_those_who_look(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "READ_S", 0.05)
    let_go = threading.Event()

    def hang(self: Database, *args: Any) -> Any:
        let_go.wait(10)

    process = Process(url)
    try:
        async with process.running() as archive:
            with monkeypatch.context() as hanging:
                for name in ("write", "get", "latest"):
                    hanging.setattr(Database, name, hang)
                process.open("CA1")
                process.open("CA2")
                known = await archive.get("CA1")
                with pytest.raises(StoreError, match="not answered"):
                    await archive.get("CA9")
                with pytest.raises(StoreError, match="not answered"):
                    await archive.latest(5)
                let_go.set()
        assert known is not None
    finally:
        let_go.set()


async def test_a_server_does_not_wait_longer_than_it_says_for_the_last_records(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("voicebot.schema.LOCK_S", 0.02)
    monkeypatch.setattr(archives, "FLUSH_S", 0.1)
    process = Process(url)
    async with AsyncExitStack() as lock:
        async with process.running():
            await lock.enter_async_context(locked(url))
            process.open("CA1")

    dropped = [record for record in caplog.records if record.message == "record_dropped"]
    assert [vars(record)["dropped_call_sid"] for record in dropped] == ["CA1"]
    assert process.metric("records_dropped") == 1


async def test_a_database_that_hangs_at_the_end_is_left_behind(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(archives, "FLUSH_S", 0.1)
    let_go = threading.Event()
    process = Process(url)
    try:
        async with process.running():
            await process.written()
            monkeypatch.setattr(Database, "write", lambda self, news: let_go.wait(10))
            process.open("CA1")
            began = trio.current_time()
        assert trio.current_time() - began < 5
    finally:
        let_go.set()

    assert "record_dropped" in caplog.messages


async def test_a_process_says_that_it_lives_however_much_there_is_to_write(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "BEAT_S", 0.01)
    beats, beat, write = list[str](), Database.beat, Database.write

    def counted(self: Database, process: str) -> list[str]:
        beats.append(process)
        return beat(self, process)

    def more_and_more(self: Database, news: Any) -> None:
        write(self, news)
        trio.from_thread.run_sync(process.open, f"CA{len(beats)}")

    monkeypatch.setattr(Database, "beat", counted)
    process = Process(url)
    async with process.running():
        monkeypatch.setattr(Database, "write", more_and_more)
        process.open("CA0")
        while len(beats) < 5:  # noqa: ASYNC110  # a thread does it
            await trio.sleep(0.005)
        monkeypatch.setattr(Database, "write", write)

    assert set(beats) == {process.store.process}


async def test_too_many_waiting_calls_are_dropped_loudly_the_longest_waiting_first(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(archives, "PENDING_CALLS", 3)
    process = Process(url)
    async with process.running():
        for n in range(5):  # with no checkpoint between: nothing can have been written
            process.open(f"CA{n}")

    assert sorted(read(url)) == ["CA2", "CA3", "CA4"]
    assert process.metric("records_dropped") == 2
    assert caplog.messages.count("record_dropped") == 2


async def test_one_call_that_the_database_will_not_take_does_not_hold_up_the_others(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write = Database.write

    def choosy(self: Database, news: Any) -> None:
        if any(each.record.sid == "CAbad" for each in news):
            raise DataError("INSERT planted", {"words": "planted"}, ValueError("too long"))
        write(self, news)

    monkeypatch.setattr(Database, "write", choosy)
    process = Process(url)
    async with process.running():
        for sid in ("CA1", "CAbad", "CA2"):
            process.open(sid)

    assert sorted(read(url)) == ["CA1", "CA2"]
    assert process.metric("records_dropped") == 1
    assert "planted" not in caplog.text


async def test_a_fault_of_our_own_ends_neither_the_service_nor_the_writing(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    faults = iter([KeyError("a bug"), None])
    beat = Database.beat

    def faulty(self: Database, process: str) -> list[str]:
        if (fault := next(faults, None)) is not None:
            raise fault
        return beat(self, process)

    monkeypatch.setattr(Database, "beat", faulty)
    process = Process(url)
    async with process.running():
        process.open("CA1")
        await process.written()

    [failed] = [record for record in caplog.records if record.message == "database_failed"]
    assert failed.exc_info is not None
    assert list(read(url)) == ["CA1"]


async def test_the_values_of_a_statement_do_not_get_into_the_log(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failures = iter([OperationalError("INSERT", {"words": "planted"}, OSError("gone"))])
    write = Database.write

    def fails_once(self: Database, news: Any) -> None:
        for failure in failures:
            raise failure
        write(self, news)

    monkeypatch.setattr(Database, "write", fails_once)
    process = Process(url)
    async with process.running():
        process.open("CA1")
        await process.written()

    [failed] = [record for record in caplog.records if record.message == "database_failed"]
    assert vars(failed)["error"] == "OperationalError: gone"
    assert "planted" not in caplog.text
    assert list(read(url)) == ["CA1"]


# --- Several processes


async def test_what_a_dead_process_left_is_lost_and_a_live_ones_calls_are_listed(
    database_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two processes of one pid are two machines.
    monkeypatch.setattr("voicebot.database._place", lambda: secrets.token_hex(4))

    def leave_a_call() -> None:
        database = open_database(database_url)
        call = record("CAdead", at=1, process="dead")
        database.write([News(call, {0: turn(0, heard="Hello.")})])
        database.engine.dispose()

    await trio.to_thread.run_sync(leave_a_call)
    one, other = Process(database_url), Process(database_url)
    caplog.set_level(logging.WARNING, "voicebot")
    async with one.running(), other.running():
        one.open("CA1", 10)
        with one.store.live("CA1", lambda: moment(11)):
            one.store.turns_over("CA1", [turn(0)], at=moment(12))
            await one.written()
            await other.written()
            [live, lost] = await other.archive.latest(5)
            again = await one.archive.get("CA1")
            one.store.summarise("CA1", summary(turn(0)))

    assert (live.sid, live.outcome, live.process) == ("CA1", None, one.store.process)
    assert (lost.sid, lost.outcome) == ("CAdead", "lost")
    assert [t["heard"] for t in lost.turns] == ["Hello."]
    assert again is not None
    assert len(again.turns) == 1
    assert caplog.messages.count("call_lost") == 1
    assert one.metric("calls_lost") + other.metric("calls_lost") == 1


# --- Redaction and retention


async def test_what_is_redacted_is_on_no_disk_and_in_no_answer(url: str, tmp_path: Path) -> None:
    process = Process(url, VOICEBOT_REDACTION__WORDS="digits", VOICEBOT_REDACTION__NUMBERS="last4")
    async with process.running() as archive:
        process.open("CA1")
        with process.store.live("CA1", lambda: moment(1)):
            said = turn(0, "my card is 4111 1111 1111 1111", "Thanks.")
            process.store.turns_over("CA1", [said], at=moment(2))
            before = await archive.get("CA1")
            await process.written()
            files = b"".join(path.read_bytes() for path in tmp_path.iterdir())  # noqa: ASYNC240
            after = await archive.get("CA1")

    assert before == after
    assert after is not None
    assert after.turns[0]["caller"] == "my card is [digits]"
    assert (after.from_, after.to) == ("…0123", "…0456")
    assert b"1111" not in files
    assert b"5550100" not in files
    assert b"Thanks." in files


async def test_old_calls_are_deleted(url: str) -> None:
    before = Process(url)
    async with before.running():
        before.store.open(
            "CAold", at="2020-01-01T00:00:00.000+00:00", direction="inbound", from_="", to="",
            status="completed",
        )  # fmt: skip
    process = Process(url, VOICEBOT_RETENTION__DAYS="30")
    async with process.running():
        process.open("CAnew")
        await process.written()

    assert list(read(url)) == ["CAnew"]
