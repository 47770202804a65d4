"""Small Trio primitives of a call: who has the floor, and a bell to wake those who wait."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio


class Bell:
    """Wakes everybody who waits now. Check, then wait, with no checkpoint between."""

    def __init__(self) -> None:
        self._lot = trio.lowlevel.ParkingLot()

    def ring(self) -> None:
        self._lot.unpark_all()

    async def wait(self) -> None:
        await self._lot.park()


class Floor:
    """Who is speaking: one slot for the scope that an interruption cancels.

    `interrupt` is synchronous and idempotent. An interruption that comes while a reply is
    owed but nobody holds the floor yet is kept, and meets the next one who takes it.
    """

    def __init__(self) -> None:
        self._speaking: trio.CancelScope | None = None
        self._kept = False
        self._pending = False
        self._verdict = False
        self._decided = Bell()

    @contextmanager
    def held(self, scope: trio.CancelScope) -> Iterator[None]:
        """Speak inside the block; `scope` is what an interruption cancels."""
        self._speaking = scope
        if self._kept:
            scope.cancel(reason="barge-in")
        try:
            yield
        finally:
            self._speaking = None

    def interrupt(self) -> None:
        """Silence whoever speaks, or the next to begin; a verdict is then due."""
        self._pending = True
        if self._speaking is None:
            self._kept = True
        else:
            self._speaking.cancel(reason="barge-in")

    def decide(self, confirmed: bool) -> None:
        """Give the verdict on the newest interruption; meant, it silences who went on ducked."""
        self._pending, self._verdict = False, confirmed
        if not confirmed:
            self._kept = False
        elif self._speaking is not None:
            self._speaking.cancel(reason="barge-in")
        self._decided.ring()

    @property
    def undecided(self) -> bool:
        """Whether a verdict is due."""
        return self._pending

    async def decided(self) -> bool:
        """Wait for the verdict on the newest interruption, if it is still due; return it."""
        while self._pending:
            await self._decided.wait()
        return self._verdict

    @property
    def kept(self) -> bool:
        """Whether an interruption waits for the next to speak."""
        return self._kept

    def given(self) -> None:
        """Forget an interruption that nobody met: the floor is the bot's again."""
        self._kept = False
