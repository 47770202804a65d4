"""Adds up random conversations over ranges of seeds, in as many sittings as it takes.

    python -m tests.sim.soak --seeds 0:100000 --minutes 30     go on for half an hour
    python -m tests.sim.soak --report                          what has been held so far
    python -m tests.sim.soak --replay 4711                     one conversation, with its timeline

Each line of `bench/soak.jsonl` is a range of seeds: what was held, what was wrong, and the
fingerprint of the code it was held with. No seed is held twice. A seed names a conversation for
good only with the same code, so a line is never edited: what is found wrong is mended and becomes
a test, and the count begins anew.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import random
import statistics
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from tests.sim.checks import violations
from tests.sim.conversation import draw
from tests.sim.phases import EVENTS, IMPOSSIBLE, PHASES, table, tally
from tests.sim.world import hold

ROOT = Path(__file__).resolve().parents[2]
STATE = ROOT / "bench" / "soak.jsonl"
BLOCK = 250  # seeds a line: a minute of work, which is what an interruption may cost
KEPT = 20  # violations quoted a block


def hold_block(first: int, behind: int) -> dict[str, Any]:
    """Hold the conversations of these seeds; return the line for them."""
    began, cpu = time.monotonic(), time.process_time()
    before = _descriptors(), threading.active_count()
    wrong: list[list[Any]] = []
    outcomes: Counter[str] = Counter()
    met: Counter[tuple[str, str]] = Counter()
    durations: list[float] = []
    clears = resumes = small_frames = 0
    for seed in range(first, behind):
        try:
            held = hold(draw(random.Random(seed)))
            found = violations(held)
            met += tally(held)
        except Exception as exc:
            wrong.append([seed, f"raised: {exc!r}"[:300]])
            continue
        wrong += [[seed, problem[:300]] for problem in found]
        summary = held.call.summary
        outcomes[summary.outcome.value] += 1
        durations.append(held.virtual_s)
        clears += int(summary.counts.get("clears", 0))
        resumes += int(summary.counts.get("resumes", 0))
        small_frames += held.conversation.network.frame_ms == 20
    if (now := (_descriptors(), threading.active_count())) != before:
        wrong.append([first, f"leak: descriptors and threads {before} -> {now}"])
    return {
        "from": first,
        "to": behind,
        "code": fingerprint(),
        "violations": len(wrong),
        "wrong": wrong[:KEPT],
        "virtual_s": round(sum(durations)),
        "medians_s": [round(statistics.median(durations), 1)] if durations else [],
        "frames_of_20_ms": small_frames,
        "clears": clears,
        "resumes": resumes,
        "outcomes": dict(sorted(outcomes.items())),
        "met": {f"{phase} × {event}": n for (phase, event), n in sorted(met.items())},
        "cpu_s": round(time.process_time() - cpu, 1),
        "wall_s": round(time.monotonic() - began, 1),
    }


@functools.cache
def fingerprint() -> str:
    """Return a short hash of the code that decides how a conversation goes: what is loaded."""
    loaded = {Path(getattr(module, "__file__", None) or "/") for module in sys.modules.values()}
    ours = (ROOT / "voicebot", ROOT / "tests")
    digest = hashlib.sha256()
    for file in sorted(loaded - {Path(__file__)}):
        if any(file.is_relative_to(folder) for folder in ours):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0


def lines() -> list[dict[str, Any]]:
    """Return what has been held."""
    if not STATE.exists():
        return []
    return [json.loads(line) for line in STATE.read_text().splitlines()]


def merged(blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the blocks with neighbours of the same code put together."""
    found: list[dict[str, Any]] = []
    for block in sorted(blocks, key=lambda block: int(block["from"])):
        last = found[-1] if found else None
        if last is None or (last["to"], last["code"]) != (block["from"], block["code"]):
            found.append(dict(block))
            continue
        for key, value in block.items():
            match value:
                case dict():
                    last[key] = dict(sorted((Counter(last[key]) + Counter(value)).items()))
                case list() | float():
                    last[key] += value
                case int() if key not in {"from", "to"}:
                    last[key] += value
        last["to"] = block["to"]
    return found


