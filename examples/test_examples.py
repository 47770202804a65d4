"""The example bots, each in whole calls in virtual time: no key, no network, no waiting.

pytest examples/test_examples.py
"""

from __future__ import annotations

import json
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from examples import menu, reception, reminder, survey
from voicebot import Call
from voicebot.botfile import load_bot
from voicebot.brain.booking import WEEKDAYS
from voicebot.ports import ToolCall
from voicebot.record import Outcome
from voicebot.testing import (
    HeldCall,
    InterruptAfter,
    Reply,
    Script,
    ScriptedChat,
    Utterance,
    WhenSilent,
    caller_says,
    hold_bot,
)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECEPTION_DB", str(tmp_path / "reception.db"))
    monkeypatch.setenv("REMINDERS", str(tmp_path / "reminders.jsonl"))
    monkeypatch.setenv("SURVEY", str(tmp_path / "survey.jsonl"))


def heard(call: HeldCall) -> list[str]:
    return [turn.heard for turn in call.summary.turns]


def keys(digits: str) -> Utterance:
    return Utterance(f"keys {digits}", digits=digits, when=WhenSilent())


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def tomorrow() -> date:
    return date.today() + timedelta(days=1)


@pytest.mark.parametrize("name", ["menu", "reception", "reminder", "survey"])
def test_each_is_a_bot_file_with_rules_and_a_prompt(name: str) -> None:
    bot = load_bot(str(Path(__file__).with_name(f"{name}.py")))
    assert bot.brain
    assert bot.prompt


# Reception.


def test_an_hour_is_booked_once() -> None:
    script = Script((caller_says("what is free"), caller_says("at 10 please")))

    first, second = hold_bot(reception.bot, script), hold_bot(reception.bot, script)

    day = f"{tomorrow():%A}"
    assert heard(first)[1] == f"On {day} there is 9 o'clock, 10 o'clock, 11 o'clock."
    assert heard(first)[2] == f"You are booked for {day} at 10 o'clock."
    assert heard(second)[1:] == [
        f"On {day} there is 9 o'clock, 11 o'clock, 12 o'clock.",
        "10 o'clock is taken.",
    ]
    with reception.bookings() as db:
        [(hour, phone)] = db.execute("SELECT hour, phone FROM bookings").fetchall()
    assert (hour, phone) == (10, "+15550100199")


def test_a_caller_who_talks_over_the_list_is_booked_all_the_same() -> None:
    late = caller_says("at 11", InterruptAfter(800))

    call = hold_bot(reception.bot, Script((caller_says("what is free"), late)))

    assert call.summary.turns[1].interrupted
    assert heard(call)[2].endswith("at 11 o'clock.")
    assert call.verdict.passed


def test_the_day_that_was_spoken_of_is_booked() -> None:
    day = WEEKDAYS[(tomorrow() + timedelta(days=2)).weekday()]
    script = Script((caller_says(f"is there anything on {day}"), caller_says("at three then")))

    call = hold_bot(reception.bot, script)

    assert heard(call)[2] == f"You are booked for {day} at 15 o'clock."


@pytest.mark.parametrize(
    "said, answer",
    [
        ("at 7 please", "We are open from 9 to 17."),
        ("11 pm", "We are open from 9 to 17."),
        ("at half past ten", "I can say what is free tomorrow, or book, for example at 11."),
        ("at 10:30", "We begin at the full hour. Which hour would you like?"),
    ],
)
def test_nothing_is_booked_that_there_is_not(said: str, answer: str) -> None:
    call = hold_bot(reception.bot, Script((caller_says(said),)))
    assert heard(call)[1] == answer
    with reception.bookings() as db:
        assert db.execute("SELECT * FROM bookings").fetchall() == []


def test_a_model_that_gets_the_day_wrong_is_told() -> None:
    past = ToolCall("1", "book", '{"hour": 10, "day": "2020-01-02"}')
    model = ScriptedChat([Reply("", (past,)), "Which day was that?"])

    call = hold_bot(reception.bot, Script((caller_says("at 10"),)), chat=model)

    assert [tool.result for tool in call.summary.turns[1].tools] == ["That time is over."]


# Reminder.


@pytest.mark.parametrize(
    "said, noted",
    [
        ("yes", "comes"),
        ("no problem i will be there", "comes"),
        ("no", "does not come"),
        ("i can't come", "does not come"),
        ("i don't think i can", "does not come"),
        ("another day", "wants another time"),
    ],
)
def test_what_somebody_answers_is_noted(said: str, noted: str, tmp_path: Path) -> None:
    call = Call("CA1", "outbound", metadata={"name": "Ada", "when": "tomorrow at ten"})

    held = hold_bot(reminder.bot, Script((caller_says(said), caller_says("bye"))), call=call)

    assert heard(held)[0].startswith("Hello Ada, this is the dental practice.")
    assert "tomorrow at ten" in heard(held)[0]
    [line] = lines(tmp_path / "reminders.jsonl")
    assert line == {"call": "CA1", "name": "Ada", "answer": noted}
    assert held.summary.outcome is Outcome.BOT_HUNG_UP


