"""What may be asked of a call that is to be placed, checked field by field.

Synchronous. `POST /calls` and `voicebot call` ask the same; `telephony.py` tells Twilio.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from voicebot.config import E164, Settings

RING_TIMEOUT_S: Final = 30  # about six rings; Twilio may add 5 s
METADATA_BYTES: Final = 8_192  # as JSON: a customer and an order, not a document
MESSAGE_CHARS: Final = 1_000  # a minute of speech; a machine records no more than two or three

Detection = Literal["off", "before", "during"]


@dataclass(frozen=True, slots=True)
class OutboundCall:
    """A call to place.

    `machine_detection`: whether Twilio listens for an answering machine, and when: "before" the
    bot speaks, which leaves people in silence for some seconds, or "during" what it says.
    `voicemail` is what the bot leaves on a machine, behind the beep; empty: it hangs up on one.
    `metadata` is the caller's own: given to the bot, and kept with the record.
    """

    to: str
    from_: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    ring_timeout_s: int = RING_TIMEOUT_S
    machine_detection: Detection = "off"
    voicemail: str = ""


def read_call(fields: Mapping[str, object], settings: Settings) -> OutboundCall | dict[str, str]:
    """Return the call that was asked for, or every problem of the request, by field."""
    default = {"from": settings.twilio_from_number} if settings.twilio_from_number else {}
    given = {**default, **fields}
    problems = {name: "is not a known field" for name in fields if name not in _CHECKS}
    for name, check in _CHECKS.items():
        if name in given:
            if problem := check(given[name]):
                problems[name] = problem
        elif name in {"to", "from"}:
            problems[name] = "is missing"
    if "voicemail" in fields and fields.get("machine_detection", "during") == "off":
        problems["voicemail"] = "needs machine_detection, which is off"
    if problems:
        return problems
    values: dict[str, Any] = {name.replace("from", "from_"): value for name, value in given.items()}
    if values.get("voicemail"):
        values.setdefault("machine_detection", "during")
    return OutboundCall(**values)


def missing_settings(settings: Settings, *, from_given: bool) -> list[str]:
    """Return the names of the settings without which no call can be placed."""
    needed = {
        "TWILIO_ACCOUNT_SID": settings.twilio_account_sid,
        "TWILIO_AUTH_TOKEN": settings.twilio_auth_token.get_secret_value(),
        "PUBLIC_URL": settings.public_url,
        "TWILIO_FROM_NUMBER": settings.twilio_from_number or from_given,
    }
    return [name for name, value in needed.items() if not value]


# What is wrong with a value, or nothing.


def _number(value: object) -> str:
    if not isinstance(value, str):
        return "must be text"
    return "" if E164.fullmatch(value) else "must be E.164: + and 7 to 15 digits, like +15550100123"


def _metadata(value: object) -> str:
    if not isinstance(value, dict):
        return 'must be a JSON object, like {"name": "Ada"}'
    size = len(json.dumps(value).encode())
    return "" if size <= METADATA_BYTES else f"has {size} bytes; {METADATA_BYTES} are allowed"


def _ring_timeout(value: object) -> str:
    known = isinstance(value, int) and not isinstance(value, bool) and 5 <= value <= 600
    return "" if known else "must be a whole number of seconds from 5 to 600"


def _detection(value: object) -> str:
    return "" if value in ("off", "before", "during") else "must be off, before or during"


def _voicemail(value: object) -> str:
    if not isinstance(value, str):
        return "must be text"
    return "" if len(value) <= MESSAGE_CHARS else f"is longer than {MESSAGE_CHARS} characters"


_CHECKS: Final[Mapping[str, Callable[[object], str]]] = {
    "to": _number,
    "from": _number,
    "metadata": _metadata,
    "ring_timeout_s": _ring_timeout,
    "machine_detection": _detection,
    "voicemail": _voicemail,
}
