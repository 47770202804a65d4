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


# A clause that broke off.


def broken(text: str, audio: bytes) -> Reel:
    """Return a reel with one clause whole, at 100 bytes a character, and one that broke off."""
    reel = reel_of(("0123456789", LOUD * 1_000))
    reel.begin(text)
    reel.append(audio)
    return reel


def test_what_was_heard_of_a_broken_clause_counts_until_more_is_of_the_next() -> None:
    reel = broken("ab cd ef", LOUD * 500)  # the first two words and no more
    reel.begin("ab cd ef")

    assert reel.heard(1_500) == "0123456789 ab cd"
    assert reel.heard(1_500, 1) == reel.heard(1_500, 1, 2) == "ab cd"
    reel.append(LOUD * 800)
    reel.end()
    assert reel.heard(1_500 + 450) == "0123456789 ab cd"
    assert reel.heard(1_500 + 749) == "0123456789 ab cd ef"
    assert reel.heard(reel.length, 1) == reel.heard(reel.length, 1, 2) == "ab cd ef"


def test_a_clause_that_breaks_off_twice_is_one_clause() -> None:
    reel = broken("ab cd ef", LOUD * 500)
    reel.begin("ab cd ef")
    reel.append(LOUD * 200)
    reel.begin("ab cd ef")
    reel.append(LOUD * 800)
    reel.end()
    reel.begin("gh")
    reel.append(LOUD * 200)
    reel.end()

    assert reel.heard(1_700) == "0123456789 ab cd"
    assert reel.heard(reel.length) == "0123456789 ab cd ef gh"
    assert reel.heard(reel.length, 2) == "gh"


def test_what_comes_instead_of_a_broken_clause_counts_as_well() -> None:
    reel = broken("ab cd ef", LOUD * 500)
    reel.begin("sorry")
    reel.append(LOUD * 500)
    reel.end()

    assert reel.heard(1_500) == "0123456789 ab cd"
    assert reel.heard(reel.length) == "0123456789 ab cd sorry"
    assert reel.heard(reel.length, 2) == "sorry"


def test_what_comes_instead_counts_as_well_if_the_second_try_had_no_audio() -> None:
    reel = broken("ab cd ef", LOUD * 500)
    reel.begin("ab cd ef")
    reel.begin("so sorry")
    reel.append(LOUD * 800)
    reel.end()

    assert reel.heard(1_500) == "0123456789 ab cd"
    assert reel.heard(reel.length) == "0123456789 ab cd so sorry"
    assert reel.heard(reel.length, 1, 2) == "ab cd"


def test_a_clause_without_audio_is_taken_back_by_the_next() -> None:
    reel = broken("ab cd ef", b"")
    reel.begin("gh")
    reel.append(LOUD * 200)
    reel.end()

    assert reel.heard(reel.length) == "0123456789 gh"
    assert reel.heard(reel.length, 1, 2) == "gh"


def test_a_broken_clause_is_no_measure_of_the_rate() -> None:
    reel = broken("ab cd ef", LOUD * 500)
    reel.begin("gh ij")
    reel.append(LOUD * 250)

    assert reel.heard(1_500 + 99).endswith("cd")
    assert reel.heard(1_500 + 101).endswith("gh")


# Asides.


def test_an_aside_is_no_part_of_what_was_heard() -> None:
    reel = reel_of(("ab cd", LOUD * 500))
    reel.interject("one moment", LOUD * 1_000)
    reel.begin("ef")
    reel.append(LOUD * 200)
    reel.end()

    assert reel.heard(1_500) == "ab cd"
    assert reel.heard(reel.length) == "ab cd ef"
    assert reel.heard(reel.length, 1) == "ef"
    # But it may be recognised, and whoever is stopped in it goes on from its word.
    assert reel.words_between(400, 1_510) == "cd one moment ef"
    assert reel.word_edge(500 + 450) == 500 + 400
    assert reel.word_edge(500 + 200) == 500


def test_an_aside_comes_before_a_clause_that_has_no_audio_yet() -> None:
    reel = reel_of(("ab cd", LOUD * 500))
    reel.begin("ef gh")
    assert reel.between_clauses
    reel.interject("hm", LOUD * 200)
    assert reel.between_clauses
    reel.append(LOUD * 500)
    assert not reel.between_clauses
    reel.end()

    assert reel.read(0, 2_000) == LOUD * 1_200
    assert reel.heard(700) == "ab cd"
    assert reel.heard(700 + 299) == "ab cd ef"
    assert reel.heard(reel.length, 1) == "ef gh"
    assert reel.word_edge(700 + 250) == 700


def test_an_aside_may_stand_between_a_broken_clause_and_its_second_try() -> None:
    reel = broken("ab cd ef", LOUD * 500)
    reel.begin("ab cd ef")
    reel.interject("hm", LOUD * 200)

    assert reel.heard(reel.length) == "0123456789 ab cd"
    reel.append(LOUD * 800)
    reel.end()
    assert reel.heard(reel.length) == "0123456789 ab cd ef"
    assert reel.heard(reel.length, 1, 2) == "ab cd ef"


CLAUSES = st.lists(
    st.tuples(
        st.sampled_from(["whole", "broken", "broken, other", "mute", "aside"]),
        st.text(alphabet="ab ", min_size=1, max_size=12),
        st.integers(0, 12),  # windows of silence
        st.integers(0, 40),  # and of sound
    ),
    max_size=6,
)


@given(CLAUSES, st.lists(st.integers(0, 40_000), min_size=1, max_size=10))
def test_nothing_counts_as_heard_that_was_not_audible(
    clauses: list[tuple[str, str, int, int]], positions: list[int]
) -> None:
    reel = Reel()
    spoken: list[tuple[str, list[int]]] = []  # each text, and where its tries become audible
    for how, text, quiet, loud in clauses:
        sound = SILENT * 80 * quiet + LOUD * 80 * loud
        if how == "aside":
            reel.interject(text, sound)
            continue
        audible = [reel.length + 80 * quiet] if loud else []
        reel.begin(text)
        if how != "mute":
            reel.append(sound)
        if how == "whole":
            reel.end()
        elif how == "broken":
            reel.begin(text)
            if loud:
                audible.append(reel.length + 80)
            reel.append(SILENT * 80 + LOUD * 80 * loud)
            reel.end()
        elif how == "broken, other":
            reel.begin("other")
            reel.append(LOUD * 800)
            reel.end()
        else:
            reel.begin("other")
            reel.append(LOUD * 800)
            reel.end()
            audible = []
        spoken.append((text, audible))
    before = 0
    for position in sorted(min(position, reel.length) for position in positions):
        words = reel.heard(position).split()
        assert len(words) >= before
        before = len(words)
        counted = [word for word in words if word != "other"]
        may_be = [
            text.split() for text, audible in spoken if any(start < position for start in audible)
        ]
        for audible_words in may_be:  # what is counted is of these, in this order
            for word in audible_words:
                if counted[:1] != [word]:
                    break
                counted.pop(0)
        assert counted == []
        if not may_be and "other" not in words:
            assert words == []


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
