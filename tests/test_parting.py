"""The bot ends its stream for something else, comes back, or leaves a message and goes."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from tests.fakes import FakeChat, FakeEar, FakeTwilio, plan, ports
from tests.test_goodbye import Carrier
from voicebot import parting
from voicebot.nursery import run_call
from voicebot.parting import Ending, Resumption, read_arguments
from voicebot.ports import Final, Message, Partial, ToolCall
from voicebot.record import CallSummary, Outcome
from voicebot.remote import Remote

Clock = trio.testing.MockClock

PEOPLE = {"sales": "+15550100777", "help": "+15550100778"}
TRANSFER = ToolCall("x", "transfer", '{"to": "sales", "summary": "Ada wants a refund."}')
LONG = "Thank you very much for your patience with us today. I am putting you through now."


async def call(
    replies: list[Any],
    says: list[str],
    voice: list[tuple[float, float]],
    *,
    resumption: Resumption | None = None,
    remote: Remote | None = None,
    leaves: list[tuple[float, str]] | None = None,
    **changes: Any,
) -> tuple[CallSummary, FakeTwilio, FakeChat, Carrier, list[tuple[Ending, int | None]]]:
    socket = FakeTwilio(voice=voice, stop_at=30.0)
    chat, carrier = FakeChat(replies), Carrier(socket)
    endings: list[tuple[Ending, int | None]] = []
    remote = remote or Remote()

    async def tell() -> None:
        for at, text in leaves or ():
            await trio.sleep_until(at)
            remote.leave_message(text)

    async def parting(ending: Ending) -> None:
        endings.append((ending, socket.closed))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tell)
        summary = await run_call(
            socket,
            ports(FakeEar(says), chat, hang_up=carrier.end),
            plan(people=PEOPLE, **{"may_send_digits": True, **changes}),
            resumption=resumption,
            on_parting=parting,
            remote=remote,
        )
        nursery.cancel_scope.cancel()
    return summary, socket, chat, carrier, endings


async def test_a_caller_is_put_through_once_they_have_heard_so(autojump_clock: Clock) -> None:
    summary, socket, _, carrier, endings = await call(
        [[LONG, TRANSFER]], ["a person please"], [(1.0, 2.0)]
    )
    [(ending, closed)] = endings
    assert summary.outcome is ending.outcome is Outcome.TRANSFERRED
    assert summary.turns[-1].heard == LONG
    assert closed is None  # Twilio asks what comes next when it is
    assert socket.closed == 1000
    assert carrier.ended == []  # the call goes on
    assert ending.arguments == {
        "to": PEOPLE["sales"], "who": "sales", "summary": "Ada wants a refund.",
    }  # fmt: skip
    roles = [message.role for message in ending.so_far.history]
    assert roles == ["user", "assistant", "tool"]
    back = ending.came_back("nobody", 60.0)
    assert back.history[2].content == "nobody"
    assert (back.turns, back.elapsed_s) == (1, summary.duration_s + 60.0)


async def test_who_objects_is_not_put_through(autojump_clock: Clock) -> None:
    summary, _, _, _, endings = await call(
        [[LONG, TRANSFER], "All right."], ["a person please", "no wait"], [(1.0, 2.0), (4.0, 5.0)]
    )
    assert endings == []
    assert summary.outcome is Outcome.HUNG_UP
    assert summary.turns[-1].heard == "All right."


async def test_a_model_that_says_nothing_does_not_leave_the_caller_in_silence(
    autojump_clock: Clock,
) -> None:
    summary, _, _, _, endings = await call([[TRANSFER], ""], ["a person please"], [(1.0, 2.0)])
    assert summary.turns[-1].heard == "I am putting you through."
    assert len(endings) == 1


@pytest.mark.parametrize(
    "wrong, said",
    [
        (ToolCall("x", "transfer", '{"to": "+15550100999"}'), "to must be one of: sales, help"),
        (ToolCall("x", "transfer", '{"summary": "x"}'), "to must be one of"),
        (ToolCall("x", "transfer", '{"to": "sales", "summary": 5}'), "summary must be text"),
        (ToolCall("x", "transfer", "{"), "not JSON"),
        (ToolCall("x", "transfer", "[]"), "must be a JSON object"),
        (ToolCall("x", "send_digits", '{"digits": "call mum"}'), "digits must be"),
        (ToolCall("x", "send_digits", '{"digits": 5}'), "digits must be"),
        (ToolCall("x", "send_digits", '{"digits": "1A"}'), "0-9, *, #, and w"),
        (ToolCall("x", "send_digits", '{"digits": "1W2"}'), "0-9, *, #, and w"),
        (ToolCall("x", "send_digits", '{"digits": "%s"}' % ("1" * 33)), "1 to 32"),
        (ToolCall("x", "send_digits", '{"digits": ""}'), "1 to 32"),
        (ToolCall("x", "send_digits", '{"digits": "1\\n"}'), "digits must be"),
        (ToolCall("x", "send_digits", '{"digits": "\u0661"}'), "digits must be"),
    ],
)
async def test_the_model_is_told_what_it_got_wrong(
    autojump_clock: Clock, wrong: ToolCall, said: str
) -> None:
    summary, _, chat, _, endings = await call([[wrong], "Sorry."], ["hello"], [(1.0, 2.0)])
    assert endings == []
    assert said in chat.requests[1][-1].content
    assert summary.turns[-1].heard == "Sorry."


async def test_keys_are_asked_for_and_the_call_goes_on_elsewhere(autojump_clock: Clock) -> None:
    keys = ToolCall("x", "send_digits", '{"digits": "ww1#"}')
    summary, _, _, carrier, [(ending, _)] = await call(
        [["One moment.", keys]], ["press one"], [(1.0, 2.0)]
    )
    assert summary.outcome is Outcome.PRESSING_KEYS
    assert ending.arguments == {"digits": "ww1#"}
    assert carrier.ended == []


# A caller has talked the model into something. What it asks for is a name, and never a number.
INJECTED = (
    '{"to": "+19005551234"}',
    '{"to": "+15550100777"}',  # also not where there is such a person
    '{"to": "sales, +19005551234"}',
    '{"to": "Sales"}',
    '{"to": "sales\\u0000"}',
    '{"to": ["sales"]}',
    '{"to": {"sales": "+19005551234"}}',
    '{"to": null}',
    '{"number": "+19005551234"}',
    '{"to": "</Number><Number>+19005551234"}',
)


@pytest.mark.parametrize("arguments", INJECTED)
async def test_a_model_that_was_talked_into_it_reaches_nobody_else(
    autojump_clock: Clock, arguments: str
) -> None:
    wrong = ToolCall("x", "transfer", arguments)
    summary, _, _, carrier, endings = await call(
        [["One moment.", wrong], "Sorry."], ["call my number"], [(1.0, 2.0)]
    )
    assert (endings, carrier.ended) == ([], [])
    assert summary.outcome is Outcome.HUNG_UP


def test_the_number_is_the_bot_files_whatever_else_the_model_writes() -> None:
    read = parting.transfer(PEOPLE, "").read
    given = {"to": "sales", "number": "+19005551234", "who": "+19005551234", "summary": "x"}
    assert read(given) == {"to": PEOPLE["sales"], "who": "sales", "summary": "x"}


async def test_only_keys_that_are_listed_are_pressed(autojump_clock: Clock) -> None:
    other = ToolCall("x", "send_digits", '{"digits": "900"}')
    listed = ToolCall("x", "send_digits", '{"digits": "ww2#"}')
    summary, _, chat, _, [(ending, _)] = await call(
        [["One moment.", other], ["Now.", listed]], ["press nine"], [(1.0, 2.0)],
        may_send_digits=("1", "ww2#"),
    )  # fmt: skip
    assert "digits must be one of: 1, ww2#" in chat.requests[1][-1].content
    assert summary.outcome is Outcome.PRESSING_KEYS
    assert ending.arguments == {"digits": "ww2#"}
    [tool] = [
        way.tool for way in plan(may_send_digits=("1", "ww2#")).partings if "send" in way.tool.name
    ]
    assert tool.parameters["properties"]["digits"]["enum"] == ["1", "ww2#"]


async def test_a_call_that_comes_back_goes_on_where_it_was(autojump_clock: Clock) -> None:
    history = (
        Message("user", "a person please"),
        Message("assistant", "One moment.", (ToolCall("call_1", "transfer", "{}"),)),
        Message("tool", "nobody took the call", tool_call_id="call_1"),
    )
    again = ToolCall("x", "transfer", '{"to": "help"}')
    summary, _, chat, _, [(ending, _)] = await call(
        ["Nobody is there.", ["I try the other.", again]],
        ["try again"],
        [(4.0, 5.0)],
        resumption=Resumption(history, 3, 100.0),
        greeting="Hello.",
    )
    assert [turn.heard for turn in summary.turns] == ["Nobody is there.", "I try the other."]
    assert tuple(chat.requests[0][1:]) == history
    assert ending.call_id == "call_2"  # not that of the first stream
    assert ending.came_back("done", 0.0).history[2].content == "nobody took the call"
    assert [turn.number for turn in summary.turns] == [3, 4]
    assert 100.0 <= summary.turns[0].began < 101.0
    assert summary.duration_s > 100.0


async def test_a_bot_that_may_do_none_of_it_is_offered_none_of_it(autojump_clock: Clock) -> None:
    _, _, chat, _, _ = await call(["Hello."], ["hello"], [(1.0, 2.0)])
    assert chat.offered[0] == ["hang_up", "transfer", "send_digits"]
    assert plan(may_hang_up=False).partings == ()


# A machine has answered.

MESSAGE = "This is the dentist. Please call us back."


async def test_a_message_is_left_whatever_is_being_said_and_the_call_ended(
    autojump_clock: Clock,
) -> None:
    summary, _, _, carrier, _ = await call(
        [], [], [(2.0, 6.0)], leaves=[(1.0, MESSAGE)], greeting=LONG
    )
    assert summary.outcome is Outcome.VOICEMAIL
    assert summary.turns[0].interrupted
    assert (summary.turns[-1].heard, summary.turns[-1].interrupted) == (MESSAGE, False)
    assert summary.counts.get("interruptions", 0) == 0  # a machine's noise is none
    assert len(carrier.ended) == 1
    assert len(summary.turns) == 2


async def test_a_machine_that_is_known_from_the_start_hears_the_message_only(
    autojump_clock: Clock,
) -> None:
    remote = Remote()
    remote.leave_message(MESSAGE)
    summary, _, _, _, _ = await call([], [], [], remote=remote, greeting="Hello.")
    assert [turn.heard for turn in summary.turns] == [MESSAGE]
    assert summary.outcome is Outcome.VOICEMAIL


@pytest.mark.parametrize("at", [0.5, 2.5, 3.5, 4.7, 6.0])
async def test_a_server_that_stops_has_its_calls_apologise_and_end(
    at: float, autojump_clock: Clock
) -> None:
    remote = Remote()

    async def stop() -> None:
        await trio.sleep(at)
        remote.stop()
        remote.stop()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stop)
        voice = [(3.0, 4.0)] if at > 3.0 else []  # and nobody speaks over the apology
        summary, socket, _, carrier, _ = await call(
            [LONG], ["tell me"], voice, remote=remote, greeting=LONG
        )
    assert summary.outcome is Outcome.SERVER_STOPPED
    assert (summary.turns[-1].heard, summary.turns[-1].interrupted) == (plan().stopping, False)
    assert len(carrier.ended) == 1
    assert socket.closed == 1000
    assert summary.duration_s < at + 6.0


async def test_a_call_that_comes_to_a_server_that_stops_hears_the_apology_only(
    autojump_clock: Clock,
) -> None:
    remote = Remote()
    remote.stop()
    summary, _, chat, _, _ = await call([], [], [], remote=remote, greeting="Hello.")
    assert [turn.heard for turn in summary.turns] == [plan().stopping]
    assert chat.requests == []


async def test_a_call_that_ends_already_goes_on_with_its_last_words(
    autojump_clock: Clock,
) -> None:
    remote = Remote()
    remote.leave_message(MESSAGE)

    async def stop() -> None:
        await trio.sleep(0.5)
        remote.stop()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stop)
        summary, *_ = await call([], [], [], remote=remote)
    assert [turn.heard for turn in summary.turns] == [MESSAGE]
    assert summary.outcome is Outcome.VOICEMAIL


async def test_what_a_machine_says_is_no_turn(autojump_clock: Clock) -> None:
    socket, ear, chat = FakeTwilio(stop_at=30.0), FakeEar([]), FakeChat([])
    remote = Remote()
    remote.leave_message(MESSAGE)

    async def announce() -> None:
        await trio.sleep(1.0)
        ear.push(Partial("the person you are calling"))
        ear.push(Final("the person you are calling is away", end_of_turn=True))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(announce)
        call = ports(ear, chat, endpointing="provider")
        summary = await run_call(socket, call, plan(), remote=remote)

    assert chat.requests == []
    assert [turn.heard for turn in summary.turns] == [MESSAGE]
    assert summary.outcome is Outcome.VOICEMAIL


def test_arguments_are_an_object() -> None:
    assert read_arguments("") == {}
    assert read_arguments('{"a": 1}') == {"a": 1}
    assert parting.transfer({"sales": "+1"}, "").read({}) == {
        "to": "+1", "who": "sales", "summary": "",
    }  # fmt: skip
