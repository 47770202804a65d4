"""The Twilio socket: accept, authenticate, receive, send. Knows nothing of calls.

Raw ASGI. A hang-up is a message among others, `websocket.disconnect`, and never a cancellation.

What a stream comes to is logged once, by name:

- `stream_refused`: not admitted (HTTP 403), or closed with 1008 before a call saw it; `reason`.
- `stream_gone_before_start`: the peer left before it said whose call it is.
- `stream_broken`: the peer broke a rule that its stream does not survive; `kind`.
- `stream_closed`: the end of a stream that was a call's, with its anomalies by kind.

An anomaly is skipped and counted, and the first of a kind is logged (`stream_anomaly`).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from typing import Any, Final

import trio

from voicebot import twilio
from voicebot.errors import CallRefused, LocalProtocolError, RemoteProtocolError, SocketClosed
from voicebot.limits import Bucket, Limits

logger = logging.getLogger(__name__)

USUAL: Final = Limits()

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

# Twilio has none. 100 in one stream is a peer that is broken or probing.
MAX_ANOMALIES: Final = 100
# For the answer to our close. Without it the end of the connection would be a reset, as media is
# always on its way, and the peer might never see the code. It takes a round trip.
CLOSE_TIMEOUT_S: Final = 0.4


@asynccontextmanager
async def open_media_socket(
    scope: Scope,
    receive: Receive,
    send: Send,
    *,
    admit: Callable[[Scope], None],
    authenticate: Callable[[twilio.Start], Awaitable[None]],
    start_timeout_s: float,
    limits: Limits = USUAL,
    unstarted: AbstractContextManager[None] | None = None,
) -> AsyncGenerator[AsgiMediaSocket | None]:
    """Open the media socket of one call; None if it is not to be, which has been logged.

    Args:
        admit: raises `CallRefused` for an upgrade that is not to be taken.
        authenticate: raises `CallRefused` for a stream that is not of a call we answered.
        start_timeout_s: from the upgrade to the answer to `start`, whatever comes in between.
        limits: what this stream may take.
        unstarted: a place among those whose call is not known yet, held until it is; raises
            `CallRefused` where there is none.

    Cancellation: the peer is told 1012, "service restart".
    Owns: the WebSocket, until the block is left; then it is closed, if nobody has done so: with
        1011 after an error, else with 1000.
    """
    socket = AsgiMediaSocket(scope, receive, send, limits)
    place = nullcontext() if unstarted is None else unstarted
    if not await _begin(socket, admit, authenticate, start_timeout_s, place):
        yield None
        return
    code = 1012  # unless something else is known, it is a cancellation, alone or in a group
    try:
        yield socket
        code = 1000
    except Exception:
        code = 1011
        raise
    finally:
        with trio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
            await socket.aclose(code)
        logger.info("stream_closed", extra=socket.description())


async def _begin(
    socket: AsgiMediaSocket,
    admit: Callable[[Scope], None],
    authenticate: Callable[[twilio.Start], Awaitable[None]],
    start_timeout_s: float,
    unstarted: AbstractContextManager[None],
) -> bool:
    """Bring a socket to the point where it is a call's, or to its end."""
    try:
        await socket.wait_for_upgrade(admit)
        with unstarted:
            await socket.accept()
            with trio.fail_after(start_timeout_s):
                await socket.wait_for_start()
                await authenticate(socket.start)
    except (CallRefused, trio.TooSlowError) as exc:
        reason = "no_start" if isinstance(exc, trio.TooSlowError) else str(exc)
        logger.warning("stream_refused", extra={"reason": reason, **socket.description()})
        await socket.aclose(1008, "refused")
    except SocketClosed:
        logger.warning("stream_gone_before_start", extra=socket.description())
    except RemoteProtocolError:
        pass  # logged and closed where it was found
    else:
        return True
    return False


