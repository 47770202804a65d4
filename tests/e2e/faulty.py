"""One call in which a provider misbehaves: real server, real sockets, stand-ins of its own.

A `Case` names the fault, when it begins and how long it lasts. `hold` holds the call and returns
what came of it; `problems` is what the promises say of that. Silence is what the caller's phone
recorded, and what was said is found in the recording as well, for the stand-ins' voice sounds
the same for every word. Many calls are held at once in one process, each with a server and
providers of its own, so that what one meets is known to the request.
"""

from __future__ import annotations

import base64
import functools
import itertools
import json
import math
import os
import random
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final, Literal

import pytest
import trio

from tests.contract.test_clients_against_faults import Fails, Hangs, expected_of
from tests.e2e.running import PUBLIC_URL, Server, open_server
from voicebot import audio, vad
from voicebot.config import load, plan_of
from voicebot.errors import ReplyCut
from voicebot.phrases import Phrases
from voicebot.plan import CallPlan
from voicebot.record import Outcome
from voicebot.simulator.call import Line, Recording, Script, Utterance, WhenSilent, run_call
from voicebot.simulator.caller import HANG_UP_PAUSE_S
from voicebot.simulator.dial import dial, open_line
from voicebot.simulator.loudness import sounds
from voicebot.standins import (
    FAULTS,
    HOST_FAULTS,
    HOSTS,
    Conduct,
    Door,
    Exchange,
    Rule,
    SpeakConduct,
    SpeakSocketConduct,
    Standins,
    open_standins,
)
from voicebot.standins.flux import FLUX
from voicebot.standins.groq import CHAT
from voicebot.standins.http11 import HttpServer
from voicebot.standins.listen import LISTEN
from voicebot.standins.script import Conducts
from voicebot.standins.speak import SPEAK
from voicebot.standins.speak_socket import SPEAK_SOCKET
from voicebot.standins.twilio import Call
from voicebot.standins.voice import speak
from voicebot.transport import tls_context

Tell = Callable[["Phase"], None]
Phase = Literal["at boot", "at the start", "in the greeting", "while thinking", "while speaking"]

SETTINGS: Final = {
    "VOICEBOT_GREETING": "Hello there.",
    "VOICEBOT_DRAIN_S": "0",
    "VOICEBOT_TIMEOUTS__FIRST_TOKEN_S": "0.6",
    "VOICEBOT_TIMEOUTS__TOKEN_GAP_S": "0.6",
    "VOICEBOT_TIMEOUTS__ANSWER_S": "1.5",
    "VOICEBOT_TIMEOUTS__FIRST_AUDIO_S": "0.6",
    "VOICEBOT_TIMEOUTS__AUDIO_GAP_S": "0.6",
    "VOICEBOT_TIMEOUTS__FILLER_S": "0.8",
    "VOICEBOT_TIMEOUTS__TRANSCRIBER_PAUSE_S": "0.2",
    "VOICEBOT_TIMEOUTS__TRANSCRIBER_CONNECT_S": "0.6",
    # v1 says something every second, and late results are 2 s late.
    "VOICEBOT_TIMEOUTS__TRANSCRIBER_STALL_S": "2.5",
    "VOICEBOT_ENDPOINTING__FINAL_GRACE_MS": "600",
    "VOICEBOT_ENDPOINTING__PROVIDER_SILENCE_MS": "800",
}
TEXTS: Final = ("tell me about the rooms", "thank you very much")
ANSWERED: Final = "welcome"  # within the half second that a short answer has
#: Which of the provider's interfaces are used, where they are not the usual ones.
PARTS: Final[dict[str, dict[str, str]]] = {
    "flux": {"VOICEBOT_DEEPGRAM_STT_MODEL": "flux-general-en"},
    "speak-socket": {"VOICEBOT_DEEPGRAM_TTS_TRANSPORT": "websocket"},
}
PARTINGS: Final = ("cannot hear you", "is not working")
APOLOGY: Final = "did not manage"
REPLIES: Final = ("We have two rooms. Both are free.", "Welcome here. Good day.")
HEALTHY_PAUSE_S: Final = 1.2  # between the bot's last sound and the caller's next turn
CALL_S: Final = 60.0  # a call that is not over then is stuck
BACK_S: Final = 2.0  # nothing is left of a call then
SHUT_S: Final = 0.2  # a host that refuses once does so for a while, and not for all tries
AT_ONCE: Final = 10  # calls in one process: two busy cores keep up with them
TURN_OVER_MS: Final = 200  # of silence, and the caller's words are over
SPEAKING_MEDIAS: Final = 3  # and the bot is in the middle of it
# Where a moment in an answer is moved to. The first turn ends 3.6 s after the start, and the reply
# is heard from 4.0 s on; its second sentence is thought of from the fifth token on.
LISTEN_BYTES: Final[dict[str, int]] = {
    "in the greeting": 4_000,
    "while thinking": 29_500,
    "while speaking": 38_000,
}
SPEECH_BYTES: Final[dict[str, int]] = {"while thinking": 4_000, "while speaking": 12_000}
CHAT_TOKENS: Final = 5
CHAT_BYTES: Final = 1_700

