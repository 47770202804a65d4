"""Local stand-ins for Deepgram, Groq and Twilio's REST API, over real sockets.

They speak the vendors' wire protocols as documented, deterministically, with delays and faults
to order, so that the bot runs, and is tested and measured, with no key and no network. They
import no client code of this package: each side checks the other.

    async with open_standins() as standins:
        standins.environment()                    # what to set so that the bot uses them
        standins.groq.conducts.once(ChatConduct(drop_after_tokens=2))
        ...
        standins.deepgram.listen.connections[0].audio_bytes

In a process of their own: `voicebot standins`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from voicebot.standins.deepgram import Deepgram, open_deepgram
from voicebot.standins.groq import CHAT, ChatConduct, Groq, Replies, open_groq, quote_caller
from voicebot.standins.http11 import Exchange, HttpServer, Report
from voicebot.standins.listen import LISTEN, Heard, ListenConduct, Texts
from voicebot.standins.script import CALLER_TEXTS, Rule
from voicebot.standins.speak import SPEAK, SpeakConduct
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

    @property
    def connections_open(self) -> int:
        """TCP connections clients hold open, idle ones included."""
        return sum(server.connections_open for server in self._servers)

    async def wait_closed(self) -> None:
        """Wait until no client holds a connection to any of them."""
        while self.connections_open:
            for server in self._servers:
                await server.wait_closed()

    @property
    def _servers(self) -> tuple[HttpServer, ...]:
        return self.deepgram.server, self.groq.server, self.twilio.server


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
    speak: Rule[SpeakConduct] = SPEAK,
    chat: Rule[ChatConduct] = CHAT,
    rest: Rule[RestConduct] = REST,
    report: Report | None = None,
) -> AsyncGenerator[Standins]:
    """Serve all three while the block runs. They are at once behind the ports they name.

    Args:
        texts: what callers say.
        replies: what the model says.
        listen, speak, chat, rest: the standing conducts: delays and faults.
        report: called when a request or a connection is over.

    Owns: three listening sockets and all connections.
    """
    async with (
        open_deepgram(
            host, deepgram_port, texts=texts, listen=listen, speak=speak, report=report
        ) as deepgram,
        open_groq(host, groq_port, replies=replies, chat=chat, report=report) as groq,
        open_twilio(host, twilio_port, rest=rest, report=report) as twilio,
    ):
        yield Standins(deepgram, groq, twilio)


__all__ = [
    "CALLER_TEXTS",
    "ChatConduct",
    "Deepgram",
    "Exchange",
    "Groq",
    "Heard",
    "ListenConduct",
    "Replies",
    "RestConduct",
    "SpeakConduct",
    "Standins",
    "Texts",
    "Twilio",
    "open_deepgram",
    "open_groq",
    "open_standins",
    "open_twilio",
]
