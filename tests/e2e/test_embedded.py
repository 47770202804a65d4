"""The bot as a fresh machine has it: `voicebot serve` with no key, real recognition and voice.

A black box: the server is a process, callers are recorded people, and what it understood is read
from its calls API.
"""

from __future__ import annotations

import gzip
import os
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.e2e.running import PATIENT, RECORDINGS, at_level, recorded
from voicebot import audio
from voicebot.brain.intents import Intent, classify
from voicebot.ports import Final
from voicebot.simulator import wav
from voicebot.simulator.call import (
    InterruptAfter,
    Recording,
    Script,
    Utterance,
    WhenSilent,
    run_call,
)
from voicebot.simulator.dial import Account, dial, open_line
from voicebot.simulator.verdict import judge

pytestmark = [
    pytest.mark.local,
    # Not imported to find out: other tests assert that this process never does.
    pytest.mark.skipif(
        find_spec("ctranslate2") is None, reason="needs the extra: pip install '.[local]'"
    ),
]

TRANSCRIPTS = Path("/usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz")
TRACKS = sorted(Path("/usr/share/asterisk/moh").glob("*.wav"))
SEED = 20261122
AT_ONCE = 3  # the server takes four, and the callers need a core as well
needs_recordings = pytest.mark.skipif(
    not TRANSCRIPTS.exists(), reason="no recordings with transcripts: run scripts/recordings"
)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Start `voicebot serve`; return its URL."""
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("VOICEBOT_", "TWILIO_", "DEEPGRAM_", "GROQ_", "PUBLIC_URL"))
    }
    environ |= {"VOICEBOT_GREETING": "Hello.", "VOICEBOT_DATABASE_URL": ""}
    with subprocess.Popen(
        [sys.executable, "-m", "voicebot", "serve", "--dev", "--port", "0"],
        stdout=subprocess.PIPE,
        env=environ,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if ready := re.fullmatch(r"ready on (http://\S+)\n", line):
                yield ready[1]
                break
        process.terminate()
        process.stdout.read()
        assert process.wait(20) == 0


async def call(server: str, *utterances: Utterance, hang_up: float | None = None) -> Recording:
    answer = await dial(server, Account())
    async with open_line(server, answer.stream_url, Account()) as line:
        return await run_call(line, Script(utterances, hang_up_after_s=hang_up), answer.identity)


async def turns(server: str, recording: Recording) -> list[dict[str, Any]]:
    """Return the turns of a call, as the server recorded them."""
    url = f"{server}/calls/{recording.identity.call_sid}"
    async with httpx.AsyncClient(trust_env=False) as client:
        with trio.fail_after(10):
            while not (record := (await client.get(url)).json()).get("summary"):  # noqa: ASYNC110  # another process
                await trio.sleep(0.1)
    found: list[dict[str, Any]] = record["summary"]["turns"]
    return found


def clips() -> list[tuple[bytes, str, Intent]]:
    """Pick clips by the seed: re-levelled audio, what it says, and what that wants."""
    pick = random.Random(SEED)
    by_intent: dict[Intent, list[tuple[str, str]]] = {}
    with gzip.open(TRANSCRIPTS, "rt", errors="replace") as lines:
        for line in lines:
            name, _, text = line.partition(":")
            path = RECORDINGS / f"{name}.wav"
            if line.startswith(";") or "[" in text or not path.exists():
                continue
            if 0.5 < path.stat().st_size / 16_000 < 4.0:  # seconds of 16-bit samples
                by_intent.setdefault(classify(text), []).append((name, text.strip()))
    del by_intent[Intent.UNKNOWN]
    chosen = []
    for intent in sorted(by_intent, key=lambda intent: intent.value):
        pool = sorted(by_intent[intent])
        for name, text in pick.sample(pool, min(2, len(pool))):
            mulaw = wav.read_mulaw(RECORDINGS / f"{name}.wav")
            chosen.append((at_level(mulaw, pick.uniform(-28, -18)), text, intent))
    return chosen


@needs_recordings
async def test_what_recorded_people_say_gets_the_answer_of_the_right_intent(server: str) -> None:
    chosen = clips()
    assert len(chosen) >= 20
    results: list[tuple[str, str, bool]] = []
    limit = trio.CapacityLimiter(AT_ONCE)

    async def ask(index: int, mulaw: bytes, text: str, intent: Intent) -> None:
        async with limit:
            recording = await call(server, Utterance(f"caller-{index}", mulaw, WhenSilent()))
        said = [turn for turn in await turns(server, recording) if turn["caller"]]
        understood = " ".join(turn["caller"] for turn in said)
        answered = any(turn["heard"] for turn in said)
        results.append((text, understood, answered and classify(understood) is intent))

    with trio.fail_after(400):
        async with trio.open_nursery() as nursery:
            for index, (mulaw, text, intent) in enumerate(chosen):
                nursery.start_soon(ask, index, mulaw, text, intent)

    wrong = [(text, understood) for text, understood, right in results if not right]
    assert len(wrong) <= 0.2 * len(results), wrong


@pytest.mark.parametrize("sound", ["silence", "music"])
async def test_silence_and_music_get_no_answer(server: str, sound: str) -> None:
    noise = audio.silence(6_000)
    if sound == "music":
        if not TRACKS:
            pytest.skip("no hold music: run scripts/recordings")
        track = wav.read_mulaw(random.Random(SEED).choice(TRACKS))
        noise = at_level(track[40_000:88_000], -25)

    with trio.fail_after(60):
        recording = await call(server, Utterance(sound, noise, WhenSilent()), hang_up=9.0)

    assert [turn["caller"] for turn in await turns(server, recording)] == [""]


async def test_the_answer_is_audible_speech_that_says_what_was_meant(server: str) -> None:
    from voicebot.local.speech import open_local_speech

    with trio.fail_after(120):
        recording = await call(server, Utterance("hello", recorded("hello"), WhenSilent()))
        [_, answer] = await turns(server, recording)
        # Everything the caller heard after speaking, through another recogniser of the same kind.
        heard = recording.heard[int(recording.spoken[0].end_ms) * audio.BYTES_PER_MS :]
        async with AsyncExitStack() as stack:
            speech = await stack.enter_async_context(open_local_speech())
            ear = await stack.enter_async_context(speech.open_transcriber())
            await ear.send(heard)
            ear.speech_started(len(heard) // audio.BYTES_PER_MS)
            await ear.finalize()
            transcript = await ear.receive()

    assert isinstance(transcript, Final)
    meant, understood = words(answer["heard"]), words(transcript.text)
    assert sum(meant.values()) >= 4
    assert sum((meant & understood).values()) >= 0.6 * sum(meant.values()), transcript.text


def words(text: str) -> Counter[str]:
    return Counter(re.findall(r"[a-z']+", text.lower()))


async def test_talking_over_the_answer_stops_it(server: str) -> None:
    with trio.fail_after(120):
        recording = await call(
            server,
            Utterance("hours", recorded("hours"), WhenSilent()),
            Utterance("over it", recorded("pls-hold-while-try"), InterruptAfter(1_000)),
        )

    verdict = judge(recording, PATIENT)
    assert [(i.clears, i.late_media) for i in verdict.interruptions] == [(1, 0)]
    assert verdict.failures == ()
    interrupted = [turn for turn in await turns(server, recording) if turn["interrupted"]]
    assert len(interrupted) == 1
    assert interrupted[0]["generated"].startswith(interrupted[0]["heard"][:10])
