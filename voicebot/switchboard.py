"""Who gets in: Twilio by its signature, a simulator on this machine, a stream by its token.

One object per process, shared by the webhooks, the calls API and the media path. It decides and
records; it does not serve. Synchronous: each decision is one step, so no two requests can take
the same line. Only who lets the server drain waits here, for the last call.

Twilio is known by its signature over the *configured* public URL, never over what the request
says of its own host. Without a Twilio account nobody gets in, but under VOICEBOT_DEV a direct
loopback request: the peer's address is loopback, it asked for a loopback host (a web page that
rebinds its DNS name does not), and no proxy or tunnel, which connects from loopback too, has left
a header. A proxy that leaves none cannot be told from this machine, so `doors.py` keeps such a
server from starting where it is reached by others.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import urlsplit

import trio
from werkzeug.datastructures import MultiDict

from voicebot import outbound, telephony, twiml
from voicebot.call_record import FINAL_STATUSES, STATUSES, CallRecord
from voicebot.config import Settings
from voicebot.errors import CallRefused
from voicebot.floor import Bell
from voicebot.idempotency import Idempotency
from voicebot.metrics import Metrics
from voicebot.onward import Onward
from voicebot.outbound import OutboundCall
from voicebot.record import Outcome
from voicebot.shared import WAIT_S, Alone, Shared, signer
from voicebot.signature import SIGNATURE, SIGNATURE_SETTINGS, Secrets
from voicebot.standing import Standing
from voicebot.store import CallStore, Lines
from voicebot.telephony import PlacedCall
from voicebot.tollgate import Tollgate

# SIDs are 34 letters and digits; a simulator may make up its own.
_SID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_MAX_FIELD_CHARS: Final = 128  # of a field that is kept; a SIP address fits

# A call being dialled holds its line until it is answered: Twilio's ring time, its extra 5 s,
# and as much again as the request itself may take.
DIAL_HOLD_S: Final = outbound.RING_TIMEOUT_S + 5 + telephony.REQUEST_DEADLINE_S + 5

_PROXY_HEADERS: Final = frozenset({b"forwarded", b"via", b"x-real-ip", b"cf-connecting-ip"})

ASKED: Final = 10_000  # placed and not known to be over: status callbacks may be lost

# What Twilio says of whoever is no person; "unknown" may be one.
MACHINES: Final = ("machine", "fax")

log = logging.getLogger(__name__)

Scope = Mapping[str, Any]  # of ASGI
Form = MultiDict[str, str]


class BadRequest(Exception):
    """A webhook lacks what every webhook of its kind has."""


class Switchboard:
    """Decides who gets in, and keeps the records of who did."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._secrets = _secrets_of(settings)
        self.store = CallStore(settings.kept_calls)
        self.metrics = Metrics()
        sign = {}
        if settings.shared:
            # All have the same account. Without one whoever can read the database calls anyway.
            sign = {"sign": signer(settings.twilio_auth_token.get_secret_value())}
        self.lines = Lines(settings.call_limit, settings.token_ttl_s, **sign)
        self.shared: Alone | Shared = Alone()  # while the service is open, who decides with us
        self.metrics.lines.set(settings.call_limit)
        self.metrics.lines_taken.set_function(lambda: self.lines.taken(trio.current_time()))
        self.onward = Onward()
        self.idempotency = Idempotency()
        self.tollgate = Tollgate(settings, self.metrics, self.store.process)
        self._freed = Bell()  # rings when a call may have been the last
        self._asked: dict[str, OutboundCall] = {}  # by the key of its line, then by CallSid

    def drain(self) -> None:
        """Take no new call from now on. One that is dialled, has its token or is away may come."""
        self.lines.closed = True

    @property
    def draining(self) -> bool:
        """Whether `drain` was called."""
        return self.lines.closed

    def busy_until(self) -> float:
        """Return until when calls need this process if nothing happens: live, expected, away.

        On the Trio clock; infinity for a live one, and not later than now where there is none.
        """
        now = trio.current_time()
        return max(self.lines.busy_until(now), self.onward.busy_until(now))

    async def wait_idle(self) -> None:
        """Wait until no call needs this process any more; at once where none does."""
        await self._wait_beyond(self.busy_until)
        while await self.shared.needed():
            await trio.sleep(WAIT_S)
            await self._wait_beyond(self.busy_until)

    async def wait_hung_up(self) -> None:
        """Wait until no line is taken. Who is away is not waited for."""
        await self._wait_beyond(lambda: self.lines.busy_until(trio.current_time()))

    async def _wait_beyond(self, busy_until: Callable[[], float]) -> None:
        while (until := busy_until()) > trio.current_time():
            with trio.move_on_at(until):
                await self._freed.wait()

    # --- Twilio's requests

    def admit_webhook(self, scope: Scope, form: Form) -> None:
        """Check that a form POST is Twilio's.

        One without fields is none: Twilio's all have some, and what is signed without any, a GET
        or an upgrade, would be good for a POST too.

        Raises:
            CallRefused: it is not, or cannot be shown to be.
        """
        if not form:
            log.warning("webhook_without_fields", extra={"path": scope["path"]})
            raise CallRefused("a webhook is a form POST with fields; nothing else is taken")
        if not self.settings.telephony:
            self._admit_local(scope)
            return
        query = scope["query_string"].decode("latin-1")
        url = self._public(scope["path"]) + (f"?{query}" if query else "")
        self._check_signature(scope, url, form)

    def admit(self, scope: Scope) -> None:
        """Check that a WebSocket upgrade of `STREAM_PATH` is Twilio's. Raises as `admit_webhook`.

        The signature covers no more than the URL and can be replayed, so this does not say
        whose call it is: that takes the token, see `redeem`.
        """
        if not self.settings.telephony:
            self._admit_local(scope)
            return
        self._check_signature(scope, self._stream_url(scope), None)

    def _check_signature(self, scope: Scope, url: str, form: Form | None) -> None:
        signatures, claims = _headers(scope, SIGNATURE), _headers(scope, SIGNATURE_SETTINGS)
        if self._secrets.signed(signatures, claims, url, form):
            return
        extra = {"path": scope["path"], "shared_key_claimed": bool(claims)}
        log.warning("signature_refused", extra=extra)
        what = (
            "TWILIO_WEBHOOK_KEYS have the SharedKey that it names"
            if claims
            else "TWILIO_AUTH_TOKEN the account's primary token, and VOICEBOT_ACCEPT_SHA1 true"
        )
        raise CallRefused(
            "the X-Twilio-Signature is missing or wrong: PUBLIC_URL must be the address that "
            f"Twilio was given, {what}"
        )

    def _admit_local(self, scope: Scope) -> None:
        if not (self.settings.dev and is_direct_loopback(scope)):
            raise CallRefused(
                "no Twilio account is configured, so nobody can call: set TWILIO_ACCOUNT_SID, "
                "TWILIO_AUTH_TOKEN and PUBLIC_URL; or, for a simulator on the same machine with no "
                "proxy between, start with `voicebot serve --dev`"
            )

    def _public(self, path: str) -> str:
        return self.settings.public_url.rstrip("/") + path

    def _stream_url(self, scope: Scope) -> str:
        if self.settings.telephony:
            return "ws" + self._public(telephony.STREAM_PATH).removeprefix("http")
        return f"ws://{_header(scope, b'host')}{telephony.STREAM_PATH}"

    # --- Calls

    def dial(self, call: OutboundCall, key: str = "") -> str:
        """Take a line for a call that is to be placed; return the key of both.

        `key`: as `Lines.dial`.

        Raises:
            CallRefused: no line is free; `Draining`: the server takes no more.
        """
        hold_s = DIAL_HOLD_S - outbound.RING_TIMEOUT_S + call.ring_timeout_s
        key = self.lines.dial(trio.current_time(), hold_s, key)
        self._asked[key] = call
        if len(self._asked) > ASKED:
            del self._asked[next(iter(self._asked))]
        return key

    def dialled(self, key: str, call_sid: str) -> None:
        """Name the call of a key, as soon as either Twilio's answer or its webhook does."""
        self.lines.dialled(key, call_sid)
        if call := self._asked.pop(key, None):
            self._asked[call_sid] = call

    def placed(self, key: str, asked: OutboundCall, call: PlacedCall) -> None:
        """Take Twilio's answer: a line's call has a name, and a record."""
        self.dialled(key, call.sid)
        self.store.open(
            call.sid,
            at=wall_clock(),
            direction="outbound",
            from_=asked.from_,
            to=asked.to,
            status=call.status,
        )
        self.store.describe(call.sid, asked.metadata)

    def undial(self, key: str) -> None:
        """Free what `dial` took, unless the call has been named."""
        self.lines.release(key)
        self._asked.pop(key, None)
        self._freed.ring()

    def asked(self, call_sid: str) -> OutboundCall | None:
        """Return what was asked of a call that this process has placed and is not over."""
        return self._asked.get(call_sid)

    def answer(self, scope: Scope, form: Form, key: str = "", *, turned_away: bool = False) -> str:
        """Return the TwiML for a call that an admitted webhook announces.

        The same webhook again gets the same answer, with the same token.

        Args:
            key: of `dial`, for a call that this server has placed.
            turned_away: by another server that drains. If this one does as well, that is the end:
                two that name each other would send the caller to and fro.

        Raises:
            BadRequest: the form does not say which call.
        """
        call_sid, account_sid = _sid(form, "CallSid"), _sid(form, "AccountSid")
        record = self._open(form, status=_text(form, "CallStatus"))
        if key:
            self.dialled(key, call_sid)
        asked, who = self.asked(call_sid), _text(form, "AnsweredBy")
        self.answered_by(call_sid, who)
        if who.startswith(MACHINES) and not (asked and asked.voicemail):
            self.lines.release(call_sid)
            self._freed.ring()
            return twiml.hang_up_twiml()
        is_ours = record.direction == "outbound"
        token = self.lines.mint(call_sid, account_sid, outbound=is_ours, now=trio.current_time())
        if token is None:
            log.warning("call_turned_away", extra={"call_sid": call_sid, "draining": self.draining})
            self.metrics.turned_away.labels("draining" if self.draining else "busy").inc()
            if not self.draining:
                return twiml.busy_twiml()
            if not self.settings.drain_to or turned_away or is_ours:
                return twiml.sorry_twiml()
            url = self.settings.drain_to.rstrip("/") + telephony.VOICE_PATH
            return twiml.redirect_twiml(f"{url}?{telephony.TURNED_AWAY_ARGUMENT}=1")
        log.info("call_answered", extra={"call_sid": call_sid, "pii_from": record.from_})
        return self._stream_twiml(scope, token)

    def _stream_twiml(self, scope: Scope, token: str, digits: str = "") -> str:
        url = self._stream_url(scope)
        callback = action = None
        if self.settings.telephony:
            callback = self._public(telephony.STREAM_STATUS_PATH)
            action = self._public(telephony.AFTER_STREAM_PATH)
        return twiml.stream_twiml(url, token, callback, action=action, digits=digits)

    # --- A call that goes away from the bot, and may come back

    def after_stream(self, scope: Scope, form: Form) -> str:
        """Return the TwiML for a call whose stream has ended: what the bot wanted, or the end."""
        call_sid = _sid(form, "CallSid")
        ending = self.onward.ending(call_sid)
        if ending is None:
            return twiml.hang_up_twiml()
        if ending.outcome is Outcome.PRESSING_KEYS:
            self.onward.sent(call_sid)
            return self._back(scope, form, str(ending.arguments["digits"]))
        self.onward.asked(call_sid)
        whisper = None
        if ending.arguments.get("summary"):
            whisper = self._public(f"{telephony.WHISPER_PATH}?call={call_sid}")
        return twiml.dial_twiml(
            str(ending.arguments["to"]),
            action=self._public(telephony.AFTER_DIAL_PATH),
            whisper=whisper,
        )

    def after_dial(self, scope: Scope, form: Form) -> str:
        """Return the TwiML for a call that was put through: the end, or back if nobody answered."""
        call_sid, status = _sid(form, "CallSid"), _text(form, "DialCallStatus")
        log.info("put_through", extra={"call_sid": call_sid, "dial_status": status})
        back = self.onward.dialled(call_sid, status)
        self._freed.ring()
        if not back:
            return twiml.hang_up_twiml()
        return self._back(scope, form)

    def _back(self, scope: Scope, form: Form, digits: str = "") -> str:
        call_sid, account_sid = _sid(form, "CallSid"), _sid(form, "AccountSid")
        token = self.lines.renew(call_sid, account_sid, now=trio.current_time())
        if token is None:
            return twiml.busy_twiml()
        return self._stream_twiml(scope, token, digits)

    def whisper(self, call_sid: str) -> str:
        """Return the TwiML of what somebody hears before a caller is put through to them."""
        ending = self.onward.ending(call_sid)
        text = "" if ending is None else str(ending.arguments.get("summary", ""))
        return twiml.say_twiml(text, self.settings.language)

    def forget(self, call_sid: str) -> bool:
        """Forget what was to come of a call, all but that its token was used.

        Returns whether that was done: not of a call that is live, here or in another process.
        """
        if self.store.is_live(call_sid) or self.live_elsewhere(call_sid):
            return False
        self._is_over(call_sid)
        return True

    def _is_over(self, call_sid: str) -> None:
        self.lines.release(call_sid, unused_only=True)
        self._asked.pop(call_sid, None)
        self.onward.over(call_sid)

    def live_elsewhere(self, call_sid: str) -> bool:
        """Say whether the engine of a call runs in another process."""
        return self.lines.held_elsewhere(call_sid)

    # --- From one process to another; see `shared.py`

    def take_in(self, key: str, standing: Standing, ahead_s: float) -> None:
        """Take how a call stands; times are `ahead_s` behind the Trio clock."""
        line, away = standing.line, standing.away
        if line is not None and line.until is not None:
            line = replace(line, until=line.until + ahead_s)
        self.lines.put(key, line, standing.past)
        if away is not None:
            self.onward.put(key, replace(away, since=away.since + ahead_s))
        if standing.call is not None:
            self._asked[key] = OutboundCall(**standing.call)
        if standing.record is not None:
            self.store.adopt(standing.record)

    def hand_out(self, key: str, ahead_s: float) -> Standing:
        """Return how a call stands, and forget its line, unless it is live here."""
        line, past = self.lines.take(key)
        if line is not None and line.until is not None:
            line = replace(line, until=line.until - ahead_s)
        away = self.onward.take(key)
        if away is not None:
            away = replace(away, since=away.since - ahead_s)
        call = self._asked.get(key)
        asked = None if call is None else asdict(call)
        return Standing(line, past, away, asked, self.store.get(key))

    def let_go(self, key: str) -> None:
        """Forget the rest of a call that is not to be live here: others may know better by now."""
        self._asked.pop(key, None)
        self.store.forget(key)

    # --- Answering machines

    def answered_by(self, call_sid: str, who: str) -> None:
        """Keep who has answered, by Twilio's ears; empty: not known."""
        if who:
            self.store.answered(call_sid, at=wall_clock(), by=who)
            log.info("answered_by", extra={"call_sid": call_sid, "who": who})

    def take_amd(self, form: Form) -> tuple[str, str]:
        """Record what answered a call; return which call, and what. Raises as `answer`."""
        call_sid, who = _sid(form, "CallSid"), _text(form, "AnsweredBy")
        self.answered_by(call_sid, who)
        return call_sid, who

    def take_status(self, form: Form) -> None:
        """Record a status callback, of whatever call. Raises as `answer`."""
        call_sid = _sid(form, "CallSid")
        record, status = self._open(form, status="queued"), _text(form, "CallStatus")
        if status not in STATUSES:
            return
        sequence = _number(form, "SequenceNumber")
        self.store.status(
            call_sid,
            at=wall_clock(),
            # Without a number it is the only callback of its call: that of a phone number, which
            # comes when the call has ended.
            sequence=record.sequence + 1 if sequence is None else sequence,
            status=status,
            duration_s=_number(form, "CallDuration"),
        )
        if (told := self.store.get(call_sid)) is not None:
            self.tollgate.over(told)
        if status in FINAL_STATUSES:
            self._is_over(call_sid)
            self._freed.ring()

    def take_stream_status(self, form: Form) -> None:
        """Record a stream status callback. Raises as `answer`."""
        call_sid = _sid(form, "CallSid")
        event, error = _text(form, "StreamEvent"), _text(form, "StreamError")
        self.store.stream_event(call_sid, at=wall_clock(), event=event, error=error or None)
        if event in {"stream-error", "stream-stopped"}:
            log.info(event.replace("-", "_"), extra={"call_sid": call_sid, "error": error})
            self.lines.release(call_sid, unused_only=True)
            self._freed.ring()

    def redeem(self, token: str, call_sid: str, account_sid: str) -> None:
        """Let the stream of a call in, once.

        Raises:
            CallRefused: the token is not the one that this call was given, or was used.
        """
        self.lines.redeem(token, call_sid, account_sid, now=trio.current_time())

    @contextmanager
    def live(self, call_sid: str, parameters: Mapping[str, str] | None = None) -> Iterator[None]:
        """Hold the line and the record of a call while its engine runs."""
        told = dict(parameters or {})
        told.pop(twiml.TOKEN_PARAMETER, None)  # it is no news to anybody, and a secret
        try:
            with self.lines.held(call_sid), self.store.live(call_sid, wall_clock, told):
                yield
        finally:
            self._freed.ring()

    def _open(self, form: Form, status: str) -> CallRecord:
        return self.store.open(
            _sid(form, "CallSid"),
            at=wall_clock(),
            direction="outbound" if _text(form, "Direction").startswith("outbound") else "inbound",
            from_=_text(form, "From"),
            to=_text(form, "To"),
            status=status if status in STATUSES else "queued",
        )


