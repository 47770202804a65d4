"""The wire of chat completions, as Groq and others speak it: messages out, pieces in.

Sans-IO. Nothing but `delta.content` is ever spoken, and of that no thought (`thoughts.py`). Tool
calls come whole or in pieces, as the server likes.

Source: Groq's pages "openai" and "tool-use"; its SDK's `chat_completion_chunk.py`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Final

from voicebot import ports, sse
from voicebot.errors import ProviderError
from voicebot.refusals import PROVIDER, refusal
from voicebot.thoughts import Thoughts

# Far above what a function of a telephone bot takes; a model gone wild stops here.
MAX_CALLS: Final = 16
MAX_ARGUMENTS_CHARS: Final = 32_768

#: The ends of an answer that the model itself chose.
REGULAR_ENDS: Final = frozenset({"stop", "tool_calls"})


def encode_message(message: ports.Message) -> dict[str, Any]:
    """Return one entry of `messages`."""
    fields: dict[str, Any] = {"role": message.role, "content": _whole(message.content)}
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


def _whole(text: str) -> str:
    """Return a text without halves of characters, which JSON can say and UTF-8 cannot.

    They come where a server cuts an emoji in two; one that is kept spoils every later request.
    """
    return text if text.isascii() else text.encode("utf-8", "ignore").decode()


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
    """A part of a tool call, or a whole one. The first of a call has a name."""

    index: int | None = None
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
        if event.name == "error":
            raise refusal(event.data) from exc
        raise _garbled(f"unintelligible chunk: {exc!r:.120}") from exc
    if error or event.name == "error":
        raise refusal(error or fields)
    return Piece(_whole(text), str(finish_reason), pieces)


def _garbled(message: str) -> ProviderError:
    """Return the error for what nobody can read, which need not come out so again."""
    return ProviderError(PROVIDER, message, retryable=True)


def _call_piece(call: dict[str, Any]) -> CallPiece:
    function = call.get("function") or {}
    index = call.get("index")
    texts = call.get("id") or "", function.get("name") or "", function.get("arguments") or ""
    if not (isinstance(index, int | None) and all(isinstance(text, str) for text in texts)):
        raise TypeError("a tool call of wrong types")
    return CallPiece(index, *map(_whole, texts))


@dataclass(slots=True)
class _Call:
    """A tool call being put together."""

    id: str
    name: str
    index: int | None
    pieces: list[str] = field(default_factory=list)
    chars: int = 0

    @property
    def arguments(self) -> str:
        return "".join(self.pieces)

    def add(self, arguments: str) -> None:
        # Some servers say a call once more when it is whole.
        if len(arguments) == self.chars and arguments == self.arguments and _is_object(arguments):
            return
        self.chars += len(arguments)
        if self.chars > MAX_ARGUMENTS_CHARS:
            raise _garbled(f"arguments of over {MAX_ARGUMENTS_CHARS} characters")
        self.pieces.append(arguments)


class Assembler:
    """Pieces of one answer in; text as it comes and, at a regular end, whole tool calls out.

    The pieces of several calls may come in any order. One belongs to the call that has its id,
    else to the newest with its index, or without an index to the newest of all. A name begins a
    call, unless it only repeats that of one which is not whole.

    The calls of an answer that was cut off or failed never come out: nobody knows which of them
    are whole, and what else was to be.
    """

    def __init__(self) -> None:
        self._thoughts = Thoughts()
        self._calls: list[_Call] = []
        self._newest: dict[int | None, _Call] = {}  # by index

    def feed(self, piece: Piece) -> list[str | ports.ToolCall]:
        """Take what one event adds; return what is complete.

        Raises:
            ProviderError: a call begins without a name, or there is too much of it.
        """
        text = self._thoughts.feed(piece.text) if piece.text else ""
        for call in piece.calls:
            self._call_of(call).add(call.arguments)
        if piece.finish_reason:
            text += self._thoughts.flush()
        parts: list[str | ports.ToolCall] = [text] if text else []
        if piece.finish_reason in REGULAR_ENDS:
            calls, self._calls = self._calls, []
            parts += [
                ports.ToolCall(call.id or f"call_{n}", call.name, call.arguments or "{}")
                for n, call in enumerate(calls)
            ]
        return parts

    def _call_of(self, piece: CallPiece) -> _Call:
        for call in self._calls:
            if piece.id and (call.id, call.index) == (piece.id, piece.index):
                return call
        newest = self._newest.get(piece.index)
        if newest is not None:
            # Some servers give every piece of a call another id, and only the first a name.
            if not piece.name:
                return newest
            # Some give no id, and every call index 0 or none; some repeat the name.
            again = bool(piece.arguments) and _is_object(newest.arguments)
            if not piece.id and piece.name == newest.name and not again:
                return newest
        return self._begin(piece)

    def _begin(self, piece: CallPiece) -> _Call:
        if not piece.name:
            raise _garbled("a tool call without a name")
        if len(self._calls) == MAX_CALLS:
            raise _garbled(f"more than {MAX_CALLS} tool calls in one answer")
        call = _Call(piece.id, piece.name, piece.index)
        self._calls.append(call)
        self._newest[piece.index] = self._newest[None] = call
        return call
