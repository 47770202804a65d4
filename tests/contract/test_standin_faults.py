"""Every fault of the catalogue as it is on the wire: plain sockets, h11 and wsproto, no client.

The tables here say what each is to be; a fault that stands in none fails the last test.
"""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final, Literal

import h11
import pytest
import trio
import wsproto.utilities
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)

from voicebot import audio
from voicebot.standins import (
    CHAT_FAULTS,
    FAULTS,
    FLUX_FAULTS,
    LISTEN_FAULTS,
    REST_FAULTS,
    SPEAK_FAULTS,
    SPEAK_SOCKET_FAULTS,
    ListenConduct,
    SpeakConduct,
    Standins,
    open_standins,
)
from voicebot.standins.catalogue import AUDIO_BYTES, JSON_BYTES, LATE_S
from voicebot.standins.garble import BROKEN_FRAME
from voicebot.standins.groq import Reply, ToolCall
from voicebot.standins.twilio import ACCOUNT_SID, AUTH_TOKEN
from voicebot.standins.voice import speak

QUIET_S: Final = 0.2  # a server that says nothing for so long has nothing to say
TEXT: Final = "Hello, how are you?"
SPEECH: Final = speak("This is somebody speaking") + audio.silence(1_200)
REPLY: Final = Reply(
    "One moment, please.", (ToolCall("now"), ToolCall("now", '{"in": "Rome"}')), reasoning=""
)

End = Literal["complete", "fin", "reset", "silent"]


