"""Records of calls, and the lines and one-time tokens that let a media stream in.

Synchronous, in memory, bounded: a call and a webhook never wait for it. Whoever follows a
`CallStore` is told every change in the same step; `archive.py` writes them to the database.

Invariants of `Lines`:
- a call has at most one token, ever: the same webhook again is told the same token, also after
  the token was used, so a replayed webhook buys nothing;
- a line is taken in the step that mints the token, never between a check and an `await`, so
  the calls at once never exceed the limit.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import inf
from typing import Any, Final

from voicebot.call_record import FINAL_STATUSES, CallRecord, Direction, merge, packed
from voicebot.errors import CallRefused, Draining
from voicebot.record import TURNS, joined
from voicebot.standing import Line

#: Is told a record that has changed, and which turns of it are new or different.
Follower = Callable[[CallRecord, Sequence[Mapping[str, Any]]], None]


class CallStore:
    """The last calls. A live call is never dropped; of the others the oldest go first.

    `at` is the wall clock in ISO 8601 throughout.
    """

    def __init__(self, keep: int = 1000) -> None:
        """`keep`: a thousand records are some 3 MB, and days of calls of a small office."""
        self.process: Final = secrets.token_hex(8)  # who holds the live calls of this store
        self._keep = keep
        self._records: dict[str, CallRecord] = {}  # in order of creation
        self._live: set[str] = set()
        self._follower: Follower = lambda record, turns: None

    @contextmanager
    def followed(self, follower: Follower) -> Iterator[None]:
        """Tell the follower of every change while the block runs; it must be quick."""
        before, self._follower = self._follower, follower
        try:
            yield
        finally:
            self._follower = before

    @property
    def live_calls(self) -> int:
        """How many engines run."""
        return len(self._live)

    def open(
        self, sid: str, *, at: str, direction: Direction, from_: str, to: str, status: str
    ) -> CallRecord:
        """Return the record of a call, made now if it is new.

        A known call's status is only moved on from "queued", where the REST answer left it;
        after that the status callbacks and the media stream say better.
        """
        known = self._records.get(sid)
        if known is None:
            known = CallRecord(sid, direction, from_, to, status, created_at=at, updated_at=at)
            self._put(known)
        elif known.status == "queued":
            known = self._change(known, status=status, updated_at=at)
        return known

    def status(
        self, sid: str, *, at: str, sequence: int, status: str, duration_s: int | None = None
    ) -> None:
        """Take one status callback; a late earlier one changes nothing.

        Callbacks may overtake each other; `SequenceNumber` orders them.

        Source: twilio.com/docs/voice/api/call-resource.
        """
        record = self._records.get(sid)
        if record is None or sequence <= record.sequence:
            return
        if record.status in FINAL_STATUSES and status not in FINAL_STATUSES:
            return  # late: the engine has ended, and said so
        ended_at = at if status in FINAL_STATUSES else None
        self._change(
            record,
            status=status,
            sequence=sequence,
            updated_at=at,
            ended_at=record.ended_at or ended_at,
            duration_s=record.duration_s if duration_s is None else duration_s,
        )

    def stream_event(self, sid: str, *, at: str, event: str, error: str | None) -> None:
        """Take one stream status callback."""
        if record := self._records.get(sid):
            self._change(
                record, stream=event, stream_error=error or record.stream_error, updated_at=at
            )

    def answered(self, sid: str, *, at: str, by: str) -> None:
        """Take who has answered."""
        if record := self._records.get(sid):
            self._change(record, answered_by=by, updated_at=at)

    def describe(self, sid: str, metadata: Mapping[str, Any]) -> None:
        """Attach what whoever had the call placed wants to find again."""
        if record := self._records.get(sid):
            self._change(record, metadata=metadata)

    def turns_over(self, sid: str, turns: Sequence[Mapping[str, Any]], *, at: str) -> None:
        """Take turns that are over, or of which more is known, as plain values."""
        if record := self._records.get(sid):
            known = {turn["number"]: turn for turn in (*record.turns, *turns)}
            self._change(record, turns, turns=tuple(known.values())[-TURNS:], updated_at=at)

    def summarise(self, sid: str, summary: Mapping[str, Any]) -> None:
        """Attach what the engine says of the stream it has just finished; a call may have some."""
        if record := self._records.get(sid):
            turns, outcome = summary.get("turns", ()), summary.get("outcome")
            whole = joined(record.summary, summary)
            self._change(record, turns, summary=whole, outcome=outcome, turns=())

    @contextmanager
    def live(
        self, sid: str, now: Callable[[], str], parameters: Mapping[str, str] | None = None
    ) -> Iterator[None]:
        """Keep the record and show the call as in progress while its engine runs.

        Twilio's own final status, if there is one, stands.
        """
        self._live.add(sid)
        record = self._records.get(sid)
        if record is not None:
            self._change(
                record,
                status=record.status if record.status in FINAL_STATUSES else "in-progress",
                updated_at=now(),
                outcome=None,
                live=True,
                streams=record.streams + 1,
                process=self.process,
                parameters=parameters or record.parameters,
            )
        try:
            yield
        finally:
            self._live.discard(sid)
            record = self._records.get(sid)
            if record is not None:
                at = now()
                status = record.status if record.status in FINAL_STATUSES else "completed"
                ended_at = record.ended_at or at
                self._change(record, status=status, updated_at=at, ended_at=ended_at, live=False)

    def adopt(self, record: CallRecord) -> None:
        """Take what another process knows of a call. No follower is told: that process has one."""
        known = self._records.get(record.sid)
        if known is None:
            self._records[record.sid] = record
            self._drop_oldest()
        elif record.sid not in self._live:
            self._records[record.sid] = merge(known, record)
        elif record.answered_by:
            self._records[record.sid] = replace(known, answered_by=record.answered_by)

    @property
    def live_sids(self) -> list[str]:
        """Whose engines run."""
        return list(self._live)

    def is_live(self, sid: str) -> bool:
        """Say whether the engine of a call runs here."""
        return sid in self._live

    def forget(self, sid: str) -> None:
        """Drop the record of a call, unless its engine runs."""
        if sid not in self._live:
            self._records.pop(sid, None)

    def get(self, sid: str) -> CallRecord | None:
        """Return the record of a call."""
        return self._records.get(sid)

    def latest(self, count: int, before: CallRecord | None = None) -> list[CallRecord]:
        """Return the newest records, the newest first; `before`: of those behind it."""
        newest = sorted(self._records.values(), key=lambda one: one.age, reverse=True)
        return [one for one in newest if before is None or one.age < before.age][:count]

    def _change(
        self, record: CallRecord, news: Sequence[Mapping[str, Any]] = (), /, **changes: Any
    ) -> CallRecord:
        changed = replace(record, **changes)
        if changed.summary is not None and record.sid not in self._live:
            changed = replace(changed, summary=packed(changed.summary))
        self._records[record.sid] = changed
        self._follower(changed, news)
        return changed

    def _put(self, record: CallRecord) -> None:
        self._records[record.sid] = record
        self._follower(record, ())
        self._drop_oldest()

    def _drop_oldest(self) -> None:
        if len(self._records) - len(self._live) > self._keep:
            # Oldest first; only live calls, of which there are few, are skipped.
            del self._records[next(sid for sid in self._records if sid not in self._live)]


@dataclass(slots=True)
class _Line:
    """A place for one call. Without a nonce, which makes its token, it is being dialled."""

    expires: float
    nonce: str = ""
    account_sid: str = ""
    redeemed: bool = False


@dataclass(frozen=True, slots=True)
class Others:
    """The lines of all processes but those by these keys, while one step decides for all."""

    keys: Sequence[str]
    limit: int
    tokens: int  # lines with a token, live ones included
    dialled: int  # lines without


class Lines:
    """Which calls may have a media stream: at most `limit`, each by its own one-time token.

    A line is taken by `dial` or `mint` and freed by `release`, or by itself when no stream has
    come in time. Units: `now` and `ttl_s` are seconds on the Trio clock.
    """

    REMEMBERED: Final = 4096  # tokens of past calls, 1 MB: hours of replays at any likely rate

    def __init__(
        self, limit: int, ttl_s: float, sign: Callable[[str, str], str] = lambda sid, nonce: nonce
    ) -> None:
        """`sign`: makes a call's token of its nonce; all who share lines make the same."""
        self.limit = limit
        self.others: Others | None = None  # they count as well; see `shared.py`
        self._sign = sign
        self.closed = False  # no new call; one that has a line goes on
        self._ttl_s = ttl_s
        self._lines: dict[str, _Line] = {}  # by CallSid, or by the key that `dial` returned
        self._held: set[str] = set()
        self._past: dict[str, str] = {}  # CallSid -> nonce; oldest first

    def taken(self, now: float) -> int:
        """Return the lines in use: ringing out, waiting for their stream, or live."""
        self._expire(now)
        return len(self._lines)

    def busy_until(self, now: float) -> float:
        """Return when the last line is free by itself; infinity while a call is live."""
        self._expire(now)
        return max((line.expires for line in self._lines.values()), default=now)

    def dial(self, now: float, hold_s: float, key: str = "") -> str:
        """Take a line for an outbound call that has no CallSid yet; return its key.

        `key`: of `dial_key`; empty: a new one.

        Raises:
            CallRefused: no line is free; `Draining`: the lines are closed.
        """
        if self.closed:
            raise Draining("the server is shutting down; try another or later")
        self._expire(now)
        if self._full(dialled=True):
            raise CallRefused("all lines are busy; try again later")
        key = key or dial_key()
        self._lines[key] = _Line(now + hold_s)
        return key

    def dialled(self, key: str, call_sid: str) -> None:
        """Name the call that `dial` took a line for; its webhook may have come before."""
        line = self._lines.pop(key, None)
        if line is not None and call_sid not in self._past:
            self._lines.setdefault(call_sid, line)

    def renew(self, call_sid: str, account_sid: str, *, now: float) -> str | None:
        """Return a token for another stream of a call whose last one has ended.

        Only for a call that went away and comes back; as `mint`, also where it is asked twice.
        It is no new call, so closed lines are open to it.
        """
        self._past.pop(call_sid, None)
        return self.mint(call_sid, account_sid, outbound=True, now=now, renewed=True)

    def mint(
        self,
        call_sid: str,
        account_sid: str,
        *,
        outbound: bool,
        now: float,
        renewed: bool = False,
    ) -> str | None:
        """Return the token of a call, the same for the same call; None if no line is free."""
        self._expire(now)
        line = self._lines.get(call_sid)
        if line is not None and line.nonce:
            return self._sign(call_sid, line.nonce)
        if call_sid in self._past:
            return self._sign(call_sid, self._past[call_sid])
        if line is None and self.closed and not renewed:
            return None
        # A caller gets a line that nobody holds. An answered call has its own, but under a dial
        # key as long as Twilio's reply to the dialling is on its way; so only tokens count.
        if self._full(dialled=not outbound):
            return None
        nonce = secrets.token_urlsafe(32)
        self._lines[call_sid] = _Line(now + self._ttl_s, nonce, account_sid)
        return self._sign(call_sid, nonce)

    def _full(self, *, dialled: bool) -> bool:
        """Say whether no line is free; `dialled`: those without a token count as well."""
        lines, taken, limit = list(self._lines.values()), 0, self.limit
        if self.others is not None:
            lines = [self._lines[key] for key in self.others.keys if key in self._lines]
            taken = self.others.tokens + (self.others.dialled if dialled else 0)
            limit = self.others.limit
        return taken + sum(1 for line in lines if line.nonce or dialled) >= limit

    def redeem(self, token: str, call_sid: str, account_sid: str, *, now: float) -> None:
        """Use up the token of a call.

        Raises:
            CallRefused: no such token, used, expired, or of another call or account. The message
                does not say which.
        """
        self._expire(now)
        line = self._lines.get(call_sid)
        if (
            line is None
            or not line.nonce
            or line.redeemed
            or not _same(self._sign(call_sid, line.nonce), token)
            or not _same(line.account_sid, account_sid)
        ):
            raise CallRefused("the stream's token is not one this server gave for this call")
        line.redeemed = True
        line.expires = now + self._ttl_s  # if the engine never holds it, it frees itself

    @contextmanager
    def held(self, call_sid: str) -> Iterator[None]:
        """Keep the line while the call runs; free it afterwards."""
        line = self._lines.setdefault(call_sid, _Line(inf, redeemed=True))
        line.expires = inf
        self._held.add(call_sid)
        try:
            yield
        finally:
            self._held.discard(call_sid)
            self.release(call_sid)

    def release(self, key: str, *, unused_only: bool = False) -> None:
        """Free a line, by CallSid or by dial key; its token is void from now on.

        `unused_only`: leave a call alone whose stream is in; it is the engine that ends it.
        """
        line = self._lines.get(key)
        if line is None or (unused_only and line.redeemed):
            return
        del self._lines[key]
        self._held.discard(key)
        if line.nonce:
            self._past[key] = line.nonce
            if len(self._past) > self.REMEMBERED:
                del self._past[next(iter(self._past))]

    # --- From one process to another

    def take(self, key: str) -> tuple[Line | None, str]:
        """Return a call's line, and the nonce of its past token; forget both, but a live line."""
        line, past = self._lines.get(key), self._past.pop(key, "")
        if line is None:
            return None, past
        if not self.holds(key):
            del self._lines[key]
        return Line(line.nonce, line.account_sid, None if line.redeemed else line.expires), past

    def put(self, key: str, line: Line | None, past: str) -> None:
        """Take what `take` returned elsewhere; nothing is known here but of a live line."""
        if past:
            self._past[key] = past
        if line is None:
            return
        expires = inf if self.holds(key) or line.until is None else line.until
        redeemed = line.until is None
        self._lines[key] = _Line(expires, line.nonce, line.account_sid, redeemed)

    def holds(self, key: str) -> bool:
        """Say whether the line is that of a call whose engine runs here."""
        return key in self._held and key in self._lines

    def held_elsewhere(self, key: str) -> bool:
        """Say whether the line is that of a call whose engine runs in another process."""
        line = self._lines.get(key)
        return line is not None and line.expires == inf and not self.holds(key)

    def _expire(self, now: float) -> None:
        for key in [key for key, line in self._lines.items() if line.expires <= now]:
            self.release(key)


def dial_key() -> str:
    """Return what a call goes by until it has a CallSid, which begins otherwise."""
    return f"dial-{secrets.token_hex(8)}"


def _same(ours: str, theirs: str) -> bool:
    return hmac.compare_digest(ours.encode(), theirs.encode("utf-8", "surrogatepass"))
