"""Example bots on the telephone: a real server, stand-ins, and people who are called.

All of them in virtual time: `examples/test_examples.py`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from examples import menu, reception, reminder, survey
from tests.e2e.running import recorded
from tests.e2e.test_telephone import COLLEAGUE, TO, world
from voicebot import Bot
from voicebot.simulator import InterruptAfter, Script, Utterance, WhenSilent
from voicebot.simulator.telephone import Person


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECEPTION_DB", str(tmp_path / "reception.db"))
    monkeypatch.setenv("REMINDERS", str(tmp_path / "reminders.jsonl"))
    monkeypatch.setenv("SURVEY", str(tmp_path / "survey.jsonl"))


def talks(times: int) -> Script:
    """Return somebody who says so many things, each when the bot is silent."""
    said = recorded("hello-world", 1.0)
    return Script(tuple(Utterance(f"{n}", said, WhenSilent(0.4)) for n in range(times)))


def brief(bot: Bot) -> Bot:
    """Return a bot that does not make the tests wait for its greeting."""
    return replace(bot, greeting="Hello.")


async def test_people_call_reception_and_the_menu() -> None:
    async with trio.open_nursery() as nursery:  # owns: a server and a call each
        nursery.start_soon(book_at_reception)
        nursery.start_soon(press_keys)


async def test_reminder_and_survey_call_people(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:  # owns: a server each, and its calls
        nursery.start_soon(remind, tmp_path / "reminders.jsonl")
        answers = tmp_path / "survey.jsonl"
        nursery.start_soon(ask_the_unhappy, 2, Person(talks_s=0.1), "completed", answers)
        nursery.start_soon(ask_the_unhappy, 3, Person(does="busy"), "busy", answers)


async def book_at_reception() -> None:
    async with world([], texts=("at 11 please",), bot=brief(reception.bot)) as here:
        call = await here.phones.call_in(talks(1))
        await here.server.wait_idle()
        record = await here.record(call)
    assert call.errors == []
    assert record["turns"][1]["heard"].endswith("at 11 o'clock.")
    with reception.bookings() as db:
        assert db.execute("SELECT hour, phone FROM bookings").fetchall() == [(11, call.from_)]


async def press_keys() -> None:
    """Press a key for the balance, and the PIN over the question for it."""
    pin = Utterance("PIN", digits="8046", when=InterruptAfter(500))
    async with world([], bot=brief(menu.bot)) as here:
        call = await here.phones.call_in(Script((Utterance("2", digits="2"), pin)))
        await here.server.wait_idle()
        record = await here.record(call)
    assert call.errors == []
    assert [turn["interrupted"] for turn in record["turns"]] == [False, True, False]
    assert record["turns"][-1]["heard"] == "You have twelve euros and thirty cents."
    assert "8046" not in json.dumps(record)


async def remind(notes: Path) -> None:
    """Call a person, who answers yes, and a machine, which records a message."""
    asked = {"metadata": {"name": "Ada", "when": "at ten"}, "voicemail": "Remember it."}
    bot = replace(reminder.bot, greeting="Hello {{name}}, can you come {{when}}?")
    machine = Person(taken_for="machine_end_beep", detected_s=1.0)
    async with world([], Person((talks(1),)), machine, texts=("yes",), bot=bot) as here:
        async with trio.open_nursery() as nursery:  # owns: waiting for the two calls
            for number in (TO, COLLEAGUE):
                answer = await here.client.post("/calls", json={"to": number, **asked})
                nursery.start_soon(here.phones.calls[answer.json()["call_sid"]].over.wait)
        await here.server.wait_idle()
        person, message = [await here.record(call) for call in here.phones.calls.values()]
    assert person["answered_by"] == "human"
    assert person["turns"][0]["heard"] == "Hello Ada, can you come at ten?"
    assert [(line["name"], line["answer"]) for line in lines(notes)] == [("Ada", "comes")]
    assert message["outcome"] == "voicemail"
    assert message["turns"][-1]["heard"] == "Remember it."


async def ask_the_unhappy(rating: int, manager: Person, status: str, answers: Path) -> None:
    """Ask somebody who then wants the manager, and gets them or is back with the bot."""
    texts = (str(rating), "the breakfast", "no", "yes please")
    yes = Utterance("yes", recorded("hello-world", 1.0), InterruptAfter(1_000))  # over the offer
    people = Person((Script((*talks(3).utterances, yes)), talks(0))), manager
    async with world([], *people, texts=texts, bot=brief(survey.bot)) as here:
        call, record = await here.place()
    [row] = [row for row in lines(answers) if row["rating"] == rating]
    assert (row["call"], row["better"], row["again"]) == (call.sid, "the breakfast", "no")
    assert call.errors == []
    assert record["turns"][3]["interrupted"]
    [colleague] = call.dialled
    assert (colleague.to, colleague.status) == (COLLEAGUE, status)
    put_through, *back = [turn["heard"] for turn in record["turns"][4:]]
    assert put_through == "I am putting you through."
    if status == "completed":
        assert colleague.said == [f"A guest was {rating} of 10 happy: the breakfast"]
        assert back == []
    else:
        assert back == ["I am sorry, nobody is free. Shall I try again?"]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
