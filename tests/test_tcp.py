"""The quick TCP stream: the same bytes, the same errors, and nobody held up by who never waits."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import pytest
import trio
import trio.testing

from voicebot.tcp import TURN_SENDS, QuickStream


@dataclass
class Ends:
    quick: QuickStream
    peer: trio.SocketStream


@pytest.fixture
async def ends() -> AsyncGenerator[Ends]:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        peer = await trio.testing.open_stream_to_socket_listener(listener)
        stream = await listener.accept()
    async with stream, peer:
        yield Ends(QuickStream(stream), peer)


async def test_bytes_arrive_both_ways_in_order(ends: Ends) -> None:
    sent = bytes(range(256)) * 8_000  # more than a kernel's buffer takes at once
    received = bytearray()

    async def echo() -> None:
        while data := await ends.peer.receive_some():
            await ends.peer.send_all(data)

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo)
            nursery.start_soon(ends.quick.send_all, sent)
            while len(received) < len(sent):
                received += await ends.quick.receive_some(10_000)
            nursery.cancel_scope.cancel()

    assert received == sent


async def test_one_read_is_no_longer_than_asked_for_and_the_end_is_empty(ends: Ends) -> None:
    with trio.fail_after(5):
        await ends.peer.send_all(b"abcdef")
        assert await ends.quick.receive_some(4) == b"abcd"
        assert await ends.quick.receive_some() == b"ef"
        await ends.peer.send_eof()
        assert await ends.quick.receive_some() == b""


async def test_a_false_alarm_is_waited_behind(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    async def alarmed(sock: int) -> None:
        await trio.sleep(0.001)

    monkeypatch.setattr(trio.lowlevel, "wait_readable", alarmed)
    received = []

    async def receive() -> None:
        received.append(await ends.quick.receive_some())

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await trio.sleep(0.01)
            assert not received
            await ends.peer.send_all(b"a")

    assert received == [b"a"]


async def test_what_the_kernel_does_not_take_is_left_to_the_sender(ends: Ends) -> None:
    block, taken = bytes(65_536), 0
    while sent := ends.quick.send_now(block):
        taken += sent
        assert taken < 100_000_000

    with trio.move_on_after(0.05) as patience:
        await ends.quick.send_all(block)

    assert patience.cancelled_caught  # it waits for the peer, and can be cancelled


async def test_who_sends_without_end_lets_others_run(ends: Ends) -> None:
    steps = 0

    async def other() -> None:
        nonlocal steps
        while True:
            await trio.lowlevel.checkpoint()
            steps += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await trio.lowlevel.checkpoint()
        before = steps
        for _ in range(10 * TURN_SENDS):
            await ends.quick.send_all(b"a")
        assert steps - before >= 5
        nursery.cancel_scope.cancel()
    with trio.fail_after(5):
        received = b""
        while len(received) < 10 * TURN_SENDS:
            received += await ends.peer.receive_some()
    assert received == b"a" * 10 * TURN_SENDS


async def test_a_peer_that_has_gone_breaks_the_stream(ends: Ends) -> None:
    ends.peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    ends.peer.socket.close()  # a reset

    with trio.fail_after(5):
        with pytest.raises(trio.BrokenResourceError):
            await ends.quick.receive_some()
        with pytest.raises(trio.BrokenResourceError):
            ends.quick.send_now(b"a")
        with pytest.raises(trio.BrokenResourceError):
            await ends.quick.send_all(b"a")


async def test_a_stream_that_is_closed_says_so_to_who_waits_and_who_comes(ends: Ends) -> None:
    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await ends.quick.receive_some()

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            await ends.quick.aclose()
        await wait()
        with pytest.raises(trio.ClosedResourceError):
            ends.quick.send_now(b"a")


async def test_the_rest_is_as_of_any_stream(ends: Ends) -> None:
    with trio.fail_after(5):
        await ends.quick.wait_send_all_might_not_block()
        await ends.quick.send_all(b"last")
        await ends.quick.send_eof()
        assert await ends.peer.receive_some() == b"last"
        assert await ends.peer.receive_some() == b""
