"""Scripted doubles of the ports, on Trio's clock. They share no code with the ledger.

`FakeTwilio` plays what it is sent in real (virtual) time, echoes marks when they are reached
and on clear, and speaks when told to; `heard` is the truth about what the caller heard. The
fake synthesiser writes each character as `CHAR` bytes of its own value, so that audio can be
read back as text.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from voicebot import twilio
from voicebot.errors import ProviderError, ReplyCut, SocketClosed
from voicebot.floor import Bell
from voicebot.patience import Endpointing
from voicebot.plan import CallPlan, Timeouts
from voicebot.ports import Final, Message, Ports, Tool, ToolCall, Transcript

FRAME_S = 0.020
CHAR = 400  # bytes of audio per character: 50 ms
VOICE = bytes([0x10]) * 160  # loud
QUIET = bytes([0xFF]) * 160


def code(char: str) -> int:
    """Return a loud mu-law byte for a character."""
    return ord(char) & 0x1F


def read_back(audio: bytes) -> str:
    """Return the characters that fake audio speaks, by their codes; spaces are `@`."""
    return "".join(chr(0x40 | audio[i + CHAR // 2]) for i in range(0, len(audio) - CHAR // 2, CHAR))


class FakeTwilio:
    """A media socket with a caller behind it."""

    def __init__(
        self,
        *,
        voice: Sequence[tuple[float, float]] = (),
        stop_at: float = 60.0,
        close_at: float | None = None,
        silent_at: float | None = None,
        echo_marks: bool = True,
        mark_delay: float = 0.0,
        scripted: Sequence[tuple[float, twilio.Inbound]] = (),
    ) -> None:
        self.start = twilio.Start("MZ1", "CA1", "AC1")
        self.sent: list[tuple[float, twilio.Outbound]] = []
        self.played: list[tuple[float, bytes]] = []  # when each stretch began to play
        self.closed: int | None = None
        self.send_gate: Callable[[twilio.Outbound], Any] | None = None  # an awaitable per message
        self._voice = list(voice)
        self._began = trio.current_time()
        self._stop_at, self._close_at, self._silent_at = stop_at, close_at, silent_at
        self._frames = 0
        self._order = itertools.count()
        self._events: list[tuple[float, int, twilio.Inbound]] = []
        for at, event in scripted:
            heapq.heappush(self._events, (self._began + at, next(self._order), event))
        self._playing_until = self._began
        self._marks: list[tuple[float, int, str]] = []
        self._echo_marks, self._mark_delay = echo_marks, mark_delay
        self._changed = Bell()

    def now(self) -> float:
        return trio.current_time() - self._began

    def speak(self, at: float, seconds: float) -> None:
        """Let the caller speak, now or later."""
        self._voice.append((at, at + seconds))

    # MediaSocket

    async def receive(self) -> twilio.Inbound:
        while True:
            if self.closed is not None:
                raise SocketClosed(self.closed)
            now = self.now()
            # 1 ns: what has been slept for may come out a rounding short.
            if self._close_at is not None and now >= self._close_at - 1e-9:
                await trio.lowlevel.checkpoint()
                raise SocketClosed(1006)
            if now >= self._stop_at - 1e-9:
                await trio.lowlevel.checkpoint()
                return twilio.Stop()
            while self._marks and self._marks[0][0] <= trio.current_time() + 1e-9:
                _, _, name = heapq.heappop(self._marks)
                if self._echo_marks:
                    await trio.lowlevel.checkpoint()
                    return twilio.Mark(name)
            if self._events and self._events[0][0] <= trio.current_time() + 1e-9:
                await trio.lowlevel.checkpoint()
                return heapq.heappop(self._events)[2]
            frame_at = (self._frames + 1) * FRAME_S
            silent = self._silent_at is not None and frame_at > self._silent_at
            if now >= frame_at - 1e-9 and not silent:
                self._frames += 1
                await trio.lowlevel.checkpoint()
                return twilio.Media((self._frames - 1) * 20, self._frame(frame_at))
            wake = [self._stop_at + self._began]
            wake += [self._began + frame_at] if not silent else []
            wake += [self._began + self._close_at] if self._close_at is not None else []
            wake += [self._marks[0][0]] if self._marks else []
            wake += [self._events[0][0]] if self._events else []
            with trio.move_on_at(min(wake)):
                await self._changed.wait()

    def _frame(self, at: float) -> bytes:
        return VOICE if any(a < at <= b + 1e-9 for a, b in self._voice) else QUIET

    async def send(self, message: twilio.Outbound) -> None:
        if self.closed is not None:
            raise SocketClosed(self.closed)
        if self.send_gate is not None:
            await self.send_gate(message)
        await trio.lowlevel.checkpoint()
        now = trio.current_time()
        self.sent.append((self.now(), message))
        match message:
            case twilio.SendMedia(audio):
                begin = max(now, self._playing_until)
                self.played.append((begin, audio))
                self._playing_until = begin + len(audio) / 8_000
            case twilio.SendMark(name):
                due = max(now, self._playing_until) + self._mark_delay
                heapq.heappush(self._marks, (due, next(self._order), name))
            case twilio.SendClear():
                self.played = [
                    (at, audio[: max(0, int((now - at) * 8_000))]) for at, audio in self.played
                ]
                self._playing_until = now
                self._marks = [(now, order, name) for _, order, name in self._marks]
                heapq.heapify(self._marks)
        self._changed.ring()

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        await trio.lowlevel.checkpoint()
        self.closed = code
        self._changed.ring()

    # What a test asks.

    def heard(self) -> bytes:
        """Return the bot's audio that really played until now, without gaps."""
        now = trio.current_time()
        return b"".join(audio[: max(0, int((now - at) * 8_000))] for at, audio in self.played)

    def times(self, kind: type[twilio.Outbound]) -> list[float]:
        return [at for at, message in self.sent if isinstance(message, kind)]

    def media_after_clear(self, until: float) -> int:
        """Return how many media messages came after the first clear and before `until`."""
        clear = next(i for i, (_, m) in enumerate(self.sent) if isinstance(m, twilio.SendClear))
        return sum(
            at < until for at, message in self.sent[clear:] if isinstance(message, twilio.SendMedia)
        )


