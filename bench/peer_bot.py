"""A bot on Pipecat that does what ours does in `load.py`, so that the two can be compared.

`load.py --peer` starts it, in the environment of `peer_environment.py`; it serves until SIGTERM.
From its environment it takes DEEPGRAM_URL, DEEPGRAM_API_KEY, GROQ_BASE_URL and GROQ_API_KEY.

Pipecat's own parts, by its public API, at 8,000 Hz all the way, with uvloop and without metrics.
Tuned for a low price: the caller's sound ends where it is last needed, and not behind the whole
pipeline; the end of a turn is silence and a transcript, as with us, and no Smart Turn, which is one
more model; nobody observes; media goes out in messages as long as ours. With `--usual` all that is
as its examples have it, by its defaults.

Two small subclasses are there because the stand-ins for Deepgram hear and speak the telephone's
mu-law only: they convert between it and the 16-bit samples of a pipeline, at some microseconds a
message.

Imports nothing of voicebot: what is not installed here cannot be mixed up with what is measured.
It has asyncio because Pipecat has; nothing of the bot does.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final

# Never installed where types are checked.
import aiohttp
import uvicorn  # type: ignore[import-not-found]
from fastapi import (  # type: ignore[import-not-found]
    FastAPI,
    Request,
    Response,
    WebSocket,
    WebSocketDisconnect,
)
from pipecat.audio.utils import (  # type: ignore[import-not-found]
    create_stream_resampler,
    pcm_to_ulaw,
    ulaw_to_pcm,
)
from pipecat.audio.vad.silero import SileroVADAnalyzer  # type: ignore[import-not-found]
from pipecat.audio.vad.vad_analyzer import VADParams  # type: ignore[import-not-found]
from pipecat.frames.frames import (  # type: ignore[import-not-found]
    TTSAudioRawFrame,
    TTSSpeakFrame,
)
from pipecat.pipeline.pipeline import Pipeline  # type: ignore[import-not-found]
from pipecat.pipeline.worker import (  # type: ignore[import-not-found]
    PipelineParams,
    PipelineWorker,
)
from pipecat.processors.aggregators.llm_context import (  # type: ignore[import-not-found]
    LLMContext,
)
from pipecat.processors.aggregators.llm_response_universal import (  # type: ignore[import-not-found]
    LLMContextAggregatorPair,
    LLMUserAggregatorParams,
)
from pipecat.processors.audio.vad_processor import (  # type: ignore[import-not-found]
    VADProcessor,
)
from pipecat.serializers.twilio import TwilioFrameSerializer  # type: ignore[import-not-found]
from pipecat.services.deepgram.stt import DeepgramSTTService  # type: ignore[import-not-found]
from pipecat.services.deepgram.tts import (  # type: ignore[import-not-found]
    DeepgramHttpTTSService,
)
from pipecat.services.groq.llm import GroqLLMService  # type: ignore[import-not-found]
from pipecat.transports.websocket.fastapi import (  # type: ignore[import-not-found]
    FastAPIWebsocketParams,
    FastAPIWebsocketTransport,
)
from pipecat.turns.user_stop import (  # type: ignore[import-not-found]
    SpeechTimeoutUserTurnStopStrategy,
)
from pipecat.turns.user_turn_strategies import (  # type: ignore[import-not-found]
    UserTurnStrategies,
)
from pipecat.workers.runner import WorkerRunner  # type: ignore[import-not-found]

USUAL: Final = "--usual" in sys.argv
RATE_HZ: Final = 8_000
UNUSED: Final = create_stream_resampler()  # what converts wants one; the rates are the same
MESSAGE_10MS: Final = 4 if USUAL else 8  # of media
PAUSE_S: Final = 0.3  # of the caller, behind the VAD's own 0.2, that ends a turn
PROMPT: Final = "You are on the telephone. Answer briefly."
GREETING: Final = "Hello."


class MulawSTT(DeepgramSTTService):  # type: ignore[misc]
    """Sends mu-law. Half as many bytes as what Pipecat sends by itself."""

    async def run_stt(self, audio: bytes) -> AsyncGenerator[Any]:  # noqa: ASYNC900  # as Pipecat has it
        """Send 16-bit samples; see Pipecat."""
        mulaw = await pcm_to_ulaw(audio, RATE_HZ, RATE_HZ, UNUSED)
        async for frame in super().run_stt(mulaw):
            yield frame


class MulawTTS(DeepgramHttpTTSService):  # type: ignore[misc]
    """Receives mu-law."""

    async def run_tts(self, text: str, context_id: str) -> AsyncGenerator[Any]:  # noqa: ASYNC900  # as Pipecat has it
        """Yield 16-bit samples; see Pipecat."""
        async for frame in super().run_tts(text, context_id):
            if isinstance(frame, TTSAudioRawFrame):
                audio = await ulaw_to_pcm(frame.audio, RATE_HZ, RATE_HZ, UNUSED)
                yield TTSAudioRawFrame(audio, RATE_HZ, 1, context_id=context_id)
            else:
                yield frame


async def answer(request: Request) -> Response:
    """Answer the webhook of a call."""
    url = f"ws://{request.headers['host']}/media"
    twiml = f'<Response><Connect><Stream url="{url}"/></Connect></Response>'
    return Response(twiml, media_type="text/xml")


async def hold(websocket: WebSocket) -> None:
    """Hold a call."""
    await websocket.accept()
    try:
        message = json.loads(await websocket.receive_text())
        while message["event"] != "start":
            message = json.loads(await websocket.receive_text())
    except WebSocketDisconnect:
        return
    worker = build(websocket, message["start"])
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await runner.run()


def build(websocket: WebSocket, start: dict[str, Any]) -> Any:
    """Return the pipeline of a call, which greets and ends with its WebSocket."""
    transport = FastAPIWebsocketTransport(
        websocket,
        FastAPIWebsocketParams(
            audio_in_enabled=True,
            audio_out_enabled=True,
            audio_out_10ms_chunks=MESSAGE_10MS,
            audio_out_end_silence_secs=0,
            serializer=TwilioFrameSerializer(
                start["streamSid"],
                start["callSid"],
                params=TwilioFrameSerializer.InputParams(auto_hang_up=False),
            ),
        ),
    )
    # `base_url` is the documented way to a server of one's own, for all three.
    deepgram, deepgram_key = os.environ["DEEPGRAM_URL"], os.environ["DEEPGRAM_API_KEY"]
    stt = MulawSTT(
        api_key=deepgram_key,
        base_url=deepgram,
        encoding="mulaw",
        audio_passthrough=USUAL,
        settings=MulawSTT.Settings(model="nova-3"),
    )
    llm = GroqLLMService(
        api_key=os.environ["GROQ_API_KEY"],
        base_url=f"{os.environ['GROQ_BASE_URL']}/openai/v1",
        settings=GroqLLMService.Settings(
            model="openai/gpt-oss-20b", reasoning_effort="low", system_instruction=PROMPT
        ),
    )
    tts = MulawTTS(
        api_key=deepgram_key,
        aiohttp_session=websocket.app.state.session,
        base_url=deepgram,
        encoding="mulaw",
        settings=MulawTTS.Settings(voice="aura-2-thalia-en"),
    )
    ears: list[Any] = []
    options: dict[str, Any] = {}
    if USUAL:
        turns = LLMUserAggregatorParams(vad_analyzer=SileroVADAnalyzer())
    else:
        # Not after the volume, which is smoothed: as in the tuned one of `hearing/peer.py`.
        vad = SileroVADAnalyzer(params=VADParams(start_secs=0.1, stop_secs=0.2, min_volume=0.0))
        ears = [VADProcessor(vad_analyzer=vad)]
        stop = SpeechTimeoutUserTurnStopStrategy(user_speech_timeout=PAUSE_S)
        # It begins as by default: with what the VAD hears, or with words that the VAD missed.
        turns = LLMUserAggregatorParams(user_turn_strategies=UserTurnStrategies(stop=[stop]))
        options = {"enable_rtvi": False, "enable_turn_tracking": False, "idle_timeout_secs": None}
    pair = LLMContextAggregatorPair(LLMContext(), user_params=turns)
    mouth = [llm, tts, transport.output(), pair.assistant()]
    worker = PipelineWorker(
        Pipeline([transport.input(), *ears, stt, pair.user(), *mouth]),
        params=PipelineParams(audio_in_sample_rate=RATE_HZ, audio_out_sample_rate=RATE_HZ),
        **options,
    )

    async def greet(transport: Any, websocket: WebSocket) -> None:
        await worker.queue_frame(TTSSpeakFrame(GREETING))

    async def end(transport: Any, websocket: WebSocket) -> None:
        await worker.cancel()

    transport.add_event_handler("on_client_connected", greet)
    transport.add_event_handler("on_client_disconnected", end)
    return worker


def main() -> None:
    """Serve on a free port of loopback, and say which."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=1_024)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        # One for all calls, whose connections are used again. No limit of its own.
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            app.state.session = session
            # Who calls now waits in the backlog for a moment.
            print(f"ready on http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
            yield

    app = FastAPI(lifespan=lifespan)
    app.add_api_route("/twilio/voice", answer, methods=["POST"])
    app.add_api_websocket_route("/media", hold)
    config = uvicorn.Config(app, log_level="warning", access_log=False, loop="uvloop")
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
