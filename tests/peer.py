"""A WebSocket client for tests: well-behaved unless told otherwise, bare bytes within reach.

Not trio-websocket, which keeps its socket open when the server closes first, and these tests
count file descriptors.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import trio
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Message,
    RejectConnection,
    Request,
)
from wsproto.extensions import Extension


class Gone(Exception):
    """The server has ended the WebSocket. `code` is 1006 where it sent none."""

    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__(code)


class Refused(Exception):
    """The server did not take the upgrade."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(status)


class Peer:
    """One WebSocket. `stream` is the bare connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.extensions: Sequence[Extension] = ()
        self._websocket = WSConnection(ConnectionType.CLIENT)
        self._parts: list[str] = []
        self._sending = trio.Lock()  # a close may be answered while another task sends

    async def upgrade(
        self,
        path: str,
        extensions: Sequence[Extension] = (),
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        request = Request(
            host="localhost", target=path, extensions=extensions, extra_headers=list(headers)
        )
        await self._send(request)
        event = await self._event()
        if isinstance(event, RejectConnection):
            raise Refused(event.status_code)
        assert isinstance(event, AcceptConnection)
        assert event.subprotocol is None
        self.extensions = event.extensions

    async def send(self, message: str | bytes) -> None:
        event = BytesMessage(data=message) if isinstance(message, bytes) else Message(data=message)
        await self._send(event)

    async def receive(self) -> str:
        """Return the next text message.

        Raises:
            Gone: there is none; a close has been answered.
        """
        while True:
            event = await self._event()
            if isinstance(event, CloseConnection):
                if event.code != 1006 and self._websocket.state is ConnectionState.REMOTE_CLOSING:
                    await self._send(event.response())
                raise Gone(event.code)
            assert isinstance(event, Message)
            self._parts.append(str(event.data))
            if event.message_finished:
                message = "".join(self._parts)
                self._parts.clear()
                return message

    async def say_close(self, code: int = 1000) -> None:
        """Say that this side closes; the answer is for `receive`."""
        await self._send(CloseConnection(code=code))

    async def close(self) -> None:
        """Close as the RFC has it: say so, wait for the answer."""
        await self.say_close()
        while await self.stream.receive_some():
            pass

    async def reset(self) -> None:
        """End with RST, as a peer that crashes."""
        option = struct.pack("ii", 1, 0)
        self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)
        await self.stream.aclose()

    async def _send(self, event: Event) -> None:
        async with self._sending:
            await self.stream.send_all(self._websocket.send(event))

    async def _event(self) -> Event:
        while True:
            await trio.lowlevel.checkpoint()
            for event in self._websocket.events():
                return event
            try:
                data = await self.stream.receive_some()
            except trio.BrokenResourceError:
                data = b""
            self._websocket.receive_data(data or None)


@asynccontextmanager
async def open_peer(
    port: int, path: str, extensions: Sequence[Extension] = ()
) -> AsyncGenerator[Peer]:
    """Open a WebSocket to this machine; on the way out, drop it without a word.

    Raises:
        Refused: the upgrade was answered with something else.
    """
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        peer = Peer(stream)
        await peer.upgrade(path, extensions)
        yield peer


def in_use() -> tuple[int, int]:
    """Return how many tasks and how many file descriptors there are."""
    return trio.lowlevel.current_statistics().tasks_living, len(os.listdir("/proc/self/fd"))
