"""A small HTTP/1.1 server on h11, for the stand-ins only.

Keep-alive, chunked answers, a cap on bodies, the WebSocket upgrade, and the misbehaviour a
client must survive: a host that cannot be reached (`Door`), an answer that drips, stops or is
none (`Flow`). It notices a client that leaves before its answer is complete. No TLS, no HTTP/2,
no `Expect: 100-continue`.

An exception that escapes a route is a bug of the stand-in and ends the server, loudly.
"""

from __future__ import annotations

import json
import math
import socket
import struct
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
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

#: What a new connection meets, before anything is read of it, be it TLS or HTTP.
#: "refuse": there is no listener; "reset": RST at accept; "hang": never answered.
Door = Literal["open", "refuse", "reset", "hang"]
#: For all connections, or by their number, counted from 1: all but "refuse", which has none.
Doors = Door | Callable[[int], Door]

Stop = Literal["stall", "drop", "reset", "end"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """How what is sent flows, and where it stops.

    Bytes are of the answer's body; with a WebSocket, of the audio received. A limit that is
    never reached does nothing; of several the lowest counts.
    """

    name: str = ""  # of the fault, for reports
    content_type: str | None = None  # instead of the true one
    drip_bytes: int | None = None  # at most so many at a time,
    drip_s: float = 0.0  # and so long before the next
    stall_after_bytes: int | None = None  # then nothing more comes, though what is sent is read
    drop_after_bytes: int | None = None  # then a bare FIN: no end of the body, no close frame
    reset_after_bytes: int | None = None  # then RST
    end_after_bytes: int | None = None  # then an end in good order, but too early

    def stop(self) -> tuple[float, Stop]:
        """Return after how many bytes it stops, maybe infinitely many, and how."""
        limits: list[tuple[int | None, Stop]] = [
            (self.stall_after_bytes, "stall"),
            (self.drop_after_bytes, "drop"),
            (self.reset_after_bytes, "reset"),
            (self.end_after_bytes, "end"),
        ]
        return min(((n, how) for n, how in limits if n is not None), default=(math.inf, "end"))


STEADY: Final = Flow()


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
    conduct: Flow = STEADY  # how it was treated

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


class _Answered(Exception):
    """The answer is complete, though its route does not know."""


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
        self.flow = STEADY

    async def send(self, status: int, body: bytes = b"", headers: Headers = ()) -> None:
        """Send a whole answer, in one piece: nobody can leave in the middle of it.

        Unless `flow` wants it otherwise.
        """
        stop, how = self.flow.stop()
        if how == "end" and len(body) > stop:
            body = body[: int(stop)]
        head = self._head(status, [*headers, ("Content-Length", str(len(body)))])
        if self.flow.drip_bytes is not None or stop <= len(body):
            await self._send(head)
            await self.write(body)
            await self.end()
            return
        await self._send(head, h11.Data(data=body), h11.EndOfMessage())
        self._exchange.sent_bytes += len(body)

    async def send_instead(self, status: int, body: bytes = b"", headers: Headers = ()) -> NoReturn:
        """Send a whole answer and have done with the request, whatever its route goes on to do.

        Not from inside a nursery of the route's own, as for `drop`.
        """
        await self.send(status, body, headers)
        raise _Answered

    async def send_raw(self, data: bytes) -> NoReturn:
        """Send bytes that are no HTTP, then FIN. As `drop`."""
        await self._stream.send_all(data)
        self.drop(reset=False)

    async def send_json(self, status: int, value: Any, headers: Headers = ()) -> None:
        """Send a whole answer in JSON."""
        body = json.dumps(value, ensure_ascii=False).encode()
        await self.send(status, body, [("Content-Type", "application/json"), *headers])

    async def start(self, status: int, headers: Headers = ()) -> None:
        """Send the head of an answer in chunks."""
        await self._send(self._head(status, headers))
        await self._stop()

    async def write(self, data: bytes) -> None:
        """Send a chunk; where `flow` wants it, in pieces, or no more than a part of it."""
        stop, _ = self.flow.stop()
        data = data[: int(min(stop - self._exchange.sent_bytes, len(data)))]
        size = self.flow.drip_bytes or max(1, len(data))
        for at in range(0, len(data), size):
            piece = data[at : at + size]
            if self.flow.drip_bytes is not None and self._exchange.sent_bytes:
                await trio.sleep(self.flow.drip_s)
            await self._send(h11.Data(data=piece))
            self._exchange.sent_bytes += len(piece)
        await self._stop()

    async def _stop(self) -> None:
        """Stop if it is time to."""
        stop, how = self.flow.stop()
        if self._exchange.sent_bytes < stop:
            return
        if how == "stall":
            await trio.sleep_forever()
        if how == "end":
            await self.end()
            raise _Answered
        self.drop(reset=how == "reset")

    async def end(self) -> None:
        """End the answer."""
        await self._send(h11.EndOfMessage())

    def drop(self, *, reset: bool) -> NoReturn:
        """Cut the connection, whatever state the answer is in: by RST, else by a bare FIN.

        Not from inside a nursery of the route's own: it would arrive here as a group.
        """
        if reset:
            _reset_at_close(self._stream)
        else:
            with suppress(OSError):  # the client is gone already
                # Now: close() sends RST instead where the client has sent what was not read.
                self._stream.socket.shutdown(socket.SHUT_WR)
        raise _Dropped

    async def accept_websocket(self, headers: Headers = ()) -> WebSocket:
        """Answer the upgrade with 101; HTTP is over on this connection.

        Raises:
            BadUpgrade: the request is malformed; nothing was sent.
        """
        self._watching.cancel(reason="upgraded")
        await self._watched.wait()
        early, _ = self._http.trailing_data
        self.websocket = await accept(
            self._stream, self._request, headers, early, self.flow.drip_bytes, self.flow.drip_s
        )
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
        if self.flow.content_type is not None:
            others = [header for header in headers if header[0].lower() != "content-type"]
            headers = [*others, ("Content-Type", self.flow.content_type)]
        return h11.Response(
            status_code=status,
            headers=[(name.encode(), value.encode()) for name, value in headers],
            reason=responses.get(status, "").encode(),
        )

    async def _send(self, *events: h11.Event) -> None:
        await self._stream.send_all(b"".join(self._http.send(event) or b"" for event in events))


def _reset_at_close(stream: trio.SocketStream) -> None:
    # Lingering for zero seconds makes close() send RST.
    linger = struct.pack("ii", 1, 0)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


Route = Callable[[Exchange, Answer], Awaitable[None]]
Report = Callable[[Exchange], None]


class HttpServer:
    """What a running server has seen and holds. Made by `open_http_server`."""

    def __init__(
        self, service: str, host: str, port: int, route: Route, report: Report | None
    ) -> None:
        self._listener = _listen(host, port)
        self._address: tuple[str, int] = host, self._listener.socket.getsockname()[1]
        self._doors: Doors = "open"
        self._door_moved = trio.Event()  # closed or opened again; a new one each time
        self.url = f"http://{host}:{self._address[1]}"
        self.exchanges: deque[Exchange] = deque(maxlen=KEPT)
        self.requests = 0
        self.connections_open = 0
        self.connections_total = 0
        self._service = service
        self._route = route
        self._report = report
        self._closed = trio.Event()  # a connection has closed; a new one each time

    @property
    def door(self) -> Doors:
        """What new connections meet; those that are open do not notice.

        Raises:
            OSError: when set, that the port was taken while there was no listener.
        """
        return self._doors

    @door.setter
    def door(self, doors: Doors) -> None:
        was, self._doors = self._doors, doors
        if (was == "refuse") != (doors == "refuse"):
            if doors == "refuse":
                self._listener.socket.close()
            else:
                self._listener = _listen(*self._address)
            self._door_moved.set()
            self._door_moved = trio.Event()

    async def wait_closed(self) -> None:
        """Wait until no client holds a connection, and every exchange is settled."""
        while self.connections_open:
            await self._closed.wait()

    async def accept(
        self, nursery: trio.Nursery, *, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED
    ) -> NoReturn:
        """Serve connections in the nursery, while there is a listener; started with it."""
        while True:
            await trio.lowlevel.checkpoint()
            if self._doors == "refuse":
                await self._door_moved.wait()
            try:
                await trio.serve_listeners(
                    self._serve_connection,
                    [self._listener],
                    handler_nursery=nursery,
                    task_status=task_status,
                )
            except* trio.ClosedResourceError:
                task_status = trio.TASK_STATUS_IGNORED  # the door was closed

    async def _serve_connection(self, stream: trio.SocketStream) -> None:
        """Answer one client until either side has had enough."""
        self.connections_open += 1
        self.connections_total += 1
        door = self._doors
        door = door(self.connections_total) if callable(door) else door
        http = h11.Connection(h11.SERVER)
        try:
            if door != "open":
                await self._turn_away(stream, door)
            while await self._serve_one(stream, http):
                http.start_next_cycle()
        except (trio.BrokenResourceError, h11.RemoteProtocolError, _Dropped):
            pass  # the exchange, if there was one, says which
        finally:
            stream.socket.close()  # before it counts as closed; synchronous, so even when cancelled
            self.connections_open -= 1
            self._closed.set()
            self._closed = trio.Event()

    async def _turn_away(self, stream: trio.SocketStream, door: Door) -> NoReturn:
        exchange = Exchange(
            0, self._service, "-", "-", {}, b"", conduct=Flow(name=f"{door}-connect")
        )
        try:
            if door == "reset":
                exchange.outcome = "dropped"
                _reset_at_close(stream)
            else:
                exchange.outcome = "cancelled"
                while await stream.receive_some(READ_BYTES):
                    pass  # no client can tell a server that reads this from one that does not
        finally:
            if self._report is not None:
                self._report(exchange)
        raise _Dropped

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
            except _Answered:
                pass
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


def _listen(host: str, port: int) -> trio.SocketListener:
    """Return a listener, at once: a door that was opened is open."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, port), family=family, backlog=BACKLOG)
    listening.setblocking(False)
    return trio.SocketListener(trio.socket.from_stdlib_socket(listening))


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
    server = HttpServer(service, host, port, route, report)
    async with trio.open_nursery() as nursery:  # owns: connections; ends when the block ends
        await nursery.start(server.accept, nursery)
        yield server
        nursery.cancel_scope.cancel(reason="stand-in closed")