#: Not so for the client, which waits or passes on what it gets, but for a call.
_FAIL_A_CALL: Final = {
    ("listen", "deaf"),
    ("listen", "stall"),
    ("speak", "drip"),
    ("speak-socket", "drip"),
    ("speak-socket", "slow"),
}
#: And the other way round: where Flux is never sure, the ears are.
_HARMLESS: Final = {("flux", "no-end-of-turn")}
#: Held alone: a request has 16,000 chunks, of which provider and bot take all of a core.
_CROWD: Final = {("speak", "one-byte-chunks")}


@dataclass(frozen=True)
class Limits:
    """How long the caller may be left in silence, in seconds, by what misbehaves.

    Computed from the settings alone; a machine's slowness is added by `slack_s`.
    """

    plan: CallPlan

    @property
    def turn_s(self) -> float:
        """From the caller's last sound to the end of the turn, at the latest."""
        rules = self.plan.endpointing
        ears_s = 0.4  # until they let go
        return ears_s + max(rules.hangover_ms, rules.agree_ms, rules.provider_silence_ms) / 1_000

    @property
    def filled_s(self) -> float:
        """Behind a turn of which somebody knows: a filler comes."""
        return self.turn_s + self.plan.timeouts.filler_s

    @property
    def unfilled_s(self) -> float:
        """The same where no filler's sound is known: all tries of the model, then of the voice."""
        return self.turn_s + self.plan.timeouts.answer_s + 2 * self.speech_s

    @property
    def speech_s(self) -> float:
        """All tries of a sentence, the pauses between them included."""
        timeouts, pause_s = self.plan.timeouts, self.plan.timeouts.retrying.pause_s
        tries = timeouts.speech_tries
        return tries * timeouts.first_audio_s + pause_s * ((1 << (tries - 1)) - 1)

    @property
    def deaf_s(self) -> float:
        """Until a recogniser is given up: each try connects, or lets the caller wait for words."""
        timeouts, rules = self.plan.timeouts, self.plan.endpointing
        tries, pause_s = timeouts.transcriber_tries, timeouts.transcriber_pause_s
        connect_s, stall_s = timeouts.transcriber_connect_s, timeouts.transcriber_stall_s
        each_s = max(connect_s, stall_s, rules.final_grace_ms / 1_000)
        return self.turn_s + tries * each_s + pause_s * ((1 << (tries - 1)) - 1)

    def of(self, where: str, phase: Phase) -> float:
        """Return the longest silence there may be."""
        answered = self.unfilled_s if phase == "at boot" else self.filled_s
        if where == "deepgram":
            return self.deaf_s + answered
        if where in ("listen", "flux"):
            return max(self.deaf_s, answered)
        return max(answered, HANG_UP_PAUSE_S)  # the caller's own pause before hanging up

    @property
    def worst_s(self) -> float:
        """Where everything fails, one after the other, and no filler is known."""
        return self.deaf_s + self.unfilled_s


