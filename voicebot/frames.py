"""WebSocket frames of a server (RFC 6455): bytes in, messages out; and the frames that it sends.

Sans-IO, no compression. Not wsproto: a call's audio comes in 50 frames a second, which are all
alike, and for those each step counts (`bench/README.md`). What a peer can make this side hold is
bounded: a frame is measured by what its head says of it, before its body is waited for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from voicebot.limits import Bucket

_CONTINUATION: Final = 0
_TEXT: Final = 1
_BINARY: Final = 2
_CLOSE: Final = 8
_PING: Final = 9
_PONG: Final = 10
_CONTROL_BYTES: Final = 125  # at most, of a control frame
NO_CODE: Final = 1005  # what a close without a code counts as; never on the wire
ABNORMAL: Final = 1006  # the peer went without a close; never on the wire
_CODES: Final = frozenset({*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)})


@dataclass(frozen=True, slots=True)
class Ping:
    """To be answered by a pong of the same payload."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """The peer has closed; `code` is `NO_CODE` where it said none."""

    code: int
    reason: str


class Violation(Exception):
    """What a connection does not survive. `code` is to close with; `kind` is for the log."""

    def __init__(self, kind: str, code: int) -> None:
        self.kind, self.code = kind, code
        super().__init__(kind, code)


class Frames:
    """One connection's receiving side.

    `frames` and `bytes_` count what comes, before anything is done for it.
    """

    def __init__(self, largest: int, frames: Bucket, bytes_: Bucket) -> None:
        self._largest = largest  # of a message, in bytes
        self._frames, self._bytes = frames, bytes_
        self._buffer = bytearray()
        self._parts: list[bytes] = []
        self._size = 0  # of the parts
        self._kind = _CONTINUATION  # of the message whose parts they are; else nothing is open

    def feed(self, data: bytes | bytearray) -> None:
        """Take what was received."""
        self._buffer += data

    def next(self, now: float) -> str | bytes | Ping | Close | None:
        """Return the next message or order; None: more has to be received.

        Raises:
            Violation: the peer broke a rule or a limit; nothing can be read behind it.
        """
        while (frame := self._frame(now)) is not None:
            final, opcode, payload = frame
            if opcode >= _CLOSE:
                if opcode == _PING:
                    return Ping(payload)
                if opcode == _CLOSE:
                    return _close(payload)
                continue  # a pong: nobody has asked
            if (opcode == _CONTINUATION) is (self._kind == _CONTINUATION):
                raise Violation("bad_frame", 1002)  # no message is open, or one is
            if final and opcode:
                return _message(opcode, payload)
            self._kind = self._kind or opcode
            self._size += len(payload)
            self._parts.append(payload)
            if final:
                whole, kind = b"".join(self._parts), self._kind
                self._parts, self._size, self._kind = [], 0, _CONTINUATION
                return _message(kind, whole)
        return None

    def _frame(self, now: float) -> tuple[bool, int, bytes] | None:
        """Return the next frame, if all of it is there: whether it is final, opcode, payload."""
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        first, second = buffer[0], buffer[1]
        opcode, length, start = first & 0x0F, second & 0x7F, 6
        if first & 0x70 or not second & 0x80 or opcode not in _OPCODES:
            raise Violation("bad_frame", 1002)  # extensions, no mask, or what there is not
        if length >= 126:
            start = 8 if length == 126 else 14
            if len(buffer) < start - 4:
                return None
            length = int.from_bytes(buffer[2 : start - 4])
        if opcode >= _CLOSE and (length > _CONTROL_BYTES or not first & 0x80):
            raise Violation("bad_frame", 1002)
        if opcode < _CLOSE and self._size + length > self._largest:
            raise Violation("oversized_message", 1009)
        end = start + length
        if len(buffer) < end:
            return None
        if not self._frames.take(now):
            raise Violation("too_many_messages", 1008)
        if length and not self._bytes.take(now, length):
            raise Violation("too_many_bytes", 1008)
        payload = _unmasked(buffer, start, end)
        del buffer[:end]
        return bool(first & 0x80), opcode, payload


_OPCODES: Final = frozenset({_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG})


def _unmasked(buffer: bytearray, start: int, end: int) -> bytes:
    """Return the payload, by one operation on whole numbers: a loop costs 20 times as much."""
    size = end - start
    mask = bytes(buffer[start - 4 : start]) * (size // 4 + 1)
    plain = int.from_bytes(buffer[start:end]) ^ int.from_bytes(mask[:size])
    return plain.to_bytes(size)


def _message(kind: int, payload: bytes) -> str | bytes:
    if kind == _BINARY:
        return payload
    try:
        return payload.decode()
    except UnicodeDecodeError:
        raise Violation("not_utf8", 1007) from None


def _close(payload: bytes) -> Close:
    if not payload:
        return Close(NO_CODE, "")
    code = int.from_bytes(payload[:2])
    if len(payload) < 2 or code not in _CODES:
        raise Violation("bad_frame", 1002)
    try:
        return Close(code, payload[2:].decode())
    except UnicodeDecodeError:
        raise Violation("not_utf8", 1007) from None


# --- What a server sends: never masked


def text_frame(text: str) -> bytes:
    """Return a text message."""
    return _framed(_TEXT, text.encode())


def binary_frame(payload: bytes) -> bytes:
    """Return a binary message."""
    return _framed(_BINARY, payload)


def pong_frame(payload: bytes) -> bytes:
    """Return the answer to a ping."""
    return _framed(_PONG, payload)


def close_frame(code: int, reason: str = "") -> bytes:
    """Return a close; `NO_CODE` has none, and a reason is cut to what fits."""
    if code == NO_CODE:
        return _framed(_CLOSE, b"")
    told = reason.encode()[: _CONTROL_BYTES - 2].decode("utf-8", "ignore").encode()
    return _framed(_CLOSE, code.to_bytes(2) + told)


def _framed(opcode: int, payload: bytes) -> bytes:
    size = len(payload)
    if size < 126:
        return bytes((0x80 | opcode, size)) + payload
    if size < 65_536:
        return bytes((0x80 | opcode, 126)) + size.to_bytes(2) + payload
    return bytes((0x80 | opcode, 127)) + size.to_bytes(8) + payload
