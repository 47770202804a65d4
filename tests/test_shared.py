"""Two processes that share a database: each step of a call comes to either, and is taken once."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import trio
from sqlalchemy import select, text, update
from werkzeug.datastructures import MultiDict

from tests.databases import database_url, postgres_server, summary
from tests.test_http import TO, TWILIO, parameter
from tests.test_outbound import transfer
from tests.twilio_rest import ACCOUNT_SID, CALL_SID
from voicebot import shared, standing_table
from voicebot.archive import open_archive
from voicebot.config import load
from voicebot.database import open_database
from voicebot.errors import CallRefused, ConfigError, StoreError
from voicebot.onward import AWAY_S
from voicebot.outbound import OutboundCall
from voicebot.parting import Ending, Resumption
from voicebot.ports import Message, ToolCall
from voicebot.record import Outcome
from voicebot.schema import processes, standings
from voicebot.shared import Shared, open_shared
from voicebot.standing import Away, Line, Standing, from_json, plain, to_json
from voicebot.switchboard import Switchboard
from voicebot.telephony import PlacedCall

__all__ = ["database_url", "postgres_server"]  # fixtures


@pytest.fixture(autouse=True)
def places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each process be on a machine of its own, for they have the same pid."""
    monkeypatch.setattr("voicebot.database._place", iter(map(str, count())).__next__)


SCOPE = {"headers": [(b"host", b"localhost")]}


def form(sid: str = CALL_SID, **more: str) -> MultiDict[str, str]:
    fields = {"CallSid": sid, "AccountSid": ACCOUNT_SID, "From": TO, "To": TO, **more}
    return MultiDict(fields)


@dataclass
class Process:
    """What a process has of calls, without one around it."""

    board: Switchboard
    shared: Shared
    heard: list[tuple[str, str]]

    async def voice(self, sid: str = CALL_SID, key: str = "", **more: str) -> str:
        keys = (sid, key) if key else (sid,)
        answer = partial(self.board.answer, SCOPE, form(sid, **more), key)
        return await self.shared.step(keys, answer, counts=True)

    async def token(self, sid: str = CALL_SID, **more: str) -> str:
        return parameter(await self.voice(sid, **more))

    async def redeem(self, token: str, sid: str = CALL_SID) -> None:
        await self.shared.step((sid,), lambda: self.board.redeem(token, sid, ACCOUNT_SID))

    async def over(self, sid: str = CALL_SID) -> None:
        await self.shared.step((sid,), lambda: self.board.lines.release(sid))

    async def leave(self, ending: Ending, sid: str = CALL_SID, **notes: Any) -> None:
        def leave() -> None:
            self.board.lines.release(sid)
            self.board.onward.leave(sid, ending, trio.current_time(), notes)

        await self.shared.step((sid,), leave)

    async def after(self, what: str, **more: str) -> str:
        answer = getattr(self.board, f"after_{what}")
        return await self.shared.step(
            (CALL_SID,), partial(answer, SCOPE, form(**more)), counts=True
        )

    async def status(self, **more: str) -> None:
        await self.shared.step((CALL_SID,), partial(self.board.take_status, form(**more)))

    async def amd(self, who: str) -> None:
        told = form(AnsweredBy=who)
        await self.shared.step((CALL_SID,), partial(self.board.take_amd, told))


@asynccontextmanager
async def process(url: str, **more: str) -> AsyncGenerator[Process]:
    environ = {**TWILIO, "VOICEBOT_SHARED": "true", "VOICEBOT_DATABASE_URL": url, **more}
    board = Switchboard(load(environ))
    async with (
        open_archive(board.settings, board.store, board.metrics) as archive,
    ):
        assert archive is not None
        async with open_shared(board, archive) as ours:
            board.shared = ours
            here = Process(board, ours, [])

            async def answered(sid: str, who: str) -> None:
                here.heard.append((sid, who))

            ours.answered = answered
            yield here


@asynccontextmanager
async def two(url: str, **more: str) -> AsyncGenerator[tuple[Process, Process]]:
    with trio.fail_after(30):
        async with process(url, **more) as a, process(url, **more) as b:
            yield a, b


def rows(url: str) -> list[Any]:
    database = open_database(url)
    with database.engine.begin() as connection:
        found = list(connection.execute(select(standings)).all())
    database.engine.dispose()
    return found


def told(url: str) -> str:
    return str([tuple(row) for row in rows(url)])


# Tokens.


async def test_a_token_of_one_lets_the_stream_in_at_the_other_once(database_url: str) -> None:
    async with two(database_url) as (a, b):
        token = await a.token()
        await b.redeem(token)
        for each in (a, b):
            with pytest.raises(CallRefused):
                await each.redeem(token)


