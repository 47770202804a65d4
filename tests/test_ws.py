"""The Twilio socket over real sockets: every bad input has a name, and nobody else feels it.

Each test of a bad peer has a second call going on beside it, and counts tasks and file
descriptors before and after.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio

from tests.peer import Gone, Peer, Refused, in_use, open_peer
from voicebot import serving, twilio, ws
from voicebot.errors import CallRefused, LocalProtocolError, RemoteProtocolError, SocketClosed
from voicebot.limits import Places
from voicebot.ports import MediaSocket

AUDIO = bytes(range(160))
KEYS = 100  # five seconds of pressing twenty a second, which may come at once
CONNECTED = '{"event":"connected","protocol":"Call","version":"1.0.0"}'


def start(sid: str = "MZ1", token: str = "good", sequence: int = 1) -> str:
    return json.dumps(
        {
            "event": "start",
            "sequenceNumber": str(sequence),
            "start": {
                "accountSid": "AC1",
                "streamSid": sid,
                "callSid": "CA" + sid,
                "tracks": ["inbound"],
                "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
                "customParameters": {"token": token},
            },
            "streamSid": sid,
        }
    )


def media(sequence: int, sid: str = "MZ1", payload: str | None = None, **fields: Any) -> str:
    if payload is None:
        payload = base64.b64encode(AUDIO).decode()
    track = {"track": "inbound", "chunk": "1", "timestamp": str(20 * sequence), "payload": payload}
    message = {"event": "media", "sequenceNumber": str(sequence), "media": track, "streamSid": sid}
    return json.dumps({**message, **fields})


def dtmf(sid: str = "MZ1") -> str:
    key = {"track": "inbound_track", "digit": "1"}
    return json.dumps({"event": "dtmf", "streamSid": sid, "dtmf": key})


def mark(name: str, sid: str = "MZ1") -> str:
    return json.dumps({"event": "mark", "streamSid": sid, "mark": {"name": name}})


def frame(message: str) -> bytes:
    """Return a message as a client puts it on the wire, with a mask of zeros."""
    size = len(message)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    return b"\x81" + length + bytes(4) + message.encode()


def admit(scope: Mapping[str, Any]) -> None:
    if scope["path"] != "/twilio/stream":
        raise CallRefused("wrong path")


async def authenticate(start: twilio.Start) -> None:
    if start.parameters.get("token") != "good":
        raise CallRefused("bad token")


Talk = Callable[[ws.AsgiMediaSocket], Any]


class Server:
    """Serves media sockets; `heard` is what calls received, by stream SID."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.heard: dict[str, list[twilio.Inbound]] = {}
        self.ended: dict[str, str] = {}
        self.crashed: list[Exception] = []

    async def listen(self, socket: ws.AsgiMediaSocket) -> None:
        """Keep what is received, and send every mark back."""
        sid = socket.start.stream_sid
        heard = self.heard.setdefault(sid, [])
        try:
            while True:
                event = await socket.receive()
                heard.append(event)
                if isinstance(event, twilio.Mark):
                    await socket.send(twilio.SendMark(event.name))
        except (SocketClosed, RemoteProtocolError) as exc:
            self.ended[sid] = str(exc)


@asynccontextmanager
async def running(
    talk: Talk | None = None,
    *,
    start_timeout_s: float = 5.0,
    grace_s: float = 0.0,
    unstarted: Places | None = None,
) -> AsyncGenerator[Server]:
    """Serve media sockets on a free port: `talk` has them, or `Server.listen`."""
    server = Server(0)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        async with ws.open_media_socket(
            scope,
            receive,
            send,
            admit=admit,
            authenticate=authenticate,
            start_timeout_s=start_timeout_s,
            unstarted=None if unstarted is None else unstarted.held("127.0.0.1", "streams"),
        ) as socket:
            if socket is not None:
                other = socket.start.stream_sid == "MZother"
                try:
                    await (server.listen if talk is None or other else talk)(socket)
                except Exception as exc:
                    server.crashed.append(exc)
                    raise

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            shutdown = trio.Event()
            serve = partial(serving.serve, app, host="127.0.0.1", port=0, grace_s=grace_s)
            (url,) = await nursery.start(partial(serve, shutdown=shutdown))
            server.port = int(url.rpartition(":")[2])
            yield server
            shutdown.set()
        assert [str(exc) for exc in server.crashed] in ([], ["on purpose"])


