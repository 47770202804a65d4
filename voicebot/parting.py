"""The tools with which a bot ends its stream: it hangs up, puts through, or presses keys.

Synchronous. The call runs them itself: what they ask for happens when the caller has heard the
reply that asks for it, and not at all if the caller objects. What follows is the service's
(`onward.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from voicebot.ports import Message, Tool
from voicebot.record import Outcome

HANG_UP: Final = "hang_up"
TRANSFER: Final = "transfer"
SEND_DIGITS: Final = "send_digits"

SUMMARY_CHARS: Final = 500  # half a minute of speech, which the caller waits for in silence
_KEYS: Final = re.compile(r"[0-9#*w]{1,32}", re.ASCII)  # of a telephone; a card and its waits fit


@dataclass(frozen=True, slots=True)
class Parting:
    """A way to end the stream.

    `result` is what the model is told at once, `text` is said where it says nothing itself.
    `read` returns the arguments as they are needed, or what is wrong with them.
    """

    tool: Tool
    outcome: Outcome
    result: str
    text: str
    read: Callable[[Mapping[str, Any]], dict[str, Any] | str] = lambda arguments: {}


@dataclass(frozen=True, slots=True)
class Resumption:
    """A call that goes on in another stream: what was said, how many turns, how long ago it began.

    Turns and times go on counting, so that both streams are one call.
    """

    history: tuple[Message, ...] = field(repr=False)
    turns: int
    elapsed_s: float
    speaker: str = ""  # by name, if it is not the usual one


@dataclass(frozen=True, slots=True)
class Ending:
    """What the bot asked for at the end of its stream, and the conversation up to there."""

    outcome: Outcome
    arguments: Mapping[str, Any]
    call_id: str
    so_far: Resumption

    def came_back(self, result: str, away_s: float) -> Resumption:
        """Return what goes on, now that the result is known."""
        history = tuple(
            replace(message, content=result)
            if message.role == "tool" and message.tool_call_id == self.call_id
            else message
            for message in self.so_far.history
        )
        elapsed_s = self.so_far.elapsed_s + away_s
        return replace(self.so_far, history=history, elapsed_s=elapsed_s)


async def _never(arguments: Any) -> str:
    raise AssertionError("the call ends itself")


def hang_up(goodbye: str) -> Parting:
    """Return the way to end the call."""
    return Parting(
        Tool(
            HANG_UP,
            "End the phone call. Say goodbye in the same answer: the line is closed once the "
            "caller has heard it. Use it only when the conversation is over.",
            {"type": "object", "properties": {}},
            _never,
        ),
        Outcome.BOT_HUNG_UP,
        "the call ends as soon as the caller has heard your goodbye",
        goodbye,
    )


def transfer(people: Mapping[str, str], text: str) -> Parting:
    """Return the way to put the caller through.

    Args:
        people: E.164 by what the model calls them. It cannot dial anybody else.
    """

    def read(arguments: Mapping[str, Any]) -> dict[str, Any] | str:
        to = arguments.get("to", next(iter(people)) if len(people) == 1 else None)
        if not isinstance(to, str) or to not in people:
            return f"to must be one of: {', '.join(people)}"
        summary = arguments.get("summary", "")
        if not isinstance(summary, str):
            return "summary must be text"
        return {"to": people[to], "who": to, "summary": summary[:SUMMARY_CHARS]}

    return Parting(
        Tool(
            TRANSFER,
            "Put the caller through to a person. Say so in the same answer: the caller is "
            "connected once they have heard it. If nobody answers they are back with you.",
            {
                "type": "object",
                "properties": {
                    "to": {"type": "string", "enum": list(people)},
                    "summary": {
                        "type": "string",
                        "description": "who calls and why, in a sentence: the person hears it "
                        "before they are connected",
                    },
                },
                "required": ["to"],
            },
            _never,
        ),
        Outcome.TRANSFERRED,
        "the caller is put through as soon as they have heard you",
        text,
        read,
    )


def are_keys(digits: object) -> bool:
    """Say whether these are keys that can be pressed at once."""
    return isinstance(digits, str) and _KEYS.fullmatch(digits) is not None


def send_digits(text: str, allowed: Collection[str] = ()) -> Parting:
    """Return the way to press keys, for a bot that talks to machines.

    Args:
        allowed: what may be pressed at once; none: any keys, and whoever speaks to the bot may talk
            it into others.
    """
    digits: dict[str, Any] = {"type": "string", "description": "0-9, * and #; w is half a second"}
    if allowed:
        digits["enum"] = list(allowed)

    def read(arguments: Mapping[str, Any]) -> dict[str, Any] | str:
        asked = arguments.get("digits")
        if not are_keys(asked):
            return "digits must be 1 to 32 of 0-9, *, #, and w for half a second"
        if allowed and asked not in allowed:
            return f"digits must be one of: {', '.join(allowed)}"
        return {"digits": asked}

    return Parting(
        Tool(
            SEND_DIGITS,
            "Press keys on the telephone, for a menu of the other side. You go on with the same "
            "conversation afterwards.",
            {
                "type": "object",
                "properties": {"digits": digits},
                "required": ["digits"],
            },
            _never,
        ),
        Outcome.PRESSING_KEYS,
        "the keys are pressed now",
        text,
        read,
    )


def read_arguments(text: str) -> dict[str, Any] | str:
    """Return the arguments of a tool call, as the model wrote them, or what is wrong with them."""
    try:
        arguments = json.loads(text or "{}")
    except (ValueError, RecursionError) as exc:
        return f"the arguments are not JSON: {exc}"
    return arguments if isinstance(arguments, dict) else "the arguments must be a JSON object"
