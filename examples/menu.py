"""A menu by keys: opening hours, a balance behind a secret PIN, and a person.

    voicebot serve --dev --bot examples/menu.py
    voicebot simulate --bot examples/menu.py CALLER.wav --digits 2 --digits 8046

Whoever presses a key silences the bot at once. The PIN reaches the tool that checks it; the model
and the records have a placeholder. Callers may also just say what they want.
"""

from __future__ import annotations

import hmac
import re
from typing import Final

from voicebot import Bot, Call, tool
from voicebot.brain.rules import Rules, Said, Use, use, when
from voicebot.keypad import Entry

TRIES: Final = 3
ACCOUNTS: Final = {"8046": "twelve euros and thirty cents"}  # ask your bank instead


@tool(timeout_s=5)
def balance(pin: str, *, call: Call) -> str:
    """Say the balance of the account with this PIN.

    Args:
        pin: the placeholder that stands for the keys, like <keys-1>
    """
    wrong = call.state.get("wrong", 0)
    if wrong == TRIES:
        return "That was wrong too often. Press 0 for a person."
    for known, amount in ACCOUNTS.items():
        if hmac.compare_digest(known, pin):
            return f"You have {amount}."
    call.state["wrong"] = wrong + 1
    return "That PIN is not right. Press 2 to try again."


def check_pin(said: Said) -> Use | None:
    """Use the keys that were pressed, of which only the placeholder is here."""
    keys = re.search(r"<keys-\d+>", said.text)
    return use("balance", {"pin": keys[0]}) if keys else None


bot = Bot(
    prompt="You are the telephone menu of a bank. Keys come as [pressed 1]. 1: it is open from "
    "nine to four. 2: ask with expect_keys for the PIN, four secret keys, then use balance. 0, or "
    "a wish to talk to somebody: transfer. Be very brief.",
    greeting="For opening hours press 1. For your balance press 2. For a person press 0.",
    tools=[balance],
    keys=Entry(length=1),
    may_ask_for_keys=True,
    people={"a person": "+15550100177"},
    brain=Rules(
        when(r"secret", check_pin),
        when(r"^pressed 1$|\b(hours|open)\b", "We are open from nine to four."),
        when(
            r"^pressed 2$|\bbalance\b",
            use(
                "expect_keys",
                {"length": 4, "secret": True},
                then="Please enter your PIN, four keys.",
            ),
        ),
        when(
            r"^pressed 0$|\b(person|somebody|human)\b",
            use("transfer", {"to": "a person"}, say="I am putting you through."),
        ),
        when(r"\b(bye|goodbye)\b", use("hang_up", say="Goodbye.")),
        otherwise="Press 1 for opening hours, 2 for your balance, or 0 for a person.",
    ),
)
