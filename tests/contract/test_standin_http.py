"""The stand-ins' HTTP server: what it notices of its clients, and that it keeps nothing."""

from __future__ import annotations

import httpx
import pytest
import trio

from voicebot.standins.http11 import BODY_BYTES, Answer, Exchange, open_http_server


async def echo(exchange: Exchange, answer: Answer) -> None:
    await answer.send(200, exchange.body)


async def drip(exchange: Exchange, answer: Answer) -> None:
    await answer.start(200)
    await answer.write(b"one")
    await trio.sleep_forever()


async def cut(exchange: Exchange, answer: Answer) -> None:
    if exchange.path == "/head":
        answer.drop(reset=True)
    await answer.start(200)
    await answer.write(b"one")
    answer.drop(reset=exchange.path == "/reset")


async def test_one_connection_carries_many_requests_and_each_is_recorded() -> None:
    reported: list[Exchange] = []
    with trio.fail_after(5):
        async with open_http_server("x", echo, "127.0.0.1", 0, reported.append) as server:
            async with httpx.AsyncClient(verify=False, base_url=server.url) as client:
                for text in ("a", "b", "c"):
                    response = await client.post(f"/p/{text}?q=1%202&q=", content=text)
                    assert (response.status_code, response.text) == (200, text)
                assert server.connections_total == server.connections_open == 1
            await server.wait_closed()

    assert list(server.exchanges) == reported
    last = reported[-1]
    assert (last.number, last.service, last.method) == (3, "x", "POST")
    assert (last.path, last.query, last.body) == ("/p/c", [("q", "1 2"), ("q", "")], b"c")
    assert (last.status, last.outcome, last.sent_bytes) == (200, "complete", 1)
    assert last.headers["host"] == server.url.removeprefix("http://")


async def test_pipelined_requests_are_answered_in_order() -> None:
    with trio.fail_after(5):
        async with open_http_server("x", echo, "127.0.0.1", 0) as server:
            port = int(server.url.rpartition(":")[2])
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                request = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n%d"
                await stream.send_all(b"".join(request % n for n in range(5)))
                received = b""
                while received.count(b"HTTP/1.1 200") < 5 or not received.endswith(b"4"):
                    received += await stream.receive_some()
            bodies = [part.split(b"\r\n\r\n")[1] for part in received.split(b"HTTP/1.1 200")[1:]]
            assert bodies == [b"0", b"1", b"2", b"3", b"4"]


async def test_a_client_that_leaves_in_mid_answer_is_noticed_while_nothing_is_sent() -> None:
    with trio.fail_after(5):
        async with open_http_server("x", drip, "127.0.0.1", 0) as server:
            port = int(server.url.rpartition(":")[2])
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                received = b""
                while not received.endswith(b"\r\n3\r\none\r\n"):
                    received += await stream.receive_some()
                assert server.exchanges[0].outcome == "open"
            await server.wait_closed()
            assert (server.exchanges[0].outcome, server.exchanges[0].sent_bytes) == ("cancelled", 3)


@pytest.mark.parametrize(
    "path, error",
    [
        ("/head", httpx.ReadError),
        ("/fin", httpx.RemoteProtocolError),
        ("/reset", httpx.ReadError),
    ],
)
async def test_a_cut_connection_is_an_error_for_the_client(
    path: str, error: type[httpx.TransportError]
) -> None:
    with trio.fail_after(5):
        async with open_http_server("x", cut, "127.0.0.1", 0) as server:
            async with httpx.AsyncClient(verify=False, base_url=server.url) as client:
                with pytest.raises(error):
                    await client.get(path)
            await server.wait_closed()
            assert server.exchanges[0].outcome == "dropped"


async def test_a_body_over_the_cap_is_refused_and_not_kept() -> None:
    with trio.fail_after(10):
        async with open_http_server("x", echo, "127.0.0.1", 0) as server:
            async with httpx.AsyncClient(verify=False, base_url=server.url) as client:
                response = await client.post("/", content=b"x" * (BODY_BYTES + 1))
                assert response.status_code == 413
                assert (await client.post("/", content=b"y")).text == "y"  # same connection
            assert server.exchanges[0].body == b""
            assert server.connections_total == 1


@pytest.mark.parametrize("junk", [b"\x00\xff\r\n\r\n", b"GET /\r\n\r\n", b"POST / HTTP/1.1\r\n"])
async def test_junk_and_half_requests_end_that_connection_only(junk: bytes) -> None:
    with trio.fail_after(5):
        async with open_http_server("x", echo, "127.0.0.1", 0) as server:
            port = int(server.url.rpartition(":")[2])
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(junk)
                await stream.send_eof()
                assert await stream.receive_some() == b""
            await server.wait_closed()
            async with httpx.AsyncClient(verify=False) as client:
                assert (await client.post(server.url, content=b"z")).text == "z"


async def test_leaving_the_block_cuts_connections_and_leaves_no_task() -> None:
    before = trio.lowlevel.current_statistics().tasks_living
    with trio.fail_after(5):
        async with httpx.AsyncClient(verify=False) as client:
            async with open_http_server("x", drip, "127.0.0.1", 0) as server:
                request = client.build_request("GET", server.url)
                response = await client.send(request, stream=True)
            assert server.connections_open == 0
            assert server.exchanges[0].outcome == "dropped"
            with pytest.raises(httpx.RemoteProtocolError):
                await response.aread()
        with pytest.raises(OSError, match="all attempts to connect"):
            await trio.open_tcp_stream("127.0.0.1", int(server.url.rpartition(":")[2]))
    assert trio.lowlevel.current_statistics().tasks_living == before
