"""Every fault of the stand-ins' catalogue, in every phase of a call where it makes a difference.

The caller hears something within the limit that follows from the settings; the call recovers or
ends as the policy has it, with the caller told; nothing is left of it; and other calls do not feel
it. All 1,027 calls take 20 minutes, so a sample is held, the same each time; all of them
with `VOICEBOT_FAULTS=all`. Random schedules: `chaos.py`.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pytest
import trio

from tests.e2e.chaos import hold_all as hold_seeds
from tests.e2e.faulty import (
    REPLIES,
    SETTINGS,
    Case,
    Limits,
    call_in,
    hold_all,
    know_phrases,
    lean,
    matrix,
    open_scene,
    sample,
)
from tests.e2e.running import Server
from tests.peer import in_use
from voicebot.config import load, plan_of
from voicebot.simulator.call import Recording, Script, Utterance, WhenSilent
from voicebot.standins import (
    CHAT_FAULTS,
    FAULTS,
    LISTEN_FAULTS,
    SPEAK_FAULTS,
    ChatConduct,
    Exchange,
    Heard,
    ListenConduct,
    SpeakConduct,
    Standins,
)
from voicebot.standins.groq import CHAT
from voicebot.standins.listen import LISTEN
from voicebot.standins.speak import SPEAK
from voicebot.standins.voice import speak

ALL = os.environ.get("VOICEBOT_FAULTS") == "all"
SAMPLES = {
    "listen": 12,
    "flux": 10,
    "speak": 14,
    "speak-socket": 10,
    "chat": 12,
    "deepgram": 8,
    "groq": 8,
    "twilio": 2,
}
SEEDS = range(6)
FAULTY_CALLS = 10


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with lean():
        yield


def some(where: str) -> list[Case]:
    cases = matrix(where)
    return cases if ALL else sample(cases, SAMPLES[where], f"faults of {where}")


async def left_behind(before: tuple[int, int]) -> tuple[int, int]:
    """Return how many more tasks and descriptors there are than before, at best within 2 s."""
    with trio.move_on_after(2):
        while more_than(before) != (0, 0):  # noqa: ASYNC110  # the kernel, and threads of a pool
            await trio.sleep(0.02)
    return more_than(before)


def more_than(before: tuple[int, int]) -> tuple[int, int]:
    (tasks, fds), now = before, in_use()
    return max(0, now[0] - tasks), max(0, now[1] - fds)


@pytest.mark.parametrize(
    "services", [[where] for where in SAMPLES] if ALL else [list(SAMPLES)], ids="-".join
)
async def test_the_caller_hears_something_and_the_call_goes_on_or_ends(
    services: list[str],
) -> None:
    before = in_use()

    wrong = await hold_all([case for where in services for case in some(where)])

    assert wrong == []
    assert await left_behind(before) == (0, 0)


async def test_random_schedules_leave_no_call_stuck_or_silent() -> None:
    before = in_use()

    results = await hold_seeds(SEEDS)

    assert [(result.seed, result.problems) for result in results if result.problems] == []
    assert sum(len(result.schedule) for result in results) > len(SEEDS)
    assert await left_behind(before) == (0, 0)


def test_every_fault_is_in_the_matrix_and_a_sample_has_every_phase() -> None:
    for where in SAMPLES:
        cases = matrix(where)
        assert {case.fault for case in cases} == set(FAULTS[where])
        chosen = sample(cases, SAMPLES[where], "x")
        assert Counter((c.phase, c.standing) for c in chosen).keys() == {
            (case.phase, case.standing) for case in cases
        }
        assert len(set(chosen)) == min(SAMPLES[where], len(cases))


def test_the_limits_follow_from_the_settings() -> None:
    limits = Limits(plan_of(load(SETTINGS)))

    assert limits.filled_s == pytest.approx(2.0)
    assert limits.deaf_s == pytest.approx(9.3)
    assert limits.of("chat", "while thinking") == limits.filled_s
    assert limits.of("speak", "at boot") == pytest.approx(6.9)
    assert limits.worst_s == pytest.approx(16.2)


# ------------------------------------------------------------------ the others in the process

HEALTHY = "healthy"
ANSWER = "Fine, healthy."
TURNS = 6
TRIES = 2  # more of the healthy call alone
BAD_LISTEN = ("reset", "stall", "503", "malformed-json")
BAD_CHAT = ("hang-first-byte", "stall-mid-answer", "503", "reset-mid-answer")
BAD_SPEAK = ("hang-first-byte", "stall", "503", "truncated")
AT_LEAST_S = 0.5  # what may be added however quick an answer is alone: other work on two cores


def healthy_caller() -> Script:
    yes = Utterance("yes", speak("yes please"), WhenSilent(0.4))
    return Script((yes,) * TURNS, limit_s=90)


@dataclass
class Mix:
    """Rules by call: the first to be heard is the healthy one, and all others meet faults."""

    listens: int = 0
    mixed: bool = False  # until then all are well

    def texts(self, heard: Heard) -> str:
        return f"{HEALTHY} caller here" if heard.connection == 0 else "somebody else is calling"

    def listen(self, exchange: Exchange) -> ListenConduct:
        self.listens += 1
        if self.listens == 1:
            return LISTEN
        return LISTEN_FAULTS[BAD_LISTEN[self.listens % len(BAD_LISTEN)]]

    def chat(self, exchange: Exchange) -> ChatConduct:
        if HEALTHY.encode() in exchange.body:
            return CHAT
        return CHAT_FAULTS[BAD_CHAT[exchange.number % len(BAD_CHAT)]]

    def speak(self, exchange: Exchange) -> SpeakConduct:
        if not self.mixed or HEALTHY.encode() in exchange.body:
            return SPEAK
        return SPEAK_FAULTS[BAD_SPEAK[exchange.number % len(BAD_SPEAK)]]

    def reply(self, messages: Sequence[Mapping[str, str]]) -> str:
        healthy = any(HEALTHY in message["content"] for message in messages)
        return ANSWER if healthy else REPLIES[0]


async def latencies_of_a_healthy_call(beside: int) -> tuple[list[float], list[str], int]:
    """Hold a healthy call beside so many faulty ones, whose callers call again and again.

    Returns the seconds from the end of each turn to the first media, by the record, which of its
    own providers failed, and how often one failed in the other calls.
    """
    mix = Mix()
    scene = open_scene(
        texts=mix.texts, replies=mix.reply, listen=mix.listen, chat=mix.chat, speak=mix.speak
    )
    failures = 0

    async def call_again_and_again(server: Server, standins: Standins) -> None:
        nonlocal failures
        while True:
            held = await call_in(standins, server, lambda phase: None, wait_idle=False)
            failures += len(held.failures)

    async with scene as (standins, server), trio.open_nursery() as nursery:
        await know_phrases(standins, server, mix.speak)
        mix.mixed = True
        healthy: list[Recording] = []

        async def call() -> None:
            healthy.append(await server.call(healthy_caller()))
            nursery.cancel_scope.cancel()

        nursery.start_soon(call)
        while not mix.listens:  # noqa: ASYNC110  # another program, as far as tests go
            await trio.sleep(0.02)
        for _ in range(beside):
            nursery.start_soon(call_again_and_again, server, standins)
    [recording] = healthy
    record = server.app.board.store.get(recording.identity.call_sid)
    assert record is not None
    assert record.summary is not None
    assert record.summary["outcome"] == "hung_up"
    timeline = record.summary["timeline"]
    failed = [str(m) for m in timeline if m["what"] == "provider_failed"]
    ends = [m["at"] for m in timeline if m["what"] == "end_of_turn"]
    firsts = [turn["first_media"] for turn in record.summary["turns"][1:]]
    assert len(ends) == len(firsts) == TURNS
    return [first - end for end, first in zip(ends, firsts, strict=True)], failed, failures


def p95(values: Sequence[float]) -> float:
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]


async def test_a_healthy_call_beside_ten_faulty_ones_is_answered_as_soon() -> None:
    with trio.fail_after(240):
        # Where a machine is so busy that a provider without a fault is late, nothing is compared.
        tries = iter(range(TRIES))
        alone, late, _ = await latencies_of_a_healthy_call(beside=0)
        while late and next(tries, None) is not None:
            alone, late, _ = await latencies_of_a_healthy_call(beside=0)
        beside, failed, failures = await latencies_of_a_healthy_call(beside=FAULTY_CALLS)

    assert failures >= FAULTY_CALLS
    assert not late
    assert not failed
    assert p95(beside) <= max(3 * p95(alone), p95(alone) + AT_LEAST_S), (alone, beside)
