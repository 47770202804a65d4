"""The caller's audio on its way to the recogniser, with the edges of speech in their places.

Synchronous. Bounded: what a recogniser that is still connecting, or is slow, cannot take yet is
kept, and of more than `RING_S` the oldest audio goes. Edges stay: without its beginning, what is
kept of an utterance is not recognised.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from voicebot import audio
from voicebot.turns import Finalize, SpeechStarted

RING_S: Final = 10.0  # caller audio kept for a recogniser that is still connecting
FEED_MS: Final = 60  # audio per message to the recogniser: its cost is per message
BATCH_S: Final = 1.0  # audio in one message at most, when there is much to catch up with


class Ring:
    """20 ms frames and edges, in order."""

    def __init__(self) -> None:
        self._items: deque[bytes | SpeechStarted | Finalize] = deque()
        self._bytes = self._edges = 0

    @property
    def ready(self) -> bool:
        """Whether there is enough for a message, or an edge to be told."""
        return self._edges > 0 or self._bytes >= FEED_MS * audio.BYTES_PER_MS

    @property
    def finalizes(self) -> int:
        """How many requests to finalize have not been taken."""
        return sum(isinstance(item, Finalize) for item in self._items)

    def put(self, item: bytes | SpeechStarted | Finalize) -> int:
        """Add a frame or an edge; return how many milliseconds of audio that has cost."""
        self._items.append(item)
        if not isinstance(item, bytes):
            self._edges += 1
            return 0
        self._bytes += len(item)
        if self._bytes <= RING_S * audio.BYTES_PER_S:
            return 0
        oldest = next(i for i, kept in enumerate(self._items) if isinstance(kept, bytes))
        self._bytes -= audio.FRAME_BYTES
        del self._items[oldest]
        return audio.FRAME_MS

    def take(self) -> bytes | SpeechStarted | Finalize:
        """Take what comes next: all audio before the next edge, up to a message, or the edge.

        Raises:
            IndexError: there is nothing.
        """
        first = self._items.popleft()
        if not isinstance(first, bytes):
            self._edges -= 1
            return first
        batch = bytearray(first)
        while self._items and len(batch) < BATCH_S * audio.BYTES_PER_S:
            item = self._items[0]
            if not isinstance(item, bytes):
                break
            batch += item
            self._items.popleft()
        self._bytes -= len(batch)
        return bytes(batch)
