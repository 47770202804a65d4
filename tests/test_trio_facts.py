"""Facts about Trio, and the libraries on it, that this code relies on: reminders that can fail.

One fact a test; the comment in it names where it is relied on. Virtual time, no thread but where
threads are the fact, no socket but a socket pair. Where the order of ready tasks matters, seeds
decide it, or every order is tried. A new version of Trio that breaks one of these breaks the
bot, probably without an error.
"""

from __future__ import annotations

import gc
import math
import socket
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from contextvars import ContextVar

import pytest
import trio
import trio.testing
import trio_websocket
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, Request

from voicebot.testing import run_seeded

Clock = trio.testing.MockClock
SEEDS = range(30)


# ------------------------------------------------------------------ order


def test_ready_tasks_run_in_any_order() -> None:
    # nursery.py: order comes from structure, "cancel, join, clear", and not from who began first.
    async def race() -> str:
        order: list[str] = []

        async def run(name: str) -> None:
            order.append(name)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, "a")
            nursery.start_soon(run, "b")
        return "".join(order)

    assert {run_seeded(seed, race) for seed in SEEDS} == {"ab", "ba"}


async def test_start_soon_runs_nothing_before_the_next_checkpoint() -> None:
    # deepgram_socket.py, _serve_websocket: "begun" is set one line before it is true.
    ran: list[str] = []

    async def run() -> None:
        ran.append("child")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        ran.append("parent")
    assert ran == ["parent", "child"]


async def test_an_await_that_does_not_block_lets_nobody_run() -> None:
    # floor.py, Bell: "check, then wait" is one step, through however many coroutines.
    ran = False

    async def run() -> None:
        nonlocal ran
        ran = True

    async def step() -> None: ...

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        for _ in range(10):
            await step()
        assert not ran


async def test_a_lock_is_given_in_the_order_of_asking_and_not_to_who_was_cancelled() -> None:
    # serving.py, _write: wsproto numbers frames before the lock is asked for.
    lock = trio.Lock()
    written: list[str] = []

    async def write(name: str, scope: trio.CancelScope) -> None:
        with scope:
            async with lock:
                written.append(name)

    scopes = {name: trio.CancelScope() for name in "abcd"}
    async with trio.open_nursery() as nursery:
        async with lock:
            for name, scope in scopes.items():
                nursery.start_soon(write, name, scope)
                await trio.testing.wait_all_tasks_blocked()
            scopes["b"].cancel()
    assert written == ["a", "c", "d"]


# ------------------------------------------------------------------ channels


@pytest.mark.parametrize("cancel_first", [True, False])
async def test_a_cancelled_send_on_a_channel_was_handed_over_or_was_not(cancel_first: bool) -> None:
    # nursery.py, _speak: speaking is cancelled in `outbound.send`; media is never lost or doubled.
    send, receive = trio.open_memory_channel[str](0)
    returned = False

    async def speak(scope: trio.CancelScope) -> None:
        nonlocal returned
        with scope:
            await send.send("media")
            returned = True

    scope = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(speak, scope)
        await trio.testing.wait_all_tasks_blocked()
        # One synchronous step, in both orders: the sender itself runs only after it.
        if cancel_first:
            scope.cancel()
        received = []
        try:
            received.append(receive.receive_nowait())
        except trio.WouldBlock:
            pass
        scope.cancel()
    assert received == ([] if cancel_first else ["media"])
    assert returned is not cancel_first


def test_a_cancelled_send_on_a_channel_is_atomic_in_every_interleaving() -> None:
    # nursery.py, _speak: as above, with the writer and the canceller racing as they do there.
    async def race() -> tuple[int, int]:
        send, receive = trio.open_memory_channel[int](0)
        sent = received = 0

        async def speak() -> None:
            nonlocal sent
            while True:
                await send.send(sent)
                sent += 1

        async def write() -> None:
            nonlocal received
            async for item in receive:
                assert item == received
                received += 1
                if received == 5:
                    stop.set()

        async def listen() -> None:
            await stop.wait()
            speaking.cancel()

        stop = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            nursery.start_soon(listen)
            with send, trio.CancelScope() as speaking:
                await speak()
        return sent, received

    outcomes = {run_seeded(seed, race) for seed in SEEDS}
    assert all(sent == received for sent, received in outcomes)
    assert len(outcomes) > 1, "the seeds must have tried more than one order"


