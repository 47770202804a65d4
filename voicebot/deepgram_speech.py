"""Deepgram's wire: speech over the WebSocket of `v1/speak`, where one follows the other.

Sans-IO: no socket, no clock of its own, no logging. What a socket may be asked is limited by
Deepgram for each minute, so the count of that is kept here, too.

Source: deepgram-api-specs (asyncapi.yml) of 2026-07-22; developers.deepgram.com pages
"tts-websocket", "tts-text-chunking", "api-rate-limits".
"""

from __future__ import annotations

import enum
import json
import re
from collections import deque
from typing import Final, Literal
from urllib.parse import urlencode

from voicebot import audio
from voicebot.deepgram import TTS, Skipped, check_speech_text
from voicebot.errors import ProviderError, ProviderRejected

FLUSH: Final = '{"type":"Flush"}'
CLEAR: Final = '{"type":"Clear"}'
CLOSE: Final = '{"type":"Close"}'

WINDOW_S: Final = 62.0  # Deepgram's minute, and what its clock may differ by on the way
MAX_CHARS: Final = 2_400  # in a minute; beyond, it closes the socket
MAX_FLUSHES: Final = 20  # in a minute; beyond, it warns, and may leave one unanswered

_CODE: Final = re.compile(r"\b[A-Z]+-\d{4}\b")
# RFC 6455, 7.4.1, and Deepgram's reasons: what the client did would be wrong again.
_FINAL_CODES: Final = frozenset({1002, 1003, 1007, 1008, 1009, 1010})
_QUOTA: Final = "DATA-0001"  # 1008 as well, but a new socket begins with a new quota

Ended = Literal["flushed", "cleared"]


def speech_url(base_url: str, *, model: str) -> str:
    """Return the ws(s) address of a speech socket under an http(s) base. It has no `container`."""
    query = {"model": model, "encoding": "mulaw", "sample_rate": audio.RATE_HZ}
    return f"ws{base_url.removeprefix('http').rstrip('/')}/v1/speak?{urlencode(query)}"


def speak_message(text: str) -> str:
    """Return the message that asks for a text to be spoken, once it is flushed.

    Raises:
        LocalProtocolError: nothing to say, or more than one message may hold.
    """
    check_speech_text(text)
    return json.dumps({"type": "Speak", "text": text})


class _State(enum.Enum):
    IDLE = enum.auto()
    SPEAKING = enum.auto()
    CLEARING = enum.auto()


class Speaking:
    """One socket: what a message of its server means for the piece that is being spoken.

    | state    | audio    | Flushed             | Cleared |
    |----------|----------|---------------------|---------|
    | idle     | skipped  | skipped             | skipped |
    | speaking | is heard | ends the piece, (1) | skipped |
    | clearing | skipped  | skipped             | ends it |

    Both ends lead to idle. (1) Whether a piece that was cleared still gets its Flushed is
    documented nowhere. One that comes before any audio is taken for that, until a piece has
    ended in the usual way: what was sent before it has come by then.
    """

    def __init__(self) -> None:
        self._state = _State.IDLE
        self._heard = False  # audio of this piece
        self._cleared_pieces = 0  # whose Flushed may be on its way
        self._asked: deque[tuple[float, int]] = deque()  # when, how many characters

    @property
    def idle(self) -> bool:
        """Whether the socket has nothing to say any more, so that the next piece may begin."""
        return self._state is _State.IDLE

    def may_speak(self, chars: int, now: float) -> bool:
        """Whether so many characters and a flush are within what a minute allows."""
        while self._asked and self._asked[0][0] <= now - WINDOW_S:
            self._asked.popleft()
        spoken = sum(count for _, count in self._asked)
        return len(self._asked) < MAX_FLUSHES and spoken + chars <= MAX_CHARS

    def speak(self, chars: int, now: float) -> None:
        """Note that a piece is about to be asked for."""
        assert self.idle
        self._asked.append((now, chars))
        self._state, self._heard = _State.SPEAKING, False

    def clear(self) -> None:
        """Note that the piece is about to be cleared."""
        assert self._state is _State.SPEAKING
        self._cleared_pieces += 1
        self._state = _State.CLEARING

    def receive(self, message: str | bytes) -> bytes | Ended | Skipped:
        """Return audio of the piece, how the piece ended, or why the message is of no use."""
        if isinstance(message, bytes):
            return self._audio(message)
        try:
            fields = json.loads(message)
        except (ValueError, RecursionError) as exc:
            return Skipped("not_json", str(exc)[:80])
        if not isinstance(fields, dict):
            return Skipped("not_an_object")
        match fields.get("type"):
            case "Flushed":
                return self._flushed()
            case "Cleared":
                return self._cleared()
            case "Metadata":
                return Skipped("metadata")
            case "Warning":
                # The spec's names, and those that were seen on the wire.
                code = fields.get("code") or fields.get("warn_code")
                said = fields.get("description") or fields.get("warn_msg")
                return Skipped("warning", f"{code}: {said}"[:200])
            case "Error":
                return Skipped("error", message[:200])
            case other:
                return Skipped("unknown_type", str(other)[:40])

    def _audio(self, message: bytes) -> bytes | Skipped:
        if self._state is not _State.SPEAKING:
            return Skipped("late_audio", f"{len(message)} bytes")
        if not message:
            return Skipped("empty_audio")
        self._heard = True
        return message

    def _flushed(self) -> Ended | Skipped:
        if self._state is not _State.SPEAKING:
            return Skipped("late_flushed")
        if self._cleared_pieces and not self._heard:
            self._cleared_pieces -= 1
            return Skipped("late_flushed")
        self._state, self._cleared_pieces = _State.IDLE, 0
        return "flushed"

    def _cleared(self) -> Ended | Skipped:
        if self._state is not _State.CLEARING:
            return Skipped("stray_cleared")
        self._state = _State.IDLE
        return "cleared"


def closed(code: int, reason: str) -> ProviderError:
    """Return the error for a speech socket that Deepgram closed or that was lost."""
    if code == 1006 and not reason:  # RFC 6455, 7.1.5: no close frame came
        return ProviderError(TTS, "the connection was lost", retryable=True)
    found = _CODE.search(reason)
    name = found.group() if found else None
    said = " ".join(reason.split())[:200]
    return ProviderRejected(
        TTS,
        f"the speech socket was closed with {code} {said}".rstrip(),
        code=name or code,
        retryable=name == _QUOTA or code not in _FINAL_CODES,
    )
