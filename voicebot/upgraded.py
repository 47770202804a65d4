"""An application's WebSocket behind its upgrade: read from the socket, and written, as ASGI has it.

hypercorn's own way for a message leads through h11, wsproto, two of its classes, a queue and
another task. Here the application's `receive` reads the socket itself, so that what it does not
ask for stays there, and TCP slows the peer. So pings and a close are seen by who receives; whoever
serves an application that only sends must not give it this.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio

from voicebot.frames import (
    ABNORMAL,
    Close,
    Frames,
    Ping,
    Violation,
    binary_frame,
    close_frame,
    pong_frame,
    text_frame,
)

logger = logging.getLogger("voicebot.serving")  # for who reads the log it is one server

MAX_RECV: Final = 65_536  # as hypercorn reads
READ_ON_S: Final = 0.4  # a round trip; as long as a call waits for the answer to its own close
READ_ON_TIMES: Final = 64  # 4 MB: more than is on its way, and cheap


class PeerGone(OSError):
    """What a send raises once the peer has gone, as ASGI 2.4 has it."""


class Upgraded:
    """One WebSocket. `waits_since`: since when its application waits for the peer, if it does.

    `write` sends whole frames, in the order in which it is called, and says whether it could. Where
    it could not, `stream` ends soon. `ended` is set when the application has.
    """

    def __init__(
        self,
        stream: trio.abc.ReceiveStream,
        write: Callable[[bytes], Awaitable[bool]],
        frames: Frames,
        peer: str,
    ) -> None:
        self._stream, self._write, self._frames, self._peer = stream, write, frames, peer
        self._disconnect: dict[str, Any] | None = None
        self._closed = False  # a close was sent
        self._unwritable = False
        self.waits_since: float | None = None
        self.ended = trio.Event()

    async def receive(self) -> dict[str, Any]:
        """Return the next message, or the disconnect, from then on.

        Cancellation: at any point; nothing that was received is lost.
        """
        fresh = False  # whether this call has read, which lets other tasks run
        while self._disconnect is None:
            try:
                message = self._frames.next(trio.current_time())
            except Violation as exc:
                logger.warning(exc.kind, extra={"peer": self._peer})
                await self._end(exc.code, answer=True)
                await self._read_on()
                continue
            if isinstance(message, str):
                if not fresh:
                    await trio.lowlevel.checkpoint()
                return {"type": "websocket.receive", "text": message}
            if message is None:
                fresh = True
                await self._read()
            elif isinstance(message, Ping):
                await self._write(pong_frame(message.payload))
            elif isinstance(message, Close):
                await self._end(message.code, answer=True)
            else:
                return {"type": "websocket.receive", "bytes": message}
        await trio.lowlevel.checkpoint()
        return self._disconnect

    async def _read(self) -> None:
        self.waits_since = trio.current_time()
        try:
            data: bytes | bytearray = await self._stream.receive_some(MAX_RECV)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            data = b""
        finally:
            self.waits_since = None
        if data:
            self._frames.feed(data)
        else:
            await self._end(ABNORMAL, answer=False)

    async def _read_on(self) -> None:
        """Take for a moment what is still on its way, until the peer closes.

        To close on it would be a reset, which might overtake our close and its reason.
        """
        with trio.move_on_after(READ_ON_S):
            try:
                for _ in range(READ_ON_TIMES):
                    if not await self._stream.receive_some(MAX_RECV):
                        return
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return

    async def send(self, message: dict[str, Any]) -> None:
        """Send a message, or a close.

        The first that cannot be written is dropped, for what the peer said before it went is still
        to be received, a `stop` perhaps, and behind that the disconnect.

        Raises:
            PeerGone: the peer has, or was told to go.
        """
        if self._disconnect is not None or self._unwritable:
            await trio.lowlevel.checkpoint()
            raise PeerGone
        if message["type"] == "websocket.close":
            self._closed = True
            frame = close_frame(message.get("code") or 1000, message.get("reason") or "")
        elif (text := message.get("text")) is not None:
            frame = text_frame(text)
        else:
            frame = binary_frame(message["bytes"])
        self._unwritable = not await self._write(frame)

    async def end(self) -> None:
        """Say that the application has ended; one that has not closed has failed."""
        if self._disconnect is None:
            await self._end(1011, answer=True)
        self.ended.set()

    async def _end(self, code: int, *, answer: bool) -> None:
        """Note the end, and say it where that has not been done. `code` is the disconnect's."""
        if self._disconnect is None:
            self._disconnect = {"type": "websocket.disconnect", "code": code}
        if answer and not self._closed:
            self._closed = True
            await self._write(close_frame(code))
