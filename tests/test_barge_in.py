"""Every place a barge-in can land, by name. Virtual time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import trio
import trio.testing

from tests.fakes import (
    CHAR,
    FakeChat,
    FakeEar,
    FakeTwilio,
    FakeVoice,
    code,
    plan,
    ports,
    read_back,
)
from voicebot import nursery, twilio
from voicebot.audio import PCM16
from voicebot.errors import ProviderError, SocketClosed
from voicebot.nursery import run_call
from voicebot.plan import CallPlan, Timeouts
from voicebot.ports import Final, Partial, ToolCall, UtteranceEnd
from voicebot.record import CallSummary, Moment, Outcome
from voicebot.reply import Reply
from voicebot.testing import At, Network, Script, caller_says, hold, toy_ports
from voicebot.turns import Interruption

Clock = trio.testing.MockClock

# The caller speaks from 1 to 2 s; with the fakes' delays the answer's first text is there at
# 2.65 s, its first audio at about 2.75 s.
LONG = "One two three four five six seven eight nine ten eleven twelve thirteen fourteen."


async def interrupted_call(
    at: float,
    *,
    for_s: float = 1.0,
    heard: str = "stop please",
    reply: str = LONG,
    chat: FakeChat | None = None,
    voice: FakeVoice | None = None,
    socket: FakeTwilio | None = None,
    **changes: Any,
) -> tuple[CallSummary, FakeTwilio, FakeChat]:
    """Run a call whose caller asks, interrupts the answer at `at`, and is answered again."""
    socket = socket or FakeTwilio(voice=[(1.0, 2.0), (at, at + for_s)], stop_at=at + 8.0)
    chat = chat or FakeChat([reply, "Sorry."])
    ear = FakeEar(["tell me", heard])
    summary = await run_call(socket, ports(ear, chat, voice), plan(**changes))
    return summary, socket, chat


async def test_barge_in_mid_sentence_clears_once_and_sends_nothing_after(
    autojump_clock: Clock,
) -> None:
    summary, socket, _chat = await interrupted_call(5.0)

    assert len(socket.times(twilio.SendClear)) == 1
    # Three frames of voice decide, and the clear goes out in the same instant.
    assert socket.times(twilio.SendClear)[0] == pytest.approx(5.06, abs=0.025)
    assert socket.media_after_clear(until=6.5) == 0
    assert [turn.interrupted for turn in summary.turns] == [True, False]
    assert summary.turns[1].caller == "stop please"
    assert summary.turns[1].heard == "Sorry."
    assert summary.outcome is Outcome.HUNG_UP


async def test_barge_in_cuts_the_history_at_the_word_the_caller_heard(
    autojump_clock: Clock,
) -> None:
    reply = " ".join("abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz")  # 0.1 s a word
    summary, socket, chat = await interrupted_call(5.0, reply=reply)

    # Without a network the ledger knows to the byte: a word counts from its middle on.
    played = sum(len(audio) for at, audio in socket.played if at < 5.1)
    text = summary.turns[0].heard
    assert text == reply[: 2 * ((played - CHAR // 2) // (2 * CHAR)) + 1]
    assert 15 < len(text.split()) < 30
    last = " ".join(text.split()[-4:])
    assert [(m.role, m.content) for m in chat.requests[1]] == [
        ("system", "be brief"),
        ("user", "tell me"),
        ("assistant", f'{text}… [interrupted by the caller after: "{last}"]'),
        ("user", "stop please"),
    ]


async def test_barge_in_before_the_first_token_joins_the_callers_words(
    autojump_clock: Clock,
) -> None:
    chat = FakeChat([LONG, "Yes."], first=1.0)

    summary, socket, chat = await interrupted_call(2.8, chat=chat, heard="and today")

    assert socket.times(twilio.SendClear) == []
    assert [turn.heard for turn in summary.turns] == ["", "Yes."]
    assert chat.requests[1][-1].content == "tell me and today"
    assert [m.role for m in chat.requests[1]] == ["system", "user"]


async def test_barge_in_before_the_first_audio_byte_says_nothing(autojump_clock: Clock) -> None:
    voice = FakeVoice(first=1.5)

    summary, socket, _ = await interrupted_call(3.2, voice=voice)

    assert socket.times(twilio.SendClear) == []
    assert summary.turns[0].heard == ""
    assert voice.cancelled >= 1
    assert summary.turns[1].heard == "Sorry."


async def test_barge_in_at_the_first_frame_leaves_no_word(autojump_clock: Clock) -> None:
    first = FakeTwilio(voice=[(1.0, 2.0)], stop_at=5.0)
    await run_call(first, ports(FakeEar(["tell me"]), FakeChat([LONG])), plan())
    first_media = first.times(twilio.SendMedia)[0]

    # Decided 60 ms after the onset, that is just as the first message has been written.
    summary, socket, _ = await interrupted_call(round(first_media - 0.06, 2))

    assert len(socket.times(twilio.SendClear)) <= 1
    assert summary.turns[0].heard == ""
    assert summary.turns[1].heard == "Sorry."


# The second is half a frame longer than whole frames.
@pytest.mark.parametrize("first", ["One is done.", "One was done."])
async def test_barge_in_between_two_sentences_keeps_the_first_whole(
    first: str,
    autojump_clock: Clock,
) -> None:
    class Pausing(FakeVoice):
        """Slow to begin with the second sentence."""

        async def _chunks(self, text: str, index: int) -> Any:
            if text.startswith("Two"):
                await trio.sleep(2.0)
            async for chunk in super()._chunks(text, index):
                yield chunk

    # The first lasts 0.6 s from 2.8 s on; the caller speaks in the pause behind it.
    summary, socket, _ = await interrupted_call(
        3.8, reply=f"{first} Two is coming.", voice=Pausing()
    )

    assert summary.turns[0].heard == first
    assert summary.turns[0].interrupted
    # Twilio has played and echoed all of it: there is nothing to clear.
    assert socket.times(twilio.SendClear) == []


async def test_barge_in_after_the_last_byte_was_sent_still_clears(autojump_clock: Clock) -> None:
    # The whole reply lasts 1.0 s; its last 200 ms are at Twilio when the caller speaks.
    first = FakeTwilio(voice=[(1.0, 2.0)], stop_at=6.0)
    reply = "Abcdefghi klmnopqrs."
    await run_call(first, ports(FakeEar(["tell me"]), FakeChat([reply])), plan())
    last_media = first.times(twilio.SendMedia)[-1]

    summary, socket, _ = await interrupted_call(round(last_media, 2), reply=reply)

    assert socket.times(twilio.SendMedia)[-1] > last_media
    assert len(socket.times(twilio.SendClear)) == 1
    assert summary.turns[0].heard == "Abcdefghi klmnopqrs."
    assert summary.turns[0].interrupted


async def test_barge_in_during_the_greeting_is_answered(autojump_clock: Clock) -> None:
    socket = FakeTwilio(voice=[(1.0, 2.0)], stop_at=6.0)
    chat = FakeChat(["Yes."])

    summary = await run_call(socket, ports(FakeEar(["are you open"]), chat), plan(greeting=LONG))

    assert len(socket.times(twilio.SendClear)) == 1
    assert [turn.interrupted for turn in summary.turns] == [True, False]
    assert [m.role for m in chat.requests[0]] == ["system", "assistant", "user"]
    assert summary.turns[1].heard == "Yes."


async def test_barge_in_twice_within_100_ms_is_one_interruption(autojump_clock: Clock) -> None:
    socket = FakeTwilio(voice=[(1.0, 2.0), (5.0, 5.08), (5.1, 6.0)], stop_at=12.0)

    summary, socket, _ = await interrupted_call(5.0, socket=socket)

    assert len(socket.times(twilio.SendClear)) == 1
    assert [turn.heard for turn in summary.turns][1:] == ["Sorry."]


async def test_barge_in_while_synthesis_hangs_in_its_close_is_not_delayed(
    autojump_clock: Clock,
) -> None:
    voice = FakeVoice(slow_close=2.0, speed=1.0)

    _summary, socket, _ = await interrupted_call(4.0, voice=voice)

    assert socket.times(twilio.SendClear)[0] == pytest.approx(4.06, abs=0.025)
    assert socket.media_after_clear(until=5.5) == 0


async def test_barge_in_while_the_model_hangs_in_its_close_is_not_delayed(
    autojump_clock: Clock,
) -> None:
    chat = FakeChat([f"First this. {LONG}", "Sorry."], gap=0.4, slow_close=2.0)

    summary, socket, _ = await interrupted_call(3.8, chat=chat)

    assert socket.times(twilio.SendClear)[0] == pytest.approx(3.86, abs=0.025)
    assert summary.turns[1].heard == "Sorry."


async def test_barge_in_while_a_message_is_being_written_waits_for_that_message_only(
    autojump_clock: Clock,
) -> None:
    socket = FakeTwilio(voice=[(1.0, 2.0), (5.0, 6.0)], stop_at=12.0)

    async def slow(message: twilio.Outbound) -> None:
        if isinstance(message, twilio.SendMedia) and socket.now() > 5.0:
            await trio.sleep(0.5)

    socket.send_gate = slow

    summary, socket, _ = await interrupted_call(5.0, socket=socket)

    clear = socket.times(twilio.SendClear)[0]
    assert 5.4 < clear < 5.7
    assert socket.media_after_clear(until=6.5) == 0
    assert summary.turns[1].heard


@pytest.mark.parametrize("late", [0.0, 0.05, 0.4])
async def test_the_position_is_right_when_a_send_returns_long_after_it_was_delivered(
    late: float,
    autojump_clock: Clock,
) -> None:
    """Nothing may overtake it: Twilio plays on until the clear, which waits for its turn."""
    message_ms = 60 if late > 0.2 else 0  # longer than the lead: it may have begun to play, or not

    class Lagging(FakeTwilio):
        async def send(self, message: twilio.Outbound) -> None:
            await super().send(message)
            if isinstance(message, twilio.SendMedia) and 4.98 < self.now() < 5.1:
                await trio.sleep(late)

    summary, socket, _ = await interrupted_call(
        5.0, socket=Lagging(voice=[(1.0, 2.0), (5.0, 6.0)], stop_at=13.0)
    )

    [clear] = socket.times(twilio.SendClear)
    [silenced] = [moment for moment in summary.timeline if moment.what == "silenced"]
    played_ms = sum(len(audio) for at, audio in socket.played if at < clear) / 8
    assert silenced.detail["heard_ms"] == pytest.approx(played_ms, abs=20 + message_ms)


async def test_what_is_still_being_written_was_not_heard(autojump_clock: Clock) -> None:
    """The peer takes a message only after a while; until then it plays nothing new."""
    socket = FakeTwilio(voice=[(1.0, 2.0), (5.0, 6.0)], stop_at=13.0)

    async def slow(message: twilio.Outbound) -> None:
        if isinstance(message, twilio.SendMedia):
            await trio.sleep(0.15)

    socket.send_gate = slow

    summary, socket, _ = await interrupted_call(5.0, socket=socket)

    [clear] = socket.times(twilio.SendClear)
    [silenced] = [moment for moment in summary.timeline if moment.what == "silenced"]
    played_ms = sum(len(audio) for at, audio in socket.played if at < clear) / 8
    assert silenced.detail["heard_ms"] == pytest.approx(played_ms, abs=20)


async def test_barge_in_tears_no_message(autojump_clock: Clock) -> None:
    """A message is always being written; half of one would doom the socket."""
    socket = FakeTwilio(voice=[(1.0, 2.0), (5.0, 6.0)], stop_at=13.0)
    torn: list[float] = []

    async def slow(message: twilio.Outbound) -> None:
        try:
            await trio.sleep(0.055)
        except trio.Cancelled:
            torn.append(socket.now())
            raise

    socket.send_gate = slow

    summary, socket, _ = await interrupted_call(5.0, socket=socket)

    assert [turn.interrupted for turn in summary.turns] == [True, False]
    assert torn == []


async def test_interruption_with_dtmf_is_still_one_interruption(autojump_clock: Clock) -> None:
    socket = FakeTwilio(
        voice=[(1.0, 2.0), (5.0, 6.0)], stop_at=12.0, scripted=[(5.06, twilio.Dtmf("1"))]
    )

    summary, socket, _ = await interrupted_call(5.0, socket=socket)

    assert len(socket.times(twilio.SendClear)) == 1
    assert "dtmf" in [moment.what for moment in summary.timeline]


async def test_interruption_by_words_alone_is_taken(autojump_clock: Clock) -> None:
    """The ears miss it; a provider's partial does not."""
    socket = FakeTwilio(stop_at=12.0)
    ear = FakeEar([])
    chat = FakeChat([LONG, "Sorry."])

    async def provider() -> None:
        await trio.sleep(3.0)
        ear.push(Partial("hold"))
        await trio.sleep(0.3)
        ear.push(Final("hold on", end_of_turn=True))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(provider)
        ear.push(Final("tell me", end_of_turn=True))
        summary = await run_call(socket, ports(ear, chat, endpointing="provider"), plan())

    assert socket.times(twilio.SendClear) == [pytest.approx(3.0, abs=0.001)]
    assert [turn.caller for turn in summary.turns] == ["tell me", "hold on"]


