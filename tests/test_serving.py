"""hypercorn made safe: what a stranger sends must not be felt by another connection.

Real sockets on loopback, port 0, each test under a deadline. A test of a fault asserts three
things afterwards: the server lives, another connection still echoes, and tasks and file
descriptors are back at their number.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import signal
import socket as stdlib_socket
import ssl
import struct
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import hypercorn.trio
import pytest
import trio
from wsproto.extensions import PerMessageDeflate

from tests.peer import Gone, Peer, in_use, open_peer
from voicebot import serving
from voicebot.admission import Admission
from voicebot.client_address import networks
from voicebot.limits import Limits
from voicebot.tcp import TURN_SENDS

Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Any, Any, Any], Awaitable[None]]

UPGRADE = (
    b"GET /echo HTTP/1.1\r\n"
    b"Host: localhost\r\n"
    b"Connection: Upgrade\r\n"
    b"Upgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)
MASKED_TEXT = b"\x81\x82\x00\x00\x00\x00hi"


async def app(scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
    """Echo over a WebSocket, say hello over HTTP."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
    elif scope["type"] == "http":
        headers = [(b"content-length", b"5")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"hello"})
    else:
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"]})


def on_path(path: str, special: Callable[[Receive, Send], Awaitable[None]]) -> App:
    """Return `app` with `special` behind one path."""

    async def routed(scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        if scope.get("path") == path:
            await special(receive, send)
        else:
            await app(scope, receive, send)

    return routed


@asynccontextmanager
async def running(
    served: App = app, *, grace_s: float = 0.0, send_deadline_s: float = 5.0
) -> AsyncGenerator[int]:
    """Serve on a free port and say which; on the way out, stop and join."""
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            shutdown = trio.Event()
            urls = await nursery.start(
                partial(
                    serving.serve,
                    served,
                    host="127.0.0.1",
                    port=0,
                    grace_s=grace_s,
                    send_deadline_s=send_deadline_s,
                    shutdown=shutdown,
                )
            )
            assert len(urls) == 1
            yield int(urls[0].rpartition(":")[2])
            shutdown.set()


@asynccontextmanager
async def nothing_left_behind(port: int, within_s: float = 2.0) -> AsyncGenerator[None]:
    """Check what must hold after any fault: see the module's docstring."""
    await ask(port)  # so that whatever is made once has been made
    async with open_peer(port, "/echo") as other:
        before = in_use()
        yield
        await assert_echo(other)
        assert await ask(port) == b"hello"
        with trio.fail_after(within_s):
            while in_use() != before:  # noqa: ASYNC110  # nothing tells of a file descriptor
                await trio.sleep(0.01)
        await assert_echo(other)


async def assert_echo(peer: Peer) -> None:
    with trio.fail_after(2):
        await peer.send("still there?")
        assert await peer.receive() == "still there?"


async def ask(port: int) -> bytes:
    """Return the body of an ordinary request."""
    request = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    return (await exchange(port, request)).rpartition(b"\r\n\r\n")[2]


async def exchange(port: int, *parts: bytes) -> bytes:
    """Send bytes and return all that comes until the server closes."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        answer = b""
        try:
            for part in parts:
                await stream.send_all(part)
            async for chunk in stream:
                answer += chunk
        except trio.BrokenResourceError:
            pass  # reset: also an end
        return answer


async def upgraded(port: int, path: bytes = b"/echo") -> trio.SocketStream:
    """Open a WebSocket and return its bare stream."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    await stream.send_all(UPGRADE.replace(b"/echo", path) + b"\r\n")
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += await stream.receive_some()
    assert answer.startswith(b"HTTP/1.1 101")
    return stream


async def reset(stream: trio.SocketStream) -> None:
    """Close with RST, as a peer that crashes."""
    linger = struct.pack("ii", 1, 0)
    stream.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_LINGER, linger)
    await stream.aclose()


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name == "voicebot.serving"]


# One connection's fault stays in it (hypercorn #225, #177, #329)


