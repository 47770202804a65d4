"""A phone call played to a media-stream server the way Twilio plays it.

A script of caller utterances goes in; a `Recording` of what was said, heard and sent, and when,
comes out. The call runs on Trio's clock over any `Line`: a WebSocket in real time, memory
channels under a `MockClock` in a test:

    line, server_end = open_memory_line()
    nursery.start_soon(my_bot, server_end)
    recording = await run_call(line, Script((Utterance("stop", mulaw, InterruptAfter(1_500)),)))
    assert judge(recording).passed  # voicebot/simulator/verdict.py

Not a judge (`verdict.py`), and never told anything by the server but what is on the wire.
Media leaves when its last sample has been spoken, as from a telephone, so 20 ms of every
latency are the frame itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

import trio

from voicebot.audio import FRAME_MS, SILENCE
from voicebot.errors import SocketClosed
from voicebot.simulator.caller import (
    At,
    BotVoice,
    Caller,
    InterruptAfter,
    Pressed,
    Script,
    Spoken,
    Utterance,
    WhenSilent,
)
from voicebot.simulator.twilio_end import Happening, Identity, MediaStream, Played

__all__ = [  # all that a test of a bot needs, except `verdict.judge`
    "At",
    "Ended",
    "Identity",
    "InterruptAfter",
    "Line",
    "MemoryLine",
    "Recording",
    "Script",
    "Utterance",
    "WhenSilent",
    "open_memory_line",
    "run_call",
]

CLOSE_S: Final = 2.0  # a server that does not answer the close gets no more than this


class Line(Protocol):
    """Text messages both ways; the server may wrongly send binary ones.

    Not in `ports.py`, because this is another program than the service.
    """

    async def send(self, text: str) -> None:
        """Send one message; raise SocketClosed where the server is gone."""
        ...

    async def receive(self) -> str | bytes:
        """Wait for a message; raise SocketClosed where the server is gone."""
        ...

    async def aclose(self) -> None:
        """Close. Never raises for a server that has already gone."""
        ...


@dataclass(frozen=True, slots=True)
class Ended:
    """Who ended the call: `limit` is `Script.limit_s`. `code`: the bot's close code."""

    at_ms: float
    by: Literal["caller", "bot", "limit"]
    code: int | None = None


@dataclass(frozen=True, slots=True)
class Recording:
    """One call, as the caller lived it.

    Shape: `caller` and `heard` are mu-law, 8,000 Hz, equally long, from the start of the
        stream on; `heard` is the bot as it came out of the caller's phone.
    Units: every `_ms` counts from the start of the stream.
    """

    identity: Identity
    script: Script
    caller: bytes = field(repr=False)
    heard: bytes = field(repr=False)
    spoken: tuple[Spoken, ...]
    pressed: tuple[Pressed, ...]
    happenings: tuple[Happening, ...]
    played: tuple[Played, ...]
    ended: Ended


async def run_call(line: Line, script: Script, identity: Identity | None = None) -> Recording:
    """Hold one call: connected, start, the script, stop, close.

    A server that goes away ends the call, which is an outcome and no error.

    Owns: the task that reads the line; the line is closed at the end.
    Cancellation: safe; whoever opened the line drops it.
    """
    call = _Call(line, script, identity or Identity())
    async with trio.open_nursery() as nursery:  # owns: listen; ends when the call has
        nursery.start_soon(call.listen, name="listen")
        await call.speak()
        nursery.cancel_scope.cancel(reason="call has ended")
    with trio.move_on_after(CLOSE_S):
        await line.aclose()
    return call.recording()


