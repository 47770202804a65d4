"""What the Twilio stand-in checks, and how it refuses: the API's older error format."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from voicebot.standins.http11 import Answer, Exchange

TWIML_CHARS: Final = 4_000

_NUMBER: Final = re.compile(r"\+[1-9][0-9]{6,14}", re.ASCII)
_URL: Final = re.compile(r"https?://[^/]")
_ADDRESS: Final = re.compile(r"(client|sip):\S+")


@dataclass(frozen=True, slots=True)
class ApiError:
    """An error answer of Twilio."""

    status: int
    code: int
    message: str

    def about(self, subject: str) -> ApiError:
        """Return the same error with `{}` in its message filled in."""
        return replace(self, message=self.message.format(subject))


AUTHENTICATE: Final = ApiError(401, 20003, "Authenticate")
NOT_FOUND: Final = ApiError(404, 20404, "The requested resource {} was not found")
# No page says with what HTTP status this one comes.
TOO_MANY_CALLS: Final = ApiError(429, 10004, "Call concurrency limit exceeded")
INTERNAL: Final = ApiError(500, 20500, "An internal server error has occurred")
UNAVAILABLE: Final = ApiError(503, 20503, "Service unavailable")
TOO_MANY_REQUESTS: Final = ApiError(429, 20429, "Too Many Requests")
NO_TO: Final = ApiError(400, 21201, "No 'To' number is specified")
NO_FROM: Final = ApiError(400, 21213, "No 'From' number is specified")
NO_URL: Final = ApiError(400, 21205, "Url parameter is required.")
UNVERIFIED_FROM: Final = ApiError(
    400,
    21210,
    "The source phone number provided, {}, is not yet verified for your account. "
    "You may only make calls from phone numbers that you've verified or purchased from Twilio.",
)
INVALID_TO: Final = ApiError(
    400, 21211, "The phone number you are attempting to call, {}, is not valid."
)
INVALID_FROM: Final = ApiError(400, 21212, "The source phone number provided, {}, is not valid.")
NO_PERMISSION: Final = ApiError(
    400, 21215, "Account not authorized to call {}. Perhaps you need to enable some permissions."
)
UNVERIFIED_TO: Final = ApiError(
    400,
    21219,
    "The number {} is unverified. Trial accounts may only make calls to verified numbers.",
)
UNVERIFIED_TO_TRIAL: Final = ApiError(
    400, 573005, "The number is unverified. Trial accounts may only call verified numbers."
)
NOT_IN_PROGRESS: Final = ApiError(400, 21220, "Call is not in-progress. Cannot redirect.")
NOT_CANCELABLE: Final = ApiError(400, 21220, "Call is in-progress. Cannot cancel.")
TWIML_TOO_LONG: Final = ApiError(400, 32018, "Twiml parameter is longer than 4000 characters.")

# The first two of each are Twilio's own test numbers; the others are free inventions in the
# same range, for the errors that have none.
MAGIC_TO: Final = {
    "+15005550001": INVALID_TO,
    "+15005550003": NO_PERMISSION,
    "+15005550009": UNVERIFIED_TO,
    "+15005550029": TOO_MANY_REQUESTS,
}
MAGIC_FROM: Final = {
    "+15005550001": INVALID_FROM,
    "+15005550007": UNVERIFIED_FROM,
}


async def refuse(answer: Answer, error: ApiError) -> None:
    """Answer with an error."""
    await answer.send_json(
        error.status,
        {
            "code": error.code,
            "message": error.message,
            "more_info": f"https://www.twilio.com/docs/errors/{error.code}",
            "status": error.status,
        },
    )


def check_auth(exchange: Exchange, account_sid: str, auth_token: str) -> bool:
    """Return whether the basic credentials are the account's."""
    scheme, _, encoded = exchange.headers.get("authorization", "").partition(" ")
    try:
        given = base64.b64decode(encoded, validate=True).decode()
    except ValueError:  # not base64, or not text inside
        return False
    return scheme.lower() == "basic" and given == f"{account_sid}:{auth_token}"


def check_create(
    form: Mapping[str, str],
    refuse_to: Mapping[str, ApiError],
    refuse_from: Mapping[str, ApiError],
) -> ApiError | None:
    """Return what is wrong with the fields of a new call."""
    to, from_ = form.get("To", ""), form.get("From", "")
    twiml = form.get("Twiml", "")
    if not to:
        return NO_TO
    if not from_:
        return NO_FROM
    if to in refuse_to:
        return refuse_to[to].about(to)
    if from_ in refuse_from:
        return refuse_from[from_].about(from_)
    if not _NUMBER.fullmatch(to) and not _ADDRESS.fullmatch(to):
        return INVALID_TO.about(to)
    if not _NUMBER.fullmatch(from_):
        return INVALID_FROM.about(from_)
    if len(twiml) > TWIML_CHARS:
        return TWIML_TOO_LONG
    if not twiml and "ApplicationSid" not in form and not _URL.match(form.get("Url", "")):
        return NO_URL
    return None