def test_who_does_not_know_yet_is_asked_again(tmp_path: Path) -> None:
    held = hold_bot(reminder.bot, Script((caller_says("i am not sure"),)))
    assert heard(held)[1] == "Please say yes, no, or another time."
    assert not (tmp_path / "reminders.jsonl").exists()


def test_an_answer_over_the_greeting_is_noted_once(tmp_path: Path) -> None:
    late = caller_says("yes i can", InterruptAfter(900))

    held = hold_bot(reminder.bot, Script((late,)))

    assert held.summary.turns[0].interrupted
    assert [line["answer"] for line in lines(tmp_path / "reminders.jsonl")] == ["comes"]
    assert held.verdict.passed


# Menu.


def test_a_key_over_the_greeting_is_answered() -> None:
    over = Utterance("1", digits="1", when=InterruptAfter(600))

    call = hold_bot(menu.bot, Script((over,)))

    assert call.summary.turns[0].interrupted
    assert heard(call)[1] == "We are open from nine to four."


def test_a_secret_pin_opens_the_account_and_is_nowhere() -> None:
    call = hold_bot(menu.bot, Script((keys("2"), keys("8046"))))

    assert heard(call)[1:] == [
        "Please enter your PIN, four keys.",
        "You have twelve euros and thirty cents.",
    ]
    assert "8046" not in json.dumps(call.summary.as_json())


def test_a_known_caller_may_ask_as_often_as_they_like() -> None:
    script = Script(tuple(key for _ in range(5) for key in (keys("2"), keys("8046"))))
    call = hold_bot(menu.bot, script)
    assert heard(call).count("You have twelve euros and thirty cents.") == 5


def test_guessing_a_pin_ends_after_some_tries() -> None:
    script = Script(tuple(key for _ in range(4) for key in (keys("2"), keys("1111"))))

    call = hold_bot(menu.bot, script)

    answers = [text for text in heard(call) if "PIN is not" in text or "too often" in text]
    assert answers == ["That PIN is not right. Press 2 to try again."] * 3 + [
        "That was wrong too often. Press 0 for a person."
    ]


def test_who_wants_a_person_is_put_through() -> None:
    call = hold_bot(menu.bot, Script((caller_says("a person please"),)))
    assert call.summary.outcome is Outcome.TRANSFERRED
    assert heard(call)[-1] == "I am putting you through."


# Survey.


def test_three_answers_are_saved(tmp_path: Path) -> None:
    script = Script(tuple(map(caller_says, ("9", "nothing at all", "yes", "no thank you"))))

    call = hold_bot(survey.bot, script)

    assert heard(call)[1:4] == [*survey.QUESTIONS, "Thank you very much. Is there anything else?"]
    [row] = lines(tmp_path / "survey.jsonl")
    assert (row["rating"], row["better"], row["again"]) == (9, "nothing at all", "yes")
    assert call.summary.outcome is Outcome.BOT_HUNG_UP


def test_an_answer_over_the_question_counts_and_a_question_is_said_again(tmp_path: Path) -> None:
    script = Script(
        (
            caller_says("7", InterruptAfter(2_000)),
            caller_says("pardon"),
            caller_says("the beds", InterruptAfter(300)),
            caller_says("sure"),
        )
    )

    call = hold_bot(survey.bot, script)

    assert [turn.interrupted for turn in call.summary.turns][:3] == [True, False, True]
    assert heard(call)[1] == survey.QUESTIONS[0]
    [row] = lines(tmp_path / "survey.jsonl")
    assert (row["rating"], row["better"], row["again"]) == (7, "the beds", "sure")
    assert call.verdict.passed


def test_who_is_unhappy_and_wants_nobody_is_let_go() -> None:
    script = Script(tuple(map(caller_says, ("2", "the breakfast", "no", "no please don't"))))
    assert hold_bot(survey.bot, script).summary.outcome is Outcome.BOT_HUNG_UP


def test_who_is_unhappy_is_put_through_to_the_manager(tmp_path: Path) -> None:
    script = Script(tuple(map(caller_says, ("2", "the breakfast", "no", "yes please"))))

    call = hold_bot(survey.bot, script)

    assert call.summary.outcome is Outcome.TRANSFERRED
    assert lines(tmp_path / "survey.jsonl")[0]["rating"] == 2


def test_an_answer_that_is_no_number_is_asked_for_again(tmp_path: Path) -> None:
    call = hold_bot(survey.bot, Script((caller_says("quite happy"), caller_says("8"))))
    assert heard(call)[1:] == ["Please say a number from one to ten.", survey.QUESTIONS[0]]
    assert not (tmp_path / "survey.jsonl").exists()