class AsgiMediaSocket:
    """A `MediaSocket` on an ASGI connection."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limits: Limits = USUAL) -> None:
        self._scope = scope
        host, port = scope.get("client") or ("?", 0)
        self._peer = f"{host}:{port}"
        self._asgi_receive = receive
        self._asgi_send = send
        self._stream = twilio.MediaStream(limits)
        self._keys = Bucket(limits.keys_per_s, limits.burst_s)
        self._anomalies: Counter[str] = Counter()
        self._accepted = False
        self._connected = False
        self._closed: int | None = None  # the code, once either side has closed

    @property
    def start(self) -> twilio.Start:
        """What Twilio said in `start`."""
        if self._stream.start is None:
            raise LocalProtocolError("the stream has not started")
        return self._stream.start

    def description(self) -> dict[str, Any]:
        """Return what a log line says of this stream."""
        start = self._stream.start
        return {
            "peer": self._peer,
            "stream_sid": start.stream_sid if start else None,
            "call_sid": start.call_sid if start else None,
            "close_code": self._closed,
            "anomalies": dict(self._anomalies),
        }

    async def wait_for_upgrade(self, admit: Callable[[Scope], None]) -> None:
        """Wait for the upgrade, and look at it.

        Raises:
            CallRefused: `admit` did; to close now is to answer HTTP 403.
        """
        await self._asgi_receive()  # websocket.connect, which is always the first
        admit(self._scope)

    async def accept(self) -> None:
        """Take the upgrade, without a subprotocol: Twilio offers none.

        Raises:
            SocketClosed: the peer is gone.
        """
        await self._asgi({"type": "websocket.accept"})
        self._accepted = True

    async def wait_for_start(self) -> None:
        """Read up to `start`; what is behind it is left for `receive`. Raises as `receive`."""
        while not isinstance(await self._next(), twilio.Start):
            pass

    async def receive(self) -> twilio.Inbound:
        """Wait for the next event of the stream. See `MediaSocket.receive`."""
        if self._closed is not None:
            await trio.lowlevel.checkpoint()
            raise SocketClosed(self._closed)
        while isinstance(event := await self._next(), twilio.Connected | twilio.Start):
            pass  # the codec lets neither through once the stream has started
        return event

    async def send(self, message: twilio.Outbound) -> None:
        """Write one message. See `MediaSocket.send`."""
        if self._closed is not None:
            raise SocketClosed(self._closed)
        text = twilio.encode(self.start.stream_sid, message)
        await self._asgi({"type": "websocket.send", "text": text})

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """Close, and wait for the answer. See `MediaSocket.aclose`.

        Cancellation: not felt; takes at most `CLOSE_TIMEOUT_S`, and the server's send deadline
        where the peer does not read.
        """
        if self._closed is not None:
            return
        self._closed = code
        with trio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
            try:
                await self._asgi({"type": "websocket.close", "code": code, "reason": reason})
            except SocketClosed:
                return
            if not self._accepted:
                return  # that was HTTP 403, which has no answer
            while (await self._asgi_receive())["type"] != "websocket.disconnect":
                pass  # on its way when we closed

    async def _asgi(self, message: dict[str, Any]) -> None:
        try:
            await self._asgi_send(message)
        except OSError as exc:  # of ASGI 2.4: the peer is gone
            raise SocketClosed from exc

    async def _next(self) -> twilio.Event:
        while True:
            message = await self._asgi_receive()
            if message["type"] == "websocket.disconnect":
                if self._closed is None:
                    self._closed = message.get("code") or 1006
                raise SocketClosed(self._closed)
            try:
                event = self._decode(message.get("text"), message.get("bytes"))
            except RemoteProtocolError as exc:
                fault = exc
            else:
                if event is None:
                    continue
                return event
            extra = {"kind": fault.kind, "detail": fault.detail, **self.description()}
            logger.warning("stream_broken", extra=extra)
            await self.aclose(fault.close_code, fault.kind)
            raise fault

    def _decode(self, text: str | None, binary: bytes | None) -> twilio.Event | None:
        """Return what a message says; None for an anomaly."""
        # An empty binary message may come as neither.
        event = self._stream.receive((binary or b"") if text is None else text)
        if isinstance(event, twilio.Stop) and self._stream.start is None:
            raise RemoteProtocolError("stop_before_start")
        if isinstance(event, twilio.Connected):
            if self._connected:
                event = twilio.Anomaly("second_connected")
            self._connected = True
        if isinstance(event, twilio.Dtmf) and not self._keys.take(trio.current_time()):
            event = twilio.Anomaly("too_many_keys")
        if not isinstance(event, twilio.Anomaly):
            return event
        self._anomalies[event.kind] += 1
        if self._anomalies[event.kind] == 1:
            extra = {"kind": event.kind, "detail": event.detail, **self.description()}
            logger.warning("stream_anomaly", extra=extra)
        if self._anomalies.total() > MAX_ANOMALIES:
            raise RemoteProtocolError("too_many_anomalies", f"more than {MAX_ANOMALIES}")
        return None
