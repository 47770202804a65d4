"""A survey of three questions. Whoever is unhappy is offered a person, and put through.

    voicebot serve --dev --bot examples/survey.py
    voicebot simulate --bot examples/survey.py RATING.wav BETTER.wav AGAIN.wav

The answers of a call are a line of `survey.jsonl`.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Final

from voicebot import Bot, Call, tool
from voicebot.brain.rules import Rules, Said, Use, use, when

UNHAPPY: Final = 5  # of ten, and below
FIRST: Final = "How happy were you with your stay, from one to ten?"
QUESTIONS: Final = ("What should we do better?", "Would you come again?")
MANAGER: Final = "the manager"
UNHEARD: Final = frozenset({"what", "what was that", "sorry", "pardon", "repeat", "again please"})


@tool(idempotent=False)
def save(rating: int, better: str, again: str, *, call: Call) -> str:
    """Save the three answers, once there are all of them.

    Args:
        rating: how happy they were, 1 to 10
        better: what should be done better, in their words
        again: whether they would come again
    """
    row = {"call": call.call_sid, "rating": rating, "better": better, "again": again}
    with Path(os.environ.get("SURVEY", "survey.jsonl")).open("a") as file:
        file.write(json.dumps(row) + "\n")
    if rating <= UNHAPPY:
        return f"I am sorry that it was not better. Would you like to talk to {MANAGER}?"
    return "Thank you very much. Is there anything else?"


def ask(said: Said) -> str | Use:
    """Take the next answer; the conversation so far has filled the state."""
    answers: list[str] = said.state.setdefault("answers", [])
    if said.words in UNHEARD:
        return (FIRST, *QUESTIONS)[len(answers)]
    if not answers:
        rating = re.search(r"\b(10|[1-9])\b", said.words)
        if rating is None:
            return "Please say a number from one to ten."
        answers.append(rating[0])
        return QUESTIONS[0]
    answers.append(said.text)
    if len(answers) == 2:
        return QUESTIONS[1]
    rating_given, better, again = answers[:3]
    return use("save", {"rating": rating_given, "better": better, "again": again})


def after(said: Said) -> str | Use | None:
    """Offer the manager once everything was answered; None before."""
    answers = said.state.get("answers", [])
    if len(answers) < 3:
        return None
    if (
        int(answers[0]) <= UNHAPPY
        and re.search(r"\b(yes|please|sure)\b", said.words)
        and not re.search(r"\b(no|not)\b|n't\b", said.words)
    ):
        return use(
            "transfer",
            {"to": MANAGER, "summary": f"A guest was {answers[0]} of 10 happy: {answers[1]}"},
            say="I am putting you through.",
            then="I am sorry, nobody is free. Shall I try again?",
        )
    return use("hang_up", say="Thank you for your time. Goodbye.")


bot = Bot(
    prompt="You ask guests of a hotel three questions: how happy they were from 1 to 10, what "
    "should be better, and whether they would come again. Save the answers. Offer those who "
    f"were unhappy to talk to {MANAGER}, and transfer them if they want it. Be brief.",
    greeting=f"Hello, this is your hotel. {FIRST}",
    tools=[save],
    people={MANAGER: "+15550100177"},
    brain=Rules(when(r"", after), when(r"", ask)),
)
