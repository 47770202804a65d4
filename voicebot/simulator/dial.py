"""Reaches a server the way Twilio does: the voice webhook, its TwiML, the WebSocket it names.

For the simulator; the service itself never imports this. Requests are signed when an auth token
is known, over the public URLs, as Twilio's are, whatever address they are then sent to.
trio-websocket's own `open_websocket` is not used: it hangs for ever on a peer that accepts and
says nothing, and leaks the socket of a refused upgrade; and what its reader cannot make sense
of comes out as errors of h11 and wsproto.
"""

from __future__ import annotations

import os
import re
import ssl
import subprocess
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeVar
from urllib.parse import urljoin, urlsplit, urlunsplit

import h11
import httpx
import trio
from trio_websocket import (
    ConnectionClosed,
    ConnectionRejected,
    HandshakeError,
    WebSocketConnection,
    wrap_client_stream,
)
from wsproto.utilities import ProtocolError as WebSocketProtocolError

from voicebot.errors import CallRefused, SocketClosed
from voicebot.simulator.call import CLOSE_S, Identity
from voicebot.simulator.twiml import parameters_of, parse

VOICE_PATH: Final = "/twilio/voice"
CALLER: Final = "+12025550147"  # 555-01xx numbers are for fiction and belong to nobody
CALLED: Final = "+12025550188"
WEBHOOK_S: Final = 15.0  # Twilio gives up on a webhook after this
CONNECT_S: Final = 10.0  # what Twilio allows for TCP; for the upgrade nothing is documented
MESSAGE_BYTES: Final = 8 * 1024 * 1024  # ten minutes of audio in one message, the buffer's cap
QUEUED_MESSAGES: Final = 64  # so that pings and close are seen while the caller is busy
READY_S: Final = 60.0  # a server with embedded speech loads its models first
STOP_S: Final = 10.0  # the server drains for 5 s by default
ErrorT = TypeVar("ErrorT", bound=BaseException)

SERVE: Final = (sys.executable, "-m", "voicebot", "serve", "--port", "0")
NO_VARIABLES: Final[Mapping[str, str]] = {}
_READY: Final = re.compile(r"ready on (http://\S+)")


@dataclass(frozen=True, slots=True)
class Account:
    """The Twilio account played. Without a token nothing is signed."""

    sid: str = Identity().account_sid
    auth_token: str = field(default="", repr=False)
    public_url: str = ""  # under which the server believes to be reached; empty: as dialled

    def signature(self, url: str, form: Mapping[str, str]) -> dict[str, str]:
        """Return the header that proves a request to be Twilio's."""
        if not self.auth_token:
            return {}
        # Without types; imported here because most simulated calls are not signed.
        from twilio.request_validator import (  # type: ignore[import-untyped]  # no py.typed
            RequestValidator,
        )

        signature = RequestValidator(self.auth_token).compute_signature(url, form)
        return {"X-Twilio-Signature": str(signature)}


@dataclass(frozen=True, slots=True)
class Answer:
    """What the webhook said: connect `stream_url`, as this call."""

    stream_url: str
    identity: Identity


async def dial(server: str, account: Account) -> Answer:
    """Report an incoming call to the server, and read its TwiML.

    Raises:
        CallRefused: no answer, an error, or TwiML that does not connect a stream.
    """
    call = Identity(account_sid=account.sid)
    form = {
        "CallSid": call.call_sid,
        "AccountSid": account.sid,
        "From": CALLER,
        "To": CALLED,
        "Caller": CALLER,
        "Called": CALLED,
        "CallStatus": "ringing",
        "Direction": "inbound",
        "ApiVersion": "2010-04-01",
    }
    url = server.rstrip("/") + VOICE_PATH
    public_url = (account.public_url or server).rstrip("/") + VOICE_PATH
    headers = account.signature(public_url, form)
    try:
        with trio.fail_after(WEBHOOK_S):
            # trust_env: a proxy of the environment is not meant for the server under test. verify:
            # to read the certificates that TLS trusts takes 0.05 s.
            async with httpx.AsyncClient(
                trust_env=False, timeout=WEBHOOK_S, verify=url.startswith("https")
            ) as client:
                response = await client.post(url, data=form, headers=headers)
    except trio.TooSlowError as exc:
        raise CallRefused(f"{url}: no answer within {WEBHOOK_S:.0f} s") from exc
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        raise CallRefused(
            f"{url}: {_say(exc)}; is the server running? Start it with "
            "`voicebot serve --dev`, or leave out --server to have one started"
        ) from exc
    if response.status_code == 403:
        raise CallRefused(
            f"{url}: refused with 403; give this command the server's TWILIO_AUTH_TOKEN and "
            "PUBLIC_URL, with which it signs as Twilio does, or start a server that has none with "
            "`voicebot serve --dev`"
        )
    if not response.is_success:
        raise CallRefused(f"{url}: answered {response.status_code} and no TwiML")
    stream_url, parameters = read_twiml(response.content)
    return Answer(
        urljoin(as_websocket(public_url), stream_url),
        Identity(account.sid, call.call_sid, call.stream_sid, parameters),
    )


