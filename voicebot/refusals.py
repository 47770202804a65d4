"""What a chat server's refusal means: whether to ask again, when, and what to do about it.

Sans-IO. The same error object is the body of a refused request and, once an answer has begun,
an event of its stream. Nothing here waits or asks again.

Source: Groq's pages "errors" and "rate-limits"; RFC 9110, 10.2.3 "Retry-After".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Final

from voicebot.errors import ProviderRejected, RequestTooLong

PROVIDER: Final = "groq"
MAX_WAIT_S: Final = 86_400.0  # the longest limit is one of tokens a day; more is no answer

# What the model wrote was wrong. It is sampled, so the same request often goes well.
_SAMPLED: Final = frozenset({"tool_use_failed", "json_validate_failed"})
_LATER: Final = frozenset({408, 409, 429, 498})  # 498: the flex tier is full for now

_TOO_LONG_CODES: Final = frozenset({"context_length_exceeded", "exceed_context_size_error"})
# Groq answers 413 "rate_limit_exceeded" to what is above a minute's tokens, others 429 or 400.
_TOO_LONG: Final = re.compile(
    r"request too large|reduce (?:the length|your message size)|maximum context length", re.I
)

_MODEL: Final = (
    "set VOICEBOT_GROQ_MODEL and VOICEBOT_GROQ_FALLBACK_MODELS to models that the server at "
    "GROQ_BASE_URL has (GET /openai/v1/models lists them)"
)
_ADVICE: Final = {
    "model_not_found": _MODEL,
    "model_decommissioned": _MODEL,
    "blocked_api_access": "the spend limit of this Groq organisation is reached",
    401: "check GROQ_API_KEY",
    403: "this key may not use this model",
    404: "check VOICEBOT_GROQ_MODEL and GROQ_BASE_URL",
    429: "the rate limit of this Groq organisation is used up",
}
_TOO_LONG_ADVICE: Final = "the conversation is too long: lower VOICEBOT_CONTEXT_TOKENS"

_PART: Final = r"([0-9]+(?:\.[0-9]+)?)(ms|[dhms])"
_UNITS_S: Final = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_SPAN: Final = re.compile(rf"(?:{_PART})+")  # 2m59.56s
_SAID: Final = re.compile(rf"try again in ((?:{_PART})+)", re.I)
_SECONDS: Final = re.compile(r"[0-9]+(?:\.[0-9]+)?")


def refusal(
    error: object, status: int = 0, headers: Mapping[str, str] | None = None
) -> ProviderRejected:
    """Return the error that an error object of any shape stands for.

    Args:
        status: of the response; 0 where the error came in the stream of an answer.
        headers: of the response, by names in lower case.
    """
    fields: Mapping[str, Any] = error if isinstance(error, dict) else {}
    code, said = describe(error)
    where = f"refused with {status}" if status else "failed in mid-answer"
    status = status or _status_in(fields)
    too_long = status == 413 or code in _TOO_LONG_CODES or _TOO_LONG.search(said) is not None
    wait = None if too_long else _wait(fields, status, headers or {})
    advice = _TOO_LONG_ADVICE if too_long else _ADVICE.get(code or "") or _ADVICE.get(status, "")
    later = "" if wait is None else f"retry after {wait:g} s"
    return (RequestTooLong if too_long else ProviderRejected)(
        PROVIDER,
        "; ".join(filter(None, (where, said, advice, later))),
        status=status,
        code=code,
        retryable=not too_long and _retryable(fields, status, code),
        retry_after_s=wait,
    )


def describe(error: object) -> tuple[str | None, str]:
    """Return code and one line of an error object of any shape."""
    if isinstance(error, dict):
        # Some give the status again as the code, and the word as the type.
        words = [word for name in ("code", "type") if isinstance(word := error.get(name), str)]
        code = next(filter(None, words), None)
        # `failed_generation` holds what the model said, so only these two are repeated.
        said = f"{code or ''} {error.get('message') or ''}"
        return code, " ".join(said.split())[:300]
    # A proxy in between may answer with a page of HTML.
    return None, " ".join(str(error or "").split())[:300]


def _retryable(fields: Mapping[str, Any], status: int, code: str | None) -> bool:
    if code in _SAMPLED:
        return True
    if status:
        return status in _LATER or status >= 500
    # In the middle of an answer nothing can be wrong with the request, unless it says so.
    return fields.get("type") != "invalid_request_error"


def _status_in(fields: Mapping[str, Any]) -> int:
    """Return the HTTP status that an error in a stream would have had; 0 if it does not say."""
    for name in ("status_code", "code"):
        if isinstance(value := fields.get(name), int) and 400 <= value < 600:
            return value
    return 0


def _wait(fields: Mapping[str, Any], status: int, headers: Mapping[str, str]) -> float | None:
    """Return the first wait that makes sense, the most exact source first."""
    for seconds in _waits(fields, status, headers):
        if seconds is not None and 0 <= seconds <= MAX_WAIT_S:
            return seconds
    return None


def _waits(
    fields: Mapping[str, Any], status: int, headers: Mapping[str, str]
) -> Iterator[float | None]:
    given = headers.get("retry-after", "")
    yield float(given) if _SECONDS.fullmatch(given) else _until(given, headers.get("date", ""))
    said = _SAID.search(str(fields.get("message")))
    yield _span(said[1]) if said else None
    if status == 429:  # these headers come with every answer
        limit = fields.get("type")
        limits = (limit,) if limit in ("tokens", "requests") else ("tokens", "requests")
        spans = [_span(headers.get(f"x-ratelimit-reset-{limit}", "")) for limit in limits]
        yield max((span for span in spans if span is not None), default=None)


def _span(text: str) -> float | None:
    if not _SPAN.fullmatch(text):
        return None
    return sum(float(number) * _UNITS_S[unit] for number, unit in re.findall(_PART, text))


def _until(date: str, now: str) -> float | None:
    """Return the seconds between two dates of one server, whose clock need not be ours."""
    try:
        return (parsedate_to_datetime(date) - parsedate_to_datetime(now)).total_seconds()
    except (ValueError, TypeError, OverflowError):  # TypeError: only one of them names its zone
        return None
