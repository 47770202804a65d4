"""The line between the simulator and a server, and one between two tasks without a network."""

from __future__ import annotations

from typing import Protocol

import trio

from voicebot.errors import SocketClosed


class Line(Protocol):
    """Text messages both ways; the server may wrongly send binary ones.

    Not in `ports.py`, because this is another program than the service.
    """

    async def send(self, text: str) -> None:
        """Send one message; raise SocketClosed where the server is gone."""
        ...

    async def receive(self) -> str | bytes:
        """Wait for a message; raise SocketClosed where the server is gone.

        Cancellation: safe; no message is lost.
        """
        ...

    async def aclose(self) -> None:
        """Close. Never raises for a server that has already gone."""
        ...


class MemoryLine:
    """One end of a line between two tasks. Both ends have the same three methods.

    As over TCP, an end that is not read makes the other's `send` wait.
    """

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
