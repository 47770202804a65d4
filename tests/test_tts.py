"""The synthesizer against a small server over real sockets."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.servers import (
    Exchange,
    HttpServer,
    cancel_at_every_step,
    open_fds,
    open_http_server,
    open_tcp_server,
)
from voicebot import ports, transport, tts
from voicebot.errors import (
    LocalProtocolError,
    ProviderError,
    ProviderRejected,
    ProviderTimeout,
)
from voicebot.tts import open_synthesizer

SPEECH = bytes(range(256)) * 4
MULAW = "audio/mulaw;rate=8000"


def connect(url: str) -> Any:
    return open_synthesizer(url=url, api_key="secret", model="aura-2-thalia-en")


async def speak(synthesizer: ports.Synthesizer, text: str = "Hello.") -> bytes:
    async with synthesizer.open_speech(text) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def say(exchange: Exchange) -> None:
    await exchange.answer(200, MULAW, SPEECH)


async def test_speech_is_asked_for_as_deepgram_wants_it() -> None:
    with trio.fail_after(10):
        async with open_http_server(say) as server, connect(server.url) as synthesizer:
            assert await speak(synthesizer, "Hello, caller.") == SPEECH
    (exchange,) = server.exchanges
    assert exchange.target.startswith("/v1/speak?")
    assert exchange.query == {
        "model": ["aura-2-thalia-en"],
        "encoding": ["mulaw"],
        "sample_rate": ["8000"],
        "container": ["none"],
    }
    assert exchange.headers["authorization"] == "Token secret"
    assert exchange.headers["content-type"] == "application/json"
    assert json.loads(exchange.body) == {"text": "Hello, caller."}


async def test_chunks_come_as_they_arrive_and_never_empty() -> None:
    go_on = trio.Event()

    async def respond(exchange: Exchange) -> None:
        await exchange.begin(200, [("content-type", MULAW)])
        await exchange.data(b"\xffab")  # less than the four bytes that are looked at
        await exchange.data(b"cd")
        await go_on.wait()
        await exchange.data(b"ef")
        await exchange.end()

    with trio.fail_after(10):
        async with open_http_server(respond) as server, connect(server.url) as synthesizer:
            async with synthesizer.open_speech("Hello.") as chunks:
                assert await anext(chunks) == b"\xffabcd"
                go_on.set()
                assert [chunk async for chunk in chunks] == [b"ef"]


async def test_very_short_speech_is_speech() -> None:
    async def respond(exchange: Exchange) -> None:
        await exchange.answer(200, MULAW, b"\xff")

    with trio.fail_after(10):
        async with open_http_server(respond) as server, connect(server.url) as synthesizer:
            assert await speak(synthesizer) == b"\xff"


async def test_sentences_share_a_connection() -> None:
    with trio.fail_after(10):
        async with open_http_server(say) as server, connect(server.url) as synthesizer:
            for _ in range(5):
                await speak(synthesizer)
            assert server.connections == 1


async def test_twenty_sentences_at_once_do_not_wait_for_each_other() -> None:
    waiting = 0
    all_here = trio.Event()

    async def respond(exchange: Exchange) -> None:
        nonlocal waiting
        waiting += 1
        if waiting == 20:
            all_here.set()
        await all_here.wait()
        await say(exchange)

    with trio.fail_after(10):
        async with open_http_server(respond) as server, connect(server.url) as synthesizer:
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(speak, synthesizer)


@pytest.mark.parametrize(
    "status, content_type, body, code, said, retryable",
    [
        (401, "application/json", b'{"err_code":"INVALID_AUTH","err_msg":"Invalid."}',
         "INVALID_AUTH", "DEEPGRAM_API_KEY", False),
        (400, "application/json", b'{"category":"INVALID_MODEL","message":"No such model."}',
         "INVALID_MODEL", "No such model", False),
        (413, "text/plain", b"too long", None, "too long", False),
        (429, "application/json", b'{"err_code":"TOO_MANY_REQUESTS"}', "TOO_MANY_REQUESTS",
         "at once", True),
        (500, "text/html", b"<html>" * 10_000, None, "refused with 500", True),
        (302, "text/plain", b"", None, "refused with 302", False),
    ],
)  # fmt: skip
async def test_refusal_says_what_and_what_to_do(
    status: int, content_type: str, body: bytes, code: str | None, said: str, retryable: bool
) -> None:
    async def respond(exchange: Exchange) -> None:
        await exchange.answer(status, content_type, body)

    with trio.fail_after(10):
        async with open_http_server(respond) as server, connect(server.url) as synthesizer:
            with pytest.raises(ProviderRejected, match=said) as caught:
                await speak(synthesizer)
            error = caught.value
            assert (error.status, error.code, error.retryable) == (status, code, retryable)
            assert error.provider == "deepgram-tts"
            assert "secret" not in str(error)
            assert len(str(error)) < 500


@pytest.mark.parametrize("hangs", [True, False])
async def test_refusal_with_a_broken_body_is_still_a_refusal(hangs: bool) -> None:
    async def respond(exchange: Exchange) -> None:
        await exchange.begin(503, [("content-length", "100")])
        await exchange.data(b"overloaded")
        if hangs:
            await trio.sleep_forever()

    with trio.fail_after(10):
        async with open_http_server(respond) as server, connect(server.url) as synthesizer:
            with pytest.raises(ProviderRejected, match="503; overloaded"):
                await speak(synthesizer)


@pytest.mark.parametrize(
    "content_type, body, said",
    [
        ("text/html", b"<html>captive portal</html>", "text/html"),
        ("audio/mpeg", b"\xff\xfb\x90\x00", "audio/mpeg"),
        (MULAW, b"RIFF\x24\0\0\0WAVE", "WAV"),
        (MULAW, b"", "no audio"),
    ],
)
async def test_answer_that_is_no_bare_mulaw_is_not_played(
    content_type: str, body: bytes, said: str
) -> None:
    async def respond(exchange: Exchange) -> None:
        await exchange.begin(200, [("content-type", content_type)])
        for byte in body:
            await exchange.data(bytes([byte]))
        await exchange.end()

    with trio.fail_after(10):
        async with open_http_server(respond) as server, connect(server.url) as synthesizer:
            async with synthesizer.open_speech("Hello.") as chunks:
                with pytest.raises(ProviderError, match=said):
                    await anext(chunks)


async def test_speech_cut_off_is_an_error_after_what_came() -> None:
    async def serve(stream: trio.SocketStream) -> None:
        while not bytes(await stream.receive_some(10_000)).endswith(b"}"):
            pass
        await stream.send_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: audio/mulaw\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"8\r\nabcdefgh\r\n"
        )

    with trio.fail_after(10):
        async with open_tcp_server(serve) as url, connect(url) as synthesizer:
            async with synthesizer.open_speech("Hello.") as chunks:
                assert await anext(chunks) == b"abcdefgh"
                with pytest.raises(ProviderError, match="RemoteProtocolError") as caught:
                    await anext(chunks)
                assert caught.value.retryable


async def test_nobody_listening_is_an_error_to_be_retried() -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    await listeners[0].aclose()
    with trio.fail_after(10):
        async with connect(f"http://127.0.0.1:{port}") as synthesizer:
            with pytest.raises(ProviderError, match="ConnectError") as caught:
                await speak(synthesizer)
            assert caught.value.retryable


async def test_stall_ends_at_the_backstop_when_the_caller_sets_no_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def respond(exchange: Exchange) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(transport, "READ_S", 0.1)
    with trio.fail_after(10):
        async with open_http_server(respond) as server, connect(server.url) as synthesizer:
            with pytest.raises(ProviderTimeout, match="ReadTimeout"):
                await speak(synthesizer)


@pytest.mark.parametrize("text", ["", " ", "x" * 1901])
async def test_text_that_deepgram_would_refuse_is_not_sent(text: str) -> None:
    with trio.fail_after(10):
        async with open_http_server(say) as server, connect(server.url) as synthesizer:
            with pytest.raises(LocalProtocolError):
                await speak(synthesizer, text)
            assert server.exchanges == []


async def test_error_of_the_block_leaves_it_unchanged() -> None:
    with trio.fail_after(10):
        async with open_http_server(say) as server, connect(server.url) as synthesizer:
            with pytest.raises(KeyError, match="mine"):
                async with synthesizer.open_speech("Hello."):
                    raise KeyError("mine")


# Cancelled and left early


async def begin_and_hang(exchange: Exchange) -> None:
    await exchange.begin(200, [("content-type", MULAW)])
    await exchange.data(SPEECH)
    await trio.sleep_forever()


async def hang(exchange: Exchange) -> None:
    await trio.sleep_forever()


async def cancel_while_reading(chunks_of: Callable[[], Any], server: HttpServer) -> None:
    async with chunks_of() as chunks:
        async for _ in chunks:
            pass


async def cancel_between_chunks(chunks_of: Callable[[], Any], server: HttpServer) -> None:
    async with chunks_of() as chunks:
        await anext(chunks)
        await trio.sleep_forever()


@pytest.mark.parametrize(
    "respond, read",
    [
        pytest.param(hang, cancel_while_reading, id="before the headers"),
        pytest.param(begin_and_hang, cancel_while_reading, id="while reading"),
        pytest.param(begin_and_hang, cancel_between_chunks, id="between chunks"),
    ],
)
async def test_cancel_closes_the_connection_at_once(
    respond: Callable[[Exchange], Awaitable[None]],
    read: Callable[[Callable[[], Any], HttpServer], Awaitable[None]],
) -> None:
    with trio.fail_after(10):
        async with open_http_server(respond) as server, connect(server.url) as synthesizer:
            before = open_fds()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read, lambda: synthesizer.open_speech("Hello."), server)
                await wait_all_tasks_blocked(0.02)
                assert server.connections == 1
                nursery.cancel_scope.cancel()
            await server.gone.wait()
            await wait_all_tasks_blocked(0.01)
            assert open_fds() == before


async def test_speech_left_early_closes_the_connection() -> None:
    with trio.fail_after(10):
        async with open_http_server(begin_and_hang) as server, connect(server.url) as synthesizer:
            async with synthesizer.open_speech("Hello.") as chunks:
                async for _ in chunks:
                    break
            await server.gone.wait()


async def test_speech_cancelled_at_every_step_loses_no_connection_and_no_fd() -> None:
    async def respond(exchange: Exchange) -> None:
        await exchange.answer(200, MULAW, SPEECH, [("connection", "close")])

    with trio.fail_after(60):
        async with open_http_server(respond) as server, connect(server.url) as synthesizer:

            async def act() -> None:
                assert await speak(synthesizer) == SPEECH

            await wait_all_tasks_blocked(0.01)
            before = open_fds()
            assert await cancel_at_every_step(act) > 10
            await wait_all_tasks_blocked(0.02)
            assert open_fds() == before
            assert isinstance(synthesizer, tts.DeepgramSynthesizer)
            assert synthesizer._client._transport._pool.connections == []  # type: ignore[attr-defined]  # httpx hides it
