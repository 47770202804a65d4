"""Example bots on the telephone: a real server, stand-ins, and people who are called.

All of them in virtual time: `examples/test_examples.py`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from examples import menu, reception, reminder
from tests.e2e.running import recorded
from tests.e2e.test_telephone import says, world
from voicebot import Bot
from voicebot.simulator import Script, Utterance, WhenSilent
from voicebot.simulator.telephone import Person


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECEPTION_DB", str(tmp_path / "reception.db"))
    monkeypatch.setenv("REMINDERS", str(tmp_path / "reminders.jsonl"))


def talks(times: int) -> Script:
    """Return somebody who says so many things, each when the bot is silent."""
    said = recorded("hello-world", 1.0)
    return Script(tuple(Utterance(f"{n}", said, WhenSilent(0.4)) for n in range(times)))


def brief(bot: Bot) -> Bot:
    """Return a bot that does not make the tests wait for its greeting."""
    return replace(bot, greeting="Hello.")


async def test_reception_books_over_the_telephone() -> None:
    async with world([], texts=("at 11 please",), bot=brief(reception.bot)) as here:
        call = await here.phones.call_in(talks(1))
        await here.server.wait_idle()
        record = await here.record(call)
    assert call.errors == []
    assert record["turns"][1]["heard"].endswith("at 11 o'clock.")
    with reception.bookings() as db:
        assert db.execute("SELECT hour, phone FROM bookings").fetchall() == [(11, call.from_)]


async def test_reminder_talks_to_people_and_leaves_messages_on_machines(tmp_path: Path) -> None:
    asked = {"metadata": {"name": "Ada", "when": "tomorrow at ten"}, "voicemail": "Remember it."}
    async with world([], Person((says(),)), texts=("yes",), bot=reminder.bot) as here:
        _, record = await here.place(**asked)
    assert record["turns"][0]["heard"].startswith("Hello Ada,")
    assert json.loads((tmp_path / "reminders.jsonl").read_text())["answer"] == "comes"

    machine = Person(taken_for="machine_end_beep", detected_s=1.0)
    async with world([], machine, bot=brief(reminder.bot)) as here:
        _, record = await here.place(**asked)
    assert record["turns"][-1]["heard"] == "Remember it."


async def test_menu_takes_keys_over_the_wire() -> None:
    pressed = Script(
        (Utterance("2", digits="2"), Utterance("pin", digits="8046", when=WhenSilent()))
    )
    async with world([], bot=brief(menu.bot)) as here:
        call = await here.phones.call_in(pressed)
        await here.server.wait_idle()
        record = await here.record(call)
    assert record["turns"][-1]["heard"] == "You have twelve euros and thirty cents."
    assert "8046" not in json.dumps(record)
