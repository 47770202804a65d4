"""How long a silence ends a turn: by the words, and by what this caller did before."""

from __future__ import annotations

import pytest

from voicebot.patience import Endpointing, Patience
from voicebot.words import Vocabulary

RULES = Endpointing(hangover_ms=300, unfinished_ms=900, dictation_ms=1_200, longest_ms=1_500)


def patience() -> Patience:
    return Patience(RULES, Vocabulary.of("en"))


@pytest.mark.parametrize(
    "text, needed_ms",
    [("for two", 300), ("I would like to", 900), ("it is 555", 1_200), ("", 300)],
)
def test_words_ask_for_time(text: str, needed_ms: int) -> None:
    assert patience().needed_ms(text, hangover_ms=300) == needed_ms
    # A provider is believed at once where nothing speaks against it.
    assert patience().needed_ms(text, hangover_ms=0) == (needed_ms if needed_ms > 300 else 0)


def test_a_pause_that_was_none_of_the_end_is_not_taken_for_one_again() -> None:
    caller = patience()
    caller.paused(600, "for two")
    assert caller.needed_ms("for two", hangover_ms=300) == 720
    caller.turn_over()
    assert caller.needed_ms("for two", hangover_ms=300) == 720


@pytest.mark.parametrize("text", ["I would like to", "it is 555"])
def test_a_pause_that_the_words_ask_for_says_nothing_about_the_caller(text: str) -> None:
    caller = patience()
    caller.paused(900, text)
    assert caller.needed_ms("for two", hangover_ms=300) == 300


def test_short_pauses_cost_nothing() -> None:
    caller = patience()
    caller.paused(240, "for two")
    assert caller.needed_ms("for two", hangover_ms=300) == 300


def test_a_caller_who_was_cut_off_gets_longer() -> None:
    caller = patience()
    caller.turn_over()
    assert caller.needed_ms("for two", hangover_ms=300) == 300
    caller.cut_off(500)
    assert caller.needed_ms("for two", hangover_ms=300) == 600
    caller.turn_over()
    assert caller.needed_ms("for two", hangover_ms=300) == 600


def test_nobody_is_waited_for_longer_than_the_longest() -> None:
    caller = patience()
    caller.paused(60_000, "for two")
    assert caller.needed_ms("for two", hangover_ms=300) == 1_500
    assert caller.needed_ms("I would like to", hangover_ms=300) == 1_500


def test_pauses_are_forgotten_after_some_turns() -> None:
    caller = patience()
    caller.paused(600, "for two")
    needed = []
    for _ in range(8):
        caller.turn_over()
        needed.append(caller.needed_ms("for two", hangover_ms=300))
    assert needed == [720] * 6 + [300] * 2


def test_being_cut_off_before_any_turn_says_nothing() -> None:
    caller = patience()
    caller.cut_off(900)
    assert caller.needed_ms("for two", hangover_ms=300) == 300