open_stream = partial(open_peer, path="/twilio/stream")


@asynccontextmanager
async def open_call(port: int, sid: str = "MZ1") -> AsyncGenerator[Peer]:
    async with open_stream(port) as peer:
        await peer.send(CONNECTED)
        await peer.send(start(sid))
        yield peer


@asynccontextmanager
async def beside_another_call(server: Server) -> AsyncGenerator[None]:
    """Check that a call that was there before goes on, and that nothing is left behind."""
    async with open_call(server.port, "MZother") as other:
        await assert_alive(other, "MZother")
        before = in_use()
        yield
        await assert_alive(other, "MZother")
        with trio.fail_after(2):
            while in_use() != before:  # noqa: ASYNC110  # nothing tells of a file descriptor
                await trio.sleep(0.01)
        await assert_alive(other, "MZother")
    assert server.ended.keys() <= {"MZ1", "MZother"}


async def assert_alive(peer: Peer, sid: str = "MZ1") -> None:
    """Check that a mark comes back, and so that all before it has been read."""
    with trio.fail_after(2):
        await peer.send(mark("alive?", sid))
        assert json.loads(await peer.receive())["mark"] == {"name": "alive?"}


async def closed_with(peer: Peer) -> int:
    """Return the code that the server closes with, whatever it says before."""
    with trio.fail_after(5):
        while True:
            await trio.lowlevel.checkpoint()
            try:
                await peer.receive()
            except Gone as gone:
                return gone.code


Logged = list[tuple[str, Mapping[str, Any]]]


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Callable[[], Logged]:
    """Return what was logged of streams other than the one beside."""

    def read() -> Logged:
        return [
            (record.message, vars(record))
            for record in caplog.records
            if record.name.startswith("voicebot.") and vars(record).get("stream_sid") != "MZother"
        ]

    caplog.set_level("INFO")
    return read


def names(logged: Callable[[], Logged]) -> list[str]:
    return [name for name, _ in logged()]


# A good stream


async def test_events_arrive_in_order_and_close_without_stop_is_an_outcome(
    logged: Callable[[], Logged],
) -> None:
    async with running() as server, beside_another_call(server):
        async with open_call(server.port) as peer:
            await peer.send(media(2))
            await peer.send('{"event":"dtmf","streamSid":"MZ1","dtmf":{"digit":"5"}}')
            await assert_alive(peer)
            await peer.send('{"event":"stop","streamSid":"MZ1"}')
            await peer.close()
    assert server.heard["MZ1"] == [
        twilio.Media(40, AUDIO),
        twilio.Dtmf("5"),
        twilio.Mark("alive?"),
        twilio.Stop(),
    ]
    assert names(logged) == ["stream_closed"]
    assert logged()[0][1]["call_sid"] == "CAMZ1"
    assert logged()[0][1]["anomalies"] == {}


async def test_media_right_behind_start_is_not_lost() -> None:
    async with running() as server:
        async with open_stream(server.port) as peer:
            messages = [CONNECTED, start(), *map(media, range(2, 30))]
            await peer.stream.send_all(b"".join(frame(message) for message in messages))
            await assert_alive(peer)
    assert server.heard["MZ1"][:-1] == [twilio.Media(20 * n, AUDIO) for n in range(2, 30)]


async def test_messages_to_twilio_have_exactly_its_fields() -> None:
    async def talk(socket: ws.AsgiMediaSocket) -> None:
        await socket.send(twilio.SendMedia(b"\xff\x00"))
        await socket.send(twilio.SendMark("m"))
        await socket.send(twilio.SendClear())

    async with running(talk) as server:
        async with open_call(server.port) as peer:
            assert [json.loads(await peer.receive()) for _ in range(3)] == [
                {"event": "media", "streamSid": "MZ1", "media": {"payload": "/wA="}},
                {"event": "mark", "streamSid": "MZ1", "mark": {"name": "m"}},
                {"event": "clear", "streamSid": "MZ1"},
            ]
            assert await closed_with(peer) == 1000


# Who gets in


async def test_upgrade_that_is_not_admitted_is_answered_403(
    logged: Callable[[], Logged], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ws, "CLOSE_TIMEOUT_S", 60)  # which is not for a refusal
    async with running() as server, beside_another_call(server):
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
            with pytest.raises(Refused, match="403"):
                await Peer(stream).upgrade("/elsewhere", ())
            assert await stream.receive_some() == b""
    ((name, extra),) = logged()
    assert (name, extra["reason"]) == ("stream_refused", "wrong path")


