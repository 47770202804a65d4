"""Twilio's end, the caller and the call: exact under a virtual clock."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.toy_bot import Habits, ToyBot, spoken, tone
from voicebot import twilio
from voicebot.audio import SILENCE, silence
from voicebot.simulator.call import (
    At,
    Identity,
    InterruptAfter,
    Recording,
    Script,
    Utterance,
    WhenSilent,
    open_memory_line,
    run_call,
)
from voicebot.simulator.caller import BotVoice
from voicebot.simulator.twilio_end import (
    BUFFER_BYTES,
    Clear,
    Echo,
    InvalidMessage,
    Mark,
    Media,
    MediaStream,
    Played,
    Playout,
    Warned,
    read_message,
)

SID = "MZ" + "1" * 32
IDENTITY = Identity("AC" + "2" * 32, "CA" + "3" * 32, SID, {"k": "v"})
PAYLOAD = base64.b64encode(bytes([SILENCE]) * 160).decode()
MEDIA: dict[str, Any] = {"event": "media", "streamSid": SID, "media": {"payload": PAYLOAD}}
MARK: dict[str, Any] = {"event": "mark", "streamSid": SID, "mark": {"name": "m"}}
CLEAR: dict[str, Any] = {"event": "clear", "streamSid": SID}


# ------------------------------------------------------------------ golden frames


def test_messages_to_the_server_have_exactly_the_documented_shape() -> None:
    stream = MediaStream(IDENTITY, started=0.0)

    messages = [
        stream.connected(),
        stream.start(),
        *stream.receive(json.dumps(MARK), now=0.0),
        stream.media(bytes([SILENCE]) * 160, 5),
        stream.dtmf("1"),
        stream.stop(),
    ]

    assert [json.loads(message) for message in messages] == [
        {"event": "connected", "protocol": "Call", "version": "1.0.0"},
        {
            "event": "start",
            "sequenceNumber": "1",
            "start": {
                "accountSid": "AC" + "2" * 32,
                "streamSid": SID,
                "callSid": "CA" + "3" * 32,
                "tracks": ["inbound"],
                "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
                "customParameters": {"k": "v"},
            },
            "streamSid": SID,
        },
        {"event": "mark", "sequenceNumber": "2", "streamSid": SID, "mark": {"name": "m"}},
        {
            "event": "media",
            "sequenceNumber": "3",
            "media": {"track": "inbound", "chunk": "1", "timestamp": "5", "payload": PAYLOAD},
            "streamSid": SID,
        },
        {
            "event": "dtmf",
            "streamSid": SID,
            "sequenceNumber": "4",
            "dtmf": {"track": "inbound_track", "digit": "1"},
        },
        {
            "event": "stop",
            "sequenceNumber": "5",
            "stop": {"accountSid": "AC" + "2" * 32, "callSid": "CA" + "3" * 32},
            "streamSid": SID,
        },
    ]


@pytest.mark.parametrize(
    "message,read",
    [
        (MEDIA, ("media", bytes([SILENCE]) * 160)),
        (MARK, ("mark", "m")),
        (CLEAR, ("clear", "")),
        (MEDIA | {"media": {"payload": base64.b64encode(b"\x80").decode()}}, ("media", b"\x80")),
    ],
)
def test_documented_messages_from_the_server_are_read(
    message: dict[str, Any], read: tuple[str, str | bytes]
) -> None:
    assert read_message(json.dumps(message), SID) == read


@pytest.mark.parametrize(
    "message,code,reason",
    [
        (json.dumps(MEDIA).encode(), 31950, "binary"),
        ("", 31951, "not JSON"),
        ("{", 31951, "not JSON"),
        ("[]", 31951, "not a JSON object"),
        (CLEAR | {"event": "flush"}, 31951, "unknown event 'flush'"),
        ({"streamSid": SID}, 31951, "unknown event None"),
        (CLEAR | {"event": ["clear"]}, 31951, "unknown event"),
        ({"event": "clear", "stream_sid": SID}, 31951, "lacks streamSid"),
        (CLEAR | {"sequenceNumber": "1"}, 31951, "unknown sequenceNumber"),
        (CLEAR | {"streamSid": "MZ" + "9" * 32}, 31951, "is not this stream"),
        (CLEAR | {"streamSid": None}, 31951, "is not this stream"),
        ({"event": "media", "streamSid": SID}, 31951, "lacks media"),
        (MEDIA | {"media": PAYLOAD}, 31951, "media is not an object"),
        (MEDIA | {"media": {}}, 31951, "lacks payload"),
        (MEDIA | {"media": {"payload": 1}}, 31951, "not a string"),
        (MEDIA | {"media": {"payload": "?"}}, 31951, "not base64"),
        (MEDIA | {"media": {"payload": "é"}}, 31951, "not base64"),
        (MEDIA | {"media": {"payload": PAYLOAD, "track": "inbound"}}, 31951, "unknown track"),
        (
            MEDIA | {"media": {"payload": base64.b64encode(PAYLOAD.encode()).decode()}},
            31951,
            "base64 of base64",
        ),
        (MARK | {"mark": {}}, 31951, "mark lacks name"),
        (MARK | {"mark": {"name": 1}}, 31951, "not a string"),
        (MARK | {"mark": {"name": "m", "id": 1}}, 31951, "unknown id"),
    ],
)
def test_anything_else_from_the_server_is_warned_about(
    message: Any, code: int, reason: str
) -> None:
    raw = json.dumps(message) if isinstance(message, dict) else message

    with pytest.raises(InvalidMessage, match=reason) as invalid:
        read_message(raw, SID)

    assert invalid.value.code == code


def test_warned_message_changes_nothing_but_the_record() -> None:
    stream = MediaStream(IDENTITY, started=10.0)

    assert stream.receive(json.dumps(MEDIA | {"x": 1}), now=11.0) == []

    assert stream.playout.buffered_bytes == 0
    assert stream.happenings == [Warned(1_000.0, 31951, "message has unknown x")]


def test_codec_of_the_service_and_simulator_read_each_other() -> None:
    stream, codec = MediaStream(IDENTITY, started=0.0), twilio.MediaStream()
    audio = tone(20)

    assert [
        codec.receive(message)
        for message in (
            stream.connected(),
            stream.start(),
            stream.media(audio, 20),
            stream.dtmf("#"),
            *stream.receive(mark("m"), now=0.0),
            stream.stop(),
        )
    ] == [
        twilio.Connected("Call", "1.0.0"),
        twilio.Start(SID, IDENTITY.call_sid, IDENTITY.account_sid, {"k": "v"}),
        twilio.Media(20, audio),
        twilio.Dtmf("#"),
        twilio.Mark("m"),
        twilio.Stop(),
    ]
    assert [
        read_message(twilio.encode(SID, message), SID)
        for message in (twilio.SendMedia(audio), twilio.SendMark("m"), twilio.SendClear())
    ] == [("media", audio), ("mark", "m"), ("clear", "")]


# ------------------------------------------------------------------ play-out


def media(audio: bytes) -> str:
    payload = base64.b64encode(audio).decode()
    return json.dumps(MEDIA | {"media": {"payload": payload}})


def mark(name: str) -> str:
    return json.dumps(MARK | {"mark": {"name": name}})


def names(echoes: list[str]) -> list[str]:
    return [json.loads(echo)["mark"]["name"] for echo in echoes]


def test_mark_comes_back_when_all_before_it_has_played() -> None:
    stream = MediaStream(IDENTITY, started=100.0)
    stream.receive(media(tone(40)), now=100.5)
    assert stream.receive(mark("a"), now=100.51) == []
    stream.receive(media(tone(10)), now=100.52)
    stream.receive(mark("b"), now=100.52)

    assert stream.next_echo == pytest.approx(100.54)
    assert names(stream.advance(100.539)) == []
    assert names(stream.advance(100.54)) == ["a"]
    assert names(stream.advance(100.56)) == ["b"]
    assert stream.next_echo is None
    assert stream.playout.heard == silence(500) + tone(40) + tone(10) + silence(10)


def test_mark_comes_back_at_once_where_nothing_is_buffered() -> None:
    stream = MediaStream(IDENTITY, started=0.0)

    assert names(stream.receive(mark("fence"), now=1.0)) == ["fence"]


def test_clear_drops_what_waits_and_brings_all_marks_back_in_order() -> None:
    stream = MediaStream(IDENTITY, started=0.0)
    for name in ("a", "b"):
        stream.receive(media(tone(100)), now=0.0)
        stream.receive(mark(name), now=0.0)

    echoes = stream.receive(json.dumps(CLEAR), now=0.15)

    assert names(echoes) == ["a", "b"]
    assert stream.advance(1.0) == []
    assert stream.playout.heard == (tone(100) + tone(100))[:1200] + silence(850)
    assert stream.playout.played == [Played(0.0, 150.0, cut=True)]
    assert [type(happening) for happening in stream.happenings[4:]] == [Echo, Clear, Echo]
    assert stream.happenings[4] == Echo(150.0, "a", cleared=False)  # it had played by then
    assert stream.happenings[5] == Clear(150.0, 50.0)
    assert stream.happenings[6] == Echo(150.0, "b", cleared=True)


def test_clear_of_nothing_is_a_clear_and_no_cut() -> None:
    stream = MediaStream(IDENTITY, started=0.0)
    stream.receive(media(tone(20)), now=0.0)
    stream.advance(0.02)

    assert stream.receive(json.dumps(CLEAR), now=0.02) == []

    assert stream.happenings[-1] == Clear(20.0, 0.0)
    assert stream.playout.played == [Played(0.0, 20.0, cut=False)]


def test_media_in_time_plays_without_a_hole_and_late_media_leaves_one() -> None:
    stream = MediaStream(IDENTITY, started=0.0)
    for now in (0.0, 0.02, 0.05):
        stream.receive(media(tone(20)), now=now)
    stream.end(now=0.06)

    assert stream.playout.played == [Played(0.0, 40.0, False), Played(50.0, 60.0, False)]


def test_more_than_ten_minutes_are_discarded_and_warned_about() -> None:
    stream = MediaStream(IDENTITY, started=0.0)
    stream.receive(media(bytes([SILENCE]) * BUFFER_BYTES), now=0.0)
    stream.receive(media(tone(20)), now=0.0)
    stream.receive(media(tone(20)), now=0.02)

    warnings = [h for h in stream.happenings if isinstance(h, Warned)]
    assert [warning.code for warning in warnings] == [31931]
    assert stream.playout.buffered_bytes == BUFFER_BYTES


operation = st.one_of(
    st.tuples(st.just("append"), st.integers(0, 400)),
    st.tuples(st.just("advance"), st.integers(0, 400)),
    st.tuples(st.just("mark"), st.just(0)),
    st.tuples(st.just("clear"), st.just(0)),
)


@given(st.lists(operation, max_size=40))
def test_playout_is_the_buffer_played_sample_by_sample(operations: list[tuple[str, int]]) -> None:
    playout = Playout()
    queue: list[int | str] = []  # one sample or one mark after the other
    heard: list[int] = []
    sample = serial = 0
    for kind, number in operations:
        if kind == "append":
            audio = [(serial + i) % 250 for i in range(number)]
            serial += number
            queue += audio
            assert playout.append(bytes(audio))
        elif kind == "mark":
            serial += 1
            queue.append(f"{serial}")
            playout.mark(f"{serial}")
        elif kind == "clear":
            pending = [entry for entry in queue if isinstance(entry, str)]
            assert playout.clear() == (len(queue) - len(pending), pending)
            queue.clear()
        else:
            sample += number
            reached = []
            while queue and (isinstance(queue[0], str) or len(heard) < sample):
                entry = queue.pop(0)
                if isinstance(entry, str):
                    reached.append(entry)
                else:
                    heard.append(entry)
            heard += [SILENCE] * (sample - len(heard))
            assert playout.advance(sample) == reached
        assert playout.heard == bytes(heard)


# ------------------------------------------------------------------ a caller


def test_reply_begins_after_a_silence_and_not_after_each_word() -> None:
    bot = BotVoice()

    bot.hear(bytearray(silence(100) + tone(200) + silence(200)))
    bot.hear(bytearray(silence(100) + tone(200) + silence(200) + tone(100)))
    assert bot.onsets_ms == [100]

    bot.hear(
        bytearray(silence(100) + tone(200) + silence(200) + tone(100) + silence(300) + tone(9))
    )
    assert bot.onsets_ms == [100]  # not a whole window yet
    bot.hear(bytearray(silence(900) + tone(20)))
    assert bot.onsets_ms == [100, 900]
    assert bot.last_ms == 920
    assert bot.next_onset_ms(101) == 900


# ------------------------------------------------------------------ a call


async def play(script: Script, habits: Habits) -> Recording:
    """Hold the call under the test's clock."""
    line, server_end = open_memory_line()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ToyBot(server_end, habits).run)
        recording = await run_call(line, script, IDENTITY)
    return recording


