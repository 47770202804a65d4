"""Reminds people of appointments: it calls them, and leaves a message where a machine answers.

    voicebot serve --dev --bot examples/reminder.py
    voicebot call +15550100199 --server http://127.0.0.1:8000 \
        --metadata name=Ada --metadata when='tomorrow at ten' \
        --voicemail 'This is the dental practice. Please remember your appointment.'

What people answer is a line of `reminders.jsonl`. Call only those who have agreed to be called.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from voicebot import Bot, Call, tool
from voicebot.brain.rules import Rules, use, when


def note(call: Call, answer: str) -> None:
    """Add a line for whoever looks at the calendar."""
    line = json.dumps({"call": call.call_sid, "name": call.variables["name"], "answer": answer})
    with Path(os.environ.get("REMINDERS", "reminders.jsonl")).open("a") as file:
        file.write(line + "\n")


@tool(idempotent=False)
def confirm(*, call: Call) -> str:
    """Note that they will come."""
    note(call, "comes")
    return "Good. We look forward to seeing you."


@tool(idempotent=False)
def cancel(*, call: Call) -> str:
    """Note that they will not come, after they have said so clearly."""
    note(call, "does not come")
    return "I have taken it out. Call us for a new one."


@tool(idempotent=False)
def ask_to_be_called(*, call: Call) -> str:
    """Note that they want another time and somebody is to call them."""
    note(call, "wants another time")
    return "Somebody will call you about another time."


bot = Bot(
    prompt="You call {{name}} for a dental practice to remind them of an appointment {{when}}. "
    "Find out whether they come, note it with a tool, and say goodbye. Be brief and friendly.",
    greeting="Hello {{name}}, this is the dental practice. You have an appointment {{when}}. "
    "Can you come?",
    variables={"name": "there", "when": "with us this week"},
    tools=[confirm, cancel, ask_to_be_called],
    reprompts=["Hello? Can you come to your appointment?"],
    brain=Rules(
        when(r"\b(another|different|move|later|change)\b", use("ask_to_be_called")),
        when(r"\b(not sure|maybe|don't know)\b", "Please say yes, no, or another time."),
        when(r"\b(no problem|why not)\b", use("confirm")),
        when(r"\b(cancel|cannot|no|not|never)\b|n't\b", use("cancel")),  # ahead of "i can"
        when(r"\b(yes|yeah|sure|of course|i can|i will)\b", use("confirm")),
        when(r"\b(bye|goodbye|thanks|thank)\b", use("hang_up", say="Goodbye.")),
        otherwise="Can you come to your appointment? Please say yes or no.",
    ),
)
