"""How fast the bot falls silent: recorded callers interrupt it over real sockets.

    python -m bench.barge_in [--calls 30 --at-once 3 --interruptions 4 --seed 1]

A black box. The server is `voicebot serve` in a process of its own with the stand-ins for
Deepgram and Groq in this one, which also plays the callers. Recorded people (Debian's
asterisk-core-sounds-en-wav), picked and levelled by the seed, ask for something and interrupt
each answer after 0.5 to 3 s. What is counted comes from the simulator: the caller's first sound
in the recording, the `clear` as it arrived, the bot as it was heard.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import trio

from voicebot import audio
from voicebot.simulator import (
    InterruptAfter,
    Script,
    Utterance,
    Verdict,
    WhenSilent,
    judge,
    run_call,
)
from voicebot.simulator.dial import Account, dial, open_line
from voicebot.simulator.loudness import sounds
from voicebot.simulator.wav import read_mulaw
from voicebot.standins import open_standins

RECORDINGS = Path("/usr/share/asterisk/sounds/en")
STOP_S = 8.0  # above the 5 s that the bot gives the calls it still has
STORY = (
    "Once upon a time there was a small house by the sea. An old man lived in it with his dog. "
    "Every morning they walked along the beach and looked for wood. One day they found a bottle "
    "with a letter in it. Nobody could read what the letter said."
)


def recordings(pick: random.Random) -> list[tuple[str, bytes]]:
    """Return recordings of 0.6 to 3 s that are one stretch of speech, levelled at random."""
    found = []
    for path in sorted(RECORDINGS.glob("*.wav")):
        mulaw = read_mulaw(path)
        if 0.6 <= len(mulaw) / audio.BYTES_PER_S <= 3 and len(sounds(mulaw, 250.0)) == 1:
            gain = 10 ** ((pick.uniform(-30, -18) - audio.dbov(mulaw)) / 20)
            pcm = (max(-32_000, min(32_000, round(audio.PCM16[code] * gain))) for code in mulaw)
            found.append(
                (
                    path.stem,
                    audio.encode(b"".join(s.to_bytes(2, "little", signed=True) for s in pcm)),
                )
            )
    if not found:
        sys.exit(f"no recordings in {RECORDINGS}: run scripts/recordings")
    return found


@contextmanager
def serving(environ: dict[str, str], module: str = "voicebot") -> Iterator[str]:
    """Run `voicebot serve`, or another module like it, with these settings; yield its URL."""
    with started(environ, module) as (url, _):
        yield url


@contextmanager
def started(
    environ: dict[str, str], module: str = "voicebot", core: int | None = None
) -> Iterator[tuple[str, int]]:
    """As `serving`; yield the URL and the process's number. `core`: the only one it gets."""
    command = [sys.executable, "-m", module, "serve", "--dev", "--port", "0"]
    with running(command, {"VOICEBOT_DATABASE_URL": "", **environ}, core) as found:
        yield found


@contextmanager
def running(
    command: Sequence[str],
    environ: Mapping[str, str],
    core: int | None = None,
    stderr: int | None = subprocess.DEVNULL,
) -> Iterator[tuple[str, int]]:
    """As `started`, of any command that says `ready on http://…`. `stderr`: None is our own."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=stderr, env=environ, text=True
    ) as process:
        if core is not None:
            os.sched_setaffinity(process.pid, {core})
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if ready := re.fullmatch(r"ready on (http://\S+)\n", line):
                    yield ready[1], process.pid
                    break
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()  # it waits for a stand-in, which is in this process, which waits


def row(name: str, values: Sequence[float], unit: str = "ms") -> str:
    """Return a line of the table."""
    if not values:
        return f"{name:44} none"
    ordered = sorted(values)
    p95 = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return (
        f"{name:44} {ordered[0]:8.0f} {ordered[len(ordered) // 2]:8.0f} {p95:8.0f} "
        f"{ordered[-1]:8.0f} {len(ordered):6}  {unit}"
    )


async def measure(options: argparse.Namespace) -> list[Verdict]:
    """Hold all calls; return what the simulator says of each."""
    pick = random.Random(options.seed)
    clips = recordings(pick)
    verdicts: list[Verdict] = []
    limit = trio.CapacityLimiter(options.at_once)

    async def hold(server: str, script: Script) -> None:
        async with limit:
            answer = await dial(server, Account())
            async with open_line(server, answer.stream_url, Account()) as line:
                verdicts.append(judge(await run_call(line, script, answer.identity)))
            print(".", end="", file=sys.stderr, flush=True)

    def script() -> Script:
        first, *others = [pick.choice(clips) for _ in range(options.interruptions + 1)]
        return Script(
            (
                Utterance(*first, WhenSilent()),
                *(Utterance(*clip, InterruptAfter(pick.uniform(500, 3_000))) for clip in others),
            ),
            patience_s=3.0,
        )

    async with open_standins(replies=lambda messages: STORY) as standins:
        with serving(settings(standins.environment())) as server:
            async with trio.open_nursery() as nursery:
                for _ in range(options.calls):
                    nursery.start_soon(hold, server, script())
    print(file=sys.stderr)
    return verdicts


def settings(standins: Mapping[str, str]) -> dict[str, str]:
    """Return an environment with these stand-ins, without a telephone: nothing is signed."""
    names = ("DEEPGRAM_", "GROQ_")
    chosen = {k: v for k, v in standins.items() if k.startswith(names)}
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith((*names, "VOICEBOT_", "TWILIO_", "PUBLIC_URL"))
    }
    return {**inherited, **chosen, "VOICEBOT_GREETING": "Hello."}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--calls", type=int, default=30)
    parser.add_argument("--at-once", type=int, default=3)
    parser.add_argument("--interruptions", type=int, default=4, help="in each call")
    parser.add_argument("--seed", type=int, default=1)
    verdicts = trio.run(measure, parser.parse_args())

    found = [one for verdict in verdicts for one in verdict.interruptions]
    cleared = [one.clear_ms for one in found if one.clear_ms is not None]
    print(f"{'':44} {'min':>8} {'median':>8} {'p95':>8} {'max':>8} {'n':>6}")
    print(row("first sound -> clear", cleared))
    print(row("bot heard after the first sound", [one.heard_ms for one in found]))
    replies = [t.reply_ms for v in verdicts for t in v.turns if t.reply_ms is not None]
    print(row("end of speech -> bot audible", replies))
    print(row("underruns", [v.underrun_ms for v in verdicts], "ms per s of audio, by call"))
    print(f"interruptions without a clear: {len(found) - len(cleared)} of {len(found)}")
    print(f"more than one clear: {sum(one.clears > 1 for one in found)}")
    print(f"media after clear: {sum(one.late_media for one in found)}")
    failures = [failure for verdict in verdicts for failure in verdict.failures]
    print(f"failed thresholds: {len(failures)}", *failures[:10], sep="\n  ")


if __name__ == "__main__":
    main()
