"""The chat against a small server over real sockets."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from types import MappingProxyType
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.servers import Exchange, cancel_at_every_step, open_fds, open_http_server
from voicebot import ports, transport
from voicebot.errors import (
    ProviderError,
    ProviderRejected,
    ProviderTimeout,
    ReplyCut,
    RequestTooLong,
)
from voicebot.llm import open_chat, open_chats
from voicebot.ports import Message, Tool, ToolCall

STREAM = "text/event-stream"
ASK = [Message("system", "Be brief."), Message("user", "Hello?")]


def connect(url: str, model: str = "openai/gpt-oss-20b", **options: Any) -> Any:
    return open_chat(base_url=url, api_key="secret", model=model, **options)


async def ask(chat: ports.Chat) -> list[str | ToolCall]:
    async with chat.open_reply(ASK) as deltas:
        return [delta async for delta in deltas]


def chunk(content: str | None = None, finish_reason: str | None = None, **more: Any) -> bytes:
    delta = {} if content is None else {"content": content}
    fields = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
        **more,
    }
    return f"data: {json.dumps(fields)}\n\n".encode()


ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"total_tokens":9}}\n\n'
DONE = b"data: [DONE]\n\n"
GOOD = [ROLE, chunk("Hel"), chunk("lo."), chunk(finish_reason="stop"), USAGE, DONE]


def streaming(
    *events: bytes, hang: bool = False, end: bool = True
) -> Callable[[Exchange], Awaitable[None]]:
    async def respond(exchange: Exchange) -> None:
        await exchange.begin(200, [("content-type", STREAM)])
        for event in events:
            await exchange.data(event)
        if hang:
            await trio.sleep_forever()
        if end:
            await exchange.end()

    return respond


# Requests


async def test_request_is_what_groq_wants() -> None:
    with trio.fail_after(10):
        async with open_http_server(streaming(*GOOD)) as server, connect(server.url) as chat:
            assert await ask(chat) == ["Hel", "lo."]
    (exchange,) = server.exchanges
    assert exchange.target == "/openai/v1/chat/completions"
    assert exchange.headers["authorization"] == "Bearer secret"
    assert json.loads(exchange.body) == {
        "model": "openai/gpt-oss-20b",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hello?"},
        ],
        "stream": True,
        "max_completion_tokens": 1024,
        "reasoning_effort": "low",
        "include_reasoning": False,
    }


async def test_tools_and_their_calls_are_sent_as_groq_wants_them() -> None:
    async def run(arguments: object) -> str:
        pytest.fail("the chat runs no tool")

    schema = {"type": "object", "properties": {"day": {"type": "string"}}}
    tool = Tool("hours", "Opening hours.", MappingProxyType(schema), run)
    asked = [
        *ASK,
        Message("assistant", "", (ToolCall("call_7", "hours", '{"day": "Monday"}'),)),
        Message("tool", "closed", tool_call_id="call_7"),
    ]
    with trio.fail_after(10):
        async with open_http_server(streaming(*GOOD)) as server, connect(server.url) as chat:
            async with chat.open_reply(asked, [tool]) as deltas:
                assert [delta async for delta in deltas] == ["Hel", "lo."]
    body = json.loads(server.exchanges[0].body)
    function = {"name": "hours", "description": "Opening hours.", "parameters": schema}
    assert body["tools"] == [{"type": "function", "function": function}]
    called = {"name": "hours", "arguments": '{"day": "Monday"}'}
    assert body["messages"][2:] == [
        {
            "role": "assistant",
            "tool_calls": [{"id": "call_7", "type": "function", "function": called}],
        },
        {"role": "tool", "content": "closed", "tool_call_id": "call_7"},
    ]


@pytest.mark.parametrize(
    "model, reasoning",
    [
        ("openai/gpt-oss-120b", {"reasoning_effort": "low", "include_reasoning": False}),
        ("gpt-oss-20b", {"reasoning_effort": "low", "include_reasoning": False}),
        ("qwen/qwen3.8-27b", {"reasoning_effort": "none"}),
        ("meta-llama/llama-9", {}),
    ],
)
async def test_reasoning_is_asked_for_only_where_it_exists(
    model: str, reasoning: dict[str, object]
) -> None:
    with trio.fail_after(10):
        async with open_http_server(streaming(*GOOD)) as server, connect(server.url, model) as chat:
            await ask(chat)
    body = json.loads(server.exchanges[0].body)
    assert {name: body[name] for name in body if "reasoning" in name} == reasoning


@pytest.mark.parametrize("suffix", ["", "/", "/openai/v1", "/openai/v1/"])
async def test_base_url_is_taken_with_and_without_the_path_of_the_sdk(suffix: str) -> None:
    with trio.fail_after(10):
        async with open_http_server(streaming(*GOOD)) as server:
            async with connect(server.url + suffix) as chat:
                await ask(chat)
    assert server.exchanges[0].target == "/openai/v1/chat/completions"


async def test_local_server_needs_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GROQ_API_KEY", raising=False)
    with trio.fail_after(10):
        async with open_http_server(streaming(*GOOD)) as server:
            async with open_chat(base_url=server.url, api_key="", model="m") as chat:
                assert await ask(chat) == ["Hel", "lo."]


async def test_several_models_share_the_connections() -> None:
    models = ["openai/gpt-oss-20b", "openai/gpt-oss-120b", "qwen/qwen3.8-27b"]
    with trio.fail_after(10):
        async with open_http_server(streaming(*GOOD)) as server:
            async with open_chats(base_url=server.url, api_key="", models=models) as chats:
                for chat in chats:
                    assert await ask(chat) == ["Hel", "lo."]
            assert server.connections == 1
    bodies = [json.loads(exchange.body) for exchange in server.exchanges]
    assert [body["model"] for body in bodies] == models
    assert [body["reasoning_effort"] for body in bodies] == ["low", "low", "none"]


async def test_answers_share_a_connection_although_they_end_at_finish_reason() -> None:
    with trio.fail_after(10):
        async with open_http_server(streaming(*GOOD)) as server, connect(server.url) as chat:
            for _ in range(5):
                await ask(chat)
            assert server.connections == 1


# Streams


async def test_thoughts_are_not_given_and_the_rest_is() -> None:
    thoughts = [
        chunk("<th"),
        chunk("ink>hm"),
        chunk("</think>", reasoning="also"),
        b'data: {"choices":[{"index":0,"delta":{"reasoning":"Hm.","channel":"analysis"}}]}\n\n',
    ]
    with trio.fail_after(10):
        respond = streaming(ROLE, *thoughts, *GOOD[1:])
        async with open_http_server(respond) as server, connect(server.url) as chat:
            assert await ask(chat) == ["Hel", "lo."]


async def test_answer_ends_at_finish_reason_even_if_the_server_keeps_the_body_open() -> None:
    with trio.fail_after(10):
        respond = streaming(chunk("Hi."), chunk(finish_reason="stop"), hang=True)
        async with open_http_server(respond) as server, connect(server.url) as chat:
            async with chat.open_reply(ASK) as deltas:
                assert [delta async for delta in deltas] == ["Hi."]
                with pytest.raises(StopAsyncIteration):
                    await anext(deltas)
            await server.gone.wait()


async def test_text_that_comes_with_finish_reason_is_kept_and_what_follows_is_not() -> None:
    with trio.fail_after(10):
        respond = streaming(chunk("Hi"), chunk(".", finish_reason="stop"), chunk("Ghost"), DONE)
        async with open_http_server(respond) as server, connect(server.url) as chat:
            assert await ask(chat) == ["Hi", "."]


async def test_connection_lost_after_the_answer_is_no_error() -> None:
    respond = streaming(chunk("Hi."), chunk(finish_reason="stop"), end=False)
    with trio.fail_after(10):
        async with open_http_server(respond) as server, connect(server.url) as chat:
            assert await ask(chat) == ["Hi."]


async def test_done_ends_an_answer_without_finish_reason() -> None:
    with trio.fail_after(10):
        async with open_http_server(streaming(chunk("Hi."), DONE)) as server:
            async with connect(server.url) as chat:
                assert await ask(chat) == ["Hi."]


async def test_bytes_that_come_one_by_one_make_the_same_answer() -> None:
    stream = b"".join([chunk("¿Qué"), chunk(" tal? 😀"), chunk(finish_reason="stop")])
    with trio.fail_after(10):
        respond = streaming(*(bytes([byte]) for byte in stream))
        async with open_http_server(respond) as server, connect(server.url) as chat:
            assert await ask(chat) == ["¿Qué", " tal? 😀"]


@pytest.mark.parametrize("reason", ["length", "content_filter", "abort"])
async def test_answer_cut_off_is_given_as_far_as_it_goes_and_then_said_to_be_cut(
    reason: str,
) -> None:
    with trio.fail_after(10):
        respond = streaming(chunk("Hi"), chunk(" you <", finish_reason=reason), DONE)
        async with open_http_server(respond) as server, connect(server.url) as chat:
            async with chat.open_reply(ASK) as deltas:
                assert await anext(deltas) + await anext(deltas) == "Hi you <"
                with pytest.raises(ReplyCut) as caught:
                    await anext(deltas)
            assert (caught.value.reason, caught.value.retryable) == (reason, False)
            async with chat.open_reply(ASK):
                assert server.connections == 1  # whoever catches it inside keeps the connection


def call(finish_reason: str | None = None, *pieces: Any) -> bytes:
    delta = {"tool_calls": list(pieces)}
    fields = {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}
    return f"data: {json.dumps(fields)}\n\n".encode()


HOURS = {"index": 0, "id": "c0", "type": "function", "function": {"name": "hours"}}


@pytest.mark.parametrize("end", [chunk(finish_reason="tool_calls"), DONE])
async def test_call_comes_after_its_text_and_is_whole_at_the_end(end: bytes) -> None:
    arguments = [{"index": 0, "function": {"arguments": piece}} for piece in ('{"day":', " 1}")]
    events = [ROLE, chunk("One moment."), call(None, HOURS), *(call(None, a) for a in arguments)]
    with trio.fail_after(10):
        async with open_http_server(streaming(*events, end, hang=True)) as server:
            async with connect(server.url) as chat:
                assert await ask(chat) == ["One moment.", ToolCall("c0", "hours", '{"day": 1}')]


async def test_call_that_comes_with_finish_reason_is_kept() -> None:
    with trio.fail_after(10):
        async with open_http_server(streaming(call("tool_calls", HOURS))) as server:
            async with connect(server.url) as chat:
                assert await ask(chat) == [ToolCall("c0", "hours", "{}")]


async def test_call_of_an_answer_that_is_cut_off_is_never_made() -> None:
    events = [call(None, HOURS), chunk(finish_reason="length")]
    with trio.fail_after(10):
        async with open_http_server(streaming(*events)) as server, connect(server.url) as chat:
            with pytest.raises(ReplyCut, match="length"):
                await ask(chat)


@pytest.mark.parametrize("end", [True, False], ids=["ended", "lost"])
async def test_call_of_a_stream_that_breaks_off_is_never_made(end: bool) -> None:
    with trio.fail_after(10):
        async with open_http_server(streaming(chunk("Hi"), call(None, HOURS), end=end)) as server:
            async with connect(server.url) as chat, chat.open_reply(ASK) as deltas:
                assert await anext(deltas) == "Hi"
                with pytest.raises(ProviderError):
                    await anext(deltas)


@pytest.mark.parametrize(
    "events, said",
    [
        ([chunk("Hi"), b'data: {"error":{"message":"over capacity"}}\n\n'], "over capacity"),
        ([chunk("Hi"), b'event: error\ndata: {"error":{"message":"gone"}}\n\n'], "gone"),
        ([chunk("Hi"), b"data: {oops\n\n"], "unintelligible"),
        ([chunk("Hi"), call(None, {"index": 0})], "without a name"),
        ([chunk("Hi"), call(None, 5)], "unintelligible"),
        ([chunk("Hi"), b"data: " + b"x" * 1_100_000], "oversized"),
        ([chunk("Hi")], "broke off"),
    ],
)
async def test_text_before_a_failure_is_given_before_the_failure(
    events: list[bytes], said: str
) -> None:
    with trio.fail_after(10):
        async with open_http_server(streaming(b"".join(events))) as server:
            async with connect(server.url) as chat, chat.open_reply(ASK) as deltas:
                assert await anext(deltas) == "Hi"
                with pytest.raises(ProviderError, match=said):
                    await anext(deltas)


async def test_connection_lost_in_mid_answer_is_an_error_to_be_retried() -> None:
    with trio.fail_after(10):
        async with open_http_server(streaming(chunk("Hi"), end=False)) as server:
            async with connect(server.url) as chat, chat.open_reply(ASK) as deltas:
                assert await anext(deltas) == "Hi"
                with pytest.raises(ProviderError, match="RemoteProtocolError") as caught:
                    await anext(deltas)
                assert caught.value.retryable


async def test_answer_that_is_no_event_stream_says_where_to_look() -> None:
    async def respond(exchange: Exchange) -> None:
        await exchange.answer(200, "text/html", b"<html>captive portal</html>")

    with trio.fail_after(10):
        async with open_http_server(respond) as server, connect(server.url) as chat:
            with pytest.raises(ProviderError, match=r"text/html .*GROQ_BASE_URL"):
                await ask(chat)


async def test_stall_ends_at_the_backstop_when_the_caller_sets_no_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transport, "READ_S", 0.1)
    with trio.fail_after(10):
        for respond in streaming(chunk("Hi"), hang=True), hang:
            async with open_http_server(respond) as server, connect(server.url) as chat:
                with pytest.raises(ProviderTimeout, match="ReadTimeout"):
                    await ask(chat)


# Refusals


@pytest.mark.parametrize(
    "status, body, code, said, retryable",
    [
        (401, {"error": {"message": "Invalid API Key", "code": "invalid_api_key"}},
         "invalid_api_key", "Invalid API Key; check GROQ_API_KEY", False),
        (404, {"error": {"message": "no such model", "code": "model_not_found"}},
         "model_not_found", "VOICEBOT_GROQ_MODEL", False),
        (400, {"error": {"message": "gone", "type": "invalid_request_error"}},
         "invalid_request_error", "gone", False),
        (400, {"error": {"message": "x", "code": "tool_use_failed", "failed_generation": "PII"}},
         "tool_use_failed", "tool_use_failed x", True),
        (413, {"error": {"message": "too large"}}, None, "too long", False),
        (429, {"error": {"message": "slow down", "code": "rate_limit_exceeded"}},
         "rate_limit_exceeded", "rate limit.*retry after 2 s", True),
        (498, {"error": {"message": "flex full"}}, None, "flex full", True),
        (503, "overloaded", None, "overloaded", True),
        (502, ["?"], None, "refused with 502", True),
    ],
)  # fmt: skip
async def test_refusal_says_what_and_what_to_do_and_is_not_retried_here(
    status: int, body: object, code: str | None, said: str, retryable: bool
) -> None:
    async def respond(exchange: Exchange) -> None:
        content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        wait = [("retry-after", "2")] if status == 429 else []
        await exchange.answer(status, "application/json", content, wait)

    with trio.fail_after(10):
        async with open_http_server(respond) as server, connect(server.url) as chat:
            with pytest.raises(ProviderRejected, match=said) as caught:
                await ask(chat)
            assert len(server.exchanges) == 1
    error = caught.value
    assert (error.status, error.code, error.retryable) == (status, code, retryable)
    assert error.retry_after_s == (2 if status == 429 else None)
    assert isinstance(error, RequestTooLong) is (status == 413)
    assert "secret" not in str(error)
    assert "PII" not in str(error)


async def test_nobody_listening_is_an_error_to_be_retried() -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    await listeners[0].aclose()
    with trio.fail_after(10):
        async with connect(f"http://127.0.0.1:{port}") as chat:
            with pytest.raises(ProviderError, match="ConnectError") as caught:
                await ask(chat)
            assert caught.value.retryable


async def test_error_of_the_block_leaves_it_unchanged() -> None:
    with trio.fail_after(10):
        async with open_http_server(streaming(*GOOD)) as server, connect(server.url) as chat:
            with pytest.raises(ValueError, match="mine"):
                async with chat.open_reply(ASK):
                    raise ValueError("mine")


# Cancelled and left early


async def hang(exchange: Exchange) -> None:
    await trio.sleep_forever()


@pytest.mark.parametrize("hold", [True, False], ids=["between deltas", "while reading"])
@pytest.mark.parametrize("respond", [hang, streaming(chunk("Hi"), hang=True)])
async def test_cancel_closes_the_connection_at_once(
    respond: Callable[[Exchange], Awaitable[None]], hold: bool
) -> None:
    async def listen(chat: ports.Chat) -> None:
        async with chat.open_reply(ASK) as deltas:
            async for _ in deltas:
                if hold:
                    await trio.sleep_forever()

    with trio.fail_after(10):
        async with open_http_server(respond) as server, connect(server.url) as chat:
            before = open_fds()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(listen, chat)
                while not server.exchanges:
                    await wait_all_tasks_blocked(0.02)
                nursery.cancel_scope.cancel()
            await server.gone.wait()
            await wait_all_tasks_blocked(0.01)
            assert open_fds() == before


async def test_answer_left_early_closes_the_connection() -> None:
    respond = streaming(*[chunk("Hi")] * 50, hang=True)
    with trio.fail_after(10):
        async with open_http_server(respond) as server, connect(server.url) as chat:
            async with chat.open_reply(ASK) as deltas:
                async for _ in deltas:
                    break
            await server.gone.wait()


async def test_answer_cancelled_at_every_step_loses_no_connection_and_no_fd() -> None:
    async def respond(exchange: Exchange) -> None:
        await exchange.answer(200, STREAM, b"".join(GOOD), [("connection", "close")])

    with trio.fail_after(60):
        async with open_http_server(respond) as server, connect(server.url) as chat:

            async def act() -> None:
                assert await ask(chat) == ["Hel", "lo."]

            await act()  # the SDK asks once, in a thread, what platform this is
            await wait_all_tasks_blocked(0.01)
            before = open_fds()
            assert await cancel_at_every_step(act) > 10
            await wait_all_tasks_blocked(0.02)
            assert open_fds() == before
