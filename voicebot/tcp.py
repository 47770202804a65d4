"""TCP with fewer steps: asks the kernel first, and the loop only where it has to wait.

trio's own stream tries, waits, tries again on a read, and lets everybody else run behind each
write: right for most, and 50 times a second for each call a third of what a message costs. Plain
sockets of POSIX only; TLS is on top of it where it is used.
"""

from __future__ import annotations

import os
from typing import Final

import trio

USUAL_BYTES: Final = 65_536  # of a read
TURN_SENDS: Final = 16  # in a row without letting others run: a sender that never waits must not


class QuickStream(trio.abc.HalfCloseableStream):
    """A connected TCP socket. One task at a time may read, and one write, as of trio's streams.

    Owns: the socket.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self.socket = stream.socket
        self._sends = 0

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Wait for bytes; none is the end. Raises and is cancelled as trio's."""
        while True:
            await trio.lowlevel.wait_readable(self._descriptor())
            try:
                return os.read(self._descriptor(), max_bytes or USUAL_BYTES)
            except BlockingIOError:
                pass  # another has read it, or it was a false alarm
            except OSError as exc:
                raise trio.BrokenResourceError(str(exc)) from exc

    def send_now(self, data: bytes | bytearray | memoryview) -> int:
        """Write what the kernel takes now; return how many bytes. Synchronous.

        Nothing is taken of every `TURN_SENDS`-th: who sends it with `send_all` lets others run.

        Raises:
            trio.BrokenResourceError: the peer has gone.
            trio.ClosedResourceError: this side has closed.
        """
        self._sends = (self._sends + 1) % TURN_SENDS
        if not self._sends:
            return 0
        try:
            return os.write(self._descriptor(), data)
        except BlockingIOError:
            return 0
        except OSError as exc:
            raise trio.BrokenResourceError(str(exc)) from exc

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write all. No checkpoint where the kernel takes it at once, but for every so many.

        Cancellation: some of it may have been written.
        """
        sent = self.send_now(data)
        if sent < len(data):
            await self._stream.send_all(memoryview(data)[sent:])

    async def wait_send_all_might_not_block(self) -> None:
        """See trio."""
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """See trio."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close at once."""
        await self._stream.aclose()

    def _descriptor(self) -> int:
        if (number := self.socket.fileno()) < 0:
            raise trio.ClosedResourceError("this socket was closed")
        return number
