"""What a trace shows of a call that is over: spans by OpenTelemetry's conventions, as plain values.

Built from the record of the call, whose times are explicit, so nothing is done for it while a call
lives. No content and no numbers: not what was said, nor what tools were given or returned.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

from voicebot.record import (
    BargeIn,
    CallSummary,
    Outcome,
    ProviderRequest,
    ToolRecord,
    TurnRecord,
)
from voicebot.toolbox import has_failed

SPANS: Final = 1_500  # of a call, its newest: an SDK's queue holds 2,048 of all calls
Value = str | int | float | bool
_FAILED: Final = frozenset(
    {
        *(Outcome.CRASHED, Outcome.NO_SPEECH, Outcome.NO_RECOGNITION, Outcome.NO_ANSWERS),
        *(Outcome.MEDIA_TIMEOUT, Outcome.PROTOCOL_ERROR, Outcome.SEND_TIMEOUT),
        Outcome.SOCKET_CLOSED,
    }
)
_OPERATIONS: Final = {"stt": "speech_to_text", "llm": "chat", "tts": "text_to_speech"}


@dataclass(slots=True)
class Event:
    """A moment of a span. `at` is seconds since the call began."""

    at: float
    name: str
    attributes: dict[str, Value] = field(default_factory=dict)


@dataclass(slots=True)
class Span:
    """One span. Times are seconds since the call began; `failed` is its `error.type`."""

    name: str
    begins: float
    ends: float
    kind: Literal["server", "client", "internal"]
    attributes: dict[str, Value]
    failed: str = ""
    events: list[Event] = field(default_factory=list)
    children: list[Span] = field(default_factory=list)


def span_of(summary: CallSummary, direction: str) -> Span:
    """Return the span of a call, with those of its turns, tools and requests below it."""
    ends = summary.duration_s
    overs = {
        moment.detail["number"]: moment.at
        for moment in summary.timeline
        if moment.what == "turn_over"
    }
    turns = {
        turn.number: _turn(turn, max(overs.get(turn.number, ends), turn.began))
        for turn in summary.turns
    }
    # A stream that goes on with a call begins where that is by then.
    begins = min([request.began for request in summary.requests] + [ends])
    call = Span(
        "voicebot.call",
        begins if summary.requests else 0.0,
        ends,
        "server",
        {
            "voicebot.call_sid": summary.call_sid,
            "voicebot.stream_sid": summary.stream_sid,
            "voicebot.direction": direction,
            "voicebot.outcome": summary.outcome.value,
            "voicebot.turns": len(summary.turns),
            "voicebot.barge_ins": len(summary.barge_ins),
            "voicebot.underruns": summary.counts.get("underruns", 0),
        },
        summary.outcome.value if summary.outcome in _FAILED else "",
        children=list(turns.values()),
    )
    for request in summary.requests:
        above = call if request.turn is None else turns.get(request.turn, call)
        above.children.append(_request(request, ends))
        above.begins = min(above.begins, request.began)  # a guess is asked for before its turn
    for barge_in in summary.barge_ins:
        turns.get(barge_in.turn, call).events.extend(_barge_in(barge_in))
    _shorten(call)
    return call


def _turn(turn: TurnRecord, ends: float) -> Span:
    begins = turn.began if turn.fell is None else min(turn.fell, turn.began)
    attributes: dict[str, Value] = {
        "voicebot.turn": turn.number,
        "voicebot.interrupted": turn.interrupted,
        "voicebot.goodbye": turn.goodbye,
    }
    if turn.fell is not None and turn.first_media is not None:
        attributes["voicebot.response_s"] = round(max(0.0, turn.first_media - turn.fell), 3)
    stages = (
        ("end_of_turn", turn.began),
        ("first_piece", turn.first_text),
        ("first_audio", turn.first_audio),
        ("first_media", turn.first_media),
    )
    events = [Event(at, name) for name, at in stages if at is not None]
    tools = [_tool(tool, ends) for tool in turn.tools]
    return Span("voicebot.turn", begins, ends, "internal", attributes, "", events, tools)


def _tool(tool: ToolRecord, ends: float) -> Span:
    return Span(
        f"execute_tool {tool.name}",
        tool.began,
        max(ends, tool.began) if tool.ended is None else tool.ended,
        "internal",
        {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": tool.name},
        "tool_failed" if has_failed(tool.result) else "",
    )


def _request(request: ProviderRequest, ends: float) -> Span:
    operation = _OPERATIONS[request.part]
    attributes: dict[str, Value] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": request.provider,
        "voicebot.again": request.again,
    }
    if request.model:
        attributes["gen_ai.request.model"] = request.model
    stages = (("accepted", request.accepted), ("first", request.first))
    return Span(
        f"{operation} {request.model or request.provider}",
        request.began,
        max(ends, request.began) if request.ended is None else request.ended,
        "client",
        attributes,
        request.failed,
        [Event(at, name) for name, at in stages if at is not None],
    )


def _barge_in(barge_in: BargeIn) -> Iterator[Event]:
    attributes: dict[str, Value] = {"voicebot.cleared": barge_in.cleared}
    if barge_in.meant is not None:
        attributes["voicebot.meant"] = barge_in.meant
    if barge_in.silenced is not None:
        attributes["voicebot.yield_s"] = round(barge_in.silenced - barge_in.onset, 3)
    yield Event(barge_in.onset, "barge_in", attributes)
    if barge_in.silenced is not None:
        yield Event(barge_in.silenced, "silenced")
    if barge_in.resumed is not None:
        yield Event(barge_in.resumed, "resumed")


def _shorten(call: Span) -> None:
    """Leave out the oldest of a call that has too much, and say how many."""
    count = 1 + sum(1 + len(child.children) for child in call.children)
    left_out = 0
    while count - left_out > SPANS:
        left_out += 1 + len(call.children.pop(0).children)
    if left_out:
        call.attributes["voicebot.spans_left_out"] = left_out
