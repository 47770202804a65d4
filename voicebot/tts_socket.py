"""Text to speech by Deepgram's WebSocket, as an alternative to the REST of `tts.py`.

A socket speaks one piece after the other, and a barge-in does not cost it: Clear does. Whoever
wants to speak takes a free socket or has one opened; it belongs to nobody in between, so a call
mostly keeps to one, as Deepgram asks for, and a process needs as many as speak at once.

Each socket has a task, which opens it, watches it while it is free, clears it when a piece was
left early, and closes it. Who speaks only borrows it, and waits for nothing when leaving.

    opening -> lent -> (clearing) -> free -> lent …
                            |          | idle, too old, closed by Deepgram
                            v          v
                            closed <---

The messages themselves are `deepgram_speech.py`.
"""

from __future__ import annotations

import contextvars
import logging
import math
import ssl
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Final, Self

import trio

from voicebot import deepgram_speech
from voicebot.deepgram import TTS, Skipped
from voicebot.deepgram_socket import DeepgramSocket, open_socket
from voicebot.deepgram_speech import CLEAR, CLOSE, FLUSH, Speaking
from voicebot.errors import ProviderError
from voicebot.hidden import open_hidden_nursery

log = logging.getLogger(__name__)

# There is no KeepAlive, and how long Deepgram lets a socket idle is not documented. In a call
# the bot speaks about every 8 s.
IDLE_S: Final = 30.0
MAX_AGE_S: Final = 3_300.0  # Deepgram closes after an hour, and a piece takes less than a minute
# A piece that was left without a sound after this long: the socket may be one that answers Clear
# and speaks no more, which the next try must not get. Usual is 0.2 s, and a new one costs 0.3 s.
MUTE_S: Final = 0.5
CLEAR_S: Final = 1.0  # a round trip takes 0.1 s; a new socket 0.3 s, so waiting longer is no gain
MAX_NOTICES: Final = 16  # kinds of warning that are logged for each socket, once

Connect = Callable[[], AbstractAsyncContextManager[DeepgramSocket]]


@asynccontextmanager
async def open_synthesizer(
    *,
    url: str,
    api_key: str,
    model: str,
    ssl_context: ssl.SSLContext | None = None,
) -> AsyncGenerator[SocketSynthesizer]:
    """Yield a synthesizer for the whole process.

    Args:
        url: http(s) base; the WebSocket takes the same host as ws(s).

    Owns: the sockets to Deepgram, each used by one call at a time; closed on leaving.
    """
    connect = partial(
        open_socket,
        TTS,
        deepgram_speech.speech_url(url, model=model),
        api_key=api_key,
        closed=deepgram_speech.closed,
        farewell=CLOSE,
        ssl_context=ssl_context,
    )
    # Owns: a task for each socket. Ends when: the block is left.
    async with open_hidden_nursery("synthesizer closed") as nursery:
        synthesizer = SocketSynthesizer(nursery, connect)
        try:
            yield synthesizer
        finally:
            log.info("tts_sockets", extra={"counts": dict(synthesizer.counts)})