def slack_s() -> float:
    """Return what a silence may be longer by where the machine has too much to do."""
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    return 0.5 * max(1.0, min(4.0, load))


@dataclass(frozen=True)
class Case:
    """A call and what it meets."""

    where: str
    fault: str
    phase: Phase
    standing: bool

    def __str__(self) -> str:
        return f"{self.where} {self.fault} {self.phase} {'standing' if self.standing else 'once'}"

    @property
    def fails(self) -> bool:
        """Whether a request that meets the fault comes to nothing, or breaks off."""
        if self.where in HOSTS or (self.where, self.fault) in _FAIL_A_CALL:
            return True
        if (self.where, self.fault) in _HARMLESS:
            return False
        expected = expected_of(self.where, self.fault)
        cut = isinstance(expected, Fails) and expected.kind is ReplyCut  # which is said as it is
        return isinstance(expected, Fails | Hangs) and not cut

    @property
    def retryable(self) -> bool:
        """Whether the same request may be made again."""
        expected = expected_of(self.where, self.fault)
        return not isinstance(expected, Fails) or expected.retryable

    @property
    def outlasts(self) -> bool:
        """Whether the caller, who has been told, has gone before the bot gives up.

        Each try is given up for its silence alone, and one that worked before is tried once more.
        """
        worked = self.phase in ("while thinking", "while speaking")
        listens = self.where in ("listen", "flux")
        return listens and self.fault == "stall" and self.standing and worked

    @property
    def outcomes(self) -> set[Outcome]:
        """How the call may end."""
        if self.where in ("listen", "flux") and self.fails and not self.retryable:
            # There is no other recogniser. One that had worked is opened once more.
            worked = self.phase not in ("at boot", "at the start") and not self.standing
            return {Outcome.NO_RECOGNITION} | ({Outcome.HUNG_UP} if worked else set())
        if not (self.standing and self.fails) or self.outlasts:
            return {Outcome.HUNG_UP}
        return {
            "listen": {Outcome.NO_RECOGNITION},
            "flux": {Outcome.NO_RECOGNITION},
            "speak": {Outcome.NO_SPEECH},
            "speak-socket": {Outcome.NO_SPEECH},
            "chat": {Outcome.NO_ANSWERS},
            # A connection that is open, or ready, is not met by what happens at the door.
            "deepgram": {Outcome.NO_RECOGNITION, Outcome.NO_SPEECH, Outcome.HUNG_UP},
            "groq": {Outcome.NO_ANSWERS, Outcome.HUNG_UP},
            "twilio": {Outcome.NO_RECOGNITION},
        }[self.where]


@dataclass(frozen=True)
class Held:
    """A call that was held."""

    recording: Recording
    summary: Mapping[str, Any]
    told: bool  # the carrier was given words for the caller
    met: frozenset[str]  # names of the conducts that requests met
    left: tuple[str, ...]  # what was left of it
    behind_s: float  # by which the caller's phone was behind real time, at worst

    @property
    def outcome(self) -> Outcome:
        return Outcome(self.summary["outcome"])

    @property
    def failures(self) -> list[str]:
        """What the timeline tells of providers that failed."""
        whats = {"provider_failed", "recogniser_failed"}
        return [m["what"] for m in self.summary["timeline"] if m["what"] in whats]

    @property
    def answered(self) -> bool:
        """Whether the caller heard the answer to the last turn."""
        return said(self.recording, ANSWERED)

    @property
    def apologised(self) -> bool:
        """Whether the caller heard that the last turn was not understood."""
        return said(self.recording, APOLOGY)

    @property
    def was_told(self) -> bool:
        """Whether the caller was told that the bot cannot go on, by the bot or by Twilio."""
        return self.told or any(said(self.recording, words) for words in PARTINGS)

    @property
    def silence_s(self) -> float:
        """The longest stretch in which neither caller nor bot made a sound."""
        return longest_silence_s(self.recording)


