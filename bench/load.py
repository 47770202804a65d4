"""What calls cost one core, and how many it carries: recorded callers against a pinned server.

    python -m bench.load --calls 1 10 20 40 [--seconds 60]     levels, one after the other
    python -m bench.load --soak 30 --calls 20                  half an hour, and memory
    python -m bench.load --calls 10 10 10 --peer [usual]       beside a bot on Pipecat

A black box. `voicebot serve` has core 0 to itself; this process, with the callers and the stand-ins
for Deepgram and Groq, has core 1. At a level so many callers are on the line all the time: each
asks for something, interrupts every answer, hangs up and calls again. Callers come in over some
seconds; what is counted begins when all are there.

CPU is the server's own, by the kernel's account, for a second of a call. When this process uses up
its core, its callers are late themselves, and the latencies of that level are not the server's:
`load` says how much of core 1 it took.

With `--peer` each level is held twice, by ours and then by `peer_bot.py`, which does the same on
Pipecat: with the same callers, the same stand-ins and the same core. How busy the machine is
changes both figures, so it is their ratio that can be compared with that of another day. A call
takes half a minute, and only those that begin in a level are judged: levels of 80 s and more have
some, whatever the bot.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import statistics
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import trio

from bench.barge_in import STORY, recordings, row, running, settings, started
from bench.peer_environment import peer_python
from voicebot.simulator import InterruptAfter, Script, Utterance, Verdict, WhenSilent, judge
from voicebot.simulator.call import run_call
from voicebot.simulator.dial import Account, dial, open_line
from voicebot.standins import open_standins

ARRIVE_S: Final = 8.0  # over which the callers of a level come in
SETTLE_S: Final = 4.0  # until the last of them has been greeted and has asked
INTERRUPTIONS: Final = 3  # in a call, which then takes about half a minute
TICKS: Final = os.sysconf("SC_CLK_TCK")
SAMPLE_S: Final = 5.0  # of memory, in a soak
WARM_S: Final = 240.0  # of a soak: caches, pools and the allocator's arenas grow to their size
#: Of Student's distribution, two-sided 95 %, for the 20 and more minutes that a soak has.
T95: Final = 2.09
PEER: Final = Path(__file__).with_name("peer_bot.py")


@dataclass
class Level:
    """What a level of so many calls was like."""

    calls: int
    server: str = "voicebot"
    call_s: float = 0.0  # seconds of calls in the window
    cpu_s: float = 0.0
    load: float = 0.0  # of core 1
    rss_mb: float = 0.0
    fds: int = 0
    lag_ms: Mapping[str, float] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    @property
    def cpu_per_call_s(self) -> float:
        """CPU in seconds, of a second of a call."""
        return self.cpu_s / self.call_s if self.call_s else math.nan

    def as_json(self) -> dict[str, Any]:
        """Return the figures."""
        clears = [i.clear_ms for v in self.verdicts for i in v.interruptions]
        replies = [t.reply_ms for v in self.verdicts for t in v.turns if t.reply_ms is not None]
        return {
            "server": self.server,
            "calls": self.calls,
            "seconds_of_calls": round(self.call_s),
            "cpu_per_call_s": round(self.cpu_per_call_s, 5) if self.call_s else None,
            "load_of_the_other_core": round(self.load, 2),
            "rss_mb": round(self.rss_mb, 1),
            "descriptors": self.fds,
            "clear_ms": spread([ms for ms in clears if ms is not None]),
            "missed": sum(ms is None for ms in clears),
            "leaked_media": sum(v.late_media for v in self.verdicts),
            "underrun_ms_per_s": spread([v.underrun_ms for v in self.verdicts]),
            "reply_ms": spread(replies),
            "loop_lag_ms": dict(self.lag_ms),
            "dropped": len(self.dropped),
        }


def spread(values: list[float]) -> dict[str, float]:
    """Return min, median, p95, max and n."""
    if not values:
        return {"n": 0}
    ordered = sorted(values)
    p95 = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    named = zip(
        ("min", "median", "p95", "max"),
        (ordered[0], statistics.median(ordered), p95, ordered[-1]),
        strict=True,
    )
    return {**{name: round(value, 1) for name, value in named}, "n": len(ordered)}


class Load:
    """So many callers on the line of one server."""

    def __init__(self, url: str, pid: int, seed: int, server: str = "voicebot") -> None:
        self._url, self.pid, self.server = url, pid, server
        self._pick = random.Random(seed)
        self._clips = recordings(self._pick)
        self._live = 0
        self._call_s = 0.0  # up to `_since`
        self._since = 0.0
        self.level = Level(0)

    def _count(self, change: int) -> None:
        now = trio.current_time()
        self._call_s += self._live * (now - self._since)
        self._since, self._live = now, self._live + change

    def _script(self) -> Script:
        first, *others = [self._pick.choice(self._clips) for _ in range(INTERRUPTIONS + 1)]
        after = (self._pick.uniform(500, 3_000) for _ in others)
        return Script(
            (
                Utterance(*first, WhenSilent()),
                *(
                    Utterance(*clip, InterruptAfter(ms))
                    for clip, ms in zip(others, after, strict=True)
                ),
            ),
            patience_s=3.0,
        )

    async def _call_again_and_again(self, delay_s: float) -> None:
        await trio.sleep(delay_s)
        while True:
            level = self.level
            answer = await dial(self._url, Account())
            async with open_line(self._url, answer.stream_url, Account()) as line:
                self._count(1)
                try:
                    recording = await run_call(line, self._script(), answer.identity)
                finally:
                    self._count(-1)
            if recording.ended.by == "caller":
                level.verdicts.append(judge(recording))
            else:
                level.dropped.append(f"{recording.ended.by} {recording.ended.code}")

    @contextmanager
    def measured(self, level: Level) -> Iterator[None]:
        """Fill in what is of the time in the block."""
        self._count(0)
        self.level = level
        call_s, cpu_s = self._call_s, cpu_of(self.pid)
        own_s, began = sum(os.times()[:2]), trio.current_time()
        yield
        self._count(0)
        level.call_s, level.cpu_s = self._call_s - call_s, cpu_of(self.pid) - cpu_s
        level.load = (sum(os.times()[:2]) - own_s) / (trio.current_time() - began)
        level.rss_mb, level.fds = rss_mb(self.pid), descriptors(self.pid)

    async def run(self, calls: int, seconds: float) -> Level:
        """Have so many callers on the line for so long; return what it was like."""
        level = Level(calls, self.server)
        # Owns: the callers, who call until the level is over and then are gone without a word.
        async with trio.open_nursery() as nursery:
            for n in range(calls):
                nursery.start_soon(self._call_again_and_again, n * ARRIVE_S / calls)
            await trio.sleep(ARRIVE_S + SETTLE_S)
            before = await self.lag()
            with self.measured(level):
                await trio.sleep(seconds)
            level.lag_ms = quantiles(before, await self.lag())
            nursery.cancel_scope.cancel(reason="the level is over")
        return level

    async def lag(self) -> dict[float, float]:
        """Return how often the server's loop was later than so many seconds, from its metrics.

        Nothing, where it has none.
        """
        async with httpx.AsyncClient(trust_env=False, verify=False) as client:
            text = (await client.get(f"{self._url}/metrics")).text
        found = re.findall(r'^voicebot_loop_lag_seconds_bucket\{le="(.+?)"\} (\S+)$', text, re.M)
        return {float(le): float(count) for le, count in found}

    async def soak(
        self, calls: int, minutes: float
    ) -> tuple[Level, list[tuple[float, float, int]]]:
        """As `run`, with memory and descriptors every few seconds, as (minute, MB, count)."""
        level, samples = Level(calls, self.server), list[tuple[float, float, int]]()
        async with trio.open_nursery() as nursery:  # as in `run`
            for n in range(calls):
                nursery.start_soon(self._call_again_and_again, n * ARRIVE_S / calls)
            await trio.sleep(ARRIVE_S + SETTLE_S)
            before, began = await self.lag(), trio.current_time()
            with self.measured(level):
                while (at_s := trio.current_time() - began) < minutes * 60:
                    samples.append((at_s / 60, rss_mb(self.pid), descriptors(self.pid)))
                    await trio.sleep(SAMPLE_S)
            level.lag_ms = quantiles(before, await self.lag())
            nursery.cancel_scope.cancel(reason="the soak is over")
        return level, samples


def cpu_of(pid: int) -> float:
    """Return the CPU time of a process and of its threads, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def rss_mb(pid: int) -> float:
    """Return the resident memory of a process."""
    return (
        int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20
    )


