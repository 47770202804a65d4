"""One call life cycle at a time, in virtual time."""

from __future__ import annotations

import itertools

import pytest
import trio
import trio.testing

from tests.fakes import CHAR, FakeChat, FakeEar, FakeTwilio, FakeVoice, plan, ports, read_back
from voicebot import twilio
from voicebot.context import REQUEST_TOKENS, message_tokens, tool_tokens
from voicebot.nursery import run_call
from voicebot.parting import hang_up
from voicebot.playout import Pacing
from voicebot.ports import Message
from voicebot.record import Outcome


async def test_greeting_is_heard_to_its_end_and_the_call_ends_with_stop(
    autojump_clock: trio.testing.MockClock,
) -> None:
    socket = FakeTwilio(stop_at=5.0)

    summary = await run_call(socket, ports(), plan(greeting="Hello there."))

    assert summary.outcome is Outcome.HUNG_UP
    assert summary.duration_s == pytest.approx(5.0, abs=0.03)
    assert [turn.heard for turn in summary.turns] == ["Hello there."]
    assert not summary.turns[0].interrupted
    assert socket.times(twilio.SendClear) == []
    assert socket.closed == 1000


async def test_a_caller_is_answered(autojump_clock: trio.testing.MockClock) -> None:
    socket = FakeTwilio(voice=[(1.0, 2.0)], stop_at=8.0)
    ear, chat = FakeEar(["are you open"]), FakeChat(["Yes, we are open."])

    summary = await run_call(socket, ports(ear, chat), plan())

    assert [(turn.caller, turn.heard) for turn in summary.turns] == [
        ("are you open", "Yes, we are open.")
    ]
    assert [(m.role, m.content) for m in chat.requests[0]] == [
        ("system", "be brief"),
        ("user", "are you open"),
    ]
    assert read_back(socket.heard()).startswith("YES")


async def test_pieces_are_those_of_the_calls_language(
    autojump_clock: trio.testing.MockClock,
) -> None:
    voice, greeting = FakeVoice(), "Am 3. Mai ist zu. Bis dann."

    await run_call(
        FakeTwilio(stop_at=5.0), ports(voice=voice), plan(greeting=greeting, language="de")
    )

    assert voice.texts == ["Am 3. Mai ist zu.", "Bis dann."]


@pytest.mark.parametrize(
    "said, reason, heard",
    [
        ("It is noon. We are", "length", "It is noon."),
        ("It is noon. We are open.", "length", "It is noon. We are open."),
        ("We are open every", "length", "We are open every"),
        ("It is noon. We are", "content_filter", "It is noon."),
        ("We are open every", "content_filter", "Sorry."),
    ],
)
async def test_of_an_answer_without_its_end_whole_sentences_are_said(
    said: str, reason: str, heard: str, autojump_clock: trio.testing.MockClock
) -> None:
    socket = FakeTwilio(voice=[(1.0, 2.0)], stop_at=8.0)

    summary = await run_call(
        socket, ports(FakeEar(["tell me"]), FakeChat([said], cut=reason)), plan(apology="Sorry.")
    )

    assert summary.turns[0].heard == heard
    assert summary.counts["replies_cut"] == 1
    assert "thinking_failures" not in summary.counts
    cuts = [moment for moment in summary.timeline if moment.what == "reply_cut"]
    assert [moment.detail for moment in cuts] == [{"reason": reason}]


async def test_the_oldest_exchanges_are_not_shown_to_the_model(
    autojump_clock: trio.testing.MockClock,
) -> None:
    socket = FakeTwilio(voice=[(1.0, 2.0), (7.0, 8.0), (13.0, 14.0)], stop_at=16.0)
    ear, chat = FakeEar(["one", "two", "three"]), FakeChat(["y" * 60] * 3)

    prompt = message_tokens(Message("system", plan().prompt))
    fixed = REQUEST_TOKENS + prompt + tool_tokens(hang_up("").tool)
    room = 60  # for an exchange and a question; two exchanges and a question are over 70

    await run_call(socket, ports(ear, chat), plan(context_tokens=fixed + room))

    shown = [[m.content for m in request if m.role == "user"] for request in chat.requests]
    assert shown == [["one"], ["one", "two"], ["two", "three"]]


async def test_never_more_than_the_lead_is_ahead_of_playout(
    autojump_clock: trio.testing.MockClock,
) -> None:
    socket = FakeTwilio(stop_at=15.0)
    ahead: list[float] = []

    async def measure(message: twilio.Outbound) -> None:
        await trio.sleep(0.004)  # a send that takes its time must not hide what it carries
        if isinstance(message, twilio.SendMedia):
            sent = sum(len(audio) for _, audio in socket.played) + len(message.audio)
            ahead.append((sent - len(socket.heard())) / 8)

    socket.send_gate = measure

    await run_call(
        socket, ports(voice=FakeVoice(speed=100.0)), plan(greeting="One two three four five. " * 8)
    )

    assert max(ahead) <= Pacing().lead_ms + 1
    # And near it, or the network's jitter would be heard.
    assert sorted(ahead)[len(ahead) // 2] > 140


async def test_speaking_wakes_once_a_message_at_the_latest_moment_the_lead_allows(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Earlier costs work and throws more away at a clear; later is less cover against jitter."""
    socket = FakeTwilio(stop_at=15.0)

    await run_call(
        socket, ports(voice=FakeVoice(speed=100.0)), plan(greeting="One two three four five. " * 8)
    )

    sent = socket.times(twilio.SendMedia)
    gaps = [later - earlier for earlier, later in itertools.pairwise(sent)]
    # Two messages fit under the lead; then each goes out when it does.
    assert gaps[0] < 0.01  # as soon as there is so much
    message_s = Pacing().chunk_ms / 1_000
    assert gaps[2:-1] == pytest.approx([message_s] * (len(gaps) - 3), abs=0.001)


async def test_underruns_of_a_slow_voice_are_counted_and_nothing_is_lost(
    autojump_clock: trio.testing.MockClock,
) -> None:
    socket = FakeTwilio(stop_at=20.0)

    summary = await run_call(
        socket, ports(voice=FakeVoice(speed=0.5)), plan(greeting="One two three four five.")
    )

    assert summary.turns[0].heard == "One two three four five."
    assert summary.counts["underruns"] > 0
    assert read_back(socket.heard()).startswith("ONE@TWO@THREE@FOUR@FIVE")


async def test_every_message_is_whole_frames_and_the_end_is_filled_with_silence(
    autojump_clock: trio.testing.MockClock,
) -> None:
    socket = FakeTwilio(stop_at=5.0)
    text = "One was done."  # half a frame more than whole ones

    await run_call(socket, ports(), plan(greeting=text))

    sent = [message.audio for _, message in socket.sent if isinstance(message, twilio.SendMedia)]
    assert {len(audio) % 160 for audio in sent} == {0}
    assert b"".join(sent)[len(text) * CHAR :] == b"\xff" * 80


async def test_marks_are_as_rare_as_the_pacing_says(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Each costs a message either way."""
    socket = FakeTwilio(stop_at=15.0)

    await run_call(socket, ports(), plan(greeting="One two three four five. " * 8))

    seconds = sum(len(audio) for _, audio in socket.played) / 8_000
    assert seconds > 8
    assert len(socket.times(twilio.SendMark)) == pytest.approx(seconds / 0.24, abs=2)
