"""Several processes that are one service: a request about a call may come to any of them.

The decisions are the switchboard's, one synchronous step each. `Alone` takes the step in memory.
`Shared` takes it inside a transaction of the database: how the calls concerned stand is locked and
brought into memory, the step is taken on it, and what it made of them goes back. In memory stays
only what is live here. So whoever comes first wins, everywhere, and a process that dies takes its
live calls with it and no other.

While the database is away no step is taken (`StoreError`): a new caller hears an apology, a stream
is refused, and live calls go on.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import trio

from voicebot.errors import StoreError
from voicebot.hidden import open_hidden_nursery
from voicebot.standing import Standing
from voicebot.store import CallStore, Lines, Others

if TYPE_CHECKING:
    from voicebot.archive import Archive
    from voicebot.standing_table import Known, StandingTable

STEP_S: Final = 4.0  # Twilio waits 15 s for an answer, and a stream has 5 s to begin
STEPS: Final = 4  # at once; each holds a connection for some milliseconds
LOOK_S: Final = 0.5  # a machine's greeting takes seconds
KEEP_S: Final = 5.0  # how long a drain, or a call that was forgotten, goes unnoticed
WAIT_S: Final = 0.2  # a server that drains looks so often whether it is needed

T = TypeVar("T")
log = logging.getLogger(__name__)


class Board(Protocol):
    """The switchboard, as far as it is asked here."""

    store: CallStore
    lines: Lines

    def take_in(self, key: str, standing: Standing, ahead_s: float) -> None:
        """Take how a call stands; times are `ahead_s` behind the Trio clock."""
        ...

    def hand_out(self, key: str, ahead_s: float) -> Standing:
        """Return how a call stands, and forget its line, unless it is live here."""
        ...

    def let_go(self, key: str) -> None:
        """Forget the rest of a call that is not to be live here."""
        ...


class Alone:
    """One process, which needs nobody's word."""

    async def step(self, keys: Sequence[str], act: Callable[[], T], *, counts: bool = False) -> T:
        """Take one step with the calls of these keys."""
        return act()

    async def needed(self) -> bool:
        """Say whether a call may need this process that it does not know."""
        return False