def _secrets_of(settings: Settings) -> Secrets:
    given = (settings.twilio_auth_token, settings.twilio_auth_token_secondary)
    tokens = tuple(filter(None, (token.get_secret_value() for token in given)))
    return Secrets(tokens if settings.accept_sha1 else (), settings.webhook_keys)


def call_of(form: Form) -> str:
    """Return which call a webhook is about. Raises `BadRequest`: it does not say."""
    return _sid(form, "CallSid")


def wall_clock() -> str:
    """Return the time of day for a record: ISO 8601, UTC, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def is_direct_loopback(scope: Scope) -> bool:
    """Say whether a request came from this machine itself and not through a proxy or tunnel."""
    names = {name.lower() for name, _ in scope["headers"]}
    proxied = names & _PROXY_HEADERS or any(name.startswith(b"x-forwarded-") for name in names)
    client = (scope.get("client") or ("",))[0]
    try:
        asked = urlsplit(f"//{_header(scope, b'host') or ''}").hostname or ""
    except ValueError:
        return False
    return not proxied and is_loopback(client) and is_loopback(asked)


def is_loopback(host: str) -> bool:
    """Say whether an address or a host name is of this machine itself."""
    if host == "localhost":
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)  # ::ffff:127.0.0.1 on a dual-stack socket
    return (mapped or address).is_loopback


def _header(scope: Scope, name: bytes) -> str | None:
    """Return a header that may come only once; None if it comes twice."""
    values = _headers(scope, name)
    return values[0] if len(values) == 1 else None


def _headers(scope: Scope, name: bytes) -> list[str]:
    headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
    return [value.decode("latin-1") for key, value in headers if key.lower() == name]


def _text(form: Form, name: str) -> str:
    return form.get(name, "")[:_MAX_FIELD_CHARS]


def _sid(form: Form, name: str) -> str:
    values = form.getlist(name)
    if len(values) != 1 or not _SID.fullmatch(values[0]):
        raise BadRequest(f"{name} is missing or malformed")
    return values[0]


def _number(form: Form, name: str) -> int | None:
    value = form.get(name, "")
    return int(value) if re.fullmatch(r"[0-9]{1,9}", value, re.ASCII) else None
