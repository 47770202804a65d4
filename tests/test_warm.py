"""Spare connections: there when they are wanted, gone when they are not, and nobody's error."""

from __future__ import annotations

import logging
import math
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpcore
import httpx
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.servers import (
    Exchange,
    cancel_at_every_step,
    make_tls_contexts,
    open_fds,
    open_http_server,
    open_tcp_server,
)
from tests.test_transport import lost_connections
from voicebot import warm
from voicebot.hidden import open_hidden_nursery
from voicebot.transport import Transport, open_client, reading, tls_context
from voicebot.warm import Spares


@asynccontextmanager
async def open_spares(
    url: str, count: int, ssl_context: ssl.SSLContext | None = None
) -> AsyncGenerator[tuple[httpx.AsyncClient, Spares]]:
    context = ssl_context or tls_context()
    async with open_hidden_nursery("test") as nursery:
        spares = Spares(nursery, url, count=count, ssl_context=context, connect_timeout_s=5)
        async with httpx.AsyncClient(transport=Transport(context, spares)) as client:
            yield client, spares


async def hello(exchange: Exchange) -> None:
    await exchange.answer(200, "text/plain", b"hello")


async def begin_and_hang(exchange: Exchange) -> None:
    await exchange.begin(200, [("content-type", "text/plain")])
    await exchange.data(b"hello")
    await trio.sleep_forever()


async def settle() -> None:
    await wait_all_tasks_blocked(0.05)


@pytest.mark.parametrize("tls", [False, True])
async def test_request_after_a_cancelled_stream_takes_a_connection_that_is_ready(
    tls: bool, tmp_path: Path
) -> None:
    server_tls, client_tls = make_tls_contexts(tmp_path) if tls else (None, None)
    with trio.fail_after(10):
        async with (
            open_http_server(begin_and_hang, server_tls) as server,
            open_spares(server.url, 1, client_tls) as (client, spares),
        ):
            for turn in range(1, 4):
                response = await client.send(client.build_request("GET", server.url), stream=True)
                async with reading(response) as chunks:
                    assert await anext(chunks) == b"hello"
                await settle()  # TLS session tickets have come, too, and are no reason to close
                # One for each request and a spare; all requests but the first took one.
                assert server.connections == turn + 1
                assert spares.counts == {"opened": turn, **({"used": turn - 1} if turn > 1 else {})}


async def test_spare_is_only_taken_where_the_pool_has_no_connection() -> None:
    with trio.fail_after(10):
        async with open_http_server(hello) as server, open_spares(server.url, 2) as (client, _):
            for _ in range(5):
                await client.get(server.url)
                await settle()
            assert server.connections == 3


async def test_first_request_finds_what_was_asked_for_beforehand() -> None:
    with trio.fail_after(10):
        async with open_http_server(hello) as server:
            async with open_client(url=server.url, spares=2) as client:
                client.warm()
                client.warm()
                await settle()
                assert server.connections == 2
                await client.get(server.url)
                await settle()
                assert server.connections == 3  # the third is the spare that takes its place


async def test_without_spares_nothing_is_opened() -> None:
    with trio.fail_after(10):
        async with open_http_server(hello) as server, open_client(url=server.url) as client:
            client.warm()
            await client.get(server.url)
            await settle()
            assert server.connections == 1


async def test_other_servers_get_none_of_the_spares() -> None:
    with trio.fail_after(10):
        async with (
            open_http_server(hello) as server,
            open_http_server(hello) as other,
            open_spares(server.url, 1) as (client, spares),
        ):
            spares.warm()
            await settle()
            assert (await client.get(other.url)).text == "hello"
            assert (server.connections, other.connections) == (1, 1)
            assert spares.counts == {"opened": 1}


@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 408 Request Timeout\r\n\r\n"])
async def test_spare_that_the_server_has_closed_is_not_used(
    says: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "voicebot.warm")
    impatient = True

    async def serve(stream: trio.SocketStream) -> None:
        if impatient:
            if says:
                await stream.send_all(says)
        else:
            await stream.receive_some(10_000)
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
            await trio.sleep_forever()

    with trio.fail_after(10):
        async with open_tcp_server(serve) as url, open_spares(url, 2) as (client, spares):
            spares.warm()
            await settle()
            assert spares.counts == {"opened": 2, "closed": 2}
            impatient = False
            assert (await client.get(url)).text == "hello"
            await settle()
            assert spares.counts == {"opened": 2, "closed": 2}  # the server wants none for now
    assert [record.message for record in caplog.records] == ["spare_connection_lost"]