async def test_a_send_on_a_channel_returns_before_the_receiver_has_acted() -> None:
    # nursery.py, _end_epoch waits for `done`; _speak counts what is handed over but not written.
    send, receive = trio.open_memory_channel[str](0)
    gate = trio.Event()
    acted = False

    async def write() -> None:
        nonlocal acted
        await receive.receive()
        await gate.wait()
        acted = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await send.send("media")
        assert not acted
        with pytest.raises(trio.WouldBlock):
            send.send_nowait("the next one waits for the receiver")
        gate.set()


async def test_a_closed_channel_gives_what_it_holds_and_then_ends() -> None:
    # nursery.py, _think closes `pieces`: synthesis still speaks the sentences that wait there.
    send, receive = trio.open_memory_channel[str](2)
    with send:
        await send.send("one")
        await send.send("two")
    assert [piece async for piece in receive] == ["one", "two"]


async def test_closing_a_channel_drops_what_waits_for_room_and_keeps_what_had_it() -> None:
    # serving.py, _Exchange.put: the disconnect overtakes messages for an application that is full.
    send, receive = trio.open_memory_channel[str](1)
    await send.send("queued")

    async def put() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await send.send("waits for room")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(put)
        await trio.testing.wait_all_tasks_blocked()
        send.close()
    assert [message async for message in receive] == ["queued"]


async def test_a_cancelled_sender_sees_its_cancellation_and_not_the_closed_receiver() -> None:
    # nursery.py, _synth: cancels think, then closes its channel; think must not see it broken.
    send, receive = trio.open_memory_channel[str](0)

    async def think(scope: trio.CancelScope, ready: trio.Event) -> None:
        with scope:
            await ready.wait()
            await send.send("piece")  # would raise BrokenResourceError

    for parked in (True, False):
        scope, ready = trio.CancelScope(), trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(think, scope, ready)
            if parked:
                ready.set()
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
            receive.close()
            ready.set()
        assert scope.cancelled_caught


# ------------------------------------------------------------------ streams


BIG = 4 * 1024 * 1024  # more than the buffers of a socket pair


@contextmanager
def open_pair() -> Iterator[tuple[trio.SocketStream, socket.socket]]:
    """Give two ends of a connection: one on Trio, one that a test reads by hand."""
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        far.setblocking(False)
        yield trio.SocketStream(trio.socket.from_stdlib_socket(near)), far


def arrived(far: socket.socket) -> bytes:
    """Return all that has arrived."""
    data = bytearray()
    try:
        while True:
            data += far.recv(1_000_000)
    except BlockingIOError:
        return bytes(data)


async def test_a_cancelled_send_on_a_socket_leaves_half_a_message() -> None:
    # nursery.py: only the writer sends, in no scope of a turn (I5); serving.py, _write.
    with open_pair() as (stream, far):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, bytes(BIG))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert 0 < len(arrived(far)) < BIG


async def test_two_senders_on_one_stream_are_an_error() -> None:
    # serving.py, _write: why there is a lock, and what it means to meet a stream being closed.
    with open_pair() as (stream, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, bytes(BIG))
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await stream.send_all(b"x")
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("how", ["aclose_forcefully", "socket.close"])
async def test_closing_a_socket_wakes_who_reads_from_it(how: str) -> None:
    # serving.py, _write drops the transport under the reader; deepgram_socket.py, _open_stream
    # closes it.
    with open_pair() as (stream, _):

        async def read() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await stream.receive_some()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            if how == "socket.close":
                stream.socket.close()
            else:
                await trio.aclose_forcefully(stream)


