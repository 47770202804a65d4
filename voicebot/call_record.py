"""What is known of a call as a whole, and how two accounts of the same call become one."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

FINAL_STATUSES: Final = frozenset({"completed", "busy", "failed", "no-answer", "canceled"})
_BEFORE: Final = ("queued", "initiated", "ringing", "in-progress")  # in the order they come in
STATUSES: Final = FINAL_STATUSES | set(_BEFORE)
#: Outcome of a call whose process went away in the middle of it; what it was is not known.
LOST: Final = "lost"

#: Lists of a summary, and nearly all of its size.
LONG: Final = ("turns", "timeline", "barge_ins")

Direction = Literal["inbound", "outbound"]


class Packed(Sequence[Any]):
    """A list of plain values at whose contents nobody looks just now: a twentieth of its size.

    Each look opens all of it (2 ms for an hour's call): iterate, and do not index.
    """

    __slots__ = ("_bytes",)

    def __init__(self, values: Sequence[Any]) -> None:
        # Level 1: for half as much again of size it takes a third of the time.
        self._bytes = zlib.compress(json.dumps(list(values)).encode(), 1)

    def opened(self) -> list[Any]:
        """Return the list."""
        values: list[Any] = json.loads(zlib.decompress(self._bytes))
        return values

    def __getitem__(self, index: Any) -> Any:
        return self.opened()[index]

    def __len__(self) -> int:
        return len(self.opened())

    def __iter__(self) -> Iterator[Any]:
        return iter(self.opened())


def packed(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return a summary whose long lists are packed."""
    return {
        name: Packed(value) if name in LONG and not isinstance(value, Packed) else value
        for name, value in summary.items()
    }


@dataclass(frozen=True, slots=True)
class CallRecord:
    """What is known of one call.

    Units: the times are wall clock, ISO 8601 with offset. `sequence` is the `SequenceNumber`
    of the status callback that `status` comes from, -1 before the first. `status` is the
    telephone's word and `outcome` the engine's (`record.Outcome`, or `LOST`), of the last stream
    that is over; None while there is one. `turns` are those of a stream that is not over, or was
    lost; then `summary` has them, with those of earlier streams.
    """

    sid: str
    direction: Direction
    from_: str = field(repr=False)  # a person's number does not get into a log by a repr
    to: str = field(repr=False)
    status: str
    created_at: str
    updated_at: str
    ended_at: str | None = None
    duration_s: int | None = None
    sequence: int = -1
    stream: str | None = None  # the last StreamEvent, for example "stream-started"
    stream_error: str | None = None
    summary: Mapping[str, Any] | None = field(default=None, repr=False)
    turns: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    outcome: str | None = None
    live: bool = False  # its engine runs
    streams: int = 0  # that there were: a call may go away from the bot, and come back
    process: str | None = None  # that holds, or held, the conversation
    answered_by: str | None = None  # by Twilio's ears: "human", "machine_end_beep", …
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)  # of who had it placed
    parameters: Mapping[str, str] | None = field(default=None, repr=False)  # of the stream's start

    @property
    def age(self) -> tuple[str, str]:
        """What lists are in the order of: when it began, and its name where that is the same."""
        return self.created_at, self.sid

    @property
    def opened(self) -> CallRecord:
        """The same with plain values only: nothing is packed."""
        if self.summary is None:
            return self
        return replace(
            self,
            summary={
                name: value.opened() if isinstance(value, Packed) else value
                for name, value in self.summary.items()
            },
        )

    def as_json(self, *, brief: bool = False) -> dict[str, Any]:
        """Return the record as the calls API shows it; `brief`: as in a list of many."""
        summary = self.summary if brief else self.opened.summary
        before = () if summary is None else summary.get("turns", ())
        turns = {turn["number"]: turn for turn in (*before, *self.turns)}
        if summary is not None and brief:
            summary = {name: value for name, value in summary.items() if name not in LONG}
        return {
            "call_sid": self.sid,
            "direction": self.direction,
            "from": self.from_,
            "to": self.to,
            "status": self.status,
            "created_at": self.created_at,
            "updated_at": self.updated_at,
            "ended_at": self.ended_at,
            "duration_s": self.duration_s,
            "stream": self.stream,
            "stream_error": self.stream_error,
            "outcome": self.outcome,
            "live": self.live,
            "answered_by": self.answered_by,
            "metadata": self.metadata,
            "parameters": self.parameters,
            "process": self.process,
            "turns": list(turns.values()),
            "summary": summary,
        }


def merge(known: CallRecord, news: CallRecord) -> CallRecord:
    """Return a call as it is known, with what another account of it adds.

    Accounts come late, twice, from several processes, or from one that has forgotten the call;
    whatever their order, nothing that is known is lost. A final status stands. Of the same stream
    its end is news, and an engine that ended after all knows better than who gave it up for lost.
    """
    newest = max(news, known, key=_how_far)
    summary = news.summary or known.summary
    over = {turn["number"] for turn in summary.get("turns", ())} if summary else set()
    turns = {turn["number"]: turn for turn in (*known.turns, *news.turns)}
    return replace(
        known,
        direction=known.direction if known.from_ else news.direction,
        from_=known.from_ or news.from_,
        to=known.to or news.to,
        status=max(news, known, key=_how_late).status,
        sequence=max(known.sequence, news.sequence),
        created_at=min(known.created_at, news.created_at),
        updated_at=max(known.updated_at, news.updated_at),
        ended_at=known.ended_at or news.ended_at,
        duration_s=known.duration_s if news.duration_s is None else news.duration_s,
        stream=news.stream or known.stream,
        stream_error=news.stream_error or known.stream_error,
        summary=summary,
        turns=tuple(turns[number] for number in sorted(turns.keys() - over)),
        outcome=newest.outcome,
        live=newest.live,
        streams=newest.streams,
        process=newest.process,
        answered_by=news.answered_by or known.answered_by,
        metadata=news.metadata or known.metadata,
        parameters=news.parameters or known.parameters,
    )


def _how_late(record: CallRecord) -> tuple[bool, int, int]:
    """Order accounts by their status. Without callbacks only the status itself tells."""
    final = record.status in FINAL_STATUSES
    return final, record.sequence, len(_BEFORE) if final else _BEFORE.index(record.status)


def _how_far(record: CallRecord) -> tuple[int, bool, bool, bool]:
    """Order accounts by what they know of the engine."""
    over = record.outcome is not None
    return record.streams, not record.live, over, over and record.outcome != LOST
