"""hypercorn's HTTP/1.1 and WebSocket, with bounds: frames, messages, no compression, no HTTP/2.

Not here: sockets, timers, the application. What each override is for stands in `serving.py`.
"""

from __future__ import annotations

from typing import Any, Final

import h11
import trio
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol.events import StreamClosed
from hypercorn.protocol.h11 import H11Protocol, H11WSConnection
from hypercorn.protocol.ws_stream import FrameTooLargeError, WebsocketBuffer, WSStream
from wsproto.connection import ConnectionState
from wsproto.events import CloseConnection, Message, Ping
from wsproto.frame_protocol import CloseReason

from voicebot.exchange import Tasks
from voicebot.limits import Bucket

CODEC_MARGIN: Final = 2  # times what the codec takes: it is the one to name a message just too long


class Http11(H11Protocol):
    """HTTP/1.1 and WebSocket without compression, without HTTP/2, with bounded messages."""

    _websocket: WebSocket | None = None  # outlives `stream`, which goes with the application

    @property
    def cut_off(self) -> str | None:
        """Why the peer is read no further, if it is not; it has been told, and closed."""
        return None if self._websocket is None else self._websocket.cut_off

    async def handle(self, event: Event) -> None:
        if isinstance(event, RawData) and event.data and self._awaits_accept:
            await self.send(Closed())
        else:
            await super().handle(event)

    @property
    def _awaits_accept(self) -> bool:
        """Whether the peer must be silent, its upgrade not being answered yet (RFC 6455, 4.1)."""
        return isinstance(self.stream, WSStream) and not self.stream.handshake.accepted

    async def _check_protocol(self, event: h11.Request) -> None:
        """Answer an upgrade to HTTP/2, and HTTP/2 without asking, as the HTTP/1.1 they are."""

    async def _create_stream(self, request: h11.Request) -> None:
        offer = b"sec-websocket-extensions"
        if any(name == offer for name, _ in request.headers):
            request = h11.Request(
                method=request.method,
                target=request.target,
                headers=[(name, value) for name, value in request.headers if name != offer],
                http_version=request.http_version,
            )
        await super()._create_stream(request)
        if isinstance(self.stream, WebSocket):
            self._websocket = self.stream
        if (
            isinstance(self.connection, H11WSConnection)
            and self._awaits_accept
            and self.connection.buffer
        ):
            await self.send(Closed())


class WebSocket(WSStream):
    """Counts each frame before anything is done for it, and measures each message.

    hypercorn answers every ping, and joins any number of fragments, empty ones too, unseen by
    the application. Who is cut off has been told why, and is read no further.
    """

    task_group: Tasks

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cut_off: str | None = None
        limits = self.task_group.admission.limits
        self._frames = Bucket(limits.messages_per_s, limits.burst_s)
        self._bytes = Bucket(limits.bytes_per_s, limits.burst_s)
        largest = min(self.config.websocket_max_message_size, CODEC_MARGIN * limits.message_chars)
        self.buffer = _BoundedBuffer(largest)

    async def _handle_events(self) -> None:
        for event in self.connection.events():
            now = trio.current_time()
            if not self._frames.take(now):
                await self._cut_off("too_many_messages", CloseReason.POLICY_VIOLATION)
                return
            if isinstance(event, Message):
                if not self._bytes.take(now, len(event.data)):
                    await self._cut_off("too_many_bytes", CloseReason.POLICY_VIOLATION)
                    return
                try:
                    self.buffer.extend(event)
                except FrameTooLargeError:
                    await self._cut_off("oversized_message", CloseReason.MESSAGE_TOO_BIG)
                    return
                if event.message_finished:
                    await self.app_put(self.buffer.to_message())  # type: ignore[misc]  # set by now
                    self.buffer.clear()
            elif isinstance(event, Ping):
                await self._send_wsproto_event(event.response())
            elif isinstance(event, CloseConnection):
                if self.connection.state == ConnectionState.REMOTE_CLOSING:
                    await self._send_wsproto_event(event.response())
                await self.send(StreamClosed(stream_id=self.stream_id))

    async def _cut_off(self, why: str, code: CloseReason) -> None:
        self.cut_off = why
        await self._send_wsproto_event(CloseConnection(code=code))
        assert self.app_put is not None  # there is a frame, so there is an application
        await self.app_put({"type": "websocket.disconnect", "code": code.value})


class _BoundedBuffer(WebsocketBuffer):
    """Measures before it stores; hypercorn stores first."""

    def extend(self, event: Message[Any]) -> None:
        if self.length + len(event.data) > self.max_length:
            raise FrameTooLargeError
        super().extend(event)