def read_twiml(twiml: bytes) -> tuple[str, dict[str, str]]:
    """Return the URL and the parameters of `<Connect><Stream>`.

    Raises:
        CallRefused: the TwiML does something else; says what.
    """
    response = parse(twiml)
    stream = response.find("./Connect/Stream")
    url = "" if stream is None else stream.get("url", "")
    if stream is None or not url:
        verbs = ", ".join(f"<{verb.tag}> {(verb.text or '').strip()}".strip() for verb in response)
        raise CallRefused(
            f"the server did not connect a media stream but answered: {verbs or 'nothing'}"
        )
    return url, parameters_of(stream)


def _say(error: Exception) -> str:
    return str(error) or type(error).__name__  # many errors of the network have no message


def as_websocket(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(scheme={"http": "ws", "https": "wss"}[parts.scheme]))


# ------------------------------------------------------------------ the WebSocket


class WebSocketLine:
    """A `simulator.Line` over trio-websocket."""

    def __init__(self, socket: WebSocketConnection) -> None:
        self._socket = socket

    async def send(self, text: str) -> None:
        """Send one message.

        Cancellation: the message may be half sent; only closing is left.
        """
        try:
            await self._socket.send_message(text)
        except ConnectionClosed as exc:
            raise SocketClosed(_close_code(exc)) from exc

    async def receive(self) -> str | bytes:
        """Wait for a message. Cancellation: safe."""
        try:
            return await self._socket.get_message()
        except ConnectionClosed as exc:
            raise SocketClosed(_close_code(exc)) from exc

    async def aclose(self) -> None:
        """Close with 1000, as Twilio does after `stop`."""
        await self._socket.aclose(1000)


def _close_code(closed: ConnectionClosed) -> int:
    return closed.reason.code if closed.reason is not None else 1006


@asynccontextmanager
async def open_line(
    server: str, stream_url: str, account: Account
) -> AsyncGenerator[WebSocketLine]:
    """Connect to `server` for the stream of that URL, whose path is used and host is signed.

    Raises:
        CallRefused: the server cannot be reached or does not accept the stream.

    Owns: the TCP stream, and the task in which trio-websocket reads it.
    """
    base, path = urlsplit(server), urlsplit(stream_url).path or "/"
    where = f"{base.netloc}{path}"
    headers = {"User-Agent": "Twilio.TmeWs/1.0", **account.signature(stream_url, {})}
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    refusal: CallRefused | None = None
    stream = await _open_stream(server)
    try:
        async with trio.open_nursery() as nursery:  # owns: trio-websocket's reader
            with trio.move_on_after(CONNECT_S) as connecting:
                socket = await wrap_client_stream(
                    nursery,
                    stream,
                    base.netloc,
                    path,
                    extra_headers=encoded,
                    message_queue_size=QUEUED_MESSAGES,
                    max_message_size=MESSAGE_BYTES,
                )
            if connecting.cancelled_caught:
                refusal = CallRefused(f"{where}: no WebSocket within {CONNECT_S:.0f} s")
            else:
                yield WebSocketLine(socket)
                with trio.move_on_after(CLOSE_S):
                    await socket.aclose()
            nursery.cancel_scope.cancel(reason="line is closed")
    except* ConnectionRejected as group:  # from the reader, and from the handshake as well
        status = leaves(group)[0].status_code
        refusal = CallRefused(f"{where}: the server refused the media stream with {status}")
    except* (HandshakeError, ConnectionClosed, h11.ProtocolError, WebSocketProtocolError):
        refusal = CallRefused(f"{where}: what the server speaks is no WebSocket")
    finally:
        await trio.aclose_forcefully(stream)
    if refusal is not None:
        raise refusal


