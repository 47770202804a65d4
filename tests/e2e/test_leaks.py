"""What a call leaves behind, for every way in which it can end: nothing, within 2 s (I6).

The real server, real sockets, the simulator as Twilio, stand-ins for the providers: all in this
process and in one Trio run, so that every task and file descriptor is in the count. Five calls
at once end the same way, so that a leak of one in a call is five.

Idle keep-alive connections to providers stay, on purpose. Each is one descriptor of the pool,
and one descriptor and one task of the stand-in; they are taken out of the count, and bounded by
the number of calls. A pool's slots in use must be none.

`pytest -s` shows a table.
"""

from __future__ import annotations

import json
import math
import os
import struct
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from socket import SO_LINGER, SO_SNDBUF, SOL_SOCKET, create_server
from ssl import SSLContext
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import trio

from tests.e2e.running import PUBLIC_URL, Server, open_server, recorded
from tests.peer import Gone, Peer, Refused
from voicebot import parts, service, serving, transport
from voicebot.config import Settings
from voicebot.errors import SocketClosed
from voicebot.ports import Ports
from voicebot.record import Outcome
from voicebot.simulator.call import InterruptAfter, Script, Utterance, WhenSilent, run_call
from voicebot.simulator.dial import dial
from voicebot.standins import ChatConduct, ListenConduct, SpeakConduct, Standins, open_standins
from voicebot.standins.deepgram_rules import INTERNAL as DEEPGRAM_FAILS
from voicebot.standins.groq_rules import INTERNAL as GROQ_FAILS

if TYPE_CHECKING:
    import httpcore

CALLS = 5  # at once
BACK_S = 2.0  # the promise
LONG_S = 30.0  # longer than any test
GREETING = "Hi."
STORY = "Once upon a time there was a small house by the sea. An old man lived in it. " * 3
GREETING_BYTES = len(GREETING) * 65 * 8  # as the stand-in speaks

environment = {
    "PUBLIC_URL": PUBLIC_URL,
    "VOICEBOT_GREETING": GREETING,
    "VOICEBOT_DRAIN_S": "0.3",
    "VOICEBOT_START_TIMEOUT_S": "0.3",
    "VOICEBOT_SEND_DEADLINE_S": "0.5",
    "VOICEBOT_TIMEOUTS__MEDIA_S": "0.5",
}


# ------------------------------------------------------------------ a caller that goes wrong


class Phone:
    """A line of the simulator, which ends in the middle, in the way a test wants."""

    def __init__(self, peer: Peer, kind: Kind, scene: Scene) -> None:
        self.peer = peer
        self.call_sid = ""
        self.over_at: float | None = None  # when the call was over, as far as can be seen here
        self.started: str = ""  # the message `start`
        self.media_bytes = self.echoes = self.clears = self.voiced = 0
        self.holding = False  # the socket stays open, whoever may have it at the other end
        self.deaf = False
        self._kind = kind
        self._scene = scene

    async def send(self, text: str) -> None:
        if self.over_at is None and self._kind.moment(self._scene, self):
            await self._kind.end(self)
        message = json.loads(text)
        match message["event"]:
            case "start":
                self.started = text
            case "mark":
                self.echoes += 1
            case "media" if message["media"]["payload"][:8] not in ("////////", "/v7+/v7+"):
                self.voiced += 1
        await self.say(text)

    async def say(self, text: str) -> None:
        try:
            await self.peer.send(text)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            self.over()
            raise SocketClosed(1006) from exc

    async def receive(self) -> str | bytes:
        while True:
            try:
                text = await self.peer.receive()
            except (Gone, trio.ClosedResourceError) as exc:
                self.over()
                raise SocketClosed(exc.code if isinstance(exc, Gone) else 1006) from exc
            match json.loads(text)["event"]:
                case "media":
                    self.media_bytes += len(json.loads(text)["media"]["payload"]) * 3 // 4
                case "clear":
                    self.clears += 1
            if self.deaf:
                await trio.sleep_forever()
            return text

    async def aclose(self) -> None:
        if self.over_at is None and not self.holding:
            await self.close()

    async def close(self) -> None:
        try:
            await self.peer.close()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the other end was faster

    def over(self) -> None:
        if self.over_at is None:
            self.over_at = trio.current_time()
