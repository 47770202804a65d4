"""A recogniser that is lost in the middle of what the caller says: no word is lost or doubled."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Literal

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.fakes import FakeChat, FakeEar, FakeTwilio, plan, ports
from voicebot.floor import Bell
from voicebot.nursery import run_call
from voicebot.patience import Endpointing
from voicebot.plan import CallPlan, Timeouts
from voicebot.ports import Final, Ports, Recogniser
from voicebot.record import Outcome
from voicebot.simulator import At, Script, WhenSilent
from voicebot.testing import HeldCall, Opening, ScriptedChat, ToyRecogniser, caller_says, hold
from voicebot.testing.call import toy_ports
from voicebot.tries import Alternatives, Retrying

Mode = Literal["provider", "local"]
SAID = "one two three four five six seven"
PLAN = CallPlan(
    "Be brief.",
    "",
    endpointing=Endpointing(guesses=0),
    timeouts=Timeouts(transcriber_pause_s=0.2),
)


def call(recogniser: ToyRecogniser, *texts: str, plan: CallPlan = PLAN) -> HeldCall:
    utterances = [
        caller_says(text, At(1.0) if not number else WhenSilent(0.5))
        for number, text in enumerate(texts or (SAID,))
    ]
    ports = toy_ports(chat=ScriptedChat(), recogniser=recogniser)
    return hold(Script(tuple(utterances), hang_up_after_s=25.0), ports, plan)


def said(held: HeldCall) -> list[str]:
    return " ".join(turn.caller for turn in held.summary.turns).split()


@pytest.mark.parametrize("mode", ["provider", "local"])
@pytest.mark.parametrize("after_ms", range(900, 5_000, 260))
def test_a_connection_that_drops_anywhere_loses_and_doubles_no_word(
    after_ms: int, mode: Mode
) -> None:
    recogniser = ToyRecogniser([Opening(drop_after_s=after_ms / 1_000)], mode=mode)

    held = call(recogniser)

    assert recogniser.opened == 2
    assert said(held) == SAID.split()
    assert held.summary.counts["recogniser_failures"] == 1
    assert held.summary.counts.get("unrecognised_ms", 0) == 0


@settings(max_examples=20)
@given(
    drops=st.lists(st.floats(0.3, 4.0), min_size=1, max_size=2),
    answer_s=st.floats(0.02, 0.5),
    endpointing_ms=st.sampled_from([100, 300]),
    mode=st.sampled_from(["provider", "local"]),
)
def test_however_often_it_drops_each_word_is_there_once(
    drops: list[float], answer_s: float, endpointing_ms: int, mode: Mode
) -> None:
    openings = [Opening(drop_after_s=drop, answer_s=answer_s) for drop in drops]
    recogniser = ToyRecogniser(
        openings, mode=mode, default=Opening(answer_s=answer_s), endpointing_ms=endpointing_ms
    )

    held = call(recogniser, "one two three", "four five six seven")

    assert said(held) == SAID.split()


def test_an_outage_in_which_nobody_hears_is_made_up_for() -> None:
    recogniser = ToyRecogniser(
        [Opening(drop_after_s=1.5), Opening(open_s=1.0, refuse=True)], mode="provider"
    )

    held = call(recogniser)

    assert said(held) == SAID.split()
    failures = [moment for moment in held.summary.timeline if moment.what == "provider_failed"]
    assert len(failures) == 2


def several(*recognisers: ToyRecogniser) -> Ports:
    parts = [Recogniser(one.open, one.mode) for one in recognisers]
    ports = toy_ports(chat=ScriptedChat())
    object.__setattr__(ports, "open_transcriber", Alternatives(parts, Retrying(3, 20.0)))
    object.__setattr__(ports, "endpointing", recognisers[0].mode)
    return ports


@pytest.mark.parametrize("after_ms", range(900, 4_500, 300))
def test_another_recogniser_goes_on_whoever_decides_with_it(after_ms: int) -> None:
    first = ToyRecogniser(
        [Opening(drop_after_s=after_ms / 1_000)], mode="provider", default=Opening(refuse=True)
    )
    second = ToyRecogniser(mode="local")
    script = Script((caller_says(SAID, At(1.0)),), hang_up_after_s=15.0)

    held = hold(script, several(first, second), PLAN)

    assert said(held) == SAID.split()
    assert first.opened in {1, 2}  # who has worked is asked again first
    assert second.opened == 1
    assert held.summary.outcome is Outcome.HUNG_UP


def test_who_is_given_up_is_given_up_after_as_many_tries_as_are_allowed() -> None:
    recogniser = ToyRecogniser(default=Opening(refuse=True))

    held = call(recogniser)

    assert recogniser.opened == PLAN.timeouts.transcriber_tries
    assert held.summary.outcome is Outcome.NO_RECOGNITION


def test_what_went_well_in_between_begins_the_count_anew() -> None:
    drops = [Opening(drop_after_s=6.0)] * 9
    recogniser = ToyRecogniser(drops, mode="provider")

    held = call(recogniser, *["one two three"] * 4)

    assert recogniser.opened > PLAN.timeouts.transcriber_tries
    assert said(held) == ["one", "two", "three"] * 4


class StrictEar:
    """Recognises what lies between the beginning of speech and a request, as whisper does.

    Each 20 ms of a voice are a word, so that a frame that is lost or doubled shows in `heard`.
    """

    def __init__(self) -> None:
        self.heard: list[int] = []  # how many frames of voice, at each request
        self._frames: list[bool] = []
        self._start: int | None = None
        self._answers = Bell()
        self._due: list[Final] = []

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[StrictEar]:
        await trio.lowlevel.checkpoint()
        yield self

    async def send(self, audio: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self._frames += [audio[i] != 0xFF for i in range(0, len(audio), 160)]

    def speech_started(self, ago_ms: int) -> None:
        if self._start is None:
            self._start = max(0, len(self._frames) - ago_ms // 20)

    async def finalize(self) -> None:
        await trio.lowlevel.checkpoint()
        said = sum(self._frames[self._start :]) if self._start is not None else 0
        self._start = None
        self.heard.append(said)
        self._due.append(Final("for two" if said else "", finalized=True))
        self._answers.ring()

    async def receive(self) -> Final:
        while not self._due:
            await self._answers.wait()
        return self._due.pop(0)


@pytest.mark.parametrize("until_ms", [None, 900, 1_500])
@pytest.mark.parametrize("lost_at", [1.7, 1.95, 2.05, 2.2])
async def test_who_must_be_asked_hears_the_rest_of_what_a_provider_has_heard(
    until_ms: int | None, lost_at: float, autojump_clock: MockClock
) -> None:
    """The caller speaks from 1.0 s to 2.0 s; some of that has been accounted for."""
    first, second = FakeEar([]), StrictEar()
    parts = [Recogniser(first.open, "provider"), Recogniser(second.open, "local")]
    both = ports(
        chat=FakeChat(["Yes."]),
        open_transcriber=Alternatives(parts, Retrying(3, 20.0)),
        endpointing="provider",
    )
    socket = FakeTwilio(voice=[(1.0, 2.0)], stop_at=6.0)

    async def lose() -> None:
        await trio.sleep(1.6)
        if until_ms is not None:
            first.push(Final("a table", until_ms=until_ms))
        await trio.sleep(lost_at - 1.6)
        first.fail_after_bytes, first.fail_opens = 0, 99

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lose)
        summary = await run_call(socket, both, plan())

    assert [frames for frames in second.heard if frames] == [25 if until_ms == 1_500 else 50]
    said_before = "a table " if until_ms is not None else ""
    assert [turn.caller for turn in summary.turns] == [f"{said_before}for two"]
    assert "unrecognised_ms" not in summary.counts


async def test_a_provider_is_never_asked(autojump_clock: MockClock) -> None:
    ear = FakeEar(["asked"])
    socket = FakeTwilio(voice=[(1.0, 2.0)], stop_at=6.0)

    summary = await run_call(socket, ports(ear, endpointing="provider"), plan(apology="Pardon?"))

    assert ear.texts == ["asked"]
    assert [turn.heard for turn in summary.turns] == ["Pardon?"]


async def test_speech_that_was_too_long_to_be_told_again_is_counted(
    autojump_clock: MockClock,
) -> None:
    ear = FakeEar(["hello"], fail_after_bytes=14 * 8_000)
    socket = FakeTwilio(voice=[(1.0, 15.0)], stop_at=20.0)

    summary = await run_call(socket, ports(ear, FakeChat(["Yes."])), plan())

    # Speech began at 1.06 s by the ears; of what was said until the next is there, at 14.5 s, the
    # last ten seconds are kept.
    assert summary.counts["unrecognised_ms"] == pytest.approx(3_450, abs=100)
    assert [turn.caller for turn in summary.turns] == ["hello"]


async def test_what_fails_is_in_the_timeline_with_who_it_was(autojump_clock: MockClock) -> None:
    ear = FakeEar(["hello"], fail_after_bytes=8_000)
    socket = FakeTwilio(voice=[(3.0, 4.0)], stop_at=8.0)

    summary = await run_call(socket, ports(ear, FakeChat(["Yes."])), plan())

    whats = [moment.what for moment in summary.timeline]
    assert whats.count("recogniser_failed") == whats.count("provider_failed") == 1
    [failed] = [moment for moment in summary.timeline if moment.what == "provider_failed"]
    assert failed.detail["provider"] == "ear"