@dataclass
class Got:
    """What came of one request. `body` is what of it arrived."""

    raw: bytes = b""
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    end: End = "silent"
    arrivals_s: list[float] = field(default_factory=list)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The data of server-sent events: objects, or text that is no JSON."""
        return [_parse(line[6:]) for line in self.body.decode().split("\n") if line[:6] == "data: "]

    @property
    def deltas(self) -> list[Any]:
        return [event["choices"][0]["delta"] for event in self.events if event != "[DONE]"]


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


@asynccontextmanager
async def running(where: str = "", fault: str = "") -> AsyncGenerator[Standins]:
    """Run the stand-ins with a fault. At the end every client that left must be noticed."""
    with trio.fail_after(15):
        async with open_standins(texts=["Yes, please do so."], replies=[REPLY]) as standins:
            standins.deepgram.speak.conducts.rule = SpeakConduct(rate=1_000)
            if fault:
                standins.inflict(where, fault)
            yield standins
            await standins.wait_closed()


async def ask(standins: Standins, service: str, quiet_s: float = QUIET_S) -> Got:
    """Make the usual request of a service."""
    auth = base64.b64encode(f"{ACCOUNT_SID}:{AUTH_TOKEN}".encode()).decode()
    tools = [{"type": "function", "function": {"name": "now"}}]
    url, target, kind, authorization, body = {
        "speak": (
            standins.deepgram.url,
            "/v1/speak?encoding=mulaw&sample_rate=8000&container=none",
            "application/json",
            "Token standin",
            json.dumps({"text": TEXT}),
        ),
        "chat": (
            standins.groq.url,
            "/openai/v1/chat/completions",
            "application/json",
            "Bearer standin",
            json.dumps(
                {
                    "model": "openai/gpt-oss-20b",
                    "messages": [{"role": "user", "content": "Hello?"}],
                    "stream": True,
                    "include_reasoning": False,
                    "tools": tools,
                }
            ),
        ),
        "rest": (
            standins.twilio.url,
            f"/2010-04-01/Accounts/{ACCOUNT_SID}/Calls.json",
            "application/x-www-form-urlencoded",
            f"Basic {auth}",
            "To=%2B15550100123&From=%2B15550100999&Url=https%3A%2F%2Fbot.example.com%2F",
        ),
    }[service]
    head = [
        ("Host", "standin"),
        ("Authorization", authorization),
        ("Content-Type", kind),
        ("Content-Length", str(len(body))),
    ]
    http = h11.Connection(h11.CLIENT)
    request = http.send(h11.Request(method="POST", target=target, headers=head)) or b""
    request += http.send(h11.Data(data=body.encode())) or b""
    request += http.send(h11.EndOfMessage()) or b""
    got = Got()
    async with await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2])) as stream:
        try:
            await stream.send_all(request)
            while got.end == "silent":
                with trio.move_on_after(quiet_s) as waiting:
                    data = await stream.receive_some()
                if waiting.cancelled_caught:
                    break
                got.raw += data
                got.arrivals_s.append(trio.current_time())
                if not data:
                    got.end = "fin"
                _take(http, data, got)
        except trio.BrokenResourceError:
            got.end = "reset"
    return got


def _take(http: h11.Connection, data: bytes, got: Got) -> None:
    try:
        http.receive_data(data)
        while True:
            match http.next_event():
                case h11.Response() as response:
                    got.status = response.status_code
                    got.headers = {n.decode(): v.decode() for n, v in response.headers}
                case h11.Data() as piece:
                    got.body += bytes(piece.data)
                case h11.EndOfMessage():
                    got.end = "complete"
                    return
                case _:
                    return
    except h11.RemoteProtocolError:
        pass  # no HTTP, or cut short; `raw` and `end` tell which


HTTP: Final = ("speak", "chat", "rest")
AFTER: Final = {"speak": AUDIO_BYTES, "chat": 500, "rest": JSON_BYTES}


# What any HTTP service can do wrong.


@pytest.mark.parametrize("service", HTTP)
async def test_without_a_fault_all_is_well(service: str) -> None:
    async with running() as standins:
        got = await ask(standins, service)
    assert (got.status, got.end) == (201 if service == "rest" else 200, "complete")
    assert len(got.body) > 2 * AFTER[service]


@pytest.mark.parametrize("service", HTTP)
@pytest.mark.parametrize(
    "fault, end", [("hang-first-byte", "silent"), ("reset-first-byte", "reset")]
)
async def test_no_byte_of_an_answer_comes(service: str, fault: str, end: End) -> None:
    async with running(service, fault) as standins:
        got = await ask(standins, service)
    assert (got.raw, got.end) == (b"", end)


@pytest.mark.parametrize("service", HTTP)
async def test_what_comes_is_no_http(service: str) -> None:
    async with running(service, "garbage") as standins:
        got = await ask(standins, service)
    assert (got.raw[:3], got.status, got.end) == (b"\x15\x03\x01", 0, "fin")


@pytest.mark.parametrize("service", HTTP)
@pytest.mark.parametrize("fault, status", [("proxy-502", 502), ("portal-200", 200)])
async def test_somebody_in_between_answers_with_a_page(
    service: str, fault: str, status: int
) -> None:
    async with running(service, fault) as standins:
        got = await ask(standins, service)
        again = await ask(standins, service)
    assert (got.status, got.headers["content-type"], got.end) == (status, "text/html", "complete")
    assert b"<html>" in got.body
    assert again.status == status
    assert not standins.twilio.calls


@pytest.mark.parametrize("service", HTTP)
async def test_the_content_type_is_another_and_nothing_else(service: str) -> None:
    async with running() as standins:
        healthy = await ask(standins, service)
    async with running(service, "wrong-content-type") as standins:
        got = await ask(standins, service)
    assert (got.status, got.body, got.end) == (healthy.status, healthy.body, "complete")
    assert got.headers == healthy.headers | {"content-type": "text/html"}
    assert healthy.headers["content-type"] != "text/html"


@pytest.mark.parametrize("service", HTTP)
@pytest.mark.parametrize(
    "fault, end",
    [
        ("empty", "complete"),
        ("short", "complete"),
        ("truncated", "fin"),
        ("reset-mid-body", "reset"),
        ("stall", "silent"),
    ],
)
async def test_the_body_stops_where_it_is_told_to(service: str, fault: str, end: End) -> None:
    async with running() as standins:
        healthy = await ask(standins, service)
    async with running(service, fault) as standins:
        got = await ask(standins, service)
        assert len(standins.twilio.calls) == (service == "rest")
    stop = 0 if fault == "empty" else AFTER[service]
    assert (got.status, got.end, len(got.body)) == (healthy.status, end, stop)
    assert healthy.body.startswith(got.body)


@pytest.mark.parametrize("service", HTTP)
async def test_a_body_drips(service: str) -> None:
    async with running() as standins:
        healthy = await ask(standins, service)
    async with running(service, "drip") as standins:
        got = await ask(standins, service)
    conduct = FAULTS[service]["drip"]
    assert got.body == healthy.body
    pieces = -(-len(healthy.body) // conduct.drip_bytes)
    # The head and the first piece come at once, and so may the last piece and the end.
    took = got.arrivals_s[-1] - got.arrivals_s[0]
    assert took >= (pieces - 2) * conduct.drip_s
    if service == "speak":
        assert took > len(got.body) / audio.BYTES_PER_S  # slower than it is played


# Speech.


async def test_speech_comes_as_a_wav_and_says_so_or_not() -> None:
    async with running() as standins:
        healthy = await ask(standins, "speak")
    for fault, content_type in [("wav", "audio/wav"), ("wav-in-disguise", "audio/mulaw;rate=8000")]:
        async with running("speak", fault) as standins:
            got = await ask(standins, "speak")
        assert got.headers["content-type"] == content_type
        assert (got.body[:4], got.body[8:12]) == (b"RIFF", b"WAVE")
        assert got.body.endswith(healthy.body)


async def test_speech_comes_byte_by_byte() -> None:
    async with running("speak", "one-byte-chunks") as standins:
        got = await ask(standins, "speak")
    assert got.body == speak(TEXT)
    assert got.raw.count(b"\r\n1\r\n") == len(got.body)


# Refusals.

DEEPGRAM: Final = {
    "400": "INVALID_QUERY_PARAMETER",
    "401": "INVALID_AUTH",
    "402": "ASR_PAYMENT_REQUIRED",
    "403": "INSUFFICIENT_PERMISSIONS",
    "404": "NOT_FOUND",
    "413": "Payload Too Large",
    "422": "UNPROCESSABLE_ENTITY",
    "429": "TOO_MANY_REQUESTS",
    "500": "INTERNAL_SERVER_ERROR",
    "502": "BAD_GATEWAY",
    "503": "SERVICE_UNAVAILABLE",
    "504": "GATEWAY_TIMEOUT",
}
DEEPGRAM_REFUSALS: Final = [
    (service, f"{status}{shape}")
    for service, absent in (("listen", {"413", "422"}), ("speak", {"403", "404"}))
    for status in DEEPGRAM
    if status not in absent
    for shape in ("", "-category", "-text")
]


@pytest.mark.parametrize("service, fault", DEEPGRAM_REFUSALS)
async def test_deepgram_refuses_in_three_shapes(service: str, fault: str) -> None:
    async with running(service, fault) as standins:
        if service == "listen":
            heard = await listen(standins)
            got = Got(status=heard.status, headers=heard.headers, body=heard.body, end="complete")
        else:
            got = await ask(standins, service)
    status, _, shape = fault.partition("-")
    ident = "00000000-0000-4000-8000-000000000001"
    said = got.headers["dg-error"]
    assert (got.status, got.end, got.headers["dg-request-id"]) == (int(status), "complete", ident)
    match shape:
        case "":
            code = DEEPGRAM[status]
            assert got.json == {"err_code": code, "err_msg": said, "request_id": ident}
        case "category":
            assert set(got.json) == {"category", "message", "details", "request_id"}
            assert (got.json["category"], got.json["message"]) == (DEEPGRAM[status], said)
        case "text":
            assert got.body.decode() == said
            assert got.headers["content-type"].startswith("text/plain")


GROQ: Final = {
    "400": (400, "invalid_request_error", None),
    "400-tool-use-failed": (400, "invalid_request_error", "tool_use_failed"),
    "400-json-validate-failed": (400, "invalid_request_error", "json_validate_failed"),
    "400-blocked-api-access": (400, "invalid_request_error", "blocked_api_access"),
    "400-model-decommissioned": (400, "invalid_request_error", "model_decommissioned"),
    "401": (401, "invalid_request_error", "invalid_api_key"),
    "403": (403, "permissions_error", None),
    "404": (404, "invalid_request_error", "model_not_found"),
    "413": (413, "tokens", "rate_limit_exceeded"),
    "422": (422, "invalid_request_error", None),
    "424": (424, "invalid_request_error", None),
    "429-tokens": (429, "tokens", "rate_limit_exceeded"),
    "429-requests": (429, "requests", "rate_limit_exceeded"),
    "498": (498, "capacity_exceeded", "capacity_exceeded"),
    "500": (500, "internal_server_error", None),
    "502": (502, "internal_server_error", None),
    "503": (503, "internal_server_error", None),
}


@pytest.mark.parametrize("fault", GROQ)
async def test_groq_refuses(fault: str) -> None:
    async with running("chat", fault) as standins:
        got = await ask(standins, "chat")
    error = got.json["error"]
    assert (got.status, error["type"], error.get("code")) == GROQ[fault]
    assert ("retry-after" in got.headers) is (got.status == 429)
    assert ("failed_generation" in error) is fault.endswith("failed")
    assert not standins.groq.chats


TWILIO: Final = {
    "20003": 401,
    "20404": 404,
    "20429": 429,
    "10004": 429,
    "21201": 400,
    "21205": 400,
    "21210": 400,
    "21211": 400,
    "21212": 400,
    "21213": 400,
    "21215": 400,
    "21219": 400,
    "21220": 400,
    "32018": 400,
    "573005": 400,
}


@pytest.mark.parametrize("fault", TWILIO)
async def test_twilio_refuses(fault: str) -> None:
    async with running("rest", fault) as standins:
        got = await ask(standins, "rest")
    assert (got.status, got.json["status"], got.json["code"]) == (
        TWILIO[fault],
        TWILIO[fault],
        int(fault),
    )
    assert "{" not in got.json["message"]
    assert not standins.twilio.calls


@pytest.mark.parametrize("fault", ["500", "503"])
async def test_twilio_is_out_of_order(fault: str) -> None:
    async with running("rest", fault) as standins:
        got = await ask(standins, "rest")
    assert (got.status, got.json["status"]) == (int(fault), int(fault))


@pytest.mark.parametrize(
    "fault, body",
    [
        ("malformed-json", b'{"sid": "CA'),
        ("no-object", b"[]"),
        ("no-sid", b'{"status": "queued"}'),
    ],
)
async def test_twilio_answers_nonsense(fault: str, body: bytes) -> None:
    async with running("rest", fault) as standins:
        got = await ask(standins, "rest")
    assert (got.status, got.body, got.headers["content-type"]) == (200, body, "application/json")


async def test_twilio_is_slow() -> None:
    async with running("rest", "slow") as standins:
        begin = trio.current_time()
        got = await ask(standins, "rest", quiet_s=2 * LATE_S)
    assert got.status == 201
    assert got.arrivals_s[0] - begin >= LATE_S


# Answers.


async def streamed(fault: str = "") -> Got:
    async with running("chat", fault) as standins:
        return await ask(standins, "chat")


@pytest.mark.parametrize(
    "fault, tokens, end",
    [
        ("stall-before-first-token", 0, "silent"),
        ("stall-mid-answer", 2, "silent"),
        ("drop-mid-answer", 2, "fin"),
        ("reset-mid-answer", 2, "reset"),
        ("end-mid-answer", 2, "complete"),
    ],
)
async def test_an_answer_ends_between_two_tokens(fault: str, tokens: int, end: End) -> None:
    healthy, got = await streamed(), await streamed(fault)
    assert got.events == healthy.events[: 1 + tokens]
    assert got.end == end


@pytest.mark.parametrize("fault, name", [("error-event", b"event: error\n"), ("error-object", b"")])
async def test_an_answer_fails_between_two_tokens(fault: str, name: bytes) -> None:
    healthy, got = await streamed(), await streamed(fault)
    assert got.events[:-1] == healthy.events[:3]
    assert got.events[-1]["error"]["type"] == "internal_server_error"
    assert got.body.count(b"event:") == (1 if name else 0)
    assert name in got.body
    assert got.end == "complete"


def _is_chunk_with(**choice: Any) -> Callable[[Any], bool]:
    return lambda event: all(event["choices"][0].get(name) == choice[name] for name in choice)


@pytest.mark.parametrize(
    "fault, is_extra",
    [
        ("malformed-json", lambda event: event == '{"id": "chatcmpl-'),
        ("no-object", lambda event: event == ["chatcmpl"]),
        ("wrong-types", lambda event: event["choices"] == {"delta": "x"}),
        ("no-choices", lambda event: event["choices"] == []),
        ("empty-deltas", _is_chunk_with(delta={"content": None, "tool_calls": None})),
        (
            "reasoning",
            lambda event: set(event["choices"][0]["delta"]) == {"reasoning", "channel"},
        ),
    ],
)
async def test_something_is_before_every_token(fault: str, is_extra: Callable[[Any], bool]) -> None:
    healthy, got = await streamed(), await streamed(fault)
    tokens = len(healthy.events) - 3
    extras = got.events[1 : 1 + 2 * tokens : 2]
    assert all(map(is_extra, extras))
    assert len(extras) == tokens == 5
    rest = [event for n, event in enumerate(got.events) if n not in range(1, 1 + 2 * tokens, 2)]
    assert rest == healthy.events


async def test_comments_are_before_every_token() -> None:
    healthy, got = await streamed(), await streamed("comments")
    assert got.body.count(b"\n\n: still here\n\n") == 5
    assert got.body.replace(b": still here\n\n", b"") == healthy.body


async def test_chunks_have_fields_nobody_knows() -> None:
    healthy, got = await streamed(), await streamed("unknown-fields")
    for event in got.events[:-1]:
        del event["weather"], event["choices"][0]["mood"]
    assert got.events != healthy.events  # parsed anew each time
    stripped = got.body.replace(b', "weather": {"in": ["Berlin"]}', b"").replace(
        b', "mood": null', b""
    )
    assert stripped == healthy.body


@pytest.mark.parametrize(
    "fault, reason", [("finish-length", "length"), ("finish-content-filter", "content_filter")]
)
async def test_an_answer_ends_for_another_reason(fault: str, reason: str) -> None:
    healthy, got = await streamed(), await streamed(fault)
    assert got.deltas == healthy.deltas
    assert got.events[-2]["choices"][0]["finish_reason"] == reason


async def test_an_answer_ends_without_done_or_does_not_end_after_it() -> None:
    healthy = await streamed()
    undone, held = await streamed("no-done"), await streamed("hold-open")
    assert healthy.events[-1] == "[DONE]"
    assert (undone.events, undone.end) == (healthy.events[:-1], "complete")
    assert (held.events, held.end) == (healthy.events, "silent")


def calls(got: Got) -> list[Any]:
    return [call for delta in got.deltas for call in delta.get("tool_calls", ())]


async def test_tool_calls_have_one_id() -> None:
    healthy, got = await streamed(), await streamed("same-call-id")
    assert [call["id"] for call in calls(healthy)] == ["call_1_0", "call_1_1"]
    assert [call["id"] for call in calls(got)] == ["call_0", "call_0"]


async def test_arguments_come_a_character_at_a_time() -> None:
    got = calls(await streamed("fragmented-arguments"))
    pieces = [piece["function"]["arguments"] for piece in got]
    assert {len(piece) for piece in pieces} == {0, 1}
    assert "".join(pieces) == '{}{"in": "Rome"}'


async def test_arguments_are_no_json() -> None:
    got = calls(await streamed("wrong-arguments"))
    assert [call["function"]["arguments"] for call in got] == ['{"day": '] * 2


# Transcriptions.


@dataclass
class Heard:
    """What came of one connection. `close` is None where there was no close frame."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    messages: list[str | bytes] = field(default_factory=list)
    parts: list[Any] = field(default_factory=list)  # of the message that has not ended
    close: tuple[int, str] | None = None
    end: End = "silent"
    raw: bytes = b""
    arrivals_s: list[float] = field(default_factory=list)


