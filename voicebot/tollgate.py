"""Lets calls out: by the number, by the limits, and with an account of every one that was not.

What a call may cost is taken before Twilio is asked. It is given back if Twilio has certainly
placed none, and kept where nobody knows. With a database all processes count together, and while
it is away no call is let out; without one each counts for itself.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import secrets
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import trio

from voicebot.allowance import Dials, Wanted, minutes_used
from voicebot.call_record import CallRecord
from voicebot.config import Settings, tolls_of
from voicebot.errors import CallBarred, ProviderError
from voicebot.metrics import Metrics
from voicebot.outbound import RING_TIMEOUT_S
from voicebot.telephony import surely_not_placed, time_limit_s

if TYPE_CHECKING:
    from voicebot.archive import Archive
    from voicebot.tolls import Tolls

KEEP_S: Final = 6  # for the database to take what became of a call; a little more than it has
KEPT_REFUSALS: Final = 1_000  # without a database; as many as calls

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Reservation:
    """What a call has taken. `sid` is to be set once it is placed."""

    key: str
    sid: str | None = None


class Tollgate:
    """The outbound limits of one process, with those it shares a database with."""

    def __init__(self, settings: Settings, metrics: Metrics, process: str) -> None:
        self._settings = settings
        self._metrics = metrics
        self._process = process
        self._dials = Dials(settings.outbound)
        self._refusals: deque[Mapping[str, Any]] = deque(maxlen=KEPT_REFUSALS)
        # Before the first call: the data is read from files.
        self._tolls: Tolls | None = tolls_of(settings) if settings.telephony else None

    def check_number(self, to: str, from_: str) -> None:
        """Check that a number may be called.

        Raises:
            CallBarred: it may not.
        """
        tolls = self._tolls or tolls_of(self._settings)
        tolls.check(to, from_)

    @asynccontextmanager
    async def reserved(
        self, archive: Archive | None, to: str, who: str, ring_s: float = RING_TIMEOUT_S
    ) -> AsyncGenerator[Reservation]:
        """Hold what a call may cost while it is placed, and from then on if it was.

        Args:
            who: the name of the key that asks.
            ring_s: for which it may ring.

        Raises:
            CallBarred: a limit does not allow it.
            StoreError: the database does not answer.

        Cancellation: it is held, for the call may have been placed.
        """
        limit_s = time_limit_s(self._settings.timeouts)
        wanted = Wanted(who, self._digest(to), math.ceil(limit_s / 60), ring_s + 5 + limit_s)
        reservation = Reservation(secrets.token_hex(8))
        if archive is None:
            self._dials.reserve(reservation.key, wanted, trio.current_time())
        else:
            await archive.reserve(reservation.key, self._settings.outbound, wanted)
        try:
            yield reservation
        except ProviderError as exc:
            if surely_not_placed(exc):
                with trio.move_on_after(KEEP_S, shield=True):  # also if the client has gone
                    await self._give_back(archive, reservation.key)
            raise
        finally:
            if reservation.sid is not None:
                with trio.move_on_after(KEEP_S, shield=True):  # as above
                    await self._name(archive, reservation.key, reservation.sid)

    async def _give_back(self, archive: Archive | None, key: str) -> None:
        self._dials.give_back(key)
        if archive is not None:
            await archive.give_back(key)

    async def _name(self, archive: Archive | None, key: str, sid: str) -> None:
        self._dials.named(key, sid)
        if archive is not None:
            await archive.name_dial(key, sid)

    def over(self, record: CallRecord) -> None:
        """Take what Twilio has said of a call; the database is told by the record itself."""
        minutes = minutes_used(record.status, record.duration_s)
        if minutes is not None:
            self._dials.over(record.sid, minutes)

    async def refuse(self, archive: Archive | None, barred: CallBarred, to: str, who: str) -> None:
        """Put on record that a call was not placed."""
        self._metrics.outbound_refused.labels(barred.reason).inc()
        log.warning(
            "call_barred",
            extra={"who": who, "reason": barred.reason, "setting": barred.setting, "pii_to": to},
        )
        refusal = {
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "who": who,
            "to_number": self._settings.redaction.number(to),
            "reason": barred.reason,
            "setting": barred.setting,
            "process": self._process,
        }
        if archive is None:
            self._refusals.append(refusal)
            return
        with trio.move_on_after(KEEP_S, shield=True):  # also if the client has gone
            await archive.note_refusal(refusal)

    async def latest_refusals(self, archive: Archive | None, count: int) -> list[dict[str, Any]]:
        """Return the newest refusals, the newest first.

        Raises:
            StoreError: the database cannot be read.
        """
        if archive is not None:
            found = await archive.latest_refusals(count)
        else:
            found = [dict(each) for each in self._refusals][: -count - 1 : -1]
        shown = {"to_number": "to"}
        return [
            {shown.get(name, name): value for name, value in each.items() if name != "number"}
            for each in found
        ]

    def _digest(self, number: str) -> str:
        """Return what tells numbers apart, and nobody else what they are."""
        key = self._settings.twilio_auth_token.get_secret_value()  # all processes have the same
        return hmac.new(key.encode(), number.encode(), hashlib.sha256).hexdigest()[:32]
