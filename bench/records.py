"""What it costs to keep records: CPU of the server per second of call, without and with them.

    python -m bench.records --rounds 4 --postgres postgresql://postgres@127.0.0.1/test
    python -m bench.records --rounds 6 --kinds none,recordings
    python -m bench.records --rounds 10 --recorder

Each round serves the same number of calls to a new server without a database, with SQLite, with
recordings and no database, and with PostgreSQL where one is named, in an order that changes.
Callers say something short again and again, so that there are more turns in a minute than with
people. The CPU time is that of the whole process, its threads included; the figure of interest is
the ratio within a round.

What recording costs is less than what rounds differ by, so `--recorder` measures it by itself: the
tapes of forty calls in which both talk all the time, and the thread that writes them.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

import trio

from bench.barge_in import recordings, settings
from bench.own_share import CLIP_S, stand_ins
from voicebot.audio import BYTES_PER_S, FRAME_BYTES
from voicebot.metrics import Metrics
from voicebot.recording import Recording, open_recorder
from voicebot.simulator.call import Script, Utterance, WhenSilent, run_call
from voicebot.simulator.dial import Account, dial, open_line

SPREAD_S: Final = 2.0  # over which calls begin
WARM_S: Final = 2.0  # of a call, before the CPU time is read: models, connections, the first turns
HELD_S: Final = 20.0  # of all calls at once
UTTERANCES: Final = 60  # more than fit into that
TAPES: Final = 40  # calls at once, for the recorder alone; as many as a process takes
TAPED_S: Final = 30  # of each


@contextmanager
def serving(environ: dict[str, str]) -> Iterator[tuple[str, int]]:
    """Run `voicebot serve`; yield its URL and pid."""
    command = [sys.executable, "-m", "voicebot", "serve", "--dev", "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environ, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if ready := re.fullmatch(r"ready on (http://\S+)\n", line):
                yield ready[1], process.pid
                break
        process.terminate()


def cpu_s(pid: int) -> float:
    """Return the CPU time that a process has used, all its threads together."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def share(url: str, pid: int, at_once: int, clips: list[tuple[str, bytes]]) -> float:
    """Hold calls; return the CPU-seconds of the server per call-second."""
    pick = random.Random(1)
    caller = Script(
        tuple(
            Utterance(*pick.choice(clips), WhenSilent(pick.uniform(0.2, 0.4)))
            for _ in range(UTTERANCES)
        )
    )

    async def hold(wait_s: float) -> None:
        await trio.sleep(wait_s)
        answer = await dial(url, Account())
        async with open_line(url, answer.stream_url, Account()) as line:
            await run_call(line, caller, answer.identity)

    async with trio.open_nursery() as calls:
        for n in range(at_once):
            calls.start_soon(hold, n * SPREAD_S / at_once)
        await trio.sleep(SPREAD_S + WARM_S)
        used, began = cpu_s(pid), trio.current_time()
        await trio.sleep(HELD_S)
        used, took = cpu_s(pid) - used, trio.current_time() - began
        calls.cancel_scope.cancel(reason="measured")
    return used / (took * at_once)


async def measure(options: argparse.Namespace) -> dict[str, list[float]]:
    """Return the figures of each kind of database, round by round."""
    clips = [c for c in recordings(random.Random(1)) if len(c[1]) <= CLIP_S * BYTES_PER_S]
    found: dict[str, list[float]] = {}
    with stand_ins(lost=False) as standins, tempfile.TemporaryDirectory() as folder:
        for n in range(options.rounds):
            kinds = {
                "none": {},
                "SQLite": {"VOICEBOT_DATABASE_URL": f"sqlite:///{folder}/{n}.db"},
                "recordings": {"VOICEBOT_RECORDING__PATH": f"{folder}/{n}"},
                "PostgreSQL": {"VOICEBOT_DATABASE_URL": options.postgres},
            }
            order = [kind for kind in kinds if kind in options.kinds.split(",")]
            if options.postgres:
                order.append("PostgreSQL")
            random.Random(n).shuffle(order)
            for kind in order:
                environ = {**settings(standins), "VOICEBOT_DATABASE_URL": "", **kinds[kind]}
                with serving(environ) as (url, pid):
                    one = await share(url, pid, options.at_once, clips)
                found.setdefault(kind, []).append(one)
                print(f"round {n}: {kind} {one * 1000:.2f} ms", file=sys.stderr, flush=True)
    return found


async def recorder_share() -> float:
    """Return the CPU-seconds that recording takes per call-second."""
    frame = os.urandom(FRAME_BYTES)
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        async with open_recorder(Recording(folder), 0.0, Metrics()) as recorder:
            assert recorder is not None
            with ExitStack() as stack:
                tapes = [stack.enter_context(recorder.tape(f"CA{n}")) for n in range(TAPES)]
                for n in range(TAPED_S * 50):
                    for tape in tapes:
                        assert tape is not None
                        tape.caller_said(frame, n * 20, n / 50)
                        if n % 3 == 0:
                            tape.bot_said(frame * 3, n / 50)
                        if n % 12 == 0:
                            tape.bot_played(0, 0.05)
                    if n % 50 == 0:
                        await trio.sleep(0.02)  # the thread keeps up, as it does in a second
        return (time.process_time() - began) / (TAPES * TAPED_S)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--kinds", default="none,SQLite,recordings", help="with commas between")
    parser.add_argument("--at-once", type=int, default=10, help="calls")
    parser.add_argument("--postgres", default="", help="URL of a database that may be written to")
    parser.add_argument("--recorder", action="store_true", help="the recorder by itself")
    options = parser.parse_args()
    if options.recorder:
        alone = [trio.run(recorder_share) * 1000 for _ in range(options.rounds)]
        print(
            f"recorder     {statistics.median(alone):.3f} ms per call-second "
            f"({min(alone):.3f} to {max(alone):.3f}), n = {len(alone)}"
        )
        return
    found = trio.run(measure, options)
    for kind, shares in found.items():
        ratios = [one / without for one, without in zip(shares, found["none"], strict=True)]
        print(
            f"{kind:12} {statistics.median(shares) * 1000:6.2f} ms per call-second "
            f"({min(shares) * 1000:.2f} to {max(shares) * 1000:.2f}), of that without "
            f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}), "
            f"n = {len(shares)}"
        )


if __name__ == "__main__":
    main()
