"""Which implementation of each port a service gets, and that it can be made ready."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from voicebot import service
from voicebot.bot import Speaker
from voicebot.config import load
from voicebot.errors import ConfigError, MissingPart, ProviderRejected
from voicebot.local import weights
from voicebot.local.speech import LocalSpeech
from voicebot.parts import open_ports, open_tongues
from voicebot.standins import open_standins
from voicebot.switchboard import Switchboard
from voicebot.tries import Alternatives, Retrying


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


def order(parts: object) -> list[Any]:
    """Return what is tried if one after the other fails for what we are."""
    assert isinstance(parts, Alternatives)
    tries = parts.tries(9)
    found: list[Any] = []
    while True:
        found.append(tries.begin(0.0))
        if tries.failed(ProviderRejected("p", "no", status=401), 0.0) is None:
            return found


SECOND = {"DEEPGRAM_FALLBACK_API_KEY": "second", "GROQ_FALLBACK_API_KEY": "second"}


@pytest.mark.parametrize("environ, speech, chats", [({}, 1, 2), (SECOND, 2, 4)])
async def test_a_second_key_is_asked_after_the_first(
    environ: dict[str, str], speech: int, chats: int
) -> None:
    with trio.fail_after(20):
        async with open_standins() as standins:
            given = {
                **standins.environment(),
                "PUBLIC_URL": "https://bot.example",
                "VOICEBOT_GROQ_FALLBACK_MODELS": "openai/gpt-oss-120b",
                "VOICEBOT_SPARE_CONNECTIONS": "1",
                "VOICEBOT_TIMEOUTS__TRANSCRIBER_PAUSE_S": "0.7",
            }
            async with open_ports(load(given | environ)) as ports:
                recognisers = order(ports.open_transcriber)
                assert len(recognisers) == len(order(ports.synthesizer)) == speech
                keys = [cast("partial[Any]", one.open).keywords["api_key"] for one in recognisers]
                assert keys[1:] == ["second"] * (speech - 1)
                assert {one.endpointing for one in recognisers} == {"provider"}
                assert len(order(ports.chat)) == chats
                assert isinstance(ports.open_transcriber, Alternatives)
                assert ports.open_transcriber.rules == Retrying(3, 20.0, pause_s=0.7)
                ports.warm()  # what may never be asked is not made ready
                await wait_all_tasks_blocked(0.1)
                assert standins.groq.server.connections_open == 1
                assert standins.deepgram.server.connections_open == 1
            await standins.wait_closed()


async def test_embedded_speech_that_is_to_stand_in_and_is_missing_is_told_at_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(weights, "installed", lambda name: False)
    with trio.fail_after(20):
        async with open_standins() as standins:
            given = {
                **standins.environment(),
                "PUBLIC_URL": "https://bot.example",
                "VOICEBOT_FALLBACK_SPEECH": "embedded",
            }
            with pytest.raises(MissingPart, match="not installed: pip install"):
                async with open_ports(load(given)):
                    pytest.fail("opened")
            await standins.wait_closed()


async def test_embedded_speech_stands_in_behind_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    @asynccontextmanager
    async def open_fake(voice: str) -> AsyncGenerator[LocalSpeech]:
        await trio.lowlevel.checkpoint()
        yield LocalSpeech("espeak")

    monkeypatch.setattr("voicebot.local.speech.open_local_speech", open_fake)
    with trio.fail_after(20):
        async with open_standins() as standins:
            given = {
                **standins.environment(),
                "PUBLIC_URL": "https://bot.example",
                "VOICEBOT_FALLBACK_SPEECH": "embedded",
            }
            async with open_ports(load(given | SECOND)) as ports:
                recognisers = order(ports.open_transcriber)
                assert [one.endpointing for one in recognisers] == ["provider"] * 2 + ["local"]
                assert isinstance(order(ports.synthesizer)[-1], LocalSpeech)
                assert ports.endpointing == "provider"
            await standins.wait_closed()


SPEAKERS = {
    "Spanish": Speaker(language="es", voice="aura-2-celeste-es"),
    "low": Speaker(voice="aura-2-zeus-en"),
}


async def test_other_speakers_have_their_voice_and_are_heard_in_their_language() -> None:
    with trio.fail_after(20):
        async with open_standins() as standins:
            given = {**standins.environment(), "PUBLIC_URL": "https://bot.example"}
            async with open_tongues(load(given | SECOND), SPEAKERS) as tongues:
                assert len(order(tongues["Spanish"].synthesizer)) == 2  # both keys
                assert tongues["low"].open_transcriber is None
                for tongue in tongues.values():
                    assert isinstance(tongue.synthesizer, Alternatives)
                    async with tongue.synthesizer.first.open_speech("Hola.") as chunks:
                        assert [chunk async for chunk in chunks]
                [recogniser, _] = order(tongues["Spanish"].open_transcriber)
                async with recogniser.open():
                    pass
            [spanish, low] = standins.deepgram.speak.speeches
            assert dict(spanish.exchange.query)["model"] == "aura-2-celeste-es"
            assert dict(low.exchange.query)["model"] == "aura-2-zeus-en"
            [heard] = standins.deepgram.listen.connections
            assert dict(heard.exchange.query)["language"] == "es"
            await standins.wait_closed()


async def test_other_speakers_need_a_provider_and_a_model_that_knows_their_language(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_tongues(load({}), SPEAKERS) as tongues:
        assert tongues == {}
    assert [record.message for record in caplog.records] == ["speakers_need_deepgram"]
    async with open_standins() as standins:
        given = {**standins.environment(), "PUBLIC_URL": "https://bot.example"}
        flux = {"VOICEBOT_DEEPGRAM_STT_MODEL": "flux-general-en"}
        with pytest.raises(ConfigError, match="'Spanish': flux-general-en hears English only"):
            async with open_tongues(load(given | flux), SPEAKERS):
                pytest.fail("opened")


def test_the_first_answer_of_a_process_waits_for_no_library() -> None:
    program = textwrap.dedent("""
        import sys, trio
        from voicebot.config import load
        from voicebot.parts import open_ports
        from voicebot.ports import Message
        from voicebot.standins import open_standins

        async def main():
            async with open_standins() as standins:
                environ = {**standins.environment(), "PUBLIC_URL": "https://bot.example"}
                async with open_ports(load(environ)) as ports:
                    before = set(sys.modules)
                    async with ports.chat.first.open_reply([Message("user", "hello")]) as answer:
                        assert [delta async for delta in answer]
                    print(*(name for name in set(sys.modules) - before if "encodings" not in name))

        trio.run(main)
    """)
    loaded = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60
    )
    assert set(loaded.stdout.split()) <= {"stringprep"}  # for the name of the host


async def test_what_is_there_when_the_service_of_a_process_is_open_is_searched_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @asynccontextmanager
    async def open_nothing(board: Switchboard, bot: None) -> AsyncGenerator[service.Service]:
        async def serve_media(*of_asgi: object) -> None:
            """Take no call."""

        yield service.Service(serve_media)

    monkeypatch.setattr(service, "open_service", open_nothing)
    try:
        async with service.open_sole_service(Switchboard(load({}))):
            assert gc.get_freeze_count() > 10_000
    finally:
        gc.unfreeze()  # there are other tests in this process
