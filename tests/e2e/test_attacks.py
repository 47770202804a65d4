"""Somebody attacks the server while people talk to it: they notice nothing, and nothing stays.

The server is `voicebot serve` in a process of its own, the attacker another one with a lower
priority (`bench/attackers.py`), the honest callers and the providers are here. How fast is
measured by `bench/attacks.py` and not here: what must be on any machine is that no call is dropped,
that each interruption is obeyed, once, and that memory and descriptors are given back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

import trio

from bench.attackers import ATTACKS, PEERS
from bench.attacks import (
    FDS_OF_A_CALL,
    SETTLED_S,
    Round,
    back_to,
    hold,
    open_attacker,
    open_serving,
    script_of,
)
from tests.e2e.running import PATIENT, recorded
from tests.e2e.test_real_call import STORY
from voicebot.standins import open_standins

CALLS: Final = 4
NAMES: Final = ("number-not-answering", "hello-world", "im-sorry", "please-try-again")
SLOW: Final = "slow-headers+slow-body+half-open"
#: Over when so many are cut off, and not before: the server allows them 5 s.
SLOWLY: Final = {SLOW: 3 * PEERS, "upgrade-and-no-start": PEERS}
BRIEFLY_S: Final = 1.0
LONG_S: Final = 20.0


def busy(seen: Counter[str]) -> bool:
    return seen["answered"] > 0 and seen["busy"] > 0


def cut(seen: Counter[str]) -> bool:
    return seen["cut"] > 0


#: What must have come of an attack, if it is not that peers were cut off.
CAME: Final[dict[str, Callable[[Counter[str]], bool]]] = {
    "connections-of-many": lambda seen: seen["opened"] > 0,
    SLOW: lambda seen: seen["cut"] == 3 * PEERS,
    "pipelined-and-reset": lambda seen: seen["opened"] > 0,
    "bad-signatures": lambda seen: seen["403"] > 0,
    "upgrade-and-no-start": lambda seen: seen["cut"] == seen["101"] == PEERS,
    "webhook-flood": busy,
    # Where the server has too little of a core for a hundred messages a second of such a call, its
    # peer is slowed down by TCP and never cut off; that it is otherwise is in `test_serving.py`.
    "message-flood": lambda seen: seen["calls"] > 0,
    "key-flood": lambda seen: seen["calls"] > 0,
    "ping-flood": lambda seen: seen["calls"] > 0,
    "stalled-reader": lambda seen: seen["calls"] > 0,
}


async def test_honest_calls_go_on_whatever_strangers_do() -> None:
    others = {*SLOW.split("+"), "keys-in-time"}  # the last takes eight seconds to be cut off
    attacks = [SLOW, *(name for name in ATTACKS if name not in others)]
    assert attacks[-1] == "webhook-flood"  # which takes the lines that honest calls would need
    clips = [(name, recorded(name, 3.0)) for name in NAMES]
    came, over, problems = Round(), trio.Event(), list[str]()
    begun = 0

    async with open_standins(replies=lambda messages: STORY) as standins:
        async with open_serving(standins, CALLS) as server, open_attacker(server) as attacker:

            async def call() -> None:
                nonlocal begun
                while not over.is_set():
                    begun += 1
                    await hold(server, script_of(clips, lambda: 1_000), came, PATIENT)

            with trio.fail_after(400):
                async with trio.open_nursery() as callers:
                    for _ in range(CALLS):
                        callers.start_soon(call)
                    await trio.sleep(SETTLED_S)
                    fds, rss_mb = server.fds, server.rss_mb
                    for n, name in enumerate(attacks, 1):
                        if name == attacks[-1]:
                            over.set()
                        # From an address of its own: what is counted by address begins anew.
                        address, seen = f"127.0.{n}.2", Counter[str]()
                        enough = SLOWLY.get(name, 1)
                        seconds = BRIEFLY_S if name in CAME else LONG_S
                        seconds = LONG_S if name in SLOWLY else seconds
                        latest = trio.current_time() + LONG_S  # a slow machine attacks slowly
                        while not CAME.get(name, cut)(seen) and trio.current_time() < latest:
                            seen += await attacker.attack(name, seconds, address, enough)
                        if not CAME.get(name, cut)(seen):
                            problems.append(f"{name}: {seen}")
                        # What is left of an attack has at most BACK_S; then it is there for good.
                        left = await back_to(server, fds, rss_mb, CALLS * FDS_OF_A_CALL)
                        problems += [f"{name}: {what}" for what in left]
                log = server.log.read_text()

    assert problems == []
    assert came.problems(begun) == []
    assert sum(len(verdict.interruptions) for verdict in came.verdicts) >= 3 * CALLS
    # A flood does not flood the log: events of no call 20 times a second at most, and of a kind.
    assert len(log.splitlines()) < 4_000
