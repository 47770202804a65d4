"""What a call goes on with when its media stream has ended, and how it comes back.

Synchronous, in memory: a stream that ends and the request for what follows meet in one process.
The engine says what the bot wants (`Ending`); Twilio asks for it by the `action` of `<Connect>`,
and by that of `<Dial>` when somebody has been talked to, or has not answered. A call that comes
back goes on with the same conversation, in which the tool has a result now.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from voicebot.ports import Message

KEPT: Final = 1_000  # calls away at once; each has a conversation of some kilobytes
# A call of any length may come back from whom it was put through to; see `plan.call_s`.
AWAY_S: Final = 7_200.0

SENT: Final = "the keys were pressed"
NOBODY: Final = "nobody took the call ({}); you are talking to the caller again: tell them"

_TALKED: Final = frozenset({"completed", "answered"})


@dataclass(frozen=True, slots=True)
class Ending:
    """What the bot asked for at the end of its stream: a tool call, and the talk up to there."""

    kind: Literal["transfer", "send_digits"]
    arguments: Mapping[str, Any]
    call_id: str
    history: tuple[Message, ...] = field(repr=False)

    def came_back(self, result: str) -> tuple[Message, ...]:
        """Return the conversation to go on with, now that the result is known."""
        return tuple(
            replace(message, content=result)
            if message.role == "tool" and message.tool_call_id == self.call_id
            else message
            for message in self.history
        )


@dataclass(slots=True)
class _Away:
    ending: Ending
    expires: float
    result: str = ""  # of what it went away for; empty: not known yet


class Onward:
    """The calls that are away from their bot. `now` is in seconds on the Trio clock."""

    def __init__(self) -> None:
        self._away: dict[str, _Away] = {}  # oldest first

    def leave(self, sid: str, ending: Ending, now: float) -> None:
        """Keep what a call went away for."""
        self._away.pop(sid, None)
        self._away[sid] = _Away(ending, now + AWAY_S)
        for stale in [one for one, away in self._away.items() if away.expires <= now]:
            del self._away[stale]
        while len(self._away) > KEPT:
            del self._away[next(iter(self._away))]

    def ending(self, sid: str) -> Ending | None:
        """Return what a call is away for."""
        away = self._away.get(sid)
        return None if away is None else away.ending

    def dialled(self, sid: str, status: str) -> bool:
        """Take how a transfer went; return whether the call comes back to the bot."""
        away = self._away.get(sid)
        if away is None or status in _TALKED:
            self._away.pop(sid, None)
            return False
        away.result = NOBODY.format(status)
        return True

    def sent(self, sid: str) -> None:
        """Note that the keys are pressed by the time the call is back."""
        self._away[sid].result = SENT

    def come_back(self, sid: str) -> tuple[Message, ...]:
        """Return the conversation that a new stream of a call goes on with; empty: a new one."""
        away = self._away.pop(sid, None)
        return away.ending.came_back(away.result) if away is not None and away.result else ()
