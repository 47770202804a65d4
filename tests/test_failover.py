"""The language model and the voice of a call while their providers fail."""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import trio
import trio.testing

from voicebot.errors import (
    ProviderError,
    ProviderRejected,
    ProviderTimeout,
    ReplyCut,
)
from voicebot.failover import FailoverChat, FailoverVoice
from voicebot.plan import Timeouts
from voicebot.ports import Message, Tool, ToolCall
from voicebot.tries import Alternatives

Clock = trio.testing.MockClock
SECOND = bytes(8_000)
TIMES = Timeouts(
    first_token_s=2.0,
    token_gap_s=3.0,
    answer_tries=3,
    answer_s=10.0,
    first_audio_s=2.0,
    audio_gap_s=1.0,
    speech_tries=3,
)


@dataclass
class Part:
    """Gives items, each after so many seconds, or raises where an error stands in their place."""

    items: Sequence[tuple[float, Any]] = ()
    opens: float = 0.0
    closes: float = 0.0
    name: str = "part"
    asked: list[float] = field(default_factory=list)
    closed: int = 0

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[AsyncIterator[Any]]:
        self.asked.append(trio.current_time())
        items = self._give()
        try:
            await trio.sleep(self.opens)
            yield items
            await trio.sleep(self.closes)
        finally:
            self.closed += 1
            with trio.move_on_after(1, shield=True):
                await items.aclose()

    async def _give(self) -> Any:
        for after, item in self.items:
            await trio.sleep(after)
            if isinstance(item, Exception):
                raise item
            yield item

    def open_reply(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> Any:
        return self._open()

    def open_speech(self, text: str) -> Any:
        return self._open()


class Failures:
    """What a call is told."""

    def __init__(self) -> None:
        self.told: list[tuple[ProviderError, bool]] = []

    def __call__(self, error: ProviderError, left_alone: bool) -> None:
        self.told.append((error, left_alone))


async def answer(
    failures: Failures, *parts: Part, pause: float = 0.0, times: Timeouts = TIMES
) -> list[str | ToolCall]:
    chat = FailoverChat(Alternatives(parts, times.retrying), times, failures)
    got = []
    async with chat.open_reply([Message("user", "hi")]) as deltas:
        async for delta in deltas:
            got.append(delta)
            await trio.sleep(pause)
    return got


async def speak(failures: Failures, *parts: Part, pause: float = 0.0) -> bytes:
    voice = FailoverVoice(Alternatives(parts, TIMES.retrying), TIMES, failures)
    got = b""
    async with voice.open_speech("hi") as chunks:
        async for chunk in chunks:
            got += chunk
            await trio.sleep(pause)
    return got


async def test_an_answer_comes_as_it_is(autojump_clock: Clock) -> None:
    part, failures = Part([(0.5, "a"), (1.0, "b")]), Failures()

    assert await answer(failures, part) == ["a", "b"]
    assert failures.told == []
    assert part.closed == 1


@pytest.mark.parametrize(
    "broken, after_s",
    [
        (Part([(0.3, ProviderError("x", "reset", retryable=True))]), 0.3),
        (Part([(0.0, ProviderRejected("x", "key", status=401))]), 0.0),
        (Part(opens=math.inf), 2.0),
        (Part([(math.inf, "never")]), 2.0),
    ],
)
async def test_another_answers_where_one_fails_before_its_first_word(
    broken: Part, after_s: float, autojump_clock: Clock
) -> None:
    healthy, failures = Part([(0.1, "b")]), Failures()

    assert await answer(failures, broken, healthy) == ["b"]
    assert healthy.asked == [after_s]
    assert len(failures.told) == len(broken.asked) == broken.closed == 1
    broken.asked.clear()
    broken.closed = 0


async def test_the_same_is_tried_again_where_there_is_no_other(autojump_clock: Clock) -> None:
    part, failures = Part([(0.0, ProviderError("x", "reset", retryable=True))]), Failures()

    with pytest.raises(ProviderError, match="reset"):
        await answer(failures, part)

    assert part.asked == pytest.approx([0.0, 0.1, 0.3])
    assert [alone for _, alone in failures.told] == [False, False, True]


async def test_patience_for_an_answer_is_that_of_all_its_tries(autojump_clock: Clock) -> None:
    part, failures = Part([(math.inf, "never")]), Failures()
    times = Timeouts(first_token_s=2.0, answer_tries=9, answer_s=5.0)

    with pytest.raises(ProviderTimeout, match="part: no answer in time"):
        await answer(failures, part, times=times)

    assert trio.current_time() == pytest.approx(5.0)
    assert len(part.asked) == 3


async def test_an_answer_that_should_have_begun_already_is_late(autojump_clock: Clock) -> None:
    """A pause before a try may oversleep what patience there is."""
    part, failures = Part([(0.1, "a")]), Failures()
    chat = FailoverChat(Alternatives([part], TIMES.retrying), TIMES, failures)
    await trio.sleep(1.0)

    with pytest.raises(ProviderTimeout, match="no answer in time"):
        async with chat.open_reply([], until=0.5):
            pass

    assert trio.current_time() == pytest.approx(1.0)
    assert len(part.asked) == 1


@pytest.mark.parametrize("retry_after_s", [5.0, 60.0])
async def test_a_voice_that_is_busy_is_waited_for_no_longer_than_a_late_one(
    retry_after_s: float, autojump_clock: Clock
) -> None:
    busy = ProviderRejected("part", "busy", status=429, retryable=True, retry_after_s=retry_after_s)
    part, failures = Part([(0.0, busy)]), Failures()

    with pytest.raises(ProviderRejected):
        await speak(failures, part)

    # Three tries of 2 s: what is to be waited for beyond that is not.
    assert part.asked == [0.0, 5.0][: 2 if retry_after_s < 6.0 else 1]
    assert trio.current_time() == part.asked[-1]


async def test_an_answer_that_stalls_or_breaks_off_is_not_tried_again(
    autojump_clock: Clock,
) -> None:
    other, failures = Part([(0.0, "b")]), Failures()

    with pytest.raises(ProviderTimeout, match="the answer stalled"):
        await answer(failures, Part([(0.0, "a"), (math.inf, "")]), other)
    assert trio.current_time() == pytest.approx(3.0)
    with pytest.raises(ProviderError, match="reset"):
        await answer(failures, Part([(0.0, "a"), (0.0, ProviderError("x", "reset"))]), other)

    assert other.asked == []
    assert len(failures.told) == 2


async def test_nobody_is_late_while_the_call_is_busy_with_what_came(autojump_clock: Clock) -> None:
    assert await answer(Failures(), Part([(1.0, "a"), (1.0, "b")]), pause=60.0) == ["a", "b"]
    assert await speak(Failures(), Part([(1.0, b"a"), (0.9, b"b")]), pause=60.0) == b"ab"


async def test_a_model_that_is_at_its_end_has_not_failed(autojump_clock: Clock) -> None:
    failures = Failures()

    with pytest.raises(ReplyCut):
        await answer(failures, Part([(0.0, "a"), (0.0, ReplyCut("x", "length"))]), Part())

    assert failures.told == []


@pytest.mark.parametrize("items", [[], [(0.0, "a")]])
async def test_an_answer_that_was_given_whole_is_one_however_late_its_close(
    items: list[tuple[float, Any]], autojump_clock: Clock
) -> None:
    failures = Failures()

    got = await answer(failures, Part(items, closes=math.inf))

    assert got == [item for _, item in items]
    assert failures.told == []
    assert trio.current_time() == pytest.approx(2.0)


async def test_an_error_of_the_call_itself_is_no_failure_of_the_provider(
    autojump_clock: Clock,
) -> None:
    failures = Failures()
    chat = FailoverChat(Alternatives([Part([(0.0, "a")])], TIMES.retrying), TIMES, failures)

    with pytest.raises(ZeroDivisionError):
        async with chat.open_reply([]):
            _ = 1 // 0

    assert failures.told == []


async def test_cancelling_is_no_failure_and_lets_go_of_the_provider(autojump_clock: Clock) -> None:
    part, failures = Part([(math.inf, "never")]), Failures()

    with trio.move_on_after(1.0):
        await answer(failures, part)

    assert failures.told == []
    assert part.closed == 1


async def test_a_voice_may_be_ahead_and_then_has_until_that_is_played(
    autojump_clock: Clock,
) -> None:
    assert await speak(Failures(), Part([(0.0, SECOND * 10), (10.9, SECOND)])) == SECOND * 11
    with pytest.raises(ProviderTimeout, match="the answer stalled"):
        await speak(Failures(), Part([(0.0, SECOND * 10), (11.1, SECOND)]))


async def test_a_drip_slower_than_speech_is_a_stall(autojump_clock: Clock) -> None:
    drip = [(0.5, SECOND[: len(SECOND) // 5])] * 20  # 0.2 s of speech every half a second
    failures = Failures()

    with pytest.raises(ProviderTimeout, match="the answer stalled"):
        await speak(failures, Part(drip))

    # Of the 1 s that it may be late in all each takes 0.3 s.
    assert trio.current_time() == pytest.approx(0.5 + 1.0 + 4 * 0.2, abs=0.21)


async def test_who_broke_off_in_the_middle_is_asked_last_from_then_on(
    autojump_clock: Clock,
) -> None:
    breaking = [(0.0, "a"), (0.1, ProviderError("first", "reset", retryable=True))]
    first, second, failures = Part(breaking), Part([(0.0, "b")]), Failures()
    chat = FailoverChat(Alternatives([first, second], TIMES.retrying), TIMES, failures)

    async def ask() -> list[str | ToolCall]:
        async with chat.open_reply([Message("user", "hi")]) as deltas:
            return [delta async for delta in deltas]

    with pytest.raises(ProviderError, match="reset"):
        await ask()
    assert await ask() == await ask() == ["b"]
    assert len(first.asked) == 1

    second.items = breaking  # then they change places again
    first.items = [(0.0, "a")]
    with pytest.raises(ProviderError, match="reset"):
        await ask()
    assert await ask() == ["a"]


async def test_a_sentence_that_broke_off_is_begun_again_by_another_voice(
    autojump_clock: Clock,
) -> None:
    breaking = [(0.0, SECOND), (0.1, ProviderError("first", "reset", retryable=True))]
    first, second, failures = Part(breaking), Part([(0.0, SECOND)]), Failures()
    voice = FailoverVoice(Alternatives([first, second], TIMES.retrying), TIMES, failures)

    got: list[bytes] = []
    for _ in range(3):
        with contextlib.suppress(ProviderError):
            async with voice.open_speech("hi") as chunks:
                got += [chunk async for chunk in chunks]

    assert got == [SECOND, SECOND]
    assert (len(first.asked), len(second.asked)) == (1, 2)


async def test_where_two_broke_off_the_third_is_asked(autojump_clock: Clock) -> None:
    breaking = [(0.0, SECOND), (0.1, ProviderError("first", "reset", retryable=True))]
    first, second, third = Part(breaking), Part(breaking), Part([(0.0, SECOND)])
    voice = FailoverVoice(Alternatives([first, second, third], TIMES.retrying), TIMES, Failures())

    for _ in range(4):
        with contextlib.suppress(ProviderError):
            async with voice.open_speech("hi") as chunks:
                assert [chunk async for chunk in chunks]

    assert [len(part.asked) for part in (first, second, third)] == [1, 1, 2]


async def test_who_breaks_off_every_answer_is_left_alone_after_some(autojump_clock: Clock) -> None:
    failures = Failures()
    broken = Part([(0.0, "a"), (0.0, ProviderError("x", "reset", retryable=True))])
    chats: Alternatives[Any] = Alternatives([broken, Part([(0.0, "b")])], TIMES.retrying)
    for _ in range(TIMES.breaker_failures):
        chat = FailoverChat(chats, TIMES, failures)  # of another call
        with pytest.raises(ProviderError, match="reset"):
            async with chat.open_reply([]) as deltas:
                assert [delta async for delta in deltas]
    assert [left_alone for _, left_alone in failures.told] == [False, False, True]
    async with FailoverChat(chats, TIMES, failures).open_reply([]) as deltas:
        assert [delta async for delta in deltas] == ["b"]


async def test_an_answer_that_the_caller_interrupts_went_well(autojump_clock: Clock) -> None:
    failures = Failures()
    down = Part([(0.0, ProviderError("x", "reset", retryable=True))])
    fine = Part([(0.0, "a"), (math.inf, "b")])
    chats: Alternatives[Any] = Alternatives([fine], TIMES.retrying)
    for parts in (down.items, down.items, fine.items, down.items, down.items):
        fine.items = parts
        with trio.move_on_after(1.0), contextlib.suppress(ProviderError):
            chat = FailoverChat(chats, replace(TIMES, answer_tries=1), failures)
            async with chat.open_reply([]) as deltas:
                async for _ in deltas:
                    pass
    assert [left_alone for _, left_alone in failures.told] == [False] * 4
