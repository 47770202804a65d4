"""The reception desk of a barber: says what is free, and books it in an SQLite file.

    voicebot serve --bot examples/reception.py
    voicebot simulate --bot examples/reception.py CALLER.wav

With GROQ_API_KEY a language model answers and calls the same tools; the rules below do otherwise.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import date, timedelta
from typing import Final

from voicebot import Bot, Call, tool
from voicebot.brain.rules import Rules, use, when

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


@tool(timeout_s=5, filler="Let me look.")
def free_times(day: date | None = None) -> str:
    """Say what is free on a day.

    Args:
        day: tomorrow, if it is left out
    """
    day = day or date.today() + timedelta(days=1)
    with bookings() as db:
        taken = {hour for (hour,) in db.execute("SELECT hour FROM bookings WHERE day = ?", [day])}
    free = [f"{hour} o'clock" for hour in OPEN if hour not in taken][:LISTED]
    return f"On {day:%A} there is {', '.join(free)}." if free else f"On {day:%A} we are full."


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
    try:
        with bookings() as db:
            db.execute("INSERT INTO bookings VALUES (?, ?, ?)", [day, hour, call.caller])
    except sqlite3.IntegrityError:
        return f"{hour} o'clock is taken."
    return f"You are booked for {day:%A} at {hour} o'clock."


bot = Bot(
    prompt="You answer the phone of the barber Figaro. Today is {{today}}. Answer in one or two "
    "short spoken sentences. Look with free_times before you offer an hour, and book only what "
    "the caller has agreed to.",
    greeting="Figaro, hello. Would you like an appointment?",
    tools=[free_times, book],
    brain=Rules(
        when(r"\bat (?P<hour>\d+)\b", use("book", {"hour": "{hour}"})),
        when(r"\b(yes|free|appointment|book|tomorrow)\b", use("free_times")),
        when(r"\b(bye|goodbye|no|thanks)\b", use("hang_up", say="Goodbye.")),
        otherwise="I can say what is free tomorrow, or book, for example at 11.",
    ),
)
