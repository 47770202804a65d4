"""Speech to text by Deepgram's v1 stream, over a WebSocket by trio-websocket.

One transcription per call. The private nursery holds the library's reader and the KeepAlive
timer; its errors come out of `receive` and `send`, never as a group and never on their own.
The messages themselves are `deepgram.py`; when to reconnect is the caller's.
"""

from __future__ import annotations

import logging
import math
import socket
import ssl
import sys
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import SplitResult, urlsplit

import trio
import trio_websocket

from voicebot import deepgram, ports
from voicebot.errors import ProviderError, ProviderTimeout
from voicebot.transport import tls_context

log = logging.getLogger(__name__)

KEEP_ALIVE_S: Final = 4.0  # Deepgram closes after 10 s without audio and wants one every 3–5 s
FINALIZE_S: Final = 1.0  # Deepgram may leave Finalize unanswered when little audio was pending
CLOSE_S: Final = 1.0  # a call must leave nothing behind 2 s after its end
FAREWELL_S: Final = 0.1  # enough to hand one small message to the kernel
# Results come about once a second. With nobody receiving, the reader stops here, and then
# neither pings nor a close are seen: half a minute is longer than any call survives that.
QUEUE_MESSAGES: Final = 64
MAX_MESSAGE_BYTES: Final = 262_144  # 30 s of words with their times are about 20 kB
# A network that has gone silent shows in sends only when the kernel's buffers are full, half a
# minute of audio later. The kernel itself knows after this long without an acknowledgement.
UNACKED_MS: Final = 5_000
MAX_UNKNOWN_TYPES: Final = 16  # of which each is logged once; a peer could invent more


@asynccontextmanager
async def open_transcriber(
    *,
    url: str,
    api_key: str,
    model: str,
    language: str = "en",
    endpointing_ms: int = 300,  # Deepgram's advice for conversation; its default of 10 cuts in
    utterance_end_ms: int = 1_000,  # the least it takes, and a backstop only
    connect_timeout_s: float = 3.0,  # TCP, TLS and upgrade; 0.3 s when all is well
    ssl_context: ssl.SSLContext | None = None,
) -> AsyncGenerator[ports.Transcriber]:
    """Connect and yield a transcriber of one call.

    Args:
        url: http(s) base; the WebSocket takes the same host as ws(s).
        ssl_context: instead of the process's own, for a server with a private CA.

    Raises:
        ProviderTimeout: no connection in time.
        ProviderRejected: refused; the message says what to do.
        ProviderError: unreachable, or the answer is none.

    Cancellation: safe at any point. However the block is left, Deepgram is told; only on a
    normal exit is its answer awaited, for `CLOSE_S`.
    Owns: the socket, the library's reader and the KeepAlive timer.
    """
    target = urlsplit(
        deepgram.listen_url(
            url,
            model=model,
            language=language,
            endpointing_ms=endpointing_ms,
            utterance_end_ms=utterance_end_ms,
        )
    )
    failure: Exception | None = None
    # Owns: connection and KeepAlive. Ends when: the block is left.
    async with trio.open_nursery() as nursery:
        try:
            try:
                with trio.fail_after(connect_timeout_s):
                    websocket: trio_websocket.WebSocketConnection = await nursery.start(
                        _serve_websocket, target, api_key, ssl_context, name="stt websocket"
                    )
            except trio.TooSlowError as exc:
                raise ProviderTimeout(
                    deepgram.STT, f"no connection within {connect_timeout_s:g} s"
                ) from exc
            transcriber = _Transcriber(websocket)
            nursery.start_soon(transcriber.keep_alive, name="stt keep alive")
            try:
                yield transcriber
                with trio.move_on_after(CLOSE_S):
                    await transcriber.aclose()
            finally:
                with trio.move_on_after(FAREWELL_S, shield=True):
                    await transcriber.end()
                log.info("stt_closed", extra={"skipped": dict(transcriber.skipped)})
        except Exception as exc:
            # Raised below instead: out of here it would come as a group, though the nursery
            # is nobody's business.
            failure = exc
        nursery.cancel_scope.cancel(reason="transcriber closed")
    if failure is not None:
        try:
            raise failure
        finally:
            del failure  # its traceback holds this frame: without this, a cycle


