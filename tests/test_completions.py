"""Chat completions on the wire: what is sent, what is understood, and calls put together."""

from __future__ import annotations

import json
from typing import Any

import pytest

from voicebot.completions import (
    DONE,
    MAX_ARGUMENTS_CHARS,
    MAX_CALLS,
    Assembler,
    CallPiece,
    Piece,
    encode_message,
    read_event,
)
from voicebot.errors import ProviderError
from voicebot.ports import Message, ToolCall
from voicebot.sse import Event


def assemble(*pieces: Piece) -> list[str | ToolCall]:
    assembler = Assembler()
    return [part for piece in pieces for part in assembler.feed(piece)]


def calls(*pieces: CallPiece) -> Piece:
    return Piece(calls=pieces)


# Messages out


@pytest.mark.parametrize(
    "message, fields",
    [
        (Message("user", "Hello?"), {"role": "user", "content": "Hello?"}),
        (Message("assistant", ""), {"role": "assistant", "content": ""}),
        (
            Message("tool", "", tool_call_id="c0"),
            {"role": "tool", "content": "", "tool_call_id": "c0"},
        ),
    ],
)
def test_messages_carry_what_their_role_has_and_no_more(
    message: Message, fields: dict[str, Any]
) -> None:
    assert encode_message(message) == fields


@pytest.mark.parametrize("content", ["", "One moment."])
def test_calls_keep_their_order_and_the_words_before_them(content: str) -> None:
    made = (ToolCall("c0", "hours", '{"day": 1}'), ToolCall("c1", "now", "{}"))

    fields = encode_message(Message("assistant", content, made))

    assert fields.get("content", "") == content
    assert ("content" in fields) is bool(content)
    assert [(call["id"], call["type"], call["function"]) for call in fields["tool_calls"]] == [
        ("c0", "function", {"name": "hours", "arguments": '{"day": 1}'}),
        ("c1", "function", {"name": "now", "arguments": "{}"}),
    ]


@pytest.mark.parametrize("arguments", ["", '{"day": ', "null", '["a"]', '"{}"', "[" * 100_000])
def test_arguments_that_are_no_object_do_not_spoil_the_conversation(arguments: str) -> None:
    message = Message("assistant", "", (ToolCall("c0", "hours", arguments),))

    (call,) = encode_message(message)["tool_calls"]

    assert call["function"]["arguments"] == "{}"


# Events in


@pytest.mark.parametrize(
    "fields, piece",
    [
        ({"choices": []}, Piece()),
        ({}, Piece()),
        ({"choices": [{}]}, Piece()),
        ({"choices": [{"delta": None}]}, Piece()),
        ({"choices": [{"delta": {"content": None}}]}, Piece()),
        ({"choices": [{"delta": {"content": "Hi"}, "finish_reason": None}]}, Piece("Hi")),
        ({"choices": [{"delta": {}, "finish_reason": "stop"}]}, Piece("", "stop")),
        ({"choices": [{"delta": {"reasoning": "hm"}}]}, Piece()),
        ({"choices": [{"delta": {"channel": "analysis", "content": "hm"}}]}, Piece()),
        ({"choices": [{"delta": {"tool_calls": None}}]}, Piece()),
        ({"choices": [{"delta": {"tool_calls": []}}]}, Piece()),
        ({"choices": [{"delta": {"content": "Hi"}}], "x_groq": {"id": "r"}}, Piece("Hi")),
        ({"choices": [{"delta": {"content": "Hi"}}], "x_groq": None}, Piece("Hi")),
    ],
)
def test_only_content_is_spoken(fields: dict[str, Any], piece: Piece) -> None:
    assert read_event(Event("", json.dumps(fields))) == piece


@pytest.mark.parametrize(
    "event, said",
    [
        (Event("", "{"), "unintelligible"),
        (Event("", "[]"), "unintelligible"),
        (Event("", "[" * 100_000), "unintelligible"),
        (Event("", '{"choices":5}'), "unintelligible"),
        (Event("", '{"choices":[{"delta":{"content":["a"]}}]}'), "unintelligible"),
        (Event("", '{"choices":[{"delta":{"tool_calls":5}}]}'), "unintelligible"),
        (Event("", '{"choices":[{"delta":{"tool_calls":{"index":0}}}]}'), "unintelligible"),
        (Event("", '{"choices":[{"delta":{"tool_calls":[null]}}]}'), "unintelligible"),
        (Event("", '{"choices":[{"delta":{"tool_calls":[{"index":"0"}]}}]}'), "wrong types"),
        (Event("", '{"choices":[{"delta":{"tool_calls":[{"id":7}]}}]}'), "wrong types"),
        (Event("", '{"choices":[{"delta":{"tool_calls":[{"function":"f"}]}}]}'), "unintelligible"),
        (
            Event("", '{"choices":[{"delta":{"tool_calls":[{"function":{"name":["f"]}}]}}]}'),
            "wrong types",
        ),
        (
            Event(
                "", '{"choices":[{"delta":{"tool_calls":[{"function":{"arguments":{"a":1}}}]}}]}'
            ),
            "wrong types",
        ),
        (Event("", '{"error":{"message":"over capacity","code":"busy"}}'), "busy over capacity"),
        (Event("", '{"error":"out of order"}'), "out of order"),
        (Event("error", '{"message":"gone"}'), "gone"),
        (Event("", '{"x_groq":{"error":"over capacity"},"choices":[]}'), "over capacity"),
    ],
)
def test_event_that_is_no_text_is_an_error(event: Event, said: str) -> None:
    with pytest.raises(ProviderError, match=said):
        read_event(event)


