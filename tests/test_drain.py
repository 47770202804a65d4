"""From the signal to the moment the port may close: who is waited for, and for how long."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
from werkzeug.datastructures import MultiDict

from tests.test_http import LOCAL, PUBLIC, TO, TWILIO, Running, parameter, running
from tests.test_outbound import transfer
from tests.twilio_rest import ACCOUNT_SID, CALL_SID
from voicebot import telephony
from voicebot.config import load
from voicebot.drain import CALLBACKS_S, drain
from voicebot.errors import ConfigError
from voicebot.onward import NEXT_S
from voicebot.outbound import OutboundCall
from voicebot.switchboard import Switchboard

Clock = trio.testing.MockClock

DRAIN_S, PARTING_S = 20.0, 15.0
SID = "CA1"
FORM = MultiDict({"CallSid": SID, "AccountSid": ACCOUNT_SID, "DialCallStatus": "busy"})
SCOPE = {"headers": [(b"host", b"localhost")]}


class Draining:
    """A server that drains. `parted` and `done` are the times at which it did."""

    def __init__(self, **more: str) -> None:
        environ = {"VOICEBOT_DRAIN_S": str(DRAIN_S), **more}
        self.board = Switchboard(load(environ))
        self.parted: float | None = None
        self.done: float | None = None
        self.signal_send, self.signals = trio.open_memory_channel[None](10)

    def part(self) -> None:
        self.parted = trio.current_time()

    async def run(self) -> None:
        await drain(self.board, self.part, self.signals.receive)
        self.done = trio.current_time()

    async def live(self, ends_at: float, sid: str = SID) -> None:
        """Be a call until then."""
        with self.board.live(sid):
            await trio.sleep_until(ends_at)


async def after(seconds: float, do: Callable[[], Awaitable[object] | None]) -> None:
    await trio.sleep(seconds)
    if (doing := do()) is not None:
        await doing


async def drained(server: Draining, *beside: Callable[[], Awaitable[object]]) -> float:
    """Drain while other things happen; return how long it took."""
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for other in beside:
            nursery.start_soon(other)
        await trio.testing.wait_all_tasks_blocked()
        await server.run()
        nursery.cancel_scope.cancel()
    return trio.current_time() - began


async def test_nobody_on_the_line_is_not_waited_for(autojump_clock: Clock) -> None:
    server = Draining(**TWILIO)
    assert await drained(server) == 0.0
    assert (server.parted, server.board.draining) == (None, True)


@pytest.mark.parametrize("environ, more_s", [({}, 0.0), (TWILIO, CALLBACKS_S)])
async def test_a_live_call_is_waited_for_and_twilios_last_word_on_it(
    environ: dict[str, str], more_s: float, autojump_clock: Clock
) -> None:
    server = Draining(**environ)
    end = trio.current_time() + 7.0
    assert await drained(server, lambda: server.live(end)) == 7.0 + more_s
    assert server.parted is None


async def test_at_the_deadline_who_is_left_is_told_and_waited_for(autojump_clock: Clock) -> None:
    server = Draining()
    began = trio.current_time()
    took = await drained(
        server,
        lambda: server.live(began + 3.0, "CA2"),
        lambda: server.live(began + DRAIN_S + 4.0),
    )
    assert server.parted == began + DRAIN_S
    assert took == DRAIN_S + 4.0


@pytest.mark.parametrize("comes, took_s", [(True, DRAIN_S + 5.0), (False, DRAIN_S + PARTING_S)])
async def test_who_is_just_coming_at_the_deadline_is_waited_for_as_well(
    comes: bool, took_s: float, autojump_clock: Clock
) -> None:
    server = Draining()
    board = server.board
    token = parameter(board.answer(SCOPE, FORM))

    async def come() -> None:
        await trio.sleep(DRAIN_S + 1.0)
        if comes:
            board.redeem(token, SID, ACCOUNT_SID)
            await server.live(trio.current_time() + 4.0)

    assert await drained(server, come) == took_s


async def test_last_words_are_not_waited_for_without_end(autojump_clock: Clock) -> None:
    server = Draining()
    assert await drained(server, lambda: server.live(1e9)) == DRAIN_S + PARTING_S


async def test_each_further_signal_ends_one_wait(autojump_clock: Clock) -> None:
    server = Draining(**TWILIO)
    began = trio.current_time()

    async def signals() -> None:
        for at in (2.0, 5.0, 5.5):
            await trio.sleep_until(began + at)
            await server.signal_send.send(None)

    assert await drained(server, lambda: server.live(1e9), signals) == 5.5
    assert server.parted == began + 2.0


async def test_cancelled_in_mid_call_it_takes_no_new_call_all_the_same(
    autojump_clock: Clock,
) -> None:
    server = Draining()
    with trio.move_on_after(1.0) as scope:
        await drained(server, lambda: server.live(1e9))
    assert scope.cancelled_caught
    assert (server.parted, server.board.draining) == (None, True)


# Who counts as on the line.


async def test_a_call_whose_stream_is_to_come_is_waited_for_as_long_as_its_token_lives(
    autojump_clock: Clock,
) -> None:
    server = Draining(VOICEBOT_TOKEN_TTL_S="6")
    server.board.answer(SCOPE, FORM)
    assert await drained(server) == 6.0


@pytest.mark.parametrize("end", ["undial", "status", "stream status"])
async def test_a_call_that_comes_to_nothing_is_not_waited_for(
    end: str, autojump_clock: Clock
) -> None:
    server = Draining()
    board = server.board
    key = board.dial(OutboundCall(TO, TO)) if end == "undial" else ""
    if not key:
        board.answer(SCOPE, FORM)
    over = {
        "undial": lambda: board.undial(key),
        "status": lambda: board.take_status(MultiDict({**FORM, "CallStatus": "canceled"})),
        "stream status": lambda: board.take_stream_status(
            MultiDict({**FORM, "StreamEvent": "stream-error"})
        ),
    }
    assert await drained(server, lambda: after(2.0, over[end])) == 2.0


async def test_a_machine_that_is_hung_up_on_is_not_waited_for(autojump_clock: Clock) -> None:
    server = Draining()
    board = server.board
    key = board.dial(OutboundCall(TO, TO, machine_detection="before"))
    machine = MultiDict({**FORM, "AnsweredBy": "machine_start", "Direction": "outbound-api"})

    def found() -> None:
        board.answer(SCOPE, machine, key)

    assert await drained(server, lambda: after(2.0, found)) == 2.0


async def test_who_is_being_put_through_is_waited_for_and_taken_back(
    autojump_clock: Clock,
) -> None:
    server = Draining()
    board = server.board
    began = trio.current_time()
    board.onward.leave(SID, transfer(), began)
    board.after_stream(SCOPE, FORM)
    answers: list[str] = []

    async def come_back() -> None:
        await trio.sleep_until(began + 15.0)
        answers.append(board.after_dial(SCOPE, FORM))
        board.redeem(parameter(answers[0]), SID, ACCOUNT_SID)
        board.onward.come_back(SID, trio.current_time())
        await server.live(began + 18.0)

    assert await drained(server, come_back) == 18.0
    assert server.parted is None


@pytest.mark.parametrize("how", ["after-dial", "status"])
async def test_who_has_talked_to_somebody_needs_no_server_any_more(
    how: str, autojump_clock: Clock
) -> None:
    server = Draining()
    board = server.board
    board.onward.leave(SID, transfer(), trio.current_time())
    board.after_stream(SCOPE, FORM)
    talked = MultiDict({**FORM, "DialCallStatus": "completed", "CallStatus": "completed"})

    def over() -> None:
        if how == "status":
            board.take_status(talked)
        else:
            board.after_dial(SCOPE, talked)

    assert await drained(server, lambda: after(4.0, over)) == 4.0


async def test_who_hung_up_before_being_put_through_is_not_waited_for_long(
    autojump_clock: Clock,
) -> None:
    server = Draining()
    server.board.onward.leave(SID, transfer(), trio.current_time())
    assert await drained(server) == NEXT_S


# What new callers are told.


def verbs(answer: str) -> list[tuple[str, str | None]]:
    return [(verb.tag, verb.text) for verb in ET.fromstring(answer)]


async def new_call(service: Running, path: str = "/twilio/voice", **fields: str) -> str:
    return (await service.webhook(path, **{"CallSid": "CAnew", **fields})).text


async def test_a_new_caller_hears_an_apology() -> None:
    async with running(**TWILIO) as service:
        service.board.drain()
        [(say, text), (hang_up, _)] = verbs(await new_call(service))
    assert (say, hang_up) == ("Say", "Hangup")
    assert text is not None
    assert "sorry" in text


async def test_a_new_caller_is_sent_to_the_other_server_and_no_further() -> None:
    other = "https://other.example.com"
    async with running(**TWILIO, VOICEBOT_DRAIN_TO=f"{other}/") as service:
        assert parameter(await new_call(service))
        service.board.drain()
        assert parameter(await new_call(service))  # the same call: it has its token
        [(verb, url)] = verbs(await new_call(service, CallSid="CAother"))
        # Both drain, and name each other.
        [(say, _), _] = verbs(await new_call(service, "/twilio/voice?turned_away=1", CallSid="CA3"))
        ours = await new_call(service, CallSid="CA4", Direction="outbound-api")
    assert (verb, url) == ("Redirect", f"{other}{telephony.VOICE_PATH}?turned_away=1")
    assert say == "Say"
    assert "Redirect" not in ours  # the other knows nothing of what was asked of it


async def test_who_comes_back_from_a_transfer_finds_the_lines_open() -> None:
    async with running(**TWILIO, VOICEBOT_DRAIN_TO="https://other.example.com") as service:
        service.board.onward.leave(CALL_SID, transfer(), trio.current_time())
        service.board.drain()
        await service.webhook("/twilio/after-stream")
        assert parameter((await service.webhook("/twilio/after-dial", DialCallStatus="busy")).text)


async def test_a_call_to_place_is_refused_with_a_time_to_try_again() -> None:
    async with running(**TWILIO, VOICEBOT_MAX_CALLS="1") as service:
        await new_call(service)
        async with service.client(LOCAL) as client:
            full = await client.post("/calls", json={"to": TO})
            service.board.drain()
            answer = await client.post("/calls", json={"to": TO})
            keyed = await client.post("/calls", json={"to": TO}, headers={"Idempotency-Key": "1"})
    assert (answer.status_code, keyed.status_code, full.status_code) == (503, 503, 503)
    assert int(answer.headers["Retry-After"]) > 0
    assert keyed.headers["Retry-After"] == answer.headers["Retry-After"]
    assert "Retry-After" not in full.headers


@pytest.mark.parametrize("url", [PUBLIC, "http://other.example.com", "other", "https://other/x"])
def test_the_other_server_is_another_that_twilio_reaches(url: str) -> None:
    with pytest.raises(ConfigError, match="VOICEBOT_DRAIN_TO"):
        load({**TWILIO, "VOICEBOT_DRAIN_TO": url})
