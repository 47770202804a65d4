"""Conversations made so that one event meets one phase of the call.

Chance alone rarely meets the first frame of a reply, or the 200 ms in which all is sent and
Twilio still plays. Here the parts are given the delays that make a phase long enough, and the
event is tied to the moment of the timeline at which the phase begins. Whether they met is not
decided here: `phases.py` looks.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from voicebot.ports import ToolCall
from voicebot.testing import Reply, Run, Speech

# From the cue to the ears' decision: the frame under way, a gap, three frames.
LEAD_S: Final = 0.3
SPOKEN: Final = frozenset({"words", "stop word", "cough", "backchannel", "twice"})

#: What may be aimed at a phase.
AIMED: Final = (
    *("words", "stop word", "cough", "backchannel", "twice", "dtmf"),
    *("stop", "drop", "half-open", "stall", "protocol error", "drain", "recogniser drops"),
    *("model fails", "voice fails"),
)


#: Phases in which something is heard, or was.
_WITH_AUDIO: Final = frozenset(
    {"greeting", "verdict pending", "first frame", "speaking", "after resume", "goodbye"}
)

#: How many words into the second sentence a model breaks off, to be in the phase.
_FAILS: Final = {
    "between tokens": (1, 8),
    "first frame": (6, 6),
    "between sentences": (5, 8),
    "after resume": (13, 22),
}


@dataclass(frozen=True, slots=True)
class Act:
    """Something that happens `delay_s` after the `nth` time that `anchor` happens."""

    what: str
    anchor: str
    nth: int
    delay_s: float
    words: str = ""


class Names:
    """Words that no other sentence has, so that what was heard tells where it is from."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._count = 0

    def word(self) -> str:
        self._count += 1
        letters = "".join(self._chance.choice("abcdefghijklmnop") for _ in range(2))
        return f"{letters}{self._count}"

    def sentence(self, least: int, most: int) -> str:
        return " ".join(self.word() for _ in range(self._chance.randint(least, most)))

    def said(self, what: str) -> str:
        """Return what a caller says, or presses, who does that."""
        match what:
            case "words":
                return self.sentence(1, 4)
            case "twice":
                return self.sentence(1, 3)
            case "stop word":
                return f"stop {self.word()}"
            case "backchannel":
                return self._chance.choice(("mm-hm", "yeah", "okay", "right", "uh-huh"))
            case "dtmf":
                return self._chance.choice("0123456789*#")
        return ""


@dataclass(frozen=True, slots=True)
class Focus:
    """A phase, what is to meet it, and what the parts do to make that likely."""

    phase: str
    greeted: bool
    acts: tuple[Act, ...]
    replies: tuple[Reply, ...]
    speeches: tuple[Speech, ...] = ()
    tools: tuple[tuple[str, bool, tuple[Run, ...]], ...] = ()


def draw_focus(chance: random.Random, names: Names) -> Focus:
    """Draw a phase, an event, and a conversation for them."""
    phase, what = chance.choice(tuple(_PHASES)), chance.choice(AIMED)
    return _PHASES[phase](_Aim(chance, names, phase, what))


class _Aim:
    """Builds the parts of a focus."""

    def __init__(self, chance: random.Random, names: Names, phase: str, what: str) -> None:
        self.chance, self.names, self.phase, self.what = chance, names, phase, what
        self.greeted = phase == "greeting" or chance.random() < 0.5
        self.n = 1 + self.greeted  # which `turn`, `first_text`, … is the first reply's
        self.spoken = what in SPOKEN

    def act(self, anchor: str, nth: int, low: float, high: float) -> tuple[Act, ...]:
        """Return the event, between two times after a moment. A failure is none of the acts."""
        if self.what in {"model fails", "voice fails"}:
            return ()
        delay = max(0.0, self.chance.uniform(low, high))
        return (Act(self.what, anchor, nth, delay, self.names.said(self.what)),)

    def reply(self, least: int = 8, most: int = 14, **changes: object) -> Reply:
        """Return a reply of so many words, which breaks off if that is the event."""
        text = self.names.sentence(least, most) + "."
        if self.what == "model fails":
            words = len(text.split())
            if self.phase == "before first token":
                return Reply(text, gap_s=0.25, fail_after=self.chance.randint(0, words))
            # A second sentence, or there would be no text when it breaks off.
            text = f"{text} {self.names.sentence(24, 28)}."
            low, high = _FAILS.get(self.phase, (1, 12))
            return Reply(text, gap_s=0.12, fail_after=words + self.chance.randint(low, high))
        return Reply(text, **changes)  # type: ignore[arg-type]  # fields of a Reply

    def speech(self, **changes: object) -> tuple[Speech, ...]:
        """Return how a piece is spoken, which breaks off if that is the event."""
        if self.what == "voice fails":
            if self.phase not in _WITH_AUDIO:
                # Of which nothing was heard is tried once more.
                return (Speech(first_s=self.chance.uniform(0.1, 0.6), fail_after_ms=0),) * 2
            if self.phase == "first frame":
                return (Speech(first_s=0.7, speed=1.2, chunk_ms=20, fail_after_ms=60),)
            late = self.phase == "after resume"
            fails = self.chance.choice((2_000, 2_800, 3_600) if late else (130, 400, 900, 1_500))
            return (Speech(speed=1.2, fail_after_ms=fails),)
        return (Speech(**changes),)  # type: ignore[arg-type]  # fields of a Speech

    def cough(self) -> tuple[Act, ...]:
        """Return a stop in the first reply that is not meant."""
        return (Act("cough", "first_media", self.n, self.chance.uniform(0.1, 0.5)),)

    def focus(self, acts: tuple[Act, ...], *replies: Reply, **changes: object) -> Focus:
        """Put the parts together."""
        return Focus(self.phase, self.greeted, acts, replies, **changes)  # type: ignore[arg-type]  # fields of a Focus