async def listen(standins: Standins, quiet_s: float = QUIET_S, *, bye: bool = True) -> Heard:
    """Send somebody speaking, say that this was all, and hear what comes."""
    query = "encoding=mulaw&sample_rate=8000&interim_results=true&endpointing=300"
    ws = WSConnection(ConnectionType.CLIENT)
    upgrade = Request(
        host="standin",
        target=f"/v1/listen?{query}",
        extra_headers=[(b"Authorization", b"Token standin")],
    )
    heard = Heard()
    port = int(standins.deepgram.url.rpartition(":")[2])
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        try:
            await stream.send_all(ws.send(upgrade))
            while heard.end == "silent":
                with trio.move_on_after(quiet_s) as waiting:
                    data = await stream.receive_some()
                if waiting.cancelled_caught:
                    break
                heard.raw += data
                heard.arrivals_s.append(trio.current_time())
                if not data:
                    heard.end = "fin" if heard.close is None else "complete"
                    break
                await stream.send_all(_hear(ws, data, heard, bye=bye))
        except trio.BrokenResourceError:
            heard.end = "reset"
    return heard


def _hear(ws: WSConnection, data: bytes, heard: Heard, *, bye: bool) -> bytes:
    answer = b""
    try:
        ws.receive_data(data)
        for event in ws.events():
            match event:
                case AcceptConnection():
                    heard.status = 101
                    answer += ws.send(BytesMessage(data=SPEECH))
                    if bye:
                        answer += ws.send(TextMessage(data='{"type":"CloseStream"}'))
                case RejectConnection():
                    heard.status = event.status_code
                    heard.headers = {n.decode(): v.decode() for n, v in event.headers}
                case RejectData():
                    heard.body += event.data
                    heard.end = "complete" if event.body_finished else heard.end
                case TextMessage() | BytesMessage():
                    heard.parts.append(event.data)
                    if event.message_finished:
                        whole = heard.parts[0][:0].join(heard.parts)
                        heard.messages.append(whole if isinstance(whole, str) else bytes(whole))
                        heard.parts.clear()
                case CloseConnection():
                    heard.close = int(event.code), event.reason or ""
                    if int(event.code) != 1002:
                        answer += ws.send(event.response())
    except (wsproto.utilities.ProtocolError, h11.ProtocolError):
        pass  # no HTTP
    return answer


