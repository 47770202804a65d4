"""Tools in a call: who runs them, what an interruption does to them, what the model is told."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from tests.fakes import FakeChat, FakeEar, FakeTool, FakeTwilio, plan, ports
from voicebot import dialog, parting, toolbox, twilio
from voicebot.context import tokens_of
from voicebot.nursery import run_call
from voicebot.plan import Timeouts
from voicebot.ports import Message, Tool, ToolCall
from voicebot.record import CallSummary, Outcome
from voicebot.testing import run_seeded

Clock = trio.testing.MockClock

# The caller speaks from 1 to 2 s; the answer's first words are there at 2.65 s.
BOOK = ToolCall("x", "book", '{"n": 1}')


async def call(
    replies: Sequence[str | Sequence[str | ToolCall]],
    *tools: FakeTool,
    voice: list[tuple[float, float]] | None = None,
    says: list[str] | None = None,
    stop_at: float = 12.0,
    **changes: Any,
) -> tuple[CallSummary, FakeTwilio, FakeChat]:
    """Run a call whose caller asks at 1 s, and maybe speaks again."""
    socket = FakeTwilio(voice=voice or [(1.0, 2.0)], stop_at=stop_at)
    chat = FakeChat(replies)
    offered = tuple(tool.tool() for tool in tools)
    summary = await run_call(
        socket, ports(FakeEar(says or ["book it"]), chat, tools=offered), plan(**changes)
    )
    return summary, socket, chat


def shown(messages: list[Message]) -> list[tuple[str, str]]:
    """Return what a model is shown, without the prompt."""
    return [(message.role, message.content) for message in messages[1:]]


async def test_a_tool_runs_while_what_was_said_before_it_is_spoken(autojump_clock: Clock) -> None:
    tool = FakeTool(takes=3.0)

    summary, socket, chat = await call([["One moment.", BOOK], "It is booked."], tool)

    assert tool.started == [{"n": 1}]
    assert chat.offered == [["hang_up", "book"]] * 2
    assert shown(chat.requests[1]) == [
        ("user", "book it"),
        ("assistant", "One moment."),
        ("tool", "done 1"),
    ]
    [asked, answer] = chat.requests[1][2:]
    assert [asked_call.id for asked_call in asked.tool_calls] == [answer.tool_call_id]
    [turn] = summary.turns
    assert turn.heard == "One moment. It is booked."
    [record] = turn.tools
    assert (record.name, record.arguments, record.result) == ("book", {"n": 1}, "done 1")
    assert record.ended is not None
    assert record.ended == pytest.approx(record.began + 3.0, abs=0.001)
    # It was audible long before the tool had finished.
    assert socket.times(twilio.SendMedia)[0] < record.ended - 2.5


async def test_what_is_said_between_tool_calls_stands_between_them(autojump_clock: Clock) -> None:
    again = ToolCall("x", "book", '{"n": 2}')

    summary, _, chat = await call(
        [["One moment.", BOOK], ["One more.", again], "Done."], FakeTool(takes=0.2)
    )

    assert shown(chat.requests[2]) == [
        ("user", "book it"),
        ("assistant", "One moment."),
        ("tool", "done 1"),
        ("assistant", "One more."),
        ("tool", "done 2"),
    ]
    assert summary.turns[0].heard == "One moment. One more. Done."


async def test_several_tools_of_one_answer_run_at_the_same_time(autojump_clock: Clock) -> None:
    tools = FakeTool("one", takes=2.0), FakeTool("two", takes=2.0)
    calls: list[str | ToolCall] = [ToolCall("", "one", ""), ToolCall("", "two", "{}")]

    summary, _, chat = await call([calls, "Done."], *tools)

    [one, two] = summary.turns[0].tools
    assert one.began == two.began
    assert [text for role, text in shown(chat.requests[1]) if role == "tool"] == ["done 1"] * 2


@pytest.mark.parametrize(
    "asked, told",
    [
        (ToolCall("x", "nothing", "{}"), "there is no tool named nothing"),
        (ToolCall("x", "book", "{"), "the arguments are not JSON"),
        (ToolCall("x", "book", "[" * 100_000), "the arguments are not JSON"),
        (ToolCall("x", "book", "[1]"), "the arguments must be a JSON object"),
    ],
)
async def test_what_the_model_gets_wrong_is_told_to_the_model(
    asked: ToolCall, told: str, autojump_clock: Clock
) -> None:
    tool = FakeTool()

    summary, _, chat = await call([[asked], "Sorry, I cannot."], tool)

    assert chat.requests[1][-1].content.startswith(told)
    assert tool.started == []
    assert summary.turns[0].heard == "Sorry, I cannot."


async def test_a_tool_that_fails_is_an_answer_to_the_model(autojump_clock: Clock) -> None:
    summary, _, chat = await call(
        [[BOOK], "It is full."], FakeTool(raises=ValueError("no table left"))
    )

    assert chat.requests[1][-1].content == "failed: no table left"
    assert summary.counts["tool_failures"] == 1
    assert summary.turns[0].heard == "It is full."


@pytest.mark.parametrize("idempotent", [True, False])
async def test_a_tool_that_takes_too_long_is_broken_off(
    idempotent: bool, autojump_clock: Clock
) -> None:
    tool = FakeTool(takes=math.inf, timeout_s=2.0, idempotent=idempotent)

    summary, _, chat = await call([[BOOK], "It does not work."], tool)

    assert chat.requests[1][-1].content == toolbox.TOO_LATE
    assert summary.turns[0].tools[0].ended == pytest.approx(4.65, abs=0.1)
    assert summary.turns[0].heard == "It does not work."


async def test_a_long_result_is_cut_for_the_model(autojump_clock: Clock) -> None:
    async def talk(arguments: object) -> str:
        await trio.lowlevel.checkpoint()
        return "x" * 100_000

    chat = FakeChat([[BOOK], "Done."])
    tool = replace(FakeTool().tool(), run=talk)
    await run_call(
        FakeTwilio(voice=[(1.0, 2.0)], stop_at=6.0),
        ports(FakeEar(["book it"]), chat, tools=(tool,)),
        plan(),
    )
    shown = chat.requests[1][-1].content
    assert dialog.MAX_RESULT_TOKENS - 2 <= tokens_of(shown) <= dialog.MAX_RESULT_TOKENS


async def test_a_model_that_asks_for_tools_for_ever_must_answer(autojump_clock: Clock) -> None:
    summary, _, chat = await call([[BOOK]] * 5 + ["Done."], FakeTool(takes=0.1))

    assert chat.offered == [["hang_up", "book"]] * 5 + [[]]
    assert summary.turns[0].heard == "Done."


async def test_a_model_that_asks_although_no_tool_is_offered_apologises(
    autojump_clock: Clock,
) -> None:
    tool = FakeTool(takes=0.1)

    summary, _, chat = await call([[BOOK]] * 6, tool, apology="Sorry.")

    assert chat.offered[-1] == []
    assert summary.turns[0].heard == "Sorry."


async def test_hang_up_is_not_to_be_run_as_a_tool() -> None:
    with pytest.raises(AssertionError, match="ends itself"):
        await parting.hang_up("").tool.run({})


# Interruptions.


async def test_barge_in_in_an_idempotent_tool_breaks_it_off_and_is_answered(
    autojump_clock: Clock,
) -> None:
    tool = FakeTool(takes=5.0)

    summary, socket, chat = await call(
        [[BOOK], "Sorry."], tool, voice=[(1.0, 2.0), (4.0, 5.0)], says=["book it", "no stop"]
    )

    assert (tool.cancelled, tool.finished) == (1, 0)
    assert socket.times(twilio.SendClear) == []  # nothing was audible
    assert shown(chat.requests[1]) == [
        ("user", "book it"),
        ("assistant", ""),
        ("tool", toolbox.BROKEN_OFF),
        ("user", "no stop"),
    ]
    assert [turn.heard for turn in summary.turns] == ["", "Sorry."]
    assert summary.turns[0].tools[0].result == toolbox.BROKEN_OFF


async def test_barge_in_in_a_tool_that_must_not_be_torn_lets_it_finish_and_answers_at_once(
    autojump_clock: Clock,
) -> None:
    tool = FakeTool(takes=8.0, idempotent=False)

    summary, _, chat = await call(
        [["One moment.", BOOK], "Still at it.", "Done."],
        tool,
        voice=[(1.0, 2.0), (4.5, 5.5), (12.0, 13.0)],
        says=["book it", "and hurry", "well"],
        stop_at=17.0,
    )

    assert (len(tool.started), tool.finished, tool.cancelled) == (1, 1, 0)
    # Its result was not there in time for the answer, and stands in its place afterwards.
    assert (
        shown(chat.requests[1])[:3]
        == [*shown(chat.requests[2])[:2], ("tool", dialog.PENDING)]
        == [
            ("user", "book it"),
            ("assistant", 'One moment.… [interrupted by the caller after: "One moment."]'),
            ("tool", dialog.PENDING),
        ]
    )
    assert shown(chat.requests[2])[2] == ("tool", "done 1")
    assert [turn.heard for turn in summary.turns] == ["One moment.", "Still at it.", "Done."]
    assert summary.turns[1].began < 6.3
    assert summary.turns[0].tools[0].result == "done 1"


async def test_a_result_that_is_almost_there_is_waited_for(autojump_clock: Clock) -> None:
    tool = FakeTool(takes=4.5, idempotent=False)  # until 7.2 s; the caller has ended at 6.1 s

    _, _, chat = await call(
        [[BOOK], "Done."], tool, voice=[(1.0, 2.0), (4.5, 5.5)], says=["book it", "and hurry"]
    )

    assert shown(chat.requests[1])[2] == ("tool", "done 1")


async def test_several_tools_that_must_not_be_torn_are_waited_for_once(
    autojump_clock: Clock,
) -> None:
    book = FakeTool(takes=20.0, idempotent=False)
    pay = FakeTool("pay", takes=20.0, idempotent=False)

    summary, _, _ = await call(
        [["One moment.", BOOK, ToolCall("y", "pay", "{}")], "Still at it."],
        book,
        pay,
        voice=[(1.0, 2.0), (4.5, 5.5)],
        says=["book it", "and hurry"],
        stop_at=17.0,
    )

    assert [len(book.started), len(pay.started)] == [1, 1]
    assert summary.turns[1].heard == "Still at it."
    assert summary.turns[1].first_text is not None
    waited = summary.turns[1].first_text - summary.turns[1].began
    assert waited == pytest.approx(Timeouts().tool_patience_s + 0.1, abs=0.05)


@pytest.mark.parametrize("takes", [8.0, 1.0])
async def test_the_same_request_after_an_interruption_does_not_run_it_twice(
    takes: float, autojump_clock: Clock
) -> None:
    """Whether it still runs or has finished: the caller has not heard of it yet."""
    tool = FakeTool(takes=takes, idempotent=False)

    summary, _, chat = await call(
        [[BOOK], "It will", [BOOK], "It is booked."] if takes < 2 else [[BOOK], [BOOK], "Booked."],
        tool,
        voice=[(1.0, 2.0), (3.75, 4.75)],
        says=["book it", "and hurry"],
        stop_at=16.0,
    )

    assert len(tool.started) == 1
    assert tool.finished == 1
    results = [text for role, text in shown(chat.requests[-1]) if role == "tool"]
    assert results == ["done 1", "done 1"]
    assert "ooked" in summary.turns[-1].heard


@pytest.mark.parametrize("again", ['{"n": 1, "m": 2}', '{"m":2,"n":1}'])
async def test_twice_in_one_answer_is_one_request(again: str, autojump_clock: Clock) -> None:
    tool = FakeTool(idempotent=False)
    calls = [ToolCall("x", "book", '{"n": 1, "m": 2}'), ToolCall("y", "book", again)]

    _, _, chat = await call([calls, "Done."], tool)

    assert len(tool.started) == 1
    assert [text for role, text in shown(chat.requests[1]) if role == "tool"] == ["done 1"] * 2


async def test_the_same_request_while_it_still_runs_does_not_run_it_twice(
    autojump_clock: Clock,
) -> None:
    """Although a reply was heard to its end meanwhile: it could not tell the outcome."""
    tool = FakeTool(takes=14.0, idempotent=False, timeout_s=20.0)

    summary, _, chat = await call(
        [[BOOK], "Still at it.", [BOOK], "It is booked."],
        tool,
        voice=[(1.0, 2.0), (4.5, 5.5), (10.0, 11.0)],
        says=["book it", "and hurry", "well book it"],
        stop_at=22.0,
    )

    assert [turn.heard for turn in summary.turns] == ["", "Still at it.", "It is booked."]
    assert (len(tool.started), tool.finished) == (1, 1)
    assert [text for role, text in shown(chat.requests[-1]) if role == "tool"] == ["done 1"] * 2


async def test_asked_again_after_its_outcome_was_heard_it_runs_again(autojump_clock: Clock) -> None:
    tool = FakeTool(idempotent=False)

    await call(
        [[BOOK], "Booked.", [BOOK], "Booked again."],
        tool,
        voice=[(1.0, 2.0), (6.0, 7.0)],
        says=["book it", "another one"],
        stop_at=14.0,
    )

    assert tool.finished == 2


async def test_a_cough_in_a_tool_touches_nothing(autojump_clock: Clock) -> None:
    tool = FakeTool(takes=4.0)

    summary, _, _ = await call(
        [[BOOK], "Booked."], tool, voice=[(1.0, 2.0), (4.0, 4.2)], says=["book it", ""]
    )

    assert (tool.finished, tool.cancelled) == (1, 0)
    assert summary.turns[0].heard == "Booked."


async def test_barge_in_while_a_tool_ignores_its_cancellation_is_not_delayed(
    autojump_clock: Clock,
) -> None:
    tool = FakeTool(takes=6.0, deaf=5.0)
    words = "One two three four five six seven eight nine ten eleven twelve."

    summary, socket, _ = await call(
        [[words, BOOK], "Sorry."], tool, voice=[(1.0, 2.0), (4.0, 5.0)], says=["go", "no stop"]
    )

    assert socket.times(twilio.SendClear) == [pytest.approx(4.06, abs=0.025)]
    assert summary.turns[1].heard == "Sorry."
    assert summary.turns[1].began < 6.0


async def test_barge_in_while_a_thread_cannot_be_interrupted_is_not_delayed() -> None:
    """In real time, and without a look at the clock: the thread ends only after the clear."""
    cleared = threading.Event()
    socket = FakeTwilio(voice=[(0.1, 0.3), (1.3, 2.0)], stop_at=3.5)

    async def watch(message: twilio.Outbound) -> None:
        await trio.lowlevel.checkpoint()
        if isinstance(message, twilio.SendClear):
            cleared.set()

    async def block(arguments: object) -> str:
        await trio.to_thread.run_sync(cleared.wait, 20.0)
        return "done"

    socket.send_gate = watch
    tool = Tool("book", "Book it.", {"type": "object", "properties": {}}, block)
    # The tool returns while the interruption is still in doubt, so the model is asked once more.
    chat = FakeChat([["One two three four five six seven eight.", BOOK], "Done.", "Sorry."])

    with trio.fail_after(20):
        summary = await run_call(
            socket, ports(FakeEar(["go", "no stop"]), chat, tools=(tool,)), plan()
        )

    assert len(socket.times(twilio.SendClear)) == 1
    assert summary.turns[1].heard == "Sorry."


async def test_a_tool_that_must_not_be_torn_has_a_grace_at_the_end_of_the_call(
    autojump_clock: Clock,
) -> None:
    before = trio.lowlevel.current_statistics().tasks_living
    quick, slow = FakeTool(takes=2.0, idempotent=False), FakeTool("slow", 60.0, idempotent=False)
    slow.timeout_s = 90.0

    summary, _, _ = await call(
        [[BOOK, ToolCall("y", "slow", "{}")], "Done."], quick, slow, stop_at=4.0
    )

    assert (quick.finished, slow.finished, slow.cancelled) == (1, 0, 1)
    assert [record.result for record in summary.turns[0].tools] == ["done 1", toolbox.TOO_LATE]
    assert trio.current_time() == pytest.approx(4.0 + Timeouts().tool_grace_s, abs=0.03)
    assert trio.lowlevel.current_statistics().tasks_living == before


async def test_an_idempotent_tool_ends_with_the_call_and_is_on_record(
    autojump_clock: Clock,
) -> None:
    summary, _, _ = await call([[BOOK], "Done."], FakeTool(takes=9.0), stop_at=4.0)

    assert trio.current_time() == pytest.approx(4.0, abs=0.03)
    assert summary.outcome is Outcome.HUNG_UP
    assert summary.turns[0].tools[0].result == toolbox.BROKEN_OFF


@pytest.mark.parametrize("seed", range(8))
def test_a_tool_that_must_not_be_torn_does_not_start_while_the_caller_may_say_stop(
    seed: int,
) -> None:
    """The model asks for it while an interruption is in doubt that is then meant.

    Who is first when the verdict is there goes by the seed: the tool or the end of the turn.
    """
    tool = FakeTool(idempotent=False)

    _, _, chat = run_seeded(
        seed,
        partial(
            call,
            [["One two three four five six seven eight nine ten. " * 3, BOOK], "Sorry."],
            tool,
            voice=[(1.0, 2.0), (2.55, 3.5)],
            says=["go", "no stop"],
        ),
    )

    assert tool.started == []
    assert shown(chat.requests[1])[2] == ("tool", toolbox.NOT_STARTED)


async def test_a_tool_that_was_not_started_runs_when_it_is_asked_for_again(
    autojump_clock: Clock,
) -> None:
    tool = FakeTool(idempotent=False)

    summary, _, chat = await call(
        [["One two three four five six seven eight nine ten. " * 3, BOOK], [BOOK], "Booked."],
        tool,
        voice=[(1.0, 2.0), (2.55, 3.5)],
        says=["go", "no wait do book it"],
    )

    assert len(tool.started) == 1
    results = [text for role, text in shown(chat.requests[-1]) if role == "tool"]
    assert results == [toolbox.NOT_STARTED, "done 1"]
    assert summary.turns[-1].heard == "Booked."
