"""Every place a hang-up can land, by name. Virtual time."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import trio
import trio.testing

from tests.fakes import FakeChat, FakeEar, FakeTwilio, FakeVoice, plan, ports
from voicebot import twilio
from voicebot.errors import RemoteProtocolError, SocketClosed
from voicebot.nursery import run_call
from voicebot.patience import Endpointing
from voicebot.plan import Timeouts
from voicebot.ports import Ears
from voicebot.record import CallSummary, Outcome

Clock = trio.testing.MockClock
LONG = "One two three four five six seven eight nine ten eleven twelve."

PLACES = {
    "in the greeting": 0.5,
    "while listening": 2.5,
    "while the caller speaks": 3.5,
    "while thinking": 4.7,
    "before the first audio": 4.78,
    "while speaking": 6.0,
    "together with an interruption": 6.56,
    "while the verdict is pending": 6.7,
}


async def call(
    socket: FakeTwilio, on_end: Callable[[CallSummary], None] | None = None
) -> CallSummary:
    ear, chat = FakeEar(["tell me", "stop"]), FakeChat([LONG, LONG])
    before = trio.lowlevel.current_statistics().tasks_living
    summary = await run_call(
        socket, ports(ear, chat), plan(greeting="Hello there, caller."), on_end=on_end
    )
    assert trio.lowlevel.current_statistics().tasks_living == before
    return summary


@pytest.mark.parametrize("place", PLACES)
async def test_stop(place: str, autojump_clock: Clock) -> None:
    socket = FakeTwilio(voice=[(3.0, 4.0), (6.5, 7.2)], stop_at=PLACES[place])

    summary = await call(socket)

    assert summary.outcome is Outcome.HUNG_UP
    assert summary.duration_s == pytest.approx(PLACES[place], abs=0.03)
    assert socket.closed == 1000
    # Of every place but these two a reply is left that was not heard to its end.
    listening = place in {"while listening", "while the caller speaks"}
    assert summary.turns[-1].interrupted is not listening


@pytest.mark.parametrize("place", PLACES)
async def test_socket_gone_without_stop(place: str, autojump_clock: Clock) -> None:
    socket = FakeTwilio(voice=[(3.0, 4.0), (6.5, 7.2)], close_at=PLACES[place])

    summary = await call(socket)

    assert summary.outcome is Outcome.SOCKET_CLOSED
    assert summary.duration_s == pytest.approx(PLACES[place], abs=0.03)


@pytest.mark.parametrize("place", PLACES)
async def test_server_stops(place: str, autojump_clock: Clock) -> None:
    socket = FakeTwilio(voice=[(3.0, 4.0), (6.5, 7.2)])
    before = trio.lowlevel.current_statistics().tasks_living

    ended: list[CallSummary] = []
    with trio.move_on_after(PLACES[place]) as scope:
        await call(socket, ended.append)

    assert scope.cancelled_caught
    assert [summary.outcome for summary in ended] == [Outcome.CANCELLED]
    assert ended[0].turns[0].heard
    assert trio.current_time() == pytest.approx(scope.deadline)
    assert trio.lowlevel.current_statistics().tasks_living == before


async def test_what_was_heard_until_the_hang_up_is_recorded(autojump_clock: Clock) -> None:
    summary = await call(FakeTwilio(voice=[(3.0, 4.0)], stop_at=6.0))

    turn = summary.turns[1]
    assert turn.interrupted
    assert LONG.startswith(turn.heard)
    assert 0 < len(turn.heard) < len(LONG)


@pytest.mark.parametrize("how", ["stop", "socket gone", "server stops"])
async def test_what_would_have_been_heard_while_providers_let_go_was_not(
    how: str, autojump_clock: Clock
) -> None:
    socket = FakeTwilio(
        voice=[(1.0, 2.0)],
        stop_at=2.855 if how == "stop" else math.inf,
        close_at=2.855 if how == "socket gone" else math.inf,
    )
    voice = FakeVoice(slow_close=1.5)
    parts = ports(FakeEar(["tell me"]), FakeChat([LONG], slow_close=1.5), voice)
    ended: list[CallSummary] = []

    with trio.CancelScope(deadline=trio.current_time() + 2.855):
        await run_call(socket, parts, plan(), on_end=ended.append)

    (summary,) = ended
    # The first word is not half over, and more than it was sent.
    assert len(socket.times(twilio.SendMedia)) >= 2
    assert summary.duration_s > 4.0
    assert [(turn.generated, turn.heard) for turn in summary.turns] == [(LONG, "")]


async def test_what_was_heard_before_a_cough_counts_although_it_is_being_said_again(
    autojump_clock: Clock,
) -> None:
    """Most of a long word was heard; the call ends when it has just been begun again."""
    word = "Antidisestablishmentarianism"  # 1.4 s
    socket = FakeTwilio(voice=[(1.0, 1.2)], stop_at=1.75)

    summary = await run_call(socket, ports(), plan(greeting=f"{word} is long."))

    assert summary.counts["resumes"] == 1
    assert summary.turns[0].heard == word


async def test_no_media_of_the_caller_ends_the_call(autojump_clock: Clock) -> None:
    summary = await call(FakeTwilio(silent_at=2.0))

    assert summary.outcome is Outcome.MEDIA_TIMEOUT
    assert summary.duration_s == pytest.approx(7.0, abs=0.03)


async def test_marks_that_keep_coming_do_not_keep_a_silent_stream_alive(
    autojump_clock: Clock,
) -> None:
    marks = [(at / 2, twilio.Mark("x")) for at in range(60)]

    summary = await call(FakeTwilio(silent_at=2.0, scripted=marks))

    assert summary.outcome is Outcome.MEDIA_TIMEOUT
    assert summary.duration_s == pytest.approx(7.0, abs=0.03)
    assert summary.counts["stale_marks"] > 0


async def test_no_mark_ever_echoed_does_not_stop_the_conversation(autojump_clock: Clock) -> None:
    socket = FakeTwilio(voice=[(3.0, 4.0), (12.0, 13.0)], stop_at=20.0, echo_marks=False)

    summary = await call(socket)

    assert [turn.caller for turn in summary.turns] == ["", "tell me", "stop"]
    assert summary.turns[1].heard == LONG
    assert summary.counts["lost_marks"] == 3
    # A reply that counts as heard is not cleared, whether Twilio says so or not.
    assert socket.times(twilio.SendClear) == []


async def test_a_call_that_never_ends_is_ended(autojump_clock: Clock) -> None:
    socket = FakeTwilio(stop_at=1e6)

    times = Timeouts(call_s=30.0, warning_s=0, idle_s=0)
    summary = await run_call(socket, ports(), plan(timeouts=times, time_up="Over."))

    assert summary.outcome is Outcome.TOO_LONG
    assert summary.turns[-1].heard == "Over."
    assert 30.0 < summary.duration_s < 31.0


async def test_a_goodbye_that_never_ends_is_cut(autojump_clock: Clock) -> None:
    socket, times = (
        FakeTwilio(stop_at=1e6),
        Timeouts(call_s=30.0, parting_s=2.0, warning_s=9.0, idle_s=0),
    )

    call = ports(voice=FakeVoice(stall_on=1))
    summary = await run_call(
        socket, call, plan(timeouts=times, warning="Soon.", time_up="Over and out.")
    )

    assert summary.outcome is Outcome.TOO_LONG
    assert summary.duration_s == pytest.approx(32.0)


def stuck_after(seconds: float, socket: FakeTwilio) -> Callable[[twilio.Outbound], object]:
    async def gate(message: twilio.Outbound) -> None:
        if socket.now() >= seconds:
            await trio.sleep_forever()

    return gate


async def test_a_reader_that_stalls_ends_its_call_after_the_send_deadline(
    autojump_clock: Clock,
) -> None:
    socket = FakeTwilio(voice=[(3.0, 4.0)])
    socket.send_gate = stuck_after(6.0, socket)

    summary = await call(socket)

    assert summary.outcome is Outcome.SEND_TIMEOUT
    assert summary.duration_s == pytest.approx(11.0, abs=0.1)


async def test_a_reader_that_stalls_during_a_barge_in_does_not_hang_the_call(
    autojump_clock: Clock,
) -> None:
    socket = FakeTwilio(voice=[(3.0, 4.0), (6.5, 7.5)])
    socket.send_gate = stuck_after(6.45, socket)

    summary = await call(socket)

    assert summary.outcome is Outcome.SEND_TIMEOUT


async def test_a_hang_up_while_a_message_is_stuck_ends_the_call_at_once(
    autojump_clock: Clock,
) -> None:
    socket = FakeTwilio(voice=[(3.0, 4.0)], stop_at=7.0)
    socket.send_gate = stuck_after(6.0, socket)

    summary = await call(socket)

    assert summary.outcome is Outcome.HUNG_UP
    assert summary.duration_s == pytest.approx(7.0, abs=0.03)


async def test_a_socket_that_closes_under_the_writer_and_the_reader_ends_the_call_once(
    autojump_clock: Clock,
) -> None:
    socket = FakeTwilio()

    async def gone(message: twilio.Outbound) -> None:
        await trio.lowlevel.checkpoint()
        await socket.aclose(1006)  # the reader learns of it in the same instant
        raise SocketClosed(1006)

    socket.send_gate = gone

    summary = await call(socket)

    assert summary.outcome is Outcome.SOCKET_CLOSED


async def test_a_peer_that_breaks_the_protocol_ends_its_call(autojump_clock: Clock) -> None:
    class Rude(FakeTwilio):
        async def receive(self) -> twilio.Inbound:
            if self.now() > 1.0:
                raise RemoteProtocolError("second_start")
            return await super().receive()

    summary = await call(Rude())

    assert summary.outcome is Outcome.PROTOCOL_ERROR
    [broken] = [moment for moment in summary.timeline if moment.what == "protocol_error"]
    assert broken.detail == {"kind": "second_start"}


async def test_a_bug_ends_that_call_only_and_is_logged(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    class Buggy(FakeChat):
        def open_reply(self, messages: object) -> object:  # type: ignore[override]  # the bug
            raise RuntimeError("bug")

    socket = FakeTwilio(voice=[(1.0, 2.0)])

    with caplog.at_level(logging.ERROR):
        summary = await run_call(socket, ports(FakeEar(["hi"]), Buggy([])), plan())

    assert summary.outcome is Outcome.CRASHED
    assert socket.closed == 1011
    assert [record.message for record in caplog.records] == ["call_crashed"]


async def test_a_bug_in_making_the_ears_is_recorded_as_well(autojump_clock: Clock) -> None:
    def no_ears() -> Ears:
        raise RuntimeError("bug")

    socket, ended = FakeTwilio(), list[CallSummary]()

    await run_call(
        socket, replace(ports(FakeEar([])), open_ears=no_ears), plan(), on_end=ended.append
    )

    assert [summary.outcome for summary in ended] == [Outcome.CRASHED]
    assert socket.closed == 1011


# The recogniser.


async def test_audio_is_kept_while_the_recogniser_connects(autojump_clock: Clock) -> None:
    ear = FakeEar(["hello"], open_delay=3.0)
    socket = FakeTwilio(voice=[(0.5, 1.5)], stop_at=8.0)

    summary = await run_call(socket, ports(ear, FakeChat(["Yes."])), plan())

    assert summary.turns[0].heard == "Yes."
    assert ear.audio.count(0x10) == 8_000
    assert len(ear.audio) == pytest.approx(8.0 * 8_000, abs=1_000)
    assert ear.started == [60]


async def test_the_oldest_audio_goes_when_the_recogniser_never_connects(
    autojump_clock: Clock,
) -> None:
    ear = FakeEar(["hello"], open_delay=15.0)
    socket = FakeTwilio(stop_at=16.0)

    summary = await run_call(socket, ports(ear), plan())

    assert summary.counts["unrecognised_ms"] == pytest.approx(5_000, abs=100)


async def test_a_recogniser_that_drops_is_opened_again(autojump_clock: Clock) -> None:
    ear = FakeEar(["hello"], fail_after_bytes=8_000)
    socket = FakeTwilio(voice=[(3.0, 4.0)], stop_at=8.0)

    summary = await run_call(socket, ports(ear, FakeChat(["Yes."])), plan())

    assert ear.opened == 2
    assert summary.turns[0].heard == "Yes."


async def test_a_recogniser_that_cannot_be_had_ends_the_call_with_a_goodbye(
    autojump_clock: Clock,
) -> None:
    ear = FakeEar([], fail_opens=99)
    socket = FakeTwilio()

    summary = await run_call(socket, ports(ear), plan(greeting=LONG, farewell="Please call again."))

    assert ear.opened == 3
    assert summary.outcome is Outcome.NO_RECOGNITION
    assert [turn.heard for turn in summary.turns][1:] == ["Please call again."]
    assert summary.turns[0].interrupted


async def test_an_utterance_whose_beginning_was_dropped_is_still_recognised(
    autojump_clock: Clock,
) -> None:
    ear = FakeEar(["hello"], open_delay=15.0)
    socket = FakeTwilio(voice=[(0.5, 1.0), (1.4, 14.0)], stop_at=17.0)

    summary = await run_call(
        socket,
        ports(ear, FakeChat(["Yes."])),
        plan(endpointing=Endpointing(final_grace_ms=30_000)),
    )

    assert ear.started == [60, 60]
    assert summary.counts["unrecognised_ms"] > 4_000
    assert [turn.heard for turn in summary.turns] == ["Yes."]


async def test_giving_up_while_a_verdict_is_pending_still_says_goodbye(
    autojump_clock: Clock,
) -> None:
    for begin in (1.0, 1.2, 1.3, 1.4):
        socket = FakeTwilio(voice=[(begin, begin + 0.3)], stop_at=trio.current_time() + 60)
        summary = await run_call(
            socket,
            ports(FakeEar([], fail_opens=99)),
            plan(greeting=LONG, farewell="Please call again."),
        )
        assert summary.outcome is Outcome.NO_RECOGNITION
        assert summary.turns[-1].heard == "Please call again."


async def test_a_recogniser_that_went_deaf_is_replaced(autojump_clock: Clock) -> None:
    """It takes audio and says nothing: only its owed answers tell."""
    ear = FakeEar([], hang=True)
    voice = [(1.0 + 5 * i, 2.0 + 5 * i) for i in range(6)]

    summary = await run_call(
        FakeTwilio(voice=voice, stop_at=60.0), ports(ear), plan(farewell="Goodbye.")
    )

    assert ear.opened == 3
    assert summary.outcome is Outcome.NO_RECOGNITION
    assert summary.turns[-1].heard == "Goodbye."


async def test_speech_goes_on_for_the_recogniser_that_replaces_a_lost_one(
    autojump_clock: Clock,
) -> None:
    ear = FakeEar(["hello"], fail_after_bytes=8_000)
    socket = FakeTwilio(voice=[(0.5, 3.0)], stop_at=8.0)

    summary = await run_call(socket, ports(ear, FakeChat(["Yes."])), plan())

    assert ear.started == [60, 60]  # told again, in its place
    assert summary.turns[0].heard == "Yes."


async def test_a_recogniser_that_never_answers_does_not_hang_the_turn(
    autojump_clock: Clock,
) -> None:
    ear = FakeEar([], hang=True)
    socket = FakeTwilio(voice=[(1.0, 2.0), (8.0, 9.0)], stop_at=15.0)

    async def mend() -> None:
        await trio.sleep(7.0)
        ear.hang = False
        ear.texts.append("hello")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(mend)
        summary = await run_call(socket, ports(ear, FakeChat(["Yes."])), plan(apology="Pardon?"))

    assert [turn.heard for turn in summary.turns] == ["Pardon?", "Yes."]


async def test_synthesis_waits_while_much_is_unheard(autojump_clock: Clock) -> None:
    voice = FakeVoice(speed=1_000.0)
    socket = FakeTwilio(stop_at=20.0)
    sentence = "This is a sentence of thirty c. "  # 1.6 s

    await run_call(socket, ports(voice=voice), plan(greeting=sentence * 60))

    # 20 s ahead of what is spoken, and not the whole minute and a half.
    assert 20 / 1.6 < len(voice.texts) < 45 / 1.6
