"""The wire of chat completions, as Groq and others speak it: messages out, pieces in.

Sans-IO. Nothing but `delta.content` is ever spoken: reasoning is not. Tool calls come whole
or in pieces, as the server likes.

Source: Groq's pages "openai" and "tool-use"; its SDK's `chat_completion_chunk.py`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from voicebot import ports, sse
from voicebot.errors import ProviderError

PROVIDER: Final = "groq"

# Far above what a function of a telephone bot takes; a model gone wild stops here.
MAX_CALLS: Final = 16
MAX_ARGUMENTS_CHARS: Final = 32_768

#: The ends of an answer that the model itself chose.
REGULAR_ENDS: Final = frozenset({"stop", "tool_calls"})


def encode_message(message: ports.Message) -> dict[str, Any]:
    """Return one entry of `messages`."""
    fields: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        fields["tool_calls"] = [_encode_call(call) for call in message.tool_calls]
        if not message.content:
            del fields["content"]  # an empty one is a text to some servers
    if message.role == "tool":
        fields["tool_call_id"] = message.tool_call_id
    return fields


def _encode_call(call: ports.ToolCall) -> dict[str, Any]:
    # Servers parse these again, and refuse the whole conversation, now and ever after, for
    # what their own model wrote: vLLM, SGLang and llama.cpp do.
    arguments = call.arguments if _is_object(call.arguments) else "{}"
    function = {"name": call.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def encode_tool(tool: ports.Tool) -> dict[str, Any]:
    """Return one entry of `tools`."""
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": dict(tool.parameters),
    }
    return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class CallPiece:
    """A part of a tool call, or a whole one. The first of a call has `id` and `name`."""

    index: int = 0
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class Piece:
    """What one event adds to an answer; often nothing. The text comes before the calls."""

    text: str = ""
    finish_reason: str = ""
    calls: tuple[CallPiece, ...] = ()


DONE: Final = Piece(finish_reason="stop")  # `[DONE]` where the server gave no finish_reason


def read_event(event: sse.Event) -> Piece:
    """Return what one event of a chat completion says.

    Raises:
        ProviderError: it says that the answer failed, or says nothing intelligible.
    """
    if event.data == "[DONE]":
        return DONE
    try:
        fields = json.loads(event.data)
        error = fields.get("error") or (fields.get("x_groq") or {}).get("error")
        choices = fields.get("choices")
        choice = choices[0] if choices else {}  # the chunk with `usage` has an empty list
        delta = choice.get("delta") or {}
        text = "" if delta.get("channel") == "analysis" else delta.get("content") or ""
        finish_reason = choice.get("finish_reason") or ""
        calls = delta.get("tool_calls")
        pieces = tuple(_call_piece(call) for call in calls) if calls else ()
        if not isinstance(text, str):
            raise TypeError("content is no text")
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as exc:
        raise ProviderError(PROVIDER, f"unintelligible chunk: {exc!r:.120}") from exc
    if error or event.name == "error":
        raise ProviderError(
            PROVIDER, f"failed in mid-answer: {describe(error or fields)[1]}", retryable=True
        )
    return Piece(text, str(finish_reason), pieces)


def _call_piece(call: dict[str, Any]) -> CallPiece:
    function = call.get("function") or {}
    index = call.get("index") or 0
    texts = call.get("id") or "", function.get("name") or "", function.get("arguments") or ""
    if not (isinstance(index, int) and all(isinstance(text, str) for text in texts)):
        raise TypeError("a tool call of wrong types")
    return CallPiece(index, *texts)


def describe(error: object) -> tuple[str | None, str]:
    """Return code and one line of an error object of any shape."""
    if isinstance(error, dict):
        code = error.get("code") or error.get("type")
        # `failed_generation` holds what the model said, so only these two are repeated.
        said = f"{code or ''} {error.get('message') or ''}"
        return (str(code) if code else None), " ".join(said.split())[:300]
    # A proxy in between may answer with a page of HTML.
    return None, " ".join(str(error or "").split())[:300]


class Assembler:
    """Pieces of one answer in; text as it comes and whole tool calls out, in the model's order.

    A call is whole when the next one or text begins, or at a regular end. One that a limit or
    the end of the stream cut off never comes out: nobody knows what it was to be.
    """

    def __init__(self) -> None:
        self._open: CallPiece | None = None  # the first piece of the call that is not whole yet
        self._arguments: list[str] = []
        self._chars = 0
        self._calls = 0

    def feed(self, piece: Piece) -> list[str | ports.ToolCall]:
        """Take what one event adds; return what is complete.

        Raises:
            ProviderError: a call begins without id or name, or there is too much of it.
        """
        parts: list[str | ports.ToolCall] = []
        if piece.text:
            parts += self._close()
            parts.append(piece.text)
        for call in piece.calls:
            # Some servers give every call index 0, so another id begins another call too.
            if (
                self._open is None
                or call.index != self._open.index
                or call.id not in {"", self._open.id}
            ):
                parts += self._close()
                self._begin(call)
            self._chars += len(call.arguments)
            if self._chars > MAX_ARGUMENTS_CHARS:
                raise ProviderError(PROVIDER, f"arguments of over {MAX_ARGUMENTS_CHARS} characters")
            self._arguments.append(call.arguments)
        if piece.finish_reason in REGULAR_ENDS:
            parts += self._close()
        return parts

    def _begin(self, call: CallPiece) -> None:
        if not (call.id and call.name):
            raise ProviderError(PROVIDER, "a tool call without id or name")
        self._calls += 1
        if self._calls > MAX_CALLS:
            raise ProviderError(PROVIDER, f"more than {MAX_CALLS} tool calls in one answer")
        self._open, self._arguments, self._chars = call, [], 0

    def _close(self) -> list[ports.ToolCall]:
        call, self._open = self._open, None
        if call is None:
            return []
        return [ports.ToolCall(call.id, call.name, "".join(self._arguments) or "{}")]
