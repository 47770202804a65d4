"""A WebSocket to Deepgram, by trio-websocket: connect, send, receive, leave.

What every stream of Deepgram has in common, whatever is said on it. The private nursery holds the
library's reader and the timer of the filler; its errors come out of `receive` and `send`, never as
a group and never on their own. The messages are the codecs'; when to reconnect is the caller's.
"""

from __future__ import annotations

import logging
import math
import socket
import ssl
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Final, cast
from urllib.parse import SplitResult, urlsplit

import trio
import trio_websocket

from voicebot import deepgram
from voicebot.errors import ProviderError, ProviderTimeout
from voicebot.tcp import QuickStream
from voicebot.transport import tls_context

log = logging.getLogger(__name__)

CLOSE_S: Final = 1.0  # a call must leave nothing behind 2 s after its end
FAREWELL_S: Final = 0.1  # enough to hand one small message to the kernel
# Messages come one to four a second. With nobody receiving, the reader stops here, and then
# neither pings nor a close are seen: a quarter of a minute is longer than any call survives that.
QUEUE_MESSAGES: Final = 64
MAX_MESSAGE_BYTES: Final = 262_144  # 30 s of words with their times are about 20 kB
# A network that has gone silent shows in sends only when the kernel's buffers are full, half a
# minute of audio later. The kernel itself knows after this long without an acknowledgement.
UNACKED_MS: Final = 5_000

Closed = Callable[[int, str], ProviderError]


@asynccontextmanager
async def open_socket(
    provider: str,
    url: str,
    *,
    api_key: str,
    closed: Closed,
    farewell: str,
    filler: str | bytes = "",
    quiet_s: float = math.inf,
    connect_timeout_s: float = 3.0,  # TCP, TLS and upgrade; 0.3 s when all is well
    ssl_context: ssl.SSLContext | None = None,
) -> AsyncGenerator[DeepgramSocket]:
    """Connect and yield a WebSocket.

    Args:
        provider: for errors and logs.
        url: ws(s), with its query.
        closed: makes the error of a close: its code, 1006 where there was none, and its reason.
        farewell: the last message, which makes the peer close.
        filler: sent when no audio has been for `quiet_s`.
        ssl_context: instead of the process's own, for a server with a private CA.

    Raises:
        ProviderTimeout: no connection in time.
        ProviderRejected: refused; the message says what to do.
        ProviderError: unreachable, or the answer is none.

    Cancellation: safe at any point. However the block is left, the peer is told; only on a
    normal exit is its answer awaited, for `CLOSE_S`.
    Owns: the socket, the library's reader and the timer of the filler.
    """
    failure: Exception | None = None
    # Owns: connection and filler. Ends when: the block is left.
    async with trio.open_nursery() as nursery:
        try:
            try:
                with trio.fail_after(connect_timeout_s):
                    websocket: trio_websocket.WebSocketConnection = await nursery.start(
                        _serve_websocket,
                        provider,
                        urlsplit(url),
                        api_key,
                        ssl_context,
                        name=f"{provider} websocket",
                    )
            except trio.TooSlowError as exc:
                raise ProviderTimeout(
                    provider, f"no connection within {connect_timeout_s:g} s"
                ) from exc
            connection = DeepgramSocket(websocket, closed)
            if filler:
                nursery.start_soon(connection.fill, filler, quiet_s, name=f"{provider} filler")
            try:
                yield connection
                with trio.move_on_after(CLOSE_S):
                    await connection.aclose(farewell)
            finally:
                with trio.move_on_after(FAREWELL_S, shield=True):
                    await connection.end(farewell)
        except Exception as exc:
            # Raised below instead: out of here it would come as a group, though the nursery
            # is nobody's business.
            failure = exc
        nursery.cancel_scope.cancel(reason="socket closed")
    if failure is not None:
        try:
            raise failure
        finally:
            del failure  # its traceback holds this frame: without this, a cycle


