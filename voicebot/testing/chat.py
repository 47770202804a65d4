"""A language model that answers from a script, with its faults as data."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import trio

from voicebot.errors import ProviderError
from voicebot.ports import Message, Tool, ToolCall
from voicebot.testing.faults import linger

_DELTA: Final = re.compile(r"\s*\S+|\s+")  # a word with the space before it, as models write


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of the model: its text word by word, then its tool calls.

    Units: seconds; `fail_after` and `stall_after` count words, and 0 is before the first.
    """

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    first_s: float = 0.2  # from the request to the first word
    gap_s: float = 0.02  # between words
    fail_after: int | None = None  # ProviderError instead of the next word
    stall_after: int | None = None  # never gives the next word
    close_s: float = 0.0  # not to be cancelled


@dataclass(frozen=True, slots=True)
class Request:
    """What the model was asked, and when on Trio's clock."""

    at: float
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...]


class ScriptedChat:
    """A `ports.Chat` that gives the next reply of its script to each request.

    A reply with tool calls is one reply; the request that brings their results gets the next.

    Args:
        replies: texts and `Reply`s, one for each request, then `default`; or a function that
            is shown the messages and returns one. What the function raises ends the call.

    `requests` is everything asked, in order; `cancelled` counts replies that were broken off.
    """

    def __init__(
        self,
        replies: Iterable[Reply | str] | Callable[[Sequence[Message]], Reply | str] = (),
        *,
        default: Reply | str = "Yes.",
    ) -> None:
        self.requests: list[Request] = []
        self.cancelled = 0
        if callable(replies):
            self._choose = replies
        else:
            script = iter(replies)
            self._choose = lambda messages: next(script, default)

    @asynccontextmanager
    async def open_reply(
        self, messages: Sequence[Message], tools: Sequence[Tool] = ()
    ) -> AsyncGenerator[AsyncIterator[str | ToolCall]]:
        """Stream the next reply. See `ports.Chat.open_reply`."""
        self.requests.append(Request(trio.current_time(), tuple(messages), tuple(tools)))
        chosen = self._choose(messages)
        reply = Reply(chosen) if isinstance(chosen, str) else chosen
        try:
            await trio.sleep(reply.first_s)
            yield _Deltas(reply)
        except trio.Cancelled:
            self.cancelled += 1
            raise
        finally:
            await linger(reply.close_s)  # noqa: ASYNC102  # shielded and bounded itself


class _Deltas:
    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._given = 0
        self._deltas: list[str | ToolCall] = [*_DELTA.findall(reply.text), *reply.tool_calls]

    def __aiter__(self) -> _Deltas:
        return self

    async def __anext__(self) -> str | ToolCall:
        reply = self._reply
        await trio.sleep(reply.gap_s if self._given else 0)
        if self._given == reply.fail_after:
            raise ProviderError("scripted chat", "broke off", retryable=True)
        if self._given == reply.stall_after:
            await trio.sleep_forever()
        if self._given == len(self._deltas):
            raise StopAsyncIteration
        self._given += 1
        return self._deltas[self._given - 1]
