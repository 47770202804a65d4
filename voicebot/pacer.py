"""The speak scope of a reply: its reel to the writer in playing time, at most `lead_ms` ahead.

No provider, and nothing to wait for in cleanup: a stop is felt within a message.
"""

from __future__ import annotations

import math
from typing import Final

import trio

from voicebot import audio
from voicebot.floor import Bell, Floor
from voicebot.plan import CallPlan
from voicebot.playout import Epoch, Ledger
from voicebot.reply import Notes, Reply
from voicebot.turns import Turns
from voicebot.writer import Writer

CLOCK_S: Final = 0.001  # what a timer may be early by, rounding included


class Pacer:
    """Speaks the replies of one call. `echoed` is to be rung when a mark has come back."""

    def __init__(
        self,
        plan: CallPlan,
        writer: Writer,
        ledger: Ledger,
        floor: Floor,
        turns: Turns,
        notes: Notes,
    ) -> None:
        self.echoed = Bell()
        self._pacing = plan.pacing
        self._ducks = plan.interruption.policy == "duck"
        self._duck_db = plan.interruption.duck_db
        self._writer = writer
        self._ledger = ledger
        self._floor = floor
        self._turns = turns
        self._journal, self._note, self._first = notes.journal, notes.note, notes.first

    async def speak(self, reply: Reply, position: int, epoch: Epoch) -> None:
        """Hand the reel to the writer in playing time; return when it has been heard."""
        pacing, reel, ledger = self._pacing, reply.reel, self._ledger
        chunk_bytes = pacing.chunk_ms * audio.BYTES_PER_MS
        # A whole message must fit under the lead.
        threshold = (pacing.lead_ms - pacing.chunk_ms) / 1_000
        handed = unmarked = 0
        while True:
            ahead = ledger.buffered_s(trio.current_time())
            ahead += (handed - ledger.written) / audio.BYTES_PER_S
            if ahead > threshold + CLOCK_S:
                await trio.sleep(ahead - threshold)
                continue
            chunk = reel.read(position, chunk_bytes)
            if not reel.closed and len(chunk) < (chunk_bytes if ahead else audio.FRAME_BYTES):
                if unmarked and len(chunk) < audio.FRAME_BYTES:
                    # A pause in the reply: whether it was heard up to here must be known.
                    await self._writer.mark(epoch)
                    unmarked = 0
                    continue
                # What is there goes out before Twilio runs dry, however little it is.
                with trio.move_on_after(ahead or math.inf):
                    await reply.moved.wait()
                continue
            if not chunk:
                break
            if not reel.closed:
                # Whole frames, or the filling would be heard inside a word.
                chunk = chunk[: len(chunk) - len(chunk) % audio.FRAME_BYTES]
            position += len(chunk)
            chunk = chunk.ljust(
                -(-len(chunk) // audio.FRAME_BYTES) * audio.FRAME_BYTES, bytes([audio.SILENCE])
            )
            if not handed and epoch.n:
                chunk = audio.fade_in(chunk)
            if self._ducks and self._floor.undecided:
                chunk = audio.quieter(chunk, self._duck_db)
            await self._writer.media(epoch, chunk)
            handed += len(chunk)
            unmarked += len(chunk)
            if epoch.n:
                self._journal.went_on(trio.current_time())
            if reply.record.first_media is None:
                self._turns.bot_audible()
            if reply.record.first_audio is not None:  # and not only a filler
                self._first("first_media", reply)
            if unmarked >= pacing.mark_every_ms * audio.BYTES_PER_MS:
                await self._writer.mark(epoch)
                unmarked = 0
            reply.spoken = max(reply.spoken, position)
            reel.forget(position - pacing.keep_ms * audio.BYTES_PER_MS)
            reply.moved.ring()
        if unmarked:
            await self._writer.mark(epoch)
        self._note("sent")
        # Everything is written, for the writer has taken the mark that follows it.
        while not ledger.played_out():
            with trio.move_on_at(ledger.overdue_at()) as overdue:
                await self.echoed.wait()
            # What is learnt of the line meanwhile may put it off.
            if overdue.cancelled_caught and trio.current_time() >= ledger.overdue_at():
                self._journal.count("lost_marks")
                return