async def test_a_cancelled_send_of_trio_websocket_spoils_the_next_message_silently() -> None:
    # deepgram_socket.py: `_sending` stays up after a cancelled send; no farewell goes out.
    server = WSConnection(ConnectionType.SERVER)

    with open_pair() as (stream, far):

        async def upgrade() -> None:
            await trio.testing.wait_all_tasks_blocked()
            server.receive_data(arrived(far))
            assert isinstance(next(iter(server.events())), Request)
            far.sendall(server.send(AcceptConnection()))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(upgrade)
            websocket = await trio_websocket.wrap_client_stream(nursery, stream, "localhost", "/")
            async with trio.open_nursery() as sending:
                sending.start_soon(websocket.send_message, bytes(BIG))
                await trio.testing.wait_all_tasks_blocked()
                sending.cancel_scope.cancel()
            torn = arrived(far)
            await websocket.send_message("clear")  # no error
            rest = arrived(far)
            nursery.cancel_scope.cancel()

    assert rest
    server.receive_data(torn + rest)
    seen = list(server.events())
    # The bytes of the text are inside the message before it, which goes on.
    assert seen
    messages = [event for event in seen if isinstance(event, BytesMessage)]
    assert len(messages) == len(seen)
    assert not messages[-1].message_finished


# ------------------------------------------------------------------ cancelling


async def test_cancel_is_synchronous_and_what_is_synchronous_still_goes_through() -> None:
    # floor.py, interrupt is one step; nursery.py, run_call: `on_end` records a cancelled call.
    send, receive = trio.open_memory_channel[str](1)
    event = trio.Event()
    with trio.CancelScope() as scope:
        scope.cancel()
        send.send_nowait("published")
        event.set()
        await trio.lowlevel.checkpoint()
        event = trio.Event()  # not reached
    assert scope.cancelled_caught
    assert event.is_set()
    assert receive.receive_nowait() == "published"


async def test_the_end_of_a_cancelled_block_is_a_join(autojump_clock: Clock) -> None:
    # nursery.py, _deliver and _turn: nothing of speak, think or synth runs behind its block.
    ended: list[str] = []
    begun = trio.current_time()

    async def run(name: str, cleanup_s: float) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.move_on_after(1, shield=True):
                await trio.sleep(cleanup_s)
            ended.append(name)

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, "quick", 0.1)
            nursery.start_soon(run, "slow", 0.5)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert ended == ["quick", "slow"]
    assert trio.current_time() - begun == pytest.approx(0.5)


async def test_a_scope_cancelled_without_a_checkpoint_left_in_it_has_caught_nothing() -> None:
    # nursery.py, _deliver: an interruption behind the last word is none; write: sent, if late.
    with trio.CancelScope() as speak:  # noqa: ASYNC100  # that is the fact
        speak.cancel(reason="barge-in")
    assert speak.cancel_called
    assert not speak.cancelled_caught


async def test_being_late_is_no_error_where_no_checkpoint_finds_out(autojump_clock: Clock) -> None:
    # nursery.py, _answer: `fail_after` judges waiting and not the work behind it.
    with trio.fail_after(1):
        with trio.CancelScope(shield=True):
            await trio.sleep(5)


@pytest.mark.parametrize("cancel_first", [True, False])
async def test_who_was_woken_before_the_cancellation_is_not_cancelled(cancel_first: bool) -> None:
    # nursery.py, _speak's `overdue.cancelled_caught`: an echo in the same step as the deadline.
    lot = trio.lowlevel.ParkingLot()
    scope = trio.CancelScope()

    async def wait() -> None:
        with scope:
            await lot.park()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        if cancel_first:
            scope.cancel()
        lot.unpark_all()
        scope.cancel()
    assert scope.cancelled_caught is cancel_first


async def test_cancelling_a_scope_that_is_over_or_not_begun_is_harmless() -> None:
    # nursery.py: `_thinking.cancel` between two turns; _recognising, too.
    over = trio.CancelScope()
    with over:
        await trio.lowlevel.checkpoint()
    over.cancel()
    await trio.lowlevel.checkpoint()

    early = trio.CancelScope()
    early.cancel()
    await trio.lowlevel.checkpoint()
    with early:
        await trio.lowlevel.checkpoint()
        pytest.fail("cancelled at the first checkpoint inside")
    assert early.cancelled_caught


