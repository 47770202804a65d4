"""The caller's audio on its way to the recogniser, with the edges of speech in their places.

Synchronous. What was sent is kept until the recogniser has accounted for it: if it is lost, the
next one is told again. Bounded: of more than `RING_S`, sent or not, the oldest audio goes. Edges
of what was not sent stay, and what is sent again of an utterance has a beginning: without one it
is not recognised.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from voicebot import audio
from voicebot.turns import Finalize, SpeechStarted

RING_S: Final = 10.0  # longer than any recogniser takes to connect, or a sentence to say
# Audio per message to the recogniser: its cost is per message, and 80 is what Flux is made for.
FEED_MS: Final = 80
BATCH_S: Final = 1.0  # audio in one message at most, when there is much to catch up with


_Item = bytes | SpeechStarted | Finalize


class Ring:
    """20 ms frames and edges, in order."""

    def __init__(self) -> None:
        self._items: deque[_Item] = deque()
        self._bytes = self._edges = 0
        self._sent: deque[_Item] = deque()  # to this recogniser, and not accounted for
        self._sent_bytes = 0
        self._settled_bytes = 0  # of what this recogniser was sent: no more in `_sent`
        self._speech = False  # whether the caller was speaking where `_sent` begins
        self._unheard_ms = 0  # of speech that was sent, not accounted for, and had to go

    @property
    def ready(self) -> bool:
        """Whether there is enough for a message, or an edge to be told."""
        return self._edges > 0 or self._bytes >= FEED_MS * audio.BYTES_PER_MS

    @property
    def waiting_s(self) -> float:
        """Seconds of audio that the recogniser has not been sent."""
        return self._bytes / audio.BYTES_PER_S

    @property
    def finalizes(self) -> int:
        """How many requests to finalize have not been taken."""
        return sum(isinstance(item, Finalize) for item in self._items)

    def put(self, item: _Item) -> int:
        """Add a frame or an edge; return how many milliseconds of audio that has cost.

        What was sent already costs nothing yet: only if this recogniser is lost (`rewind`).
        """
        self._items.append(item)
        if not isinstance(item, bytes):
            self._edges += 1
            return 0
        self._bytes += len(item)
        while self._sent_bytes and self._bytes + self._sent_bytes > RING_S * audio.BYTES_PER_S:
            if isinstance(self._forget_sent(), bytes) and self._speech:
                self._unheard_ms += audio.FRAME_MS
        if self._bytes <= RING_S * audio.BYTES_PER_S:
            return 0
        oldest = next(i for i, kept in enumerate(self._items) if isinstance(kept, bytes))
        self._bytes -= audio.FRAME_BYTES
        del self._items[oldest]
        return audio.FRAME_MS

    def take(self) -> _Item:
        """Take what comes next: all audio before the next edge, up to a message, or the edge.

        Raises:
            IndexError: there is nothing.
        """
        first = self._items.popleft()
        self._sent.append(first)
        if not isinstance(first, bytes):
            self._edges -= 1
            return first
        batch = bytearray(first)
        while self._items and len(batch) < BATCH_S * audio.BYTES_PER_S:
            item = self._items[0]
            if not isinstance(item, bytes):
                break
            batch += item
            self._sent.append(self._items.popleft())
        self._bytes -= len(batch)
        self._sent_bytes += len(batch)
        return bytes(batch)

    def settle(self, until_ms: int | None, *, finalized: bool) -> None:
        """Forget what a recogniser has accounted for: what it was sent up to there.

        Args:
            until_ms: of all audio that this recogniser was sent; None: it does not say.
            finalized: it answers a request; without a position, all before the first is meant,
                and where there is none, all that was sent.
        """
        if until_ms is None:
            self._unheard_ms = 0
            while self._sent:
                if isinstance(self._forget_sent(), Finalize) and finalized:
                    return
            return
        until = until_ms * audio.BYTES_PER_MS
        if until >= self._settled_bytes:
            self._unheard_ms = 0
        while self._sent:
            first = self._sent[0]
            size = len(first) if isinstance(first, bytes) else 0
            if self._settled_bytes + size > until:
                return
            self._forget_sent()

    def rewind(self) -> int:
        """Begin anew with another recogniser: what was not accounted for is sent again.

        Returns how many milliseconds of speech cannot be.
        """
        if self._speech:  # it began in what will not be sent again
            self._sent.appendleft(SpeechStarted(0))
        self._items.extendleft(reversed(self._sent))
        self._bytes += self._sent_bytes
        self._edges += sum(not isinstance(item, bytes) for item in self._sent)
        self._sent.clear()
        self._sent_bytes = self._settled_bytes = 0
        self._speech, unheard_ms, self._unheard_ms = False, self._unheard_ms, 0
        return unheard_ms

    def _forget_sent(self) -> _Item:
        item = self._sent.popleft()
        if isinstance(item, bytes):
            self._sent_bytes -= len(item)
            self._settled_bytes += len(item)
        else:
            self._speech = isinstance(item, SpeechStarted)
        return item
