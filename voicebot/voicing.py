"""Pieces of a reply into sound on its reel. Survives a stop of speaking.

What is known beforehand needs no provider. Where a reply leaves the caller in silence, `fill` says
that somebody is still there.
"""

from __future__ import annotations

import itertools
import logging
import math
from typing import Final

import trio

from voicebot import audio
from voicebot.errors import ProviderError
from voicebot.playout import Ledger
from voicebot.record import Outcome
from voicebot.reply import Notes, Reply
from voicebot.sentences import SentenceSplitter
from voicebot.speakers import Mouth, Speaking
from voicebot.thinking import Piece, Thinker
from voicebot.toolbox import Job
from voicebot.turns import Turns

_log = logging.getLogger(__name__)

REEL_AHEAD_S: Final = 20.0  # synthesised and not yet spoken: 160 kB, enough for any pause


class Voicing:
    """Voices the replies of one call."""

    def __init__(
        self,
        mouth: Mouth,
        thinker: Thinker,
        ledger: Ledger,
        turns: Turns,
        notes: Notes,
    ) -> None:
        self._mouth = mouth
        self._thinker = thinker
        self._ledger = ledger
        self._turns = turns
        self._journal, self._note, self._first = notes.journal, notes.note, notes.first

    async def synth(self, pieces: trio.MemoryReceiveChannel[Piece], reply: Reply) -> None:
        """Speak pieces onto the reel, the next while one is playing."""
        with pieces:
            try:
                async for piece, how in pieces:
                    try:
                        await self._synthesise(piece, how, reply)
                    except ProviderError:
                        if reply.reel.between_clauses:
                            raise  # it has been tried often enough
                        # It broke off: as people do, the sentence is begun again.
                        self._journal.count("synthesis_restarts")
                        self._note("begun_again", number=reply.record.number)
                        await self._synthesise(piece, how, reply)
            except ProviderError:
                self._journal.count("synthesis_failures")
                self._note("synthesis_failed")
                _log.warning("synthesis_failed", exc_info=True)
                reply.failed = Outcome.NO_SPEECH
                self._thinker.scope.cancel(reason="synthesis failed")  # nobody takes its pieces
                self._say_canned(self._mouth.plan.apology, self._mouth.now, reply)
        reply.reel.close()
        reply.moved.ring()

    async def _synthesise(self, piece: str, how: Speaking, reply: Reply) -> None:
        reel = reply.reel
        if self._say_canned(piece, how, reply):
            return
        reel.begin(piece)
        reply.news.ring()  # if this was begun before, it has broken off
        async with how.voice.open_speech(piece) as chunks:
            async for chunk in chunks:
                reel.append(chunk)
                self._first("first_audio", reply)
                reply.moved.ring()
                self._journal.peak("speech", (reel.length - reply.spoken) / audio.BYTES_PER_S)
                while reel.length - reply.spoken > REEL_AHEAD_S * audio.BYTES_PER_S:
                    await reply.moved.wait()
        reel.end()
        reply.news.ring()

    def knows(self, text: str) -> bool:
        """Whether the sound of a text is known beforehand, so that no provider can fail."""
        return bool(_canned(text, self._mouth.now))

    def _say_canned(self, text: str, how: Speaking, reply: Reply) -> bool:
        """Put a text on the reel if its sound is known beforehand; return whether it is."""
        canned = _canned(text, how)
        for piece, sound in canned:
            reply.reel.begin(piece)
            reply.reel.append(sound)
            reply.reel.end()
        if canned:
            self._first("first_audio", reply)
            reply.moved.ring()
        return bool(canned)

    async def fill(self, reply: Reply) -> None:
        """Say that somebody is still there, as often as the reply leaves the caller in silence.

        A slow tool has words of its own for it, which are said once.
        """
        filler_s, reel = self._mouth.plan.timeouts.filler_s, reply.reel
        turn = itertools.count()
        quiet_since = trio.current_time()
        while not reel.closed:
            now = trio.current_time()
            quiet_since = max(quiet_since, self._ledger.ends_at)
            unspoken = reel.length - reply.spoken >= audio.FRAME_BYTES  # less waits for more
            if unspoken or self._turns.caller_talking:
                quiet_since = max(quiet_since, now)
            if not reel.between_clauses:
                # Nothing is put into a sentence. One that stalls has its own deadline, and the
                # silence since then counts.
                await reply.news.wait()
                continue
            due, job = _slowest(reply, quiet_since)
            if quiet_since + filler_s < due:
                due, job = quiet_since + filler_s, None
            if now < due:
                with trio.move_on_at(due):
                    await reply.news.wait()
                continue
            if job is not None:
                filler = job.tool.filler
                reply.running = [(at, other) for at, other in reply.running if other is not job]
            else:
                fillers = self._mouth.plan.fillers
                filler = fillers[next(turn) % len(fillers)] if fillers else ""
            sound = b"".join(sound for _, sound in _canned(filler, self._mouth.now))
            if not sound:  # not known, nor will it be during this reply
                filler_s = filler_s if job is not None else math.inf
                continue
            reel.interject(filler, sound)
            self._note("filler")
            self._journal.count("fillers")
            reply.moved.ring()


def _canned(text: str, how: Speaking) -> list[tuple[str, bytes]]:
    """Return the pieces of a text with their sounds; nothing unless all are known."""
    splitter = SentenceSplitter(how.plan.language)
    pieces = [*splitter.push(text), *splitter.flush()]
    known = [(piece, sound) for piece in pieces if (sound := how.known_sound(piece))]
    return known if len(known) == len(pieces) else []


def _slowest(reply: Reply, quiet_since: float) -> tuple[float, Job | None]:
    """Return when a running tool's own filler is due first, in silence since then, and whose."""
    due: tuple[float, Job | None] = (math.inf, None)
    for since, job in reply.running:
        at = max(since, quiet_since) + job.tool.filler_after_s
        if job.tool.filler and not job.done.is_set() and at < due[0]:
            due = at, job
    return due