async def test_stream_that_is_not_authenticated_is_closed_1008(
    logged: Callable[[], Logged],
) -> None:
    async with running() as server, beside_another_call(server):
        async with open_stream(server.port) as peer:
            await peer.send(CONNECTED)
            await peer.send(start(token="stolen"))
            assert await closed_with(peer) == 1008
    ((name, extra),) = logged()
    assert (name, extra["reason"]) == ("stream_refused", "bad token")
    assert "MZ1" not in server.heard


@pytest.mark.parametrize("dribble", ["", CONNECTED, media(1), "nonsense"])
async def test_stream_that_never_starts_is_closed_1008(
    dribble: str, logged: Callable[[], Logged]
) -> None:
    async with running(start_timeout_s=0.2) as server, beside_another_call(server):
        async with open_stream(server.port) as peer:
            code = None
            while code is None:
                # A wait that is broken off may lose the code of a close that comes just then.
                with trio.move_on_after(0.02 if dribble else math.inf):
                    code = await closed_with(peer)
                if dribble and code is None:
                    await peer.send(dribble)
            assert code == 1008
    name, extra = logged()[-1]
    assert (name, extra["reason"]) == ("stream_refused", "no_start")


# Bad messages


@pytest.mark.parametrize(
    "message, kind",
    [
        ("{", "not_json"),
        ("[" * 60_000, "not_json"),
        ("", "not_json"),
        ("[]", "not_an_object"),
        ("{}", "unknown_event"),
        ('{"event":"surprise","streamSid":"MZ1"}', "unknown_event"),
        ('{"event":["media"]}', "unknown_event"),
        (b"\x00\x01", "binary_message"),
        (b"", "binary_message"),
        (CONNECTED, "late_connected"),
        (media(3, sid="MZ2"), "wrong_stream_sid"),
        (media(1), "out_of_order"),
        (media(3, payload="!!!!"), "bad_base64"),
        (media(3, payload="AAA"), "bad_base64"),
        (media(3, payload=""), "empty_media"),
        (media(3, payload="A" * 60_000), "oversized_media"),
        (media(3, media=None), "missing_field"),
        ('{"event":"mark","streamSid":"MZ1"}', "missing_field"),
        ('{"event":"dtmf","streamSid":"MZ1","dtmf":{"digit":"12"}}', "bad_digit"),
    ],
)
async def test_bad_message_is_counted_and_the_call_goes_on(
    message: str | bytes, kind: str, logged: Callable[[], Logged]
) -> None:
    async with running() as server, beside_another_call(server):
        async with open_call(server.port) as peer:
            await peer.send(media(2))
            await peer.send(message)
            await peer.send(message)
            await assert_alive(peer)
            await peer.send(media(9))
            await assert_alive(peer)
            await peer.close()
    heard = [event for event in server.heard["MZ1"] if isinstance(event, twilio.Media)]
    assert heard == [twilio.Media(40, AUDIO), twilio.Media(180, AUDIO)]
    assert names(logged) == ["stream_anomaly", "stream_closed"]
    assert logged()[0][1]["kind"] == kind
    assert logged()[1][1]["anomalies"] == {kind: 2}


@pytest.mark.parametrize(
    "message, kind",
    [
        (media(1), "media_before_start"),
        (mark("m"), "mark_before_start"),
        ('{"event":"dtmf","streamSid":"MZ1","dtmf":{"digit":"1"}}', "dtmf_before_start"),
        (CONNECTED, "second_connected"),
        (b"", "binary_message"),
        ("nonsense", "not_json"),
    ],
)
async def test_bad_message_before_start_is_counted_and_the_call_begins(
    message: str | bytes, kind: str, logged: Callable[[], Logged]
) -> None:
    async with running() as server, beside_another_call(server):
        async with open_stream(server.port) as peer:
            await peer.send(CONNECTED)
            await peer.send(message)
            await peer.send(start())
            await assert_alive(peer)
            await peer.close()
    assert server.heard["MZ1"] == [twilio.Mark("alive?")]
    assert names(logged) == ["stream_anomaly", "stream_closed"]
    assert logged()[1][1]["anomalies"] == {kind: 1}


