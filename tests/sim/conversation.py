"""A random conversation, drawn from one source of chance: who says what, and what goes wrong when.

Plain data. `world.py` holds the conversation, `checks.py` judges it. All chance is in here and in
the seed of the scheduler, so a conversation is named by its seed.

An *act* is something that happens at a moment of the engine's own timeline (the second
`first_media`, 40 ms later), because that is how the rare places are met: a caller who speaks at
random times meets the first frame of a reply once in a hundred calls.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final, Literal

from tests.sim.focus import Act, Names, draw_focus
from voicebot.plan import CallPlan, Timeouts
from voicebot.playout import Pacing
from voicebot.ports import ToolCall
from voicebot.simulator import Network
from voicebot.testing import Opening, Reply, Run, Speech
from voicebot.turns import Interruption

#: Moments of the timeline at which something may happen. Common ones come more than once.
ANCHORS: Final = (
    *("turn", "first_text", "first_audio", "first_media", "first_media", "first_media"),
    *("tool", "tool_done", "interrupt", "silenced", "confirmed", "refuted", "resumed"),
    *("end_of_turn", "recogniser_failed", "thinking_failed", "synthesis_failed"),
)

#: What the caller may do, and what may happen to the call; how often, relative to each other.
ACTS: Final = {
    "words": 20,
    "stop word": 10,
    "cough": 12,
    "backchannel": 12,
    "twice": 6,  # a click and then words, within 100 ms
    "dtmf": 5,
    "stop": 6,  # the caller hangs up
    "drop": 4,  # the socket is gone, without stop
    "half-open": 3,  # nothing comes any more, and nobody says so
    "stall": 3,  # the peer takes no more bytes
    "protocol error": 3,
    "drain": 4,  # the server stops
    "recogniser drops": 4,
}
SPEECH: Final = frozenset({"words", "stop word", "cough", "backchannel", "twice", "dtmf"})
ENDS: Final = frozenset({"stop", "drop", "half-open", "stall", "protocol error", "drain"})


@dataclass(frozen=True, slots=True)
class Conversation:
    """Everything that decides how a call goes."""

    seed: int  # of the scheduler
    network: Network
    plan: CallPlan
    mode: Literal["local", "provider"]  # who ends the caller's turns: "local" or "provider"
    requests: tuple[str | Act, ...]  # what the caller says in order: in turn, or on cue
    acts: tuple[Act, ...]  # that are not the caller's
    replies: tuple[Reply, ...]
    tools: tuple[tuple[str, bool, tuple[Run, ...]], ...]  # name, idempotent, runs
    speeches: tuple[Speech, ...]
    openings: tuple[Opening, ...]

    @property
    def faults(self) -> frozenset[str]:
        """Which parts misbehave, by name: what then may be excused."""
        found = {act.what for act in self.acts}
        if "recogniser drops" in found:
            found.add("recogniser")
        if any(o.refuse or min(o.drop_after_s, o.stall_after_s) < 1e6 for o in self.openings):
            found.add("recogniser")
        if any(r.fail_after is not None or r.stall_after is not None for r in self.replies):
            found.add("chat")
        if any(
            s.fail_after_ms is not None or s.stall_after_ms is not None or s.speed < 1.5
            for s in self.speeches
        ):
            found.add("voice")
        net = self.network
        if net.stalls:
            found.add("stalls")
        if net.lost_marks or net.late_marks or net.duplicate_marks or net.stray_marks:
            found.add("marks")
        return frozenset(found)


#: Phases that take a stop which was not meant.
_RESUMED: Final = frozenset({"verdict pending", "after resume"})


def draw(chance: random.Random) -> Conversation:
    """Draw a conversation.

    Most have a *focus*: one phase and one event, and a conversation in which they are likely to
    meet. Around it everything is drawn freely.
    """
    frame_ms = 20 if chance.random() < 0.1 else 100
    names = Names(chance)
    focus = draw_focus(chance, names) if chance.random() < 0.8 else None
    greeted = focus.greeted if focus is not None else chance.random() < 0.8
    acts = [_act(chance, names) for _ in range(chance.choice((0, 0, 1, 2) if focus else (1, 2, 3)))]
    first = list(focus.acts) if focus is not None else []
    # A call ends once: of several ends the first drawn is kept.
    ends = [act for act in (*first, *acts) if act.what not in SPEECH][:1]
    requests: list[str | Act] = [names.sentence(1, 4) for _ in range(chance.choice((1, 1, 2)))]
    for act in acts:
        if act.what in SPEECH:
            requests.insert(chance.randrange(1, len(requests) + 1), act)
    place = 0 if focus is not None and focus.phase == "greeting" else 1
    requests[place:place] = [act for act in first if act.what in SPEECH]
    requests.append(names.sentence(2, 3))  # after all that, the caller must still be answered
    tools = focus.tools if focus is not None and focus.tools else _tools(chance)
    replies = _replies(chance, names, tools)
    speeches = tuple(_speech(chance) for _ in range(chance.choice((0, 0, 3, 8))))
    if focus is not None:
        replies[0:1] = focus.replies
        before = greeted and focus.phase != "greeting"
        speeches = (Speech(),) * before + focus.speeches + speeches
    return Conversation(
        seed=chance.randrange(2**31),
        network=_network(chance, frame_ms),
        plan=CallPlan(
            prompt="be brief",
            greeting=names.sentence(10, 16) if place == 0 else names.sentence(1, 6) * greeted,
            apology="sorry",
            farewell="cannot hear you bye",
            pacing=Pacing(),
            interruption=_interruption(chance, focus.phase if focus is not None else ""),
            timeouts=Timeouts(
                media_s=3.0, first_token_s=3.0, token_gap_s=2.0, first_audio_s=3.0, audio_gap_s=2.0
            ),
            send_deadline_s=2.0,
        ),
        mode="local" if chance.random() < 0.5 else "provider",
        requests=tuple(requests),
        acts=tuple(ends),
        replies=tuple(replies),
        tools=tools,
        speeches=speeches,
        openings=tuple(_opening(chance) for _ in range(chance.choice((0, 0, 0, 0, 0, 2)))),
    )


def _interruption(chance: random.Random, phase: str) -> Interruption:
    if phase in _RESUMED:
        return Interruption()
    policies: tuple[Literal["resume", "commit", "duck"], ...] = ("resume", "commit", "duck")
    policy = chance.choices(policies, (0.7, 0.15, 0.15))[0]
    return Interruption(
        policy=policy,
        duck_db=0.0,  # toy speech that is quieter reads as something else
        confirm_words=chance.choice((1, 1, 1, 2)),
        confirm_ms=chance.choice((0, 0, 0, 500)),
    )


def _act(chance: random.Random, names: Names) -> Act:
    what = chance.choices(tuple(ACTS), tuple(ACTS.values()))[0]
    delay = chance.choice(
        (0.0, chance.uniform(0, 0.1), chance.uniform(0, 0.6), chance.uniform(0, 3))
    )
    nth = chance.choice((1, 1, 1, 2, 2, 3))
    return Act(what, chance.choice(ANCHORS), nth, delay, names.said(what))


def _network(chance: random.Random, frame_ms: int) -> Network:
    if chance.random() < 0.4:
        return Network(frame_ms=frame_ms)

    def sometimes(probability: float, low: float, high: float) -> float:
        return chance.uniform(low, high) if chance.random() < probability else 0.0

    return Network(
        frame_ms=frame_ms,
        delay_ms=sometimes(0.7, 5, 80),
        jitter_ms=sometimes(0.7, 5, 80),
        batch_ms=chance.choice((0, 0, 0, 60, 200)),
        stalls=tuple(
            (chance.uniform(0.5, 12), chance.uniform(0.2, 1.2))
            for _ in range(chance.choice((0, 0, 0, 0, 1, 2)))
        ),
        lost_marks=sometimes(0.2, 0.02, 1.0),
        late_marks=sometimes(0.2, 0.02, 0.5),
        late_mark_ms=chance.choice((300.0, 700.0, 1_500.0)),
        duplicate_marks=sometimes(0.15, 0.05, 0.5),
        stray_marks=sometimes(0.15, 0.05, 0.5),
        drift=sometimes(0.3, -0.004, 0.004),
        seed=chance.randrange(2**31),
    )


def _tools(chance: random.Random) -> tuple[tuple[str, bool, tuple[Run, ...]], ...]:
    return tuple(
        (
            name,
            idempotent,
            tuple(
                Run(
                    seconds=chance.choice((0.0, 0.2, 1.0, 3.0)),
                    error=ValueError("full") if chance.random() < 0.1 else None,
                    close_s=chance.choice((0.0, 0.0, 0.0, 0.5, 1.5)),
                )
                for _ in range(6)
            ),
        )
        for name, idempotent in (("look", True), ("book", False))
        if chance.random() < 0.6
    )


def _replies(
    chance: random.Random,
    names: Names,
    tools: tuple[tuple[str, bool, tuple[Run, ...]], ...],
) -> list[Reply]:
    replies: list[Reply] = []
    for number in range(12):
        sentences = [f"{names.sentence(1, 9)}." for _ in range(chance.choice((1, 1, 2, 3)))]
        text = " ".join(sentences)
        calls: list[ToolCall] = []
        if tools and chance.random() < 0.35:
            for _ in range(chance.choice((1, 1, 2))):
                name = chance.choice(tools)[0]
                # Often what was asked for before: a model that did not see the result.
                n = chance.choice((number, max(0, number - 1)))
                arguments = chance.choice((f'{{"n": {n}}}', f'{{"n": {n}}}', "{", "[1]"))
                calls.append(ToolCall("same-id", name, arguments))
            text = chance.choice(("", sentences[0]))
        elif chance.random() < 0.06:
            calls.append(ToolCall("h", "hang_up", "{}"))
            text = chance.choice(("", text))
        elif chance.random() < 0.02:
            text = ""
        fault = chance.random()
        words = len(text.split())
        replies.append(
            Reply(
                text,
                tuple(calls),
                first_s=chance.choice((0.0, 0.1, 0.3, 1.0)),
                gap_s=chance.choice((0.0, 0.01, 0.05, 0.3)),
                fail_after=chance.randint(0, words) if fault < 0.04 else None,
                stall_after=chance.randint(0, words) if 0.04 <= fault < 0.07 else None,
                close_s=chance.choice((0.0, 0.0, 0.0, 0.3, 1.5)),
            )
        )
    return replies


def _speech(chance: random.Random) -> Speech:
    fault = chance.random()
    return Speech(
        first_s=chance.choice((0.0, 0.05, 0.2, 0.8)),
        speed=chance.choice((1.2, 3.0, 10.0, 100.0)),
        chunk_ms=chance.choice((20, 35, 100, 250)),
        fail_after_ms=chance.choice((0, 130, 700)) if fault < 0.08 else None,
        stall_after_ms=chance.choice((0, 130, 700)) if 0.08 <= fault < 0.12 else None,
        close_s=chance.choice((0.0, 0.0, 0.3, 1.5)),
    )


def _opening(chance: random.Random) -> Opening:
    fault = chance.random()
    return Opening(
        open_s=chance.choice((0.0, 0.1, 1.0)),
        refuse=fault < 0.15,
        answer_s=chance.choice((0.0, 0.1, 0.3)),
        drop_after_s=chance.uniform(0.3, 10) if 0.15 <= fault < 0.35 else 1e9,
        stall_after_s=chance.uniform(0.3, 10) if 0.35 <= fault < 0.45 else 1e9,
        close_s=chance.choice((0.0, 0.0, 0.3, 1.0)),
    )
