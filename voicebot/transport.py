"""Outbound HTTP that survives being cancelled at any moment: httpx, with two leaks closed.

A barge-in cancels a request in every turn, so what a cancelled request leaves behind adds up:

- httpcore 1.0.9 keeps a connection in its pool for ever when the request is cancelled between
  the end of the connect and the start of the request (encode/httpcore #1093; PR 1099, unmerged),
  and abandons the socket when the TLS handshake is cancelled. `Transport` closes both gaps.
- Every layer of a body is an async generator, and leaving one half read leaves the layers below
  it to the garbage collector, of which Trio warns. `reading` ends those of a response, and
  `Transport` sends a request without one.

No policy here: no retry, no deadline on an answer. HTTP/1.1 only: cancelling one HTTP/2 stream
disturbs the others of its connection.
"""

from __future__ import annotations

import functools
import logging
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import httpcore
import httpx
import trio

from voicebot.hidden import open_hidden_nursery
from voicebot.warm import Spares

log = logging.getLogger(__name__)

KEEP_ALIVE_S: Final = 30.0  # a call asks about every 8 s; balancers drop an idle peer after 60 s
CLOSE_S: Final = 1.0  # closing a socket sends at most one TLS record; a full buffer may hold it
READ_S: Final = 10.0  # backstop only, so that no wait is endless; callers set tighter deadlines


@functools.cache
def tls_context() -> ssl.SSLContext:
    """Return the process's TLS context. Loading the CA bundle blocks for 28–58 ms: once."""
    return httpx.create_ssl_context()


@asynccontextmanager
async def open_client(
    *,
    connect_timeout_s: float = 2.0,  # a healthy handshake takes 0.2 s, and the caller is waiting
    ssl_context: ssl.SSLContext | None = None,
    url: str = "",
    spares: int = 0,
) -> AsyncGenerator[Client]:
    """Yield an HTTP client for the whole process.

    Args:
        url: the server to which so many `spares` are kept ready; see `warm.py`.

    Owns: all its connections; closed on leaving.
    """
    context = ssl_context or tls_context()
    # Owns: the spare connections. Ends when: the block is left.
    async with open_hidden_nursery("client closed") as nursery:
        network = Spares(
            nursery,
            url,
            count=spares,
            ssl_context=context,
            connect_timeout_s=connect_timeout_s,
        )
        async with Client(
            transport=Transport(context, network),
            # No pool timeout: the pool is unbounded and nobody waits for it.
            timeout=httpx.Timeout(READ_S, connect=connect_timeout_s, pool=None),
            # A compressing proxy would hold back the first bytes of a stream.
            headers={"Accept-Encoding": "identity"},
        ) as client:
            client.warm = network.warm
            try:
                yield client
            finally:
                if spares:
                    log.info("spare_connections", extra={"counts": dict(network.counts)})


class Client(httpx.AsyncClient):
    """httpx's client. `warm()` says that requests are to be expected; it returns at once."""

    warm: Callable[[], None]


class Transport(httpx.AsyncHTTPTransport):
    """httpx's transport, whose pool forgets a cancelled request completely.

    The pool has no bound: with one, a request that waits for a slot can be cancelled in the
    same step in which it is given one, and the slot is lost. The number of calls bounds it.

    Cancellation: at once, except for the one step, without input or output, in which a new
    connection is handed to its request.
    """

    def __init__(self, ssl_context: ssl.SSLContext, network: Spares | None = None) -> None:
        super().__init__(verify=ssl_context)
        self._network = network
        # httpx does not hand a network on to httpcore. Nothing was opened in the pool it made.
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl_context,
            max_connections=None,
            max_keepalive_connections=None,
            keepalive_expiry=KEEP_ALIVE_S,
            network_backend=network,
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request and return its response, body unread."""
        if self._network is not None:
            self._network.warm()
        connect = _Connect(tls=request.url.scheme == "https")
        request.extensions["trace"] = connect.trace
        request.stream = _Body(await request.aread())
        try:
            with connect.scope:
                response = await super().handle_async_request(request)
        finally:
            connect.close_if_unfinished()
        return response


class _Body(httpx.AsyncByteStream):
    """A request's body in one chunk. httpx's is a generator, which a cancelled send leaves."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._sent = False

    def __aiter__(self) -> _Body:
        return _Body(self._content)

    async def __anext__(self) -> bytes:
        if self._sent:
            raise StopAsyncIteration
        self._sent = True
        return self._content


class _Connect:
    """What httpcore tells, through its `trace` extension, of one request's way to the wire.

    | event                            | then                                              |
    |----------------------------------|---------------------------------------------------|
    | connect_tcp.complete             | the socket is ours to close until TLS is done     |
    | last of connect_tcp, start_tls   | the pool would lose the connection: shield        |
    | send_request_headers.started     | the connection looks after itself: end the shield |

    Between the last two lies one uncontended lock, so the shield needs no deadline.
    """

    def __init__(self, *, tls: bool) -> None:
        self.scope = trio.CancelScope()
        self._last = "connection.start_tls.complete" if tls else "connection.connect_tcp.complete"
        self._unfinished: Any = None  # httpcore's AsyncNetworkStream

    async def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Follow the request; must not wait for anything."""
        if event == "connection.connect_tcp.complete":
            self._unfinished = info["return_value"]
        if event == self._last:
            self._unfinished = None
            self.scope.shield = True
        elif event == "http11.send_request_headers.started":
            self.scope.shield = False

    def close_if_unfinished(self) -> None:
        """Close a socket whose TLS handshake did not come to an end."""
        if self._unfinished is not None:
            self._unfinished.get_extra_info("socket").close()


@asynccontextmanager
async def reading(response: httpx.Response) -> AsyncGenerator[AsyncIterator[bytes]]:
    """Yield the body's chunks; close the response on leaving, read to its end or not.

    Cancellation: safe; an unread rest costs the connection, nothing else.
    """
    chunks = response.aiter_bytes()
    try:
        yield chunks
    finally:
        with trio.move_on_after(CLOSE_S, shield=True):
            await response.aclose()
            try:
                # The connection is closed, so this ends as soon as what had arrived is used up,
                # and with it ends every generator below.
                async for _ in chunks:
                    pass
            except (httpx.HTTPError, httpx.StreamError):
                pass  # that it is closed is what was wanted
