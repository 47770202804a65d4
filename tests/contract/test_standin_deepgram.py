"""The Deepgram stand-in as a client meets it: real sockets, plain clients."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx
import pytest
import trio
from trio_websocket import (
    ConnectionClosed,
    ConnectionRejected,
    WebSocketConnection,
    wrap_client_stream,
)

from voicebot import audio
from voicebot.standins.deepgram import Deepgram, open_deepgram
from voicebot.standins.deepgram_rules import TOO_MANY_REQUESTS
from voicebot.standins.listen import Heard, ListenConduct
from voicebot.standins.speak import SpeakConduct
from voicebot.standins.voice import speak

AUTH: Final = {"Authorization": "Token standin"}
LISTEN: Final = {
    "model": "nova-3",
    "encoding": "mulaw",
    "sample_rate": "8000",
    "channels": "1",
    "interim_results": "true",
    "endpointing": "300",
    "utterance_end_ms": "1000",
    "vad_events": "true",
    "smart_format": "true",
    "no_delay": "true",
    "language": "en",
}
UPGRADE: Final = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
SPEAK: Final = {
    "model": "aura-2-thalia-en",
    "encoding": "mulaw",
    "sample_rate": "8000",
    "container": "none",
}
CLOSE_STREAM: Final = '{"type":"CloseStream"}'
SPEECH: Final = speak("This is somebody speaking") + audio.silence(1_200)


@asynccontextmanager
async def open_listen(
    deepgram: Deepgram, query: dict[str, str] = LISTEN
) -> AsyncGenerator[WebSocketConnection]:
    """Connect; closes its own stream, which trio-websocket does not when the server closes."""
    host, port = deepgram.url.removeprefix("http://").split(":")
    target = f"/v1/listen?{httpx.QueryParams(query)}"
    headers = [(name.encode(), value.encode()) for name, value in AUTH.items()]
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        async with trio.open_nursery() as nursery:
            yield await wrap_client_stream(
                nursery, stream, f"{host}:{port}", target, extra_headers=headers
            )
            nursery.cancel_scope.cancel()


async def read_to_end(socket: WebSocketConnection) -> tuple[list[dict[str, Any]], int, str]:
    """Return every message, and how the server closed."""
    messages = []
    while socket.closed is None:
        try:
            messages.append(json.loads(await socket.get_message()))
        except ConnectionClosed:
            break
    assert socket.closed is not None
    return messages, socket.closed.code, socket.closed.reason or ""


# Listening.


async def test_a_whole_connection_is_answered_as_documented() -> None:
    with trio.fail_after(5):
        async with open_deepgram(texts=["Yes."]) as deepgram:
            async with open_listen(deepgram) as socket:
                assert dict(socket.handshake_headers)[b"dg-request-id"] == (
                    b"00000000-0000-4000-8000-000000000001"
                )
                await socket.send_message('{"type":"KeepAlive"}')
                for at in range(0, len(SPEECH), 160):
                    await socket.send_message(SPEECH[at : at + 160])
                await socket.send_message(CLOSE_STREAM)
                messages, code, _ = await read_to_end(socket)
            await deepgram.server.wait_closed()

    assert code == 1000
    assert {m["type"] for m in messages} == {
        "Results",
        "SpeechStarted",
        "UtteranceEnd",
        "Metadata",
    }
    (final,) = [m for m in messages if m.get("speech_final")]
    assert final == {
        "type": "Results",
        "channel_index": [0, 1],
        "duration": 1.94,
        "start": 0.0,
        "is_final": True,
        "speech_final": True,
        "channel": {
            "alternatives": [
                {
                    "transcript": "Yes.",
                    "confidence": 0.99,
                    "words": [
                        {
                            "word": "yes",
                            "start": 0.0,
                            "end": 1.64,
                            "confidence": 0.99,
                            "punctuated_word": "Yes.",
                        }
                    ],
                }
            ]
        },
        "metadata": {
            "request_id": "00000000-0000-4000-8000-000000000001",
            "model_info": {
                "name": "general-nova-3",
                "version": "2025-04-17.21547",
                "arch": "nova-3",
            },
            "model_uuid": "00000000-0000-4000-8000-6e6f76612d33",
        },
        "from_finalize": False,
    }
    assert messages[-1] == {
        "type": "Metadata",
        "transaction_key": "deprecated",
        "request_id": "00000000-0000-4000-8000-000000000001",
        "sha256": hashlib.sha256(SPEECH).hexdigest(),
        "created": "2026-01-01T00:00:00.000Z",
        "duration": len(SPEECH) / 8_000,
        "channels": 1,
    }
    (seen,) = deepgram.listen.connections
    assert seen.audio_bytes == len(SPEECH)
    assert seen.controls == ["KeepAlive", "CloseStream"]
    assert seen.sent == Counter(message["type"] for message in messages)
    assert (seen.exchange.outcome, seen.close_code) == ("complete", 1000)


async def test_finalize_flushes_at_once() -> None:
    with trio.fail_after(5):
        async with open_deepgram(texts=["Stop it, please."]) as deepgram:
            async with open_listen(deepgram) as socket:
                await socket.send_message(speak("abc") + audio.silence(200))
                await socket.send_message('{"type":"Finalize"}')
                while not (message := json.loads(await socket.get_message())).get("is_final"):
                    pass

    assert (message["from_finalize"], message["speech_final"]) == (True, True)
    assert message["channel"]["alternatives"][0]["transcript"] == "Stop it, please."


async def test_scripts_count_utterances_for_each_connection_and_functions_know_both() -> None:
    heard: list[Heard] = []

    def texts(where: Heard) -> str:
        heard.append(where)
        return f"caller {where.connection} says {where.utterance}"

    with trio.fail_after(5):
        async with open_deepgram(texts=texts) as deepgram:
            async with open_listen(deepgram, LISTEN | {"tag": "x"}) as first:
                async with open_listen(deepgram) as second:
                    for socket in (first, second):
                        await socket.send_message(SPEECH + SPEECH)
                        await socket.send_message(CLOSE_STREAM)
                    await read_to_end(first)
                    messages, _, _ = await read_to_end(second)

    finals = [
        message["channel"]["alternatives"][0]["transcript"]
        for message in messages
        if message.get("speech_final")
    ]
    assert finals == ["caller 1 says 0", "caller 1 says 1"]
    assert sorted((where.connection, where.utterance) for where in heard) == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    ]
    assert ("tag", "x") in next(where.query for where in heard if where.connection == 0)


@pytest.mark.parametrize(
    "headers, query, status, code",
    [
        ({"Authorization": "Token wrong"}, LISTEN, 401, "INVALID_AUTH"),
        ({"Authorization": "Basic standin"}, LISTEN, 401, "INVALID_AUTH"),
        (AUTH, LISTEN | {"encoding": "linear16"}, 400, "INVALID_QUERY_PARAMETER"),
        (AUTH, LISTEN | {"sample_rate": "16000"}, 400, "INVALID_QUERY_PARAMETER"),
        (AUTH, LISTEN | {"interim_results": "True"}, 400, "INVALID_QUERY_PARAMETER"),
        (AUTH, LISTEN | {"utterance_end_ms": "999"}, 400, "INVALID_QUERY_PARAMETER"),
        (AUTH, LISTEN | {"interim_results": "false"}, 400, "INVALID_QUERY_PARAMETER"),
        (AUTH, LISTEN | {"eot_threshold": "0.7"}, 400, "INVALID_QUERY_PARAMETER"),
        (AUTH, LISTEN | {"model": "nova-9"}, 400, "INVALID_QUERY_PARAMETER"),
        (AUTH, {"model": "nova-3"}, 400, "INVALID_QUERY_PARAMETER"),
        (AUTH | {"Sec-WebSocket-Version": "12"}, LISTEN, 400, "PAYLOAD_ERROR"),
        (AUTH | {"Upgrade": "h2c"}, LISTEN, 400, "PAYLOAD_ERROR"),
    ],
)
async def test_a_wrong_upgrade_is_refused_with_headers_and_body(
    headers: dict[str, str], query: dict[str, str], status: int, code: str
) -> None:
    with trio.fail_after(5):
        async with open_deepgram() as deepgram, httpx.AsyncClient(verify=False) as client:
            response = await client.get(
                f"{deepgram.url}/v1/listen", params=query, headers=UPGRADE | headers
            )

    body = response.json()
    ident = "00000000-0000-4000-8000-000000000001"
    assert (response.status_code, body["err_code"]) == (status, code)
    assert body == {"err_code": code, "err_msg": body["err_msg"], "request_id": ident}
    assert response.headers["dg-request-id"] == ident
    assert response.headers["dg-error"] == body["err_msg"]


async def test_refuse_once_then_accept() -> None:
    with trio.fail_after(5):
        async with open_deepgram() as deepgram:
            deepgram.listen.conducts.once(ListenConduct(refusal=TOO_MANY_REQUESTS))
            with pytest.RaisesGroup(ConnectionRejected) as caught:
                async with open_listen(deepgram):
                    pass
            async with open_listen(deepgram):
                pass
            await deepgram.server.wait_closed()

    (rejection,) = caught.value.exceptions
    assert isinstance(rejection, ConnectionRejected)
    assert rejection.status_code == 429
    assert rejection.body is not None
    assert json.loads(rejection.body)["err_code"] == "TOO_MANY_REQUESTS"


async def test_an_upgrade_that_is_never_answered_ends_with_the_client() -> None:
    with trio.fail_after(5):
        async with open_deepgram(listen=ListenConduct(delay_s=math.inf)) as deepgram:
            with pytest.raises(trio.TooSlowError), trio.fail_after(0.05):
                async with open_listen(deepgram):
                    pass
            await deepgram.server.wait_closed()
            assert deepgram.server.exchanges[0].outcome == "cancelled"


async def test_an_upgrade_can_be_met_by_a_reset() -> None:
    # httpx, because trio-websocket waits for ever when the peer resets before the 101.
    with trio.fail_after(5):
        async with open_deepgram(listen=ListenConduct(reset=True)) as deepgram:
            async with httpx.AsyncClient(verify=False, headers=UPGRADE | AUTH) as client:
                with pytest.raises(httpx.ReadError):
                    await client.get(f"{deepgram.url}/v1/listen", params=LISTEN)
            await deepgram.server.wait_closed()
            assert deepgram.server.exchanges[0].outcome == "dropped"


@pytest.mark.parametrize("keepalive_before_audio", [True, False])
async def test_keepalive_without_audio_counts_only_where_it_is_said_to(
    keepalive_before_audio: bool,
) -> None:
    conduct = ListenConduct(idle_s=0.3, keepalive_before_audio=keepalive_before_audio)
    kept = 0
    with trio.fail_after(5):
        async with open_deepgram(listen=conduct) as deepgram:
            async with open_listen(deepgram) as socket:
                try:
                    for _ in range(10):
                        await socket.send_message('{"type":"KeepAlive"}')
                        kept += 1
                        await trio.sleep(0.05)
                except ConnectionClosed:
                    pass
                _, code, reason = await read_to_end(socket)

    assert (kept == 10) is keepalive_before_audio
    assert (code, reason[:8]) == (1011, "NET-0001")
    assert len(reason.encode()) <= 123  # RFC 6455 5.5: a control frame has room for no more


async def test_audio_and_then_keepalive_hold_the_connection() -> None:
    with trio.fail_after(5):
        async with open_deepgram(listen=ListenConduct(idle_s=0.3)) as deepgram:
            async with open_listen(deepgram) as socket:
                script: list[bytes | str] = [b"\xff"] * 7 + ['{"type":"KeepAlive"}'] * 7
                for message in script:
                    await socket.send_message(message)
                    await trio.sleep(0.06)
                await socket.send_message(CLOSE_STREAM)
                _, code, _ = await read_to_end(socket)

    assert code == 1000


@pytest.mark.parametrize(
    "text", ["nonsense", "[]", '"KeepAlive"', '{"kind":"KeepAlive"}', '{"type":"Flush"}']
)
async def test_an_unknown_text_message_closes_with_data_0000(text: str) -> None:
    with trio.fail_after(5):
        async with open_deepgram() as deepgram, open_listen(deepgram) as socket:
            await socket.send_message(text)
            _, code, reason = await read_to_end(socket)

    assert (code, reason[:9]) == (1008, "DATA-0000")


async def test_an_empty_binary_message_ends_the_stream() -> None:
    with trio.fail_after(5):
        async with open_deepgram() as deepgram, open_listen(deepgram) as socket:
            await socket.send_message(b"")
            messages, code, _ = await read_to_end(socket)

    assert ([message["type"] for message in messages], code) == (["Metadata"], 1000)


async def test_results_are_delayed_and_still_in_order() -> None:
    with trio.fail_after(5):
        async with open_deepgram(listen=ListenConduct(result_delay_s=0.1)) as deepgram:
            async with open_listen(deepgram) as socket:
                begin = trio.current_time()
                await socket.send_message(SPEECH)
                await socket.send_message(CLOSE_STREAM)
                first = json.loads(await socket.get_message())
                assert trio.current_time() - begin >= 0.1
                rest, code, _ = await read_to_end(socket)

    assert (first["type"], rest[-1]["type"], code) == ("SpeechStarted", "Metadata", 1000)


async def test_the_connection_drops_after_so_many_bytes() -> None:
    with trio.fail_after(5):
        async with open_deepgram(listen=ListenConduct(drop_after_bytes=1_600)) as deepgram:
            async with open_listen(deepgram) as socket:
                await socket.send_message(audio.silence(100))
                await socket.send_message(audio.silence(100))
                messages, code, _ = await read_to_end(socket)
            await deepgram.server.wait_closed()

    assert (messages, code) == ([], 1006)
    assert deepgram.server.exchanges[0].outcome == "dropped"


async def test_a_silent_connection_reads_on_says_nothing_and_stays_open() -> None:
    conduct = ListenConduct(stall_after_bytes=len(SPEECH) + 1, idle_s=0.2)
    with trio.fail_after(5):
        async with open_deepgram(listen=conduct) as deepgram:
            async with open_listen(deepgram) as socket:
                await socket.send_message(SPEECH)
                while json.loads(await socket.get_message())["type"] != "UtteranceEnd":
                    pass
                for _ in range(3):
                    await socket.send_message(SPEECH)
                with trio.move_on_after(0.4) as waiting:
                    await socket.get_message()
                assert waiting.cancelled_caught
                assert deepgram.listen.connections[0].audio_bytes == 4 * len(SPEECH)


async def test_a_client_that_vanishes_is_seen_with_results_under_way() -> None:
    with trio.fail_after(5):
        async with open_deepgram(listen=ListenConduct(result_delay_s=60)) as deepgram:
            async with open_listen(deepgram) as socket:
                await socket.send_message(SPEECH)
            await deepgram.server.wait_closed()

    (seen,) = deepgram.listen.connections
    assert (seen.close_code, seen.exchange.outcome, seen.sent) == (1006, "cancelled", Counter())


async def test_a_client_that_closes_is_answered() -> None:
    with trio.fail_after(5):
        async with open_deepgram() as deepgram:
            async with open_listen(deepgram) as socket:
                await socket.aclose(1001)
            await deepgram.server.wait_closed()

    (seen,) = deepgram.listen.connections
    assert (seen.close_code, seen.exchange.outcome) == (1001, "complete")


async def test_pings_are_answered() -> None:
    with trio.fail_after(5):
        async with open_deepgram() as deepgram, open_listen(deepgram) as socket:
            await socket.ping(b"there?")


# Speaking.


@asynccontextmanager
async def open_client(deepgram: Deepgram) -> AsyncGenerator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        verify=False, base_url=deepgram.url, headers=AUTH, params=SPEAK
    ) as client:
        yield client


async def test_speech_is_raw_mulaw_with_the_documented_headers() -> None:
    with trio.fail_after(5):
        async with open_deepgram() as deepgram, open_client(deepgram) as client:
            response = await client.post("/v1/speak", json={"text": "Good evening."})

    assert response.status_code == 200
    assert response.content == speak("Good evening.")
    assert dict(response.headers) == {
        "content-type": "audio/mulaw;rate=8000",
        "transfer-encoding": "chunked",
        "dg-request-id": "00000000-0000-4000-8000-000000000001",
        "dg-model-name": "aura-2-thalia-en",
        "dg-char-count": "13",
    }
    (speech,) = deepgram.speak.speeches
    assert (speech.text, speech.audio_bytes) == ("Good evening.", len(response.content))
    assert speech.exchange.outcome == "complete"


async def test_a_forgotten_container_brings_a_wav_header() -> None:
    query = {name: value for name, value in SPEAK.items() if name != "container"}
    with trio.fail_after(5):
        async with open_deepgram() as deepgram, httpx.AsyncClient(verify=False) as client:
            response = await client.post(
                f"{deepgram.url}/v1/speak", params=query, headers=AUTH, json={"text": "Hi."}
            )

    assert response.headers["content-type"] == "audio/wav"
    assert response.content[:4] + response.content[8:16] == b"RIFFWAVEfmt "
    assert response.content[20:22] == b"\x07\x00"  # mu-law
    assert response.content.endswith(speak("Hi."))


async def test_speed_changes_the_length() -> None:
    with trio.fail_after(5):
        async with open_deepgram() as deepgram, open_client(deepgram) as client:
            query = SPEAK | {"speed": "1.3"}
            response = await client.post("/v1/speak", params=query, json={"text": "Hello"})

    assert response.content == speak("Hello", 50)


@pytest.mark.parametrize(
    "change, body, status, code",
    [
        ({"Authorization": "Token x"}, {"text": "Hi"}, 401, "INVALID_AUTH"),
        ({}, {"text": " \n"}, 400, "PAYLOAD_ERROR"),
        ({}, {"txt": "Hi"}, 400, "PAYLOAD_ERROR"),
        ({}, {"text": "Hi", "url": "x"}, 400, "PAYLOAD_ERROR"),
        ({}, ["Hi"], 400, "PAYLOAD_ERROR"),
        ({"Content-Type": "text/plain"}, {"text": "Hi"}, 400, "PAYLOAD_ERROR"),
        ({}, {"text": "x" * 2_001}, 413, "Payload Too Large"),
        ({"encoding": "mp3"}, {"text": "Hi"}, 400, "INVALID_QUERY_PARAMETER"),
        ({"sample_rate": "24000"}, {"text": "Hi"}, 400, "INVALID_QUERY_PARAMETER"),
        ({"speed": "1.6"}, {"text": "Hi"}, 400, "INVALID_QUERY_PARAMETER"),
        ({"voice": "thalia"}, {"text": "Hi"}, 400, "INVALID_QUERY_PARAMETER"),
    ],
)
async def test_a_wrong_request_is_refused(
    change: dict[str, str], body: Any, status: int, code: str
) -> None:
    headers = {name: value for name, value in change.items() if name[0].isupper()}
    query = {name: value for name, value in change.items() if name[0].islower()}
    with trio.fail_after(5):
        async with open_deepgram() as deepgram, open_client(deepgram) as client:
            response = await client.post(
                "/v1/speak",
                params=SPEAK | query,
                headers={"Content-Type": "application/json"} | headers,
                content=json.dumps(body),
            )

    answer = response.json()
    assert (response.status_code, answer["err_code"]) == (status, code)
    assert set(answer) == {"err_code", "err_msg", "request_id"}
    assert not deepgram.speak.speeches


async def test_the_first_byte_waits_and_the_rest_comes_at_the_rate() -> None:
    text = "x" * 40  # 2.6 s of speech
    conduct = SpeakConduct(delay_s=0.05, rate=20, chunk_bytes=800)
    with trio.fail_after(5):
        async with open_deepgram(speak=conduct) as deepgram, open_client(deepgram) as client:
            begin = trio.current_time()
            response = await client.post("/v1/speak", json={"text": text})
            took = trio.current_time() - begin

    assert len(response.content) == 40 * 65 * 8
    assert took >= 0.05 + (2.6 - 0.1) / 20


async def test_a_client_that_leaves_early_is_seen_and_where() -> None:
    conduct = SpeakConduct(stall_after_bytes=4_000, rate=math.inf)
    with trio.fail_after(5):
        async with open_deepgram(speak=conduct) as deepgram, open_client(deepgram) as client:
            with trio.move_on_after(0.2):
                await client.post("/v1/speak", json={"text": "x" * 40})
            await deepgram.server.wait_closed()

    (speech,) = deepgram.speak.speeches
    assert (speech.exchange.outcome, speech.exchange.sent_bytes) == ("cancelled", 4_000)


async def test_speech_can_break_off() -> None:
    conduct = SpeakConduct(drop_after_bytes=3_000)
    with trio.fail_after(5):
        async with open_deepgram(speak=conduct) as deepgram, open_client(deepgram) as client:
            with pytest.raises(httpx.RemoteProtocolError):
                await client.post("/v1/speak", json={"text": "x" * 40})
            assert deepgram.server.exchanges[0].sent_bytes == 3_000


async def test_what_is_not_served_is_not_found() -> None:
    with trio.fail_after(5):
        async with open_deepgram() as deepgram, open_client(deepgram) as client:
            assert (await client.get("/v2/speak")).status_code == 404
            assert (await client.get("/v1/talk")).status_code == 404


async def test_fifty_connections_at_once_and_nothing_is_left() -> None:
    before = trio.lowlevel.current_statistics().tasks_living

    async def call(deepgram: Deepgram) -> None:
        async with open_listen(deepgram) as socket:
            for at in range(0, len(SPEECH), 640):
                await socket.send_message(SPEECH[at : at + 640])
            await socket.send_message(CLOSE_STREAM)
            messages, code, _ = await read_to_end(socket)
        assert code == 1000
        assert sum(message.get("speech_final", False) for message in messages) == 1

    with trio.fail_after(20):
        async with open_deepgram() as deepgram:
            async with trio.open_nursery() as nursery:
                for _ in range(50):
                    nursery.start_soon(call, deepgram)
            await deepgram.server.wait_closed()
            assert deepgram.listen.connections_total == 50
    assert trio.lowlevel.current_statistics().tasks_living == before
