"""Who speaks for the bot: the language, the voice, and the words that go with them.

A bot has a usual speaker and may have others, for which the model changes it when the caller asks
for another voice or speaks another language. What is already being said is said to its end as it
began; what comes behind it has the new voice, and the caller is heard in the new language.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from voicebot.plan import CallPlan
from voicebot.ports import Synthesizer, Tool

USUAL: Final = "usual"  # the name of the speaker that a call begins with
SWITCH: Final = "switch_voice"


@dataclass(frozen=True, slots=True)
class Speaking:
    """How a piece is said: by which plan, in which voice, and what is known of its sound."""

    plan: CallPlan
    voice: Synthesizer
    known_sound: Callable[[str], bytes | None]


@dataclass(slots=True)
class Mouth:
    """Who speaks in a call now."""

    now: Speaking
    name: str = USUAL

    @property
    def plan(self) -> CallPlan:
        """The plan of whoever speaks now: texts and language change with them."""
        return self.now.plan


def switching_tool(names: Sequence[str], switch: Callable[[str], None]) -> Tool:
    """Return the tool with which a model changes the speaker; `switch` takes one of the names."""

    async def run(arguments: Mapping[str, Any]) -> str:
        name = str(arguments.get("to"))
        if name not in names:
            return f"there is no {name!r}; there are {', '.join(names)}"
        switch(name)
        return f"from now on you are heard as {name!r}; speak to the caller accordingly"

    return Tool(
        SWITCH,
        "Go on in another voice or language, when the caller asks for it or speaks it.",
        {
            "type": "object",
            "properties": {"to": {"type": "string", "enum": list(names)}},
            "required": ["to"],
        },
        run,
    )
