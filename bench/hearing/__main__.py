"""How well and how soon the bot hears: the ears alone, and whole calls with every policy.

    python -m bench.hearing                     the part that settings are chosen on
    python -m bench.hearing --held-out          the other, once a release; the run is counted
    python -m bench.hearing --only turns        ears, calls, echo, policies, turns or flux
    python -m bench.hearing --only peer         Pipecat's analyzer on the same lines; installs it

Nothing is tuned to a clip: which are played is drawn by the seed. Not covered: coughs, sneezes,
streets, singing, noise suppression at the far end, echo that is not linear.
"""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from bench.hearing.calls import print_calls, print_echo, print_flux, print_policies, print_turns
from bench.hearing.ears import print_ears
from bench.hearing.peer import print_peer
from bench.hearing.sounds import load_part
from voicebot.hearing import Hearing

RUNS: Final = Path(__file__).parent / "held_out_runs.jsonl"
TABLES: Final = ("ears", "calls", "echo", "policies", "turns", "flux")
NAMED_ONLY: Final = ("peer",)  # takes half a gigabyte of other people's packages


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clips", type=int, default=300, help="utterances per set; 299 tell 1 %%")
    parser.add_argument("--minutes", type=float, default=2.0, help="of each kind of non-speech")
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--only", choices=TABLES + NAMED_ONLY, action="append")
    args = parser.parse_args()

    part = load_part("held-out" if args.held_out else "tuning", args.seed)
    if args.held_out:
        with RUNS.open("a") as file:
            file.write(json.dumps({"at": datetime.now(UTC).isoformat(timespec="seconds")}) + "\n")
        print(f"held-out, run {len(RUNS.read_text().splitlines())} of all times")
    print(f"seed {args.seed}; {', '.join(f'{n} {len(c)}' for n, c in part.speakers.items())}\n")
    fewer = min(args.clips, 120)  # where each is played with many settings
    for name in args.only or TABLES:
        print(f"## {name}\n")
        match name:
            case "ears":
                print_ears(part, Hearing(), args.seed, args.clips, args.minutes)
            case "calls":
                print_calls(part, args.seed, args.clips, args.minutes)
            case "echo":
                print_echo(part, args.seed, fewer)
            case "policies":
                print_policies(part, args.seed, fewer)
            case "turns":
                print_turns(part, args.seed, fewer)
            case "flux":
                print_flux(part, args.seed, fewer)
            case "peer":
                print_peer(part, Hearing(), args.seed, args.clips, args.minutes)
        print(flush=True)


if __name__ == "__main__":
    main()
