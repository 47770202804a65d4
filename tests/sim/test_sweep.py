"""Something happens at the n-th checkpoint of a whole conversation, for every n.

A checkpoint here is a step of one of the call's tasks. Right before the n-th, what turn-taking,
the socket or the server would do in one synchronous step is done; then everything must hold that
holds of random conversations, and the caller's next words must be answered. The conversation
has a greeting, an answer with tools of both kinds, a cough over the second answer, and a goodbye.

Every n with CI set; otherwise every seventh, with another beginning for each kind.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import trio

from tests.sim import world
from tests.sim.checks import violations
from tests.sim.conversation import Conversation
from tests.sim.focus import Act
from tests.sim.world import Held, World, hold
from voicebot import nursery
from voicebot.plan import CallPlan, Timeouts
from voicebot.ports import Final, Ports, ToolCall
from voicebot.record import Outcome
from voicebot.simulator import Network
from voicebot.testing import HeldCall, Reply, Run

WORDS = "aa77 bb78"
STRIDE = 1 if os.environ.get("CI") else 7
CALL_TASKS = ("write ", "listen ", "transcribe ", "tools ", "converse ", "think #", "synth #")

COUGH = Act("cough", "first_media", 2, 0.6)
CONVERSATION = Conversation(
    seed=0,
    network=Network(frame_ms=100),
    plan=CallPlan(
        "be brief",
        "hi1",
        apology="sorry",
        farewell="bye",
        timeouts=Timeouts(media_s=1.0),
        send_deadline_s=0.5,
    ),
    mode="provider",
    requests=("cc2 dd3", COUGH, "ee4", "ff5 gg6"),
    acts=(),
    replies=(
        Reply(
            "so7.",
            (ToolCall("a", "look", '{"n": 1}'), ToolCall("b", "book", '{"n": 1}')),
            first_s=0.05,
        ),
        Reply("it8. is9 in.", first_s=0.05, gap_s=0.05),
        Reply("bye10 bye11.", (ToolCall("c", "hang_up", "{}"),), first_s=0.05),
    ),
    tools=(("look", True, (Run(seconds=0.1),) * 2), ("book", False, (Run(seconds=0.3),) * 2)),
    speeches=(),
    openings=(),
)


class Swept(World):
    """Does something right before the n-th step of the call's tasks; None is never."""

    def __init__(
        self,
        what: Callable[[Swept], None] | None,
        n: int | None,
        conversation: Conversation,
    ) -> None:
        super().__init__(conversation)
        self.call: nursery._Call | None = None
        self.steps = 0
        self.acted = self.over = False
        self._what, self._n = what, n

    async def hold(self, ports: Ports, network: Network) -> HeldCall:
        counter = _Counter(self)
        trio.lowlevel.add_instrument(counter)
        try:
            return await super().hold(ports, network)
        finally:
            trio.lowlevel.remove_instrument(counter)

    def step(self) -> None:
        if self.steps == self._n and self._what is not None:
            self.acted = True
            self.over = self.call is not None and self.call.scope.cancel_called
            self._what(self)
        self.steps += 1

    async def barge_in_later(self) -> None:
        await trio.sleep(0.05)
        barge_in(self)

    def act(self, what: str) -> None:
        self._do(Act(what, "", 0, 0.0))


class _Counter(trio.abc.Instrument):
    def __init__(self, swept: Swept) -> None:
        self._swept = swept

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task.name.startswith(CALL_TASKS):
            self._swept.step()


def barge_in(swept: Swept) -> None:
    """Hear words, to the end of the caller's turn: stop, verdict and the next turn in one step."""
    assert swept.call is not None
    turns = swept.call._turns
    swept.call._obey(turns.transcript(Final(WORDS, end_of_turn=True), trio.current_time()))


def false_alarm(swept: Swept) -> None:
    """Hear a frame of something, which stops the bot, and no words behind it."""
    assert swept.call is not None
    swept.call._obey(swept.call._turns.frame(True, 20, trio.current_time()))


def twice(swept: Swept) -> None:
    """Hear a click, and words 50 ms later, before the verdict."""
    assert swept._later is not None
    false_alarm(swept)
    swept._later.start_soon(swept.barge_in_later)


def barge_in_and_hang_up(swept: Swept) -> None:
    """Hear words and `stop` before any task has taken a step."""
    barge_in(swept)
    swept.act("stop")


KINDS: dict[str, Callable[[Swept], None]] = {
    "barge-in": barge_in,
    "false alarm": false_alarm,
    "twice": twice,
    "hang-up": lambda swept: swept.act("stop"),
    "barge-in and hang-up": barge_in_and_hang_up,
    "dropped": lambda swept: swept.act("drop"),
    "drain": lambda swept: swept.act("drain"),
}


@dataclass
class Result:
    held: Held
    swept: Swept


def run(
    monkeypatch: pytest.MonkeyPatch,
    kind: str | None,
    n: int | None,
    conversation: Conversation = CONVERSATION,
) -> Result:
    """Hold the conversation once."""
    swept = Swept(None if kind is None else KINDS[kind], n, conversation)

    class Call(nursery._Call):
        def __init__(self, *args: object) -> None:
            super().__init__(*args)  # type: ignore[arg-type]  # as they come
            swept.call = self

    with monkeypatch.context() as patch:
        patch.setattr(world, "World", lambda conversation: swept)
        patch.setattr(nursery, "_Call", Call)
        return Result(hold(conversation), swept)


def wrong(kind: str, result: Result) -> list[str]:
    """Return what is wrong with it."""
    problems = violations(result.held)
    summary = result.held.call.summary
    if kind in {"barge-in", "twice"} and not result.swept.over:
        taken = [turn for turn in summary.turns if WORDS in turn.caller]
        if len(taken) != 1:
            problems.append(f"the words are in {len(taken)} turns of the caller")
        elif not taken[0].heard and not taken[0].interrupted:
            problems.append("the words were not answered")
    return problems


def test_undisturbed_the_conversation_has_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(monkeypatch, None, None)
    summary = result.held.call.summary

    assert violations(result.held) == []
    assert summary.outcome is Outcome.BOT_HUNG_UP
    assert [turn.heard for turn in summary.turns] == [
        "hi1", "so7. it8. is9 in.", "bye10 bye11.",
    ]  # fmt: skip
    assert [tool.name for turn in summary.turns for tool in turn.tools] == ["look", "book"]
    assert summary.counts["resumes"] == 1
    assert result.swept.steps > 300


@pytest.mark.parametrize("kind", KINDS)
def test_everything_holds_whatever_step_it_comes_before(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = run(monkeypatch, None, None).swept.steps
    first = list(KINDS).index(kind) % STRIDE
    found = {}
    for n in range(first, steps, STRIDE):
        result = run(monkeypatch, kind, n)
        assert result.swept.acted
        if problems := wrong(kind, result):
            found[n] = problems

    assert found == {}


def test_a_noise_in_the_goodbye_never_keeps_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    farewell = replace(
        CONVERSATION,
        requests=("ee4",),
        plan=replace(CONVERSATION.plan, greeting=""),
        replies=CONVERSATION.replies[2:],
    )
    steps = run(monkeypatch, None, None, farewell).swept.steps
    for n in range(0, steps, STRIDE):
        summary = run(monkeypatch, "false alarm", n, farewell).held.call.summary
        assert summary.outcome is Outcome.BOT_HUNG_UP, n
