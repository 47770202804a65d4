"""hypercorn's trio worker, made safe: one connection's fault stays in that connection.

Not here: routes, calls. `serve` runs an ASGI application on a port until it is told to stop;
`contain` makes `hypercorn --worker-class trio` just as safe, because that command offers no place
to name a connection class of one's own, nor to do anything before its port is closed.

Every override names the fault of hypercorn 0.18.0 that it is for. 0.18.0 is the newest release
and has all of them; when one is fixed upstream, its override goes. Always true here:

- no exception of a connection reaches the server; it is logged once, with the peer;
- no send, no put into an application's queue and no dead transport is waited for without bound;
- what a peer can make the server hold in memory is bounded.
"""

from __future__ import annotations

import logging
import select
import signal
import socket
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from math import inf
from typing import Final, cast

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config, Sockets
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol.h11 import H11WSConnection
from hypercorn.trio import run as hypercorn_run
from hypercorn.trio.run import worker_serve as hypercorn_worker_serve
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import (
    AppWrapper,
    ASGIFramework,
    ConnectionState,
    LifespanState,
)
from hypercorn.utils import parse_socket_addr

from voicebot.exchange import Tasks, admission_of, tell
from voicebot.frames import Frames
from voicebot.framing import Http11
from voicebot.limits import Bucket
from voicebot.tcp import QuickStream
from voicebot.upgraded import MAX_RECV, Upgraded

logger = logging.getLogger(__name__)

# A socket that takes no byte for this long is dropped. A caller hears the gap after 0.2 s; 5 s
# is what a mobile network needs to come back from a handover.
SEND_DEADLINE_S: Final = 5.0
# Twilio sends 50 messages a second, the browser page as well: 15 s of nothing is a dead peer.
SILENCE_S: Final = 15.0
# An application whose socket has gone may go on this long, to close providers and write records.
LINGER_S: Final = 10.0
LOOK_S: Final = 2.0  # how often it is seen to that a WebSocket's peer is still there
TIMER_S: Final = 1.0  # to start or end a timer, or to close, takes a step or two of the loop
# Whoever signals hypercorn's main process and its workers has done so by then; nobody who signals
# twice is so quick.
TOGETHER_S: Final = 0.5
CODEC_MARGIN: Final = 2  # times what the codec takes: it is the one to name a message just too long
# A message of a call always fits; a large HTTP body gets a new send deadline for every slice.
SLICE_BYTES: Final = 65_536


def contain() -> None:
    """Make hypercorn build `ContainedServer`, in `serve` and under its own command line.

    `hypercorn.trio.run` looks its connection class up by name in its own module, and the command
    line imports the application before it serves: so this rebind, made when the application is
    imported, is what protects both. In the same way the command line comes to drain.
    HTTP/2 is not offered over TLS either: its code is the crash-prone part (#327, #329) and its
    WebSockets would pass by the limits below.
    """
    hypercorn_run.TCPServer = ContainedServer  # type: ignore[attr-defined]  # see above
    hypercorn_run.worker_serve = _serve_and_drain
    Config.alpn_protocols = ["http/1.1"]


class ServerConfig(Config):
    """hypercorn's settings and ours; a hypercorn.toml may set `send_deadline_s` as well."""

    send_deadline_s = SEND_DEADLINE_S


