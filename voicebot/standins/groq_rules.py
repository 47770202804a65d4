"""What the Groq stand-in checks, and how it refuses.

Strict on purpose: a property the vendor does not document is refused, and so is a model that
is gone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from voicebot.standins.http11 import Answer, Exchange, Headers

MODELS: Final = frozenset(("openai/gpt-oss-20b", "openai/gpt-oss-120b", "qwen/qwen3.8-27b"))
GONE: Final = frozenset(
    ("llama-3.1-8b-instant", "llama-3.3-70b-versatile", "qwen/qwen3-32b", "qwen/qwen3.6-27b")
)
ROLES: Final = frozenset(("system", "developer", "user", "assistant", "tool"))
MAX_TOOLS: Final = 128

_PROPERTIES: Final = frozenset(
    (
        "model",
        "messages",
        "stream",
        "stream_options",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "temperature",
        "top_p",
        "max_completion_tokens",
        "max_tokens",
        "stop",
        "seed",
        "response_format",
        "reasoning_effort",
        "reasoning_format",
        "include_reasoning",
        "service_tier",
        "disable_tool_validation",
        "user",
        "n",
    )
)


@dataclass(frozen=True, slots=True)
class ApiError:
    """An error answer of Groq. `retry_after_s` is sent with 429 only."""

    status: int
    message: str
    type: str
    code: str | None = None
    retry_after_s: int = 2

    def body(self) -> dict[str, Any]:
        """Return the error as JSON, on its own or inside a stream."""
        error = {"message": self.message, "type": self.type}
        return {"error": error if self.code is None else {**error, "code": self.code}}


INVALID_KEY: Final = ApiError(401, "Invalid API Key", "invalid_request_error", "invalid_api_key")
NOT_FOUND: Final = ApiError(404, "Unknown request URL.", "invalid_request_error", "unknown_url")
RATE_LIMITED: Final = ApiError(
    429,
    "Rate limit reached for model `openai/gpt-oss-20b` on tokens per minute (TPM). "
    "Please try again in 2s.",
    "tokens",
    "rate_limit_exceeded",
)
INTERNAL: Final = ApiError(500, "Internal Server Error", "internal_server_error")
UNAVAILABLE: Final = ApiError(503, "Service Unavailable", "internal_server_error")


def invalid_request(message: str, code: str | None = None, status: int = 400) -> ApiError:
    """Return the refusal of a body."""
    return ApiError(status, message, "invalid_request_error", code)


def usual_headers() -> list[tuple[str, str]]:
    """Return the limits every answer carries: requests a day, tokens a minute."""
    return [
        ("x-ratelimit-limit-requests", "14400"),
        ("x-ratelimit-limit-tokens", "250000"),
        ("x-ratelimit-remaining-requests", "14399"),
        ("x-ratelimit-remaining-tokens", "249000"),
        ("x-ratelimit-reset-requests", "6s"),
        ("x-ratelimit-reset-tokens", "240ms"),
    ]


async def refuse(answer: Answer, error: ApiError) -> None:
    """Answer with an error."""
    headers: Headers = usual_headers()
    if error.status == 429:
        headers = [*headers, ("retry-after", str(error.retry_after_s))]
    await answer.send_json(error.status, error.body(), headers)


def check_body(exchange: Exchange) -> tuple[dict[str, Any], ApiError | None]:
    """Return the body and what is wrong with it."""
    try:
        body = json.loads(exchange.body)
    except ValueError:
        return {}, invalid_request("The body is not valid JSON.")
    if not isinstance(body, dict):
        return {}, invalid_request("The body must be an object.")
    return body, _problem(body)


def _problem(body: dict[str, Any]) -> ApiError | None:
    model, messages = body.get("model"), body.get("messages")
    if unknown := sorted(set(body) - _PROPERTIES):
        return invalid_request(f"property '{unknown[0]}' is unsupported")
    if model in GONE:
        message = f"The model `{model}` has been decommissioned and is no longer supported."
        return invalid_request(message, "model_decommissioned")
    if model not in MODELS:
        message = f"The model `{model}` does not exist or you do not have access to it."
        return invalid_request(message, "model_not_found", 404)
    if not isinstance(messages, list) or not messages:
        return invalid_request("'messages' : minimum number of items is 1")
    for n, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            return invalid_request(f"'messages.{n}' : 'role' is missing or unknown")
        if not isinstance(message.get("content"), str | list) and not message.get("tool_calls"):
            return invalid_request(f"'messages.{n}' : property 'content' is missing")
    if body.get("n", 1) != 1:
        return invalid_request("'n' : number must be at most 1")
    if len(body.get("tools") or ()) > MAX_TOOLS:
        return invalid_request(f"'tools' : maximum number of items is {MAX_TOOLS}")
    if "include_reasoning" in body and "reasoning_format" in body:
        return invalid_request("include_reasoning and reasoning_format are mutually exclusive")
    if body.get("reasoning_format") == "raw" and body.get("tools"):
        return invalid_request("reasoning_format `raw` cannot be used with tools")
    return None