def _greeting(aim: _Aim) -> Focus:
    acts = aim.act("first_media", 1, 0.0, 1.5)
    return aim.focus(acts, aim.reply(), speeches=aim.speech())


def _listening(aim: _Aim) -> Focus:
    return aim.focus(aim.act("turn_over", 1, 0.0, 0.4), aim.reply(2, 4))


def _verdict_pending(aim: _Aim) -> Focus:
    acts = aim.cough() + aim.act("interrupt", 1, 0.0, 0.15)
    return aim.focus(acts, aim.reply(12, 18), speeches=aim.speech())


def _before_first_token(aim: _Aim) -> Focus:
    return aim.focus(aim.act("turn", aim.n, 0.0, 0.8), aim.reply(first_s=1.5))


def _in_a_tool(aim: _Aim) -> Focus:
    name, once = aim.chance.choice((("look", False), ("book", True)))
    run = Run(seconds=2.0, close_s=aim.chance.choice((0.0, 0.0, 1.5)))
    text = aim.chance.choice(("", aim.names.sentence(4, 8) + "."))
    asks = Reply(text, (ToolCall("x", name, '{"n": 99}'),), first_s=0.1)
    return aim.focus(
        aim.act("tool", 1, 0.0, 1.2), asks, aim.reply(),
        tools=((name, not once, (run,) * 4),), speeches=aim.speech() if text else (),
    )  # fmt: skip


def _between_tokens(aim: _Aim) -> Focus:
    acts = aim.act("first_text", aim.n, 0.0, 0.7)
    return aim.focus(acts, aim.reply(), speeches=aim.speech(first_s=1.2))


def _first_frame(aim: _Aim) -> Focus:
    acts = aim.act("first_media", aim.n, 0.0, 0.05)
    if aim.spoken:
        acts = aim.act("first_text", aim.n, 0.7 - LEAD_S + 0.03, 0.7 - LEAD_S + 0.1)
    return aim.focus(acts, aim.reply(), speeches=aim.speech(first_s=0.7))


def _speaking(aim: _Aim) -> Focus:
    return aim.focus(
        aim.act("first_media", aim.n, 0.1, 1.5), aim.reply(12, 18), speeches=aim.speech()
    )


def _between_sentences(aim: _Aim) -> Focus:
    # The first sentence lasts 0.4 s, and the second is 1.5 s in coming.
    speeches = (Speech(speed=50.0), *aim.speech(first_s=1.5))
    low, high = (0.3, 1.0) if aim.spoken else (0.5, 1.3)
    reply = aim.reply(1, 1)
    if aim.what != "model fails":
        reply = Reply(f"{reply.text} {aim.names.sentence(5, 9)}.")
    return aim.focus(aim.act("first_media", aim.n, low, high), reply, speeches=speeches)


def _last_byte_sent(aim: _Aim) -> Focus:
    reply = aim.reply(3, 4)
    acts = aim.act("sent", aim.n, 0.0, 0.15)
    if aim.spoken:
        # All is sent 0.2 s before it has played; a character lasts 50 ms.
        sent = 0.05 * len(reply.text) - 0.05
        acts = aim.act("first_media", aim.n, sent - LEAD_S, sent - LEAD_S + 0.2)
    return aim.focus(acts, reply, speeches=aim.speech(speed=100.0))


def _after_resume(aim: _Aim) -> Focus:
    acts = aim.cough() + aim.act("resumed", 1, 0.0, 1.0)
    return aim.focus(acts, aim.reply(18, 26), speeches=aim.speech())


def _goodbye(aim: _Aim) -> Focus:
    text = aim.names.sentence(8, 14) + "."
    reply = Reply(text, (ToolCall("x", "hang_up", "{}"),), gap_s=0.0)
    return aim.focus(
        aim.act("first_media", aim.n, 0.0, 1.5), reply, aim.reply(), speeches=aim.speech()
    )


_PHASES: Final[dict[str, Callable[[_Aim], Focus]]] = {
    "greeting": _greeting,
    "listening": _listening,
    "verdict pending": _verdict_pending,
    "before first token": _before_first_token,
    "in a tool": _in_a_tool,
    "between tokens": _between_tokens,
    "first frame": _first_frame,
    "speaking": _speaking,
    "between sentences": _between_sentences,
    "last byte sent": _last_byte_sent,
    "after resume": _after_resume,
    "goodbye": _goodbye,
}
