"""Thoughts between words, cut anywhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicebot.thoughts import Thoughts


def spoken(*deltas: str) -> str:
    thoughts = Thoughts()
    return "".join([*map(thoughts.feed, deltas), thoughts.flush()])


@pytest.mark.parametrize(
    "answer, words",
    [
        ("It is noon.", "It is noon."),
        ("<think>What time…</think>It is noon.", "It is noon."),
        ("<think>\nHm.\n</think>\n\nIt is noon.", "\n\nIt is noon."),
        ("<think></think>It is noon.", "It is noon."),
        ("<THINK>Hm.</Think>It is noon.", "It is noon."),
        ("It <think>a</think>is <think>b</think>noon.", "It is noon."),
        ("It is noon.<think>Or", "It is noon."),
        ("<think>Hm. It is <think>late</think>noon.", "noon."),
        ("<think>a < b </thin</think>noon.", "noon."),
        ("</think>It is noon.", "It is noon."),
        ("<think>Hm.</think></think>It is noon.", "It is noon."),
        ("a < b, <b> <th", "a < b, <b> <th"),
        ("<<think>Hm.</think>noon", "<noon"),
        ("<thinker>noon", "<thinker>noon"),
        ("<think", "<think"),
        ("<think>Hm.</think", ""),
    ],
)
def test_whole_and_sign_by_sign_the_same_is_spoken(answer: str, words: str) -> None:
    assert spoken(answer) == words
    assert spoken(*answer) == words


@given(
    st.lists(st.sampled_from(["<think>", "</think>", "<", "th", "ink>", "/", "a", " "])),
    st.data(),
)
def test_cuts_change_nothing(parts: list[str], data: st.DataObject) -> None:
    answer = "".join(parts)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(answer)))))
    deltas = [answer[a:b] for a, b in zip([0, *cuts], [*cuts, len(answer)], strict=True)]

    assert spoken(*deltas) == spoken(answer)


@given(st.text("<>/think ab"), st.text("<>/think ab"))
def test_what_is_thought_is_not_spoken(before: str, thought: str) -> None:
    words = before.replace("think>", "")

    assert spoken(f"{words}<think>{thought}</think>") == words


def test_words_are_not_held_back() -> None:
    thoughts = Thoughts()

    assert [thoughts.feed(delta) for delta in ("It is", " < noon", "<", "b", "<thin", "g")] == [
        *("It is", " < noon", "", "<b", "", "<thing"),
    ]
