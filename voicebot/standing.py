"""How a call stands between two requests about it, as processes tell it each other.

Synchronous. A call that no process is busy with is no more than this: its line and token, what was
asked of it, what it is away for, and its record. Plain JSON, because it goes through a database;
times are in seconds by the clock of whoever keeps it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from voicebot.call_record import CallRecord
from voicebot.parting import Ending, Resumption
from voicebot.ports import Message, ToolCall
from voicebot.record import Outcome


@dataclass(frozen=True, slots=True)
class Line:
    """A place for a call. `nonce`: what makes its token; empty: it is being dialled.

    `until`: it frees itself then; None: its stream is in.
    """

    nonce: str
    account_sid: str
    until: float | None


@dataclass(frozen=True, slots=True)
class Away:
    """What a call is away for. `notes`: what the bot keeps of it, by name."""

    ending: Ending
    since: float
    asked: bool = False  # Twilio was told what is next
    result: str = ""  # of what it went away for; empty: not known yet
    notes: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """How a call stands. `past`: the nonce of a token that is used up; `call`: the fields that
    were asked of it when it was to be placed.
    """

    line: Line | None = None
    past: str = ""
    away: Away | None = None
    call: Mapping[str, Any] | None = None
    record: CallRecord | None = None

    @property
    def over(self) -> bool:
        """Whether nothing is to come of it, so that its token alone is to be remembered."""
        return self.line is None and self.away is None


def to_json(standing: Standing) -> dict[str, Any]:
    """Return a standing as plain values, but for its line and token."""
    away = None
    if standing.away is not None:
        away = asdict(standing.away)
        away["ending"]["outcome"] = standing.away.ending.outcome.value
    return {
        "away": away,
        "call": standing.call,
        "record": None if standing.record is None else asdict(standing.record.opened),
    }


def from_json(told: Mapping[str, Any], line: Line | None, past: str) -> Standing:
    """Return the standing that `to_json` was given."""
    away, record = told["away"], told["record"]
    if record is not None:
        known = {field.name for field in fields(CallRecord)}  # of a newer program it may have more
        record = CallRecord(**{name: value for name, value in record.items() if name in known})
    return Standing(line, past, away and _away(away), told["call"], record)


def _away(told: Mapping[str, Any]) -> Away:
    ending = told["ending"]
    so_far = ending["so_far"]
    history = tuple(
        Message(**{**one, "tool_calls": tuple(ToolCall(**call) for call in one["tool_calls"])})
        for one in so_far["history"]
    )
    ending = Ending(
        Outcome(ending["outcome"]),
        ending["arguments"],
        ending["call_id"],
        Resumption(history, so_far["turns"], so_far["elapsed_s"], so_far["speaker"]),
    )
    return Away(ending, told["since"], told["asked"], told["result"], told["notes"])


def plain(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return what of these values is plain JSON, and the names of the others."""
    told, others = {}, []
    for name, value in values.items():
        try:
            if json.loads(json.dumps(value)) == value:
                told[name] = value
                continue
        except (TypeError, ValueError, RecursionError):
            pass
        others.append(name)
    return told, others