async def transcribed(fault: str = "", **more: Any) -> Heard:
    async with running("listen", fault) as standins:
        return await listen(standins, **more)


async def test_without_a_fault_it_hears_and_closes_when_asked() -> None:
    heard = await transcribed()
    kinds = [json.loads(message)["type"] for message in heard.messages]
    assert (heard.close, heard.end) == ((1000, ""), "complete")
    assert kinds.count("Results") > 4
    assert kinds[-1] == "Metadata"


@pytest.mark.parametrize(
    "fault, end", [("hang-first-byte", "silent"), ("reset-first-byte", "reset"), ("garbage", "fin")]
)
async def test_an_upgrade_is_not_answered(fault: str, end: End) -> None:
    heard = await transcribed(fault)
    assert (heard.status, heard.end) == (0, end)
    assert heard.raw[:1] == (b"\x15" if fault == "garbage" else b"")


@pytest.mark.parametrize("fault, status", [("proxy-502", 502), ("portal-200", 200)])
async def test_an_upgrade_is_answered_with_a_page(fault: str, status: int) -> None:
    heard = await transcribed(fault)
    assert (heard.status, heard.headers["content-type"]) == (status, "text/html")
    assert b"<html>" in heard.body


@pytest.mark.parametrize(
    "fault, code, reason",
    [
        ("close-1000", 1000, ""),
        ("close-net-0000", 1011, "NET-0000"),
        ("close-net-0001", 1011, "NET-0001"),
        ("close-data-0000", 1008, "DATA-0000"),
        ("close-no-code", 1005, ""),
    ],
)
async def test_a_transcription_is_closed(fault: str, code: int, reason: str) -> None:
    heard = await transcribed(fault)
    assert heard.close is not None
    assert (heard.close[0], heard.close[1].partition(":")[0]) == (code, reason)
    assert len(heard.close[1].encode()) <= 123
    assert (heard.messages, heard.end) == ([], "complete")
    assert (heard.raw[-2:] == b"\x88\x00") is (code == 1005)


