"""A local stand-in for Deepgram: `/v1/listen`, `/v2/listen` and `/v1/speak` on one address.

    async with open_deepgram() as deepgram:
        deepgram.url                      # http://127.0.0.1:…
        deepgram.listen.conducts.once(ListenConduct(refusal=TOO_MANY_REQUESTS))

No network, no models: utterances are found by energy and their words come from a script; the
voice is a tone per letter.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from voicebot.standins.deepgram_rules import NOT_FOUND, refuse
from voicebot.standins.flux import FLUX, Flux
from voicebot.standins.http11 import Answer, Exchange, HttpServer, Report, open_http_server
from voicebot.standins.listen import LISTEN, Listen, ListenConduct, Texts
from voicebot.standins.script import CALLER_TEXTS, Rule
from voicebot.standins.speak import SPEAK, Speak, SpeakConduct
from voicebot.standins.speak_socket import SPEAK_SOCKET, SpeakSocket, SpeakSocketConduct


class Deepgram:
    """Control and inspection of a running stand-in."""

    def __init__(
        self,
        server: HttpServer,
        listen: Listen,
        flux: Flux,
        speak: Speak,
        speak_socket: SpeakSocket,
    ) -> None:
        self.server = server
        self.listen = listen
        self.flux = flux
        self.speak = speak
        self.speak_socket = speak_socket

    @property
    def url(self) -> str:
        """What `DEEPGRAM_URL` is to be."""
        return self.server.url


@asynccontextmanager
async def open_deepgram(
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    api_key: str = "standin",
    texts: Texts = CALLER_TEXTS,
    listen: Rule[ListenConduct] = LISTEN,
    flux: Rule[ListenConduct] = FLUX,
    speak: Rule[SpeakConduct] = SPEAK,
    speak_socket: Rule[SpeakSocketConduct] = SPEAK_SOCKET,
    report: Report | None = None,
) -> AsyncGenerator[Deepgram]:
    """Serve the stand-in while the block runs.

    Args:
        api_key: the only key that is accepted.
        texts: what callers say.
        listen: the standing conduct of `/v1/listen`.
        flux: that of `/v2/listen`, which may be a `FluxConduct`.
        speak: the standing conduct of `/v1/speak`.
        speak_socket: that of the WebSocket there.
        report: called when a request or a connection is over.

    Owns: the listening socket and all connections.
    """
    listening = Listen(api_key, texts, listen)
    taking_turns = Flux(api_key, texts, flux)
    speaking = Speak(api_key, speak)
    conversing = SpeakSocket(api_key, speak_socket)

    async def route(exchange: Exchange, answer: Answer) -> None:
        match exchange.method, exchange.path:
            case "GET", "/v1/listen":
                await listening.answer(exchange, answer)
            case "GET", "/v2/listen":
                await taking_turns.answer(exchange, answer)
            case "GET", "/v1/speak":
                await conversing.answer(exchange, answer)
            case "POST", "/v1/speak":
                await speaking.answer(exchange, answer)
            case _:
                await refuse(exchange, answer, NOT_FOUND)

    async with open_http_server("deepgram", route, host, port, report) as server:
        yield Deepgram(server, listening, taking_turns, speaking, conversing)
