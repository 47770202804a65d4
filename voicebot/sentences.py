"""Token deltas in, speakable pieces out.

A piece is a sentence, or a clause where waiting for the sentence would cost the caller time:
the first piece of a reply may end at a comma, because it decides when the caller hears
something; a very long sentence is cut at a space. Markup that nobody pronounces is dropped.
"""

from __future__ import annotations

import re
from typing import Final

FIRST_CLAUSE_CHARS: Final = 24  # a first piece shorter than this sounds clipped
MAX_PIECE_CHARS: Final = 240  # well under Deepgram's 1,000; about 15 s of speech

_END: Final = re.compile(r"""[.!?…]+["')\]”’]*\s+|[。！？]+|\n+""")
_CLAUSE: Final = re.compile(r"[,;:–—]\s+")
# A full stop after one of these does not end the sentence.
_ABBREVIATION: Final = re.compile(
    r"(?:^|[\s(])(?:Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|vs|etc|No|approx|e\.g|i\.e|[A-Z])\.$"
)
_MARKUP: Final = re.compile(r"[*_#`~|]+")
_SPACE: Final = re.compile(r"\s+")


class SentenceSplitter:
    """Splits one reply; make a new one for the next."""

    def __init__(self) -> None:
        self._text = ""
        self._given = False

    def push(self, delta: str) -> list[str]:
        """Take more text; return the pieces it completes, in order."""
        self._text += delta
        pieces = []
        while (end := self._find_end()) is not None:
            piece, self._text = self._text[:end], self._text[end:]
            pieces += self._clean(piece)
        return pieces

    def flush(self) -> list[str]:
        """Return what is left at the end of the reply, at most one piece."""
        rest, self._text = self._text, ""
        return self._clean(rest)

    def _find_end(self) -> int | None:
        for match in _END.finditer(self._text):
            if not _ABBREVIATION.search(self._text[: match.start() + 1]):
                return match.end()
        if not self._given:
            for match in _CLAUSE.finditer(self._text):
                if match.start() >= FIRST_CLAUSE_CHARS:
                    return match.end()
        if len(self._text) > MAX_PIECE_CHARS:
            return self._text.rfind(" ", 1, MAX_PIECE_CHARS) + 1 or MAX_PIECE_CHARS
        return None

    def _clean(self, piece: str) -> list[str]:
        piece = _SPACE.sub(" ", _MARKUP.sub("", piece)).strip()
        if not any(char.isalnum() for char in piece):
            return []  # a lone dash or emoji has no sound
        self._given = True
        return [piece]