def events(habits: Habits, event: str) -> list[tuple[float, dict[str, Any]]]:
    return [record for record in habits.records if record[1]["event"] == event]


async def test_call_sends_a_frame_every_20_ms_on_an_absolute_grid(
    autojump_clock: MockClock,
) -> None:
    habits = Habits(greeting_ms=500)
    audio = spoken(300)

    recording = await play(Script((Utterance("a", audio, At(0.1)),), hang_up_after_s=2), habits)

    order = [message["event"] for _, message in habits.records]
    assert order[:3] == ["connected", "start", "media"]
    assert order[-1] == "stop"
    frames = events(habits, "media")
    start = habits.records[1][0]
    assert len(frames) == 100
    for k, (at, message) in enumerate(frames):
        assert at == pytest.approx(start + (k + 1) * 0.02)
        assert message["media"]["chunk"] == str(k + 1)
        assert message["media"]["timestamp"] == str(20 * k)
    numbers = [int(m["sequenceNumber"]) for _, m in habits.records if m["event"] != "connected"]
    assert numbers == list(range(1, len(numbers) + 1))
    said = b"".join(base64.b64decode(message["media"]["payload"]) for _, message in frames)
    assert said == silence(100) + audio + silence(1600)
    assert recording.caller[: len(said)] == said
    assert len(recording.caller) == len(recording.heard)
    assert recording.heard.startswith(tone(100))
    assert recording.ended.by == "caller"
    assert recording.ended.at_ms == pytest.approx(2_020)


