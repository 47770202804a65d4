"""Which stretch of a caller's audio is one utterance: the memory of the embedded recogniser.

Synchronous and without a clock: positions are bytes since the call began. The ears say when
speech started; the engine says when to recognise ("cut"); no audio of speech is lost between
two cuts, and none is recognised twice.
"""

from __future__ import annotations

from typing import Final

from voicebot import audio

PRE_ROLL_MS: Final = 300  # the ears' onset is late by up to this for a soft first sound
# Whisper sees at most 30 s; two are left for the silence it wants at the end.
MAX_UTTERANCE_MS: Final = 28_000
SPLIT_SEARCH_MS: Final = 4_000  # a longer utterance is split at its quietest point in here
# A pause this short after a cut belongs to the same speech, as the ears drop in for less.
BRIDGE_MS: Final = 1_000
# Speech that goes on over a cut is heard at once after it.
_GOES_ON_MS: Final = 500
_GOES_ON_DBOV: Final = -45.0  # the ears' own gate
_MIN_MS: Final = 100  # no word is shorter

_MAX: Final = MAX_UTTERANCE_MS * audio.BYTES_PER_MS


class Recording:
    """The last 28 s of a caller, and where the utterance in it starts."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._base = 0  # position of the first byte that is kept
        self._start: int | None = None  # position where the current utterance starts
        self._cut: int | None = None  # position of the last cut

    @property
    def _end(self) -> int:
        return self._base + len(self._buffer)

    @property
    def asked_bytes(self) -> int:
        """Up to where audio was given out, or needs not be: what is behind is not heard yet."""
        return self._cut or 0

    def push(self, mulaw: bytes) -> list[bytes]:
        """Take audio; return stretches that are due because the utterance grew too long."""
        self._buffer += mulaw
        due: list[bytes] = []
        while self._start is not None and self._end - self._start > _MAX:
            split = self._quietest(self._start + _MAX)
            due.append(self._take(self._start, split))
            self._start = self._cut = split
        self._trim()
        return due

    def speech_started(self, ago_ms: int) -> None:
        """Mark the start of speech, counted back from the end of the audio so far."""
        start = self._end - (ago_ms + PRE_ROLL_MS) * audio.BYTES_PER_MS
        if self._cut is not None and start - self._cut <= BRIDGE_MS * audio.BYTES_PER_MS:
            start = self._cut
        start = max(start, self._base)
        self._start = start if self._start is None else min(self._start, start)

    def cut(self) -> bytes:
        """Return the utterance up to now, empty when nobody spoke, and begin the next one."""
        start, end = self._start, self._end
        if start is None and self._goes_on():
            start = self._cut
        self._start, self._cut = None, end
        if start is None or end - start < _MIN_MS * audio.BYTES_PER_MS:
            return b""
        return self._take(max(start, end - _MAX), end)

    def _goes_on(self) -> bool:
        """Return whether speech went on over the last cut, which the ears do not mark again."""
        if self._cut is None or self._cut < self._base:
            return False
        after = self._take(self._cut, self._cut + _GOES_ON_MS * audio.BYTES_PER_MS)
        return any(audio.dbov(frame) > _GOES_ON_DBOV for frame in _frames(after))

    def _quietest(self, end: int) -> int:
        """Return the position of the quietest frame in the seconds before `end`."""
        start = end - SPLIT_SEARCH_MS * audio.BYTES_PER_MS
        levels = [audio.dbov(frame) for frame in _frames(self._take(start, end))]
        return start + levels.index(min(levels)) * audio.FRAME_BYTES

    def _take(self, start: int, end: int) -> bytes:
        return bytes(self._buffer[start - self._base : end - self._base])

    def _trim(self) -> None:
        # Twice the bound before half is dropped: a copy every 28 s and not every 20 ms.
        if len(self._buffer) > 2 * _MAX:
            excess = len(self._buffer) - _MAX
            del self._buffer[:excess]
            self._base += excess


def _frames(mulaw: bytes) -> list[bytes]:
    size = audio.FRAME_BYTES
    return [mulaw[i : i + size] for i in range(0, len(mulaw), size)]
