"""What the stand-ins say, and how they behave or misbehave.

Content and conduct are separate: a script says *what* is heard or answered, a conduct *how*:
delays and faults. Both are plain values or pure functions of the request, so that the same
conversation gives the same bytes. Nothing here knows a wire format.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeAlias, TypeVar

import trio

from voicebot.standins.http11 import Answer, Exchange

#: What callers say where no script is given: a booking, in the order such a call goes.
CALLER_TEXTS: Final = (
    "Hello, I would like to book a table.",
    "Tomorrow at seven in the evening, please.",
    "We are four people.",
    "My name is Martin.",
    "Do you have something without meat?",
    "No, that is all. Thank you.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conduct:
    """How one request is treated: what all services have in common."""

    delay_s: float = 0.0  # before the head of the answer, hence the first token, byte or 101
    reset: bool = False  # then the connection is reset instead

    async def meet(self, answer: Answer) -> None:
        """Wait and maybe cut the connection. `delay_s=math.inf` never answers."""
        await trio.sleep(self.delay_s)
        if self.reset:
            answer.drop(reset=True)


T = TypeVar("T")
C = TypeVar("C", bound=Conduct)

#: A conduct for all requests, or a function that picks one by the request.
Rule: TypeAlias = C | Callable[[Exchange], C]


class Conducts(Generic[C]):
    """How requests are treated: first those queued by `once`, then by the standing rule.

    The rule may be replaced at any time and applies from the next request on.
    """

    def __init__(self, rule: Rule[C]) -> None:
        self.rule = rule
        self._once: deque[C] = deque()

    def once(self, *conducts: C) -> None:
        """Treat the next requests so, one each, in this order."""
        self._once.extend(conducts)

    def take(self, exchange: Exchange) -> C:
        """Return the conduct for this request; a queued one is used up."""
        if self._once:
            return self._once.popleft()
        return self.rule(exchange) if callable(self.rule) else self.rule


def nth(texts: Sequence[T], n: int) -> T:
    """Return the n-th item, counted from 0, beginning again at the end."""
    return texts[n % len(texts)]
