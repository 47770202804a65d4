"""Faults at random, the same ones for the same seed.

Whether the n-th request of a service meets a fault, and which, depends on the seed, the service
and n, and on nothing else: not on time, nor on what other services were asked. So a schedule
that broke something can be looked up, and replayed with `Conducts.once`.

    chaos = Chaos(seed=7, rate=0.2)
    async with open_standins(listen=chaos.rule(LISTEN), chat=chaos.rule(CHAT)) as standins:
        standins.groq.server.door = chaos.doors("groq")
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count
from operator import attrgetter
from typing import Any, Final, TypeVar

from voicebot.standins.catalogue import (
    CHAT_FAULTS,
    FAULTS,
    FLUX_FAULTS,
    LISTEN_FAULTS,
    REST_FAULTS,
    SPEAK_FAULTS,
    SPEAK_SOCKET_FAULTS,
    Host,
    Service,
)
from voicebot.standins.flux import FluxConduct
from voicebot.standins.groq import ChatConduct
from voicebot.standins.http11 import Door
from voicebot.standins.listen import ListenConduct
from voicebot.standins.script import Conduct
from voicebot.standins.speak import SpeakConduct
from voicebot.standins.speak_socket import SpeakSocketConduct
from voicebot.standins.twilio import RestConduct

C = TypeVar("C", bound=Conduct)

_SERVICES: Final[Mapping[type[Conduct], Service]] = {
    ListenConduct: "listen",
    FluxConduct: "flux",
    SpeakConduct: "speak",
    SpeakSocketConduct: "speak-socket",
    ChatConduct: "chat",
    RestConduct: "rest",
}

_refusal: Final = attrgetter("refusal")  # each service has its own type of it


def random_listen(rng: random.Random) -> ListenConduct:
    """Return a fault of a transcription."""
    return _choose(rng, LISTEN_FAULTS)


def random_flux(rng: random.Random) -> FluxConduct:
    """Return a fault of a transcription by Flux."""
    return _choose(rng, FLUX_FAULTS)


def random_speak_socket(rng: random.Random) -> SpeakSocketConduct:
    """Return a fault of a connection that speaks."""
    return _choose(rng, SPEAK_SOCKET_FAULTS)


def random_speak(rng: random.Random) -> SpeakConduct:
    """Return a fault of a speech request."""
    return _choose(rng, SPEAK_FAULTS)


def random_chat(rng: random.Random) -> ChatConduct:
    """Return a fault of an answer."""
    return _choose(rng, CHAT_FAULTS)


def random_rest(rng: random.Random) -> RestConduct:
    """Return a fault of a request to Twilio."""
    return _choose(rng, REST_FAULTS)


class Chaos:
    """Faults at a rate: 0 never, 1 always."""

    def __init__(self, seed: int | str, rate: float) -> None:
        self._seed = seed
        self._rate = rate

    def fault(self, service: Service, number: int) -> Conduct | None:
        """Return what the service's request of this number meets, counted from 1."""
        rng = self._rng(service, number)
        faults: Mapping[str, Conduct] = FAULTS[service]
        return _choose(rng, faults) if rng.random() < self._rate else None

    def rule(self, healthy: C) -> Callable[[object], C]:
        """Return a rule for the service whose conduct this is.

        It counts its requests, so it is for one run.

        Args:
            healthy: the conduct where there is no fault, and what a fault does not change.
        """
        service = _SERVICES[type(healthy)]
        numbers = count(1)

        def rule(exchange: object) -> C:
            fault = self.fault(service, next(numbers))
            return healthy if fault is None else fault.over(healthy)

        return rule

    def doors(self, host: Host) -> Callable[[int], Door]:
        """Return what the connections to a host meet. Always the same for the same number."""

        def door(number: int) -> Door:
            rng = self._rng(host, number)
            return rng.choice(("reset", "hang")) if rng.random() < self._rate else "open"

        return door

    def _rng(self, who: str, number: int) -> random.Random:
        return random.Random(f"{self._seed} {who} {number}")  # nosec B311  # no secret: replayed


def _choose(rng: random.Random, faults: Mapping[str, C]) -> C:
    """Return one of the faults; where it is of a moment, the moment varies."""
    refusals = [fault for fault in faults.values() if _refusal(fault) is not None]
    others = [fault for fault in faults.values() if _refusal(fault) is None]
    fault = rng.choice(rng.choice([refusals, others]))  # there are many refusals, all much alike
    moments: dict[str, Any] = {
        name: rng.randrange(4 * value + 1)
        for name, value in fault.changes().items()
        if "_after_" in name
    }
    return replace(fault, **moments)
