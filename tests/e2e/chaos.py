"""Calls whose providers all fail at random, over real sockets, many of them by their seeds.

    python -m tests.e2e.chaos --seeds 0:200 --jobs 12     what was wrong, and how long silence was
    python -m tests.e2e.chaos --replay 17                 one call, with its schedule and timeline

A seed is a schedule: what the n-th request of each service and the n-th connection to each host
meet, and which of Deepgram's interfaces are used. How many requests there are, and when, depends
on the machine, so a replay meets the same faults and may go another way. Nothing is known
beforehand either: what is said word for word is learned from the same bad providers.

What must be true whatever happens: the call ends, the caller is never left in silence for longer
than all tries take together, nothing is left of the call.
"""

from __future__ import annotations

import argparse
import logging
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import trio

from tests.e2e.faulty import (
    AT_ONCE,
    CALL_S,
    PARTS,
    SETTINGS,
    Held,
    Limits,
    call_in,
    lean,
    open_scene,
    slack_s,
)
from voicebot.config import load, plan_of
from voicebot.standins import HOSTS, Chaos
from voicebot.standins.flux import FLUX
from voicebot.standins.groq import CHAT
from voicebot.standins.listen import LISTEN
from voicebot.standins.speak import SPEAK
from voicebot.standins.speak_socket import SPEAK_SOCKET
from voicebot.standins.twilio import REST

RATES = (0.1, 0.3, 0.6)  # of requests that meet a fault: a bad day, a worse one, an outage
DOORS = 0.1  # of connections, as a part of that rate: there are fewer, and each matters more


@dataclass(frozen=True)
class Result:
    """What came of a seed."""

    seed: int
    problems: tuple[str, ...]
    schedule: tuple[str, ...]  # what was met, in order
    held: Held | None = None


def rate_of(seed: int) -> float:
    """Return at which rate faults happen with this seed."""
    return random.Random(f"rate {seed}").choice(RATES)


def parts_of(seed: int) -> dict[str, str]:
    """Return which of the provider's interfaces are used with this seed: each in half of them."""
    rng = random.Random(f"parts {seed}")
    chosen = [settings for settings in PARTS.values() if rng.random() < 0.5]
    return {name: value for settings in chosen for name, value in settings.items()}


async def hold(seed: int) -> Result:
    """Hold the call of a seed."""
    chaos, doors = Chaos(seed, rate_of(seed)), Chaos(seed, DOORS * rate_of(seed))
    with trio.move_on_after(CALL_S + 15):
        async with open_scene(
            parts_of(seed),
            listen=chaos.rule(LISTEN),
            flux=chaos.rule(FLUX),
            speak=chaos.rule(SPEAK),
            speak_socket=chaos.rule(SPEAK_SOCKET),
            chat=chaos.rule(CHAT),
            rest=chaos.rule(REST),
        ) as (standins, server):
            for name in HOSTS:
                standins.hosts[name].door = doors.doors(name)
            held = await call_in(standins, server, lambda phase: None)
            schedule = tuple(
                f"{e.service} {e.path.rpartition('/')[2]} {e.conduct}"
                for name in HOSTS
                for e in standins.hosts[name].exchanges
                if e.conduct.name
            )
        return Result(seed, tuple(problems(held)), schedule, held)
    return Result(seed, ("stuck: did not end",), ())


def problems(held: Held) -> list[str]:
    """Return what must not be, whatever failed."""
    found = []
    limit_s = Limits(plan_of(load(SETTINGS))).worst_s
    if held.recording.ended.by == "limit":
        found.append("stuck: no end of the call")
    if held.silence_s > limit_s + slack_s() + held.behind_s:
        found.append(f"silent for {held.silence_s:.1f} s, {limit_s:.1f} s allowed")
    if held.outcome.value == "crashed":
        found.append("crashed")
    if held.left:
        found.append(f"left: {', '.join(held.left)}")
    return found


async def hold_all(seeds: Sequence[int], at_once: int = AT_ONCE) -> list[Result]:
    """Hold the calls of these seeds, some at once."""
    results: list[Result] = []
    limit = trio.CapacityLimiter(at_once)

    async def hold_one(seed: int) -> None:
        async with limit:
            results.append(await hold(seed))

    async with trio.open_nursery() as nursery:
        for seed in seeds:
            nursery.start_soon(hold_one, seed)
    return sorted(results, key=lambda result: result.seed)


def report(results: Sequence[Result], wall_s: float) -> str:
    """Return the sum of it, for people."""
    calls = [result.held for result in results if result.held is not None]
    silences = [held.silence_s for held in calls] or [0.0]
    rows = [
        f"calls {len(results)}, faults met {sum(len(r.schedule) for r in results)}, "
        f"stuck {_count(results, 'stuck')}, silent {_count(results, 'silent')}, "
        f"left {_count(results, 'left')}, crashed {_count(results, 'crashed')}",
        f"longest silence of a call: median {statistics.median(silences):.1f} s, "
        f"longest {max(silences):.1f} s, "
        f"{Limits(plan_of(load(SETTINGS))).worst_s:.1f} s allowed",
        f"ended: {dict(Counter(held.outcome.value for held in calls).most_common())}",
        f"wall {wall_s:.0f} s",
    ]
    for result in results:
        rows += [f"seed {result.seed}: {problem}" for problem in result.problems]
        if result.problems:
            rows += [f"    {met}" for met in result.schedule]
    return "\n".join(rows)


def _count(results: Sequence[Result], what: str) -> int:
    return sum(any(p.startswith(what) for p in result.problems) for result in results)


def main() -> int:
    """Run the command line; exit status 1 if anything was found wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", default="0:200", help="FIRST:BEHIND (%(default)s)")
    parser.add_argument("--jobs", type=int, default=AT_ONCE, help="calls at once (%(default)s)")
    parser.add_argument("--replay", type=int, metavar="SEED")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)  # what fails on purpose fills pages
    with lean():
        began = time.monotonic()
        if options.replay is None:
            first, behind = map(int, options.seeds.split(":"))
            results = trio.run(hold_all, range(first, behind), options.jobs)
        else:
            results = trio.run(hold_all, [options.replay])
            for result in results:
                show(result)
    print(report(results, time.monotonic() - began))
    return 1 if any(result.problems for result in results) else 0


def show(result: Result) -> None:
    """Print what happened in a call."""
    for met in result.schedule:
        print(met)
    if result.held is not None:
        for moment in result.held.summary["timeline"]:
            print(f"{moment['at']:9.3f}  {moment['what']} {moment['detail'] or ''}")
        for turn in result.held.summary["turns"]:
            print(turn)
        print(result.held.outcome.value, result.held.recording.ended)


if __name__ == "__main__":
    sys.exit(main())
