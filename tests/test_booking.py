"""Days, times and guests, read out of words as a recogniser writes them."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicebot.brain import booking
from voicebot.brain.booking import Booking, Slot

SUNDAY = datetime.date(2026, 11, 22)


def day(month: int, number: int, year: int = 2026) -> datetime.date:
    return datetime.date(year, month, number)


@pytest.mark.parametrize(
    "words, expected",
    [
        ("today", day(11, 22)),
        ("a table for tonight", day(11, 22)),
        ("Tomorrow.", day(11, 23)),
        ("the day after tomorrow", day(11, 24)),
        ("on Tuesday", day(11, 24)),
        ("Sunday", day(11, 29)),
        ("Saturdays", day(11, 28)),
        ("next Friday", day(11, 27)),
        ("the 5th of December", day(12, 5)),
        ("December 5.", day(12, 5)),
        ("December the fifth", day(12, 5)),
        ("the twenty-fifth of December", day(12, 25)),
        ("the first of January", day(1, 1, 2027)),
        ("November 21st", day(11, 21, 2027)),
        ("the 28th", day(11, 28)),
        ("on the 3rd", day(12, 3)),
        ("the 29th of February", day(2, 29, 2028)),
        ("Friday, no, Saturday", day(11, 28)),
        ("the 30th of February", None),
        ("may I have a table", None),
        ("at seven", None),
    ],
)
def test_day(words: str, expected: datetime.date | None) -> None:
    assert booking.read(words, SUNDAY).day == expected


def test_next_friday_is_the_friday_of_next_week() -> None:
    tuesday = day(11, 24)

    assert booking.read("Friday", tuesday).day == day(11, 27)
    assert booking.read("next Friday", tuesday).day == day(12, 4)


@pytest.mark.parametrize(
    "words, expected",
    [
        ("at seven", "19:00"),
        ("at 7:30 p.m.", "19:30"),
        ("7.30", "19:30"),
        ("730", "19:30"),
        ("seven thirty", "19:30"),
        ("half past seven", "19:30"),
        ("a quarter to eight", "19:45"),
        ("quarter past 12", "12:15"),
        ("eight o'clock", "20:00"),
        ("19:30", "19:30"),
        ("around eleven a.m.", "11:00"),
        ("at noon", "12:00"),
        ("9 in the morning", "09:00"),
        ("at seven, no, at eight", "20:00"),
        ("a table for four at six forty five", "18:45"),
        ("a table for seven people", None),
        ("25:99", None),
    ],
)
def test_time(words: str, expected: str | None) -> None:
    time = booking.read(words, SUNDAY).time

    assert (time and time.isoformat("minutes")) == expected


@pytest.mark.parametrize(
    "words, expected",
    [
        ("for four", 4),
        ("a table for two", 2),
        ("a table for to", 2),
        ("for to people", 2),
        ("table for for", 4),
        ("a party of twelve", 12),
        ("there are five of us", 5),
        ("we are six", 6),
        ("twenty five guests", 25),
        ("a couple of people", 2),
        ("just me", 1),
        ("for two at 7:30", 2),
        ("two people, no, three people", 3),
        ("for 7 p.m.", None),
        ("for seven thirty", None),
        ("for the 5th", None),
        ("on Friday at seven", None),
    ],
)
def test_guests(words: str, expected: int | None) -> None:
    assert booking.read(words, SUNDAY).guests == expected


@pytest.mark.parametrize(
    "asked, words, expected",
    [
        ("day", "the 28", Booking(day=day(11, 28))),
        ("time", "Seven.", Booking(time=datetime.time(19))),
        ("time", "the 5th of December", Booking(day=day(12, 5))),
        ("guests", "Too.", Booking(guests=2)),
        ("guests", "4", Booking(guests=4)),
        ("guests", "a hundred thousand", Booking()),
        (None, "seven", Booking()),
    ],
)
def test_a_lone_number_is_for_the_slot_that_was_asked_for(
    asked: Slot | None, words: str, expected: Booking
) -> None:
    assert booking.read(words, SUNDAY, asked) == expected


def test_later_words_win_and_unsaid_slots_stay() -> None:
    first = Booking(day=SUNDAY, guests=2)

    assert first.merge(Booking(guests=3)) == Booking(day=SUNDAY, guests=3)


def test_what_is_missing_is_asked_in_order() -> None:
    assert Booking().missing == "day"
    assert Booking(day=SUNDAY).missing == "time"
    assert Booking(day=SUNDAY, time=datetime.time(19)).missing == "guests"
    assert Booking(SUNDAY, datetime.time(19), 2).missing is None


@given(st.dates(SUNDAY, datetime.date(2027, 11, 20)))
def test_a_day_is_understood_as_it_is_spoken(date: datetime.date) -> None:
    assert booking.read(booking.spoken_day(date), SUNDAY).day == date


@given(st.integers(12, 21), st.sampled_from([0, 15, 30, 45]))
def test_a_time_is_understood_as_it_is_spoken(hour: int, minute: int) -> None:
    time = datetime.time(hour, minute)

    assert booking.read(booking.spoken_time(time), SUNDAY).time == time


@given(st.text())
def test_no_words_break_it(text: str) -> None:
    booking.read(text, SUNDAY, "time")