# Not meant after all.


async def test_a_cough_resumes_the_reply_from_the_word_that_was_cut(
    autojump_clock: Clock,
) -> None:
    summary, socket, _chat = await interrupted_call(5.0, for_s=0.3, heard="")

    assert len(socket.times(twilio.SendClear)) == 1
    assert summary.counts["resumes"] == 1
    assert [turn.heard for turn in summary.turns] == [LONG]
    assert not summary.turns[0].interrupted
    # The second epoch begins with the word in which the first was cut, and goes to the end.
    clear = socket.times(twilio.SendClear)[0]
    before = b"".join(audio for at, audio in socket.played if at < clear)
    again = b"".join(
        m.audio for at, m in socket.sent if isinstance(m, twilio.SendMedia) and at > clear
    )
    everything = read_back(b"".join(bytes([code(char)]) * CHAR for char in LONG))
    resumed = everything.rindex(read_back(again))
    assert resumed + len(read_back(again)) == len(everything)
    assert LONG[resumed - 1] == " "
    assert 0 <= len(before) / CHAR - resumed <= len("thirteen ")
    [again_from] = [m.detail["from_ms"] for m in summary.timeline if m.what == "resumed"]
    assert again_from == pytest.approx(resumed * CHAR / 8, abs=CHAR / 8)
    # Only what is resumed is faded in: a character is 400 times the same byte.
    assert [len(set(audio[:200])) > 1 for audio in (before, again, again[CHAR:])] == [0, 1, 0]
    # An echo of the first epoch must not be taken for one of the second.
    names = [message.name for _, message in socket.sent if isinstance(message, twilio.SendMark)]
    assert len(set(names)) == len(names)


