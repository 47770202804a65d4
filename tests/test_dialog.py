"""The conversation as the model is shown it."""

from __future__ import annotations

from voicebot.dialog import MAX_HISTORY_CHARS, Dialog


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
