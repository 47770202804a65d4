"""What a service hears, thinks and speaks with: real providers where keys are set, else embedded.

The one place that knows every implementation of the ports. Imports them only when they are
used, so that a server with keys does not load what it does not need, and the other way round.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial

from pydantic import SecretStr

from voicebot.bot import Speaker
from voicebot.config import Settings
from voicebot.errors import ConfigError
from voicebot.ports import Chat, Ports, Recogniser, Synthesizer, Tongue
from voicebot.tries import Alternatives

log = logging.getLogger(__name__)


@asynccontextmanager
async def open_ports(settings: Settings, brain: Chat | None = None) -> AsyncGenerator[Ports]:
    """Open, once per process, everything that calls talk to.

    Args:
        brain: what answers where no language model is configured; None: the receptionist.

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
        chats = await _open_chats(stack, settings, brain, warmers)
        recognisers, voices = await _open_speech(stack, settings, warmers)

        def warm() -> None:
            for each in warmers:
                each()

        rules = settings.timeouts.retrying
        patient = replace(rules, pause_s=settings.timeouts.transcriber_pause_s)
        yield Ports(
            open_transcriber=Alternatives(recognisers, patient),
            endpointing=recognisers[0].endpointing,
            chat=Alternatives(chats, rules),
            synthesizer=Alternatives(voices, rules),
            open_ears=open_ears,
            warm=warm,
        )


@asynccontextmanager
async def open_tongues(
    settings: Settings, speakers: Mapping[str, Speaker]
) -> AsyncGenerator[dict[str, Tongue]]:
    """Open, once per process, what speaks and listens for the other speakers of a bot.

    Without Deepgram there are none: the embedded parts have one voice, and know English.

    Raises:
        ConfigError: the model that listens does not know one of the languages.

    Owns: the connections to the provider.
    """
    if speakers and not settings.deepgram:
        log.warning("speakers_need_deepgram", extra={"speakers": list(speakers)})
        speakers = {}
    model = settings.deepgram_stt_model
    problems = [
        f"Bot: speakers: {name!r}: {what}"
        for name, speaker in speakers.items()
        for setting, what in settings.recognition.problems(model, speaker.language or "en")
        if not setting  # those of settings are told elsewhere
    ]
    if problems:
        raise ConfigError(problems)
    rules = settings.timeouts.retrying
    patient = replace(rules, pause_s=settings.timeouts.transcriber_pause_s)
    async with AsyncExitStack() as stack:
        tongues = {}
        for name, speaker in speakers.items():
            own = {"deepgram_tts_model": speaker.voice, "language": speaker.language}
            given = {setting: value for setting, value in own.items() if value is not None}
            theirs = settings.model_copy(update=given)
            recognisers, voices = await _open_deepgram(stack, theirs, [])
            heard = None if speaker.language is None else Alternatives(recognisers, patient)
            tongues[name] = Tongue(Alternatives(voices, rules), heard)
        yield tongues


async def _open_chats(
    stack: AsyncExitStack,
    settings: Settings,
    brain: Chat | None,
    warmers: list[Callable[[], None]],
) -> list[Chat]:
    """Open the language models: those of the first key, then those of the second."""
    if settings.groq:
        from voicebot.llm import open_chats

        keys = [settings.groq_api_key, settings.groq_fallback_api_key]
        chats: list[Chat] = []
        for key in _given(keys) or [""]:
            opened = await stack.enter_async_context(
                open_chats(
                    base_url=settings.groq_base_url,
                    api_key=key,
                    models=settings.groq_models,
                    spares=0 if chats else settings.spare_connections,
                )
            )
            if not chats:
                warmers.append(opened[0].warm)
            chats += opened
        return chats
    if brain is not None:
        return [brain]
    from voicebot.brain.receptionist import ScriptedBrain

    return [ScriptedBrain()]


async def _open_speech(
    stack: AsyncExitStack, settings: Settings, warmers: list[Callable[[], None]]
) -> tuple[list[Recogniser], list[Synthesizer]]:
    """Open recognisers and voices: of each key, and the embedded ones where they are wanted."""
    recognisers: list[Recogniser] = []
    voices: list[Synthesizer] = []
    if settings.deepgram:
        recognisers, voices = await _open_deepgram(
            stack, settings, warmers, spares=settings.spare_connections
        )
    if not settings.deepgram or settings.fallback_speech == "embedded":
        from voicebot.local.speech import open_local_speech

        speech = await stack.enter_async_context(open_local_speech(settings.voice))
        voices.append(speech)
        recognisers.append(Recogniser(speech.open_transcriber, "local", speech.name))
    return recognisers, voices


async def _open_deepgram(
    stack: AsyncExitStack,
    settings: Settings,
    warmers: list[Callable[[], None]],
    *,
    spares: int = 0,
) -> tuple[list[Recogniser], list[Synthesizer]]:
    """Open recognisers and voices of each key; the first voice is kept warm."""
    from voicebot.deepgram import STT
    from voicebot.stt import open_transcriber

    recognisers: list[Recogniser] = []
    voices: list[Synthesizer] = []
    for key in _given([settings.deepgram_api_key, settings.deepgram_fallback_api_key]):
        ready, warming = (0, []) if voices else (spares, warmers)
        voices.append(await _open_voice(stack, settings, key, ready, warming))
        opener = partial(
            open_transcriber,
            url=settings.deepgram_url,
            api_key=key,
            model=settings.deepgram_stt_model,
            language=settings.language,
            recognition=settings.recognition,
            connect_timeout_s=settings.timeouts.transcriber_connect_s,
            stall_s=settings.timeouts.transcriber_stall_s,
        )
        recognisers.append(Recogniser(opener, "provider", STT))
    return recognisers, voices


async def _open_voice(
    stack: AsyncExitStack,
    settings: Settings,
    key: str,
    spares: int,
    warmers: list[Callable[[], None]],
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
        tts.open_synthesizer(url=url, api_key=key, model=model, spares=spares)
    )
    warmers.append(by_rest.warm)
    return by_rest


def _given(keys: Sequence[SecretStr]) -> list[str]:
    return [value for key in keys if (value := key.get_secret_value())]
