"""Chat completions on the wire: what is sent, what is understood, and calls put together."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from voicebot.errors import ProviderError, ProviderRejected, RequestTooLong
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


def test_half_a_character_spoils_no_conversation() -> None:
    half = r'{"choices":[{"delta":{"content":"a\ud83dé","tool_calls":[{"id":"\ude00c"}]}}]}'

    assert read_event(Event("", half)) == Piece("aé", "", (CallPiece(None, "c"),))
    assert encode_message(Message("tool", "é\ud83d", tool_call_id="c0"))["content"] == "é"


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
        ({"choices": [{"delta": {"reasoning_content": "hm", "content": ""}}]}, Piece()),
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
        (Event("error", "overloaded"), "overloaded"),
        (Event("", '{"x_groq":{"error":"over capacity"},"choices":[]}'), "over capacity"),
    ],
)
def test_event_that_is_no_text_is_an_error(event: Event, said: str) -> None:
    with pytest.raises(ProviderError, match=said) as caught:
        read_event(event)
    assert caught.value.retryable


def test_error_in_the_stream_is_understood_like_one_before_it() -> None:
    error = {"message": "reduce the length", "code": "context_length_exceeded"}
    with pytest.raises(RequestTooLong):
        read_event(Event("error", json.dumps({"error": error})))
    error = {"message": "no such model", "code": "model_not_found", "status_code": "404"}
    with pytest.raises(ProviderRejected) as caught:
        read_event(Event("", json.dumps({"error": {**error, "type": "invalid_request_error"}})))
    assert (caught.value.code, caught.value.retryable) == ("model_not_found", False)


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
        (
            CallPiece(2, "c2", "f", "x"),
            CallPiece(2, "", "", "y"),
            CallPiece(None, "c3"),
            CallPiece(3),
        ),
    )


# Calls put together

HOURS = CallPiece(0, "c0", "hours", '{"day":1}')
NOW = CallPiece(1, "c1", "now", "{}")
END = Piece(finish_reason="tool_calls")
BOTH = [ToolCall("c0", "hours", '{"day":1}'), ToolCall("c1", "now", "{}")]


@pytest.mark.parametrize(
    "pieces",
    [
        [calls(HOURS)],
        [
            calls(CallPiece(0, "c0", "hours")),
            *(calls(CallPiece(0, "", "", c)) for c in '{"day":1}'),
        ],
        [calls(CallPiece(0, "c0", "hours", "{"), CallPiece(0, "", "", '"day":1}'))],
        [calls(CallPiece(0, "c0", "hours", "{")), calls(CallPiece(0, "c0", "hours", '"day":1}'))],
        [calls(CallPiece(0, "c0", "hours", "{")), calls(CallPiece(0, "c9", "", '"day":1}'))],
        [calls(CallPiece(0, "c0", "hours", "{")), calls(CallPiece(0, "", "hours", '"day":1}'))],
        [calls(CallPiece(None, "c0", "hours", "{")), calls(CallPiece(arguments='"day":1}'))],
        [calls(CallPiece(0, "c0", "hours", "{")), calls(CallPiece(arguments='"day":1}'))],
        [calls(HOURS), calls(HOURS)],
        [calls(HOURS), calls(CallPiece(0, "", "", '{"day":1}'))],
        [Piece("", "stop", (HOURS,))],
    ],
    ids=[
        "whole",
        "in pieces",
        "pieces in one event",
        "id and name repeated",
        "another id for each piece",
        "name repeated",
        "no index",
        "index only first",
        "twice",
        "twice, then without a name",
        "with its end",
    ],
)
def test_a_call_comes_once_and_whole(pieces: list[Piece]) -> None:
    assert assemble(*pieces, END) == BOTH[:1]


@pytest.mark.parametrize("arguments", ["1", "11", '"', "[]"])
def test_a_piece_like_the_one_before_it_is_no_repetition(arguments: str) -> None:
    piece = calls(CallPiece(0, "c0", "hours", arguments))

    assert assemble(piece, piece, END) == [ToolCall("c0", "hours", arguments * 2)]


def test_calls_come_at_the_end_in_the_order_they_began() -> None:
    assembler = Assembler()

    assert assembler.feed(calls(CallPiece(0, "c0", "hours", '{"day"'))) == []
    assert assembler.feed(calls(CallPiece(0, arguments=":1}"))) == []
    assert assembler.feed(calls(NOW)) == []
    assert assembler.feed(DONE) == BOTH
    assert assembler.feed(DONE) == []


@pytest.mark.parametrize("index, ident", [(1, "c1"), (0, "c1"), (None, "c1"), (1, ""), (0, "")])
def test_several_calls_in_one_event_are_several_calls(index: int | None, ident: str) -> None:
    both = calls(CallPiece(0, "c0" if ident else "", "hours", '{"day":1}'))
    both = calls(*both.calls, CallPiece(index, ident, "now", "{}"))

    assert [(call.name, call.arguments) for call in assemble_calls(both)] == [
        ("hours", '{"day":1}'),
        ("now", "{}"),
    ]


def assemble_calls(*pieces: Piece) -> list[ToolCall]:
    return [part for part in assemble(*pieces, END) if isinstance(part, ToolCall)]


def test_one_function_called_twice_without_ids_is_called_twice() -> None:
    again = CallPiece(0, "", "hours", '{"day":2}')

    first, second = assemble_calls(calls(CallPiece(0, "", "hours", '{"day":1}')), calls(again))

    assert (first.arguments, second.arguments) == ('{"day":1}', '{"day":2}')
    assert first.id != second.id


def test_a_piece_finds_its_call_by_id_where_the_index_says_nothing() -> None:
    parts = [
        CallPiece(0, "c0", "hours", "{"),
        CallPiece(0, "c1", "now", "{"),
        CallPiece(0, "c0", "", '"day":1}'),
        CallPiece(0, "c1", "", "}"),
    ]

    assert assemble(*map(calls, parts), END) == BOTH


def test_a_piece_finds_its_call_by_index_where_it_has_no_id() -> None:
    parts = [
        CallPiece(0, "c0", "hours", "{"),
        CallPiece(1, "c1", "now", "{"),
        CallPiece(0, "", "", '"day":1}'),
        CallPiece(1, "", "", "}"),
    ]

    assert assemble(*map(calls, parts), END) == BOTH


objects = st.dictionaries(st.text(max_size=3), st.text(max_size=9), max_size=3).map(json.dumps)


@given(st.lists(objects, min_size=1, max_size=4), st.data())
def test_calls_are_the_same_however_they_are_cut_and_mixed(
    arguments: list[str], data: st.DataObject
) -> None:
    indexed, named = data.draw(st.booleans()), data.draw(st.booleans())
    identified = not indexed or data.draw(st.booleans())
    waiting: list[list[CallPiece]] = []
    for n, text in enumerate(arguments):
        edges = [0, *sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=5))), len(text)]
        waiting.append(
            [
                CallPiece(
                    n if indexed else None,
                    f"c{n}" if identified or not at else "",
                    f"f{n}" if named or not at else "",
                    text[begin:end],
                )
                for at, (begin, end) in enumerate(itertools.pairwise(edges))
            ]
        )
    order = data.draw(st.permutations([n for n, queue in enumerate(waiting) for _ in queue]))
    stream = [waiting[n].pop(0) for n in order]
    size = data.draw(st.integers(1, 3))  # pieces in an event

    made = assemble_calls(*(calls(*stream[at : at + size]) for at in range(0, len(stream), size)))

    assert made == [ToolCall(f"c{n}", f"f{n}", arguments[n]) for n in dict.fromkeys(order)]


def test_text_comes_at_once_whatever_calls_are_around_it() -> None:
    assembler = Assembler()
    one = Piece("One moment.", calls=(HOURS,))

    fed = [assembler.feed(piece) for piece in (one, Piece("And"), Piece(" now."), calls(NOW))]

    assert fed == [["One moment."], ["And"], [" now."], []]
    assert assembler.feed(Piece(" Bye.", "stop")) == [" Bye.", *BOTH]


def test_thoughts_in_the_text_are_not_spoken() -> None:
    pieces = [Piece("<thi"), Piece("nk>The caller"), Piece(" wants…</think>"), Piece("Noon.")]

    assert assemble(*pieces, DONE) == ["Noon."]


def test_what_only_looked_like_a_thought_is_spoken_at_the_end() -> None:
    assert assemble(Piece("a <"), calls(NOW), DONE) == ["a ", "<", BOTH[1]]


@pytest.mark.parametrize("arguments", ['{"day": ', "five", "[]"])
def test_arguments_are_passed_on_unchecked(arguments: str) -> None:
    assert assemble(calls(CallPiece(0, "c0", "hours", arguments)), DONE) == [
        ToolCall("c0", "hours", arguments)
    ]


@pytest.mark.parametrize("arguments", [(), ("",), ("", "")])
def test_no_arguments_are_an_empty_object(arguments: tuple[str, ...]) -> None:
    pieces = [calls(CallPiece(0, "c0", "now", text)) for text in arguments or ("",)]

    assert assemble(*pieces, DONE) == [ToolCall("c0", "now", "{}")]


@pytest.mark.parametrize("reason", ["", "length", "content_filter"])
def test_no_call_of_an_answer_without_its_end_comes_out(reason: str) -> None:
    assert assemble(calls(HOURS), calls(NOW), Piece(finish_reason=reason)) == []


@pytest.mark.parametrize(
    "piece", [CallPiece(), CallPiece(0, "c0"), CallPiece(0, arguments="{}"), CallPiece(1, "", "")]
)
def test_a_call_must_begin_with_a_name(piece: CallPiece) -> None:
    with pytest.raises(ProviderError, match="without a name") as caught:
        assemble(calls(piece))
    assert caught.value.retryable


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
