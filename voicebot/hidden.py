"""A nursery that is nobody's business: its users never see an exception group."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def open_hidden_nursery(reason: str) -> AsyncGenerator[trio.Nursery]:
    """Yield a nursery for what a client does in the background; cancel it on leaving.

    What the block raises comes out as it is. A task must not raise: that is a bug, and comes
    out as a group.

    Owns: the nursery. Ends when: the block is left.
    """
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield nursery
        except Exception as exc:
            failure = exc  # raised below instead: out of here it would come as a group
        nursery.cancel_scope.cancel(reason=reason)
    if failure is not None:
        try:
            raise failure
        finally:
            del failure  # its traceback holds this frame: without this, a cycle
