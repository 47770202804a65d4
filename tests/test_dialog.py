"""The conversation as the model is shown it."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from voicebot.context import MARK, REQUEST_TOKENS, message_tokens, tokens_of, tool_tokens
from voicebot.dialog import MAX_RESULT_TOKENS, PENDING, Dialog
from voicebot.ports import Message, Tool, ToolCall


async def run(arguments: object) -> str:
    raise AssertionError("a dialog runs no tool")


TOOL = Tool("hours", "Opening hours. " * 20, {"type": "object"}, run)


def said(dialog: Dialog) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in dialog.messages()[1:]]


def test_the_prompt_comes_first() -> None:
    assert [(m.role, m.content) for m in Dialog("be brief").messages()] == [("system", "be brief")]


def test_a_reply_heard_whole_is_kept_whole() -> None:
    dialog = Dialog("")
    dialog.caller_said("hi")
    dialog.bot_said("Hello there.", interrupted=False)
    assert said(dialog) == [("user", "hi"), ("assistant", "Hello there.")]


def test_an_interrupted_reply_ends_at_the_heard_word_and_says_so() -> None:
    dialog = Dialog("")
    dialog.bot_said("we are open on every day", interrupted=True)
    assert said(dialog) == [
        (
            "assistant",
            'we are open on every day… [interrupted by the caller after: "open on every day"]',
        )
    ]


def test_a_reply_nobody_heard_leaves_no_message_and_joins_the_callers_words() -> None:
    dialog = Dialog("")
    dialog.caller_said("a table")
    dialog.bot_said("", interrupted=True)
    dialog.caller_said("for two")
    assert said(dialog) == [("user", "a table for two")]


def talk(dialog: Dialog, turns: int, words: str = "abc " * 25) -> None:
    for n in range(turns):
        dialog.caller_said(f"{n:03} {words}")
        dialog.bot_said(words, interrupted=False)


def cost(messages: list[Message]) -> int:
    return sum(map(message_tokens, messages))


def test_the_oldest_messages_go_first_but_never_the_prompt_or_the_newest() -> None:
    dialog = Dialog("prompt", tokens=1_000)
    talk(dialog, 50)
    dialog.caller_said("and now?")

    messages = dialog.messages()

    assert messages[0] == Message("system", "prompt")
    assert messages[-1] == Message("user", "and now?")
    assert 600 < cost(messages) <= 1_000 - REQUEST_TOKENS
    (before,) = [n for n, message in enumerate(messages) if message.content.startswith("049")]
    assert before == len(messages) - 3


def test_prompt_and_tools_take_their_part() -> None:
    tools = [TOOL] * 5
    dialog = Dialog("long prompt " * 50, tools, 2_000)
    talk(dialog, 50)

    fixed = REQUEST_TOKENS + sum(map(tool_tokens, tools))
    assert fixed > 600
    assert 1_700 < fixed + cost(dialog.messages()) <= 2_000


def test_a_prompt_that_takes_everything_leaves_a_quarter_for_the_conversation() -> None:
    prompt = "long prompt " * 1_000
    dialog = Dialog(prompt, tokens=2_000)
    talk(dialog, 50)

    system, *rest = dialog.messages()

    assert system.content == prompt
    assert 300 < cost(rest) <= 500


@given(st.lists(st.sampled_from(["user", "tool", "bot"])), st.integers(0, 3_000))
def test_whatever_happens_prompt_and_newest_words_stay_and_no_call_is_torn(
    steps: list[str], tokens: int
) -> None:
    dialog = Dialog("prompt", [TOOL], tokens)
    said_last = ""
    for n, step in enumerate(steps):
        match step:
            case "user":
                said_last = f"{n} abc"
                dialog.caller_said(said_last)
            case "tool":
                dialog.tools_called("w" * 300, [ToolCall(f"c{n}", "hours", "{}")])
                dialog.tool_returned(f"c{n}", "r" * 3_000)
            case _:
                dialog.bot_said("w" * 500, interrupted=False)

    messages = dialog.messages()

    assert messages[0] == Message("system", "prompt")
    last = next((m.content for m in reversed(messages) if m.role == "user"), "")
    assert last.endswith(said_last)
    for n, message in enumerate(messages):
        if message.role == "tool":
            assert messages[n - 1].tool_calls[0].id == message.tool_call_id
        if message.tool_calls:
            assert messages[n + 1].role == "tool"


def test_a_guess_is_shown_as_if_it_were_said() -> None:
    dialog = Dialog("", tokens=1_000)
    talk(dialog, 50)
    guessed = dialog.messages("and now?")
    assert dialog.messages() != guessed
    dialog.caller_said("and now?")
    assert dialog.messages() == guessed


def test_a_long_result_is_kept_without_its_middle() -> None:
    dialog = Dialog("")
    dialog.tools_called("", [ToolCall("c", "book", "{}"), ToolCall("d", "book", "{}")])
    dialog.tool_returned("c", "a" * 5_000 + "b" * 5_000)

    assert said(dialog)[2] == ("tool", PENDING)
    result = said(dialog)[1][1]
    assert result[:1_000] + result[-1_000:] == "a" * 1_000 + "b" * 1_000
    assert MARK in result
    assert MAX_RESULT_TOKENS - 2 < tokens_of(result) <= MAX_RESULT_TOKENS


def test_what_was_too_long_is_shown_a_quarter_shorter_each_time() -> None:
    dialog = Dialog("prompt", [TOOL], 100_000)
    talk(dialog, 50)
    fixed = REQUEST_TOKENS + tool_tokens(TOOL)
    sizes = [fixed + cost(dialog.messages())]
    while dialog.shrink():
        sizes.append(fixed + cost(dialog.messages()))

    assert len(sizes) > 5
    assert all(after <= before * 3 / 4 for before, after in itertools.pairwise(sizes[:5]))
    assert [message.content[:3] for message in dialog.messages()[1:]] == ["049", "abc"]


def test_nothing_can_be_less_than_the_newest_words() -> None:
    dialog = Dialog("")
    dialog.caller_said("Hello?")

    assert not dialog.shrink()
    assert said(dialog) == [("user", "Hello?")]


def test_what_was_heard_around_tool_calls_stands_where_it_was_said() -> None:
    dialog = Dialog("")
    dialog.tools_called("one moment please", [ToolCall("c", "look", "{}")])
    dialog.tools_called("and another", [ToolCall("d", "look", "{}")])
    dialog.bot_said("one moment please", "and", "", interrupted=True)
    dialog.caller_said("stop")
    dialog.bot_said("Sorry.", interrupted=False)

    assert [text for role, text in said(dialog) if role != "tool"] == [
        "one moment please",
        'and… [interrupted by the caller after: "and"]',
        "stop",
        "Sorry.",
    ]
