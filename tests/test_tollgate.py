"""Calls that the server does not place: what is answered and kept, and what is given back."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from tests.keys import API_KEY, entry
from tests.test_http import (
    FROM,
    LOCAL,
    TO,
    TWILIO,
    Running,
    on_hypercorn,
    open_placing_service,
    running,
    sign,
)
from tests.test_http import PUBLIC as PUBLIC_URL
from tests.test_http import WEBHOOK as FORM
from tests.test_metrics import samples
from tests.test_telephony import settings_for
from tests.twilio_rest import CALL_SID, FakeTwilio, open_fake_twilio
from voicebot import call_command
from voicebot.config import load
from voicebot.database import Database, open_database
from voicebot.errors import CallBarred
from voicebot.http import App
from voicebot.schema import dials
from voicebot.switchboard import Switchboard
from voicebot.tollgate import KEPT_REFUSALS

KEY = {
    "VOICEBOT_API_KEYS": entry(),
    "VOICEBOT_API_KEY": API_KEY,
    "VOICEBOT_MAX_EMBEDDED_CALLS": "20",
}
SENT = {"Authorization": f"Bearer {API_KEY}"}
NAME = "tests"
JAMAICA, PREMIUM, OTHER = "+18765550100", "+19005551234", "+15550100777"
ONE_AT_ONCE = {"VOICEBOT_OUTBOUND__AT_ONCE": "1"}


@dataclass
class Place:
    """A server that places calls: `board` is that of the one process."""

    client: httpx.AsyncClient
    board: Switchboard
    twilio: FakeTwilio

    async def call(self, to: str = TO, **more: Any) -> httpx.Response:
        headers = {name: more.pop(name) for name in ("Idempotency-Key",) if name in more}
        return await self.client.post("/calls", json={"to": to, **more}, headers=headers)

    async def refused(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self.client.get("/calls/refused")).json()["refused"]
        return found

    async def over(self, sid: str, status: str = "completed", **more: str) -> None:
        """Tell, as Twilio does, that a call is over."""
        form = {**FORM, "CallSid": sid, "CallStatus": status, "Direction": "outbound-api",
                "SequenceNumber": "3", **more}  # fmt: skip
        signed = {"X-Twilio-Signature": sign(PUBLIC_URL + "/twilio/status", form)}
        answer = await self.client.post("/twilio/status", data=form, headers=signed)
        assert answer.status_code == 204, answer.text


@asynccontextmanager
async def place(database: str = "", **environ: str) -> AsyncGenerator[Place]:
    """Serve, with a database or without; every call has its own SID."""
    with trio.fail_after(20):
        async with open_fake_twilio() as twilio, at(twilio, database, **environ) as here:
            yield here


@asynccontextmanager
async def at(twilio: FakeTwilio, database: str = "", **environ: str) -> AsyncGenerator[Place]:
    twilio.sids = True
    settings = load(
        {
            "TWILIO_API_URL": twilio.url,
            **TWILIO,
            **KEY,
            "VOICEBOT_DATABASE_URL": database,
            **environ,
        }
    )
    board = Switchboard(settings)
    async with (
        on_hypercorn(App(board, open_placing_service)) as url,
        httpx.AsyncClient(base_url=url, headers=SENT, trust_env=False) as client,
    ):
        yield Place(client, board, twilio)


@pytest.fixture(params=["memory", "database"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Give the URL of a database, or none."""
    return "" if request.param == "memory" else f"sqlite:///{tmp_path}/calls.db"


# --- By the number