async def test_mark_is_echoed_at_the_millisecond_it_is_reached(autojump_clock: MockClock) -> None:
    habits = Habits(greeting_ms=330)

    await play(Script((), hang_up_after_s=1), habits)

    [(at, message)] = events(habits, "mark")
    assert at - habits.records[1][0] == pytest.approx(0.330)
    assert message["mark"]["name"] == "said 1"


async def test_interruption_begins_that_long_after_the_bot_was_heard(
    autojump_clock: MockClock,
) -> None:
    script = Script(
        (
            Utterance("hello", spoken(400)),
            Utterance("stop", spoken(500), InterruptAfter(1_000)),
        )
    )

    recording = await play(script, Habits(greeting_ms=1_000))

    hello, stop = recording.spoken
    assert hello.start_ms == pytest.approx(1_000 + 800)
    # 400 ms of speech, 600 ms until the bot answers (to the frame), 1,000 ms of answer.
    assert stop.start_ms == pytest.approx(1_800 + 400 + 600 + 1_000, abs=20)
    [clear] = [h for h in recording.happenings if isinstance(h, Clear)]
    assert clear.at_ms == pytest.approx(stop.start_ms + 80)
    cut = [span for span in recording.played if span.cut]
    assert [span.end_ms for span in cut] == [pytest.approx(clear.at_ms)]
    assert recording.ended.by == "caller"


