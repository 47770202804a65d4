"""What is known of a call: its turns, its timeline, its counters, and how it ended."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal

# What is kept of a call has room in 1 MB with all else that it holds (`tests/test_memory.py`).
BARGE_INS: Final = 300  # the first; an hour in which the caller interrupts every 12 s
TIMELINE_LENGTH: Final = 1_000  # the newest events; half an hour of lively talk
TURNS: Final = 200  # the newest; half an hour of them. Where there is a database it has all
REQUESTS: Final = 500  # to providers, the newest; one for each sentence, some twenty minutes

#: What providers are asked for: to recognise, to answer, to speak.
Part = Literal["stt", "llm", "tts"]


class Outcome(enum.Enum):
    """How a call ended."""

    HUNG_UP = "hung_up"  # stop: the caller, or whoever ended the call at Twilio
    BOT_HUNG_UP = "bot_hung_up"  # the bot said goodbye, and it was heard
    TRANSFERRED = "transferred"  # the caller was put through to somebody
    PRESSING_KEYS = "pressing_keys"  # the bot presses keys, and comes back in another stream
    VOICEMAIL = "voicemail"  # a machine answered, and has the message
    SOCKET_CLOSED = "socket_closed"  # no stop: network, proxy or Twilio
    MEDIA_TIMEOUT = "media_timeout"
    PROTOCOL_ERROR = "protocol_error"
    SEND_TIMEOUT = "send_timeout"  # the peer takes no more bytes
    TOO_LONG = "too_long"
    NO_CALLER = "no_caller"  # nobody has said anything for long, although asked
    NO_RECOGNITION = "no_recognition"  # the recogniser could not be kept open
    NO_SPEECH = "no_speech"  # synthesis failed, and what is to be said about that as well
    NO_ANSWERS = "no_answers"  # replies failed one after the other
    CRASHED = "crashed"  # a bug; logged with its traceback
    SERVER_STOPPED = "server_stopped"  # it drained, and its time was over; the caller was told
    CANCELLED = "cancelled"  # the server stopped at once


@dataclass(frozen=True, slots=True)
class Moment:
    """Something that happened `at` seconds after the call began."""

    at: float
    what: str
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class ToolRecord:
    """A tool that a turn ran. Times as in `TurnRecord`; `result` is what the model was told."""

    name: str
    arguments: dict[str, Any]
    began: float
    ended: float | None = None
    result: str = ""


@dataclass(slots=True)
class BargeIn:
    """One interruption as it went. Times are seconds since the call began, None if never reached.

    `onset` to `silenced` is what the caller waits for: the bot is told to be silent.
    """

    turn: int  # the reply that was interrupted
    onset: float  # the caller's sound began
    noticed: float  # the ears, or a word, decided that it is a voice
    last_media: float | None = None  # of the reply, before it was stopped
    silenced: float | None = None  # `clear` written, or known to be needless
    cleared: bool = False
    echoed: float | None = None  # first mark that came back for the clear: Twilio has obeyed
    decided: float | None = None  # whether it was meant
    meant: bool | None = None
    resumed: float | None = None  # the reply goes on, because it was not


@dataclass(slots=True)
class TurnRecord:
    """One turn as it went. Times are seconds since the call began, None if never reached."""

    number: int
    caller: str  # what the caller said; empty for the greeting
    began: float
    fell: float | None = None  # the ears let go of the caller's voice, 0.3 s after its last sound
    first_text: float | None = None
    first_audio: float | None = None
    first_media: float | None = None
    generated: str = ""
    heard: str = ""
    interrupted: bool = False
    goodbye: bool = False  # it ends the call, once it has been heard
    tools: list[ToolRecord] = field(default_factory=list)


@dataclass(slots=True)
class ProviderRequest:
    """One try to have a provider do something. Times as in `TurnRecord`.

    Of the recogniser it is the whole stream. In no database: it is for traces and metrics.
    """

    part: Part
    provider: str
    turn: int | None  # None: of no turn, as the recogniser's, or of a guess that was wrong
    began: float
    accepted: float | None = None  # the response's headers, or an open socket
    first: float | None = None  # token, audio or words
    ended: float | None = None
    failed: str = ""  # one word of `errors.kind_of`; empty: it went well, or was not needed
    model: str = ""  # the language model's name
    again: bool = False  # because the one before has failed


@dataclass(frozen=True, slots=True)
class CallSummary:
    """What is known of a call when it is over.

    `peaks`: the most that queued, in seconds, by `metrics.QUEUES`.
    """

    call_sid: str
    stream_sid: str
    outcome: Outcome
    duration_s: float
    turns: tuple[TurnRecord, ...]
    timeline: tuple[Moment, ...]
    counts: dict[str, float]
    barge_ins: tuple[BargeIn, ...] = ()
    requests: tuple[ProviderRequest, ...] = ()
    peaks: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return what is kept of it as plain values for JSON. Holds what was said."""
        # The timeline is most of it, and `asdict` would take milliseconds to copy it.
        timeline = [{"at": m.at, "what": m.what, "detail": m.detail} for m in self.timeline]
        summary = asdict(replace(self, timeline=(), requests=()))
        del summary["requests"], summary["peaks"]
        return {**summary, "outcome": self.outcome.value, "timeline": timeline}