def said(recording: Recording, text: str) -> bool:
    """Say whether the caller heard all words of a text, in this order, however halting."""
    heard, at = _squeezed(recording.heard), 0
    for word in text.split():
        sound = _squeezed(speak(word))
        at = heard.find(sound, at)
        if at < 0:
            return False
        at += len(sound)
    return True


def _squeezed(sound: bytes) -> bytes:
    """Return it without silence: that of a line that ran dry is in the middle of words."""
    return sound.translate(None, bytes([audio.SILENCE]))


def longest_silence_s(recording: Recording) -> float:
    heard = [(s.start_ms, s.end_ms) for s in sounds(recording.heard, 0)]
    heard += [(s.start_ms, s.end_ms) for s in sounds(recording.caller, 0)]
    silent_since, longest = 0.0, 0.0
    for start, end in [*sorted(heard), (recording.ended.at_ms, recording.ended.at_ms)]:
        longest = max(longest, start - silent_since)
        silent_since = max(silent_since, end)
    return longest / 1_000


class WatchedLine:
    """A line that tells when the bot's first audio comes, and how far the first turn has got."""

    def __init__(self, line: Line, tell: Tell) -> None:
        self._line = line
        self._tell = tell
        self._medias = 0  # of the bot, since the last thing told
        self._began = trio.current_time()
        self._said_ms = 0
        self.behind_s = 0.0  # real time, at worst: the machine has too much to do
        self._talking = self._told = False
        self._silent_ms = 0  # since the caller's last sound

    async def send(self, text: str) -> None:
        message = json.loads(text)
        if message["event"] == "media":
            self._listen(base64.b64decode(message["media"]["payload"]))
        await self._line.send(text)

    def _listen(self, sound: bytes) -> None:
        self._said_ms += len(sound) // audio.BYTES_PER_MS
        behind_s = trio.current_time() - self._began - self._said_ms / 1_000
        self.behind_s = max(self.behind_s, behind_s)
        if self._told:
            return
        if sound.strip(bytes([audio.SILENCE])):
            self._talking, self._silent_ms = True, 0
        else:
            self._silent_ms += len(sound) // audio.BYTES_PER_MS
        if self._talking and self._silent_ms >= TURN_OVER_MS:
            self._told, self._medias = True, 0
            self._tell("while thinking")

    async def receive(self) -> str | bytes:
        message = await self._line.receive()
        if json.loads(message)["event"] == "media":
            self._medias += 1
            if self._told and self._medias == SPEAKING_MEDIAS:
                self._tell("while speaking")
            elif not self._talking and self._medias == 1:
                self._tell("in the greeting")
        return message

    async def aclose(self) -> None:
        await self._line.aclose()


def environment(standins: Standins, parts: Mapping[str, str]) -> dict[str, str]:
    return {**standins.environment(), **SETTINGS, **parts, "PUBLIC_URL": PUBLIC_URL}


def caller() -> Script:
    """Two turns, with the patience of somebody who has all day."""
    return Script(
        tuple(Utterance(text, speak(text), WhenSilent(HEALTHY_PAUSE_S)) for text in TEXTS),
        limit_s=CALL_S,
        patience_s=12.0,
    )


@contextmanager
def lean() -> Iterator[None]:
    """Make once what a server makes once: the model of the ears, and the certificates."""
    context = tls_context()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vad, "OpenEars", functools.cache(vad.OpenEars))
        patch.setattr("httpx._transports.default.create_ssl_context", lambda **given: context)
        yield


