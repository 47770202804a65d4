"""The language model and the voice of one call, with what happens when a provider fails.

Each implements its port on top of alternatives (`tries.py`): a deadline for the beginning of
an answer and one for its gaps, another try where nothing of it was used yet, and every failure
told to the call, whose timeline it belongs on. A failure in the middle of an answer is the
caller's of the port: only the call knows what was made of the beginning.

Cancellation: as in the ports; a try that failed is let go of before the next begins.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Generic, Self, TypeVar

import trio

from voicebot import audio
from voicebot.errors import ProviderError, ProviderTimeout, ReplyCut, kind_of
from voicebot.plan import Timeouts
from voicebot.ports import Chat, Message, Synthesizer, Tool, ToolCall
from voicebot.record import ProviderRequest
from voicebot.tries import Alternatives, PartT, name_of

ItemT = TypeVar("ItemT")

#: Told of each failure: what failed, and whether its provider is left alone from now on.
OnFailure = Callable[[ProviderError, bool], None]


class Witness:
    """Is told of each request, synchronously. This one forgets."""

    def asked(self, provider: object) -> ProviderRequest:
        """Begin the record of a request."""
        return ProviderRequest("tts", name_of(provider), None, 0.0)

    def accepted(self, request: ProviderRequest) -> None:
        """Note that the provider has taken it."""

    def first(self, request: ProviderRequest) -> None:
        """Note that something of the answer is there."""

    def ended(self, request: ProviderRequest, failed: str = "") -> None:
        """End the record; `failed` is one of `errors.kind_of`."""


class FailoverChat:
    """`ports.Chat` of one call."""

    def __init__(
        self,
        chats: Alternatives[Chat],
        timeouts: Timeouts,
        on_failure: OnFailure,
        witness: Witness | None = None,
    ) -> None:
        self._chats = chats
        self._broke: tuple[Chat, ...] = ()  # off, in the middle of an answer: they may again
        self._timeouts = timeouts
        self._on_failure = on_failure
        self._witness = witness or Witness()

    @asynccontextmanager
    async def open_reply(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        *,
        until: float = math.inf,
    ) -> AsyncGenerator[AsyncIterator[str | ToolCall]]:
        """Stream one answer; see `ports.Chat`.

        `until`: when it must have begun at the latest, on Trio's clock.
        """
        timeouts = self._timeouts
        tries = _Tries(
            self._chats,
            timeouts.answer_tries,
            min(timeouts.answer_s, until - trio.current_time()),
            lambda chat: chat.open_reply(messages, tools),
            self._on_failure,
            self._broke,
            self._witness,
        )
        try:
            async with tries.open(timeouts.first_token_s, _Gaps(timeouts.token_gap_s)) as answer:
                yield answer
        finally:
            self._broke = tries.broke


class FailoverVoice:
    """`ports.Synthesizer` of one call."""

    def __init__(
        self,
        voices: Alternatives[Synthesizer],
        timeouts: Timeouts,
        on_failure: OnFailure,
        witness: Witness | None = None,
    ) -> None:
        self._voices = voices
        self._broke: tuple[Synthesizer, ...] = ()  # as for the model
        self._timeouts = timeouts
        self._on_failure = on_failure
        self._witness = witness or Witness()

    @asynccontextmanager
    async def open_speech(self, text: str) -> AsyncGenerator[AsyncIterator[bytes]]:
        """Stream one piece of speech; see `ports.Synthesizer`."""
        timeouts = self._timeouts
        tries = _Tries(
            self._voices,
            timeouts.speech_tries,
            timeouts.speech_tries * timeouts.first_audio_s,
            lambda voice: voice.open_speech(text),
            self._on_failure,
            self._broke,
            self._witness,
        )
        gaps = _RealTime(timeouts.audio_gap_s)
        try:
            async with tries.open(timeouts.first_audio_s, gaps) as chunks:
                yield chunks
        finally:
            self._broke = tries.broke


class _Gaps(Generic[ItemT]):
    """Each item may come so long after the one before was taken."""

    def __init__(self, gap_s: float) -> None:
        self._gap_s = gap_s

    def taken(self, item: ItemT, now: float) -> None:
        """Note an item."""

    def due(self, now: float) -> float:
        """Return until when the next may come."""
        return now + self._gap_s


class _RealTime(_Gaps[bytes]):
    """Audio may be waited for, in all, for so much longer than what came takes to be played.

    So a drip that is slower than speech is a stall as well, only later.
    """

    def __init__(self, gap_s: float) -> None:
        super().__init__(gap_s)
        self._left_s = gap_s
        self._waiting_since: float | None = None  # the first is waited for under another rule

    def taken(self, item: bytes, now: float) -> None:
        if self._waiting_since is not None:
            self._left_s -= now - self._waiting_since
        self._left_s += len(item) / audio.BYTES_PER_S

    def due(self, now: float) -> float:
        self._waiting_since = now
        return now + self._left_s


class _Tries(Generic[PartT, ItemT]):
    """One request, tried until it begins to be answered."""

    def __init__(
        self,
        parts: Alternatives[PartT],
        count: int,
        patience_s: float,
        ask: Callable[[PartT], AbstractAsyncContextManager[AsyncIterator[ItemT]]],
        on_failure: OnFailure,
        broke: tuple[PartT, ...],
        witness: Witness,
    ) -> None:
        self._witness = witness
        self.broke = broke  # who broke off, the last of them at the end
        self._until = trio.current_time() + patience_s
        self._tries = parts.tries(count, self._until, broke)
        self._ask = ask
        self._on_failure = on_failure

    @asynccontextmanager
    async def open(
        self, first_s: float, gaps: _Gaps[ItemT]
    ) -> AsyncGenerator[AsyncIterator[ItemT]]:
        """Yield the answer that began first.

        Raises:
            ProviderError: of the last try, or of the answer that broke off.
        """
        again = False
        while True:
            part = self._tries.begin(trio.current_time())
            answer: _Answer[ItemT] | None = None
            error: ProviderError | None = None
            cut = ""
            request = self._witness.asked(part)
            request.again = again
            try:
                # A pause that oversleeps leaves none, so this is a moment and no duration.
                late_at = min(trio.current_time() + first_s, self._until)
                with trio.fail_at(late_at) as patience:
                    async with self._ask(part) as items:
                        self._witness.accepted(request)
                        answer = _Answer(items, patience, gaps)
                        await answer.begin()
                        if not answer.over:
                            self._witness.first(request)
                        yield answer
                        patience.deadline = trio.current_time() + first_s  # for its close
                return
            except trio.TooSlowError as exc:
                if answer is not None and answer.over:
                    return  # all of it was given; only the close was late
                late = ProviderTimeout(name_of(part), "no answer in time")
                if answer is not None and answer.begun:
                    late = ProviderTimeout(name_of(part), "the answer stalled")
                late.__cause__ = exc
                error = late
            except ReplyCut as exc:  # no failure: the model is at its end
                cut = kind_of(exc)
                raise
            except ProviderError as exc:
                error = exc
            finally:
                # Not sooner: who breaks off every answer works for nobody. An answer that its
                # user leaves, because the caller has interrupted, went well so far.
                if error is None and answer is not None and answer.begun:
                    self._tries.worked()
                self._witness.ended(request, cut if error is None else kind_of(error))
            now = trio.current_time()
            pause = self._tries.failed(error, now)
            self._on_failure(error, self._tries.opened)
            if answer is not None and answer.begun:
                self.broke = (*(one for one in self.broke if one is not part), part)
                raise error
            if pause is None:
                raise error
            again = True
            await trio.sleep(pause)


class _Answer(Generic[ItemT]):
    """An answer under way. While its user is busy nobody is late."""

    def __init__(
        self, items: AsyncIterator[ItemT], patience: trio.CancelScope, gaps: _Gaps[ItemT]
    ) -> None:
        self._items = items
        self._patience = patience
        self._gaps = gaps
        self._first: list[ItemT] = []
        self.over = False
        self.begun = False

    async def begin(self) -> None:
        """Wait for the first item, within the patience there is."""
        try:
            self._first.append(await anext(self._items))
        except StopAsyncIteration:
            self.over = True
        self._patience.deadline = math.inf
        self.begun = True

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ItemT:
        if self._first:
            item = self._first.pop()
        elif self.over:
            raise StopAsyncIteration
        else:
            self._patience.deadline = self._gaps.due(trio.current_time())
            try:
                item = await anext(self._items)
            except StopAsyncIteration:
                self.over = True
                raise
            finally:
                self._patience.deadline = math.inf
        self._gaps.taken(item, trio.current_time())
        return item
