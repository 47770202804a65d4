"""One port for the webhook and the WebSocket of a `ToyBot`, as the service has it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_server_stream

from tests.toy_bot import Habits, ToyBot
from voicebot.errors import SocketClosed

TWIML = (
    '<?xml version="1.0" encoding="UTF-8"?><Response><Connect>'
    '<Stream url="wss://bot.example/twilio/stream"><Parameter name="token" value="t-1"/></Stream>'
    "</Connect></Response>"
)
BUSY = "<Response><Say>All lines are busy.</Say><Hangup/></Response>"


class Replayed:
    """A stream whose first bytes were read already."""

    def __init__(self, stream: trio.SocketStream, first: bytes) -> None:
        self.stream = stream
        self.first = first

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self.first:
            await trio.lowlevel.checkpoint()
            first, self.first = self.first, b""
            return first
        return await self.stream.receive_some(max_bytes)

    async def send_all(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def aclose(self) -> None:
        await self.stream.aclose()


class SocketEnd:
    """The server's end of a line over trio-websocket."""

    def __init__(self, socket: WebSocketConnection) -> None:
        self.socket = socket

    async def send(self, text: str | bytes) -> None:
        try:
            await self.socket.send_message(text)
        except ConnectionClosed as exc:
            raise SocketClosed from exc

    async def receive(self) -> str | bytes:
        try:
            return await self.socket.get_message()
        except ConnectionClosed as exc:
            raise SocketClosed from exc

    async def aclose(self) -> None:
        await self.socket.aclose()


class ToyServer:
    """One port for webhook and WebSocket, as the service has it."""

    def __init__(self, habits: Habits, twiml: str = TWIML, status: int = 200) -> None:
        self.habits = habits
        self.twiml = twiml
        self.status = status
        self.requests: list[tuple[str, dict[str, str], str]] = []  # line, headers, body
        self.upgrades = True

    async def serve(self, stream: trio.SocketStream) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += await stream.receive_some()
        text, _, body = head.partition(b"\r\n\r\n")
        line, *rest = text.decode().split("\r\n")
        headers = {n.lower(): v for n, v in (header.split(": ", 1) for header in rest)}
        while len(body) < int(headers.get("content-length", "0")):
            body += await stream.receive_some()
        self.requests.append((line, headers, body.decode()))
        if line.startswith("POST"):
            answer = self.twiml.encode()
            await stream.send_all(
                f"HTTP/1.1 {self.status} X\r\nContent-Type: text/xml\r\nConnection: close\r\n"
                f"Content-Length: {len(answer)}\r\n\r\n".encode()
                + answer
            )
            await stream.aclose()
            return
        async with trio.open_nursery() as nursery:
            replayed: Any = Replayed(stream, head)
            request = await wrap_server_stream(nursery, replayed)
            if self.upgrades:
                await ToyBot(SocketEnd(await request.accept()), self.habits).run()
            else:
                await request.reject(403)
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def serving(server: ToyServer) -> AsyncGenerator[str]:
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, server.serve, 0, host="127.0.0.1"))
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()