async def test_a_long_word_that_was_cut_is_said_again_from_its_beginning(
    autojump_clock: Clock,
) -> None:
    # The third word lasts two seconds, of which more is heard than the lead and all margins.
    reply = f"So a {'long' * 10} word."
    summary, _, _ = await interrupted_call(4.8, for_s=0.3, heard="", reply=reply)

    [stopped_at] = [m.detail["heard_ms"] for m in summary.timeline if m.what == "silenced"]
    [again_from] = [m.detail["from_ms"] for m in summary.timeline if m.what == "resumed"]
    assert again_from == reply.index("long") * CHAR // 8
    assert stopped_at - again_from > 1_000
    assert summary.turns[0].heard == reply


async def test_coughs_in_a_row_do_not_go_back_word_by_word(autojump_clock: Clock) -> None:
    # So close that next to nothing is heard between two, and the network hides even that.
    coughs = [(5.0 + 0.4 * i, 5.08 + 0.4 * i) for i in range(8)]
    socket = FakeTwilio(voice=[(1.0, 2.0), *coughs], stop_at=18.0, mark_delay=0.25)
    ear = FakeEar(["tell me"])

    summary = await run_call(socket, ports(ear, FakeChat([LONG])), plan())

    stops = [m.detail["heard_ms"] for m in summary.timeline if m.what == "silenced"]
    assert len(stops) == 8
    assert min(stops) > stops[0] - 8 * 50 - 250  # a word, and the network's delay
    assert summary.turns[0].heard == LONG


async def test_coughs_between_which_nothing_gets_through_do_not_go_back(
    autojump_clock: Clock,
) -> None:
    """What is being written when the next cough comes plays for no time at all."""
    coughs = [(5.0 + 0.8 * i, 5.08 + 0.8 * i) for i in range(5)]
    socket = FakeTwilio(voice=[(1.0, 2.0), *coughs], stop_at=20.0)

    async def slow(message: twilio.Outbound) -> None:
        if isinstance(message, twilio.SendMedia) and 5.1 < socket.now() < 8.8:
            await trio.sleep(0.6)

    socket.send_gate = slow

    summary = await run_call(socket, ports(FakeEar(["tell me"]), FakeChat([LONG])), plan())

    begun = [m.detail["from_ms"] for m in summary.timeline if m.what == "resumed"]
    assert len(begun) == 5
    assert begun == [begun[0]] * 5
    assert summary.turns[0].heard == LONG


async def test_a_backchannel_does_not_lose_the_reply(autojump_clock: Clock) -> None:
    summary, _socket, chat = await interrupted_call(5.0, for_s=0.4, heard="mm-hm")

    assert [turn.heard for turn in summary.turns] == [LONG]
    assert len(chat.requests) == 1


async def test_a_backchannel_at_the_very_end_is_an_answer(autojump_clock: Clock) -> None:
    reply = "Shall I book it?"  # 0.8 s from 2.8 s on
    summary, _socket, _chat = await interrupted_call(3.4, for_s=0.3, heard="yeah", reply=reply)

    assert [turn.caller for turn in summary.turns] == ["tell me", "yeah"]
    assert summary.turns[0].heard == reply


