"""The reception desk of a barber: says what is free, and books it in an SQLite file.

    voicebot serve --dev --bot examples/reception.py
    voicebot simulate --bot examples/reception.py CALLER.wav

With GROQ_API_KEY a language model answers and calls the same tools; the rules below do otherwise.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import date, datetime, time, timedelta
from typing import Final

from voicebot import Bot, Call, tool
from voicebot.brain.booking import WEEKDAYS, read_day
from voicebot.brain.rules import Rules, Said, Use, use, when

OPEN: Final = range(9, 17)  # an appointment takes an hour
LISTED: Final = 3  # nobody remembers more when they hear it


@contextmanager
def bookings() -> Iterator[sqlite3.Connection]:
    """Open the file, for one tool: each runs in a thread of its own."""
    with closing(sqlite3.connect(os.environ.get("RECEPTION_DB", "reception.db"))) as db, db:
        db.execute(
            "CREATE TABLE IF NOT EXISTS bookings "
            "(day TEXT, hour INTEGER, phone TEXT, PRIMARY KEY (day, hour))"
        )
        yield db


def is_over(day: date, hour: int) -> bool:
    """Say whether it is too late for this hour."""
    return datetime.combine(day, time(hour)) <= datetime.now()


@tool(timeout_s=5, filler="Let me look.")
def free_times(day: date | None = None) -> str:
    """Say what is free on a day.

    Args:
        day: tomorrow, if it is left out
    """
    day = day or date.today() + timedelta(days=1)
    with bookings() as db:
        rows = db.execute("SELECT hour FROM bookings WHERE day = ?", [day.isoformat()])
        taken = {hour for (hour,) in rows}
    free = [f"{hour} o'clock" for hour in OPEN if hour not in taken and not is_over(day, hour)]
    there_is = f"there is {', '.join(free[:LISTED])}" if free else "we have nothing free"
    return f"On {day:%A} {there_is}."


@tool(timeout_s=5, idempotent=False)
def book(hour: int, day: date | None = None, *, call: Call) -> str:
    """Book an hour, once the caller has agreed to it.

    Args:
        hour: full hour, 9 to 16
        day: tomorrow, if it is left out
    """
    day = day or date.today() + timedelta(days=1)
    if hour not in OPEN:
        return f"We are open from {OPEN.start} to {OPEN.stop}."
    if is_over(day, hour):
        return "That time is over."
    try:
        with bookings() as db:
            db.execute(
                "INSERT INTO bookings VALUES (?, ?, ?)", [day.isoformat(), hour, call.caller]
            )
    except sqlite3.IntegrityError:
        return f"{hour} o'clock is taken."
    return f"You are booked for {day:%A} at {hour} o'clock."


def remember_day(said: Said) -> None:
    """Keep the day that was named, for this turn and the next ones, and let another rule answer."""
    if day := read_day(said.words, date.today()):
        said.state["day"] = day.isoformat()


def look(said: Said) -> Use:
    """Look at the day that was spoken of."""
    return use("free_times", said.state)


def take(said: Said) -> Use | str:
    """Book the hour, on the day that was spoken of."""
    hour = int(said["hour"])
    if said["minutes"] not in ("", ":00"):
        return "We begin at the full hour. Which hour would you like?"
    if hour < OPEN.start or (said["half"] == "pm" and hour < 12):
        hour += 12  # "at three" is in the afternoon
    return use("book", {"hour": hour, **said.state})


bot = Bot(
    prompt="You answer the phone of the barber Figaro. Today is {{today}}. Answer in one or two "
    "short spoken sentences. Look with free_times before you offer an hour, and book only what "
    "the caller has agreed to.",
    greeting="Figaro, hello. Would you like an appointment?",
    tools=[free_times, book],
    brain=Rules(
        when(r"", remember_day),
        when(r"\bat (?P<hour>\d\d?)(?P<minutes>:\d\d)?\b(?: (?P<half>[ap]m))?", take),
        when(r"\b(?P<hour>\d\d?)(?P<minutes>:\d\d)? (?P<half>o'clock|[ap]m)\b", take),
        when(r"^(?P<hour>\d\d?)(?P<minutes>:\d\d)?(?P<half>) ?(please)?$", take),
        when(rf"\b(yes|free|appointment|book|today|tomorrow|{'|'.join(WEEKDAYS).lower()})\b", look),
        when(r"\b(bye|goodbye|no|thanks)\b", use("hang_up", say="Goodbye.")),
        otherwise="I can say what is free tomorrow, or book, for example at 11.",
    ),
)
