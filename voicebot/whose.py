"""Whose the current task is: which call and which turn. Tasks inherit it when they are started."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final

#: SID of the call.
call_sid: Final[ContextVar[str | None]] = ContextVar("call_sid", default=None)
#: Number of its turn; also of one that is only guessed.
turn: Final[ContextVar[int | None]] = ContextVar("turn", default=None)
