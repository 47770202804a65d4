"""Who gets in: Twilio by its signature, a simulator on this machine, a stream by its token.

One object per process, shared by the webhooks, the calls API and the media path. It decides and
records; it does not serve. Synchronous: each decision is one step, so no two requests can take
the same line.

Twilio is known by its signature over the *configured* public URL, never over what the request
says of its own host. Without a Twilio account only a direct loopback request gets in: the peer's
address is loopback, it asked for a loopback host (a web page that rebinds its DNS name does
not), and no proxy or tunnel, which connects from loopback too, has left a header.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import urlsplit

import trio
from werkzeug.datastructures import MultiDict

from voicebot import telephony
from voicebot.call_record import FINAL_STATUSES, STATUSES, CallRecord
from voicebot.config import Settings
from voicebot.errors import CallRefused
from voicebot.metrics import Metrics
from voicebot.store import CallStore, Lines

# SIDs are 34 letters and digits; a simulator may make up its own.
_SID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_MAX_FIELD_CHARS: Final = 128  # of a field that is kept; a SIP address fits

# A call being dialled holds its line until it is answered: Twilio's ring time, its extra 5 s,
# and as much again as the request itself may take.
DIAL_HOLD_S: Final = telephony.RING_TIMEOUT_S + 5 + telephony.REQUEST_DEADLINE_S + 5

_PROXY_HEADERS: Final = frozenset({b"forwarded", b"via", b"x-real-ip", b"cf-connecting-ip"})

log = logging.getLogger(__name__)

Scope = Mapping[str, Any]  # of ASGI
Form = MultiDict[str, str]


class BadRequest(Exception):
    """A webhook lacks what every webhook of its kind has."""


class Switchboard:
    """Decides who gets in, and keeps the records of who did."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = CallStore()
        self.metrics = Metrics()
        self.lines = Lines(settings.call_limit, settings.token_ttl_s)

    def drain(self) -> None:
        """Take no new call from now on. One that was dialled or has its token may come in."""
        self.lines.closed = True

    @property
    def draining(self) -> bool:
        """Whether `drain` was called."""
        return self.lines.closed

    # --- Twilio's requests

    def admit_webhook(self, scope: Scope, form: Form) -> None:
        """Check that a form POST is Twilio's.

        Raises:
            CallRefused: it is not, or cannot be shown to be.
        """
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
        token = self.settings.twilio_auth_token.get_secret_value()
        signature = _header(scope, b"x-twilio-signature")
        if not telephony.signature_ok(token, signature, url, form):
            log.warning("signature_refused", extra={"path": scope["path"]})
            raise CallRefused(
                "the X-Twilio-Signature is missing or wrong: PUBLIC_URL must be the address that "
                "Twilio was given, and TWILIO_AUTH_TOKEN the account's primary token"
            )

    def _admit_local(self, scope: Scope) -> None:
        if not is_direct_loopback(scope):
            raise CallRefused(
                "no Twilio account is configured, so only a simulator on this machine may call; "
                "set TWILIO_ACCOUNT_SID, TWILIO_AUTH_TOKEN and PUBLIC_URL"
            )

    def _public(self, path: str) -> str:
        return self.settings.public_url.rstrip("/") + path

    def _stream_url(self, scope: Scope) -> str:
        if self.settings.telephony:
            return "ws" + self._public(telephony.STREAM_PATH).removeprefix("http")
        return f"ws://{_header(scope, b'host')}{telephony.STREAM_PATH}"

    # --- Calls

    def answer(self, scope: Scope, form: Form) -> str:
        """Return the TwiML for a call that an admitted webhook announces.

        The same webhook again gets the same answer, with the same token.

        Raises:
            BadRequest: the form does not say which call.
        """
        call_sid, account_sid = _sid(form, "CallSid"), _sid(form, "AccountSid")
        record = self._open(form, status=_text(form, "CallStatus"))
        outbound = record.direction == "outbound"
        token = self.lines.mint(call_sid, account_sid, outbound=outbound, now=trio.current_time())
        if token is None:
            log.warning("call_turned_away", extra={"call_sid": call_sid, "draining": self.draining})
            return telephony.busy_twiml()
        log.info("call_answered", extra={"call_sid": call_sid, "pii_from": record.from_})
        callback = None
        if self.settings.telephony:
            callback = self._public(telephony.STREAM_STATUS_PATH)
        return telephony.stream_twiml(self._stream_url(scope), token, callback)

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
        if status in FINAL_STATUSES:
            self.lines.release(call_sid, unused_only=True)

    def take_stream_status(self, form: Form) -> None:
        """Record a stream status callback. Raises as `answer`."""
        call_sid = _sid(form, "CallSid")
        event, error = _text(form, "StreamEvent"), _text(form, "StreamError")
        self.store.stream_event(call_sid, at=wall_clock(), event=event, error=error or None)
        if event in {"stream-error", "stream-stopped"}:
            log.info(event.replace("-", "_"), extra={"call_sid": call_sid, "error": error})
            self.lines.release(call_sid, unused_only=True)

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
        told.pop(telephony.TOKEN_PARAMETER, None)  # it is no news to anybody, and a secret
        with self.lines.held(call_sid), self.store.live(call_sid, wall_clock, told):
            yield

    def _open(self, form: Form, status: str) -> CallRecord:
        return self.store.open(
            _sid(form, "CallSid"),
            at=wall_clock(),
            direction="outbound" if _text(form, "Direction").startswith("outbound") else "inbound",
            from_=_text(form, "From"),
            to=_text(form, "To"),
            status=status if status in STATUSES else "queued",
        )


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
    return not proxied and _is_loopback(client) and (asked == "localhost" or _is_loopback(asked))


def _is_loopback(host: str) -> bool:
    try:
        address = ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)  # ::ffff:127.0.0.1 on a dual-stack socket
    return (mapped or address).is_loopback


def _header(scope: Scope, name: bytes) -> str | None:
    """Return a header that may come only once; None if it comes twice."""
    headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
    values = [value for key, value in headers if key.lower() == name]
    return values[0].decode("latin-1") if len(values) == 1 else None


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
