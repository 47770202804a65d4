"""A local stand-in for Twilio's Calls REST API: create, fetch, update.

    async with open_twilio() as twilio:
        twilio.url                                   # http://127.0.0.1:…
        twilio.refuse_to["+15550100"] = UNVERIFIED_TO

It keeps calls but does not telephone: a call stays `queued` until `advance` moves it or an
update ends it, unless a `network` takes them on (`voicebot.testing.open_telephone`).
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from voicebot.standins.http11 import (
    Answer,
    Exchange,
    HttpServer,
    Report,
    open_http_server,
)
from voicebot.standins.script import Conduct, Conducts, Rule
from voicebot.standins.twilio_rules import (
    AUTHENTICATE,
    MAGIC_FROM,
    MAGIC_TO,
    NOT_CANCELABLE,
    NOT_FOUND,
    NOT_IN_PROGRESS,
    ApiError,
    check_auth,
    check_create,
    refuse,
)

ACCOUNT_SID: Final = "AC" + "0" * 31 + "1"
AUTH_TOKEN: Final = "standin"
DATE: Final = "Thu, 01 Jan 2026 00:00:00 +0000"  # constant: no run differs from another
FINISHED: Final = frozenset(("completed", "busy", "no-answer", "canceled", "failed"))

_CALL_PATH: Final = re.compile(r"/2010-04-01/Accounts/(\w+)/Calls(?:/(\w+))?\.json")
_SUBRESOURCES: Final = (
    "notifications",
    "recordings",
    "payments",
    "events",
    "siprec",
    "streams",
    "transcriptions",
    "user_defined_messages",
    "user_defined_message_subscriptions",
)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class RestConduct(Conduct):
    """How one request is treated. What only cuts the answer leaves the call placed."""

    refusal: ApiError | None = None


REST: Final = RestConduct()


class PhoneNetwork(Protocol):
    """Who really calls. Forms are as they came in, with names that repeat."""

    def place(self, sid: str, form: Sequence[tuple[str, str]]) -> None:
        """Begin a call."""
        ...

    def update(self, sid: str, form: Sequence[tuple[str, str]]) -> None:
        """Do something else with a live call."""
        ...


@dataclass(eq=False, slots=True)
class Call:
    """One call. `form` is what the client sent to create it, `updates` what it sent after."""

    sid: str
    form: list[tuple[str, str]]
    status: str = "queued"
    updates: list[dict[str, str]] = field(default_factory=list)
    direction: str = "outbound-api"
    answered_by: str | None = None

    def last(self, name: str) -> str:
        """Return a field as given at creation, empty where it was not."""
        return dict(self.form).get(name, "")

    @property
    def finished(self) -> bool:
        """Whether nothing more can happen to it."""
        return self.status in FINISHED


class Twilio:
    """Control and inspection of a running stand-in. Made by `open_twilio`.

    `refuse_to` and `refuse_from` answer a number with an error; they begin with the magic
    numbers of Twilio's test credentials.
    """

    def __init__(self, account_sid: str, auth_token: str, rule: Rule[RestConduct]) -> None:
        self.conducts: Conducts[RestConduct] = Conducts(rule)
        self.calls: dict[str, Call] = {}
        self.refuse_to = dict(MAGIC_TO)
        self.refuse_from = dict(MAGIC_FROM)
        self.network: PhoneNetwork | None = None
        self.server: HttpServer
        self._account_sid = account_sid
        self._auth_token = auth_token

    @property
    def url(self) -> str:
        """What `TWILIO_API_URL` is to be."""
        return self.server.url

    def advance(self, sid: str, status: str) -> None:
        """Let something happen to a call that the client did not ask for."""
        self.calls[sid].status = status

    def adopt(self, sid: str, *, from_: str, to: str) -> Call:
        """Return a call, made now if it came in and is not known."""
        return self.calls.setdefault(
            sid, Call(sid, [("From", from_), ("To", to)], direction="inbound")
        )

    async def answer(self, exchange: Exchange, answer: Answer) -> None:
        """Serve one request."""
        conduct = self.conducts.take(exchange)
        await conduct.meet(answer)
        if not check_auth(exchange, self._account_sid, self._auth_token):
            await refuse(answer, AUTHENTICATE)
            return
        status, result = (0, conduct.refusal) if conduct.refusal else self._act(exchange)
        if isinstance(result, Call):
            await answer.send_json(status, self._render(result))
        else:
            await refuse(answer, result)

    def _act(self, exchange: Exchange) -> tuple[int, Call | ApiError]:
        match = _CALL_PATH.fullmatch(exchange.path)
        if match is None or match[1] != self._account_sid:
            return 0, NOT_FOUND.about(exchange.path)
        if match[2] is None:
            return self._create(exchange) if exchange.method == "POST" else _unserved(exchange)
        call = self.calls.get(match[2])
        if call is None:
            return 0, NOT_FOUND.about(exchange.path)
        if exchange.method == "GET":
            return 200, call
        return self._update(call, exchange) if exchange.method == "POST" else _unserved(exchange)

    def _create(self, exchange: Exchange) -> tuple[int, Call | ApiError]:
        form = exchange.form
        error = check_create(dict(form), self.refuse_to, self.refuse_from)
        if error is not None:
            return 0, error
        call = Call(f"CA{len(self.calls) + 1:032x}", form)
        self.calls[call.sid] = call
        if self.network is not None:
            self.network.place(call.sid, form)
        return 201, call

    def _update(self, call: Call, exchange: Exchange) -> tuple[int, Call | ApiError]:
        form = dict(exchange.form)
        if call.finished:
            return 0, NOT_IN_PROGRESS
        match form.get("Status"):
            case "completed" if self.network is None:
                call.status = "completed"
            case "canceled" if call.status in ("queued", "ringing"):
                call.status = "canceled"
            case "canceled":
                return 0, NOT_CANCELABLE
        call.updates.append(form)
        if self.network is not None:
            self.network.update(call.sid, exchange.form)
        return 200, call

    def _render(self, call: Call) -> dict[str, Any]:
        uri = f"/2010-04-01/Accounts/{self._account_sid}/Calls/{call.sid}"
        begun = call.status not in ("queued", "ringing")
        return {
            "sid": call.sid,
            "account_sid": self._account_sid,
            "parent_call_sid": None,
            "to": call.last("To"),
            "to_formatted": call.last("To"),
            "from": call.last("From"),
            "from_formatted": call.last("From"),
            "phone_number_sid": None,
            "status": call.status,
            "start_time": DATE if begun else None,
            "end_time": DATE if call.finished else None,
            "duration": "0" if call.finished else None,
            "price": None,
            "price_unit": "USD",
            "direction": call.direction,
            "answered_by": call.answered_by,
            "api_version": "2010-04-01",
            "forwarded_from": None,
            "group_sid": None,
            "caller_name": None,
            "queue_time": "0",
            "trunk_sid": None,
            "date_created": DATE,
            "date_updated": DATE,
            "uri": f"{uri}.json",
            "subresource_uris": {name: _subresource(uri, name) for name in _SUBRESOURCES},
        }


def _subresource(uri: str, name: str) -> str:
    # The vendor writes the keys in snake_case and the paths in CamelCase.
    return f"{uri}/{''.join(part.capitalize() for part in name.split('_'))}.json"


def _unserved(exchange: Exchange) -> tuple[int, ApiError]:
    return 0, ApiError(405, 20004, f"Method {exchange.method} is not served by the stand-in")


@asynccontextmanager
async def open_twilio(
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    account_sid: str = ACCOUNT_SID,
    auth_token: str = AUTH_TOKEN,
    rest: Rule[RestConduct] = REST,
    report: Report | None = None,
) -> AsyncGenerator[Twilio]:
    """Serve the stand-in while the block runs.

    Args:
        account_sid: the only account.
        auth_token: its password.
        rest: the standing conduct.
        report: called when a request is over.

    Owns: the listening socket and all connections.
    """
    twilio = Twilio(account_sid, auth_token, rest)
    async with open_http_server("twilio", twilio.answer, host, port, report) as server:
        twilio.server = server
        yield twilio