@pytest.mark.parametrize("fault, end", [("close-1006", "fin"), ("reset", "reset")])
async def test_a_transcription_ends_without_a_close_frame(fault: str, end: End) -> None:
    heard = await transcribed(fault)
    assert (heard.status, heard.close, heard.messages, heard.end) == (101, None, [], end)


@pytest.mark.parametrize("fault", ["deaf", "stall"])
async def test_a_transcription_says_nothing_more_but_reads(fault: str) -> None:
    async with running("listen", fault) as standins:
        heard = await listen(standins)
        (listening,) = standins.deepgram.listen.connections
        assert (listening.audio_bytes, listening.controls) == (len(SPEECH), ["CloseStream"])
    assert (heard.status, heard.messages, heard.close, heard.end) == (101, [], None, "silent")


async def test_a_stall_comes_when_so_much_was_heard() -> None:
    async with running() as standins:
        standins.deepgram.listen.conducts.rule = ListenConduct(stall_after_bytes=len(SPEECH) + 1)
        heard = await listen(standins)
    assert heard.close == (1000, "")


async def test_results_are_late() -> None:
    heard = await transcribed("late", quiet_s=2 * LATE_S)
    assert heard.messages == (await transcribed()).messages
    assert heard.arrivals_s[1] - heard.arrivals_s[0] >= LATE_S


