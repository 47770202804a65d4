"""A whole call in virtual time: simulated Twilio, the real socket code and engine, scripted ports.

    call = hold(Script((caller_says("hello"),)), toy_ports(), CallPlan("Be brief.", "Hello."))
    assert call.heard_text == "hello. yes."

No network, no threads, no real time: a minute of talk takes a fraction of a second.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Final

import trio

from voicebot import nursery, twilio
from voicebot.errors import SocketClosed
from voicebot.plan import CallPlan
from voicebot.playout import Epoch
from voicebot.ports import Chat, MediaSocket, Ports, Synthesizer, Tool
from voicebot.record import CallSummary, Moment, TurnRecord
from voicebot.simulator import (
    Identity,
    MemoryLine,
    Network,
    Recording,
    Script,
    Verdict,
    judge,
    open_memory_line,
    run_call,
)
from voicebot.simulator.network import PERFECT
from voicebot.testing.chat import ScriptedChat
from voicebot.testing.ears import ToyEars
from voicebot.testing.heard import heard_by_epoch, words_heard
from voicebot.testing.recogniser import ToyRecogniser
from voicebot.testing.seeded import run_seeded
from voicebot.testing.toy import read
from voicebot.testing.voice import ToySynthesizer
from voicebot.ws import open_media_socket

#: Of every held call, unless another is given: what the simulator would draw by lot.
IDENTITY: Final = Identity("AC" + "0" * 32, "CA" + "0" * 32, "MZ" + "0" * 32)
# Of the engine, once the caller has gone. Its own bounds are seconds; a minute costs nothing.
JOIN_S: Final = 60.0


@dataclass(frozen=True)
class HeldCall:
    """A call that is over, from both ends: as the caller lived it and as the engine saw it."""

    recording: Recording
    summary: CallSummary

    @cached_property
    def heard_text(self) -> str:
        """All that came out of the caller's phone, half words and words said again included."""
        return read(self.recording.heard)

    @cached_property
    def verdict(self) -> Verdict:
        """What the simulator's judge says, by its usual thresholds."""
        return judge(self.recording)

    def heard_in(self, turn: int) -> tuple[str, ...]:
        """Return what was heard of a turn's reply, one text for each stretch between two stops."""
        return tuple(
            read(audio) for epoch, audio in self.audio_by_epoch.items() if epoch.turn == turn
        )

    def words_heard_in(self, turn: int) -> str:
        """Return the words of a turn's reply that the caller heard; half of a word is enough.

        What `summary.turns[turn].heard` should say, and the model be told.

        Raises:
            ValueError: what was heard is not the reply that was generated.
        """
        return words_heard(self.summary.turns[turn].generated, self.heard_in(turn))

    @cached_property
    def audio_by_epoch(self) -> dict[Epoch, bytes]:
        """The audio that was heard of each stretch between two stops, by turn and number."""
        return heard_by_epoch(self.recording, self.summary)


def toy_ports(
    *,
    chat: Chat | None = None,
    recogniser: ToyRecogniser | None = None,
    synthesizer: Synthesizer | None = None,
    tools: Sequence[Tool] = (),
) -> Ports:
    """Return ports for one call: toy ears, and toy or scripted parts where none is given."""
    recogniser = recogniser or ToyRecogniser()
    return Ports(
        open_transcriber=recogniser.open,
        endpointing=recogniser.mode,
        chat=chat or ScriptedChat(),
        synthesizer=synthesizer or ToySynthesizer(),
        open_ears=ToyEars,
        tools=tuple(tools),
    )


