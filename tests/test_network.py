"""The network between the simulator's two ends, each fault by itself: exact in virtual time."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.toy_bot import Habits, ToyBot, spoken, tone
from voicebot.audio import silence
from voicebot.errors import SocketClosed
from voicebot.simulator import (
    At,
    Identity,
    InterruptAfter,
    MemoryLine,
    Network,
    Recording,
    Script,
    Utterance,
    judge,
    open_memory_line,
    run_call,
)
from voicebot.simulator.network import Pipe, stray_name
from voicebot.simulator.report import as_json, as_text
from voicebot.simulator.twilio_end import BUFFER_BYTES

SID = "MZ" + "1" * 32
IDENTITY = Identity("AC" + "2" * 32, "CA" + "3" * 32, SID, {})


def media(audio: bytes) -> str:
    payload = base64.b64encode(audio).decode()
    return json.dumps({"event": "media", "streamSid": SID, "media": {"payload": payload}})


def mark(name: str) -> str:
    return json.dumps({"event": "mark", "streamSid": SID, "mark": {"name": name}})


CLEAR = json.dumps({"event": "clear", "streamSid": SID})


class Server:
    """Sends at given times, in ms, and keeps what it got and when its sends were through."""

    def __init__(
        self, sends: Sequence[tuple[float, str | bytes]], closes_at_ms: float = math.inf
    ) -> None:
        self.sends = sends
        self.closes_at_ms = closes_at_ms
        self.got: list[tuple[float, dict[str, Any]]] = []
        self.sent: list[float] = []
        self.closed_ms: float | None = None
        self.began = trio.current_time()

    def now_ms(self) -> float:
        return round((trio.current_time() - self.began) * 1000, 3)

    async def run(self, line: MemoryLine) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.send, line)
                while True:
                    message = json.loads(await line.receive())
                    self.got.append((self.now_ms(), message))
        except* SocketClosed:
            self.closed_ms = self.now_ms()

    async def send(self, line: MemoryLine) -> None:
        for at_ms, message in self.sends:
            await trio.sleep_until(self.began + at_ms / 1000)
            await line.send(message)
            self.sent.append(self.now_ms())
        if self.closes_at_ms < math.inf:
            await trio.sleep_until(self.began + self.closes_at_ms / 1000)
            await line.aclose()

    def times(self, event: str) -> list[float]:
        return [at_ms for at_ms, message in self.got if message["event"] == event]

    def echoes(self) -> list[tuple[str, float]]:
        return [(m["mark"]["name"], at_ms) for at_ms, m in self.got if m["event"] == "mark"]


async def hold(
    network: Network,
    *sends: tuple[float, str | bytes],
    seconds: float = 2.0,
    closes_at_ms: float = math.inf,
    utterances: tuple[Utterance, ...] = (),
) -> tuple[Recording, Server]:
    """Hold a call of that length with a server that does this."""
    line, server_end = open_memory_line()
    server = Server(sends, closes_at_ms)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.run, server_end)
        script = Script(utterances, hang_up_after_s=seconds)
        recording = await run_call(line, script, IDENTITY, network)
    return recording, server


def numbered(server: Server) -> bool:
    """Whether the sequence numbers count up by one, in the order of the wire."""
    numbers = [int(m["sequenceNumber"]) for _, m in server.got if m["event"] != "connected"]
    return numbers == list(range(1, len(numbers) + 1))


# ------------------------------------------------------------------ a perfect line


async def test_perfect_line_takes_no_time_and_leaves_nothing_to_chance(
    autojump_clock: MockClock,
) -> None:
    sends = [(10, media(tone(50))), (15, mark("m")), (30, CLEAR), (35, mark("n"))]

    recording, server = await hold(Network(), *sends, seconds=0.06)
    again, _ = await hold(Network(seed=9), *sends, seconds=0.06)

    assert [(at_ms, m["event"]) for at_ms, m in server.got] == [
        (0, "connected"),
        (0, "start"),
        (20, "media"),
        (30, "mark"),
        (35, "mark"),
        (40, "media"),
        (60, "media"),
        (80, "stop"),
    ]
    assert numbered(server)
    assert [media.transit_ms for media in recording.medias] == [0.0]
    assert [clear.transit_ms for clear in recording.clears] == [0.0]
    assert [m.transit_ms for m in recording.marks] == [0.0] * 2
    assert [echo.late_ms for echo in recording.echoes] == [0.0] * 2
    assert again.happenings == recording.happenings
    assert again.heard == recording.heard == silence(10) + tone(20) + silence(50)


async def test_longer_frames_carry_the_same_call(autojump_clock: MockClock) -> None:
    script = Script((Utterance("a", spoken(300), At(0.13)), Utterance("b", spoken(300))))

    async def play(network: Network) -> tuple[Recording, list[dict[str, Any]]]:
        line, server_end = open_memory_line()
        habits = Habits(greeting_ms=500, react_ms=10_000, think_ms=400)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ToyBot(server_end, habits).run)
            recording = await run_call(line, script, IDENTITY, network)
        return recording, [m["media"] for _, m in habits.records if m["event"] == "media"]

    short, _ = await play(Network())
    long, frames = await play(Network(frame_ms=100))

    assert long.spoken[0].start_ms == short.spoken[0].start_ms == 140
    assert long.caller.startswith(short.caller[: 440 * 8])
    assert {len(base64.b64decode(frame["payload"])) for frame in frames[:-1]} == {800}
    assert [frame["timestamp"] for frame in frames[:3]] == ["0", "100", "200"]


async def test_last_frame_is_as_long_as_the_caller_stayed(autojump_clock: MockClock) -> None:
    _, server = await hold(Network(frame_ms=100), seconds=0.25)

    sizes = [len(base64.b64decode(m["media"]["payload"])) for _, m in server.got[2:-1]]
    assert sizes == [800, 800, 480]
    assert server.got[-1][1]["event"] == "stop"


# ------------------------------------------------------------------ time under way


async def test_delay_holds_up_both_ways(autojump_clock: MockClock) -> None:
    recording, server = await hold(
        Network(delay_ms=50), (100, media(tone(400))), (110, mark("m")), (300, CLEAR), seconds=1
    )

    assert server.times("start") == [50]
    assert server.times("media")[:3] == [70, 90, 110]
    [clear] = recording.clears
    assert (clear.at_ms, clear.transit_ms, clear.effect_ms) == (300, 50, 350)
    assert clear.dropped_ms == 200  # it had played 200 of 400 when the clear came
    assert recording.heard_between(100, 150) == silence(50)
    assert recording.heard_between(150, 350) == tone(200)
    assert recording.heard_between(350, 1_000) == silence(650)
    assert server.echoes() == [("m", 400)]


async def test_order_of_the_wire_is_kept_whatever_is_under_way(autojump_clock: MockClock) -> None:
    recording, _ = await hold(
        Network(delay_ms=50), (100, media(tone(100))), (120, CLEAR), (120, media(tone(20)))
    )

    assert [type(h).__name__ for h in recording.happenings] == ["Media", "Clear", "Media"]
    assert [h.at_ms for h in recording.happenings] == [100, 120, 120]
    assert recording.heard_between(150, 250) == tone(20) + tone(20) + silence(60)


async def test_stop_arrives_before_the_line_is_closed(autojump_clock: MockClock) -> None:
    recording, server = await hold(Network(delay_ms=500), (990, media(tone(20))), seconds=1)

    assert recording.ended.at_ms == 1_020
    assert server.times("stop") == [1_520]
    assert server.closed_ms == 1_520
    assert recording.medias[0].effect_ms == math.inf  # the caller had gone
    assert recording.heard == silence(1_020)


async def test_what_is_sent_before_a_close_arrives_before_it(autojump_clock: MockClock) -> None:
    recording, _ = await hold(
        Network(delay_ms=200), (100, media(tone(50))), closes_at_ms=150, seconds=5
    )

    assert (recording.ended.by, recording.ended.at_ms) == ("bot", 350)
    assert recording.heard_between(300, 350) == tone(50)


async def test_jitter_delays_by_chance_and_keeps_the_order(autojump_clock: MockClock) -> None:
    sends = [(100 + 50 * i, media(bytes([0x20 + i]) * 8)) for i in range(20)]

    recording, server = await hold(Network(jitter_ms=80, seed=3), *sends)

    delays = [at_ms - 20 * (i + 1) for i, at_ms in enumerate(server.times("media"))]
    assert numbered(server)
    assert all(0 <= delay <= 80 for delay in delays)
    assert len(set(delays)) > 50
    assert max(delays) > 60
    transits = [h.transit_ms for h in recording.medias]
    assert all(0 <= transit <= 80 for transit in transits)
    assert max(transits) > 40
    assert min(transits) < 40
    assert [h.effect_ms for h in recording.medias] == sorted(h.effect_ms for h in recording.medias)
    assert recording.heard.replace(b"\xff", b"") == b"".join(
        bytes([0x20 + i]) * 8 for i in range(20)
    )


async def test_batches_arrive_in_bunches(autojump_clock: MockClock) -> None:
    recording, server = await hold(Network(batch_ms=250), (100, media(tone(10))), seconds=1)

    assert set(server.times("media")) == {250, 500, 750, 1_000}
    assert [server.times("media").count(at_ms) for at_ms in (250, 500)] == [12, 13]
    assert recording.medias[0].transit_ms == 0  # only what goes to the server


async def test_stall_lets_nothing_through_and_then_everything(autojump_clock: MockClock) -> None:
    recording, server = await hold(
        Network(stalls=((1.0, 0.3), (0.2, 0.1))),
        (900, media(tone(400))),
        (1_050, CLEAR),
        (1_060, mark("m")),
        seconds=2,
    )

    times = server.times("media")
    assert not [at_ms for at_ms in times if 200 <= at_ms < 300 or 1_000 <= at_ms < 1_300]
    assert times.count(300) == 6
    assert times.count(1_300) == 16
    assert times.count(1_320) == 1
    assert [(h.at_ms, h.effect_ms) for h in recording.clears] == [(1_050, 1_300)]
    assert server.sent == [900, 1_050, 1_060]  # the server does not feel it
    assert recording.heard_between(900, 1_300) == tone(400)
    assert server.echoes() == [("m", 1_300)]


@given(
    st.lists(st.tuples(st.integers(0, 3_000), st.booleans()), max_size=40),
    st.builds(
        Network,
        delay_ms=st.sampled_from([0, 35]),
        jitter_ms=st.sampled_from([0, 80]),
        stalls=st.lists(st.tuples(st.integers(0, 3), st.floats(0, 2)), max_size=3).map(tuple),
        seed=st.integers(0, 5),
    ),
    st.sampled_from([0.0, 200.0]),
)
def test_pipe_keeps_the_order_and_is_never_early(
    puts: list[tuple[int, bool]], network: Network, batch_ms: float
) -> None:
    pipe: Pipe[int] = Pipe(network, 100.0, "x", batch_ms)
    times = sorted(100.0 + at_ms / 1000 for at_ms, _ in puts)
    for number, now in enumerate(times):
        pipe.put(number, now)

    out = [pipe.take() for _ in times]

    assert [number for _, number in out] == list(range(len(times)))
    assert [due for due, _ in out] == sorted(due for due, _ in out)
    for due, number in out:
        assert due >= times[number] + network.delay_ms / 1000
        assert not any(at_s <= due - 100.0 < at_s + for_s - 1e-9 for at_s, for_s in network.stalls)
    assert pipe.next_at == math.inf


# ------------------------------------------------------------------ marks


def six_marks() -> list[tuple[float, str]]:
    """Return a mark every 100 ms of the audio, which starts to play at 0."""
    sends = []
    for i in range(1, 7):
        sends += [(0.0, media(tone(100))), (0.0, mark(f"m{i}"))]
    return sends


DUE = [(f"m{i}", 100.0 * i) for i in range(1, 7)]


async def test_lost_marks_never_come(autojump_clock: MockClock) -> None:
    recording, server = await hold(Network(lost_marks=1.0), *six_marks())
    some, half = await hold(Network(lost_marks=0.5, seed=1), *six_marks())

    assert server.echoes() == []
    assert [(e.name, e.at_ms, e.late_ms) for e in recording.echoes] == [
        (name, at_ms, math.inf) for name, at_ms in DUE
    ]
    assert numbered(server)
    assert 0 < len(half.echoes()) < 6
    assert half.echoes() == [(e.name, e.at_ms) for e in some.echoes if e.late_ms == 0]


async def test_late_marks_are_overtaken(autojump_clock: MockClock) -> None:
    recording, server = await hold(Network(late_marks=0.5, late_mark_ms=250, seed=1), *six_marks())

    late = {e.name for e in recording.echoes if e.late_ms == 250}
    assert 0 < len(late) < 6
    expected = [(name, at_ms + 250 * (name in late)) for name, at_ms in DUE]
    assert server.echoes() == sorted(expected, key=lambda echo: echo[1])
    assert server.echoes() != expected  # one was overtaken
    assert numbered(server)


async def test_mark_that_is_late_at_a_clear_comes_after_those_cleared(
    autojump_clock: MockClock,
) -> None:
    sends = [(0.0, media(tone(50))), (0.0, mark("a")), (100, media(tone(900))), (100, mark("b"))]

    recording, server = await hold(Network(late_marks=1.0), *sends, (300, CLEAR))

    assert server.echoes() == [("a", 750), ("b", 1_000)]
    assert [(e.name, e.at_ms, e.cleared) for e in recording.echoes] == [
        ("a", 50, False),
        ("b", 300, True),
    ]


async def test_duplicate_marks_come_twice(autojump_clock: MockClock) -> None:
    _, server = await hold(Network(duplicate_marks=1.0), *six_marks())

    assert server.echoes() == [echo for echo in DUE for _ in range(2)]
    assert numbered(server)


async def test_stray_marks_come_beside_the_real_ones(autojump_clock: MockClock) -> None:
    _, server = await hold(Network(stray_marks=1.0), *six_marks())

    assert [name for name, _ in server.echoes()][:4] == ["m1", "m1000001", "m2", "m1000002"]


def test_stray_name_looks_like_one_to_come() -> None:
    assert stray_name("t3e1s07") == "t3e1s1000007"
    assert stray_name("7-end") == "1000007-end"
    assert stray_name("said") == "said 1000000"
    assert stray_name("9" * 5_000) not in ("", "9" * 5_000)


# ------------------------------------------------------------------ clocks


@pytest.mark.parametrize("drift", [0.001, -0.02])
async def test_drift_stretches_time_and_not_the_sound(
    drift: float, autojump_clock: MockClock
) -> None:
    audio = bytes(i % 120 for i in range(80_000))  # 10 s

    recording, server = await hold(
        Network(drift=drift), (0, media(audio)), (0, mark("end")), seconds=11
    )

    [(_, echo_ms)] = server.echoes()
    assert echo_ms == pytest.approx(10_000 / (1 + drift), abs=0.2)
    assert recording.heard_between(0, 10_000) == audio
    assert recording.echoes[0].at_ms == pytest.approx(10_000, abs=0.2)
    frames = [(at_ms, m["media"]) for at_ms, m in server.got if m["event"] == "media"]
    assert len(frames) == 550
    assert frames[499][0] == pytest.approx(10_000 / (1 + drift), abs=0.01)
    assert frames[499][1]["timestamp"] == "9980"


async def test_clear_under_drift_cuts_where_the_far_end_was(autojump_clock: MockClock) -> None:
    audio = bytes(i % 120 for i in range(80_000))

    recording, _ = await hold(Network(drift=0.1), (0, media(audio)), (1_000, CLEAR), seconds=3)

    assert recording.clears[0].at_ms == 1_100
    assert recording.heard.rstrip(b"\xff") == audio[:8_800]


# ------------------------------------------------------------------ lines that break


async def test_half_open_line_is_silent_both_ways(autojump_clock: MockClock) -> None:
    sends = [(100.0 * i, mark(f"m{i}")) for i in range(1, 11)]

    recording, server = await hold(
        Network(half_open_at_s=0.55), *sends, closes_at_ms=1_500, seconds=2
    )

    assert server.got[-1][0] == 540
    assert [m.name for m in recording.marks] == ["m1", "m2", "m3", "m4", "m5"]
    assert server.sent == [100, 200, 300, 400, 500, 600]  # one fits into the line, then it waits
    assert server.closed_ms == pytest.approx(2_020)  # when the test's call is over
    assert (recording.ended.by, recording.ended.at_ms) == ("caller", 2_020)


async def test_server_that_closes_a_half_open_line_is_not_noticed(
    autojump_clock: MockClock,
) -> None:
    recording, _ = await hold(Network(half_open_at_s=0.5), closes_at_ms=700, seconds=2)

    assert recording.ended.by == "caller"


async def test_reader_that_stops_blocks_the_server_and_still_sends(
    autojump_clock: MockClock,
) -> None:
    sends = [(100.0 * i, media(tone(100))) for i in range(1, 11)]

    recording, server = await hold(Network(stop_reading_at_s=0.55), *sends, seconds=2)

    assert server.sent == [100, 200, 300, 400, 500, 600]
    assert len(recording.medias) == 5
    assert len(server.times("media")) == 100
    assert server.times("stop") == [2_020]


async def test_close_is_noticed_by_sending_where_nobody_reads(autojump_clock: MockClock) -> None:
    recording, _ = await hold(Network(stop_reading_at_s=0.1), closes_at_ms=505, seconds=2)

    assert (recording.ended.by, recording.ended.at_ms) == ("bot", 520)


async def test_line_that_drops_is_closed_without_stop(autojump_clock: MockClock) -> None:
    recording, server = await hold(
        Network(close_at_s=0.5, delay_ms=100), (450, media(tone(20))), seconds=2
    )

    assert (recording.ended.by, recording.ended.at_ms) == ("network", 500)
    assert server.closed_ms == 500
    assert server.times("stop") == []
    assert server.times("media")[-1] == 480  # what was under way is lost
    assert recording.medias[0].effect_ms == math.inf
    assert judge(recording).failures == ("the bot was never heard",)
    assert "0.500  twilio  line drops" in as_text(recording, judge(recording))


# ------------------------------------------------------------------ the whole


def everything(seed: int) -> Network:
    return Network(
        delay_ms=20,
        jitter_ms=60,
        batch_ms=40,
        stalls=((2.0, 0.25),),
        lost_marks=0.2,
        late_marks=0.2,
        duplicate_marks=0.2,
        stray_marks=0.2,
        drift=0.0005,
        seed=seed,
    )


async def all_at_once(seed: int) -> tuple[Recording, list[tuple[float, dict[str, Any]]]]:
    sends: list[tuple[float, str | bytes]] = []
    for i in range(1, 60):
        sends += [(50.5 * i, media(tone(45))), (50.5 * i, mark(f"m{i}"))]
        if i % 20 == 0:
            sends.append((50.5 * i + 3, CLEAR))
    hello = Utterance("hello", spoken(400), InterruptAfter(500))
    recording, server = await hold(everything(seed), *sends, seconds=5, utterances=(hello,))
    return recording, server.got


def test_same_seed_is_the_same_call() -> None:
    def run(seed: int) -> tuple[Recording, list[tuple[float, dict[str, Any]]]]:
        return trio.run(all_at_once, seed, clock=MockClock(autojump_threshold=0))

    first = run(5)

    assert all(run(5) == first for _ in range(3))
    assert run(6)[0].happenings != first[0].happenings


async def test_record_tells_what_the_network_did(autojump_clock: MockClock) -> None:
    recording, _ = await all_at_once(5)

    report = json.loads(json.dumps(as_json(recording, judge(recording)), allow_nan=False))

    assert report["network"]["jitter_ms"] == 60
    assert report["network"]["stalls"] == [[2.0, 0.25]]
    clear = next(event for event in report["events"] if event["event"] == "clear")
    assert 20 <= clear["transit_ms"] <= 80.1
    late = [event["late_ms"] for event in report["events"] if "late_ms" in event]
    assert None in late
    assert 700 in late


async def test_good_bot_passes_on_a_poor_line(autojump_clock: MockClock) -> None:
    script = Script(
        (Utterance("a", spoken(400)), Utterance("b", spoken(500), InterruptAfter(1_000)))
    )
    line, server_end = open_memory_line()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ToyBot(server_end, Habits()).run)
        recording = await run_call(
            line, script, network=Network(delay_ms=40, jitter_ms=40, lost_marks=0.5, drift=0.001)
        )

    verdict = judge(recording)

    assert verdict.failures == ()
    [interruption] = verdict.interruptions
    [clear] = recording.clears
    assert interruption.heard_ms == pytest.approx(clear.effect_ms - interruption.onset_ms, abs=10)


@pytest.mark.parametrize(
    "message,code",
    [
        (media(tone(20)).encode(), 31950),
        (json.dumps({"event": "flush", "streamSid": SID}), 31951),
        (json.dumps({"event": "clear", "streamSid": SID, "turn": 1}), 31951),
        (json.dumps({"event": "mark", "streamSid": SID, "mark": {}}), 31951),
        (json.dumps({"event": "clear"}), 31951),
        (media(tone(20)).replace(SID, "MZ" + "9" * 32), 31951),
        (media(base64.b64encode(tone(20))), 31951),
        ("[" * 100_000, 31951),
        (media(bytes(BUFFER_BYTES + 1)), 31931),
    ],
    ids=[
        "binary",
        "unknown event",
        "extra field",
        "missing name",
        "missing sid",
        "wrong sid",
        "base64 twice",
        "not JSON",
        "over ten minutes",
    ],
)
async def test_what_twilio_warns_of_fails_the_call_and_is_not_heard(
    message: str | bytes, code: int, autojump_clock: MockClock
) -> None:
    recording, _ = await hold(Network(delay_ms=10), (100, message), (200, media(tone(100))))

    assert [warning.code for warning in recording.warnings] == [code]
    assert [f for f in judge(recording).failures if f"Twilio would log warning {code}" in f]
    assert recording.heard == silence(210) + tone(100) + silence(1_710)


def test_recording_answers_about_the_edges_of_the_call() -> None:
    recording = Recording(
        IDENTITY,
        Script(()),
        silence(100),
        tone(100),
        (),
        (),
        (),
        (),
        ended=None,  # type: ignore[arg-type]
    )

    assert recording.heard_between(-50, 10) == tone(10)
    assert recording.heard_between(90, 500) == tone(100)[90 * 8 :]
    assert recording.heard_between(200, 300) == b""
    assert (recording.medias, recording.clears, recording.marks, recording.echoes) == ((),) * 4


@pytest.mark.parametrize(
    "wrong,complaint",
    [
        ({"frame_ms": 30}, "frame_ms 30 is no multiple of 20"),
        ({"frame_ms": 0}, "frame_ms 0"),
        ({"lost_marks": 1.1}, "lost_marks 1.1 is no probability"),
        ({"jitter_ms": -1}, "jitter_ms -1 is no time"),
        ({"delay_ms": math.nan}, "delay_ms nan is no time"),
        ({"close_at_s": -0.5}, "close_at_s -0.5 is no time"),
        ({"stalls": ((1, -1),)}, "stall"),
        ({"drift": 1.0}, "drift 1.0 is not between"),
        ({"jitter_ms": -1, "stray_marks": 2}, "jitter_ms -1 is no time; stray_marks 2"),
    ],
)
def test_network_that_cannot_be_is_refused(wrong: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Network(**wrong)
