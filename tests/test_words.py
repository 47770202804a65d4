"""What words alone tell: by example, and by what must hold for every list."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicebot.words import LANGUAGES, Vocabulary, echoed, words_of

EN = Vocabulary.of("en")


def test_words_are_compared_without_case_punctuation_and_kind_of_apostrophe() -> None:
    assert words_of("Well, I’d say: NO — 5 o'clock!") == [
        "well",
        "i'd",
        "say",
        "no",
        "5",
        "o'clock",
    ]


@pytest.mark.parametrize("text", ["", "…", "mm-hm", "Mm-hmm.", "Okay, yeah.", "Right…", "uh-huh"])
def test_signs_of_listening(text: str) -> None:
    assert EN.only_listening(text)
    assert EN.count(text) == 0
    assert not EN.stops(text)


@pytest.mark.parametrize("text", ["yeah but", "Tuesday", "okay stop"])
def test_more_than_a_sign_of_listening(text: str) -> None:
    assert not EN.only_listening(text)
    assert EN.count(text) == 1


@pytest.mark.parametrize("text", ["Stop!", "hold on", "okay, wait", "no no", "Excuse me, sir"])
def test_stop_words_anywhere(text: str) -> None:
    assert EN.stops(text)


@pytest.mark.parametrize("text", ["hold the line", "on hold", "stopping by", "one", "moment one"])
def test_a_stop_phrase_is_all_its_words_in_order(text: str) -> None:
    assert not EN.stops(text)


@pytest.mark.parametrize(
    "text", ["I would like to", "and", "my name is", "on Monday,", "well…", "I'd"]
)
def test_unfinished(text: str) -> None:
    assert EN.unfinished(text)


@pytest.mark.parametrize("text", ["", "hold on", "yes", "on Monday.", "What time is it at?", "no"])
def test_finished(text: str) -> None:
    assert not EN.unfinished(text)


@pytest.mark.parametrize(
    "text", ["it is 555", "five five five", "555-01", "My number is 0 1 2.", "three 45"]
)
def test_digits_being_dictated(text: str) -> None:
    assert EN.dictating(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "for two", "two", "at 8:30", "12/24", "$150", "3.50", "555 please", "room 12"),
        "555 010 0123",  # said to its end
        "nine to five",
    ],
)
def test_no_digits_being_dictated(text: str) -> None:
    assert not EN.dictating(text)


SPOKEN = "We are open from nine to five, Monday to Friday"


@pytest.mark.parametrize(
    "said, voice",
    [
        ("are open from nine", True),
        ("open from nine to", True),
        ("hope and from nine to five", False),  # by the ears nobody spoke, but words were added
        ("bar open from nine to", True),  # the first word was cut in half
        ("from nine to five mon", True),
        ("to five", False),
        ("Nine to five.", False),
    ],
)
def test_the_bots_own_words(said: str, voice: bool) -> None:
    expected = said != "hope and from nine to five"
    assert echoed(said, SPOKEN, voice=voice) is expected


@pytest.mark.parametrize(
    "said, voice",
    [
        ("Monday", True),  # an answer
        ("nine to five", True),
        ("Friday", False),
        ("open to nine from", True),
        ("are you open from nine", True),
        ("", False),
        ("no wait", False),
    ],
)
def test_the_callers_own_words(said: str, voice: bool) -> None:
    assert not echoed(said, SPOKEN, voice=voice)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_can_listen_stop_and_go_on(language: str) -> None:
    words = Vocabulary.of(f"{language}-XX")
    assert len(words.listening) > 12
    assert len(words.stopping) >= 10
    assert len(words.numerals) >= 10
    assert not words.listening & words.opening
    for phrase in words.stopping:
        assert phrase
        # Whatever else it is: a stop is never waited out, nor taken for listening.
        assert words.stops(" ".join(phrase))
        assert not words.only_listening(" ".join(phrase))
        assert not words.unfinished(" ".join(phrase))


def test_an_unknown_language_knows_the_sounds_only() -> None:
    words = Vocabulary.of("xx")
    assert words.only_listening("mm-hm")
    assert not words.only_listening("okay")
    assert not words.stops("stop")
    assert not words.unfinished("and")


def test_lists_can_be_given() -> None:
    words = Vocabulary.of("en", ("Roger",), ("abort mission",))
    assert words.only_listening("roger")
    assert not words.only_listening("yeah")
    assert words.stops("please ABORT mission now")
    assert not words.stops("stop")


@given(st.text(max_size=60), st.sampled_from(LANGUAGES))
def test_any_text_is_taken(text: str, language: str) -> None:
    words = Vocabulary.of(language)
    assert words.only_listening(text) == (words.count(text) == 0)
    assert not (words.only_listening(text) and words.dictating(text) and not words_of(text))
    assert words.unfinished(text) in {True, False}
    assert echoed(text, text, voice=True) == (len(words_of(text)) >= 4)
