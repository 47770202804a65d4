"""In which phase of a call something happened, and how often each phase met each event.

A phase is read off the engine's own timeline; the table that comes of it says what the random
conversations have tried.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from tests.sim.focus import LEAD_S
from tests.sim.world import Held
from voicebot.record import Moment
from voicebot.simulator.twilio_end import Media

PHASES: Final = (
    "greeting",
    "listening",
    "verdict pending",
    "before first token",
    "in a tool",
    "between tokens",  # there is text, and no audio yet
    "first frame",  # there is audio, and less than `FIRST_S` of it has played
    "speaking",
    "between sentences",  # all that was sent has played, and more is to come
    "last byte sent",  # all is sent, and Twilio still plays
    "after resume",
    "goodbye",
)

FIRST_S: Final = 0.1

#: What the columns count, in the words of the timeline or of the acts.
EVENTS: Final = (
    "barge-in",  # words
    "stop word",
    "cough",
    "backchannel",
    "twice",
    "dtmf",
    "stop",
    "drop",
    "half-open",
    "stall",
    "protocol error",
    "drain",
    "recogniser fails",
    "model fails",
    "voice fails",
)

_FAILURES: Final = {
    "recogniser_failed": "recogniser fails",
    "thinking_failed": "model fails",
    "synthesis_failed": "voice fails",
}

#: Pairs that cannot be, and why.
IMPOSSIBLE: Final = {
    **{
        ("listening", event): "there is nothing to interrupt"
        for event in ("barge-in", "stop word", "cough", "backchannel", "twice")
    },
    ("listening", "model fails"): "the model is not asked",
    ("listening", "voice fails"): "nothing is to be spoken",
    ("greeting", "model fails"): "the greeting is a fixed text",
    ("in a tool", "model fails"): "the model has given its answer, and waits for the result",
    ("goodbye", "model fails"): "the model has given its answer",
    ("last byte sent", "model fails"): "all text is there",
    ("last byte sent", "voice fails"): "all audio is there",
    ("before first token", "voice fails"): "there is nothing to speak yet",
}


def tally(held: Held) -> Counter[tuple[str, str]]:
    """Count (phase, event) of one conversation."""
    found: Counter[tuple[str, str]] = Counter()
    phases = _Phases(held)
    interrupts = [moment.at for moment in held.moments if moment.what == "interrupt"]
    for at, act, seen in held.done:
        what = "barge-in" if act.what == "words" else act.what
        if what in {"barge-in", "stop word", "cough", "backchannel", "twice"}:
            # The caller begins at the next frame, and the ears need three; it counts where it
            # was noticed.
            noticed = next((time for time in interrupts if at <= time <= at + 0.6), None)
            if noticed is None:
                # A second sound does not interrupt anew what is interrupted.
                if phases.at(at + LEAD_S) == "verdict pending":
                    found["verdict pending", what] += 1
                continue
            found[phases.at(noticed), what] += 1
        else:
            found[phases.at(at, seen), what] += 1
    for moment in held.moments:
        if moment.what in _FAILURES:
            found[phases.at(moment.at), _FAILURES[moment.what]] += 1
    return found


class _Phases:
    def __init__(self, held: Held) -> None:
        self._moments: Sequence[Moment] = held.moments
        began = held.call.recording
        # When each media message was taken off the line, and how long it lasts behind it.
        self._media = [
            (happening.at_ms / 1000, happening.buffered_ms / 1000 + len(happening.audio) / 8000)
            for happening in began.happenings
            if isinstance(happening, Media)
        ]
        self._greets = bool(held.conversation.plan.greeting)
        self._hang_ups = {
            moment.detail["number"]
            for moment in held.moments
            if moment.what == "turn" and held.call.summary.turns[moment.detail["number"]].goodbye
        }

    def at(self, when: float, seen: int | None = None) -> str:
        """Return the phase just before that time, or behind so many moments."""
        first: dict[str, float] = {}
        turn, epoch, over, pending, tools = -1, 0, True, False, 0
        for number, moment in enumerate(self._moments):
            if number == seen or (seen is None and moment.at >= when):
                break
            match moment.what:
                case "turn":
                    turn, epoch, over, pending = moment.detail["number"], 0, False, False
                    tools, first = 0, {}
                case "turn_over":
                    over = True
                case "interrupt":
                    pending = True
                case "confirmed" | "refuted":
                    pending = False
                case "resumed":
                    epoch += 1
                case "tool":
                    tools += 1
                case "tool_done":
                    tools -= 1
            first.setdefault(moment.what, moment.at)
        if over:
            return "listening"
        if pending:
            return "verdict pending"
        if turn == 0 and self._greets:
            return "greeting"
        if turn in self._hang_ups and "first_media" in first:
            return "goodbye"
        if epoch:
            return "after resume"
        if tools > 0:
            return "in a tool"
        if "first_text" not in first:
            return "before first token"
        if "first_audio" not in first:
            return "between tokens"
        if "first_media" not in first or when - first["first_media"] <= FIRST_S:
            return "first frame"
        if "sent" in first:
            return "last byte sent"
        playing = max((at + lasts for at, lasts in self._media if at <= when), default=0.0)
        return "speaking" if playing > when else "between sentences"


def table(found: Counter[tuple[str, str]]) -> str:
    """Return the counts as a table; a dash where the pair cannot be."""
    width = max(map(len, PHASES))
    lines = [" " * width + " ".join(f"{event:>16}" for event in EVENTS)]
    for phase in PHASES:
        cells = [
            "-" if (phase, event) in IMPOSSIBLE else str(found[phase, event]) for event in EVENTS
        ]
        lines.append(f"{phase:{width}}" + " ".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)
