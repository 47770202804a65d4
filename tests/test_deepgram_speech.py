"""The codec of the speech WebSocket."""

from __future__ import annotations

import json
from urllib.parse import parse_qs, urlsplit

import pytest

from voicebot.deepgram import Skipped
from voicebot.deepgram_speech import (
    MAX_CHARS,
    MAX_FLUSHES,
    WINDOW_S,
    Speaking,
    closed,
    speak_message,
    speech_url,
)
from voicebot.errors import LocalProtocolError

FLUSHED = '{"type":"Flushed","sequence_id":0}'
CLEARED = '{"type":"Cleared","sequence_id":0}'


def speaking(now: float = 0.0, chars: int = 6) -> Speaking:
    socket = Speaking()
    socket.speak(chars, now)
    return socket


def kind(of: object) -> str:
    assert isinstance(of, Skipped)
    return of.kind


def test_address_names_the_format_and_no_container() -> None:
    url = urlsplit(speech_url("https://api.deepgram.com/", model="aura-2-thalia-en"))
    assert (url.scheme, url.netloc, url.path) == ("wss", "api.deepgram.com", "/v1/speak")
    assert parse_qs(url.query) == {
        "model": ["aura-2-thalia-en"],
        "encoding": ["mulaw"],
        "sample_rate": ["8000"],
    }
    assert speech_url("http://localhost:1", model="m").startswith("ws://localhost:1/")


def test_text_is_asked_for_as_json() -> None:
    assert json.loads(speak_message('Say "é".')) == {"type": "Speak", "text": 'Say "é".'}


@pytest.mark.parametrize("text", ["", " ", "x" * 1_901])
def test_text_that_deepgram_would_refuse_is_not_asked_for(text: str) -> None:
    with pytest.raises(LocalProtocolError):
        speak_message(text)


def test_piece_is_its_audio_up_to_flushed() -> None:
    socket = speaking()
    assert not socket.idle
    assert socket.receive(b"\xff\xff") == b"\xff\xff"
    assert kind(socket.receive(b"")) == "empty_audio"
    assert kind(socket.receive(CLEARED)) == "stray_cleared"
    assert not socket.idle
    assert socket.receive(FLUSHED) == "flushed"
    assert socket.idle
    assert kind(socket.receive(b"\xff")) == "late_audio"
    assert kind(socket.receive(FLUSHED)) == "late_flushed"


def test_audio_between_clear_and_cleared_is_dropped() -> None:
    socket = speaking()
    assert socket.receive(b"\xff") == b"\xff"
    socket.clear()
    assert kind(socket.receive(b"\xff\xff")) == "late_audio"
    assert kind(socket.receive(FLUSHED)) == "late_flushed"
    assert not socket.idle
    assert socket.receive(CLEARED) == "cleared"
    assert socket.idle


def test_flushed_of_a_cleared_piece_does_not_end_the_next() -> None:
    socket = speaking()
    socket.clear()
    socket.receive(CLEARED)
    socket.speak(6, 1)
    assert kind(socket.receive(FLUSHED)) == "late_flushed"  # of the piece before
    assert socket.receive(b"\xff") == b"\xff"
    assert socket.receive(FLUSHED) == "flushed"


def test_flushed_of_a_cleared_piece_is_only_waited_for_until_one_has_ended() -> None:
    socket = speaking()
    socket.clear()
    socket.receive(CLEARED)
    socket.speak(6, 1)
    socket.receive(b"\xff")
    assert socket.receive(FLUSHED) == "flushed"
    socket.speak(6, 2)
    assert socket.receive(FLUSHED) == "flushed"  # a piece without audio


@pytest.mark.parametrize(
    "message, skipped",
    [
        ("{", Skipped("not_json")),
        ("[" * 100_000, Skipped("not_json")),
        ("[]", Skipped("not_an_object")),
        ('{"type":"Metadata","request_id":"1"}', Skipped("metadata")),
        ('{"type":"New"}', Skipped("unknown_type", "New")),
        ("{}", Skipped("unknown_type", "None")),
        ('{"type":"Error","err_msg":"x"}', Skipped("error", '{"type":"Error","err_msg":"x"}')),
        (
            '{"type":"Warning","code":"EXCESSIVE_FLUSH","description":"Too many."}',
            Skipped("warning", "EXCESSIVE_FLUSH: Too many."),
        ),
        (
            '{"type":"Warning","warn_code":"EXCESSIVE_FLUSH","warn_msg":"Too many."}',
            Skipped("warning", "EXCESSIVE_FLUSH: Too many."),
        ),
    ],
)
@pytest.mark.parametrize("clearing", [False, True])
def test_what_else_may_come_is_skipped(message: str, skipped: Skipped, clearing: bool) -> None:
    socket = speaking()
    if clearing:
        socket.clear()
    got = socket.receive(message)
    assert kind(got) == skipped.kind
    if skipped.detail:
        assert got == skipped
    assert not socket.idle


def test_minute_takes_so_many_characters() -> None:
    socket = Speaking()
    assert socket.may_speak(MAX_CHARS, 0)
    assert not socket.may_speak(MAX_CHARS + 1, 0)
    socket.speak(MAX_CHARS - 100, 0)
    assert socket.may_speak(100, 1)
    assert not socket.may_speak(101, 1)
    assert not socket.may_speak(101, WINDOW_S - 0.1)
    assert socket.may_speak(MAX_CHARS, WINDOW_S)


def test_minute_takes_so_many_pieces() -> None:
    socket = Speaking()
    for n in range(MAX_FLUSHES):
        assert socket.may_speak(1, n)
        socket.speak(1, n)
        socket.receive(FLUSHED)
    assert not socket.may_speak(1, MAX_FLUSHES)
    assert socket.may_speak(1, WINDOW_S)
    socket.speak(1, WINDOW_S)
    assert not socket.may_speak(1, WINDOW_S)


@pytest.mark.parametrize(
    "code, reason, named, retryable",
    [
        (1000, "", 1000, True),
        (1001, "", 1001, True),
        (1006, "", None, True),
        (1003, "MESSAGE-0000: binary", "MESSAGE-0000", False),
        (1008, "DATA-0000: bad command", "DATA-0000", False),
        (1008, "DATA-0001: quota", "DATA-0001", True),
        (1008, "", 1008, False),
        (1009, "BIG-0000: too large", "BIG-0000", False),
        (1011, "NET-0000: timeout", "NET-0000", True),
        (1011, "NET-0003: time limit", "NET-0003", True),
        (1011, "", 1011, True),
        (4000, "", 4000, True),
    ],
)
def test_close_says_whether_it_is_worth_another_try(
    code: int, reason: str, named: str | int | None, retryable: bool
) -> None:
    error = closed(code, reason)
    assert error.provider == "deepgram-tts"
    assert error.retryable is retryable
    assert getattr(error, "code", None) == named
    assert reason in str(error)


def test_reason_of_a_close_is_one_line_of_bounded_length() -> None:
    assert str(closed(1008, "x\ny")) == "deepgram-tts: the speech socket was closed with 1008 x y"
    assert len(str(closed(1008, "x" * 10_000))) < 300