def leaves(group: BaseExceptionGroup[ErrorT]) -> list[ErrorT]:
    """Return the errors of a group and of the groups in it."""
    found: list[ErrorT] = []
    for error in group.exceptions:
        found += leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


async def _open_stream(server: str) -> trio.SocketStream | trio.SSLStream[trio.SocketStream]:
    parts = urlsplit(server)
    host, secure = parts.hostname or "", parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    try:
        with trio.fail_after(CONNECT_S):
            tcp = await trio.open_tcp_stream(host, port)
            if not secure:
                return tcp
            tls = trio.SSLStream(
                tcp, ssl.create_default_context(), server_hostname=host, https_compatible=True
            )
            await tls.do_handshake()
            return tls
    except trio.TooSlowError as exc:
        raise CallRefused(f"{host}:{port}: no connection within {CONNECT_S:.0f} s") from exc
    except (OSError, trio.BrokenResourceError) as exc:
        raise CallRefused(f"{host}:{port}: {exc}") from exc


# ------------------------------------------------------------------ a server of one's own


@asynccontextmanager
async def open_server(
    command: Sequence[str] = SERVE, environ: Mapping[str, str] = NO_VARIABLES
) -> AsyncGenerator[str]:
    """Run `voicebot serve` for the time of the block; give its base URL.

    It keeps no records: simulated calls are not to be found among real ones. The last line of its
    start screen is `ready on http://…`.

    Args:
        environ: beside the variables of this process, or instead of them.

    Raises:
        CallRefused: the server ended, or was not ready in time; it has said why on stderr.

    Owns: the child process, which gets SIGTERM and, `STOP_S` later, SIGKILL.
    """
    refusal: CallRefused | None = None
    async with trio.open_nursery() as nursery:  # owns: the child and the reader of its stdout
        process: trio.Process = await nursery.start(
            partial(
                trio.run_process,
                list(command),
                env={**os.environ, "VOICEBOT_DATABASE_URL": "", **environ},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                check=False,
                deliver_cancel=_stop,
            )
        )
        if process.stdout is None:
            raise RuntimeError("a piped stdout is there")  # for the type checker
        said = bytearray()
        with trio.move_on_after(READY_S) as waiting:
            url = await _wait_ready(process.stdout, said)
        if waiting.cancelled_caught:
            refusal = CallRefused(f"the server was not ready within {READY_S:.0f} s")
        elif url is None:
            refusal = CallRefused(f"the server ended before it was ready{_quote(said)}")
        else:
            nursery.start_soon(_drain, process.stdout)
            yield url
        nursery.cancel_scope.cancel(reason="call has ended")
    if refusal is not None:
        raise refusal


async def _wait_ready(stdout: trio.abc.ReceiveStream, said: bytearray) -> str | None:
    """Return the URL of the line that says so, or None if the output ends without it."""
    while data := await stdout.receive_some():
        said += data
        for line in said.decode(errors="replace").splitlines():
            if ready := _READY.fullmatch(line.strip()):
                return ready[1]
    return None


def _quote(said: bytearray) -> str:
    lines = said.decode(errors="replace").strip().splitlines()[-5:]  # the reason comes last
    return "; it said:\n  " + "\n  ".join(lines) if lines else "; see its messages above"


async def _drain(stdout: trio.abc.ReceiveStream) -> None:
    """Read on, because a full pipe would stop the server."""
    while await stdout.receive_some():
        pass


async def _stop(process: trio.Process) -> None:
    process.terminate()
    await trio.sleep(STOP_S)  # cancelled by Trio when the process has ended
    process.kill()
