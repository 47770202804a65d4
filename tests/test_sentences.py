"""Deltas to speakable pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicebot.sentences import MAX_PIECE_CHARS, SentenceSplitter


def split(text: str, step: int = 3) -> list[str]:
    """Push the text in small deltas, as a model streams it."""
    splitter = SentenceSplitter()
    pieces = [
        piece
        for start in range(0, len(text), step)
        for piece in splitter.push(text[start : start + step])
    ]
    return pieces + splitter.flush()


@pytest.mark.parametrize(
    "text,pieces",
    [
        ("", []),
        ("  \n ", []),
        ("Yes", ["Yes"]),
        ("Yes. No! Why? ", ["Yes.", "No!", "Why?"]),
        ("It costs 3.50 euros. Fine.", ["It costs 3.50 euros.", "Fine."]),
        ("Ask Dr. Smith. He knows.", ["Ask Dr. Smith.", "He knows."]),
        ("Ask J. Smith, e.g. today. Now.", ["Ask J. Smith, e.g. today.", "Now."]),
        ('He said "go." Then he left.', ['He said "go."', "Then he left."]),
        ("One\nTwo\n\nThree", ["One", "Two", "Three"]),
        ("**Bold** and `code`. # Title", ["Bold and code.", "Title"]),
        ("Good. 🎉 … — Bye.", ["Good.", "— Bye."]),
        ("Hmm... well. Yes.", ["Hmm...", "well.", "Yes."]),
        ("はい。そうです。", ["はい。", "そうです。"]),
    ],
)
def test_sentences(text: str, pieces: list[str]) -> None:
    assert split(text) == pieces
    assert split(text, step=1) == pieces
    assert split(text, step=1_000) == pieces


def test_only_the_first_piece_may_end_at_a_comma() -> None:
    text = "We are open every day but Monday, from noon on, and we close at ten, more or less."
    assert split(text) == [
        "We are open every day but Monday,",
        "from noon on, and we close at ten, more or less.",
    ]


def test_a_short_first_clause_waits_for_the_sentence() -> None:
    assert split("Yes, of course. Sure.") == ["Yes, of course.", "Sure."]


def test_a_piece_is_given_as_soon_as_it_is_complete() -> None:
    splitter = SentenceSplitter()
    assert splitter.push("Yes.") == []  # "Yes.5" is still possible
    assert splitter.push(" ") == ["Yes."]


def test_a_sentence_without_end_is_cut_at_a_space() -> None:
    pieces = split("word " * 200)
    assert all(len(piece) <= MAX_PIECE_CHARS for piece in pieces)
    assert " ".join(pieces) == ("word " * 200).strip()


def test_a_word_without_end_is_cut_anywhere() -> None:
    pieces = split("x" * 1_000)
    assert "".join(pieces) == "x" * 1_000
    assert max(map(len, pieces)) <= MAX_PIECE_CHARS


@given(st.text(alphabet="ab c.,!?\n1", max_size=400), st.integers(1, 50))
def test_no_word_is_lost_or_said_twice(text: str, step: int) -> None:
    words = "".join(char for char in text if char.isalnum())
    assert "".join(c for piece in split(text, step) for c in piece if c.isalnum()) == words