def descriptors(pid: int) -> int:
    """Return how many descriptors a process has."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def quantiles(before: Mapping[float, float], after: Mapping[float, float]) -> dict[str, float]:
    """Return quantiles of the loop's lag in between, as the upper end of their bucket, in ms."""
    counts = {le: count - before.get(le, 0) for le, count in after.items()}
    total = max(counts.values(), default=0)
    if not total:
        return {}
    return {
        name: min((le for le, n in counts.items() if n >= share * total), default=math.inf) * 1_000
        for name, share in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999))
    }


def slope(samples: list[tuple[float, float, int]]) -> tuple[float, float, int]:
    """Return the slope of memory in MB an hour, half of its 95 % interval, and its points.

    The points are means of whole minutes, behind the warm-up: samples next to each other are the
    same memory, and would make the interval look smaller than it is.
    """
    by_minute: dict[int, list[float]] = {}
    for minute, mb, _ in samples:
        if minute * 60 >= WARM_S:
            by_minute.setdefault(int(minute), []).append(mb)
    points = [(minute / 60, statistics.fmean(mbs)) for minute, mbs in by_minute.items()]
    if len(points) < 3:
        return math.nan, math.nan, len(points)
    hours, mbs = zip(*points, strict=True)
    fit = statistics.linear_regression(hours, mbs)
    rest = [mb - fit.slope * hour - fit.intercept for hour, mb in points]
    spread_h = sum((hour - statistics.fmean(hours)) ** 2 for hour in hours)
    error = math.sqrt(sum(r * r for r in rest) / (len(points) - 2) / spread_h)
    return fit.slope, T95 * error, len(points)


