"""Whole calls over real sockets on a telephone network: placed, put through, taken back."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx
import trio

from tests.e2e.running import Server, open_server, recorded
from tests.e2e.test_real_call import environment
from tests.keys import API_KEY
from voicebot import Bot, Call, call_command, service
from voicebot.config import load
from voicebot.record import CallSummary, TurnRecord
from voicebot.simulator import Script, Utterance
from voicebot.simulator.telephone import Person, PhoneCall, Telephone
from voicebot.standins import Standins, open_standins
from voicebot.standins.groq import Reply, ToolCall
from voicebot.testing.telephone import open_telephone

#: COLLEAGUE is who the example bots put callers through to.
TO, COLLEAGUE = "+15550100199", "+15550100177"
KEY = {"Authorization": f"Bearer {API_KEY}"}
PUTTING = Reply(
    "I am putting you through.",
    (ToolCall("transfer", '{"to": "a person", "summary": "Ada wants a refund."}'),),
)


@dataclass
class World:
    standins: Standins
    server: Server
    phones: Telephone
    client: httpx.AsyncClient

    async def place(self, **more: Any) -> tuple[PhoneCall, dict[str, Any]]:
        """Have the bot call somebody; return the call when it is over, and its record."""
        answer = await self.client.post("/calls", json={"to": TO, **more})
        assert answer.status_code == 201, answer.text
        call = self.phones.calls[answer.json()["call_sid"]]
        await call.over.wait()
        await self.server.wait_idle()
        return call, await self.record(call)

    async def record(self, call: PhoneCall) -> dict[str, Any]:
        record: dict[str, Any] = (await self.client.get(f"/calls/{call.sid}")).json()
        return record


@asynccontextmanager
async def world(
    replies: Sequence[str | Reply],
    *people: Person,
    texts: Sequence[str] = ("hello",),
    bot: Bot | None = None,
    **more: str,
) -> AsyncGenerator[World]:
    """Serve with a colleague to put callers through to; `people` are at TO and with them."""
    with trio.fail_after(60):
        async with open_standins(texts=tuple(texts), replies=list(replies)) as standins:
            environ = {**environment(standins), "VOICEBOT_TRANSFER_TO": COLLEAGUE, **more}
            if bot is not None and bot.brain is not None:
                environ = {name: value for name, value in environ.items() if "GROQ" not in name}
            at = dict(zip((TO, COLLEAGUE), people, strict=False))
            async with (
                open_server(environ, partial(service.open_service, bot=bot)) as server,
                open_telephone(standins.twilio, server.url, server.account, at) as phones,
                httpx.AsyncClient(base_url=server.url, headers=KEY, trust_env=False) as client,
            ):
                yield World(standins, server, phones, client)


def says(name: str = "hello-world") -> Script:
    """Return a caller who says one thing and listens to the answer."""
    return Script((Utterance(name, recorded(name, 1.5)),))


async def test_a_call_is_placed_talked_and_followed_to_its_end() -> None:
    async with world(["Nice to meet you."], Person((says(),))) as here:
        call, record = await here.place(metadata={"name": "Ada"})
    assert call.errors == []
    assert call.recording.ended.by == "caller"
    assert [turn["heard"] for turn in record["summary"]["turns"]] == ["Hello.", "Nice to meet you."]
    assert (record["status"], record["metadata"]) == ("completed", {"name": "Ada"})


async def test_nobody_there_is_on_record() -> None:
    for does, status in (("busy", "busy"), ("no-answer", "no-answer"), ("failed", "failed")):
        async with world([], Person(does=does)) as here:  # type: ignore[arg-type]  # the three
            call, record = (
                await here.place(ring_timeout_s=5)
                if does != "no-answer"
                else (await canceled(here))
            )
        assert record["status"] in {status, "canceled"}
        assert (record["summary"], call.errors) == (None, [])


async def canceled(here: World) -> tuple[PhoneCall, dict[str, Any]]:
    """Place a call that nobody answers, and do not wait for as long as that takes."""
    answer = await here.client.post("/calls", json={"to": TO})
    call = here.phones.calls[answer.json()["call_sid"]]
    hung_up = await here.client.post(f"/calls/{call.sid}/hangup")
    assert hung_up.json()["hung_up"]
    await call.over.wait()
    return call, await here.record(call)


async def test_a_machine_gets_its_message_behind_the_beep() -> None:
    machine = Person(taken_for="machine_end_beep", detected_s=1.0)
    async with world([], machine) as here:
        call, record = await here.place(voicemail="Please call us back.")
    assert call.errors == []
    assert record["answered_by"] == "machine_end_beep"
    assert record["summary"]["outcome"] == "voicemail"
    assert record["summary"]["turns"][-1]["heard"] == "Please call us back."


async def test_a_machine_found_before_the_stream_hears_nothing_else() -> None:
    machine = Person(taken_for="machine_end_beep")
    async with world([], machine) as here:
        _, record = await here.place(voicemail="Call us.", machine_detection="before")
    assert [turn["heard"] for turn in record["summary"]["turns"]] == ["Call us."]


async def test_a_machine_without_a_message_for_it_is_hung_up_on() -> None:
    machine = Person(taken_for="machine_start", detected_s=0.5)
    async with world([], machine) as here:
        call, record = await here.place(machine_detection="during")
    assert call.recording.ended.by == "twilio"
    assert record["status"] == "completed"


async def test_a_person_is_not_taken_for_a_machine() -> None:
    async with world(["Good."], Person((says(),), detected_s=0.5)) as here:
        _, record = await here.place(voicemail="Never.")
    assert record["answered_by"] == "human"
    assert [turn["heard"] for turn in record["summary"]["turns"]] == ["Hello.", "Good."]


async def test_a_caller_is_put_through_and_the_colleague_knows_whom_they_get() -> None:
    async with world([PUTTING], Person((says(),)), Person(talks_s=0.1)) as here:
        call, record = await here.place()
    [colleague] = call.dialled
    assert (colleague.to, colleague.status) == (COLLEAGUE, "completed")
    assert colleague.said == ["Ada wants a refund."]
    assert call.recording.ended.by == "bot"
    assert call.errors == []
    assert record["summary"]["outcome"] == "transferred"


async def test_a_caller_whom_nobody_takes_is_back_with_the_bot_that_knows_it() -> None:
    replies: list[str | Reply] = [PUTTING, "I am sorry, nobody is there."]
    listener = Script(())
    async with world(replies, Person((says(), listener)), Person(does="busy")) as here:
        call, record = await here.place()
        requests = [chat.messages for chat in here.standins.groq.chats]
    assert [one.status for one in call.dialled] == ["busy"]
    assert len(call.recordings) == 2
    turns = [turn["heard"] for turn in record["summary"]["turns"]]
    assert turns == ["Hello.", "I am putting you through.", "I am sorry, nobody is there."]
    assert [turn["number"] for turn in record["summary"]["turns"]] == [0, 1, 2]
    assert "nobody took the call (busy)" in str(requests[-1])
    assert call.errors == []


async def test_a_caller_who_is_back_is_the_same_call_to_the_bot_file() -> None:
    events: list[Any] = []

    async def started(call: Call) -> None:
        events.append(("start", call.caller, call.number))
        call.state["starts"] = call.state.get("starts", 0) + 1
        call.variables["name"] = call.metadata["name"]

    async def turned(call: Call, turn: TurnRecord) -> None:
        events.append((turn.number, turn.heard, call.state["starts"]))

    async def ended(call: Call, summary: CallSummary) -> None:
        events.append(("end", summary.outcome.value))

    bot = Bot(
        greeting="Hello {{name}}.",
        variables={"name": ""},
        on_call_start=started,
        on_turn=turned,
        on_call_end=ended,
    )
    replies: list[str | Reply] = [PUTTING, "I am sorry, nobody is there."]
    async with world(
        replies, Person((says(), Script(()))), Person(does="busy"), bot=bot, VOICEBOT_GREETING=""
    ) as here:
        await here.place(metadata={"name": "Ada"})
    assert events == [
        ("start", TO, "+15550100123"),
        (0, "Hello Ada.", 1),
        (1, "I am putting you through.", 1),
        ("end", "transferred"),
        (2, "I am sorry, nobody is there.", 1),
        ("end", "hung_up"),
    ]


async def test_a_live_call_is_given_to_somebody_by_the_api() -> None:
    silent = Person((Script((), hang_up_after_s=20.0),))
    async with world([], silent, Person()) as here:
        answer = await here.client.post("/calls", json={"to": TO})
        call = here.phones.calls[answer.json()["call_sid"]]
        while not call.streaming:  # noqa: ASYNC110  # another program, as far as tests go
            await trio.sleep(0.02)
        done = await here.client.post(f"/calls/{call.sid}/redirect", json={"to": COLLEAGUE})
        assert done.status_code == 200
        await call.over.wait()
    assert [one.to for one in call.dialled] == [COLLEAGUE]
    assert call.recording.ended.by == "twilio"


async def test_the_command_shows_what_is_said() -> None:
    shown: list[str] = []
    async with world(["Nice to meet you."], Person((says(),))) as here:
        fields = {"to": TO, "metadata": {"name": "Ada"}}
        done = await call_command.call(
            here.server.settings, fields, here.server.url, True, shown.append
        )
    assert done == (0, "")
    [first, *rest] = shown
    assert first.startswith("queued CA")
    assert rest[-1] == "completed"
    talk = [line for line in rest if line.startswith("  ")]
    assert talk == ["  bot: Hello.", "  caller: hello", "  bot: Nice to meet you."]


async def test_the_command_says_what_the_server_refuses() -> None:
    async with world([]) as here:
        settings = load({**environment(here.standins), "VOICEBOT_API_KEY": API_KEY[::-1]})
        done = await call_command.call(settings, {"to": TO}, here.server.url, True, print)
    assert done[0] == 1
    assert "VOICEBOT_API_KEY" in done[1]


async def test_a_call_holds_what_it_may_cost_and_gives_back_what_it_has_not() -> None:
    async with world(["Good."], Person((says(),)), VOICEBOT_OUTBOUND__MINUTES_PER_DAY="63") as here:
        answer = await here.client.post("/calls", json={"to": TO})
        full = await here.client.post("/calls", json={"to": TO})
        call = here.phones.calls[answer.json()["call_sid"]]
        await call.over.wait()
        await here.server.wait_idle()
        _, record = await placed_later(here)
        costly = await here.client.post("/calls", json={"to": "+19005551234"})
        refused = (await here.client.get("/calls/refused")).json()["refused"]
    assert (full.status_code, full.json()["error"]["reason"]) == (429, "minutes_per_day")
    assert record["status"] == "completed"
    assert costly.status_code == 403
    assert (refused[0]["reason"], refused[-1]["reason"]) == ("premium", "minutes_per_day")
    assert len(here.phones.calls) == 2


async def placed_later(here: World) -> tuple[PhoneCall, dict[str, Any]]:
    """Place a call as soon as Twilio's word on the one before has come."""
    while True:
        answer = await here.client.post("/calls", json={"to": TO})
        if answer.status_code == 201:
            break
        await trio.sleep(0.05)
    call = here.phones.calls[answer.json()["call_sid"]]
    await call.over.wait()
    await here.server.wait_idle()
    return call, await here.record(call)


async def test_a_model_that_was_talked_into_it_dials_no_number_of_the_callers() -> None:
    talked_into = Reply(
        "I am putting you through.", (ToolCall("transfer", '{"to": "+19005551234"}'),)
    )
    async with world([talked_into, "I cannot do that."], Person((says(),))) as here:
        call, record = await here.place()
    assert call.dialled == []
    assert len(call.recordings) == 1
    assert record["summary"]["turns"][-1]["heard"].endswith("I cannot do that.")