@pytest.mark.parametrize("behind", [b"x", MASKED_TEXT, b"\r\n"])
async def test_bytes_behind_an_upgrade_request_end_only_that_connection(
    behind: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with running() as port, nothing_left_behind(port):
        assert await exchange(port, UPGRADE + b"\r\n" + behind) == b""
    assert events(caplog) == []  # a stranger cannot fill the log with tracebacks


async def test_message_before_the_answer_to_the_upgrade_ends_only_that_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen: list[str] = []

    async def undecided(receive: Receive, send: Send) -> None:
        seen.append((await receive())["type"])
        seen.append((await receive())["type"])
        await send({"type": "websocket.accept"})

    async with running(on_path("/undecided", undecided)) as port, nothing_left_behind(port):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(UPGRADE.replace(b"/echo", b"/undecided") + b"\r\n")
            await trio.testing.wait_all_tasks_blocked(0.01)
            await stream.send_all(MASKED_TEXT)
            assert await stream.receive_some() == b""
    assert seen == ["websocket.connect", "websocket.disconnect"]
    assert events(caplog) == []


@pytest.mark.parametrize(
    "header",
    [
        b"Sec-WebSocket-Extensions: \xe9",
        b"Sec-WebSocket-Protocol: \xe9",
        b"Connection: Upgrade, \xe9",
    ],
)
async def test_header_that_is_not_ascii_ends_only_that_connection(header: bytes) -> None:
    async with running() as port, nothing_left_behind(port):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(UPGRADE + header + b"\r\n\r\n")
            await stream.receive_some()  # 101, or the end


async def test_failing_connection_is_logged_once_with_its_peer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running() as port:
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            host, local_port = stream.socket.getsockname()
            await stream.send_all(UPGRADE + b"Sec-WebSocket-Protocol: \xe9\r\n\r\n")
            assert await stream.receive_some() == b""
    (record,) = [record for record in caplog.records if record.name == "voicebot.serving"]
    assert record.message == "connection_failed"
    assert getattr(record, "peer", None) == f"{host}:{local_port}"


async def test_300_mutated_connections_leave_nothing_behind() -> None:
    seeds = [
        UPGRADE + b"\r\n" + MASKED_TEXT * 3,
        UPGRADE + b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n\xc1\x82\x00\x00\x00\x00hi",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 4,
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    ]
    dice = random.Random(20_261_122)

    async def attack(port: int) -> None:
        packet = bytearray(dice.choice(seeds))
        for _ in range(dice.randrange(4)):
            packet[dice.randrange(len(packet))] = dice.randrange(256)
        cut = dice.randrange(len(packet))
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        try:
            await stream.send_all(packet[:cut])
            await stream.send_all(packet[cut:])
            with trio.move_on_after(0.005):
                await stream.receive_some()
        except trio.BrokenResourceError:
            pass  # refused, which is fine
        await (reset(stream) if dice.random() < 0.5 else stream.aclose())

    async with running() as port, nothing_left_behind(port):
        for _ in range(300):
            await attack(port)


async def test_http2_without_asking_is_not_spoken() -> None:
    async with running() as port, nothing_left_behind(port):
        answer = await exchange(port, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9))
        assert answer.startswith(b"HTTP/1.1 ")


# The application