async def hold_call(
    script: Script,
    ports: Ports,
    plan: CallPlan,
    *,
    network: Network = PERFECT,
    identity: Identity | None = None,
    watch: Callable[[Moment], None] | None = None,
    on_turn: Callable[[TurnRecord], None] | None = None,
    between: Callable[[MediaSocket], MediaSocket] | None = None,
    server: trio.CancelScope | None = None,
) -> HeldCall:
    """Hold one call on Trio's clock, which a test makes virtual; return when both ends are done.

    Args:
        network: what lies between the two.
        watch: is shown every event of the engine's timeline as it happens; synchronous.
        on_turn: is given each turn once it is over; synchronous.
        between: what the engine is given instead of its socket, for a test that has to meddle.
        server: to be cancelled where the server is to stop under the call.

    Raises:
        Exception: what crashed the call, a mistake in a port or in the engine.
        RuntimeError: the engine did not end within `JOIN_S` of the caller's hanging up.

    Cancellation: everything of both ends is cancelled and joined.
    Owns: the task of the engine.
    """
    caller_end, server_end = open_memory_line()
    engine = _Engine(server_end, watch, on_turn, between or (lambda socket: socket), server)
    async with trio.open_nursery() as both:  # owns: the engine, which ends with the line
        both.start_soon(partial(engine.run, ports, plan), name="engine")
        recording = await run_call(caller_end, script, identity or IDENTITY, network)
        both.cancel_scope.deadline = trio.current_time() + JOIN_S
    if engine.crash is not None:
        raise engine.crash
    if both.cancel_scope.cancelled_caught or engine.summary is None:
        raise RuntimeError(f"the engine did not end within {JOIN_S:.0f} s of the call's end")
    if recording.ended.by == "bot":
        recording = replace(recording, ended=replace(recording.ended, code=engine.close_code))
    return HeldCall(recording, engine.summary)


def hold(
    script: Script,
    ports: Ports,
    plan: CallPlan,
    *,
    network: Network = PERFECT,
    identity: Identity | None = None,
    seed: int | None = 0,
) -> HeldCall:
    """Hold one call in virtual time, from a test that is not async. See `hold_call`.

    Args:
        seed: of the order in which Trio runs tasks that are ready at the same moment. The same
            seed gives the same call; another seed is another legal order; None leaves it to Trio.
    """
    call = partial(hold_call, script, ports, plan, network=network, identity=identity)
    return run_seeded(seed, call)


@dataclass
class _Engine:
    """The server's end: `ws.py` on a memory line as on a server's ASGI, and the call on it."""

    line: MemoryLine
    watch: Callable[[Moment], None] | None
    on_turn: Callable[[TurnRecord], None] | None
    between: Callable[[MediaSocket], MediaSocket]
    server: trio.CancelScope | None
    summary: CallSummary | None = None
    crash: BaseException | None = None
    close_code: int | None = None
    _connected: bool = field(default=False, init=False)

    async def run(self, ports: Ports, plan: CallPlan) -> None:
        """Run the call of this line."""
        scope = {"type": "websocket", "path": "/twilio/stream", "client": ("simulated", 0)}
        async with open_media_socket(
            scope,
            self._receive,
            self._send,
            admit=lambda scope: None,
            authenticate=_authenticate,
            start_timeout_s=5.0,
        ) as socket:
            if socket is None:
                raise RuntimeError("the call's stream was not accepted")
            with self._noticing_crash():
                with self.server or trio.CancelScope():
                    await nursery.run_call(
                        self.between(socket),
                        ports,
                        plan,
                        on_end=self._end,
                        on_turn=self.on_turn,
                        watch=self.watch,
                    )

    def _end(self, summary: CallSummary) -> None:
        self.summary = summary

    async def _receive(self) -> dict[str, Any]:
        if not self._connected:
            self._connected = True
            await trio.lowlevel.checkpoint()
            return {"type": "websocket.connect"}
        try:
            message = await self.line.receive()
        except SocketClosed as closed:
            return {"type": "websocket.disconnect", "code": closed.code}
        return {"type": "websocket.receive", "text": message}

    async def _send(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "websocket.send":
                try:
                    await self.line.send(message["text"])
                except SocketClosed as closed:
                    raise OSError("the caller has gone") from closed  # as ASGI 2.4 has it
            case "websocket.close":
                self.close_code = message["code"]
                await self.line.aclose()
            case _:
                await trio.lowlevel.checkpoint()

    @contextmanager
    def _noticing_crash(self) -> Iterator[None]:
        """Keep what the engine only logs: a server survives a bug in one call, a test must not."""
        notice = _CrashNotice(self)
        logger = logging.getLogger(nursery.__name__)
        logger.addHandler(notice)
        try:
            yield
        finally:
            logger.removeHandler(notice)


class _CrashNotice(logging.Handler):
    """Gives the engine of this task what crashed it."""

    def __init__(self, engine: _Engine) -> None:
        super().__init__(logging.ERROR)
        self._engine = engine
        self._task = trio.lowlevel.current_task()

    def emit(self, record: logging.LogRecord) -> None:
        ours = trio.lowlevel.current_task() is self._task
        if ours and record.getMessage() == "call_crashed" and record.exc_info is not None:
            self._engine.crash = record.exc_info[1]


async def _authenticate(start: twilio.Start) -> None:
    """Let every stream in: there is nobody else."""
