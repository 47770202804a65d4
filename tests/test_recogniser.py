"""A recogniser that is lost in the middle of what the caller says: no word is lost or doubled."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voicebot.patience import Endpointing
from voicebot.plan import CallPlan, Timeouts
from voicebot.ports import Ports, Recogniser
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


@settings(max_examples=40)
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
