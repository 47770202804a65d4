"""What is known of a call: its turns, its timeline, its counters, and how it ended."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Final

TIMELINE_LENGTH: Final = 5_000  # events kept; an hour of lively talk has 2,000


class Outcome(enum.Enum):
    """How a call ended."""

    HUNG_UP = "hung_up"  # stop: the caller, or whoever ended the call at Twilio
    BOT_HUNG_UP = "bot_hung_up"  # the bot said goodbye, and it was heard
    SOCKET_CLOSED = "socket_closed"  # no stop: network, proxy or Twilio
    MEDIA_TIMEOUT = "media_timeout"
    PROTOCOL_ERROR = "protocol_error"
    SEND_TIMEOUT = "send_timeout"  # the peer takes no more bytes
    TOO_LONG = "too_long"
    NO_RECOGNITION = "no_recognition"  # the recogniser could not be kept open
    NO_SPEECH = "no_speech"  # synthesis failed again and again
    CRASHED = "crashed"  # a bug; logged with its traceback
    CANCELLED = "cancelled"  # the server stopped


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
class TurnRecord:
    """One turn as it went. Times are seconds since the call began, None if never reached."""

    number: int
    caller: str  # what the caller said; empty for the greeting
    began: float
    first_text: float | None = None
    first_audio: float | None = None
    first_media: float | None = None
    generated: str = ""
    heard: str = ""
    interrupted: bool = False
    goodbye: bool = False  # it ends the call, once it has been heard
    tools: list[ToolRecord] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class CallSummary:
    """What is known of a call when it is over."""

    call_sid: str
    stream_sid: str
    outcome: Outcome
    duration_s: float
    turns: tuple[TurnRecord, ...]
    timeline: tuple[Moment, ...]
    counts: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """Return the summary as plain values for JSON. Holds what was said."""
        return {**asdict(self), "outcome": self.outcome.value}


class Journal:
    """Collects what happens in one call. Times are seconds since `began`.

    `watch` is shown every event as it happens.
    """

    def __init__(self, began: float, watch: Callable[[Moment], None] | None = None) -> None:
        self._began = began
        self._watch = watch
        self.turns: list[TurnRecord] = []
        self.timeline: deque[Moment] = deque(maxlen=TIMELINE_LENGTH)
        self.counts: dict[str, float] = {}

    def note(self, now: float, what: str, **detail: Any) -> float:
        """Put an event on the timeline; return when it happened in the call."""
        moment = Moment(round(now - self._began, 3), what, detail)
        self.timeline.append(moment)
        if self._watch is not None:
            self._watch(moment)
        return moment.at

    def count(self, what: str, amount: float = 1) -> None:
        """Add to a counter."""
        self.counts[what] = self.counts.get(what, 0) + amount