class FakeEars:
    """Voice where the frame is loud: up after three frames, down after ten."""

    def __init__(self, rise: int = 3, fall: int = 10) -> None:
        self._rise, self._fall = rise, fall
        self._run = 0
        self._voice = False
        self.echoes: list[float] = []

    def hear(self, frame: bytes, *, echo_dbov: float) -> bool:
        self.echoes.append(echo_dbov)
        loud = frame[0] != 0xFF
        self._run = self._run + 1 if loud is not self._voice else 0
        if self._run >= (self._fall if self._voice else self._rise):
            self._voice, self._run = loud, 0
        return self._voice

    @property
    def onset_ms(self) -> int:
        return self._rise * 20


@dataclass
class FakeEar:
    """A recogniser: each finalize gives the next text after `delay`; `pushed` comes at once."""

    texts: list[str]
    delay: float = 0.1
    audio: bytearray = field(default_factory=bytearray)
    started: list[int] = field(default_factory=list)
    opened: int = 0
    open_delay: float = 0.0
    fail_opens: int = 0
    fail_after_bytes: float = float("inf")
    hang: bool = False  # finalize is never answered

    def __post_init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[Transcript](100)

    def push(self, transcript: Transcript) -> None:
        """Let the recogniser say something of its own accord."""
        self._send.send_nowait(transcript)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[FakeEar]:
        self.opened += 1
        await trio.sleep(self.open_delay)
        if self.opened <= self.fail_opens:
            raise ProviderError("ear", "refused", retryable=True)
        yield self

    async def send(self, audio: bytes) -> None:
        await trio.lowlevel.checkpoint()
        assert audio
        self.audio += audio
        if len(self.audio) > self.fail_after_bytes:
            self.fail_after_bytes = float("inf")
            raise ProviderError("ear", "dropped", retryable=True)

    def speech_started(self, ago_ms: int) -> None:
        self.started.append(ago_ms)

    async def finalize(self) -> None:
        await trio.sleep(self.delay)
        if not self.hang:
            text = self.texts.pop(0) if self.texts else ""
            self._send.send_nowait(Final(text, finalized=True))

    async def receive(self) -> Transcript:
        return await self._receive.receive()


