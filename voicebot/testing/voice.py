"""Text to toy speech, with its faults as data."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import trio

from voicebot.audio import BYTES_PER_MS, silence
from voicebot.errors import ProviderError
from voicebot.testing.faults import linger
from voicebot.testing.toy import PAUSE_MS, say

_NAME: Final = "toy synthesizer"


@dataclass(frozen=True, slots=True)
class Speech:
    """How one piece of text is spoken.

    `fail_after_ms` and `stall_after_ms` count its audio; 0 is before the first.
    """

    first_s: float = 0.1  # from the request to the first audio
    speed: float = 10.0  # times real time
    chunk_ms: int = 100
    fail_after_ms: int | None = None  # ProviderError instead of more
    stall_after_ms: int | None = None  # never gives more
    close_s: float = 0.0  # not to be cancelled


class ToySynthesizer:
    """A `ports.Synthesizer` that speaks toy speech, with a pause behind each piece.

    Args:
        speeches: one for each piece, then `default`.
        pause_ms: less than `toy.PAUSE_MS` reads as no space between two pieces.

    `texts` is every piece asked for, in order; `cancelled` counts those that were broken off.
    """

    def __init__(
        self,
        speeches: Iterable[Speech] = (),
        *,
        default: Speech = Speech(),
        pause_ms: int = PAUSE_MS,
    ) -> None:
        self.texts: list[str] = []
        self.cancelled = 0
        self._speeches = iter(speeches)
        self._default = default
        self._pause = silence(pause_ms)

    @asynccontextmanager
    async def open_speech(self, text: str) -> AsyncGenerator[AsyncIterator[bytes]]:
        """Stream one piece, as scripted. See `ports.Synthesizer.open_speech`."""
        self.texts.append(text)
        speech = next(self._speeches, self._default)
        try:
            await trio.sleep(speech.first_s)
            yield _Chunks(say(text) + self._pause, speech)
        except trio.Cancelled:
            self.cancelled += 1
            raise
        finally:
            await linger(speech.close_s)  # noqa: ASYNC102  # shielded and bounded itself


class _Chunks:
    def __init__(self, audio: bytes, speech: Speech) -> None:
        self._audio = audio
        self._speech = speech
        self._given = 0  # bytes

    def __aiter__(self) -> _Chunks:
        return self

    async def __anext__(self) -> bytes:
        speech = self._speech
        await trio.sleep(speech.chunk_ms / 1_000 / speech.speed if self._given else 0)
        end = self._given + speech.chunk_ms * BYTES_PER_MS
        if speech.fail_after_ms is not None:
            end = min(end, speech.fail_after_ms * BYTES_PER_MS)
        if speech.stall_after_ms is not None:
            end = min(end, speech.stall_after_ms * BYTES_PER_MS)
        chunk = self._audio[self._given : end]
        if chunk:
            self._given += len(chunk)
            return chunk
        if self._given == len(self._audio):
            raise StopAsyncIteration
        if speech.fail_after_ms is not None and self._given >= speech.fail_after_ms * BYTES_PER_MS:
            raise ProviderError(_NAME, "broke off", retryable=True)
        await trio.sleep_forever()
        raise AssertionError("unreachable")
