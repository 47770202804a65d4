"""What a bot knows of the call it is in, and the `{{variables}}` of what it says.

Pure: no clock but the one it is given, no vendor.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

_VARIABLE: Final = re.compile(r"\{\{\s*([^{}]*?)\s*\}\}")

#: What every call knows of itself, whatever the bot declares.
BUILT_IN: Final = ("caller", "number", "direction", "call_sid", "today", "now")


@dataclass(slots=True, eq=False)
class Call:
    """One call, as tools and hooks are given it.

    `caller` is the number of the person at the other end, whoever has dialled, and `number` the
    bot's own: E.164, or empty where it is not known. `parameters` are the custom ones of the
    stream, `metadata` is what `POST /calls` was given. `variables` are what `{{name}}` stands for
    in this call; they are read when the call starts, after `on_call_start`. `state` is the bot's
    own: nothing else reads or writes it, and it ends with the call.
    """

    call_sid: str = ""
    direction: Literal["inbound", "outbound"] = "inbound"
    caller: str = field(default="", repr=False)  # a person's number is not for logs
    number: str = field(default="", repr=False)
    parameters: Mapping[str, str] = field(default_factory=dict, repr=False)
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)
    variables: dict[str, Any] = field(default_factory=dict, repr=False)
    state: dict[str, Any] = field(default_factory=dict, repr=False)

    def declare(self, defaults: Mapping[str, Any]) -> None:
        """Give the bot's variables their values: this call's own where it has some.

        Metadata wins over parameters, and both over the defaults; only names that the bot
        declares are taken, so whoever places a call cannot add others.
        """
        for name, default in defaults.items():
            self.variables[name] = self.metadata.get(name, self.parameters.get(name, default))

    def values(self, now: datetime.datetime) -> dict[str, Any]:
        """Return what every `{{name}}` stands for."""
        return {
            "caller": self.caller,
            "number": self.number,
            "direction": self.direction,
            "call_sid": self.call_sid,
            "today": f"{now:%A}, {now.day} {now:%B %Y}",  # a model knows no calendar
            "now": f"{now:%H:%M}",
            **self.variables,
        }


def render(text: str, values: Mapping[str, Any]) -> str:
    """Return the text with each `{{name}}` that has a value replaced by it; values are data."""
    return _VARIABLE.sub(
        lambda found: str(values[found[1]]) if found[1] in values else found[0], text
    )


def variables_in(text: str) -> Iterable[str]:
    """Return the names in `{{…}}`, in order."""
    return [found[1] for found in _VARIABLE.finditer(text)]
