"""The synthesizer by WebSocket against the stand-in: two readings of one contract."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.servers import cancel_at_every_step, open_fds
from voicebot.errors import ProviderError, ProviderRejected
from voicebot.standins import API_KEY, Deepgram, SpeakSocketConduct, deepgram_rules, open_deepgram
from voicebot.standins.listen import Close
from voicebot.standins.voice import speak
from voicebot.tts_socket import SocketSynthesizer, open_synthesizer

LONG = "A sentence of some length, which takes its time."


@asynccontextmanager
async def running(**options: Any) -> AsyncGenerator[tuple[SocketSynthesizer, Deepgram]]:
    """Both, connected; at the end the client may hold no connection."""
    conduct = SpeakSocketConduct(**{"rate": math.inf, **options})
    with trio.fail_after(30):
        async with open_deepgram(api_key=API_KEY, speak_socket=conduct) as deepgram:
            async with open_synthesizer(
                url=deepgram.url, api_key=API_KEY, model="aura-2-thalia-en"
            ) as synthesizer:
                yield synthesizer, deepgram
            await deepgram.server.wait_closed()


async def say(synthesizer: SocketSynthesizer, text: str) -> bytes:
    async with synthesizer.open_speech(text) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def test_speech_comes_whole_over_one_socket() -> None:
    texts = ["Hello.", "How can I help you?", "x" * 1_900]
    async with running() as (synthesizer, deepgram):
        for text in texts:
            assert await say(synthesizer, text) == speak(text)
    (seen,) = deepgram.speak_socket.connections
    assert seen.texts == texts
    assert seen.controls[-1] == "Close"


@pytest.mark.parametrize("flushed", ["never", "before", "after"])
@pytest.mark.parametrize("late", [0, 3])
async def test_what_was_under_way_when_it_was_cleared_is_not_of_the_next_piece(
    flushed: str, late: int
) -> None:
    async with running(rate=4, chunk_bytes=500, late_chunks=late, flushed_of_cleared=flushed) as (
        synthesizer,
        deepgram,
    ):
        for _ in range(3):
            async with synthesizer.open_speech(LONG) as chunks:
                assert speak(LONG).startswith(await anext(chunks))
            with trio.fail_after(5):
                while not synthesizer._free:  # noqa: ASYNC110  # nothing else tells
                    await trio.sleep(0.01)
            assert await say(synthesizer, "Yes?") == speak("Yes?")
        (seen,) = deepgram.speak_socket.connections
        assert seen.sent["Cleared"] == 3
        assert synthesizer.counts["cleared"] == 3


async def test_limits_of_a_minute_are_never_reached() -> None:
    async with running() as (synthesizer, deepgram):
        for _ in range(23):
            await say(synthesizer, "Yes.")
        for _ in range(3):
            await say(synthesizer, "x" * 1_000)
        assert synthesizer.counts["stale"] == 0
        assert len(deepgram.speak_socket.connections) == 3
        for seen in deepgram.speak_socket.connections:
            assert seen.sent["Warning"] == 0
            assert seen.close_code is None  # all are open


async def test_limit_that_is_lower_than_documented_costs_a_socket_and_no_speech() -> None:
    async with running(chars=20) as (synthesizer, deepgram):
        for _ in range(4):
            assert await say(synthesizer, "Good evening.") == speak("Good evening.")
        assert len(deepgram.speak_socket.connections) == 4
        assert synthesizer.counts["stale"] == 3


async def test_idle_socket_that_is_closed_costs_nothing() -> None:
    async with running(idle_s=0.4) as (synthesizer, deepgram):
        for _ in range(3):
            assert await say(synthesizer, "Yes.") == speak("Yes.")
            while deepgram.speak_socket.connections_open:  # noqa: ASYNC110  # nothing else tells
                await trio.sleep(0.02)
        assert len(deepgram.speak_socket.connections) == 3
        assert synthesizer.counts["stale"] == 0


@pytest.mark.parametrize(
    "options, said, retryable",
    [
        ({"drop_after_bytes": 4_000}, "lost", True),
        ({"reset_after_bytes": 4_000}, "lost", True),
        ({"end_after_bytes": 4_000}, "closed with 1000", True),
        ({"end_after_bytes": 4_000, "close": Close(1011, "NET-0000: x")}, "NET-0000", True),
        ({"end_after_bytes": 0, "close": Close(1008, "DATA-0000: x")}, "DATA-0000", False),
    ],
)
async def test_speech_cut_off_is_an_error(
    options: dict[str, Any], said: str, retryable: bool
) -> None:
    async with running(**options) as (synthesizer, _):
        with pytest.raises(ProviderError, match=said) as caught:
            await say(synthesizer, LONG)
        assert caught.value.retryable is retryable


async def test_speech_that_stalls_is_left_and_its_socket_with_it() -> None:
    async with running(stall_after_bytes=4_000) as (synthesizer, deepgram):
        with trio.move_on_after(0.2) as patience:
            await say(synthesizer, LONG)
        assert patience.cancelled_caught
        await deepgram.server.wait_closed()
        assert deepgram.speak_socket.connections[0].controls == ["Speak", "Flush", "Clear", "Close"]


@pytest.mark.parametrize(
    "refusal, retryable",
    [(deepgram_rules.INVALID_AUTH, False), (deepgram_rules.TOO_MANY_REQUESTS, True)],
)
async def test_refusals_are_understood(refusal: deepgram_rules.Refusal, retryable: bool) -> None:
    async with running(refusal=refusal) as (synthesizer, _):
        with pytest.raises(ProviderRejected) as caught:
            await say(synthesizer, "Hello.")
        error = caught.value
        assert (error.status, error.code) == (refusal.status, refusal.err_code)
        assert error.retryable is retryable


async def test_warnings_do_no_harm() -> None:
    async with running(flushes=1, warning="seen") as (synthesizer, _):
        assert await say(synthesizer, "Yes.") == speak("Yes.")
        with trio.move_on_after(0.3) as patience:
            await say(synthesizer, "No.")  # this one is not answered
        assert patience.cancelled_caught
        while not synthesizer._free:  # noqa: ASYNC110  # nothing else tells
            await trio.sleep(0.01)


async def test_cancelled_at_every_step_nothing_is_lost_or_left() -> None:
    await wait_all_tasks_blocked(0.02)
    before = open_fds()
    async with running() as (synthesizer, deepgram):

        async def act() -> None:
            for text in ("One.", "Two."):
                assert await say(synthesizer, text) == speak(text)

        assert await cancel_at_every_step(act) > 10
        with trio.fail_after(5):
            while len(synthesizer._free) != deepgram.speak_socket.connections_open:  # noqa: ASYNC110  # nothing else tells
                await trio.sleep(0.02)
        assert synthesizer._opening == 0
        assert await say(synthesizer, "Three.") == speak("Three.")
    await wait_all_tasks_blocked(0.02)
    assert open_fds() == before
