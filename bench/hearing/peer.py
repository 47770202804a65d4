"""Our ears beside webrtcvad alone and Pipecat's analyzer: the same lines, the same judge.

Pipecat runs in a process of its own (`peer_worker.py`), in an environment of its own that is made
where it is missing. Its rise is the frame with which its analyzer says "speaking": that is when it
tells its pipeline, which then stops the bot. The rest of its pipeline is not here, nor is ours.
"""

from __future__ import annotations

import base64
import json
import os
import random
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from bench.hearing.ears import (
    Edge,
    Tally,
    edges,
    false_triggers,
    judge,
    mixtures,
    noises,
    sentences,
    short_words,
)
from bench.hearing.sounds import RATE, Part, Samples, frames, non_speech, pink, to_level
from bench.peer_environment import VENV, peer_python
from voicebot import audio
from voicebot.hearing import Hearing
from voicebot.vad import OpenEars

WORKER: Final = Path(__file__).with_name("peer_worker.py")
ROUNDS: Final = 5  # of the CPU, in turn, so that a busy second does not fall on one only

Params = dict[str, float]
PARAMS: Final[dict[str, Params]] = {
    "Pipecat": {},  # as its documentation has it
    # For who wants the bot silent soon, chosen on "tuning": one answer of the model is enough (32
    # ms), at Silero's own threshold instead of 0.7, and not after the volume, which is smoothed.
    "Pipecat, tuned": {"confidence": 0.5, "start_secs": 0.032, "min_volume": 0.0},
}


class Listener(Protocol):
    """One who is compared; each line is played to ears that have heard nothing before."""

    def hear(self, line: Samples) -> list[Edge]:
        """Return when it says that the caller began and stopped."""

    def cpu_s(self, line: Samples) -> float:
        """Return the CPU of hearing the line, of all threads, in seconds."""


class Ours:
    """Ears of ours."""

    def __init__(self, open_ears: OpenEars) -> None:
        self._open = open_ears

    def hear(self, line: Samples) -> list[Edge]:
        """See `Listener`."""
        return list(edges(self._open(), line))

    def cpu_s(self, line: Samples) -> float:
        """See `Listener`."""
        ears, heard = self._open(), frames(line)
        start = time.process_time()
        for frame in heard:
            ears.hear(frame, echo_dbov=-20.0)  # the bot speaks: nothing is left out
        return time.process_time() - start


class Worker:
    """The process in which Pipecat is.

    Raises:
        SystemExit: from every method: the process ended, for a reason that it printed.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        hello = self._read()
        self.packages: dict[str, str] = hello["packages"]
        self.defaults: Params = hello["defaults"]

    def ask(self, params: Params, line: Samples) -> Any:
        """Return the answer of `peer_worker.py` about a line, which is sent as our ears get it."""
        pcm = audio.decode(b"".join(frames(line)))
        task = {"params": params, "pcm": base64.b64encode(pcm).decode()}
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(task) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # then there is nothing to read
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{WORKER.name} ended, see above; if {VENV} is not intact, remove it")
        return json.loads(line)


class Pipecat:
    """Pipecat's analyzer with its parameters; those not given have its defaults."""

    def __init__(self, worker: Worker, params: Params) -> None:
        self._worker = worker
        self.params = worker.defaults | params

    def hear(self, line: Samples) -> list[Edge]:
        """See `Listener`."""
        found = []
        for number, rise in self._worker.ask(self.params, line)["changes"]:
            at_ms = (number + 1) * audio.FRAME_MS
            # What it tells its pipeline is that speech began `start_secs` ago.
            found.append(Edge(at_ms, rise, at_ms - round(1_000 * self.params["start_secs"])))
        return found

    def cpu_s(self, line: Samples) -> float:
        """See `Listener`."""
        spent: float = self._worker.ask(self.params, line)["cpu_s"]
        return spent


@contextmanager
def open_worker() -> Iterator[Worker]:
    """Start the process in its environment, which is made if need be.

    Raises:
        SystemExit: it cannot be installed.
    """
    with subprocess.Popen(
        [peer_python(), "-I", WORKER],  # isolated: neither our modules nor the user's
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"LOGURU_LEVEL": "WARNING"},  # else it logs each analyzer
    ) as process:
        yield Worker(process)  # leaving closes stdin, with which the worker ends


def print_peer(part: Part, hearing: Hearing, seed: int, count: int, minutes: float) -> None:
    """Print the tables of all listeners; the utterances are those of the table "ears"."""
    with open_worker() as worker:
        print("; ".join(f"{name} {version}" for name, version in worker.packages.items()))
        listeners: dict[str, Listener] = {
            "voicebot": Ours(OpenEars(hearing)),
            "webrtcvad alone": Ours(OpenEars(hearing, with_silero=False)),
        }
        for name, params in PARAMS.items():
            listeners[name] = pipecat = Pipecat(worker, params)
            print(f"{name}: {pipecat.params}")
        _print_onsets(listeners, part, seed, count)
        _print_false(listeners, part, seed, minutes)
        _print_cost(listeners, seed)


def _print_onsets(listeners: dict[str, Listener], part: Part, seed: int, count: int) -> None:
    rng = random.Random(seed)
    sounds = [samples for _, samples in noises(part, seed)]
    sets = {
        "sentences": sentences(part.clips)[:count],
        "short words": short_words(part.clips)[:count],
    }
    print("\n| set | ears | n | latency ms median / p95 ", end="")
    print("| missed % (95 %) | early | onset error | release |")
    print("|---|---|---|---|---|---|---|---|")
    for snr_db in (60, 20, 10, 5):
        for kind, clips in sets.items():
            tallies = {name: Tally([], [], []) for name in listeners}
            for line, onset_ms, end_ms in mixtures(clips, snr_db, sounds, rng):
                for name, listener in listeners.items():
                    judge(tallies[name], listener.hear(line), onset_ms, end_ms)
            snr = "clean" if snr_db == 60 else f"{snr_db} dB"
            for name, tally in tallies.items():
                print(tally.row(f"{kind}, {snr} | {name}"), flush=True)


def _print_false(listeners: dict[str, Listener], part: Part, seed: int, minutes: float) -> None:
    print(f"\n| not speech, false/min | minutes | {' | '.join(listeners)} |")
    print("|---" * (2 + len(listeners)) + "|")
    for sound, line in non_speech(random.Random(seed), part, minutes * 60):
        length = len(line) / RATE / 60
        counts = [false_triggers(each.hear(line)) / length for each in listeners.values()]
        row = " | ".join(f"{count:.1f}" for count in counts)
        print(f"| {sound} | {length:.1f} | {row} |", flush=True)


def _print_cost(listeners: dict[str, Listener], seed: int) -> None:
    line = to_level(pink(np.random.default_rng(seed), 60), -30)
    spent: dict[str, list[float]] = {name: [] for name in listeners}
    for _ in range(ROUNDS):
        for name, listener in listeners.items():
            spent[name].append(listener.cpu_s(line) * 1_000 / (len(line) / RATE))
    ours = statistics.median(spent["voicebot"])
    print("\n| CPU ms per call-second | rounds of a minute | min | median | max | times ours |")
    print("|---|---|---|---|---|---|")
    for name, all_ms in spent.items():
        median = statistics.median(all_ms)
        print(
            f"| {name} | {len(all_ms)} | {min(all_ms):.2f} | {median:.2f} | {max(all_ms):.2f} | "
            f"{median / ours:.1f} |"
        )
