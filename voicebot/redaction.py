"""What is written down of a call, and for how long: settings, and the rules applied to a record.

Applied to a copy before anything is written or shown, so that what is left out is on no disk. Also
makes text what every database takes: no NUL, no half of a surrogate pair, no NaN.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from voicebot.call_record import CallRecord, Packed

# Four digits or more, however they are grouped: cards, PINs, telephone and account numbers.
_DIGITS: Final = re.compile(r"\d(?:[ \-./]{0,2}\d){3,}")
MASK: Final = "[digits]"
_LAST: Final = 4  # digits of a telephone number by which a person knows whose it is
_WORDS_OF_TURN: Final = ("caller", "generated", "heard")


@dataclass(frozen=True, slots=True)
class Retention:
    """How long records are kept."""

    days: float = 90.0  # a quarter's questions can be answered; 0: for ever


@dataclass(frozen=True, slots=True)
class Redaction:
    """What of a call is written down."""

    # What was said, and what tools were given and answered. keep: everything. digits: without
    # runs of four digits or more, but spoken digits may have been recognised as words, which stay.
    # none: nothing; times, names of tools and counts stay.
    words: Literal["keep", "digits", "none"] = "keep"  # a transcript is what records are for
    # The numbers of the two ends. last4: only their last digits.
    numbers: Literal["keep", "last4", "none"] = "keep"  # whom to call back

    # What was given to `POST /calls` as metadata, and Twilio's custom parameters: keep, digits,
    # none as for words. Names stay.
    data: Literal["keep", "digits", "none"] = "keep"  # it is what says whose call it was

    def record(self, record: CallRecord) -> CallRecord:
        """Return the record as it may be written."""
        summary = record.summary
        if summary is not None:
            told = {"turns": [self.turn(turn) for turn in summary.get("turns", ())]}
            summary = {name: _clean(value) for name, value in summary.items() if name != "turns"}
            summary |= told
        return replace(
            record,
            from_=self.number(record.from_),
            to=self.number(record.to),
            stream=_clean(record.stream),
            stream_error=_clean(record.stream_error),
            answered_by=_clean(record.answered_by),
            metadata=_redacted(record.metadata, self.data),
            parameters=_redacted(record.parameters, self.data),
            summary=summary,
            turns=tuple(map(self.turn, record.turns)),
        )

    def turn(self, turn: Mapping[str, Any]) -> dict[str, Any]:
        """Return a turn as it may be written."""
        words: dict[str, Any] = {name: self._said(turn[name]) for name in _WORDS_OF_TURN}
        tools = [
            {
                **tool,
                "name": _clean(tool["name"]),
                "arguments": {} if self.words == "none" else self._said(tool["arguments"]),
                "result": self._said(tool["result"]),
            }
            for tool in turn["tools"]
        ]
        return {**turn, **words, "tools": tools}

    def _said(self, value: Any) -> Any:
        return _redacted(value, self.words)

    def number(self, number: str) -> str:
        """Return a telephone number as it may be written."""
        if self.numbers == "keep":
            return _text(number)
        if self.numbers == "none":
            return ""
        # What is left must not be what there was, and a client's name is no number.
        return f"…{_text(number)[-_LAST:]}" if len(number) > _LAST else ""


def _redacted(value: Any, how: Literal["keep", "digits", "none"]) -> Any:
    return _clean(value, {"keep": None, "digits": _masked, "none": _nothing}[how])


def _text(text: str) -> str:
    return text.replace("\0", "").encode("utf-8", "replace").decode("utf-8")


def _masked(text: str) -> str:
    return _DIGITS.sub(MASK, text)


def _nothing(text: str) -> str:
    return ""


def _clean(value: Any, change: Callable[[str], str] | None = None) -> Any:
    """Return a value of JSON that can be written, with `change` made to every text in it."""
    match value:
        case str():
            return _text(value) if change is None else change(_text(value))
        case bool() | None:
            return value
        case int() | float():
            if isinstance(value, float) and not math.isfinite(value):
                return None
            text = str(value)
            return value if change is None or change(text) == text else change(text)
        case Mapping():
            return {_text(str(name)): _clean(each, change) for name, each in value.items()}
        case list() | tuple() | Packed():
            return [_clean(each, change) for each in value]
        case _:
            return str(value)
