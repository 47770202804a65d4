"""The Flux stand-in: its turns in audio time, and its socket as a client meets it."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any, Final

import httpx
import pytest
import trio
import trio.testing
from trio_websocket import (
    ConnectionClosed,
    ConnectionRejected,
    WebSocketConnection,
    wrap_client_stream,
)

from voicebot import audio
from voicebot.standins.catalogue import FLUX_FAULTS
from voicebot.standins.deepgram import Deepgram, open_deepgram
from voicebot.standins.deepgram_rules import TOO_MANY_REQUESTS
from voicebot.standins.flux_hearing import Thresholds, TurnTaker
from voicebot.standins.listen import LISTEN, ListenConduct
from voicebot.standins.script import nth

DEFAULT: Final = Thresholds()
EAGER: Final = Thresholds(eager_eot_threshold=0.4)
QUERY: Final = {"model": "flux-general-en", "encoding": "mulaw", "sample_rate": "8000"}
CLOSE_STREAM: Final = '{"type":"CloseStream"}'


def loud(milliseconds: int) -> bytes:
    return b"\x20\xa0" * (milliseconds * 4)


def make(
    thresholds: Thresholds = DEFAULT, texts: Sequence[str] = ("Yes, please.",), **kw: Any
) -> TurnTaker:
    return TurnTaker(thresholds, lambda n: nth(texts, n), "r", **kw)


def events(messages: Sequence[dict[str, Any]], *but: str) -> list[tuple[str, int, str]]:
    return [
        (message["event"], message["turn_index"], message["transcript"])
        for message in messages
        if message["event"] not in but
    ]


# Turns, in audio time.


def test_a_turn_gives_these_messages_word_for_word() -> None:
    messages = make().hear(audio.silence(300) + loud(700) + audio.silence(400))
    assert events(messages) == [
        ("Update", 0, ""),
        ("StartOfTurn", 0, "Yes,"),
        ("Update", 0, "Yes,"),
        ("Update", 0, "Yes,"),
        ("Update", 0, "Yes, please."),
        ("EndOfTurn", 0, "Yes, please."),
    ]
    assert [message["sequence_id"] for message in messages] == list(range(6))
    assert messages[-1] == {
        "type": "TurnInfo",
        "request_id": "r",
        "sequence_id": 5,
        "event": "EndOfTurn",
        "turn_index": 0,
        "audio_window_start": 0.0,
        "audio_window_end": 1.28,
        "transcript": "Yes, please.",
        "words": [
            {"word": "Yes,", "confidence": 0.99, "start": 0.3, "end": 0.555},
            {"word": "please.", "confidence": 0.99, "start": 0.555, "end": 1.0},
        ],
        "end_of_turn_confidence": 0.7,
        "trigger": "model",
    }


def test_the_next_turn_has_the_next_number_and_its_own_words() -> None:
    said = loud(700) + audio.silence(400)
    messages = make(texts=("One.", "Two.")).hear(said * 2)
    assert events(messages, "Update") == [
        ("StartOfTurn", 0, "One."),
        ("EndOfTurn", 0, "One."),
        ("StartOfTurn", 1, "Two."),
        ("EndOfTurn", 1, "Two."),
    ]
    assert [messages[-1][f"audio_window_{edge}"] for edge in ("start", "end")] == [0.98, 2.08]


def test_a_likely_end_is_followed_by_a_certain_one_with_the_same_words_or_taken_back() -> None:
    paused = loud(400) + audio.silence(200) + loud(400) + audio.silence(400)
    assert events(make(EAGER).hear(paused), "Update") == [
        ("StartOfTurn", 0, "Yes,"),
        ("EagerEndOfTurn", 0, "Yes, please."),
        ("TurnResumed", 0, "Yes, please."),
        ("EagerEndOfTurn", 0, "Yes, please."),
        ("EndOfTurn", 0, "Yes, please."),
    ]
    assert events(make().hear(paused), "Update") == [
        ("StartOfTurn", 0, "Yes,"),
        ("EndOfTurn", 0, "Yes, please."),
    ]


def test_updates_come_about_every_quarter_of_a_second_in_silence_too() -> None:
    assert len(make().hear(audio.silence(2_500))) == 10


@pytest.mark.parametrize("never", ["noise", "threshold of 1"])
def test_a_turn_that_is_never_sure_to_be_over_is_timed_out(never: str) -> None:
    threshold = 1.0 if never == "threshold of 1" else 0.7
    turns = make(
        Thresholds(eot_threshold=threshold, eot_timeout_ms=1_000), speech_final=never != "noise"
    )
    assert "EndOfTurn" not in [e for e, _, _ in events(turns.hear(loud(700) + audio.silence(980)))]
    [end] = [
        message for message in turns.hear(audio.silence(40)) if message["event"] == "EndOfTurn"
    ]
    assert end["trigger"] == "timeout"


def test_a_sound_without_words_is_no_turn() -> None:
    turns = make(EAGER, texts=("", "Yes."))
    said = loud(700) + audio.silence(600)
    assert events(turns.hear(said), "Update") == []
    assert events(turns.hear(said), "Update") == [
        ("StartOfTurn", 0, "Yes."),
        ("EagerEndOfTurn", 0, "Yes."),
        ("EndOfTurn", 0, "Yes."),
    ]


# The socket.


@asynccontextmanager
async def connect(
    deepgram: Deepgram, query: Any = QUERY, key: str = "standin"
) -> AsyncGenerator[WebSocketConnection]:
    host, port = deepgram.url.removeprefix("http://").split(":")
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        async with trio.open_nursery() as nursery:
            yield await wrap_client_stream(
                nursery,
                stream,
                f"{host}:{port}",
                f"/v2/listen?{httpx.QueryParams(query)}",
                extra_headers=[(b"Authorization", f"Token {key}".encode())],
            )
            nursery.cancel_scope.cancel()


async def read_to_end(socket: WebSocketConnection) -> tuple[list[dict[str, Any]], int]:
    messages = []
    while True:
        try:
            messages.append(json.loads(await socket.get_message()))
        except ConnectionClosed:
            break
    assert socket.closed is not None
    return messages, socket.closed.code


async def held(
    *sent: str | bytes, query: Any = QUERY, conduct: ListenConduct = LISTEN
) -> tuple[list[dict[str, Any]], int]:
    """Send all this; return what came and the code of the close."""
    with trio.fail_after(5):
        async with open_deepgram(texts=["Yes."], flux=conduct) as deepgram:
            async with connect(deepgram, query) as socket:
                for message in sent:
                    await socket.send_message(message)
                answer = await read_to_end(socket)
            await deepgram.server.wait_closed()
            return answer


async def test_a_connection_from_connected_to_a_close_without_a_code() -> None:
    messages, code = await held(
        loud(700), audio.silence(400), loud(400), CLOSE_STREAM,
    )  # fmt: skip
    assert messages[0] == {
        "type": "Connected",
        "request_id": "00000000-0000-4000-8000-000000000001",
        "sequence_id": 0,
    }
    assert [message["sequence_id"] for message in messages] == list(range(len(messages)))
    ends = [message["turn_index"] for message in messages if message.get("event") == "EndOfTurn"]
    assert ends == [0]  # what was begun has no end, and there is no metadata
    assert {message["type"] for message in messages} == {"Connected", "TurnInfo"}
    assert code == 1005


async def test_keep_alive_ends_the_stream() -> None:
    assert (await held('{"type":"KeepAlive"}'))[1] == 1005


async def test_silence_on_the_line_ends_the_stream_after_twice_the_time_of_v1(
    autojump_clock: trio.testing.MockClock,
) -> None:
    began = trio.current_time()
    await held(conduct=ListenConduct(idle_s=1.0))
    assert trio.current_time() - began == pytest.approx(2.0)


@pytest.mark.parametrize("text", ["{", "[]", "1", '{"type":"Finalize"}', '{"kind":"Configure"}'])
async def test_what_it_cannot_parse_is_fatal(text: str) -> None:
    messages, code = await held(text)
    assert messages[-1]["type"] == "Error"
    assert messages[-1]["code"] == "UNPARSABLE_CLIENT_MESSAGE"
    assert code == 1011


async def test_a_turn_is_ended_by_force_only_where_there_is_one() -> None:
    force = '{"type":"ForceEndTurn"}'
    messages, _ = await held(force, loud(700), force, CLOSE_STREAM)
    assert messages[1]["code"] == "FORCE_END_TURN_NO_ACTIVE_TURN"
    [end] = [message for message in messages if message.get("event") == "EndOfTurn"]
    assert (end["trigger"], end["transcript"]) == ("manual", "Yes.")


async def test_thresholds_can_be_changed_and_a_wrong_change_is_no_end() -> None:
    messages, code = await held(
        '{"type":"Configure","thresholds":{"eager_eot_threshold":0.9}}',
        '{"type":"Configure","thresholds":{"endpointing":300}}',
        json.dumps({"type": "Configure", "keyterms": ["x"] * 101}),
        '{"type":"Configure","thresholds":{"eager_eot_threshold":0.4},"keyterms":["Aurora"]}',
        loud(700) + audio.silence(400),
        CLOSE_STREAM,
    )
    assert [message["type"] for message in messages[1:5]] == [
        *["ConfigureFailure"] * 3,
        "ConfigureSuccess",
    ]
    assert messages[4]["thresholds"]["eager_eot_threshold"] == 0.4
    assert "EagerEndOfTurn" in [message.get("event") for message in messages]
    assert code == 1005


@pytest.mark.parametrize(
    "query",
    [
        {**QUERY, "language": "en"},
        {**QUERY, "interim_results": "true"},
        {**QUERY, "endpointing": "300"},
        {**QUERY, "model": "nova-3"},
        {**QUERY, "encoding": "linear16"},
        {"encoding": "mulaw", "sample_rate": "8000"},
        {**QUERY, "eot_threshold": "0.4"},
        {**QUERY, "eager_eot_threshold": "0.95"},
        {**QUERY, "eot_threshold": "0.5", "eager_eot_threshold": "0.6"},
        {**QUERY, "eager_eot_threshold": "0.8"},  # above the default
        {**QUERY, "eot_timeout_ms": "499"},
        {**QUERY, "language_hint": "en"},
        [*QUERY.items(), *(("keyterm", f"t{n}") for n in range(101))],
    ],
)
async def test_what_v2_does_not_take_is_refused(query: Any) -> None:
    with trio.fail_after(5):
        async with open_deepgram() as deepgram:
            with pytest.RaisesGroup(ConnectionRejected) as caught:
                async with connect(deepgram, query):
                    pytest.fail("connected")
    rejected = caught.value.exceptions[0]
    assert isinstance(rejected, ConnectionRejected)
    assert rejected.status_code == 400


async def test_a_wrong_key_is_refused_and_a_hundred_keyterms_are_not() -> None:
    with trio.fail_after(5):
        async with open_deepgram() as deepgram:
            with pytest.RaisesGroup(ConnectionRejected):
                async with connect(deepgram, key="wrong"):
                    pytest.fail("connected")
            query = [
                *{**QUERY, "model": "flux-general-multi", "language_hint": "de"}.items(),
                *(("keyterm", f"t{n}") for n in range(100)),
            ]
            async with connect(deepgram, query) as socket:
                assert "Connected" in await socket.get_message()


async def test_what_is_fatal_is_told_before_the_close() -> None:
    messages, code = await held(loud(600), conduct=FLUX_FAULTS["fatal-error"])
    assert [message["type"] for message in messages][-1] == "Error"
    assert messages[-1]["code"] == "INTERNAL_SERVER_ERROR"
    assert code == 1011


async def test_an_update_comes_again_after_the_end_of_its_turn() -> None:
    said = loud(700) + audio.silence(800)
    healthy, _ = await held(said, CLOSE_STREAM)
    messages, _ = await held(said, CLOSE_STREAM, conduct=FLUX_FAULTS["reordered"])
    late = [
        (end, again)
        for end, again in pairwise(messages)
        if end.get("event") == "EndOfTurn" and again["event"] == "Update"
    ]
    assert len(late) == 1
    assert late[0][1]["sequence_id"] < late[0][0]["sequence_id"]
    assert late[0][1]["turn_index"] == late[0][0]["turn_index"]
    assert len(messages) == len(healthy) + 1


async def test_conducts_of_listening_apply() -> None:
    """One is enough to see that they do: they are v1's."""
    with trio.fail_after(5):
        async with open_deepgram() as deepgram:
            deepgram.flux.conducts.once(ListenConduct(refusal=TOO_MANY_REQUESTS))
            with pytest.RaisesGroup(ConnectionRejected) as caught:
                async with connect(deepgram):
                    pytest.fail("connected")
            async with connect(deepgram) as socket:
                await socket.send_message(loud(200))
                await socket.send_message(CLOSE_STREAM)
                await read_to_end(socket)
            (listening,) = deepgram.flux.connections
    assert isinstance(caught.value.exceptions[0], ConnectionRejected)
    assert caught.value.exceptions[0].status_code == 429
    assert (listening.audio_bytes, listening.controls) == (1_600, ["CloseStream"])
