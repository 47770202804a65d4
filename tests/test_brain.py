"""The scripted receptionist: whole conversations, and how they are streamed."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock

from voicebot import ports
from voicebot.brain.receptionist import ScriptedBrain, reply_to
from voicebot.config import DEFAULT_GREETING, DEFAULT_PROMPT
from voicebot.ports import Message, Tool, ToolCall

SUNDAY = datetime.date(2026, 11, 22)
BEGINNING = (Message("system", DEFAULT_PROMPT), Message("assistant", DEFAULT_GREETING))


def converse(*said: str) -> list[str]:
    """Return the bot's answers to a caller who says these things, one by one."""
    messages = list(BEGINNING)
    replies = []
    for words in said:
        messages.append(Message("user", words))
        replies.append(reply_to(messages, SUNDAY))
        messages.append(Message("assistant", replies[-1]))
    return replies


def test_a_table_is_booked_slot_by_slot_and_confirmed_with_a_concrete_date() -> None:
    assert converse(
        "Hi, I'd like to book a table.",
        "Saturday",
        "730.",
        "For.",
        "Yes, please.",
    ) == [
        "Gladly. For which day would you like the table?",
        "At what time would you like to come?",
        "For how many guests?",
        "So, a table for four on Saturday, November 28th, at 7:30 in the evening. Is that right?",
        "Done, I have noted a table for four on Saturday, November 28th, at 7:30 in the evening. "
        "Anything else?",
    ]


def test_a_table_is_booked_in_one_sentence() -> None:
    (reply,) = converse("A table for two on the 5th of December at eight.")

    assert reply == (
        "Gladly. So, a table for two on Saturday, December 5th, at 8 in the evening. Is that right?"
    )


def test_a_correction_changes_one_slot() -> None:
    *_, reply = converse("A table for two on Tuesday at eight.", "No, at nine.")

    assert reply.startswith("So, a table for two on Tuesday, November 24th, at 9 in the evening.")


def test_a_slot_can_be_changed_by_its_name() -> None:
    *_, asked, changed = converse(
        "A table for two on Tuesday at eight.", "No.", "The time.", "Half past six."
    )

    assert asked == "At what time would you like to come?"
    assert changed.startswith("So, a table for two on Tuesday, November 24th, at 6:30")


def test_a_closed_day_and_a_closed_hour_are_refused_and_the_rest_is_kept() -> None:
    closed_day, closed_hour, confirmed = converse(
        "A table for two on Monday at eleven a.m.", "Tuesday at eleven a.m.", "noon"
    )

    assert closed_day == "On Mondays we are closed. Which other day would suit you?"
    assert closed_hour.endswith("What time would suit you?")
    assert confirmed.startswith("So, a table for two on Tuesday, November 24th, at noon.")


def test_a_month_is_completed_by_a_day() -> None:
    *_, reply = converse("December", "the fifth", "seven", "two")

    assert "Saturday, December 5th, at 7 in the evening" in reply


def test_a_question_in_the_middle_of_a_booking_does_not_end_it() -> None:
    *_, aside, following = converse("A table for two on Tuesday.", "Where are you?", "at seven")

    assert aside.endswith("At what time would you like to come?")
    assert following.startswith("So, a table for two on Tuesday")


def test_a_booking_is_cancelled() -> None:
    *_, cancelled, fresh = converse(
        "A table for two on Tuesday.", "Never mind.", "A table for three."
    )

    assert cancelled == "All right, I have cancelled that. Anything else?"
    assert fresh == "Gladly. For which day would you like the table?"


def test_a_day_alone_is_answered_with_its_hours_and_an_offer() -> None:
    hours, booking = converse("Tuesday", "Yes")

    assert hours.startswith("On Tuesday, November 24th, we are open from noon to ten")
    assert booking == "Gladly. At what time would you like to come?"


def test_an_offer_can_be_declined() -> None:
    *_, reply = converse("Tuesday", "No thanks.")

    assert reply == "All right. Is there anything else I can do for you?"


