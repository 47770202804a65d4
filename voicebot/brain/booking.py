"""What a table booking needs, read out of a caller's words: the day, the time, the guests.

Pure and deterministic; written for what speech recognition makes of a telephone: numbers as
digits or words, "to" for "two", times as "7:30", "730" or "half past seven".
"""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass, fields, replace
from typing import Final, Literal

Slot = Literal["day", "time", "guests"]

_UNITS: Final = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen", "twenty",
)  # fmt: skip  # one line a word would hide the table
_NUMBERS: Final = {word: n for n, word in enumerate(_UNITS)} | {
    "thirty": 30, "forty": 40, "fifty": 50, "couple": 2,
}  # fmt: skip  # one line reads better
_NAMED_ORDINALS: Final = (
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth",
    "eleventh", "twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth", "seventeenth",
    "eighteenth", "nineteenth", "twentieth",
)  # fmt: skip  # one line a word would hide the table
_ORDINALS: Final = {word: n for n, word in enumerate(_NAMED_ORDINALS, 1)} | {"thirtieth": 30}
# What a recogniser makes of a lone number; taken for one only where a number was asked for.
_SOUNDS_LIKE: Final = {
    "to": 2, "too": 2, "for": 4, "fore": 4, "ate": 8, "won": 1, "tree": 3, "sex": 6, "tan": 10,
}  # fmt: skip  # one line reads better

WEEKDAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS: Final = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip  # one line a word would hide the table

_DAYS: Final = "|".join(day.lower() for day in WEEKDAYS)
_MONTH_NAMES: Final = "|".join(month.lower() for month in MONTHS)
_DAY_FIRST: Final = re.compile(rf"\b(?:the )?(\d\d?)(?:st|nd|rd|th)?(?: of)? ({_MONTH_NAMES})\b")
_MONTH_FIRST: Final = re.compile(rf"\b({_MONTH_NAMES})(?: the)? (\d\d?)(?:st|nd|rd|th)?\b(?!:)")
_BARE_DAY: Final = re.compile(r"\b(\d\d?)(?:st|nd|rd|th)\b|\bon the (\d\d?)\b(?!:)")
_WEEKDAY: Final = re.compile(rf"\b(next )?({_DAYS})s?\b")

_MERIDIEM: Final = r"(?: ?(am|pm|in the (?:morning|afternoon|evening)|at night))?"
_CLOCK: Final = re.compile(rf"\b(\d\d?):(\d\d)\b{_MERIDIEM}")
_TIME_WITHOUT_COLON: Final = re.compile(
    r"(?<![\d:])([1-9]|1[0-2]) ?(00|15|20|30|40|45|50)\b(?! (?:people|guests|of us))"
)
_PAST: Final = re.compile(rf"\b(half|quarter) (past|to) (\d\d?)\b{_MERIDIEM}")
_HOUR: Final = re.compile(rf"\b(\d\d?)(?= o'?clock| ?[ap]m| in the)(?: o'?clock)?{_MERIDIEM}\b")
_AT_HOUR: Final = re.compile(r"\b(?:at|around|about|by|from) (\d\d?)\b(?! (?:people|guests))")
_GUESTS: Final = (
    re.compile(r"\b(\d\d?) (?:people|persons?|guests?|adults|seats?|of us|diners)\b"),
    re.compile(r"\b(?:table|party|group|booking|reservation) (?:for|of) (\d\d?)\b(?! ?[ap]m)"),
    re.compile(r"\bwe(?: are|'re| will be|'ll be) (\d\d?)\b"),
    re.compile(r"\bfor (\d\d?)\b(?! (?:o'?clock|am|pm|in the|hours?|minutes?))(?!st|nd|rd|th)"),
)
_ALONE: Final = re.compile(r"\b(?:just|only) (?:me|myself|for me)\b|\bby myself\b|\balone\b")

OPENS: Final = datetime.time(12)
CLOSES: Final = datetime.time(22)
CLOSED_WEEKDAY: Final = 0  # Monday