@asynccontextmanager
async def open_scene(
    parts: Mapping[str, str] = MappingProxyType({}), **given: Any
) -> AsyncGenerator[tuple[Standins, Server]]:
    """Serve, with providers of one's own.

    Args:
        parts: settings besides the usual ones.
    """
    given = {"texts": TEXTS, "replies": REPLIES, **given}
    async with open_standins(**given) as standins:
        async with open_server(environment(standins, parts)) as server:
            yield standins, server


async def know_phrases(
    standins: Standins, server: Server, then: Rule[SpeakConduct] = SPEAK
) -> None:
    """Wait until what is said word for word is known; from then on let speech be as it is."""
    wanted = len(Phrases(plan_of(server.settings)).missing)
    speaking, talking = standins.deepgram.speak, standins.deepgram.speak_socket
    speaking.conducts.rule = SpeakConduct(rate=math.inf)
    # Whoever speaks later is to open a socket of its own.
    talking.conducts.rule = SpeakSocketConduct(rate=math.inf, idle_s=0.1)

    def known() -> int:
        return sum(speech.exchange.outcome == "complete" for speech in speaking.speeches) + sum(
            speaking.sent["Flushed"] for speaking in talking.connections
        )

    while known() < wanted or talking.connections_open:  # noqa: ASYNC110  # another program, as far as tests go
        await trio.sleep(0.02)
    speaking.conducts.rule, talking.conducts.rule = then, SPEAK_SOCKET


async def call_in(
    standins: Standins, server: Server, tell: Tell, *, wait_idle: bool = True
) -> Held:
    """Call, and see what is left of the call when it is over.

    Args:
        wait_idle: False where other calls are held, of which more is there.
    """
    tell("at the start")
    answer = await dial(server.url, server.account)
    sid = answer.identity.call_sid
    standins.twilio.calls[sid] = Call(sid, [], "in-progress")
    async with open_line(server.url, answer.stream_url, server.account) as line:
        watched = WatchedLine(line, tell)
        recording = await run_call(watched, caller(), answer.identity)
    left = await leftovers(standins, server, sid) if wait_idle else ()
    record = server.app.board.store.get(sid)
    assert record is not None
    assert record.summary is not None
    exchanges = [e for host in HOSTS for e in standins.hosts[host].exchanges]
    return Held(
        recording=recording,
        summary=record.summary,
        told=any("Say" in update.get("Twiml", "") for update in standins.twilio.calls[sid].updates),
        met=frozenset(exchange.conduct.name for exchange in exchanges),
        left=left,
        behind_s=watched.behind_s,
    )


async def leftovers(standins: Standins, server: Server, sid: str) -> tuple[str, ...]:
    """Return the tasks and requests of a call that are there 2 s after its end."""
    until = trio.current_time() + BACK_S + slack_s()
    while True:
        tasks = [name for name in task_names() if sid in name]
        lines = ["a line"] * server.app.board.lines.taken(trio.current_time())
        requests = [
            f"{e.method} {e.path}"
            for host in HOSTS
            for e in standins.hosts[host].exchanges
            if e.outcome == "open" and not (e.path == "/v1/speak" and of_all_calls(server, e))
        ]
        left = (*tasks, *lines, *requests)
        if not left or trio.current_time() > until:
            return left
        await trio.sleep(0.02)


def of_all_calls(server: Server, exchange: Exchange) -> bool:
    """Whether a request for speech is a socket, or a sentence that is learned for all calls."""
    if exchange.method == "GET":
        return True
    return json.loads(exchange.body)["text"] in Phrases(plan_of(server.settings)).missing


def task_names() -> list[str]:
    """Return the names of all tasks there are."""
    tasks, names = [trio.lowlevel.current_root_task()], []
    while tasks:
        task = tasks.pop()
        if task is not None:
            names.append(task.name)
            tasks += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return names


# ------------------------------------------------------------------ what happens when


