"""The speech WebSocket of the Deepgram stand-in as a client meets it: real sockets."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx
import pytest
import trio
from trio_websocket import (
    ConnectionClosed,
    ConnectionRejected,
    WebSocketConnection,
    wrap_client_stream,
)

from voicebot.standins.deepgram import Deepgram, open_deepgram
from voicebot.standins.deepgram_rules import TOO_MANY_REQUESTS
from voicebot.standins.speak_socket import NET_0003, SpeakSocketConduct
from voicebot.standins.voice import speak

QUERY: Final = {"model": "aura-2-thalia-en", "encoding": "mulaw", "sample_rate": "8000"}
FLUSH: Final = {"type": "Flush"}
CLEAR: Final = {"type": "Clear"}


def say(text: str) -> dict[str, str]:
    return {"type": "Speak", "text": text}


class Client:
    """Says messages and collects what comes."""

    def __init__(self, socket: WebSocketConnection) -> None:
        self.socket = socket
        self.audio = b""

    async def say(self, *messages: Any) -> None:
        for message in messages:
            await self.socket.send_message(
                message if isinstance(message, bytes | str) else json.dumps(message)
            )

    async def text(self) -> dict[str, Any]:
        """Return the next text message; audio before it is collected."""
        while isinstance(message := await self.socket.get_message(), bytes):
            self.audio += message
        return dict(json.loads(message))

    async def hear(self, audio_bytes: int) -> None:
        """Collect so much audio, or a little more."""
        while len(self.audio) < audio_bytes:
            message = await self.socket.get_message()
            assert isinstance(message, bytes)
            self.audio += message

    async def until(self, kind: str) -> dict[str, Any]:
        while (message := await self.text())["type"] != kind:
            pass
        return message

    async def closed(self) -> tuple[int, str]:
        with pytest.raises(ConnectionClosed) as caught:
            await self.until("anything else")
        reason = caught.value.reason
        assert reason is not None
        return reason.code, reason.reason or ""


@asynccontextmanager
async def open_client(
    deepgram: Deepgram, query: dict[str, str] = QUERY, key: str = "standin"
) -> AsyncGenerator[Client]:
    host, port = deepgram.url.removeprefix("http://").split(":")
    target = f"/v1/speak?{httpx.QueryParams(query)}"
    headers = [(b"Authorization", f"Token {key}".encode())]
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        async with trio.open_nursery() as nursery:
            yield Client(
                await wrap_client_stream(
                    nursery, stream, f"{host}:{port}", target, extra_headers=headers
                )
            )
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def conversing(**options: Any) -> AsyncGenerator[tuple[Client, Deepgram]]:
    conduct = SpeakSocketConduct(**{"rate": math.inf, **options})
    with trio.fail_after(10):
        async with open_deepgram(speak_socket=conduct) as deepgram:
            async with open_client(deepgram) as client:
                yield client, deepgram


async def test_what_is_flushed_is_spoken_and_numbered() -> None:
    async with conversing() as (client, deepgram):
        assert (await client.text())["type"] == "Metadata"
        await client.say(say("Good "), say("evening."), FLUSH)
        assert await client.text() == {"type": "Flushed", "sequence_id": 0}
        assert client.audio == speak("Good evening.")
        await client.say(say("Bye."), FLUSH)
        assert await client.text() == {"type": "Flushed", "sequence_id": 1}
        assert client.audio == speak("Good evening.") + speak("Bye.")
        await client.say({"type": "Close"})
        assert await client.closed() == (1000, "")
        (seen,) = deepgram.speak_socket.connections
        assert seen.texts == ["Good evening.", "Bye."]
        assert seen.controls == ["Speak", "Speak", "Flush", "Speak", "Flush", "Close"]


async def test_nothing_is_spoken_before_it_is_flushed() -> None:
    async with conversing() as (client, _):
        await client.say(say("Good evening."))
        await client.until("Metadata")
        with trio.move_on_after(0.1) as waiting:
            await client.text()
        assert waiting.cancelled_caught
        assert client.audio == b""


@pytest.mark.parametrize(
    "when, told",
    [
        ("never", ["Cleared"]),
        ("before", ["Flushed", "Cleared"]),
        ("after", ["Cleared", "Flushed"]),
    ],
)
async def test_clear_stops_speech_after_what_is_under_way(when: str, told: list[str]) -> None:
    async with conversing(rate=4, chunk_bytes=400, late_chunks=2, flushed_of_cleared=when) as (
        client,
        _,
    ):
        await client.until("Metadata")
        await client.say(say("A sentence of some length."), FLUSH)
        await client.hear(1_200)
        await client.say(CLEAR)
        assert [(await client.text())["type"] for _ in told] == told
        assert len(client.audio) >= 1_200 + 800  # two, and what was sent before
        assert len(client.audio) < len(speak("A sentence of some length."))
        before = len(client.audio)
        await client.say(say("Yes?"), FLUSH)
        await client.until("Flushed")
        assert client.audio[before:] == speak("Yes?")


async def test_clear_forgets_text_that_was_not_flushed() -> None:
    async with conversing() as (client, _):
        await client.say(say("One."), CLEAR, say("Two."), FLUSH)
        await client.until("Flushed")
        assert client.audio == speak("Two.")


async def test_audio_comes_in_its_time() -> None:
    async with conversing(first_byte_s=0.2, rate=8) as (client, _):
        await client.until("Metadata")
        begun = trio.current_time()
        await client.say(say("Good evening."), FLUSH)
        await client.until("Flushed")
        assert trio.current_time() - begun > 0.2


@pytest.mark.parametrize(
    "messages, code, reason",
    [
        ([b"\xff"], 1003, "MESSAGE-0000"),
        (["Hello"], 1008, "DATA-0000"),
        (['["Speak"]'], 1008, "DATA-0000"),
        ([{"type": "KeepAlive"}], 1008, "DATA-0000"),
        ([{"type": "Speak"}], 1008, "DATA-0000"),
        ([{"type": "Speak", "text": "Hi.", "model": "x"}], 1008, "DATA-0000"),
        ([say("x" * 2_001)], 1009, "BIG-0000"),
        ([say("x" * 1_900), CLEAR, say("x" * 501)], 1008, "DATA-0001"),
    ],
)
async def test_what_is_not_allowed_closes(messages: list[Any], code: int, reason: str) -> None:
    async with conversing() as (client, _):
        await client.say(*messages)
        closed = await client.closed()
        assert closed[0] == code
        assert closed[1].startswith(reason)


@pytest.mark.parametrize(
    "spelling, names",
    [("spec", ("code", "description")), ("seen", ("warn_code", "warn_msg"))],
)
async def test_flush_beyond_the_limit_is_warned_of_and_ignored(
    spelling: str, names: tuple[str, str]
) -> None:
    async with conversing(flushes=2, warning=spelling) as (client, deepgram):
        for _ in range(2):
            await client.say(say("Yes."), FLUSH)
            await client.until("Flushed")
        await client.say(say("No."), FLUSH)
        warning = await client.until("Warning")
        assert warning[names[0]] == "EXCESSIVE_FLUSH"
        assert set(warning) == {"type", *names}
        assert deepgram.speak_socket.connections[0].texts == ["Yes.", "Yes."]


async def test_idle_and_old_connections_are_closed() -> None:
    async with conversing(idle_s=0.1) as (client, _):
        code, reason = await client.closed()
        assert (code, reason.partition(":")[0]) == (1011, "NET-0001")
    async with conversing(life_s=0.1) as (client, _):
        assert await client.closed() == NET_0003


async def test_connection_that_speaks_is_not_idle() -> None:
    async with conversing(idle_s=0.1, rate=4) as (client, _):
        await client.say(say("Good evening, caller."), FLUSH)
        await client.until("Flushed")
        assert client.audio == speak("Good evening, caller.")


@pytest.mark.parametrize(
    "limit, code",
    [("end_after_bytes", 1000), ("drop_after_bytes", 1006), ("reset_after_bytes", 1006)],
)
async def test_speech_can_end_in_the_middle(limit: str, code: int) -> None:
    async with conversing(**{limit: 3_000}) as (client, _):
        await client.say(say("A sentence of some length."), FLUSH)
        with pytest.raises(ConnectionClosed) as caught:
            await client.until("anything else")
        if limit == "end_after_bytes":
            assert caught.value.reason is not None
            assert caught.value.reason.code == code
        if limit != "reset_after_bytes":  # which takes what was under way with it
            assert client.audio == speak("A sentence of some length.")[:3_000]


async def test_speech_can_stall_and_what_is_said_is_read_all_the_same() -> None:
    async with conversing(stall_after_bytes=3_000) as (client, deepgram):
        await client.until("Metadata")
        await client.say(say("A sentence of some length."), FLUSH)
        await client.hear(3_000)
        await client.say(CLEAR, say("More."))
        with trio.move_on_after(0.2):
            await client.until("Cleared")
            pytest.fail("cleared")
        assert len(client.audio) == 3_000
        assert deepgram.speak_socket.connections[0].controls[-1] == "Speak"


async def test_clear_can_stay_unanswered() -> None:
    async with conversing(cleared=False) as (client, deepgram):
        await client.say(CLEAR, say("Yes."), FLUSH)
        await client.until("Flushed")
        assert deepgram.speak_socket.connections[0].sent["Cleared"] == 0


@pytest.mark.parametrize(
    "query, key, status",
    [
        ({**QUERY, "container": "none"}, "standin", 400),
        ({**QUERY, "encoding": "linear16"}, "standin", 400),
        ({"model": "aura-2-thalia-en"}, "standin", 400),
        (QUERY, "wrong", 401),
    ],
)
async def test_upgrade_is_refused(query: dict[str, str], key: str, status: int) -> None:
    with trio.fail_after(10):
        async with open_deepgram() as deepgram:
            with pytest.RaisesGroup(ConnectionRejected, flatten_subgroups=True) as caught:
                async with open_client(deepgram, query, key):
                    pytest.fail("connected")
            (error,) = caught.value.exceptions
            while isinstance(error, ExceptionGroup):
                (error,) = error.exceptions
            assert isinstance(error, ConnectionRejected)
            assert error.status_code == status


async def test_refusals_and_plain_requests() -> None:
    with trio.fail_after(10):
        async with open_deepgram() as deepgram, httpx.AsyncClient() as client:
            headers = {"Authorization": "Token standin"}
            url = f"{deepgram.url}/v1/speak"
            plain = await client.get(url, params=QUERY, headers=headers)
            assert plain.status_code == 400
            deepgram.speak_socket.conducts.once(SpeakSocketConduct(refusal=TOO_MANY_REQUESTS))
            assert (await client.get(url, params=QUERY, headers=headers)).status_code == 429
