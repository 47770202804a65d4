"""Speech to text by Deepgram: its v1 stream, or v2 where the model is Flux.

One transcription per call, over a `deepgram_socket.py`. The messages themselves are
`deepgram.py` and `flux.py`; when to reconnect is the caller's.
"""

from __future__ import annotations

import logging
import math
import ssl
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

import trio

from voicebot import audio, deepgram, flux, ports
from voicebot.deepgram_socket import DeepgramSocket, open_socket
from voicebot.errors import ProviderTimeout
from voicebot.plan import Timeouts
from voicebot.recognition import DEFAULT, Recognition, by_flux

log = logging.getLogger(__name__)

KEEP_ALIVE_S: Final = 4.0  # v1 closes after 10 s without audio and wants one every 3–5 s
SILENCE_S: Final = 4.0  # Flux has been seen to close after 20 s without audio
FINALIZE_S: Final = 1.0  # Deepgram may leave Finalize unanswered when little audio was pending
TIMEOUTS: Final = Timeouts()  # the usual ones
MAX_UNKNOWN_TYPES: Final = 16  # of which each is logged once; a peer could invent more


@asynccontextmanager
async def open_transcriber(
    *,
    url: str,
    api_key: str,
    model: str,
    language: str = "en",
    recognition: Recognition = DEFAULT,
    connect_timeout_s: float = TIMEOUTS.transcriber_connect_s,
    stall_s: float = TIMEOUTS.transcriber_stall_s,
    ssl_context: ssl.SSLContext | None = None,
) -> AsyncGenerator[ports.Transcriber]:
    """Connect and yield a transcriber of one call.

    Args:
        url: http(s) base; the WebSocket takes the same host as ws(s).
        model: its name says which interface it is: `flux-…` is v2, everything else v1.
        connect_timeout_s: for TCP, TLS and upgrade.
        stall_s: of speech, in time and in audio, without a word of Deepgram's.
        ssl_context: instead of the process's own, for a server with a private CA.

    Raises:
        ProviderTimeout: no connection in time; from `send`, a stall.
        ProviderRejected: refused; the message says what to do.
        ProviderError: unreachable, or the answer is none.

    Cancellation: safe at any point. However the block is left, Deepgram is told; only on a
    normal exit is its answer awaited, for a second.
    Owns: the socket, by `open_socket`.
    """
    v2 = by_flux(model)
    listen_url = flux.listen_url if v2 else deepgram.listen_url
    listening = flux.Listening() if v2 else deepgram.Listening()
    async with open_socket(
        deepgram.STT,
        listen_url(url, model=model, language=language, recognition=recognition),
        api_key=api_key,
        closed=listening.closed,
        farewell=deepgram.CLOSE_STREAM,
        filler=flux.SILENCE if v2 else deepgram.KEEP_ALIVE,
        quiet_s=SILENCE_S if v2 else KEEP_ALIVE_S,
        connect_timeout_s=connect_timeout_s,
        ssl_context=ssl_context,
    ) as socket:
        transcriber = (_Flux if v2 else _Transcriber)(socket, listening, stall_s)
        try:
            yield transcriber
        finally:
            log.info("stt_closed", extra={"skipped": dict(transcriber.skipped)})


class _Transcriber:
    """A connected transcription, by v1; see `ports.Transcriber`."""

    def __init__(
        self,
        socket: DeepgramSocket,
        listening: deepgram.Listening | flux.Listening,
        stall_s: float,
    ) -> None:
        self.skipped: Counter[str] = Counter()
        self._socket = socket
        self._listening = listening
        self._stall_s = stall_s
        self._unknown: set[str] = set()
        self._finalize_due = math.inf
        self._receive_scope: trio.CancelScope | None = None
        self._voice = False  # somebody has begun to speak since the last message
        self._unanswered = 0  # bytes since then
        self._answered_at = trio.current_time()

    async def send(self, sound: bytes) -> None:
        if sound:  # an empty message makes Deepgram end the stream
            self._unanswered += len(sound)
            await self._socket.send(sound)
        else:
            await trio.lowlevel.checkpoint()
        self._check_answered()

    def speech_started(self, ago_ms: int) -> None:
        """Expect an answer. Deepgram hears for itself."""
        self._voice = True

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
            self._answered()
            match self._listening.receive(message):
                case deepgram.Skipped() as skipped:
                    self._skip(skipped)
                case ports.Final(finalized=True) as answer:
                    self._finalize_due = math.inf
                    return answer
                case transcript:
                    return transcript

    def _answered(self) -> None:
        """Note that Deepgram has said something, whatever it is."""
        self._voice, self._unanswered, self._answered_at = False, 0, trio.current_time()

    def _check_answered(self) -> None:
        # Both: much audio at once is no long time, and a long time without audio needs no answer.
        late = trio.current_time() - self._answered_at >= self._stall_s
        if self._voice and late and self._unanswered >= self._stall_s * audio.BYTES_PER_S:
            raise ProviderTimeout(deepgram.STT, f"said nothing for {self._stall_s:g} s of audio")

    def _skip(self, skipped: deepgram.Skipped) -> None:
        self.skipped[skipped.kind] += 1
        if skipped.kind in {"error", "warning", "configure_failure"}:
            log.warning("stt_error_message", extra={"kind": skipped.kind, "detail": skipped.detail})
        elif (
            skipped.kind in {"unknown_type", "unknown_event"}
            and skipped.detail not in self._unknown
            and len(self._unknown) < MAX_UNKNOWN_TYPES
        ):
            self._unknown.add(skipped.detail)
            log.warning("stt_unknown_message", extra={"type": skipped.detail})


class _Flux(_Transcriber):
    """A connected transcription by Flux: audio in chunks as it likes them, and no Finalize."""

    def __init__(
        self,
        socket: DeepgramSocket,
        listening: deepgram.Listening | flux.Listening,
        stall_s: float,
    ) -> None:
        super().__init__(socket, listening, stall_s)
        self._waiting = bytearray()

    async def send(self, sound: bytes) -> None:
        self._waiting += sound
        await trio.lowlevel.checkpoint()
        while len(self._waiting) >= len(flux.SILENCE):
            chunk = bytes(self._waiting[: len(flux.SILENCE)])
            del self._waiting[: len(chunk)]
            self._unanswered += len(chunk)
            await self._socket.send(chunk)
        self._check_answered()

    async def finalize(self) -> None:
        """Do nothing: Flux ends its turns itself, and is not asked by whoever lets it."""
        await trio.lowlevel.checkpoint()
