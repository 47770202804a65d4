"""What must hold for each codec whatever it is given: one function for each, bytes in.

Shared by the random tests (Hypothesis, `test_codecs.py`) and the coverage-guided ones (atheris,
`many.py`). A message stream is bytes in which `SEPARATOR` lies between two messages, and a message
that begins with `BINARY` is a binary one. An assertion that fails, or an exception that no
codec is meant to raise, is a fault.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, Final

from voicebot import completions, deepgram, deepgram_speech, flux, ports, refusals, sse, twilio
from voicebot.deepgram import Skipped
from voicebot.errors import ProviderError, RemoteProtocolError
from voicebot.local import wire

SEPARATOR: Final = b"\x1e"  # ASCII's own; JSON never has it bare
BINARY: Final = b"\x00"
DETAIL_CHARS: Final = 300  # what a log line may repeat of a message


def twilio_stream(data: bytes) -> None:
    """Twilio's messages: nothing but the documented order, and garbage changes nothing."""
    stream = twilio.MediaStream()
    started = stopped = False
    for message in _messages(data):
        try:
            event = stream.receive(message)
        except RemoteProtocolError as exc:
            assert exc.kind in {"oversized_message", "second_start"}, exc.kind
            assert exc.close_code in {1008, 1009}
            assert exc.kind != "second_start" or started
            return
        match event:
            case twilio.Start():
                assert not started
                started = True
                for name in (event.stream_sid, event.call_sid, event.account_sid):
                    assert 0 < len(name) <= 200
                assert all(
                    isinstance(one, str) for pair in event.parameters.items() for one in pair
                )
            case twilio.Media():
                assert started and not stopped
                assert 0 < len(event.audio) <= twilio.MAX_AUDIO_BYTES
                assert 0 <= event.timestamp_ms < 10**15
            case twilio.Dtmf():
                assert started and not stopped
                assert event.digit in set("0123456789*#ABCD")
            case twilio.Mark():
                assert started and not stopped
                assert 0 < len(event.name) <= 200
            case twilio.Stop():
                assert not stopped
                stopped = True
            case twilio.Connected():
                assert not started
            case twilio.Anomaly():
                assert len(event.detail) <= DETAIL_CHARS
        assert (stream.start is not None, stream.ended) == (started, stopped)
    if stream.start is not None and not stopped:
        good = {
            "event": "media",
            "streamSid": stream.start.stream_sid,
            "media": {"timestamp": "7", "payload": "//8="},
        }
        assert stream.receive(json.dumps(good)) == twilio.Media(7, b"\xff\xff")


def deepgram_listen(data: bytes) -> None:
    """Deepgram's v1 messages: a transcript or a reason, never an exception."""
    listening = deepgram.Listening()
    for message in _messages(data):
        _check_transcript(listening.receive(message))
    assert listening.closed(1006, "").retryable


def flux_listen(data: bytes) -> None:
    """Deepgram's v2 messages: as v1."""
    listening = flux.Listening()
    for message in _messages(data):
        _check_transcript(listening.receive(message))
    assert isinstance(listening.closed(1011, "NET-0001"), ProviderError)


def deepgram_speak(data: bytes) -> None:
    """The speech socket's messages: audio belongs to a piece, and a piece ends once."""
    speaking = deepgram_speech.Speaking()
    for number, message in enumerate(_messages(data)):
        asked = speaking.idle and speaking.may_speak(10, float(number))
        if asked:
            speaking.speak(10, float(number))
        elif not speaking.idle and number % 5 == 4 and not _clearing(speaking):
            speaking.clear()
        waits = not speaking.idle
        match speaking.receive(message):
            case bytes() as audio:
                assert waits and audio
            case Skipped(_, detail):
                assert len(detail) <= DETAIL_CHARS
            case _:
                assert waits and speaking.idle


def chat_stream(data: bytes) -> None:
    """A chat completion: however the bytes are cut, the same events, and only text in them."""
    whole, cut = sse.Decoder(), sse.Decoder()
    size = 1 + len(data) % 7
    try:
        events = whole.feed(data)
        pieces = [
            event
            for start in range(0, len(data), size)
            for event in cut.feed(data[start : start + size])
        ]
    except RemoteProtocolError as exc:
        assert exc.kind == "oversized_event"
        return
    assert pieces == events
    assembler = completions.Assembler()
    for event in events:
        try:
            parts = assembler.feed(completions.read_event(event))
        except ProviderError as exc:
            assert len(str(exc)) < 1_000
            return
        for part in parts:
            if isinstance(part, str):
                part.encode()  # no lone surrogate gets to the voice
                continue
            json.dumps([part.id, part.name, part.arguments], ensure_ascii=False).encode()
            assert part.name and len(part.arguments) <= completions.MAX_ARGUMENTS_CHARS


def chat_refusal(data: bytes) -> None:
    """The body of a refused chat request, of any shape, with headers of any text."""
    body, _, head = data.partition(SEPARATOR)
    try:
        error = json.loads(body)
    except (ValueError, RecursionError):
        error = body.decode("utf-8", "replace")
    error = error.get("error", error) if isinstance(error, dict) else error
    said = head.decode("utf-8", "replace")
    headers = {"retry-after": said, "date": said, "x-ratelimit-reset-tokens": said}
    refusal = refusals.refusal(error, 429 if len(data) % 2 else 0, headers)
    assert len(str(refusal)) < 1_000
    assert refusal.retry_after_s is None or 0 <= refusal.retry_after_s <= refusals.MAX_WAIT_S


