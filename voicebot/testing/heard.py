"""What the caller heard of each reply: the truth, from the recording, for a summary's claim.

Media is told apart by the order of messages alone, so no delay of the network confuses it: a
mark names the turn and epoch whose media it follows, and each `clear` is one `silenced` on the
engine's timeline. How much of it was heard is the simulator's play-out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from voicebot.audio import BYTES_PER_MS
from voicebot.playout import Epoch
from voicebot.record import CallSummary
from voicebot.simulator import Recording
from voicebot.simulator.twilio_end import Clear, Mark, Media
from voicebot.testing.toy import spell


@dataclass(slots=True)
class _Span:
    """Where a media message was heard. Units: samples since the start of the stream."""

    start: int
    end: int
    epoch: Epoch


def heard_by_epoch(recording: Recording, summary: CallSummary) -> dict[Epoch, bytes]:
    """Return the audio that was heard of each epoch, in order, without holes between messages."""
    cleared, last = _epochs(summary)
    clears = iter(cleared)
    spans: list[_Span] = []
    unnamed = unplayed = 0  # spans from there on have no name yet; may be cut by a clear

    def name(epoch: Epoch) -> int:
        for span in spans[unnamed:]:
            span.epoch = epoch
        return len(spans)

    for happening in recording.happenings:
        match happening:
            case Media(_, audio, buffered_ms):
                if happening.effect_ms == math.inf:
                    continue  # the call was over before it arrived
                start = round((happening.effect_ms + buffered_ms) * BYTES_PER_MS)
                spans.append(_Span(start, start + len(audio), last))
            case Mark(_, mark):
                turn, n, _ = mark.split(".")
                unnamed = name(Epoch(int(turn), int(n)))
            case Clear():
                unnamed = name(next(clears, last))
                for span in spans[unplayed:]:
                    if happening.effect_ms < math.inf:
                        span.end = min(span.end, round(happening.effect_ms * BYTES_PER_MS))
                unplayed = len(spans)
    heard: dict[Epoch, bytearray] = {}
    for span in spans:
        audio = recording.heard[span.start : max(span.start, span.end)]
        heard.setdefault(span.epoch, bytearray()).extend(audio)
    return {epoch: bytes(audio) for epoch, audio in heard.items()}


def words_heard(text: str, stretches: Iterable[str]) -> str:
    """Return the words of a text that somebody has heard who has heard these stretches of it.

    The first stretch is of its beginning, each other one goes on from what was heard before, or
    from a little before that. A word counts from its middle on. Spaces do not matter.

    Raises:
        ValueError: a stretch is not of this text, or something was left out before it.
    """
    words = text.split()
    spelt = spell("".join(words))
    heard = 0  # characters
    for stretch in stretches:
        said = stretch.replace(" ", "")
        start = spelt.rfind(said, 0, heard + len(said))
        if start < 0:
            raise ValueError(f"{stretch!r} does not go on from {spelt[:heard]!r} in {text!r}")
        heard = max(heard, start + len(said))
    kept, start = 0, 0
    for word in words:
        if start + len(word) / 2 > heard:
            break
        start += len(word)
        kept += 1
    return " ".join(words[:kept])


def _epochs(summary: CallSummary) -> tuple[list[Epoch], Epoch]:
    """Return the epochs that ended in a clear, in order, and the last of all."""
    epoch = Epoch(0, 0)
    cleared = []
    for moment in summary.timeline:
        match moment.what:
            case "turn":
                epoch = Epoch(moment.detail["number"], 0)
            case "resumed" | "ducked":
                epoch = Epoch(epoch.turn, epoch.n + 1)
            case "silenced" if moment.detail["cleared"]:
                cleared.append(epoch)
    return cleared, epoch
