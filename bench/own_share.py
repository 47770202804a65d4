"""What the bot itself adds to a reply: end of turn to first media, with providers at zero delay.

    python -m bench.own_share [--turns 200 --at-once 10 --seed 1] [--lost]

A black box, as `bench.barge_in`, in three processes: `voicebot serve`, the stand-ins for Deepgram
and Groq, which answer at once, and recorded callers, who wait until the bot is silent. The times
are the server's own, from the records of the calls (`GET /calls/{sid}`), in whole milliseconds:
how long a sentence is spoken before its turn is over is the recogniser's business and not in them.

The servers compared stand side by side. One call at a time each has at the same moments, many at
once they have in turns, so what else the machine does falls on all of them alike. Guessing at the
end of a turn is off where not said otherwise, for a guess thinks and speaks before it and hides
the share. With `--lost` the model's answers cost their connections, as barge-ins do.

Zero delay is not no time: the stand-ins are Python, too. `Floor` asks them for the same things
over a bare socket meanwhile; what is above its figures is the bot's.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from math import inf
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import trio

from bench.barge_in import recordings, row, serving, settings
from voicebot.audio import BYTES_PER_S
from voicebot.simulator import Script, Utterance, WhenSilent, run_call
from voicebot.simulator.dial import Account, dial, open_line
from voicebot.simulator.twilio_end import Media
from voicebot.standins import ChatConduct, ListenConduct, SpeakConduct, open_standins

CLIP_S: Final = 0.85  # callers who say little: what they say is not measured
TURNS: Final = 10  # in a call
SAID: Final = "I would like to book a table."
REPLY: Final = "Yes."  # so short that there are many turns in a minute
SPREAD_S: Final = 4.0  # over which calls at once begin: people are not in step
RECORD_S: Final = 5.0  # a call is on record this long after its end, or something is wrong

NO_GUESSES: Final = {"VOICEBOT_ENDPOINTING__GUESSES": "0"}
SERVERS: Final = {
    "spares 2": NO_GUESSES,
    "spares 0": {**NO_GUESSES, "VOICEBOT_SPARE_CONNECTIONS": "0"},
    "spares 2, guesses": {},
}


@dataclass(frozen=True)
class Share:
    """One reply: milliseconds from the end of the caller's turn."""

    begun: float  # the turn: nothing is thought before, unless it was guessed
    text: float
    audio: float
    media: float


@dataclass
class Found:
    """What the calls to one server gave."""

    shares: list[Share] = field(default_factory=list)
    greetings: list[float] = field(default_factory=list)  # call begun to first media, ms
    heard: list[float] = field(default_factory=list)  # the same, as the caller had it
    incomplete: int = 0  # turns without media
    loads: list[float] = field(default_factory=list)


def shares(summary: Mapping[str, Any]) -> tuple[list[Share], int]:
    """Return the share of each reply in a call's record, and of how many there is none."""
    ends = [moment["at"] for moment in summary["timeline"] if moment["what"] == "end_of_turn"]
    found, incomplete = [], 0
    for turn in summary["turns"]:
        before = [end for end in ends if end <= turn["began"]]
        if not turn["caller"]:
            continue  # the greeting answers nobody
        if not before or turn["first_media"] is None:
            incomplete += 1
            continue
        stages = ("began", "first_text", "first_audio", "first_media")
        found.append(Share(*(round((turn[stage] - before[-1]) * 1_000) for stage in stages)))
    return found, incomplete


@dataclass
class Floor:
    """What the stand-ins take by themselves, asked over bare sockets that are kept."""

    text: list[float] = field(default_factory=list)  # ms from the request to the end of the text
    audio: list[float] = field(default_factory=list)  # ms from the request to audio

    async def ask(self, standins: Mapping[str, str], pick: random.Random) -> None:
        """Ask now and then, as often as a caller does, until cancelled."""
        messages = [{"role": "user", "content": SAID}]
        chat = {"model": "openai/gpt-oss-20b", "messages": messages, "stream": True}
        groq, deepgram = standins["GROQ_BASE_URL"], standins["DEEPGRAM_URL"]
        keys = f"Bearer {standins['GROQ_API_KEY']}", f"Token {standins['DEEPGRAM_API_KEY']}"
        query = "model=aura-2-thalia-en&encoding=mulaw&container=none&sample_rate=8000"
        thinks = head(groq, "/openai/v1/chat/completions", keys[0], chat)
        speaks = head(deepgram, f"/v1/speak?{query}", keys[1], {"text": REPLY})
        async with await connect(groq) as thinking, await connect(deepgram) as speaking:
            while True:
                await trio.sleep(pick.uniform(1.0, 2.0))
                self.text.append(await answered(thinking, thinks, b"[DONE]"))
                self.audio.append(await answered(speaking, speaks, b"\r\n\r\n"))


def head(url: str, path: str, key: str, body: Mapping[str, Any]) -> bytes:
    """Return a request."""
    content = json.dumps(body)
    return (
        f"POST {path} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nAuthorization: {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n{content}"
    ).encode()


async def connect(url: str) -> trio.SocketStream:
    """Return a connection to a server."""
    parts = urlsplit(url)
    return await trio.open_tcp_stream(parts.hostname or "", parts.port or 80)


async def answered(stream: trio.SocketStream, request: bytes, sign: bytes) -> float:
    """Send a request and read its answer; return how many ms it was until a sign of it."""
    began, at, got = trio.current_time(), 0.0, b""
    await stream.send_all(request)
    while not got.endswith(b"\r\n0\r\n\r\n"):
        received = await stream.receive_some()
        if not received or (not got and b" 200 " not in received[:20]):
            raise RuntimeError(f"a stand-in said {got + received!r}")
        got += received
        # What stands behind the sign: more than the head, where that ends with it.
        if not at and got.partition(sign)[2]:
            at = trio.current_time()
    return (at - began) * 1_000


