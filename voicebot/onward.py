"""What a call goes on with when its media stream has ended, and how it comes back.

Synchronous, in memory; where several processes serve, `shared.py` brings a call to the one that is
asked. The engine says what the bot wants (`parting.Ending`); Twilio asks for it by the `action` of
`<Connect>`, and by that of `<Dial>` when somebody has been talked to, or has not answered. A call
that comes back goes on with the same conversation, in which the tool has a result now.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from voicebot.parting import Ending, Resumption
from voicebot.standing import Away

KEPT: Final = 1_000  # calls away at once; each has a conversation of some kilobytes
# Twilio asks what is next as soon as the stream has ended; who has hung up meanwhile never comes.
NEXT_S: Final = 10.0
# A call of any length may come back from whom it was put through to; see `plan.call_s`.
AWAY_S: Final = 7_200.0

SENT: Final = "the keys were pressed"
NOBODY: Final = "nobody took the call ({}); you are talking to the caller again: tell them"

_TALKED: Final = frozenset({"completed", "answered"})


class Onward:
    """The calls that are away from their bot. `now` is in seconds on the Trio clock."""

    def __init__(self) -> None:
        self._away: dict[str, Away] = {}  # oldest first

    def leave(
        self, sid: str, ending: Ending, now: float, notes: Mapping[str, Any] | None = None
    ) -> None:
        """Keep what a call went away for; `notes`: what the bot knows of it, as plain values."""
        self._away.pop(sid, None)
        self._away[sid] = Away(ending, now, notes=notes)
        for stale in [one for one, away in self._away.items() if away.since + AWAY_S <= now]:
            del self._away[stale]
        while len(self._away) > KEPT:
            del self._away[next(iter(self._away))]

    def busy_until(self, now: float) -> float:
        """Return until when one of them may ask what is next, or how it is to come back.

        One whose result is known has a line again, and is not counted here.
        """
        waited_for = (
            away.since + (AWAY_S if away.asked else NEXT_S)
            for away in self._away.values()
            if not away.result
        )
        return max(waited_for, default=now)

    def take(self, sid: str) -> Away | None:
        """Return all that is known of a call that is away, and forget it."""
        return self._away.pop(sid, None)

    def put(self, sid: str, away: Away) -> None:
        """Take what `take` returned in another process."""
        self._away[sid] = away

    def notes(self, sid: str) -> Mapping[str, Any]:
        """Return what the bot knew of a call that is away."""
        away = self._away.get(sid)
        return {} if away is None or away.notes is None else away.notes

    def ending(self, sid: str) -> Ending | None:
        """Return what a call is away for."""
        away = self._away.get(sid)
        return None if away is None else away.ending

    def asked(self, sid: str) -> None:
        """Note that Twilio was told what a call is away for."""
        self._away[sid] = replace(self._away[sid], asked=True)

    def over(self, sid: str) -> None:
        """Forget a call that has ended."""
        self._away.pop(sid, None)

    def dialled(self, sid: str, status: str) -> bool:
        """Take how a transfer went; return whether the call comes back to the bot."""
        away = self._away.get(sid)
        if away is None or status in _TALKED:
            self._away.pop(sid, None)
            return False
        self._away[sid] = replace(away, result=NOBODY.format(status))
        return True

    def sent(self, sid: str) -> None:
        """Note that the keys are pressed by the time the call is back."""
        self._away[sid] = replace(self._away[sid], result=SENT)

    def come_back(self, sid: str, now: float) -> Resumption | None:
        """Return what a new stream of a call goes on with; None: it is a new call."""
        away = self._away.pop(sid, None)
        if away is None or not away.result:
            return None
        return away.ending.came_back(away.result, now - away.since)
