"""What the stand-ins say, and how they behave or misbehave.

Content and conduct are separate: a script says *what* is heard or answered, a conduct *how*:
delays and faults. Both are plain values or pure functions of the request, so that the same
conversation gives the same bytes. Nothing here knows a wire format. Named faults are in
`catalogue.py`, random ones in `chaos.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Generic, TypeAlias, TypeVar

import trio

from voicebot.standins.http11 import Answer, Exchange, Flow

#: What callers say where no script is given: a booking, in the order such a call goes.
CALLER_TEXTS: Final = (
    "Hello, I would like to book a table.",
    "Tomorrow at seven in the evening, please.",
    "We are four people.",
    "My name is Martin.",
    "Do you have something without meat?",
    "No, that is all. Thank you.",
)


@dataclass(frozen=True, slots=True)
class Canned:
    """An answer that is not this service's, as of a proxy, or not in its format."""

    status: int
    content_type: str
    body: bytes


C = TypeVar("C", bound="Conduct")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Conduct(Flow):
    """How one request is treated: what all services have in common.

    Shown as what it takes to make it again.
    """

    delay_s: float = 0.0  # before the head of the answer, hence the first token, byte or 101
    reset: bool = False  # then the connection is reset instead
    instead: Canned | bytes | None = None  # or this comes; bytes are no HTTP, and FIN follows

    async def meet(self, answer: Answer) -> None:
        """Wait, and maybe have done with the request. `delay_s=math.inf` never answers."""
        answer.flow = self
        await trio.sleep(self.delay_s)
        if self.reset:
            answer.drop(reset=True)
        if isinstance(self.instead, bytes):
            await answer.send_raw(self.instead)
        if self.instead is not None:
            headers = [("Content-Type", self.instead.content_type)]
            await answer.send_instead(self.instead.status, self.instead.body, headers)

    def over(self, other: C) -> C:
        """Return the other conduct with all that this one changes."""
        return replace(other, **self.changes())

    def changes(self) -> dict[str, Any]:
        """Return what it says that is not usual, by name."""
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        return {name: value for name, (value, default) in values.items() if value != default}

    def __repr__(self) -> str:
        changes = ", ".join(f"{name}={value!r}" for name, value in self.changes().items())
        return f"{type(self).__name__}({changes})"


T = TypeVar("T")

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
            conduct = self._once.popleft()
        else:
            conduct = self.rule(exchange) if callable(self.rule) else self.rule
        exchange.conduct = conduct
        return conduct


def nth(texts: Sequence[T], n: int) -> T:
    """Return the n-th item, counted from 0, beginning again at the end."""
    return texts[n % len(texts)]
