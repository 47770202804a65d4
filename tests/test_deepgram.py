"""Deepgram's messages, without a Deepgram."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicebot import deepgram
from voicebot.deepgram import Listening, Skipped
from voicebot.errors import LocalProtocolError, ProviderError, ProviderRejected
from voicebot.ports import Final, Partial, Transcript, UtteranceEnd
from voicebot.recognition import Recognition


def results(
    text: str = "", *, start: float = 0.0, duration: float = 1.0, **flags: bool
) -> dict[str, Any]:
    return {
        "type": "Results",
        "channel_index": [0, 1],
        "start": start,
        "duration": duration,
        "is_final": False,
        "speech_final": False,
        "channel": {"alternatives": [{"transcript": text, "confidence": 0.9, "words": []}]},
        "metadata": {"request_id": "r"},
        **flags,
    }


def utterance_end(last_word_end: float) -> dict[str, Any]:
    return {"type": "UtteranceEnd", "channel": [0, 1], "last_word_end": last_word_end}


def hear(*messages: dict[str, Any]) -> list[Transcript | Skipped]:
    listening = Listening()
    return [listening.receive(json.dumps(message)) for message in messages]


# Addresses


def test_listen_url_turns_http_into_ws_and_asks_for_what_a_phone_call_needs() -> None:
    url = deepgram.listen_url(
        "https://api.eu.deepgram.com/",
        model="nova-3",
        language="en",
        recognition=Recognition(keyterms=("Aurora", "tagliatelle al ragù")),
    )
    assert url.startswith("wss://api.eu.deepgram.com/v1/listen?")
    assert parse_qs(urlsplit(url).query) == {
        "model": ["nova-3"],
        "language": ["en"],
        "encoding": ["mulaw"],
        "sample_rate": ["8000"],
        "channels": ["1"],
        "interim_results": ["true"],
        "endpointing": ["300"],
        "utterance_end_ms": ["1000"],
        "smart_format": ["true"],
        "no_delay": ["true"],
        "keyterm": ["Aurora", "tagliatelle al ragù"],
    }


@given(st.text(min_size=1), st.text(min_size=1), st.integers(0, 5000), st.integers(1000, 5000))
def test_listen_url_keeps_every_value_whole(
    model: str, language: str, endpointing_ms: int, utterance_end_ms: int
) -> None:
    url = deepgram.listen_url(
        "http://127.0.0.1:8080/deepgram",
        model=model,
        language=language,
        recognition=Recognition(endpointing_ms=endpointing_ms, utterance_end_ms=utterance_end_ms),
    )
    target = urlsplit(url)
    query = parse_qs(target.query, strict_parsing=True)
    assert (target.scheme, target.netloc, target.path) == (
        "ws", "127.0.0.1:8080", "/deepgram/v1/listen",
    )  # fmt: skip
    assert (query["model"], query["language"]) == ([model], [language])
    assert query["endpointing"] == [str(endpointing_ms)]
    assert query["utterance_end_ms"] == [str(utterance_end_ms)]


def test_speak_url_asks_for_bare_mulaw() -> None:
    url = deepgram.speak_url("https://api.deepgram.com", model="aura-2-thalia-en")
    assert url.startswith("https://api.deepgram.com/v1/speak?")
    assert parse_qs(urlsplit(url).query) == {
        "model": ["aura-2-thalia-en"],
        "encoding": ["mulaw"],
        "sample_rate": ["8000"],
        "container": ["none"],
    }


@given(st.text(max_size=deepgram.MAX_SPEAK_CHARS).filter(str.strip))
def test_speak_body_carries_the_text(text: str) -> None:
    assert json.loads(deepgram.speak_body(text)) == {"text": text}


@pytest.mark.parametrize("text", ["", " \n", "x" * (deepgram.MAX_SPEAK_CHARS + 1)])
def test_speak_body_refuses_what_deepgram_would(text: str) -> None:
    with pytest.raises(LocalProtocolError):
        deepgram.speak_body(text)


# Transcripts


def test_results_become_partial_and_final() -> None:
    assert hear(
        results("what"),
        results("what time", is_final=True),
        results("is it", start=1.0, is_final=True, speech_final=True),
        results("", start=2.0, is_final=True, from_finalize=True),
    ) == [
        Partial("what"),
        Final("what time"),
        Final("is it", end_of_turn=True),
        Final("", finalized=True),
    ]


def test_final_words_that_come_again_are_heard_once() -> None:
    first = results("what time", is_final=True)
    second = results("is it", start=1.0, is_final=True, speech_final=True)
    interim = results("is", start=1.0)
    assert hear(first, first, second, first, second, interim, results("thanks", start=2.0)) == [
        Final("what time"),
        Skipped("old_results"),
        Final("is it", end_of_turn=True),
        Skipped("old_results"),
        Skipped("old_results"),
        Skipped("old_results"),
        Partial("thanks"),
    ]


def test_old_words_open_no_turn() -> None:
    final = results("what time", is_final=True, speech_final=True)
    assert hear(final, results("what"), final, utterance_end(0.9)) == [
        Final("what time", end_of_turn=True),
        Skipped("old_results"),
        Skipped("old_results"),
        Skipped("stale_utterance_end"),
    ]


def test_an_end_that_comes_with_words_that_were_there_is_still_an_end() -> None:
    final = results("what time", is_final=True)
    ended = results("what time", is_final=True, speech_final=True)
    assert hear(final, ended, ended) == [
        Final("what time"),
        Final("", end_of_turn=True),
        Skipped("old_results"),
    ]


def test_an_answer_that_comes_with_words_that_were_there_is_still_an_answer() -> None:
    assert hear(
        results("what time", is_final=True),
        results("what time", is_final=True, from_finalize=True),
    ) == [Final("what time"), Final("", finalized=True)]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40))
def test_however_finals_are_repeated_each_word_is_heard_once_in_order(order: list[int]) -> None:
    messages = [results(f"w{n}", start=float(n), is_final=True) for n in order]
    heard = [one.text for one in hear(*messages) if isinstance(one, Final)]
    furthest = [n for i, n in enumerate(order) if all(n > before for before in order[:i])]
    assert heard == [f"w{n}" for n in furthest]


def test_speech_final_counts_as_final_even_where_is_final_is_missing() -> None:
    assert hear(results("yes", speech_final=True)) == [Final("yes", end_of_turn=True)]


def test_empty_partial_is_only_told_where_it_takes_words_back() -> None:
    nothing = Skipped("empty_partial")
    assert hear(results(), results("uh"), results(), results()) == [
        nothing, Partial("uh"), Partial(""), nothing,
    ]  # fmt: skip
    assert hear(results("uh"), results("uh", is_final=True), results()) == [
        Partial("uh"), Final("uh"), nothing,
    ]  # fmt: skip


def test_results_without_alternatives_are_empty() -> None:
    message = results(is_final=True)
    message["channel"]["alternatives"] = []
    assert hear(message) == [Final("")]


def test_utterance_end_ends_a_turn_that_no_speech_final_has_ended() -> None:
    assert hear(results("a table", is_final=True, start=0, duration=1.5), utterance_end(1.4)) == [
        Final("a table"),
        UtteranceEnd(),
    ]


def test_utterance_end_after_only_a_partial_ends_the_turn() -> None:
    assert hear(results("a table"), utterance_end(0.8)) == [Partial("a table"), UtteranceEnd()]


def test_utterance_end_after_speech_final_is_stale() -> None:
    stale = Skipped("stale_utterance_end")
    assert hear(results("yes", is_final=True, speech_final=True), utterance_end(0.9))[1] == stale


def test_second_utterance_end_without_words_is_stale() -> None:
    assert hear(results("yes"), utterance_end(0.9), utterance_end(0.9))[1:] == [
        UtteranceEnd(), Skipped("stale_utterance_end"),
    ]  # fmt: skip


def test_utterance_end_before_any_word_is_stale() -> None:
    assert hear(utterance_end(0.5)) == [Skipped("stale_utterance_end")]


def test_utterance_end_of_minus_one_is_ignored_and_the_turn_stays_open() -> None:
    assert hear(results("yes"), utterance_end(-1), utterance_end(0.9))[1:] == [
        Skipped("stale_utterance_end"), UtteranceEnd(),
    ]  # fmt: skip


def test_late_utterance_end_does_not_end_the_turn_that_follows() -> None:
    assert hear(
        results("yes", is_final=True, speech_final=True, start=0, duration=2),
        results("and", start=2, duration=1),
        utterance_end(1.6),
        utterance_end(2.7),
    )[1:] == [Partial("and"), Skipped("stale_utterance_end"), UtteranceEnd()]


@pytest.mark.parametrize(
    "message, kind",
    [
        (b"\0\1", "binary_message"),
        ("{", "not_json"),
        ("[" * 100_000, "not_json"),
        ("[]", "not_an_object"),
        ('{"type":"Metadata","request_id":"r"}', "metadata"),
        ('{"type":"SpeechStarted","channel":[0,1],"timestamp":1.0}', "speech_started"),
        ('{"type":"Error","description":"no"}', "error"),
        ('{"type":"ConfigureSuccess"}', "unknown_type"),
        ("{}", "unknown_type"),
        ('{"type":"Results"}', "malformed_results"),
        ('{"type":"Results","channel":{"alternatives":[{"transcript":5}]}}', "malformed_results"),
        ('{"type":"Results","channel":{"alternatives":7}}', "malformed_results"),
        (json.dumps(results() | {"start": 10**400}), "malformed_results"),
        (json.dumps(results() | {"start": "soon"}), "malformed_results"),
        ('{"type":"UtteranceEnd"}', "malformed_utterance_end"),
    ],
)
def test_message_without_a_transcript_is_skipped_by_name(message: str | bytes, kind: str) -> None:
    skipped = Listening().receive(message)
    assert isinstance(skipped, Skipped)
    assert skipped.kind == kind


def test_skipped_error_and_unknown_type_say_what_they_were() -> None:
    assert hear({"type": "Error", "message": "bad audio"}) == [Skipped("error", "bad audio")]
    assert hear({"type": "Weather"}) == [Skipped("unknown_type", "Weather")]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
fields = st.sampled_from(
    ["start", "duration", "is_final", "speech_final", "from_finalize", "channel", "last_word_end"]
)


@given(st.sampled_from(["Results", "UtteranceEnd", "Error"]), st.dictionaries(fields, json_values))
def test_no_message_of_any_shape_ends_the_call(kind: str, odd: dict[str, Any]) -> None:
    listening = Listening()
    listening.receive(json.dumps({**results("yes"), "type": kind, **odd}))
    listening.receive(json.dumps(results("still here")))


@given(st.lists(st.sampled_from(["partial", "final", "speech_final", "utterance_end"])))
def test_no_turn_ends_twice_without_words_between(kinds: list[str]) -> None:
    listening = Listening()
    open_turn = False
    for second, kind in enumerate(kinds):
        if kind == "utterance_end":
            message = utterance_end(second - 0.1)
        else:
            final = kind != "partial"
            message = results(
                "word", start=second, is_final=final, speech_final=kind == "speech_final"
            )
        event = listening.receive(json.dumps(message))
        if isinstance(event, UtteranceEnd):
            assert open_turn
        if not isinstance(event, Skipped):
            open_turn = isinstance(event, Partial | Final) and event != Final("word", True)


# Speech


@pytest.mark.parametrize("content_type", ["audio/mulaw;rate=8000", "Audio/Basic", "audio/x-mulaw"])
def test_mulaw_is_taken(content_type: str) -> None:
    deepgram.check_speech(content_type, b"\xff\xff\xff\xff")


@pytest.mark.parametrize(
    "content_type, head, said",
    [
        ("text/html; charset=utf-8", b"<htm", "text/html"),
        ("audio/mpeg", b"\xff\xfb\0\0", "audio/mpeg"),
        ("", b"\xff\xff", "no content type"),
        ("audio/mulaw", b"RIFF", "WAV"),
    ],
)
def test_what_is_not_bare_mulaw_is_refused(content_type: str, head: bytes, said: str) -> None:
    with pytest.raises(ProviderError, match=said):
        deepgram.check_speech(content_type, head)


# Refusals


@pytest.mark.parametrize(
    "status, headers, body, code, said, retryable",
    [
        pytest.param(
            401, {}, b'{"err_code":"INVALID_AUTH","err_msg":"Invalid key.","request_id":"q1"}',
            "INVALID_AUTH", "INVALID_AUTH Invalid key.; check DEEPGRAM_API_KEY", False,
            id="err_code",
        ),
        pytest.param(
            400, {"dg-request-id": "q2"}, b'{"category":"INVALID_QUERY","message":"No such model"}',
            "INVALID_QUERY", "No such model; check the model.*request id q2", False, id="category",
        ),
        pytest.param(402, {}, b"out of money", None, "out of money; .*credit", False, id="text"),
        pytest.param(
            403, {"dg-error": "NO_ACCESS"}, b"", "NO_ACCESS", "NO_ACCESS; .*may not use", False,
            id="header",
        ),
        pytest.param(
            404, {"dg-error": "No such thing."}, b"", None, "404; No such thing.; check", False,
            id="header with a sentence",
        ),
        pytest.param(
            429, {}, b'{"err_code":"TOO_MANY_REQUESTS"}', "TOO_MANY_REQUESTS", "VOICEBOT_MAX_CALLS",
            True, id="too many",
        ),
        pytest.param(502, {}, b"<html>\n" + b"x" * 9999, None, "<html> x", True, id="a proxy"),
        pytest.param(418, {}, b"[]", None, "refused with 418", False, id="no object"),
    ],
)  # fmt: skip
def test_refusal_of_any_shape_says_what_and_what_to_do(
    status: int,
    headers: dict[str, str],
    body: bytes,
    code: str | None,
    said: str,
    retryable: bool,
) -> None:
    error = deepgram.refused(deepgram.STT, status, headers, body)
    assert (error.status, error.code, error.retryable) == (status, code, retryable)
    assert error.provider == "deepgram-stt"
    with pytest.raises(ProviderRejected, match=said):
        raise error
    assert len(str(error)) < 500


@pytest.mark.parametrize(
    "close_code, reason, code, retryable",
    [
        (1011, "Deepgram did not receive audio data (NET-0001)", "NET-0001", True),
        (1011, "NET-0000", "NET-0000", True),
        (1008, "DATA-0000: cannot decode", "DATA-0000", False),
        (1000, "", 1000, True),
        (1012, "restart", 1012, True),
    ],
)
def test_close_by_deepgram_carries_its_code_and_reason(
    close_code: int, reason: str, code: str | int, retryable: bool
) -> None:
    error = deepgram.closed(deepgram.STT, close_code, reason)
    assert isinstance(error, ProviderRejected)
    assert (error.status, error.code, error.retryable) == (0, code, retryable)
    assert reason in str(error)
    assert str(close_code) in str(error)


def test_loss_without_a_close_is_no_refusal() -> None:
    error = deepgram.closed(deepgram.STT, 1006, "")
    assert not isinstance(error, ProviderRejected)
    assert error.retryable


@pytest.mark.parametrize(
    "start, duration, until_ms",
    [(1.25, 2.0, 3_250), (0, 0, 0), (-1.0, 0.5, None), (float("inf"), 0.0, None)],
)
def test_a_final_says_up_to_where_it_accounts_for_the_audio(
    start: float, duration: float, until_ms: int | None
) -> None:
    message = results("yes", is_final=True) | {"start": start, "duration": duration}
    [final] = hear(message)
    assert isinstance(final, Final)
    assert final.until_ms == until_ms
