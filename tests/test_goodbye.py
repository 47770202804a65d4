"""The bot hangs up: after its goodbye was heard, and not if the caller goes on."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import trio
import trio.testing

from tests.fakes import FakeChat, FakeEar, FakeTool, FakeTwilio, FakeVoice, plan, ports
from voicebot import twilio
from voicebot.errors import ProviderError
from voicebot.nursery import run_call
from voicebot.plan import Timeouts
from voicebot.ports import Final, Partial, ToolCall, Transcript
from voicebot.record import CallSummary, Outcome
from voicebot.turns import Interruption

Clock = trio.testing.MockClock

# The caller speaks from 1 to 2 s; the goodbye is audible from 2.8 s on, for 3 s.
GOODBYE = "Thank you very much for calling us today. Have a nice day."
HANG_UP = ToolCall("x", "hang_up", "{}")


class Carrier:
    """Ends calls, and notes what of the socket it finds."""

    def __init__(self, socket: FakeTwilio, takes: float = 0.1) -> None:
        self.socket, self.takes = socket, takes
        self.ended: list[tuple[str, float, int | None]] = []
        self.failure: Exception | None = None

    async def end(self, sid: str) -> bool:
        self.ended.append((sid, self.socket.now(), self.socket.closed))
        await trio.sleep(self.takes)
        if self.failure is not None:
            raise self.failure
        return True


async def call(
    replies: list[str | list[str | ToolCall]],
    voice: list[tuple[float, float]] | None = None,
    says: list[str] | None = None,
    *,
    carrier_takes: float = 0.1,
    failure: Exception | None = None,
    socket: FakeTwilio | None = None,
    synthesizer: FakeVoice | None = None,
    **changes: Any,
) -> tuple[CallSummary, FakeTwilio, FakeChat, Carrier]:
    """Run a call whose caller says something at 1 s, and maybe more."""
    socket = socket or FakeTwilio(voice=voice or [(1.0, 2.0)], stop_at=30.0)
    chat, carrier = FakeChat(replies), Carrier(socket, carrier_takes)
    carrier.failure = failure
    summary = await run_call(
        socket,
        ports(
            FakeEar(says or ["that is all"]), chat, synthesizer or FakeVoice(), hang_up=carrier.end
        ),
        plan(**changes),
    )
    return summary, socket, chat, carrier


async def test_the_goodbye_is_heard_then_the_carrier_is_told_then_the_socket_closed(
    autojump_clock: Clock,
) -> None:
    summary, socket, chat, carrier = await call([[GOODBYE, HANG_UP]])

    assert summary.outcome is Outcome.BOT_HUNG_UP
    assert summary.turns[0].heard == GOODBYE
    played_until = socket.played[-1][0] + len(socket.played[-1][1]) / 8_000
    [(sid, at, closed)] = carrier.ended
    assert (sid, closed) == ("CA1", None)
    assert at == pytest.approx(played_until, abs=0.05)
    assert socket.closed == 1000
    assert len(chat.requests) == 1


async def test_a_hang_up_without_a_word_asks_for_the_goodbye(autojump_clock: Clock) -> None:
    summary, _, chat, _ = await call([[HANG_UP], "Bye then."])

    assert chat.offered == [["hang_up"], []]
    assert (
        chat.requests[1][-1].content == "the call ends as soon as the caller has heard your goodbye"
    )
    assert summary.turns[0].heard == "Bye then."
    assert summary.outcome is Outcome.BOT_HUNG_UP


async def test_a_tool_asked_for_with_the_hang_up_is_run(autojump_clock: Clock) -> None:
    tool = FakeTool(takes=0.5)
    socket = FakeTwilio(voice=[(1.0, 2.0)], stop_at=20.0)
    chat = FakeChat([["Bye.", HANG_UP, ToolCall("y", "book", "{}")]])

    summary = await run_call(socket, ports(FakeEar(["bye"]), chat, tools=(tool.tool(),)), plan())

    assert tool.finished == 1
    assert summary.turns[0].heard == "Bye."
    assert summary.outcome is Outcome.BOT_HUNG_UP


async def test_a_model_that_hangs_up_without_any_word_still_says_goodbye(
    autojump_clock: Clock,
) -> None:
    summary, _, _, _ = await call([[HANG_UP], ""], goodbye="Bye.")

    assert summary.turns[0].heard == "Bye."
    assert summary.outcome is Outcome.BOT_HUNG_UP


async def test_barge_in_in_the_goodbye_cancels_the_hang_up(autojump_clock: Clock) -> None:
    summary, socket, chat, carrier = await call(
        [[GOODBYE, HANG_UP], "Of course.", [GOODBYE, HANG_UP]],
        voice=[(1.0, 2.0), (4.0, 5.0), (9.0, 10.0)],
        says=["that is all", "wait one more thing", "now that is all"],
    )

    assert len(socket.times(twilio.SendClear)) == 1
    assert [turn.heard for turn in summary.turns][1:] == ["Of course.", GOODBYE]
    assert chat.requests[1][2].content.startswith("Thank you very much")
    assert "interrupted by the caller" in chat.requests[1][2].content
    assert len(carrier.ended) == 1
    assert summary.outcome is Outcome.BOT_HUNG_UP


async def test_a_cough_in_the_goodbye_does_not_cancel_the_hang_up(autojump_clock: Clock) -> None:
    summary, _, _, _ = await call(
        [[GOODBYE, HANG_UP]], voice=[(1.0, 2.0), (4.0, 4.2)], says=["that is all", ""]
    )

    assert summary.outcome is Outcome.BOT_HUNG_UP
    assert summary.turns[0].heard == GOODBYE
    assert summary.counts["resumes"] == 1


async def test_a_noise_over_the_end_of_a_goodbye_does_not_outlast_the_recogniser(
    autojump_clock: Clock,
) -> None:
    # The goodbye is heard at 6 s or so, and the noise goes on until the call is over.
    socket = FakeTwilio(voice=[(1.0, 2.0), (5.6, 50.0)], stop_at=50.0)
    # That is too late to interrupt it and too early to be behind it, by a frame.
    ear, chat = FakeEar(["that is all"]), FakeChat([[GOODBYE, HANG_UP]], first=0.09)

    async def lose_the_recogniser() -> None:
        await trio.sleep(9.0)
        ear.fail_opens, ear.fail_after_bytes = 99, 0

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lose_the_recogniser)
        summary = await run_call(socket, ports(ear, chat), plan(farewell="I cannot hear you."))

    assert [turn.heard for turn in summary.turns] == [GOODBYE, "I cannot hear you."]
    assert not summary.turns[0].interrupted
    assert summary.outcome is Outcome.NO_RECOGNITION
    assert summary.duration_s < 20.0


@pytest.mark.parametrize("before_the_end", [0.14, 0.1, 0.08, 0.06, 0.04, 0.02])
async def test_a_caller_who_speaks_as_the_goodbye_ends_is_answered(
    before_the_end: float, autojump_clock: Clock
) -> None:
    first = await call([[GOODBYE, HANG_UP]])
    end = first[3].ended[0][1]

    begin = round(end - before_the_end, 3)
    summary, _, _, _ = await call(
        [[GOODBYE, HANG_UP], "Of course."],
        socket=FakeTwilio(voice=[(1.0, 2.0), (begin, begin + 1.0)], stop_at=14.0),
        says=["that is all", "wait one more thing"],
    )

    # Either the voice was noticed before the end, or the call was over.
    if len(summary.turns) == 2:
        assert summary.turns[1].caller == "wait one more thing"
        assert summary.turns[1].heard == "Of course."
        assert summary.outcome is Outcome.HUNG_UP
    else:
        assert summary.outcome is Outcome.BOT_HUNG_UP
        assert before_the_end < 0.06 + 0.02


@pytest.mark.parametrize("steps", range(8))
@pytest.mark.parametrize("said", [Partial("wait"), Final("wait", end_of_turn=True)])
async def test_words_in_the_very_step_in_which_the_goodbye_ends_are_answered_or_never_taken(
    said: Transcript, steps: int, autojump_clock: Clock
) -> None:
    ear, spoken = FakeEar([]), trio.Event()

    class Ending(FakeTwilio):
        async def receive(self) -> twilio.Inbound:
            event = await super().receive()
            # Of "Bye." there are two marks; with the echo of the second it is heard.
            if event == twilio.Mark("0.0.2"):
                spoken.set()
            return event

    async def speak() -> None:
        await spoken.wait()
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        ear.push(said)
        if isinstance(said, Partial):
            await trio.sleep(0.5)
            ear.push(Final("wait one more thing", end_of_turn=True))

    socket, chat = Ending(stop_at=14.0), FakeChat([["Bye.", HANG_UP], "Of course."])
    ear.push(Final("that is all", end_of_turn=True))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(speak)
        summary = await run_call(socket, ports(ear, chat, endpointing="provider"), plan())
        nursery.cancel_scope.cancel()

    happened = [moment.what for moment in summary.timeline]
    taken = "interrupt" in happened[: happened.index("turn_over")]
    assert summary.outcome is (Outcome.HUNG_UP if taken else Outcome.BOT_HUNG_UP)
    assert summary.turns[0].heard == "Bye."
    assert summary.turns[-1].heard == ("Of course." if taken else "Bye.")


@pytest.mark.parametrize("steps", range(8))
async def test_a_mumble_in_the_very_step_in_which_the_goodbye_ends_does_not_keep_the_line(
    steps: int, autojump_clock: Clock
) -> None:
    ear, spoken = FakeEar([]), trio.Event()

    class Ending(FakeTwilio):
        async def receive(self) -> twilio.Inbound:
            event = await super().receive()
            if event == twilio.Mark("0.0.2"):  # with its echo the goodbye is heard
                spoken.set()
            return event

    async def mumble() -> None:
        await spoken.wait()
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        ear.push(Partial("mm"))
        await trio.sleep(0.3)
        ear.push(Final(""))  # it was nothing

    ear.push(Final("that is all", end_of_turn=True))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mumble)
        summary = await run_call(
            Ending(stop_at=14.0),
            ports(ear, FakeChat([["Bye.", HANG_UP]]), endpointing="provider"),
            plan(),
        )
        nursery.cancel_scope.cancel()

    assert summary.outcome is Outcome.BOT_HUNG_UP
    assert [turn.heard for turn in summary.turns] == ["Bye."]
    assert summary.duration_s < 3.0


async def test_a_goodbye_that_was_given_up_for_a_noise_ends_nothing(autojump_clock: Clock) -> None:
    """Without resuming, a noise is taken as meant: the caller will go on, or hang up."""
    summary, _, _, _ = await call(
        [[GOODBYE, HANG_UP]],
        voice=[(1.0, 2.0), (4.0, 4.2)],
        says=["that is all", ""],
        interruption=Interruption(policy="commit"),
    )

    assert summary.outcome is Outcome.HUNG_UP
    assert summary.turns[0].interrupted


async def test_the_hang_up_waits_for_no_mark(autojump_clock: Clock) -> None:
    """Bounded by what is queued and a margin, and not by what Twilio says."""
    summary, socket, _, carrier = await call(
        [[GOODBYE, HANG_UP]], socket=FakeTwilio(voice=[(1.0, 2.0)], stop_at=30.0, echo_marks=False)
    )

    assert summary.outcome is Outcome.BOT_HUNG_UP
    played_until = socket.played[-1][0] + len(socket.played[-1][1]) / 8_000
    assert carrier.ended[0][1] == pytest.approx(played_until + 1.2, abs=0.05)


@pytest.mark.parametrize("failure", [ProviderError("twilio", "away"), RuntimeError("bug")])
async def test_a_carrier_that_fails_does_not_keep_the_socket_open(
    failure: Exception, autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        summary, socket, _, _ = await call([[GOODBYE, HANG_UP]], failure=failure)

    assert socket.closed == 1000
    assert summary.outcome is Outcome.BOT_HUNG_UP
    assert [record.message for record in caplog.records] == ["hang_up_failed"]


async def test_a_carrier_that_hangs_is_not_waited_for(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        _, socket, _, carrier = await call([[GOODBYE, HANG_UP]], carrier_takes=math.inf)

    assert socket.closed == 1000
    assert socket.now() == pytest.approx(carrier.ended[0][1] + Timeouts().hang_up_s, abs=0.001)
    assert [record.message for record in caplog.records] == ["hang_up_late"]


async def test_a_goodbye_that_cannot_be_spoken_still_ends_the_call(autojump_clock: Clock) -> None:
    voice = FakeVoice(fail_on=0, fail_late=True)

    summary, _, _, carrier = await call([[GOODBYE, HANG_UP]], synthesizer=voice)

    assert summary.outcome is Outcome.BOT_HUNG_UP
    assert len(carrier.ended) == 1


async def test_a_model_that_fails_after_it_has_hung_up_says_goodbye(autojump_clock: Clock) -> None:
    class Failing(FakeChat):
        def open_reply(self, messages: Any, tools: Any = ()) -> Any:
            if self.requests:
                raise ProviderError("chat", "away")
            return super().open_reply(messages, tools)

    socket = FakeTwilio(voice=[(1.0, 2.0)], stop_at=20.0)
    summary = await run_call(
        socket, ports(FakeEar(["bye"]), Failing([[HANG_UP]])), plan(goodbye="Bye.")
    )

    assert summary.turns[0].heard == "Bye."
    assert summary.outcome is Outcome.BOT_HUNG_UP


@pytest.mark.parametrize(
    "socket_changes, outcome, told",
    [
        ({"stop_at": 2.5}, Outcome.HUNG_UP, False),
        ({"close_at": 2.5}, Outcome.SOCKET_CLOSED, False),
        ({"silent_at": 0.5}, Outcome.MEDIA_TIMEOUT, True),
    ],
)
async def test_the_carrier_is_told_only_what_it_does_not_know(
    socket_changes: dict[str, float], outcome: Outcome, told: bool, autojump_clock: Clock
) -> None:
    summary, _, _, carrier = await call([GOODBYE], socket=FakeTwilio(**socket_changes))  # type: ignore[arg-type]  # floats

    assert summary.outcome is outcome
    assert bool(carrier.ended) is told


async def test_a_bot_may_be_forbidden_to_hang_up(autojump_clock: Clock) -> None:
    summary, _, chat, _ = await call([[HANG_UP], "Well."], may_hang_up=False)

    assert chat.offered == [[], []]
    assert chat.requests[1][-1].content == "there is no tool named hang_up"
    assert summary.outcome is Outcome.HUNG_UP