class SocketSynthesizer:
    """Speech over sockets that calls take turns with; see `ports.Synthesizer`.

    `counts`: sockets opened, pieces asked for, pieces cleared because they were left early, and
    sockets that had been free and failed before the first audio, which a new one made good for
    (`stale`).
    """

    name: Final = TTS

    def __init__(self, nursery: trio.Nursery, connect: Connect) -> None:
        self.counts: Counter[str] = Counter()
        self._nursery = nursery
        self._connect = connect
        self._context = contextvars.copy_context()  # a socket is not of the call that opened it
        self._free: list[_Line] = []  # the one used last at the end
        self._opening = 0

    def warm(self) -> None:
        """Say that speech is to be expected: have a socket open. Returns at once."""
        if not self._free and not self._opening:
            self._begin_to_open(_Opening(wanted=False))

    @asynccontextmanager
    async def open_speech(self, text: str) -> AsyncGenerator[AsyncIterator[bytes]]:
        """Stream one piece of speech; see `ports.Synthesizer`.

        Raises:
            LocalProtocolError: no text, or more than one message may hold.
        """
        speech = _Speech(self, text)
        try:
            await speech.begin()
            yield speech
        finally:
            speech.end()

    async def borrow(self, chars: int) -> _Line:
        """Return a free socket that may speak so much; open one where there is none.

        Raises:
            ProviderError: none can be opened.

        Cancellation: safe; a socket that is being opened for nobody then will be free.
        """
        now = trio.current_time()
        while fit := [line for line in self._free if line.may_speak(chars, now)]:
            line = fit[-1]  # the one used last: the others may come to rest
            self._free.remove(line)
            try:
                if await line.take():
                    return line
            except trio.Cancelled:
                self.give_back(line)
                raise
        return await self.open()

    def give_back(self, line: _Line) -> None:
        """Let others have a socket; its task clears what is left of the piece before."""
        line.give_back()
        if line.clean and not line.too_old:
            self._free.append(line)  # at once: the next piece may be asked for in this step

    async def open(self) -> _Line:
        """Return a new socket. As `borrow`."""
        opening = _Opening(wanted=True)
        self._begin_to_open(opening)
        try:
            await opening.done.wait()
        except trio.Cancelled:
            opening.wanted = False
            if opening.line is not None:
                self.give_back(opening.line)
            raise
        if opening.line is not None:
            return opening.line
        try:
            assert opening.error is not None
            raise opening.error
        finally:
            del opening  # its error holds this frame: without this, a cycle

    def _begin_to_open(self, opening: _Opening) -> None:
        self._opening += 1
        self._context.run(partial(self._nursery.start_soon, self._keep, opening, name="tts socket"))

    async def _keep(self, opening: _Opening) -> None:
        """Open a socket and keep it until it is not wanted or not fit any more."""
        line: _Line | None = None
        try:
            async with self._connect() as socket:
                line = _Line(socket)
                self._opening -= 1
                self.counts["opened"] += 1
                await self._lend_out(line, opening)
        except ProviderError as exc:
            opening.error = exc  # of a socket that was open, its user learns in his own way
            if line is None and not opening.wanted:  # nobody else tells
                log.warning("tts_socket_failed", extra={"error": str(exc)})
        except Exception as exc:  # a bug must not end all calls
            log.exception("tts_socket_crashed")
            opening.error = ProviderError(TTS, f"cannot open a socket: {exc!r:.200}")
        finally:
            if line is None:
                self._opening -= 1
            else:
                log.info("tts_socket_closed", extra={"skipped": dict(line.skipped)})
            opening.done.set()

    async def _lend_out(self, line: _Line, opening: _Opening) -> None:
        """Let one user after the other have a socket; return when there should be no more."""
        if opening.wanted:
            line.lend()
        else:
            self._free.append(line)
        opening.line = line
        opening.done.set()
        try:
            while True:  # noqa: ASYNC913  # every way through it waits or returns
                if line.lent:
                    await line.returned.wait()  # by now, somebody else may have it
                elif line.too_old:
                    return
                elif not line.clean:
                    if not await line.settle():
                        return
                    self.counts["cleared"] += 1
                    self._free.append(line)
                else:
                    await line.watch()
                    if not line.lent:
                        return
        finally:
            if line in self._free:
                self._free.remove(line)


class _Opening:
    """A socket on its way. `wanted`: somebody waits for it; else it will be free."""

    def __init__(self, *, wanted: bool) -> None:
        self.wanted = wanted
        self.done = trio.Event()
        self.line: _Line | None = None
        self.error: ProviderError | None = None