async def serve(
    app: ASGIFramework,
    *,
    host: str,
    port: int,
    grace_s: float,
    shutdown: trio.Event,
    send_deadline_s: float = SEND_DEADLINE_S,
    together: bool = False,
    own_port: int | None = None,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` until `shutdown` is set and its connections have ended, or `grace_s` is over.

    `shutdown` closes the port: whoever has calls that need it lets them end before (`drain.py`).
    Reports the URLs it listens on by `task_status`; port 0 takes a free one.

    Args:
        together: other processes listen there as well, each with a socket of its own; the kernel
            spreads connections over them.
        own_port: of this process alone, on loopback; not reported.

    Raises:
        OSError: the address cannot be bound; nothing has been started then.

    Owns: the listening sockets and, through hypercorn, one nursery for all connections.
    """
    contain()
    config = ServerConfig()
    config.graceful_timeout = grace_s
    config.send_deadline_s = send_deadline_s
    config.keep_alive_timeout = 5.0  # also the time for a whole request head
    config.h11_max_incomplete_size = 16_384  # 16 KiB of request head, as most servers
    config.max_app_queue_size = 10  # messages; 0.2 s of media, then TCP slows the peer
    config.websocket_ping_interval = None  # it would not check the pongs; silence is checked
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = logging.getLogger(f"{__name__}.hypercorn")
    config.errorlog.setLevel(logging.WARNING)  # its "Running on" would double the start screen
    with ExitStack() as stack:
        listening = [stack.enter_context(_listen(host, port, together))]
        if own_port is not None:
            listening.append(stack.enter_context(_listen("127.0.0.1", own_port, together=False)))
        await hypercorn_worker_serve(
            ASGIWrapper(app),
            config,
            sockets=Sockets(secure_sockets=[], insecure_sockets=listening, quic_sockets=[]),
            shutdown_trigger=shutdown.wait,
            task_status=task_status,
        )


def _listen(host: str, port: int, together: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # 1024: a burst of calls. hypercorn's own 100 would turn some of them away.
    listening = socket.create_server((host, port), family=family, backlog=1024, reuse_port=together)
    listening.setblocking(False)
    return listening


async def _serve_and_drain(
    app: AppWrapper,
    config: Config,
    *,
    sockets: Sockets | None = None,
    shutdown_trigger: Callable[..., Awaitable[None]] | None = None,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve for hypercorn's command line: as its own, but an application that can drains first.

    Hypercorn closes its port as soon as it is told to stop (not reported), and a SIGTERM to one of
    its workers, as to all processes of a service, ends that worker at once. Here the first word
    of either, its main process or a signal, begins the drain, and each further signal is the
    application's to take, but for one that comes together with the first word.
    """
    drain = getattr(getattr(app, "app", None), "drain", None)
    if drain is None:
        await hypercorn_worker_serve(
            app,
            config,
            sockets=sockets,
            shutdown_trigger=shutdown_trigger,
            task_status=task_status,
        )
        return
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:

        async def drained() -> None:
            # Owns: the two that may tell to stop. The first ends it.
            async with trio.open_nursery() as nursery:

                async def first(told: Callable[[], Awaitable[object]]) -> None:
                    await told()
                    nursery.cancel_scope.cancel(reason="told to stop")

                nursery.start_soon(first, signals.__anext__)
                if shutdown_trigger is not None:
                    nursery.start_soon(first, shutdown_trigger)
            began = trio.current_time()

            async def again() -> None:
                await anext(signals)
                while trio.current_time() < began + TOGETHER_S:
                    await anext(signals)

            await drain(again)

        await hypercorn_worker_serve(
            app, config, sockets=sockets, shutdown_trigger=drained, task_status=task_status
        )


class ContainedServer(TCPServer):
    """One connection. Its nursery holds the reader, the idle timer and the application.

    What is wrong in 0.18.0, where that is reported, and what answers it here:

    - A byte behind an upgrade request (#225), a header that is not ASCII, any exception but
      OSError (#177, #329) ends the whole process: `run`.
    - Cancelling a connection's nursery stops the server, the nursery's result being dropped
      (not reported): `_run`.
    - A peer that does not read holds its sender, and the exit of the process, for ever (not
      reported): `_write`.
    - The full queue of an application that has ended, or that is itself the sender, is waited
      on for ever (not reported): `Exchange`.
    - A send to a peer that has gone returns at once, so that a loop of sends holds the process
      for ever (not reported): `Exchange`.
    - An application's last send starts the idle timer, behind the disconnect: one that takes that
      for its end, as quart does, cancels the start, and nothing closes the idle connection, not
      even the end of the server (not reported): `protocol_send`.
    - In the same way it cancels the close behind an answer that came before the request's body,
      and whoever keeps the body back has the connection for ever (not reported): `protocol_send`.
    - A reader parked between pipelined requests is never woken when the connection breaks (not
      reported): `_reading`.
    - A WebSocket message is stored before it is measured, and the peer is read on afterwards;
      pings and empty fragments are handled without limit (not reported); and each message takes
      80 µs of CPU more than it must: `take_over`, by which a WebSocket leaves hypercorn.
    - An upgrade that is refused, as one without a key, has no timer (not reported): `_read_data`.
    - Compression cannot be declined, and inflates before the limit (#307): `Http11`.
    - Nothing limits connections, nor how fast they come: `_enter`, `Tasks._may_ask`, by
      `admission.py`.
    """

    protocol: Http11  # type: ignore[assignment]  # never the wrapper that can become HTTP/2

    def __init__(
        self,
        app: AppWrapper,
        config: Config,
        context: WorkerContext,
        state: LifespanState,
        stream: trio.SSLStream[trio.SocketStream],
    ) -> None:
        # hypercorn's annotation knows TLS only.
        plain = isinstance(cast("trio.abc.Stream", stream), trio.SocketStream)
        quick = QuickStream(cast("trio.SocketStream", stream)) if plain else stream
        super().__init__(
            app, config, context, state, cast("trio.SSLStream[trio.SocketStream]", quick)
        )
        self.admission = admission_of(app, config)
        # The command line builds its own Config, which knows none of our limits.
        self.send_deadline_s: float = getattr(config, "send_deadline_s", SEND_DEADLINE_S)
        self.silence_s: float = config.read_timeout or SILENCE_S
        self.peer = "?"
        # Whoever finds the transport dead cancels this: the reader may be waiting for something
        # else than the transport. It then tells the application.
        self._reading = trio.CancelScope()
        self._receiving = trio.CancelScope()  # one receive of the reader's
        self._upgraded: Upgraded | None = None
        self._read_here = trio.Event()  # the reader reads no more; what comes is the application's

    async def run(self) -> None:
        """Serve the connection to its end. No exception but a cancellation leaves this."""
        try:
            async with self.stream:
                await self._enter()
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the peer has gone, which is how connections end
        except* Exception as group:
            logger.warning("connection_failed", exc_info=group, extra={"peer": self.peer})

    async def _enter(self) -> None:
        """Ask for admission, before a byte is read; who may not is dropped without an answer."""
        stream = cast("trio.SSLStream[trio.SocketStream] | QuickStream", self.stream)
        tcp = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
        transport = tcp.socket
        client = parse_socket_addr(transport.family, transport.getpeername())
        address = "" if client is None else client[0]
        refused = self.admission.connect(address, trio.current_time())
        if refused is not None:
            tell(self.admission, "connection_refused", refused, address)
            await trio.aclose_forcefully(stream)
            return
        try:
            if client is not None:
                self.peer = f"{client[0]}:{client[1]}"
            if isinstance(stream, trio.SSLStream):
                with trio.move_on_after(self.config.ssl_handshake_timeout) as handshake:
                    await stream.do_handshake()
                if handshake.cancelled_caught:
                    return
            server = parse_socket_addr(transport.family, transport.getsockname())
            await self._run(stream is not tcp, client, server)
        finally:
            self.admission.leave(address)

    async def _run(
        self, tls: bool, client: tuple[str, int] | None, server: tuple[str, int] | None
    ) -> None:
        # Owns: the reader (this task), the idle timer, the application. Ends when all have, or
        # LINGER_S after the transport is known to be dead.
        async with trio.open_nursery() as nursery:
            self._task_group = Tasks(nursery, self.peer, self.admission, self.take_over)
            self.protocol = Http11(
                self.app,
                self.config,
                self.context,
                self._task_group,
                ConnectionState(self.state),
                tls,
                client,
                server,
                self.protocol_send,
            )
            await self.idle_task.restart(self._task_group, self._idle_timeout)
            with self._reading:
                await self._read_data()
            await self.protocol.handle(Closed())
            await self.idle_task.stop()
            nursery.cancel_scope.deadline = trio.current_time() + LINGER_S
        if nursery.cancel_scope.cancelled_caught:
            logger.warning("application_outlived_socket", extra={"peer": self.peer})

    async def _read_data(self) -> None:
        try:
            while self._upgraded is None:
                # hypercorn gives an upgrade that it refuses no timer.
                upgrading = isinstance(self.protocol.connection, H11WSConnection)
                until = trio.current_time() + self.silence_s if upgrading else inf
                with trio.CancelScope(deadline=until) as self._receiving:
                    data = await self.stream.receive_some(MAX_RECV)
                if self._receiving.cancelled_caught and self._upgraded is None:
                    logger.warning("peer_silent", extra={"peer": self.peer})
                    return
                if not self._receiving.cancelled_caught:
                    await self.protocol.handle(RawData(bytes(data)))
                    if not data:
                        return
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return  # the peer has gone, or this side has closed
        finally:
            self._read_here.set()
        await self._watch(self._upgraded)

    async def take_over(self) -> Upgraded:
        """Give the application the socket, for the WebSocket that it is about to accept."""
        limits = self.admission.limits
        largest = min(self.config.websocket_max_message_size, CODEC_MARGIN * limits.message_chars)
        frames = Frames(
            largest,
            Bucket(limits.messages_per_s, limits.burst_s),
            Bucket(limits.bytes_per_s, limits.burst_s),
        )
        self._upgraded = Upgraded(self.stream, self._write, frames, self.peer)
        self._receiving.cancel(reason="upgraded")
        await self._read_here.wait()
        return self._upgraded

    async def _watch(self, upgraded: Upgraded) -> None:
        """Wait for the application's end, or for a peer that it does not see to have gone.

        One that says nothing for too long is cut off. An application that does not read is told
        nothing of its peer's end, but not waited for much longer either.
        """
        while not upgraded.ended.is_set():
            since = upgraded.waits_since
            if since is None and self._hung_up():
                return
            if since is not None and since + self.silence_s <= trio.current_time():
                logger.warning("peer_silent", extra={"peer": self.peer})
                await trio.aclose_forcefully(self.stream)
                return
            with trio.move_on_after(min(LOOK_S, self.silence_s)):
                await upgraded.ended.wait()

    def _hung_up(self) -> bool:
        """Whether the peer has gone, or sends no more: what is still to be read does not matter."""
        tcp = getattr(self.stream, "transport_stream", self.stream)
        poll = select.poll()
        try:
            poll.register(tcp.socket, select.POLLRDHUP)
            return bool(poll.poll(0))
        except ValueError:  # its descriptor is closed
            return True

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, RawData):
            await self._write(event.data)
        elif isinstance(event, Closed):
            # Its peer need not answer; TLS says a word, which need not be taken.
            with trio.move_on_after(TIMER_S, shield=True):
                await super().protocol_send(event)
        elif not self._reading.cancel_called:  # no idle timer for a connection that has ended
            # Waits for no peer and no application; the bound is for what a new hypercorn may do.
            with trio.move_on_after(TIMER_S, shield=True):
                await super().protocol_send(event)

    async def _write(self, data: bytes) -> bool:
        """Write, or drop the transport; return which.

        Cancellation: waits for the bytes, so that none is torn, for at most the send deadline
        per slice. A sender cancelled before its turn has written nothing. No checkpoint where the
        kernel takes all at once, but for every so many (`tcp.py`).
        """
        try:
            self.send_lock.acquire_nowait()  # without a step of the loop, where nobody else sends
        except trio.WouldBlock:
            await self.send_lock.acquire()
        try:
            for start in range(0, len(data), SLICE_BYTES):
                with trio.fail_after(self.send_deadline_s, shield=True):
                    await self.stream.send_all(data[start : start + SLICE_BYTES])
            return True
        except trio.TooSlowError:
            logger.warning("send_deadline_passed", extra={"peer": self.peer})
            broken = False
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
            broken = True  # or, where it is busy, being closed
        finally:
            self.send_lock.release()
        # Half a message may be out: nothing can follow it on this transport.
        self._reading.cancel(reason="broken")
        if not (broken and self._upgraded):  # of a peer that has gone, what it said is still there
            await trio.aclose_forcefully(self.stream)
        return False
