"""The server's end of a WebSocket after an upgrade, on wsproto.

Whole messages in and out. No compression is ever agreed to. Two tasks may send.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Final

import h11
import trio
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Message,
    Ping,
    TextMessage,
)
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import RemoteProtocolError

MESSAGE_BYTES: Final = 1024 * 1024  # trio-websocket's own default
CLOSE_S: Final = 1.0  # a peer that does not answer a close within this is dropped
READ_BYTES: Final = 64 * 1024

NO_CLOSE: Final = 1006  # RFC 6455 7.1.5: the connection went away without a close frame


class BadUpgrade(Exception):
    """The request is no proper WebSocket upgrade."""


class WebSocket:
    """One open WebSocket. `close_code` is what the peer closed with, or 1006."""

    def __init__(
        self, stream: trio.SocketStream, ws: WSConnection, drip_bytes: int | None, drip_s: float
    ) -> None:
        self._stream = stream
        self._ws = ws
        self._drip_bytes = drip_bytes
        self._drip_s = drip_s
        self._sending = trio.Lock()
        self._events: deque[Event] = deque()
        self._parts: list[Any] = []  # all bytes or all str, as the frames of one message are
        self._size = 0
        self.close_code: int | None = None

    @property
    def closed(self) -> bool:
        """Whether both sides have sent their close frame."""
        return self._ws.state is ConnectionState.CLOSED and not self.gone

    @property
    def gone(self) -> bool:
        """Whether the peer went away without a close frame."""
        return self.close_code == NO_CLOSE

    async def receive(self) -> bytes | str | None:
        """Return the next message, None when the peer has closed or gone.

        Cancellation: safe.
        """
        while True:
            while self._events:
                message = await self._take(self._events.popleft())
                if message is not None:
                    return message
            if self.close_code is not None:
                return None
            await self._read()

    async def send(self, message: str | bytes) -> None:
        """Send a text or a binary message; nothing, once either side has begun to close.

        Raises:
            trio.BrokenResourceError: the peer is gone.

        Cancellation: the message may be half written; drop the connection.
        """
        if isinstance(message, str):
            await self._send(TextMessage(data=message))
        else:
            await self._send(BytesMessage(data=message))

    async def send_raw(self, data: bytes) -> None:
        """Send bytes that are no frame. As `send`."""
        async with self._sending:
            await self._stream.send_all(data)

    async def close(self, code: int, reason: str = "") -> None:
        """Close, and give the peer a moment to answer. Bounded.

        1005 sends a close frame without a code.
        """
        # wsproto knows this one by identity, and would send 1000 for the number.
        known = CloseReason.NO_STATUS_RCVD if code == CloseReason.NO_STATUS_RCVD else code
        await self._send(CloseConnection(code=known, reason=reason))
        with trio.move_on_after(CLOSE_S):
            while await self.receive() is not None:
                pass  # what the peer sent before it saw the close

    async def _send(self, event: Event) -> None:
        async with self._sending:
            # Framed under the lock: a frame counted by wsproto is a frame on the wire.
            closing = isinstance(event, CloseConnection)
            if self._ws.state is ConnectionState.OPEN or (
                closing and self._ws.state is ConnectionState.REMOTE_CLOSING
            ):
                frame = self._ws.send(event)
                size = self._drip_bytes or len(frame)
                for at in range(0, len(frame), size):
                    await self._stream.send_all(frame[at : at + size])
                    if self._drip_bytes is not None:
                        await trio.sleep(self._drip_s)

    async def _read(self) -> None:
        try:
            data = await self._stream.receive_some(READ_BYTES)
        except trio.BrokenResourceError:
            data = b""
        if data:
            self.feed(data)
        else:
            self.close_code = NO_CLOSE

    def feed(self, data: bytes) -> None:
        """Take bytes that were read from the connection."""
        self._ws.receive_data(data)
        self._events.extend(self._ws.events())

    async def _take(self, event: Event) -> bytes | str | None:
        match event:
            case Message():
                return await self._assemble(event)
            case Ping():
                await self._respond(event.response())
            case CloseConnection():
                self.close_code = int(event.code)
                # Still open: wsproto found a broken frame and says how to close.
                remote = self._ws.state is ConnectionState.REMOTE_CLOSING
                await self._respond(event.response() if remote else event)
        return None

    async def _respond(self, event: Event) -> None:
        try:
            await self._send(event)
        except trio.BrokenResourceError:
            self.close_code = NO_CLOSE  # the reader learns of it as it learns of an end

    async def _assemble(self, event: Message[Any]) -> bytes | str | None:
        self._parts.append(event.data)
        self._size += len(event.data)
        if self._size > MESSAGE_BYTES:
            await self._respond(CloseConnection(code=1009, reason="message too big"))
            self.close_code = NO_CLOSE
            return None
        if not event.message_finished:
            return None
        whole: bytes | str = type(event.data)().join(self._parts)
        self._parts.clear()
        self._size = 0
        return whole


async def accept(
    stream: trio.SocketStream,
    request: h11.Request,
    headers: Sequence[tuple[str, str]],
    early: bytes,
    drip_bytes: int | None = None,
    drip_s: float = 0.0,
) -> WebSocket:
    """Answer an upgrade request with 101.

    Args:
        headers: sent with the 101.
        early: bytes that came right behind the request.
        drip_bytes: of a frame at a time,
        drip_s: and so long before the next. Closing takes as long, and has no bound then.

    Raises:
        BadUpgrade: nothing was sent.
    """
    ws = WSConnection(ConnectionType.SERVER)
    extra = [(name.encode(), value.encode()) for name, value in headers]
    try:
        ws.initiate_upgrade_connection(list(request.headers), request.target)
        for _ in ws.events():
            pass  # the request itself, which the caller has judged already
        switch = ws.send(AcceptConnection(extra_headers=extra))
    except (RemoteProtocolError, UnicodeDecodeError) as exc:  # the latter: bytes beyond ASCII
        raise BadUpgrade(str(exc)) from exc
    await stream.send_all(switch)
    websocket = WebSocket(stream, ws, drip_bytes, drip_s)
    if early:
        websocket.feed(early)
    return websocket
