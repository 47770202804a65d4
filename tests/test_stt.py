"""The transcriber against small servers over real sockets."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import re
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio
import trio_websocket
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.servers import (
    cancel_at_every_step,
    make_tls_contexts,
    open_fds,
    open_tcp_server,
    open_websocket_server,
)
from voicebot import ports
from voicebot.errors import ProviderError, ProviderRejected, ProviderTimeout
from voicebot.ports import Final, Partial
from voicebot.recognition import Recognition
from voicebot.stt import open_transcriber

FRAME = b"\xff" * 160


def connect(url: str, **options: Any) -> Any:
    return open_transcriber(url=url, api_key="secret", model="nova-3", **options)


def results(text: str, start: float = 0.0, **flags: bool) -> str:
    return json.dumps(
        {
            "type": "Results",
            "start": start,
            "duration": 0.5,
            "channel": {"alternatives": [{"transcript": text}]},
            **flags,
        }
    )


Script = Callable[[trio_websocket.WebSocketConnection], Awaitable[None]]


@dataclass
class FakeDeepgram:
    """Takes everything, says what its script says, closes when told to."""

    script: Script | None = None
    url: str = ""
    path: str = ""
    authorization: str = ""
    audio: list[bytes] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    heard: trio.Event = field(default_factory=trio.Event)
    closed: trio.Event = field(default_factory=trio.Event)

    async def converse(self, request: trio_websocket.WebSocketRequest) -> None:
        self.path = request.path
        self.authorization = dict(request.headers)[b"authorization"].decode()
        websocket = await request.accept()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listen, websocket, nursery.cancel_scope)
                if self.script is not None:
                    await self.script(websocket)
        except* trio_websocket.ConnectionClosed:
            pass
        self.closed.set()

    async def _listen(
        self, websocket: trio_websocket.WebSocketConnection, scope: trio.CancelScope
    ) -> None:
        while True:
            message = await websocket.get_message()
            if isinstance(message, bytes):
                self.audio.append(message)
            else:
                self.texts.append(message)
                if "CloseStream" in message:
                    await websocket.aclose()
                    scope.cancel()
            self.heard.set()
            self.heard = trio.Event()


@asynccontextmanager
async def fake_deepgram(
    script: Script | None = None, ssl_context: ssl.SSLContext | None = None
) -> AsyncGenerator[FakeDeepgram]:
    fake = FakeDeepgram(script)
    async with open_websocket_server(fake.converse, ssl_context) as fake.url:
        yield fake


async def test_connects_as_deepgram_wants_it() -> None:
    eager = Recognition(endpointing_ms=250)
    with trio.fail_after(10):
        async with fake_deepgram() as fake:
            async with connect(fake.url, language="de", recognition=eager) as transcriber:
                port: ports.Transcriber = transcriber
                assert port is transcriber
            assert fake.authorization == "Token secret"
            assert fake.path.startswith("/v1/listen?model=nova-3&language=de&encoding=mulaw")
            assert "endpointing=250" in fake.path


async def test_audio_goes_out_as_it_is_and_never_empty() -> None:
    with trio.fail_after(10):
        async with fake_deepgram() as fake:
            async with connect(fake.url) as transcriber:
                await transcriber.send(FRAME)
                await transcriber.send(b"")
                await transcriber.send(FRAME * 5)
                transcriber.speech_started(120)
            await fake.closed.wait()
            assert fake.audio == [FRAME, FRAME * 5]


async def test_results_become_transcripts_and_noise_is_passed_over() -> None:
    async def script(websocket: trio_websocket.WebSocketConnection) -> None:
        for message in [
            '{"type":"SpeechStarted","channel":[0,1],"timestamp":0.1}',
            results(""),
            results("what"),
            results("what time", is_final=True),
            results("is it", 0.5, is_final=True, speech_final=True),
            '{"type":"UtteranceEnd","channel":[0,1],"last_word_end":0.9}',
            '{"type":"Metadata"}',
            results("thanks", 1.0),
            '{"type":"UtteranceEnd","channel":[0,1],"last_word_end":2.9}',
        ]:
            await websocket.send_message(message)

    with trio.fail_after(10):
        async with fake_deepgram(script) as fake, connect(fake.url) as transcriber:
            assert [await transcriber.receive() for _ in range(5)] == [
                Partial("what"),
                Final("what time"),
                Final("is it", end_of_turn=True),
                Partial("thanks"),
                ports.UtteranceEnd(),
            ]


async def test_unknown_message_type_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async def script(websocket: trio_websocket.WebSocketConnection) -> None:
        for number in range(40):
            await websocket.send_message('{"type":"Weather"}')
            await websocket.send_message(json.dumps({"type": f"Kind{number}"}))
        await websocket.send_message('{"type":"Error","description":"too loud"}')
        await websocket.send_message(results("yes"))

    with trio.fail_after(10), caplog.at_level(logging.INFO, "voicebot.stt"):
        async with fake_deepgram(script) as fake, connect(fake.url) as transcriber:
            assert await transcriber.receive() == Partial("yes")
    warned = [record for record in caplog.records if record.levelno == logging.WARNING]
    types = [record.__dict__.get("type") for record in warned]
    assert types.count("Weather") == 1
    assert len(warned) == 17  # 16 kinds at most, and the error
    closing = caplog.records[-1]
    assert closing.message == "stt_closed"
    assert closing.__dict__["skipped"] == {"unknown_type": 80, "error": 1}


async def test_finalize_is_answered_by_deepgram() -> None:
    async def script(websocket: trio_websocket.WebSocketConnection) -> None:
        while "Finalize" not in "".join(fake.texts):
            await fake.heard.wait()
        await websocket.send_message(results("yes", is_final=True, from_finalize=True))

    with trio.fail_after(10):
        async with fake_deepgram(script) as fake, connect(fake.url) as transcriber:
            await transcriber.finalize()
            assert await transcriber.receive() == Final("yes", finalized=True)
            with trio.move_on_after(0.01) as waiting:
                await transcriber.receive()
            assert waiting.cancelled_caught


@pytest.mark.parametrize("finalize_first", [True, False])
async def test_unanswered_finalize_is_answered_empty_after_a_second(
    finalize_first: bool, mock_clock: MockClock
) -> None:
    heard: list[ports.Transcript] = []

    async def receive(transcriber: ports.Transcriber) -> None:
        heard.append(await transcriber.receive())

    async with fake_deepgram() as fake, connect(fake.url) as transcriber:
        async with trio.open_nursery() as nursery:
            if finalize_first:
                await transcriber.finalize()
            nursery.start_soon(receive, transcriber)
            await wait_all_tasks_blocked()
            if not finalize_first:
                await transcriber.finalize()
            mock_clock.jump(0.99)
            await wait_all_tasks_blocked()
            assert heard == []
            mock_clock.jump(0.02)
    assert heard == [Final("", finalized=True)]


async def test_keep_alive_goes_out_only_while_no_audio_does(mock_clock: MockClock) -> None:
    async with fake_deepgram() as fake, connect(fake.url) as transcriber:
        for _ in range(10):
            mock_clock.jump(1)
            heard = fake.heard
            await transcriber.send(FRAME)
            await heard.wait()
        assert fake.texts == []
        for _ in range(2):
            heard = fake.heard
            mock_clock.jump(3.99)
            await wait_all_tasks_blocked()
            assert not heard.is_set()
            mock_clock.jump(0.01)
            await heard.wait()
        assert fake.texts == ['{"type":"KeepAlive"}'] * 2


# Flux


def connect_flux(url: str, **options: Any) -> Any:
    return open_transcriber(url=url, api_key="secret", model="flux-general-en", **options)


def turn_info(event: str, text: str, number: int) -> str:
    return json.dumps(
        {
            "type": "TurnInfo",
            "event": event,
            "turn_index": 0,
            "sequence_id": number,
            "transcript": text,
        }
    )


async def test_flux_is_chosen_by_the_name_of_its_model() -> None:
    async def script(websocket: trio_websocket.WebSocketConnection) -> None:
        for number, (event, text) in enumerate(
            [
                ("Update", ""),
                ("StartOfTurn", "for"),
                ("EagerEndOfTurn", "for two"),
                ("Whatever", "for two"),
                ("EndOfTurn", "for two"),
                ("EndOfTurn", "for two"),
            ]
        ):
            await websocket.send_message(turn_info(event, text, number))

    with trio.fail_after(10):
        async with fake_deepgram(script) as fake:
            async with connect_flux(
                fake.url, recognition=Recognition(eager_eot_threshold=0.5)
            ) as transcriber:
                assert [await transcriber.receive() for _ in range(3)] == [
                    Partial("for"),
                    ports.LikelyEnd("for two"),
                    Final("for two", end_of_turn=True),
                ]
                await transcriber.finalize()  # says nothing: v2 knows no such message
            await fake.closed.wait()
    assert fake.authorization == "Token secret"
    assert fake.path.startswith("/v2/listen?model=flux-general-en&encoding=mulaw")
    assert "eager_eot_threshold=0.5" in fake.path
    assert fake.texts == ['{"type":"CloseStream"}']


async def test_flux_gets_audio_in_the_chunks_it_likes() -> None:
    spoken = bytes(range(256)) * 10
    with trio.fail_after(10):
        async with fake_deepgram() as fake:
            async with connect_flux(fake.url) as transcriber:
                for at in range(0, len(spoken), 480):  # as the call feeds it
                    await transcriber.send(spoken[at : at + 480])
                await transcriber.send(b"")
            await fake.closed.wait()
    assert [len(chunk) for chunk in fake.audio] == [640] * 4
    assert b"".join(fake.audio) == spoken[:2_560]


async def test_flux_gets_silence_where_v1_gets_keep_alive(mock_clock: MockClock) -> None:
    async with fake_deepgram() as fake, connect_flux(fake.url) as transcriber:
        heard = fake.heard
        await transcriber.send(b"\x10" * 640)
        await heard.wait()
        for _ in range(2):
            heard = fake.heard
            mock_clock.jump(3.99)
            await wait_all_tasks_blocked()
            assert not heard.is_set()
            mock_clock.jump(0.01)
            await heard.wait()
        assert fake.audio == [b"\x10" * 640, b"\xff" * 640, b"\xff" * 640]
        assert fake.texts == []


async def test_fatal_error_of_flux_comes_out_of_receive_with_its_code(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def script(websocket: trio_websocket.WebSocketConnection) -> None:
        await websocket.send_message(
            '{"type":"Error","code":"INTERNAL_SERVER_ERROR","description":"oh"}'
        )
        await websocket.aclose(1011)

    with trio.fail_after(10):
        async with fake_deepgram(script) as fake, connect_flux(fake.url) as transcriber:
            with pytest.raises(ProviderRejected, match="INTERNAL_SERVER_ERROR oh") as caught:
                await transcriber.receive()
            assert caught.value.code == "INTERNAL_SERVER_ERROR"
    assert "stt_error_message" in [record.message for record in caplog.records]


SECOND = b"\x10" * 8_000


@pytest.mark.parametrize("connect", [connect, connect_flux])
async def test_stream_that_says_nothing_any_more_is_given_up(
    connect: Callable[[str], Any], mock_clock: MockClock
) -> None:
    async with fake_deepgram() as fake, connect(fake.url) as transcriber:
        transcriber.speech_started(100)
        for _ in range(4):
            mock_clock.jump(1)
            await transcriber.send(SECOND)
        with pytest.raises(ProviderTimeout, match="said nothing for 5 s"):  # noqa: PT012
            for _ in range(2):  # Flux has not been sent all of it yet
                mock_clock.jump(1)
                await transcriber.send(SECOND)


async def test_stream_of_v1_that_has_nothing_new_is_not(mock_clock: MockClock) -> None:
    async def script(websocket: trio_websocket.WebSocketConnection) -> None:
        while len(fake.audio) < 4:
            await fake.heard.wait()
        await websocket.send_message(results(""))  # skipped, and an answer all the same
        await websocket.send_message(results("well"))

    async with fake_deepgram(script) as fake, connect(fake.url) as transcriber:
        transcriber.speech_started(100)
        for second in range(8):
            mock_clock.jump(1)
            await transcriber.send(SECOND)
            if second == 3:
                assert await transcriber.receive() == Partial("well")
                transcriber.speech_started(100)


@pytest.mark.parametrize("why", ["nobody speaks", "burst", "line was dead", "it answers"])
async def test_stream_of_flux_that_owes_nothing_is_not(why: str, mock_clock: MockClock) -> None:
    async def script(websocket: trio_websocket.WebSocketConnection) -> None:
        while len(fake.audio) < 38:
            await fake.heard.wait()
        await websocket.send_message(turn_info("Update", "well", 1))

    async with fake_deepgram(script if why == "it answers" else None) as fake:
        async with connect_flux(fake.url) as transcriber:
            if why != "nobody speaks":
                transcriber.speech_started(100)
            if why == "burst":
                await transcriber.send(SECOND * 9)
                mock_clock.jump(4.9)
            elif why == "line was dead":
                mock_clock.jump(60)
                await transcriber.send(SECOND * 4)
            else:
                for second in range(8):
                    mock_clock.jump(1)
                    await transcriber.send(SECOND)
                    if second == 3 and why == "it answers":
                        assert await transcriber.receive() == Partial("well")
                        transcriber.speech_started(100)
            await transcriber.send(b"\x10" * 640)


async def test_session_with_flux_cancelled_at_every_step_leaves_no_task_and_no_fd() -> None:
    async def script(websocket: trio_websocket.WebSocketConnection) -> None:
        await websocket.send_message(turn_info("EndOfTurn", "yes", 0))

    async def session() -> None:
        async with connect_flux(fake.url) as transcriber:
            await transcriber.send(FRAME * 5)
            assert await transcriber.receive() == Final("yes", end_of_turn=True)

    def tasks() -> int:
        return trio.lowlevel.current_statistics().tasks_living

    with trio.fail_after(60):
        async with fake_deepgram(script) as fake:
            await wait_all_tasks_blocked(0.01)
            before = tasks(), open_fds()
            assert await cancel_at_every_step(session) > 30
            while (tasks(), open_fds()) != before:
                await wait_all_tasks_blocked(0.05)


# Leaving, whatever is spoken to


async def test_normal_exit_says_close_stream() -> None:
    with trio.fail_after(10):
        async with fake_deepgram() as fake:
            async with connect(fake.url):
                pass
            await fake.closed.wait()
            assert fake.texts == ['{"type":"CloseStream"}']


@pytest.mark.parametrize(
    "code, reason, provider_code",
    [
        (1011, "no audio (NET-0001)", "NET-0001"),
        (1008, "DATA-0000", "DATA-0000"),
        (1000, None, 1000),
    ],
)
async def test_close_by_deepgram_comes_out_of_receive_and_send(
    code: int, reason: str | None, provider_code: str | int
) -> None:
    async def script(websocket: trio_websocket.WebSocketConnection) -> None:
        await websocket.send_message(results("bye", is_final=True))
        await websocket.aclose(code, reason)

    with trio.fail_after(10):
        async with fake_deepgram(script) as fake, connect(fake.url) as transcriber:
            assert await transcriber.receive() == Final("bye")
            for _ in range(2):
                with pytest.raises(ProviderRejected) as caught:
                    await transcriber.receive()
                assert caught.value.code == provider_code
            with pytest.raises(ProviderRejected):
                await transcriber.send(FRAME)
            with pytest.raises(ProviderRejected):
                await transcriber.finalize()


async def test_lost_connection_comes_out_of_receive_and_send() -> None:
    async def script(websocket: trio_websocket.WebSocketConnection) -> None:
        await trio.aclose_forcefully(websocket._stream)

    with trio.fail_after(10):
        async with fake_deepgram(script) as fake, connect(fake.url) as transcriber:
            with pytest.raises(ProviderError, match="lost") as caught:
                await transcriber.receive()
            assert caught.value.retryable
            with pytest.raises(ProviderError, match="lost"):
                await transcriber.send(FRAME)


async def test_keep_alive_after_a_loss_does_not_disturb_the_block(mock_clock: MockClock) -> None:
    async def script(websocket: trio_websocket.WebSocketConnection) -> None:
        await websocket.aclose(1011, "NET-0000")

    async with fake_deepgram(script) as fake, connect(fake.url) as transcriber:
        await fake.closed.wait()
        mock_clock.jump(5)
        await wait_all_tasks_blocked(0.05)
        with pytest.raises(ProviderRejected, match="NET-0000"):
            await transcriber.receive()


async def test_fault_in_the_library_is_a_loss_and_not_a_crash_of_the_block(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(websocket: object, event: object) -> None:
        raise RuntimeError("a bug")

    async def script(websocket: trio_websocket.WebSocketConnection) -> None:
        while not fake.audio:
            await fake.heard.wait()
        await websocket.ping()

    monkeypatch.setattr(trio_websocket.WebSocketConnection, "_handle_ping_event", fail)
    with trio.fail_after(10):
        async with fake_deepgram(script) as fake, connect(fake.url) as transcriber:
            await transcriber.send(FRAME)
            with pytest.raises(ProviderError, match="lost"):
                await transcriber.receive()
            await wait_all_tasks_blocked()
            with pytest.raises(ProviderError, match="lost"):
                await transcriber.send(FRAME)
    assert "socket_reader_failed" in [record.message for record in caplog.records]


async def test_provider_error_leaves_the_block_bare() -> None:
    async def script(websocket: trio_websocket.WebSocketConnection) -> None:
        await websocket.aclose(1011, "NET-0000")

    with trio.fail_after(10):
        async with fake_deepgram(script) as fake:
            with pytest.raises(ProviderRejected, match="NET-0000"):
                async with connect(fake.url) as transcriber:
                    await transcriber.receive()


async def test_error_of_the_block_leaves_it_bare_and_deepgram_is_told() -> None:
    with trio.fail_after(10):
        async with fake_deepgram() as fake:
            with pytest.raises(KeyError, match="mine"):
                async with connect(fake.url):
                    raise KeyError("mine")
            await fake.closed.wait()
            assert fake.texts == ['{"type":"CloseStream"}']


# Connecting


@pytest.mark.parametrize(
    "status, headers, body, code, said, retryable",
    [
        (401, [(b"dg-error", b"INVALID_AUTH")], b"", "INVALID_AUTH", "DEEPGRAM_API_KEY", False),
        (402, [], b'{"err_code":"ASR_PAYMENT_REQUIRED"}', "ASR_PAYMENT_REQUIRED", "credit", False),
        (403, [], b"no access", None, "may not use this model", False),
        (429, [], b'{"err_code":"TOO_MANY_REQUESTS"}', "TOO_MANY_REQUESTS", "MAX_CALLS", True),
        (503, [], b"<html>", None, "503", True),
    ],
)
async def test_refused_upgrade_says_what_to_do_and_leaves_no_fd(
    status: int,
    headers: list[tuple[bytes, bytes]],
    body: bytes,
    code: str | None,
    said: str,
    retryable: bool,
) -> None:
    async def refuse(request: trio_websocket.WebSocketRequest) -> None:
        await request.reject(status, extra_headers=headers, body=body)

    with trio.fail_after(10):
        async with open_websocket_server(refuse) as url:
            await wait_all_tasks_blocked(0.01)
            before = open_fds()
            for _ in range(3):
                with pytest.raises(ProviderRejected, match=said) as caught:
                    async with connect(url):
                        pytest.fail("connected")
                error = caught.value
                assert (error.status, error.code, error.retryable) == (status, code, retryable)
                assert "secret" not in str(error)
            await wait_all_tasks_blocked(0.05)
            assert open_fds() == before


async def test_nobody_listening_is_an_error_to_be_retried() -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    await listeners[0].aclose()
    with trio.fail_after(10), pytest.raises(ProviderError, match="cannot connect") as caught:
        async with connect(f"http://127.0.0.1:{port}"):
            pytest.fail("connected")
    assert caught.value.retryable


@pytest.mark.parametrize(
    "answer, said",
    [
        (b"", "closed instead of upgraded"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "closed instead of upgraded"),
        (b"HTTP/1.1 101 x\r\nupgrade: websocket\r\nconnection: \xff\xfe\r\n\r\n", "no HTTP"),
    ],
)
async def test_answer_that_is_no_upgrade_is_an_error_at_once(answer: bytes, said: str) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some(1000)
        await stream.send_all(answer)

    with trio.fail_after(2):  # and not only after the connect timeout of 3 s
        async with open_tcp_server(serve) as url:
            with pytest.raises(ProviderError, match=said):
                async with connect(url):
                    pytest.fail("connected")


@pytest.mark.parametrize("tls", [False, True])
async def test_peer_that_never_answers_is_given_up_and_leaves_no_fd(tls: bool) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    with trio.fail_after(10):
        async with open_tcp_server(serve) as url:
            if tls:
                url = url.replace("http", "https")
            await wait_all_tasks_blocked(0.01)
            before = open_fds()
            with pytest.raises(ProviderTimeout, match=r"no connection within 0\.1 s"):
                async with connect(url, connect_timeout_s=0.1):
                    pytest.fail("connected")
            assert open_fds() == before + 1  # the server's own, which it keeps


async def test_tls_to_a_plain_port_is_an_error() -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with trio.fail_after(10):
        async with open_tcp_server(serve) as url:
            with pytest.raises(ProviderError, match="TLS handshake failed"):
                async with connect(url.replace("http", "https")):
                    pytest.fail("connected")


async def test_tls_is_spoken_where_the_address_says_so(tmp_path: Path) -> None:
    server, client = make_tls_contexts(tmp_path)

    async def script(websocket: trio_websocket.WebSocketConnection) -> None:
        await websocket.send_message(results("hello"))

    with trio.fail_after(10):
        async with fake_deepgram(script, server) as fake:
            async with connect(fake.url, ssl_context=client) as transcriber:
                assert await transcriber.receive() == Partial("hello")
            await fake.closed.wait()
            assert fake.texts == ['{"type":"CloseStream"}']
            with pytest.raises(ProviderError, match="CERTIFICATE_VERIFY_FAILED"):
                async with connect(fake.url):
                    pytest.fail("connected")


# Leaving


async def upgrade(stream: trio.SocketStream) -> None:
    request = bytes(await stream.receive_some(10_000))
    (key,) = re.findall(rb"Sec-WebSocket-Key: (\S+)", request, re.IGNORECASE)
    digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    await stream.send_all(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n\r\n"
    )


async def be_deaf(stream: trio.SocketStream) -> None:
    """Accept the upgrade, then neither read nor close."""
    await upgrade(stream)
    await trio.sleep_forever()


async def test_peer_that_ignores_the_close_holds_a_normal_exit_for_a_second(
    mock_clock: MockClock,
) -> None:
    left = trio.Event()

    async def visit() -> None:
        async with connect(url):
            pass
        left.set()

    async with open_tcp_server(be_deaf) as url, trio.open_nursery() as nursery:
        nursery.start_soon(visit)
        await wait_all_tasks_blocked(0.1)
        mock_clock.jump(0.99)
        await wait_all_tasks_blocked(0.05)
        assert not left.is_set()
        mock_clock.jump(0.02)
        await wait_all_tasks_blocked(0.05)
        assert left.is_set()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("late", [False, True])
async def test_peer_that_ignores_the_close_does_not_hold_a_cancelled_exit(
    late: bool, mock_clock: MockClock
) -> None:
    left = trio.Event()
    scope = trio.CancelScope()

    async def visit() -> None:
        with scope:
            async with connect(url):
                if not late:
                    scope.cancel()
        left.set()

    async with open_tcp_server(be_deaf) as url, trio.open_nursery() as nursery:
        nursery.start_soon(visit)
        await wait_all_tasks_blocked(0.1)
        assert left.is_set() is not late
        scope.cancel()
        await wait_all_tasks_blocked(0.05)  # the clock stands still: nothing was waited for
        assert left.is_set()
        nursery.cancel_scope.cancel()


async def test_network_that_takes_no_farewell_holds_a_cancelled_exit_for_a_moment_only(
    mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    scope, left = trio.CancelScope(), trio.Event()

    async def stuck(self: object, message: object) -> None:
        await trio.sleep_forever()

    async def visit() -> None:
        with scope:
            async with connect(url):
                monkeypatch.setattr(trio_websocket.WebSocketConnection, "send_message", stuck)
                await trio.sleep_forever()
        left.set()

    async with open_tcp_server(be_deaf) as url, trio.open_nursery() as nursery:
        nursery.start_soon(visit)
        await wait_all_tasks_blocked(0.1)
        scope.cancel()
        await wait_all_tasks_blocked(0.05)
        assert not left.is_set()
        mock_clock.jump(0.11)
        await wait_all_tasks_blocked(0.05)
        assert left.is_set()
        nursery.cancel_scope.cancel()


def payloads(wire: bytearray) -> bytes:
    """Return what a client's messages of 160,000 bytes hold, the last one cut off or not."""
    text = b""
    while wire:
        assert wire[:10] == b"\x82\xff" + (160_000).to_bytes(8, "big")
        mask, payload = wire[10:14], wire[14:160_014]
        text += bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
        wire = wire[160_014:]
    return text


