"""Nobody says anything, or says nothing that is understood: what the bot says then, and when."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import trio
import trio.testing

from tests.fakes import FakeChat, FakeEar, FakeTwilio, FakeVoice, plan, ports
from tests.test_failing import canned
from voicebot.nursery import run_call
from voicebot.plan import Timeouts
from voicebot.ports import ToolCall
from voicebot.record import CallSummary, Outcome

Clock = trio.testing.MockClock

TIMES = Timeouts(idle_s=5.0, warning_s=0, filler_s=2.0)
TEXTS: dict[str, Any] = {
    "reprompts": ("There?", "Hello?"),
    "farewell": "Nobody.",
    "fillers": ("Wait.", "Still here."),
    "warning": "Soon.",
    "time_up": "Over.",
}
KNOWN = canned("Wait.", "Still here.")


async def call(
    voice: Sequence[tuple[float, float]] = (),
    says: Sequence[str] = (),
    *,
    stop_at: float = 60.0,
    ear: FakeEar | None = None,
    chat: FakeChat | None = None,
    timeouts: Timeouts = TIMES,
    **more: Any,
) -> CallSummary:
    socket = FakeTwilio(voice=list(voice), stop_at=stop_at)
    call = ports(ear or FakeEar(list(says)), chat or FakeChat(["Yes."] * 9), canned=KNOWN)
    return await run_call(socket, call, plan(timeouts=timeouts, **{**TEXTS, **more}))


def said(summary: CallSummary) -> list[tuple[float, str]]:
    """Return what the bot said, and when it was first heard of."""
    return [(round(turn.first_media or -1.0, 1), turn.heard) for turn in summary.turns]


# Silence.


async def test_a_caller_who_is_gone_is_asked_twice_and_let_go(autojump_clock: Clock) -> None:
    summary = await call(greeting="Hello.")

    [greeting, first, second, end] = said(summary)
    assert [text for _, text in (greeting, first, second, end)] == [
        "Hello.", "There?", "Hello?", "Nobody.",
    ]  # fmt: skip
    heard_s = 0.3  # a text of six letters
    assert first[0] == pytest.approx(greeting[0] + heard_s + 5.0, abs=0.3)
    assert second[0] == pytest.approx(first[0] + heard_s + 5.0, abs=0.3)
    assert summary.outcome is Outcome.NO_CALLER


async def test_the_silence_counts_from_what_was_heard_and_not_from_what_was_sent(
    autojump_clock: Clock,
) -> None:
    text = "One two three four five six seven eight nine ten eleven twelve thirteen."
    summary = await call(greeting=text, stop_at=13.0)

    [greeting, first] = summary.turns
    over = next(moment.at for moment in summary.timeline if moment.what == "turn_over")
    assert greeting.heard == text
    assert first.began == pytest.approx(over + 5.0, abs=0.05)


async def test_a_caller_who_is_to_begin_and_does_not_is_asked(autojump_clock: Clock) -> None:
    summary = await call(stop_at=7.0)
    assert [text for _, text in said(summary)] == ["There?"]
    assert said(summary)[0][0] == pytest.approx(5.1, abs=0.2)


async def test_who_answers_is_not_counted_as_gone(autojump_clock: Clock) -> None:
    summary = await call([(6.5, 7.0), (14.0, 14.5)], ["yes", "still yes"], stop_at=22.0)
    assert [text for _, text in said(summary)] == ["There?", "Yes.", "There?", "Yes.", "There?"]
    assert summary.outcome is Outcome.HUNG_UP


async def test_asking_can_be_interrupted_and_is_in_no_history(autojump_clock: Clock) -> None:
    chat = FakeChat(["Good."])
    text = "Are you still there, or has the line gone dead, or are you looking for something?"
    summary = await call([(6.5, 7.5)], ["here I am"], chat=chat, stop_at=10.0, reprompts=(text,))

    [asked, answered] = summary.turns
    assert asked.interrupted
    assert answered.heard == "Good."
    assert [message.role for message in chat.requests[0]] == ["system", "user"]


async def test_coughing_puts_it_off_by_a_moment_and_not_for_ever(autojump_clock: Clock) -> None:
    coughs = [(at, at + 0.4) for at in (1.0, 2.0, 3.0, 4.6)]
    summary = await call(coughs, [""] * 9, stop_at=9.0)
    [(at, text)] = said(summary)
    assert text == "There?"
    assert 6.3 < at < 7.5  # not over the last cough


@pytest.mark.parametrize("idle_s", [0.0, 100.0])
async def test_a_bot_may_wait_as_long_as_it_likes(autojump_clock: Clock, idle_s: float) -> None:
    summary = await call(timeouts=Timeouts(idle_s=idle_s), stop_at=50.0)
    assert said(summary) == []


# Said and not understood.


async def test_a_recogniser_that_says_nothing_leaves_nobody_in_silence(
    autojump_clock: Clock,
) -> None:
    ear = FakeEar([], delay=9.0)
    summary = await call([(1.0, 1.5)], ear=ear, stop_at=9.5)
    fillers = [moment.at for moment in summary.timeline if moment.what == "filler"]
    assert fillers[0] == pytest.approx(1.7 + 2.0, abs=0.3)  # the voice fell 0.2 s late
    assert [turn.heard for turn in summary.turns][:2] == ["Wait.", "There?"]


async def test_words_that_come_late_are_answered_behind_the_filler(autojump_clock: Clock) -> None:
    ear, chat = FakeEar(["tell me"], delay=2.3), FakeChat(["Yes."])
    long = "Waiting for what you have just said to be understood by those who listen to you."
    socket = FakeTwilio(voice=[(1.0, 2.0)], stop_at=9.0)
    summary = await run_call(
        socket,
        ports(ear, chat, canned=lambda piece: bytes(16_000) if piece in long else None),
        plan(timeouts=TIMES, **{**TEXTS, "fillers": (long,)}),
    )
    assert [turn.heard for turn in summary.turns] == [long, "Yes."]
    assert [message.content for message in chat.requests[0][1:]] == ["tell me"]


async def test_a_filler_whose_sound_is_not_known_is_not_tried(autojump_clock: Clock) -> None:
    ear = FakeEar([], delay=9.0)
    times = Timeouts(idle_s=0, filler_s=2.0)
    voice = [(1.0, 1.5)]
    summary = await call(voice, ear=ear, stop_at=8.0, timeouts=times, fillers=("Unknown.",))
    assert said(summary) == []


# Too long.

SHORT = Timeouts(call_s=20.0, warning_s=8.0, idle_s=0)


async def test_a_call_that_gets_too_long_is_warned_and_ended_with_a_goodbye(
    autojump_clock: Clock,
) -> None:
    summary = await call(timeouts=SHORT)
    assert [text for _, text in said(summary)] == ["Soon.", "Over."]
    assert [at for at, _ in said(summary)] == pytest.approx([12.1, 20.1], abs=0.15)
    assert summary.outcome is Outcome.TOO_LONG


async def test_a_call_shorter_than_its_warning_is_not_warned(autojump_clock: Clock) -> None:
    summary = await call(timeouts=Timeouts(call_s=5.0, warning_s=8.0, idle_s=0))
    assert [text for _, text in said(summary)] == ["Over."]


async def test_the_warning_waits_until_nobody_speaks(autojump_clock: Clock) -> None:
    text = "One two three four five six seven eight nine ten eleven twelve thirteen fourteen."
    chat = FakeChat([text])
    summary = await call([(9.0, 11.0)], ["count"], chat=chat, timeouts=SHORT)
    [count, warning, end] = summary.turns
    assert (count.heard, count.interrupted) == (text, False)
    assert warning.heard == "Soon."
    assert warning.began > 15.0
    assert end.heard == "Over."


async def test_the_warning_waits_for_a_caller_who_is_speaking(autojump_clock: Clock) -> None:
    summary = await call([(11.0, 14.0)], ["hello"], timeouts=SHORT)
    texts = [text for _, text in said(summary)]
    assert texts == ["Yes.", "Soon.", "Over."]


async def test_what_was_said_and_not_understood_is_asked_for_once(autojump_clock: Clock) -> None:
    voice = [(1.0, 2.0), (7.0, 8.0), (20.0, 21.0), (27.0, 28.0)]
    times = Timeouts(idle_s=0, filler_s=2.0)
    summary = await call(voice, ["", "", "hello", ""], timeouts=times, apology="Pardon?")
    texts = [text for _, text in said(summary)]
    assert texts == ["Pardon?", "Yes.", "Pardon?"]
    assert said(summary)[0][0] == pytest.approx(4.25, abs=0.15)
    assert summary.counts.get("thinking_failures", 0) == 0


async def test_a_voice_that_is_down_is_not_asked_to_bridge(autojump_clock: Clock) -> None:
    class Down(FakeVoice):
        async def _chunks(self, text: str, index: int) -> Any:
            raise AssertionError("a filler is known or not said")
            yield b""

    socket, ear = FakeTwilio(voice=[(1.0, 2.0)], stop_at=6.0), FakeEar([], delay=9.0)
    call = ports(ear, voice=Down(), canned=KNOWN)
    summary = await run_call(socket, call, plan(timeouts=TIMES, **TEXTS))
    assert summary.outcome is Outcome.HUNG_UP


# Time that the caller asks for.


async def asking_for_time(arguments: str) -> CallSummary:
    wait = ToolCall("x", "wait_for_caller", arguments)
    chat = FakeChat([[wait], "Take your time.", "Thanks."])
    return await call([(1.0, 2.0)], ["hold on", "got it"], chat=chat, stop_at=40.0)


@pytest.mark.parametrize(
    "arguments, until", [("{}", 62.0), ('{"seconds": 20}', 22.7), ('{"seconds": 1e9}', 302.0)]
)
async def test_a_caller_who_asks_for_time_has_it(
    autojump_clock: Clock, arguments: str, until: float
) -> None:
    summary = await asking_for_time(arguments)
    reprompts = [moment.at for moment in summary.timeline if moment.what == "reprompt"]
    if until > 40.0:
        assert reprompts == []
    else:
        assert reprompts[0] == pytest.approx(until, abs=0.3)


async def test_time_that_is_no_number_is_not_given(autojump_clock: Clock) -> None:
    summary = await asking_for_time('{"seconds": "long"}')
    assert summary.turns[0].tools[0].result == "seconds must be a number"
    assert "There?" in [turn.heard for turn in summary.turns]


async def test_who_is_back_is_asked_as_soon_as_anybody(autojump_clock: Clock) -> None:
    wait = ToolCall("x", "wait_for_caller", "{}")
    chat = FakeChat([[wait], "Take your time.", "Thanks."])
    voice = [(1.0, 2.0), (10.0, 11.0)]
    summary = await call(voice, ["hold on", "got it"], chat=chat, stop_at=19.0)
    assert [turn.heard for turn in summary.turns] == ["Take your time.", "Thanks.", "There?"]
