"""Deepgram `POST /v1/speak`: chunked audio of `voice.py`, faster than real time."""

from __future__ import annotations

import json
import struct
from collections import deque
from dataclasses import dataclass
from typing import Final

import trio

from voicebot import audio
from voicebot.standins.deepgram_rules import (
    ANY,
    BOOL,
    Refusal,
    bad_payload,
    check_auth,
    check_query,
    refuse,
    request_id,
)
from voicebot.standins.http11 import KEPT, Answer, Exchange
from voicebot.standins.script import Conduct, Conducts, Rule
from voicebot.standins.voice import CHAR_MS, speak

TEXT_CHARS: Final = 2_000  # the vendor's current table for Aura-1 and Aura-2
RATE: Final = 8.0  # times real time; Aura is several times as fast as speech
CHUNK_BYTES: Final = 2_001  # a quarter of a second, and on purpose no multiple of a frame

_ALLOWED: Final = {
    "model": r"aura(-2)?-[a-z]+-[a-z]{2}",
    "encoding": "mulaw",
    "container": "none|wav",
    "sample_rate": "8000",
    "speed": r"0\.[7-9]\d*|1(\.[0-4]\d*|\.50*|\.)?",
    "mip_opt_out": BOOL,
    "tag": ANY,
}


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SpeakConduct(Conduct):
    """How one request is treated."""

    refusal: Refusal | None = None
    rate: float = RATE  # math.inf: all at once
    chunk_bytes: int = CHUNK_BYTES
    wav: bool = False  # as if no `container=none` had been asked for


SPEAK: Final = SpeakConduct()


@dataclass(eq=False, slots=True)
class Speech:
    """One accepted request: what is spoken; `exchange` knows how far it got."""

    exchange: Exchange
    text: str
    audio_bytes: int


class Speak:
    """The endpoint: control and inspection."""

    def __init__(self, api_key: str, rule: Rule[SpeakConduct]) -> None:
        self.conducts: Conducts[SpeakConduct] = Conducts(rule)
        self.speeches: deque[Speech] = deque(maxlen=KEPT)
        self._api_key = api_key

    async def answer(self, exchange: Exchange, answer: Answer) -> None:
        """Serve one request."""
        conduct = self.conducts.take(exchange)
        await conduct.meet(answer)
        text, refusal = _read_text(exchange)
        refusal = (
            conduct.refusal
            or check_auth(exchange, self._api_key)
            or check_query(exchange, _ALLOWED, required=("encoding",), repeatable=("tag",))
            or refusal
        )
        if refusal is not None:
            await refuse(exchange, answer, refusal)
            return
        query = dict(exchange.query)
        body = speak(text, round(CHAR_MS / float(query.get("speed", "1"))))
        bare = query.get("container") == "none" and not conduct.wav
        self.speeches.append(Speech(exchange, text, len(body)))
        headers = [
            ("Content-Type", "audio/mulaw;rate=8000" if bare else "audio/wav"),
            ("dg-request-id", request_id(exchange)),
            ("dg-model-name", query.get("model", "aura-asteria-en")),
            ("dg-char-count", str(len(text))),
        ]
        await answer.start(200, headers)
        await _stream(answer, body if bare else _wav_header() + body, conduct)


async def _stream(answer: Answer, body: bytes, conduct: SpeakConduct) -> None:
    begin = trio.current_time()
    for at in range(0, len(body), conduct.chunk_bytes):
        await trio.sleep_until(begin + at / audio.BYTES_PER_S / conduct.rate)
        await answer.write(body[at : at + conduct.chunk_bytes])
    await answer.end()


def _read_text(exchange: Exchange) -> tuple[str, Refusal | None]:
    if not exchange.headers.get("content-type", "").startswith("application/json"):
        return "", bad_payload("Expected Content-Type: application/json.")
    try:
        body = json.loads(exchange.body)
    except ValueError:
        return "", bad_payload("Failed to parse the body as JSON.")
    text = body.get("text") if isinstance(body, dict) else None
    if not isinstance(text, str) or set(body) != {"text"}:
        return "", bad_payload("Expected exactly the field `text`, a string.")
    if not text.strip():
        return "", bad_payload("Input text contains no characters.")
    if len(text) > TEXT_CHARS:
        message = f"Input text exceeds maximum character limit of {TEXT_CHARS}."
        return "", Refusal(413, "Payload Too Large", message)
    return text, None


def _wav_header() -> bytes:
    """Return the header of a WAV of unknown length: mu-law, 8,000 Hz, mono."""
    unknown = 0xFFFF_FFFF
    fmt = struct.pack("<HHIIHHH", 7, 1, audio.RATE_HZ, audio.BYTES_PER_S, 1, 8, 0)
    return (
        struct.pack("<4sI4s4sI", b"RIFF", unknown, b"WAVE", b"fmt ", len(fmt))
        + fmt
        + struct.pack("<4sI", b"data", unknown)
    )
