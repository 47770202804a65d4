"""Whether honest callers notice that somebody attacks the server: barge-in, quiet and attacked.

    python -m bench.attacks [--calls 20 --interruptions 4 --seed 1] [--only key-flood]

Black boxes, three of them: `voicebot serve`; the honest callers, with the stand-ins for Deepgram,
Groq and Twilio, in this process; and the attacker (`bench/attackers.py`), with `nice` 10, for the
three share two cores and what the attacker takes itself is not the server's doing. For each attack
there are so many calls, all live before it begins, which it outlasts; quiet rounds of the same
calls stand before, between and behind. Exit status 1: a call was dropped, an interruption not
noticed, memory or descriptors not given back, or the p95 of the first sound to `clear` of an attack
is beyond 1.5 times that of all quiet rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import trio

from bench.attackers import ATTACKS
from bench.barge_in import STORY, recordings, row
from voicebot.simulator import (
    InterruptAfter,
    Script,
    Thresholds,
    Utterance,
    Verdict,
    WhenSilent,
    judge,
    run_call,
)
from voicebot.simulator.dial import Account, dial, open_line
from voicebot.standins import Standins, open_standins

PUBLIC_URL: Final = "https://bot.example.com"
BEYOND: Final = 1.5  # times the quiet p95
NICE: Final = 10  # of the attacker
FOR_ATTACKERS: Final = 6  # lines; who calls cannot be told from who is honest until they misbehave
# Of descriptors, for each honest call: connections to providers come and go with its turns.
FDS_OF_A_CALL: Final = 3
# Of memory, in MB: what the allocator keeps of a flood (500 connections take 19), once.
RSS_KEPT_MB: Final = 24.0
BACK_S: Final = 8.0  # the longest that a silent peer is kept is 5 s
SETTLED_S: Final = 4.0  # after the calls have begun: they have greeted and been asked

Clip = tuple[str, bytes]


@dataclass(frozen=True)
class Server:
    """`voicebot serve` in a process of its own."""

    url: str
    pid: int
    account: Account
    log: Path
    environ: Mapping[str, str] = field(repr=False)

    @property
    def fds(self) -> int:
        """How many descriptors it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    @property
    def rss_mb(self) -> float:
        """How much memory it has."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        return int(found[1]) / 1024 if found else 0.0


@asynccontextmanager
async def open_serving(standins: Standins, calls: int) -> AsyncGenerator[Server]:
    """Run a server with lines for so many honest calls and some others."""
    keep = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("VOICEBOT_", "TWILIO_", "DEEPGRAM_", "GROQ_", "PUBLIC_URL"))
    }
    environ = {
        **keep,
        **standins.environment(),
        "PUBLIC_URL": PUBLIC_URL,
        "VOICEBOT_GREETING": "Hello.",
        "VOICEBOT_DATABASE_URL": "",
        "VOICEBOT_MAX_CALLS": str(calls + FOR_ATTACKERS),
        # So that what one attack has left is gone when the next begins.
        "VOICEBOT_TOKEN_TTL_S": "2",
        "VOICEBOT_START_TIMEOUT_S": "1.5",
        "VOICEBOT_DRAIN_S": "0",
    }
    with tempfile.TemporaryDirectory(prefix="voicebot-attacks-") as folder:
        log = Path(folder) / "log"
        with log.open("w") as stderr:
            process = subprocess.Popen(  # noqa: ASYNC220  # starts and returns
                [sys.executable, "-m", "voicebot", "serve", "--port", "0"],
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environ,
                text=True,
            )
        with process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    if ready := re.fullmatch(r"ready on (http://\S+)\n", line):
                        account = Account(
                            environ["TWILIO_ACCOUNT_SID"], environ["TWILIO_AUTH_TOKEN"], PUBLIC_URL
                        )
                        yield Server(ready[1], process.pid, account, log, environ)
                        assert process.poll() is None, "the server has died"
                        break
                else:
                    sys.exit(f"the server does not start:\n{log.read_text()[-2_000:]}")
            finally:
                process.terminate()


class Attacker:
    """The program that attacks, and waits for orders."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._answers = bytearray()

    async def attack(
        self, name: str, seconds: float, address: str, cut: int = 1_000_000
    ) -> Counter[str]:
        """Attack for so long, or until so many are cut off; return what came of it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        await self._process.stdin.send_all(f"{name} {seconds} {address} {cut}\n".encode())
        while b"\n" not in self._answers:
            chunk = await self._process.stdout.receive_some()
            if not chunk:
                raise RuntimeError(f"the attacker has died in {name}")
            self._answers += chunk
        line, _, rest = bytes(self._answers).partition(b"\n")
        self._answers[:] = rest
        return Counter(json.loads(line))


@asynccontextmanager
async def open_attacker(server: Server) -> AsyncGenerator[Attacker]:
    """Start an attacker of this server."""
    command = ["nice", "-n", str(NICE), sys.executable, "-m", "bench.attackers"]
    command += ["--port", server.url.rpartition(":")[2], "--public-url", PUBLIC_URL]
    process = await trio.lowlevel.open_process(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(server.environ)
    )
    try:
        yield Attacker(process)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):  # it is dead: at once
            await process.wait()


def script_of(clips: Sequence[Clip], after_ms: Callable[[], float]) -> Script:
    """Return a caller who asks for something, and interrupts each answer."""
    first, *others = clips
    return Script(
        (
            Utterance(*first, WhenSilent()),
            *(Utterance(*clip, InterruptAfter(after_ms())) for clip in others),
        ),
        patience_s=3.0,
    )


@dataclass
class Round:
    """What honest callers have lived."""

    verdicts: list[Verdict] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    live: int = 0

    def clear_ms(self) -> list[float]:
        """How long after its first sound each interruption was obeyed; in milliseconds."""
        found = [i.clear_ms for v in self.verdicts for i in v.interruptions]
        return [ms for ms in found if ms is not None]

    def problems(self, calls: int) -> list[str]:
        """Return what an honest caller would complain of."""
        missed = sum(i.clears != 1 for v in self.verdicts for i in v.interruptions)
        late = sum(i.late_media for v in self.verdicts for i in v.interruptions)
        problems = [f"dropped: {why}" for why in self.dropped]
        if len(self.verdicts) + len(self.dropped) != calls:
            problems.append(f"{len(self.verdicts)} of {calls} calls came to their end")
        if missed:
            problems.append(f"{missed} interruptions without their clear")
        if late:
            problems.append(f"{late} messages of media after a clear")
        return problems


async def hold(server: Server, script: Script, came: Round, thresholds: Thresholds) -> None:
    """Hold one honest call."""
    answer = await dial(server.url, server.account)
    async with open_line(server.url, answer.stream_url, server.account) as line:
        came.live += 1
        recording = await run_call(line, script, answer.identity)
        came.live -= 1
    if recording.ended.by == "caller":
        came.verdicts.append(judge(recording, thresholds))
    else:
        came.dropped.append(f"{recording.ended.by} {recording.ended.code}")


async def back_to(server: Server, fds: int, rss_mb: float, slack_fds: int) -> list[str]:
    """Wait until descriptors and memory are back; return what is not."""
    with trio.move_on_after(BACK_S):
        while server.fds > fds + slack_fds or server.rss_mb > rss_mb + RSS_KEPT_MB:  # noqa: ASYNC110  # another process
            await trio.sleep(0.1)
    problems = []
    if (now := server.fds) > fds + slack_fds:
        problems.append(f"{now} descriptors, {fds} before")
    if (mb := server.rss_mb) > rss_mb + RSS_KEPT_MB:
        problems.append(f"{mb:.0f} MB, {rss_mb:.0f} before")
    return problems


async def one_round(
    server: Server,
    attacker: Attacker,
    options: argparse.Namespace,
    name: str,
    seed: int,
    base_fds: int | None,
) -> tuple[Round, list[str], dict[str, int]]:
    """Hold all calls, under this attack, or none where the name is empty.

    `base_fds`: what the server had behind the first round. What it opens for good with its first
    calls is not known before, so that round gives nothing back.
    """
    pick = random.Random(options.seed)  # the same calls in each round
    clips = recordings(pick)
    came, seen = Round(), Counter[str]()
    rss_mb = server.rss_mb
    async with trio.open_nursery() as calls:

        async def begin(script: Script, delay_s: float) -> None:
            await trio.sleep(delay_s)  # people are not in step
            await hold(server, script, came, Thresholds())

        for n in range(options.calls):
            chosen = [pick.choice(clips) for _ in range(options.interruptions + 1)]
            script = script_of(chosen, lambda: pick.uniform(500, 3_000))
            calls.start_soon(begin, script, n * 0.15)
        while came.live < options.calls:  # noqa: ASYNC110  # nothing tells when all are live
            await trio.sleep(0.05)
        while name and came.live > options.calls // 2:
            address = options.address or f"127.0.{seed % 250 + 1}.2"
            seen.update(await attacker.attack(name, 3.0, address))
    problems = came.problems(options.calls)
    if base_fds is not None:
        problems += await back_to(server, base_fds, rss_mb, 3 * FDS_OF_A_CALL)
    return came, problems, seen


async def measure(options: argparse.Namespace) -> int:
    """Hold all rounds; return the exit status."""
    names = [name for name in ATTACKS if not options.only or name in options.only]
    quiet: list[float] = []
    attacked: dict[str, list[float]] = {}
    failed = 0
    base_fds: int | None = None
    print(f"{'':44} {'min':>8} {'median':>8} {'p95':>8} {'max':>8} {'n':>6}", flush=True)

    async def show(name: str, seed: int) -> None:
        nonlocal failed, base_fds
        came, problems, seen = await one_round(server, attacker, options, name, seed, base_fds)
        base_fds = server.fds if base_fds is None else base_fds
        (attacked.setdefault(name, []) if name else quiet).extend(came.clear_ms())
        print(row(f"first sound -> clear, {name or 'quiet'}", came.clear_ms()), flush=True)
        told = f"    {server.fds} fds, {server.rss_mb:.0f} MB"
        print(told, *(f"{what} {count}" for what, count in seen.items()), sep=", ", flush=True)
        for problem in problems:
            failed += 1
            print(f"    FAILED: {problem}", flush=True)

    async with open_standins(replies=lambda messages: STORY) as standins:
        async with (
            open_serving(standins, options.calls) as server,
            open_attacker(server) as attacker,
        ):
            await show("", options.seed)
            for n, name in enumerate(names, 1):
                await show(name, options.seed + n)
                if n % 4 == 0 or n == len(names):
                    await show("", options.seed + 100 + n)
    base = p95(quiet)
    print(row("first sound -> clear, all quiet rounds", quiet))
    for name, values in attacked.items():
        ratio = p95(values) / base
        late = ratio > BEYOND
        failed += late
        print(f"p95 / quiet p95, {name:27} {ratio:8.2f}{'  FAILED: beyond ' if late else ''}"
              f"{BEYOND if late else ''}")  # fmt: skip
    ratios = [p95(values) / base for values in attacked.values()]
    print(
        f"worst {max(ratios):.2f}, median {statistics.median(ratios):.2f} of {len(ratios)} attacks"
    )
    return 1 if failed else 0


def p95(values: Sequence[float]) -> float:
    """Return the 95th percentile; infinity of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))] if ordered else float("inf")


def main() -> int:
    """Print the table; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--calls", type=int, default=20, help="honest ones, at once")
    parser.add_argument("--interruptions", type=int, default=4, help="in each call")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=list(ATTACKS), help="these attacks")
    parser.add_argument(
        "--from", dest="address", default="",
        help="address of the attacker; 127.0.0.1 is exempt from what is counted by address, as a "
        "proxy that is not declared. Default: another one each time",
    )  # fmt: skip
    status: Any = trio.run(measure, parser.parse_args())
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
