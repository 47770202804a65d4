"""What the caller hears while providers fail: fillers, apologies, and the end."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import trio
import trio.testing

from tests.fakes import CHAR, FakeChat, FakeEar, FakeTool, FakeTwilio, FakeVoice, code, plan, ports
from voicebot import twilio
from voicebot.errors import ProviderError, RequestTooLong
from voicebot.nursery import run_call
from voicebot.patience import Endpointing
from voicebot.plan import Timeouts
from voicebot.ports import Ports, Tool, ToolCall
from voicebot.record import CallSummary, Outcome

Clock = trio.testing.MockClock

FILLER, AGAIN = "Wait.", "Still here."
TEXTS = {"fillers": (FILLER, AGAIN), "apology": "Sorry.", "trouble": "Broken. Bye."}
TIMES = Timeouts(filler_s=2.0, first_token_s=30.0, answer_s=30.0, first_audio_s=30.0)
TURN_S = 2.55  # when a turn that is spoken from 1.0 to 2.0 s has ended


def canned(*texts: str) -> Callable[[str], bytes | None]:
    """Return what knows the sound of these pieces."""
    return lambda piece: (
        b"".join(bytes([code(char)]) * CHAR for char in piece) if piece in texts else None
    )


KNOWN = canned(FILLER, AGAIN, "Sorry.", "Broken.", "Bye.")


class Mute(FakeVoice):
    """A voice that fails at once, whatever it is asked to say."""

    async def _chunks(self, text: str, index: int) -> Any:
        raise ProviderError("voice", "down")
        yield b""


def fillers(summary: CallSummary) -> list[float]:
    return [round(moment.at, 1) for moment in summary.timeline if moment.what == "filler"]


async def test_a_slow_model_is_bridged_and_then_heard(autojump_clock: Clock) -> None:
    socket = FakeTwilio(voice=[(1.0, 2.0)], stop_at=16.0)

    summary = await run_call(
        socket,
        ports(FakeEar(["tell me"]), FakeChat(["Yes."], first=7.0), canned=KNOWN),
        plan(timeouts=TIMES, **TEXTS),
    )

    # Each 2 s behind the end of what was heard before: 0.25 s of the first, 0.55 s of the second.
    assert fillers(summary) == pytest.approx([TURN_S + 2.0, TURN_S + 4.25, TURN_S + 6.8], abs=0.25)
    (turn,) = summary.turns
    assert turn.heard == turn.generated == "Yes."
    assert turn.first_media == pytest.approx(TURN_S + 7.2, abs=0.3)


async def test_a_slow_voice_is_bridged(autojump_clock: Clock) -> None:
    socket = FakeTwilio(voice=[(1.0, 2.0)], stop_at=12.0)

    summary = await run_call(
        socket,
        ports(FakeEar(["tell me"]), FakeChat(["Yes."]), FakeVoice(first=3.0), canned=KNOWN),
        plan(timeouts=TIMES, **TEXTS),
    )

    assert len(fillers(summary)) == 1
    assert summary.turns[0].heard == "Yes."


async def test_a_slow_tool_is_bridged(autojump_clock: Clock) -> None:
    tool = FakeTool(takes=3.0)
    chat = FakeChat([[ToolCall("1", "book", "{}")], "Done."])
    socket = FakeTwilio(voice=[(1.0, 2.0)], stop_at=12.0)

    summary = await run_call(
        socket,
        ports(FakeEar(["book it"]), chat, tools=(tool.tool(),), canned=KNOWN),
        plan(timeouts=TIMES, **TEXTS),
    )

    assert len(fillers(summary)) == 1
    assert summary.turns[0].heard == "Done."


LOOK = "Let me look."


def slow(takes: float, after: float = 0.8, filler: str = LOOK, name: str = "book") -> Tool:
    """A tool that takes its time, and has words for it."""
    return replace(FakeTool(name, takes).tool(), filler=filler, filler_after_s=after)


def asides(summary: CallSummary) -> list[float]:
    """When each filler was said, after the first tool was asked for."""
    [asked, *_] = [moment.at for moment in summary.timeline if moment.what == "tool"]
    return [at - asked for at in fillers(summary)]


@pytest.mark.parametrize(
    "takes, said",
    [
        (0.5, []),  # back in time
        (1.5, [0.8]),
        (2.9, [0.8]),  # once, and then the usual ones: 2 s behind the end of its 0.6 s
        (6.0, [0.8, 3.4, 5.6]),
    ],
)
async def test_a_slow_tool_has_words_of_its_own(
    takes: float, said: list[float], autojump_clock: Clock
) -> None:
    chat = FakeChat([[ToolCall("1", "book", "{}")], "Done."])
    socket = FakeTwilio(voice=[(1.0, 2.0)], stop_at=14.0)
    known = canned(LOOK, FILLER, AGAIN)

    summary = await run_call(
        socket,
        ports(FakeEar(["book it"]), chat, tools=(slow(takes),), canned=known),
        plan(timeouts=TIMES, **TEXTS),
    )

    assert asides(summary) == pytest.approx(said, abs=0.25)
    (turn,) = summary.turns
    assert turn.heard == turn.generated == "Done."  # an aside is nothing that was answered


@pytest.mark.parametrize("speed", [10.0, 1.2])
async def test_words_of_a_tool_do_not_fall_into_what_is_being_said(
    speed: float, autojump_clock: Clock
) -> None:
    said = "This is said while the tool runs."  # for 1.65 s
    chat = FakeChat([[said, ToolCall("1", "book", "{}")], "Done."])
    socket = FakeTwilio(voice=[(1.0, 2.0)], stop_at=14.0)

    summary = await run_call(
        socket,
        ports(
            FakeEar(["book it"]),
            chat,
            FakeVoice(speed=speed),
            tools=(slow(3.5),),
            canned=canned(LOOK),
        ),
        plan(timeouts=TIMES, **TEXTS),
    )

    assert asides(summary) == pytest.approx([1.65 + 0.8], abs=0.4)
    assert summary.turns[0].heard == f"{said} Done."


async def test_words_of_several_tools_are_said_as_they_are_due(autojump_clock: Clock) -> None:
    calls = [ToolCall("1", "book", "{}"), ToolCall("2", "look", "{}"), ToolCall("3", "mute", "{}")]
    chat = FakeChat([calls, "Done."])
    socket = FakeTwilio(voice=[(1.0, 2.0)], stop_at=14.0)
    tools = (
        slow(4.0, after=1.6),
        slow(4.0, after=0.4, filler="Hm.", name="look"),
        slow(4.0, after=0.6, filler="Nobody knows how that sounds.", name="mute"),
    )

    summary = await run_call(
        socket,
        ports(FakeEar(["book it"]), chat, tools=tools, canned=canned(LOOK, "Hm.")),
        plan(timeouts=TIMES, **TEXTS),
    )

    # The second is silent for 0.15 s, and the first waits from then on.
    assert asides(summary) == pytest.approx([0.4, 0.55 + 1.6], abs=0.3)


async def test_nobody_is_bridged_who_hears_the_reply_in_time(autojump_clock: Clock) -> None:
    socket = FakeTwilio(voice=[(1.0, 2.0)], stop_at=30.0)
    reply = "This is a long answer that takes more than three seconds to be said. And another one."

    summary = await run_call(
        socket,
        ports(FakeEar(["tell me"]), FakeChat([reply], first=1.5, gap=0.03), canned=KNOWN),
        plan(timeouts=TIMES, **TEXTS),
    )

    assert summary.turns[0].heard == reply
    assert fillers(summary) == []


@pytest.mark.parametrize("first", ["One two three four five six.", "One two three four five 6."])
async def test_silence_is_counted_from_what_was_heard_last(
    first: str, autojump_clock: Clock
) -> None:
    chat = FakeChat([f"{first} Two."])

    class Slow(FakeVoice):
        async def _chunks(self, text: str, index: int) -> Any:
            if index == 1:
                await trio.sleep(5.0)
            async for chunk in super()._chunks(text, index):
                yield chunk

    socket = FakeTwilio(voice=[(1.0, 2.0)], stop_at=15.0)

    summary = await run_call(
        socket,
        ports(FakeEar(["tell me"]), chat, Slow(), canned=KNOWN),
        plan(timeouts=TIMES, **TEXTS),
    )

    first_s = len(first) * CHAR / 8_000
    began = summary.turns[0].first_media
    assert began is not None
    assert fillers(summary) == pytest.approx([began + first_s + 2.0], abs=0.1)
    assert summary.turns[0].heard == f"{first} Two."


async def test_nothing_is_put_into_a_sentence_that_stalls(autojump_clock: Clock) -> None:
    class Stalls(FakeVoice):
        async def _chunks(self, text: str, index: int) -> Any:
            chunks = super()._chunks(text, index)
            async for chunk in chunks:
                yield chunk
                await trio.sleep(3.5 if len(self.texts) == 1 else 0)
                self.texts.append("")

    socket = FakeTwilio(voice=[(1.0, 2.0)], stop_at=15.0)

    summary = await run_call(
        socket,
        ports(FakeEar(["tell me"]), FakeChat(["One two."]), Stalls(), canned=KNOWN),
        plan(timeouts=Timeouts(filler_s=2.0, audio_gap_s=10.0), **TEXTS),
    )

    assert fillers(summary) == []
    assert summary.turns[0].heard == "One two."


@pytest.mark.parametrize("piece", [0, 1])
async def test_a_sentence_that_broke_off_is_begun_again(piece: int, autojump_clock: Clock) -> None:
    reply = "One two three four five six. Seven eight nine ten."
    sentence = reply.split(". ")[piece].rstrip(".") + "."
    socket = FakeTwilio(voice=[(1.0, 2.0)], stop_at=12.0)

    summary = await run_call(
        socket,
        ports(FakeEar(["tell me"]), FakeChat([reply]), FakeVoice(fail_on=piece, fail_late=True)),
        plan(**TEXTS),
    )

    assert summary.turns[0].heard == reply
    assert summary.counts["synthesis_restarts"] == 1
    sound = canned(sentence)(sentence)
    assert sound is not None
    assert socket.heard().count(sound[:1_000]) == 2


async def test_a_sentence_that_stalls_and_is_slow_again_is_bridged_in_time(
    autojump_clock: Clock,
) -> None:
    class Late(FakeVoice):
        async def _chunks(self, text: str, index: int) -> Any:
            await trio.sleep(1.5 + 2.0 * index)  # so that silence is looked at in the stall
            sound = canned(text)(text) or b""
            yield sound[:CHAR]
            if index == 0:
                await trio.sleep_forever()
            yield sound[CHAR:]

    socket = FakeTwilio(voice=[(1.0, 2.0)], stop_at=15.0)
    times = Timeouts(filler_s=2.0, audio_gap_s=1.8, first_audio_s=4.0)

    summary = await run_call(
        socket,
        ports(FakeEar(["tell me"]), FakeChat(["One two."]), Late(), canned=KNOWN),
        plan(timeouts=times, **TEXTS),
    )

    # The first try is left after 1.8 s, and silence has lasted since what it gave.
    began = summary.turns[0].first_media
    assert began is not None
    assert fillers(summary) == pytest.approx([began + 2.0, began + 4.25], abs=0.2)
    assert summary.turns[0].heard == "One two."
    assert summary.counts["synthesis_restarts"] == 1


async def test_no_filler_over_a_caller_who_speaks(autojump_clock: Clock) -> None:
    # The caller goes on while the bot thinks; it is the ears that know.
    socket = FakeTwilio(voice=[(1.0, 2.0), (3.0, 7.0)], stop_at=9.0)

    summary = await run_call(
        socket,
        ports(FakeEar(["tell me", "more"]), FakeChat(["Yes."] * 2, first=math.inf), canned=KNOWN),
        plan(timeouts=TIMES, **TEXTS),
    )

    assert [at for at in fillers(summary) if 3.0 < at < 7.3] == []


async def test_no_filler_for_a_turn_that_is_only_guessed(autojump_clock: Clock) -> None:
    patient = Endpointing(hangover_ms=5_000, guesses=1)
    socket = FakeTwilio(voice=[(1.0, 2.0)], stop_at=9.5)

    summary = await run_call(
        socket,
        ports(FakeEar(["tell me"]), FakeChat(["Yes."], first=4.5), canned=KNOWN),
        plan(timeouts=TIMES, endpointing=patient, **TEXTS),
    )

    assert summary.counts["guesses"] == 1
    assert fillers(summary) == []


async def test_an_interruption_of_a_filler_is_one_of_the_reply(autojump_clock: Clock) -> None:
    socket = FakeTwilio(voice=[(1.0, 2.0), (4.65, 5.5)], stop_at=12.0)
    chat = FakeChat(["Never.", "Yes."], first=4.0)

    summary = await run_call(
        socket,
        ports(FakeEar(["tell me", "no wait"]), chat, canned=canned("Wait, it takes some time.")),
        plan(timeouts=TIMES, **{**TEXTS, "fillers": ("Wait, it takes some time.",)}),
    )

    assert len(socket.times(twilio.SendClear)) == 1
    assert socket.media_after_clear(until=7.0) == 0
    assert [turn.caller for turn in summary.turns] == ["tell me", "no wait"]
    assert summary.turns[0].heard == ""


async def test_without_their_sound_there_are_no_fillers(autojump_clock: Clock) -> None:
    socket = FakeTwilio(voice=[(1.0, 2.0)], stop_at=12.0)
    half = canned("Wait.")  # of a filler with two pieces

    summary = await run_call(
        socket,
        ports(FakeEar(["tell me"]), FakeChat(["Yes."], first=4.0), canned=half),
        plan(timeouts=TIMES, **{**TEXTS, "fillers": ("Wait. It takes long.",)}),
    )

    assert fillers(summary) == []
    assert summary.turns[0].heard == "Yes."


async def test_what_is_known_needs_no_voice(autojump_clock: Clock) -> None:
    voice = FakeVoice()
    socket = FakeTwilio(stop_at=4.0)

    summary = await run_call(
        socket, ports(voice=voice, canned=canned("Hello.")), plan(greeting="Hello. Who is it?")
    )

    assert voice.texts == ["Who is it?"]
    assert summary.turns[0].heard == "Hello. Who is it?"
    assert summary.turns[0].first_media == pytest.approx(0.0, abs=0.01)


async def test_who_cannot_speak_says_sorry_and_at_last_gives_up(autojump_clock: Clock) -> None:
    socket = FakeTwilio(voice=[(1.0, 2.0), (6.0, 7.0)], stop_at=30.0)

    summary = await run_call(
        socket,
        ports(FakeEar(["one", "two"]), FakeChat(["Yes.", "No."]), Mute(), canned=KNOWN),
        plan(**TEXTS),
    )

    assert summary.outcome is Outcome.NO_SPEECH
    assert [turn.generated for turn in summary.turns] == ["Yes.", "No.", "Broken. Bye."]
    assert summary.turns[2].heard == "Broken. Bye."
    sound = socket.heard()
    assert sound.count(KNOWN("Sorry.") or b"!") == 2


async def test_who_cannot_say_anything_at_all_hangs_up_at_once(autojump_clock: Clock) -> None:
    socket = FakeTwilio(stop_at=30.0)

    summary = await run_call(socket, ports(voice=Mute()), plan(greeting="Hello."))

    assert summary.outcome is Outcome.NO_SPEECH
    assert summary.duration_s < 1.0


async def test_who_has_no_answers_gives_up(autojump_clock: Clock) -> None:
    socket = FakeTwilio(voice=[(1.0, 2.0), (6.0, 7.0)], stop_at=30.0)

    summary = await run_call(
        socket,
        ports(FakeEar(["one", "two"]), FakeChat(["x"] * 9, fail_after=0)),
        plan(**TEXTS),
    )

    assert summary.outcome is Outcome.NO_ANSWERS
    assert [turn.heard for turn in summary.turns] == ["Sorry.", "Sorry.", "Broken. Bye."]


class EveryOther(FakeChat):
    """A model that fails with each first of two requests."""

    async def _words(self, parts: Any) -> Any:
        if len(self.requests) % 2:
            raise ProviderError("chat", "broke")
        async for word in super()._words(parts):
            yield word


async def test_who_breaks_in_before_the_apology_has_a_sound_is_answered(
    autojump_clock: Clock,
) -> None:
    socket = FakeTwilio(voice=[(1.0, 2.0), (4.0, 5.0)], stop_at=15.0)

    summary = await run_call(
        socket,
        ports(FakeEar(["a", "b"]), EveryOther(["Yes."] * 9), FakeVoice(first=3.0)),
        plan(timeouts=TIMES, **TEXTS),
    )

    assert summary.outcome is Outcome.HUNG_UP
    assert [(t.generated, t.heard) for t in summary.turns] == [("Sorry.", ""), ("Yes.", "Yes.")]


async def test_who_breaks_in_on_one_unheard_apology_after_the_other_is_told_at_last(
    autojump_clock: Clock,
) -> None:
    socket = FakeTwilio(voice=[(1.0, 2.0), (4.0, 5.0), (7.0, 8.0)], stop_at=25.0)

    summary = await run_call(
        socket,
        ports(FakeEar(["a", "b", "c"]), FakeChat(["x"] * 9, fail_after=0), FakeVoice(first=3.0)),
        plan(timeouts=TIMES, **TEXTS),
    )

    assert summary.outcome is Outcome.NO_ANSWERS
    assert [turn.heard for turn in summary.turns] == ["", "", "Broken. Bye."]


async def test_an_answer_in_between_begins_the_count_anew(autojump_clock: Clock) -> None:
    voice = [(1.0 + 5 * n, 2.0 + 5 * n) for n in range(4)]
    socket = FakeTwilio(voice=voice, stop_at=25.0)

    summary = await run_call(
        socket, ports(FakeEar(["a", "b", "c", "d"]), EveryOther(["Yes."] * 9)), plan(**TEXTS)
    )

    assert [turn.heard for turn in summary.turns] == ["Sorry.", "Yes.", "Sorry.", "Yes."]
    assert summary.outcome is Outcome.HUNG_UP


class Narrow(FakeChat):
    """Takes no more than so many messages besides the prompt."""

    room: int = 0

    async def _words(self, parts: Any) -> Any:
        if len(self.requests[-1]) - 1 > self.room:
            raise RequestTooLong("chat", "too long", status=413)
        async for word in super()._words(parts):
            yield word


@pytest.mark.parametrize("room, answered", [(3, True), (0, False)])
async def test_a_conversation_that_is_too_long_is_shown_shorter(
    room: int, answered: bool, autojump_clock: Clock
) -> None:
    voice = [(1.0 + 5 * n, 2.0 + 5 * n) for n in range(4)]
    socket = FakeTwilio(voice=voice, stop_at=22.0)
    chat = Narrow(["Yes, that is so."] * 40)
    chat.room = room

    summary = await run_call(
        socket,
        ports(FakeEar(["tell me of the first thing"] * 4), chat),
        plan(timeouts=Timeouts(failures=9, idle_s=0), **TEXTS),
    )

    said = "Yes, that is so." if answered else "Sorry."
    assert [turn.heard for turn in summary.turns] == [said] * 4
    assert (summary.counts.get("contexts_shrunk", 0) > 0) is answered
    assert chat.requests[-1][-1].content.endswith("tell me of the first thing")


# Who takes the caller then.


class Carrier:
    """Notes what the carrier is asked to do."""

    def __init__(self) -> None:
        self.asked: list[object] = []

    async def hang_up(self, sid: str) -> None:
        await trio.lowlevel.checkpoint()
        self.asked.append("hang up")

    async def hand_over(self, sid: str, say: bool) -> None:
        await trio.lowlevel.checkpoint()
        self.asked.append(("hand over", say))


def failing_answers(**changes: Any) -> Ports:
    return ports(FakeEar(["one", "two"]), FakeChat(["x"] * 9, fail_after=0), **changes)


def mute(**changes: Any) -> Ports:
    return ports(voice=Mute(), **changes)


def deaf(**changes: Any) -> Ports:
    return ports(FakeEar([], fail_opens=99), **changes)


def crashing(**changes: Any) -> Ports:
    return ports(**{**changes, "open_ears": lambda: 1 // 0})


@pytest.mark.parametrize(
    "make, outcome, asked",
    [
        (failing_answers, Outcome.NO_ANSWERS, ("hand over", False)),
        (deaf, Outcome.NO_RECOGNITION, ("hand over", False)),
        (mute, Outcome.NO_SPEECH, ("hand over", True)),
        (crashing, Outcome.CRASHED, ("hand over", True)),
    ],
)
async def test_the_carrier_takes_the_caller_from_a_bot_that_cannot_go_on(
    make: Callable[..., Ports], outcome: Outcome, asked: object, autojump_clock: Clock
) -> None:
    carrier = Carrier()
    socket = FakeTwilio(voice=[(3.0, 4.0), (9.0, 10.0)], stop_at=40.0)

    summary = await run_call(
        socket,
        make(hang_up=carrier.hang_up, hand_over=carrier.hand_over),
        plan(greeting="Hello.", farewell="Bye.", **TEXTS),
    )

    assert summary.outcome is outcome
    assert carrier.asked == [asked]


async def test_the_carrier_says_what_the_caller_did_not_let_the_bot_say(
    autojump_clock: Clock,
) -> None:
    """Who speaks over the farewell is not kept waiting for a verdict that nobody can give."""
    carrier = Carrier()
    socket = FakeTwilio(voice=[(2.5, 30.0)], stop_at=40.0)

    summary = await run_call(
        socket,
        deaf(hang_up=carrier.hang_up, hand_over=carrier.hand_over),
        plan(greeting="Hello.", farewell="Sorry, I cannot hear you. " * 3, **TEXTS),
    )

    assert summary.outcome is Outcome.NO_RECOGNITION
    assert summary.turns[-1].interrupted
    assert "Sorry" in summary.turns[-1].heard
    assert summary.duration_s < 4.0
    assert carrier.asked == [("hand over", True)]


async def test_what_a_bot_without_a_voice_has_said_is_not_said_again(
    autojump_clock: Clock,
) -> None:
    """The parting is known beforehand, and was heard."""
    carrier = Carrier()
    socket = FakeTwilio(voice=[(3.0, 4.0), (9.0, 10.0)], stop_at=60.0)
    parts = ports(
        FakeEar(["one", "two"]),
        FakeChat([["It is late."], ["It is late."]]),
        voice=Mute(),
        canned=canned("Hello.", "Sorry.", "Broken.", "Bye."),
        hang_up=carrier.hang_up,
        hand_over=carrier.hand_over,
    )

    summary = await run_call(socket, parts, plan(greeting="Hello.", **TEXTS))

    assert summary.outcome is Outcome.NO_SPEECH
    assert summary.turns[-1].heard == "Broken. Bye."
    assert carrier.asked == [("hand over", False)]


async def test_a_call_that_ends_well_is_not_handed_over(autojump_clock: Clock) -> None:
    carrier = Carrier()
    chat = FakeChat([["Bye.", ToolCall("1", "hang_up", "{}")]])

    summary = await run_call(
        FakeTwilio(voice=[(1.0, 2.0)], stop_at=20.0),
        ports(FakeEar(["bye"]), chat, hang_up=carrier.hang_up, hand_over=carrier.hand_over),
        plan(),
    )

    assert summary.outcome is Outcome.BOT_HUNG_UP
    assert carrier.asked == ["hang up"]


# An answer that breaks off.


class Breaks(FakeChat):
    """Breaks off after so many words, once; `fail_after` and `replies` say the rest."""

    async def _words(self, parts: Any) -> Any:
        words = self.fail_after
        if len(self.requests) > 1:
            self.fail_after = None
        async for word in super()._words(parts):
            yield word
        assert words is None or len(self.requests) > 1


@pytest.mark.parametrize("after, heard", [(2, "Now it works."), (5, "One two three. Sorry.")])
async def test_an_answer_of_which_nothing_was_said_is_asked_for_once_more(
    autojump_clock: Clock, after: int, heard: str
) -> None:
    chat = Breaks(["One two three. Four five six.", "Now it works."], fail_after=after)
    chat.retryable = True
    socket = FakeTwilio(voice=[(1.0, 2.0)], stop_at=9.0)
    call = ports(FakeEar(["tell me"]), chat, canned=KNOWN)

    summary = await run_call(socket, call, plan(timeouts=TIMES, **TEXTS))

    assert summary.turns[0].heard == heard
    assert len(chat.requests) == (2 if after == 2 else 1)


class Drips(FakeChat):
    """Breaks off in mid-sentence the first time, as `fail_after` says, and then never begins."""

    async def _words(self, parts: Any) -> Any:
        if len(self.requests) > 1:
            await trio.sleep_forever()
        async for word in super()._words(parts):
            yield word


@pytest.mark.parametrize("breaks_s, asked", [(2.0, 3), (4.9, 2), (6.0, 1)])
async def test_an_answer_that_breaks_off_has_no_more_patience_for_being_asked_for_again(
    autojump_clock: Clock, breaks_s: float, asked: int
) -> None:
    chat = Drips(["One two three."] * 4, first=0.0, gap=breaks_s / 2, fail_after=2, retryable=True)
    socket = FakeTwilio(voice=[(1.0, 2.0)], stop_at=15.0)
    times = Timeouts(filler_s=30.0, first_token_s=2.0, answer_s=5.0, first_audio_s=30.0)

    summary = await run_call(
        socket, ports(FakeEar(["tell me"]), chat, canned=KNOWN), plan(timeouts=times, **TEXTS)
    )

    (turn,) = summary.turns
    assert turn.heard == "Sorry."
    assert turn.first_text == pytest.approx(TURN_S + max(5.0, breaks_s), abs=0.1)
    assert len(chat.requests) == asked


async def test_an_answer_that_breaks_off_twice_is_apologised_for(autojump_clock: Clock) -> None:
    chat = FakeChat(["One two three four."] * 3, fail_after=2, retryable=True)
    socket = FakeTwilio(voice=[(1.0, 2.0)], stop_at=9.0)
    call = ports(FakeEar(["tell me"]), chat, canned=KNOWN)

    summary = await run_call(socket, call, plan(timeouts=TIMES, **TEXTS))

    assert summary.turns[0].heard == "Sorry."
    assert len(chat.requests) == 2
