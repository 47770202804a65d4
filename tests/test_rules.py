"""Words by rules: patterns to texts and tools, played again from the conversation."""

from __future__ import annotations

import json
from typing import Any

import pytest

from voicebot.brain.rules import FAILED, Rules, Said, no_model, use, when
from voicebot.call import Call
from voicebot.ports import Message, ToolCall
from voicebot.toolbox import BROKEN_OFF, NOT_STARTED, TOO_LATE


def says(*turns: str) -> list[Message]:
    """A conversation in which the bot has always said "Hm."."""
    messages: list[Message] = []
    for text in turns:
        messages += [Message("user", text), Message("assistant", "Hm.")]
    return messages[:-1]


def test_the_first_rule_that_is_found_answers() -> None:
    rules = Rules(when("open", "first"), when("open|close", "second"), otherwise="third")

    assert rules.reply(says("Are you OPEN?")) == ["first"]
    assert rules.reply(says("do you close")) == ["second"]
    assert rules.reply(says("hm")) == ["third"]


def test_numbers_are_digits_and_groups_go_into_texts_and_arguments() -> None:
    rules = Rules(
        when(
            r"table for (?P<guests>\d+)(?P<late> late)?",
            use(
                "book", {"guests": "{guests}", "kind": "table", "n": 3}, say="A table for {guests}."
            ),
        ),
        when(r"(?P<x>\d+)", "{x} {y}"),
    )

    text, call = rules.reply(says("A table for four, please."))

    assert text == "A table for 4."
    assert isinstance(call, ToolCall)
    assert (call.name, json.loads(call.arguments)) == (
        "book",
        {"guests": "4", "kind": "table", "n": 3},
    )
    assert rules.reply(says("seven")) == ["7 {y}"]


@pytest.mark.parametrize(
    "then, said",
    [
        ("{result}", "Booked."),
        ("Well: {result} Anything else?", "Well: Booked. Anything else?"),
        (str.upper, "BOOKED."),
    ],
)
def test_the_result_of_a_tool_is_said(then: Any, said: str) -> None:
    rules = Rules(when("book", use("book", then=then)))
    asked = [Message("user", "book"), Message("assistant", "", (ToolCall("1", "book", "{}"),))]

    assert rules.reply([*asked, Message("tool", "Booked.", tool_call_id="1")]) == [said]


@pytest.mark.parametrize(
    "result",
    ["failed: 'secret'", "not run, the arguments are wrong: n", TOO_LATE, NOT_STARTED, BROKEN_OFF],
)
def test_a_failure_is_not_read_out_unless_a_function_does(result: str) -> None:
    asked = [Message("user", "book"), Message("assistant", "", (ToolCall("1", "book", "{}"),))]
    told = [*asked, Message("tool", result, tool_call_id="1")]

    assert Rules(when("book", use("book"))).reply(told) == [FAILED]
    assert Rules(when("book", use("book", then="{result}")), failed="Hm.").reply(told) == ["Hm."]
    by_function = Rules(when("book", use("book", then=lambda text: text[:3])))
    assert by_function.reply(told) == [result[:3]]


def test_what_is_wrong_with_rules_is_known_before_a_call() -> None:
    rules = Rules(
        when(r"table for (?P<n>\d+)", use("book", {"guests": "{num}"}, say="For {n}, {when}.")),
        when("status", use("repair_stat")),
        when("bye", use("hang_up", say="Bye.")),
        when("x", lambda said: use("nobody_knows")),
        otherwise=use("zzz"),
    )
    assert rules.problems(["book", "repair_status"]) == [
        "use('book'): {when} is no group of its pattern: write (?P<when>…) there",
        "use('book'): {num} is no group of its pattern: write (?P<num>…) there",
        "use('repair_stat'): there is no tool of that name; is it 'repair_status'?",
        "use('zzz'): there is no tool of that name",
    ]
    assert rules.of(Call()).problems(["book", "zzz", "repair_stat"])[2:] == []


def test_nothing_is_said_behind_a_goodbye() -> None:
    rules = Rules(when("bye", use("hang_up", say="Goodbye.")))
    messages = says("bye")

    goodbye, call = rules.reply(messages)

    assert goodbye == "Goodbye."
    assert isinstance(call, ToolCall)
    asked = Message("assistant", "Goodbye.", (call,))
    ended = [*messages, asked, Message("tool", "x", tool_call_id=call.id)]
    assert rules.reply(ended, may_use=False) == []


@pytest.mark.parametrize(
    "then, said",
    [
        ("{result}", "I am sorry, nobody is there. What else can I do for you?"),
        ("Ben is out.", "Ben is out."),
    ],
)
def test_a_caller_who_is_back_is_not_told_what_is_written_for_a_model(then: str, said: str) -> None:
    rules = Rules(when("ben", use("transfer", {"to": "Ben"}, then=then)))
    messages = says("ben")
    [call] = rules.reply(messages)
    assert isinstance(call, ToolCall)
    result = Message("tool", "nobody took the call; tell them", tool_call_id=call.id)

    back = [*messages, Message("assistant", "", (call,)), result]

    assert rules.reply(back, may_use=False) == []  # while it goes away
    assert rules.reply(back) == [said]


def test_functions_see_words_state_results_and_the_call_and_may_pass_on() -> None:
    def first(said: Said) -> str | None:
        said.state["n"] = said.state.get("n", 0) + 1
        if said.words != "hi":
            return None
        return f"{said.text} {said.state['n']} {said.results} {said.call.call_sid} {said['x']}."

    rules = Rules(when("(?P<x>i)?", first), otherwise="other").of(Call("CA1"))

    assert rules.reply(says("Hi!")) == ["Hi! 1 () CA1 ."]
    assert rules.reply(says("ho", "Hi!")) == ["Hi! 2 () CA1 ."]  # played again: 1, 2
    assert rules.reply(says("ho", "Hi!")) == ["Hi! 2 () CA1 ."]  # and nothing was kept
    assert rules.reply(says("ho")) == ["other"]


def test_results_of_tools_are_known_to_later_turns() -> None:
    rules = Rules(
        when("look", use("look")),
        when("and", lambda said: f"It was {said.results[-1]}"),
    )
    messages = [
        *says("look"),
        Message("assistant", "", (ToolCall("1", "look", "{}"),)),
        Message("tool", "Monday.", tool_call_id="1"),
        Message("assistant", "Monday."),
        Message("user", "and?"),
    ]

    assert rules.reply(messages) == ["It was Monday."]


def test_ids_of_calls_differ_within_a_conversation() -> None:
    rules = Rules(when("look", use("look")))
    [first] = rules.reply(says("look"))
    assert isinstance(first, ToolCall)
    later = [
        *says("look"),
        Message("assistant", "", (first,)),
        Message("tool", "x", tool_call_id=first.id),
        Message("assistant", "x"),
        Message("user", "look"),
    ]
    [second] = rules.reply(later)

    assert isinstance(second, ToolCall)
    assert first.id != second.id


def test_without_a_model_it_says_so() -> None:
    assert no_model().reply(says("two tables.")) == [
        "I have no language model yet, so I can only repeat. I heard: two tables."
    ]