def speech_pipe(data: bytes) -> None:
    """The pipe of offline speech: however it is cut, the same messages, or the stream's end."""
    whole, cut = wire.Decoder(), wire.Decoder()
    results: list[list[wire.Message] | None] = []
    size = 1 + len(data) % 11
    for decoder, step in ((whole, max(1, len(data))), (cut, size)):
        messages: list[wire.Message] | None = []
        for start in range(0, len(data), step):
            try:
                assert messages is not None
                messages += decoder.push(data[start : start + step])
            except RemoteProtocolError:
                messages = None
                break
        results.append(messages)
    assert results[0] == results[1]
    if results[0]:
        assert data.startswith(b"".join(message.encode() for message in results[0]))


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    one.__name__: one
    for one in (
        *(twilio_stream, deepgram_listen, flux_listen, deepgram_speak),
        *(chat_stream, chat_refusal, speech_pipe),
    )
}


def _messages(data: bytes) -> Iterator[str | bytes]:
    for part in data.split(SEPARATOR):
        # A WebSocket gives no text that is not UTF-8, so neither does this.
        yield part[1:] if part.startswith(BINARY) else part.decode("utf-8", "ignore")


def _clearing(speaking: deepgram_speech.Speaking) -> bool:
    return speaking._state is deepgram_speech._State.CLEARING


def _check_transcript(heard: ports.Transcript | Skipped) -> None:
    match heard:
        case Skipped(_, detail):
            assert len(detail) <= DETAIL_CHARS
        case ports.Final(text, _, _, until_ms):
            assert isinstance(text, str)
            assert until_ms is None or until_ms >= 0
        case ports.Partial(text) | ports.LikelyEnd(text):
            assert isinstance(text, str)
        case ports.UtteranceEnd():
            pass


# --- Well-formed messages, which both kinds of fuzzing begin with

_START: Final[dict[str, Any]] = {
    "event": "start",
    "sequenceNumber": "1",
    "streamSid": "MZ1",
    "start": {
        "accountSid": "AC1",
        "streamSid": "MZ1",
        "callSid": "CA1",
        "tracks": ["inbound"],
        "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
        "customParameters": {"token": "t"},
    },
}

SEEDS: Final[dict[str, list[Any]]] = {
    "twilio_stream": [
        {"event": "connected", "protocol": "Call", "version": "1.0.0"},
        _START,
        {
            "event": "media",
            "sequenceNumber": "2",
            "streamSid": "MZ1",
            "media": {"track": "inbound", "chunk": "1", "timestamp": "5", "payload": "//8="},
        },
        {"event": "dtmf", "streamSid": "MZ1", "sequenceNumber": "3", "dtmf": {"digit": "1"}},
        {"event": "mark", "sequenceNumber": "4", "streamSid": "MZ1", "mark": {"name": "1.0.2"}},
        {"event": "stop", "sequenceNumber": "5", "streamSid": "MZ1", "stop": {"callSid": "CA1"}},
    ],
    "deepgram_listen": [
        {
            "type": "Results",
            "start": 0.0,
            "duration": 1.0,
            "is_final": True,
            "speech_final": False,
            "from_finalize": False,
            "channel": {"alternatives": [{"transcript": "yes", "words": []}]},
        },
        {"type": "UtteranceEnd", "channel": [0, 1], "last_word_end": 2.0},
        {"type": "SpeechStarted", "timestamp": 0.5},
        {"type": "Metadata", "request_id": "r"},
        {"type": "Error", "description": "no", "message": "no"},
    ],
    "flux_listen": [
        *(
            {
                "type": "TurnInfo",
                "event": event,
                "turn_index": 0,
                "sequence_id": number,
                "audio_window_end": 1.0,
                "transcript": "yes",
                "words": [],
            }
            for number, event in enumerate(
                ("StartOfTurn", "Update", "EagerEndOfTurn", "TurnResumed", "EndOfTurn")
            )
        ),
        {"type": "Connected"},
        {"type": "Error", "code": "UNPARSABLE_CLIENT_MESSAGE", "description": "no"},
    ],
    "deepgram_speak": [
        {"type": "Flushed", "sequence_id": 0},
        {"type": "Cleared", "sequence_id": 0},
        {"type": "Warning", "code": "W", "description": "no"},
        {"type": "Error", "code": "E", "description": "no"},
    ],
    "chat_stream": [
        {"choices": [{"delta": {"content": "Hello <think>"}, "finish_reason": None}]},
        {
            "choices": [
                {
                    "delta": {
                        "tool_calls": [
                            {"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}
                        ]
                    }
                }
            ]
        },
        {"choices": [{"delta": {}, "finish_reason": "tool_calls"}]},
        {"error": {"message": "no", "code": "rate_limit_exceeded"}},
    ],
    "chat_refusal": [
        {
            "error": {
                "message": "Rate limit. Please try again in 2m59.56s.",
                "type": "tokens",
                "code": "rate_limit_exceeded",
                "status_code": 429,
            }
        },
    ],
    "speech_pipe": [],
}


def join(target: str, messages: list[bytes]) -> bytes:
    """Return messages as one input of a target."""
    if target == "chat_stream":
        return b"".join(b"data: " + message + b"\n\n" for message in messages)
    if target == "speech_pipe":
        kinds = tuple(wire.Kind)
        return b"".join(
            wire.Message(kinds[number % len(kinds)], number, message).encode()
            for number, message in enumerate(messages)
        )
    return SEPARATOR.join(messages)
