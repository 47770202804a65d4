"""hypercorn's HTTP/1.1 without what it should not offer: HTTP/2, compression of a WebSocket.

Not here: sockets, timers, the application, and a WebSocket behind its upgrade. What each override
is for stands in `serving.py`.
"""

from __future__ import annotations

import h11
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol.h11 import H11Protocol, H11WSConnection
from hypercorn.protocol.ws_stream import WSStream


class Http11(H11Protocol):
    """HTTP/1.1, and upgrades to a WebSocket without compression."""

    async def handle(self, event: Event) -> None:
        if isinstance(event, RawData) and event.data and self._awaits_accept:
            await self.send(Closed())
        else:
            await super().handle(event)

    @property
    def _awaits_accept(self) -> bool:
        """Whether the peer must be silent, its upgrade not being answered yet (RFC 6455, 4.1)."""
        return isinstance(self.stream, WSStream) and not self.stream.handshake.accepted

    async def _check_protocol(self, event: h11.Request) -> None:
        """Answer an upgrade to HTTP/2, and HTTP/2 without asking, as the HTTP/1.1 they are."""

    async def _create_stream(self, request: h11.Request) -> None:
        offer = b"sec-websocket-extensions"
        if any(name == offer for name, _ in request.headers):
            request = h11.Request(
                method=request.method,
                target=request.target,
                headers=[(name, value) for name, value in request.headers if name != offer],
                http_version=request.http_version,
            )
        await super()._create_stream(request)
        if (
            isinstance(self.connection, H11WSConnection)
            and self._awaits_accept
            and self.connection.buffer
        ):
            await self.send(Closed())
