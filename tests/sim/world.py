"""Holds a drawn conversation in virtual time, with a seeded scheduler, and keeps what happened.

The parts are those of `voicebot.testing`; here they are told when to misbehave.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import trio

from tests.sim.conversation import ENDS, SPEECH, Conversation
from tests.sim.focus import Act
from voicebot import twilio
from voicebot.audio import silence
from voicebot.errors import ProviderError, RemoteProtocolError, SocketClosed
from voicebot.floor import Bell
from voicebot.ports import MediaSocket, Message, Ports, Tool, ToolCall, Transcriber
from voicebot.record import Moment, Outcome
from voicebot.simulator import Cue, Network, Script, Utterance, WhenSilent
from voicebot.testing import (
    HeldCall,
    ScriptedChat,
    ScriptedTool,
    ToyRecogniser,
    ToySynthesizer,
    hold_call,
    run_seeded,
    toy,
    toy_ports,
)

GAP = silence(160)  # before what the caller says, or two of it in a row would be one word
LIKELY_MS = 160  # of silence make a provider expect the end, in every other conversation
LIMIT_S = 900.0  # virtual; no conversation here takes a minute without being stuck


class Done(NamedTuple):
    """An act as it happened."""

    at: float  # seconds since the call began
    act: Act
    seen: int  # how many moments of the timeline there were before


@dataclass
class Held:
    """A conversation that is over, and everything a check may ask."""

    conversation: Conversation
    call: HeldCall
    moments: list[Moment]
    done: list[Done]
    chat: ScriptedChat
    tools: dict[str, ScriptedTool]
    recogniser: ToyRecogniser
    most_replies_at_once: int
    tasks_left: int
    virtual_s: float
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def ended_early(self) -> bool:
        """Whether something ended the call before the caller had said everything."""
        gave_up = self.call.summary.outcome in {Outcome.NO_ANSWERS, Outcome.NO_SPEECH}
        # Or would have: the caller has hung up on the last words.
        last = self.call.summary.turns[-1:]
        gave_up |= any(turn.generated == self.conversation.plan.trouble for turn in last)
        return gave_up or any(done.act.what in ENDS for done in self.done)

    def trace(self) -> str:
        """Return a hash of all that happened, in order and with its times."""
        parts = [repr(moment) for moment in self.moments]
        parts += [repr(happening) for happening in self.call.recording.happenings]
        parts += [repr(self.call.summary), self.call.heard_text]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


class Tampered:
    """A `MediaSocket` between the engine and the real one, with a hand on it."""

    def __init__(self, socket: MediaSocket) -> None:
        self._socket = socket
        self._ending = ""
        self._receiving: trio.CancelScope | None = None
        self._sending: trio.CancelScope | None = None
        self._news = Bell()

    @property
    def start(self) -> twilio.Start:
        return self._socket.start

    def end(self, how: str) -> None:
        """Let the connection end in one of the ways of `ENDS`. Synchronous; the first counts."""
        if self._ending:
            return
        self._ending = how
        for scope in (self._receiving, self._sending if how == "drop" else None):
            if scope is not None and how != "stall":
                scope.cancel(reason=how)

    async def receive(self) -> twilio.Inbound:
        if not self._ending or self._ending == "stall":
            with trio.CancelScope() as self._receiving:
                return await self._socket.receive()
        await trio.lowlevel.checkpoint()
        match self._ending:
            case "stop":
                return twilio.Stop()
            case "drop":
                raise SocketClosed(1006)
            case "protocol error":
                raise RemoteProtocolError("second_start")
        await trio.sleep_forever()
        raise AssertionError("unreachable")

    async def send(self, message: twilio.Outbound) -> None:
        match self._ending:
            case "drop":
                await trio.lowlevel.checkpoint()
                raise SocketClosed(1006)
            case "stall":
                await trio.sleep_forever()
            case "half-open":
                await trio.lowlevel.checkpoint()  # into a buffer that nobody empties
                return
        with trio.CancelScope() as self._sending:
            await self._socket.send(message)
            return
        raise SocketClosed(1006)

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        await self._socket.aclose(code, reason)


class CountingChat(ScriptedChat):
    """Knows how many of its replies were under way at once."""

    most = 0
    _now = 0

    @asynccontextmanager
    async def open_reply(
        self, messages: Sequence[Message], tools: Sequence[Tool] = ()
    ) -> AsyncGenerator[AsyncIterator[str | ToolCall]]:
        self._now += 1
        self.most = max(self.most, self._now)
        try:
            async with super().open_reply(messages, tools) as deltas:
                yield deltas
        finally:
            self._now -= 1


class Dropping(ToyRecogniser):
    """Loses its connection when told to."""

    def __init__(self, conversation: Conversation) -> None:
        likely_ms = LIKELY_MS if conversation.seed % 2 else None
        super().__init__(conversation.openings, mode=conversation.mode, likely_ms=likely_ms)
        self._connected: trio.CancelScope | None = None

    def drop(self) -> None:
        if self._connected is not None:
            self._connected.cancel(reason="dropped")

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Transcriber]:
        with trio.CancelScope() as self._connected:
            async with super().open() as transcriber:
                yield transcriber
        if self._connected.cancelled_caught:
            raise ProviderError("toy recogniser", "connection lost")


class World:
    """What acts reach: cues of the caller, the socket, the server."""

    def __init__(self, conversation: Conversation) -> None:
        self.conversation = conversation
        self.began = 0.0
        self.moments: list[Moment] = []
        self.done: list[Done] = []
        self.cues: dict[int, Cue] = {}
        self.socket: Tampered | None = None
        self.recogniser = Dropping(conversation)
        self.server = trio.CancelScope()
        self._counts: Counter[str] = Counter()
        self._waiting = [request for request in conversation.requests if isinstance(request, Act)]
        self._waiting += conversation.acts
        self._later: trio.Nursery | None = None

    def between(self, socket: MediaSocket) -> MediaSocket:
        self.socket = Tampered(socket)
        return self.socket

    def script(self) -> Script:
        utterances = []
        for request in self.conversation.requests:
            if isinstance(request, str):
                sound = GAP + toy.say(request)
                utterances.append(Utterance(request, sound, WhenSilent(0.5)))
                continue
            cue = self.cues[id(request)] = Cue()
            match request.what:
                case "cough":
                    sound = GAP + toy.noise(0.25)
                case "twice":
                    sound = GAP + toy.noise(0.06) + silence(40) + toy.say(request.words)
                case "dtmf":
                    sound = b""
                case _:
                    sound = GAP + toy.say(request.words)
            digits = request.words if request.what == "dtmf" else ""
            utterances.append(
                Utterance(
                    request.words or request.what,
                    sound,
                    cue,
                    digits,
                    backchannel=request.what in {"cough", "backchannel"},
                )
            )
        return Script(tuple(utterances), patience_s=10.0, limit_s=300.0)

    def watch(self, moment: Moment) -> None:
        """See a moment of the engine, and let happen what is due then."""
        if not self.moments:
            self.began = trio.current_time() - moment.at
        self.moments.append(moment)
        self._counts[moment.what] += 1
        for act in tuple(self._waiting):
            if act.anchor == moment.what and act.nth == self._counts[moment.what]:
                self._waiting.remove(act)
                if act.delay_s and self._later is not None:
                    self._later.start_soon(self._do_later, act)
                else:
                    self._do(act)

    async def _do_later(self, act: Act) -> None:
        await trio.sleep(act.delay_s)
        self._do(act)

    def _do(self, act: Act) -> None:
        self.done.append(Done(trio.current_time() - self.began, act, len(self.moments)))
        if act.what in SPEECH:
            self.cues[id(act)].give()
        elif act.what == "drain":
            self.server.cancel(reason="drain")
        elif act.what == "recogniser drops":
            self.recogniser.drop()
        elif self.socket is not None:
            assert act.what in ENDS
            self.socket.end(act.what)

    async def hold(self, ports: Ports, network: Network) -> HeldCall:
        """Hold the call. Owns: the acts that are to happen a little later."""
        async with trio.open_nursery() as self._later:
            call = await hold_call(
                self.script(),
                ports,
                self.conversation.plan,
                network=network,
                watch=self.watch,
                between=self.between,
                server=self.server,
            )
            self._later.cancel_scope.cancel(reason="call is over")
        return call


def hold(conversation: Conversation) -> Held:
    """Hold a conversation from its first message to the last task's end."""
    return run_seeded(conversation.seed, _hold, conversation)


async def _hold(conversation: Conversation) -> Held:
    world = World(conversation)
    tools = {
        name: ScriptedTool(name, runs, idempotent=idempotent)
        for name, idempotent, runs in conversation.tools
    }
    replies = iter(conversation.replies)
    chat = CountingChat(replies)
    ports = toy_ports(
        chat=chat,
        recogniser=world.recogniser,
        synthesizer=ToySynthesizer(conversation.speeches),
        tools=[tool.tool for tool in tools.values()],
    )
    before = trio.lowlevel.current_statistics().tasks_living
    began = trio.current_time()
    with trio.fail_after(LIMIT_S):
        call = await world.hold(ports, conversation.network)
    return Held(
        conversation,
        call,
        world.moments,
        world.done,
        chat,
        tools,
        world.recogniser,
        chat.most,
        trio.lowlevel.current_statistics().tasks_living - before,
        trio.current_time() - began,
    )
