"""Holds a call by a schedule of faults, in virtual time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from tests.sim.faults import (
    FIRST_TOKEN_S,
    SPEECH,
    TOKEN_GAP_S,
    Ask,
    Clock,
    FaultyChat,
    FaultyVoice,
    Schedule,
)
from tests.sim.focus import Act
from tests.sim.world import GAP, CountingChat, Done, Dropping, Held, Tampered
from voicebot.audio import silence
from voicebot.phrases import Phrases
from voicebot.ports import Chat, MediaSocket, Message, Ports, Synthesizer
from voicebot.record import Moment
from voicebot.sentences import SentenceSplitter
from voicebot.simulator import At, Cue, InterruptAfter, Script, Utterance, When, WhenSilent
from voicebot.testing import Reply, ToyEars, ToySynthesizer, hold_call, run_seeded, toy
from voicebot.testing.toy import PAUSE_MS
from voicebot.tries import Alternatives

PATIENCE_S = 10.0  # of a caller who hears nothing
LIMIT_S = 400.0  # of a call; what is stuck for ever ends here
ANSWER_S = 0.5  # from the end of a reply to the next words of a caller who waits for it


@dataclass
class FaultyHeld(Held):
    """A call that is over, with every request that was made in it."""

    asks: list[Ask] = field(default_factory=list)

    @property
    def schedule(self) -> Schedule:
        assert isinstance(self.conversation, Schedule)
        return self.conversation


class _World:
    """The caller's side: speaks when the schedule's manner says, and hangs up at last."""

    def __init__(self, schedule: Schedule, clock: Clock) -> None:
        self.schedule = schedule
        self.clock = clock
        self.moments: list[Moment] = []
        self.done: list[Done] = []
        self.socket: Tampered | None = None
        self.later: trio.Nursery | None = None
        self._cues = [Cue() for _ in schedule.answers]

    def between(self, socket: MediaSocket) -> MediaSocket:
        self.clock.began = trio.current_time()  # the engine's call begins in this step
        self.socket = Tampered(socket)
        return self.socket

    def script(self) -> Script:
        utterances = []
        for number, request in enumerate(self.schedule.answers):
            when: When = WhenSilent(0.8)
            if not number and not self.schedule.plan.greeting:
                when = At(1.0)
            elif self.schedule.manner == "interrupts" and number % 2:
                when = InterruptAfter(300)
            elif self.schedule.manner == "waits":
                when = self._cues[number]
            utterances.append(Utterance(request, GAP + toy.say(request), when))
        if self.schedule.manner == "waits":  # or the end of a filler would be the end of the call
            utterances.append(Utterance("", b"", Cue()))
        return Script(tuple(utterances), patience_s=PATIENCE_S, limit_s=LIMIT_S)

    def watch(self, moment: Moment) -> None:
        self.moments.append(moment)
        if moment.what == "turn_over" and self.schedule.manner == "waits":
            assert self.later is not None
            self.later.start_soon(self._go_on, moment)

    async def _go_on(self, over: Moment) -> None:
        """Say the next thing, or hang up, if the bot does not go on by itself."""
        seen = len(self.moments)
        await trio.sleep(ANSWER_S)
        if any(moment.what == "turn" for moment in self.moments[seen:]):
            return
        for cue in self._cues[0 if self.schedule.plan.greeting else 1 :]:
            if not cue.given:
                cue.give()
                return
        if self.socket is not None:
            act = Act("stop", "turn_over", 0, ANSWER_S)
            self.done.append(Done(over.at + ANSWER_S, act, len(self.moments)))
            self.socket.end("stop")


def hold_schedule(schedule: Schedule) -> FaultyHeld:
    """Hold the call of a schedule from its first message to the last task's end."""
    return run_seeded(schedule.seed, _hold, schedule)


async def _hold(schedule: Schedule) -> FaultyHeld:
    clock, asks = Clock(), list[Ask]()
    world, began = _World(schedule, clock), trio.current_time()

    def choose(messages: Sequence[Message]) -> Reply:
        said = messages[-1].content
        known = [answer for request, answer in schedule.answers.items() if request in said]
        return Reply(known[-1] if known else "what.", first_s=FIRST_TOKEN_S, gap_s=TOKEN_GAP_S)

    chat = CountingChat(choose)
    recogniser = Dropping(schedule)
    if not schedule.guesses:
        recogniser.likely_ms = float("inf")
    chats: list[Chat] = [FaultyChat(chat, p, asks, clock) for p in schedule.chats]
    voices: list[Synthesizer] = [
        FaultyVoice(ToySynthesizer(default=SPEECH), p, asks, clock) for p in schedule.voices
    ]
    rules = schedule.plan.timeouts.retrying
    ports = Ports(
        open_transcriber=recogniser.open,
        endpointing=recogniser.mode,
        chat=Alternatives(chats, rules),
        synthesizer=Alternatives(voices, rules),
        open_ears=ToyEars,
        canned=canned(schedule).get,
    )
    before = trio.lowlevel.current_statistics().tasks_living
    with trio.fail_after(LIMIT_S + 100):
        async with trio.open_nursery() as world.later:
            call = await hold_call(
                world.script(),
                ports,
                schedule.plan,
                network=schedule.network,
                watch=world.watch,
                between=world.between,
            )
            world.later.cancel_scope.cancel(reason="call is over")
    return FaultyHeld(
        schedule,
        call,
        world.moments,
        world.done,
        chat,
        {},
        recogniser,
        chat.most,
        trio.lowlevel.current_statistics().tasks_living - before,
        trio.current_time() - began,
        asks=asks,
    )


def canned(schedule: Schedule) -> dict[str, bytes]:
    """Return the sounds that are known beforehand, by piece."""
    if schedule.canned == "none":
        return {}
    pieces = Phrases(schedule.plan).missing
    if schedule.canned == "some":
        pieces = pieces[: 1 + schedule.seed % (len(pieces) - 1)]
    return {piece: toy.say(piece) + silence(PAUSE_MS) for piece in pieces}


def pieces_of(text: str) -> list[str]:
    """Return the pieces in which a text is spoken."""
    splitter = SentenceSplitter("en")
    return [*splitter.push(text), *splitter.flush()]