async def test_messages_drip() -> None:
    healthy, heard = await transcribed(), await transcribed("drip")
    conduct = LISTEN_FAULTS["drip"]
    assert heard.messages == healthy.messages
    assert conduct.drip_bytes is not None
    pieces = sum(len(message) for message in heard.messages) // conduct.drip_bytes
    assert heard.arrivals_s[-1] - heard.arrivals_s[0] >= pieces * conduct.drip_s


async def test_speech_has_no_end() -> None:
    heard = await transcribed("no-speech-final")
    assert not any(json.loads(message).get("speech_final") for message in heard.messages)


@pytest.mark.parametrize(
    "fault, before",
    [
        ("malformed-json", lambda text: text[: len(text) // 2]),
        ("no-object", lambda text: f"[{text}]"),
        ("binary-message", str.encode),
        (
            "unknown-type",
            lambda text: text.replace('"Results"', '"Heartbeat"').replace(
                '"Metadata"', '"Heartbeat"'
            ),
        ),
        ("missing-fields", lambda text: json.dumps({"type": json.loads(text)["type"]})),
        ("duplicate", lambda text: text),
    ],
)
async def test_something_wrong_is_before_every_message(
    fault: str, before: Callable[[str], str | bytes]
) -> None:
    healthy, heard = await transcribed(), await transcribed(fault)
    expected: list[str | bytes] = []
    for message in healthy.messages:
        assert isinstance(message, str)
        expected += [before(message), message]
    assert heard.messages == expected
    assert heard.end == "complete"


async def test_fields_are_of_wrong_types() -> None:
    healthy, heard = await transcribed(), await transcribed("wrong-types")
    assert heard.messages[1::2] == healthy.messages
    for wrong, right in zip(heard.messages[::2], healthy.messages, strict=True):
        fields, other = json.loads(right), json.loads(wrong)
        assert set(fields) == set(other)
        assert other["type"] == fields["type"]
        for name in set(fields) - {"type"}:
            if not isinstance(fields[name], dict):
                assert type(fields[name]) is not type(other[name])


async def test_an_error_is_told_before_every_message() -> None:
    healthy, heard = await transcribed(), await transcribed("error-message")
    assert heard.messages[1::2] == healthy.messages
    assert {json.loads(message)["type"] for message in heard.messages[::2]} == {"Error"}


async def test_interim_results_have_no_alternatives() -> None:
    healthy, heard = await transcribed(), await transcribed("no-alternatives")
    for message, right in zip(heard.messages, healthy.messages, strict=True):
        if json.loads(right).get("is_final") is False:
            assert json.loads(message)["channel"] == {"alternatives": []}
        else:
            assert message == right
    assert heard.messages != healthy.messages


async def test_messages_have_fields_nobody_knows() -> None:
    healthy, heard = await transcribed(), await transcribed("unknown-fields")
    for message, right in zip(heard.messages, healthy.messages, strict=True):
        fields = json.loads(message)
        assert fields.pop("mood")
        assert fields == json.loads(right)


async def test_an_interim_result_comes_again_after_its_final_one() -> None:
    healthy, heard = await transcribed(), await transcribed("reordered")
    late = [
        (final, again)
        for final, again in pairwise(map(json.loads, heard.messages))
        if final.get("is_final")
        and again.get("is_final") is False
        and again["start"] < final["start"] + final["duration"]
    ]
    assert len(late) == 1
    assert late[0][0]["speech_final"]
    assert late[0][1]["channel"]["alternatives"][0]["transcript"]
    assert len(heard.messages) >= len(healthy.messages) + len(late)


async def test_a_frame_is_none() -> None:
    heard = await transcribed("broken-frame")
    assert BROKEN_FRAME in heard.raw
    assert heard.messages == []
    assert heard.close is not None
    assert heard.close[0] == 1002


# Hosts.

HOSTS: Final = {"deepgram": "speak", "groq": "chat", "twilio": "rest"}


@pytest.mark.parametrize("host", HOSTS)
async def test_a_host_refuses_and_listens_again(host: str) -> None:
    async with running(host, "refuse-connect") as standins:
        with pytest.raises(OSError, match="all attempts to connect") as caught:
            await ask(standins, HOSTS[host])
        assert "ConnectionRefusedError" in repr(caught.value.__cause__)
        standins.hosts[host].door = "open"
        assert (await ask(standins, HOSTS[host])).end == "complete"
        standins.inflict(host, "refuse-connect")
        with pytest.raises(OSError, match="all attempts to connect"):
            await ask(standins, HOSTS[host])


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("fault, end", [("reset-connect", "reset"), ("hang-connect", "silent")])
async def test_a_host_does_not_answer(host: str, fault: str, end: End) -> None:
    async with running(host, fault) as standins:
        got = await ask(standins, HOSTS[host])
        assert (got.raw, got.end) == (b"", end)
        server = standins.hosts[host]
        assert (server.requests, len(server.exchanges)) == (0, 0)


async def test_a_host_hangs_before_tls() -> None:
    async with running("groq", "hang-connect") as standins:
        port = int(standins.groq.url.rpartition(":")[2])
        async with await trio.open_tcp_stream("127.0.0.1", port) as tcp:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            stream = trio.SSLStream(tcp, context, server_hostname="standin", https_compatible=True)
            with trio.move_on_after(QUIET_S) as waiting:
                await stream.do_handshake()
            assert waiting.cancelled_caught


async def test_a_door_may_depend_on_the_number_and_open_connections_do_not_notice() -> None:
    async with running() as standins:
        standins.twilio.server.door = lambda number: "reset" if number == 2 else "open"
        assert [(await ask(standins, "rest")).end for _ in range(3)] == [
            "complete",
            "reset",
            "complete",
        ]
        assert standins.twilio.server.connections_total == 3


async def test_a_connection_that_was_open_goes_on_while_the_host_refuses() -> None:
    async with running() as standins:
        port = int(standins.groq.url.rpartition(":")[2])
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            for _ in range(2):
                await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 404")
                standins.inflict("groq", "refuse-connect")


def test_every_fault_is_named_as_it_is_listed_and_described_here() -> None:
    common = {"hang-first-byte", "reset-first-byte", "garbage", "proxy-502", "portal-200"}
    body = {"wrong-content-type", "empty", "short", "truncated", "reset-mid-body", "stall", "drip"}
    refusals = {where: {name for of, name in DEEPGRAM_REFUSALS if of == where} for where in FAULTS}
    rest = {"500", "503", "malformed-json", "no-object", "no-sid", "slow"}
    assert set(SPEAK_FAULTS) == common | body | refusals["speak"] | {
        "wav",
        "wav-in-disguise",
        "one-byte-chunks",
    }
    assert set(REST_FAULTS) == common | body | set(TWILIO) | rest
    assert set(CHAT_FAULTS) == common | body | set(GROQ) | {
        "stall-before-first-token",
        "stall-mid-answer",
        "drop-mid-answer",
        "reset-mid-answer",
        "end-mid-answer",
        "error-event",
        "error-object",
        "malformed-json",
        "no-object",
        "wrong-types",
        "no-choices",
        "reasoning",
        "comments",
        "empty-deltas",
        "unknown-fields",
        "finish-length",
        "finish-content-filter",
        "no-done",
        "hold-open",
        "same-call-id",
        "fragmented-arguments",
        "wrong-arguments",
    }
    assert set(LISTEN_FAULTS) == common | refusals["listen"] | {
        "close-1000",
        "close-net-0000",
        "close-net-0001",
        "close-data-0000",
        "close-no-code",
        "close-1006",
        "reset",
        "deaf",
        "stall",
        "late",
        "drip",
        "no-speech-final",
        "malformed-json",
        "no-object",
        "binary-message",
        "broken-frame",
        "unknown-type",
        "unknown-fields",
        "missing-fields",
        "wrong-types",
        "no-alternatives",
        "error-message",
        "duplicate",
        "reordered",
    }
    assert set(FLUX_FAULTS) == set(LISTEN_FAULTS) - {"no-speech-final", "no-alternatives"} | {
        "fatal-error",
        "no-end-of-turn",
    }
    assert set(SPEAK_SOCKET_FAULTS) == common | refusals["speak"] | {
        "close-1000",
        "close-net-0000",
        "close-net-0001",
        "close-net-0003",
        "close-data-0000",
        "close-data-0001",
        "close-big-0000",
        "close-message-0000",
        "close-no-code",
        "close-1006",
        "reset",
        "empty",
        "mute",
        "stall",
        "excessive-flush",
        "slow",
        "drip",
        "small-chunks",
        "late-chunks",
        "never-cleared",
        "flushed-before-cleared",
        "flushed-after-cleared",
    }
    for where in ("listen", "flux", "speak", "speak-socket", "chat", "rest"):
        assert all(name == fault.name for name, fault in FAULTS[where].items())