@pytest.mark.parametrize(
    "said, answer",
    [
        ("What are your opening hours?", "We are open Tuesday to Sunday"),
        ("Are you open on Monday?", "On Mondays we are closed."),
        ("Where are you?", "You will find us at"),
        ("What is on the menu?", "We cook fresh pasta"),
        ("I want to talk to a human.", "I understand that you would like to speak to a person."),
        ("Are you a machine?", "I am an automated assistant"),
        ("Help!", "I can tell you"),
        ("Thank you.", "You are welcome."),
        ("Goodbye.", "Thank you for calling"),
        ("Hold on.", "Of course, take your time."),
        ("", "Sorry, I did not hear anything."),
        ("Seven.", "I heard Seven."),
        ("Weasels have eaten our phones.", "I heard: Weasels have eaten our phones."),
    ],
)
def test_answer(said: str, answer: str) -> None:
    assert converse(said)[0].startswith(answer)


def test_a_transfer_is_not_promised() -> None:
    assert "I cannot transfer calls yet" in converse("Operator!")[0]


def test_a_story_takes_a_minute_to_tell() -> None:
    # The embedded voice speaks 19 characters a second.
    assert len(converse("Tell me a long story.")[0]) > 60 * 19


def test_repeat_says_the_whole_last_reply_again_even_if_it_was_cut() -> None:
    messages = [
        *BEGINNING,
        Message("user", "Where are you?"),
        Message("assistant", 'You will… [interrupted by the caller after: "You will"]'),
        Message("user", "Sorry, what did you say?"),
    ]

    assert reply_to(messages, SUNDAY).startswith("You will find us at 14 Harbour Street")


def test_go_on_continues_with_the_sentence_that_was_interrupted() -> None:
    story = converse("Tell me a story.")[0]
    heard = story[: story.index("One night in November") + len("One night in November there was")]
    messages = [
        *BEGINNING,
        Message("user", "Tell me a story."),
        Message("assistant", f'{heard}… [interrupted by the caller after: "there was"]'),
        Message("user", "Go on."),
    ]

    assert reply_to(messages, SUNDAY) == story[story.index("One night in November") :]


def test_a_cut_assistant_message_does_not_change_what_was_booked() -> None:
    messages = [
        *BEGINNING,
        Message("user", "A table for two on Tuesday."),
        Message("assistant", 'At… [interrupted by the caller after: "At"]'),
        Message("user", "Seven."),
    ]

    assert "a table for two on Tuesday, November 24th, at 7" in reply_to(messages, SUNDAY)


def test_before_anyone_spoke_the_greeting_is_the_answer() -> None:
    assert reply_to(BEGINNING, SUNDAY) == DEFAULT_GREETING


@pytest.mark.parametrize("spoken", ["At what time would you like to come?", ""])
def test_calls_and_their_results_do_not_disturb_what_was_booked(spoken: str) -> None:
    call = ToolCall("c0", "hours", "{}")
    messages = [
        *BEGINNING,
        Message("user", "A table for two on Tuesday."),
        Message("assistant", spoken, (call,)),
        Message("tool", "No, cancel that. Goodbye!", tool_call_id="c0"),
        Message("user", "Seven."),
    ]

    assert "a table for two on Tuesday, November 24th, at 7" in reply_to(messages, SUNDAY)


def test_a_call_without_words_does_not_change_what_was_heard() -> None:
    story, heard = converse("Tell me a story.")[0], "Gladly. A long time"
    messages = [
        *BEGINNING,
        Message("user", "Tell me a story."),
        Message("assistant", heard),
        Message("assistant", "", (ToolCall("c0", "hours", "{}"),)),
        Message("tool", "noon", tool_call_id="c0"),
        Message("user", "Go on."),
    ]

    assert reply_to(messages, SUNDAY) == story.removeprefix("Gladly. ")


