"""The smallest servers that the provider clients can be tried against, over real sockets.

Not the stand-ins of the package: those imitate a provider, these do exactly what a test says.
"""

from __future__ import annotations

import functools
import os
import shutil
import ssl
import subprocess
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import h11
import pytest
import trio
import trio_websocket


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def make_tls_contexts(directory: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return a server's and a client's context that trust each other, for localhost."""
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command makes the certificate")
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    return server, ssl.create_default_context(cafile=certificate)


@dataclass
class Exchange:
    """One HTTP request and the means to answer it."""

    target: str
    headers: dict[str, str]
    body: bytes
    _send: Callable[[h11.Event], Awaitable[None]]

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query)

    async def begin(self, status: int, headers: Iterable[tuple[str, str]] = ()) -> None:
        await self._send(h11.Response(status_code=status, headers=list(headers)))

    async def data(self, data: bytes) -> None:
        await self._send(h11.Data(data=data))

    async def end(self) -> None:
        await self._send(h11.EndOfMessage())

    async def answer(
        self, status: int, content_type: str, body: bytes, headers: Iterable[tuple[str, str]] = ()
    ) -> None:
        await self.begin(status, [("content-type", content_type), *headers])
        await self.data(body)
        await self.end()


Respond = Callable[[Exchange], Awaitable[None]]


@dataclass
class HttpServer:
    """What the server saw. `gone` is set when a client closed in mid-answer."""

    url: str = ""
    connections: int = 0
    exchanges: list[Exchange] = field(default_factory=list)
    gone: trio.Event = field(default_factory=trio.Event)


@asynccontextmanager
async def open_http_server(
    respond: Respond, ssl_context: ssl.SSLContext | None = None
) -> AsyncGenerator[HttpServer]:
    """Serve HTTP/1.1 on a free port of loopback, each connection until its client closes."""
    server = HttpServer()

    async def serve(tcp: trio.SocketStream) -> None:
        server.connections += 1
        stream: trio.abc.Stream = tcp
        if ssl_context is not None:
            stream = trio.SSLStream(tcp, ssl_context, server_side=True, https_compatible=True)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_serve_http, stream, server, respond, nursery.cancel_scope)
        except* (trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError):
            server.gone.set()
        finally:
            tcp.socket.close()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        port = listeners[0].socket.getsockname()[1]
        server.url = f"{'https' if ssl_context else 'http'}://localhost:{port}"
        try:
            yield server
        finally:
            nursery.cancel_scope.cancel()


async def _serve_http(
    stream: trio.abc.Stream, server: HttpServer, respond: Respond, scope: trio.CancelScope
) -> None:
    conn = h11.Connection(h11.SERVER)

    async def send(event: h11.Event) -> None:
        data = conn.send(event)
        if data:
            await stream.send_all(data)

    while True:
        body = b""
        request: h11.Request | None = None
        while True:
            event = conn.next_event()
            if event is h11.NEED_DATA:
                data = await stream.receive_some(65_536)
                if not data:
                    return
                conn.receive_data(bytes(data))
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            else:
                break
        assert request is not None
        headers = {name.decode(): value.decode() for name, value in request.headers}
        exchange = Exchange(request.target.decode(), headers, body, send)
        server.exchanges.append(exchange)
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                # A client does not speak before it was answered: anything here is its end.
                await stream.receive_some(1)
                server.gone.set()
                scope.cancel()

            nursery.start_soon(watch)
            await respond(exchange)
            nursery.cancel_scope.cancel()
        if conn.our_state is not h11.DONE:
            return
        conn.start_next_cycle()


Converse = Callable[[trio_websocket.WebSocketRequest], Awaitable[None]]


@asynccontextmanager
async def open_websocket_server(
    converse: Converse, ssl_context: ssl.SSLContext | None = None
) -> AsyncGenerator[str]:
    """Serve WebSockets on a free port of loopback; yield the http(s) base address."""

    async def serve(request: trio_websocket.WebSocketRequest) -> None:
        try:
            await converse(request)
        except trio_websocket.ConnectionClosed:
            pass

    async with trio.open_nursery() as nursery:
        server: trio_websocket.WebSocketServer = await nursery.start(
            functools.partial(
                trio_websocket.serve_websocket,
                connect_timeout=2,  # it keeps a client that left before its request until then
            ),
            serve, "127.0.0.1", 0, ssl_context,
        )  # fmt: skip
        try:
            yield f"{'https' if ssl_context else 'http'}://localhost:{server.port}"
        finally:
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_tcp_server(
    serve: Callable[[trio.SocketStream], Awaitable[None]],
) -> AsyncGenerator[str]:
    """Serve raw TCP on a free port of loopback; yield the http base address."""
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        try:
            yield f"http://localhost:{listeners[0].socket.getsockname()[1]}"
        finally:
            nursery.cancel_scope.cancel()


class _CancelAtStep(trio.abc.Instrument):
    """Cancels a scope before the n-th step that any task takes."""

    def __init__(self, scope: trio.CancelScope, step: int) -> None:
        self._scope = scope
        self._left = step

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._left -= 1
        if self._left == 0:
            self._scope.cancel()


async def cancel_at_every_step(act: Callable[[], Awaitable[None]], *, at_most: int = 1_000) -> int:
    """Run `act` again and again, cancelled one scheduler step later each time.

    Returns the number of runs that were cancelled; the last run was not.

    A step is one turn of any task in the process, the servers' included, so that every task of
    a client is met both while it waits and when its result is already there.
    """
    for step in range(1, at_most):
        with trio.CancelScope() as scope:
            instrument = _CancelAtStep(scope, step)
            trio.lowlevel.add_instrument(instrument)
            try:
                await act()
            finally:
                trio.lowlevel.remove_instrument(instrument)
        if not scope.cancelled_caught:
            return step - 1
    raise AssertionError(f"not done after {at_most} steps")
