"""The conversation as the model is shown it."""

from __future__ import annotations

from voicebot.dialog import MAX_HISTORY_CHARS, MAX_RESULT_CHARS, Dialog
from voicebot.ports import ToolCall


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


def test_the_oldest_messages_go_first_but_never_the_prompt_or_the_newest() -> None:
    dialog = Dialog("prompt")
    for index in range(10):
        dialog.caller_said(f"{index}" * (MAX_HISTORY_CHARS // 5))
        dialog.bot_said("ok", interrupted=False)
    messages = dialog.messages()
    assert messages[0].content == "prompt"
    assert messages[-1].content == "ok"
    assert sum(len(message.content) for message in messages[1:]) <= MAX_HISTORY_CHARS
    assert messages[-2].content[0] == "9"

    dialog.caller_said("x" * MAX_HISTORY_CHARS * 2)
    assert len(dialog.messages()) == 2


def test_a_result_is_never_shown_without_its_call() -> None:
    dialog = Dialog("")
    dialog.tools_called("w" * 1_000, [ToolCall("c", "book", "{}")])
    dialog.tool_returned("c", "r" * MAX_RESULT_CHARS)
    dialog.bot_said("w" * 1_000, "z" * (MAX_HISTORY_CHARS - MAX_RESULT_CHARS), interrupted=False)

    assert [role for role, _ in said(dialog)] == ["assistant"]  # the call would be too much


def test_arguments_of_tool_calls_count_as_history() -> None:
    dialog = Dialog("")
    dialog.tools_called("", [ToolCall("c", "book", "x" * MAX_HISTORY_CHARS)])
    dialog.bot_said("", "Done.", interrupted=False)

    assert said(dialog) == [("assistant", "Done.")]


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
