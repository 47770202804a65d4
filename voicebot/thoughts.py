"""Takes out of a model's words what it only thinks: `<think>…</think>`, as Qwen and DeepSeek do.

Sans-IO. Servers that know the model send its reasoning in a field of its own; this is for those
that do not. A model whose opening tag is in its template, and so not in its words, is spoken up
to the closing one: nothing tells its thoughts from words before.
"""

from __future__ import annotations

import re
from typing import Final

_TAG: Final = re.compile(r"<(/?)think>", re.I)
_TAGS: Final = ("<think>", "</think>")


class Thoughts:
    """Filters one answer, cut anywhere; make a new one for the next."""

    def __init__(self) -> None:
        self._thinking = False
        self._held = ""  # may be the beginning of a tag

    def feed(self, text: str) -> str:
        """Take more of the answer; return what of it may be spoken."""
        text, spoken = self._held + text, []
        while tag := _TAG.search(text):
            if not self._thinking:
                spoken.append(text[: tag.start()])
            self._thinking = not tag[1]
            text = text[tag.end() :]
        at = text.rfind("<")
        # A tag has one "<", its first sign, so only the last one can begin a tag.
        if at < 0 or not any(tag.startswith(text[at:].lower()) for tag in _TAGS):
            at = len(text)
        self._held = text[at:]
        if not self._thinking:
            spoken.append(text[:at])
        return "".join(spoken)

    def flush(self) -> str:
        """Return what was held back, at the end of the answer. A thought without end is none."""
        held, self._held = self._held, ""
        return "" if self._thinking else held
