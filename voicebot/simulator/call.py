"""A phone call played to a media-stream server the way Twilio plays it.

A script of caller utterances goes in; a `Recording` of what was said, heard and sent, and when,
comes out. The call runs on Trio's clock over any `Line`: a WebSocket in real time, memory
channels under a `MockClock` in a test. Between the two ends lies a `Network`, perfect unless
told otherwise:

    line, server_end = open_memory_line()
    nursery.start_soon(my_bot, server_end)
    script = Script((Utterance("stop", mulaw, InterruptAfter(1_500)),))
    recording = await run_call(line, script, network=Network(jitter_ms=80))
    assert judge(recording).passed  # voicebot/simulator/verdict.py

Not a judge (`verdict.py`), and never told anything by the server but what is on the wire.
Media leaves when its last sample has been spoken, as from a telephone, so one frame of every
latency is the frame itself.

Two tasks a call, whatever the network does: `listen` takes messages off the line as they come,
`speak` sends. What is under way is in two `Pipe`s, whose items take effect at their own time,
however late a task looks.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

import trio

from voicebot.audio import BYTES_PER_MS, FRAME_MS, SILENCE
from voicebot.errors import SocketClosed
from voicebot.simulator.caller import (
    At,
    BotVoice,
    Caller,
    Cue,
    InterruptAfter,
    Pressed,
    Script,
    Utterance,
    When,
    WhenSilent,
)
from voicebot.simulator.happenings import Media
from voicebot.simulator.line import Line, MemoryLine, open_memory_line
from voicebot.simulator.network import PERFECT, Network, Pipe
from voicebot.simulator.recording import Ended, EndedBy, Recording
from voicebot.simulator.twilio_end import Identity, MediaStream

__all__ = [  # all that a test of a bot needs, except `verdict.judge`
    "At",
    "Cue",
    "Ended",
    "Identity",
    "InterruptAfter",
    "Line",
    "MemoryLine",
    "Network",
    "Recording",
    "Script",
    "Utterance",
    "When",
    "WhenSilent",
    "open_memory_line",
    "run_call",
]

CLOSE_S: Final = 2.0  # a server that does not answer the close gets no more than this


async def run_call(
    line: Line,
    script: Script,
    identity: Identity | None = None,
    network: Network = PERFECT,
    *,
    taken_away: trio.Event | None = None,
) -> Recording:
    """Hold one call: connected, start, the script, stop, close.

    Args:
        taken_away: once set, Twilio ends the stream, because the call goes on elsewhere or was
            ended by its REST API.

    A server that goes away ends the call, which is an outcome and no error. However the call
    ends, the line is closed then, a half-open one too.

    Owns: the tasks that read the line and wait for `taken_away`; the line is closed at the end.
    Cancellation: safe; whoever opened the line drops it.
    """
    call = _Call(line, script, identity or Identity(), network)
    async with trio.open_nursery() as nursery:  # owns: listen, leave; ends when the call has
        nursery.start_soon(call.listen, name="listen")
        if taken_away is not None:
            nursery.start_soon(call.leave, taken_away, name="leave")
        await call.speak()
        nursery.cancel_scope.cancel(reason="call has ended")
    with trio.move_on_after(CLOSE_S):
        await line.aclose()
    return call.recording()


class _Call:
    def __init__(self, line: Line, script: Script, identity: Identity, network: Network) -> None:
        started = trio.current_time()
        self._line = line
        self._script = script
        self._network = network
        self._stream = MediaStream(identity, started, network)
        self._bot = BotVoice()
        self._caller = Caller(script, self._bot)
        # Messages are numbered when put in, so their order is fixed.
        self._up: Pipe[str] = Pipe(network, started, "up", network.batch_ms)
        # Places in the record, and the server's close behind them.
        self._down: Pipe[int | SocketClosed] = Pipe(network, started, "down")
        self._mute_at = self._time(network.half_open_at_s)
        self._deaf_at = min(self._mute_at, self._time(network.stop_reading_at_s))
        # When those of them arrive that can have an answer. Media may be looked at later.
        self._answer_at: deque[float] = deque()
        self._listening = True
        self._wake_at = math.inf  # until when `speak` sleeps
        self._news = trio.Event()
        self._ended: Ended | None = None

    async def listen(self) -> None:
        """Take what the server sends the moment it comes."""
        try:
            with trio.move_on_at(self._deaf_at):
                while True:
                    message = await self._line.receive()
                    self._take(message)
        except SocketClosed as closed:
            self._lose(closed)
        self._listening = False

    async def leave(self, taken_away: trio.Event) -> None:
        """End the stream, as Twilio does, when it is told to."""
        await taken_away.wait()
        now = trio.current_time()
        self._catch_up(now)
        if self._ended is None:
            self._post([self._stream.stop()], now)
            self._end("twilio", now)
            self._wake()

    async def speak(self) -> None:
        """Send everything there is to send: the only sender.

        Returns when the call has ended and, if the caller ended it, the server has been told.
        """
        now = self._stream.started
        self._post([self._stream.connected(), self._stream.start()], now)
        limit_at, drop_at = now + self._script.limit_s, self._time(self._network.close_at_s)
        with trio.move_on_at(min(limit_at, drop_at)) as limit:
            while self._ended is None or self._up:
                await self._step()
        if limit.cancelled_caught:
            now = trio.current_time()
            self._catch_up(now)
            self._end("network" if drop_at <= limit_at else "limit", now)

    async def _step(self) -> None:
        now = trio.current_time()
        self._catch_up(now)
        if self._ended is None and now >= self._frame_at:
            self._say(now)
        while self._up.next_at <= trio.current_time():
            await self._send(self._up.take()[1])
        if self._ended is not None and not self._up:
            return
        self._wake_at = self._next_at if self._ended else min(self._frame_at, self._next_at)
        with trio.move_on_at(self._wake_at):
            await self._news.wait()
        self._news = trio.Event()

    async def _send(self, message: str) -> None:
        if trio.current_time() >= self._mute_at:
            return
        try:
            await self._line.send(message)
        except SocketClosed as closed:
            # The reader finds the same, behind the last messages; unless it has stopped.
            if not self._listening:
                self._lose(closed)

    # ---------------------------------------------------------------- from the server

    def _take(self, message: str | bytes) -> None:
        if self._ended is not None:
            return
        now = trio.current_time()
        self._catch_up(now)
        taken = self._stream.take(message, now)
        if taken is not None:
            due = self._down.put(taken, now)
            if not isinstance(self._stream.happenings[taken], Media):
                self._answer_at.append(due)
            self._arrive(now)
        self._wake()

    def _lose(self, closed: SocketClosed) -> None:
        now = trio.current_time()
        self._answer_at.append(self._down.put(closed, now))
        self._catch_up(now)
        self._wake()

    def _catch_up(self, now: float) -> None:
        """Let everything up to now have happened."""
        self._arrive(now)
        if self._ended is None:
            self._post(self._stream.advance(now), now)

    def _arrive(self, now: float) -> None:
        """Let everything that has arrived by now take effect, each at its own time."""
        while self._ended is None and self._down.next_at <= now:
            due, item = self._down.take()
            if isinstance(item, SocketClosed):
                self._end("bot", due, item.code)
                self._up.clear()
            else:
                self._post(self._stream.apply(item, due), due)
        while self._answer_at and self._answer_at[0] <= now:
            self._answer_at.popleft()

    def _wake(self) -> None:
        """Wake `speak` if it would sleep too long: most messages change nothing for it."""
        if self._ended is not None or self._next_at < self._wake_at:
            self._news.set()

    @property
    def _next_at(self) -> float:
        """When something happens by itself, a frame of the caller aside."""
        if self._ended is not None:
            return self._up.next_at
        answer_at = self._answer_at[0] if self._answer_at else math.inf
        echo_at = self._stream.next_echo
        return min(self._up.next_at, answer_at, math.inf if echo_at is None else echo_at)

    # ---------------------------------------------------------------- from the caller

    @property
    def _frame_at(self) -> float:
        """When the frame under way will have been spoken."""
        end_ms = self._caller.now_ms + self._network.frame_ms
        return self._stream.started + end_ms / 1000 / self._network.speed

    def _say(self, now: float) -> None:
        """Send what the caller said in the frame that has just ended; the last may be short."""
        timestamp_ms = int(self._caller.now_ms)
        audio = bytearray()
        pressed: list[Pressed] = []
        for _ in range(self._network.frame_ms // FRAME_MS):
            self._bot.hear(self._stream.playout.heard, self._caller.now_ms + FRAME_MS)
            if self._caller.hangs_up:
                break
            sound, keys = self._caller.next_frame()
            audio += sound
            pressed += keys
        if audio:
            self._post([self._stream.media(audio, timestamp_ms)], now)
        self._post([self._stream.dtmf(key.digit) for key in pressed], now)
        if len(audio) < self._network.frame_ms * BYTES_PER_MS:
            if self._script.send_stop:
                self._post([self._stream.stop()], now)
            self._end("caller", now)

    def _post(self, messages: list[str], at: float) -> None:
        for message in messages:
            self._up.put(message, at)

    # ---------------------------------------------------------------- the end

    def _end(self, by: EndedBy, at: float, code: int | None = None) -> None:
        if self._ended is None:
            self._stream.end(at)
            self._ended = Ended(self._stream.at_ms(at), by, code)

    def _time(self, at_s: float | None) -> float:
        return math.inf if at_s is None else self._stream.started + at_s

    def recording(self) -> Recording:
        """Return the record of the ended call."""
        if self._ended is None:
            raise RuntimeError("the call has not ended")  # a bug here
        caller, heard = self._caller.channel, self._stream.playout.heard
        length = max(len(caller), len(heard))
        return Recording(
            identity=self._stream.identity,
            script=self._script,
            caller=bytes(caller).ljust(length, bytes([SILENCE])),
            heard=bytes(heard).ljust(length, bytes([SILENCE])),
            spoken=tuple(self._caller.spoken),
            pressed=tuple(self._caller.pressed),
            happenings=tuple(self._stream.happenings),
            played=tuple(self._stream.playout.played),
            ended=self._ended,
            network=self._network,
        )
