"""Speech to text by Deepgram's v1 stream.

One transcription per call, over a `deepgram_socket.py`. The messages themselves are
`deepgram.py`; when to reconnect is the caller's.
"""

from __future__ import annotations

import logging
import math
import ssl
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import trio

from voicebot import deepgram, ports
from voicebot.deepgram_socket import DeepgramSocket, open_socket

log = logging.getLogger(__name__)

KEEP_ALIVE_S: Final = 4.0  # Deepgram closes after 10 s without audio and wants one every 3–5 s
FINALIZE_S: Final = 1.0  # Deepgram may leave Finalize unanswered when little audio was pending
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
    normal exit is its answer awaited, for a second.
    Owns: the socket, by `open_socket`.
    """
    target = deepgram.listen_url(
        url,
        model=model,
        language=language,
        endpointing_ms=endpointing_ms,
        utterance_end_ms=utterance_end_ms,
    )
    async with open_socket(
        deepgram.STT,
        target,
        api_key=api_key,
        closed=partial(deepgram.closed, deepgram.STT),
        farewell=deepgram.CLOSE_STREAM,
        filler=deepgram.KEEP_ALIVE,
        quiet_s=KEEP_ALIVE_S,
        connect_timeout_s=connect_timeout_s,
        ssl_context=ssl_context,
    ) as socket:
        transcriber = _Transcriber(socket)
        try:
            yield transcriber
        finally:
            log.info("stt_closed", extra={"skipped": dict(transcriber.skipped)})


class _Transcriber:
    """A connected transcription; see `ports.Transcriber`."""

    def __init__(self, socket: DeepgramSocket) -> None:
        self.skipped: Counter[str] = Counter()
        self._socket = socket
        self._listening = deepgram.Listening()
        self._unknown: set[str] = set()
        self._finalize_due = math.inf
        self._receive_scope: trio.CancelScope | None = None

    async def send(self, audio: bytes) -> None:
        if audio:  # an empty message makes Deepgram end the stream
            await self._socket.send(audio)
        else:
            await trio.lowlevel.checkpoint()

    def speech_started(self, ago_ms: int) -> None:
        """Do nothing: Deepgram hears for itself."""

    async def finalize(self) -> None:
        self._finalize_due = trio.current_time() + FINALIZE_S
        if self._receive_scope is not None:
            self._receive_scope.deadline = self._finalize_due
        await self._socket.send(deepgram.FINALIZE)

    async def receive(self) -> ports.Transcript:
        while True:
            with trio.CancelScope(deadline=self._finalize_due) as self._receive_scope:
                message = await self._socket.receive()
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
