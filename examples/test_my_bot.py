"""How to test a bot of your own: whole calls in virtual time. See docs/testing.md.

pytest examples/test_my_bot.py
"""

from __future__ import annotations

from voicebot.plan import CallPlan
from voicebot.ports import ToolCall
from voicebot.record import Outcome
from voicebot.testing import (
    InterruptAfter,
    Network,
    Reply,
    Run,
    Script,
    ScriptedChat,
    ScriptedTool,
    caller_coughs,
    caller_says,
    hold,
    toy_ports,
)

BOT = CallPlan(prompt="You answer the phone of a barber.", greeting="Hello.")
HOURS = "We are open from nine to five, Monday to Friday, and on Saturday until noon."


def test_the_bot_stops_for_the_caller_and_the_model_knows_what_was_heard() -> None:
    chat = ScriptedChat([HOURS, "Sorry. What day?"])
    script = Script((caller_says("are you open"), caller_says("wait", InterruptAfter(1_000))))

    call = hold(script, toy_ports(chat=chat), BOT)

    assert call.verdict.passed  # silent in time, and no audio of the old answer afterwards
    heard = call.summary.turns[1].heard
    assert heard == call.words_heard_in(1)  # as the bot believes, so it came out of the phone
    assert HOURS.startswith(heard)
    assert heard != HOURS
    *_, answer, said = chat.requests[1].messages
    assert answer.content.startswith(f"{heard}… [interrupted by the caller")
    assert said.content == "wait"


def test_a_cough_does_not_lose_the_answer() -> None:
    script = Script((caller_says("are you open"), caller_coughs(InterruptAfter(1_000))))

    call = hold(script, toy_ports(chat=ScriptedChat([HOURS])), BOT)

    assert call.summary.turns[1].heard == HOURS
    assert call.summary.counts["resumes"] == 1


def test_a_booking_is_not_torn_by_an_interruption() -> None:
    book = ScriptedTool("book", [Run("booked for nine", seconds=2.0)], idempotent=False)
    chat = ScriptedChat(
        [Reply("One moment, please.", (ToolCall("1", "book", '{"day": "monday"}'),)), "It is done."]
    )
    script = Script((caller_says("book monday"), caller_says("hello", InterruptAfter(500))))

    call = hold(script, toy_ports(chat=chat, tools=[book.tool]), BOT)

    assert (book.started, book.finished, book.cancelled) == (1, 1, 0)
    assert [tool.result for tool in call.summary.turns[1].tools] == ["booked for nine"]
    assert "booked for nine" in [message.content for message in chat.requests[-1].messages]


def test_the_bot_does_not_hang_up_on_a_caller_who_goes_on() -> None:
    goodbye = Reply("Thank you for calling. Have a nice day.", (ToolCall("1", "hang_up", "{}"),))
    chat = ScriptedChat([goodbye, "Of course."])
    script = Script((caller_says("that is all"), caller_says("no wait", InterruptAfter(500))))

    call = hold(script, toy_ports(chat=chat), BOT)

    assert call.summary.turns[-1].heard == "Of course."
    assert call.summary.outcome is Outcome.HUNG_UP  # the caller, in the end


def test_a_call_over_a_bad_network_is_the_same_call_every_time() -> None:
    script = Script((caller_says("are you open"), caller_says("wait", InterruptAfter(1_000))))
    network = Network(delay_ms=40, jitter_ms=40, lost_marks=0.1, seed=3)

    calls = [
        hold(script, toy_ports(chat=ScriptedChat([HOURS])), BOT, network=network) for _ in range(2)
    ]

    assert calls[0].recording.happenings == calls[1].recording.happenings
    assert calls[0].heard_text == calls[1].heard_text