async def stream(
    chat: ports.Chat, messages: Sequence[Message], tools: Sequence[Tool] = ()
) -> list[tuple[float, str | ToolCall]]:
    began = trio.current_time()
    async with chat.open_reply(messages, tools) as parts:
        return [(trio.current_time() - began, part) async for part in parts]


async def say(
    brain: ScriptedBrain, messages: Sequence[Message], *offered: str
) -> tuple[str, list[ToolCall]]:
    """Return the words of an answer and the calls after them."""

    async def run(arguments: object) -> str:
        pytest.fail("the brain runs no tool")

    tools = [Tool(name, "", {"type": "object"}, run) for name in offered]
    parts = [part for _, part in await stream(brain, messages, tools)]
    words = [part for part in parts if isinstance(part, str)]
    calls = [part for part in parts if isinstance(part, ToolCall)]
    assert parts == [*words, *calls]
    return "".join(words), calls


async def test_the_call_is_hung_up_after_the_words_of_a_goodbye(autojump_clock: MockClock) -> None:
    brain = ScriptedBrain(today=lambda: SUNDAY)
    messages = [*BEGINNING, Message("user", "No, that's all. Bye!")]

    words, (call,) = await say(brain, messages, "weather", "hang_up")
    assert words == "Thank you for calling Trattoria Aurora. Goodbye!"
    assert (call.name, call.arguments) == ("hang_up", "{}")

    messages += [Message("assistant", words, (call,)), Message("tool", "", tool_call_id=call.id)]
    assert await say(brain, messages, "hang_up") == ("", [])

    messages.append(Message("user", "Bye!"))
    assert (await say(brain, messages, "hang_up"))[1][0].id != call.id


@pytest.mark.parametrize(
    "said, offered",
    [("Bye!", []), ("Bye!", ["weather"]), ("Thank you.", ["hang_up"]), ("What?", ["hang_up"])],
)
async def test_nothing_else_hangs_up(
    said: str, offered: list[str], autojump_clock: MockClock
) -> None:
    messages = [*BEGINNING, Message("user", "Bye!"), Message("user", said)]

    words, calls = await say(ScriptedBrain(today=lambda: SUNDAY), messages, *offered)

    assert words
    assert not calls


async def test_a_greeting_hangs_up_nothing(autojump_clock: MockClock) -> None:
    words, calls = await say(ScriptedBrain(today=lambda: SUNDAY), BEGINNING, "hang_up")

    assert (words, calls) == (DEFAULT_GREETING, [])


async def test_words_are_streamed_at_the_given_pace(autojump_clock: MockClock) -> None:
    brain = ScriptedBrain(words_per_second=10, first_delay_s=0.5, today=lambda: SUNDAY)

    streamed = await stream(brain, [*BEGINNING, Message("user", "Thank you.")])

    assert [word for _, word in streamed] == [
        "You ", "are ", "welcome. ", "Is ", "there ", "anything ", "else?",
    ]  # fmt: skip  # one word a line would hide the sentence
    assert [round(at, 3) for at, _ in streamed] == [0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1]


async def test_a_reply_can_be_left_at_any_word(autojump_clock: MockClock) -> None:
    brain = ScriptedBrain(today=lambda: SUNDAY)

    async with brain.open_reply([*BEGINNING, Message("user", "A story!")]) as words:
        async for word in words:
            assert word == "Gladly. "
            break


async def test_the_day_of_today_is_asked_for_at_each_reply(autojump_clock: MockClock) -> None:
    days = iter([SUNDAY, SUNDAY + datetime.timedelta(days=2)])
    brain = ScriptedBrain(today=lambda: next(days))
    messages = [*BEGINNING, Message("user", "Tomorrow.")]

    monday, _ = await say(brain, messages)
    wednesday, _ = await say(brain, messages)

    assert monday.startswith("On Mondays we are closed.")
    assert wednesday.startswith("On Wednesday, November 25th")
