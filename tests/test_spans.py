"""What a trace shows of a call: its spans, in their places and times, without content."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from voicebot import spans
from voicebot.record import (
    BargeIn,
    CallSummary,
    Moment,
    Outcome,
    ProviderRequest,
    ToolRecord,
    TurnRecord,
)
from voicebot.spans import Span, span_of

TURNS = (
    TurnRecord(0, "", 0.1, first_text=0.1, first_audio=0.1, first_media=0.11, heard="Hello."),
    TurnRecord(
        *(1, "my number is 4929 1234", 3.0, 2.9, 3.5, 3.7, 3.71, "Thank you, Ann.", "Thank you"),
        interrupted=True,
        tools=[
            ToolRecord("book", {"name": "Ann"}, 3.2, 3.3, "Booked for Ann."),
            ToolRecord("mail", {"to": "ann@example.com"}, 3.3, 3.4, "failed: no such box"),
            ToolRecord("late", {}, 3.4),
        ],
    ),
)
TIMELINE = (Moment(1.0, "turn_over", {"number": 0}), Moment(5.0, "turn_over", {"number": 1}))
REQUESTS = (
    ProviderRequest("stt", "deepgram-stt", None, 0.02, 0.2, 2.5, 8.0),
    ProviderRequest("llm", "groq", None, 2.0, 2.1, 2.2, 2.3, model="gpt"),  # a wrong guess
    ProviderRequest("llm", "groq", 1, 2.8, ended=3.0, failed="timeout", model="gpt"),
    ProviderRequest("llm", "groq", 1, 3.0, 3.1, 3.2, 3.6, model="gpt", again=True),
    ProviderRequest("tts", "deepgram-tts", 1, 3.5, 3.6, 3.7),  # cut off by the end of the call
)
CALL = CallSummary(
    *("CA1", "MZ1", Outcome.HUNG_UP, 9.0, TURNS, TIMELINE),
    counts={"underruns": 1},
    barge_ins=(
        BargeIn(1, 4.0, 4.06, 4.05, 4.07, True, 4.2, 4.6, False, 4.62),
        BargeIn(1, 4.8, 4.86),
    ),
    requests=REQUESTS,
)


def all_of(span: Span) -> list[Span]:
    return [span, *(below for child in span.children for below in all_of(child))]


def test_a_call_its_turns_their_tools_and_requests() -> None:
    call = span_of(CALL, "inbound")

    assert (call.name, call.begins, call.ends, call.kind) == ("voicebot.call", 0.02, 9.0, "server")
    assert call.attributes["voicebot.outcome"] == "hung_up"
    assert call.attributes["voicebot.call_sid"] == "CA1"
    assert call.failed == ""
    greeting, turn, recogniser, guess = call.children
    assert (greeting.begins, greeting.ends) == (0.1, 1.0)
    assert (recogniser.name, recogniser.ends) == ("speech_to_text deepgram-stt", 8.0)
    assert (guess.name, guess.begins) == ("chat gpt", 2.0)
    # It begins when its first request does: the model was asked for a guess that was right.
    assert (turn.begins, turn.ends) == (2.8, 5.0)
    assert turn.attributes["voicebot.interrupted"] is True
    assert turn.attributes["voicebot.response_s"] == 0.81
    assert [child.name for child in turn.children] == [
        *("execute_tool book", "execute_tool mail", "execute_tool late"),
        *("chat gpt", "chat gpt", "text_to_speech deepgram-tts"),
    ]
    assert [child.failed for child in turn.children] == ["", "tool_failed", "", "timeout", "", ""]
    assert [child.ends for child in turn.children] == [3.3, 3.4, 5.0, 3.0, 3.6, 9.0]


def test_requests_by_the_conventions_for_generative_models() -> None:
    [_, turn, *_] = span_of(CALL, "inbound").children
    asked = turn.children[4]
    assert asked.kind == "client"
    assert asked.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "groq",
        "gen_ai.request.model": "gpt",
        "voicebot.again": True,
    }
    assert [(event.name, event.at) for event in asked.events] == [("accepted", 3.1), ("first", 3.2)]


def test_interruptions_are_events_of_the_reply_that_was_interrupted() -> None:
    [_, turn, *_] = span_of(CALL, "inbound").children
    stages, barge_ins = turn.events[:4], turn.events[4:]
    assert [(event.name, event.at) for event in stages] == [
        *(("end_of_turn", 3.0), ("first_piece", 3.5), ("first_audio", 3.7), ("first_media", 3.71)),
    ]
    assert [(event.name, event.at) for event in barge_ins] == [
        *(("barge_in", 4.0), ("silenced", 4.07), ("resumed", 4.62), ("barge_in", 4.8)),
    ]
    assert barge_ins[0].attributes == {
        **{"voicebot.cleared": True, "voicebot.meant": False, "voicebot.yield_s": 0.07},
    }
    assert barge_ins[-1].attributes == {"voicebot.cleared": False}


def test_nothing_that_was_said_is_in_it() -> None:
    shown = repr(all_of(span_of(CALL, "inbound")))
    assert [
        word for word in ("Ann", "4929", "Thank", "Hello", "example", "box") if word in shown
    ] == []


def test_no_span_ends_before_it_begins() -> None:
    crashed = replace(CALL, timeline=(), outcome=Outcome.CRASHED, duration_s=3.05)
    call = span_of(crashed, "outbound")
    assert call.failed == "crashed"
    for span in all_of(call):
        assert span.begins <= span.ends, span


def test_a_stream_that_goes_on_with_a_call_begins_where_that_is() -> None:
    later = ProviderRequest("stt", "deepgram-stt", None, 60.0, 60.1)
    again = replace(CALL, turns=(), requests=(later,), barge_ins=(), duration_s=90.0)
    assert span_of(again, "inbound").begins == 60.0
    assert span_of(replace(again, requests=()), "inbound").begins == 0.0


def test_of_a_very_long_call_the_newest_are_shown(monkeypatch: Any) -> None:
    monkeypatch.setattr(spans, "SPANS", 10)
    call = span_of(CALL, "inbound")  # of 11
    assert [child.attributes.get("voicebot.turn") for child in call.children] == [1, None, None]
    assert call.attributes["voicebot.spans_left_out"] == 1
