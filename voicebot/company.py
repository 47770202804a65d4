"""What the bot says into a silence that nobody fills, and when.

Synchronous. Silence counts from what was heard of the bot and from the caller's voice. Four things
make it too long: the caller was not understood yet, or not at all; nobody says anything; and the
call itself gets too long. None of what is said then is a part of the conversation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from voicebot.ports import Tool
from voicebot.speakers import Mouth

USUAL_WAIT_S: Final = 60.0  # to find a card or a pen
LONGEST_WAIT_S: Final = 300.0  # a line costs money, and people forget that it is open
SPEECH_S: Final = 0.9  # a cough is shorter, as is most of what is heard of a door or a dog

Kind = Literal["warning", "filler", "not_understood", "reprompt", "no_caller"]


@dataclass(frozen=True, slots=True)
class Remark:
    """Something to say at `due`, unless something happens before. For "no_caller": the end."""

    kind: Kind
    due: float
    text: str = ""


class Company:
    """Keeps one caller company.

    Args:
        knows: whether the sound of a text is known: only such a text can bridge a wait, for
            another may make the caller wait for the filler.
    """

    def __init__(self, mouth: Mouth, knows: Callable[[str], bool]) -> None:
        self._mouth = mouth
        self._knows = knows
        self._asked = 0  # times whether there is somebody
        self._bridged = 0  # times the caller waited for being understood
        self._unclear = False  # somebody spoke, and there were no words in it
        self._pardoned = False  # that was said, and nobody has been understood since
        self._warns = False
        self._patient_until = 0.0  # the caller has asked for time

    def understood(self) -> None:
        """Note that the caller has said something."""
        self._patient_until = 0.0
        self._asked = self._bridged = 0
        self._unclear = self._pardoned = False

    def nothing(self, voiced_s: float) -> None:
        """Note that there were no words in what the caller said for so long."""
        self._unclear = voiced_s >= SPEECH_S

    def wait(self, until: float) -> None:
        """Note that the caller has asked for time, and up to when nobody needs to be asked."""
        self._patient_until = until

    def warn(self) -> None:
        """Note that the call is about to get too long."""
        self._warns = True

    def remark(
        self, now: float, *, waiting: bool, voice: bool, silent_at: float, fell: float
    ) -> Remark | None:
        """Return what comes next, if nothing happens before.

        Args:
            waiting: what the caller has said is not understood yet, or is still being said.
            voice: the caller makes a sound.
            silent_at: when the bot was last heard, or the call began.
            fell: when the caller's voice was last heard.
        """
        plan = self._mouth.plan
        times = plan.timeouts
        quiet_since = max(silent_at, fell)
        if waiting:
            fillers = [text for text in plan.fillers if self._knows(text)]
            if voice or not fillers:
                return None
            text = fillers[self._bridged % len(fillers)]
            return Remark("filler", quiet_since + times.filler_s, text)
        if self._warns:
            return Remark("warning", now, plan.warning)
        if self._unclear and not self._pardoned:
            return Remark("not_understood", quiet_since + times.filler_s, plan.apology)
        if not times.idle_s:
            return None
        due = max(silent_at + times.idle_s, quiet_since + times.cough_s, self._patient_until)
        if self._asked < len(plan.reprompts):
            return Remark("reprompt", due, plan.reprompts[self._asked])
        return Remark("no_caller", due)

    def said(self, remark: Remark) -> None:
        """Note that it is being said."""
        self._asked += remark.kind == "reprompt"
        self._bridged += remark.kind == "filler"
        self._pardoned |= remark.kind == "not_understood"
        self._warns &= remark.kind != "warning"


def waiting_tool(wait: Callable[[float], None]) -> Tool:
    """Return the tool with which a model gives the caller time; `wait` takes seconds."""

    async def run(arguments: Mapping[str, Any]) -> str:
        seconds = arguments.get("seconds", USUAL_WAIT_S)
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            return "seconds must be a number"
        wait(min(max(float(seconds), 0.0), LONGEST_WAIT_S))
        return "say that they may take their time; you will not speak until they do, or so long"

    return Tool(
        "wait_for_caller",
        "Give the caller time, when they say that they have to look for something or to talk to "
        "somebody else.",
        {
            "type": "object",
            "properties": {
                "seconds": {"type": "number", "description": f"at most {LONGEST_WAIT_S:g}"}
            },
        },
        run,
    )
