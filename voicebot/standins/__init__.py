"""Local stand-ins for Deepgram, Groq and Twilio's REST API, over real sockets.

They speak the vendors' wire protocols as documented, deterministically, with delays and faults
to order, so that the bot runs, and is tested and measured, with no key and no network. They
import no client code of this package: each side checks the other.

    async with open_standins() as standins:
        standins.environment()                    # what to set so that the bot uses them
        standins.groq.conducts.once(ChatConduct(drop_after_tokens=2))
        standins.inflict("listen", "close-net-0001")  # from the catalogue, on all requests
        ...
        standins.deepgram.listen.connections[0].audio_bytes

In a process of their own: `voicebot standins`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from voicebot.standins.catalogue import (
    CHAT_FAULTS,
    FAULTS,
    FLUX_FAULTS,
    HOST_FAULTS,
    HOSTS,
    LISTEN_FAULTS,
    REST_FAULTS,
    SPEAK_FAULTS,
    SPEAK_SOCKET_FAULTS,
)
from voicebot.standins.chaos import (
    Chaos,
    random_chat,
    random_flux,
    random_listen,
    random_rest,
    random_speak,
    random_speak_socket,
)
from voicebot.standins.deepgram import Deepgram, open_deepgram
from voicebot.standins.flux import FLUX, FluxConduct
from voicebot.standins.groq import CHAT, ChatConduct, Groq, Replies, open_groq, quote_caller
from voicebot.standins.http11 import Door, Exchange, HttpServer, Report
from voicebot.standins.listen import LISTEN, Heard, ListenConduct, Texts
from voicebot.standins.script import CALLER_TEXTS, Canned, Conduct, Conducts, Rule
from voicebot.standins.speak import SPEAK, SpeakConduct
from voicebot.standins.speak_socket import SPEAK_SOCKET, SpeakSocketConduct
from voicebot.standins.twilio import ACCOUNT_SID, AUTH_TOKEN, REST, RestConduct, Twilio, open_twilio

API_KEY = "standin"


@dataclass(frozen=True, slots=True)
class Standins:
    """All three, running."""

    deepgram: Deepgram
    groq: Groq
    twilio: Twilio

    def environment(self) -> dict[str, str]:
        """Return the variables that make the bot use them."""
        return {
            "DEEPGRAM_URL": self.deepgram.url,
            "DEEPGRAM_API_KEY": API_KEY,
            "GROQ_BASE_URL": self.groq.url,
            "GROQ_API_KEY": API_KEY,
            "TWILIO_API_URL": self.twilio.url,
            "TWILIO_ACCOUNT_SID": ACCOUNT_SID,
            "TWILIO_AUTH_TOKEN": AUTH_TOKEN,
        }

    def inflict(self, where: str, fault: str) -> None:
        """Let a fault of the catalogue happen to all requests from now on, and no other.

        Args:
            where: a service, "listen", "flux", "speak", "speak-socket", "chat" or "rest", or a
                host, "deepgram", "groq" or "twilio": a key of `FAULTS`.
            fault: a key of `FAULTS[where]`.

        Raises:
            KeyError: there is none of that name.
        """
        found = FAULTS[where][fault]
        if where in HOSTS:
            self.hosts[where].door = found
        else:
            self._conducts[where].rule = found

    @property
    def connections_open(self) -> int:
        """TCP connections clients hold open, idle ones included."""
        return sum(host.connections_open for host in self.hosts.values())

    async def wait_closed(self) -> None:
        """Wait until no client holds a connection to any of them."""
        while self.connections_open:
            for host in self.hosts.values():
                await host.wait_closed()

    @property
    def hosts(self) -> dict[str, HttpServer]:
        """The servers by name: what they saw, and their `door`."""
        return {
            "deepgram": self.deepgram.server,
            "groq": self.groq.server,
            "twilio": self.twilio.server,
        }

    @property
    def _conducts(self) -> dict[str, Conducts[Any]]:
        return {
            "listen": self.deepgram.listen.conducts,
            "flux": self.deepgram.flux.conducts,
            "speak": self.deepgram.speak.conducts,
            "speak-socket": self.deepgram.speak_socket.conducts,
            "chat": self.groq.conducts,
            "rest": self.twilio.conducts,
        }


@asynccontextmanager
async def open_standins(
    host: str = "127.0.0.1",
    *,
    deepgram_port: int = 0,
    groq_port: int = 0,
    twilio_port: int = 0,
    texts: Texts = CALLER_TEXTS,
    replies: Replies = quote_caller,
    listen: Rule[ListenConduct] = LISTEN,
    flux: Rule[ListenConduct] = FLUX,
    speak: Rule[SpeakConduct] = SPEAK,
    speak_socket: Rule[SpeakSocketConduct] = SPEAK_SOCKET,
    chat: Rule[ChatConduct] = CHAT,
    rest: Rule[RestConduct] = REST,
    report: Report | None = None,
) -> AsyncGenerator[Standins]:
    """Serve all three while the block runs. They are at once behind the ports they name.

    Args:
        texts: what callers say.
        replies: what the model says.
        listen, flux, speak, speak_socket, chat, rest: the standing conducts: delays and faults.
        report: called when a request or a connection is over.

    Owns: three listening sockets and all connections.
    """
    async with (
        open_deepgram(
            host,
            deepgram_port,
            texts=texts,
            listen=listen,
            flux=flux,
            speak=speak,
            speak_socket=speak_socket,
            report=report,
        ) as deepgram,
        open_groq(host, groq_port, replies=replies, chat=chat, report=report) as groq,
        open_twilio(host, twilio_port, rest=rest, report=report) as twilio,
    ):
        yield Standins(deepgram, groq, twilio)


__all__ = [
    "CALLER_TEXTS",
    "CHAT_FAULTS",
    "FAULTS",
    "FLUX_FAULTS",
    "HOSTS",
    "HOST_FAULTS",
    "LISTEN_FAULTS",
    "REST_FAULTS",
    "SPEAK_FAULTS",
    "SPEAK_SOCKET_FAULTS",
    "Canned",
    "Chaos",
    "ChatConduct",
    "Conduct",
    "Deepgram",
    "Door",
    "Exchange",
    "FluxConduct",
    "Groq",
    "Heard",
    "ListenConduct",
    "Replies",
    "RestConduct",
    "Rule",
    "SpeakConduct",
    "SpeakSocketConduct",
    "Standins",
    "Texts",
    "Twilio",
    "open_deepgram",
    "open_groq",
    "open_standins",
    "open_twilio",
    "random_chat",
    "random_flux",
    "random_listen",
    "random_rest",
    "random_speak",
    "random_speak_socket",
]