class _Line:
    """One open socket: the side of its task, and the side of whoever has borrowed it."""

    def __init__(self, socket: DeepgramSocket) -> None:
        self.skipped: Counter[str] = Counter()
        self.lent = False
        self.returned = trio.Event()  # a new one each time it is lent
        self.reused = False  # it was free before, so it may have been lost without a word
        self._socket = socket
        self._speaking = Speaking()
        self._old_at = trio.current_time() + MAX_AGE_S
        # A message was broken off, and what is sent next would be read as its rest; or lost.
        self._broken = False
        self._asked_at = math.inf  # for a piece of which nothing has come
        self._mute = False  # left without a sound
        self._noticed: set[str] = set()
        self._watching: trio.CancelScope | None = None
        self._let_go = trio.Event()
        self._lost = False

    @property
    def clean(self) -> bool:
        """Whether nothing of a piece is to come any more, so that the next may begin."""
        return self._speaking.idle and not self._broken

    @property
    def too_old(self) -> bool:
        """Whether the socket should be closed before Deepgram does."""
        return trio.current_time() >= self._old_at

    def may_speak(self, chars: int, now: float) -> bool:
        """Whether the socket's limits allow so much more, now."""
        return now < self._old_at and self._speaking.may_speak(chars, now)

    # For its task.

    async def settle(self) -> bool:
        """Have what is left of a piece cleared; return whether the socket is fit for another.

        Raises:
            ProviderError: the socket is lost.
        """
        if self._broken or self._mute:
            return False
        with trio.move_on_after(CLEAR_S):
            self._speaking.clear()
            await self._send(CLEAR)
            while not self.clean:
                self._take(await self._socket.receive())
        return self.clean

    async def watch(self) -> None:
        """Wait until the free socket is taken, for `IDLE_S` at most.

        Raises:
            ProviderError: the socket is lost.
        """
        self._lost, self._let_go = True, trio.Event()  # lost unless the end below is reached
        try:
            with trio.move_on_after(IDLE_S) as self._watching:
                while True:
                    self._take(await self._socket.receive())
            self._lost = False
        finally:
            self._watching = None
            self._let_go.set()

    # For its user.

    def lend(self) -> None:
        """Note that somebody has the socket."""
        self.lent, self.returned = True, trio.Event()

    def give_back(self) -> None:
        """Note that nobody has the socket any more."""
        self.lent = False
        self._mute = trio.current_time() - self._asked_at >= MUTE_S
        self.returned.set()

    async def take(self) -> bool:
        """Have the free socket; return whether it is still there.

        Cancellation: it is to be given back.
        """
        self.lend()
        self.reused = True
        if self._watching is not None:  # else it has been given back just now
            self._watching.cancel(reason="taken")
            await self._let_go.wait()  # one step: two may not read from a socket
        return not self._lost

    async def speak(self, text: str) -> None:
        """Ask for a piece.

        Raises:
            ProviderError: the socket is lost.

        Cancellation: the socket may be of no use any more, which `settle` sees to.
        """
        message = deepgram_speech.speak_message(text)
        self._asked_at = trio.current_time()
        self._speaking.speak(len(text), self._asked_at)
        await self._send(message)
        await self._send(FLUSH)

    async def receive(self) -> bytes:
        """Wait for the next audio of the piece; empty at its end.

        Raises:
            ProviderError: the socket is lost.

        Cancellation: safe.
        """
        while True:
            try:
                audio = self._take(await self._socket.receive())
            except ProviderError:
                self._broken = True
                raise
            if audio or self.clean:
                self._asked_at = math.inf
                return audio

    async def _send(self, message: str) -> None:
        self._broken = True
        await self._socket.send(message)
        self._broken = False

    def _take(self, message: str | bytes) -> bytes:
        """Return the audio of a message, empty where it has none."""
        match self._speaking.receive(message):
            case bytes() as audio:
                return audio
            case Skipped() as skipped:
                self._skip(skipped)
        return b""

    def _skip(self, skipped: Skipped) -> None:
        self.skipped[skipped.kind] += 1
        if (
            skipped.kind in ("warning", "error", "unknown_type")
            and skipped.detail not in self._noticed
            and len(self._noticed) < MAX_NOTICES
        ):
            self._noticed.add(skipped.detail)
            log.warning(f"tts_{skipped.kind}", extra={"detail": skipped.detail})  # noqa: G004  # one of three constants


class _Speech:
    """The audio of one piece. Where an old socket fails before any, a new one speaks it.

    A class and not a generator: one left half read needs no closing.
    """

    def __init__(self, synthesizer: SocketSynthesizer, text: str) -> None:
        deepgram_speech.speak_message(text)  # nothing is opened for what cannot be said
        self._synthesizer = synthesizer
        self._text = text
        self._line: _Line | None = None
        self._heard = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while True:
            assert self._line is not None
            try:
                audio = await self._line.receive()
            except ProviderError as exc:
                await self._try_again(exc)
                continue
            if audio:
                self._heard = True
                return audio
            if self._heard:
                raise StopAsyncIteration
            raise ProviderError(TTS, "answered no audio", retryable=True)

    async def begin(self) -> None:
        """Have a socket begin."""
        self._line = await self._synthesizer.borrow(len(self._text))
        self._synthesizer.counts["pieces"] += 1
        try:
            await self._line.speak(self._text)
        except ProviderError as exc:
            await self._try_again(exc)

    def end(self) -> None:
        """Give the socket back, whatever state the piece is in."""
        if self._line is not None:
            self._synthesizer.give_back(self._line)
            self._line = None

    async def _try_again(self, exc: ProviderError) -> None:
        """Begin anew on a new socket where an old one failed unheard; else raise the error."""
        assert self._line is not None
        if not self._line.reused or self._heard or not exc.retryable:
            raise exc
        self._synthesizer.counts["stale"] += 1
        self.end()
        self._line = await self._synthesizer.open()
        await self._line.speak(self._text)
