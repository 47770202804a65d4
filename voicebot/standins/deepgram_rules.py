"""What both directions of the Deepgram stand-in check, and how they refuse.

Strict on purpose: a parameter the vendor does not document is refused, and so is every audio
format but the telephone's, because that is all these stand-ins can hear and say.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from voicebot.standins.http11 import Answer, Exchange

ANY: Final = ".+"
BOOL: Final = "true|false"


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error answer of Deepgram."""

    status: int
    err_code: str
    err_msg: str


INVALID_AUTH: Final = Refusal(401, "INVALID_AUTH", "Invalid credentials.")
PAYMENT_REQUIRED: Final = Refusal(402, "ASR_PAYMENT_REQUIRED", "Project has no credits left.")
TOO_MANY_REQUESTS: Final = Refusal(429, "TOO_MANY_REQUESTS", "Too many requests.")
INTERNAL: Final = Refusal(500, "INTERNAL_SERVER_ERROR", "Something went wrong.")
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
    """Answer with an error in Deepgram's usual shape."""
    ident = request_id(exchange)
    await answer.send_json(
        refusal.status,
        {"err_code": refusal.err_code, "err_msg": refusal.err_msg, "request_id": ident},
        [("dg-request-id", ident), ("dg-error", refusal.err_msg)],
    )


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
