"""What a call leaves behind, for every way in which it can end: nothing, within 2 s (I6).

The real server, real sockets, the simulator as Twilio, stand-ins for the providers: all in this
process and in one Trio run, so that every task, descriptor and thread is in the count. Five
calls at once end the same way, so that a leak of one in a call is five.

Idle keep-alive connections to providers stay, on purpose. Each is one descriptor of a pool, and
one descriptor and one task of a stand-in; they are taken out of the count, and bounded by the
number of calls. Spare connections stay, too, as many as before. What a pool or a stand-in holds
beyond that counts as a slot, and so does a line of the switchboard: there must be none.

The 2 s begin when the server knows, or could know, that the call is over. On a machine that has
more than twice as much to do as it has cores they are stretched in proportion, to 6 s at most.

`pytest -s` shows a table.
"""

from __future__ import annotations

import json
import math
import os
import socket
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast
from urllib.parse import urlsplit

import httpcore
import pytest
import trio
import trio.testing
from werkzeug.datastructures import MultiDict
from wsproto.utilities import LocalProtocolError

from tests.e2e.running import PUBLIC_URL, Server, open_server
from tests.peer import Gone, Peer, Refused, in_use
from voicebot import nursery, parts, service, whose
from voicebot.config import Settings, plan_of
from voicebot.errors import SocketClosed
from voicebot.phrases import Phrases
from voicebot.plan import CallPlan
from voicebot.ports import Chat, Message, Ports, Tool
from voicebot.record import Outcome
from voicebot.simulator.call import (
    At,
    Identity,
    InterruptAfter,
    Script,
    Utterance,
    run_call,
)
from voicebot.simulator.dial import dial
from voicebot.simulator.twilio_end import MediaStream
from voicebot.standins import (
    ChatConduct,
    ListenConduct,
    Replies,
    RestConduct,
    SpeakConduct,
    Standins,
    open_standins,
)
from voicebot.standins.deepgram_rules import INTERNAL as DEEPGRAM_FAILS
from voicebot.standins.groq import CHAT, Reply, ToolCall
from voicebot.standins.groq_rules import INTERNAL as GROQ_FAILS
from voicebot.standins.listen import LISTEN
from voicebot.standins.speak import SPEAK
from voicebot.standins.twilio import REST, Call
from voicebot.standins.twilio_rules import ApiError
from voicebot.standins.voice import speak
from voicebot.transport import tls_context
from voicebot.tries import Alternatives

CALLS = 5  # at once
BACK_S = 2.0  # the promise
LONG_S = 45.0  # longer than any test
THREAD_IDLE_S = 12.0  # trio ends a thread that nobody has needed for 10 s
DRAIN_S = 0.3
START_S = 0.3
STORY = "Once upon a time there was a small house by the sea. An old man lived in it. " * 3
HELLO = (Utterance("hello", speak("hello"), At(0.1)),)
OVER_IT = (Utterance("over it", speak("no, something else, please"), InterruptAfter(200)),)
TWILIO_FAILS = ApiError(500, 20500, "Internal Server Error")
OURS = frozenset(Outcome) - {Outcome.HUNG_UP, Outcome.SOCKET_CLOSED, Outcome.CANCELLED}


# ------------------------------------------------------------------ what is counted


@dataclass(frozen=True)
class Count:
    """What is in use, without the connections that are kept on purpose."""

    tasks: int
    fds: int
    threads: int
    slots: int
    kept: int  # idle connections to providers

    def leaves(self, before: Count) -> bool:
        """Whether more is in use than before; an idle thread of a pool may have ended."""
        return self.holds(before) or self.threads > before.threads

    def holds(self, before: Count) -> bool:
        """As `leaves`, but for threads: one that is idle ends when nobody has needed it a while."""
        return (self.tasks, self.fds, self.slots) != (before.tasks, before.fds, before.slots)


def count(scene: Scene) -> Count:
    tasks, fds = in_use()
    connections = [c for pool in scene.pools for c in pool.connections]
    idle = sum(connection.is_idle() for connection in connections)
    waiting = sum(len(pool._requests) for pool in scene.pools)
    theirs = scene.standins.connections_open
    lines = 0
    if scene.server is not None:
        lines = scene.server.app.board.lines.taken(trio.current_time())
    return Count(
        tasks=tasks - theirs,
        fds=fds - len(connections) - theirs - len(scene.held),
        threads=threading.active_count(),
        slots=len(connections) - idle + waiting + abs(theirs - len(connections)) + lines,
        kept=idle,
    )


