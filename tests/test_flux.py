"""Flux's messages, without a Deepgram."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicebot import flux
from voicebot.deepgram import Skipped
from voicebot.errors import ProviderError, ProviderRejected
from voicebot.flux import Listening
from voicebot.ports import Final, LikelyEnd, Partial, Transcript
from voicebot.recognition import Recognition

SAME = Skipped("unchanged")


def turn_info(event: str, text: str = "", turn: int = 0, **fields: Any) -> dict[str, Any]:
    return {
        "type": "TurnInfo",
        "request_id": "r",
        "event": event,
        "turn_index": turn,
        "audio_window_start": 0.0,
        "audio_window_end": 1.0,
        "transcript": text,
        "words": [{"word": word, "confidence": 0.9} for word in text.split()],
        "end_of_turn_confidence": 0.1,
        **fields,
    }


def hear(*messages: dict[str, Any]) -> list[Transcript | Skipped]:
    """Return what is made of messages, numbered as Flux does where they are not yet."""
    listening = Listening()
    return [
        listening.receive(json.dumps({"sequence_id": number, **message}))
        for number, message in enumerate(messages)
    ]


# Addresses


def test_address_asks_for_what_a_phone_call_needs_and_for_nothing_of_v1() -> None:
    url = flux.listen_url(
        "https://api.eu.deepgram.com/",
        model="flux-general-en",
        language="en",
        recognition=Recognition(keyterms=("Aurora", "ragù & co")),
    )
    assert url.startswith("wss://api.eu.deepgram.com/v2/listen?")
    assert parse_qs(urlsplit(url).query) == {
        "model": ["flux-general-en"],
        "encoding": ["mulaw"],
        "sample_rate": ["8000"],
        "eot_threshold": ["0.7"],
        "eot_timeout_ms": ["2500"],
        "keyterm": ["Aurora", "ragù & co"],
    }


def test_early_ends_are_asked_for_only_where_they_are_set() -> None:
    url = flux.listen_url(
        "http://127.0.0.1:1",
        model="flux-general-en",
        language="en",
        recognition=Recognition(eager_eot_threshold=0.4),
    )
    assert parse_qs(urlsplit(url).query)["eager_eot_threshold"] == ["0.4"]


@pytest.mark.parametrize(
    "language, hint", [("de", ["de"]), ("pt-BR", ["pt"]), ("EN", ["en"]), ("multi", None)]
)
def test_model_of_several_languages_is_given_a_hint(language: str, hint: list[str] | None) -> None:
    url = flux.listen_url(
        "http://127.0.0.1:1",
        model="flux-general-multi",
        language=language,
        recognition=Recognition(),
    )
    query = parse_qs(urlsplit(url).query)
    assert query.get("language_hint") == hint
    assert "language" not in query


def test_silence_is_a_chunk_as_flux_likes_it() -> None:
    assert flux.SILENCE == b"\xff" * 640


# Turns


def test_a_turn_from_its_first_word_to_its_end() -> None:
    assert hear(
        {"type": "Connected", "request_id": "r"},
        turn_info("Update"),
        turn_info("StartOfTurn", "I"),
        turn_info("Update", "I would like"),
        turn_info("Update", "I would like"),
        turn_info("Update", "I would like a table"),
        turn_info("EagerEndOfTurn", "I would like a table"),
        turn_info("Update", "I would like a table"),
        turn_info("EndOfTurn", "I would like a table", trigger="model"),
        turn_info("Update", turn=1),
        turn_info("StartOfTurn", "thanks", turn=1),
    ) == [
        Skipped("connected"),
        SAME,
        Partial("I"),
        Partial("I would like"),
        SAME,
        Partial("I would like a table"),
        LikelyEnd("I would like a table"),
        SAME,
        Final("I would like a table", end_of_turn=True),
        SAME,
        Partial("thanks"),
    ]


def test_turn_resumed_takes_the_likely_end_back_with_and_without_new_words() -> None:
    assert hear(
        turn_info("StartOfTurn", "for two"),
        turn_info("EagerEndOfTurn", "for two"),
        turn_info("TurnResumed", "for two"),
        turn_info("EagerEndOfTurn", "for two"),
        turn_info("TurnResumed", "for two and"),
    )[1:] == [
        LikelyEnd("for two"),
        Partial("for two"),
        LikelyEnd("for two"),
        Partial("for two and"),
    ]


def test_words_that_are_taken_back_are_told() -> None:
    assert hear(turn_info("StartOfTurn", "uh"), turn_info("Update"), turn_info("Update")) == [
        Partial("uh"), Partial(""), SAME,
    ]  # fmt: skip


def test_a_turn_ends_once_however_often_it_is_said() -> None:
    stale = Skipped("stale_turn", "EndOfTurn")
    assert hear(
        turn_info("EndOfTurn", "yes"),
        turn_info("EndOfTurn", "yes"),
        turn_info("Update", "no", turn=1),
        turn_info("EndOfTurn", "yes"),
        turn_info("EndOfTurn", "no", turn=1),
    ) == [Final("yes", end_of_turn=True), stale, Partial("no"), stale, Final("no", True)]


def test_a_repeated_or_older_message_of_a_turn_is_passed_over() -> None:
    assert hear(
        turn_info("StartOfTurn", "for two", sequence_id=5),
        turn_info("Update", "for", sequence_id=4),
        turn_info("EagerEndOfTurn", "for two", sequence_id=5),
        turn_info("Update", "for two please", sequence_id=9),
        turn_info("EndOfTurn", "for two please", sequence_id=10),
        turn_info("Update", "and", turn=1, sequence_id=1),  # whose numbers begin anew
    ) == [
        Partial("for two"),
        Skipped("out_of_order", "Update"),
        Skipped("out_of_order", "EagerEndOfTurn"),
        Partial("for two please"),
        Final("for two please", end_of_turn=True),
        Partial("and"),
    ]


def test_words_of_a_turn_whose_end_was_lost_are_not() -> None:
    assert hear(
        turn_info("StartOfTurn", "I want"),
        turn_info("StartOfTurn", "a table", turn=2),
        turn_info("EndOfTurn", "a table", turn=2),
        turn_info("StartOfTurn", "thanks", turn=3),
    ) == [
        Partial("I want"),
        Partial("I want a table"),
        Final("I want a table", end_of_turn=True),
        Partial("thanks"),
    ]


@pytest.mark.parametrize(
    "message, kind",
    [
        (b"\0\1", "binary_message"),
        ("{", "not_json"),
        ("[]", "not_an_object"),
        ('{"type":"ConfigureSuccess","thresholds":{}}', "configure_success"),
        ('{"type":"ConfigureFailure","code":"X"}', "configure_failure"),
        ('{"type":"Warning","code":"FORCE_END_TURN_NO_ACTIVE_TURN"}', "warning"),
        ('{"type":"Error","code":"INTERNAL_SERVER_ERROR"}', "error"),
        ('{"type":"Results"}', "unknown_type"),
        ('{"type":"TurnInfo"}', "malformed_turn_info"),
        (json.dumps(turn_info("Update", "x") | {"turn_index": "0"}), "malformed_turn_info"),
        (json.dumps(turn_info("Update") | {"transcript": None}), "malformed_turn_info"),
        (json.dumps(turn_info("Yodel", "la")), "unknown_event"),
        (json.dumps(turn_info("Update") | {"event": None}), "unknown_event"),
    ],
)
def test_message_without_a_transcript_is_skipped_by_name(message: str | bytes, kind: str) -> None:
    listening = Listening()
    skipped = listening.receive(message)
    assert isinstance(skipped, Skipped)
    assert skipped.kind == kind
    assert listening.receive(json.dumps(turn_info("Update", "la"))) == Partial("la")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
odd_fields = st.sampled_from(["event", "sequence_id", "transcript", "words", "code", "type"])


@given(st.dictionaries(odd_fields, json_values))
def test_no_message_of_any_shape_ends_the_call(odd: dict[str, Any]) -> None:
    listening = Listening()
    listening.receive(json.dumps({**turn_info("Update", "yes"), **odd}))
    last = listening.receive(json.dumps(turn_info("EndOfTurn", "still here", turn=1)))
    assert isinstance(last, Final)
    assert last.text.endswith("still here")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["Update", "StartOfTurn", "EagerEndOfTurn", "TurnResumed", "EndOfTurn"]
            ),
            st.integers(0, 4),
            st.integers(0, 30),
        )
    )
)
def test_turns_end_in_their_order_and_once(messages: list[tuple[str, int, int]]) -> None:
    """In whatever order messages come, and however often."""
    listening = Listening()
    ended: list[int] = []
    for event, turn, sequence in messages:
        said = listening.receive(
            json.dumps(turn_info(event, f"w{turn}", turn, sequence_id=sequence))
        )
        if isinstance(said, Final):
            ended.append(int(said.text.split()[-1][1:]))
            assert ended == sorted(set(ended))


# The end of the stream


def test_the_close_behind_a_fatal_error_carries_its_code() -> None:
    listening = Listening()
    listening.receive(
        '{"type":"Error","code":"INTERNAL_SERVER_ERROR","description":"went\\nwrong"}'
    )
    error = listening.closed(1005, "")
    assert isinstance(error, ProviderRejected)
    assert (error.code, error.retryable) == ("INTERNAL_SERVER_ERROR", True)
    assert "INTERNAL_SERVER_ERROR went wrong" in str(error)


def test_what_flux_could_not_parse_will_not_be_parsed_next_time() -> None:
    listening = Listening()
    listening.receive('{"type":"Error","code":"UNPARSABLE_CLIENT_MESSAGE"}')
    assert not listening.closed(1011, "").retryable


def test_a_close_of_its_own_is_as_in_v1() -> None:
    error = Listening().closed(1011, "NET-0001")
    assert isinstance(error, ProviderRejected)
    assert error.code == "NET-0001"
    lost: ProviderError = Listening().closed(1006, "")
    assert not isinstance(lost, ProviderRejected)
    assert lost.retryable


@pytest.mark.parametrize("end, until_ms", [(2.08, 2_080), (None, None), ("2", None), (-1.0, None)])
def test_the_end_of_a_turn_says_up_to_where_it_accounts_for_the_audio(
    end: object, until_ms: int | None
) -> None:
    [final] = hear(turn_info("EndOfTurn", "yes", audio_window_end=end))
    assert isinstance(final, Final)
    assert final.until_ms == until_ms