async def test_utterances_do_not_overlap(autojump_clock: MockClock) -> None:
    script = Script((Utterance("a", tone(900), At(0.5)), Utterance("b", tone(100), At(0.6))))

    recording = await play(script, Habits(greeting_ms=100))

    assert [spoken.start_ms for spoken in recording.spoken] == [500, 1_400]


async def test_keys_are_pressed_one_after_the_other(autojump_clock: MockClock) -> None:
    habits = Habits(greeting_ms=400)
    script = Script((Utterance("keys", digits="1#", when=WhenSilent(0.5)),), patience_s=2)

    recording = await play(script, habits)

    assert [message["dtmf"]["digit"] for _, message in events(habits, "dtmf")] == ["1", "#"]
    assert [key.at_ms for key in recording.pressed] == [900, 1_150]


async def test_caller_goes_on_when_the_bot_says_nothing(autojump_clock: MockClock) -> None:
    habits = Habits(greeting_ms=0, reply_ms=0)
    script = Script((Utterance("a", tone(200)), Utterance("b", tone(200), InterruptAfter(500))))

    recording = await play(script, habits)

    assert [spoken.start_ms for spoken in recording.spoken] == [10_000, 20_200]
    assert recording.ended.at_ms == pytest.approx(30_400 + 20)


async def test_line_may_drop_without_stop(autojump_clock: MockClock) -> None:
    habits = Habits()

    await play(Script((), hang_up_after_s=1, send_stop=False), habits)

    assert events(habits, "stop") == []


async def test_bot_that_hangs_up_ends_the_call(autojump_clock: MockClock) -> None:
    script = Script((Utterance("a", tone(200), At(5)),))

    recording = await play(script, Habits(hangs_up_s=1.5))

    assert recording.ended.by == "bot"
    assert recording.ended.at_ms == pytest.approx(1_500)
    assert recording.ended.code == 1000
    assert recording.spoken == ()


async def test_bot_that_reads_nothing_ends_at_the_limit(autojump_clock: MockClock) -> None:
    line, _server_end = open_memory_line()

    recording = await run_call(line, Script((), limit_s=5), IDENTITY)

    assert recording.ended.by == "limit"
    assert recording.ended.at_ms == pytest.approx(5_000)


async def test_record_keeps_what_came_and_when(autojump_clock: MockClock) -> None:
    recording = await play(Script((), hang_up_after_s=1), Habits(greeting_ms=250))

    assert [(type(h), round(h.at_ms)) for h in recording.happenings] == [
        (Media, 0),  # up to 200 ms ahead
        (Media, 0),
        (Media, 0),
        (Mark, 0),
        (Echo, 250),
    ]
    assert recording.played == (Played(0.0, 250.0, False),)