@dataclass(frozen=True, slots=True)
class Booking:
    """A booking so far; None is what is still to be asked."""

    day: datetime.date | None = None
    time: datetime.time | None = None
    guests: int | None = None

    def merge(self, later: Booking) -> Booking:
        """Return this booking with what was said later; later words win."""
        said = {f.name: getattr(later, f.name) for f in fields(later)}
        return replace(self, **{name: value for name, value in said.items() if value is not None})

    @property
    def missing(self) -> Slot | None:
        """The next thing to ask for."""
        if self.day is None:
            return "day"
        if self.time is None:
            return "time"
        return "guests" if self.guests is None else None


def normalize(text: str) -> str:
    """Return lower-case words with numbers as digits and clock times as 7:30."""
    text = text.lower().replace("’", "'")
    text = re.sub(r"\b([ap])\. ?m\b\.?", r"\1m", text)
    text = re.sub(r"(\d)[.](\d\d)\b", r"\1:\2", text)  # 7.30
    text = re.sub(r"\b(\d\d?) ?([ap]m)\b", r"\1 \2", text)
    text = re.sub(r"[^a-z0-9:' ]+", " ", text).replace(" '", " ")
    words = _join_numbers(text.split())
    text = " ".join(words)
    # "7 30" and "730" are times and nothing else that is said to a restaurant.
    return _TIME_WITHOUT_COLON.sub(r"\1:\2", text)


def _join_numbers(words: list[str]) -> list[str]:
    """Return the words with spelled numbers as digits: "twenty fifth" as 25th."""
    joined: list[str] = []
    tens = 0
    for word in words:
        part = word.strip("'")
        value, ordinal = _NUMBERS.get(part), _ORDINALS.get(part)
        if tens and (0 < (value or ordinal or 0) < 10):
            joined[-1] = f"{tens + (value or ordinal or 0)}{'th' if ordinal else ''}"
            tens = 0
            continue
        if value is not None:
            joined.append(str(value))
        elif ordinal is not None and not (part == "second" and joined[-1:] in (["a"], ["one"])):
            joined.append(f"{ordinal}th")
        else:
            joined.append(word)
        tens = value if value in {20, 30, 40, 50} else 0
    return joined


def read(text: str, today: datetime.date, asked: Slot | None = None) -> Booking:
    """Return whatever of a booking is in the words.

    A lone number is only taken for the slot that was `asked` for.
    """
    words = normalize(text)
    booking = Booking(read_day(words, today), read_time(words), read_guests(words))
    if asked is None or getattr(booking, asked) is not None:
        return booking
    match asked:
        case "day":
            number = _lone_number(words, 31)
            return replace(booking, day=_next_day_of_month(number, today) if number else None)
        case "time":
            number = _lone_number(words, 24)
            return replace(booking, time=_clock(number, 0, "") if number else None)
        case "guests":
            return booking.merge(Booking(guests=_lone_number(words, 99)))


def read_day(words: str, today: datetime.date) -> datetime.date | None:
    """Return the day that is meant, today or later; `words` are normalised."""
    if "day after tomorrow" in words:
        return today + datetime.timedelta(days=2)
    if re.search(r"\btomorrow\b", words):
        return today + datetime.timedelta(days=1)
    if match := _last(_DAY_FIRST, words):
        return _day_of(int(match[1]), match[2], today)
    if match := _last(_MONTH_FIRST, words):
        return _day_of(int(match[2]), match[1], today)
    if match := _last(_BARE_DAY, words):
        return _next_day_of_month(int(match[1] or match[2]), today)
    if match := _last(_WEEKDAY, words):
        index = [day.lower() for day in WEEKDAYS].index(match[2])
        # "Friday" said on a Friday is in a week: for today people say today.
        ahead = (index - today.weekday() - 1) % 7 + 1
        if match[1] and ahead <= 6 - today.weekday():
            ahead += 7  # next Friday is Friday of next week
        return today + datetime.timedelta(days=ahead)
    if re.search(r"\b(?:today|tonight|this (?:evening|afternoon))\b", words):
        return today
    return None