async def test_the_same_token_at_both_at_once_lets_one_in(database_url: str) -> None:
    async with two(database_url) as (a, b):
        for number in range(20):
            sid = f"CA{number}"
            came: list[Process] = []
            token = await (a, b)[number % 2].token(sid)

            async def come(
                each: Process, token: str = token, sid: str = sid, came: list[Process] = came
            ) -> None:
                try:
                    await each.redeem(token, sid)
                    came.append(each)
                except CallRefused:
                    pass

            async with trio.open_nursery() as nursery:
                for each in (a, b, a, b):
                    nursery.start_soon(come, each)
            assert len(came) == 1
            await came[0].over(sid)


async def test_a_webhook_again_gets_the_same_answer_whoever_is_asked(database_url: str) -> None:
    async with two(database_url) as (a, b):
        first = await a.voice()
        assert await b.voice() == first
        await b.redeem(parameter(first))
        assert await a.voice() == first  # while it is live
        await b.over()
        assert await a.voice() == await b.voice() == first
        for each in (a, b):
            with pytest.raises(CallRefused):
                await each.redeem(parameter(first))


async def test_the_same_webhook_at_both_at_once_gets_one_token(database_url: str) -> None:
    async with two(database_url) as (a, b):
        answers = set()

        async def ask(each: Process) -> None:
            answers.add(await each.voice())

        async with trio.open_nursery() as nursery:
            for each in (a, b) * 5:
                nursery.start_soon(ask, each)
        assert len(answers) == 1


async def test_a_token_that_is_too_old_lets_nobody_in(database_url: str) -> None:
    async with two(database_url, VOICEBOT_TOKEN_TTL_S="0.2") as (a, b):
        token = await a.token()
        await trio.sleep(0.3)
        with pytest.raises(CallRefused):
            await b.redeem(token)
        assert await b.token() == token  # and the webhook again buys no other
        with pytest.raises(CallRefused):
            await a.redeem(token)


async def test_no_token_can_be_read_in_the_database(database_url: str) -> None:
    async with two(database_url) as (a, _):
        token = await a.token()
        assert token not in told(database_url)


# Lines.


async def test_the_lines_of_all_are_counted_together(database_url: str) -> None:
    async with two(database_url, VOICEBOT_MAX_CALLS="2") as (a, b):
        for number in range(4):
            assert await a.token(f"CA{number}")  # two of them are the other's
        for each in (a, b):
            assert "busy" in await each.voice("CAmore")
        await a.redeem(await b.token("CA0"), "CA0")
        assert "busy" in await b.voice("CAmore")
        await a.over("CA0")
        assert await b.token("CAmore")


async def test_the_last_line_goes_to_one(database_url: str) -> None:
    async with two(database_url, VOICEBOT_MAX_CALLS="1") as (a, b):
        await a.token("CA0")
        for number in range(1, 11):
            answers: list[str] = []

            async def ask(each: Process, sid: str, answers: list[str] = answers) -> None:
                answers.append(await each.voice(sid))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask, a, f"CA{number}a")
                nursery.start_soon(ask, b, f"CA{number}b")
            assert sorted("busy" in answer for answer in answers) == [False, True]
            for which in "ab":
                await b.over(f"CA{number}{which}")


async def test_a_process_that_drains_has_no_lines_for_others(database_url: str) -> None:
    async with two(database_url, VOICEBOT_MAX_CALLS="1") as (a, b):
        a.board.drain()
        assert not await a.shared.needed()  # the other takes who comes
        await b.token("CA0")
        assert "busy" in await b.voice("CA1")


async def test_the_last_that_drains_is_needed_for_who_is_to_come(database_url: str) -> None:
    async with two(database_url) as (a, b):
        await a.token()
        a.board.drain()
        b.board.drain()
        for one in (a, b):
            await one.shared._keep()  # else it does within KEEP_S
        assert await b.shared.needed()
        assert await a.shared.needed()
        with trio.move_on_after(0.5) as scope:
            await b.board.wait_idle()
        assert scope.cancelled_caught
        await a.status(CallStatus="canceled")
        await b.board.wait_idle()


async def test_while_all_drain_each_stays_for_the_live_calls_of_the_others(
    database_url: str,
) -> None:
    async with two(database_url) as (a, b):
        await b.redeem(await b.token("CAb"), "CAb")
        a.board.drain()
        assert not await a.shared.needed()  # b takes what is asked
        b.board.drain()
        await b.shared._keep()  # else it does within KEEP_S
        assert await a.shared.needed()