def allowed_s() -> float:
    """Return the promise, stretched where the machine is overloaded."""
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    return BACK_S * max(1.0, min(3.0, load / 2))


def living_tasks() -> list[str]:
    """Return the names of all tasks, for a failure's message."""
    root = trio.lowlevel.current_root_task()
    found, names = [root], []
    while found:
        task = found.pop()
        if task is not None:
            names.append(task.name)
            found += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return names


# ------------------------------------------------------------------ who calls


class Phone:
    """A line of the simulator that ends in the middle, in the way a test wants.

    All phones of a scene do so at once: in the frame in which the last has come to its moment.
    """

    def __init__(self, scene: Scene, peer: Peer, identity: Identity) -> None:
        self.scene = scene
        self.peer = peer
        self.identity = identity
        self.start = ""  # the message
        self.said_ms = self.media_bytes = self.clears = 0
        self.ready = False  # its moment has come
        self.deaf = False
        self._acted = self._silent = self._left = False
        self._reading = trio.CancelScope()

    def stream(self) -> MediaStream:
        return MediaStream(self.identity, trio.current_time())

    async def send(self, text: str) -> None:
        event = json.loads(text)["event"]
        if event == "start":
            self.start = text
            if self.scene.kind.lasts_s is not None:
                self.scene.over(self.identity.call_sid, self.scene.kind.lasts_s)
        if event == "media":
            self.said_ms += 20
        if not self._acted and self.scene.now(self):
            self._acted = True
            await self.scene.kind.end(self)
        await self.say(text)

    async def say(self, message: str | bytes) -> None:
        if self._silent:
            return
        try:
            await self.peer.send(message)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            self.leave()
            raise SocketClosed(1006) from exc
        except LocalProtocolError:
            self._silent = True  # the server has closed, which the reader is about to tell

    async def receive(self) -> str:
        with trio.CancelScope() as self._reading:
            if self._left:
                raise SocketClosed(1006)
            try:
                text = await self.peer.receive()
            except (Gone, trio.BrokenResourceError, trio.ClosedResourceError) as exc:
                self._silent = True
                raise SocketClosed(exc.code if isinstance(exc, Gone) else 1006) from exc
            message = json.loads(text)
            if message["event"] == "media":
                self.media_bytes += len(message["media"]["payload"]) * 3 // 4
            self.clears += message["event"] == "clear"
            if self.deaf:
                await trio.sleep_forever()
            return text
        raise SocketClosed(1006)

    async def aclose(self) -> None:
        if not self._silent:
            await self.close(1000)
            try:
                while True:
                    await self.receive()
            except SocketClosed:
                pass

    async def close(self, code: int) -> None:
        """Say so; the answer is for whoever reads."""
        self._silent = True
        try:
            await self.peer.say_close(code)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the server was faster

    def leave(self) -> None:
        """Neither send nor read from now on; the socket stays as it is."""
        self._silent = self._left = True
        self._reading.cancel()


Act = Callable[[Phone], Awaitable[None]]


async def stop(phone: Phone) -> None:
    message = {"event": "stop", "streamSid": phone.identity.stream_sid, "stop": {}}
    await phone.say(json.dumps(message))
    await phone.close(1000)


async def close_going_away(phone: Phone) -> None:
    await phone.close(1001)


async def close_normally(phone: Phone) -> None:
    await phone.close(1000)


async def reset(phone: Phone) -> None:
    phone.leave()
    await phone.peer.reset()


async def drop(phone: Phone) -> None:
    phone.leave()
    await phone.peer.stream.aclose()


async def go_silent(phone: Phone) -> None:
    """Be as dead as a phone without a network: the socket stays open, nobody is there."""
    phone.leave()
    phone.scene.held.append(phone)


async def go_deaf(phone: Phone) -> None:
    phone.deaf = True


async def babble(phone: Phone) -> None:
    for _ in range(101):
        await phone.say("{")