def show(level: Level) -> None:
    """Print a level as rows of a table, and as JSON."""
    verdicts = level.verdicts
    clears = [i.clear_ms for v in verdicts for i in v.interruptions if i.clear_ms is not None]
    replies = [t.reply_ms for v in verdicts for t in v.turns if t.reply_ms is not None]
    print(row(f"{level.server}, {level.calls} calls: first sound -> clear", clears))
    print(row("end of speech -> bot audible", replies))
    print(row("underruns, by call", [v.underrun_ms for v in verdicts], "ms per s of audio"))
    print(json.dumps(level.as_json()), flush=True)


@contextmanager
def peer(environ: Mapping[str, str], kind: str) -> Iterator[tuple[str, int]]:
    """As `started`, with Pipecat: on the same core, and what it warns of is seen."""
    # Of the clients it has, some would take a proxy to loopback.
    environ = {k: v for k, v in environ.items() if not k.lower().endswith("_proxy")}
    command = [str(peer_python()), "-I", str(PEER), f"--{kind}"]  # isolated: nothing of ours
    environ["LOGURU_LEVEL"] = "WARNING"  # else it logs each turn
    with running(command, environ, core=0, stderr=None) as found:
        yield found


def compare(levels: list[Level]) -> None:
    """Print how the CPU of a call-second is in proportion, at each number of calls."""
    ratios: dict[int, list[float]] = {}
    for ours, theirs in zip(levels[::2], levels[1::2], strict=True):
        ratios.setdefault(ours.calls, []).append(ours.cpu_per_call_s / theirs.cpu_per_call_s)
    for calls, found in ratios.items():
        times = f"{min(found):.3f} to {max(found):.3f}, n = {len(found)}"
        print(f"{calls} calls: CPU, ours / theirs: {statistics.median(found):.3f} ({times})")


async def measure(options: argparse.Namespace) -> int:
    """Run the levels, or the soak; return the exit status."""
    os.sched_setaffinity(0, {1})
    most = max(options.calls)
    failed = 0
    async with open_standins(replies=lambda messages: STORY) as standins:
        environ = {
            **settings(standins.environment()),
            # Who calls again may be there before the call before has let go of its line.
            "VOICEBOT_MAX_CALLS": str(2 * most + 5),
            "VOICEBOT_DRAIN_S": "0",
            "VOICEBOT_LIMITS__CONNECTIONS": str(max(500, 4 * most + 10)),
            **dict(one.split("=", 1) for one in options.set),
        }
        with ExitStack() as servers:
            loads = [Load(*servers.enter_context(started(environ, core=0)), options.seed)]
            if options.peer:  # both are there all the time; without calls they have nothing to do
                found = servers.enter_context(peer(environ, options.peer))
                name = "pipecat" if options.peer == "tuned" else "pipecat, usual"
                loads.append(Load(*found, options.seed, name))
            print(f"{'':44} {'min':>8} {'median':>8} {'p95':>8} {'max':>8} {'n':>6}")
            for load in loads:
                mb, fds = rss_mb(load.pid), descriptors(load.pid)
                print(f"{load.server}, empty: {mb:.1f} MB, {fds} descriptors", flush=True)
            if options.soak:
                level, samples = await loads[0].soak(most, options.soak)
                show(level)
                mb_h, error, points = slope(samples)
                print(f"memory: {mb_h:+.2f} ± {error:.2f} MB an hour (95 %, {points} minutes)")
                for minute, mb, fds in samples[:: max(1, len(samples) // 12)]:
                    print(f"  minute {minute:5.1f}: {mb:.1f} MB, {fds} descriptors")
                failed += bool(level.dropped) or abs(mb_h) > error
            else:
                levels = []
                for calls in options.calls:
                    for load in loads:
                        levels.append(level := await load.run(calls, options.seconds))
                        show(level)
                        failed += bool(level.dropped)
                if options.peer:
                    compare(levels)
    return int(failed > 0)


def main() -> int:
    """Print the figures; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--calls", type=int, nargs="+", default=[1, 10, 20])
    parser.add_argument("--seconds", type=float, default=60.0, help="of a level")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--soak", type=float, default=0.0, metavar="MINUTES")
    kind.add_argument(
        "--peer",
        nargs="?",
        choices=("tuned", "usual"),
        const="tuned",
        help="hold each level with Pipecat, too",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    return trio.run(measure, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