class _Call:
    def __init__(self, line: Line, script: Script, identity: Identity) -> None:
        self._line = line
        self._script = script
        self._stream = MediaStream(identity, trio.current_time())
        self._bot = BotVoice()
        self._caller = Caller(script, self._bot)
        self._outbox: deque[str] = deque()  # numbered when put in, so the order is fixed
        self._news = trio.Event()
        self._ended: Ended | None = None

    async def listen(self) -> None:
        """Take what the server sends the moment it comes."""
        try:
            while True:
                message = await self._line.receive()
                if self._ended is not None:
                    return
                self._outbox += self._stream.receive(message, trio.current_time())
                self._news.set()
        except SocketClosed as closed:
            self._end("bot", closed.code)

    async def speak(self) -> None:
        """Send everything there is to send: the only sender. Returns when the call has ended."""
        self._outbox += [self._stream.connected(), self._stream.start()]
        with trio.move_on_at(self._stream.started + self._script.limit_s) as limit:
            try:
                while True:
                    await self._step()
                    if self._ended is not None:
                        return
            except SocketClosed as closed:
                self._end("bot", closed.code)
        if limit.cancelled_caught:
            self._end("limit")

    async def _step(self) -> None:
        now = trio.current_time()
        self._outbox += self._stream.advance(now)
        self._bot.hear(self._stream.playout.heard)
        frame_end = self._stream.started + (self._caller.now_ms + FRAME_MS) / 1000
        if now >= frame_end:
            self._outbox += self._frame()
        while self._outbox:
            await self._line.send(self._outbox.popleft())
        deadline = self._stream.started + (self._caller.now_ms + FRAME_MS) / 1000
        if self._stream.next_echo is not None:
            deadline = min(deadline, self._stream.next_echo)
        with trio.move_on_at(deadline):
            await self._news.wait()
        self._news = trio.Event()

    def _frame(self) -> Iterator[str]:
        """Yield what the caller says in the frame that has just ended."""
        if self._caller.hangs_up:
            if self._script.send_stop:
                yield self._stream.stop()
            self._end("caller")
            return
        timestamp_ms = int(self._caller.now_ms)
        audio, keys = self._caller.next_frame()
        yield self._stream.media(audio, timestamp_ms)
        for key in keys:
            yield self._stream.dtmf(key.digit)

    def _end(self, by: Literal["caller", "bot", "limit"], code: int | None = None) -> None:
        if self._ended is None:
            now = trio.current_time()
            self._stream.end(now)
            self._ended = Ended(self._stream.at_ms(now), by, code)
            self._news.set()

    def recording(self) -> Recording:
        """Return the record of the ended call."""
        if self._ended is None:
            raise RuntimeError("the call has not ended")  # a bug here
        caller, heard = self._caller.channel, self._stream.playout.heard
        length = max(len(caller), len(heard))
        return Recording(
            identity=self._stream.identity,
            script=self._script,
            caller=bytes(caller).ljust(length, bytes([SILENCE])),
            heard=bytes(heard).ljust(length, bytes([SILENCE])),
            spoken=tuple(self._caller.spoken),
            pressed=tuple(self._caller.pressed),
            happenings=tuple(self._stream.happenings),
            played=tuple(self._stream.playout.played),
            ended=self._ended,
        )


# ------------------------------------------------------------------ a line without a network


class MemoryLine:
    """One end of a line between two tasks. Both ends have the same three methods."""

    def __init__(
        self,
        outgoing: trio.MemorySendChannel[str | bytes],
        incoming: trio.MemoryReceiveChannel[str | bytes],
    ) -> None:
        self._outgoing = outgoing
        self._incoming = incoming

    async def send(self, text: str | bytes) -> None:
        """Hand over one message; the server's end may also send binary ones, to be told off."""
        try:
            await self._outgoing.send(text)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise SocketClosed(1000) from exc

    async def receive(self) -> str | bytes:
        """Wait for a message."""
        try:
            return await self._incoming.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError) as exc:
            raise SocketClosed(1000) from exc

    async def aclose(self) -> None:
        """Close both directions."""
        self._outgoing.close()
        self._incoming.close()
        await trio.lowlevel.checkpoint()


def open_memory_line() -> tuple[MemoryLine, MemoryLine]:
    """Return the caller's end and the server's end of a line.

    One message a direction may be under way, so that neither end waits for the other to look.
    """
    to_server, from_caller = trio.open_memory_channel[str | bytes](1)
    to_caller, from_server = trio.open_memory_channel[str | bytes](1)
    return MemoryLine(to_server, from_server), MemoryLine(to_caller, from_caller)
