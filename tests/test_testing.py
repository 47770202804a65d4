"""The scripted parts that users' tests are made of: each does what its fields say."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from voicebot.audio import BYTES_PER_MS, BYTES_PER_S, FRAME_BYTES, FRAME_MS, dbov, silence
from voicebot.errors import ProviderError
from voicebot.plan import CallPlan
from voicebot.ports import Final, LikelyEnd, Message, Partial, Tool, ToolCall, UtteranceEnd
from voicebot.testing import (
    Cue,
    InterruptAfter,
    Opening,
    Reply,
    Run,
    Script,
    ScriptedChat,
    ScriptedTool,
    Speech,
    ToyEars,
    ToyRecogniser,
    ToySynthesizer,
    WhenSilent,
    call,
    caller_coughs,
    caller_says,
    hold,
    hold_call,
    run_seeded,
    toy,
    toy_ports,
    words_heard,
)

Clock = trio.testing.MockClock

TEXT = st.text(alphabet=toy.ALPHABET, max_size=30)
PLAN = CallPlan("Be brief.", "Hello.")


# Toy speech.


@given(st.text(max_size=40))
def test_toy_speech_reads_as_it_was_spelt(text: str) -> None:
    assert toy.read(toy.say(text)) == toy.spell(text)
    assert len(toy.spell(text)) == len(text)


@given(TEXT, st.data())
def test_toy_speech_may_be_cut_anywhere(text: str, data: st.DataObject) -> None:
    audio = toy.say(text)
    cut = data.draw(st.integers(0, len(audio)))
    reader = toy.Reader()
    reader.feed(audio[:cut])
    # A character counts when more than half of it is there.
    whole, rest = divmod(cut, toy.CHAR_BYTES)
    same = whole and rest and whole < len(text) and text[whole] == text[whole - 1]
    if not same:
        assert reader.text == text[: whole + (rest > toy.CHAR_BYTES // 2)]
    reader.feed(audio[cut:])
    assert reader.text == text


@given(TEXT, st.data())
def test_silence_shorter_than_a_pause_changes_no_word(text: str, data: st.DataObject) -> None:
    audio = toy.say(text)
    cut = data.draw(st.integers(0, len(audio)))
    hole = silence(data.draw(st.integers(0, toy.PAUSE_MS - 1)))
    at_edge = cut % toy.CHAR_BYTES == 0
    if at_edge:
        assert toy.read(audio[:cut] + hole + audio[cut:]) == text


def test_a_pause_reads_as_one_space_and_noise_as_a_pause() -> None:
    pause = silence(toy.PAUSE_MS)
    assert toy.read(toy.say("one") + pause + toy.say("two")) == "one two"
    assert toy.read(toy.say("one ") + pause + toy.say("two")) == "one two"
    assert toy.read(toy.say("one") + toy.noise(0.3) + toy.say("two")) == "one two"
    assert toy.read(toy.noise(1.0)) == ""


def test_toy_speech_is_loud_and_its_letters_are_alike_in_level() -> None:
    levels = [dbov(toy.say(char)[:FRAME_BYTES]) for char in toy.ALPHABET]
    assert max(levels) - min(levels) < 9
    assert min(levels) > -15


# What was heard.


@pytest.mark.parametrize(
    "stretches, heard",
    [
        ([], ""),
        (["o"], ""),
        (["on"], "One"),  # from its middle on
        (["one tw"], "One two"),
        (["one two", "two three"], "One two three"),  # gone back to a word edge
        (["one two thr", "one"], "One two three"),  # heard is heard
    ],
)
def test_words_heard(stretches: list[str], heard: str) -> None:
    assert words_heard("One two three", stretches) == heard


@pytest.mark.parametrize("stretches", [["two"], ["one", "three"], ["four"]])
def test_words_that_leave_a_gap_are_refused(stretches: list[str]) -> None:
    with pytest.raises(ValueError, match=f"'{stretches[-1]}' does not go on from"):
        words_heard("one two three", stretches)


# The language model.


async def take(chat: ScriptedChat, into: list[str | ToolCall]) -> None:
    """Read a reply to its end, or as far as it comes."""
    async with chat.open_reply([]) as deltas:
        async for delta in deltas:
            into.append(delta)  # noqa: PERF401  # what came before a fault must be seen


async def read_reply(chat: ScriptedChat, *said: str) -> list[str | ToolCall]:
    messages = [Message("user", text) for text in said]
    async with chat.open_reply(messages) as deltas:
        return [delta async for delta in deltas]


async def test_replies_come_in_order_then_the_default(autojump_clock: Clock) -> None:
    weather = ToolCall("1", "weather", "{}")
    chat = ScriptedChat(["One two.", Reply("Wait.", (weather,))], default="No.")

    assert await read_reply(chat) == ["One", " two."]
    assert await read_reply(chat) == ["Wait.", weather]
    assert [await read_reply(chat), await read_reply(chat)] == [["No."], ["No."]]
    assert len(chat.requests) == 4


async def test_a_reply_may_depend_on_what_was_asked(autojump_clock: Clock) -> None:
    def echo(messages: Sequence[Message]) -> str:
        return messages[-1].content.upper()

    chat = ScriptedChat(echo)
    assert await read_reply(chat, "hello") == ["HELLO"]
    assert chat.requests[0].messages == (Message("user", "hello"),)


async def test_words_take_their_time(autojump_clock: Clock) -> None:
    chat = ScriptedChat([Reply("One two three.", first_s=0.5, gap_s=0.1)])
    async with chat.open_reply([]) as deltas:
        times = [trio.current_time() async for _ in deltas]
    began = chat.requests[0].at
    assert [round(at - began, 3) for at in times] == [0.5, 0.6, 0.7]


@pytest.mark.parametrize("after", [0, 1, 2])
async def test_a_reply_breaks_off_after_so_many_words(after: int, autojump_clock: Clock) -> None:
    chat = ScriptedChat([Reply("One two.", fail_after=after)])
    words: list[str | ToolCall] = []
    with pytest.raises(ProviderError, match="broke off"):
        await take(chat, words)
    assert words == ["One", " two."][:after]
    assert chat.cancelled == 0


async def test_a_reply_that_stalls_is_cancelled_and_slow_to_close(autojump_clock: Clock) -> None:
    chat = ScriptedChat([Reply("One two.", first_s=0, gap_s=0, stall_after=1, close_s=3.0)])
    words: list[str | ToolCall] = []
    with trio.move_on_after(10.0):
        await take(chat, words)
    assert words == ["One"]
    assert chat.cancelled == 1
    assert trio.current_time() - chat.requests[0].at == pytest.approx(13.0)


# The voice.


async def listen(voice: ToySynthesizer, text: str, into: bytearray) -> None:
    """Take speech to its end, or as far as it comes."""
    async with voice.open_speech(text) as chunks:
        async for chunk in chunks:
            into += chunk


async def test_speech_is_the_text_and_a_pause(autojump_clock: Clock) -> None:
    voice = ToySynthesizer([Speech(first_s=0.3, speed=5.0, chunk_ms=50)])
    began = trio.current_time()
    async with voice.open_speech("ab") as chunks:
        given = [(round(trio.current_time() - began, 3), chunk) async for chunk in chunks]
    assert b"".join(chunk for _, chunk in given) == toy.say("ab") + silence(toy.PAUSE_MS)
    assert [at for at, _ in given] == [0.3, 0.31, 0.32, 0.33, 0.34]
    assert {len(chunk) for _, chunk in given} == {50 * BYTES_PER_MS}
    assert voice.texts == ["ab"]


async def test_each_piece_is_spoken_as_scripted_then_the_default(autojump_clock: Clock) -> None:
    voice = ToySynthesizer([Speech(first_s=1.0), Speech(first_s=2.0)], default=Speech(first_s=0.0))
    began = trio.current_time()
    first = []
    for text in ("a", "b", "c", "d"):
        async with voice.open_speech(text) as chunks:
            first.append(trio.current_time() - began)
            assert await anext(aiter(chunks))
        began = trio.current_time()
    assert first == pytest.approx([1.0, 2.0, 0.0, 0.0])
    assert voice.texts == ["a", "b", "c", "d"]


@pytest.mark.parametrize("after_ms", [0, 30, 50, 120, 250])
async def test_speech_breaks_off_after_so_much_audio(after_ms: int, autojump_clock: Clock) -> None:
    voice = ToySynthesizer([Speech(fail_after_ms=after_ms, chunk_ms=50)])
    audio, after = bytearray(), bytearray()
    with pytest.raises(ProviderError, match="broke off"):
        await listen(voice, "abcde", audio)
    assert audio == toy.say("abcde")[: after_ms * BYTES_PER_MS]
    await listen(voice, "b", after)  # the next is well
    assert after.startswith(toy.say("b"))


async def test_speech_that_stalls_is_cancelled_and_slow_to_close(autojump_clock: Clock) -> None:
    voice = ToySynthesizer([Speech(stall_after_ms=50, first_s=0, close_s=2.0)])
    began, audio = trio.current_time(), bytearray()
    with trio.move_on_after(5.0):
        await listen(voice, "abc", audio)
    assert audio == toy.say("a")
    assert voice.cancelled == 1
    assert trio.current_time() - began == pytest.approx(7.0)


# Tools.


async def test_a_tool_runs_as_scripted_and_is_counted(autojump_clock: Clock) -> None:
    scripted = ScriptedTool(
        "book", [Run("booked", seconds=2.0), Run(error=ValueError("full"))], idempotent=False
    )
    began = trio.current_time()
    assert await scripted.tool.run({"day": 1}) == "booked"
    assert trio.current_time() - began == pytest.approx(2.0)
    with pytest.raises(ValueError, match="full"):
        await scripted.tool.run({"day": 2})
    assert await scripted.tool.run({"day": 3}) == "done"

    assert scripted.arguments == [{"day": 1}, {"day": 2}, {"day": 3}]
    assert (scripted.started, scripted.finished, scripted.cancelled) == (3, 3, 0)
    assert (scripted.tool.name, scripted.tool.idempotent) == ("book", False)


async def test_a_tool_goes_on_for_a_while_when_cancelled(autojump_clock: Clock) -> None:
    scripted = ScriptedTool("slow", default=Run(seconds=60.0, close_s=1.5))
    began = trio.current_time()
    with trio.move_on_after(1.0):
        await scripted.tool.run({})
    assert trio.current_time() - began == pytest.approx(2.5)
    assert (scripted.started, scripted.finished, scripted.cancelled) == (1, 0, 1)


# Ears.


def test_toy_ears_rise_and_fall_after_so_many_frames() -> None:
    ears = ToyEars(rise_ms=60, fall_ms=100)
    loud, quiet = toy.say("a")[:FRAME_BYTES], silence(FRAME_MS)

    def hear(frame: bytes, count: int) -> list[bool]:
        return [ears.hear(frame, echo_dbov=0.0) for _ in range(count)]

    assert hear(quiet, 3) == [False] * 3
    assert hear(loud, 2) + hear(quiet, 1) + hear(loud, 3) == [False] * 5 + [True]
    assert ears.onset_ms == 60
    assert hear(quiet, 4) + hear(loud, 1) + hear(quiet, 5) == [True] * 9 + [False]


def test_a_frame_is_loud_if_half_of_it_is() -> None:
    loud, quiet = toy.say("a")[: FRAME_BYTES // 2], silence(FRAME_MS)[: FRAME_BYTES // 2]
    assert ToyEars(rise_ms=20).hear(quiet + loud, echo_dbov=0.0)
    assert not ToyEars(rise_ms=20).hear(quiet + loud[1:] + quiet[:1], echo_dbov=0.0)


# The recogniser.


async def recognised(
    recogniser: ToyRecogniser, audio: bytes, *, finalize: bool = False, wait_s: float = 5.0
) -> list[Any]:
    """Send audio in playing time, frame by frame; return what is said within `wait_s` of it."""
    said: list[Any] = []
    async with recogniser.open() as transcriber, trio.open_nursery() as nursery:

        async def receive() -> None:
            while True:
                said.append(await transcriber.receive())

        nursery.start_soon(receive)
        for start in range(0, len(audio), FRAME_BYTES):
            await transcriber.send(audio[start : start + FRAME_BYTES])
            await trio.sleep(FRAME_MS / 1_000)
        if finalize:
            await transcriber.finalize()
        await trio.sleep(wait_s)
        nursery.cancel_scope.cancel()
    return said


async def test_local_recogniser_answers_finalize_and_nothing_else(autojump_clock: Clock) -> None:
    recogniser = ToyRecogniser()
    audio = toy.say("to london") + silence(1_000)
    assert await recognised(recogniser, audio) == []
    assert await recognised(recogniser, audio, finalize=True) == [
        Final("to london", finalized=True)
    ]
    assert await recognised(recogniser, silence(500), finalize=True) == [Final("", finalized=True)]
    assert recogniser.opened == 3


async def test_provider_speaks_whole_words_by_itself(autojump_clock: Clock) -> None:
    recogniser = ToyRecogniser(mode="provider", partial_ms=250, endpointing_ms=300)
    said = await recognised(recogniser, toy.say("to london town") + silence(600))
    *partials, final = said
    assert final == Final("to london town", end_of_turn=True)
    assert [partial.text for partial in partials] == ["to", "to london", "to london town"]
    assert all(isinstance(partial, Partial) for partial in partials)
    assert recogniser.said == said


async def test_provider_expects_the_end_and_takes_it_back(autojump_clock: Clock) -> None:
    recogniser = ToyRecogniser(mode="provider", likely_ms=160)
    audio = toy.say("to london") + silence(200) + toy.say("and back") + silence(600)
    assert await recognised(recogniser, audio) == [
        Partial("to"),
        Partial("to london"),
        LikelyEnd("to london"),
        Partial("to london"),
        Partial("to london and"),
        Partial("to london and back"),
        LikelyEnd("to london and back"),
        Final("to london and back", end_of_turn=True),
    ]


async def test_provider_without_endpointing_ends_the_utterance(autojump_clock: Clock) -> None:
    recogniser = ToyRecogniser(mode="provider", endpointing_ms=None, utterance_end_ms=1_000)
    said = await recognised(recogniser, toy.say("hello") + silence(1_200))
    assert said[-2:] == [Final("hello"), UtteranceEnd()]
    assert await recognised(recogniser, silence(3_000)) == []  # nothing was said, nothing ends


@pytest.mark.parametrize(
    "opening, said",
    [
        (Opening(refuse=True), None),
        (Opening(drop_after_s=0.3), None),
        (Opening(stall_after_s=0.1), []),
        (Opening(answer_s=9.0), []),
    ],
)
async def test_faults_of_a_connection(
    opening: Opening, said: list[Any] | None, autojump_clock: Clock
) -> None:
    recogniser = ToyRecogniser([opening])
    audio = toy.say("hello there")
    if said is None:
        failed = False
        try:
            await recognised(recogniser, audio, finalize=True)
        except* ProviderError:  # one or two: whoever sends and whoever receives are told
            failed = True
        assert failed
    else:
        assert await recognised(recogniser, audio, finalize=True) == said
    # The next connection is well.
    assert await recognised(recogniser, audio, finalize=True) == [
        Final("hello there", finalized=True)
    ]
    assert recogniser.opened == 2


# The caller.


def test_a_caller_pauses_at_bars_and_coughs_without_words() -> None:
    utterance = caller_says("to|london", pause_ms=400)
    assert toy.read(utterance.audio) == "to london"
    assert len(utterance.audio) == len(toy.say("tolondon")) + 400 * BYTES_PER_MS
    assert utterance.when == WhenSilent()
    cough = caller_coughs(InterruptAfter(500), seconds=0.25)
    assert toy.read(cough.audio) == ""
    assert len(cough.audio) == BYTES_PER_S // 4
    assert cough.backchannel


# A call.


def test_a_call_tells_what_was_heard_of_each_turn() -> None:
    held = hold(
        Script((caller_says("tell me"), caller_says("stop", InterruptAfter(500)))),
        toy_ports(chat=ScriptedChat(["One two three four five six seven eight."])),
        PLAN,
    )

    assert held.verdict.passed
    assert held.heard_in(0) == ("hello. ",) or held.heard_in(0) == ("hello.",)
    (stretch,) = held.heard_in(1)
    assert "one two three four five six seven eight.".startswith(stretch.strip())
    assert held.words_heard_in(1) == held.summary.turns[1].heard != ""
    assert held.heard_text.startswith("hello. one")
    assert held.heard_text.endswith("yes.")


def test_a_caller_can_wait_for_a_cue() -> None:
    cue = Cue()
    tool = ScriptedTool("look", default=Run("found", seconds=5.0))

    async def run() -> Any:
        def watch(moment: Any) -> None:
            if moment.what == "tool":
                cue.give()

        chat = ScriptedChat([Reply("", (ToolCall("1", "look", "{}"),))])
        script = Script((caller_says("look it up"), caller_says("stop", cue)))
        return await hold_call(script, toy_ports(chat=chat, tools=[tool.tool]), PLAN, watch=watch)

    held = run_seeded(0, run)
    (begun,) = [moment.at for moment in held.summary.timeline if moment.what == "tool"]
    said = held.recording.spoken[1].start_ms / 1_000
    assert begun <= said <= begun + 2 * FRAME_MS / 1_000
    # The caller spoke into a silence that `WhenSilent` would have waited out.
    assert held.summary.turns[1].heard == ""
    assert tool.cancelled == 1


class _Broken:
    """A chat with a bug."""

    @asynccontextmanager
    async def open_reply(
        self, messages: Sequence[Message], tools: Sequence[Tool] = ()
    ) -> AsyncGenerator[AsyncIterator[str | ToolCall]]:
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError("a bug of the user's")
        yield


def test_a_bug_in_a_port_fails_the_test() -> None:
    """A server survives it, so that nothing but the log would tell."""
    bug = pytest.RaisesExc(ZeroDivisionError, match="a bug of the user's")
    with pytest.RaisesGroup(bug, flatten_subgroups=True):
        hold(Script((caller_says("hello"),)), toy_ports(chat=_Broken()), PLAN)


def test_an_engine_that_does_not_end_fails_the_test() -> None:
    # Slow to close beyond all bounds: what a port must not do.
    chat = ScriptedChat([Reply("One.", stall_after=0, close_s=2 * call.JOIN_S)])
    with pytest.raises(RuntimeError, match="did not end within 60 s"):
        hold(Script((caller_says("hello"),)), toy_ports(chat=chat), PLAN)


@pytest.mark.parametrize("seed", [0, 1, None])
def test_the_scheduler_is_left_as_it_was(seed: int | None) -> None:
    scheduler: Any = trio._core._run
    before = scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r.getstate()

    async def run() -> None:
        await trio.sleep(1)

    run_seeded(seed, run)
    after = scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r.getstate()
    assert after[0] == before[0]
    assert seed is None or after == before
