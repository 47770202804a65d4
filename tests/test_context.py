"""What a conversation costs a model, and what of it is left out."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from voicebot.context import (
    CALL_TOKENS,
    CONTEXT_TOKENS,
    LEAST_TOKENS,
    MARK,
    MESSAGE_TOKENS,
    STEPS,
    message_tokens,
    newest,
    shorten,
    tokens_of,
    tool_tokens,
)
from voicebot.ports import Message, Tool, ToolCall


def cost(messages: Sequence[Message]) -> int:
    return sum(map(message_tokens, messages))


def exchange(n: int, *more: Message, words: int = 10) -> list[Message]:
    """A question of so many tokens, and an answer."""
    return [Message("user", f"{n:03}" * words), *more, Message("assistant", "yes")]


# Estimates


# What they cost in o200k, the vocabulary of gpt-oss.
@pytest.mark.parametrize(
    "text, tokens",
    [
        ("I'd like a table for four on Saturday at half past seven, please.", 15),
        ("Ich möchte am Samstagabend um halb acht einen Tisch für vier Personen reservieren.", 16),
        ("Chciałbym zarezerwować stolik dla czterech osób na sobotę wieczór.", 24),
        ("Szeretnék asztalt foglalni négy főre szombat estére, körülbelül fél nyolcra.", 30),
        ("Я хотел бы заказать столик на четверых на субботу вечером.", 15),
        ("Θα ήθελα να κλείσω ένα τραπέζι για τέσσερα άτομα το Σάββατο το βράδυ.", 32),
        ("أود حجز طاولة لأربعة أشخاص مساء يوم السبت حوالي الساعة السابعة والنصف.", 21),
        ("אני רוצה להזמין שולחן לארבעה אנשים לשבת בערב בסביבות שבע וחצי.", 22),
        ("मैं शनिवार की शाम चार लोगों के लिए एक टेबल बुक करना चाहता हूँ।", 17),
        ("ฉันต้องการจองโต๊ะสำหรับสี่คนในเย็นวันเสาร์ประมาณหนึ่งทุ่มครึ่ง", 24),
        ("我想预订星期六晚上七点半左右四个人的桌子。你们有素食吗？", 24),
        ("土曜日の夜七時半ごろに四人でテーブルを予約したいのですが。", 22),
        ("토요일 저녁 일곱 시 반쯤에 네 명이 앉을 테이블을 예약하고 싶습니다.", 27),
        ('{"id": "b-2931", "name": "Rossi", "guests": 4, "time": "2026-11-21T19:30:00+01:00"}', 44),
        ("[1.25, 2.5, 3.75, 4, 5, 6, 0.1, 0.22]", 34),
        ("550e8400-e29b-41d4-a716-446655440000", 18),
    ],
)  # fmt: skip
def test_the_estimate_is_not_too_low_in_any_script_and_not_wildly_too_high(
    text: str, tokens: int
) -> None:
    assert 0.8 * tokens < tokens_of(text) < 3.3 * tokens


@given(st.text(), st.text())
def test_more_text_never_costs_less(one: str, two: str) -> None:
    assert max(tokens_of(one), tokens_of(two)) <= tokens_of(one + two)
    assert tokens_of(one + two) <= tokens_of(one) + tokens_of(two) + 1


def test_half_a_character_costs_something() -> None:
    assert tokens_of("\ud83d") > 0


def test_calls_and_schemas_cost_something_too() -> None:
    async def run(arguments: object) -> str:
        return ""

    call = ToolCall("call_1", "hours", "abcdef" * 10)
    assert message_tokens(Message("assistant", "abc", (call,))) == (
        MESSAGE_TOKENS + 1 + CALL_TOKENS + 22
    )
    bare = Tool("hours", "Opening hours.", {}, run)
    full = Tool("hours", "Opening hours.", {"properties": {"day": {"type": "string"}}}, run)
    assert tool_tokens(full) > tool_tokens(bare) + 10 > CALL_TOKENS + 10


# One text


@given(st.text(max_size=300), st.integers(len(MARK), 150))
def test_a_long_text_loses_its_middle_and_fits(text: str, tokens: int) -> None:
    short = shorten(text, tokens)

    assert tokens_of(short) <= tokens
    if tokens_of(text) <= tokens:
        assert short == text
    else:
        head, _, tail = short.partition(MARK)
        assert text.startswith(head)
        assert text.endswith(tail)


def test_as_much_of_both_ends_as_fits_is_kept() -> None:
    short = shorten("a" * 5_000 + "b" * 5_000, 1_000)

    head, tail = short.split(MARK)
    assert (set(head), set(tail)) == ({"a"}, {"b"})
    assert 0 <= len(head) - len(tail) <= 1
    assert tokens_of(short) in {999, 1_000}


def test_next_to_nothing_is_only_the_mark() -> None:
    assert shorten("a" * 100, 0) == MARK


# Conversations


contents = st.text("aé世 .", max_size=40).map(lambda text: text * 8)
replies = st.builds(Message, st.just("assistant"), contents)


@st.composite
def rounds(draw: st.DrawFn) -> list[Message]:
    """Tool calls with their results."""
    said, arguments = draw(contents), draw(st.lists(contents, min_size=1, max_size=3))
    calls = [ToolCall(f"c{n}", "book", text) for n, text in enumerate(arguments)]
    results = [Message("tool", draw(contents), tool_call_id=call.id) for call in calls]
    return [Message("assistant", said, tuple(calls)), *results]


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    messages = draw(st.lists(replies, max_size=1))
    for _ in range(draw(st.integers(0, 8))):
        messages.append(Message("user", draw(contents)))
        messages += [message for part in draw(st.lists(rounds(), max_size=2)) for message in part]
        messages += draw(st.lists(replies, max_size=1))
    return messages


def last_exchange(messages: Sequence[Message]) -> int:
    """Return where the caller spoke last."""
    return max((n for n, message in enumerate(messages) if message.role == "user"), default=0)


@given(conversations(), st.integers(0, 3_000))
def test_what_is_kept_is_an_end_of_the_conversation_untorn_and_fits(
    messages: list[Message], tokens: int
) -> None:
    kept = newest(messages, tokens)

    start = len(messages) - len(kept)
    assert start <= last_exchange(messages)  # the newest words of the caller stay, and the rest
    assert start == 0 or kept[0].role == "user"
    assert [(m.role, m.tool_call_id) for m in kept] == [
        (m.role, m.tool_call_id) for m in messages[start:]
    ]
    asked = {call.id for message in kept for call in message.tool_calls}
    assert {message.tool_call_id for message in kept if message.role == "tool"} <= asked
    assert cost(kept) <= max(tokens, LEAST_TOKENS * len(kept[last_exchange(kept) :]))
    if cost(messages) <= tokens and all(message_tokens(m) <= tokens // 2 for m in messages):
        assert kept == messages


@given(conversations(), st.integers(700, 2_000))
def test_at_most_a_quarter_more_than_must_be_is_left_out(
    messages: list[Message], tokens: int
) -> None:
    assume(all(message_tokens(message) <= tokens // 2 for message in messages))
    kept = newest(messages, tokens)

    left_out = messages[: len(messages) - len(kept)]
    last = left_out[last_exchange(left_out) :]
    if left_out:
        assert cost(left_out) - cost(last) < cost(messages) - tokens + tokens // STEPS


def test_the_beginning_stays_the_same_for_many_turns() -> None:
    messages: list[Message] = []
    begins = []
    for n in range(300):
        messages += exchange(n)
        begins.append(newest(messages, 1_000)[0])

    assert cost(messages) > 5_000
    assert len(set(begins)) <= 1 + (cost(messages) - 1_000) // 250 + 1
    assert begins == sorted(begins, key=lambda message: message.content)


def test_one_long_result_does_not_push_out_all_the_rest() -> None:
    call = Message("assistant", "", (ToolCall("c", "look", "{}"),))
    result = Message("tool", "r" * 30_000, tool_call_id="c")
    messages = [*exchange(1), *exchange(2), *exchange(3, call, result)]

    kept = newest(messages, 1_000)

    assert len(kept) == len(messages)
    assert [message for message in kept if message.role != "tool"] == [
        message for message in messages if message.role != "tool"
    ]
    (shown,) = [message for message in kept if message.role == "tool"]
    assert MARK in shown.content
    assert 490 < message_tokens(shown) <= 500


def test_many_results_in_the_last_exchange_are_all_shortened() -> None:
    calls = tuple(ToolCall(f"c{n}", "look", "{}") for n in range(8))
    results = [Message("tool", "r" * 3_000, tool_call_id=call.id) for call in calls]
    messages = exchange(1, Message("assistant", "", calls), *results)

    kept = newest(messages, 1_500)

    assert 1_000 < cost(kept) <= 1_500
    assert kept[0] == messages[0]
    assert all(MARK in message.content for message in kept if message.role == "tool")


def test_arguments_that_are_too_long_become_none_and_the_words_stay() -> None:
    call = ToolCall("c", "book", '{"note": "' + "x" * 30_000 + '"}')

    (kept,) = newest([Message("assistant", "One moment.", (call,))], CONTEXT_TOKENS)

    assert kept == Message("assistant", "One moment.", (ToolCall("c", "book", "{}"),))


def test_nothing_said_is_nothing_shown() -> None:
    assert newest([], CONTEXT_TOKENS) == []
