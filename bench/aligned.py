"""How well a recording is aligned to what was heard, by the simulator's own recording of the call.

    python -m bench.aligned --calls 4

Calls in virtual time with five interruptions each, on lines of different kinds. What came out of
the caller's phone is cut into windows of 0.1 s; each that has sound is looked for in the bot's
channel. Printed is by how much it is late there, how many are further off than 0.1 s, and how many
are nowhere: a hole in them is a little elsewhere. A minus is early.
"""

from __future__ import annotations

import argparse
import random
import string
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from voicebot.audio import BYTES_PER_MS, SILENCE
from voicebot.plan import CallPlan
from voicebot.simulator.recording import Recording
from voicebot.tape import Mixer
from voicebot.testing import (
    InterruptAfter,
    Network,
    Script,
    ScriptedChat,
    caller_coughs,
    caller_says,
    hold,
    toy_ports,
)

WINDOW: Final = 100 * BYTES_PER_MS
REACH: Final = 1_000 * BYTES_PER_MS  # a window is looked for so far away
LINES: Final = {
    "at once": Network(),
    "40 ms each way": Network(delay_ms=40),
    "100 ms each way": Network(delay_ms=100),
    "a fifth of the marks lost": Network(delay_ms=40, lost_marks=0.2),
    "jitter of 80 ms": Network(delay_ms=40, jitter_ms=80),
    "bunches of 100 ms": Network(delay_ms=40, batch_ms=100),
    "clocks 0.1 % apart": Network(delay_ms=40, drift=0.001),
    "stalls of 1.0 and 0.6 s": Network(delay_ms=40, stalls=((6.0, 1.0), (14.0, 0.6))),
}


def call(network: Network, seed: int) -> tuple[Recording, bytes]:
    """Hold a call; return it, and the bot's channel of its recording."""
    chance = random.Random(seed)
    words = ["".join(chance.choices(string.ascii_lowercase, k=5)) for _ in range(400)]
    script = Script(
        (
            caller_says("hello there"),
            *(caller_says("stop", InterruptAfter(chance.randrange(300, 4_000))) for _ in range(4)),
            caller_coughs(InterruptAfter(1_500)),
        )
    )
    replies = [" ".join(words[n : n + 40]) + "." for n in range(0, 400, 40)]
    tape = Mixer()
    ports = replace(toy_ports(chat=ScriptedChat(replies)), tape=tape)
    plan = CallPlan("Be brief.", "Hello, this is the greeting.")
    held = hold(script, ports, plan, network=replace(network, seed=seed), seed=seed)
    return held.recording, tape.take(rest=True)[1::2]


def offsets(heard: bytes, bot: bytes) -> Iterator[float | None]:
    """Yield how many ms each window with sound is late; None where it is nowhere near."""
    for at in range(0, len(heard) - WINDOW, WINDOW // 2):
        window = heard[at : at + WINDOW]
        if window.count(SILENCE) <= WINDOW // 2:
            first = max(0, at - REACH)
            near, place = [], bot.find(window, first, at + REACH + WINDOW)
            while place >= 0:
                near.append(place - at)
                place = bot.find(window, place + 1, at + REACH + WINDOW)
            yield min(near, key=abs) / BYTES_PER_MS if near else None


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--calls", type=int, default=4, help="on each line")
    options = parser.parse_args()
    print("| line | windows | median | 1 % | 99 % | off by more than 0.1 s | nowhere |")
    print("|---|---|---|---|---|---|---|")
    for name, network in LINES.items():
        found: list[float | None] = []
        for seed in range(options.calls):
            recording, bot = call(network, seed)
            found += offsets(recording.heard[: len(bot)], bot)
        late = sorted(ms for ms in found if ms is not None)
        quantiles = [late[round(share * (len(late) - 1))] for share in (0.5, 0.01, 0.99)]
        shown = " | ".join(f"{ms:.0f} ms" for ms in quantiles)
        far = sum(abs(ms) > 100 for ms in late)
        print(f"| {name} | {len(found)} | {shown} | {far} | {len(found) - len(late)} |")


if __name__ == "__main__":
    main()
