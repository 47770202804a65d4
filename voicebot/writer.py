"""The only task of a call that sends on its media socket; outlives every turn.

What is handed over is sent in that order, and the ledger learns of it when the socket has taken
it. Nobody else can be half-way through a message when a `clear` is due.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import assert_never

import trio

from voicebot import twilio
from voicebot.errors import SocketClosed
from voicebot.playout import Cut, Epoch, Ledger
from voicebot.ports import MediaSocket, Tape
from voicebot.record import Outcome


@dataclass(frozen=True, slots=True)
class _Media:
    epoch: Epoch
    audio: bytes


@dataclass(frozen=True, slots=True)
class _Mark:
    epoch: Epoch


@dataclass(slots=True)
class _EndEpoch:
    """Request to end the open epoch behind everything handed over; then `cut` is there."""

    clear: bool  # whether Twilio must drop what it still holds
    done: trio.Event = field(default_factory=trio.Event)
    cut: Cut | None = None


_Outbound = _Media | _Mark | _EndEpoch


class Writer:
    """Writes for one call. `media_at` is when media was written last.

    `messages` and `bytes` of media were written; `slowest_s` is the longest that a message took.

    Args:
        deadline_s: a socket that takes no byte for this long ends the call.
        end: ends the call.
    """

    def __init__(
        self,
        socket: MediaSocket,
        ledger: Ledger,
        tape: Tape | None,
        deadline_s: float,
        end: Callable[[Outcome], None],
    ) -> None:
        self.media_at = 0.0
        self.messages = self.bytes = 0
        self.slowest_s = 0.0
        self._socket = socket
        self._ledger = ledger
        self._tape = tape
        self._deadline_s = deadline_s
        self._end = end
        self._send, self._receive = trio.open_memory_channel[_Outbound](0)

    async def run(self) -> None:
        """Send everything that is sent, and tell the ledger when it is."""
        try:
            while True:
                item = await self._receive.receive()
                # Cancelling a send dooms the socket, so lateness ends the call.
                began = trio.current_time()
                with trio.move_on_after(self._deadline_s) as deadline:
                    await self._write(item)
                self.slowest_s = max(self.slowest_s, trio.current_time() - began)
                if deadline.cancelled_caught:
                    self._end(Outcome.SEND_TIMEOUT)
        except SocketClosed:
            self._end(Outcome.SOCKET_CLOSED)

    async def media(self, epoch: Epoch, audio: bytes) -> None:
        """Hand over audio; return when the writer has taken it, and before it is written.

        Cancellation: it is taken, or not at all.
        """
        await self._send.send(_Media(epoch, audio))

    async def mark(self, epoch: Epoch) -> None:
        """Hand over a mark; as `media`."""
        await self._send.send(_Mark(epoch))

    async def end_epoch(self, *, clear: bool) -> Cut:
        """End the open epoch; return when everything of it, and the clear, is written."""
        request = _EndEpoch(clear)
        await self._send.send(request)
        await request.done.wait()
        assert request.cut is not None  # set before `done`
        return request.cut

    async def _write(self, item: _Outbound) -> None:
        match item:
            case _Media(epoch, chunk):
                await self._socket.send(twilio.SendMedia(chunk))
                self.media_at = trio.current_time()
                self._ledger.media_written(epoch, chunk, self.media_at)
                self.messages += 1
                self.bytes += len(chunk)
                if self._tape is not None:
                    self._tape.bot_said(chunk, self.media_at)
            case _Mark(epoch):
                name = self._ledger.next_mark(epoch)
                # Before it is sent, or its echo may be there first. All it follows is written.
                self._ledger.mark_written(epoch, name)
                await self._socket.send(twilio.SendMark(name))
            case _EndEpoch(clear):  # pragma: no branch - the union has no other member
                needed = clear and self._ledger.clear_needed()
                if needed:
                    await self._socket.send(twilio.SendClear())
                item.cut = self._ledger.close(trio.current_time(), cleared=needed)
                if self._tape is not None:
                    self._tape.bot_cut(item.cut.discarded, self._ledger.delay_s)
                item.done.set()
            case _ as unreachable:
                assert_never(unreachable)
