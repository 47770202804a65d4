"""WebSocket frames against another implementation of RFC 6455, and against what it forbids."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto import ConnectionType
from wsproto.connection import Connection
from wsproto.events import BytesMessage, CloseConnection, Event, Message, TextMessage
from wsproto.events import Ping as TheirPing
from wsproto.events import Pong as TheirPong

from voicebot.frames import (
    NO_CODE,
    Close,
    Frames,
    Ping,
    Violation,
    binary_frame,
    close_frame,
    pong_frame,
    text_frame,
)
from voicebot.limits import Bucket

LARGEST = 100_000
MASK = b"\x01\x80\xff\x7f"


def frames(largest: int = LARGEST, per_s: float = 1e9, bytes_per_s: float = 1e9) -> Frames:
    return Frames(largest, Bucket(per_s, 1.0), Bucket(bytes_per_s, 1.0))


def everything(receiving: Frames) -> Iterator[str | bytes | Ping | Close]:
    while (message := receiving.next(0.0)) is not None:
        yield message


def masked(first: int, payload: bytes, length: int | None = None) -> bytes:
    """Return a frame of a client; `length`: what its head says, in the form that it asks for."""
    size = len(payload) if length is None else length
    if size < 126:
        head = bytes((first, 0x80 | size))
    elif size < 65_536:
        head = bytes((first, 0xFE)) + struct.pack("!H", size)
    else:
        head = bytes((first, 0xFF)) + struct.pack("!Q", size)
    return head + MASK + bytes(byte ^ MASK[i % 4] for i, byte in enumerate(payload))


def cut(data: bytes, at: list[int]) -> list[bytes]:
    ends = sorted({min(one, len(data)) for one in at})
    return [data[i:j] for i, j in zip([0, *ends], [*ends, len(data)], strict=True)]


said = st.lists(
    st.text(max_size=300)
    | st.binary(max_size=300)
    | st.builds(Ping, st.binary(max_size=125))
    | st.sampled_from(["é" * 40_000, b"\0" * 66_000]),
    max_size=6,
)


@given(said, st.lists(st.integers(0, 5_000), max_size=6), st.booleans(), st.data())
def test_what_another_client_says_comes_out_whole_and_in_order(
    messages: list[str | bytes | Ping], at: list[int], closes: bool, data: st.DataObject
) -> None:
    client = Connection(ConnectionType.CLIENT)
    wire = b""
    for message in messages:
        if isinstance(message, Ping):
            wire += client.send(TheirPing(payload=message.payload))
            wire += client.send(TheirPong(payload=b"for nobody"))
            continue
        parts = data.draw(st.integers(1, 3))
        size = max(1, len(message) // parts)
        for n in range(parts):
            part = message[n * size :] if n == parts - 1 else message[n * size : (n + 1) * size]
            last = n == parts - 1
            if isinstance(part, str):
                wire += client.send(TextMessage(data=part, message_finished=last))
            else:
                wire += client.send(BytesMessage(data=part, message_finished=last))
    if closes:
        wire += client.send(CloseConnection(code=3_000, reason="done"))
    receiving = frames(largest=200_000)
    heard: list[str | bytes | Ping | Close] = []
    for part in cut(wire, at):
        receiving.feed(part)
        heard += everything(receiving)
    assert heard == [*messages, *([Close(3_000, "done")] if closes else [])]


@given(st.text(max_size=70_000) | st.binary(max_size=200) | st.just(b"x" * 70_000))
def test_what_is_sent_is_read_by_another_client(message: str | bytes) -> None:
    client = Connection(ConnectionType.CLIENT)
    client.receive_data(text_frame(message) if isinstance(message, str) else binary_frame(message))
    heard: list[Event] = list(client.events())
    assert b"".join(_bytes(one) for one in heard) == (
        message.encode() if isinstance(message, str) else message
    )
    last = heard[-1]
    assert isinstance(last, Message)
    assert last.message_finished


def _bytes(event: Event) -> bytes:
    assert isinstance(event, Message)
    return event.data.encode() if isinstance(event.data, str) else bytes(event.data)


@pytest.mark.parametrize(
    "code,reason,heard",
    [(1000, "", (1000, "")), (1011, "é" * 100, (1011, "é" * 61)), (NO_CODE, "", (1005, None))],
)
def test_a_close_is_read_by_another_client(
    code: int, reason: str, heard: tuple[int, str | None]
) -> None:
    client = Connection(ConnectionType.CLIENT)
    client.receive_data(close_frame(code, reason) + pong_frame(b"never read"))
    [event] = client.events()
    assert isinstance(event, CloseConnection)
    assert (event.code, event.reason or heard[1]) == heard


def test_a_pong_is_read_by_another_client() -> None:
    client = Connection(ConnectionType.CLIENT)
    client.receive_data(pong_frame(b"there"))
    assert list(client.events()) == [TheirPong(payload=b"there")]


@pytest.mark.parametrize(
    "wire,kind,code",
    [
        (b"\x81\x05hello", "bad_frame", 1002),  # not masked
        (masked(0xC1, b"x"), "bad_frame", 1002),  # as if compressed
        (masked(0x83, b"x"), "bad_frame", 1002),  # an opcode that there is not
        (masked(0x80, b"x"), "bad_frame", 1002),  # goes on with nothing
        (masked(0x01, b"x") + masked(0x81, b"y"), "bad_frame", 1002),  # begins inside another
        (masked(0x09, b"x"), "bad_frame", 1002),  # a ping in parts
        (masked(0x89, b"", 126), "bad_frame", 1002),  # a ping that is too long
        (masked(0x88, b"\x03"), "bad_frame", 1002),  # half a code
        (masked(0x88, b"\x03\xed"), "bad_frame", 1002),  # 1005 is never on the wire
        (masked(0x88, b"\x03\xe8\xff"), "not_utf8", 1007),
        (masked(0x81, b"\xff"), "not_utf8", 1007),
        (masked(0x82, b"", LARGEST + 1), "oversized_message", 1009),
        (masked(0x82, b"", 1 << 62), "oversized_message", 1009),
        (masked(0x02, b"x" * 60_000) + masked(0x80, b"", 60_000), "oversized_message", 1009),
    ],
)
def test_what_a_connection_does_not_survive(wire: bytes, kind: str, code: int) -> None:
    receiving = frames()
    receiving.feed(wire)
    with pytest.raises(Violation) as caught:
        list(everything(receiving))
    assert (caught.value.kind, caught.value.code) == (kind, code)


def test_a_close_without_a_code() -> None:
    receiving = frames()
    receiving.feed(masked(0x88, b""))
    assert receiving.next(0.0) == Close(NO_CODE, "")


def test_every_frame_counts_and_so_does_every_byte() -> None:
    receiving = frames(per_s=3)
    receiving.feed(masked(0x01, b"") + masked(0x00, b"") * 9)
    with pytest.raises(Violation, match="too_many_messages"):
        receiving.next(0.0)
    receiving = frames(per_s=3)
    receiving.feed(masked(0x8A, b"") * 3)
    assert receiving.next(0.0) is None
    receiving.feed(masked(0x81, b"a"))
    assert receiving.next(1.0) == "a"

    receiving = frames(bytes_per_s=100)
    receiving.feed(masked(0x81, b"x" * 60) * 2)
    assert receiving.next(0.0) == "x" * 60
    with pytest.raises(Violation, match="too_many_bytes"):
        receiving.next(0.0)


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=4))
def test_whatever_comes_it_is_read_the_same_however_it_was_cut(wire: bytes, at: list[int]) -> None:
    def read(parts: list[bytes]) -> list[object]:
        receiving, heard = frames(), list[object]()
        try:
            for part in parts:
                receiving.feed(part)
                heard += everything(receiving)
        except Violation as exc:
            heard.append(exc.args)
        return heard

    assert read([wire]) == read(cut(wire, at))
