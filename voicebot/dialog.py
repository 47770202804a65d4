"""The conversation as the language model is shown it: what was said, and what was heard.

A reply enters the history only as far as the caller heard it. The caller's words are never
lost: those said before a reply could be heard are joined to the ones they continue.
"""

from __future__ import annotations

from typing import Final

from voicebot.ports import Message

MAX_HISTORY_CHARS: Final = 24_000  # about 6,000 tokens: under the smallest per-minute limit
_QUOTED_WORDS: Final = 4  # enough for a model to find the place


class Dialog:
    """History of one call."""

    def __init__(self, prompt: str) -> None:
        self._prompt = prompt
        self._messages: list[Message] = []

    def caller_said(self, text: str) -> None:
        """Add a turn of the caller, or continue the one that got no audible answer."""
        if self._messages and self._messages[-1].role == "user":
            text = f"{self._messages.pop().content} {text}"
        self._messages.append(Message("user", text))

    def bot_said(self, heard: str, *, interrupted: bool) -> None:
        """Add what the caller heard of a reply; nothing at all if nothing was heard."""
        if not heard:
            return
        if interrupted:
            last = " ".join(heard.split()[-_QUOTED_WORDS:])
            heard = f'{heard}… [interrupted by the caller after: "{last}"]'
        self._messages.append(Message("assistant", heard))

    def messages(self) -> list[Message]:
        """Return the prompt and as much of the newest history as fits, oldest first."""
        budget = MAX_HISTORY_CHARS
        kept: list[Message] = []
        for message in reversed(self._messages):
            budget -= len(message.content)
            if budget < 0 and kept:
                break
            kept.append(message)
        return [Message("system", self._prompt), *reversed(kept)]
