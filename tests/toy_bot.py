"""A bot of a few lines, good or bad on purpose, for the tests of the simulator.

Knows nothing of the service: raw JSON in and out, a tone for a voice, and loudness for ears.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from typing import Any, Protocol

import trio

from voicebot.audio import FRAME_MS, dbov, silence
from voicebot.errors import SocketClosed

CHUNK_MS = 100
LEAD_S = 0.2


class ServerEnd(Protocol):
    async def send(self, text: str | bytes) -> None: ...
    async def receive(self) -> str | bytes: ...
    async def aclose(self) -> None: ...


def tone(milliseconds: int) -> bytes:
    """Return 400 Hz at -12 dBov."""
    cycle = bytes([0xA0]) * 10 + bytes([0x20]) * 10
    return (cycle * (milliseconds * 8 // 20 + 1))[: milliseconds * 8]


def spoken(milliseconds: int, before_ms: int = 0, after_ms: int = 0) -> bytes:
    """Return an utterance with silence around it."""
    return silence(before_ms) + tone(milliseconds) + silence(after_ms)


@dataclass(frozen=True)
class Habits:
    greeting_ms: int = 3_000
    reply_ms: int = 3_000
    react_ms: int = 80  # of speech before it stops
    think_ms: int = 600  # of silence before it answers
    clears: int = 1  # per stop
    stops: bool = True  # whether it stops sending
    leftover_after_s: tuple[float, ...] = ()  # media that still comes, after the clear
    stutter_s: float = 0.0  # holes between chunks
    clears_by_itself_s: float | None = None
    greets_with: tuple[str | bytes, ...] = ()  # raw messages; {sid} is replaced
    hangs_up_s: float | None = None
    records: list[tuple[float, dict[str, Any]]] = field(default_factory=list)


class ToyBot:
    def __init__(self, line: ServerEnd, habits: Habits) -> None:
        self.line = line
        self.habits = habits
        self.sid = ""
        self.speech = trio.CancelScope()
        self.audible_until = 0.0
        self.loud_ms = 0
        self.quiet_ms = 0
        self.marks = 0

    async def run(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                await self.listen(nursery)
                nursery.cancel_scope.cancel()
        except* SocketClosed:
            pass
        await self.line.aclose()

    async def listen(self, nursery: trio.Nursery) -> None:
        while True:
            message = json.loads(await self.line.receive())
            self.habits.records.append((trio.current_time(), message))
            match message["event"]:
                case "start":
                    self.sid = message["streamSid"]
                    nursery.start_soon(self.open_call, nursery)
                case "media":
                    await self.hear(nursery, base64.b64decode(message["media"]["payload"]))
                case "stop":
                    return

    async def open_call(self, nursery: trio.Nursery) -> None:
        for raw in self.habits.greets_with:
            known = raw.replace("{sid}", self.sid) if isinstance(raw, str) else raw
            await self.line.send(known)
        if self.habits.hangs_up_s is not None:
            nursery.start_soon(self.hang_up, self.habits.hangs_up_s)
        if self.habits.clears_by_itself_s is not None:
            nursery.start_soon(self.clear_after, self.habits.clears_by_itself_s)
        await self.say(self.habits.greeting_ms)

    async def hang_up(self, seconds: float) -> None:
        await trio.sleep(seconds)
        await self.line.aclose()

    async def clear_after(self, seconds: float) -> None:
        await trio.sleep(seconds)
        self.speech.cancel()
        await self.send("clear")

    async def hear(self, nursery: trio.Nursery, frame: bytes) -> None:
        if dbov(frame) > -40:
            self.loud_ms += FRAME_MS
            self.quiet_ms = 0
        else:
            self.quiet_ms += FRAME_MS
        speaking = trio.current_time() < self.audible_until
        noticed = self.loud_ms >= self.habits.react_ms and self.quiet_ms == 0
        if self.habits.stops and speaking and noticed:
            self.speech.cancel()
            self.audible_until = 0.0
            for _ in range(self.habits.clears):
                await self.send("clear")
            for delay in self.habits.leftover_after_s:
                nursery.start_soon(self.send_late, delay)
        if self.loud_ms and self.quiet_ms >= self.habits.think_ms:
            self.loud_ms = 0
            if self.habits.reply_ms and not (speaking and self.habits.stops):
                nursery.start_soon(self.say, self.habits.reply_ms)

    async def send_late(self, delay: float) -> None:
        await trio.sleep(delay)
        await self.send_media(tone(20))

    async def say(self, milliseconds: int) -> None:
        began = max(trio.current_time(), self.audible_until)
        with trio.CancelScope() as self.speech:
            for start_ms in range(0, milliseconds, CHUNK_MS):
                due = began + start_ms / 1000 - LEAD_S
                if self.habits.stutter_s:
                    due = began + start_ms / 1000 * (1 + self.habits.stutter_s)
                await trio.sleep_until(due)
                await self.send_media(tone(min(CHUNK_MS, milliseconds - start_ms)))
                self.audible_until = began + (start_ms + CHUNK_MS) / 1000
            self.marks += 1
            await self.send("mark", mark={"name": f"said {self.marks}"})

    async def send_media(self, audio: bytes) -> None:
        await self.send("media", media={"payload": base64.b64encode(audio).decode()})

    async def send(self, event: str, **body: Any) -> None:
        await self.line.send(json.dumps({"event": event, "streamSid": self.sid, **body}))
