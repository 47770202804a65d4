"""Which implementation of each port a service gets, and that it can be made ready."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from voicebot.config import load
from voicebot.parts import open_ports
from voicebot.standins import open_standins
from voicebot.tries import Alternatives


@pytest.mark.parametrize("spares", [0, 2])
async def test_call_that_begins_finds_connections_to_both_providers(spares: int) -> None:
    with trio.fail_after(20):
        async with open_standins() as standins:
            environ = {
                **standins.environment(),
                "PUBLIC_URL": "https://bot.example",
                "VOICEBOT_SPARE_CONNECTIONS": str(spares),
            }
            async with open_ports(load(environ)) as ports:
                assert standins.connections_open == 0  # an idle process holds none
                ports.warm()
                await wait_all_tasks_blocked(0.1)
                assert standins.groq.server.connections_open == spares
                assert standins.deepgram.server.connections_open == spares
            await standins.wait_closed()


@pytest.mark.parametrize("transport", ["rest", "websocket"])
async def test_speech_comes_by_what_is_set(transport: str) -> None:
    with trio.fail_after(20):
        async with open_standins() as standins:
            environ = {
                **standins.environment(),
                "PUBLIC_URL": "https://bot.example",
                "VOICEBOT_DEEPGRAM_TTS_TRANSPORT": transport,
                "VOICEBOT_SPARE_CONNECTIONS": "0",
            }
            async with open_ports(load(environ)) as ports:
                ports.warm()
                await wait_all_tasks_blocked(0.1)
                by_socket = transport == "websocket"
                assert standins.deepgram.speak_socket.connections_open == by_socket
                assert isinstance(ports.synthesizer, Alternatives)
                async with ports.synthesizer.first.open_speech("Hello.") as chunks:
                    assert [chunk async for chunk in chunks]
                assert len(standins.deepgram.speak_socket.connections) == by_socket
                assert len(standins.deepgram.speak.speeches) == (not by_socket)
            await standins.wait_closed()
