"""Random faults: the same for the same seed, by number and not by time; and conducts as values."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import httpx
import pytest
import trio

from voicebot.standins import (
    CHAT_FAULTS,
    FAULTS,
    SPEAK_FAULTS,
    Canned,
    Chaos,
    ChatConduct,
    FluxConduct,
    ListenConduct,
    RestConduct,
    SpeakConduct,
    SpeakSocketConduct,
    deepgram_rules,
    groq_rules,
    listen,
    open_standins,
    random_chat,
    random_flux,
    random_listen,
    random_rest,
    random_speak,
    random_speak_socket,
    twilio_rules,
)
from voicebot.standins.catalogue import HOSTS, Service

SERVICES: tuple[Service, ...] = ("listen", "flux", "speak", "speak-socket", "chat", "rest")


def schedule(seed: int, rate: float, service: Service, requests: int = 300) -> list[Any]:
    chaos = Chaos(seed, rate)
    return [chaos.fault(service, n) for n in range(1, requests + 1)]


@pytest.mark.parametrize("service", SERVICES)
def test_a_seed_is_a_schedule(service: Service) -> None:
    assert schedule(1, 0.3, service) == schedule(1, 0.3, service)
    assert schedule(1, 0.3, service) != schedule(2, 0.3, service)


def test_services_have_schedules_of_their_own() -> None:
    hits = {tuple(fault is None for fault in schedule(1, 0.3, service)) for service in SERVICES}
    assert len(hits) == len(SERVICES)


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("rate, least, most", [(0.0, 0, 0), (0.3, 60, 120), (1.0, 300, 300)])
def test_faults_happen_at_the_rate(service: Service, rate: float, least: int, most: int) -> None:
    faults = [fault for fault in schedule(5, rate, service) if fault is not None]
    assert least <= len(faults) <= most
    assert {fault.name for fault in faults} <= set(FAULTS[service])


def test_a_higher_rate_keeps_the_faults_of_a_lower_one() -> None:
    few, many = schedule(3, 0.1, "chat"), schedule(3, 0.5, "chat")
    assert [two for one, two in zip(few, many, strict=True) if one is not None] == [
        one for one in few if one is not None
    ]


@pytest.mark.parametrize("service", SERVICES)
def test_every_fault_comes_and_refusals_are_not_nearly_all(service: Service) -> None:
    names = Counter(fault.name for fault in schedule(1, 1.0, service, 3_000))
    assert set(names) == set(FAULTS[service])
    refusals = sum(names[name] for name, fault in FAULTS[service].items() if fault.refusal)
    assert 0.4 < refusals / 3_000 < 0.6


def test_moments_vary_and_nothing_else_does() -> None:
    moments = set()
    for fault in schedule(1, 1.0, "speak", 3_000):
        if fault.name == "truncated":
            moments.add(fault.drop_after_bytes)
            named = SPEAK_FAULTS["truncated"]
            assert fault == SpeakConduct(name=named.name, drop_after_bytes=fault.drop_after_bytes)
    assert len(moments) > 10
    assert min(moments) < 4_000 < max(moments) <= 16_000


def test_a_fault_says_how_to_make_it_again() -> None:
    names = {
        "Canned": Canned,
        "ChatConduct": ChatConduct,
        "FluxConduct": FluxConduct,
        "ListenConduct": ListenConduct,
        "RestConduct": RestConduct,
        "SpeakConduct": SpeakConduct,
        "SpeakSocketConduct": SpeakSocketConduct,
        "Close": listen.Close,
        "Refusal": deepgram_rules.Refusal,
        "inf": math.inf,
    }
    errors = {"chat": groq_rules.ApiError, "rest": twilio_rules.ApiError}
    for service in SERVICES:
        for fault in [*schedule(9, 1.0, service), *FAULTS[service].values()]:
            again = eval(repr(fault), {**names, "ApiError": errors.get(service)})
            assert (again, type(again)) == (fault, type(fault))
    assert repr(SpeakConduct(name="x", rate=0.5)) == "SpeakConduct(name='x', rate=0.5)"


def test_one_function_a_service_chooses() -> None:
    for choose, service in [
        (random_listen, "listen"),
        (random_flux, "flux"),
        (random_speak, "speak"),
        (random_speak_socket, "speak-socket"),
        (random_chat, "chat"),
        (random_rest, "rest"),
    ]:
        found: Any = choose(random.Random(4))
        assert found == choose(random.Random(4))
        assert found.name in FAULTS[service]


def test_a_rule_counts_its_requests_and_keeps_what_a_fault_does_not_change() -> None:
    usual = ChatConduct(delay_s=0.25, token_gap_s=0.125)
    rule = Chaos(7, 0.5).rule(usual)
    for number in range(1, 200):
        fault, conduct = Chaos(7, 0.5).fault("chat", number), rule(None)
        if fault is None:
            assert conduct == usual
        else:
            assert (conduct.name, conduct.token_gap_s) == (fault.name, 0.125)
            assert conduct.delay_s == (fault.delay_s or 0.25)


def test_doors_depend_on_the_number_alone() -> None:
    doors = Chaos(2, 0.3).doors("groq")
    forwards = [doors(n) for n in range(1, 200)]
    assert forwards == [doors(n) for n in range(199, 0, -1)][::-1]
    assert set(forwards) == {"open", "reset", "hang"}
    assert 40 < 199 - forwards.count("open") < 80
    assert len({tuple(map(Chaos(2, 0.3).doors(host), range(50))) for host in HOSTS}) == 3


async def ask(url: str) -> None:
    body = {"model": "openai/gpt-oss-20b", "messages": [{"role": "user", "content": "x"}]}
    headers = {"Authorization": "Bearer standin"}
    async with httpx.AsyncClient(verify=False, headers=headers, timeout=0.2) as client:
        try:
            await client.post(f"{url}/openai/v1/chat/completions", json=body | {"stream": True})
        except httpx.HTTPError:
            pass  # what was asked for


async def test_requests_meet_the_schedule_in_their_order_and_say_so() -> None:
    chaos = Chaos(11, 0.6)
    with trio.fail_after(10):
        async with open_standins(chat=chaos.rule(ChatConduct())) as standins:
            for _ in range(12):
                await ask(standins.groq.url)
            await standins.wait_closed()
            met = [exchange.conduct for exchange in standins.groq.server.exchanges]
    assert met == [chaos.fault("chat", n) or ChatConduct() for n in range(1, 13)]
    assert len(set(met)) > 4


async def test_an_inflicted_fault_replaces_the_one_before_and_a_queued_one_comes_first() -> None:
    with trio.fail_after(5):
        async with open_standins() as standins:
            standins.inflict("chat", "429-tokens")
            standins.inflict("chat", "503")
            standins.groq.conducts.once(CHAT_FAULTS["401"])
            for _ in range(2):
                await ask(standins.groq.url)
            statuses = [exchange.status for exchange in standins.groq.server.exchanges]
            with pytest.raises(KeyError):
                standins.inflict("chat", "close-net-0001")
    assert statuses == [401, 503]
