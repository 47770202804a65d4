"""What both directions of the Deepgram stand-in check, and how they refuse.

Strict on purpose: a parameter the vendor does not document is refused, and so is every audio
format but the telephone's, because that is all these stand-ins can hear and say.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from voicebot.standins.http11 import Answer, Exchange

ANY: Final = ".+"
BOOL: Final = "true|false"


#: The three shapes of an error's body: `err_code` and `err_msg`, `category` and `message`, text.
Shape = Literal["usual", "category", "text"]


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error answer of Deepgram."""

    status: int
    err_code: str
    err_msg: str
    shape: Shape = "usual"


INVALID_AUTH: Final = Refusal(401, "INVALID_AUTH", "Invalid credentials.")
PAYMENT_REQUIRED: Final = Refusal(402, "ASR_PAYMENT_REQUIRED", "Project has no credits left.")
FORBIDDEN: Final = Refusal(
    403, "INSUFFICIENT_PERMISSIONS", "Project does not have access to the requested model."
)
TOO_MANY_REQUESTS: Final = Refusal(429, "TOO_MANY_REQUESTS", "Too many requests.")
INTERNAL: Final = Refusal(500, "INTERNAL_SERVER_ERROR", "Something went wrong.")
BAD_GATEWAY: Final = Refusal(502, "BAD_GATEWAY", "Bad gateway.")
UNAVAILABLE: Final = Refusal(503, "SERVICE_UNAVAILABLE", "No server is free.")
GATEWAY_TIMEOUT: Final = Refusal(504, "GATEWAY_TIMEOUT", "No server answered in time.")
BAD_QUERY: Final = Refusal(
    400, "INVALID_QUERY_PARAMETER", "Failed to deserialize query: unknown field `x`"
)
TEXT_TOO_LONG: Final = Refusal(
    413, "Payload Too Large", "Input text exceeds maximum character limit of 2000."
)
UNPROCESSABLE: Final = Refusal(422, "UNPROCESSABLE_ENTITY", "The text cannot be spoken.")
NOT_FOUND: Final = Refusal(404, "NOT_FOUND", "No such endpoint.")


def invalid_parameter(message: str) -> Refusal:
    """Return the refusal of a query."""
    return Refusal(400, "INVALID_QUERY_PARAMETER", f"Failed to deserialize query: {message}")


def bad_payload(message: str) -> Refusal:
    """Return the refusal of a body."""
    return Refusal(400, "PAYLOAD_ERROR", message)


def request_id(exchange: Exchange) -> str:
    """Return the id of a request: the same in every run."""
    return f"00000000-0000-4000-8000-{exchange.number:012x}"


async def refuse(exchange: Exchange, answer: Answer, refusal: Refusal) -> None:
    """Answer with an error."""
    ident = request_id(exchange)
    headers = [("dg-request-id", ident), ("dg-error", refusal.err_msg)]
    code, message = refusal.err_code, refusal.err_msg
    match refusal.shape:
        case "usual":
            value = {"err_code": code, "err_msg": message, "request_id": ident}
            await answer.send_json(refusal.status, value, headers)
        case "category":
            value = {"category": code, "message": message, "details": message, "request_id": ident}
            await answer.send_json(refusal.status, value, headers)
        case "text":
            headers.append(("Content-Type", "text/plain; charset=utf-8"))
            await answer.send(refusal.status, message.encode(), headers)


def check_auth(exchange: Exchange, api_key: str) -> Refusal | None:
    """Accept the key as `Token` and as `Bearer`."""
    scheme, _, key = exchange.headers.get("authorization", "").partition(" ")
    return None if scheme.lower() in ("token", "bearer") and key == api_key else INVALID_AUTH


def check_query(
    exchange: Exchange,
    allowed: Mapping[str, str],
    *,
    required: Collection[str] = (),
    repeatable: Collection[str] = (),
) -> Refusal | None:
    """Check names, values (against regular expressions) and repetition."""
    for name, value in exchange.query:
        if name not in allowed:
            return invalid_parameter(f"unknown field `{name}`")
        if not re.fullmatch(allowed[name], value, re.ASCII):
            return invalid_parameter(f"invalid value `{value}` for `{name}`")
    counts = Counter(name for name, _ in exchange.query)
    for name, count in counts.items():
        if count > 1 and name not in repeatable:
            return invalid_parameter(f"duplicate field `{name}`")
    for name in required:
        if name not in counts:
            return invalid_parameter(f"missing field `{name}`")
    return None