async def test_crash_of_the_application_closes_1011_and_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def crash(receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        raise ExceptionGroup("crash", [ValueError("one"), KeyError("two")])

    async with running(on_path("/crash", crash)) as port, nothing_left_behind(port):
        async with open_peer(port, "/crash") as peer:
            with pytest.raises(Gone) as gone:
                await peer.receive()
        assert gone.value.code == 1011
    assert events(caplog) == ["application_failed"]


async def test_application_that_ends_behind_a_full_queue_leaves_nothing_behind() -> None:
    ended = trio.Event()

    async def deaf(receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await ended.wait()

    async with running(on_path("/deaf", deaf)) as port, nothing_left_behind(port):
        streams = [await upgraded(port, b"/deaf") for _ in range(5)]
        for stream in streams:
            await stream.send_all(MASKED_TEXT * 40)  # more than the queue takes
        await trio.testing.wait_all_tasks_blocked(0.05)
        ended.set()
        for stream in streams:
            await stream.aclose()


async def test_application_that_answers_behind_a_full_queue_leaves_nothing_behind() -> None:
    full = trio.Event()

    async def deaf(receive: Receive, send: Send) -> None:
        await full.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async with running(on_path("/deaf", deaf)) as port, nothing_left_behind(port):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        head = b"POST /deaf HTTP/1.1\r\nHost: a\r\nContent-Length: 90000000\r\n\r\n"
        with trio.move_on_after(0.3):
            await stream.send_all(head + bytes(20_000_000))  # more than the queue takes
        full.set()
        await stream.aclose()


async def test_hang_up_behind_what_nobody_has_read_reaches_the_application() -> None:
    seen: list[str] = []
    hung_up = trio.Event()

    async def late(receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await hung_up.wait()
        try:
            while True:
                await send({"type": "websocket.send", "text": "x" * 1000})
        except OSError:
            seen.append("refused")
        while not seen or seen[-1] != "websocket.disconnect":
            seen.append((await receive())["type"])
        seen.append((await receive())["type"])

    async with running(on_path("/late", late)) as port, nothing_left_behind(port):
        stream = await upgraded(port, b"/late")
        await stream.send_all(MASKED_TEXT * 40)
        await trio.testing.wait_all_tasks_blocked(0.05)
        await reset(stream)
        hung_up.set()
    assert seen[-2:] == ["websocket.disconnect"] * 2
    assert seen[0] == "refused"


async def test_who_sends_without_end_to_a_peer_that_reads_lets_others_run() -> None:
    steps, meanwhile = 0, 0

    async def talkative(receive: Receive, send: Send) -> None:
        nonlocal meanwhile
        await receive()
        await send({"type": "websocket.accept"})
        before = steps
        for _ in range(200):
            await send({"type": "websocket.send", "text": "x"})
        meanwhile = steps - before

    async def other() -> None:
        nonlocal steps
        while True:
            await trio.lowlevel.checkpoint()
            steps += 1

    async with running(on_path("/talk", talkative)) as port, trio.open_nursery() as nursery:
        nursery.start_soon(other)
        stream = await upgraded(port, b"/talk")
        with trio.fail_after(5):
            while await stream.receive_some():
                pass
        await stream.aclose()
        nursery.cancel_scope.cancel()
    assert meanwhile >= 200 // TURN_SENDS - 2


async def test_last_words_of_a_peer_are_received_behind_a_send_that_failed() -> None:
    seen: list[str] = []
    hung_up, over = trio.Event(), trio.Event()

    async def late(receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await hung_up.wait()
        try:
            while True:
                await send({"type": "websocket.send", "text": "x"})
                await trio.sleep(0.001)
        except OSError:
            pass
        while not seen or seen[-1] != "websocket.disconnect":
            message = await receive()
            seen.append(message.get("text") or message["type"])
        over.set()

    async with running(on_path("/late", late)) as port, nothing_left_behind(port):
        stream = await upgraded(port, b"/late")
        await stream.send_all(MASKED_TEXT * 3)
        await stream.aclose()
        await trio.sleep(0.05)  # until the kernel knows
        hung_up.set()
        with trio.fail_after(5):
            await over.wait()
    assert len(seen) == 4
    assert len({*seen[:3]}) == 1
    assert seen[3] == "websocket.disconnect"


async def test_application_that_outlives_its_socket_is_cancelled(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "LINGER_S", 0.1)
    monkeypatch.setattr(serving, "LOOK_S", 0.1)

    async def stubborn(receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await trio.sleep_forever()

    async with running(on_path("/stubborn", stubborn)) as port, nothing_left_behind(port):
        await (await upgraded(port, b"/stubborn")).aclose()
    assert events(caplog) == ["application_outlived_socket"]


async def test_reader_parked_between_pipelined_requests_ends_with_a_reset() -> None:
    was_reset = trio.Event()

    async def slow(receive: Receive, send: Send) -> None:
        await was_reset.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(10):
            await send({"type": "http.response.body", "body": bytes(1000), "more_body": True})
            await trio.sleep(0.001)

    async with running(on_path("/slow", slow)) as port, nothing_left_behind(port):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n" * 2)
        await trio.testing.wait_all_tasks_blocked(0.05)
        await reset(stream)
        was_reset.set()


# Sending


@contextmanager
def tls_contexts(directory: Path) -> Iterator[tuple[Path, Path, ssl.SSLContext]]:
    """Make a certificate for localhost and a client that trusts it."""
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    subprocess.run(
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
        f"-subj /CN=localhost -addext subjectAltName=DNS:localhost "
        f"-keyout {key} -out {certificate}".split(),
        check=True,
        capture_output=True,
    )
    yield key, certificate, ssl.create_default_context(cafile=str(certificate))


async def flood(gone: trio.Event, receive: Receive, send: Send) -> None:
    """Send until told that the peer has gone, then say so."""
    await receive()
    await send({"type": "websocket.accept"})
    async with trio.open_nursery() as nursery:

        async def send_all() -> None:
            try:
                while True:
                    await send({"type": "websocket.send", "text": "x" * 10_000})
            except OSError:
                pass  # the other task is told as well

        nursery.start_soon(send_all)
        assert (await receive())["type"] == "websocket.disconnect"
        nursery.cancel_scope.cancel()
    gone.set()


async def test_peer_that_does_not_read_is_dropped_after_the_send_deadline(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gone = trio.Event()
    served = on_path("/flood", partial(flood, gone))
    async with running(served, send_deadline_s=0.2) as port, nothing_left_behind(port):
        stream = await upgraded(port, b"/flood")
        with trio.fail_after(5):
            await gone.wait()
        await stream.aclose()
    assert events(caplog) == ["send_deadline_passed"]


async def test_peer_that_does_not_read_does_not_hold_the_exit() -> None:
    async with running(
        on_path("/flood", partial(flood, trio.Event())), grace_s=0.2, send_deadline_s=0.5
    ) as port:
        stream = await upgraded(port, b"/flood")
        await trio.sleep(0.1)
        deadline = trio.current_time() + 5
    assert trio.current_time() < deadline
    await stream.aclose()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
async def test_peer_that_does_not_read_is_dropped_over_tls(tmp_path: Path) -> None:
    gone = trio.Event()
    serving.contain()
    with tls_contexts(tmp_path) as (key, certificate, client_context):
        config = serving.ServerConfig()
        config.bind = ["localhost:0"]
        config.keyfile, config.certfile = str(key), str(certificate)
        config.send_deadline_s = 0.2
        config.errorlog = logging.getLogger("test")
        served = on_path("/flood", partial(flood, gone))
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                shutdown = trio.Event()
                (url,) = await nursery.start(
                    partial(hypercorn.trio.serve, served, config, shutdown_trigger=shutdown.wait)
                )
                port = int(url.rpartition(":")[2])
                client_context.set_alpn_protocols(["h2", "http/1.1"])
                stream = await trio.open_ssl_over_tcp_stream(
                    "localhost", port, ssl_context=client_context, https_compatible=True
                )
                await stream.send_all(UPGRADE.replace(b"/echo", b"/flood") + b"\r\n")
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 101")
                assert stream.selected_alpn_protocol() == "http/1.1"
                await gone.wait()
                await stream.aclose()
                shutdown.set()


async def test_large_answer_reaches_a_client_that_has_said_all() -> None:
    size = 5_000_000  # more than the kernel buffers

    async def large(receive: Receive, send: Send) -> None:
        headers = [(b"content-length", b"%d" % size)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": bytes(size)})

    async with running(on_path("/large", large)) as port, nothing_left_behind(port):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
            await stream.receive_some(1)
            await stream.send_eof()
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert sum([len(chunk) async for chunk in stream]) > size


async def test_cancelled_sender_tears_no_message() -> None:
    async def torn(receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        for number in range(200):
            with trio.move_on_after(0.001):
                await send({"type": "websocket.send", "text": f"{number % 10}" * 60_000})
        await send({"type": "websocket.close"})

    async with running(on_path("/torn", torn)) as port:
        async with open_peer(port, "/torn") as peer:
            # Nothing is read yet: the sender is stuck in the middle of a message.
            await trio.testing.wait_all_tasks_blocked(0.1)
            for _ in range(200):
                message = await peer.receive()
                assert message == message[0] * 60_000
            with pytest.raises(Gone, match="1000"):
                await peer.receive()


async def test_accepted_sockets_do_not_wait_to_fill_packets() -> None:
    async with running() as port:
        stream = await upgraded(port)
        options = []
        for name in os.listdir("/proc/self/fd"):
            try:
                copy = stdlib_socket.socket(fileno=os.dup(int(name)))
            except OSError:
                continue  # not a socket
            with copy:
                if copy.family == stdlib_socket.AF_INET and copy.getsockname()[1] == port:
                    listens = copy.getsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_ACCEPTCONN)
                    option = copy.getsockopt(stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_NODELAY)
                    options += [] if listens else [option]
        await stream.aclose()
    assert options == [1]


# Receiving


@pytest.mark.parametrize("fragmented", [False, True])
async def test_endless_message_is_cut_off(
    fragmented: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with running() as port, nothing_left_behind(port):
        stream = await upgraded(port)
        sent = 0
        chunk = bytes(60_000)
        header = b"\x01\xfe" + struct.pack("!H", 60_000) if fragmented else b""
        try:
            if not fragmented:
                await stream.send_all(b"\x82\xff" + struct.pack("!Q", 1 << 40) + bytes(4))
            while sent < 50_000_000:
                await stream.send_all(header + bytes(4) + chunk if fragmented else chunk)
                header = b"\x00\xfe" + struct.pack("!H", 60_000) if fragmented else b""
                sent += len(chunk)
        except trio.BrokenResourceError:
            pass
        await stream.aclose()
        assert sent < 20_000_000  # what the kernel's buffers hold, not what was offered
    assert events(caplog) == ["oversized_message"]


async def test_message_over_the_limit_is_answered_1009() -> None:
    async with running() as port:
        async with open_peer(port, "/echo") as peer:
            await peer.send("x" * (serving.CODEC_MARGIN * Limits().message_chars + 1))
            with pytest.raises(Gone) as gone:
                await peer.receive()
    assert gone.value.code == 1009


@pytest.mark.parametrize(
    "frame",
    [MASKED_TEXT, b"\x89\x80" + bytes(4), b"\x00\x80" + bytes(4)],
    ids=["text", "ping", "empty"],
)
async def test_flood_of_frames_is_cut_off(frame: bytes, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Mapping[str, Any]] = []

    async def listen(receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] != "websocket.disconnect":
            seen.append(message)
        seen.append(message)

    async with running(on_path("/listen", listen)) as port, nothing_left_behind(port):
        stream = await upgraded(port, b"/listen")
        if frame[0] == 0:  # goes on with a message
            await stream.send_all(b"\x01\x80" + bytes(4))
        sent = 0
        try:
            while sent < 4_000_000:
                await stream.send_all(frame * 1_000)
                sent += len(frame) * 1_000
        except trio.BrokenResourceError:
            pass
        await stream.aclose()
        assert sent < 3_000_000  # what the kernel's buffers hold, not what was offered
    assert len(seen) < 2_000  # five seconds of it, and what the time meanwhile is worth
    assert seen[-1]["code"] == 1008
    assert events(caplog) == ["too_many_messages"]


async def test_messages_that_are_large_too_often_are_cut_off(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running() as port, nothing_left_behind(port):
        async with open_peer(port, "/echo") as peer:
            echoed: list[str] = []

            async def send_large() -> None:
                while True:
                    await peer.send("x" * 50_000)
                    echoed.append(await peer.receive())

            with pytest.raises(Gone) as gone:
                await send_large()
        assert gone.value.code == 1008
    assert 10 <= len(echoed) < 40  # five seconds of it, and what the time meanwhile is worth
    assert events(caplog) == ["too_many_bytes"]


async def test_five_seconds_of_a_stalled_call_that_come_at_once_are_taken() -> None:
    async with running() as port, open_peer(port, "/echo") as peer:
        for n in range(300):  # of media, and some marks
            await peer.send(str(n))
            assert await peer.receive() == str(n)


# Who connects, and how often


class Limited:
    """An application with limits of its own."""

    def __init__(self, admission: Admission, served: App = app) -> None:
        self.admission = admission
        self.served = served

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.served(scope, receive, send)


async def from_(address: str, port: int) -> trio.SocketStream:
    """Connect from another address of this machine: 127.0.0.1 is exempt."""
    return await trio.open_tcp_stream("127.0.0.1", port, local_address=address)


async def is_refused(stream: trio.SocketStream) -> bool:
    """Say whether the server closes without an answer, and before it has read anything."""
    with trio.move_on_after(0.5):
        try:
            return not await stream.receive_some()
        except trio.BrokenResourceError:
            return True
    return False


async def test_connections_of_an_address_are_limited_and_its_places_come_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    admission = Admission(Limits(connections_per_address=3))
    async with running(Limited(admission)) as port, nothing_left_behind(port):
        streams = [await from_("127.0.0.2", port) for _ in range(3)]
        refused = [await from_("127.0.0.2", port) for _ in range(3)]
        assert [await is_refused(stream) for stream in refused] == [True] * 3
        async with await from_("127.0.0.3", port) as other:
            assert not await is_refused(other)
        for stream in (*streams, *refused):
            await stream.aclose()
        with trio.fail_after(2):
            while admission._connections.taken > 1:  # noqa: ASYNC110  # the peer beside
                await trio.sleep(0.01)
        async with await from_("127.0.0.2", port) as again:
            assert not await is_refused(again)
    assert events(caplog) == ["connection_refused"]  # once a second, whatever comes
    assert admission.refused == {"connections_per_address": 3}
    assert admission._connections.taken == 0


async def test_connecting_too_often_is_refused() -> None:
    admission = Admission(Limits(connects_per_s=0.01, burst_s=300.0))
    async with running(Limited(admission)) as port:
        for _ in range(3):
            async with await from_("127.0.0.2", port) as stream:
                await stream.send_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")
        async with await from_("127.0.0.2", port) as stream:
            assert await is_refused(stream)
        assert await ask(port) == b"hello"


async def test_asking_too_often_on_one_connection_is_answered_429(
    caplog: pytest.LogCaptureFixture,
) -> None:
    admission = Admission(Limits(requests_per_s=0.01, burst_s=200.0))
    async with running(Limited(admission)) as port, nothing_left_behind(port):
        async with await from_("127.0.0.2", port) as stream:
            for _ in range(2):
                await stream.send_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                answer = b""
                while not answer.endswith(b"hello"):
                    answer += await stream.receive_some()
            await stream.send_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            refused = await stream.receive_some()
            assert refused.startswith(b"HTTP/1.1 429")
            assert b"retry-after: 1" in refused
            assert await is_refused(stream)  # and closed behind it
        async with await from_("127.0.0.2", port) as stream:
            await stream.send_all(UPGRADE + b"\r\n")
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 429")
    assert events(caplog) == ["request_refused"]


@pytest.mark.parametrize("trusted", ["127.0.0.2/32", ""])
async def test_behind_a_trusted_proxy_who_asks_is_whom_it_names(trusted: str) -> None:
    asked: list[str] = []

    async def note(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            asked.append(scope["client"][0])
        await app(scope, receive, send)

    admission = Admission(Limits(requests_per_s=0.01, burst_s=200.0), networks(trusted))
    answers = []
    async with running(Limited(admission, note)) as port:
        for who in (b"192.0.2.1", b"192.0.2.1", b"192.0.2.1", b"192.0.2.2"):
            async with await from_("127.0.0.2", port) as stream:
                header = b"X-Forwarded-For: 198.51.100.7, " + who + b"\r\n"
                await stream.send_all(b"GET / HTTP/1.1\r\nHost: a\r\n" + header + b"\r\n")
                answers.append((await stream.receive_some()).split(b" ")[1])
    if trusted:
        assert answers == [b"200", b"200", b"429", b"200"]
        assert asked == ["192.0.2.1", "192.0.2.1", "192.0.2.2"]
    else:
        assert answers == [b"200", b"200", b"429", b"429"]
        assert asked == ["127.0.0.2"] * 2


async def test_proxy_of_this_machine_that_is_not_declared_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running() as port:
        request = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
        for _ in range(3):
            await exchange(port, request + b"X-Forwarded-For: 192.0.2.1\r\n\r\n")
    assert events(caplog) == ["proxy_not_declared"]


async def test_compression_is_declined() -> None:
    async with running() as port:
        async with open_peer(port, "/echo", [PerMessageDeflate()]) as peer:
            assert peer.extensions == []
            await assert_echo(peer)


async def test_silent_websocket_is_dropped_and_a_waiting_client_is_not(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "SILENCE_S", 0.1)

    async def slow(receive: Receive, send: Send) -> None:
        await trio.sleep(0.3)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"at last"})

    async with running(on_path("/slow", slow)) as port:
        stream = await upgraded(port)
        assert await stream.receive_some() == b""
        await stream.aclose()
        assert events(caplog) == ["peer_silent"]
        answer = await exchange(port, b"GET /slow HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert b"at last" in answer


# Starting and stopping


async def test_serve_reports_its_url_and_prints_nothing(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with running() as port:
        assert await ask(port) == b"hello"
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


async def test_address_in_use_is_a_plain_error() -> None:
    async with running() as port:
        with pytest.raises(OSError, match="in use"):
            await serving.serve(app, host="127.0.0.1", port=port, grace_s=0, shutdown=trio.Event())


async def test_drain_waits_for_a_live_websocket_and_takes_no_other() -> None:
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            shutdown = trio.Event()
            serve = partial(serving.serve, app, host="127.0.0.1", port=0, grace_s=10)
            (url,) = await nursery.start(partial(serve, shutdown=shutdown))
            port = int(url.rpartition(":")[2])
            async with open_peer(port, "/echo") as peer:
                await assert_echo(peer)
                shutdown.set()
                await trio.testing.wait_all_tasks_blocked(0.02)
                with pytest.raises(OSError, match="connect"):
                    await trio.open_tcp_stream("127.0.0.1", port)
                await assert_echo(peer)
                assert nursery.child_tasks


async def like_quart(receive: Receive, send: Send) -> None:
    """Answer in a task that is cancelled once the disconnect is seen, whatever it is at."""
    async with trio.open_nursery() as nursery:

        async def answer() -> None:
            headers = [(b"content-length", b"5")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"hello"})

        nursery.start_soon(answer)
        while (await receive())["type"] != "http.disconnect":
            pass
        nursery.cancel_scope.cancel()


async def hello_from(stream: trio.SocketStream) -> None:
    answer = b""
    while not answer.endswith(b"hello"):
        answer += await stream.receive_some()


async def test_idle_connection_ends_with_the_server_although_its_application_was_cancelled() -> (
    None
):
    with trio.fail_after(5):
        async with running(on_path("/quart", like_quart), grace_s=10) as port:
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(b"GET /quart HTTP/1.1\r\nHost: a\r\n\r\n")
            await hello_from(stream)
            await trio.testing.wait_all_tasks_blocked(0.02)
        assert await stream.receive_some() == b""
        await stream.aclose()


async def test_who_keeps_the_body_back_is_closed_behind_the_answer() -> None:
    with trio.fail_after(5):
        async with running(on_path("/quart", like_quart)) as port:
            for _ in range(10):  # which of the two tasks is first is chance
                stream = await trio.open_tcp_stream("127.0.0.1", port)
                head = b"POST /quart HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n"
                await stream.send_all(head)
                await hello_from(stream)
                assert await stream.receive_some() == b""
                await stream.aclose()


async def test_a_refused_upgrade_is_not_waited_for(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "SILENCE_S", 0.2)
    async with running() as port:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(UPGRADE.replace(b"WebSocket-Key", b"WebSocket-Kex") + b"\r\n")
        with trio.fail_after(5):
            while await stream.receive_some():
                pass
        await stream.aclose()
    assert events(caplog) == ["peer_silent"]


async def test_an_accept_that_cannot_be_sent_leaves_no_connection() -> None:
    async def accept(receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept", "headers": [(b"no value",)]})

    async with running(on_path("/accept", accept)) as port, nothing_left_behind(port):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(UPGRADE.replace(b"/echo", b"/accept") + b"\r\n")
        with trio.fail_after(5):
            assert await stream.receive_some() == b""
        await stream.aclose()


async def test_drain_ends_at_its_deadline() -> None:
    async with running(grace_s=0.1) as port:
        stream = await upgraded(port)
    assert await stream.receive_some() == b""
    await stream.aclose()


async def test_hypercorns_own_command_line_is_contained(tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(
        "from voicebot import serving\n"
        "serving.contain()\n"
        "async def app(scope, receive, send):\n"
        "    if scope['type'] == 'lifespan': raise NotImplementedError\n"
        "    await receive()\n"
        "    headers = [(b'content-length', b'5')]\n"
        "    await send({'type': 'http.response.start', 'status': 200, 'headers': headers})\n"
        "    await send({'type': 'http.response.body', 'body': b'hello'})\n"
    )
    port = free_port()
    command = [sys.executable, "-m", "hypercorn", "--worker-class", "trio"]
    command += ["--bind", f"127.0.0.1:{port}", f"{tmp_path}/service:app"]
    environ = {**os.environ, "PYTHONPATH": os.getcwd()}
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            process = await nursery.start(
                partial(trio.run_process, command, env=environ, capture_stderr=True, check=False)
            )
            try:
                while True:
                    try:
                        assert await ask(port) == b"hello"
                        break
                    except OSError:
                        await trio.sleep(0.05)
                with trio.move_on_after(1):
                    await exchange(port, UPGRADE + b"\r\nx")
                await exchange(port, UPGRADE + b"Sec-WebSocket-Protocol: \xe9\r\n\r\n")
                assert await ask(port) == b"hello"
                assert process.poll() is None
            finally:
                process.send_signal(signal.SIGTERM)


def free_port() -> int:
    with stdlib_socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