async def test_the_reason_of_a_cancellation_can_be_read() -> None:
    # floor.py and nursery.py give one with each cancel: it is what tracebacks and logs say.
    said = ""
    with trio.CancelScope() as scope:
        scope.cancel(reason="barge-in")
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled as exc:
            said = f"{exc.reason}: {exc}"
            raise
    assert said.startswith("barge-in: cancelled due to explicit with reason 'barge-in'")


async def test_cleanup_that_awaits_in_a_cancelled_scope_hides_the_error_unless_shielded() -> None:
    # nursery.py closes channels by a plain `with`; ws.py, open_media_socket, transport.py, reading,
    # and deepgram_socket.py, open_socket, clean up under a shield with a deadline.
    send, _ = trio.open_memory_channel[str](0)
    with trio.CancelScope() as scope:
        scope.cancel()
        async with send:  # leaving it is a checkpoint
            raise ValueError("lost")
    assert scope.cancelled_caught

    send, _ = trio.open_memory_channel[str](0)
    with trio.CancelScope() as scope:
        scope.cancel()
        with pytest.raises(ValueError, match="kept"), send:
            raise ValueError("kept")
        await trio.lowlevel.checkpoint()

    with pytest.raises(ValueError, match="kept"):  # noqa: PT012  # the scope belongs to it
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                raise ValueError("kept")
            finally:
                with trio.move_on_after(1, shield=True):
                    await trio.lowlevel.checkpoint()


async def test_except_exception_catches_no_cancellation_alone_or_in_a_group() -> None:
    # nursery.py, run_call: `except* Exception` takes the crash, the scope takes what it cancelled.
    caught: list[str] = []

    async def crash() -> None:
        raise ValueError("bug")

    with trio.CancelScope() as scope:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(crash)
                nursery.start_soon(trio.sleep_forever)
                scope.cancel()
                await trio.sleep_forever()
        except* Exception as group:
            caught += [str(error) for error in group.exceptions]
    assert caught == ["bug"]
    assert scope.cancelled_caught


# ------------------------------------------------------------------ deadlines and shields


async def test_a_deadline_reaches_the_nursery_inside_it_and_not_tasks_begun_from_it(
    autojump_clock: Clock,
) -> None:
    # nursery.py, run_call: the limit on a call is around its nursery.
    begun = trio.current_time()

    async def work() -> None:
        await trio.sleep(10)

    async with trio.open_nursery() as nursery:
        with trio.move_on_after(1) as around_start_soon:  # noqa: ASYNC100  # that is the fact
            nursery.start_soon(work)
    assert trio.current_time() - begun == pytest.approx(10)
    assert not around_start_soon.cancelled_caught

    begun = trio.current_time()
    with trio.move_on_after(1) as around_nursery:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
            nursery.start_soon(work)
    assert trio.current_time() - begun == pytest.approx(1)
    assert around_nursery.cancelled_caught


async def test_a_shield_delays_a_cancellation_until_its_own_deadline(autojump_clock: Clock) -> None:
    # serving.py, _write; ws.py, aclose; deepgram_socket.py, end: a peer that stalls holds
    # nobody for longer.
    begun = trio.current_time()
    with trio.CancelScope() as outer:
        outer.cancel()
        with trio.move_on_after(3, shield=True) as inner:
            await trio.sleep_forever()
        assert trio.current_time() - begun == pytest.approx(3)
        assert inner.cancelled_caught
        await trio.lowlevel.checkpoint()
        pytest.fail("what follows the shield is cancelled")
    assert outer.cancelled_caught


async def test_lateness_under_a_shield_is_an_error_although_all_is_cancelled(
    autojump_clock: Clock,
) -> None:
    # serving.py, _write: a cancelled sender, too, learns that its transport must be dropped.
    with trio.CancelScope() as outer:
        outer.cancel()
        with pytest.raises(trio.TooSlowError):
            with trio.fail_after(3, shield=True):
                await trio.sleep_forever()


