"""Holds calls by schedules of faults, over ranges of seeds.

    python -m tests.sim.fault_soak --seeds 0:1000 --jobs 2     hold them and say what was wrong
    python -m tests.sim.fault_soak --seeds 0:1000 --record     and add a line to the record
    python -m tests.sim.fault_soak --replay 4711               one schedule, with its call

A line of `bench/fault_soak.jsonl` is a range of seeds, as in `soak.py`: of other calls, so the
two do not share a file.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from tests.sim.fault_checks import Bounds, violations
from tests.sim.fault_world import hold_schedule
from tests.sim.faults import draw_schedule
from tests.sim.soak import KEPT, ROOT, fingerprint

STATE = ROOT / "bench" / "fault_soak.jsonl"
BLOCK = 50  # seeds a step of the work


def hold_block(first: int, behind: int) -> dict[str, Any]:
    """Hold the schedules of these seeds; return what there is to say of them."""
    cpu = time.process_time()
    wrong: list[list[Any]] = []
    outcomes: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    virtual_s, turns, failures = 0.0, 0, 0
    for seed in range(first, behind):
        try:
            held = hold_schedule(draw_schedule(seed))
            wrong += [[seed, problem[:300]] for problem in violations(held)]
        except Exception as exc:
            wrong.append([seed, f"raised: {exc!r}"[:300]])
            continue
        outcomes[held.call.summary.outcome.value] += 1
        faults.update(ask.fault.what for ask in held.asks if ask.fault is not None)
        virtual_s += held.virtual_s
        turns += len(held.call.summary.turns)
        failures += int(held.call.summary.counts.get("provider_failures", 0))
    return {
        "violations": len(wrong),
        "wrong": wrong,
        "virtual_s": round(virtual_s),
        "turns": turns,
        "provider_failures": failures,
        "outcomes": dict(outcomes),
        "faults_met": dict(faults),
        "cpu_s": round(time.process_time() - cpu, 1),
    }


def run(first: int, behind: int, jobs: int) -> dict[str, Any]:
    """Hold a range of schedules; return the line for it."""
    starts = range(first, behind, BLOCK)
    ends = [min(start + BLOCK, behind) for start in starts]
    line: dict[str, Any] = {"from": first, "to": behind, "code": fingerprint()}
    with ProcessPoolExecutor(jobs) as pool:
        for block in pool.map(hold_block, starts, ends):
            for seed, problem in block["wrong"]:
                print(f"seed {seed}: {problem}", flush=True)
            for key, value in block.items():
                if isinstance(value, dict):
                    line[key] = dict(sorted((Counter(line.get(key, {})) + Counter(value)).items()))
                else:
                    line[key] = line.get(key, type(value)()) + value
    line["wrong"] = line["wrong"][:KEPT]
    line["cpu_s"] = round(line["cpu_s"], 1)
    return line


def replay(seed: int) -> None:
    """Hold one schedule and print it, and what happened."""
    held = hold_schedule(draw_schedule(seed))
    bounds = Bounds(held.schedule)
    print(held.schedule)
    print(f"never silent for {bounds.silence_s:.2f} s, no turn longer than {bounds.turn_s:.2f} s")
    for moment in held.moments:
        print(f"{moment.at:9.3f}  {moment.what} {moment.detail or ''}")
    for ask in held.asks:
        what = ask.fault.what if ask.fault is not None else ""
        print(f"{ask.at:9.3f}  to {ask.until:.3f}  {ask.provider} {ask.how} {what} {ask.text}")
    for turn in held.call.summary.turns:
        print(turn)
    print(held.call.summary.outcome, held.call.summary.counts)
    print("heard", held.call.heard_text)
    print("trace", held.trace())
    for problem in violations(held):
        print("WRONG", problem)


def main() -> int:
    """Run the command line; exit status 1 if anything was found wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", default="0:1000", help="FIRST:BEHIND (%(default)s)")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--record", action="store_true", help=f"add a line to {STATE.name}")
    parser.add_argument("--replay", type=int, metavar="SEED")
    options = parser.parse_args()
    if options.replay is not None:
        replay(options.replay)
        return 0
    first, behind = map(int, options.seeds.split(":"))
    line = run(first, behind, options.jobs)
    print(json.dumps(line))
    if options.record:
        with Path(STATE).open("a") as file:
            file.write(json.dumps(line) + "\n")
    return 1 if line["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
