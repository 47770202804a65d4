"""The recogniser of a call: kept open, fed with what the caller says, and replaced when it fails.

The caller's audio waits in a ring from the first frame on (`ring.py`). What a recogniser has not
accounted for when it fails, or when the bot changes the language, is told to the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import trio

from voicebot.errors import ProviderError, ProviderTimeout, kind_of
from voicebot.failover import Witness
from voicebot.floor import Bell
from voicebot.ports import Final as FinalTranscript
from voicebot.ports import Recogniser, Transcriber, Transcript
from voicebot.reply import Notes
from voicebot.ring import Ring
from voicebot.tries import Alternatives
from voicebot.turns import Finalize, SpeechStarted, Turns


class Recognising:
    """Listens to one caller, by one recogniser after the other.

    Args:
        tries: openings in a row that may fail.
        heard: is given each transcript.
        failed: is told of each failure, and whether that recogniser is left alone now.
        witness: is told of each stream.
    """

    def __init__(
        self,
        recognisers: Alternatives[Recogniser],
        tries: int,
        turns: Turns,
        notes: Notes,
        heard: Callable[[Transcript], None],
        failed: Callable[[ProviderError, bool], None],
        witness: Witness,
    ) -> None:
        self._recognisers = recognisers
        self._allowed = tries
        self._turns = turns
        self._journal, self._note = notes.journal, notes.note
        self._heard = heard
        self._failed = failed
        self._witness = witness
        self._ring = Ring()
        self._fed = Bell()
        self._open = trio.CancelScope()  # around the recogniser that is open

    def feed(self, item: bytes | SpeechStarted | Finalize) -> None:
        """Queue for the recogniser; the oldest audio goes when it cannot keep up. Synchronous."""
        if lost_ms := self._ring.put(item):
            self._journal.count("unrecognised_ms", lost_ms)
        self._journal.peak("recogniser", self._ring.waiting_s)
        if self._ring.ready:
            self._fed.ring()

    def late(self) -> None:
        """Give up on the recogniser that is open: it owes words. Synchronous."""
        self._open.cancel(reason="late")

    def change(self, recognisers: Alternatives[Recogniser]) -> None:
        """Go on with the recognisers of another language. Synchronous."""
        self._recognisers = recognisers
        self._open.cancel(reason="another language")

    async def run(self) -> None:
        """Keep a recogniser open and fed; return after a few failures in a row."""
        allowed = self._allowed
        recognisers = self._recognisers
        tries = recognisers.tries(allowed)
        pause: float | None = 0.0
        again = False
        while pause is not None:
            await trio.sleep(pause)
            if recognisers is not self._recognisers:  # those of another language
                recognisers = self._recognisers
                tries = recognisers.tries(allowed)
            recogniser = tries.begin(trio.current_time())
            request, failure = self._witness.asked(recogniser), ""
            request.again = again
            try:
                with trio.CancelScope() as self._open:
                    async with recogniser.open() as transcriber:
                        self._witness.accepted(request)
                        self._hearing(recogniser.endpointing)
                        async with trio.open_nursery() as feed:  # owns the feed; ends on error
                            feed.start_soon(self._feed_from_ring, transcriber, recogniser)
                            while True:
                                transcript = await transcriber.receive()
                                self._witness.first(request)
                                tries.worked(allowed)
                                self._take(transcript)
                if recognisers is self._recognisers:
                    raise ProviderTimeout("recogniser", "no words in time")
                pause = 0.0
            except* ProviderError as errors:
                now = trio.current_time()
                error = _first(errors)
                failure = kind_of(error)
                pause = tries.failed(error, now)
                self._journal.count("recogniser_failures")
                self._note("recogniser_failed")
                self._failed(error, tries.opened)
            finally:
                self._witness.ended(request, failure)
            again = bool(failure)
            if lost_ms := self._ring.rewind():
                self._journal.count("unrecognised_ms", lost_ms)
            self._hearing(None)

    def _hearing(self, endpointing: Literal["provider", "local"] | None) -> None:
        self._turns.recogniser(endpointing, self._ring.finalizes, trio.current_time())

    def _take(self, transcript: Transcript) -> None:
        if isinstance(transcript, FinalTranscript):
            self._ring.settle(transcript.until_ms, finalized=transcript.finalized)
        self._heard(transcript)

    async def _feed_from_ring(self, transcriber: Transcriber, recogniser: Recogniser) -> None:
        """Hand over audio in batches, and each edge behind the audio it follows."""
        while True:  # noqa: ASYNC913  # edges are few; behind them it waits, or sends
            while not self._ring.ready:
                await self._fed.wait()
            match self._ring.take():
                case SpeechStarted(ago_ms):
                    transcriber.speech_started(ago_ms)
                case Finalize():
                    if recogniser.endpointing == "local":  # the other kind needs not be asked
                        await transcriber.finalize()
                case batch:
                    await transcriber.send(batch)


def _first(errors: ExceptionGroup[ProviderError]) -> ProviderError:
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, ExceptionGroup) else first