async def babble_in_binary(phone: Phone) -> None:
    for _ in range(101):
        await phone.say(b"\x00" * 160)


async def say_too_much(phone: Phone) -> None:
    await phone.say("x" * 70_000)


async def say_far_too_much(phone: Phone) -> None:
    await phone.say("x" * 1_000_000)


async def start_again(phone: Phone) -> None:
    await phone.say(phone.start)


async def drain(phone: Phone) -> None:
    server = phone.scene.server
    if server is not None and not server.shutdown.is_set():
        server.stop()
        for other in phone.scene.phones:
            phone.scene.over(other.identity.call_sid, DRAIN_S)


async def nothing(phone: Phone) -> None:
    """Leave the end to the server."""


# Callers that never get as far as a call.


async def leave_before_start(phone: Phone) -> None:
    await phone.peer.send(phone.stream().connected())
    phone.scene.over(phone.identity.call_sid)
    await phone.peer.stream.aclose()


async def close_before_start(phone: Phone) -> None:
    phone.scene.over(phone.identity.call_sid)
    await phone.peer.close()


async def stop_before_start(phone: Phone) -> None:
    phone.scene.over(phone.identity.call_sid)
    await phone.peer.send(phone.stream().stop())
    await refused(phone)


async def never_start(phone: Phone) -> None:
    phone.scene.over(phone.identity.call_sid, START_S)
    await phone.peer.send(phone.stream().connected())
    await refused(phone)


async def start_with_a_wrong_token(phone: Phone) -> None:
    identity = replace(phone.identity, parameters={"token": "wrong"})
    phone.scene.over(phone.identity.call_sid)
    await phone.peer.send(MediaStream(identity, trio.current_time()).start())
    await refused(phone)


async def refused(phone: Phone) -> None:
    code = None
    while code is None:
        try:
            await phone.peer.receive()
        except Gone as gone:
            code = gone.code
    assert code == 1008


# ------------------------------------------------------------------ when


Moment = Callable[[Phone], bool]


def at_once(phone: Phone) -> bool:
    return phone.said_ms >= 200


def never(phone: Phone) -> bool:
    return False


def bot_speaks(phone: Phone) -> bool:
    return phone.media_bytes >= 3_000


def bot_is_cleared(phone: Phone) -> bool:
    return phone.clears > 0


def asked(vendor: str, path: str, sent_bytes: int = 0) -> Moment:
    """All wait for an answer of a provider, of which so much has come."""

    def all_wait(phone: Phone) -> bool:
        standins = phone.scene.standins
        waiting = sum(
            exchange.service == vendor
            and exchange.path == path
            and exchange.outcome == "open"
            and exchange.sent_bytes >= sent_bytes
            for server in (standins.groq.server, standins.deepgram.server)
            for exchange in server.exchanges
        )
        return waiting >= CALLS

    return all_wait


model_is_asked = asked("groq", "/openai/v1/chat/completions")
model_has_stalled = asked("groq", "/openai/v1/chat/completions", 400)
voice_is_asked = asked("deepgram", "/v1/speak")
recogniser_is_asked = asked("deepgram", "/v1/listen")


def tool_runs(phone: Phone) -> bool:
    return phone.scene.tools_running >= CALLS


def recogniser_hears(phone: Phone) -> bool:
    heard = [of.audio_bytes for of in phone.scene.standins.deepgram.listen.connections]
    return min(heard, default=0) > 2_000


# ------------------------------------------------------------------ what is different in a kind


Change = Callable[["Scene", Ports], Ports]


def tools(*, idempotent: bool) -> Change:
    def change(scene: Scene, ports: Ports) -> Ports:
        async def run(arguments: Mapping[str, Any]) -> str:
            scene.tools_running += 1
            await trio.sleep(LONG_S)
            return "done"

        tool = Tool("look_up", "Looks up.", {"type": "object", "properties": {}}, run, idempotent)
        return replace(ports, tools=(tool,))

    return change


def impatient(scene: Scene, ports: Ports) -> Ports:
    """Give up connecting to the recogniser soon; that time is no setting."""
    assert isinstance(ports.open_transcriber, Alternatives)
    opened = cast("partial[Any]", ports.open_transcriber.first.open)
    return replace(ports, open_transcriber=partial(opened, connect_timeout_s=0.3))


