"""What a refusal means, by its status, its error object and its headers."""

from __future__ import annotations

from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicebot.errors import RequestTooLong
from voicebot.refusals import MAX_WAIT_S, refusal


def limited(message: str = "Slow down.", limit: str = "tokens") -> dict[str, Any]:
    return {"message": message, "type": limit, "code": "rate_limit_exceeded"}


RESET: Final[Any] = {
    "x_ratelimit_reset_tokens": "7.66s",
    "x_ratelimit_reset_requests": "2m59.56s",
}


def wait(error: object = None, status: int = 429, **headers: str) -> float | None:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return refusal(limited() if error is None else error, status, named).retry_after_s


# When to come back


@pytest.mark.parametrize(
    "value, seconds",
    [
        ("2", 2.0),
        ("0", 0.0),
        ("2.5", 2.5),
        ("86400", 86_400.0),
        ("Fri, 06 Nov 2026 12:00:07 GMT", 7.0),
        ("", None),
        ("soon", None),
        ("-1", None),
        ("nan", None),
        ("inf", None),
        ("1e3", None),
        ("٣", None),
        ("86401", None),
        ("9" * 400, None),
        ("Fri, 06 Nov 2026 11:59:59 GMT", None),
        ("Fri, 06 Nov 2026 12:00:07 -0000", None),
        ("Fri, 06 Nov 99999999999999999999 12:00:07 GMT", None),
    ],
)
def test_header_is_seconds_or_a_date_and_else_ignored(value: str, seconds: float | None) -> None:
    assert wait(retry_after=value, date="Fri, 06 Nov 2026 12:00:00 GMT") == seconds


def test_a_date_means_nothing_without_the_servers_own() -> None:
    assert wait(retry_after="Fri, 06 Nov 2026 12:00:07 GMT") is None


@pytest.mark.parametrize(
    "message, seconds",
    [
        ("Limit 8000, Used 7000, Requested 2000. Please try again in 2.5s. Need more?", 2.5),
        ("Please try again in 7m12s.", 432.0),
        ("Please Try Again in 1h2m3.5s. Visit https://example.com", 3_723.5),
        ("try again in 240ms", 0.24),
        ("try again in 6m0s", 360.0),
        ("try again in 1d", 86_400.0),
        ("try again in 2d", None),
        ("try again in a while", None),
        ("try again in 5", None),
        ("try again", None),
    ],
)
def test_the_message_says_when(message: str, seconds: float | None) -> None:
    assert wait(limited(message)) == (None if seconds is None else pytest.approx(seconds))


def test_the_first_source_that_makes_sense_counts() -> None:
    said = limited("try again in 3s")
    assert wait(said, retry_after="2", **RESET) == 2
    assert wait(said, retry_after="never", **RESET) == 3
    assert wait(**RESET) == 7.66


@pytest.mark.parametrize(
    "limit, seconds", [("tokens", 7.66), ("requests", 179.56), ("", 179.56), ([], 179.56)]
)
def test_the_reset_of_the_limit_that_was_reached_counts(limit: Any, seconds: float) -> None:
    assert wait(limited(limit=limit), **RESET) == pytest.approx(seconds)


@pytest.mark.parametrize("value", ["", "soon", "7.66", "s", "-7s", "7s!"])
def test_a_reset_that_is_none_is_ignored(value: str) -> None:
    assert wait(x_ratelimit_reset_tokens=value) is None


def test_resets_say_nothing_where_no_limit_was_reached() -> None:
    assert wait("overloaded", 503, x_ratelimit_reset_tokens="7s") is None
    assert wait("overloaded", 503, retry_after="7") == 7


def test_the_wait_is_said() -> None:
    assert "rate limit" in str(refusal(limited("try again in 7m12s"), 429))
    assert str(refusal(limited("try again in 7m12s"), 429)).endswith("; retry after 432 s")


# Whether to ask again


@pytest.mark.parametrize(
    "error, status, retryable",
    [
        ({"code": "tool_use_failed"}, 400, True),
        ({"code": "json_validate_failed"}, 400, True),
        ({"code": "tool_use_failed", "type": "invalid_request_error"}, 0, True),
        ({"code": "blocked_api_access"}, 400, False),
        ({}, 422, False),
        ({}, 424, False),
        ({}, 408, True),
        ({}, 499, False),
        ({}, 500, True),
        ("<html>", 503, True),
        ({}, 0, True),
        ("overloaded", 0, True),
        ({"type": "invalid_request_error"}, 0, False),
        ({"status_code": 401}, 0, False),
        ({"status_code": 503, "type": "invalid_request_error"}, 0, True),
        ({"code": 400, "type": "BadRequestError"}, 0, False),
        ({"code": 500}, 0, True),
        ({"code": 7}, 0, True),
        (None, 400, False),
        ([], 400, False),
    ],
)
def test_what_may_be_asked_again(error: object, status: int, retryable: bool) -> None:
    assert refusal(error, status).retryable is retryable


@pytest.mark.parametrize(
    "error, status",
    [
        (limited("Request too large for model `m`: Limit 8000, Requested 9000"), 413),
        (limited("Request too large for m on TPM: Limit 30000, Requested 342389"), 429),
        ({"message": "x", "code": "context_length_exceeded"}, 400),
        ({"message": "x", "type": "exceed_context_size_error", "code": 400}, 400),
        ({"message": "This model's maximum context length is 8192 tokens", "code": 400}, 400),
        ({"message": "Please reduce the length of the messages or completion."}, 0),
        ("<html>", 413),
    ],
)
def test_what_is_too_long_is_told_apart_and_not_waited_for(error: object, status: int) -> None:
    refused = refusal(error, status, {"retry-after": "2"})

    assert isinstance(refused, RequestTooLong)
    assert (refused.retryable, refused.retry_after_s) == (False, None)
    assert "VOICEBOT_CONTEXT_TOKENS" in str(refused)


def test_a_limit_reached_is_not_too_long() -> None:
    assert not isinstance(refusal(limited("Used 7900, Requested 200"), 429), RequestTooLong)


# What to do about it


@pytest.mark.parametrize(
    "code, status, advice",
    [
        ("model_not_found", 404, "VOICEBOT_GROQ_MODEL and VOICEBOT_GROQ_FALLBACK_MODELS"),
        ("model_decommissioned", 400, "VOICEBOT_GROQ_MODEL and VOICEBOT_GROQ_FALLBACK_MODELS"),
        ("model_decommissioned", 0, "VOICEBOT_GROQ_MODEL and VOICEBOT_GROQ_FALLBACK_MODELS"),
        ("blocked_api_access", 400, "spend limit"),
        (None, 404, "GROQ_BASE_URL"),
        ("invalid_api_key", 401, "GROQ_API_KEY"),
    ],
)
def test_it_says_what_to_do(code: str | None, status: int, advice: str) -> None:
    error = {"message": "no", "code": code}

    assert advice in str(refusal(error, status))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=3,
)
names = st.sampled_from(["message", "type", "code", "status_code"])


@given(
    json_values | st.dictionaries(names, json_values),
    st.integers(400, 599) | st.just(0),
    st.dictionaries(
        st.sampled_from(["retry-after", "date", "x-ratelimit-reset-tokens"]),
        st.text() | st.datetimes().map("{:%a, %d %b %Y %H:%M:%S %z}".format),
    ),
)
def test_no_refusal_is_beyond_understanding(
    error: object, status: int, headers: dict[str, str]
) -> None:
    refused = refusal(error, status, headers)

    assert refused.retry_after_s is None or 0 <= refused.retry_after_s <= MAX_WAIT_S
    assert len(str(refused)) < 700
