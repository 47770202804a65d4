"""Key words to intents, with the misspellings of a telephone line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicebot.brain.intents import Intent, classify


@pytest.mark.parametrize(
    "words, expected",
    [
        ("", Intent.NOTHING),
        ("...", Intent.NOTHING),
        ("Hello?", Intent.GREETING),
        ("Good day!", Intent.GREETING),
        ("Tell me a long story, please.", Intent.STORY),
        ("Are you a robot?", Intent.WHO),
        ("Can I speak to a human?", Intent.TRANSFER),
        ("Operater", Intent.TRANSFER),
        ("Press 0 to each an operator.", Intent.TRANSFER),
        ("Waiting to speak with our representatives.", Intent.TRANSFER),
        ("Could you transfer me to the manager?", Intent.TRANSFER),
        ("Never mind.", Intent.CANCEL),
        ("Cancelled", Intent.CANCEL),
        ("Goodbye. Thank you for trying.", Intent.GOODBYE),
        ("Okay, thanks, bye.", Intent.GOODBYE),
        ("Sorry, what did you say?", Intent.REPEAT),
        ("Press 5 to repeat the current message.", Intent.REPEAT),
        ("Go on.", Intent.CONTINUE),
        ("One moment, please.", Intent.WAIT),
        ("I'd like to book a table for four.", Intent.BOOKING),
        ("Can I make a preservation?", Intent.BOOKING),
        ("Hours.", Intent.HOURS),
        ("What time do you close on Sunday?", Intent.HOURS),
        ("Location. Location.", Intent.ADDRESS),
        ("Where are you?", Intent.ADDRESS),
        ("Do you have anything vegetarian?", Intent.MENU),
        ("Press 0 for help.", Intent.HELP),
        ("Yes, please.", Intent.YES),
        ("That's right.", Intent.YES),
        ("No thank you.", Intent.NO),
        ("No.", Intent.NO),
        ("Wensday.", Intent.DETAIL),
        ("December", Intent.DETAIL),
        ("at half past seven", Intent.DETAIL),
        ("Thank you.", Intent.THANKS),
        ("We're sorry.", Intent.SORRY),
        ("7", Intent.NUMBER),
        ("Weasels have eaten our phone system.", Intent.UNKNOWN),
        ("The operation was a success.", Intent.UNKNOWN),
    ],
)
def test_intent(words: str, expected: Intent) -> None:
    assert classify(words) is expected


@given(st.text())
def test_no_words_break_it(text: str) -> None:
    classify(text)