def joined(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> dict[str, Any]:
    """Return two streams of one call as one, both as `CallSummary.as_json` gives them."""
    if before is None:
        return dict(after)
    counts = dict(before["counts"])
    for what, amount in after["counts"].items():
        counts[what] = counts.get(what, 0) + amount
    rows = ("turns", "timeline", "barge_ins")
    return {**after, **{row: (*before[row], *after[row]) for row in rows}, "counts": counts}


class Journal:
    """Collects what happens in one call. Times are seconds since `began`.

    `watch` is shown every event as it happens, `on_request` every request to a provider that is
    over. `turns`: how many there were before, of a call that goes on.
    """

    def __init__(
        self,
        began: float,
        watch: Callable[[Moment], None] | None = None,
        *,
        turns: int = 0,
        on_request: Callable[[ProviderRequest], None] | None = None,
    ) -> None:
        self._began = began
        self._watch = watch
        self._on_request = on_request
        self.next_turn = turns  # the number of the turn that comes next
        self.turns: deque[TurnRecord] = deque(maxlen=TURNS)
        self.barge_ins: list[BargeIn] = []
        self._barge_in = BargeIn(-1, 0.0, 0.0)  # the newest; before the first, nobody's
        self.timeline: deque[Moment] = deque(maxlen=TIMELINE_LENGTH)
        self.counts: dict[str, float] = {}
        self.peaks: dict[str, float] = {}
        self.requests: deque[ProviderRequest] = deque(maxlen=REQUESTS)

    def begun(self, turn: TurnRecord) -> None:
        """Put a turn on record; the oldest goes where there are too many."""
        if len(self.turns) == TURNS:
            self.count("turns_left_out")
        self.turns.append(turn)
        self.next_turn += 1

    def note(self, now: float, what: str, **detail: Any) -> float:
        """Put an event on the timeline; return when it happened in the call."""
        moment = Moment(self.since(now), what, detail)
        self.timeline.append(moment)
        if self._watch is not None:
            self._watch(moment)
        return moment.at

    # One interruption after the other.

    def interrupted(self, now: float, onset: float, turn: int) -> None:
        """Begin the record of an interruption."""
        noticed = self.note(now, "interrupt", onset=self.since(onset))
        self.count("interruptions")
        self._barge_in = BargeIn(turn, self.since(onset), noticed)
        if len(self.barge_ins) < BARGE_INS:
            self.barge_ins.append(self._barge_in)

    def decided(self, now: float, meant: bool) -> None:
        """Note the verdict on the newest interruption."""
        what = "confirmed" if meant else "refuted"
        self._barge_in.decided, self._barge_in.meant = self.note(now, what), meant
        self.count(what)

    def silenced(self, now: float, heard_ms: int, cleared: bool, last_media: float | None) -> None:
        """Note that the reply is silent."""
        at = self.note(now, "silenced", heard_ms=heard_ms, cleared=cleared)
        if self._barge_in.silenced is None:  # a ducked reply is silenced twice
            self._barge_in.silenced, self._barge_in.cleared = at, cleared
            if last_media is not None:
                self._barge_in.last_media = self.since(last_media)

    def clear_echoed(self, now: float) -> None:
        """Note that a mark came back that proves nothing: for a clear, the first time."""
        if self._barge_in.cleared and self._barge_in.echoed is None:
            self._barge_in.echoed = self.since(now)

    def went_on(self, now: float) -> None:
        """Note that the reply is being spoken on."""
        if self._barge_in.meant is False and self._barge_in.resumed is None:
            self._barge_in.resumed = self.since(now)

    def asked(
        self,
        now: float,
        part: Part,
        provider: str,
        turn: int | None,
        model: str = "",
    ) -> ProviderRequest:
        """Begin the record of a request to a provider."""
        request = ProviderRequest(part, provider, turn, self.since(now), model=model)
        self.requests.append(request)
        return request

    def asked_for_nothing(self, turn: int) -> None:
        """Note that the requests of a turn were for a guess, and that it was wrong."""
        for request in self.requests:
            if request.turn == turn:
                request.turn = None

    def answered(self, request: ProviderRequest, now: float, failed: str = "") -> None:
        """End the record of a request."""
        request.ended, request.failed = self.since(now), failed
        if self._on_request is not None:
            self._on_request(request)

    def peak(self, queue: str, seconds: float) -> None:
        """Note how much queues, or for how long."""
        if seconds > self.peaks.get(queue, 0.0):
            self.peaks[queue] = round(seconds, 3)

    def since(self, now: float) -> float:
        """Return a time as seconds since the call began."""
        return round(now - self._began, 3)

    def count(self, what: str, amount: float = 1) -> None:
        """Add to a counter."""
        self.counts[what] = self.counts.get(what, 0) + amount


def tell_turns(tell: Callable[[list[dict[str, Any]]], None]) -> Callable[[TurnRecord], None]:
    """Return what takes each turn when it is over, and tells of it as plain values.

    A tool may return after its turn: such a turn is told again with the next ones.
    """
    unfinished: list[TurnRecord] = []

    def turn_over(turn: TurnRecord) -> None:
        turns = [*unfinished, turn]
        unfinished[:] = [t for t in turns if any(tool.ended is None for tool in t.tools)]
        tell([asdict(t) for t in turns])

    return turn_over