@pytest.mark.parametrize(
    "messages, kind, code",
    [
        ([start()], "second_start", 1008),
        (["x" * (twilio.USUAL.message_chars + 1)], "oversized_message", 1009),
        ([bytes(twilio.USUAL.message_chars + 1)], "oversized_message", 1009),
        (["{"] * (ws.MAX_ANOMALIES + 1), "too_many_anomalies", 1008),
        ([dtmf()] * (2 * KEYS + ws.MAX_ANOMALIES), "too_many_anomalies", 1008),
    ],
)
async def test_stream_does_not_survive(
    messages: list[str | bytes], kind: str, code: int, logged: Callable[[], Logged]
) -> None:
    async with running() as server, beside_another_call(server):
        async with open_call(server.port) as peer:
            await assert_alive(peer)
            for message in messages:
                await peer.send(message)
            assert await closed_with(peer) == code
    assert [name for name in names(logged) if name != "stream_anomaly"] == [
        "stream_broken",
        "stream_closed",
    ]
    assert logged()[-2][1]["kind"] == kind
    assert server.ended["MZ1"].startswith(kind)


@pytest.mark.parametrize(
    "message, kind, code",
    [
        ('{"event":"stop","streamSid":"MZ1"}', "stop_before_start", 1008),
        ("x" * (twilio.USUAL.message_chars + 1), "oversized_message", 1009),
    ],
)
async def test_stream_does_not_survive_before_start(
    message: str, kind: str, code: int, logged: Callable[[], Logged]
) -> None:
    async with running() as server, beside_another_call(server):
        async with open_stream(server.port) as peer:
            await peer.send(message)
            assert await closed_with(peer) == code
    ((name, extra),) = logged()
    assert (name, extra["kind"]) == ("stream_broken", kind)


async def test_message_that_comes_as_neither_text_nor_bytes_is_counted() -> None:
    messages: list[dict[str, Any]] = [
        {"type": "websocket.connect"},
        {"type": "websocket.receive", "text": start(), "bytes": None},
        {"type": "websocket.receive", "text": None, "bytes": None},
        {"type": "websocket.receive", "text": media(2)},
    ]

    async def receive() -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        return messages.pop(0) if messages else {"type": "websocket.disconnect"}

    async def send(message: object) -> None:
        await trio.lowlevel.checkpoint()

    scope = {"path": "/twilio/stream"}
    async with ws.open_media_socket(
        scope, receive, send, admit=admit, authenticate=authenticate, start_timeout_s=5
    ) as socket:
        assert socket is not None
        assert await socket.receive() == twilio.Media(40, AUDIO)
        assert socket.description()["anomalies"] == {"binary_message": 1}
        with pytest.raises(SocketClosed, match="1006"):
            await socket.receive()


async def test_keys_beyond_their_rate_are_dropped_and_the_call_goes_on(
    logged: Callable[[], Logged],
) -> None:
    async with running() as server, beside_another_call(server):
        async with open_call(server.port) as peer:
            for _ in range(KEYS + 90):
                await peer.send(dtmf())
            await assert_alive(peer)
            await peer.close()
    keys = server.heard["MZ1"].count(twilio.Dtmf("1"))
    assert KEYS <= keys < KEYS + 90
    assert logged()[-1][1]["anomalies"] == {"too_many_keys": KEYS + 90 - keys}


async def test_streams_without_a_start_take_places_until_they_have_one(
    logged: Callable[[], Logged],
) -> None:
    async with running(unstarted=Places(total=3, each=2)) as server:
        async with open_call(server.port, "MZother") as other:
            await assert_alive(other, "MZother")  # takes none any more
            async with open_stream(server.port), open_stream(server.port) as second:
                with pytest.raises(Refused) as refused:
                    async with open_stream(server.port):
                        raise AssertionError
                assert refused.value.status == 403
                await second.send(start())
                await assert_alive(second)
                async with open_call(server.port, "MZ2") as third:
                    await assert_alive(third, "MZ2")
    [reason] = [extra["reason"] for name, extra in logged() if name == "stream_refused"]
    assert reason == "too many streams at once (address)"


# Hang-ups


