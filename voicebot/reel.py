"""A reply's audio with the words it speaks: append-only, readable at any position.

Synthesis writes it, the speak scope reads it, and both can stop without the other: after an
interruption turns out to be none, speaking goes on from the same audio. Positions are bytes
since the beginning of the reply; 8 bytes are 1 ms.

Words are placed inside a clause by the clause's own audible length, because text-to-speech
gives no word times: leading and trailing silence is left out, and the rest is shared out by
characters. While a clause is still being synthesised its length is estimated from the clauses
before it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from voicebot import audio

# Aura and piper both speak English at about 15 characters a second.
DEFAULT_BYTES_PER_CHAR: Final = 65 * audio.BYTES_PER_MS
_WINDOW: Final = 10 * audio.BYTES_PER_MS  # grain of the search for audible sound
_AUDIBLE_DBOV: Final = -45.0  # 20 dB under the quietest speech we are given
_WORD: Final = re.compile(r"\S+")


@dataclass(slots=True)
class _Clause:
    text: str
    start: int
    voice_start: int | None = None  # first audible byte; None until there is one
    end: int | None = None  # None while it is being synthesised
    voice_end: int = 0
    aside: bool = False  # no part of the reply
    broken: bool = False  # broke off


class Reel:
    """The audio and text of one reply."""

    def __init__(self) -> None:
        self._audio = bytearray()
        self._offset = 0  # position of the first byte still kept
        self._clauses: list[_Clause] = []
        self.closed = False

    @property
    def length(self) -> int:
        """Bytes appended so far, kept or forgotten."""
        return self._offset + len(self._audio)

    def begin(self, text: str) -> None:
        """Start a clause; the audio that follows speaks it.

        A clause begun before that got no end has failed. Without audio it is taken back. If this
        one says the same again, what was heard of that one counts until more of this one is.
        """
        if self._clauses and self._clauses[-1].end is None:
            if self._clauses[-1].start == self.length:
                self._clauses.pop()
            else:
                self._clauses[-1].broken = True
                self.end()
        self._clauses.append(_Clause(text, self.length))

    def append(self, chunk: bytes) -> None:
        """Add audio of the clause begun last: mu-law, any length."""
        clause = self._clauses[-1]
        start = self.length
        self._audio += chunk
        if clause.voice_start is None:
            voiced = _first_audible(chunk)
            if voiced is not None:
                clause.voice_start = start + voiced

    def end(self) -> None:
        """Finish the clause begun last."""
        clause = self._clauses[-1]
        clause.end = self.length
        kept = max(clause.start, self._offset)
        tail = _last_audible(bytes(self._audio[kept - self._offset :]))
        clause.voice_end = clause.start if tail is None else kept + tail

    def interject(self, text: str, sound: bytes) -> None:
        """Add an aside, whole: sound that is no part of the reply. Not inside a clause's audio."""
        begun = self._clauses.pop() if self._clauses and self._clauses[-1].end is None else None
        assert begun is None or begun.start == self.length
        self._clauses.append(_Clause(text, self.length, aside=True))
        self.append(sound)
        self.end()
        if begun is not None:
            self._clauses.append(_Clause(begun.text, self.length))

    @property
    def between_clauses(self) -> bool:
        """Whether there is no audio of a clause that has not ended."""
        last = self._clauses[-1] if self._clauses else None
        return last is None or last.end is not None or last.start == self.length

    def close(self) -> None:
        """Say that nothing more will come."""
        self.closed = True

    def read(self, position: int, size: int) -> bytes:
        """Return up to `size` bytes from `position`; empty where nothing is there yet."""
        start = position - self._offset
        return bytes(self._audio[start : start + size])

    def forget(self, position: int) -> None:
        """Drop the audio before `position`, which will not be read again."""
        drop = position - self._offset
        if drop > 0:
            del self._audio[:drop]
            self._offset = position

    def heard(self, position: int, first: int = 0, behind: int | None = None) -> str:
        """Return the words a listener has heard who has heard that many bytes.

        A word counts from the middle of its sound on. `first` and `behind` are clauses, counted
        from 0 in the order they were begun: only what is between them is returned. Asides do not
        count, and are left out.
        """
        rate, texts, broken = self._bytes_per_char(), list[list[str]](), list[str]()
        clauses = [clause for clause in self._clauses if not clause.aside]
        for clause, following in itertools.zip_longest(clauses, clauses[1:]):
            words = [
                word for word, start, end in _words(clause, rate) if (start + end) / 2 <= position
            ]
            broken = max(words, broken, key=len)
            if clause.broken and following is not None and following.text == clause.text:
                continue  # it is said again from the beginning
            texts.append(broken)
            broken = []
        return " ".join(itertools.chain.from_iterable(texts[first:behind]))

    def word_edge(self, position: int) -> int:
        """Return where the word that is being spoken at `position` begins.

        Between two words that is the beginning of the one just finished, so that a listener
        who was disturbed hears it again. Never before what has been forgotten.
        """
        edge = 0
        for _, start, _ in self._words():
            if start >= position:
                break
            edge = int(start)
        return max(edge, self._offset)

    def words_between(self, start: float, end: float) -> str:
        """Return the words of which a part is between two positions."""
        words = self._words()
        return " ".join(word for word, first, last in words if last > start and first < end)

    def _words(self) -> Iterator[tuple[str, float, float]]:
        rate = self._bytes_per_char()
        return itertools.chain.from_iterable(_words(clause, rate) for clause in self._clauses)

    def _bytes_per_char(self) -> float:
        spoken = chars = 0
        for clause in self._clauses:
            if clause.end is not None and clause.voice_start is not None and not clause.broken:
                spoken += clause.voice_end - clause.voice_start
                chars += len(clause.text)
        return spoken / chars if chars and spoken > 0 else DEFAULT_BYTES_PER_CHAR


def _words(clause: _Clause, rate: float) -> Iterator[tuple[str, float, float]]:
    """Yield each word of a clause that may be audible, with where it begins and ends."""
    if clause.voice_start is None:
        return
    length = max(1, len(clause.text))
    if clause.end is None or clause.broken:
        span = length * rate
    else:
        span = max(0, clause.voice_end - clause.voice_start)
    for match in _WORD.finditer(clause.text):
        start = clause.voice_start + span * match.start() / length
        end = clause.voice_start + span * match.end() / length
        if clause.broken and (start + end) / 2 > clause.voice_end:
            return
        yield match.group(), start, end


def _first_audible(chunk: bytes) -> int | None:
    for start in range(0, len(chunk), _WINDOW):
        if audio.dbov(chunk[start : start + _WINDOW]) > _AUDIBLE_DBOV:
            return start
    return None


def _last_audible(chunk: bytes) -> int | None:
    for end in range(len(chunk), 0, -_WINDOW):
        if audio.dbov(chunk[max(0, end - _WINDOW) : end]) > _AUDIBLE_DBOV:
            return end
    return None
