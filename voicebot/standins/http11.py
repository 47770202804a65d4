"""A small HTTP/1.1 server on h11, for the stand-ins only.

Keep-alive, chunked answers, a cap on bodies, the WebSocket upgrade, and the misbehaviour a
client must survive: an answer that stops, a connection that is reset. It notices a client that
leaves before its answer is complete. No TLS, no HTTP/2, no `Expect: 100-continue`.

An exception that escapes a route is a bug of the stand-in and ends the server, loudly.
"""

from __future__ import annotations

import json
import socket
import struct
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http.client import responses
from typing import Any, Final, Literal, NoReturn
from urllib.parse import parse_qsl

import h11
import trio

from voicebot.standins.websocket import WebSocket, accept

BODY_BYTES: Final = 2 * 1024 * 1024  # Deepgram's own cap on a body; the others' are larger
READ_BYTES: Final = 64 * 1024
BACKLOG: Final = 1024  # a benchmark opens all its calls at once
KEPT: Final = 2_000  # newest exchanges kept for inspection; a soak must not eat the memory

Headers = Sequence[tuple[str, str]]
Outcome = Literal["open", "complete", "cancelled", "dropped"]


@dataclass(eq=False, slots=True)
class Exchange:
    """One request as it came in, and how its answer went.

    `outcome`: "cancelled" means that the client left before the end, "dropped" that the
    stand-in cut the connection. `status` is 0 while nothing is answered.
    """

    number: int
    service: str
    method: str
    target: str
    headers: Mapping[str, str]  # names in lower case
    body: bytes
    status: int = 0
    outcome: Outcome = "open"
    sent_bytes: int = 0  # of the answer's body

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    @property
    def query(self) -> list[tuple[str, str]]:
        """The parameters in order, decoded; a name may repeat."""
        return parse_qsl(self.target.partition("?")[2], keep_blank_values=True)

    @property
    def form(self) -> list[tuple[str, str]]:
        """The urlencoded body in order, decoded; a name may repeat."""
        return parse_qsl(self.body.decode("utf-8", "replace"), keep_blank_values=True)

    @property
    def wants_websocket(self) -> bool:
        """Whether the client asks for the WebSocket upgrade."""
        return self.headers.get("upgrade", "").lower() == "websocket"


class _Dropped(Exception):
    """The stand-in has cut the connection on purpose."""


class Answer:
    """The answering side of one exchange.

    Raises:
        trio.BrokenResourceError: from every method that sends; the server handles it.
    """

    def __init__(
        self, stream: trio.SocketStream, http: h11.Connection, request: h11.Request, seen: Exchange
    ) -> None:
        self._stream = stream
        self._http = http
        self._request = request
        self._exchange = seen
        self._watching = trio.CancelScope()
        self._watched = trio.Event()
        self.websocket: WebSocket | None = None

    async def send(self, status: int, body: bytes = b"", headers: Headers = ()) -> None:
        """Send a whole answer, in one piece: nobody can leave in the middle of it."""
        head = self._head(status, [*headers, ("Content-Length", str(len(body)))])
        await self._send(head, h11.Data(data=body), h11.EndOfMessage())
        self._exchange.sent_bytes += len(body)

    async def send_json(self, status: int, value: Any, headers: Headers = ()) -> None:
        """Send a whole answer in JSON."""
        body = json.dumps(value, ensure_ascii=False).encode()
        await self.send(status, body, [("Content-Type", "application/json"), *headers])

    async def start(self, status: int, headers: Headers = ()) -> None:
        """Send the head of an answer in chunks."""
        await self._send(self._head(status, headers))

    async def write(self, data: bytes) -> None:
        """Send a chunk."""
        await self._send(h11.Data(data=data))
        self._exchange.sent_bytes += len(data)

    async def end(self) -> None:
        """End the answer."""
        await self._send(h11.EndOfMessage())

    def drop(self, *, reset: bool) -> NoReturn:
        """Cut the connection, whatever state the answer is in: by RST, else by a bare FIN.

        Not from inside a nursery of the route's own: it would arrive here as a group.
        """
        if reset:
            # Lingering for zero seconds makes close() send RST.
            linger = struct.pack("ii", 1, 0)
            self._stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        raise _Dropped

    async def accept_websocket(self, headers: Headers = ()) -> WebSocket:
        """Answer the upgrade with 101; HTTP is over on this connection.

        Raises:
            BadUpgrade: the request is malformed; nothing was sent.
        """
        self._watching.cancel(reason="upgraded")
        await self._watched.wait()
        early, _ = self._http.trailing_data
        self.websocket = await accept(self._stream, self._request, headers, early)
        self._exchange.status = 101
        return self.websocket

    async def watch(self, answering: trio.CancelScope) -> None:
        """Cancel `answering` when the client leaves before its answer is complete."""
        with self._watching:
            try:
                data = await self._stream.receive_some(READ_BYTES)
            except trio.BrokenResourceError:
                data = b""
            if data:
                self._http.receive_data(data)  # pipelined, or a frame sent before the 101
            elif not self.complete:
                self._exchange.outcome = "cancelled"
                answering.cancel(reason="client left")
        self._watched.set()

    @property
    def complete(self) -> bool:
        """Whether the whole answer was handed to the transport."""
        return self._http.our_state in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED)

    def _head(self, status: int, headers: Headers) -> h11.Response:
        self._exchange.status = status
        return h11.Response(
            status_code=status,
            headers=[(name.encode(), value.encode()) for name, value in headers],
            reason=responses.get(status, "").encode(),
        )

    async def _send(self, *events: h11.Event) -> None:
        await self._stream.send_all(b"".join(self._http.send(event) or b"" for event in events))