async def test_lowering_a_shield_lets_the_pending_cancellation_in() -> None:
    # transport.py, _Connect: shielded from the connect to the request, and no longer.
    with trio.CancelScope() as outer:
        with trio.CancelScope() as inner:
            inner.shield = True
            outer.cancel()
            await trio.lowlevel.checkpoint()
            inner.shield = False
            await trio.lowlevel.checkpoint()
            pytest.fail("the shield is down")
    assert outer.cancelled_caught
    assert not inner.cancelled_caught


@pytest.mark.parametrize("shield", [False, True])
async def test_a_deadline_moved_by_another_task_wakes_or_spares_who_waits(
    shield: bool, autojump_clock: Clock
) -> None:
    # stt.py, finalize, shortens that of receive; hypercorn's drain and serving.py's linger, too.
    begun = trio.current_time()
    scope = trio.CancelScope(deadline=begun + 100, shield=shield)

    async def wait() -> None:
        with scope:
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.sleep(5)
        scope.deadline = trio.current_time() + 2
    assert trio.current_time() - begun == pytest.approx(7)
    assert scope.cancelled_caught


async def test_a_deadline_can_be_put_off_and_taken_away(autojump_clock: Clock) -> None:
    # nursery.py: listen puts it off with each media; _answer takes it away while synth is slow.
    begun = trio.current_time()
    with trio.move_on_after(1) as alive:
        for _ in range(5):
            await trio.sleep(0.9)
            alive.deadline = trio.current_time() + 1
        alive.deadline = math.inf
        await trio.sleep(50)
        alive.deadline = trio.current_time() + 1
        await trio.sleep_forever()
    assert alive.cancelled_caught
    assert trio.current_time() - begun == pytest.approx(5 * 0.9 + 50 + 1)


async def test_a_deadline_in_the_past_cancels_at_the_first_checkpoint(
    autojump_clock: Clock,
) -> None:
    # nursery.py, _speak: a mark that is overdue already is waited for no longer.
    reached = False
    with trio.move_on_at(trio.current_time() - 1) as overdue:
        reached = True
        await trio.sleep_forever()
    assert reached
    assert overdue.cancelled_caught


# ------------------------------------------------------------------ nurseries


async def test_one_error_in_a_nursery_is_a_group_and_ends_its_siblings() -> None:
    # nursery.py, run_call and transcribe: `except*`; a call whose task has crashed is over.
    joined = False

    async def sibling() -> None:
        nonlocal joined
        try:
            await trio.sleep_forever()
        finally:
            joined = True

    async def crash() -> None:
        raise ValueError("bug")

    with pytest.RaisesGroup(pytest.RaisesExc(ValueError, match="bug")):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sibling)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(crash)
    assert joined


async def test_an_error_in_the_body_of_a_nursery_is_a_group_as_well() -> None:
    # deepgram_socket.py, open_socket: keeps the error and raises it outside of its private nursery.
    with pytest.RaisesGroup(ValueError):
        async with trio.open_nursery():
            raise ValueError


async def test_a_nursery_swallows_its_own_cancellation_and_waits_for_its_tasks() -> None:
    # nursery.py, _turn and _Call.end: what follows the block runs, when all of it has ended.
    joined = after = False

    async def child() -> None:
        nonlocal joined
        try:
            await trio.sleep_forever()
        finally:
            joined = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(child)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel(reason="heard")
        await trio.sleep_forever()
    after = True
    assert joined
    assert after


async def test_an_error_before_a_task_has_started_comes_bare_to_who_starts_it() -> None:
    # deepgram_socket.py, open_socket: a refused upgrade is a ProviderRejected and no group.
    async def refuse(*, task_status: trio.TaskStatus[None]) -> None:
        raise ValueError("refused")

    async with trio.open_nursery() as nursery:
        with pytest.raises(ValueError, match="refused"):
            await nursery.start(refuse)


