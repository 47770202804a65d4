"""How calls stand, in the database: one step at a time for all processes that share it.

Synchronous, as `database.py`, in whose transactions it is. The step itself is the caller's: it is
given what is known, under a lock, and what it makes of it is written in the same transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, case, delete, func, select, text, update

from voicebot.database import Database
from voicebot.onward import AWAY_S, NEXT_S
from voicebot.schema import processes, standings
from voicebot.standing import Line, Standing, from_json, to_json
from voicebot.store import Others

REMEMBERED_S: Final = 86_400.0  # used tokens, so that a webhook of yesterday buys no second stream
# A call that a process is said to hold and does not has been let in just now, or forgotten.
SETTLE_S: Final = 15.0
_LINES_LOCK: Final = 0x6C696E65  # one number for all who count lines of a PostgreSQL database

DIALLED, EXPECTED, LIVE, NONE = "dialled", "expected", "live", ""  # what a line is


@dataclass(frozen=True, slots=True)
class Known:
    """How a call stands, which process had its line last, and whether that one is to look."""

    standing: Standing
    process: str
    news: bool = False


#: Makes of what is known, the time in seconds, and the others' lines, what is known then.
Act = Callable[[Mapping[str, Known], float, Others | None], Mapping[str, Known]]


class StandingTable:
    """The standings of all calls. Raises SQLAlchemy's errors."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._engine = database.engine
        self._postgresql = database.engine.dialect.name == "postgresql"

    def step(self, process: str, keys: Sequence[str], act: Act, *, counts: bool) -> None:
        """Do one step with the calls of these keys; what `act` raises undoes it.

        `counts`: it may take a line, so nobody else may meanwhile.
        """
        with self._engine.begin() as connection:
            if counts and self._postgresql:  # SQLite has one writer
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_LINES_LOCK})"))
            now = self._now(connection)
            known = {row.key: _known(row) for row in self._lock(connection, process, keys, now)}
            others = self._others(connection, keys, now) if counts else None
            changed = act(known, now, others)
            rows = [_row(key, each, now) for key, each in changed.items()]
            gone = set(keys) - {row["key"] for row in rows if row is not None}
            connection.execute(delete(standings).where(standings.c.key.in_(gone)))
            self.database.put(connection, standings, [row for row in rows if row is not None])

    def _lock(
        self, connection: Connection, process: str, keys: Sequence[str], now: float
    ) -> Sequence[Row[Any]]:
        ours = select(standings).where(standings.c.key.in_(keys)).order_by(standings.c.key)
        if self._postgresql and keys:
            # A row that is not there cannot be locked.
            new = [_empty(key, process, now) for key in sorted(keys)]
            insert = self.database.insert(standings).on_conflict_do_nothing()
            connection.execute(insert, new)
        return connection.execute(ours.with_for_update()).all()

    def _others(self, connection: Connection, keys: Sequence[str], now: float) -> Others:
        c = standings.c
        taken = (c.line == LIVE) | (c.line.in_((DIALLED, EXPECTED)) & (c.until > _text(now)))
        row = connection.execute(
            select(
                func.coalesce(func.sum(case((c.line != DIALLED, 1), else_=0)), 0),
                func.coalesce(func.sum(case((c.line == DIALLED, 1), else_=0)), 0),
            )
            .join(processes, processes.c.id == c.process)
            .where(c.key.not_in(keys), taken, processes.c.lines > 0)
        ).one()
        limit = connection.scalar(select(func.coalesce(func.sum(processes.c.lines), 0)))
        return Others(keys, int(limit or 0), int(row[0]), int(row[1]))

    def keep(self, process: str, lines: int, live: Collection[str]) -> None:
        """Say how many lines a process has for new calls, 0 when it drains, and which are live.

        Then forget what is too old, and whatever private is no longer needed.
        """
        c = standings.c
        with self._engine.begin() as connection:
            now = self._now(connection)
            its = update(processes).where(processes.c.id == process)
            connection.execute(its.values(lines=lines))
            old = (c.at < _text(now - REMEMBERED_S)) & (c.line != LIVE)
            connection.execute(delete(standings).where(old))
            settled = c.at < _text(now - SETTLE_S)
            forgotten = (c.process == process) & c.key.not_in(live) & settled
            lost = c.process.not_in(select(processes.c.id))
            stale = ((c.line == LIVE) & (lost | forgotten)) | (
                (c.line != LIVE) & (c.until < _text(now))
            )
            past = case((c.nonce != "", c.nonce), else_=c.past)
            over = update(standings).where(stale)
            connection.execute(
                over.values(line=NONE, nonce="", past=past, until=None, state=None, news=False)
            )

    def news(self, process: str) -> list[str]:
        """Return the live calls of a process of which another has heard something."""
        c = standings.c
        with self._engine.execution_options(reads=True).begin() as connection:
            ours = select(c.key).where(c.process == process, c.line == LIVE, c.news)
            return list(connection.scalars(ours))

    def needed(self, process: str) -> bool:
        """Say whether a call may need this process that is not live in it.

        One that is expected or away goes to any process that takes calls, and where there is
        none, to whichever still answers. So does what Twilio asks about one that is live in
        another: while all drain, a port that closes early would take such requests with it.
        """
        c = standings.c
        with self._engine.execution_options(reads=True).begin() as connection:
            now = self._now(connection)
            # Or was let in just now, and is about to be live.
            coming = (c.line == LIVE) & (c.process == process) & (c.at > _text(now - 1.0))
            elsewhere = (c.line == LIVE) & (c.process != process)
            waits = ((c.line != LIVE) & (c.until > _text(now))) | coming | elsewhere
            if not connection.scalar(select(func.count()).where(waits)):
                return False
            takes = select(func.count()).where(processes.c.lines > 0, processes.c.id != process)
            return not connection.scalar(takes)

    def _now(self, connection: Connection) -> float:
        return datetime.fromisoformat(self.database.now(connection)).timestamp()


def _text(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


def _empty(key: str, process: str, now: float) -> dict[str, Any]:
    values = {"line": NONE, "nonce": "", "account_sid": "", "past": "", "news": False}
    return {
        "key": key,
        "process": process,
        "at": _text(now),
        "until": None,
        "state": None,
        **values,
    }


def _row(key: str, known: Known, now: float) -> dict[str, Any] | None:
    """Return the row of a standing; None where there is nothing to remember."""
    standing, row = known.standing, _empty(key, known.process, now)
    line, away = standing.line, standing.away
    if standing.over:
        return {**row, "past": standing.past} if standing.past else None
    row |= {"past": standing.past, "news": known.news, "state": to_json(standing)}
    until = None if away is None else away.since + (AWAY_S if away.asked else NEXT_S)
    if line is not None:
        what = LIVE if line.until is None else EXPECTED if line.nonce else DIALLED
        until = line.until
        row |= {"line": what, "nonce": line.nonce, "account_sid": line.account_sid}
    return {**row, "until": None if until is None else _text(until)}


def _known(row: Row[Any]) -> Known:
    line = None
    if row.line != NONE:
        until = datetime.fromisoformat(row.until).timestamp() if row.until else None
        line = Line(row.nonce, row.account_sid, until)
    told = row.state or {"away": None, "call": None, "record": None}
    return Known(from_json(told, line, row.past), row.process, row.news)
