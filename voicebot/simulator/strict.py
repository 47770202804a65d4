"""Twilio's reading of what a server sends: to the letter, as its warnings 31950 and 31951 say.

Source: twilio.com/docs/voice/media-streams/websocket-messages; docs/api/errors/31950 and 31951.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any, Final

BINARY_MESSAGE: Final = 31950
INVALID_MESSAGE: Final = 31951

# Mu-law of speech has both signs, so half its bytes are above 0x7F: as many bytes as these
# that are all base64 letters are base64 a second time.
_BASE64_TWICE: Final = re.compile(rb"[A-Za-z0-9+/]{80,}={0,2}")


class InvalidMessage(Exception):
    """The message breaks Twilio's contract; `code` is the warning it would log."""

    def __init__(self, code: int, reason: str) -> None:
        self.code = code
        super().__init__(reason)


def read_message(message: str | bytes, stream_sid: str) -> tuple[str, str | bytes]:
    """Return the event and its content: the audio of media, the name of a mark, "" of clear.

    Raises:
        InvalidMessage: a binary message (31950), or one that is not JSON, has an unknown
            event, a field too many or too few or of a wrong kind, or another stream's sid.
    """
    if isinstance(message, bytes):
        raise InvalidMessage(BINARY_MESSAGE, "binary message; Twilio reads text only")
    try:
        body = json.loads(message)
    except (ValueError, RecursionError) as exc:  # RecursionError: a thousand brackets
        raise InvalidMessage(INVALID_MESSAGE, f"not JSON: {message[:80]!r}") from exc
    if not isinstance(body, dict):
        raise InvalidMessage(INVALID_MESSAGE, f"not a JSON object: {message[:80]!r}")
    event = body.get("event")
    match event:
        case "media":
            _require_fields(body, "message", {"event", "streamSid", "media"})
            _require_fields(body["media"], "media", {"payload"})
            content: str | bytes = _read_payload(body["media"]["payload"])
        case "mark":
            _require_fields(body, "message", {"event", "streamSid", "mark"})
            _require_fields(body["mark"], "mark", {"name"})
            content = body["mark"]["name"]
            if not isinstance(content, str):
                raise InvalidMessage(INVALID_MESSAGE, "mark.name is not a string")
        case "clear":
            _require_fields(body, "message", {"event", "streamSid"})
            content = ""
        case _:
            raise InvalidMessage(INVALID_MESSAGE, f"unknown event {event!r}")
    if body["streamSid"] != stream_sid:
        raise InvalidMessage(INVALID_MESSAGE, f"streamSid {body['streamSid']!r} is not this stream")
    return event, content


def _require_fields(body: Any, name: str, fields: set[str]) -> None:
    if not isinstance(body, dict):
        raise InvalidMessage(INVALID_MESSAGE, f"{name} is not an object")
    if missing := sorted(fields - body.keys()):
        raise InvalidMessage(INVALID_MESSAGE, f"{name} lacks {', '.join(missing)}")
    if extra := sorted(body.keys() - fields):
        raise InvalidMessage(INVALID_MESSAGE, f"{name} has unknown {', '.join(extra)}")


def _read_payload(payload: Any) -> bytes:
    if not isinstance(payload, str):
        raise InvalidMessage(INVALID_MESSAGE, "media.payload is not a string")
    try:
        audio = base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as exc:  # ValueError: characters outside ASCII
        raise InvalidMessage(INVALID_MESSAGE, "media.payload is not base64") from exc
    if _BASE64_TWICE.fullmatch(audio):
        raise InvalidMessage(INVALID_MESSAGE, "media.payload is base64 of base64")
    return audio
