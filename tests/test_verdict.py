"""The ruler, the verdict on good and bad bots, and the report."""

from __future__ import annotations

import json

import pytest
import trio
from trio.testing import MockClock

from tests.toy_bot import Habits, ToyBot, spoken, tone
from voicebot.audio import silence
from voicebot.errors import SocketClosed
from voicebot.simulator.call import (
    At,
    Ended,
    Identity,
    InterruptAfter,
    Recording,
    Script,
    Utterance,
    open_memory_line,
    run_call,
)
from voicebot.simulator.caller import Spoken
from voicebot.simulator.loudness import Sound, sounds
from voicebot.simulator.report import as_json, as_text
from voicebot.simulator.twilio_end import Clear, Played
from voicebot.simulator.verdict import Thresholds, Verdict, judge

# ------------------------------------------------------------------ loudness


def test_sound_begins_with_its_first_window_and_ends_with_its_last() -> None:
    audio = spoken(300, before_ms=200, after_ms=400) + spoken(100)

    assert sounds(audio, bridge_ms=300) == [Sound(200, 500), Sound(900, 1_000)]
    assert sounds(audio, bridge_ms=500) == [Sound(200, 1_000)]


def test_click_is_no_sound() -> None:
    assert sounds(silence(200) + tone(10) + silence(200) + tone(100), 0) == [Sound(410, 510)]


def test_background_noise_is_not_the_beginning_of_speech() -> None:
    hiss = bytes([0x5F, 0xDF]) * 40  # about -42 dBov, above the floor of a silent line
    audio = hiss * 50 + tone(300) + hiss * 50

    assert sounds(audio, 0) == [Sound(500, 800)]


def test_tail_30_db_under_the_voice_is_no_sound() -> None:
    murmur = bytes([0x6F, 0xEF]) * 40  # about -48 dBov

    assert sounds(tone(300) + murmur * 20 + silence(500), 0) == [Sound(0, 300)]
    assert sounds(murmur * 20 + silence(500), 0) == [Sound(0, 200)]


def test_recording_without_a_pause_is_all_sound_and_silence_is_none() -> None:
    assert sounds(tone(500), 0) == [Sound(0, 500)]
    assert sounds(silence(500), 0) == []
    assert sounds(b"", 0) == []


# ------------------------------------------------------------------ verdict

STOP = Utterance("stop.wav", spoken(600, before_ms=100), InterruptAfter(1_000))
HELLO = Utterance("hello.wav", spoken(400, after_ms=200))
TALK_OVER = Script((HELLO, STOP))


async def play(script: Script, habits: Habits) -> tuple[Recording, Verdict]:
    line, server_end = open_memory_line()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ToyBot(server_end, habits).run)
        recording = await run_call(line, script)
    return recording, judge(recording)


async def test_bot_that_stops_and_answers_passes(autojump_clock: MockClock) -> None:
    recording, verdict = await play(TALK_OVER, Habits())

    assert verdict.failures == ()
    assert verdict.passed
    [interruption] = verdict.interruptions
    stop = recording.spoken[1]
    assert interruption.utterance == "stop.wav"
    assert interruption.onset_ms == stop.start_ms + 100
    assert interruption.clear_ms == pytest.approx(80, abs=0.2)
    assert interruption.heard_ms == 80
    assert (interruption.clears, interruption.late_media) == (1, 0)
    assert [turn.utterance for turn in verdict.turns] == ["hello.wav", "stop.wav"]
    # Measured from the last sound and not from the end of the file.
    assert verdict.turns[0].reply_ms == pytest.approx(600, abs=20)
    assert verdict.turns[1].reply_ms == pytest.approx(600, abs=20)
    assert verdict.underrun_ms == 0.0


@pytest.mark.parametrize(
    "habits,complaint",
    [
        (Habits(clears=0, stops=False), "stop.wav: the bot was interrupted and sent no clear"),
        # It stops sending but for its lead, so that only the clear is missing.
        (Habits(clears=0), "stop.wav: the bot was interrupted and sent no clear"),
        (Habits(react_ms=420), "stop.wav: clear came 420 ms after the caller's first sound"),
        (Habits(clears=2), "stop.wav: 2 clears for one interruption"),
        (Habits(leftover_after_s=(0.0,)), "media messages after clear: 1 (at most 0)"),
        (Habits(leftover_after_s=(0.0, 0.05, 0.14)), "media messages after clear: 3 (at most 0)"),
        (
            Habits(leftover_after_s=(0.5,)),
            "media messages after clear: 1 (at most 0)",
        ),  # caller speaks on
        (Habits(think_ms=4_200), "hello.wav: reply after 42"),
        (Habits(reply_ms=0), "hello.wav: no reply"),
        (Habits(greeting_ms=0, reply_ms=0), "the bot was never heard"),
        (Habits(reply_ms=500), "stop.wav: was to interrupt the bot, which was not speaking"),
        (Habits(stutter_s=0.1), "underruns: "),
        # Holes must not hide that it talks on.
        (Habits(stutter_s=0.1, stops=False), "stop.wav: the bot was interrupted and sent no clear"),
        (Habits(think_ms=100), "pause.wav: the bot cut the caller off, 700 ms before the end"),
        (Habits(clears_by_itself_s=1), "the bot stopped itself at 1.00 s"),
        (Habits(hangs_up_s=2), "stop.wav was not spoken: the bot ended the call before"),
        (
            Habits(greets_with=("{",)),
            "Twilio would log warning 31951, first for a message at 0.0",
        ),
        (
            Habits(greets_with=(b"{}", b"{}")),
            "binary message; Twilio reads text only; such messages: 2",
        ),
        (
            Habits(greets_with=('{"event":"clear","streamSid":"{sid}","turn":1}',)),
            "message has unknown turn",
        ),
    ],
)
async def test_broken_bot_fails(habits: Habits, complaint: str, autojump_clock: MockClock) -> None:
    pause = Utterance("pause.wav", spoken(300, after_ms=400) + spoken(400))

    _, verdict = await play(Script((*TALK_OVER.utterances, pause)), habits)

    assert not verdict.passed
    assert any(complaint in failure for failure in verdict.failures), verdict.failures


