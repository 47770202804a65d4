"""How many calls may be placed, and for how many minutes, and what of that is used.

Synchronous. A call takes what it may cost at most when it is placed, in the step that checks the
limits, and gives back what it has not used when Twilio says that it is over. `Dials` counts for a
process without a database; `Database.reserve` counts in the same way for all that share one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from voicebot.errors import CallBarred

MINUTE_S, HOUR_S, DAY_S = 60.0, 3_600.0, 86_400.0
AT_ONCE_RETRY_S: Final = (
    30  # nobody knows when a call ends; half of them are over in a minute or two
)


@dataclass(frozen=True, slots=True)
class Outbound:
    """Whom the server may have called, how often, and for how long.

    The limits are those of all processes that share a database, and of redirected calls as well.
    """

    # Countries by two letters, and prefixes: US,CA,+4930. Empty: the country of
    # TWILIO_FROM_NUMBER, which for +1 is one of 25.
    countries: str = ""  # a bot that calls abroad is rarer than a key that is abused for it
    # What may be called although it costs more than a call: premium, shared_cost, uan, pager,
    # personal, short.
    kinds: str = ""  # nobody whom a bot has reason to call has such a number
    per_minute: int = 60  # Twilio starts one a second unless it was asked for more
    per_minute_per_key: int = 30  # one key leaves something to the others; people dial no faster
    at_once: int = 30  # of VOICEBOT_MAX_CALLS' 40, so that callers find a line
    at_once_per_key: int = 20  # half of the lines: one key leaves some to the others
    # In 24 hours. A call counts as its time limit, 61 minutes unless
    # VOICEBOT_TIMEOUTS__CALL_S says otherwise, until it is over; then as minutes that were begun.
    minutes_per_day: int = 3_000  # a thousand calls of three minutes; 30 at once hold 1,830
    per_number_per_hour: int = 5  # who was not there is tried again, and nobody is rung all day


@dataclass(frozen=True, slots=True)
class Used:
    """How much of a limit is used, and how long ago the oldest of it was, in seconds."""

    amount: int
    oldest_s: float


@dataclass(frozen=True, slots=True)
class Wanted:
    """A call that is to be placed: by whose key, to whom, and what it may take at most.

    `to` need not be the number: only whether two are the same counts. `hold_s`: until then it is
    over, or Twilio has ended it.
    """

    who: str
    to: str
    minutes: int
    hold_s: float


# The window of each limit in seconds, None: calls that are not over. The longest wait comes first.
_WINDOWS: Final[Mapping[str, float | None]] = {
    "minutes_per_day": DAY_S,
    "per_number_per_hour": HOUR_S,
    "per_minute": MINUTE_S,
    "per_minute_per_key": MINUTE_S,
    "at_once": None,
    "at_once_per_key": None,
}


def check_limits(limits: Outbound, wanted: Wanted, used: Mapping[str, Used]) -> None:
    """Check that a call is within all limits. `used` has all of them, by name.

    Raises:
        CallBarred: it is not; with the seconds after which it may be.
    """
    for name, window in _WINDOWS.items():
        limit: int = getattr(limits, name)
        takes = wanted.minutes if name == "minutes_per_day" else 1
        if used[name].amount + takes <= limit:
            continue
        wait_s = AT_ONCE_RETRY_S if window is None else math.ceil(window - used[name].oldest_s)
        text, hint = f"the limit of {limit} calls {_WORDS.get(name)} is reached", "wait"
        if name == "minutes_per_day":
            held = f"{used[name].amount} are used or held"
            text = f"of {limit} minutes a day {held}, and a call may take {takes}"
            hint = "wait, or shorten VOICEBOT_TIMEOUTS__CALL_S"
        setting = f"VOICEBOT_OUTBOUND__{name.upper()}"
        raise CallBarred(name, text, f"{hint}; or raise {setting}", setting, max(1, wait_s))


_WORDS: Final = {
    "per_number_per_hour": "an hour to one number",
    "per_minute": "a minute",
    "per_minute_per_key": "a minute for one key",
    "at_once": "at once",
    "at_once_per_key": "at once for one key",
}


def minutes_used(status: str, duration_s: int | None) -> int | None:
    """Return the minutes that a call has begun, None while Twilio has not said that it is over.

    "completed" alone is not enough: the engine says so too, of a call that was put through.
    """
    if duration_s is not None:
        return math.ceil(duration_s / MINUTE_S)
    return 0 if status in {"busy", "failed", "no-answer", "canceled"} else None


@dataclass(slots=True)
class _Dial:
    wanted: Wanted
    at: float
    sid: str | None = None
    used: int | None = None  # minutes, once it is over


class Dials:
    """The calls of the last day that one process has placed. `now`: seconds on the Trio clock."""

    def __init__(self, limits: Outbound) -> None:
        self._limits = limits
        self._dials: dict[str, _Dial] = {}  # oldest first; as many as the limits let in

    def reserve(self, key: str, wanted: Wanted, now: float) -> None:
        """Take what a call may cost. By `key` it is named or given back.

        Raises:
            CallBarred: a limit does not allow it.
        """
        while self._dials and now - (oldest := next(iter(self._dials.items())))[1].at >= DAY_S:
            del self._dials[oldest[0]]
        check_limits(self._limits, wanted, self._used(wanted, now))
        self._dials[key] = _Dial(wanted, now)

    def named(self, key: str, sid: str) -> None:
        """Say which call it became."""
        if dial := self._dials.get(key):
            dial.sid = sid

    def give_back(self, key: str) -> None:
        """Say that no call was placed."""
        self._dials.pop(key, None)

    def over(self, sid: str, minutes: int) -> None:
        """Say how many minutes a call has used."""
        for dial in self._dials.values():
            if dial.sid == sid:
                dial.used = minutes

    def _used(self, wanted: Wanted, now: float) -> dict[str, Used]:
        def sum_of(dials: Iterable[tuple[_Dial, int]]) -> Used:
            amounts = [(now - dial.at, amount) for dial, amount in dials]
            return Used(
                sum(amount for _, amount in amounts), max((age for age, _ in amounts), default=0.0)
            )

        def since(age_s: float, to: str | None = None, who: str | None = None) -> Used:
            return sum_of(
                (dial, 1)
                for dial in self._dials.values()
                if now - dial.at < age_s
                and to in (None, dial.wanted.to)
                and who in (None, dial.wanted.who)
            )

        live = [
            dial
            for dial in self._dials.values()
            if dial.used is None and now - dial.at < dial.wanted.hold_s
        ]
        return {
            "minutes_per_day": sum_of(
                (dial, dial.wanted.minutes if dial.used is None else dial.used)
                for dial in self._dials.values()
            ),
            "per_number_per_hour": since(HOUR_S, to=wanted.to),
            "per_minute": since(MINUTE_S),
            "per_minute_per_key": since(MINUTE_S, who=wanted.who),
            "at_once": sum_of((dial, 1) for dial in live),
            "at_once_per_key": sum_of((d, 1) for d in live if d.wanted.who == wanted.who),
        }