@pytest.mark.parametrize("how", ["close", "reset", "eof", "drop"])
@pytest.mark.parametrize(
    "said, outcome",
    [
        ([], "stream_gone_before_start"),
        ([CONNECTED], "stream_gone_before_start"),
        ([CONNECTED, start()], "stream_closed"),
        ([CONNECTED, start(), media(2)], "stream_closed"),
        ([CONNECTED, start(), *map(media, range(2, 60))], "stream_closed"),
        ([CONNECTED, start(), '{"event":"stop","streamSid":"MZ1"}'], "stream_closed"),
    ],
)
async def test_hang_up_has_one_named_outcome(
    how: str, said: list[str], outcome: str, logged: Callable[[], Logged]
) -> None:
    async with running() as server, beside_another_call(server):
        async with open_stream(server.port) as peer:
            for message in said:
                await peer.send(message)
            if how == "close":
                await peer.close()
            elif how == "eof":
                await peer.stream.send_eof()
                await closed_with(peer)
            elif how == "reset":
                # A reset overtakes what the server has not read: let it read.
                await trio.testing.wait_all_tasks_blocked(0.01)
                await peer.reset()
    assert names(logged) == [outcome]
    if outcome == "stream_closed":
        code = 1000 if how == "close" else 1006
        assert server.ended["MZ1"] == f"media socket closed with code {code}"


async def test_hang_up_within_the_upgrade_and_within_a_message(
    logged: Callable[[], Logged],
) -> None:
    async with running() as server, beside_another_call(server):
        stream = await trio.open_tcp_stream("127.0.0.1", server.port)
        await stream.send_all(b"GET /twilio/stream HTTP/1.1\r\nHost: localhost\r\nUpgr")
        await Peer(stream).reset()
        async with open_call(server.port) as peer:
            await assert_alive(peer)
            await peer.stream.send_all(b"\x81\xfe\x01\x00\x00\x00\x00\x00half")
            await peer.reset()
    assert names(logged) == ["stream_closed"]
    assert server.heard["MZ1"] == [twilio.Mark("alive?")]


# Closing


async def test_close_reaches_a_peer_that_goes_on_talking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ws, "CLOSE_TIMEOUT_S", 10)  # all that it says is before its answer

    async def talk(socket: ws.AsgiMediaSocket) -> None:
        await socket.receive()
        await socket.aclose(4000, "enough")
        await socket.aclose(4001, "twice")
        with pytest.raises(SocketClosed, match="4000"):
            await socket.send(twilio.SendClear())
        with pytest.raises(SocketClosed, match="4000"):
            await socket.receive()

    async with running(talk) as server, beside_another_call(server):
        async with open_call(server.port) as peer:
            for number in range(2, 500):  # the server closes at the first
                await peer.send(media(number))
            assert await closed_with(peer) == 4000


async def test_close_does_not_wait_for_a_peer_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ws, "CLOSE_TIMEOUT_S", 0.1)
    closed = trio.Event()

    async def talk(socket: ws.AsgiMediaSocket) -> None:
        with trio.move_on_after(0):  # a cancelled call closes as well
            await socket.aclose()
        closed.set()

    async with running(talk) as server, beside_another_call(server):
        async with open_call(server.port) as peer:
            with trio.fail_after(2):
                await closed.wait()
            assert await closed_with(peer) == 1000


async def test_send_to_a_peer_that_has_gone_says_so() -> None:
    outcome: list[str] = []

    async def talk(socket: ws.AsgiMediaSocket) -> None:
        try:
            while True:
                await socket.send(twilio.SendMedia(AUDIO))
        except SocketClosed as exc:
            outcome.append(str(exc))

    async with running(talk) as server, beside_another_call(server):
        async with open_call(server.port) as peer:
            await peer.receive()
            await peer.reset()
    assert outcome == ["media socket closed with code 1006"]


async def test_crash_closes_1011_and_the_end_of_the_server_1012(
    logged: Callable[[], Logged], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ws, "CLOSE_TIMEOUT_S", 0.1)

    async def talk(socket: ws.AsgiMediaSocket) -> None:
        await socket.receive()
        raise ValueError("on purpose")

    async with running(talk) as server:
        async with beside_another_call(server):
            async with open_call(server.port) as peer:
                await peer.send(mark("crash"))
                assert await closed_with(peer) == 1011
        live = await trio.open_tcp_stream("127.0.0.1", server.port)
        peer = Peer(live)
        await peer.upgrade("/twilio/stream", ())
        await peer.send(start())
    assert await closed_with(peer) == 1012
    await live.aclose()
    assert names(logged) == ["stream_closed", "application_failed", "stream_closed"]


def test_socket_has_no_start_before_its_start() -> None:
    socket: MediaSocket = ws.AsgiMediaSocket({}, trio.sleep_forever, trio.sleep)
    with pytest.raises(LocalProtocolError):
        _ = socket.start
