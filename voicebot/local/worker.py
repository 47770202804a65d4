"""The process that computes the embedded speech: `python -m voicebot.local.worker piper`.

Apart from the service, so that recognition and synthesis never hold its loop, and so that
the GPL parts stay out of it. Two threads compute, one listening and one speaking, over one
queue each; the main thread reads requests. It lives exactly as long as its standard input is
open: signals meant for the service (Ctrl-C, a supervisor's SIGTERM to the whole group) do
not end it, because calls in progress still need it while the service drains.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from voicebot import audio
from voicebot.errors import MissingPart
from voicebot.local.wire import Decoder, Kind, Message

_NICE: Final = 10  # the loop of the service goes first; 5 leaves a p99 lag of 8 ms, 10 of 5 ms
_LISTEN_THREADS: Final = 1  # a second one gains 6 %
_SPEAK_THREADS: Final = 1  # a second one starts 35 % sooner, and leaves the loop no core
_AUDIO_BYTES: Final = audio.BYTES_PER_S // 2  # 0.5 s in a message: little work per loop step
_READ_BYTES: Final = 65_536  # what a pipe of Linux holds


@dataclass(eq=False, slots=True)
class Job:
    """One request that is waiting or being computed."""

    request: int
    body: bytes
    pieces: list[str] | None = None  # still to be spoken; not split yet
    cancelled: bool = False
    due: float = field(default_factory=time.monotonic)  # when its caller runs out of audio


class Queue:
    """Jobs of one thread; the next one is that whose caller runs out of audio first.

    So a caller who waits for a first word is not kept behind another caller's long sentence,
    and a long sentence is not kept behind first words for ever.
    """

    def __init__(self) -> None:
        self._jobs: list[Job] = []
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, job: Job) -> None:
        """Queue a job."""
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()

    def next(self) -> Job:
        """Wait for the next job; it stays queued until `remove`."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs)
            return min(self._jobs, key=lambda job: job.due)

    def remove(self, job: Job) -> None:
        """Take a finished job out, if `cancel` has not."""
        with self._changed:
            if job in self._jobs:
                self._jobs.remove(job)

    def cancel(self, request: int) -> None:
        """Forget a request: waiting, it never starts; running, its output is thrown away."""
        with self._changed:
            for job in self._jobs:
                job.cancelled |= job.request == request
            self._jobs = [job for job in self._jobs if not job.cancelled]


class Outlet:
    """Standard output, for one thread at a time."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def write(self, message: Message) -> None:
        """Write all of a message; blocks while the service does not read."""
        content = memoryview(message.encode())
        with self._lock:
            while content:
                content = content[os.write(self._descriptor, content) :]


def serve(queue: Queue, outlet: Outlet, compute: Callable[[Job], Iterator[Message]]) -> None:
    """Compute job after job, for ever; a job that fails is answered and forgotten."""
    while True:
        job = queue.next()
        finished = False
        try:
            for message in compute(job):
                finished |= message.kind in {Kind.TEXT, Kind.DONE}
                if not job.cancelled:
                    outlet.write(message)
        except Exception as exc:
            finished = True
            outlet.write(Message(Kind.FAILED, job.request, f"{type(exc).__name__}: {exc}".encode()))
        if finished:
            queue.remove(job)


def main(voice_name: str) -> None:
    """Load everything, say so, and serve until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.nice(_NICE)
    # Whatever a library prints must not end up between the messages.
    outlet = Outlet(os.dup(sys.stdout.fileno()))
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    # Read by numpy's and CTranslate2's own thread pools when they are imported below.
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    began = time.monotonic()
    try:
        listen, speak = _load(voice_name)
    except (MissingPart, ImportError) as exc:
        outlet.write(Message(Kind.MISSING, body=str(exc).encode()))
        return
    to_hear, to_say = Queue(), Queue()
    for name, queue, compute in (("listen", to_hear, listen), ("speak", to_say, speak)):
        threading.Thread(
            target=serve, args=(queue, outlet, compute), name=name, daemon=True
        ).start()
    ready = {"voice": voice_name, "load_s": round(time.monotonic() - began, 2)}
    outlet.write(Message(Kind.READY, body=json.dumps(ready).encode()))

    decoder = Decoder()
    while received := os.read(sys.stdin.fileno(), _READ_BYTES):
        for message in decoder.push(received):
            match message.kind:
                case Kind.TRANSCRIBE:
                    to_hear.add(Job(message.request, message.body))
                case Kind.SPEAK:
                    to_say.add(Job(message.request, message.body))
                case Kind.CANCEL:
                    to_hear.cancel(message.request)
                    to_say.cancel(message.request)
                case _:
                    raise AssertionError(message.kind)


Compute = Callable[[Job], Iterator[Message]]


def _load(voice_name: str) -> tuple[Compute, Compute]:
    """Load recogniser and voice, run each once, and return what computes their jobs.

    Raises:
        MissingPart: a package or its weights are absent or not the published ones.
    """
    # Here and not above, because numpy's threads are limited before it is imported.
    from voicebot.local import voice as voices
    from voicebot.local import whisper

    recognizer = whisper.Recognizer(_LISTEN_THREADS)
    voice = voices.open_voice(voice_name, _SPEAK_THREADS)
    # The first run allocates; a caller should not wait for that.
    for text in ("Hello.", "This sentence is about as long as the bot's sentences are."):
        recognizer.transcribe(voice.speak(text))

    def listen(job: Job) -> Iterator[Message]:
        yield Message(Kind.TEXT, job.request, recognizer.transcribe(job.body).encode())

    def speak(job: Job) -> Iterator[Message]:
        if job.pieces is None:
            job.pieces = voices.split(job.body.decode())
        speech = voice.speak(job.pieces.pop(0)) if job.pieces else b""
        job.due += len(speech) / audio.BYTES_PER_S
        for start in range(0, len(speech), _AUDIO_BYTES):
            yield Message(Kind.AUDIO, job.request, speech[start : start + _AUDIO_BYTES])
        if not job.pieces:
            yield Message(Kind.DONE, job.request)

    return listen, speak


if __name__ == "__main__":
    main(sys.argv[1])
    # The threads may be deep in a computation that nobody waits for any more.
    os._exit(0)