class DeepgramSocket:
    """A connected WebSocket."""

    def __init__(self, websocket: trio_websocket.WebSocketConnection, closed: Closed) -> None:
        self._websocket = websocket
        self._closed = closed
        self._sending = 0  # sends begun and not ended well: above 0 the stream may be torn
        self._audio_at = trio.current_time()

    async def send(self, message: str | bytes) -> None:
        """Send a text, or audio, which is never empty: that makes Deepgram end the stream.

        Raises:
            ProviderError: the connection is lost.

        Cancellation: the socket is doomed; leave its context manager.
        """
        if isinstance(message, bytes):
            self._audio_at = trio.current_time()
        self._sending += 1  # stays up after a failure or a cancellation
        try:
            await self._websocket.send_message(message)
        except trio_websocket.ConnectionClosed as exc:
            raise self._lost(exc) from exc
        self._sending -= 1

    async def receive(self) -> str | bytes:
        """Wait for the next message.

        Raises:
            ProviderError: the connection is lost, or the peer has closed it.

        Cancellation: safe.
        """
        try:
            message: str | bytes = await self._websocket.get_message()
        except trio_websocket.ConnectionClosed as exc:
            raise self._lost(exc) from exc
        return message

    async def fill(self, filler: str | bytes, quiet_s: float) -> None:
        """Send a filler as long as there is no audio to send. Ends with the connection."""
        quiet_since = self._audio_at
        while True:
            await trio.sleep_until(quiet_since + quiet_s)
            if self._audio_at > quiet_since:
                quiet_since = self._audio_at
                continue
            try:
                await self.send(filler)
            except ProviderError:
                return  # the next receive or send says so, too
            quiet_since = trio.current_time()

    async def end(self, farewell: str) -> None:
        """Tell the peer that there is no more, if that can still be said."""
        if self._sending:
            return  # what is sent after half a message would be read as the rest of it
        try:
            await self.send(farewell)
        except ProviderError:
            pass  # closed already

    async def aclose(self, farewell: str) -> None:
        """Take leave and wait until both sides have closed."""
        await self.end(farewell)
        if not self._sending:
            await self._websocket.aclose()

    def _lost(self, exc: trio_websocket.ConnectionClosed) -> ProviderError:
        if exc.reason is None:  # the reader failed before it could say why
            return self._closed(1006, "")
        return self._closed(exc.reason.code, exc.reason.reason or "")


async def _serve_websocket(
    provider: str,
    target: SplitResult,
    api_key: str,
    ssl_context: ssl.SSLContext | None,
    *,
    task_status: trio.TaskStatus[trio_websocket.WebSocketConnection],
) -> None:
    """Connect, upgrade, report the WebSocket as started, and read it until it ends.

    Raises errors only before it has started; later ones show as a closed connection.

    Owns: the socket, which is closed whenever and however this ends. trio-websocket's own
    `open_websocket` leaves it open after a refusal, and neither it nor `wrap_client_stream`
    notices a peer that closes instead of answering; hence the race below.
    """
    upgraded = False
    async with _open_stream(provider, target, ssl_context) as stream:
        try:
            # Owns: the wait for the answer. Ends when: answered, or the reader ended.
            async with trio.open_nursery() as waiting:
                # Owns: the library's reader. Ends when: the connection has ended.
                async with trio.open_nursery() as reading:
                    begun = trio.Event()

                    async def upgrade() -> None:
                        nonlocal upgraded
                        # If cancelled, then here: `reading` may be closed already.
                        await trio.lowlevel.checkpoint()
                        begun.set()  # nobody runs before the reader is started, by the next line
                        websocket = await trio_websocket.wrap_client_stream(
                            reading,
                            cast("trio.SSLStream[trio.SocketStream]", stream),  # any will do
                            target.netloc,
                            f"{target.path}?{target.query}",
                            extra_headers=[(b"Authorization", f"Token {api_key}".encode())],
                            message_queue_size=QUEUE_MESSAGES,
                            max_message_size=MAX_MESSAGE_BYTES,
                        )
                        upgraded = True
                        task_status.started(websocket)

                    waiting.start_soon(upgrade, name=f"{provider} upgrade")
                    await begun.wait()
                waiting.cancel_scope.cancel(reason="reader ended")
        except ExceptionGroup as group:
            if not upgraded:
                raise _not_upgraded(provider, group) from group
            log.warning("socket_reader_failed", extra={"provider": provider}, exc_info=group)
    if not upgraded:
        raise ProviderError(
            provider, "the connection was closed instead of upgraded", retryable=True
        )


@asynccontextmanager
async def _open_stream(
    provider: str, target: SplitResult, ssl_context: ssl.SSLContext | None
) -> AsyncGenerator[QuickStream | trio.SSLStream[trio.SocketStream]]:
    """Yield a connected stream; the socket is closed at once on leaving, without TLS farewell."""
    host = target.hostname or ""
    tls = target.scheme == "wss"
    try:
        tcp = await trio.open_tcp_stream(host, target.port or (443 if tls else 80))
    except OSError as exc:
        raise ProviderError(provider, f"cannot connect: {exc}", retryable=True) from exc
    try:
        if sys.platform == "linux":
            tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKED_MS)
        if not tls:
            yield QuickStream(tcp)
            return
        stream = trio.SSLStream(
            tcp, ssl_context or tls_context(), server_hostname=host, https_compatible=True
        )
        try:
            await stream.do_handshake()
        except trio.BrokenResourceError as exc:
            raise ProviderError(
                provider, f"TLS handshake failed: {exc.__cause__}", retryable=True
            ) from exc
        yield stream
    finally:
        tcp.socket.close()


def _not_upgraded(provider: str, group: ExceptionGroup[Exception]) -> ProviderError:
    """Return the error for a handshake that trio-websocket's reader failed in."""
    error: Exception = group
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, trio_websocket.ConnectionRejected):
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in error.headers
        }
        return deepgram.refused(provider, error.status_code, headers, error.body or b"")
    # Whoever is in between for the moment; a port that is never HTTP is left alone soon enough.
    return ProviderError(
        provider, f"the answer to the upgrade is no HTTP: {error!r:.200}", retryable=True
    )
