"""What a caller wants, by their words alone: key words, as speech recognition spells them.

Pure and deterministic. Written for a telephone line, where long words come out misspelt
("preservation") and short ones as others; the conversation around the words is not looked at.
"""

from __future__ import annotations

import datetime
import difflib
import enum
import re
from functools import lru_cache
from typing import Final

from voicebot.brain import booking
from voicebot.brain.booking import Booking


class Intent(enum.Enum):
    """One thing a caller may want."""

    NOTHING = "nothing"  # no words
    STORY = "story"
    WHO = "who"  # is this a machine?
    TRANSFER = "transfer"
    CANCEL = "cancel"
    GOODBYE = "goodbye"
    REPEAT = "repeat"
    CONTINUE = "continue"
    WAIT = "wait"
    BOOKING = "booking"
    HOURS = "hours"
    ADDRESS = "address"
    MENU = "menu"
    HELP = "help"
    YES = "yes"
    NO = "no"
    DETAIL = "detail"  # a day, a time or a number of guests
    NUMBER = "number"
    THANKS = "thanks"
    SORRY = "sorry"
    GREETING = "greeting"
    UNKNOWN = "unknown"


# The first that matches wins, so the specific stand before the general.
_PATTERNS: Final = tuple(
    (intent, re.compile(pattern))
    for intent, pattern in (
        (Intent.STORY, r"\b(story|stories|tale)\b"),
        (Intent.WHO, r"\b(are you (a|an|real|really|human)|am i (speaking|talking) (to|with) a)\b"),
        (
            Intent.TRANSFER,
            r"\b(operator|representative|agent|human|transfer|supervisor|manager|receptionist|"
            r"colleague|staff|customer service|put me through|connect me|call me back)s?\b|"
            r"\b(speak|talk)(ing)? (to|with)\b|\b(real|actual|a) person\b",
        ),
        (Intent.CANCEL, r"\b(cancel|cancell?ed|never ?mind|forget (it|about it)|scrap)\b"),
        (
            Intent.GOODBYE,
            r"\b(good ?bye|bye|good night|see you|hang up|that'?s (all|it)|that is all)\b",
        ),
        (
            Intent.REPEAT,
            r"\b(repeat|pardon|(say|come) (that |it )?again|once more|what did you (just )?say|"
            r"(didn't|did not|couldn't|can't) (\w+ )?(hear|catch|get|understand))\b|"
            r"^(what|sorry what|excuse me)$",
        ),
        (Intent.CONTINUE, r"\b(go on|continue|carry on|keep going|(and )?then what)\b"),
        (
            Intent.WAIT,
            r"\b((1|a) (moment|second|minute)|hold (on|while)|hang on|please hold|wait)\b",
        ),
        (Intent.BOOKING, r"\b(book|booking|booked|reserve|reservations?|a table|table for)\b"),
        (
            Intent.HOURS,
            r"\b(hours?|opening|open|opens|close|closes|closed|closing|when (are|do|is)|what time|"
            r"how (late|early|long))\b|^time$",
        ),
        (
            Intent.ADDRESS,
            r"\b(address|location|located|where|directions?|park|parking|find you|get there)\b",
        ),
        (
            Intent.MENU,
            r"\b(menu|eat|food|dish|dishes|pizzas?|pasta|vegetarian|vegan|gluten|allerg\w+|price|"
            r"prices|cost|expensive|special|specials|wine|drinks?|dessert|serve|cook|takeaway)\b",
        ),
        (Intent.HELP, r"\b(help|what can you do|what can i (do|say|ask)|options)\b"),
        (
            Intent.YES,
            r"^(yes|yeah|yep|yup|ya|sure|okay|ok|correct|exactly|absolutely|certainly|definitely|"
            r"of course|please do|perfect|great|fine|sounds good|right$|do it|go ahead|"
            r"(that's|that is|it's|it is) (right|correct|fine|good|perfect|okay))\b",
        ),
        (Intent.NO, r"^(no|nope|nah|not|wrong|incorrect|don't|do not)\b"),
    )
)
_COURTESIES: Final = (
    (Intent.THANKS, re.compile(r"\b(thanks?|thank you|cheers)\b")),
    (Intent.SORRY, re.compile(r"\b(sorry|apologies|apologi[sz]e)\b")),
    (Intent.GREETING, re.compile(r"\b(hello|hi|hey|good (day|morning|afternoon|evening))\b")),
)
MONTH: Final = re.compile(rf"\b({'|'.join(booking.MONTHS).lower()})\b")
_NUMBER: Final = re.compile(r"\b\d+(st|nd|rd|th)?\b")

# Long words worth knowing when they are misspelt; a short one is too easily another word.
_KEYWORDS: Final = (
    "operator", "representative", "transfer", "receptionist", "supervisor", "cancel", "goodbye",
    "repeat", "continue", "booking", "reservation", "reserve", "opening", "closing", "address",
    "location", "directions", "vegetarian", "people", "guests", "tomorrow", "evening", "tonight",
    "moment", "thanks", *(day.lower() for day in booking.WEEKDAYS),
    *(month.lower() for month in booking.MONTHS if len(month) > 5),
)  # fmt: skip  # one word a line would hide the list
_MIN_KEYWORD: Final = 6
_SIMILAR: Final = 0.84  # "preservation" is a reservation, "operation" no operator


@lru_cache(maxsize=4_096)
def _spelled(word: str) -> str:
    """Return the key word that a misspelt word stands for, or the word itself."""
    if len(word) < _MIN_KEYWORD or word in _KEYWORDS:
        return word
    return (*difflib.get_close_matches(word, _KEYWORDS, 1, _SIMILAR), word)[0]


def words_of(text: str) -> str:
    """Return normalised words with misspelt key words put right."""
    return " ".join(map(_spelled, booking.normalize(text).split()))


def classify(text: str) -> Intent:
    """Return what the words want, seen without the conversation around them."""
    words = words_of(text)
    if not words:
        return Intent.NOTHING
    for intent, pattern in _PATTERNS:
        if pattern.search(words):
            return intent
    if booking.read(words, datetime.date.min) != Booking() or MONTH.search(words):
        return Intent.DETAIL
    for intent, pattern in _COURTESIES:
        if pattern.search(words):
            return intent
    return Intent.NUMBER if _NUMBER.search(words) else Intent.UNKNOWN