class Trouble:
    """Lets the fault of a case happen, once its phase has come."""

    def __init__(self, case: Case, standins: Standins, nursery: trio.Nursery) -> None:
        self._case = case
        self._standins = standins
        self._nursery = nursery

    def tell(self, phase: Phase) -> None:
        """Hear that a call has come so far."""
        case = self._case
        match case.where:
            # A connection is there from the start, and keeps its conduct.
            case "listen" | "flux" | "speak-socket":
                due: Phase = "at boot" if case.phase == "at boot" else "at the start"
            case "speak" | "chat" if case.phase == "while speaking":
                due = "while thinking"  # requests are made before they are heard
            case _:
                due = case.phase
        if phase == due:
            self._begin()

    def _begin(self) -> None:
        case, standins = self._case, self._standins
        if case.where == "twilio":
            standins.inflict("listen", "500")  # so that there is something to tell Twilio
        if case.where in HOSTS:
            self._close_door(standins.hosts[case.where])
            return
        fault = moved(case)
        services: dict[str, tuple[Conducts[Any], Conduct]] = {
            "listen": (standins.deepgram.listen.conducts, LISTEN),
            "flux": (standins.deepgram.flux.conducts, FLUX),
            "speak-socket": (standins.deepgram.speak_socket.conducts, SPEAK_SOCKET),
            "speak": (standins.deepgram.speak.conducts, SPEAK),
            "chat": (standins.groq.conducts, CHAT),
        }
        conducts, healthy = services[case.where]
        ahead = [healthy] if (case.where, case.phase) == ("speak", "while speaking") else []
        conducts.once(*ahead, fault)
        if case.standing:
            conducts.rule = FAULTS[case.where][case.fault]

    def _close_door(self, host: HttpServer) -> None:
        door: Door = HOST_FAULTS[self._case.fault]
        if self._case.standing:
            host.door = door
        elif door == "refuse":
            host.door = door
            self._nursery.start_soon(self._open_again, host)
        else:
            first = host.connections_total + 1
            host.door = lambda number: door if number == first else "open"

    async def _open_again(self, host: HttpServer) -> None:
        await trio.sleep(SHUT_S)
        host.door = "open"


def moved(case: Case) -> Conduct:
    """Return the fault with its moment, if it has one, in the phase of the case."""
    fault: Conduct = FAULTS[case.where][case.fault]
    moments: dict[str, Any] = {}
    for name in fault.changes():
        if name.endswith("_after_bytes") and case.where in ("listen", "flux"):
            moments[name] = LISTEN_BYTES.get(case.phase)
        elif name.endswith("_after_bytes") and case.where == "speak-socket":
            moments[name] = SPEECH_BYTES.get(case.phase)
        elif name.endswith("_after_bytes") and case.where == "chat":
            moments[name] = CHAT_BYTES if case.phase == "while speaking" else None
        elif name.endswith("_after_tokens"):
            moments[name] = CHAT_TOKENS if case.phase == "while speaking" else None
    return replace(fault, **{name: value for name, value in moments.items() if value is not None})


def has_moment(where: str, fault: str) -> bool:
    """Return whether a fault is of a moment in an answer."""
    return any(value for name, value in FAULTS[where][fault].changes().items() if "_after_" in name)


async def hold(case: Case) -> Held:
    """Hold the call of a case."""
    parts = PARTS.get(case.where, {})
    async with open_scene(parts) as (standins, server), trio.open_nursery() as nursery:
        trouble = Trouble(case, standins, nursery)
        if case.phase == "at boot":
            # The server has begun to learn; what it knows so far does not matter.
            trouble.tell("at boot")
        else:
            await know_phrases(standins, server)
        held = await call_in(standins, server, trouble.tell)
        nursery.cancel_scope.cancel()
    return held