async def test_a_backchannel_long_after_the_reply_is_an_answer(autojump_clock: Clock) -> None:
    reply = "Shall I book it?"  # 0.8 s from 2.8 s on
    summary, socket, _chat = await interrupted_call(6.0, for_s=0.3, heard="yeah", reply=reply)

    assert [turn.caller for turn in summary.turns] == ["tell me", "yeah"]
    assert "interruptions" not in summary.counts
    assert socket.times(twilio.SendClear) == []


async def test_a_cough_before_the_first_audio_does_not_lose_the_reply(
    autojump_clock: Clock,
) -> None:
    voice = FakeVoice(first=1.0)

    summary, socket, _ = await interrupted_call(3.0, for_s=0.2, heard="", voice=voice)

    assert [turn.heard for turn in summary.turns] == [LONG]
    assert socket.times(twilio.SendClear) == []


async def test_long_noise_without_words_does_not_lose_the_reply(autojump_clock: Clock) -> None:
    summary, socket, _ = await interrupted_call(5.0, for_s=2.0, heard="")

    assert [turn.heard for turn in summary.turns] == [LONG]
    assert socket.media_after_clear(until=7.0) == 0


async def test_noise_while_thinking_does_not_lose_the_reply(autojump_clock: Clock) -> None:
    chat = FakeChat([LONG], first=2.0)

    summary, _socket, _ = await interrupted_call(2.8, for_s=1.2, heard="", chat=chat)

    assert [turn.heard for turn in summary.turns] == [LONG]


async def test_a_turn_that_came_before_a_refuted_cough_is_answered_at_once(
    autojump_clock: Clock,
) -> None:
    """The clear takes so long that a whole turn of the caller and a cough come first."""
    socket = FakeTwilio(voice=[(1.0, 2.0), (5.0, 5.6), (6.9, 7.1)], stop_at=14.0)

    async def stuck(message: twilio.Outbound) -> None:
        if isinstance(message, twilio.SendClear):
            await trio.sleep(2.6)

    socket.send_gate = stuck
    ear, chat = FakeEar(["tell me", "stop please"]), FakeChat([LONG, "Sorry."])

    summary = await run_call(socket, ports(ear, chat), plan())

    assert [(t.caller, t.heard) for t in summary.turns][1:] == [("stop please", "Sorry.")]
    assert summary.turns[0].interrupted


async def test_without_resume_every_interruption_is_meant_at_once(autojump_clock: Clock) -> None:
    chat = FakeChat([LONG, "Sorry."], gap=0.5)

    summary, _socket, chat = await interrupted_call(
        5.0, for_s=0.2, heard="", chat=chat, interruption=Interruption(policy="commit")
    )

    assert summary.turns[0].interrupted
    at = {moment.what: moment.at for moment in summary.timeline}
    assert at["confirmed"] == at["interrupt"]
    # Think is cancelled in the same step, although it still had words to say.
    assert chat.cancelled == 1


# Quieter instead of silent.

DUCKED = Interruption(policy="duck", duck_db=12.0)


def is_quieter(message: twilio.SendMedia) -> bool:
    return any(code != 0xFF and abs(PCM16[code]) < 8_000 for code in message.audio[40:])


async def test_a_ducked_reply_goes_on_at_once_and_quieter_until_the_cough_is_over(
    autojump_clock: Clock,
) -> None:
    summary, socket, _ = await interrupted_call(5.0, for_s=0.3, heard="", interruption=DUCKED)

    [clear] = socket.times(twilio.SendClear)
    assert clear == pytest.approx(5.06, abs=0.025)
    media = [(at, m) for at, m in socket.sent if isinstance(m, twilio.SendMedia)]
    assert min(at for at, _ in media if at >= clear) == clear  # what was cleared, at once
    quiet = [at for at, m in media if is_quieter(m)]
    # From the clear to the verdict: 0.2 s until the ears fall, 0.1 s for the words.
    assert min(quiet) == clear
    assert max(quiet) == pytest.approx(5.6, abs=0.07)
    assert [at for at, m in media if min(quiet) <= at <= max(quiet)] == quiet
    # Nothing is left out and nothing is said twice, and no further clear makes a hole.
    assert [turn.heard for turn in summary.turns] == [LONG]
    assert len(socket.heard()) == pytest.approx(len(LONG) * CHAR, abs=CHAR)


async def test_a_ducked_reply_ends_when_the_interruption_is_meant(autojump_clock: Clock) -> None:
    summary, socket, _chat = await interrupted_call(5.0, interruption=DUCKED)

    first, second = socket.times(twilio.SendClear)
    assert first == pytest.approx(5.06, abs=0.025)
    assert second == pytest.approx(6.3, abs=0.05)  # with the words
    after = [at for at, m in socket.sent if isinstance(m, twilio.SendMedia) and at > second]
    assert min(after) > second + 0.3  # of the next reply
    assert [turn.interrupted for turn in summary.turns] == [True, False]
    played = sum(len(audio) for at, audio in socket.played if at < second)
    assert len(summary.turns[0].heard) * CHAR == pytest.approx(played, abs=8 * CHAR)
    assert summary.turns[1].heard == "Sorry."


async def test_a_reply_that_has_not_begun_is_held_and_not_ducked(autojump_clock: Clock) -> None:
    """Nobody begins to speak while somebody else does."""
    summary, socket, _ = await interrupted_call(2.6, for_s=0.3, heard="", interruption=DUCKED)

    assert socket.times(twilio.SendClear) == []
    assert socket.times(twilio.SendMedia)[0] > 3.1
    assert not any(is_quieter(m) for _, m in socket.sent if isinstance(m, twilio.SendMedia))
    assert summary.turns[0].heard == LONG


async def test_a_ducked_reply_that_ends_before_the_words_come_was_heard(
    autojump_clock: Clock,
) -> None:
    summary, _, _chat = await interrupted_call(
        3.5, heard="and on sunday", reply="One two three four five six.", interruption=DUCKED
    )

    assert [turn.interrupted for turn in summary.turns] == [False, False]
    assert summary.turns[0].heard == "One two three four five six."
    assert summary.turns[1].caller == "and on sunday"


# The bot's own words, come back.