@contextmanager
def stand_ins(*, lost: bool) -> Iterator[dict[str, str]]:
    """Run the stand-ins in a process of their own; yield what makes a bot use them."""
    command = [sys.executable, "-m", "bench.own_share", "--stand-ins", *["--lost"] * lost]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())
        process.terminate()


async def stand_in(*, lost: bool) -> None:
    """Be that process."""
    async with open_standins(
        texts=[SAID],
        replies=[REPLY],
        listen=ListenConduct(result_delay_s=0.0),
        speak=SpeakConduct(delay_s=0.0, rate=inf),
        chat=ChatConduct(delay_s=0.0, token_gap_s=0.0, hold_open=lost),
    ) as standins:
        print(json.dumps(standins.environment()), flush=True)
        await trio.sleep_forever()


async def read_record(server: str, sid: str) -> dict[str, Any]:
    """Return what the server says of a call, once it is over."""
    async with httpx.AsyncClient(trust_env=False) as client:
        with trio.fail_after(RECORD_S):
            while True:
                record = (await client.get(f"{server}/calls/{sid}")).json()
                if record.get("summary"):
                    summary: dict[str, Any] = record["summary"]
                    return summary
                await trio.sleep(0.05)


def script(clips: list[tuple[str, bytes]], pick: random.Random) -> Script:
    """Return a caller who says something again and again, each time after a pause of its own."""
    return Script(
        tuple(
            Utterance(*pick.choice(clips), WhenSilent(pick.uniform(0.2, 0.4))) for _ in range(TURNS)
        ),
        patience_s=3.0,
    )


async def hold(server: str, caller: Script, found: Found, wait_s: float) -> None:
    """Hold a call, after a while, and add what its record says."""
    await trio.sleep(wait_s)
    found.loads.append(os.getloadavg()[0])
    answer = await dial(server, Account())
    async with open_line(server, answer.stream_url, Account()) as line:
        recording = await run_call(line, caller, answer.identity)
    summary = await read_record(server, answer.identity.call_sid)
    some, incomplete = shares(summary)
    found.shares += some
    found.incomplete += incomplete + TURNS - len(some)
    found.greetings.append(summary["turns"][0]["first_media"] * 1_000)
    found.heard.append(next(h.at_ms for h in recording.happenings if isinstance(h, Media)))
    print(".", end="", file=sys.stderr, flush=True)


async def measure(options: argparse.Namespace) -> tuple[dict[str, Found], Floor]:
    """Hold all calls; return what they gave, by row."""
    pick = random.Random(options.seed)
    clips = [clip for clip in recordings(pick) if len(clip[1]) <= CLIP_S * BYTES_PER_S]
    found: dict[str, Found] = {}
    floor = Floor()
    with stand_ins(lost=options.lost) as standins, ExitStack() as stack:
        servers = {
            name: stack.enter_context(serving({**settings(standins), **environ}))
            for name, environ in SERVERS.items()
        }
        for at_once in dict.fromkeys((1, options.at_once)):
            one_by_one = [[server] for server in servers.items()]
            groups = [list(servers.items())] if at_once == 1 else one_by_one
            for _ in range(-(-options.turns // (TURNS * at_once))):
                for group in groups:
                    await hold_together(group, at_once, clips, pick, found, floor, standins)
    print(file=sys.stderr)
    return found, floor


async def hold_together(
    servers: list[tuple[str, str]],
    at_once: int,
    clips: list[tuple[str, bytes]],
    pick: random.Random,
    found: dict[str, Found],
    floor: Floor,
    standins: Mapping[str, str],
) -> None:
    """Hold so many calls to each of these servers, and ask for the floor meanwhile."""
    async with trio.open_nursery() as asking:
        asking.start_soon(floor.ask, standins, pick)
        async with trio.open_nursery() as calls:
            for name, server in servers:
                here = found.setdefault(f"{name}, {at_once} at once", Found())
                for _ in range(at_once):
                    wait_s = pick.uniform(0, SPREAD_S) if at_once > 1 else 0.0
                    calls.start_soon(hold, server, script(clips, pick), here, wait_s)
        asking.cancel_scope.cancel()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--turns", type=int, default=200, help="at least, in each row")
    parser.add_argument("--at-once", type=int, default=10, help="calls, besides one alone")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lost", action="store_true", help="answers cost their connections")
    parser.add_argument("--stand-ins", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stand_ins:
        trio.run(lambda: stand_in(lost=options.lost))
        return
    found, floor = trio.run(measure, options)
    print(f"{'':44} {'min':>8} {'median':>8} {'p95':>8} {'max':>8} {'n':>6}")
    for name, one in found.items():
        print(f"{name}; load {min(one.loads):.1f} to {max(one.loads):.1f}")
        for stage in ("begun", "text", "audio", "media"):
            print(row(f"  end of turn -> {stage}", [getattr(s, stage) for s in one.shares]))
        print(row("  call begun -> first media of the greeting", one.greetings))
        print(row("  start sent -> the same, at the caller", one.heard))
        if one.incomplete:
            print(f"  turns without a reply: {one.incomplete}")
    print("the stand-ins alone")
    print(row("  request -> text", floor.text))
    print(row("  request -> audio", floor.audio))


if __name__ == "__main__":
    main()
