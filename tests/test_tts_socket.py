"""Speech over sockets that calls take turns with, in virtual time, with a Deepgram of 40 lines.

Real sockets are in `tests/contract`.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.servers import cancel_at_every_step
from voicebot import whose
from voicebot.deepgram_socket import DeepgramSocket
from voicebot.deepgram_speech import MAX_CHARS, MAX_FLUSHES, WINDOW_S, closed
from voicebot.errors import LocalProtocolError, ProviderError, ProviderRejected
from voicebot.hidden import open_hidden_nursery
from voicebot.tts_socket import CLEAR_S, IDLE_S, MAX_AGE_S, MUTE_S, SocketSynthesizer

AUDIO = b"\xff" * 800


class Socket:
    """One socket of the pretended Deepgram: answers 0.1 s later, or does as it is told."""

    def __init__(self, deepgram: Deepgram) -> None:
        self.deepgram = deepgram
        self.heard: list[str] = []  # types of messages
        self.texts: list[str] = []
        self.ended_at = math.inf
        self._to_client, self._from_server = trio.open_memory_channel[Any](math.inf)

    def say(self, *messages: Any) -> None:
        for message in messages:
            self._to_client.send_nowait((trio.current_time() + 0.1, message))

    async def send(self, message: str) -> None:
        await trio.sleep(self.deepgram.send_s)
        fields = json.loads(message)
        self.heard.append(fields["type"])
        if fields["type"] == "Speak":
            self.texts.append(fields["text"])
        self.deepgram.answer(self, fields["type"])

    async def receive(self) -> str | bytes:
        due, message = await self._from_server.receive()
        try:
            await trio.sleep_until(due)
        except trio.Cancelled:
            self.say(message)  # nothing is lost; that it comes later does no harm here
            raise
        if isinstance(message, Exception):
            raise message
        return cast("str | bytes", message)


class Deepgram:
    """Opens sockets in 0.3 s."""

    def __init__(self) -> None:
        self.sockets: list[Socket] = []
        self.open = 0
        self.tries = 0
        self.send_s = 0.0
        self.refusal: Exception | None = None
        self.answer: Callable[[Socket, str], None] = self.speak

    @staticmethod
    def speak(socket: Socket, kind: str) -> None:
        if kind == "Flush":
            socket.say(AUDIO, AUDIO, '{"type":"Flushed"}')
        elif kind == "Clear":
            socket.say('{"type":"Cleared"}')

    @asynccontextmanager
    async def connect(self) -> AsyncGenerator[DeepgramSocket]:
        self.tries += 1
        await trio.sleep(0.3)
        if self.refusal is not None:
            raise self.refusal
        socket = Socket(self)
        self.sockets.append(socket)
        self.open += 1
        try:
            yield cast("DeepgramSocket", socket)
        finally:
            self.open -= 1
            socket.ended_at = trio.current_time()


@asynccontextmanager
async def open_pretended() -> AsyncGenerator[tuple[SocketSynthesizer, Deepgram]]:
    deepgram = Deepgram()
    async with open_hidden_nursery("test") as nursery:
        yield SocketSynthesizer(nursery, deepgram.connect), deepgram
    assert deepgram.open == 0


async def speak(synthesizer: SocketSynthesizer, text: str = "Hello.") -> bytes:
    async with synthesizer.open_speech(text) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def test_pieces_follow_each_other_on_one_socket(autojump_clock: MockClock) -> None:
    async with open_pretended() as (synthesizer, deepgram):
        for text in ("One.", "Two.", "Three."):
            assert await speak(synthesizer, text) == AUDIO * 2
        (socket,) = deepgram.sockets
        assert socket.texts == ["One.", "Two.", "Three."]
        assert socket.heard == ["Speak", "Flush"] * 3
        assert synthesizer.counts == {"opened": 1, "pieces": 3}


async def test_calls_that_speak_at_once_have_a_socket_each(autojump_clock: MockClock) -> None:
    async with open_pretended() as (synthesizer, deepgram):
        for _ in range(2):
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(speak, synthesizer)
        assert [len(socket.texts) for socket in deepgram.sockets] == [2] * 5


async def test_piece_left_early_is_cleared_and_its_socket_kept(autojump_clock: MockClock) -> None:
    def answer(socket: Socket, kind: str) -> None:
        if kind == "Clear":
            socket.say(b"late", '{"type":"Flushed"}', b"late", '{"type":"Cleared"}')
        else:
            Deepgram.speak(socket, kind)

    async with open_pretended() as (synthesizer, deepgram):
        deepgram.answer = answer
        async with synthesizer.open_speech("A long story.") as chunks:
            assert await anext(chunks) == AUDIO
            await trio.sleep(MUTE_S)
            left = trio.current_time()
        assert trio.current_time() == left  # nothing is waited for
        await trio.sleep(0.5)
        assert await speak(synthesizer, "Yes?") == AUDIO * 2
        (socket,) = deepgram.sockets
        assert socket.heard == ["Speak", "Flush", "Clear", "Speak", "Flush"]
        assert synthesizer.counts == {"opened": 1, "pieces": 2, "cleared": 1}


async def test_piece_does_not_wait_for_a_socket_that_is_being_cleared(
    autojump_clock: MockClock,
) -> None:
    async with open_pretended() as (synthesizer, deepgram):
        async with synthesizer.open_speech("A long story.") as chunks:
            await anext(chunks)
        assert await speak(synthesizer, "Yes?") == AUDIO * 2
        assert [socket.texts for socket in deepgram.sockets] == [["A long story."], ["Yes?"]]


@pytest.mark.parametrize("talks", [False, True])
async def test_socket_that_does_not_clear_in_time_is_closed(
    autojump_clock: MockClock, talks: bool
) -> None:
    def answer(socket: Socket, kind: str) -> None:
        if kind == "Flush":
            socket.say(*[AUDIO] * (1_000 if talks else 2))

    async with open_pretended() as (synthesizer, deepgram):
        deepgram.answer = answer
        async with synthesizer.open_speech("A long story.") as chunks:
            await anext(chunks)
        left = trio.current_time()
        await trio.sleep(CLEAR_S + 0.01)
        assert deepgram.sockets[0].ended_at == pytest.approx(left + CLEAR_S)
        assert deepgram.sockets[0].heard == ["Speak", "Flush", "Clear"]
        deepgram.answer = Deepgram.speak
        assert await speak(synthesizer) == AUDIO * 2
        assert len(deepgram.sockets) == 2


@pytest.mark.parametrize("late_s, sockets", [(MUTE_S, 2), (MUTE_S - 0.01, 1)])
async def test_socket_that_said_nothing_when_it_was_left_is_not_kept(
    autojump_clock: MockClock, late_s: float, sockets: int
) -> None:
    def answer(socket: Socket, kind: str) -> None:
        if kind == "Clear":
            socket.say('{"type":"Cleared"}')

    async with open_pretended() as (synthesizer, deepgram):
        deepgram.answer = answer
        speech = synthesizer.open_speech("Hello.")
        chunks = await speech.__aenter__()
        with trio.move_on_after(late_s):
            await anext(chunks)
        await speech.__aexit__(None, None, None)
        await trio.sleep(0.2)
        deepgram.answer = Deepgram.speak
        assert await speak(synthesizer) == AUDIO * 2
        assert len(deepgram.sockets) == sockets
        assert ("Clear" in deepgram.sockets[0].heard) is (sockets == 1)
        # One that has spoken before and begins at once is as good as new.
        await speak(synthesizer)
        assert len(deepgram.sockets) == sockets


async def test_socket_that_was_to_be_ready_and_could_not_be_had_is_told(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_pretended() as (synthesizer, deepgram):
        deepgram.refusal = ProviderError("deepgram-tts", "down", retryable=True)
        synthesizer.warm()
        await trio.sleep(1)
        [logged] = [r for r in caplog.records if r.message == "tts_socket_failed"]
        assert "down" in logged.error  # type: ignore[attr-defined]
        deepgram.refusal = None
        assert await speak(synthesizer) == AUDIO * 2


async def test_nothing_is_sent_behind_half_a_message(autojump_clock: MockClock) -> None:
    async with open_pretended() as (synthesizer, deepgram):
        deepgram.send_s = 1.0
        with trio.move_on_after(0.5):
            await speak(synthesizer)
        deepgram.send_s = 0.0
        await trio.sleep(0.1)
        assert deepgram.sockets[0].heard == []
        assert deepgram.open == 0


async def test_free_socket_is_closed_after_half_a_minute(autojump_clock: MockClock) -> None:
    async with open_pretended() as (synthesizer, deepgram):
        await speak(synthesizer)
        await trio.sleep(IDLE_S - 1)
        await speak(synthesizer)
        await trio.sleep(IDLE_S - 1)
        assert deepgram.open == 1
        await trio.sleep(2)
        assert deepgram.open == 0
        assert await speak(synthesizer) == AUDIO * 2
        assert synthesizer.counts["opened"] == 2


async def test_socket_used_last_is_used_next_so_that_the_others_come_to_rest(
    autojump_clock: MockClock,
) -> None:
    async with open_pretended() as (synthesizer, deepgram):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(speak, synthesizer)
        for _ in range(16):
            await trio.sleep(2)
            await speak(synthesizer)
        assert deepgram.open == 1
        assert synthesizer.counts["opened"] == 3


async def test_socket_is_closed_before_deepgram_would(autojump_clock: MockClock) -> None:
    async with open_pretended() as (synthesizer, deepgram):
        await speak(synthesizer)
        opened = trio.current_time()
        while trio.current_time() < opened + MAX_AGE_S:
            await trio.sleep(20)
            await speak(synthesizer)
        assert [len(socket.texts) for socket in deepgram.sockets][1:] == [1]
        await trio.sleep(IDLE_S)
        assert deepgram.sockets[0].ended_at < opened + MAX_AGE_S + IDLE_S


async def test_socket_that_grew_old_while_it_spoke_is_not_kept(autojump_clock: MockClock) -> None:
    async with open_pretended() as (synthesizer, deepgram):
        async with synthesizer.open_speech("Hello.") as chunks:
            await anext(chunks)
            await trio.sleep(MAX_AGE_S)
            assert [chunk async for chunk in chunks] == [AUDIO]
        await wait_all_tasks_blocked()
        assert deepgram.open == 0


async def test_limits_of_a_minute_are_kept_by_another_socket(autojump_clock: MockClock) -> None:
    async with open_pretended() as (synthesizer, deepgram):
        for _ in range(MAX_FLUSHES + 1):
            await speak(synthesizer)
        assert [len(socket.texts) for socket in deepgram.sockets] == [MAX_FLUSHES, 1]
        await speak(synthesizer, "x" * 1_500)
        await speak(synthesizer, "x" * 1_500)
        assert [len(socket.texts) for socket in deepgram.sockets] == [MAX_FLUSHES, 2, 1]
        for socket in deepgram.sockets:
            assert sum(map(len, socket.texts)) <= MAX_CHARS
        await trio.sleep(IDLE_S - 10)
        for _ in range(4):  # keep them
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(speak, synthesizer)
            await trio.sleep(WINDOW_S / 3)
        assert len(deepgram.sockets) <= 4


# Failures


async def test_socket_lost_while_free_is_replaced_without_a_word(
    autojump_clock: MockClock,
) -> None:
    async with open_pretended() as (synthesizer, deepgram):
        await speak(synthesizer)
        deepgram.sockets[0].say(closed(1011, "NET-0001: idle"))
        await trio.sleep(1)
        assert deepgram.open == 0
        assert await speak(synthesizer) == AUDIO * 2
        assert synthesizer.counts["stale"] == 0


@pytest.mark.parametrize("fails", ["Speak", "Flush", "silently"])
@pytest.mark.parametrize(
    "error", [closed(1006, ""), closed(1011, "NET-0001: x"), closed(1008, "DATA-0001: quota")]
)
async def test_old_socket_that_fails_before_the_first_audio_is_made_good_for(
    autojump_clock: MockClock, fails: str, error: Exception
) -> None:
    def answer(socket: Socket, kind: str) -> None:
        if socket is not deepgram.sockets[0]:
            Deepgram.speak(socket, kind)
        elif kind == fails:
            raise error
        elif kind == "Flush":
            socket.say(error)

    async with open_pretended() as (synthesizer, deepgram):
        await speak(synthesizer)
        deepgram.answer = answer
        assert await speak(synthesizer, "Again.") == AUDIO * 2
        assert [socket.texts[-1] for socket in deepgram.sockets] == ["Again.", "Again."]
        assert synthesizer.counts["stale"] == 1
        await wait_all_tasks_blocked()
        assert deepgram.open == 1


async def test_new_socket_that_fails_is_an_error(autojump_clock: MockClock) -> None:
    async with open_pretended() as (synthesizer, deepgram):
        deepgram.answer = lambda socket, kind: socket.say(closed(1011, "NET-0000: x"))
        with pytest.raises(ProviderRejected, match="NET-0000") as caught:
            await speak(synthesizer)
        assert caught.value.retryable
        assert len(deepgram.sockets) == 1


async def test_failure_that_would_come_again_is_an_error_at_once(
    autojump_clock: MockClock,
) -> None:
    async with open_pretended() as (synthesizer, deepgram):
        await speak(synthesizer)
        deepgram.answer = lambda socket, kind: socket.say(closed(1008, "DATA-0000: bad"))
        with pytest.raises(ProviderRejected, match="DATA-0000") as caught:
            await speak(synthesizer)
        assert not caught.value.retryable
        assert len(deepgram.sockets) == 1


async def test_failure_in_the_middle_is_an_error_after_what_came(
    autojump_clock: MockClock,
) -> None:
    def answer(socket: Socket, kind: str) -> None:
        if kind == "Flush":
            socket.say(AUDIO, closed(1006, ""))

    async with open_pretended() as (synthesizer, deepgram):
        await speak(synthesizer)
        deepgram.answer = answer
        async with synthesizer.open_speech("Hello.") as chunks:
            assert await anext(chunks) == AUDIO
            with pytest.raises(ProviderError, match="lost"):
                await anext(chunks)
        assert len(deepgram.sockets) == 1


async def test_piece_without_audio_is_an_error_and_costs_no_socket(
    autojump_clock: MockClock,
) -> None:
    async with open_pretended() as (synthesizer, deepgram):
        deepgram.answer = lambda socket, kind: (
            socket.say('{"type":"Flushed"}') if kind == "Flush" else None
        )
        with pytest.raises(ProviderError, match="no audio") as caught:
            await speak(synthesizer)
        assert caught.value.retryable
        deepgram.answer = Deepgram.speak
        assert await speak(synthesizer) == AUDIO * 2
        assert len(deepgram.sockets) == 1


async def test_refusal_is_the_error_of_who_wanted_to_speak(autojump_clock: MockClock) -> None:
    async with open_pretended() as (synthesizer, deepgram):
        deepgram.refusal = ProviderRejected("deepgram-tts", "refused with 429", status=429)
        with pytest.raises(ProviderRejected, match="429"):
            await speak(synthesizer)
        synthesizer.warm()
        await trio.sleep(1)
        deepgram.refusal = None
        assert await speak(synthesizer) == AUDIO * 2


async def test_bug_of_a_socket_is_an_error_of_its_user_alone(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_pretended() as (synthesizer, deepgram):
        deepgram.refusal = RuntimeError("a bug")
        with pytest.raises(ProviderError, match="a bug"):
            await speak(synthesizer)
        deepgram.refusal = None
        assert await speak(synthesizer) == AUDIO * 2
    assert "tts_socket_crashed" in [record.message for record in caplog.records]


async def test_warnings_are_logged_once_for_each_socket(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(socket: Socket, kind: str) -> None:
        if kind == "Flush":
            socket.say('{"type":"Warning","warn_code":"SLOW","warn_msg":"x"}')
            socket.say('{"type":"Metadata"}')
        Deepgram.speak(socket, kind)

    with caplog.at_level(logging.INFO):
        async with open_pretended() as (synthesizer, deepgram):
            deepgram.answer = answer
            for _ in range(3):
                assert await speak(synthesizer) == AUDIO * 2
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.message for record in warnings] == ["tts_warning"]
    assert warnings[0].__dict__["detail"] == "SLOW: x"
    (end,) = [record for record in caplog.records if record.message == "tts_socket_closed"]
    assert end.__dict__["skipped"] == {"warning": 3, "metadata": 3}


@pytest.mark.parametrize("text", ["", " ", "x" * 1_901])
async def test_text_that_deepgram_would_refuse_opens_nothing(
    autojump_clock: MockClock, text: str
) -> None:
    async with open_pretended() as (synthesizer, deepgram):
        with pytest.raises(LocalProtocolError):
            await speak(synthesizer, text)
        assert deepgram.tries == 0


async def test_error_of_the_block_leaves_it_unchanged(autojump_clock: MockClock) -> None:
    async with open_pretended() as (synthesizer, _):
        with pytest.raises(KeyError, match="mine"):
            async with synthesizer.open_speech("Hello."):
                raise KeyError("mine")


# Ready beforehand


async def test_call_that_begins_has_a_socket_opened(autojump_clock: MockClock) -> None:
    async with open_pretended() as (synthesizer, deepgram):
        synthesizer.warm()
        synthesizer.warm()
        await trio.sleep(1)
        begun = trio.current_time()
        async with synthesizer.open_speech("Hello.") as chunks:
            await anext(chunks)
            assert trio.current_time() == pytest.approx(begun + 0.1)
        await trio.sleep(1)
        synthesizer.warm()  # there is one
        await trio.sleep(1)
        assert deepgram.tries == 1


async def test_socket_on_its_way_for_who_left_is_there_for_the_next(
    autojump_clock: MockClock,
) -> None:
    async with open_pretended() as (synthesizer, deepgram):
        with trio.move_on_after(0.1):
            await speak(synthesizer)
        await trio.sleep(1)
        assert await speak(synthesizer) == AUDIO * 2
        assert deepgram.tries == 1
        assert deepgram.sockets[0].texts == ["Hello."]


async def test_socket_is_not_logged_as_of_the_call_that_opened_it(
    autojump_clock: MockClock,
) -> None:
    seen = []

    async def call(synthesizer: SocketSynthesizer) -> None:
        whose.call_sid.set("CA1")
        await speak(synthesizer)

    async with open_pretended() as (synthesizer, deepgram):
        connect = deepgram.connect

        @asynccontextmanager
        async def noted() -> AsyncGenerator[DeepgramSocket]:
            seen.append(whose.call_sid.get())
            async with connect() as socket:
                yield socket

        synthesizer._connect = noted
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, synthesizer)
            nursery.start_soon(call, synthesizer)
    assert seen == [None, None]


async def test_cancelled_at_every_step_the_next_piece_is_whole_and_alone(
    autojump_clock: MockClock,
) -> None:
    async with open_pretended() as (synthesizer, deepgram):

        async def act() -> None:
            with trio.CancelScope(shield=True):
                await trio.sleep(3)
            assert await speak(synthesizer, "One.") == AUDIO * 2
            assert await speak(synthesizer, "Two.") == AUDIO * 2

        deepgram.send_s = 0.05
        assert await cancel_at_every_step(act) > 10
        await trio.sleep(3)
        assert deepgram.open <= 2
        await trio.sleep(IDLE_S)
        assert deepgram.open == 0
        assert synthesizer._opening == 0
