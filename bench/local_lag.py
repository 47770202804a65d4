"""Measure what embedded speech costs the loop: lag while callers listen and talk.

    python -m bench.local_lag [--callers 4] [--seconds 30] [--voice auto] [--flat-out]

Each caller streams 20 ms frames without end, as Twilio does: a question of about three
seconds, then silence while the bot recognises it and speaks its answer. `--flat-out` drops
the waiting, so that recognition and synthesis never rest; a worst case and not a call.

The lag is how late a task of the loop wakes from a sleep of 5 ms. It is first measured with
the speech process loaded but idle, so that what the machine does by itself can be told apart.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from typing import Final

import trio

from voicebot import audio, ports
from voicebot.local import speech as local

PROBE_S: Final = 0.005  # a quarter of a frame: finer than anything a call waits for
IDLE_S: Final = 5.0
QUESTION: Final = "I would like to book a table for four people on Saturday evening, please."
ANSWERS: Final = (  # as the engine asks: one sentence at a time
    "We are open Tuesday to Sunday, from noon to ten in the evening.",
    "I have a table for four on Saturday, November 28th.",
    "What time shall I note it for?",
)


class Figures:
    """Samples of one figure, in milliseconds."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._samples: list[float] = []

    def add(self, seconds: float) -> None:
        """Take one sample."""
        self._samples.append(seconds * 1_000)

    def __str__(self) -> str:
        if not self._samples:
            return f"{self._name:<28} n=0"
        ordered = sorted(self._samples)
        named = (("min", 0.0), ("median", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1.0))
        parts = [f"{name} {_quantile(ordered, q):8.2f}" for name, q in named]
        return f"{self._name:<28} {'  '.join(parts)}  n={len(ordered)}"


def _quantile(ordered: Sequence[float], q: float) -> float:
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]


async def probe(lag: Figures) -> None:
    """Sleep 5 ms again and again and note how late each waking is."""
    while True:
        due = trio.current_time() + PROBE_S
        await trio.sleep_until(due)
        lag.add(trio.current_time() - due)


class Caller:
    """One call: its frames never stop, its questions and the bot's answers alternate."""

    def __init__(
        self, question: bytes, recognition: Figures, first_audio: Figures, *, flat_out: bool
    ) -> None:
        self._question = question
        self._recognition = recognition
        self._first_audio = first_audio
        self._flat_out = flat_out
        self.turns = 0

    async def run(self, speech: local.LocalSpeech, offset_s: float) -> None:
        """Call until cancelled."""
        await trio.sleep(offset_s)
        async with speech.open_transcriber() as transcriber:
            async with trio.open_nursery() as nursery:
                speaking, listening = trio.open_memory_channel[bytes](1)
                nursery.start_soon(self._stream, transcriber, listening)
                while True:
                    await self._turn(speech, transcriber, speaking)

    async def _turn(
        self,
        speech: local.LocalSpeech,
        transcriber: ports.Transcriber,
        speaking: trio.MemorySendChannel[bytes],
    ) -> None:
        if self._flat_out:
            await transcriber.send(self._question)
        else:
            await speaking.send(self._question)
            await trio.sleep(len(self._question) / audio.BYTES_PER_S)
        transcriber.speech_started(len(self._question) // audio.BYTES_PER_MS)
        began = trio.current_time()
        await transcriber.finalize()
        await transcriber.receive()
        self._recognition.add(trio.current_time() - began)

        playout_end = trio.current_time()
        for sentence in ANSWERS:
            began, first = trio.current_time(), True
            async with speech.open_speech(sentence) as chunks:
                async for chunk in chunks:
                    if first:
                        self._first_audio.add(trio.current_time() - began)
                        first = False
                    playout_end += len(chunk) / audio.BYTES_PER_S
        self.turns += 1
        if not self._flat_out:
            await trio.sleep_until(playout_end)

    async def _stream(
        self, transcriber: ports.Transcriber, listening: trio.MemoryReceiveChannel[bytes]
    ) -> None:
        """Send a frame every 20 ms: what there is to say, else silence."""
        said = b""
        due = trio.current_time()
        while True:
            if not said:
                try:
                    said = listening.receive_nowait()
                except trio.WouldBlock:
                    said = audio.silence(audio.FRAME_MS)
            await transcriber.send(said[: audio.FRAME_BYTES])
            said = said[audio.FRAME_BYTES :]
            due += audio.FRAME_MS / 1_000
            await trio.sleep_until(due)


async def measure(callers: int, seconds: float, voice: str, *, flat_out: bool) -> None:
    """Print the figures of one run."""
    began = trio.current_time()
    async with local.open_local_speech("espeak" if voice == "espeak" else "auto") as speech:
        print(f"{speech.voice}, loaded in {trio.current_time() - began:.2f} s")
        idle, busy = Figures("loop lag idle, ms"), Figures("loop lag busy, ms")
        recognition = Figures("finalize to words, ms")
        first_audio = Figures("sentence to first audio, ms")
        with trio.move_on_after(IDLE_S):
            await probe(idle)
        async with speech.open_speech(QUESTION) as chunks:
            question = b"".join([chunk async for chunk in chunks])
        calls = [
            Caller(question, recognition, first_audio, flat_out=flat_out) for _ in range(callers)
        ]
        cpu = os.times()
        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(probe, busy)
                for i, call in enumerate(calls):
                    # Not in step: calls do not begin at the same moment.
                    nursery.start_soon(call.run, speech, 0.0 if flat_out else i * 0.7)
        used = os.times()
        service_s = used.user + used.system - cpu.user - cpu.system
        print(idle, busy, recognition, first_audio, sep="\n")
        print(f"turns of each caller: {[call.turns for call in calls]}")
        print(f"CPU of the service {service_s:.2f} s in {seconds:.0f} s, load {os.getloadavg()}")


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--callers", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--voice", choices=("auto", "espeak"), default="auto")
    parser.add_argument("--flat-out", action="store_true")
    options = parser.parse_args()
    trio.run(
        lambda: measure(options.callers, options.seconds, options.voice, flat_out=options.flat_out)
    )


if __name__ == "__main__":
    main()
