"""Thinking begins before it is certain that the caller has finished. Virtual time."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from tests.fakes import FakeChat, FakeEar, FakeTool, FakeTwilio, FakeVoice, plan, ports
from voicebot import twilio
from voicebot.errors import ProviderError
from voicebot.nursery import run_call
from voicebot.patience import Endpointing
from voicebot.plan import Timeouts
from voicebot.ports import Final, LikelyEnd, Partial, ToolCall, Transcript, UtteranceEnd
from voicebot.record import CallSummary, Moment, Outcome
from voicebot.testing import run_seeded

Clock = trio.testing.MockClock

# The ears let go at 2.2 s, the words come 0.1 s later, and the silence is long enough at 3.2 s.
PATIENT = Endpointing(hangover_ms=1_000)
BOOK = ToolCall("x", "book", "{}")


async def call(
    replies: Sequence[str | Sequence[str | ToolCall]],
    voice: Sequence[tuple[float, float]] = ((1.0, 2.0),),
    says: Sequence[str] = ("for two",),
    *,
    stop_at: float = 10.0,
    guesses: int = 2,
    **parts: Any,
) -> tuple[CallSummary, FakeTwilio, FakeChat, list[Moment]]:
    socket = FakeTwilio(voice=list(voice), stop_at=stop_at)
    chat = parts.pop("chat", None) or FakeChat(replies)
    moments: list[Moment] = []
    patient = Endpointing(hangover_ms=1_000, guesses=guesses)
    before = trio.lowlevel.current_statistics().tasks_living
    summary = await run_call(
        socket,
        ports(FakeEar(list(says)), chat, parts.pop("voice_of_bot", None), **parts),
        plan(endpointing=patient),
        watch=moments.append,
    )
    assert trio.lowlevel.current_statistics().tasks_living == before
    return summary, socket, chat, moments


def at(moments: list[Moment], what: str) -> list[float]:
    return [moment.at for moment in moments if moment.what == what]


async def test_a_right_guess_is_heard_as_soon_as_the_turn_is_over(autojump_clock: Clock) -> None:
    summary, socket, chat, moments = await call(["Yes."])

    assert at(moments, "end_of_turn") == [pytest.approx(3.2, abs=0.03)]
    assert socket.times(twilio.SendMedia)[0] == pytest.approx(3.2, abs=0.03)
    assert [(turn.caller, turn.heard) for turn in summary.turns] == [("for two", "Yes.")]
    assert len(chat.requests) == 1
    assert [(m.role, m.content) for m in chat.requests[0]] == [
        ("system", "be brief"),
        ("user", "for two"),
    ]
    assert (summary.counts["guesses"], summary.counts["guesses_right"]) == (1, 1)


async def test_without_guesses_the_model_is_asked_when_the_turn_is_over(
    autojump_clock: Clock,
) -> None:
    summary, socket, _, _ = await call(["Yes."], guesses=0)

    assert socket.times(twilio.SendMedia)[0] > 3.3
    assert "guesses" not in summary.counts


async def test_nothing_of_a_wrong_guess_is_heard_or_on_record(autojump_clock: Clock) -> None:
    summary, socket, chat, moments = await call(
        ["Two it is.", "Two and a child."], [(1.0, 2.0), (2.8, 3.5)], ["for two", "and a child"]
    )

    assert [(turn.caller, turn.heard) for turn in summary.turns] == [
        ("for two and a child", "Two and a child.")
    ]
    assert socket.times(twilio.SendClear) == []
    assert min(socket.times(twilio.SendMedia)) > 4.5
    assert chat.cancelled == 0  # it had answered already
    assert [m.content for m in chat.requests[1]] == ["be brief", "for two and a child"]
    assert (summary.counts["guesses"], summary.counts["guesses_right"]) == (2, 1)
    # Also on the timeline there is but one turn, and what happened in it.
    for what in ("turn", "first_text", "first_audio", "first_media", "turn_over"):
        assert len(at(moments, what)) == 1


async def test_a_wrong_guess_cancels_the_model_and_the_voice(autojump_clock: Clock) -> None:
    chat = FakeChat(["One two three four.", "Yes."], first=0.1, gap=0.5)
    voice = FakeVoice()
    summary, _, _, _ = await call(
        [], [(1.0, 2.0), (2.8, 3.5)], ["for two", "please"], chat=chat, voice_of_bot=voice
    )

    assert chat.cancelled == 1
    assert summary.turns[-1].heard == "Yes."
    assert voice.texts == ["Yes."]


async def test_a_model_that_lets_go_slowly_delays_the_next_answer_only(
    autojump_clock: Clock,
) -> None:
    chat = FakeChat(["One.", "Yes."], first=1.0, slow_close=2.0)
    summary, _, _, moments = await call(
        [], [(1.0, 2.0), (2.8, 3.5)], ["for two", "please"], chat=chat
    )

    assert at(moments, "end_of_turn") == [pytest.approx(4.7, abs=0.03)]
    assert summary.turns[0].heard == "Yes."


async def test_no_tool_runs_for_a_guess(autojump_clock: Clock) -> None:
    tool = FakeTool(takes=0.1)
    summary, _, chat, moments = await call(
        [[BOOK], [BOOK], "Done."],
        [(1.0, 2.0), (2.8, 3.5)],
        ["for two", "no three"],
        tools=(tool.tool(),),
    )

    assert len(tool.started) == 1
    assert at(moments, "tool") >= at(moments, "end_of_turn")
    assert [m.role for m in chat.requests[-1]] == ["system", "user", "assistant", "tool"]
    assert summary.turns[0].heard == "Done."


@pytest.mark.parametrize("seed", range(8))
def test_a_tool_of_a_right_guess_runs_when_it_is_known_to_be_right(seed: int) -> None:
    """Whoever is woken first by that: the model, which asks for it, or the turn."""
    tool = FakeTool(takes=0.1)
    held = partial(call, [[BOOK], "Done."], tools=(tool.tool(),))
    summary, _, chat, moments = run_seeded(seed, held)

    [ran] = at(moments, "tool")
    assert ran == pytest.approx(3.2, abs=0.03)
    assert [m.role for m in chat.requests[-1]] == ["system", "user", "assistant", "tool"]
    assert summary.turns[0].heard == "Done."


@pytest.mark.parametrize("seed", range(8))
def test_a_right_guess_that_nobody_has_taken_yet_is_a_turn(seed: int) -> None:
    """What makes it certain comes right behind it."""

    async def speak(ear: FakeEar) -> None:
        await trio.sleep(2.21)  # the ears have just let go, so it is not certain yet
        ear.push(Final("for two", end_of_turn=True))
        ear.push(UtteranceEnd())

    async def held() -> CallSummary:
        ear = FakeEar([])
        socket, chat = FakeTwilio(voice=[(1.0, 2.0)], stop_at=5.0), FakeChat(["Yes."])
        provided = ports(ear, chat, endpointing="provider")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(speak, ear)
            summary = await run_call(socket, provided, plan(endpointing=PATIENT))
        return summary

    summary = run_seeded(seed, held)
    assert summary.counts["guesses"] == 1
    assert [(turn.caller, turn.heard) for turn in summary.turns] == [("for two", "Yes.")]


async def test_a_guess_does_not_outlive_the_recogniser(autojump_clock: Clock) -> None:
    """Nobody will ever say whether it was right."""

    class Dies(FakeEar):
        @asynccontextmanager
        async def open(self) -> AsyncIterator[FakeEar]:
            if self.opened:
                raise ProviderError("ear", "refused")
            async with super().open() as ear:
                yield ear

    ear = Dies(["for two"], fail_after_bytes=20_000)  # 2.5 s: a guess is under way
    chat, socket = FakeChat(["Yes."]), FakeTwilio(voice=[(1.0, 2.0)], stop_at=30.0)
    summary = await run_call(
        socket,
        ports(ear, chat),
        plan(
            endpointing=PATIENT,
            timeouts=Timeouts(transcriber_tries=2, transcriber_pause_s=0.1),
            farewell="Call again.",
        ),
    )

    assert summary.outcome is Outcome.NO_RECOGNITION
    assert [turn.heard for turn in summary.turns] == ["Call again."]
    assert summary.duration_s < 5.0


async def test_a_model_that_fails_for_a_guess_apologises_only_if_it_was_right(
    autojump_clock: Clock,
) -> None:
    chat = FakeChat(["One two.", "Yes."], fail_after=0)
    summary, _, _, _ = await call([], chat=chat)
    assert summary.turns[0].heard == plan().apology

    class FailsOnce(FakeChat):
        async def _words(self, parts: Sequence[str | ToolCall]) -> Any:
            self.fail_after = 0 if len(self.requests) == 1 else None
            async for word in super()._words(parts):
                yield word

    summary, _, _, _ = await call(
        [], [(1.0, 2.0), (2.8, 3.5)], ["for two", "please"], chat=FailsOnce(["One.", "Yes."])
    )
    assert [turn.heard for turn in summary.turns] == ["Yes."]


@pytest.mark.parametrize("stop_at", [2.4, 2.6, 3.0])
async def test_a_call_that_ends_in_a_guess_has_no_turn_of_it(
    stop_at: float, autojump_clock: Clock
) -> None:
    summary, socket, _, _ = await call(["Yes."], stop_at=stop_at)

    assert summary.outcome is Outcome.HUNG_UP
    assert summary.turns == ()
    assert socket.times(twilio.SendMedia) == []


async def test_a_right_guess_can_be_interrupted_like_any_reply(autojump_clock: Clock) -> None:
    long = "One two three four five six seven eight nine ten eleven twelve."
    summary, socket, chat, _ = await call(
        [long, "Sorry."], [(1.0, 2.0), (4.5, 5.2)], ["for two", "no stop"]
    )

    assert len(socket.times(twilio.SendClear)) == 1
    assert [turn.interrupted for turn in summary.turns] == [True, False]
    assert summary.turns[1].heard == "Sorry."
    assert [m.role for m in chat.requests[-1]] == ["system", "user", "assistant", "user"]


async def test_words_joined_to_a_turn_without_an_answer_are_in_the_guess(
    autojump_clock: Clock,
) -> None:
    """The caller goes on when the reply to the first words has not been heard."""
    chat = FakeChat(["One.", "One.", "Yes."], first=2.0)
    summary, _, _, _ = await call(
        [], [(1.0, 2.0), (3.6, 4.2)], ["for two", "and a child"], chat=chat, stop_at=12.0
    )

    assert [m.content for m in chat.requests[-1]] == ["be brief", "for two and a child"]
    assert summary.turns[-1].heard in {"One.", "Yes."}


@pytest.mark.parametrize("steps", range(6))
@pytest.mark.parametrize("goes_on", [True, False])
async def test_a_guess_and_its_end_in_the_very_same_moment(
    goes_on: bool, steps: int, autojump_clock: Clock
) -> None:
    """Whether or not somebody has taken it yet, no word is lost and none is answered twice."""
    ear = FakeEar([])
    socket = FakeTwilio(stop_at=9.0)
    chat = FakeChat(["Yes."] * 4)

    async def speak() -> None:
        await trio.sleep(1.0)
        ear.push(Partial("for two"))
        ear.push(Final("for two", end_of_turn=True))
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        if goes_on:
            ear.push(Final("and a child", end_of_turn=True))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(speak)
        summary = await run_call(
            socket, ports(ear, chat, endpointing="provider"), plan(endpointing=PATIENT)
        )
        nursery.cancel_scope.cancel()

    said = list(itertools.chain.from_iterable(turn.caller.split() for turn in summary.turns))
    assert said == ["for", "two", "and", "a", "child"] if goes_on else ["for", "two"]
    assert summary.turns[-1].heard == "Yes."


# A provider says that an end is likely.


async def provided(
    says: Sequence[tuple[float, Transcript]],
    voice: Sequence[tuple[float, float]] = ((1.0, 2.0),),
    replies: Sequence[str] = ("Yes.",),
) -> tuple[CallSummary, FakeTwilio, FakeChat, list[Moment]]:
    """Hold a call whose recogniser says all this, each at its time; the model takes 0.6 s."""
    ear = FakeEar([])
    chat = FakeChat(list(replies), first=0.6)
    socket = FakeTwilio(voice=list(voice), stop_at=9.0)
    moments: list[Moment] = []

    async def speak() -> None:
        began = trio.current_time()
        for at_s, transcript in says:
            await trio.sleep_until(began + at_s)
            ear.push(transcript)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(speak)
        summary = await run_call(
            socket,
            ports(ear, chat, endpointing="provider"),
            plan(endpointing=Endpointing()),
            watch=moments.append,
        )
    return summary, socket, chat, moments


async def test_a_likely_end_saves_the_time_of_thinking(autojump_clock: Clock) -> None:
    summary, socket, chat, moments = await provided(
        [
            (1.8, Partial("for two")),
            (2.3, LikelyEnd("for two")),  # the ears let go at 2.2 s
            (3.0, Final("For two.", end_of_turn=True)),
        ]
    )
    assert at(moments, "end_of_turn") == [pytest.approx(3.0, abs=0.03)]
    assert socket.times(twilio.SendMedia)[0] == pytest.approx(3.0, abs=0.03)
    assert [(turn.caller, turn.heard) for turn in summary.turns] == [("for two", "Yes.")]
    assert len(chat.requests) == 1
    assert (summary.counts["guesses"], summary.counts["guesses_right"]) == (1, 1)

    summary, socket, _, _ = await provided(
        [(1.8, Partial("for two")), (3.0, Final("For two.", end_of_turn=True))]
    )
    assert socket.times(twilio.SendMedia)[0] > 3.6  # what it takes to think


@pytest.mark.parametrize("by", ["turn resumed", "more words", "the voice"])
async def test_a_likely_end_that_is_taken_back_is_neither_heard_nor_on_record(
    by: str, autojump_clock: Clock
) -> None:
    told = {"turn resumed": "for two", "more words": "for two and"}
    goes_on = [(2.7, Partial(told[by]))] if by in told else []
    voice = [(1.0, 2.0), (2.6, 3.4)] if by == "the voice" else [(1.0, 2.0)]
    summary, socket, chat, moments = await provided(
        [
            (2.3, LikelyEnd("for two")),
            *goes_on,
            (3.5, Partial("for two and a child")),
            (3.9, Final("for two and a child", end_of_turn=True)),
        ],
        voice,
        ["Two it is.", "Two and a child."],
    )
    assert chat.cancelled == 1
    assert [(turn.caller, turn.heard) for turn in summary.turns] == [
        ("for two and a child", "Two and a child.")
    ]
    assert min(socket.times(twilio.SendMedia)) > 4.4
    assert [m.content for m in chat.requests[-1]] == ["be brief", "for two and a child"]
    assert summary.counts["guesses"] >= 1
    for what in ("turn", "first_text", "first_audio", "first_media", "turn_over"):
        assert len(at(moments, what)) == 1


async def test_an_end_with_other_words_than_the_likely_one_is_answered_and_nothing_else(
    autojump_clock: Clock,
) -> None:
    summary, _, chat, _ = await provided(
        [(2.3, LikelyEnd("for two")), (3.5, Final("for you", end_of_turn=True))],
        replies=["Two it is.", "For me?"],
    )
    assert [(turn.caller, turn.heard) for turn in summary.turns] == [("for you", "For me?")]
    assert len(chat.requests) == 2
    assert summary.counts.get("guesses_right", 0) == 0


async def test_an_end_that_is_said_twice_is_answered_once(autojump_clock: Clock) -> None:
    """The codec lets none pass; if one did, it would be no more than an empty turn or a new one."""
    summary, _, chat, _ = await provided(
        [
            (2.3, LikelyEnd("for two")),
            (2.9, Final("for two", end_of_turn=True)),
            (2.9, Final("", end_of_turn=True)),
        ]
    )
    assert [turn.caller for turn in summary.turns] == ["for two"]
    assert len(chat.requests) == 1