async def test_the_echo_of_the_bots_words_is_no_interruption(autojump_clock: Clock) -> None:
    socket = FakeTwilio(voice=[(1.0, 2.0)], stop_at=12.0)
    ear, chat = FakeEar(["tell me"]), FakeChat([LONG, "Sorry."])

    async def echo() -> None:
        await trio.sleep_until(socket._began + 4.5)
        ear.push(Partial("three four five"))
        await trio.sleep(0.3)
        ear.push(Final("three four five six"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo)
        summary = await run_call(socket, ports(ear, chat), plan())

    assert socket.times(twilio.SendClear) == []
    assert [turn.heard for turn in summary.turns] == [LONG]


async def test_what_the_bot_will_only_say_is_no_echo(autojump_clock: Clock) -> None:
    socket = FakeTwilio(voice=[(1.0, 2.0)], stop_at=12.0)
    ear, chat = FakeEar(["tell me"]), FakeChat([LONG, "Sorry."])

    async def know_it_all() -> None:
        await trio.sleep_until(socket._began + 4.5)
        ear.push(Final("twelve thirteen fourteen"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(know_it_all)
        summary = await run_call(socket, ports(ear, chat), plan())

    assert len(socket.times(twilio.SendClear)) == 1
    assert [turn.caller for turn in summary.turns] == ["tell me", "twelve thirteen fourteen"]


async def test_an_echo_that_comes_behind_the_reply_is_no_turn(autojump_clock: Clock) -> None:
    socket = FakeTwilio(voice=[(1.0, 2.0)], stop_at=14.0)
    ear, chat = FakeEar(["tell me"]), FakeChat(["One two three four five.", "Sorry."])

    async def echo() -> None:
        await trio.sleep_until(socket._began + 5.5)
        ear.push(Final("three four five"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo)
        summary = await run_call(socket, ports(ear, chat), plan())

    assert [turn.heard for turn in summary.turns] == ["One two three four five."]


async def test_the_model_is_stopped_by_the_verdict_and_not_only_when_the_clear_is_written(
    autojump_clock: Clock,
) -> None:
    socket = FakeTwilio(voice=[(1.0, 2.0), (5.0, 6.0)], stop_at=13.0)

    async def stuck(message: twilio.Outbound) -> None:
        if isinstance(message, twilio.SendClear):
            await trio.sleep(2.0)

    socket.send_gate = stuck
    chat = FakeChat(["So it is. " * 40, "Sorry."], gap=0.1)  # a sentence in 0.3 s, from 2.65 s on

    summary, _, chat = await interrupted_call(
        5.0, socket=socket, chat=chat, interruption=Interruption(policy="commit")
    )

    assert socket.times(twilio.SendClear) == [pytest.approx(7.06, abs=0.1)]
    assert chat.cancelled == 1
    assert summary.turns[0].generated.count(".") == pytest.approx((5.06 - 2.65) / 0.3, abs=2)


async def test_two_interruptions_before_the_clear_is_written_wait_for_the_newer_verdict(
    autojump_clock: Clock,
) -> None:
    socket = FakeTwilio(voice=[(1.0, 2.0), (5.0, 5.2), (5.7, 7.0)], stop_at=13.0)

    async def stuck(message: twilio.Outbound) -> None:
        if isinstance(message, twilio.SendClear):
            await trio.sleep(1.0)

    socket.send_gate = stuck
    ear, chat = FakeEar(["tell me", "", "wait a moment"]), FakeChat([LONG, "Sorry."])

    summary = await run_call(socket, ports(ear, chat), plan())

    assert len(socket.times(twilio.SendClear)) == 1
    assert [turn.caller for turn in summary.turns] == ["tell me", "wait a moment"]
    assert summary.turns[0].interrupted


async def test_interruption_between_end_of_turn_and_reply_is_not_lost(
    autojump_clock: Clock,
) -> None:
    """The previous turn is still being torn down while the caller ends one and begins the next."""
    chat = FakeChat([f"First this. {LONG}", LONG, "Sorry."], gap=0.4, slow_close=2.5)
    socket = FakeTwilio(voice=[(1.0, 2.0), (4.0, 4.9), (6.2, 7.2)], stop_at=18.0)
    ear = FakeEar(["tell me", "no wait", "the other one"])

    summary = await run_call(socket, ports(ear, chat), plan())

    # The second turn never spoke: its words are joined to the third's.
    assert [turn.caller for turn in summary.turns][-1].endswith("the other one")
    assert chat.requests[-1][-1].content == "no wait the other one"
    assert summary.turns[-1].heard == "Sorry."


async def test_two_turns_that_end_while_the_reply_before_is_torn_down_are_answered_together(
    autojump_clock: Clock,
) -> None:
    chat = FakeChat([f"First this. {LONG}", "Sorry."], gap=0.4, slow_close=5.0)
    socket = FakeTwilio(voice=[(1.0, 2.0), (4.0, 4.6), (6.0, 6.6)], stop_at=18.0)
    ear = FakeEar(["tell me", "no wait", "the other one"])

    summary = await run_call(socket, ports(ear, chat), plan())

    assert [turn.caller for turn in summary.turns] == ["tell me", "no wait the other one"]
    assert chat.requests[1][-1].content == "no wait the other one"
    assert summary.turns[1].heard == "Sorry."


async def test_an_echo_that_comes_before_the_send_of_its_mark_returns_counts(
    autojump_clock: Clock,
) -> None:
    class Lagging(FakeTwilio):
        async def send(self, message: twilio.Outbound) -> None:
            await super().send(message)
            if isinstance(message, twilio.SendMark):
                await trio.sleep(0.3)

    summary = await run_call(Lagging(stop_at=6.0), ports(), plan(greeting="Hello there."))

    assert summary.turns[0].heard == "Hello there."
    assert (summary.counts["stale_marks"], summary.counts.get("lost_marks", 0)) == (0, 0)


# Providers that fail while the bot speaks or thinks.


async def test_a_failing_model_apologises_and_the_next_turn_is_answered(
    autojump_clock: Clock,
) -> None:
    chat = FakeChat([LONG, "Fine."], fail_after=0)
    socket = FakeTwilio(voice=[(1.0, 2.0), (7.0, 8.0)], stop_at=13.0)

    async def mend() -> None:
        await trio.sleep(6.5)
        chat.fail_after = None

    async with trio.open_nursery() as nursery:
        nursery.start_soon(mend)
        summary = await run_call(
            socket, ports(FakeEar(["tell me", "again"]), chat), plan(apology="Sorry.")
        )

    assert [turn.heard for turn in summary.turns] == ["Sorry.", "Fine."]
    assert summary.counts["thinking_failures"] == 1


async def test_a_model_that_stalls_is_given_up_in_time(autojump_clock: Clock) -> None:
    chat = FakeChat(["One two. Three four."], stall_after=3)
    socket = FakeTwilio(voice=[(1.0, 2.0)], stop_at=12.0)

    summary = await run_call(
        socket,
        ports(FakeEar(["tell me"]), chat),
        plan(apology="Sorry.", timeouts=Timeouts(token_gap_s=1.0)),
    )

    assert summary.turns[0].heard == "One two. Sorry."


@pytest.mark.parametrize("tries, first_s, after_s", [(1, 2.0, 2.0), (2, 2.0, 4.1), (9, 2.0, 5.0)])
async def test_a_model_that_never_begins_is_given_up_in_time(
    tries: int, first_s: float, after_s: float, autojump_clock: Clock
) -> None:
    socket = FakeTwilio(voice=[(1.0, 2.0)], stop_at=9.0)
    timeouts = Timeouts(first_token_s=first_s, answer_tries=tries, answer_s=5.0)

    summary = await run_call(
        socket,
        ports(FakeEar(["tell me"]), FakeChat([LONG] * 9, first=math.inf)),
        plan(apology="Sorry.", timeouts=timeouts),
    )

    assert summary.turns[0].heard == "Sorry."
    assert summary.turns[0].first_text == pytest.approx(2.55 + after_s, abs=0.1)


async def test_a_model_and_a_voice_that_are_far_ahead_are_not_taken_to_be_stalled(
    autojump_clock: Clock,
) -> None:
    """There are more sentences than may wait for synthesis, whose audio fills the reel."""
    reply = "So it is. " * 160  # 72 s of speech; 64 sentences wait, and 20 s of audio
    socket = FakeTwilio(voice=[(1.0, 2.0)], stop_at=90.0)

    summary = await run_call(
        socket,
        ports(FakeEar(["tell me"]), FakeChat([reply], gap=0.0), FakeVoice(first=0.0)),
        plan(timeouts=Timeouts(token_gap_s=0.3, audio_gap_s=0.1)),
    )

    assert summary.turns[0].heard == reply.strip()
    assert "thinking_failures" not in summary.counts
    assert "synthesis_failures" not in summary.counts


async def test_a_voice_that_stalls_is_given_up_in_time_and_the_next_turn_is_answered(
    autojump_clock: Clock,
) -> None:
    class Stalling(FakeVoice):
        async def _chunks(self, text: str, index: int) -> Any:
            yield bytes([code("x")]) * 800
            if index == 0:
                await trio.sleep_forever()

    socket = FakeTwilio(voice=[(1.0, 2.0), (7.0, 8.0)], stop_at=13.0)

    summary = await run_call(
        socket,
        ports(FakeEar(["tell me", "again"]), FakeChat([LONG, "Fine."]), Stalling()),
        plan(timeouts=Timeouts(audio_gap_s=1.0)),
    )

    assert [turn.interrupted for turn in summary.turns] == [False, False]
    assert summary.turns[1].heard == "Fine."


async def test_synthesis_that_fails_twice_ends_the_call(autojump_clock: Clock) -> None:
    class Broken(FakeVoice):
        async def _chunks(self, text: str, index: int) -> Any:
            self.fail_on = index
            async for chunk in super()._chunks(text, index):
                yield chunk

    voice = Broken(fail_late=True)
    socket = FakeTwilio(voice=[(1.0, 2.0), (6.0, 7.0)], stop_at=30.0)

    summary = await run_call(
        socket, ports(FakeEar(["one", "two"]), FakeChat([LONG, LONG]), voice), plan()
    )

    assert summary.outcome is Outcome.NO_SPEECH
    assert summary.counts["synthesis_failures"] == 3  # what was to be said about it as well
    # Only what was audible before it broke is kept.
    assert LONG.startswith(summary.turns[0].heard)
    assert len(summary.turns[0].heard) < 10


@pytest.mark.parametrize("piece", [0, 1])
async def test_a_piece_that_could_not_be_spoken_is_tried_once_more(
    piece: int, autojump_clock: Clock
) -> None:
    reply = "One two three four five six. Seven eight nine ten."
    voice = FakeVoice(stall_on=piece)
    socket = FakeTwilio(voice=[(1.0, 2.0)], stop_at=12.0)

    summary = await run_call(
        socket,
        ports(FakeEar(["one"]), FakeChat([reply]), voice),
        plan(timeouts=Timeouts(first_audio_s=1.0)),
    )

    assert voice.texts[piece] == voice.texts[piece + 1]
    assert [turn.heard for turn in summary.turns] == [reply]
    (failure,) = [moment for moment in summary.timeline if moment.what == "provider_failed"]
    assert failure.detail["provider"] == "FakeVoice"


async def test_synthesis_that_breaks_while_the_model_still_speaks_ends_that_reply_only(
    autojump_clock: Clock,
) -> None:
    class Hoarse(FakeVoice):
        async def _chunks(self, text: str, index: int) -> Any:
            self.fail_on = index if text == "Two is said." else None
            async for chunk in super()._chunks(text, index):
                yield chunk

    voice = Hoarse(fail_late=True)
    # The first sentence is still playing when the model comes to the third.
    reply = "One two three four five six. Two is said. Three is said. Four is said."
    chat = FakeChat([reply, "Fine."], gap=0.1)
    socket = FakeTwilio(voice=[(1.0, 2.0), (8.0, 9.0)], stop_at=14.0)

    summary = await run_call(socket, ports(FakeEar(["one", "two"]), chat, voice), plan())

    assert summary.outcome is Outcome.HUNG_UP
    assert summary.turns[0].heard.startswith("One two three four five six.")
    assert chat.cancelled == 1
    assert summary.turns[1].heard == "Fine."


async def test_a_model_with_nothing_to_say_apologises(autojump_clock: Clock) -> None:
    socket = FakeTwilio(voice=[(1.0, 2.0)], stop_at=8.0)

    summary = await run_call(
        socket, ports(FakeEar(["hi"]), FakeChat(["👍"])), plan(apology="Sorry.")
    )

    assert [turn.heard for turn in summary.turns] == ["Sorry."]


async def test_a_trickling_voice_is_not_filled_with_silence(autojump_clock: Clock) -> None:
    socket = FakeTwilio(stop_at=12.0)

    summary = await run_call(
        socket, ports(voice=FakeVoice(speed=0.95, chunk=200)), plan(greeting="One two three four.")
    )

    sent = b"".join(m.audio for _, m in socket.sent if isinstance(m, twilio.SendMedia))
    assert sent.rstrip(b"\xff").count(0xFF) == 0
    assert len(sent) - len("One two three four.") * CHAR < 160
    assert summary.turns[0].first_media == summary.turns[0].first_audio  # with its first frame


async def test_provider_endpointing_answers_at_utterance_end(autojump_clock: Clock) -> None:
    socket = FakeTwilio(stop_at=6.0)
    ear = FakeEar([])
    ear.push(Final("are you open"))
    ear.push(UtteranceEnd())

    summary = await run_call(socket, ports(ear, FakeChat(["Yes."]), endpointing="provider"), plan())

    assert [turn.heard for turn in summary.turns] == ["Yes."]


def test_a_reply_heard_through_a_stall_with_no_mark_echoed_is_not_cut() -> None:
    """What is learnt of the line while the last mark is waited for counts as well."""
    call = hold(
        Script((caller_says("x", At(6.0)),)),
        toy_ports(),
        CallPlan("Be brief.", "one two three"),
        network=Network(frame_ms=100, lost_marks=1.0, stalls=((0.4, 0.95),)),
    )

    assert call.summary.turns[0].heard == "one two three"
    assert not call.summary.turns[0].interrupted


# In the very step in which the caller is heard something else happens as well.

STEPS = range(8)  # checkpoints later than the interruption: speak is joined, the clear written


class Noticed:
    """Happens `steps` checkpoints after the first interruption; shown the call's timeline."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._heard = trio.Event()

    def __call__(self, moment: Moment) -> None:
        if moment.what == "interrupt":
            self._heard.set()

    async def wait(self) -> None:
        await self._heard.wait()
        for _ in range(self._steps):
            await trio.lowlevel.checkpoint()


class BreaksWhen(FakeChat):
    """Says its first reply without its last word, then waits for something and breaks."""

    noticed: Noticed

    async def _words(self, parts: Sequence[str | ToolCall]) -> Any:
        words = super()._words(parts)
        try:
            async for word in words:
                if len(self.requests) == 1 and word == "fourteen. ":
                    await self.noticed.wait()
                    raise ProviderError("chat", "broke")
                yield word
        finally:
            with trio.move_on_after(1, shield=True):
                await words.aclose()


class ChokesWhen(FakeVoice):
    """Speaks half of its first piece, then waits for something and breaks."""

    noticed: Noticed

    async def _chunks(self, text: str, index: int) -> Any:
        given = 0
        chunks = super()._chunks(text, index)
        try:
            async for chunk in chunks:
                yield chunk
                given += len(chunk)
                if index == 0 and given > len(text) * CHAR * 0.75:
                    await self.noticed.wait()
                    raise ProviderError("voice", "broke")
        finally:
            with trio.move_on_after(1, shield=True):
                await chunks.aclose()


async def one_interruption(
    noticed: Noticed, *, chat: FakeChat | None = None, voice: FakeVoice | None = None
) -> tuple[CallSummary, FakeTwilio]:
    socket = FakeTwilio(voice=[(1.0, 2.0), (5.0, 6.0)], stop_at=13.0)
    ear = FakeEar(["tell me", "stop please"])
    chat = chat or FakeChat([LONG, "Sorry."])
    summary = await run_call(socket, ports(ear, chat, voice), plan(), watch=noticed)
    return summary, socket


def check_answered_after_one_clear(summary: CallSummary, socket: FakeTwilio) -> None:
    assert len(socket.times(twilio.SendClear)) == 1
    assert socket.media_after_clear(until=6.2) == 0
    assert [turn.interrupted for turn in summary.turns] == [True, False]
    assert summary.turns[1].caller == "stop please"
    assert summary.turns[1].heard == "Sorry."
    assert LONG.startswith(summary.turns[0].heard)
    assert 4 <= len(summary.turns[0].heard.split()) <= 10
    assert summary.outcome is Outcome.HUNG_UP


@pytest.mark.parametrize("steps", STEPS)
async def test_barge_in_in_the_step_in_which_the_model_breaks(
    steps: int, autojump_clock: Clock
) -> None:
    noticed = Noticed(steps)
    # All but the last two words are a sentence, and are spoken while the model waits.
    chat = BreaksWhen([LONG.replace("twelve thirteen", "twelve. Thirteen"), "Sorry."])
    chat.noticed = noticed
    summary, socket = await one_interruption(noticed, chat=chat)

    (generated, heard) = (summary.turns[0].generated, summary.turns[0].heard)
    assert generated.startswith(heard)
    assert len(socket.times(twilio.SendClear)) == 1
    assert socket.media_after_clear(until=6.2) == 0
    assert summary.turns[1].caller == "stop please"
    assert summary.turns[1].heard == "Sorry."
    assert "I" not in heard  # no apology over the caller


@pytest.mark.parametrize("steps", STEPS)
async def test_barge_in_in_the_step_in_which_the_voice_breaks(
    steps: int, autojump_clock: Clock
) -> None:
    noticed = Noticed(steps)
    voice = ChokesWhen()
    voice.noticed = noticed
    summary, socket = await one_interruption(noticed, voice=voice)

    check_answered_after_one_clear(summary, socket)
    assert summary.counts.get("synthesis_failures", 0) <= 1


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("how", ["stop", "socket gone", "server stops"])
async def test_barge_in_in_the_step_in_which_the_call_ends(
    how: str, steps: int, autojump_clock: Clock
) -> None:
    noticed, server = Noticed(steps), trio.CancelScope()
    ended: list[CallSummary] = []

    class Ending(FakeTwilio):
        over: str = ""

        async def receive(self) -> twilio.Inbound:
            while not self.over:
                with trio.CancelScope() as self.receiving:
                    return await super().receive()
            await trio.lowlevel.checkpoint()
            if self.over == "stop":
                return twilio.Stop()
            raise SocketClosed(1006)

        async def send(self, message: twilio.Outbound) -> None:
            if self.over == "socket gone":
                await trio.lowlevel.checkpoint()
                raise SocketClosed(1006)
            await super().send(message)

    socket = Ending(voice=[(1.0, 2.0), (5.0, 6.0)], stop_at=13.0)

    async def end() -> None:
        await noticed.wait()
        if how == "server stops":
            server.cancel()
        else:
            socket.over = how
            socket.receiving.cancel()

    ear, chat = FakeEar(["tell me", "stop please"]), FakeChat([LONG, "Sorry."])
    tasks = trio.lowlevel.current_statistics().tasks_living
    async with trio.open_nursery() as nursery:
        nursery.start_soon(end)
        with server:
            await run_call(socket, ports(ear, chat), plan(), on_end=ended.append, watch=noticed)
        # At once: no provider, no verdict and no mark is waited for.
        assert trio.current_time() - socket._began == pytest.approx(5.06, abs=0.025)
    assert trio.lowlevel.current_statistics().tasks_living == tasks

    (summary,) = ended
    assert (
        summary.outcome
        is {
            "stop": Outcome.HUNG_UP,
            "socket gone": Outcome.SOCKET_CLOSED,
            "server stops": Outcome.CANCELLED,
        }[how]
    )
    assert len(socket.times(twilio.SendClear)) <= 1
    assert [turn.interrupted for turn in summary.turns] == [True]
    assert LONG.startswith(summary.turns[0].heard)
    assert 4 <= len(summary.turns[0].heard.split()) <= 10


# What is on record of it.


async def test_an_interruption_that_was_meant_is_on_record(autojump_clock: Clock) -> None:
    summary, _, _ = await interrupted_call(5.0)

    [barge_in] = summary.barge_ins
    assert (barge_in.turn, barge_in.meant, barge_in.cleared) == (0, True, True)
    assert barge_in.onset == pytest.approx(5.0, abs=0.021)
    assert barge_in.noticed == pytest.approx(5.06, abs=0.021)
    assert barge_in.last_media is not None
    assert barge_in.noticed - 0.07 <= barge_in.last_media <= barge_in.noticed
    assert barge_in.silenced == barge_in.noticed  # no time passes between the two
    assert barge_in.echoed == pytest.approx(barge_in.silenced, abs=0.02)
    assert barge_in.decided == pytest.approx(6.3, abs=0.03)  # with the words
    assert barge_in.resumed is None
    # How long the caller waited for the answer, from when the ears let go.
    assert summary.turns[1].fell == pytest.approx(6.2, abs=0.021)


async def test_an_interruption_that_was_not_meant_is_on_record(autojump_clock: Clock) -> None:
    summary, socket, _ = await interrupted_call(5.0, for_s=0.3, heard="")

    [barge_in] = summary.barge_ins
    assert barge_in.meant is False
    assert barge_in.decided == pytest.approx(5.6, abs=0.03)
    again = [at for at in socket.times(twilio.SendMedia) if at > 5.1]
    assert barge_in.resumed == pytest.approx(again[0], abs=0.002)


async def test_an_interruption_of_nothing_audible_is_on_record(autojump_clock: Clock) -> None:
    summary, _, _ = await interrupted_call(2.6)

    [barge_in] = summary.barge_ins
    assert (barge_in.cleared, barge_in.last_media, barge_in.echoed) == (False, None, None)
    assert barge_in.silenced == barge_in.noticed
    assert barge_in.meant is True


async def test_each_interruption_has_its_own_record(autojump_clock: Clock) -> None:
    coughs = [(4.0, 4.1), (5.0, 5.1), (6.0, 6.1)]
    socket = FakeTwilio(voice=[(1.0, 2.0), *coughs], stop_at=18.0)
    summary = await run_call(socket, ports(FakeEar(["tell me"]), FakeChat([LONG])), plan())

    assert [round(b.onset) for b in summary.barge_ins] == [4, 5, 6]
    assert [b.meant for b in summary.barge_ins] == [False] * 3
    assert summary.counts["refuted"] == 3
    for barge_in in summary.barge_ins:
        assert barge_in.silenced is not None
        assert barge_in.resumed is not None
        assert barge_in.onset < barge_in.silenced < barge_in.resumed < barge_in.onset + 1.0


async def test_a_ducked_interruption_is_silenced_when_it_was_ducked(
    autojump_clock: Clock,
) -> None:
    summary, socket, _ = await interrupted_call(5.0, interruption=DUCKED)

    [barge_in] = summary.barge_ins
    assert barge_in.silenced == pytest.approx(socket.times(twilio.SendClear)[0], abs=0.002)
    assert barge_in.meant is True
    assert barge_in.resumed is None  # it went on, but not because it was known to be noise


async def test_a_turn_that_ends_before_the_reply_to_the_last_has_begun_to_speak_is_the_next(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words, and the end of them, in the step in which the reply becomes a turn."""

    class Call(nursery._Call):
        def _begin(self, reply: Reply) -> None:
            super()._begin(reply)
            if reply.record.number == 0:
                words = Final("no two", end_of_turn=True)
                self._obey(self._turns.transcript(words, trio.current_time()))

    monkeypatch.setattr(nursery, "_Call", Call)
    ear, chat = FakeEar([]), FakeChat(["Never.", "Two."])
    ear.push(Final("one", end_of_turn=True))

    call = ports(ear, chat, endpointing="provider")
    summary = await run_call(FakeTwilio(stop_at=5.0), call, plan())

    first, second = summary.turns
    assert (first.caller, first.heard, first.interrupted) == ("one", "", True)
    assert (second.caller, second.heard) == ("no two", "Two.")
    assert chat.requests[-1][-1].content == "one no two"