async def test_a_deadline_around_start_ends_with_started(autojump_clock: Clock) -> None:
    # deepgram_socket.py, open_socket: the time to connect is bounded, the connection is not.
    async def connect(after_s: float, *, task_status: trio.TaskStatus[str]) -> None:
        await trio.sleep(after_s)
        task_status.started("connected")
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        with pytest.raises(trio.TooSlowError):
            with trio.fail_after(1):
                await nursery.start(connect, 5.0)
        with trio.fail_after(1):
            assert await nursery.start(connect, 0.5) == "connected"
        await trio.sleep(100)
        assert len(nursery.child_tasks) == 1
        nursery.cancel_scope.cancel()


async def test_a_task_inherits_the_context_of_who_starts_it() -> None:
    # service.py: `whose.call_sid` is set before the call starts its tasks, which all log with it.
    call_sid: ContextVar[str] = ContextVar("call_sid", default="none")
    seen: list[str] = []

    async def log() -> None:
        seen.append(call_sid.get())
        call_sid.set("of the child")

    async with trio.open_nursery() as outer:
        call_sid.set("CA1")
        outer.start_soon(log)
        await trio.testing.wait_all_tasks_blocked()
        assert call_sid.get() == "CA1"
    assert seen == ["CA1"]


# ------------------------------------------------------------------ waiting


async def test_a_parking_lot_wakes_who_waits_now_and_nobody_later() -> None:
    # floor.py, Bell: a ring nobody waits for is lost, so a waiter looks before it waits.
    lot = trio.lowlevel.ParkingLot()
    woken: list[str] = []

    async def wait(name: str) -> None:
        await lot.park()
        woken.append(name)

    async with trio.open_nursery() as nursery:
        lot.unpark_all()
        nursery.start_soon(wait, "a")
        nursery.start_soon(wait, "b")
        await trio.testing.wait_all_tasks_blocked()
        assert woken == []
        lot.unpark_all()
        nursery.start_soon(wait, "late")
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(woken) == ["a", "b"]
        nursery.cancel_scope.cancel()


async def test_a_cancelled_waiter_leaves_its_parking_lot() -> None:
    # nursery.py: `with move_on_after(…): await bell.wait()`, many times in a call.
    lot = trio.lowlevel.ParkingLot()
    with trio.CancelScope() as scope:
        scope.cancel()
        await lot.park()
    assert lot.statistics().tasks_waiting == 0


async def test_the_mock_clock_jumps_over_a_thread_that_is_running(autojump_clock: Clock) -> None:
    # tests: no thread in the logic of a call, or its virtual time would mean nothing.
    finish = threading.Event()
    jumped_at = math.inf

    async def wait_in_a_thread() -> None:
        await trio.to_thread.run_sync(finish.wait)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_in_a_thread)
        begun = trio.current_time()
        await trio.sleep(3_600)
        jumped_at = trio.current_time() - begun
        assert len(nursery.child_tasks) == 1
        finish.set()
    assert jumped_at == pytest.approx(3_600)


# ------------------------------------------------------------------ generators


@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_an_async_generator_left_half_read_ends_late_unless_it_is_closed() -> None:
    # transport.py, reading, drains; llm.py, _Reply, is a class: neither leaves one half read.
    ended: list[str] = []

    async def chunks(name: str) -> AsyncGenerator[int]:
        try:
            yield 1
            yield 2
        finally:
            ended.append(name)

    left = chunks("left")
    async for _ in left:
        break
    assert ended == []

    async with aclosing(chunks("closed")) as closed:
        async for _ in closed:
            break
    assert ended == ["closed"]

    del left
    gc.collect()
    await trio.testing.wait_all_tasks_blocked()
    assert ended == ["closed", "left"]


async def test_a_crash_in_a_nursery_behind_a_context_manager_ends_the_block() -> None:
    # deepgram_socket.py, open_socket: its private tasks raise nothing later,
    # or they would end the call.
    async def crash() -> None:
        raise ValueError("reader")

    @asynccontextmanager
    async def open_client() -> AsyncGenerator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(crash)
            yield
            nursery.cancel_scope.cancel()

    with pytest.RaisesGroup(pytest.RaisesExc(ValueError, match="reader")):
        async with open_client():
            await trio.sleep_forever()
