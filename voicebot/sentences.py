"""Token deltas in, speakable pieces out.

    splitter = SentenceSplitter("en-US")
    splitter.push("Dr. Smith is in at 3.")  # []: "3.50" and "3. Floor" are still possible
    splitter.push("30 p.m. An")             # ["Dr. Smith is in at 3.30 p.m."]
    splitter.flush()                        # ["An"]

A piece is a sentence, or a clause where waiting for the sentence would cost the caller time:
the first piece of a reply may end at a comma, because it decides when the caller hears
something. A short first sentence ("Sure.") is a piece: it is spoken while the next is made. A
piece that is too long is cut where it hurts least.

A sentence ends where the text behind the stop shows it, mostly by the first character of the
next word. In doubt it goes on: two sentences in one piece are spoken well, half of one is not.
The pieces do not depend on how the text was cut into deltas.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from voicebot.fullstops import FullStops
from voicebot.speakable import PAUSES, SIGNS, Markup, spoken

FIRST_CLAUSE_CHARS: Final = 24  # a first piece shorter than this sounds clipped
FIRST_WIDE_CLAUSE_CHARS: Final = 8  # Chinese and Japanese say as much in a third of the signs
MAX_PIECE_CHARS: Final = 240  # well under Deepgram's 1,000; about 15 s of speech

_STOPS: Final = ".!?…‼⁇⁈⁉؟۔։"  # with a space behind
_WIDE_STOPS: Final = "。｡！？।॥።။។"  # with or without
_CLAUSES: Final = ",;:–—،؛"
_WIDE_CLAUSES: Final = "，、；"
_CLOSERS: Final = "\"'”’“»«›‹)]}」』】）〉》"
_OPENERS: Final = "\"'“„‘‚«»‹›([{¿¡"
_BEHIND: Final = ".,;:!?…)]}"  # what belongs to the word before, even with a space between

_GAP: Final = rf"\s{PAUSES}{SIGNS}"
_WIDE: Final = _WIDE_STOPS + _WIDE_CLAUSES
_TAIL: Final = _WIDE + _STOPS + re.escape("\"'”’)]}」』】）〉》")
_APART: Final = re.compile(rf"[{_GAP}]")
# A word up to the first character that is not of it, or as much as a piece may hold.
_WORD: Final = re.compile(
    rf"(?:(?P<wide>[^{_GAP}{_WIDE}]*+[{_WIDE}][{_TAIL}]*+)|[^{_GAP}]++"
    rf"|[^{_GAP}]{{{MAX_PIECE_CHARS}}})(?=[\s\S])"
)
_LEAD: Final = re.compile(r"[*_~`\"'“„‘‚«‹(\[{]{0,20}+")  # in front of the letter that tells
_LIST_NUMBER: Final = re.compile(r"\(?\d{1,3}[.)]{1,2}")
# Where a piece that is too long is cut, the best first. A number is kept with what is before it,
# and whole: "on Monday, 3 May", "+1 (555) 010-0123".
_CUTS: Final = (
    (MAX_PIECE_CHARS // 2, re.compile(rf"(?<=[{_CLAUSES}])\s(?!\d)|(?<=[{_WIDE}])(?=.)")),
    (1, re.compile(r"(?<![\d)+(])\s|\s(?![\d(+])")),
    (1, re.compile(r"\s")),
)


class SentenceSplitter:
    """Splits one reply; make a new one for the next.

    Args:
        language: BCP 47, of what is said; see `FullStops`.
    """

    def __init__(self, language: str = "en") -> None:
        self._stops = FullStops(language)
        self._markup = Markup()
        self._raw = ""  # what is no whole word yet
        self._begins = True  # whether that begins a line
        self._given = False  # whether the reply has begun
        self._small: bool | None = None  # whether it is written without capitals
        self._start()

    def _start(self) -> None:
        self._piece = ""
        self._last = ""  # its last word, with the marks behind it
        self._parted = False  # whether a sentence may end behind that
        self._gap = ""  # what belongs between it and the next word
        self._sign = self._pause = False  # whether there is an emoji between, or a column

    def push(self, delta: str) -> list[str]:
        """Take more text; return the pieces it completes, in order."""
        return self._read(self._markup.push(delta))

    def flush(self) -> list[str]:
        """Return the pieces that are left at the end of the text. Another text may follow."""
        return self._read(f"{self._markup.flush()}\n") + self._give()

    def settle(self) -> list[str]:
        """Return the sentences that are whole if the text was cut off here.

        What is left, and `flush` returns, is a part of one.
        """
        pieces = self._read(f"{self._markup.flush()} ")
        whole = self._last.rstrip(_CLOSERS)[-1:]
        return pieces + self._give() if whole and whole in _STOPS + _WIDE_STOPS else pieces

    def _read(self, text: str) -> list[str]:
        raw, at, pieces = self._raw + text, 0, list[str]()
        while at < len(raw):
            if _APART.match(raw, at):
                pieces += self._part(raw[at])
                at += 1
                continue
            if self._parted:
                ends = self._ends(raw, at)
                if ends is None:
                    break
                if ends:
                    pieces += self._give()
            word = _WORD.match(raw, at, at + MAX_PIECE_CHARS + 1)
            if word is None:
                break
            at = word.end()
            pieces += self._add(spoken(word[0], first=self._begins, last=raw[at] in "\r\n"))
            self._parted = self._piece != "" and word["wide"] is not None
        self._raw = raw[at:]
        return pieces

    def _part(self, char: str) -> list[str]:
        """Take a character between words."""
        self._gap, self._parted = " ", self._piece != ""
        if char in PAUSES:
            self._pause = True
        elif not char.isspace():
            self._sign = True
        elif char.splitlines() == [""]:
            self._begins = True
            if not _LIST_NUMBER.fullmatch(self._piece):
                return self._give()
        return []

    def _add(self, word: str) -> list[str]:
        """Take a word; return what is then too long for a piece."""
        if not word:
            return []
        self._begins = False
        if self._small is None and word.lower() != word.upper():
            self._small = word.islower()
        if self._piece:
            if self._sign and word[0] in _BEHIND:
                self._gap = ""  # "Great 🎉!"
            elif self._pause and self._piece[-1] not in _STOPS + _CLAUSES:
                self._gap = ", "
            self._piece += self._gap
        self._piece += word
        self._last = word if any(map(str.isalnum, word)) else self._last + word
        self._gap, self._sign, self._pause = "", False, False
        pieces = []
        while len(self._piece) > MAX_PIECE_CHARS:
            cut = _cut(self._piece)
            pieces += self._clean(self._piece[:cut])
            self._piece = self._piece[cut:].lstrip()
            self._last = self._last[-len(self._piece) :]
        return pieces

    def _ends(self, raw: str, at: int) -> bool | None:
        """Return whether the piece ends before the word at a position; None: that does not tell."""
        lead = _LEAD.match(raw, at)
        assert lead is not None  # it may be empty
        if lead.end() == len(raw):
            return None
        following = raw[lead.end()]
        body = self._last.rstrip(_CLOSERS)
        word = body.rstrip(_STOPS + _WIDE_STOPS)
        stop = body[len(word) :]
        if not stop:
            return not self._given and self._clause(body[-1:]) and not following.isdigit()
        if raw[at] in _BEHIND or _LIST_NUMBER.fullmatch(self._piece):
            return False
        if raw[at] == "»" and self._piece.rfind("«") > self._piece.rfind("»"):
            return False  # « Ça va ? »
        if stop.strip(".…"):
            return not (following.islower() and body != self._last)  # "Stop!" he said
        if following.islower() and not self._small:
            return False
        return self._stops.ends(word.lstrip(_OPENERS), raw, lead.end()) if stop == "." else True

    def _clause(self, mark: str) -> bool:
        """Return whether a clause ends at a mark, and is long enough for a first piece."""
        least = FIRST_CLAUSE_CHARS if mark in _CLAUSES else FIRST_WIDE_CLAUSE_CHARS
        return mark != "" and mark in _CLAUSES + _WIDE_CLAUSES and len(self._piece) >= least

    def _give(self) -> list[str]:
        """End the piece."""
        piece = self._piece
        self._start()
        return self._clean(piece)

    def _clean(self, piece: str) -> list[str]:
        piece = piece.strip()
        if not any(map(str.isalnum, piece)):
            return []  # a lone dash has no sound
        self._given = True
        return [piece]


def _cut(text: str) -> int:
    """Return where a text that is too long for a piece is cut."""
    for least, place in _CUTS:
        ends = [found.start() for found in place.finditer(text)]
        if ends := [end for end in ends if least <= end <= MAX_PIECE_CHARS]:
            return ends[-1]
    end = MAX_PIECE_CHARS
    while end > MAX_PIECE_CHARS // 2 and unicodedata.category(text[end])[0] == "M":
        end -= 1  # not between a letter and its vowel sign
    return end
