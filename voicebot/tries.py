"""Which alternative a request is tried on, and when again: retries and circuit breakers.

A part of the bot (recogniser, language model, voice) is one provider or several, in order of
preference. Synchronous, takes the time as an argument.

| a try fails                           | its provider is left alone         | tried again      |
|---------------------------------------|------------------------------------|------------------|
| late, lost, broken off, 5xx           | after `breaker_failures` in a row, | there or         |
|                                       | for `breaker_s`                    | elsewhere        |
| with a time to wait (429)             | until then                         | then, elsewhere  |
|                                       |                                    | at once          |
| refused for what we are (401 to 404)  | at once, for `breaker_s`           | elsewhere        |
| refused for what was asked (400, 413) | no                                 | elsewhere        |

What is left alone is tried all the same where nothing else is left: there is nothing to lose.
After `breaker_s` one request is let through; the next follow if that went well. Who broke off in
the middle of an answer is asked last by that call from then on (`failover.py`). A stream that had
worked is opened once more, whatever it was refused with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from voicebot.errors import ProviderError, ProviderRejected

PartT = TypeVar("PartT")

# Key, credit, permission, address or model: the next request would be refused as well.
_ABOUT_US: Final = frozenset({401, 402, 403, 404})


@dataclass(frozen=True, slots=True)
class Retrying:
    """How often and for how long requests are tried. Times in seconds."""

    breaker_failures: int  # in a row
    breaker_s: float
    pause_s: float = 0.1  # before the same provider is tried again, then doubled


class Breaker:
    """Whether one provider is worth a try. One for the process: all calls learn from each."""

    def __init__(self, rules: Retrying) -> None:
        self._rules = rules
        self._failures = 0
        self._open_until = -math.inf
        self.busy_until = -math.inf  # it said so itself

    def is_open(self, now: float) -> bool:
        """Return whether others should be tried first."""
        return now < self._open_until

    def begin(self, now: float) -> None:
        """Note that a try begins. What was open stays so for all but this one."""
        if self._failures >= self._rules.breaker_failures:
            self._open_until = now + self._rules.breaker_s

    def worked(self) -> None:
        """Note that a try went well."""
        self._failures, self._open_until = 0, -math.inf

    def failed(self, error: ProviderError, now: float) -> bool:
        """Note that a try failed; return whether that opened the breaker."""
        if isinstance(error, ProviderRejected) and error.retry_after_s is not None:
            self.busy_until = now + error.retry_after_s
            return False
        about_us = isinstance(error, ProviderRejected) and error.status in _ABOUT_US
        if not error.retryable and not about_us:
            return False
        before = self._failures
        self._failures = self._rules.breaker_failures if about_us else before + 1
        if self._failures < self._rules.breaker_failures:
            return False
        self._open_until = now + self._rules.breaker_s
        return before < self._rules.breaker_failures


def name_of(part: object) -> str:
    """Return a provider's name, for logs and counting."""
    return getattr(part, "name", "") or type(part).__name__


class Alternatives(Generic[PartT]):
    """Providers of the same thing, in order of preference. One for the process."""

    def __init__(self, parts: Sequence[PartT], rules: Retrying) -> None:
        self.rules = rules
        self._parts = [(part, Breaker(rules)) for part in parts]

    @classmethod
    def of(cls, parts: PartT | Alternatives[PartT], rules: Retrying) -> Alternatives[PartT]:
        """Return alternatives as they are, or one thing as the only one."""
        return parts if isinstance(parts, Alternatives) else cls([parts], rules)

    @property
    def first(self) -> PartT:
        """The one that is preferred."""
        return self._parts[0][0]

    def left_alone(self, now: float) -> list[tuple[str, bool]]:
        """Return the name of each, and whether its breaker is open, in order of preference."""
        return [(name_of(part), breaker.is_open(now)) for part, breaker in self._parts]

    def tries(
        self, count: int, until: float = math.inf, last: Sequence[PartT] = ()
    ) -> Tries[PartT]:
        """Return the tries of one request: at most `count`, none after `until`.

        `last`: who is only tried when all others have been, and in which order.
        """
        return Tries(self._parts, self.rules, count, until, last)


class Tries(Generic[PartT]):
    """The tries of one request."""

    def __init__(
        self,
        parts: Sequence[tuple[PartT, Breaker]],
        rules: Retrying,
        count: int,
        until: float,
        last: Sequence[PartT] = (),
    ) -> None:
        self._parts = parts
        self._rules = rules
        self._left = count
        self._until = until
        self._tried = [0] * len(parts)
        self._late = [sum(n for n, one in enumerate(last, 1) if one is part) for part, _ in parts]
        self._useless: set[int] = set()  # for this request
        self._now = 0  # the part that is being tried
        self._worked = False  # it did, before it failed
        self.opened = False  # the last failure made everybody leave that provider alone

    def begin(self, now: float) -> PartT:
        """Return what to ask now."""
        self._now, self._worked = self._best(now), False
        self._left -= 1
        self._tried[self._now] += 1
        part, breaker = self._parts[self._now]
        breaker.begin(now)
        return part

    def worked(self, more: int = 0) -> None:
        """Note that the try went well; if it fails after that, `more` tries are left."""
        self._worked = True
        self._parts[self._now][1].worked()
        self._tried = [0] * len(self._parts)
        self._useless.clear()
        self._left = max(self._left, more)

    def failed(self, error: ProviderError, now: float) -> float | None:
        """Note that the try failed; return the seconds to wait before the next, None if none."""
        self.opened = self._parts[self._now][1].failed(error, now)
        if not error.retryable and not self._worked:  # what has worked may work again
            self._useless.add(self._now)
        if self._left <= 0 or len(self._useless) == len(self._parts):
            return None
        best = self._best(now)
        pause = 0.0
        if best == self._now:
            pause = self._rules.pause_s * 2 ** max(0, self._tried[best] - 1)
        pause = max(pause, self._parts[best][1].busy_until - now)
        return None if now + pause >= self._until else pause

    def _best(self, now: float) -> int:
        """Return the first of those that are not left alone and were tried least."""

        def worth(index: int) -> tuple[bool, float, int, int, int]:
            breaker = self._parts[index][1]
            busy_s = max(0.0, breaker.busy_until - now)
            return breaker.is_open(now), busy_s, self._tried[index], self._late[index], index

        return min((i for i in range(len(self._parts)) if i not in self._useless), key=worth)