def report(blocks: list[dict[str, Any]]) -> str:
    """Return the sum of these blocks, for people."""
    met: Counter[tuple[str, str]] = Counter()
    outcomes: Counter[str] = Counter()
    for block in blocks:
        outcomes += Counter(block["outcomes"])
        for name, count in block["met"].items():
            phase, _, event = name.partition(" × ")
            met[phase, event] += count
    total = {
        key: sum(block[key] for block in blocks)
        for key in ("violations", "virtual_s", "frames_of_20_ms", "clears", "resumes", "cpu_s")
    }
    held = sum(block["to"] - block["from"] for block in blocks)
    codes = Counter({block["code"]: 0 for block in blocks})
    for block in blocks:
        codes[block["code"]] += block["to"] - block["from"]
    pairs = [(p, e) for p in PHASES for e in EVENTS if (p, e) not in IMPOSSIBLE]
    medians = [median for block in blocks for median in block["medians_s"]]
    rows = [
        f"conversations {held}, violations {total['violations']}",
        f"virtual time {total['virtual_s'] / 3600:.1f} h; median of {BLOCK} conversations "
        f"{min(medians, default=0):.1f} to {max(medians, default=0):.1f} s; "
        f"CPU {total['cpu_s'] / 3600:.2f} h",
        f"with frames of 20 ms {total['frames_of_20_ms']}; clears {total['clears']}, "
        f"resumes {total['resumes']}",
        f"ended: {dict(outcomes)}",
        f"by code: {dict(codes)}",
        "",
        table(met),
        "",
        f"rarest pair: {min((met[pair], pair) for pair in pairs)}",
    ]
    for block in blocks:
        rows += [f"seed {seed}: {problem}" for seed, problem in block["wrong"]]
    return "\n".join(rows)


def run(first: int, behind: int, minutes: float, jobs: int) -> None:
    """Hold the blocks of a range that have not been held, for so long."""
    done = [(block["from"], block["to"]) for block in lines()]
    todo: Iterator[int] = (
        n for n in range(first, behind, BLOCK) if not any(start <= n < end for start, end in done)
    )
    until = time.monotonic() + minutes * 60
    with ProcessPoolExecutor(jobs) as pool:
        running: set[Future[dict[str, Any]]] = set()
        while True:
            while len(running) < jobs and time.monotonic() < until:
                start = next(todo, None)
                if start is None:
                    break
                running.add(pool.submit(hold_block, start, min(start + BLOCK, behind)))
            if not running:
                break
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                block = future.result()
                with STATE.open("a") as file:
                    file.write(json.dumps(block) + "\n")
                print(block["from"], block["to"], block["violations"], *block["wrong"], flush=True)
    blocks = merged(lines())
    STATE.write_text("".join(json.dumps(block) + "\n" for block in blocks))


def replay(seed: int) -> None:
    """Hold one conversation and print what happened."""
    held = hold(draw(random.Random(seed)))
    print(held.conversation)
    for at, act, _ in held.done:
        print(f"{at:9.3f}  {act.what} {act.words}")
    for moment in held.moments:
        print(f"{moment.at:9.3f}  {moment.what} {moment.detail or ''}")
    for turn in held.call.summary.turns:
        print(turn)
    print(held.call.summary.outcome, held.call.summary.counts)
    print("trace", held.trace())
    for problem in violations(held):
        print("WRONG", problem)


def main() -> int:
    """Run the command line; exit status 1 if anything was found wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", default="0:100000", help="FIRST:BEHIND (%(default)s)")
    parser.add_argument("--minutes", type=float, default=10.0, help="start no block after this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--replay", type=int, metavar="SEED")
    options = parser.parse_args()
    if options.replay is not None:
        try:
            replay(options.replay)
        except Exception:
            traceback.print_exc()
            return 1
        return 0
    if not options.report:
        first, behind = map(int, options.seeds.split(":"))
        run(first, behind, options.minutes, options.jobs)
    blocks = lines()
    print(report(blocks))
    return 1 if any(block["violations"] for block in blocks) else 0


if __name__ == "__main__":
    sys.exit(main())