class _Transcriber:
    """A connected transcription; see `ports.Transcriber`."""

    def __init__(self, websocket: trio_websocket.WebSocketConnection) -> None:
        self.skipped: Counter[str] = Counter()
        self._websocket = websocket
        self._listening = deepgram.Listening()
        self._unknown: set[str] = set()
        self._sending = 0  # sends begun and not ended well: above 0 the stream may be torn
        self._audio_at = trio.current_time()
        self._finalize_due = math.inf
        self._receive_scope: trio.CancelScope | None = None

    async def send(self, audio: bytes) -> None:
        if audio:  # an empty message makes Deepgram end the stream
            self._audio_at = trio.current_time()
            await self._send(audio)
        else:
            await trio.lowlevel.checkpoint()

    def speech_started(self, ago_ms: int) -> None:
        """Do nothing: Deepgram hears for itself."""

    async def finalize(self) -> None:
        self._finalize_due = trio.current_time() + FINALIZE_S
        if self._receive_scope is not None:
            self._receive_scope.deadline = self._finalize_due
        await self._send(deepgram.FINALIZE)

    async def receive(self) -> ports.Transcript:
        while True:
            with trio.CancelScope(deadline=self._finalize_due) as self._receive_scope:
                try:
                    message = await self._websocket.get_message()
                except trio_websocket.ConnectionClosed as exc:
                    raise _closed(exc) from exc
            if self._receive_scope.cancelled_caught:
                self._finalize_due = math.inf
                return ports.Final("", finalized=True)
            match self._listening.receive(message):
                case deepgram.Skipped() as skipped:
                    self._skip(skipped)
                case ports.Final(finalized=True) as answer:
                    self._finalize_due = math.inf
                    return answer
                case transcript:
                    return transcript

    async def keep_alive(self) -> None:
        """Send KeepAlive as long as there is no audio to send. Ends with the connection."""
        quiet_since = self._audio_at
        while True:
            await trio.sleep_until(quiet_since + KEEP_ALIVE_S)
            if self._audio_at > quiet_since:
                quiet_since = self._audio_at
                continue
            try:
                await self._send(deepgram.KEEP_ALIVE)
            except ProviderError:
                return  # the next receive or send says so, too
            quiet_since = trio.current_time()

    async def end(self) -> None:
        """Tell Deepgram that there is no more, if that can still be said."""
        if self._sending:
            return  # what is sent after half a message would be read as the rest of it
        try:
            await self._send(deepgram.CLOSE_STREAM)
        except ProviderError:
            pass  # closed already

    async def aclose(self) -> None:
        """End the transcription and wait until both sides have closed."""
        await self.end()
        if not self._sending:
            await self._websocket.aclose()

    async def _send(self, message: str | bytes) -> None:
        self._sending += 1  # stays up after a failure or a cancellation
        try:
            await self._websocket.send_message(message)
        except trio_websocket.ConnectionClosed as exc:
            raise _closed(exc) from exc
        self._sending -= 1

    def _skip(self, skipped: deepgram.Skipped) -> None:
        self.skipped[skipped.kind] += 1
        if skipped.kind == "error":
            log.warning("stt_error_message", extra={"detail": skipped.detail})
        elif (
            skipped.kind == "unknown_type"
            and skipped.detail not in self._unknown
            and len(self._unknown) < MAX_UNKNOWN_TYPES
        ):
            self._unknown.add(skipped.detail)
            log.warning("stt_unknown_message", extra={"type": skipped.detail})


async def _serve_websocket(
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
    async with _open_stream(target, ssl_context) as stream:
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
                            stream,
                            target.netloc,
                            f"{target.path}?{target.query}",
                            extra_headers=[(b"Authorization", f"Token {api_key}".encode())],
                            message_queue_size=QUEUE_MESSAGES,
                            max_message_size=MAX_MESSAGE_BYTES,
                        )
                        upgraded = True
                        task_status.started(websocket)

                    waiting.start_soon(upgrade, name="stt upgrade")
                    await begun.wait()
                waiting.cancel_scope.cancel(reason="stt reader ended")
        except ExceptionGroup as group:
            if not upgraded:
                raise _not_upgraded(group) from group
            log.warning("stt_reader_failed", exc_info=group)
    if not upgraded:
        raise ProviderError(
            deepgram.STT, "the connection was closed instead of upgraded", retryable=True
        )


@asynccontextmanager
async def _open_stream(
    target: SplitResult, ssl_context: ssl.SSLContext | None
) -> AsyncGenerator[trio.SocketStream | trio.SSLStream[trio.SocketStream]]:
    """Yield a connected stream; the socket is closed at once on leaving, without TLS farewell."""
    host = target.hostname or ""
    tls = target.scheme == "wss"
    try:
        tcp = await trio.open_tcp_stream(host, target.port or (443 if tls else 80))
    except OSError as exc:
        raise ProviderError(deepgram.STT, f"cannot connect: {exc}", retryable=True) from exc
    try:
        if sys.platform == "linux":
            tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKED_MS)
        if not tls:
            yield tcp
            return
        stream = trio.SSLStream(
            tcp, ssl_context or tls_context(), server_hostname=host, https_compatible=True
        )
        try:
            await stream.do_handshake()
        except trio.BrokenResourceError as exc:
            raise ProviderError(
                deepgram.STT, f"TLS handshake failed: {exc.__cause__}", retryable=True
            ) from exc
        yield stream
    finally:
        tcp.socket.close()


def _closed(exc: trio_websocket.ConnectionClosed) -> ProviderError:
    if exc.reason is None:  # the reader failed before it could say why
        return deepgram.closed(1006, "")
    return deepgram.closed(exc.reason.code, exc.reason.reason or "")


def _not_upgraded(group: ExceptionGroup[Exception]) -> ProviderError:
    """Return the error for a handshake that trio-websocket's reader failed in."""
    error: Exception = group
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, trio_websocket.ConnectionRejected):
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in error.headers
        }
        return deepgram.refused(deepgram.STT, error.status_code, headers, error.body or b"")
    return ProviderError(deepgram.STT, f"the answer to the upgrade is no HTTP: {error!r:.200}")
