"""What is kept of a call."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio

from tests.fakes import FakeChat, FakeEar, FakeTool, FakeTwilio, plan, ports
from voicebot.nursery import run_call
from voicebot.ports import ToolCall
from voicebot.record import (
    BARGE_INS,
    TIMELINE_LENGTH,
    Journal,
    Moment,
    ToolRecord,
    TurnRecord,
    joined,
    tell_turns,
)


async def test_a_call_is_recorded_as_plain_values(autojump_clock: Any) -> None:
    chat = FakeChat([[ToolCall("x", "book", '{"n": 1}')], "Done."])
    call = ports(FakeEar(["book it"]), chat, tools=(FakeTool(takes=0.5).tool(),))

    summary = await run_call(FakeTwilio(voice=[(1.0, 2.0)], stop_at=6.0), call, plan())

    record = json.loads(json.dumps(summary.as_json(), allow_nan=False))
    assert (record["call_sid"], record["outcome"]) == ("CA1", "hung_up")
    [turn] = record["turns"]
    assert (turn["caller"], turn["heard"], turn["interrupted"]) == ("book it", "Done.", False)
    assert turn["tools"][0]["result"] == "done 1"
    assert "end_of_turn" in [moment["what"] for moment in record["timeline"]]


async def test_whoever_watches_sees_every_event_in_the_moment_it_happens(
    autojump_clock: Any,
) -> None:
    socket, seen = FakeTwilio(stop_at=5.0), list[tuple[float, Moment]]()

    summary = await run_call(
        socket,
        ports(),
        plan(greeting="Hello."),
        watch=lambda moment: seen.append((round(socket.now(), 3), moment)),
    )

    assert tuple(moment for _, moment in seen) == summary.timeline
    assert seen
    assert all(at == moment.at for at, moment in seen)


async def test_each_turn_is_told_when_it_is_over_the_one_in_which_the_call_ends_as_well(
    autojump_clock: Any,
) -> None:
    socket = FakeTwilio(voice=[(1.0, 2.0)], stop_at=3.5)
    told: list[tuple[float, str, str, bool]] = []

    def on_turn(turn: TurnRecord) -> None:
        told.append((round(socket.now(), 1), turn.caller, turn.heard, turn.interrupted))

    chat = FakeChat(["One two three four five six seven eight nine ten eleven twelve."])
    call = ports(FakeEar(["tell me"]), chat)
    summary = await run_call(socket, call, plan(greeting="Hello."), on_turn=on_turn)

    assert [row[1:] for row in told] == [
        (turn.caller, turn.heard, turn.interrupted) for turn in summary.turns
    ]
    assert [turn.caller for turn in summary.turns] == ["", "tell me"]
    assert told[0][0] < 1.5
    assert told[1][0] == 3.5


async def test_the_times_of_a_turn_and_of_an_interruption_are_seconds_of_the_call(
    autojump_clock: Any,
) -> None:
    await trio.sleep(1_000)  # the process is older than the call
    socket = FakeTwilio(voice=[(1.0, 2.0), (5.0, 6.0)], stop_at=11.0)
    chat = FakeChat(["One two three four five six seven eight nine ten eleven twelve.", "Sorry."])

    summary = await run_call(socket, ports(FakeEar(["tell me", "stop"]), chat), plan())

    turn = summary.turns[0]
    assert turn.first_text == pytest.approx(2.75, abs=0.05)
    assert turn.first_audio == pytest.approx(2.8, abs=0.05)
    assert turn.first_media == pytest.approx(2.8, abs=0.05)
    [interrupt] = [moment for moment in summary.timeline if moment.what == "interrupt"]
    assert interrupt.at == pytest.approx(5.06, abs=0.001)
    assert interrupt.detail["onset"] == pytest.approx(5.0, abs=0.001)
    assert summary.duration_s == pytest.approx(11.0, abs=0.03)
    assert 0 < summary.counts["discarded_ms"] <= 200  # the lead


def test_the_newest_events_are_kept() -> None:
    journal = Journal(0.0)
    for number in range(TIMELINE_LENGTH + 10):
        journal.note(number, "x", number=number)

    assert len(journal.timeline) == TIMELINE_LENGTH
    assert journal.timeline[-1].detail == {"number": TIMELINE_LENGTH + 9}


def test_interruptions_without_end_are_not_kept_without_end() -> None:
    journal = Journal(0.0)
    for number in range(BARGE_INS + 5):
        journal.interrupted(float(number), number - 0.1, 0)
        journal.decided(number + 0.5, meant=False)

    assert len(journal.barge_ins) == BARGE_INS
    assert journal.counts["interruptions"] == BARGE_INS + 5  # all of them count


def test_a_turn_is_told_again_once_its_tool_has_returned() -> None:
    told: list[list[tuple[int, str]]] = []
    turn_over = tell_turns(
        lambda turns: told.append(
            [(turn["number"], "".join(tool["result"] for tool in turn["tools"])) for turn in turns]
        )
    )
    late = ToolRecord("book", {}, 0.5)

    turn_over(TurnRecord(0, "book it", 0.0, tools=[late]))
    turn_over(TurnRecord(1, "hello?", 2.0))
    late.ended, late.result = 3.0, "booked"
    turn_over(TurnRecord(2, "and?", 4.0))
    turn_over(TurnRecord(3, "thanks", 5.0))

    assert told == [[(0, "")], [(0, ""), (1, "")], [(0, "booked"), (2, "")], [(3, "")]]


def test_two_streams_of_a_call_are_one() -> None:
    first = {
        "outcome": "transferred", "turns": ("a",), "timeline": ("x",), "barge_ins": (),
        "counts": {"clears": 1},
    }  # fmt: skip
    second = {
        "outcome": "hung_up", "turns": ("b",), "timeline": ("y",), "barge_ins": ("c",),
        "counts": {"clears": 2, "resumes": 1},
    }  # fmt: skip
    assert joined(None, first) == first
    assert joined(first, second) == {
        "outcome": "hung_up", "turns": ("a", "b"), "timeline": ("x", "y"), "barge_ins": ("c",),
        "counts": {"clears": 3, "resumes": 1},
    }  # fmt: skip
