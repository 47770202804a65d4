"""The conversation as the language model is shown it: what was said, and what was heard.

A reply enters the history only as far as the caller heard it. The caller's words are never
lost: those said before a reply could be heard are joined to the ones they continue. A tool call
is never there without its result: until there is one, the result says so. What no longer fits
is left out where it is shown (`context.py`), and kept here for a while: what could never be shown
again is forgotten.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from voicebot.context import (
    CONTEXT_TOKENS,
    REQUEST_TOKENS,
    message_tokens,
    newest,
    shorten,
    tool_tokens,
)
from voicebot.ports import Message, Tool, ToolCall

# About 4,000 letters, or 3,000 signs of JSON; more crowds out the conversation.
MAX_RESULT_TOKENS: Final = 1_500
LEAST_PART: Final = 4  # a quarter is for the conversation, whatever the prompt and tools take
PENDING: Final = "not finished yet; its result will stand here"
_QUOTED_WORDS: Final = 4  # enough for a model to find the place


class Dialog:
    """History of one call.

    Args:
        tokens: what the model is shown may cost, by the estimate of `context.py`: the prompt,
            the tools offered, and of the conversation what is left for it.
        history: of a conversation that goes on, without the prompt.
    """

    def __init__(
        self,
        prompt: str,
        tools: Sequence[Tool] = (),
        tokens: int = CONTEXT_TOKENS,
        history: Sequence[Message] = (),
    ) -> None:
        self._system = Message("system", prompt)
        self._fixed = REQUEST_TOKENS + message_tokens(self._system) + sum(map(tool_tokens, tools))
        self._tokens = tokens
        self._messages = list(history)
        self._asking: list[int] = []  # where the reply under way called tools

    def caller_said(self, text: str) -> None:
        """Add a turn of the caller, or continue the one that got no audible answer."""
        if self._messages and self._messages[-1].role == "user":
            text = f"{self._messages.pop().content} {text}"
        self._messages.append(Message("user", text))
        self._forget()

    def _forget(self) -> None:
        """Drop the oldest exchanges, once there is twice as much as is kept."""
        costs = [message_tokens(message) for message in self._messages]
        most = self._tokens  # the rest can come back in no request
        # Positions of a reply under way must stay; and so must the last exchange.
        if self._asking or (left := sum(costs)) <= 2 * most:
            return
        keep = 0
        for index, message in enumerate(self._messages):
            if message.role == "user":
                keep = index
                if left <= most:
                    break
            left -= costs[index]
        del self._messages[:keep]

    def tools_called(self, said: str, calls: Sequence[ToolCall]) -> None:
        """Add tool calls of the reply under way, behind what it said since the last ones."""
        self._asking.append(len(self._messages))
        self._messages.append(Message("assistant", said, tuple(calls)))
        self._messages += [Message("tool", PENDING, tool_call_id=call.id) for call in calls]

    def tool_returned(self, call_id: str, result: str) -> None:
        """Add the result of a tool call, whichever turn it is by now."""
        for index, message in enumerate(self._messages):
            if message.role == "tool" and message.tool_call_id == call_id:
                self._messages[index] = replace(message, content=shorten(result, MAX_RESULT_TOKENS))

    def bot_said(self, *heard: str, interrupted: bool) -> None:
        """Add what the caller heard of a reply; nothing at all if nothing was heard.

        Args:
            heard: one text for each time the reply called tools, of what it said before, and
                one for what it said behind the last.
        """
        parts = list(heard)
        last = max((index for index, part in enumerate(parts) if part), default=None)
        if interrupted and last is not None:
            quoted = " ".join(parts[last].split()[-_QUOTED_WORDS:])
            parts[last] += f'… [interrupted by the caller after: "{quoted}"]'
        for index, part in zip(self._asking, parts, strict=False):
            self._messages[index] = replace(self._messages[index], content=part)
        self._asking.clear()
        if parts and parts[-1]:
            self._messages.append(Message("assistant", parts[-1]))

    @property
    def history(self) -> tuple[Message, ...]:
        """All of the conversation, without the prompt."""
        return tuple(self._messages)

    def messages(self, guess: str = "") -> list[Message]:
        """Return the prompt and as much of the newest history as fits, oldest first.

        Args:
            guess: what the caller seems to have said, which is not in the history yet.
        """
        if guess:
            supposed = copy.copy(self)
            supposed._messages = self._messages.copy()
            supposed.caller_said(guess)
            return supposed.messages()
        room = max(self._tokens - self._fixed, self._tokens // LEAST_PART)
        return [self._system, *newest(self._messages, room)]

    def shrink(self) -> bool:
        """Show a quarter less from now on, for it was too long; return whether there is less."""
        shown = self.messages()
        self._tokens = (self._fixed + sum(map(message_tokens, shown[1:]))) * 3 // 4
        return self.messages() != shown