def test_done_is_a_regular_end() -> None:
    assert read_event(Event("", "[DONE]")) == DONE


def test_parts_of_a_call_are_read() -> None:
    whole = {
        "index": 2,
        "id": "c2",
        "type": "function",
        "function": {"name": "f", "arguments": "x"},
    }
    rest = {"index": 2, "id": None, "function": {"name": None, "arguments": "y"}}
    delta = {"content": "Hm.", "tool_calls": [whole, rest, {"id": "c3"}, {"index": 3}]}
    choice = {"delta": delta, "finish_reason": "tool_calls"}

    assert read_event(Event("", json.dumps({"choices": [choice]}))) == Piece(
        "Hm.",
        "tool_calls",
        (CallPiece(2, "c2", "f", "x"), CallPiece(2, "", "", "y"), CallPiece(0, "c3"), CallPiece(3)),
    )


# Calls put together

NOW = CallPiece(1, "c1", "now", "{}")


@pytest.mark.parametrize(
    "pieces",
    [
        [calls(CallPiece(0, "c0", "hours", '{"day":1}'))],
        [calls(CallPiece(0, "c0", "hours")), *(calls(CallPiece(arguments=c)) for c in '{"day":1}')],
        [calls(CallPiece(0, "c0", "hours", "{"), CallPiece(0, "", "", '"day":1}'))],
        [calls(CallPiece(0, "c0", "hours", "{")), calls(CallPiece(0, "c0", "hours", '"day":1}'))],
        [Piece("", "stop", (CallPiece(0, "c0", "hours", '{"day":1}'),))],
    ],
    ids=["whole", "in pieces", "pieces in one event", "id and name repeated", "with its end"],
)
def test_a_call_comes_once_and_whole(pieces: list[Piece]) -> None:
    end = Piece(finish_reason="tool_calls")

    assert assemble(*pieces, end) == [ToolCall("c0", "hours", '{"day":1}')]


def test_a_call_is_given_as_soon_as_the_next_begins() -> None:
    assembler = Assembler()

    assert assembler.feed(calls(CallPiece(0, "c0", "hours", '{"day"'))) == []
    assert assembler.feed(calls(CallPiece(0, arguments=":1}"))) == []
    assert assembler.feed(calls(NOW)) == [ToolCall("c0", "hours", '{"day":1}')]
    assert assembler.feed(DONE) == [ToolCall("c1", "now", "{}")]
    assert assembler.feed(DONE) == []


@pytest.mark.parametrize("second", [1, 0], ids=["own index", "same index, another id"])
def test_several_calls_in_one_event_are_several_calls(second: int) -> None:
    both = calls(CallPiece(0, "c0", "hours", "{}"), CallPiece(second, "c1", "now", "{}"))

    assert assemble(both, DONE) == [ToolCall("c0", "hours", "{}"), ToolCall("c1", "now", "{}")]


def test_text_and_calls_keep_the_order_of_the_model() -> None:
    one = Piece("One moment.", calls=(CallPiece(0, "c0", "hours"),))

    assert assemble(one, Piece("And"), Piece(" now."), calls(NOW), DONE) == [
        "One moment.",
        ToolCall("c0", "hours", "{}"),
        "And",
        " now.",
        ToolCall("c1", "now", "{}"),
    ]


@pytest.mark.parametrize("arguments", ['{"day": ', "five", "[]"])
def test_arguments_are_passed_on_unchecked(arguments: str) -> None:
    assert assemble(calls(CallPiece(0, "c0", "hours", arguments)), DONE) == [
        ToolCall("c0", "hours", arguments)
    ]


@pytest.mark.parametrize("reason", ["", "length", "content_filter"])
def test_a_call_cut_off_never_comes_out_but_those_before_it_do(reason: str) -> None:
    pieces = calls(CallPiece(0, "c0", "hours", "{}")), calls(NOW), Piece(finish_reason=reason)

    assert assemble(*pieces) == [ToolCall("c0", "hours", "{}")]


@pytest.mark.parametrize(
    "piece", [CallPiece(), CallPiece(id="c0"), CallPiece(name="hours"), CallPiece(arguments="{}")]
)
def test_a_call_must_begin_with_id_and_name(piece: CallPiece) -> None:
    with pytest.raises(ProviderError, match="without id or name"):
        assemble(calls(piece))


def test_a_piece_for_a_call_that_is_over_is_an_error() -> None:
    with pytest.raises(ProviderError, match="without id or name"):
        assemble(
            calls(CallPiece(0, "c0", "hours", "{")), calls(NOW), calls(CallPiece(0, "", "", "}"))
        )


def test_arguments_have_a_bound_of_their_own_in_each_call() -> None:
    half = "x" * (MAX_ARGUMENTS_CHARS // 2)
    full = [CallPiece(n, f"c{n}", "hours", half) for n in (0, 1)]
    pieces = [calls(full[0]), calls(CallPiece(0, "", "", half)), calls(full[1])]

    assert len(assemble(*pieces, DONE)) == 2
    with pytest.raises(ProviderError, match="arguments of over 32768"):
        assemble(*pieces, calls(CallPiece(1, "", "", half + "x")))


def test_calls_have_a_bound() -> None:
    many = [CallPiece(n, f"c{n}", "now") for n in range(MAX_CALLS + 1)]

    assert len(assemble(calls(*many[:-1]), DONE)) == MAX_CALLS
    with pytest.raises(ProviderError, match="more than 16"):
        assemble(calls(*many))
