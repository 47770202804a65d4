"""An application's side of a connection: how hypercorn's protocol classes start it and talk to it.

Not here: bytes, timers. Always true: what an application that has ended, or a peer that has gone,
leaves behind is waited for by nobody; who asks too often never reaches the application.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, cast

import trio
from hypercorn.config import Config
from hypercorn.trio.task_group import TaskGroup
from hypercorn.typing import AppWrapper, ASGIReceiveEvent, ASGISendEvent, Scope

from voicebot.admission import Admission
from voicebot.client_address import peer_of
from voicebot.upgraded import PeerGone, Upgraded

logger = logging.getLogger("voicebot.serving")  # for who reads the log it is one server


class Tasks(TaskGroup):
    """Where hypercorn's protocol classes start tasks: a plain nursery, which `_run` entered."""

    _nursery: trio.Nursery

    def __init__(
        self,
        nursery: trio.Nursery,
        peer: str,
        admission: Admission,
        take_over: Callable[[], Awaitable[Upgraded]],
    ) -> None:
        super().__init__()
        self._nursery = nursery
        self._peer = peer
        self._admission = admission
        self._take_over = take_over

    async def spawn_app(
        self,
        app: AppWrapper,
        config: Config,
        scope: Scope,
        send: Callable[[ASGISendEvent | None], Awaitable[None]],
    ) -> Callable[[ASGIReceiveEvent], Awaitable[None]]:
        exchange = Exchange(config.max_app_queue_size, send, self._take_over)
        self._nursery.start_soon(
            self._run_app, app, scope, exchange, name=f"{scope['type']} {self._peer}"
        )
        return exchange.put

    async def _run_app(self, app: AppWrapper, scope: Scope, exchange: Exchange) -> None:
        threads = trio.to_thread.run_sync, trio.from_thread.run
        try:
            if self._may_ask(scope):
                await app(scope, exchange.receive, exchange.send, *threads)
            else:
                await _answer_429(scope, exchange.send)
        except* PeerGone:
            pass  # an application may leave it to us
        except* Exception as group:
            logger.error("application_failed", exc_info=group, extra={"peer": self._peer})
        await exchange.end()

    def _may_ask(self, scope: Scope) -> bool:
        """Count a request; have the application see who has sent it, if a proxy says so."""
        if self._admission.undeclared(scope):
            hint = "the limits by address hold for nobody; name it in VOICEBOT_TRUSTED_PROXIES"
            logger.warning("proxy_not_declared", extra={"peer": self._peer, "hint": hint})
        address = self._admission.client(scope)
        if address != peer_of(scope):
            scope["client"] = (address, 0)  # type: ignore[typeddict-unknown-key]  # no lifespan; the port is the proxy's own affair
        refused = self._admission.request(address, trio.current_time())
        if refused is not None:
            tell(self._admission, "request_refused", refused, address)
        return refused is None


def admission_of(app: AppWrapper, config: Config) -> Admission:
    """Return the application's own admission, or else one for all connections of this server."""
    told: Admission | None = getattr(getattr(app, "app", None), "admission", None)
    if told is None:  # the settings are what connections of one server share
        told = vars(config).setdefault("admission", Admission())
    return told


def tell(admission: Admission, event: str, reason: str, address: str) -> None:
    if (extra := admission.tell(reason, address, trio.current_time())) is not None:
        logger.warning(event, extra=extra)


async def _answer_429(scope: Scope, send: Callable[[ASGISendEvent], Awaitable[None]]) -> None:
    """Say "too many requests", in HTTP, and close the connection behind it."""
    kind = "http.response" if scope["type"] == "http" else "websocket.http.response"
    headers = [(b"content-length", b"0"), (b"retry-after", b"1"), (b"connection", b"close")]
    start = {"type": f"{kind}.start", "status": 429, "headers": headers}
    for message in (start, {"type": f"{kind}.body", "body": b""}):
        await send(cast("ASGISendEvent", message))


class Exchange:
    """One application's messages, both ways.

    A disconnect is never queued: it closes the queue, so that it needs no room, and is what
    `receive` returns from then on; what still waits for room is dropped. So nothing waits here
    for an application that has ended, because its end brings the disconnect.

    A send after the disconnect is a checkpoint, and raises where it is a WebSocket's: a loop of
    sends would hold the process for ever otherwise.

    A WebSocket that is accepted is the application's own from then on: see `upgraded.py`.
    """

    def __init__(
        self,
        size: int,
        send: Callable[[ASGISendEvent | None], Awaitable[None]],
        take_over: Callable[[], Awaitable[Upgraded]],
    ) -> None:
        self._queue_send, self._queue_receive = trio.open_memory_channel[ASGIReceiveEvent](size)
        self._disconnect: ASGIReceiveEvent | None = None
        self._protocol_send = send
        self._take_over = take_over
        self._upgraded: Upgraded | None = None

    async def put(self, message: ASGIReceiveEvent) -> None:
        if message["type"].endswith(".disconnect"):
            self._disconnect = self._disconnect or message  # the first knows why
            self._queue_send.close()
            return
        try:
            await self._queue_send.send(message)
        except trio.ClosedResourceError:
            pass  # the disconnect has overtaken it

    async def receive(self) -> ASGIReceiveEvent:
        if self._upgraded is not None:
            return cast("ASGIReceiveEvent", await self._upgraded.receive())
        try:
            return await self._queue_receive.receive()
        except trio.EndOfChannel:
            assert self._disconnect is not None
            return self._disconnect

    async def send(self, message: ASGISendEvent) -> None:
        if self._upgraded is not None:
            await self._upgraded.send(cast("dict[str, Any]", message))
        elif self._disconnect is None:
            # Before the peer may speak: hypercorn must not read a byte of what it says.
            upgraded = await self._take_over() if message["type"] == "websocket.accept" else None
            await self._protocol_send(message)
            self._upgraded = upgraded  # where that has failed, the connection ends
        else:
            await trio.lowlevel.checkpoint()
            if self._disconnect["type"] == "websocket.disconnect":
                raise PeerGone

    async def end(self) -> None:
        """Say that the application has ended; where it said nothing, the answer is 500 or 1011."""
        if self._upgraded is not None:
            await self._upgraded.end()
        else:
            await self._protocol_send(None)
