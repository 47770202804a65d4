"""An application's WebSocket over a stream in memory."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.test_frames import frames, masked
from voicebot.frames import close_frame, pong_frame, text_frame
from voicebot.upgraded import READ_ON_S, READ_ON_TIMES, PeerGone, Upgraded


class Ends:
    """A peer's end of a WebSocket, and what it was written."""

    def __init__(self) -> None:
        self.peer, stream = trio.testing.memory_stream_one_way_pair()
        self.written: list[bytes] = []
        self.takes = True
        self.socket = Upgraded(stream, self._write, frames(), "peer")

    async def _write(self, data: bytes) -> bool:
        await trio.lowlevel.checkpoint()
        self.written.append(data)
        return self.takes


@pytest.fixture
def ends() -> Ends:
    return Ends()


def text(said: str) -> dict[str, str]:
    return {"type": "websocket.receive", "text": said}


async def test_messages_that_came_at_once_let_others_run(ends: Ends) -> None:
    rounds = 0

    async def other() -> None:
        nonlocal rounds
        while True:
            await trio.lowlevel.checkpoint()
            rounds += 1

    await ends.peer.send_all(masked(0x81, b"a") * 30)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        assert [await ends.socket.receive() for _ in range(30)] == [text("a")] * 30
        assert rounds >= 25
        nursery.cancel_scope.cancel()


async def test_a_receive_that_was_cancelled_loses_nothing(
    ends: Ends, autojump_clock: trio.testing.MockClock
) -> None:
    with trio.move_on_after(1):
        await ends.socket.receive()
    whole = masked(0x81, b"half")
    await ends.peer.send_all(whole[:7])
    with trio.move_on_after(1):
        await ends.socket.receive()
    await ends.peer.send_all(whole[7:] + masked(0x82, b"\0"))
    assert await ends.socket.receive() == text("half")
    assert await ends.socket.receive() == {"type": "websocket.receive", "bytes": b"\0"}


async def test_a_ping_is_answered_and_is_no_message(ends: Ends) -> None:
    await ends.peer.send_all(masked(0x89, b"there?") + masked(0x81, b"a"))
    assert await ends.socket.receive() == text("a")
    assert ends.written == [pong_frame(b"there?")]


async def test_the_peers_close_is_answered_and_told_again_and_again(ends: Ends) -> None:
    await ends.peer.send_all(masked(0x88, b"\x0f\xa0bye") + masked(0x81, b"late"))
    gone = {"type": "websocket.disconnect", "code": 4000}
    assert [await ends.socket.receive() for _ in range(2)] == [gone] * 2
    with pytest.raises(PeerGone):
        await ends.socket.send({"type": "websocket.send", "text": "a"})
    await ends.socket.end()
    assert ends.written == [close_frame(4000)]


async def test_our_close_waits_for_nothing_and_is_said_once(ends: Ends) -> None:
    await ends.socket.send({"type": "websocket.send", "text": "a"})
    await ends.socket.send({"type": "websocket.close", "code": 1000, "reason": "done"})
    await ends.peer.send_all(masked(0x81, b"on its way") + masked(0x88, b"\x03\xe8"))
    assert await ends.socket.receive() == text("on its way")
    assert (await ends.socket.receive())["code"] == 1000
    assert ends.written == [text_frame("a"), close_frame(1000, "done")]


async def test_a_peer_that_breaks_a_rule_is_told_and_read_no_further(ends: Ends) -> None:
    await ends.peer.send_all(b"\x81\x01a" + masked(0x81, b"b"))
    gone = {"type": "websocket.disconnect", "code": 1002}
    assert [await ends.socket.receive() for _ in range(2)] == [gone] * 2
    assert ends.written == [close_frame(1002)]


async def test_an_application_that_ends_without_a_word_has_failed(ends: Ends) -> None:
    await ends.socket.end()
    assert ends.written == [close_frame(1011)]
    assert ends.socket.ended.is_set()


async def test_an_end_of_the_stream_is_a_disconnect_that_nobody_is_told(ends: Ends) -> None:
    await ends.peer.aclose()
    assert (await ends.socket.receive())["code"] == 1006
    await ends.socket.end()
    assert ends.written == []


async def test_what_a_peer_said_before_it_went_is_received_although_nothing_can_be_sent(
    ends: Ends,
) -> None:
    ends.takes = False
    await ends.peer.send_all(masked(0x81, b"stop"))
    await ends.peer.aclose()
    await ends.socket.send({"type": "websocket.send", "bytes": b"a"})
    with pytest.raises(PeerGone):
        await ends.socket.send({"type": "websocket.send", "bytes": b"a"})
    assert await ends.socket.receive() == text("stop")
    assert (await ends.socket.receive())["code"] == 1006


async def test_it_is_known_since_when_the_application_waits(
    ends: Ends, autojump_clock: trio.testing.MockClock
) -> None:
    assert ends.socket.waits_since is None
    await trio.sleep(1)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ends.socket.receive)
        await trio.sleep(5)
        assert ends.socket.waits_since == began
        await ends.peer.send_all(masked(0x81, b"a"))
    assert ends.socket.waits_since is None


BAD = b"\x81\x01a"  # not masked


async def test_what_is_on_its_way_behind_a_violation_is_taken_for_a_moment(
    ends: Ends, autojump_clock: trio.testing.MockClock
) -> None:
    await ends.peer.send_all(BAD + b"and more")
    began = trio.current_time()

    assert (await ends.socket.receive())["code"] == 1002

    assert trio.current_time() - began == pytest.approx(READ_ON_S)
    assert ends.written == [close_frame(1002)]


async def test_a_peer_that_closes_behind_its_violation_is_not_waited_for(
    ends: Ends, autojump_clock: trio.testing.MockClock
) -> None:
    await ends.peer.send_all(BAD)
    await ends.peer.aclose()
    began = trio.current_time()

    assert (await ends.socket.receive())["code"] == 1002

    assert trio.current_time() == began


async def test_a_violator_that_never_stops_is_not_read_for_ever(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Endless(trio.abc.ReceiveStream):
        reads = 0

        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            await trio.lowlevel.checkpoint()
            self.reads += 1
            assert self.reads < 1_000
            return BAD

        async def aclose(self) -> None:
            pass

    async def write(data: bytes) -> bool:
        await trio.lowlevel.checkpoint()
        return True

    stream = Endless()
    socket = Upgraded(stream, write, frames(), "peer")

    assert (await socket.receive())["code"] == 1002

    assert stream.reads <= 1 + READ_ON_TIMES