async def test_a_call_of_a_process_that_died_holds_no_line_and_keeps_nothing(
    database_url: str,
) -> None:
    async with two(database_url, VOICEBOT_MAX_CALLS="1") as (a, b):
        await b.redeem(await b.token("CAb"), "CAb")
        expected = await b.token("CAexpected")
        # As `beat` does with one whose pid is gone.
        database = open_database(database_url)
        with database.engine.begin() as connection:
            gone = processes.c.id == b.board.store.process
            connection.execute(update(processes).where(gone).values(id="gone"))
            connection.execute(text("DELETE FROM processes WHERE id = 'gone'"))
        await a.shared._keep()
        database.engine.dispose()
        [lost] = [row for row in rows(database_url) if row.key == "CAb"]
        assert (lost.line, lost.state) == ("", None)
        await a.redeem(expected, "CAexpected")  # which was nobody's yet


async def test_a_live_call_whose_end_could_not_be_told_is_found(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standing_table, "SETTLE_S", 0.1)
    async with two(database_url) as (a, _):
        await a.redeem(await a.token())
        with a.board.live(CALL_SID):
            await trio.sleep(0.2)
            await a.shared._keep()
            assert rows(database_url)[0].line == "live"
        await a.shared._keep()
        [row] = rows(database_url)
        assert (row.line, row.state) == ("", None)
        assert row.past


# Outbound.


async def test_a_call_that_one_has_placed_is_answered_by_the_other(database_url: str) -> None:
    asked = OutboundCall(TO, TO, {"name": "Ada"}, voicemail="Call us.")
    async with two(database_url, VOICEBOT_MAX_CALLS="1") as (a, b):
        key = "dial-1"
        await a.shared.step((key,), partial(a.board.dial, asked, key), counts=True)
        await a.token("CAin")
        for each in (a, b):
            dial = partial(each.board.dial, asked, "dial-2")
            with pytest.raises(CallRefused):
                await each.shared.step(("dial-2",), dial, counts=True)
        token = await b.token(key=key, Direction="outbound-api")
        call = PlacedCall(CALL_SID, "queued")
        placed = partial(a.board.placed, key, asked, call)
        await a.shared.step((key, CALL_SID), placed)
        assert {row.key for row in rows(database_url)} == {"CAin", CALL_SID}
        await b.redeem(token)
        with b.board.live(CALL_SID):
            known = await b.shared.step((CALL_SID,), lambda: b.board.asked(CALL_SID))
            assert known == asked
            record = b.board.store.get(CALL_SID)
            assert record is not None
            assert (record.direction, record.metadata) == ("outbound", {"name": "Ada"})


async def test_what_has_answered_is_heard_by_who_has_the_call(
    database_url: str,
) -> None:
    async with two(database_url) as (a, b):
        await b.redeem(await a.token())
        with b.board.live(CALL_SID):
            await a.amd("machine_end_beep")
            with trio.fail_after(5):
                while not b.heard:  # noqa: ASYNC110  # another process, as far as tests go
                    await trio.sleep(0.05)
            await trio.sleep(2 * shared.LOOK_S)
        assert b.heard == [(CALL_SID, "machine_end_beep")]
        assert a.heard == []


# Away and back.


async def test_a_call_that_leaves_one_comes_back_to_the_other_with_its_conversation(
    database_url: str,
) -> None:
    async with two(database_url) as (a, b):
        token = await a.token()
        await a.redeem(token)
        with a.board.live(CALL_SID):
            await a.leave(transfer(summary="Ada."), state={"n": 1})
            assert "<Dial" in await b.after("stream")  # before the first is done with the stream
            whisper = partial(a.board.whisper, CALL_SID)
            assert "Ada." in await a.shared.step((CALL_SID,), whisper)
        back = parameter(await a.after("dial", DialCallStatus="busy"))
        assert parameter(await b.after("dial", DialCallStatus="busy")) == back != token

        def come() -> tuple[Resumption | None, Any]:
            b.board.redeem(back, CALL_SID, ACCOUNT_SID)
            notes = b.board.onward.notes(CALL_SID)
            return b.board.onward.come_back(CALL_SID, trio.current_time()), notes

        resumption, notes = await b.shared.step((CALL_SID,), come)
        assert resumption is not None
        assert resumption.history[2].content.startswith("nobody took the call (busy)")
        assert resumption.history[1].tool_calls == (ToolCall("t1", "transfer", "{}"),)
        assert 30.0 <= resumption.elapsed_s < 45.0
        assert notes == {"state": {"n": 1}}


