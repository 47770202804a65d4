"""Deepgram `GET /v1/speak`: speech over a WebSocket, in the voice of `voice.py`.

Takes Speak, Flush, Clear and Close, holds the vendor's limits, and misbehaves as told. Audio
comes only for what is flushed; the vendor may begin earlier. Where the vendor's pages are silent
(what becomes of the Flushed of a flush that was cleared, how a Warning spells its fields, what an
idle connection lives to see) the conduct decides.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

import trio

from voicebot import audio
from voicebot.standins.deepgram_rules import (
    ANY,
    BOOL,
    Refusal,
    bad_payload,
    check_auth,
    check_query,
    refuse,
    request_id,
)
from voicebot.standins.http11 import KEPT, Answer, Exchange
from voicebot.standins.listen import DATA_0000, GOOD_BYE, NET_0001, Close
from voicebot.standins.script import Conduct, Conducts, Rule
from voicebot.standins.speak import CHUNK_BYTES, RATE, TEXT_CHARS
from voicebot.standins.voice import CHAR_MS, speak
from voicebot.standins.websocket import BadUpgrade, WebSocket

WINDOW_S: Final = 60.0
CHARS: Final = 2_400  # spoken in any `WINDOW_S`, by one connection
FLUSHES: Final = 20  # as for characters
LIFE_S: Final = 3_600.0
IDLE_S: Final = 60.0  # the vendor does not say; there is no KeepAlive
JOBS: Final = 64  # flushes not spoken yet; nobody can have more than the limit of a few minutes

MESSAGE_0000: Final = Close(1003, "MESSAGE-0000: Binary messages are not supported.")
DATA_0001: Final = Close(1008, "DATA-0001: The character limit per minute is exceeded.")
BIG_0000: Final = Close(1009, "BIG-0000: The text is too long.")
NET_0003: Final = Close(1011, "NET-0003: The time limit of a connection is reached.")

_ALLOWED: Final = {
    "model": r"aura(-2)?-[a-z]+-[a-z]{2}",
    "encoding": "mulaw",
    "sample_rate": "8000",
    "speed": r"0\.[7-9]\d*|1(\.[0-4]\d*|\.50*|\.)?",
    "mip_opt_out": BOOL,
    "tag": ANY,
}


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SpeakSocketConduct(Conduct):
    """How one connection is treated. Bytes are bytes of audio sent."""

    refusal: Refusal | None = None  # instead of the upgrade
    first_byte_s: float = 0.0  # from a Flush to its audio
    rate: float = RATE  # times real time; math.inf: all at once
    chunk_bytes: int = CHUNK_BYTES
    close: Close = GOOD_BYE  # with `end_after_bytes`
    chars: int = CHARS
    flushes: int = FLUSHES
    idle_s: float = IDLE_S
    life_s: float = LIFE_S
    late_chunks: int = 1  # audio that was under way when Clear came
    cleared: bool = True  # False: Clear is heeded and never answered
    flushed_of_cleared: Literal["never", "before", "after"] = "never"  # Cleared
    warning: Literal["spec", "seen"] = "spec"  # how its fields are spelt


SPEAK_SOCKET: Final = SpeakSocketConduct()


@dataclass(eq=False, slots=True)
class Speaking:
    """One accepted connection, while it lasts and afterwards."""

    exchange: Exchange
    texts: list[str] = field(default_factory=list)  # of each Flush that was taken
    controls: list[str] = field(default_factory=list)  # types of the client's messages
    sent: Counter[str] = field(default_factory=Counter)  # types of what went out; "audio" is bytes
    close_code: int | None = None  # the client's; 1006: it vanished


class SpeakSocket:
    """The endpoint: control and inspection."""

    def __init__(self, api_key: str, rule: Rule[SpeakSocketConduct]) -> None:
        self.conducts: Conducts[SpeakSocketConduct] = Conducts(rule)
        self.connections: deque[Speaking] = deque(maxlen=KEPT)
        self.connections_open = 0
        self._api_key = api_key

    async def answer(self, exchange: Exchange, answer: Answer) -> None:
        """Serve one upgrade request and the connection that comes of it."""
        conduct = self.conducts.take(exchange)
        await conduct.meet(answer)
        refusal = (
            conduct.refusal
            or check_auth(exchange, self._api_key)
            or check_query(
                exchange, _ALLOWED, required=("encoding", "sample_rate"), repeatable=("tag",)
            )
        )
        if refusal is None and not exchange.wants_websocket:
            refusal = bad_payload("Expected a WebSocket upgrade.")
        if refusal is not None:
            await refuse(exchange, answer, refusal)
            return
        try:
            socket = await answer.accept_websocket([("dg-request-id", request_id(exchange))])
        except BadUpgrade as exc:
            await refuse(exchange, answer, bad_payload(str(exc)))
            return
        speaking = Speaking(exchange)
        self.connections.append(speaking)
        self.connections_open += 1
        try:
            end = await _Stream(socket, speaking, conduct).run()
        finally:
            self.connections_open -= 1
            speaking.close_code = socket.close_code
        if end.cut:
            answer.drop(reset=end.reset)


class _End(NamedTuple):
    close: Close | None = None  # None: without a close frame
    cut: bool = False
    reset: bool = False


_GONE: Final = _End()


class _Stream:
    """One connection after the 101."""

    def __init__(self, socket: WebSocket, speaking: Speaking, conduct: SpeakSocketConduct) -> None:
        self._socket = socket
        self._speaking = speaking
        self._conduct = conduct
        self._query = dict(speaking.exchange.query)
        self._char_ms = round(CHAR_MS / float(self._query.get("speed", "1")))
        self._stop_at, self._stop_how = conduct.stop()
        self._audio_bytes = 0
        self._text = ""  # since the last Flush
        self._spoken: deque[tuple[float, int]] = deque()  # when, how many characters
        self._flushed: deque[tuple[float, int]] = deque()  # when, 1
        self._sequence = 0
        self._clears = 0
        self._owed = 0  # flushes taken and not answered
        self._waiting = trio.CancelScope()  # the wait before a chunk
        self._rest = b""  # of what is being spoken
        self._silent = False
        self._end = _GONE

    async def run(self) -> _End:
        """Serve the connection to its end, and close it unless it is gone or to be cut."""
        jobs_send, jobs_receive = trio.open_memory_channel[tuple[int, str]](JOBS)
        async with trio.open_nursery() as nursery:  # owns: speak; ends with the connection
            nursery.start_soon(self._speak, jobs_receive, nursery.cancel_scope)
            try:
                await self._send_json(self._metadata())
                self._end = await self._receive(jobs_send)
            except trio.BrokenResourceError:
                pass  # the client is gone
            except _Stopped:
                pass  # `self._end` says how
            nursery.cancel_scope.cancel(reason="connection over")
        if self._end.close is not None:
            await self._socket.close(*self._end.close)
        return self._end

    # What the client says.

    async def _receive(self, jobs: trio.MemorySendChannel[tuple[int, str]]) -> _End:
        dies_at = trio.current_time() + self._conduct.life_s
        while True:
            idle_at = trio.current_time() + self._conduct.idle_s
            message: bytes | str | None = None
            with trio.move_on_at(min(idle_at, dies_at)) as waiting:
                message = await self._socket.receive()
            if waiting.cancelled_caught:
                if trio.current_time() >= dies_at:
                    return _End(NET_0003)
                if self._owed:
                    continue  # it is speaking, and not idle
                return _End(NET_0001)
            if message is None:
                return _GONE
            if isinstance(message, bytes):
                return _End(MESSAGE_0000)
            end = await self._obey(message, jobs)
            if end is not None:
                return end

    async def _obey(self, text: str, jobs: trio.MemorySendChannel[tuple[int, str]]) -> _End | None:
        try:
            message = json.loads(text)
            kind = message["type"]
        except (ValueError, TypeError, KeyError):
            return _End(DATA_0000)
        self._speaking.controls.append(str(kind))
        match message:
            case {"type": "Speak", "text": str(said)} if set(message) == {"type", "text"}:
                return self._take(said)
            case {"type": "Flush"}:
                if not _within(self._flushed, 1, self._conduct.flushes):
                    await self._warn("EXCESSIVE_FLUSH", "Too many Flush messages.")
                    return None
                self._owed += 1
                self._speaking.texts.append(self._text)
                await jobs.send((self._clears, self._text))
                self._text = ""
            case {"type": "Clear"}:
                await self._clear()
            case {"type": "Close"}:
                return _End(GOOD_BYE)
            case _:
                return _End(DATA_0000)
        return None

    def _take(self, said: str) -> _End | None:
        if len(said) > TEXT_CHARS:
            return _End(BIG_0000)
        if not _within(self._spoken, len(said), self._conduct.chars):
            return _End(DATA_0001)
        self._text += said
        return None

    async def _clear(self) -> None:
        conduct, owed = self._conduct, self._owed
        self._clears += 1
        self._owed, self._text = 0, ""
        late, self._rest = self._rest, b""
        self._waiting.cancel(reason="cleared")
        for chunk in _chunks(late[: conduct.late_chunks * conduct.chunk_bytes], conduct):
            await self._send_audio(chunk)
        if conduct.flushed_of_cleared == "before":
            await self._send_sequence("Flushed", owed)
        if conduct.cleared:
            await self._send_sequence("Cleared")
        if conduct.flushed_of_cleared == "after":
            await self._send_sequence("Flushed", owed)

    # What it is told.

    async def _speak(
        self, jobs: trio.MemoryReceiveChannel[tuple[int, str]], connection: trio.CancelScope
    ) -> None:
        try:
            async for clears, text in jobs:
                if clears == self._clears and await self._speak_one(clears, text):
                    self._owed -= 1
                    await self._send_sequence("Flushed")
        except trio.BrokenResourceError:
            connection.cancel(reason="client gone")
        except _Stopped:
            connection.cancel(reason="stopped on purpose")

    async def _speak_one(self, clears: int, text: str) -> bool:
        """Speak one flush; return whether it was spoken to its end."""
        conduct = self._conduct
        begin, sent = trio.current_time() + conduct.first_byte_s, 0
        self._rest = speak(text, self._char_ms)
        while self._rest:
            with trio.CancelScope() as self._waiting:
                await trio.sleep_until(begin + sent / audio.BYTES_PER_S / conduct.rate)
            if clears != self._clears:
                return False
            chunk, self._rest = self._rest[: conduct.chunk_bytes], self._rest[conduct.chunk_bytes :]
            sent += len(chunk)
            await self._send_audio(chunk)
            if clears != self._clears:
                return False
        return True

    async def _send_audio(self, chunk: bytes) -> None:
        if self._silent:
            return
        room = self._stop_at - self._audio_bytes
        part = chunk if len(chunk) <= room else chunk[: int(room)]
        self._audio_bytes += len(part)
        self._speaking.sent["audio"] += len(part)
        if part:
            await self._socket.send(part)
        if self._audio_bytes < self._stop_at:
            return
        match self._stop_how:
            case "stall":
                self._silent = True
                return
            case "end":
                self._end = _End(self._conduct.close)
            case how:
                self._end = _End(cut=True, reset=how == "reset")
        raise _Stopped

    async def _send_sequence(self, kind: str, times: int = 1) -> None:
        for _ in range(times):
            await self._send_json({"type": kind, "sequence_id": self._sequence})
            self._sequence += 1

    async def _warn(self, code: str, description: str) -> None:
        names = ("code", "description")
        if self._conduct.warning == "seen":
            names = ("warn_code", "warn_msg")
        await self._send_json({"type": "Warning", names[0]: code, names[1]: description})

    async def _send_json(self, message: dict[str, Any]) -> None:
        if self._silent:
            return
        self._speaking.sent[message["type"]] += 1
        await self._socket.send(json.dumps(message))

    def _metadata(self) -> dict[str, Any]:
        return {
            "type": "Metadata",
            "request_id": request_id(self._speaking.exchange),
            "model_name": self._query.get("model", "aura-asteria-en"),
            "model_version": "2025-04-07.0",
            "model_uuid": "00000000-0000-4000-8000-617572612d32",
        }


class _Stopped(Exception):
    """The conduct ends the connection here."""


def _within(events: deque[tuple[float, int]], amount: int, limit: int) -> bool:
    """Whether so much more is within the limit of the last minute; if so it is counted."""
    now = trio.current_time()
    while events and events[0][0] <= now - WINDOW_S:
        events.popleft()
    if sum(count for _, count in events) + amount > limit:
        return False
    events.append((now, amount))
    return True


def _chunks(data: bytes, conduct: SpeakSocketConduct) -> Iterable[bytes]:
    return (data[at : at + conduct.chunk_bytes] for at in range(0, len(data), conduct.chunk_bytes))
