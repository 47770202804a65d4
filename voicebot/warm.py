"""Connections to one server that are ready before they are needed.

A barge-in costs a reply its HTTP/1.1 connection, and the next reply would begin with a TCP and a
TLS handshake: three round trips of silence. `Spares` is the network under httpcore's pool, which
is httpcore's own point of extension. It connects as usual; besides, it keeps a few connections
with TLS done and nothing sent, and whenever the pool wants a new one, it gets one of those.

Nothing is asked of the server. A cheap request through the pool would warm a connection as well,
but it would be one in every interrupted turn, and providers count requests and not connections.

Each spare has a task that reads from it. So TLS session tickets do not pass for news, and a
server that closes an idle connection is noticed at once and not by the next request.
"""

from __future__ import annotations

import contextvars
import logging
import math
import ssl
from collections import Counter, deque
from collections.abc import Iterable
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

import httpcore
import trio

SPARE_S: Final = 30.0  # as for the pool's idle connections; balancers drop an idle peer after 60 s
PAUSE_S: Final = 10.0  # after a spare that failed: a server in trouble is not knocked at

log = logging.getLogger(__name__)


class Spares(httpcore.AsyncNetworkBackend):
    """The network of one client, with `count` connections to one server kept ready.

    `counts` says what became of them: opened, then used, aged or closed; or failed.

    Args:
        nursery: where the spares live; with it they are closed.
        url: the server, http or https. Connections to others are made as usual.
        count: 0 for none.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        url: str,
        *,
        count: int,
        ssl_context: ssl.SSLContext,
        connect_timeout_s: float,
    ) -> None:
        target = urlsplit(url)
        self.counts: Counter[str] = Counter()
        self._nursery = nursery
        self._context = contextvars.copy_context()
        self._tls = target.scheme == "https"
        self._host = target.hostname or ""
        self._port = target.port or (443 if self._tls else 80)
        self._count = count
        self._ssl_context = ssl_context
        ssl_context.set_alpn_protocols(["http/1.1"])  # as the pool does, but before its first
        self._connect_timeout_s = connect_timeout_s
        self._network = httpcore.TrioBackend()
        self._ready: deque[_Spare] = deque()
        self._opening = 0
        self._not_before = -math.inf
        self._complained = False

    def warm(self) -> None:
        """See to it that the spares are ready soon. Returns at once; opens only what is missing.

        To be called when a connection may be wanted within `SPARE_S`; every request does.
        """
        if trio.current_time() < self._not_before:
            return
        while len(self._ready) + self._opening < self._count:
            self._opening += 1
            # A spare is not of the call whose request was the occasion.
            self._context.run(
                partial(self._nursery.start_soon, self._keep, name="spare connection")
            )

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  # httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Return a spare, or else connect.

        Cancellation: safe; a spare that was about to be taken is closed.
        """
        while self._ready and (host, port) == (self._host, self._port):
            spare = self._ready.popleft()
            self.warm()
            stream = await spare.take()
            if stream is not None:
                self.counts["used"] += 1
                return _Secured(stream) if self._tls else stream
        return await self._network.connect_tcp(host, port, timeout, local_address, socket_options)

    async def _keep(self) -> None:
        """Open a spare and keep it until it is taken, too old, or closed by the server."""
        try:
            stream = await self._open()
        except Exception as exc:  # of whatever kind: a spare is nobody's error
            self._rest("failed", exc)
            return
        finally:
            self._opening -= 1
        self.counts["opened"] += 1
        spare = _Spare(stream)
        self._ready.append(spare)
        try:
            end = await spare.watch()
        finally:
            if spare in self._ready:
                self._ready.remove(spare)
        if end == "aged":
            self.counts["aged"] += 1
        elif end == "closed":
            self._rest("closed", None)

    async def _open(self) -> httpcore.AsyncNetworkStream:
        timeout = self._connect_timeout_s
        stream = await self._network.connect_tcp(self._host, self._port, timeout)
        if not self._tls:
            return stream
        secured = None
        try:
            secured = await stream.start_tls(self._ssl_context, self._host, timeout)
        finally:
            if secured is None:  # cancelled, too: httpcore would leave the socket open
                stream.get_extra_info("socket").close()
        return secured

    def _rest(self, what: str, exc: Exception | None) -> None:
        """Open none for a while. A spare that fails is nobody's error: it is only said once."""
        self.counts[what] += 1
        self._not_before = trio.current_time() + PAUSE_S
        if not self._complained:
            self._complained = True
            log.info("spare_connection_lost", extra={"how": what, "error": repr(exc)})


class _Spare:
    """One connection that waits for its use. `watch` owns it until it is taken."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self._watching = trio.CancelScope()
        self._let_go = trio.Event()

    async def watch(self) -> str:
        """Hold the connection; return how that ended: "used", "aged" or "closed"."""
        end = "closed"
        try:
            with self._watching:
                # Whatever a server says unasked, it is going to close.
                await self._stream.read(1, SPARE_S)
            if self._watching.cancelled_caught:
                end = "used"
        except httpcore.ReadTimeout:
            end = "aged"
        except httpcore.ReadError:
            pass
        finally:
            if end != "used":
                self._close()
            self._let_go.set()
        return end

    async def take(self) -> httpcore.AsyncNetworkStream | None:
        """Return the connection, None where the server had closed it by now.

        To be called once. Cancellation: the connection is closed.
        """
        self._watching.cancel(reason="taken")
        try:
            await self._let_go.wait()  # one step: two may not read from a connection
        except trio.Cancelled:
            self._close()
            raise
        return self._stream if self._watching.cancelled_caught else None

    def _close(self) -> None:
        self._stream.get_extra_info("socket").close()


class _Secured(httpcore.AsyncNetworkStream):
    """A connection that httpcore is about to begin TLS on, and that has done so already."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109  # httpcore's signature
    ) -> httpcore.AsyncNetworkStream:
        """Return the stream; it was opened with the pool's own context, for the same name."""
        return self._stream

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