async def test_keys_are_pressed_by_one_for_a_stream_of_the_other(tmp_path: Path) -> None:
    async with two(f"sqlite:///{tmp_path}/calls.db") as (a, b):
        await a.redeem(await a.token())
        so_far = transfer().so_far
        await a.leave(Ending(Outcome.PRESSING_KEYS, {"digits": "12#"}, "t1", so_far))
        answer = await b.after("stream")
        assert [verb.tag for verb in ET.fromstring(answer)] == ["Play", "Connect"]
        await a.redeem(parameter(answer))


async def test_a_call_that_is_live_in_one_is_not_deleted_by_the_other(tmp_path: Path) -> None:
    async with two(f"sqlite:///{tmp_path}/calls.db") as (a, b):
        await a.redeem(await a.token())
        with a.board.live(CALL_SID):
            for each in (a, b):
                assert not await each.shared.step((CALL_SID,), partial(each.board.forget, CALL_SID))
        await a.over()
        assert await b.shared.step((CALL_SID,), partial(b.board.forget, CALL_SID))


@pytest.mark.parametrize("end", ["status", "talked", "time"])
async def test_a_conversation_is_gone_with_its_call(
    end: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two(database_url) as (a, b):
        await a.redeem(await a.token())
        await a.leave(transfer())
        if end != "time":
            await b.after("stream")
        assert "a person please" in told(database_url)
        if end == "status":
            await b.status(CallStatus="completed")
        elif end == "talked":
            await b.after("dial", DialCallStatus="completed")
        else:
            later = b.shared._table._now
            monkeypatch.setattr(b.shared._table, "_now", lambda c: later(c) + AWAY_S)
            await b.shared._keep()
        [row] = rows(database_url)
        assert row.state is None
        assert row.past


async def test_what_an_engine_said_at_the_end_outlives_a_late_callback(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/calls.db"
    async with process(url) as a:
        await a.redeem(await a.token())
        with a.board.live(CALL_SID):
            a.board.store.summarise(CALL_SID, summary(call_sid=CALL_SID))
        await a.over()
        assert a.board.store.get(CALL_SID) is None
        await a.status(CallStatus="completed", CallDuration="12")
    database = open_database(url)
    record = database.get(CALL_SID)
    database.engine.dispose()
    assert record is not None
    assert (record.outcome, record.duration_s, record.live) == ("hung_up", 12, False)


# While the database is away.


async def test_while_nobody_knows_no_step_is_taken(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/calls.db"
    async with two(url) as (a, b):
        token = await a.token()
        engine = b.shared._table._engine
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE standings RENAME TO away"))
        with pytest.raises(StoreError):
            await b.redeem(token)
        with pytest.raises(StoreError):
            await b.voice("CA1")
        assert not await b.shared.needed()
        assert b.board.lines.taken(trio.current_time()) == 0
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE away RENAME TO standings"))
        await b.redeem(token)


async def test_an_answer_that_does_not_come_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "STEP_S", 0.2)
    url = f"sqlite:///{tmp_path}/calls.db"
    async with process(url) as a:
        with a.shared._table._engine.begin():  # a backup that takes its time
            with pytest.raises(StoreError, match="not answered"):
                await a.voice()
        assert await a.token()


async def test_a_step_that_fails_has_not_been_taken(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/calls.db"
    async with process(url) as a:

        def fail() -> None:
            a.board.answer(SCOPE, form())
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            await a.shared.step((CALL_SID,), fail, counts=True)
        assert rows(url) == []
        assert a.board.lines.taken(trio.current_time()) == 0


# What is told.


def test_a_standing_is_read_as_it_was_told() -> None:
    history = (Message("user", "hello"), Message("assistant", "", (ToolCall("1", "t", "{}"),)))
    ending = Ending(
        Outcome.PRESSING_KEYS, {"digits": "1"}, "1", Resumption(history, 3, 2.5, "Spanish")
    )
    standing = Standing(Line("n", "AC1", 5.0), "p", Away(ending, 1.0, True, "done", {"a": 1}))
    assert from_json(to_json(standing), standing.line, standing.past) == standing


def test_what_cannot_be_told_is_named() -> None:
    loop: list[Any] = []
    loop.append(loop)
    values = {"a": 1, "b": {"c": [None, "x"]}, "d": object(), "e": (1, 2), "f": loop, "g": {1: 2}}
    assert plain(values) == ({"a": 1, "b": {"c": [None, "x"]}}, ["d", "e", "f", "g"])


def test_sharing_needs_a_database() -> None:
    with pytest.raises(ConfigError, match="VOICEBOT_DATABASE_URL"):
        load({"VOICEBOT_SHARED": "true", "VOICEBOT_DATABASE_URL": ""})