class Shared:
    """One of several processes. Made by `open_shared`."""

    #: Is told who has answered a call that is live here, and that another process heard of.
    answered: Callable[[str, str], Awaitable[None]]

    def __init__(self, board: Board, table: StandingTable) -> None:
        self._board = board
        self._table = table
        self._process = board.store.process
        self._limiter = trio.CapacityLimiter(STEPS)
        self._keeping = trio.Lock()  # the last to look is the last to write

    async def step(self, keys: Sequence[str], act: Callable[[], T], *, counts: bool = False) -> T:
        """Take one step with the calls of these keys, before or after everybody else's.

        Args:
            act: synchronous, runs in this thread; what it raises undoes the step.
            counts: it may take a line.

        Raises:
            StoreError: the database does not answer; the step was not taken, or nobody knows it.

        Cancellation: as `StoreError`.
        """
        results: list[T] = []

        def apply(
            known: Mapping[str, Known], now: float, others: Others | None
        ) -> Mapping[str, Known]:
            return trio.from_thread.run_sync(self._apply, known, now, others, keys, act, results)

        await self._ask(lambda: self._table.step(self._process, keys, apply, counts=counts))
        return results[0]

    def _apply(
        self,
        known: Mapping[str, Known],
        now: float,
        others: Others | None,
        keys: Sequence[str],
        act: Callable[[], T],
        results: list[T],
    ) -> Mapping[str, Known]:
        board, ahead_s = self._board, trio.current_time() - now
        for key, each in known.items():
            board.take_in(key, each.standing, ahead_s)
        board.lines.others = others
        changed: dict[str, Known] = {}
        try:
            results.append(act())
        finally:
            board.lines.others = None
            for key in keys:
                standing = board.hand_out(key, ahead_s)
                now_known = self._known(known.get(key), standing, board.store.is_live(key))
                changed[key] = now_known
                line = standing.line
                if line is None or line.until is not None or now_known.process != self._process:
                    board.let_go(key)
        return changed

    def _known(self, before: Known | None, standing: Standing, ours: bool) -> Known:
        from voicebot.standing_table import Known

        if before is None or (standing.line and standing.line != before.standing.line):
            return Known(standing, self._process)
        theirs = standing.line is not None and standing.line.until is None and not ours
        told = standing.record and standing.record.answered_by
        old = before.standing.record and before.standing.record.answered_by
        return replace(before, standing=standing, news=theirs and (before.news or told != old))

    async def needed(self) -> bool:
        """As `Alone.needed`. While the database is away nobody can come."""
        try:
            await self._keep()
            return await self._ask(lambda: self._table.needed(self._process))
        except StoreError as exc:
            log.error("share_failed", extra={"error": str(exc)})
            return False

    async def look_on(self) -> None:
        """Look after what is shared; never returns.

        Cancellation: at once; a thread that hangs is left behind.
        """
        keep_at = -inf
        while True:
            try:
                if trio.current_time() >= keep_at:
                    await self._keep()
                    keep_at = trio.current_time() + KEEP_S
                for sid in await self._ask(self._news):
                    await self._look(sid)
            except Exception as exc:  # whatever it is, later calls are to be looked after
                away = isinstance(exc, StoreError)
                log.error("share_failed", extra={"error": str(exc)}, exc_info=None if away else exc)
            await trio.sleep(LOOK_S)

    def _news(self) -> list[str]:
        return self._table.news(self._process) if self._board.store.live_calls else []

    async def _look(self, sid: str) -> None:
        def who() -> str:
            record = self._board.store.get(sid)
            return "" if record is None else record.answered_by or ""

        await self.answered(sid, await self.step((sid,), who))

    async def _keep(self) -> None:
        def keep() -> None:
            lines = self._board.lines
            free = 0 if lines.closed else lines.limit  # by now, if this had to wait
            self._table.keep(self._process, free, live)

        async with self._keeping:
            live = self._board.store.live_sids
            await self._ask(keep)

    async def begin(self) -> None:
        """Say that this process takes calls. Raises as `step`."""
        await self._ask(lambda: self._table.database.beat(self._process))
        await self._keep()

    async def _ask(self, sync: Callable[[], T]) -> T:
        with trio.move_on_after(STEP_S):
            try:
                return await trio.to_thread.run_sync(
                    sync, abandon_on_cancel=True, limiter=self._limiter
                )
            except Exception as exc:
                if not self._table.database.is_away(exc):
                    raise
                raise StoreError(f"the database cannot be asked: {type(exc).__name__}") from exc
        raise StoreError(f"the database has not answered for {STEP_S:g} s")


@asynccontextmanager
async def open_shared(board: Any, archive: Archive) -> AsyncGenerator[Shared]:
    """Share calls with the other processes of a database while the block runs.

    Raises:
        StoreError: it does not answer.

    Owns: the task that looks what others have heard. Ends when: the block is left.
    """
    from voicebot.standing_table import StandingTable

    shared = Shared(board, StandingTable(archive.database))

    async def nobody(sid: str, who: str) -> None:
        """Take what is heard before there is anybody to tell."""

    shared.answered = nobody
    await shared.begin()
    async with open_hidden_nursery("the service has ended") as nursery:
        nursery.start_soon(shared.look_on, name="shared")
        yield shared


def signer(secret: str) -> Callable[[str, str], str]:
    """Return what makes a call's token of its nonce, the same in all who know the secret."""

    def sign(sid: str, nonce: str) -> str:
        return hmac.new(secret.encode(), f"{sid} {nonce}".encode(), hashlib.sha256).hexdigest()

    return sign