async def test_torn_send_is_followed_by_nothing_and_the_exit_is_immediate(
    mock_clock: MockClock,
) -> None:
    wire = bytearray()
    scope, left, ended = trio.CancelScope(), trio.Event(), trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        await upgrade(stream)
        await left.wait()
        try:
            async for chunk in stream:
                wire.extend(chunk)
        except trio.BrokenResourceError:
            pass  # a reset: the client closed with our bytes unread
        ended.set()

    async def visit() -> None:
        async with connect(url) as transcriber:
            with scope:
                while True:  # until the kernel takes no more
                    await transcriber.send(FRAME * 1000)
        left.set()

    async with open_tcp_server(serve) as url, trio.open_nursery() as nursery:
        nursery.start_soon(visit)
        await wait_all_tasks_blocked(0.2)
        assert not left.is_set()
        scope.cancel()
        await wait_all_tasks_blocked(0.2)  # the clock stands still: whoever waited would hang
        assert left.is_set()
        await ended.wait()
        assert len(wire) % 160_014 > 0  # torn indeed
        assert set(payloads(wire)) == {0xFF}
        nursery.cancel_scope.cancel()


async def test_session_cancelled_at_every_step_leaves_no_task_and_no_fd() -> None:
    async def script(websocket: trio_websocket.WebSocketConnection) -> None:
        await websocket.send_message(results("yes"))

    async def session() -> None:
        async with connect(fake.url) as transcriber:
            await transcriber.send(FRAME)
            assert await transcriber.receive() == Partial("yes")
            await transcriber.finalize()

    def tasks() -> int:
        return trio.lowlevel.current_statistics().tasks_living

    with trio.fail_after(60):
        async with fake_deepgram(script) as fake:
            await wait_all_tasks_blocked(0.01)
            before = tasks(), open_fds()
            for _ in range(3):  # which task of a step runs first is a matter of chance
                assert await cancel_at_every_step(session) > 30
            while (tasks(), open_fds()) != before:  # the server's own end, in its own time
                await wait_all_tasks_blocked(0.05)
