"""What the messages of a transcription turn into on a bad day.

Each fault is made from a message that is well, and mostly sent *before* it, so that a client
which skips what it does not understand misses nothing. Nothing here knows what a message means,
but for what is interim: `is_final` and `alternatives` of v1, `event` of v2. JSON objects of other
endpoints may be garbled, too.
"""

from __future__ import annotations

import json
from typing import Any, Literal

Message = dict[str, Any]

Garble = Literal[
    "malformed-json",  # half of it, then it
    "no-object",  # JSON, but a list
    "binary-message",  # the same, but not as text
    "broken-frame",  # bytes that are no WebSocket frame: no connection survives it
    "unknown-type",  # one of a type that nobody has documented
    "unknown-fields",  # with fields that nobody has documented
    "missing-fields",  # nothing but its type
    "wrong-types",  # text for numbers, numbers for text, …
    "no-alternatives",  # instead of an interim result: one without any text
    "error-message",  # one that says that something failed, though nothing does
    "duplicate",  # twice
    "reordered",  # an interim result once more, after the final one that replaced it
]

BROKEN_FRAME = b"\xff\xff\xff\xff"  # reserved bits, an opcode of the future, masked


class Garbler:
    """The messages of one connection."""

    def __init__(self, garble: Garble | None) -> None:
        self._garble = garble
        self._interim: Message | None = None

    def turn(self, message: Message) -> list[str | bytes]:
        """Return what goes out for this message: texts and binary messages, in order."""
        text = json.dumps(message)
        match self._garble:
            case "malformed-json":
                return [text[: len(text) // 2], text]
            case "no-object":
                return [f"[{text}]", text]
            case "binary-message":
                return [text.encode(), text]
            case "unknown-type":
                return [json.dumps({**message, "type": "Heartbeat"}), text]
            case "unknown-fields":
                return [json.dumps({**message, "mood": {"of": ["the", "caller", None]}})]
            case "missing-fields":
                return [json.dumps({"type": message["type"]}), text]
            case "wrong-types":
                return [json.dumps({**_other_type(message), "type": message["type"]}), text]
            case "no-alternatives" if message.get("is_final") is False:
                return [json.dumps({**message, "channel": {"alternatives": []}})]
            case "error-message":
                return [json.dumps(_ERROR), text]
            case "duplicate":
                return [text, text]
            case "reordered":
                return [text, *self._late(message)]
            case _:
                return [text]

    def _late(self, message: Message) -> list[str | bytes]:
        if message.get("is_final") is False or message.get("event") in ("Update", "StartOfTurn"):
            self._interim = message
            return []
        late, self._interim = self._interim, None
        return [] if late is None else [json.dumps(late)]


# In Deepgram's SDK; its specification has none for v1.
_ERROR = {
    "type": "Error",
    "variant": "INTERNAL",
    "description": "Something went wrong.",
    "message": "Something went wrong.",
    "code": "INTERNAL_SERVER_ERROR",
}


def _other_type(value: Any) -> Any:
    """Return a value of another type, in every place."""
    match value:
        case dict():
            return {name: _other_type(inner) for name, inner in value.items()}
        case list():
            return {str(n): _other_type(inner) for n, inner in enumerate(value)}
        case bool():
            return "yes" if value else "no"
        case str():
            return len(value)
        case _:
            return str(value)
