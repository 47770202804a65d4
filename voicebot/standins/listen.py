"""Deepgram `GET /v1/listen`: the WebSocket around `hearing.py`.

Checks the upgrade, takes audio and control messages, sends results with a delay, closes as
documented, and misbehaves as told. Everything about *what* is heard is in `hearing.py`, and
what messages turn into on a bad day in `garble.py`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import trio

from voicebot.standins.deepgram_rules import (
    ANY,
    BOOL,
    Refusal,
    bad_payload,
    check_auth,
    check_query,
    invalid_parameter,
    refuse,
    request_id,
)
from voicebot.standins.garble import BROKEN_FRAME, Garble, Garbler
from voicebot.standins.hearing import SPEECH_DBOV, Features, Message, Recognizer
from voicebot.standins.http11 import KEPT, Answer, Exchange
from voicebot.standins.script import Conduct, Conducts, Rule, nth
from voicebot.standins.websocket import BadUpgrade, WebSocket

IDLE_S: Final = 10.0  # without audio and KeepAlive: NET-0001
OUTBOX: Final = 1_024  # results under way when they are delayed: minutes of speech

_ALLOWED: Final = {
    "model": r"(nova-3|nova-2|nova|enhanced|base|general)(-[a-z]+)*",
    "encoding": "mulaw",
    "sample_rate": "8000",
    "channels": "1",
    "multichannel": "false",
    "language": r"multi|[a-z]{2}(-[A-Za-z0-9]+)*",
    "endpointing": rf"\d{{1,5}}|{BOOL}",
    "utterance_end_ms": r"[1-4]\d{3}|5000",
    **dict.fromkeys(
        (
            "interim_results",
            "vad_events",
            "smart_format",
            "punctuate",
            "numerals",
            "profanity_filter",
            "dictation",
            "no_delay",
            "diarize",
            "detect_entities",
            "mip_opt_out",
        ),
        BOOL,
    ),
    **dict.fromkeys(
        (
            "language_hint",
            "keyterm",
            "keywords",
            "redact",
            "replace",
            "search",
            "diarize_model",
            "tag",
            "extra",
            "callback",
            "version",
        ),
        ANY,
    ),
}
_REPEATABLE: Final = frozenset(
    ("language_hint", "keyterm", "keywords", "redact", "replace", "search", "tag", "extra")
)
_MODEL_INFO: Final = {"name": "general-nova-3", "version": "2025-04-17.21547", "arch": "nova-3"}
_MODEL_UUID: Final = "00000000-0000-4000-8000-6e6f76612d33"
_CREATED: Final = "2026-01-01T00:00:00.000Z"  # constant: no run differs from another


class Heard(NamedTuple):
    """Where an utterance was heard: connections and utterances are counted from 0."""

    connection: int
    utterance: int
    query: Sequence[tuple[str, str]]


#: What callers say: the n-th text for the n-th utterance of each connection, or a function.
Texts = Sequence[str] | Callable[[Heard], str]


class Close(NamedTuple):
    """What a connection is closed with; 1005 goes out as a close frame without a code."""

    code: int
    reason: str = ""


GOOD_BYE: Final = Close(1000)
NET_0000: Final = Close(
    1011,
    "NET-0000: Deepgram did not provide a response message within the timeout window. "
    "See https://dpgr.am/net0000",
)
NET_0001: Final = Close(
    1011,
    "NET-0001: Deepgram did not receive audio data or a text message within the timeout "
    "window. See https://dpgr.am/net0001",
)
DATA_0000: Final = Close(1008, "DATA-0000: The payload cannot be decoded.")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ListenConduct(Conduct):
    """How one connection is treated. Bytes are bytes of audio received."""

    refusal: Refusal | None = None  # instead of the upgrade
    result_delay_s: float = 0.0  # added to every message
    idle_s: float = IDLE_S
    # The vendor's pages disagree whether KeepAlive counts before the first audio. Not here.
    keepalive_before_audio: bool = False
    speech_dbov: float = SPEECH_DBOV
    speech_final: bool = True  # False: as under steady noise, only UtteranceEnd comes
    close: Close = GOOD_BYE  # with `end_after_bytes`
    garble: Garble | None = None  # what is wrong with the messages


LISTEN: Final = ListenConduct()


@dataclass(eq=False, slots=True)
class Listening:
    """One accepted connection, while it lasts and afterwards."""

    exchange: Exchange
    features: Features
    audio_bytes: int = 0
    controls: list[str] = field(default_factory=list)  # types of the client's messages
    sent: Counter[str] = field(default_factory=Counter)  # types of what went out
    close_code: int | None = None  # the client's; 1006: it vanished


class Listen:
    """The endpoint: control and inspection."""

    def __init__(self, api_key: str, texts: Texts, rule: Rule[ListenConduct]) -> None:
        self.conducts: Conducts[ListenConduct] = Conducts(rule)
        self.texts = texts
        self.connections: deque[Listening] = deque(maxlen=KEPT)
        self.connections_open = 0
        self.connections_total = 0
        self._api_key = api_key

    async def answer(self, exchange: Exchange, answer: Answer) -> None:
        """Serve one upgrade request and the connection that comes of it."""
        conduct = self.conducts.take(exchange)
        await conduct.meet(answer)
        refusal = conduct.refusal or _check(exchange, self._api_key)
        if refusal is not None:
            await refuse(exchange, answer, refusal)
            return
        try:
            socket = await answer.accept_websocket([("dg-request-id", request_id(exchange))])
        except BadUpgrade as exc:
            await refuse(exchange, answer, bad_payload(str(exc)))
            return
        listening = Listening(exchange, _features(dict(exchange.query)))
        number = self.connections_total
        self.connections.append(listening)
        self.connections_total += 1
        self.connections_open += 1
        try:
            stream = _Stream(socket, listening, conduct, self._text_of(number, exchange))
            end = await stream.run()
        finally:
            self.connections_open -= 1
            listening.close_code = socket.close_code
        if end.cut:
            answer.drop(reset=end.reset)

    def _text_of(self, connection: int, exchange: Exchange) -> Callable[[int], str]:
        texts, query = self.texts, exchange.query
        if callable(texts):
            return lambda n: texts(Heard(connection, n, query))
        return lambda n: nth(texts, n)


class _End(NamedTuple):
    close: Close | None = None  # None: without a close frame
    flush: bool = False  # what is on its way out is delivered first
    cut: bool = False
    reset: bool = False


_GONE: Final = _End()
_CLOSED: Final = _End(GOOD_BYE, flush=True)
_NONSENSE: Final = _End(DATA_0000)


class _Stream:
    """One connection after the 101."""

    def __init__(
        self,
        socket: WebSocket,
        listening: Listening,
        conduct: ListenConduct,
        text_of: Callable[[int], str],
    ) -> None:
        self._socket = socket
        self._listening = listening
        self._conduct = conduct
        self._id = request_id(listening.exchange)
        self._sha256 = hashlib.sha256()
        self._recognizer = Recognizer(
            listening.features,
            text_of,
            {"request_id": self._id, "model_info": _MODEL_INFO, "model_uuid": _MODEL_UUID},
            speech_dbov=conduct.speech_dbov,
            speech_final=conduct.speech_final,
        )
        self._garbler = Garbler(conduct.garble)
        self._silent = False
        self._idle_at = trio.current_time() + conduct.idle_s

    async def run(self) -> _End:
        """Serve the connection to its end, and close it unless it is gone or to be cut."""
        end = _GONE
        outbox_send, outbox_receive = trio.open_memory_channel[tuple[float, Message]](OUTBOX)
        async with trio.open_nursery() as nursery:  # owns: deliver; ends with the last message
            nursery.start_soon(self._deliver, outbox_receive, nursery.cancel_scope)
            with outbox_send:
                end = await self._receive(outbox_send)
            if end.flush:  # deliver cancels this when all is said
                while await self._socket.receive() is not None:
                    pass
            nursery.cancel_scope.cancel(reason="connection over")
        if end.close is not None:
            await self._socket.close(*end.close)
        return end

    async def _deliver(
        self,
        outbox: trio.MemoryReceiveChannel[tuple[float, Message]],
        connection: trio.CancelScope,
    ) -> None:
        async for due, message in outbox:
            await trio.sleep_until(due)
            if self._silent:
                continue
            try:
                if self._conduct.garble == "broken-frame":
                    await self._socket.send_raw(BROKEN_FRAME)
                for wire in self._garbler.turn(message):
                    await self._socket.send(wire)
            except trio.BrokenResourceError:
                break  # the client is gone
            self._listening.sent[message["type"]] += 1
        connection.cancel(reason="all said")

    async def _receive(self, outbox: trio.MemorySendChannel[tuple[float, Message]]) -> _End:
        while True:
            message: bytes | str | None = None
            with trio.move_on_at(math.inf if self._silent else self._idle_at) as waiting:
                message = await self._socket.receive()
            if waiting.cancelled_caught:
                return _End(NET_0001)
            if message is None:
                return _GONE
            if isinstance(message, str):
                results, end = self._control(message)
            elif message:
                results, end = self._audio(message)
            else:
                results, end = self._finish(), _CLOSED  # a zero-length frame closes, too
            if self._silent:
                continue
            due = trio.current_time() + self._conduct.result_delay_s
            for result in results:
                await outbox.send((due, result))
            if end is not None:
                return end

    def _audio(self, audio: bytes) -> tuple[list[Message], _End | None]:
        self._listening.audio_bytes += len(audio)
        self._sha256.update(audio)
        self._idle_at = trio.current_time() + self._conduct.idle_s
        stop, how = self._conduct.stop()
        if self._listening.audio_bytes < stop:
            return self._recognizer.hear(audio), None
        if how == "stall":
            self._silent = True
            return [], None
        if how == "end":
            return [], _End(self._conduct.close)
        return [], _End(cut=True, reset=how == "reset")

    def _control(self, text: str) -> tuple[list[Message], _End | None]:
        try:
            message = json.loads(text)
            kind = message["type"]
        except (ValueError, TypeError, KeyError):
            return [], _NONSENSE
        self._listening.controls.append(str(kind))
        match kind:
            case "KeepAlive":
                if self._listening.audio_bytes or self._conduct.keepalive_before_audio:
                    self._idle_at = trio.current_time() + self._conduct.idle_s
                return [], None
            case "Finalize":
                return self._recognizer.finalize(), None
            case "CloseStream":
                return self._finish(), _CLOSED
            case "Configure":
                return [], None  # whether it is acknowledged is not settled; this one is silent
            case _:
                return [], _NONSENSE

    def _finish(self) -> list[Message]:
        metadata = {
            "type": "Metadata",
            "transaction_key": "deprecated",
            "request_id": self._id,
            "sha256": self._sha256.hexdigest(),
            "created": _CREATED,
            "duration": self._recognizer.duration_s,
            "channels": 1,
        }
        return [*self._recognizer.finish(), metadata]


def _check(exchange: Exchange, api_key: str) -> Refusal | None:
    if refusal := check_auth(exchange, api_key):
        return refusal
    if refusal := check_query(
        exchange, _ALLOWED, required=("encoding", "sample_rate"), repeatable=_REPEATABLE
    ):
        return refusal
    query = dict(exchange.query)
    if "utterance_end_ms" in query and query.get("interim_results") != "true":
        return invalid_parameter("utterance_end_ms requires interim_results=true")
    if not exchange.wants_websocket:
        return bad_payload("Expected a WebSocket upgrade.")
    return None


def _features(query: dict[str, str]) -> Features:
    endpointing = query.get("endpointing", "true")
    utterance_end = query.get("utterance_end_ms")
    default = Features()
    return Features(
        interim_results=query.get("interim_results") == "true",
        endpointing_ms=(
            int(endpointing)
            if endpointing.isdigit()
            else default.endpointing_ms
            if endpointing == "true"
            else None
        ),
        utterance_end_ms=int(utterance_end) if utterance_end else None,
        vad_events=query.get("vad_events") == "true",
        punctuate="true" in (query.get("punctuate"), query.get("smart_format")),
    )