@dataclass
class FakeChat:
    """A language model that says the next reply word by word, and calls tools where it says so."""

    replies: Sequence[str | Sequence[str | ToolCall]]
    first: float = 0.1
    gap: float = 0.01
    requests: list[list[Message]] = field(default_factory=list)
    offered: list[list[str]] = field(default_factory=list)
    cancelled: int = 0
    fail_after: int | None = None  # words
    retryable: bool = False  # that failure
    cut: str = ""  # why every answer has no end
    stall_after: int | None = None
    slow_close: float = 0.0

    @asynccontextmanager
    async def open_reply(
        self, messages: Sequence[Message], tools: Sequence[Tool] = ()
    ) -> AsyncIterator[AsyncIterator[str | ToolCall]]:
        self.requests.append(list(messages))
        self.offered.append([tool.name for tool in tools])
        reply = self.replies[len(self.requests) - 1]
        words = self._words([reply] if isinstance(reply, str) else reply)
        try:
            await trio.sleep(self.first)
            yield words
        except trio.Cancelled:
            self.cancelled += 1
            raise
        finally:
            with trio.CancelScope(shield=True):  # a provider that is slow to let go, bounded
                await trio.sleep(self.slow_close)
            with trio.move_on_after(1, shield=True):
                await words.aclose()

    async def _words(self, parts: Sequence[str | ToolCall]) -> Any:
        words = [
            word
            for part in parts
            for word in ([part] if isinstance(part, ToolCall) else part.split(" "))
        ]
        for index, word in enumerate(words):
            if index == self.fail_after:
                raise ProviderError("chat", "broke", retryable=self.retryable)
            if index == self.stall_after:
                await trio.sleep_forever()
            last = index == len(words) - 1 and self.cut
            yield word if isinstance(word, ToolCall) or last else word + " "
            await trio.sleep(self.gap)
        if self.cut:
            raise ReplyCut("chat", self.cut)


@dataclass
class FakeTool:
    """A tool that takes its time; `tool()` is the port."""

    name: str = "book"
    takes: float = 1.0
    idempotent: bool = True
    timeout_s: float = 10.0
    deaf: float = 0.0  # goes on for so long after it was cancelled
    raises: Exception | None = None
    started: list[dict[str, Any]] = field(default_factory=list)
    finished: int = 0
    cancelled: int = 0

    def tool(self) -> Tool:
        schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
        return Tool(
            self.name, "Book it.", schema, self._run, self.idempotent, timeout_s=self.timeout_s
        )

    async def _run(self, arguments: Any) -> str:
        self.started.append(arguments)
        try:
            await trio.sleep(self.takes)
        except trio.Cancelled:
            self.cancelled += 1
            with trio.CancelScope(shield=True):  # a tool that is slow to let go, bounded
                await trio.sleep(self.deaf)
            raise
        if self.raises is not None:
            raise self.raises
        self.finished += 1
        return f"done {self.finished}"


@dataclass
class FakeVoice:
    """Text to speech in which every character lasts `CHAR` bytes."""

    first: float = 0.05
    speed: float = 10.0  # times faster than real time
    chunk: int = 1_000
    texts: list[str] = field(default_factory=list)
    cancelled: int = 0
    fail_on: int | None = None  # index of the text that fails
    fail_late: bool = False  # after its first chunk
    stall_on: int | None = None
    slow_close: float = 0.0

    @asynccontextmanager
    async def open_speech(self, text: str) -> AsyncIterator[AsyncIterator[bytes]]:
        index = len(self.texts)
        self.texts.append(text)
        chunks = self._chunks(text, index)
        try:
            await trio.sleep(self.first)
            if index == self.fail_on and not self.fail_late:
                raise ProviderError("voice", "refused")
            if index == self.stall_on:
                await trio.sleep_forever()
            yield chunks
        except trio.Cancelled:
            self.cancelled += 1
            raise
        finally:
            with trio.CancelScope(shield=True):  # a provider that is slow to let go, bounded
                await trio.sleep(self.slow_close)
            with trio.move_on_after(1, shield=True):
                await chunks.aclose()

    async def _chunks(self, text: str, index: int) -> Any:
        audio = b"".join(bytes([code(char)]) * CHAR for char in text)
        for begin in range(0, len(audio), self.chunk):
            if begin and index == self.fail_on:
                raise ProviderError("voice", "broke")
            yield audio[begin : begin + self.chunk]
            await trio.sleep(self.chunk / 8_000 / self.speed)


def plan(**changes: Any) -> CallPlan:
    """Return a plan with a short greeting; a test changes what it is about."""
    # The times in the tests are made for it.
    patient = Endpointing(hangover_ms=350, guesses=0)
    defaults = {"prompt": "be brief", "greeting": "", "endpointing": patient}
    return CallPlan(**{**defaults, "timeouts": Timeouts(idle_s=0), **changes})


def ports(
    ear: FakeEar | None = None,
    chat: FakeChat | None = None,
    voice: FakeVoice | None = None,
    **changes: Any,
) -> Ports:
    """Return ports made of fakes."""
    return Ports(
        **{
            "open_transcriber": (ear or FakeEar([])).open,
            "endpointing": "local",
            "chat": chat or FakeChat([]),
            "synthesizer": voice or FakeVoice(),
            "open_ears": FakeEars,
            **changes,
        }
    )
