"""A recogniser that reads toy speech: its words are exactly those that arrived."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Literal

import trio

from voicebot.audio import BYTES_PER_MS, BYTES_PER_S, FRAME_BYTES, FRAME_MS
from voicebot.errors import ProviderError
from voicebot.floor import Bell
from voicebot.ports import Final as FinalTranscript
from voicebot.ports import LikelyEnd, Partial, Transcriber, Transcript, UtteranceEnd
from voicebot.testing.faults import linger
from voicebot.testing.toy import PAUSE_MS, Reader

_NAME: Final = "toy recogniser"


@dataclass(frozen=True, slots=True)
class Opening:
    """How one connection to the recogniser goes.

    Units: seconds; `drop_after_s` and `stall_after_s` count the audio it was sent.
    """

    open_s: float = 0.05
    refuse: bool = False  # ProviderError instead of a connection
    answer_s: float = 0.1  # from the audio that settles a transcript to the transcript
    drop_after_s: float = math.inf  # ProviderError from every method
    stall_after_s: float = math.inf  # takes audio and says nothing any more
    close_s: float = 0.0  # not to be cancelled


class ToyRecogniser:
    """Opens transcribers (`ports.OpenTranscriber` is its `open`) that read toy speech.

    mode "local": answers `finalize`, and else says nothing, as the embedded recogniser does.
    mode "provider": says by itself, in time of the audio, a `Partial` of whole words every
    `partial_ms` while they grow, a `Final` with `end_of_turn` after `endpointing_ms` without
    words, and `UtteranceEnd` after `utterance_end_ms` without. Either may be None, for never;
    without the first, words become final at the second. With `likely_ms`, a `LikelyEnd` comes
    after so long without words, and a `Partial` takes it back when they go on.

    Args:
        openings: one for each connection, then `default`.

    `said` is every transcript there was, in order, delivered or not; `opened` counts
    connections, refused ones as well.
    """

    def __init__(
        self,
        openings: Iterable[Opening] = (),
        *,
        mode: Literal["local", "provider"] = "local",
        default: Opening = Opening(),
        partial_ms: int = 250,
        endpointing_ms: int | None = 300,
        utterance_end_ms: int | None = None,
        likely_ms: int | None = None,
    ) -> None:
        self.mode = mode
        self.partial_ms = partial_ms
        self.endpointing_ms = math.inf if endpointing_ms is None else endpointing_ms
        self.utterance_end_ms = math.inf if utterance_end_ms is None else utterance_end_ms
        self.likely_ms = math.inf if likely_ms is None else likely_ms
        self.said: list[Transcript] = []
        self.opened = 0
        self._openings = iter(openings)
        self._default = default

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Transcriber]:
        """Open one connection, as scripted. See `ports.Transcriber`."""
        self.opened += 1
        opening = next(self._openings, self._default)
        try:
            await trio.sleep(opening.open_s)
            if opening.refuse:
                raise ProviderError(_NAME, "refused", retryable=True)
            yield _Connection(self, opening)
        finally:
            await linger(opening.close_s)  # noqa: ASYNC102  # shielded and bounded itself


class _Connection:
    def __init__(self, recogniser: ToyRecogniser, opening: Opening) -> None:
        self._recogniser = recogniser
        self._opening = opening
        self._sent_s = 0.0
        self._read_bytes = 0
        self._reader = Reader()
        self._due: deque[tuple[float, Transcript]] = deque()
        self._news = Bell()
        self._partial = ""
        self._since_partial_ms = 0
        self._quiet_ms = 0.0  # since the last character of all
        self._likely = False  # a LikelyEnd has been said, and not been taken back
        self._owes_end = False  # words have come for which there was no UtteranceEnd

    async def send(self, audio: bytes) -> None:
        """Read the audio. See `ports.Transcriber.send`."""
        await trio.lowlevel.checkpoint()
        self._sent_s += len(audio) / BYTES_PER_S
        if self._dropped:
            self._news.ring()
        self._check()
        if self._recogniser.mode == "local":
            self._reader.feed(audio)
            self._read_bytes += len(audio)
            return
        for start in range(0, len(audio), FRAME_BYTES):
            self._follow(audio[start : start + FRAME_BYTES])

    def speech_started(self, ago_ms: int) -> None:
        """Take note. The words tell when they begin."""

    async def finalize(self) -> None:
        """Answer with the words since the last answer. See `ports.Transcriber.finalize`."""
        await trio.lowlevel.checkpoint()
        self._check()
        self._say(self._final(finalized=True))

    async def receive(self) -> Transcript:
        """Wait for the next transcript. See `ports.Transcriber.receive`."""
        while True:
            self._check()
            if self._due and self._due[0][0] <= trio.current_time():
                await trio.lowlevel.checkpoint()
                return self._due.popleft()[1]
            with trio.move_on_at(self._due[0][0] if self._due else math.inf):
                await self._news.wait()

    @property
    def _dropped(self) -> bool:
        return self._sent_s > self._opening.drop_after_s

    def _check(self) -> None:
        if self._dropped:
            raise ProviderError(_NAME, "connection lost", retryable=True)

    def _say(self, transcript: Transcript) -> None:
        if self._sent_s > self._opening.stall_after_s:
            return
        self._recogniser.said.append(transcript)
        self._due.append((trio.current_time() + self._opening.answer_s, transcript))
        self._news.ring()

    def _final(self, *, end_of_turn: bool = False, finalized: bool = False) -> FinalTranscript:
        """Return the words that are in no final transcript yet, and begin anew."""
        text = self._reader.text.strip()
        self._reader, self._partial, self._likely = Reader(), "", False
        return FinalTranscript(
            text, end_of_turn, finalized, until_ms=self._read_bytes // BYTES_PER_MS
        )

    # As a provider: speaks unasked.

    def _follow(self, frame: bytes) -> None:
        self._reader.feed(frame)
        self._read_bytes += len(frame)
        self._since_partial_ms += FRAME_MS
        self._quiet_ms += FRAME_MS
        if self._reader.text:
            self._quiet_ms = self._reader.quiet_ms
        words = self._words()
        self._owes_end = self._owes_end or bool(words)
        recogniser = self._recogniser
        if words and self._quiet_ms >= recogniser.endpointing_ms:
            self._say(self._final(end_of_turn=True))
        elif words and not self._likely and self._quiet_ms >= recogniser.likely_ms:
            self._likely, self._partial = True, words
            self._say(LikelyEnd(words))
        elif self._likely and not self._quiet_ms:
            self._likely = False
            self._say(Partial(self._partial))
        elif words != self._partial and self._since_partial_ms >= recogniser.partial_ms:
            self._partial, self._since_partial_ms = words, 0
            self._say(Partial(words))
        if self._owes_end and self._quiet_ms >= recogniser.utterance_end_ms:
            self._owes_end = False
            if self._words():
                self._say(self._final())
            self._say(UtteranceEnd())

    def _words(self) -> str:
        """Return the words said to their end: half a word is another word."""
        text = self._reader.text
        if self._reader.quiet_ms < PAUSE_MS:
            text = text.rpartition(" ")[0]
        return text.strip()
