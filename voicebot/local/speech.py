"""Offline speech behind the ports: no key, no network, one process of its own that computes.

`open_local_speech` is opened once per service and serves all calls. Nothing here computes:
requests go down a pipe to `worker.py`, answers come back by request number, and a request
whose caller has left is withdrawn. A worker that dies fails what it was asked and is replaced;
one that dies again within half a minute is not, and every request says so.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Final, Literal

import trio

from voicebot import audio, ports
from voicebot.errors import MissingPart, ProviderError, RemoteProtocolError
from voicebot.local import weights
from voicebot.local.recording import Recording
from voicebot.local.wire import MAX_BODY, Decoder, Kind, Message

PROVIDER: Final = "local-speech"
STOP_GRACE_S: Final = 0.5  # the worker ends within 10 ms of its input; then it is killed
MIN_LIFE_S: Final = 30.0  # a worker that dies sooner would only die again

# Requests that wait for the pipe. A call has at most a few, and the pipe is read at once.
_OUTBOX: Final = 256
# Messages of one answer, each up to 0.5 s of audio: half an hour of one sentence.
_ANSWER: Final = 3_600
_LOG_LINE_BYTES: Final = 2_000  # of what the worker says on standard error

_log = logging.getLogger(__name__)


@asynccontextmanager
async def open_local_speech(voice: weights.Voice = "auto") -> AsyncGenerator[LocalSpeech]:
    """Start the worker, wait until everything is loaded, and stop it at the end.

    Raises:
        MissingPart: a package is not installed, or weights are not the published ones.
        ProviderError: the worker ended before it was ready.

    Owns: one nursery with the worker process and what reads and writes its pipes; ends with
    the block, within `STOP_GRACE_S`.
    """
    chosen = weights.choose_voice(voice)
    speech = LocalSpeech(chosen)
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            nursery.start_soon(speech._run)
            await speech._wait_loaded()
            yield speech
        except Exception as exc:
            failure = exc
        nursery.cancel_scope.cancel(reason="local speech closed")
    # Raised out here, or the nursery, which is nobody else's business, would wrap it.
    if failure is not None:
        raise failure


class LocalSpeech:
    """Speech for all calls: `ports.Synthesizer`, and `open_transcriber` for each call."""

    name: Final = PROVIDER

    def __init__(self, voice: Literal["piper", "espeak"]) -> None:
        self.voice: Final = voice
        self.ready = False  # whether a loaded worker is there
        self._loaded = trio.Event()  # or it will never be
        self._broken: MissingPart | ProviderError | None = None
        self._last_request = 0
        self._pending: dict[int, trio.MemorySendChannel[Message]] = {}
        self._outbox_send, self._outbox_receive = trio.open_memory_channel[Message](_OUTBOX)

    @asynccontextmanager
    async def open_transcriber(self) -> AsyncGenerator[ports.Transcriber]:
        """Recognise one call; implements `ports.OpenTranscriber`."""
        transcriber = LocalTranscriber(self)
        try:
            yield transcriber
        finally:
            transcriber.close()

    @asynccontextmanager
    async def open_speech(self, text: str) -> AsyncGenerator[AsyncIterator[bytes]]:
        """Speak one piece; implements `ports.Synthesizer`."""
        with self.asked(Kind.SPEAK, text.encode()) as request:
            yield _Speech(request)

    @contextmanager
    def asked(self, kind: Kind, body: bytes) -> Iterator[Request]:
        """Ask the worker; withdraw the request at the end of the block if it is not answered."""
        request = self.ask(kind, body)
        try:
            yield request
        finally:
            request.close()

    def ask(self, kind: Kind, body: bytes) -> Request:
        """Ask the worker, without waiting.

        Raises:
            ProviderError: there is no worker any more, or far too much is asked at once.
        """
        if len(body) > MAX_BODY:
            raise ProviderError(PROVIDER, f"{len(body)} bytes in one request")
        if self._broken is not None:
            raise ProviderError(PROVIDER, str(self._broken)) from self._broken
        self._last_request += 1
        number = self._last_request
        send, receive = trio.open_memory_channel[Message](_ANSWER)
        try:
            self._outbox_send.send_nowait(Message(kind, number, body))
        except trio.WouldBlock as exc:
            raise ProviderError(PROVIDER, "too many requests at once", retryable=True) from exc
        self._pending[number] = send
        return Request(receive, partial(self._withdraw, number))

    def _withdraw(self, number: int) -> None:
        if self._pending.pop(number, None) is None:
            return
        try:
            self._outbox_send.send_nowait(Message(Kind.CANCEL, number))
        except trio.WouldBlock:
            pass  # computed for nobody then, and thrown away by `_dispatch`

    async def _wait_loaded(self) -> None:
        await self._loaded.wait()
        if self._broken is not None:
            raise self._broken

    async def _run(self) -> None:
        """Keep a worker running until cancelled, or until it dies too soon."""
        while True:
            began = trio.current_time()
            error = await self._run_worker()
            lived_s = trio.current_time() - began
            if lived_s < MIN_LIFE_S or not self.ready:
                self._broken = error
            self.ready = False
            self._loaded.set()
            replaced = self._broken is None
            facts = {"error": str(error), "lived_s": round(lived_s, 1), "replaced": replaced}
            _log.error("speech_worker_died", extra=facts)
            failed = Message(Kind.FAILED, body=str(error).encode())
            for answers in self._pending.values():
                answers.send_nowait(failed)
            self._pending.clear()
            if not replaced:
                return

    async def _run_worker(self) -> MissingPart | ProviderError:
        """Run one worker process to its end and return why it ended."""
        # The same modules as here, wherever the service was started from.
        path = os.pathsep.join(filter(None, sys.path))
        start = partial(
            trio.run_process,
            [sys.executable, "-m", "voicebot.local.worker", self.voice],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            check=False,
            deliver_cancel=_stop,
            env={**os.environ, "PYTHONPATH": path},
        )
        # owns: one worker process; ends when its output ends
        async with trio.open_nursery() as nursery:
            process: trio.Process = await nursery.start(start)
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            nursery.start_soon(self._write, process.stdin)
            # owns: what the worker says of itself, which explains its end and comes last
            async with trio.open_nursery() as readers:
                readers.start_soon(_log_lines, process.stderr)
                error = await self._read(process.stdout)
                if error is not None:
                    process.kill()
            nursery.cancel_scope.cancel(reason="speech worker ended")
        return error or ProviderError(
            PROVIDER, f"the worker ended with code {process.returncode}", retryable=True
        )

    async def _write(self, stdin: trio.abc.SendStream) -> None:
        while True:
            message = await self._outbox_receive.receive()
            if message.kind is not Kind.CANCEL and message.request not in self._pending:
                continue  # withdrawn while it waited for the pipe
            try:
                await stdin.send_all(message.encode())
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return  # the worker is gone; `_read` sees its output end

    async def _read(self, stdout: trio.abc.ReceiveStream) -> MissingPart | ProviderError | None:
        decoder = Decoder()
        async for received in stdout:
            try:
                messages = decoder.push(received)
            except RemoteProtocolError as exc:
                return ProviderError(PROVIDER, str(exc), retryable=True)
            for message in messages:
                if message.kind is Kind.MISSING:
                    return MissingPart(message.body.decode())
                if message.kind is Kind.READY:
                    self.ready = True
                    _log.info("speech_worker_ready", extra=json.loads(message.body))
                    self._loaded.set()
                else:
                    self._dispatch(message)
        return None

    def _dispatch(self, message: Message) -> None:
        """Hand an answer to whoever asked; answers to withdrawn requests go nowhere."""
        last = message.kind is not Kind.AUDIO
        answers = (
            self._pending.pop(message.request, None) if last else self._pending.get(message.request)
        )
        if answers is not None:
            answers.send_nowait(message)


class Request:
    """One request to the worker and what has come back for it."""

    def __init__(
        self, answers: trio.MemoryReceiveChannel[Message], withdraw: Callable[[], None]
    ) -> None:
        self._answers = answers
        self.close = withdraw

    async def receive(self) -> Message:
        """Wait for the next message of the answer.

        Raises:
            ProviderError: the worker failed, at this request or altogether.

        Cancellation: safe; no message is lost.
        """
        message = await self._answers.receive()
        if message.kind is Kind.FAILED:
            raise ProviderError(PROVIDER, message.body.decode(), retryable=True)
        return message


class _Speech(AsyncIterator[bytes]):
    """The audio of one request, as it comes."""

    def __init__(self, request: Request) -> None:
        self._request = request

    async def __anext__(self) -> bytes:
        message = await self._request.receive()
        if message.kind is Kind.DONE:
            raise StopAsyncIteration
        return message.body


class LocalTranscriber:
    """Recognition for one call; implements `ports.Transcriber`.

    Words come when they are asked for (`finalize`), and in between only for an utterance of
    more than 28 s, which is recognised in pieces.
    """

    def __init__(self, speech: LocalSpeech) -> None:
        self._speech = speech
        self._recording = Recording()
        # What was asked and not yet received, oldest first, with all of the answer but its words;
        # no request: nobody had spoken.
        self._asked: deque[tuple[Request | None, ports.Final]] = deque()
        self._changed = trio.lowlevel.ParkingLot()

    async def send(self, audio: bytes) -> None:
        """Keep caller audio; see `ports.Transcriber`."""
        for piece in self._recording.push(audio):
            self._ask(piece, finalized=False)
        await trio.lowlevel.checkpoint()

    def speech_started(self, ago_ms: int) -> None:
        """Mark the start of speech; see `ports.Transcriber`."""
        self._recording.speech_started(ago_ms)

    async def finalize(self) -> None:
        """Recognise what was said up to now; see `ports.Transcriber`."""
        self._ask(self._recording.cut(), finalized=True)
        await trio.lowlevel.checkpoint()

    async def receive(self) -> ports.Transcript:
        """Wait for the next words; see `ports.Transcriber`."""
        await trio.lowlevel.checkpoint()
        while not self._asked:
            await self._changed.park()
        request, answer = self._asked[0]
        try:
            text = (await request.receive()).body.decode() if request is not None else ""
        except ProviderError:
            self._asked.popleft()
            raise
        self._asked.popleft()
        return replace(answer, text=text)

    def close(self) -> None:
        """Withdraw what has not been answered."""
        for request, _ in self._asked:
            if request is not None:
                request.close()

    def _ask(self, piece: bytes, *, finalized: bool) -> None:
        request = self._speech.ask(Kind.TRANSCRIBE, piece) if piece else None
        until_ms = self._recording.asked_bytes // audio.BYTES_PER_MS
        self._asked.append((request, ports.Final("", finalized=finalized, until_ms=until_ms)))
        self._changed.unpark()


async def _stop(process: trio.Process) -> None:
    """End a worker: closing its input does it at once, unless it hangs."""
    assert process.stdin is not None
    await process.stdin.aclose()
    await trio.sleep(STOP_GRACE_S)
    process.kill()


async def _log_lines(stderr: trio.abc.ReceiveStream) -> None:
    """Log what the worker says; libraries warn there, and a crash explains itself."""
    rest = b""
    async for received in stderr:
        *lines, rest = (rest + received).split(b"\n")
        rest = rest[-_LOG_LINE_BYTES:]
        for line in lines:
            text = line[:_LOG_LINE_BYTES].decode(errors="replace")
            _log.warning("speech_worker_said", extra={"line": text})