def read_time(words: str) -> datetime.time | None:
    """Return the time that is meant; an hour without am or pm is when the house is open."""
    if match := _last(_CLOCK, words):
        return _clock(int(match[1]), int(match[2]), match[3] or "")
    if match := _last(_PAST, words):
        minutes = 30 if match[1] == "half" else 15
        hour = int(match[3])
        if match[2] == "to":
            hour, minutes = hour - 1 or 12, 60 - minutes
        return _clock(hour, minutes, match[4] or "")
    if match := _last(_HOUR, words):
        return _clock(int(match[1]), 0, match[2] or "")
    if match := _last(_AT_HOUR, words):
        return _clock(int(match[1]), 0, "")
    if re.search(r"\b(?:noon|midday)\b", words):
        return datetime.time(12)
    return None


def read_guests(words: str) -> int | None:
    """Return how many come."""
    words = re.sub(r"\b(?:to|too) (?=people|persons|guests|of us)", "2 ", words)
    words = re.sub(r"\btable for (?:to|too)\b", "table for 2", words)
    words = re.sub(r"\btable for for\b", "table for 4", words)
    words = re.sub(r"\b(?:a )?2 of\b(?= (?:people|guests))", "2", words)
    words = _CLOCK.sub("", words)
    for pattern in _GUESTS:
        if (match := _last(pattern, words)) and int(match[1]) > 0:
            return int(match[1])
    return 1 if _ALONE.search(words) else None


def _last(pattern: re.Pattern[str], words: str) -> re.Match[str] | None:
    """Return the last match: who corrects himself says the right one last."""
    return max(pattern.finditer(words), key=lambda match: match.start(), default=None)


def _lone_number(words: str, most: int) -> int | None:
    """Return the only number among the words, or what one small word sounds like."""
    numbers = re.findall(r"(?<![\d:])\b(\d+)\b(?![\d:])", words)
    if len(set(numbers)) == 1 and 0 < int(numbers[0]) <= most:
        return int(numbers[0])
    return _SOUNDS_LIKE.get(words)


def _clock(hour: int, minute: int, meridiem: str) -> datetime.time | None:
    morning = meridiem in {"am", "in the morning"}
    if hour == 12 and morning:
        hour = 0
    elif hour < 12 and not morning:
        hour += 12  # afternoon or evening: the house is closed in the morning
    return datetime.time(hour, minute) if hour < 24 and minute < 60 else None


def _day_of(day: int, month: str, today: datetime.date) -> datetime.date | None:
    number = [name.lower() for name in MONTHS].index(month) + 1
    for year in range(today.year, today.year + 5):  # the 29th of February may be four years off
        try:
            date = datetime.date(year, number, day)
        except ValueError:
            continue
        if date >= today:
            return date
    return None


def _next_day_of_month(day: int, today: datetime.date) -> datetime.date | None:
    if not 1 <= day <= 31:
        return None
    date = today
    while date.day != day:
        date += datetime.timedelta(days=1)
    return date


def spoken_day(day: datetime.date) -> str:
    """Return "Saturday, November 28th"."""
    suffix = {1: "st", 2: "nd", 3: "rd"}.get(day.day % 10 if day.day not in {11, 12, 13} else 0)
    return f"{WEEKDAYS[day.weekday()]}, {MONTHS[day.month - 1]} {day.day}{suffix or 'th'}"


def spoken_time(time: datetime.time) -> str:
    """Return "7:30 in the evening"."""
    if time.minute == 0 and time.hour == 12:
        return "noon"
    hour = time.hour % 12 or 12
    minute = f":{time.minute:02}" if time.minute else ""
    part = "morning" if time.hour < 12 else "afternoon" if time.hour < 18 else "evening"
    return f"{hour}{minute} in the {part}"


def spoken_guests(guests: int) -> str:
    """Return "four" for 4; digits where words would be long."""
    return _UNITS[guests] if guests < len(_UNITS) else str(guests)
