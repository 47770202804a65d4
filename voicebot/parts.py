"""What a service hears, thinks and speaks with: real providers where keys are set, else embedded.

The one place that knows every implementation of the ports. Imports them only when they are
used, so that a server with keys does not load what it does not need, and the other way round.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from voicebot.config import Settings
from voicebot.ports import Chat, OpenTranscriber, Ports, Synthesizer


@asynccontextmanager
async def open_ports(settings: Settings) -> AsyncGenerator[Ports]:
    """Open, once per process, everything that calls talk to.

    Raises:
        MissingPart: an embedded part is not installed; the message says what to install.
        ProviderError: an embedded part does not start.

    Owns: the connections to the providers, or the process that computes speech.
    """
    from voicebot.vad import OpenEars

    async with AsyncExitStack() as stack:
        # Holds the loop for 0.1 s, once, before any call is taken; a thread would hold it too.
        open_ears = OpenEars(settings.hearing)
        warmers: list[Callable[[], None]] = []  # of what talks over a network
        chat = await _open_chat(stack, settings, warmers)
        transcriber, synthesizer = await _open_speech(stack, settings, warmers)

        def warm() -> None:
            for each in warmers:
                each()

        yield Ports(
            open_transcriber=transcriber,
            endpointing="provider" if settings.deepgram else "local",
            chat=chat,
            synthesizer=synthesizer,
            open_ears=open_ears,
            warm=warm,
        )


async def _open_chat(
    stack: AsyncExitStack, settings: Settings, warmers: list[Callable[[], None]]
) -> Chat:
    if settings.groq:
        from voicebot.llm import open_chat

        chat = await stack.enter_async_context(
            open_chat(
                base_url=settings.groq_base_url,
                api_key=settings.groq_api_key.get_secret_value(),
                model=settings.groq_model,
                spares=settings.spare_connections,
            )
        )
        warmers.append(chat.warm)
        return chat
    from voicebot.brain.receptionist import ScriptedBrain

    return ScriptedBrain()


async def _open_speech(
    stack: AsyncExitStack, settings: Settings, warmers: list[Callable[[], None]]
) -> tuple[OpenTranscriber, Synthesizer]:
    if settings.deepgram:
        from voicebot.stt import open_transcriber

        key = settings.deepgram_api_key.get_secret_value()
        synthesizer = await _open_voice(stack, settings, key, warmers)
        transcriber = partial(
            open_transcriber,
            url=settings.deepgram_url,
            api_key=key,
            model=settings.deepgram_stt_model,
            language=settings.language,
            recognition=settings.recognition,
        )
        return transcriber, synthesizer
    from voicebot.local.speech import open_local_speech

    speech = await stack.enter_async_context(open_local_speech(settings.voice))
    return speech.open_transcriber, speech


async def _open_voice(
    stack: AsyncExitStack, settings: Settings, key: str, warmers: list[Callable[[], None]]
) -> Synthesizer:
    url, model = settings.deepgram_url, settings.deepgram_tts_model
    if settings.deepgram_tts_transport == "websocket":
        from voicebot import tts_socket

        by_socket = await stack.enter_async_context(
            tts_socket.open_synthesizer(url=url, api_key=key, model=model)
        )
        warmers.append(by_socket.warm)
        return by_socket
    from voicebot import tts

    by_rest = await stack.enter_async_context(
        tts.open_synthesizer(url=url, api_key=key, model=model, spares=settings.spare_connections)
    )
    warmers.append(by_rest.warm)
    return by_rest
