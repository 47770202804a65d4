"""Requests that may come twice and must be done once, by a key of the client's.

Synchronous, in memory, bounded: of one process, with `archive.begin_request` behind it where there
is a database, for all processes and after a restart. The rules are those of Stripe's API, which
others took over: the same key with the same body is the same request, and gets the same answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

KEEP_S: Final = 86_400.0  # whoever repeats a request does so within a day
REMEMBERED: Final = 10_000  # answers of a few hundred bytes
KEY_CHARS: Final = 255  # as in Stripe's API; a UUID has 36


class KeyReused(Exception):
    """The key was used for another request."""


class InProgress(Exception):
    """The first request of that key has no answer yet."""


@dataclass(slots=True)
class _Known:
    body: bytes  # its hash
    at: float
    answer: tuple[Mapping[str, Any], int] | None = None


class Idempotency:
    """What was answered to which key. `now` is in seconds on the Trio clock."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}  # oldest first

    def begin(self, key: str, body: bytes, now: float) -> tuple[Mapping[str, Any], int] | None:
        """Return what was answered to this request before; None: it is new, and `end` must follow.

        Raises:
            KeyReused: with another body.
            InProgress: it is being done.
        """
        digest = hashlib.sha256(body).digest()
        known = self._known.get(key)
        if known is not None and now - known.at < KEEP_S:
            if known.body != digest:
                raise KeyReused
            if known.answer is None:
                raise InProgress
            return known.answer
        self._known.pop(key, None)
        self._known[key] = _Known(digest, now)
        if len(self._known) > REMEMBERED:
            del self._known[next(iter(self._known))]
        return None

    def end(self, key: str, answer: tuple[Mapping[str, Any], int] | None) -> None:
        """Keep the answer; None: nothing was done, so it may be asked for again."""
        if answer is None:
            self._known.pop(key, None)
        elif key in self._known:
            self._known[key].answer = answer
