"""What the Groq stand-in checks, and how it refuses.

Strict on purpose: a property the vendor does not document is refused, and so is a model that
is gone, a tool call left unanswered, and arguments in the conversation that are no JSON object,
for which servers of the same protocol refuse it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final

from voicebot.standins.http11 import Answer, Exchange, Headers

MODELS: Final = frozenset(("openai/gpt-oss-20b", "openai/gpt-oss-120b", "qwen/qwen3.8-27b"))
GONE: Final = frozenset(
    ("llama-3.1-8b-instant", "llama-3.3-70b-versatile", "qwen/qwen3-32b", "qwen/qwen3.6-27b")
)
ROLES: Final = frozenset(("system", "developer", "user", "assistant", "tool"))
MAX_TOOLS: Final = 128

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_FUNCTION_PROPERTIES: Final = frozenset(("description", "parameters", "strict"))

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
    failed_generation: str | None = None  # what the model wrote

    def body(self) -> dict[str, Any]:
        """Return the error as JSON, on its own or inside a stream."""
        error = {
            "message": self.message,
            "type": self.type,
            "code": self.code,
            "failed_generation": self.failed_generation,
        }
        return {"error": {name: value for name, value in error.items() if value is not None}}


INVALID_KEY: Final = ApiError(401, "Invalid API Key", "invalid_request_error", "invalid_api_key")
NOT_FOUND: Final = ApiError(404, "Unknown request URL.", "invalid_request_error", "unknown_url")
RATE_LIMITED: Final = ApiError(
    429,
    "Rate limit reached for model `openai/gpt-oss-20b` on tokens per minute (TPM). "
    "Please try again in 2s.",
    "tokens",
    "rate_limit_exceeded",
)
TOO_LARGE: Final = ApiError(
    413,
    "Request too large for model `openai/gpt-oss-20b` on tokens per minute (TPM): Limit 8000, "
    "Requested 9216, please reduce your message size and try again.",
    "tokens",
    "rate_limit_exceeded",
)
UNASKED_CALL: Final = ApiError(
    400,
    "Tool choice is none, but model called a tool",
    "invalid_request_error",
    "tool_use_failed",
)
REQUESTS_LIMITED: Final = ApiError(
    429,
    "Rate limit reached for model `openai/gpt-oss-20b` on requests per day (RPD). "
    "Please try again in 2s.",
    "requests",
    "rate_limit_exceeded",
)
NO_JSON: Final = ApiError(
    400,
    "Failed to generate JSON. Please adjust your prompt. See 'failed_generation' for more details.",
    "invalid_request_error",
    "json_validate_failed",
    failed_generation='{"day": ',
)
BAD_CALL: Final = ApiError(
    400,
    "Failed to call a function. Please adjust your prompt. "
    "See 'failed_generation' for more details.",
    "invalid_request_error",
    "tool_use_failed",
    failed_generation='<function=hours>{"day": ',
)
BLOCKED: Final = ApiError(
    400,
    "API access has been blocked because the spend limit of the organization is reached.",
    "invalid_request_error",
    "blocked_api_access",
)
DECOMMISSIONED: Final = ApiError(
    400,
    "The model `openai/gpt-oss-20b` has been decommissioned and is no longer supported.",
    "invalid_request_error",
    "model_decommissioned",
)
BAD_REQUEST: Final = ApiError(400, "The request is malformed.", "invalid_request_error")
FORBIDDEN: Final = ApiError(
    403, "The API key does not have permission for this model.", "permissions_error"
)
NO_MODEL: Final = ApiError(
    404,
    "The model `openai/gpt-oss-20b` does not exist or you do not have access to it.",
    "invalid_request_error",
    "model_not_found",
)
UNPROCESSABLE: Final = ApiError(422, "Unprocessable Entity", "invalid_request_error")
FAILED_DEPENDENCY: Final = ApiError(424, "Failed Dependency", "invalid_request_error")
FLEX_FULL: Final = ApiError(
    498, "Flex tier capacity exceeded.", "capacity_exceeded", "capacity_exceeded"
)
INTERNAL: Final = ApiError(500, "Internal Server Error", "internal_server_error")
BAD_GATEWAY: Final = ApiError(502, "Bad Gateway", "internal_server_error")
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
    model = body.get("model")
    if unknown := sorted(set(body) - _PROPERTIES):
        return invalid_request(f"property '{unknown[0]}' is unsupported")
    if model in GONE:
        message = f"The model `{model}` has been decommissioned and is no longer supported."
        return invalid_request(message, "model_decommissioned")
    if model not in MODELS:
        message = f"The model `{model}` does not exist or you do not have access to it."
        return invalid_request(message, "model_not_found", 404)
    if wrong := _wrong_in_messages(body.get("messages")):
        return invalid_request(wrong)
    if "tools" in body and (wrong := _wrong_in_tools(body["tools"])):
        return invalid_request(f"'tools' : {wrong}")
    if body.get("n", 1) != 1:
        return invalid_request("'n' : number must be at most 1")
    if "include_reasoning" in body and "reasoning_format" in body:
        return invalid_request("include_reasoning and reasoning_format are mutually exclusive")
    if body.get("reasoning_format") == "raw" and body.get("tools"):
        return invalid_request("reasoning_format `raw` cannot be used with tools")
    return None


def _wrong_in_messages(messages: object) -> str:
    """Return what is wrong with the conversation; "" if nothing is."""
    if not isinstance(messages, list) or not messages:
        return "'messages' : minimum number of items is 1"
    unanswered: list[str] = []  # calls of the last message but for tools
    for n, message in enumerate(messages):
        at = f"'messages.{n}'"
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            return f"{at} : 'role' is missing or unknown"
        role, calls = message["role"], message.get("tool_calls")
        if not isinstance(message.get("content"), str | list) and not calls:
            return f"{at} : property 'content' is missing"
        if role != "assistant" and "tool_calls" in message:
            return f"{at} : for 'role:{role}' property 'tool_calls' is unsupported"
        if role != "tool" and "tool_call_id" in message:
            return f"{at} : for 'role:{role}' property 'tool_call_id' is unsupported"
        if role == "tool":
            if message.get("tool_call_id") not in unanswered:
                return f"{at} : 'tool_call_id' is none of the tool calls directly before it"
            unanswered.remove(message["tool_call_id"])
        elif unanswered:
            return f"{at} : the tool call '{unanswered[0]}' before it has no answer"
        if "tool_calls" in message:
            if wrong := _wrong_in_calls(calls):
                return f"{at} : 'tool_calls' : {wrong}"
            unanswered = [call["id"] for call in calls or ()]
    return f"'messages' : the tool call '{unanswered[0]}' has no answer" if unanswered else ""


def _wrong_in_calls(calls: object) -> str:
    if not isinstance(calls, list) or not calls:
        return "minimum number of items is 1"
    for call in calls:
        match call:
            case {
                "id": str(ident),
                "type": "function",
                "function": {"name": str(name), "arguments": str(arguments)},
            } if ident and _NAME.fullmatch(name):
                if not _is_object(arguments):
                    return f"arguments of '{ident}' must be a JSON object as text"
            case _:
                return "a call is an id, the type 'function', and a function with its arguments"
    if len({call["id"] for call in calls}) < len(calls):
        return "ids must differ"
    return ""


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _wrong_in_tools(tools: object) -> str:
    """Return what is wrong with the functions offered; "" if nothing is."""
    if not isinstance(tools, list) or not tools:
        return "minimum number of items is 1"
    if len(tools) > MAX_TOOLS:
        return f"maximum number of items is {MAX_TOOLS}"
    for n, tool in enumerate(tools):
        match tool:
            case {"type": "function", "function": {"name": str(name), **rest}, **more}:
                if not _NAME.fullmatch(name):
                    return f"{n} : a name has up to 64 letters, digits, underscores and dashes"
                if unknown := [*more, *(set(rest) - _FUNCTION_PROPERTIES)]:
                    return f"{n} : property '{unknown[0]}' is unsupported"
                if not isinstance(rest.get("description", ""), str):
                    return f"{n} : 'description' must be text"
                if wrong := _wrong_in_schema(rest.get("parameters", {"type": "object"})):
                    return f"{n} : 'parameters' : {wrong}"
            case _:
                return f"{n} : a tool is the type 'function' and a function with a name"
    if len({tool["function"]["name"] for tool in tools}) < len(tools):
        return "names must differ"
    return ""


def _wrong_in_schema(schema: object) -> str:
    """Return what is wrong with the outermost level of a JSON schema; "" if nothing is."""
    if not isinstance(schema, dict) or schema.get("type") != "object":
        return "must be the schema of an object"
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, dict) or not all(
        isinstance(of, dict | bool) for of in properties.values()
    ):
        return "'properties' must be schemas by name"
    if not isinstance(required, list) or not all(
        isinstance(name, str) and name in properties for name in required
    ):
        return "'required' must be names of properties"
    return ""