async def test_spares_that_cannot_be_opened_are_nobodys_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "voicebot.warm")
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    await listeners[0].aclose()
    with trio.fail_after(10):
        async with open_spares(f"http://127.0.0.1:{port}", 2) as (_, spares):
            spares.warm()
            await settle()
            spares.warm()
            await settle()
            assert spares.counts == {"failed": 2}
    assert len(caplog.records) == 1


async def test_certificate_that_is_not_trusted_costs_a_spare_and_no_fd(tmp_path: Path) -> None:
    server_tls, _ = make_tls_contexts(tmp_path)
    with trio.fail_after(10):
        async with open_http_server(hello, server_tls) as server:
            before = open_fds()
            async with open_spares(server.url, 1) as (_, spares):
                spares.warm()
                await settle()
                assert spares.counts == {"failed": 1}
            await settle()
            assert open_fds() == before


@pytest.mark.parametrize("tls", [False, True])
async def test_requests_cancelled_at_every_step_leave_no_spare_behind(
    tls: bool, tmp_path: Path
) -> None:
    async def respond(exchange: Exchange) -> None:
        await exchange.answer(200, "text/plain", b"hello", [("connection", "close")])

    server_tls, client_tls = make_tls_contexts(tmp_path) if tls else (None, None)
    with trio.fail_after(60):
        async with open_http_server(respond, server_tls) as server:
            await settle()
            before = open_fds()
            async with open_spares(server.url, 2, client_tls) as (client, spares):

                async def act() -> None:
                    response = await client.send(
                        client.build_request("GET", server.url), stream=True
                    )
                    async with reading(response) as chunks:
                        assert [chunk async for chunk in chunks] == [b"hello"]

                assert await cancel_at_every_step(act) > 10
                assert spares.counts["used"] > 3  # how many, is a matter of time
                await settle()
                assert lost_connections(client._transport) == 0  # type: ignore[arg-type]  # ours
                assert open_fds() == before + 2 * 2  # the spares, seen from both ends
            await settle()
            assert open_fds() == before


@pytest.mark.parametrize("tls", [False, True])
async def test_client_closed_at_every_step_of_opening_leaves_nothing(
    tls: bool, tmp_path: Path
) -> None:
    server_tls, client_tls = make_tls_contexts(tmp_path) if tls else (None, None)
    with trio.fail_after(60):
        async with open_http_server(hello, server_tls) as server:
            await settle()
            before = open_fds()

            async def act() -> None:
                async with open_spares(server.url, 1, client_tls) as (_, spares):
                    spares.warm()
                    while not spares.counts["opened"]:  # noqa: ASYNC110  # every step counts
                        await trio.lowlevel.checkpoint()

            assert await cancel_at_every_step(act, at_most=100_000) > 5
            await settle()
            assert open_fds() == before


# Time, without sockets


class Stream(httpcore.AsyncNetworkStream):
    """A connection on which nothing happens, or that is lost after a while."""

    def __init__(self, lost_after_s: float) -> None:
        self.closed = self.reading = False
        self._lost_after_s = lost_after_s

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109  # httpcore's signature
        assert timeout is not None
        self.reading = True
        try:
            await trio.sleep(min(timeout, self._lost_after_s))
        finally:
            self.reading = False
        raise httpcore.ReadTimeout if timeout < self._lost_after_s else httpcore.ReadError

    async def start_tls(self, *args: Any, **kwargs: Any) -> httpcore.AsyncNetworkStream:
        await trio.sleep(0.2)
        return self

    def get_extra_info(self, info: str) -> Any:
        assert info == "socket"
        return self

    def close(self) -> None:
        self.closed = True


class Network(httpcore.AsyncNetworkBackend):
    """Connects in 0.2 s, or fails."""

    def __init__(self) -> None:
        self.streams: list[Stream] = []
        self.tries = 0
        self.down = False
        self.lost_after_s = math.inf

    async def connect_tcp(self, *args: Any, **kwargs: Any) -> httpcore.AsyncNetworkStream:
        self.tries += 1
        await trio.sleep(0.2)
        if self.down:
            raise httpcore.ConnectError("down")
        self.streams.append(Stream(self.lost_after_s))
        return self.streams[-1]


