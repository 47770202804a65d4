"""A random schedule of providers that fail, and parts that fail by it.

Plain data, drawn from a seed: `Schedule` is a `Conversation` (`conversation.py`) with several
alternatives of the model and of the voice, each with what goes wrong in its requests one by one,
and with outages, which stand for a while or for ever. `fault_world.py` holds the call,
`fault_checks.py` judges it.
"""

from __future__ import annotations

import math
import random
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Final, Generic, Literal, TypeVar

import trio

from tests.sim.conversation import Conversation
from tests.sim.focus import Names
from voicebot.errors import ProviderError, ProviderRejected
from voicebot.plan import CallPlan, Timeouts
from voicebot.playout import Pacing
from voicebot.ports import Chat, Message, Synthesizer, Tool, ToolCall
from voicebot.simulator import Network
from voicebot.testing import Opening, Speech
from voicebot.testing.faults import linger
from voicebot.turns import Interruption

ItemT = TypeVar("ItemT")

CLOSE_S: Final = 1.0  # what a client may take to let go of a request

#: What may go wrong, and how often, relative to each other.
KINDS: Final = {
    "refuse": 8,  # ProviderRejected instead of an answer
    "lost": 3,  # ProviderError instead of one
    "hang": 4,  # no answer, ever
    "mute": 4,  # an answer whose first item never comes
    "stall": 4,  # no further item
    "break off": 5,  # ProviderError instead of a further item
    "drip": 3,  # slower than it is spoken
    "short": 1,  # ends too early, and says nothing of it
    "double": 1,  # each item twice
    "empty": 1,  # empty items between the others; of a voice none, its port forbids it
    "late": 3,  # all is there, only its close is slow
}
#: Refusals: status, whether it may be tried again, seconds to wait.
REFUSALS: Final = (
    (500, True, None), (503, True, None), (429, True, 0.5), (429, True, 5.0), (429, True, 60.0),
    (401, False, None), (404, False, None), (400, False, None),
)  # fmt: skip
#: Those that say nothing of a provider's health, or only how long it is busy.
_NO_OUTAGE: Final = frozenset({400, 429})


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong in one request. Units: seconds; `after` counts items, at least one."""

    what: str
    after: int = 1
    wait_s: float = 0.0  # before it fails; of a drip, before each item
    status: int = 0
    retryable: bool = True
    retry_after_s: float | None = None
    close_s: float = 0.0  # not to be cancelled

    @property
    def counts(self) -> bool:
        """Whether breakers open on it: no answer at all, and not for what was asked."""
        if self.what == "refuse":
            return self.status not in _NO_OUTAGE
        return self.what in {"lost", "hang", "mute"}


@dataclass(frozen=True, slots=True)
class Outage:
    """From `start` until before `end`, in seconds of the call, every request goes like this."""

    start: float
    end: float
    fault: Fault


@dataclass(frozen=True, slots=True)
class Provider:
    """One alternative: what happens to its requests in turn, then to all others."""

    name: str
    faults: tuple[Fault | None, ...] = ()
    outages: tuple[Outage, ...] = ()

    @property
    def kinds(self) -> frozenset[str]:
        """What may go wrong with it."""
        single = {fault.what for fault in self.faults if fault is not None}
        return frozenset(single | {outage.fault.what for outage in self.outages})

    @property
    def standing(self) -> tuple[Fault, ...]:
        """Every fault of it."""
        return tuple(f for f in self.faults if f) + tuple(o.fault for o in self.outages)


@dataclass(frozen=True, slots=True)
class Schedule(Conversation):
    """A conversation with the faults of its providers."""

    chats: tuple[Provider, ...]
    voices: tuple[Provider, ...]
    canned: Literal["all", "some", "none"]  # whose sounds are known beforehand
    manner: Literal["waits", "goes on", "interrupts"]  # of the caller
    answers: dict[str, str]  # to each request
    guesses: bool

    @property
    def faults(self) -> frozenset[str]:
        """Which parts misbehave: what then may be excused. See `Conversation.faults`."""
        found = set(Conversation.faults.__get__(self))
        found |= {"chat" for provider in self.chats if provider.kinds}
        found |= {"voice" for provider in self.voices if provider.kinds}
        return frozenset(found)


def draw_schedule(seed: int) -> Schedule:
    """Return the schedule of a seed."""
    chance = random.Random(seed)
    names = Names(chance)
    requests = tuple(names.sentence(1, 3) for _ in range(chance.randint(2, 5)))
    answers = {
        request: " ".join(f"{names.sentence(3, 8)}." for _ in range(chance.choice((1, 1, 2, 3))))
        for request in requests
    }
    mode: Literal["local", "provider"] = "local" if chance.random() < 0.5 else "provider"
    manners: tuple[Literal["waits", "goes on", "interrupts"], ...] = (
        "waits", "goes on", "interrupts",
    )  # fmt: skip
    canned: tuple[Literal["all", "some", "none"], ...] = ("all", "some", "none")
    return Schedule(
        seed=chance.randrange(2**31),
        network=Network() if chance.random() < 0.7 else Network(delay_ms=chance.uniform(5, 80)),
        plan=CallPlan(
            prompt="be brief",
            greeting=f"{names.sentence(2, 6)}." if chance.random() < 0.7 else "",
            apology="sorry say it again.",
            fillers=("one moment.", "still here."),
            trouble="trouble bye.",
            farewell="cannot hear you bye.",
            pacing=Pacing(),
            interruption=Interruption(),
            timeouts=_timeouts(chance),
        ),
        mode=mode,
        requests=requests,
        acts=(),
        replies=(),
        tools=(),
        speeches=(),
        openings=tuple(_opening(chance) for _ in range(chance.choice((0, 0, 0, 0, 0, 2, 4)))),
        chats=_providers(chance, "chat"),
        voices=_providers(chance, "voice"),
        canned=chance.choices(canned, (0.6, 0.1, 0.3))[0],
        manner=chance.choices(manners, (0.7, 0.2, 0.1))[0],
        answers=answers,
        guesses=mode == "provider" and chance.random() < 0.25,
    )


def _timeouts(chance: random.Random) -> Timeouts:
    if chance.random() < 0.6:
        return Timeouts(idle_s=0)
    return Timeouts(
        idle_s=0,  # callers of these schedules take their time
        first_token_s=chance.choice((1.0, 2.5)),
        token_gap_s=chance.choice((1.0, 4.0)),
        answer_tries=chance.choice((1, 2, 3)),
        answer_s=chance.choice((3.0, 6.0)),
        first_audio_s=chance.choice((1.0, 2.0)),
        audio_gap_s=chance.choice((1.0, 2.0)),
        speech_tries=chance.choice((1, 2, 3)),
        breaker_s=chance.choice((5.0, 20.0)),
        filler_s=chance.choice((1.5, 3.0)),
        failures=chance.choice((1, 2, 3)),
    )


def _providers(chance: random.Random, part: str) -> tuple[Provider, ...]:
    found = []
    for number in range(chance.choice((1, 1, 2, 2, 3))):
        provider = Provider(f"{part} {number}")
        state = chance.random()
        if 0.3 <= state < 0.7:
            often = chance.choice((0.15, 0.4, 0.8))
            faults = [_fault(chance, part) if chance.random() < often else None for _ in range(8)]
            provider = replace(provider, faults=tuple(faults))
        if state >= 0.55:
            start = chance.choice((0.0, chance.uniform(0, 20)))
            end = math.inf if chance.random() < 0.3 else start + chance.uniform(2, 40)
            outage = Outage(start, end, _fault(chance, part))
            provider = replace(provider, outages=(outage,))
        found.append(provider)
    return tuple(found)


def _fault(chance: random.Random, part: str) -> Fault:
    kinds = {kind: weight for kind, weight in KINDS.items() if (part, kind) != ("voice", "empty")}
    what = chance.choices(list(kinds), list(kinds.values()))[0]
    wait_s = chance.choice((0.0, 0.05, 0.5))
    if what == "drip":
        wait_s = chance.choice((0.2, 0.45, 0.9))
    close_s = chance.choice((0.0, 0.0, 0.0, 0.3, CLOSE_S))
    fault = Fault(what, chance.choice((1, 1, 2, 4)), wait_s, close_s=close_s)
    if what == "late":
        return replace(fault, close_s=chance.choice((0.3, CLOSE_S)))
    if what != "refuse":
        return fault
    status, retryable, retry_after_s = chance.choice(REFUSALS)
    return replace(fault, status=status, retryable=retryable, retry_after_s=retry_after_s)


def _opening(chance: random.Random) -> Opening:
    kind = chance.random()
    return Opening(
        open_s=chance.choice((0.0, 0.1, 1.0)),
        refuse=kind < 0.4,
        drop_after_s=chance.uniform(0.3, 15) if 0.4 <= kind < 0.7 else 1e9,
        stall_after_s=chance.uniform(0.3, 15) if 0.7 <= kind < 0.9 else 1e9,
        close_s=chance.choice((0.0, 0.0, 0.3, CLOSE_S)),
    )


@dataclass(slots=True)
class Ask:
    """One request to one provider as it went. Times are seconds since the call began.

    `how`: "given" to its end, "failed" with an error of its own, "cancelled" from outside.
    """

    provider: str
    at: float
    fault: Fault | None
    text: str = ""  # that was to be spoken
    until: float = math.inf  # how was known, before the close
    how: str = ""


@dataclass(slots=True)
class Clock:
    """When the call began."""

    began: float = field(default_factory=trio.current_time)

    def now(self) -> float:
        return trio.current_time() - self.began


class _Faulty(Generic[ItemT]):
    """One alternative, which fails by its schedule."""

    def __init__(self, provider: Provider, asks: list[Ask], clock: Clock) -> None:
        self.name = provider.name
        self._provider = provider
        self._asks = asks
        self._clock = clock
        self._faults = iter(provider.faults)

    def _next(self) -> Fault | None:
        fault = next(self._faults, None)
        for outage in self._provider.outages:
            if outage.start <= self._clock.now() < outage.end:
                return outage.fault
        return fault

    @asynccontextmanager
    async def _open(
        self, inner: AbstractAsyncContextManager[AsyncIterator[ItemT]], text: str = ""
    ) -> AsyncGenerator[AsyncIterator[ItemT]]:
        fault = self._next()
        ask = Ask(self.name, self._clock.now(), fault, text)
        self._asks.append(ask)
        try:
            if fault is not None:
                await self._begin(fault)
            async with inner as items:
                yield items if fault is None else _Items(items, fault, self.name)
            ask.how = "given"
        except ProviderError:
            ask.how = "failed"
            raise
        except trio.Cancelled:
            ask.how = "cancelled"
            raise
        finally:
            ask.until = self._clock.now()
            if fault is not None:
                await linger(fault.close_s)  # noqa: ASYNC102  # shielded and bounded itself

    async def _begin(self, fault: Fault) -> None:
        if fault.what in {"refuse", "lost"}:
            await trio.sleep(fault.wait_s)
        if fault.what == "refuse":
            raise ProviderRejected(
                self.name,
                "refused",
                status=fault.status,
                retryable=fault.retryable,
                retry_after_s=fault.retry_after_s,
            )
        if fault.what == "lost":
            raise ProviderError(self.name, "connection lost", retryable=True)
        if fault.what == "hang":
            await trio.sleep_forever()


class _Items(Generic[ItemT]):
    """The items of an answer in which something goes wrong."""

    def __init__(self, items: AsyncIterator[ItemT], fault: Fault, name: str) -> None:
        self._items = items
        self._fault = fault
        self._name = name
        self._given = 0
        self._again: list[ItemT] = []

    def __aiter__(self) -> _Items[ItemT]:
        return self

    async def __anext__(self) -> ItemT:
        fault = self._fault
        if fault.what == "mute":
            await trio.sleep_forever()
        if fault.what == "drip":
            await trio.sleep(fault.wait_s)
        if self._given == fault.after:
            match fault.what:
                case "stall":
                    await trio.sleep_forever()
                case "break off":
                    raise ProviderError(self._name, "broke off", retryable=True)
                case "short":
                    await trio.lowlevel.checkpoint()
                    raise StopAsyncIteration
        if self._again:
            await trio.lowlevel.checkpoint()
            return self._again.pop()
        item = await anext(self._items)
        self._given += 1
        if fault.what == "double" and not isinstance(item, ToolCall):
            self._again.append(item)
        if fault.what == "empty" and isinstance(item, str):
            self._again.append(item)
            return type(item)()
        return item


class FaultyChat(_Faulty[str | ToolCall]):
    """A `ports.Chat` that fails by a schedule."""

    def __init__(self, chat: Chat, provider: Provider, asks: list[Ask], clock: Clock) -> None:
        super().__init__(provider, asks, clock)
        self._chat = chat

    def open_reply(
        self, messages: Sequence[Message], tools: Sequence[Tool] = ()
    ) -> AbstractAsyncContextManager[AsyncIterator[str | ToolCall]]:
        """Answer, or fail. See `ports.Chat.open_reply`."""
        return self._open(self._chat.open_reply(messages, tools))


class FaultyVoice(_Faulty[bytes]):
    """A `ports.Synthesizer` that fails by a schedule."""

    def __init__(
        self, voice: Synthesizer, provider: Provider, asks: list[Ask], clock: Clock
    ) -> None:
        super().__init__(provider, asks, clock)
        self._voice = voice

    def open_speech(self, text: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Speak, or fail. See `ports.Synthesizer.open_speech`."""
        return self._open(self._voice.open_speech(text), text)


#: How the parts speak and answer where nothing goes wrong.
SPEECH: Final = Speech(first_s=0.1, speed=10.0, chunk_ms=100)
TOKEN_GAP_S: Final = 0.02
FIRST_TOKEN_S: Final = 0.2
