"""Audio with its words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicebot.reel import DEFAULT_BYTES_PER_CHAR, Reel

LOUD, SILENT = b"\x10", b"\xff"


def reel_of(*clauses: tuple[str, bytes]) -> Reel:
    reel = Reel()
    for text, audio in clauses:
        reel.begin(text)
        reel.append(audio)
        reel.end()
    return reel


def test_words_share_the_audible_part_of_their_clause() -> None:
    # "ab cd": 5 characters over 500 loud bytes, in silence on both sides.
    reel = reel_of(("ab cd", SILENT * 800 + LOUD * 480 + SILENT * 800))

    assert reel.heard(800) == ""
    assert reel.heard(800 + 95) == ""
    assert reel.heard(800 + 97) == "ab"
    assert reel.heard(800 + 380) == "ab"
    assert reel.heard(800 + 385) == "ab cd"
    assert reel.heard(reel.length) == "ab cd"


def test_words_of_which_a_part_is_between_two_positions() -> None:
    reel = Reel()
    reel.begin("one two three")
    reel.append(b"\x10" * 13 * 400)
    reel.end()
    char = 400
    assert reel.words_between(0, 13 * char) == "one two three"
    assert reel.words_between(3 * char, 5 * char) == "two"
    assert reel.words_between(2 * char, 5 * char) == "one two"
    assert reel.words_between(7 * char, 8 * char) == ""
    assert reel.words_between(-1_000, 0) == ""


def test_clauses_follow_each_other() -> None:
    reel = reel_of(("one two", LOUD * 800), ("three", LOUD * 800))

    assert reel.heard(800) == "one two"
    assert reel.heard(1_250) == "one two three"


def test_a_clause_still_being_synthesised_is_estimated_from_those_before() -> None:
    reel = reel_of(("abcdefghij", LOUD * 1_600))  # 160 bytes a character
    reel.begin("klmno pqrst")
    reel.append(LOUD * 400)

    assert reel.heard(1_600 + 399) == "abcdefghij"
    assert reel.heard(1_600 + 401) == "abcdefghij klmno"


def test_the_first_clause_is_estimated_at_the_usual_rate() -> None:
    reel = Reel()
    reel.begin("ab cd")
    reel.append(LOUD * 80)

    assert reel.heard(DEFAULT_BYTES_PER_CHAR - 1) == ""
    assert reel.heard(DEFAULT_BYTES_PER_CHAR + 1) == "ab"


@pytest.mark.parametrize("audio", [b"", SILENT * 800])
def test_a_clause_without_sound_is_never_heard(audio: bytes) -> None:
    reel = reel_of(("nothing", audio), ("word", LOUD * 800))

    assert reel.heard(reel.length) == "word"
    reel.begin("more")
    assert reel.heard(10**9) == "word"


def test_a_clause_that_breaks_off_counts_as_far_as_it_was_audible() -> None:
    reel = Reel()
    reel.begin("ab cd")
    reel.append(LOUD * 600)
    reel.close()

    assert reel.heard(reel.length) == "ab"


def test_word_edge_is_the_beginning_of_the_word_being_spoken() -> None:
    reel = reel_of(("ab cd ef", LOUD * 800))

    assert reel.word_edge(0) == 0
    assert reel.word_edge(50) == 0
    assert reel.word_edge(290) == 0
    assert reel.word_edge(310) == 300
    assert reel.word_edge(800) == 600


def test_read_waits_for_nothing_and_forgets_only_what_is_told() -> None:
    reel = reel_of(("ab", bytes(range(100))))

    assert reel.read(0, 10) == bytes(range(10))
    assert reel.read(95, 10) == bytes(range(95, 100))
    assert reel.read(100, 10) == b""
    reel.forget(50)
    reel.forget(20)
    assert reel.length == 100
    assert reel.read(50, 10) == bytes(range(50, 60))
    assert reel.word_edge(60) == 50
    assert not reel.closed


def test_end_after_forgetting_still_finds_the_audible_end() -> None:
    reel = Reel()
    reel.begin("ab cd")
    reel.append(LOUD * 800)
    reel.forget(400)
    reel.end()
    assert reel.heard(800) == "ab cd"


@given(
    st.lists(
        st.tuples(st.text(alphabet="ab ", min_size=1, max_size=20), st.integers(0, 3_000)),
        max_size=6,
    ),
    st.lists(st.integers(0, 20_000), max_size=10),
)
def test_heard_grows_with_the_position_and_is_a_prefix(
    clauses: list[tuple[str, int]], positions: list[int]
) -> None:
    reel = reel_of(*((text, LOUD * size) for text, size in clauses))
    everything = reel.heard(reel.length).split()
    before = 0
    for position in sorted(positions):
        words = reel.heard(position).split()
        assert words == everything[: len(words)]
        assert len(words) >= before
        assert reel.word_edge(position) <= position or position == 0
        before = len(words)
