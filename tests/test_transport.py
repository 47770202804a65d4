"""What a cancelled request leaves behind: nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

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
)
from voicebot import transport
from voicebot.transport import Transport, open_client, reading, tls_context


async def say_hello(exchange: Exchange) -> None:
    # Closing makes every request connect anew.
    await exchange.answer(200, "text/plain", b"hello", [("connection", "close")])


def lost_connections(http: httpx.AsyncHTTPTransport) -> int:
    """Connections that the pool keeps and that no request will ever use."""
    pool = http._pool
    used = [request.connection for request in pool._requests]
    return sum(
        not (connection.is_idle() or connection.is_closed() or connection in used)
        for connection in pool.connections
    )


async def sweep(http: httpx.AsyncHTTPTransport, url: str) -> tuple[int, int]:
    """Cancel a request at every step; return the number of runs and of connections lost."""
    async with httpx.AsyncClient(transport=http) as client:

        async def act() -> None:
            response = await client.send(client.build_request("GET", url), stream=True)
            async with reading(response) as chunks:
                assert [chunk async for chunk in chunks] == [b"hello"]

        runs = await cancel_at_every_step(act)
        return runs, lost_connections(http)


async def test_request_cancelled_at_every_step_loses_no_connection_and_no_fd() -> None:
    with trio.fail_after(30):
        async with open_http_server(say_hello) as server:
            await wait_all_tasks_blocked()
            before = open_fds()
            runs, lost = await sweep(Transport(tls_context()), server.url)
            await wait_all_tasks_blocked(0.01)
            assert runs > 10
            assert lost == 0
            assert open_fds() == before


async def test_tls_request_cancelled_at_every_step_loses_no_connection_and_no_fd(
    tmp_path: Path,
) -> None:
    server_tls, client_tls = make_tls_contexts(tmp_path)
    with trio.fail_after(30):
        async with open_http_server(say_hello, server_tls) as server:
            await wait_all_tasks_blocked()
            before = open_fds()
            runs, lost = await sweep(Transport(client_tls), server.url)
            await wait_all_tasks_blocked(0.01)
            assert runs > 20
            assert lost == 0
            assert open_fds() == before


async def cancel_beside_another(make: Callable[[], httpx.AsyncHTTPTransport]) -> int:
    """Cancel a request at every step while another one ends; return the connections lost."""
    lost = 0

    async with open_http_server(say_hello) as server:

        async def act() -> None:
            nonlocal lost
            http = make()
            async with httpx.AsyncClient(transport=http) as client:
                try:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(client.get, server.url)
                        with trio.CancelScope(shield=True):  # this one comes first, and ends
                            await client.get(server.url)
                finally:
                    lost += lost_connections(http)

        await cancel_at_every_step(act)
    return lost


async def test_request_cancelled_while_another_ends_loses_no_connection() -> None:
    with trio.fail_after(30):
        for _ in range(3):  # which task of a step runs first is a matter of chance
            assert await cancel_beside_another(lambda: Transport(tls_context())) == 0


async def test_httpx_transport_still_loses_connections_or_ours_can_go() -> None:
    """A reminder: when this fails, httpcore #1093 is fixed and `Transport` can be simpler."""

    def make() -> httpx.AsyncHTTPTransport:
        limits = httpx.Limits(max_connections=1)
        return httpx.AsyncHTTPTransport(verify=tls_context(), limits=limits)

    with trio.fail_after(60):
        for _ in range(10):  # once is enough in nine of ten cases
            if await cancel_beside_another(make) > 0:
                return
    pytest.fail("httpx's transport loses no connection any more")


async def test_body_read_to_its_end_keeps_the_connection() -> None:
    async def respond(exchange: Exchange) -> None:
        await exchange.answer(200, "text/plain", b"hello")

    with trio.fail_after(10):
        async with open_http_server(respond) as server, open_client() as client:
            for _ in range(3):
                response = await client.send(client.build_request("GET", server.url), stream=True)
                async with reading(response) as chunks:
                    assert b"".join([chunk async for chunk in chunks]) == b"hello"
            assert server.connections == 1


@pytest.mark.parametrize("chunks_read", [0, 1, 2])
async def test_body_left_early_closes_the_connection_and_every_generator(
    chunks_read: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "CLOSE_S", 20)  # not that the deadline is what ends it

    async def respond(exchange: Exchange) -> None:
        await exchange.begin(200, [("content-type", "text/plain")])
        for _ in range(3):
            await exchange.data(b"x" * 10)
        await trio.sleep_forever()

    with trio.fail_after(10):
        async with open_http_server(respond) as server, open_client() as client:
            response = await client.send(client.build_request("GET", server.url), stream=True)
            # A generator left to the collector would be a ResourceWarning, which is an error.
            async with reading(response) as chunks:
                for _ in range(chunks_read):
                    await anext(chunks)
            await server.gone.wait()


class Closing(httpx.AsyncByteStream):
    """A body that never comes and whose connection takes its time to close."""

    def __init__(self, takes: float) -> None:
        self._takes = takes
        self.closed = False

    def __aiter__(self) -> Closing:
        return self

    async def __anext__(self) -> bytes:
        await trio.sleep_forever()
        raise AssertionError("unreachable")

    async def aclose(self) -> None:
        await trio.sleep(self._takes)
        self.closed = True


async def test_connection_that_does_not_close_is_waited_for_a_second_at_most(
    autojump_clock: MockClock,
) -> None:
    body = Closing(math.inf)
    begun = trio.current_time()

    async with reading(httpx.Response(200, stream=body)):
        pass

    assert trio.current_time() == pytest.approx(begun + transport.CLOSE_S)


async def test_connection_is_closed_although_its_reader_was_cancelled(
    autojump_clock: MockClock,
) -> None:
    body = Closing(0.5)

    with trio.move_on_after(1.0):
        async with reading(httpx.Response(200, stream=body)) as chunks:
            await anext(chunks)

    assert body.closed


async def test_stalled_connect_is_given_up_after_its_timeout() -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=0)
    port = listeners[0].socket.getsockname()[1]
    fill = [trio.socket.socket() for _ in range(4)]  # a full backlog drops what comes next
    try:
        with trio.fail_after(10):
            for sock in fill:
                with trio.move_on_after(0.05):
                    await sock.connect(("127.0.0.1", port))
            async with open_client(connect_timeout_s=0.1) as client:
                with pytest.raises(httpx.ConnectTimeout):
                    await client.get(f"http://127.0.0.1:{port}/")
    finally:
        for sock in fill:
            sock.close()
        for listener in listeners:
            await listener.aclose()