async def test_bot_that_never_clears_is_heard_to_the_end(autojump_clock: MockClock) -> None:
    _, verdict = await play(TALK_OVER, Habits(clears=0, stops=False))

    assert verdict.interruptions[0].clear_ms is None
    assert verdict.interruptions[0].heard_ms > 1_800


async def test_reply_that_is_over_at_once_needs_no_clear(autojump_clock: MockClock) -> None:
    cough_end = Utterance("late.wav", spoken(300), InterruptAfter(900))

    _, verdict = await play(Script((cough_end,)), Habits(greeting_ms=1_000, react_ms=200))

    assert verdict.interruptions[0].clears == 0
    assert verdict.failures == ()


async def test_late_media_and_its_sound_are_attributed_to_the_interruption(
    autojump_clock: MockClock,
) -> None:
    _, verdict = await play(TALK_OVER, Habits(leftover_after_s=(0.0, 0.0)))

    [interruption] = verdict.interruptions
    assert interruption.late_media == 2
    assert interruption.heard_ms == 80 + 40
    assert verdict.late_media == 2


def recorded(
    utterance: Utterance, start_ms: int, played: list[Played], clears: list[Clear]
) -> Recording:
    """Return a call made up by hand: 10 s long, with a tone wherever something was played."""
    heard = bytearray(silence(10_000))
    for span in played:
        first, last = int(span.start_ms * 8), int(span.end_ms * 8)
        heard[first:last] = tone(int(span.end_ms - span.start_ms))
    end_ms = start_ms + len(utterance.audio) / 8
    caller = silence(start_ms) + utterance.audio
    return Recording(
        identity=Identity(),
        script=Script((utterance,)),
        caller=caller + silence(10_000)[len(caller) :],
        heard=bytes(heard),
        spoken=(Spoken(utterance, start_ms, end_ms),),
        pressed=(),
        happenings=tuple(clears),
        played=tuple(played),
        ended=Ended(10_000, "caller"),
    )


def test_bot_that_hears_a_breath_before_the_voice_is_not_blamed() -> None:
    breath = Utterance("stop.wav", spoken(500, before_ms=200), InterruptAfter(1_000))

    verdict = judge(
        recorded(
            breath,
            1_000,
            [Played(0, 1_150, cut=True), Played(2_300, 3_000, cut=False)],
            [Clear(1_150, 200)],
        )
    )

    assert verdict.interruptions[0].clear_ms == -50
    assert verdict.passed, verdict.failures


def test_clear_of_the_second_interruption_does_not_excuse_the_first() -> None:
    twice = Utterance("twice.wav", spoken(300, after_ms=1_000) + spoken(300), InterruptAfter(1_000))

    verdict = judge(recorded(twice, 1_000, [Played(0, 2_400, cut=True)], [Clear(2_400, 200)]))

    first, second = verdict.interruptions
    assert first.clear_ms is None
    assert second.clear_ms == 100


async def test_needless_clear_is_no_fault(autojump_clock: MockClock) -> None:
    script = Script((), hang_up_after_s=5)

    _, verdict = await play(script, Habits(greeting_ms=3_000, clears_by_itself_s=3.5))

    assert verdict.failures == ()


async def test_pause_inside_an_utterance_needs_no_reply(autojump_clock: MockClock) -> None:
    pause = Utterance("pause.wav", spoken(300, after_ms=550) + spoken(300))

    _, verdict = await play(Script((pause,)), Habits())

    assert len(verdict.turns) == 1
    assert verdict.failures == ()


async def test_caller_who_hangs_up_early_misses_no_reply(autojump_clock: MockClock) -> None:
    script = Script((Utterance("a.wav", spoken(300), At(4)),), hang_up_after_s=4.5)

    _, verdict = await play(script, Habits())

    assert verdict.turns[0].reply_ms is None
    assert verdict.failures == ()


