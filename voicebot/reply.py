"""A reply under way: what think, synth and speak share, and what it may be an answer to."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any, Literal

import trio

from voicebot import whose
from voicebot.failover import Witness
from voicebot.floor import Bell
from voicebot.parting import Parting
from voicebot.record import Journal, Outcome, Part, ProviderRequest, TurnRecord
from voicebot.reel import Reel
from voicebot.toolbox import Job
from voicebot.tries import name_of

Stage = Literal["first_text", "first_audio", "first_media"]  # of a reply


@dataclass(slots=True)
class OpenGuess:
    """What the caller has probably said, until it is known whether that is all."""

    text: str
    reply: Reply | None = None  # to it, once it is under way
    right: bool | None = None
    _settled: Bell = field(default_factory=Bell)

    def settle(self, right: bool) -> None:
        self.right = right
        self._settled.ring()

    async def is_right(self) -> bool:
        while self.right is None:
            await self._settled.wait()
        return self.right


@dataclass(slots=True)
class Reply:
    """A reply under way: what think, synth and speak share."""

    record: TurnRecord
    guess: OpenGuess | None = None  # what it answers, if that is not certain
    aside: bool = False  # it is said beside the conversation: in no history
    abandoned: bool = False  # the caller had the next turn before it could begin to speak
    begun: bool = False  # it is a turn: from now on it may be heard, and is on record
    reel: Reel = field(default_factory=Reel)
    moved: Bell = field(default_factory=Bell)  # the reel has grown, or was spoken further
    spoken: int = 0  # position up to which audio was handed to the writer
    heard: int = 0  # position up to which the caller heard it, once an epoch has ended
    pieces: list[str] = field(default_factory=list)  # each is a clause of the reel
    parts: list[int] = field(default_factory=list)  # how many pieces there were at each tool call
    running: list[tuple[float, Job]] = field(default_factory=list)  # tools, and since when
    # For who fills silence: a tool was asked for, or a sentence has ended or broken off.
    news: Bell = field(default_factory=Bell)
    failed: Outcome | None = None  # how the call ends if that happens again
    parting: Parting | None = None  # what ends the stream once this was heard,
    arguments: dict[str, Any] = field(default_factory=dict)  # of it,
    parting_id: str = ""  # and of the tool call that asked for it

    @property
    def text(self) -> str:
        """What the caller has probably said, if that is not certain."""
        return self.guess.text if self.guess is not None else ""

    def heard_parts(self) -> list[str]:
        """Return what was heard before the first tool calls, between them, and behind the last."""
        edges: list[int | None] = [0, *self.parts, None]
        return [
            self.reel.heard(self.heard, first or 0, behind)
            for first, behind in itertools.pairwise(edges)
        ]


class Notes:
    """The journal of a call, by Trio's clock."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    def note(self, what: str, **detail: Any) -> float:
        """Put an event on the timeline; return when it happened in the call."""
        return self.journal.note(trio.current_time(), what, **detail)

    def first(self, what: Stage, reply: Reply) -> None:
        """Note when a reply came so far, the first time, and once it is a turn."""
        if reply.begun and getattr(reply.record, what) is None:
            setattr(reply.record, what, self.note(what))


class Asked(Witness):
    """Puts each request for one part into the journal of a call, by Trio's clock."""

    def __init__(self, notes: Notes, part: Part) -> None:
        self._journal = notes.journal
        self._part = part

    def asked(self, provider: object) -> ProviderRequest:
        turn = None if self._part == "stt" else whose.turn.get()
        model = getattr(provider, "model", "")
        return self._journal.asked(trio.current_time(), self._part, name_of(provider), turn, model)

    def accepted(self, request: ProviderRequest) -> None:
        request.accepted = self._journal.since(trio.current_time())

    def first(self, request: ProviderRequest) -> None:
        if request.first is None:
            request.first = self._journal.since(trio.current_time())

    def ended(self, request: ProviderRequest, failed: str = "") -> None:
        self._journal.answered(request, trio.current_time(), failed)
