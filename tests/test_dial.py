"""Webhook, WebSocket and child process, over real sockets."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from urllib.parse import parse_qsl

import pytest
import trio

from tests.toy_bot import Habits
from tests.toy_server import TWIML, ToyServer, serving
from voicebot.errors import CallRefused, SocketClosed
from voicebot.simulator import dial as dial_module
from voicebot.simulator.call import (
    Script,
    run_call,
)
from voicebot.simulator.dial import Account, dial, open_line, open_server, read_twiml


async def test_requests_are_signed_over_the_public_urls() -> None:
    from twilio.request_validator import (  # type: ignore[import-untyped]  # no py.typed
        RequestValidator,
    )

    server = ToyServer(Habits(greeting_ms=100))
    account = Account("AC" + "4" * 32, "secret", "https://bot.example")
    with trio.fail_after(10):
        async with serving(server) as url:
            answer = await dial(url, account)
            async with open_line(url, answer.stream_url, account) as line:
                await run_call(line, Script((), hang_up_after_s=0.1), answer.identity)

    assert answer.stream_url == "wss://bot.example/twilio/stream"
    (_, voice, body), (_, upgrade, _) = server.requests
    validator = RequestValidator("secret")
    form = dict(parse_qsl(body))
    assert form["AccountSid"] == account.sid
    assert validator.validate("https://bot.example/twilio/voice", form, voice["x-twilio-signature"])
    assert validator.validate(answer.stream_url, {}, upgrade["x-twilio-signature"])


@pytest.mark.parametrize("secret", ["t-1", "secret"])
def test_secrets_are_not_in_any_repr(secret: str) -> None:
    _, parameters = read_twiml(TWIML.encode())
    account = Account("AC", "secret")

    assert secret not in repr(account)
    assert parameters == {"token": "t-1"}


@asynccontextmanager
async def answering(answer: bytes) -> AsyncGenerator[str]:
    """Serve a port that answers the first bytes it gets with these, and then nothing."""

    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        if answer:
            await stream.send_all(answer)
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "answer,complaint",
    [
        (b"", "no WebSocket within"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "refused the media stream with 200"),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "is no WebSocket"),
    ],
)
async def test_peer_that_is_no_websocket_is_explained(
    answer: bytes, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial_module, "CONNECT_S", 0.5)
    with trio.fail_after(10):
        async with answering(answer) as url:
            with pytest.raises(CallRefused, match=complaint):
                async with open_line(url, "wss://bot.example/twilio/stream", Account()):
                    pass


async def test_connection_that_breaks_is_the_end_of_the_call() -> None:
    server = ToyServer(Habits())
    with trio.fail_after(10):
        async with serving(server) as url:
            async with open_line(url, "wss://bot.example/twilio/stream", Account()) as line:
                with trio.move_on_after(0.5):
                    await run_call(line, Script(()))
                await line.aclose()
                with pytest.raises(SocketClosed):
                    await line.send("{}")
                with pytest.raises(SocketClosed):
                    await line.receive()


async def test_line_lets_go_of_its_socket(tmp_path: Path) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    server = ToyServer(Habits())
    with trio.fail_after(20):
        async with serving(server) as url:
            async with open_line(url, "wss://bot.example/twilio/stream", Account()):
                pass
            before = descriptors()
            for _ in range(5):
                async with open_line(url, "wss://bot.example/twilio/stream", Account()):
                    pass
            server.upgrades = False
            for _ in range(5):
                with pytest.raises(CallRefused):
                    async with open_line(url, "wss://bot.example/twilio/stream", Account()):
                        pass
            for _ in range(100):  # the server's ends close a moment later
                if descriptors() <= before:
                    break
                await trio.sleep(0.02)
            assert descriptors() <= before


# ------------------------------------------------------------------ a server of one's own


def child(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


async def test_server_is_stopped_with_the_block_and_never_blocked_by_its_output(
    tmp_path: Path,
) -> None:
    code = (
        "import pathlib, signal, sys, time\n"
        f"here = pathlib.Path({str(tmp_path)!r})\n"
        "def stop(*_):\n    (here / 'stopped').touch(); sys.exit()\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "print('start screen')\n"
        "print('ready on http://127.0.0.1:4711', flush=True)\n"
        "print('x' * 1_000_000, flush=True)\n"  # more than a pipe holds
        "(here / 'said').touch()\n"
        "time.sleep(60)\n"
    )
    with trio.fail_after(15):
        async with open_server(child(code)) as url:
            assert url == "http://127.0.0.1:4711"
            while not (tmp_path / "said").exists():  # noqa: ASYNC110  # by another process
                await trio.sleep(0.01)
    assert (tmp_path / "stopped").exists()


async def test_server_that_cannot_start_is_quoted() -> None:
    with trio.fail_after(15):
        with pytest.raises(CallRefused, match="ended before it was ready; it said:\n  PORT: bad"):
            async with open_server(child("print('PORT: bad')")):
                pass