async def test_silence_after_a_clear_is_no_underrun(autojump_clock: MockClock) -> None:
    _, verdict = await play(TALK_OVER, Habits(leftover_after_s=(0.4,)))

    assert verdict.underrun_ms == 0.0


async def test_thresholds_decide(autojump_clock: MockClock) -> None:
    recording, verdict = await play(TALK_OVER, Habits(react_ms=420, leftover_after_s=(0.0,)))

    assert len(verdict.failures) == 2
    assert judge(recording, Thresholds(max_clear_ms=420.1, max_late_media=1)).passed


async def test_each_part_of_what_the_caller_says_is_an_interruption_of_its_own(
    autojump_clock: MockClock,
) -> None:
    twice = Utterance("twice.wav", spoken(300, after_ms=1_500) + spoken(300), InterruptAfter(500))

    _, verdict = await play(Script((twice,)), Habits())

    first, second = verdict.interruptions
    assert second.onset_ms == first.onset_ms + 1_800
    assert (first.clears, second.clears) == (1, 1)
    assert len(verdict.turns) == 2  # the bot answered the first part, then the second
    assert verdict.passed, verdict.failures


async def test_backchannel_must_not_cost_the_reply(autojump_clock: MockClock) -> None:
    cough = Utterance("cough.wav", spoken(200), InterruptAfter(800), backchannel=True)

    _, goes_on = await play(Script((cough,)), Habits(react_ms=300))
    _, resumes = await play(Script((cough,)), Habits(think_ms=2_000))
    _, stops = await play(Script((cough,)), Habits(reply_ms=0))

    assert goes_on.failures == ()
    assert goes_on.interruptions[0].clears == 0
    assert resumes.failures == ()
    assert resumes.interruptions[0].clears == 1
    assert [f for f in stops.failures if "cough.wav: the bot lost its reply" in f]


async def test_keys_are_a_turn_and_no_interruption(autojump_clock: MockClock) -> None:
    script = Script((Utterance("keys 12", digits="12", when=At(0.5)),), hang_up_after_s=8)

    recording, verdict = await play(script, Habits())

    assert verdict.interruptions == ()
    assert [(turn.end_ms, turn.reply_ms) for turn in verdict.turns] == [(750, None)]
    assert verdict.failures == ("keys 12: no reply",)
    assert "caller  presses 2" in as_text(recording, verdict)


async def test_silent_wav_is_named(autojump_clock: MockClock) -> None:
    _, verdict = await play(Script((Utterance("empty.wav", silence(500), At(1)),)), Habits())

    assert "empty.wav: no sound was found in it; is it a silent file?" in verdict.failures


async def test_crash_of_the_server_fails() -> None:
    class Crashing:
        async def send(self, text: str) -> None:
            await trio.lowlevel.checkpoint()

        async def receive(self) -> str:
            await trio.lowlevel.checkpoint()
            raise SocketClosed(1011)

        async def aclose(self) -> None:
            await trio.lowlevel.checkpoint()

    verdict = judge(await run_call(Crashing(), Script(())))

    assert "the server dropped the call at 0.00 s, code 1011" in verdict.failures


# ------------------------------------------------------------------ report


async def test_report_has_the_documented_keys(autojump_clock: MockClock) -> None:
    recording, verdict = await play(TALK_OVER, Habits(react_ms=420))

    report = json.loads(json.dumps(as_json(recording, verdict)))

    assert report["version"] == 1
    assert report["call"]["call_sid"] == recording.identity.call_sid
    assert report["verdict"]["passed"] is False
    assert report["verdict"]["thresholds"]["max_clear_ms"] == 400
    assert report["interruptions"][0]["clear_ms"] == pytest.approx(420, abs=0.2)
    times = [event["at_ms"] for event in report["events"]]
    assert times == sorted(times)
    kinds = {(event["who"], event["event"]) for event in report["events"]}
    assert kinds == {
        ("bot", "media"),
        ("bot", "mark"),
        ("bot", "clear"),
        ("bot", "heard"),
        ("caller", "speaks"),
        ("caller", "hangs_up"),
        ("twilio", "mark"),
    }


@pytest.mark.parametrize(
    "script,habits,row",
    [
        (Script(()), Habits(hangs_up_s=2), "2.000  bot     hangs up, close code 1000"),
        (Script((), limit_s=2), Habits(), "2.000  twilio  time limit"),
        (Script(()), Habits(greets_with=("{}",)), "twilio  warning 31951: unknown event None"),
    ],
)
async def test_table_says_how_the_call_went(
    script: Script, habits: Habits, row: str, autojump_clock: MockClock
) -> None:
    assert row in as_text(*await play(script, habits))


async def test_table_is_readable(autojump_clock: MockClock) -> None:
    recording, verdict = await play(TALK_OVER, Habits(react_ms=420))

    text = as_text(recording, verdict)

    assert "caller  plays stop.wav until" in text
    assert "bot     clear: 2" in text
    assert "verdict: FAIL\n  - stop.wav: clear came 420 ms after" in text
    assert len(text.splitlines()) < 30  # media comes in runs and not one by one
