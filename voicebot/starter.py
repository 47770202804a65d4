"""The command `voicebot new NAME`: writes a small bot with a tool, and a test that passes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from voicebot.errors import ConfigError

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")

_BOT: Final = '''\
"""The bot of this folder. See docs/bots.md of voicebot for everything a bot can say and do."""

from voicebot import Bot, Call, tool
from voicebot.brain.rules import Rules, use, when

OPEN = "Tuesday to Saturday, from nine to five"
FREE = {9: 2, 11: 4, 15: 1}  # hour: chairs; ask your calendar instead


@tool(timeout_s=5, filler="Let me look.")
def free_times(people: int = 1) -> str:
    """Say at which hours of today there is still room.

    Args:
        people: how many want to come together
    """
    hours = [str(hour) for hour, chairs in FREE.items() if chairs >= people]
    return f"There is room at {' and at '.join(hours)} o'clock." if hours else "We are full today."


@tool(timeout_s=5, idempotent=False)  # never twice for one request
async def book(hour: int, people: int = 1, *, call: Call) -> str:
    """Book, once the caller has agreed to the hour.

    Args:
        hour: full hour of today, 0 to 23
        people: how many come
    """
    if FREE.get(hour, 0) < people:
        return f"There is no room at {hour} o'clock."
    FREE[hour] -= people
    call.state["booked"] = hour
    return f"Booked for {people} at {hour} o'clock."


def on_call_end(call, summary):
    print(f"{call.call_sid}: {len(summary.turns)} turns, booked: {call.state.get('booked')}")


# Answers where no language model is configured: set GROQ_API_KEY, and this is not asked.
brain = Rules(
    when(r"\\b(open|hours|when)\\b", f"We are open {OPEN}."),
    when(r"\\bat (?P<hour>\\d+)\\b", use("book", {"hour": "{hour}"})),
    when(r"\\b(free|room|appointment|book)\\b", use("free_times")),
    when(r"\\b(bye|goodbye)\\b", use("hang_up", say="Thank you for calling. Goodbye.")),
    otherwise="I can tell you our hours and what is free, or book, for example at 11.",
)

bot = Bot(
    prompt=f"You answer the phone of a barber called @NAME@. Today is {{{{today}}}}. It is open "
    f"{OPEN}. Answer in one or two short spoken sentences. Look with free_times before you offer "
    "an hour, and book only what the caller has agreed to.",
    greeting="Hello, this is @NAME@. How can I help you?",
    tools=[free_times, book],
    on_call_end=on_call_end,
    brain=brain,
)
'''

_TEST: Final = '''\
"""Whole calls with the bot, in virtual time: no key, no network, no waiting. Run: pytest"""

import pytest
from bot import FREE, bot
from voicebot.ports import ToolCall
from voicebot.testing import InterruptAfter, Reply, Script, ScriptedChat, caller_says, hold_bot


@pytest.fixture(autouse=True)
def _same_free_times(monkeypatch):
    for hour, chairs in {9: 2, 11: 4, 15: 1}.items():
        monkeypatch.setitem(FREE, hour, chairs)


def test_a_caller_books_a_free_hour():
    script = Script((caller_says("is there room today"), caller_says("then at 11 please")))

    call = hold_bot(bot, script)

    heard = [turn.heard for turn in call.summary.turns]
    assert heard[1] == "There is room at 9 and at 11 and at 15 o'clock."
    assert heard[2] == "Booked for 1 at 11 o'clock."
    assert FREE[11] == 3
    assert call.verdict.passed


def test_the_bot_stops_for_the_caller():
    script = Script((caller_says("when are you open"), caller_says("at 9", InterruptAfter(500))))

    call = hold_bot(bot, script)

    assert call.summary.turns[1].interrupted
    assert call.verdict.passed  # silent in time


def test_the_language_model_is_told_what_it_got_wrong():
    wrong = ToolCall("1", "book", '{"hour": "noon"}')
    model = ScriptedChat([Reply("", (wrong,)), "At which hour, please?"])

    call = hold_bot(bot, Script((caller_says("book me in at noon"),)), chat=model)

    assert "hour: input should be a valid integer" in call.summary.turns[1].tools[0].result
    assert call.summary.turns[1].heard == "At which hour, please?"
'''

_ENV: Final = """\
# Copy to .env. Without any of these the bot runs on this machine alone, with the rules in bot.py.
VOICEBOT_BOT=bot.py
#GROQ_API_KEY=        # a language model answers, and calls the tools
#DEEPGRAM_API_KEY=    # hears and speaks
#TWILIO_ACCOUNT_SID=  # a telephone; with TWILIO_AUTH_TOKEN, TWILIO_FROM_NUMBER and PUBLIC_URL
#VOICEBOT_API_KEYS=   # who may use the calls API: voicebot keys new NAME --scopes read,place
"""

_README: Final = """\
# @NAME@

    voicebot serve --dev --bot bot.py                 # answers this machine; says how to try it
    voicebot simulate --bot bot.py CALLER.wav         # plays a recorded caller to it
    pip install pytest && pytest                      # whole calls in virtual time
"""

_FILES: Final = {
    "bot.py": _BOT, "test_bot.py": _TEST, ".env.example": _ENV, "README.md": _README,
}  # fmt: skip  # one line


def write_bot(folder: Path) -> list[Path]:
    """Write a starting bot into a folder, which is made if it is not there; return its files.

    Raises:
        ConfigError: the name is none, or a file is there already. Nothing is written then.
    """
    if not _NAME.fullmatch(folder.name):
        raise ConfigError([f"{folder}: a name has letters, digits, - and _, and begins with one"])
    taken = [folder / name for name in _FILES if (folder / name).exists()]
    if taken:
        raise ConfigError([f"{path}: is there already; choose another name" for path in taken])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in _FILES.items():
            (folder / name).write_text(text.replace("@NAME@", folder.name), encoding="utf-8")
    except OSError as exc:
        raise ConfigError([f"{folder}: cannot be written: {exc.strerror}"]) from exc
    return [folder / name for name in _FILES]


def report(folder: Path) -> str:
    """Return what to do with the new bot."""
    return "\n".join(
        [
            f"written: {', '.join(_FILES)} in {folder}",
            "",
            "  voicebot serve --dev --bot bot.py   in that folder: answers this machine",
            "  pytest                              whole calls in virtual time; pip install pytest",
        ]
    )