@asynccontextmanager
async def open_pretended(
    count: int, url: str = "http://there"
) -> AsyncGenerator[tuple[Spares, Network]]:
    network = Network()
    async with open_hidden_nursery("test") as nursery:
        spares = Spares(
            nursery,
            url,
            count=count,
            ssl_context=tls_context(),
            connect_timeout_s=1,
        )
        spares._network = network  # type: ignore[assignment]  # a network without sockets
        yield spares, network


async def test_spare_is_given_up_after_half_a_minute_and_not_replaced(
    autojump_clock: MockClock,
) -> None:
    async with open_pretended(2) as (spares, network):
        spares.warm()
        await trio.sleep(warm.SPARE_S + 0.1)
        assert [stream.closed for stream in network.streams] == [False, False]
        await trio.sleep(0.2)
        assert [stream.closed for stream in network.streams] == [True, True]
        await trio.sleep(1_000)
        assert network.tries == 2
        spares.warm()
        await trio.sleep(1)
        assert [stream.closed for stream in network.streams[2:]] == [False, False]
        assert spares.counts == {"opened": 4, "aged": 2}


async def test_request_does_not_wait_for_a_spare_on_its_way(autojump_clock: MockClock) -> None:
    async with open_pretended(1) as (spares, network):
        spares.warm()
        await trio.sleep(0.1)
        begun = trio.current_time()
        stream = await spares.connect_tcp("there", 80)
        assert trio.current_time() == pytest.approx(begun + 0.2)
        assert network.streams[1] is stream
        assert await spares.connect_tcp("there", 80) is network.streams[0]


async def test_what_is_taken_is_not_closed_when_it_would_have_been_too_old(
    autojump_clock: MockClock,
) -> None:
    async with open_pretended(1) as (spares, network):
        spares.warm()
        await trio.sleep(0.3)
        begun = trio.current_time()
        assert await spares.connect_tcp("there", 80) is network.streams[0]
        assert trio.current_time() == begun
        assert not network.streams[0].reading  # two may not
        await trio.sleep(100)
        assert not network.streams[0].closed


async def test_server_in_trouble_is_left_alone_for_a_while(autojump_clock: MockClock) -> None:
    async with open_pretended(2) as (spares, network):
        network.down = True
        for _ in range(10):
            spares.warm()
            await trio.sleep(1)
        assert network.tries == 2
        network.down = False
        await trio.sleep(warm.PAUSE_S - 9)
        spares.warm()
        await trio.sleep(1)
        assert spares.counts == {"failed": 2, "opened": 2}


async def test_taker_that_is_cancelled_closes_what_it_took(autojump_clock: MockClock) -> None:
    async with open_pretended(1) as (spares, network):
        spares.warm()
        await trio.sleep(0.3)
        with trio.CancelScope() as scope:
            scope.cancel()
            await spares.connect_tcp("there", 80)
        assert scope.cancelled_caught
        assert network.streams[0].closed
        await trio.lowlevel.checkpoint()
        assert spares.counts == {"opened": 1}


async def test_connection_that_breaks_is_no_spare_any_more(autojump_clock: MockClock) -> None:
    async with open_pretended(1) as (spares, network):
        network.lost_after_s = 5.0
        spares.warm()
        await trio.sleep(6)
        assert network.streams[0].closed
        assert spares.counts == {"opened": 1, "closed": 1}


async def test_spare_has_its_tls_behind_it(autojump_clock: MockClock) -> None:
    async with open_pretended(1, "https://there") as (spares, network):
        spares.warm()
        await trio.sleep(1)
        begun = trio.current_time()
        stream = await spares.connect_tcp("there", 443)
        assert stream.get_extra_info("socket") is network.streams[0]
        assert await stream.start_tls(tls_context(), "there") is network.streams[0]
        assert trio.current_time() == begun


async def test_error_of_the_block_comes_out_of_a_client_as_it_is() -> None:
    with pytest.raises(KeyError, match="mine"):
        async with open_client(url="http://127.0.0.1", spares=1):
            raise KeyError("mine")