async def test_a_number_that_may_not_be_called_is_refused_and_on_record(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with place(url) as here:
        abroad, costly = await here.call(JAMAICA), await here.call(PREMIUM)
        metrics = samples(here.board.metrics)
        kept = await here.refused()
        assert here.twilio.asked == []

    assert (abroad.status_code, costly.status_code) == (403, 403)
    error = abroad.json()["error"]
    assert error["message"] == "to is in JM, and this server calls US only"
    assert error["fields"] == {"to": "is in JM, and this server calls US only"}
    assert (error["reason"], error["setting"]) == ("country", "VOICEBOT_OUTBOUND__COUNTRIES")
    assert "put it into VOICEBOT_OUTBOUND__COUNTRIES" in error["hint"]
    assert costly.json()["error"]["setting"] == "VOICEBOT_OUTBOUND__KINDS"
    assert "Retry-After" not in abroad.headers

    assert metrics["voicebot_outbound_refused_total{reason=country}"] == 1
    assert metrics["voicebot_outbound_refused_total{reason=premium}"] == 1
    assert [(one["to"], one["reason"], one["who"]) for one in kept] == [
        (PREMIUM, "premium", NAME),
        (JAMAICA, "country", NAME),
    ]
    assert set(kept[0]) == {"at", "who", "to", "reason", "setting", "process"}
    barred = [line for line in caplog.records if line.msg == "call_barred"]
    assert [vars(line)["reason"] for line in barred] == ["country", "premium"]
    assert vars(barred[0])["pii_to"] == JAMAICA
    assert API_KEY not in str([vars(line) for line in barred])


async def test_other_countries_and_kinds_are_called_where_the_settings_say_so(url: str) -> None:
    async with place(
        url, VOICEBOT_OUTBOUND__COUNTRIES="US, JM", VOICEBOT_OUTBOUND__KINDS="premium"
    ) as here:
        answers = [(await here.call(to)).status_code for to in (JAMAICA, PREMIUM, TO)]
    assert answers == [201, 201, 201]


async def test_numbers_are_kept_as_the_settings_say(url: str, tmp_path: Path) -> None:
    async with place(url, VOICEBOT_REDACTION__NUMBERS="last4") as here:
        await here.call(JAMAICA)
        await here.call(TO)
        [kept] = await here.refused()
    assert kept["to"] == "…0100"
    on_disk = b"".join(map(Path.read_bytes, sorted(files_of(tmp_path))))
    assert JAMAICA.encode() not in on_disk
    assert TO.encode() not in on_disk


def files_of(folder: Path) -> list[Path]:
    return list(folder.glob("calls.db*"))


async def test_a_live_call_is_given_to_nobody_who_may_not_be_called(url: str) -> None:
    async with place(url, VOICEBOT_OUTBOUND__PER_NUMBER_PER_HOUR="1") as here:
        sid = (await here.call(TO)).json()["call_sid"]
        path = f"/calls/{sid}/redirect"
        abroad = await here.client.post(path, json={"to": JAMAICA})
        often = await here.client.post(path, json={"to": TO})
        here.twilio.status = 200
        other = await here.client.post(path, json={"to": OTHER})
        again = await here.client.post(path, json={"to": OTHER})
        assert len(here.twilio.asked) == 2
        assert [one["reason"] for one in await here.refused()] == [
            "per_number_per_hour", "per_number_per_hour", "country",
        ]  # fmt: skip
    answers = [abroad, often, other, again]
    assert [answer.status_code for answer in answers] == [403, 429, 200, 429]


async def test_a_callers_call_is_given_to_those_of_the_number_that_was_called() -> None:
    without = {name: value for name, value in TWILIO.items() if name != "TWILIO_FROM_NUMBER"}
    async with running(**without) as service:
        await service.webhook("/twilio/voice", To=FROM)
        service.twilio.status = 200
        answers = await redirect(service, JAMAICA, OTHER)
    assert answers == [403, 200]


async def redirect(service: Running, *numbers: str) -> list[int]:
    async with service.client(LOCAL) as client:
        path = f"/calls/{CALL_SID}/redirect"
        return [(await client.post(path, json={"to": to})).status_code for to in numbers]


# --- By the limits


async def test_a_limit_is_said_with_its_setting_and_when_to_come_back(url: str) -> None:
    async with place(url, VOICEBOT_OUTBOUND__PER_NUMBER_PER_HOUR="2") as here:
        answers = [await here.call(TO) for _ in range(3)]
        other = await here.call(OTHER)
        [kept] = await here.refused()
        metrics = samples(here.board.metrics)
    assert [answer.status_code for answer in answers] == [201, 201, 429]
    assert other.status_code == 201
    assert 3_500 < int(answers[2].headers["Retry-After"]) <= 3_600
    error = answers[2].json()["error"]
    assert error["message"] == "the limit of 2 calls an hour to one number is reached"
    assert error["setting"] == "VOICEBOT_OUTBOUND__PER_NUMBER_PER_HOUR"
    assert error["hint"] == "wait; or raise VOICEBOT_OUTBOUND__PER_NUMBER_PER_HOUR"
    assert (kept["reason"], kept["to"]) == ("per_number_per_hour", TO)
    assert metrics["voicebot_outbound_refused_total{reason=per_number_per_hour}"] == 1


async def test_a_call_that_is_over_makes_room_for_the_next(url: str) -> None:
    async with place(url, VOICEBOT_OUTBOUND__MINUTES_PER_DAY="122") as here:
        sids = [(await here.call()).json()["call_sid"] for _ in range(2)]
        full = await here.call()
        await here.over(sids[0], CallDuration="61")
        await here.over(sids[1], "no-answer")
        answers = await until_placed(here)
        over_budget = await here.call()
    assert full.status_code == 429
    assert "of 122 minutes a day 122 are used or held, and a call may take 61" in full.text
    assert answers.status_code == 201
    assert "63 are used or held" in over_budget.text


async def until_placed(here: Place, to: str = TO, **more: Any) -> httpx.Response:
    """Place a call once the record of another, which is written behind, makes room."""
    while True:
        answer = await here.call(to, **more)
        if answer.status_code != 429:
            return answer
        await trio.sleep(0.05)


async def test_an_engine_that_has_ended_is_no_end_of_the_call(url: str) -> None:
    async with place(url, **ONE_AT_ONCE) as here:
        sid = (await here.call()).json()["call_sid"]
        with here.board.live(sid):
            pass
        record = here.board.store.get(sid)
        assert record is not None
        assert record.status == "completed"
        if url:
            await written(url, sid)
        assert (await here.call()).status_code == 429


async def written(url: str, sid: str) -> None:
    """Wait until the database has been told that the engine has ended."""
    database = open_database(url)
    while True:
        record = database.get(sid)
        if record is not None and record.status == "completed":
            break
        await trio.sleep(0.05)
    database.engine.dispose()


async def test_what_twilio_has_refused_takes_nothing(url: str) -> None:
    async with place(url, **ONE_AT_ONCE) as here:
        placed = here.twilio.answer
        here.twilio.refuse(400, 21211)
        here.twilio.sids = False
        answers = [(await here.call()).status_code for _ in range(2)]
        here.twilio.status, here.twilio.answer, here.twilio.sids = 201, placed, True
        answers.append((await here.call()).status_code)
    assert answers == [400, 400, 201]


async def test_what_may_have_been_placed_is_held(url: str) -> None:
    async with place(url, **ONE_AT_ONCE) as here:
        here.twilio.answer, here.twilio.sids = "nonsense", False
        answers = [(await here.call()).status_code for _ in range(2)]
    assert answers == [502, 429]


async def test_a_refusal_is_no_answer_for_a_day(url: str) -> None:
    async with place(url, **ONE_AT_ONCE) as here:
        sid = (await here.call()).json()["call_sid"]
        full = await here.call(OTHER, **{"Idempotency-Key": "k"})
        await here.over(sid, CallDuration="1")
        placed = await until_placed(here, OTHER, **{"Idempotency-Key": "k"})
        abroad = [await here.call(JAMAICA, **{"Idempotency-Key": "j"}) for _ in range(2)]
        assert len(await here.refused()) >= 3
    assert (full.status_code, placed.status_code) == (429, 201)
    assert [answer.status_code for answer in abroad] == [403, 403]


async def test_without_a_database_refusals_are_bounded() -> None:
    async with place() as here:
        error = None
        for number in range(KEPT_REFUSALS + 5):
            try:
                here.board.tollgate.check_number(JAMAICA, FROM)
            except CallBarred as exc:
                error = exc
                await here.board.tollgate.refuse(None, exc, f"+1876555{number:04}", "local")
        assert error is not None
        found = await here.board.tollgate.latest_refusals(None, 10_000)
    assert len(found) == KEPT_REFUSALS
    assert found[0]["to"] == f"+1876555{KEPT_REFUSALS + 4:04}"


# --- In a database


async def test_two_servers_on_one_database_share_what_there_is(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/calls.db"
    async with place(url, VOICEBOT_OUTBOUND__AT_ONCE="4") as one:
        async with at(one.twilio, url, VOICEBOT_OUTBOUND__AT_ONCE="4") as other:
            answers: list[httpx.Response] = []

            async def ask(here: Place, number: int) -> None:
                answers.append(await here.call(f"+155501001{number:02}"))

            async with trio.open_nursery() as nursery:
                for number in range(10):
                    nursery.start_soon(ask, (one, other)[number % 2], number)
            placed = [answer for answer in answers if answer.status_code == 201]
            assert len(placed) == len(one.twilio.asked) == 4
            assert {answer.status_code for answer in answers} == {201, 429}
            # Whichever of them is told of its end, the other may place one.
            sid = placed[0].json()["call_sid"]
            await other.over(sid, CallDuration="5")
            assert (await until_placed(one)).status_code == 201
            assert await one.refused() == await other.refused()
            assert len(await one.refused()) >= 6


async def test_no_call_is_placed_while_the_database_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(self: Database, *args: Any) -> None:
        raise OperationalError("INSERT", {}, OSError("gone"))

    async with place(f"sqlite:///{tmp_path}/calls.db") as here:
        with monkeypatch.context() as context:
            context.setattr(Database, "reserve", away)
            answers = [await here.call(), await here.call(**{"Idempotency-Key": "k"})]
            context.setattr(Database, "note_refusal", away)
            abroad = await here.call(JAMAICA)
        later = await here.call(**{"Idempotency-Key": "k"})
        assert here.board.lines.taken(trio.current_time()) == 1
        assert len(here.twilio.asked) == 1
    assert [answer.status_code for answer in answers] == [503, 503]
    assert "database cannot be asked" in answers[0].text
    assert abroad.status_code == 403
    assert later.status_code == 201


async def test_what_the_database_is_not_told_stays_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(self: Database, *args: Any) -> None:
        raise OperationalError("UPDATE", {}, OSError("gone"))

    async with place(f"sqlite:///{tmp_path}/calls.db", **ONE_AT_ONCE) as here:
        monkeypatch.setattr(Database, "name_dial", away)
        answers = [(await here.call()).status_code for _ in range(2)]
    assert answers == [201, 429]
    assert "dial_not_named" in {line.msg for line in caplog.records}


async def test_whom_one_calls_is_not_to_be_read_from_what_is_counted(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/calls.db"
    async with place(url) as here:
        await here.call()
    database = open_database(url)
    with database.engine.begin() as connection:
        [row] = connection.execute(select(dials)).all()
    database.engine.dispose()
    assert row.who == NAME
    assert TO not in str(row)
    assert row.destination != hashlib.sha256(TO.encode()).hexdigest()[:32]
    assert row.held == 61


# --- The command


async def test_the_command_places_no_call_that_the_server_would_refuse() -> None:
    async with open_fake_twilio() as twilio:
        directly = await command(settings_for(twilio.url), JAMAICA, None)
        assert twilio.asked == []
    async with place() as here:
        server = str(here.client.base_url)
        by_server = await command(here.board.settings, JAMAICA, server)
        assert here.twilio.asked == []
    assert directly == by_server
    assert directly[0] == 1
    assert directly[1].startswith("not called: to is in JM, and this server calls US only; if JM")


async def command(settings: Any, to: str, server: str | None) -> tuple[int, str]:
    with trio.fail_after(20):
        return await call_command.call(settings, {"to": to}, server, False, print)
