"""Carries what the store of a process knows into the database, behind the back of its calls.

`changed` is synchronous and keeps, for each call, only what the database does not know yet. One
task writes it in a worker thread, many calls in a transaction, and tries again for as long as the
database is away; a call never waits for it. Only where more than `PENDING_CALLS` calls wait, or
the database will not take one, is something given up, with an error in the log and a count in
the metrics. The same task tells other processes that this one lives (`database.py`), and deletes
what is too old.

SQLAlchemy is imported in the worker thread, and only if there is a database.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING, Any, Final, TypeVar

import trio

from voicebot.allowance import Outbound, Wanted
from voicebot.call_record import CallRecord, merge
from voicebot.config import Settings
from voicebot.errors import StoreError
from voicebot.floor import Bell
from voicebot.hidden import open_hidden_nursery
from voicebot.metrics import Metrics
from voicebot.redaction import Redaction, Retention
from voicebot.store import CallStore

if TYPE_CHECKING:
    from voicebot.database import Database, News

PENDING_CALLS: Final = 1_000  # 50 MB of long calls; an hour without a database, at 15 a minute
BATCH_CALLS: Final = 50  # in one transaction: a few ms, so that the thread holds nobody up
GATHER_S: Final = (
    0.2  # changes are gathered so long: five transactions a second, however many calls
)
BEAT_S: Final = 10.0
EXPIRE_S: Final = 3600.0
RETRY_S: Final = (0.5, 30.0)  # doubles from the first to the last
READ_S: Final = 5.0  # whoever looks at calls is told by then that it cannot be done
FLUSH_S: Final = 5.0  # at the end, while the database does not take what is left
READERS: Final = 2

_log = logging.getLogger(__name__)
T = TypeVar("T")


@asynccontextmanager
async def open_archive(
    settings: Settings, store: CallStore, metrics: Metrics
) -> AsyncGenerator[Archive | None]:
    """Keep in the database what happens to the store's calls; None where no database is set.

    On leaving, what the database does not know yet is written, for at most `FLUSH_S`.

    Raises:
        StoreError: the database cannot be opened.
        MissingPart: its driver is not installed.

    Owns: the writing task and the threads it uses. Ends when: the block is left.
    """
    url = settings.database_url.get_secret_value()
    if not url:
        yield None
        return
    writing = trio.CapacityLimiter(1)
    database = await trio.to_thread.run_sync(_open, url, limiter=writing)
    archive = Archive(database, store, metrics, settings.redaction, settings.retention, writing)
    try:
        with store.followed(archive.changed):
            try:
                async with open_hidden_nursery("the service has ended") as nursery:
                    nursery.start_soon(archive.write_on, name="archive")
                    yield archive
            finally:
                with trio.move_on_after(FLUSH_S, shield=True):
                    await archive.finish()
                archive.give_up_rest()
    finally:
        database.engine.dispose()


def _open(url: str) -> Database:
    from voicebot.database import open_database

    return open_database(url)


class Archive:
    """What of the store's calls the database has yet to be told, and the way back."""

    def __init__(
        self,
        database: Database,
        store: CallStore,
        metrics: Metrics,
        redaction: Redaction,
        retention: Retention,
        writing: trio.CapacityLimiter,
        retry_s: tuple[float, float] = RETRY_S,
    ) -> None:
        from voicebot.database import News

        self._news: Callable[[CallRecord], News] = News
        self._database = database
        self._store = store
        self._metrics = metrics
        self._redaction = redaction
        self._retention = retention
        self._writing = writing
        self._reading = trio.CapacityLimiter(READERS)
        self._retry_s = retry_s
        self._pending: dict[str, News] = {}  # what has waited longest comes first
        self._told = Bell()
        self._beat_at = self._expire_at = -inf
        self._finishing = False

    @property
    def database(self) -> Database:
        """What it writes to."""
        return self._database

    # --- Writing

    def changed(self, record: CallRecord, turns: Sequence[Mapping[str, Any]]) -> None:
        """Take note of a change. Synchronous, and never fails."""
        self._add(record, {turn["number"]: turn for turn in turns})
        self._told.ring()

    def _add(self, record: CallRecord, turns: Mapping[int, Mapping[str, Any]]) -> None:
        if record.sid not in self._pending and len(self._pending) >= PENDING_CALLS:
            self._give_up(next(iter(self._pending)), "too many calls wait for the database")
        news = self._pending.setdefault(record.sid, self._news(record))
        if news.record.created_at < record.created_at:  # the store had forgotten the call
            record = merge(news.record, record)
        news.record = record
        news.turns.update(turns)
        self._metrics.records_pending.set(len(self._pending))

    def _give_up(self, sid: str, reason: str) -> None:
        self._pending.pop(sid, None)
        self._metrics.records_pending.set(len(self._pending))
        self._metrics.records_dropped.inc()
        _log.error("record_dropped", extra={"dropped_call_sid": sid, "reason": reason})

    async def write_on(self) -> None:
        """Write what there is, again and again; never returns.

        Cancellation: waits for the transaction under way, which has its bounds.
        """
        pause = self._retry_s[0]
        while True:
            try:
                await self._look_after()
                if self._pending:
                    await self._write_some()
                pause = self._retry_s[0]
            except Exception as exc:  # whatever it is, later calls are to be written as well
                self._failed(exc, pause)
                await trio.sleep(pause)
                pause = min(pause * 2, self._retry_s[1])
                continue
            if len(self._pending) < BATCH_CALLS:
                with trio.move_on_at(self._beat_at + BEAT_S):
                    if not self._pending:
                        await self._told.wait()
                    await trio.sleep(GATHER_S)

    def _failed(self, exc: Exception, pause: float) -> None:
        self._metrics.database_failures.inc()
        _log.error(
            "database_failed",
            extra={"error": _reason(exc), "pending": len(self._pending), "again_s": pause},
            exc_info=None if self._database.is_away(exc) else exc,
        )

    async def _look_after(self) -> None:
        """Do what is due at its time."""
        now = trio.current_time()
        if now >= self._beat_at + BEAT_S:
            self._say_lost(await self._in_thread(self._database.beat, self._store.process))
            self._beat_at = now
        if self._retention.days and now >= self._expire_at:
            gone = await self._in_thread(self._database.expire, self._retention.days)
            if gone:
                _log.info("records_expired", extra={"calls": gone})
            self._expire_at = now + (0 if gone else EXPIRE_S)  # as long as there are more

    def _say_lost(self, sids: Sequence[str]) -> None:
        self._metrics.calls_lost.inc(len(sids))
        for sid in sids:
            _log.warning("call_lost", extra={"lost_call_sid": sid})

    async def _write_some(self) -> None:
        """Write the oldest news; keep them if that fails.

        Raises:
            SQLAlchemyError: the database is away, or busy for too long.
        """
        taken = {sid: self._pending.pop(sid) for sid in list(self._pending)[:BATCH_CALLS]}
        try:
            await self._in_thread(self._write, list(taken.values()))
            taken = {}
        except Exception as exc:
            if self._database.is_away(exc):
                raise
            # One of them is at fault; alone, it is known which.
            for sid, news in list(taken.items()):
                await self._write_alone(sid, news)
                del taken[sid]
        finally:
            for sid, news in taken.items():  # what has changed since is newer
                later = self._pending.pop(sid, None)
                self._add(news.record, news.turns)
                if later is not None:
                    self._add(later.record, later.turns)
            self._metrics.records_pending.set(len(self._pending))

    async def _write_alone(self, sid: str, news: News) -> None:
        try:
            await self._in_thread(self._write, [news])
        except Exception as exc:
            if self._database.is_away(exc):
                raise
            self._give_up(sid, f"it cannot be written: {_reason(exc)}")

    def _write(self, news: Sequence[News]) -> None:
        self._database.write(
            [
                replace(
                    each,
                    record=self._redaction.record(each.record),
                    turns={n: self._redaction.turn(turn) for n, turn in each.turns.items()},
                )
                for each in news
            ]
        )

    async def _in_thread(self, sync: Callable[..., T], *args: Any) -> T:
        # A write that is given up may still happen, and overtake: only where none comes after it.
        return await trio.to_thread.run_sync(
            sync, *args, abandon_on_cancel=self._finishing, limiter=self._writing
        )

    async def finish(self) -> None:
        """Write until nothing is left and no call lives; then say that this process ends.

        Cancellation: at once; a thread that hangs is left behind.
        """
        self._finishing = True
        while self._pending or self._store.live_calls:
            try:
                while self._pending:
                    await self._write_some()
                if self._store.live_calls:
                    await self._told.wait()
            except Exception as exc:
                self._failed(exc, self._retry_s[0])
                await trio.sleep(self._retry_s[0])
        try:
            self._say_lost(await self._in_thread(self._database.leave, self._store.process))
        except Exception as exc:  # another process will find it out
            self._failed(exc, 0.0)

    def give_up_rest(self) -> None:
        """Say what was not written in time."""
        for sid in list(self._pending):
            self._give_up(sid, f"the database did not take it within {FLUSH_S:g} s of the end")

    # --- Requests that must be done once, whichever process is asked

    async def begin_request(self, key: str, body: bytes) -> tuple[Mapping[str, Any], int] | None:
        """As `Idempotency.begin`, for all processes, and after a restart.

        Raises:
            KeyReused, InProgress: see there.
            StoreError: the database does not answer, so nothing can be promised.
        """
        digest = hashlib.sha256(body).hexdigest()
        return await self._ask(lambda: self._database.begin_request(key, digest))

    async def end_request(self, key: str, answer: tuple[Mapping[str, Any], int] | None) -> None:
        """As `Idempotency.end`. Never raises: what cannot be kept is logged."""
        await self._tell("answer_not_kept", lambda: self._database.end_request(key, answer))

    # --- Calls that are to be placed

    async def reserve(self, key: str, limits: Outbound, wanted: Wanted) -> None:
        """Take what a call may cost, of what all processes may.

        Raises:
            CallBarred: a limit does not allow it.
            StoreError: the database does not answer, so nobody knows what is left.

        Cancellation: it may have been taken, and is held as if the call had been placed.
        """
        await self._ask(lambda: self._database.reserve(key, limits, wanted))

    async def name_dial(self, key: str, sid: str) -> None:
        """Say which call it became. Never raises: what is not known to be over is held longer."""
        await self._tell("dial_not_named", lambda: self._database.name_dial(key, sid))

    async def give_back(self, key: str) -> None:
        """Say that no call was placed. Never raises, as `name_dial`."""
        await self._tell("dial_not_given_back", lambda: self._database.give_back(key))

    async def note_refusal(self, refusal: Mapping[str, Any]) -> None:
        """Keep that a call was not placed. Never raises: the log has it as well."""
        await self._tell("refusal_not_kept", lambda: self._database.note_refusal(refusal))

    async def latest_refusals(self, count: int) -> list[dict[str, Any]]:
        """Return the newest refusals of all processes, the newest first. Raises as `latest`."""
        return await self._ask(lambda: self._database.latest_refusals(count))

    # --- Reading

    async def get(self, sid: str) -> CallRecord | None:
        """Return what is known of a call, here or in the database.

        Raises:
            StoreError: the database cannot be read, and this process does not know the call.
        """
        ours = self._store.get(sid)
        if ours is None and sid in self._pending:
            ours = self._pending[sid].record
        try:
            known = await self._ask(lambda: self._database.get(sid))
        except StoreError:
            if ours is None:
                raise
            known = None
        return self._both(known, ours)

    async def latest(self, count: int, before: CallRecord | None = None) -> list[CallRecord]:
        """Return the newest calls of all processes, the newest first.

        `before`: of those behind it in that order.

        Raises:
            StoreError: the database cannot be read.
        """
        found = await self._ask(lambda: self._database.latest(count, before=before))
        known = {record.sid: record for record in found}
        for ours in self._store.latest(count, before):
            if (record := self._both(known.get(ours.sid), ours)) is not None:
                known[ours.sid] = record
        return sorted(known.values(), key=lambda one: one.age, reverse=True)[:count]

    # --- Deleting

    async def forget(self, sid: str) -> None:
        """Delete all that is known of a call that is over, here and in the database.

        Raises:
            StoreError: the database does not answer; it may have been deleted, or be later.
        """
        self._store.forget(sid)
        with trio.move_on_after(READ_S):
            try:
                # Behind the write under way, which may have this call in it.
                await trio.to_thread.run_sync(
                    self._database.forget, sid, abandon_on_cancel=True, limiter=self._writing
                )
            except Exception as exc:
                if not self._database.is_away(exc):
                    raise
                raise StoreError(f"the database cannot be asked: {_reason(exc)}") from exc
            self._pending.pop(sid, None)  # last: a write that failed has put it back
            self._metrics.records_pending.set(len(self._pending))
            return
        raise StoreError(f"the database has not answered for {READ_S:g} s")

    def _both(self, known: CallRecord | None, ours: CallRecord | None) -> CallRecord | None:
        if ours is None:
            return known
        ours = self._redaction.record(ours)
        return ours if known is None else merge(known, ours)

    async def _tell(self, event: str, sync: Callable[[], None]) -> None:
        """As `_ask`, of what nobody waits for; `event` is logged where it fails."""
        try:
            await self._ask(sync)
        except StoreError as exc:
            _log.error(event, extra={"error": str(exc)})

    async def _ask(self, sync: Callable[[], T]) -> T:
        with trio.move_on_after(READ_S):
            try:
                return await trio.to_thread.run_sync(
                    sync, abandon_on_cancel=True, limiter=self._reading
                )
            except Exception as exc:
                if not self._database.is_away(exc):
                    raise
                raise StoreError(f"the database cannot be asked: {_reason(exc)}") from exc
        raise StoreError(f"the database has not answered for {READ_S:g} s")


def _reason(exc: Exception) -> str:
    """Return the driver's words; SQLAlchemy's have the values that were to be written."""
    return f"{type(exc).__name__}: {getattr(exc, 'orig', None) or ''}".strip(" :")
