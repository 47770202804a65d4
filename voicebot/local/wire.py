"""The pipe between the service and its speech process: framing, and nothing else.

A message is 9 bytes of header (kind, request, length of the body; big-endian) and the body.
Both ends are this package, of one version, so anything odd is a bug and ends the stream.

    service -> worker   TRANSCRIBE mu-law · SPEAK text · CANCEL
    worker -> service   READY json · MISSING text · TEXT text · AUDIO mu-law · DONE · FAILED text

TRANSCRIBE is answered by one TEXT; SPEAK by any number of AUDIO and one DONE; either by FAILED
instead. CANCEL is not answered, and whatever is on its way for that request is ignored.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Final

from voicebot.errors import RemoteProtocolError

_HEADER: Final = struct.Struct("!BII")
MAX_BODY: Final = 1 << 20  # an utterance of 28 s is 224,000 bytes


class Kind(enum.IntEnum):
    """What a message is; see the module for who sends it."""

    READY = 1
    MISSING = 2
    TRANSCRIBE = 3
    SPEAK = 4
    CANCEL = 5
    TEXT = 6
    AUDIO = 7
    DONE = 8
    FAILED = 9


_KINDS: Final = frozenset(Kind)


@dataclass(frozen=True, slots=True)
class Message:
    """One message; `request` is 0 where it belongs to none."""

    kind: Kind
    request: int = 0
    body: bytes = b""

    def encode(self) -> bytes:
        """Return the bytes for the pipe."""
        return _HEADER.pack(self.kind, self.request, len(self.body)) + self.body


class Decoder:
    """Bytes in, however they were cut; whole messages out, in order."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def push(self, received: bytes | bytearray) -> list[Message]:
        """Return the messages that are complete now.

        Raises:
            RemoteProtocolError: not our protocol: something else writes into the pipe.
        """
        self._buffer += received
        messages: list[Message] = []
        start = 0
        while len(self._buffer) - start >= _HEADER.size:
            kind, request, length = _HEADER.unpack_from(self._buffer, start)
            if kind not in _KINDS or length > MAX_BODY:
                raise RemoteProtocolError("speech_pipe", f"kind {kind}, length {length}")
            end = start + _HEADER.size + length
            if len(self._buffer) < end:
                break
            body = bytes(memoryview(self._buffer)[start + _HEADER.size : end])
            messages.append(Message(Kind(kind), request, body))
            start = end
        del self._buffer[:start]
        return messages