class Broken:
    """Ports with a bug in them."""

    onset_ms = 0

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    def open_ears(self) -> Broken:
        raise self._bug()

    def hear(self, frame: bytes, *, echo_dbov: float) -> bool:
        raise self._bug()

    def open_speech(self, text: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        raise self._bug()

    def _bug(self) -> ZeroDivisionError:
        self._scene.over(whose.call_sid.get() or "")
        return ZeroDivisionError("on purpose")


def voice_with_a_bug(scene: Scene, ports: Ports) -> Ports:
    return replace(ports, synthesizer=Broken(scene))


def ears_with_a_bug(scene: Scene, ports: Ports) -> Ports:
    return replace(ports, open_ears=lambda: Broken(scene))


def no_ears(scene: Scene, ports: Ports) -> Ports:
    return replace(ports, open_ears=Broken(scene).open_ears)


@dataclass(frozen=True)
class Kind:
    """A way to end. `outcomes`: what the record may say; none where there never is a call."""

    name: str
    outcomes: tuple[Outcome, ...]
    moment: Moment = never
    end: Act = nothing
    instead: Act | None = None  # of a simulated call, on a WebSocket that is open
    greeting: str = ""
    says: tuple[Utterance, ...] = ()
    hangs_up_s: float | None = LONG_S
    replies: Replies = (STORY,)
    listen: ListenConduct = LISTEN
    speak: SpeakConduct = SPEAK
    chat: ChatConduct = CHAT
    rest: RestConduct = REST
    settings: Mapping[str, str] = field(default_factory=dict)
    change: Change = lambda scene, ports: ports
    lasts_s: float | None = None  # where the server ends it by the clock
    small_buffers: bool = False
    signed: bool = True


HUNG_UP = (Outcome.HUNG_UP,)
CLOSED = (Outcome.SOCKET_CLOSED,)
BROKE_A_RULE = (Outcome.PROTOCOL_ERROR,)
UNHEARD = (Outcome.NO_RECOGNITION,)
UNSPOKEN = (Outcome.NO_SPEECH,)
ONE_TRY = {"VOICEBOT_TIMEOUTS__TRANSCRIBER_TRIES": "1"}
ONE_FAILURE = {"VOICEBOT_TIMEOUTS__FAILURES": "1"}
GOODBYE = (Reply("Bye.", (ToolCall("hang_up"),)),)
LOOK_UP = (Reply("", (ToolCall("look_up"),)), STORY)

KINDS = [
    # The caller, or the line.
    Kind("stop", HUNG_UP, hangs_up_s=0.3),
    Kind("close 1000 without stop", CLOSED, at_once, close_normally),
    Kind("close 1001", CLOSED, at_once, close_going_away),
    Kind("FIN without close", CLOSED, at_once, drop),
    Kind("reset", CLOSED, at_once, reset),
    Kind("reset mid-sentence", CLOSED, bot_speaks, reset, greeting=STORY),
    Kind(
        "half-open",
        (Outcome.MEDIA_TIMEOUT,),
        at_once,
        go_silent,
        settings={"VOICEBOT_TIMEOUTS__MEDIA_S": "0.6"},
    ),
    Kind(
        "half-open mid-sentence",
        (Outcome.MEDIA_TIMEOUT,),
        bot_speaks,
        go_silent,
        greeting=STORY,
        settings={"VOICEBOT_TIMEOUTS__MEDIA_S": "0.6"},
    ),
    Kind(
        "half-open, carrier stalls",
        (Outcome.MEDIA_TIMEOUT,),
        at_once,
        go_silent,
        rest=RestConduct(delay_s=math.inf),
        settings={"VOICEBOT_TIMEOUTS__MEDIA_S": "0.6"},
    ),
    Kind(
        "half-open in a tool not to be torn",
        (Outcome.MEDIA_TIMEOUT,),
        tool_runs,
        go_silent,
        says=HELLO,
        replies=LOOK_UP,
        change=tools(idempotent=False),
        settings={"VOICEBOT_TIMEOUTS__MEDIA_S": "0.6"},
    ),
    Kind(
        "half-open in a tool not to be torn, carrier stalls",
        (Outcome.MEDIA_TIMEOUT,),
        tool_runs,
        go_silent,
        says=HELLO,
        replies=LOOK_UP,
        change=tools(idempotent=False),
        rest=RestConduct(delay_s=math.inf),
        settings={"VOICEBOT_TIMEOUTS__MEDIA_S": "0.6"},
    ),
    Kind(
        "stalled reader",
        (Outcome.SEND_TIMEOUT, Outcome.SOCKET_CLOSED),
        at_once,
        go_deaf,
        greeting=STORY,
        settings={"VOICEBOT_SEND_DEADLINE_S": "0.5"},
        small_buffers=True,
    ),
    # No call comes of it.
    Kind("hang-up before start", (), instead=leave_before_start),
    Kind("close before start", (), instead=close_before_start),
    Kind("stop before start", (), instead=stop_before_start),
    Kind(
        "no start in time",
        (),
        instead=never_start,
        settings={"VOICEBOT_START_TIMEOUT_S": str(START_S)},
    ),
    Kind("wrong token", (), instead=start_with_a_wrong_token),
    Kind("unsigned upgrade", (), instead=nothing, signed=False),
    # Against the rules.
    Kind("not JSON", BROKE_A_RULE, at_once, babble),
    Kind("binary", BROKE_A_RULE, at_once, babble_in_binary),
    Kind("message too long", BROKE_A_RULE, at_once, say_too_much),
    Kind("frame far too long", CLOSED, at_once, say_far_too_much),
    Kind("second start", BROKE_A_RULE, at_once, start_again),
    # Hang-up, by what is going on.
    Kind("in the greeting", HUNG_UP, bot_speaks, stop, greeting=STORY),
    Kind(
        "while the recogniser connects",
        HUNG_UP,
        recogniser_is_asked,
        stop,
        listen=ListenConduct(delay_s=LONG_S),
    ),
    Kind(
        "while the model thinks",
        HUNG_UP,
        model_is_asked,
        stop,
        says=HELLO,
        chat=ChatConduct(delay_s=LONG_S),
    ),
    Kind(
        "before the first audio",
        HUNG_UP,
        voice_is_asked,
        stop,
        greeting=STORY,
        speak=SpeakConduct(delay_s=LONG_S),
    ),
    Kind("mid-sentence", HUNG_UP, bot_speaks, stop, says=HELLO),
    Kind(
        "while the verdict is pending",
        HUNG_UP,
        bot_is_cleared,
        stop,
        greeting=STORY,
        says=OVER_IT,
        listen=ListenConduct(stall_after_bytes=1),
    ),
    Kind(
        "during a tool",
        HUNG_UP,
        tool_runs,
        stop,
        says=HELLO,
        replies=LOOK_UP,
        change=tools(idempotent=True),
    ),
    Kind(
        "during a tool not to be torn",
        HUNG_UP,
        tool_runs,
        stop,
        says=HELLO,
        replies=LOOK_UP,
        change=tools(idempotent=False),
    ),
    # The bot.
    Kind("goodbye", (Outcome.BOT_HUNG_UP,), says=HELLO, replies=GOODBYE),
    Kind(
        "goodbye, carrier refuses",
        (Outcome.BOT_HUNG_UP,),
        says=HELLO,
        replies=GOODBYE,
        rest=RestConduct(refusal=TWILIO_FAILS),
    ),
    Kind(
        "goodbye, carrier stalls",
        (Outcome.BOT_HUNG_UP,),
        says=HELLO,
        replies=GOODBYE,
        rest=RestConduct(delay_s=math.inf),
    ),
    Kind(
        "too long",
        (Outcome.TOO_LONG,),
        greeting=STORY,
        lasts_s=0.8,
        # Without the time for a goodbye, which is spoken as long as anybody likes.
        settings={"VOICEBOT_TIMEOUTS__CALL_S": "0.8", "VOICEBOT_TIMEOUTS__PARTING_S": "0"},
    ),
    # The providers.
    Kind(
        "recogniser refuses",
        UNHEARD,
        listen=ListenConduct(refusal=DEEPGRAM_FAILS),
        settings=ONE_TRY,
    ),
    Kind(
        "recogniser never connects",
        UNHEARD,
        listen=ListenConduct(delay_s=math.inf),
        settings=ONE_TRY,
        change=impatient,
    ),
    Kind(
        "recogniser drops",
        UNHEARD,
        greeting=STORY,
        listen=ListenConduct(drop_after_bytes=3_200),
        settings=ONE_TRY,
    ),
    Kind(
        "recogniser stalls",
        HUNG_UP,
        recogniser_hears,
        stop,
        says=HELLO,
        listen=ListenConduct(stall_after_bytes=1),
    ),
    Kind(
        "model refuses",
        HUNG_UP,
        bot_speaks,
        stop,
        says=HELLO,
        chat=ChatConduct(refusal=GROQ_FAILS),
    ),
    Kind(
        "model stalls mid-stream",
        HUNG_UP,
        model_has_stalled,
        stop,
        says=HELLO,
        chat=ChatConduct(stall_after_tokens=3),
    ),
    Kind(
        "model drops mid-stream",
        HUNG_UP,
        bot_speaks,
        stop,
        says=HELLO,
        chat=ChatConduct(drop_after_tokens=3),
    ),
    Kind(
        "voice refuses",
        UNSPOKEN,
        greeting=STORY,
        speak=SpeakConduct(refusal=DEEPGRAM_FAILS),
        settings=ONE_FAILURE,
    ),
    Kind(
        "voice stalls mid-body",
        UNSPOKEN,
        greeting=STORY,
        speak=SpeakConduct(stall_after_bytes=2_000),
        settings={**ONE_FAILURE, "VOICEBOT_TIMEOUTS__AUDIO_GAP_S": "0.4"},
    ),
    Kind(
        "voice drops mid-body",
        UNSPOKEN,
        greeting=STORY,
        speak=SpeakConduct(drop_after_bytes=2_000),
        settings=ONE_FAILURE,
    ),
    # The server.
    Kind("drain", (Outcome.CANCELLED,), bot_speaks, drain, greeting=STORY),
    Kind("a bug in the voice", (Outcome.CRASHED,), greeting=STORY, change=voice_with_a_bug),
    Kind("a bug in the ears", (Outcome.CRASHED,), change=ears_with_a_bug),
    Kind("a bug in making the ears", (Outcome.CRASHED,), change=no_ears),
]


# ------------------------------------------------------------------ the scene


@dataclass
class Scene:
    """Everything of one test."""

    kind: Kind
    standins: Standins
    pools: list[httpcore.AsyncConnectionPool]
    server: Server | None = None
    ports: Ports | None = None
    phones: list[Phone] = field(default_factory=list)
    held: list[Phone] = field(default_factory=list)  # each keeps a socket of its own open
    overs: dict[str, float] = field(default_factory=dict)
    tools_running: int = 0

    def now(self, phone: Phone) -> bool:
        """Whether every phone has come to its moment."""
        phone.ready = phone.ready or self.kind.moment(phone)
        return len(self.phones) == CALLS and all(other.ready for other in self.phones)

    def over(self, call_sid: str, in_s: float = 0.0) -> None:
        """Note that a call is over now, or will be; the first word counts."""
        self.overs.setdefault(call_sid, trio.current_time() + in_s)

    @asynccontextmanager
    async def open_ports(
        self, settings: Settings, brain: Chat | None = None
    ) -> AsyncGenerator[Ports]:
        async with parts.open_ports(settings, brain) as ports:
            self.ports = ports
            yield self.kind.change(self, ports)

    def plan(self, plan: CallPlan) -> CallPlan:
        return replace(plan, greeting=self.kind.greeting, farewell="Bye.", apology="Sorry, sorry.")

    async def warm_up(self) -> None:
        """Use each client once: what it makes then, it keeps."""
        assert self.ports is not None
        assert isinstance(self.ports.chat, Alternatives)
        assert isinstance(self.ports.synthesizer, Alternatives)
        async with self.ports.chat.first.open_reply([Message("user", "Hi.")]) as answer:
            async for _ in answer:
                pass
        async with self.ports.synthesizer.first.open_speech("Hi.") as chunks:
            async for _ in chunks:
                pass
        self.ports.warm()
        # Spare connections are there then, phrases are learned, and the stand-ins' ends are over.
        await trio.testing.wait_all_tasks_blocked(0.2)

    def misbehave(self) -> None:
        kind, standins = self.kind, self.standins
        standins.groq.replies = kind.replies
        standins.groq.conducts.rule = kind.chat
        standins.deepgram.listen.conducts.rule = kind.listen
        standins.deepgram.speak.conducts.rule = kind.speak
        standins.twilio.conducts.rule = kind.rest

    async def call(self) -> None:
        """Call in, and end as the kind has it."""
        assert self.server is not None
        account, kind = self.server.account, self.kind
        answer = await dial(self.server.url, account)
        sid = answer.identity.call_sid
        self.standins.twilio.calls[sid] = Call(sid, [], "in-progress")
        if not kind.signed:
            account = replace(account, auth_token="wrong")
        signature = account.signature(answer.stream_url, {})
        headers = [(name.encode(), value.encode()) for name, value in signature.items()]
        stream = await self._connect(urlsplit(self.server.url).port or 0)
        phone = Phone(self, Peer(stream), answer.identity)
        try:
            path = urlsplit(answer.stream_url).path
            if kind.signed:
                await phone.peer.upgrade(path, headers=headers)
            else:
                with pytest.raises(Refused) as refusal:
                    await phone.peer.upgrade(path, headers=headers)
                assert refusal.value.status == 403
                self.over(sid)
            self.phones.append(phone)
            if kind.instead is not None:
                await kind.instead(phone)
                # Twilio says so, and that frees the line; else the token's time does.
                news = MultiDict({"CallSid": sid, "StreamEvent": "stream-stopped"})
                self.server.app.board.take_stream_status(news)
            else:
                script = Script(kind.says, hang_up_after_s=kind.hangs_up_s)
                await run_call(phone, script, answer.identity)
        finally:
            if phone not in self.held:
                stream.socket.close()

    async def _connect(self, port: int) -> trio.SocketStream:
        raw = trio.socket.socket()
        if self.kind.small_buffers:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
        await raw.connect(("127.0.0.1", port))
        return trio.SocketStream(raw)

    async def back(self, before: Count) -> tuple[Count, float]:
        """Wait until no more is in use than before; return what is then, and how long it took.

        Gives up when twice the time is over: how much too late it was is worth knowing. Idle
        threads have theirs, and do not count in what it took.
        """
        while len(self.overs) < CALLS:  # noqa: ASYNC110  # the last may be over later than its phone
            await trio.sleep(0.01)
        over = max(self.overs.values())
        took_s: float | None = None
        while True:
            now, late_s = count(self), trio.current_time() - over
            took_s = None if now.holds(before) else late_s if took_s is None else took_s
            patience_s = 2 * allowed_s() + (0.0 if took_s is None else THREAD_IDLE_S)
            if not now.leaves(before) or late_s > patience_s:
                return now, max(0.0, late_s if took_s is None else took_s)
            await trio.sleep(0.01)


def watch_ends(monkeypatch: pytest.MonkeyPatch, scene: Scene) -> None:
    """Note when the server decides that a call is over."""
    end = nursery._Call.end

    def noted(call: nursery._Call, outcome: Outcome) -> None:
        scene.over(call._socket.start.call_sid)
        end(call, outcome)

    monkeypatch.setattr(nursery._Call, "end", noted)


def watch_pools(monkeypatch: pytest.MonkeyPatch) -> list[httpcore.AsyncConnectionPool]:
    """Return a list that gets every pool of connections that is made."""
    pools: list[httpcore.AsyncConnectionPool] = []
    init = httpcore.AsyncConnectionPool.__init__

    def noted(pool: httpcore.AsyncConnectionPool, *args: Any, **kwargs: Any) -> None:
        init(pool, *args, **kwargs)
        pools.append(pool)

    monkeypatch.setattr(httpcore.AsyncConnectionPool, "__init__", noted)
    return pools


def shrink_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the kernel hold little of what the server sends; accepted sockets inherit it."""
    create = socket.create_server

    def small(*args: Any, **kwargs: Any) -> socket.socket:
        made = create(*args, **kwargs)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2_048)
        return made

    monkeypatch.setattr(socket, "create_server", small)


def load_certificates_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every HTTP client the same TLS context: to make one takes 30 ms, for each call."""
    context = tls_context()
    monkeypatch.setattr("httpx._transports.default.create_ssl_context", lambda **given: context)


@asynccontextmanager
async def open_scene(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Scene]:
    load_certificates_once(monkeypatch)
    pools = watch_pools(monkeypatch)
    if kind.small_buffers:
        shrink_buffers(monkeypatch)
    async with open_standins() as standins:
        scene = Scene(kind, standins, pools)
        watch_ends(monkeypatch, scene)
        plan = plan_of
        monkeypatch.setattr(service, "open_ports", scene.open_ports)
        # With its sounds known beforehand a greeting would need no voice.
        monkeypatch.setattr(Phrases, "get", lambda phrases, piece: None)
        monkeypatch.setattr(service, "plan_of", lambda settings: scene.plan(plan(settings)))
        try:
            yield scene
        finally:
            for phone in scene.held:
                phone.peer.stream.socket.close()


async def play(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> tuple[Count, Count, float]:
    """Hold five calls of a kind; return what was in use before and after, and the time it took."""
    async with open_scene(kind, monkeypatch) as scene:
        environ = {
            **scene.standins.environment(),
            "PUBLIC_URL": PUBLIC_URL,
            "VOICEBOT_DRAIN_S": str(DRAIN_S),
            **kind.settings,
        }
        before = after = count(scene)
        took_s = math.inf
        drained = kind.end is drain  # then nothing of the server is left either
        async with open_server(environ) as scene.server:
            await scene.warm_up()
            if not drained:
                before = count(scene)
            scene.misbehave()
            async with trio.open_nursery() as callers:  # owns: the phones
                for _ in range(CALLS):
                    callers.start_soon(scene.call)
            if not drained:
                after, took_s = await scene.back(before)
        if drained:
            after, took_s = await scene.back(before)
        if after.leaves(before):
            sys.stdout.write("\n".join(["", *sorted(living_tasks())]))
        for phone in scene.phones:
            check_record(scene, scene.server, phone.identity.call_sid)
        return before, after, took_s


def check_record(scene: Scene, server: Server, call_sid: str) -> None:
    """Check that all is known of a call, and that the carrier was told where that is due."""
    record = server.app.board.store.get(call_sid)
    assert record is not None
    if not scene.kind.outcomes:
        assert record.summary is None
        return
    assert record.summary is not None
    outcome = Outcome(record.summary["outcome"])
    assert outcome in scene.kind.outcomes
    assert record.status == "completed"
    assert record.ended_at is not None
    told = scene.standins.twilio.calls[call_sid].updates
    assert bool(told) is (outcome in OURS and scene.kind.rest is REST)
    if told:
        unsaid = outcome in {Outcome.CRASHED, Outcome.NO_SPEECH}  # then Twilio says so
        (update,) = told
        assert list(update) == (["Twiml"] if unsaid else ["Status"])


# ------------------------------------------------------------------ the tests


@pytest.fixture(scope="module")
def table() -> Iterator[list[str]]:
    """Lines to be shown at the end, where output is shown."""
    rows = [f"{'kind':51}{'tasks':>11}{'fds':>11}{'threads':>9}{'slots':>8}{'kept':>6}{'back':>8}"]
    yield rows
    sys.stdout.write("\n\n" + "\n".join(rows) + "\n")


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    """Hold calls once, so that what a process makes once has been made."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        trio.run(play, Kind("warm-up", HUNG_UP, bot_speaks, stop, says=HELLO), monkeypatch)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, id=kind.name.replace(" ", "-")) for kind in KINDS]
)
async def test_nothing_is_left(
    kind: Kind, monkeypatch: pytest.MonkeyPatch, table: list[str]
) -> None:
    with trio.fail_after(LONG_S):
        before, after, took_s = await play(kind, monkeypatch)

    table.append(
        f"{kind.name:51}"
        f"{f'{before.tasks}->{after.tasks}':>11}"
        f"{f'{before.fds}->{after.fds}':>11}"
        f"{f'{before.threads}->{after.threads}':>9}"
        f"{f'{before.slots}->{after.slots}':>8}"
        f"{after.kept:>6}"
        f"{took_s:>7.2f}s"
    )
    assert not after.leaves(before), (before, after)
    assert after.kept <= 3 * CALLS  # one for each call and provider that speaks HTTP
    assert took_s <= allowed_s()
