"""What nobody pronounces: markup, emoji, what cannot be seen.

    markup = Markup()
    markup.push("See [our me") + markup.push("nu](https://example.com)")  # "See [our menu"
    spoken("**menu**,")                                                   # "menu,"

In two steps, because a model's text comes in deltas: `Markup` takes away what may have spaces
inside, and holds back an end that may still become such; `spoken` undresses a whole word. What
a word says is not touched: numbers, units, dates and abbreviations are the voice's business.
"""

from __future__ import annotations

import re
from typing import Final

#: Characters, for a class of a regular expression, that part words without a sound of their own:
#: arrows, technical signs, boxes, shapes, symbols, dingbats, emoji. Not ™ ° € % & @ +.
SIGNS: Final = (
    "\u2139\u2190-\u21ff\u2300-\u23ff\u2500-\u27bf\u2900-\u297f\u2b00-\u2bff"
    "\u3030\u303d\u3297\u3299\U0001f000-\U0001ffff"
)
#: Those of them at which a reader pauses: the columns of a table, and steps.
PAUSES: Final = "|→⇒➔➜"

# Controls, soft hyphens, zero widths, directions, variation selectors, keycaps, tags, and halves
# of a pair that were sent apart. The joiners are letters in some scripts: see `spoken`.
_UNSEEN: Final = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u034f\u061c\u180b-\u180e\u200b\u200e\u200f"
    "\u202a-\u202e\u2060-\u206f\u20e3\ufe00-\ufe0f\ufeff\ufff9-\ufffd\ud800-\udfff"
    "\U000e0000-\U000e0fff]"
)
_JOINER: Final = re.compile("(?<![\u0590-\u1fff])[\u200c\u200d]|[\u200c\u200d](?![\u0590-\u1fff])")

# A tag, the target of a link behind its text, the mark of an image. Bounded, so that what only
# begins like one is not kept long, nor searched twice.
_ADDRESSED: Final = r"[^\s()<>]{0,500}+(?:\([^\s()<>]{0,100}+\)[^\s()<>]{0,100}+)?"
_AWAY: Final = re.compile(
    r"<(/?[a-z][\w:-]{0,30}+)([^<>\n]{0,120}+)>"
    rf"|\]\({_ADDRESSED}(?:[ ]\"[^\"<>\n]{{0,100}}+\")?\)"
    r"|!(?=\[)",
    re.IGNORECASE,
)
_UNFINISHED: Final = re.compile(
    r"(?:<(?:/?(?:[a-z][\w:-]{0,30}+[^<>\n]{0,120}+)?)"
    rf"|\](?:\({_ADDRESSED}(?:\([^\s()<>]{{0,100}}+|[ ](?:\"[^\"<>\n]{{0,100}}+\"?)?)?)?"
    r"|!)\Z",
    re.IGNORECASE,
)
_HELD: Final = 1_000  # longer than any of these
_BLOCK: Final = re.compile(r"br|hr|p|div|[uo]l|li|table|tr|h[1-6]")

_LINE_MARK: Final = re.compile(r"[-*+•‣⁃·–—]|#{1,6}|>+|\[[xX]\]")  # bullet, heading, quote, done
_FENCE: Final = re.compile(r"(?:`{3,}|~{3,})[\w+#.-]*")  # with the language of the code
_QUOTE: Final = re.compile(r"^>+(?!\d)")
_STAR: Final = re.compile(r"[\"'“‘(]*\*(?:\d{1,3})?[\"'”’).,;:!?]*")  # 2 * 3, "press *", *67
_FACE: Final = re.compile(r"[:;=]-?[()DP]")
# Of a web or mail address only what is around it is markup.
_ADDRESS: Final = re.compile(r"://|www\.|\w@\w")
_AROUND: Final = re.compile(r"^[*_`~<\[]+|[*_`~>\]]+(?=[.,;:!?)]*$)")
# Stars between digits and underscores inside a word are what they look like.
_MARKS: Final = re.compile(
    r"`+|~{2,}|#{2,}|[\[\]]|\\(?=[^\w\s])|\*{2,}|(?<!\d)\*|\*(?!\d)|(?<!\w)_++|_++(?![^\W_])"
)


class Markup:
    """Takes tags, targets of links and what cannot be seen out of a text in deltas."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, delta: str) -> str:
        """Return what the text so far surely contains, behind what was returned before."""
        text = self._held + _UNSEEN.sub("", delta)
        unfinished = _UNFINISHED.search(text, max(0, len(text) - _HELD))
        end = unfinished.start() if unfinished else len(text)
        self._held = text[end:]
        return _AWAY.sub(_instead, text[:end])

    def flush(self) -> str:
        """Return what was held back: it became no markup, unless the text broke off in a link."""
        held, self._held = self._held, ""
        return "" if held.startswith("](") else held


def spoken(word: str, *, first: bool = False, last: bool = False) -> str:
    """Return what is pronounced of a word; empty if it is markup alone.

    Args:
        first: whether it is the first of its line.
        last: whether it is the last.
    """
    if first:
        if _LINE_MARK.fullmatch(word) or (last and _FENCE.fullmatch(word)):
            return ""
        word = _QUOTE.sub("", word)
    if _FACE.fullmatch(word):
        return ""
    if _STAR.fullmatch(word):
        return word
    marks = _AROUND if _ADDRESS.search(word) else _MARKS
    return marks.sub("", _JOINER.sub("", word))


def _instead(found: re.Match[str]) -> str:
    name, rest = found.groups()
    if name is None:
        return ""
    if rest.strip(" \t/") and not (rest[0].isspace() and "=" in rest):
        return found[0]  # a <b or c> d
    name = name.strip("/").lower()
    return "\n" if _BLOCK.fullmatch(name) else " " if name == "break" else ""