def problems(case: Case, held: Held) -> list[str]:
    """Return what is wrong with how the call went."""
    found = []
    limit_s = Limits(plan_of(load(SETTINGS))).of(case.where, case.phase)
    if held.recording.ended.by == "limit":
        found.append("stuck")
    if held.silence_s > limit_s + slack_s() + held.behind_s:
        found.append(f"silent for {held.silence_s:.1f} s, {limit_s:.1f} s allowed")
    if held.outcome not in case.outcomes:
        found.append(f"ended with {held.outcome.value}")
    heard = held.apologised if case.outlasts else held.answered
    if held.outcome is Outcome.HUNG_UP and not heard:
        found.append("the last turn was not answered")
    if held.outcome is not Outcome.HUNG_UP and not held.was_told:
        found.append("the caller was not told")
    met = case.fault in held.met
    if case.where in HOSTS:  # a spare connection may meet it, and no request
        met = held.outcome is not Outcome.HUNG_UP
    # What fails at boot fails those who learn the phrases, and not a call. Nor does a socket that
    # could not be had in advance.
    ahead = case.phase == "at boot" or (
        case.where == "speak-socket" and case.phase == "at the start" and not case.standing
    )
    if case.fails and met and not ahead and not held.failures:
        found.append("nothing of it on the timeline")
    if held.left:
        found.append(f"left: {', '.join(held.left)}")
    return found


async def hold_all(cases: Sequence[Case], at_once: int = AT_ONCE) -> list[str]:
    """Hold the calls of these cases, some at once; return what was wrong, a line each."""
    wrong: list[str] = []
    limit = trio.CapacityLimiter(at_once)

    async def hold_one(case: Case) -> None:
        async with limit:
            with trio.move_on_after(CALL_S + 10) as patience:
                held = await hold(case)
                wrong.extend(f"{case}: {problem}" for problem in problems(case, held))
            if patience.cancelled_caught:
                wrong.append(f"{case}: did not end")

    async with trio.open_nursery() as nursery:
        for case in cases:
            if (case.where, case.fault) not in _CROWD:
                nursery.start_soon(hold_one, case)
    for case in cases:
        if (case.where, case.fault) in _CROWD:
            await hold_one(case)
    return sorted(wrong)


# ------------------------------------------------------------------ the matrix


def _phases(where: str, fault: str) -> tuple[Phase, ...]:
    """Return the phases that make a difference for a fault."""
    if where in ("deepgram", "groq"):
        return ("at the start", "in the greeting", "while thinking", "while speaking")
    if (where, fault) in _CROWD:
        return ("while thinking",)
    if where == "speak":  # the greeting is known beforehand, unless nothing could be learned
        return ("at boot", "while thinking", "while speaking")
    if where == "chat":  # asked once a turn
        return (
            ("while thinking", "while speaking")
            if has_moment(where, fault)
            else ("while thinking",)
        )
    if where == "speak-socket":  # what has no moment meets whoever connects
        later = ("while thinking", "while speaking")
        return ("at boot", *(later if has_moment(where, fault) else ("at the start",)))
    if where in ("listen", "flux") and has_moment(where, fault):
        return ("at the start", "in the greeting", "while thinking", "while speaking")
    return ("at the start",)


def matrix(*services: str) -> list[Case]:
    """Return all cases of these services and hosts."""
    return [
        Case(where, fault, phase, standing)
        for where in services
        for fault in FAULTS[where]
        for phase in _phases(where, fault)
        for standing in ((True,) if where == "twilio" else (False, True))
    ]


def sample(cases: list[Case], count: int, seed: str) -> list[Case]:
    """Return some of the cases: of each phase and variant as many, by a seed."""
    rng = random.Random(seed)
    heaps: dict[tuple[Phase, bool], list[Case]] = {}
    for case in rng.sample(cases, len(cases)):
        heaps.setdefault((case.phase, case.standing), []).append(case)
    taken = itertools.chain.from_iterable(itertools.zip_longest(*heaps.values()))
    return [case for case in taken if case is not None][:count]