Route = Callable[[Exchange, Answer], Awaitable[None]]
Report = Callable[[Exchange], None]


class HttpServer:
    """What a running server has seen and holds. Made by `open_http_server`."""

    def __init__(self, service: str, url: str, route: Route, report: Report | None) -> None:
        self.url = url
        self.exchanges: deque[Exchange] = deque(maxlen=KEPT)
        self.requests = 0
        self.connections_open = 0
        self.connections_total = 0
        self._service = service
        self._route = route
        self._report = report
        self._closed = trio.Event()  # a connection has closed; a new one each time

    async def wait_closed(self) -> None:
        """Wait until no client holds a connection, and every exchange is settled."""
        while self.connections_open:
            await self._closed.wait()

    async def serve_connection(self, stream: trio.SocketStream) -> None:
        """Answer one client until either side has had enough."""
        self.connections_open += 1
        self.connections_total += 1
        http = h11.Connection(h11.SERVER)
        try:
            while await self._serve_one(stream, http):
                http.start_next_cycle()
        except (trio.BrokenResourceError, h11.RemoteProtocolError, _Dropped):
            pass  # the exchange, if there was one, says which
        finally:
            stream.socket.close()  # before it counts as closed; synchronous, so even when cancelled
            self.connections_open -= 1
            self._closed.set()
            self._closed = trio.Event()

    async def _serve_one(self, stream: trio.SocketStream, http: h11.Connection) -> bool:
        """Serve one request; return whether the connection may carry another."""
        request = await _next_event(stream, http)
        if not isinstance(request, h11.Request):
            return False
        body = await _read_body(stream, http)
        self.requests += 1
        exchange = Exchange(
            number=self.requests,
            service=self._service,
            method=request.method.decode(),
            target=request.target.decode("ascii", "replace"),
            headers={name.decode(): value.decode("latin-1") for name, value in request.headers},
            body=body or b"",
        )
        self.exchanges.append(exchange)
        answer = Answer(stream, http, request, exchange)
        try:
            if body is None:
                await answer.send(413, b"Payload Too Large")
            else:
                await self._answer(exchange, answer)
        except trio.BrokenResourceError:
            exchange.outcome = "cancelled"
            raise
        finally:
            if exchange.outcome == "open":
                exchange.outcome = _outcome(answer)
            if self._report is not None:
                self._report(exchange)
        return (http.our_state, http.their_state) == (h11.DONE, h11.DONE)

    async def _answer(self, exchange: Exchange, answer: Answer) -> None:
        async with trio.open_nursery() as nursery:  # owns: the watch; ends with the answer
            nursery.start_soon(answer.watch, nursery.cancel_scope)
            failure: Exception | None = None
            try:
                await self._route(exchange, answer)
                assert answer.complete or answer.websocket, "a route must end its answer"
            except (trio.BrokenResourceError, _Dropped) as exc:
                failure = exc  # raised below, outside the nursery: no exception group
            nursery.cancel_scope.cancel(reason="answered")
        if failure is not None:
            raise failure


def _outcome(answer: Answer) -> Outcome:
    websocket = answer.websocket
    if answer.complete or (websocket is not None and websocket.closed):
        return "complete"
    return "cancelled" if websocket is not None and websocket.gone else "dropped"


async def _next_event(stream: trio.SocketStream, http: h11.Connection) -> Any:
    while (event := http.next_event()) is h11.NEED_DATA:
        http.receive_data(await stream.receive_some(READ_BYTES))
    return event


async def _read_body(stream: trio.SocketStream, http: h11.Connection) -> bytes | None:
    """Return the body, None where it is over the cap; then it is read all the same.

    A client that is still sending would see a reset instead of the answer.
    """
    body: bytearray | None = bytearray()
    while isinstance(event := await _next_event(stream, http), h11.Data):
        if body is not None:
            body += event.data
            body = body if len(body) <= BODY_BYTES else None
    return None if body is None else bytes(body)


@asynccontextmanager
async def open_http_server(
    service: str, route: Route, host: str, port: int, report: Report | None = None
) -> AsyncGenerator[HttpServer]:
    """Serve until the block is left; then every connection is cut.

    Args:
        service: a short name for reports.
        route: answers every request.
        host: an address, not a name: one listener, one port.
        port: 0 for any free one; `HttpServer.url` has it.
        report: called when an exchange is over.

    Owns: the listening socket and all connections.
    """
    listeners = await trio.open_tcp_listeners(port, host=host, backlog=BACKLOG)
    bound: int = listeners[0].socket.getsockname()[1]
    server = HttpServer(service, f"http://{host}:{bound}", route, report)
    async with trio.open_nursery() as nursery:  # owns: connections; ends when the block ends
        await nursery.start(trio.serve_listeners, server.serve_connection, listeners)
        yield server
        nursery.cancel_scope.cancel(reason="stand-in closed")
