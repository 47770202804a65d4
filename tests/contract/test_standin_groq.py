"""The Groq stand-in as a client meets it: the vendor's SDK, and the bytes themselves."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import groq as sdk
import httpx
import pytest
import trio
from groq.types.chat import ChatCompletionMessageParam

from voicebot.standins.groq import ChatConduct, Groq, Reply, ToolCall, open_groq
from voicebot.standins.groq_rules import INTERNAL, RATE_LIMITED

MODEL: Final = "openai/gpt-oss-20b"
MESSAGES: Final[Sequence[ChatCompletionMessageParam]] = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Hello, I would like to book a table for four people."},
]
BODY: Final[dict[str, Any]] = {"model": MODEL, "messages": MESSAGES, "include_reasoning": False}
PATH: Final = "/openai/v1/chat/completions"


@asynccontextmanager
async def open_sdk(groq: Groq) -> AsyncGenerator[sdk.AsyncGroq]:
    # Not verifying spares 50 ms of loading certificates.
    async with (
        httpx.AsyncClient(verify=False, timeout=5) as http,
        sdk.AsyncGroq(
            api_key="standin", base_url=groq.url, max_retries=0, http_client=http
        ) as client,
    ):
        yield client


@asynccontextmanager
async def open_http(groq: Groq) -> AsyncGenerator[httpx.AsyncClient]:
    headers = {"Authorization": "Bearer standin"}
    async with httpx.AsyncClient(verify=False, base_url=groq.url, headers=headers) as client:
        yield client


async def test_the_stream_is_as_documented_event_by_event() -> None:
    with trio.fail_after(5):
        async with open_groq(replies=["Yes, sir."]) as groq, open_http(groq) as client:
            response = await client.post(PATH, json=BODY | {"stream": True})

    def chunk(delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
        return {
            "id": "chatcmpl-00000001",
            "object": "chat.completion.chunk",
            "created": 1_767_225_600,
            "model": MODEL,
            "system_fingerprint": "fp_standin",
            "choices": [
                {
                    "index": 0,
                    "delta": delta,
                    "logprobs": None,
                    "finish_reason": finish_reason,
                }
            ],
        }

    usage = {
        "queue_time": 0.0,
        "prompt_tokens": 15,
        "prompt_time": 0.0,
        "completion_tokens": 2,
        "completion_time": 0.0,
        "total_tokens": 17,
        "total_time": 0.0,
    }
    ident = "req_00000000000000000000000001"
    assert (response.status_code, response.headers["content-type"]) == (200, "text/event-stream")
    assert response.headers["x-ratelimit-limit-tokens"] == "250000"
    assert "retry-after" not in response.headers
    *events, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert [json.loads(event.removeprefix("data: ")) for event in events] == [
        chunk({"role": "assistant", "content": ""}) | {"x_groq": {"id": ident}},
        chunk({"content": "Yes,"}),
        chunk({"content": " sir."}),
        chunk({}, "stop") | {"x_groq": {"id": ident, "usage": usage}},
    ]


async def test_the_sdk_reads_the_default_answer_which_quotes_the_caller() -> None:
    with trio.fail_after(5):
        async with open_groq() as groq, open_sdk(groq) as client:
            stream = await client.chat.completions.create(
                model=MODEL, messages=MESSAGES, stream=True
            )
            async with stream:
                deltas = [chunk.choices[0].delta async for chunk in stream]

    text = "".join(delta.content or "" for delta in deltas)
    assert text == (
        "I heard you say: like to book a table for four people. What else can I do for you?"
    )
    assert [delta.reasoning for delta in deltas if delta.reasoning] == [
        "The caller wants a short answer."
    ]
    (chat,) = groq.chats
    assert chat.messages == MESSAGES
    assert chat.tokens_sent == len(chat.tokens) == 19
    assert chat.exchange.outcome == "complete"


@pytest.mark.parametrize("declined", [{"include_reasoning": False}, {"reasoning_format": "hidden"}])
async def test_reasoning_can_be_declined(declined: dict[str, Any]) -> None:
    body = {"model": MODEL, "messages": MESSAGES, "stream": True} | declined
    with trio.fail_after(5):
        async with open_groq() as groq, open_http(groq) as client:
            response = await client.post(PATH, json=body)

    assert "reasoning" not in response.text


async def test_usage_comes_in_a_chunk_without_choices_when_asked_for() -> None:
    body = BODY | {"stream": True, "stream_options": {"include_usage": True}}
    with trio.fail_after(5):
        async with open_groq() as groq, open_http(groq) as client:
            response = await client.post(PATH, json=body)

    last = json.loads(response.text.split("\n\n")[-3].removeprefix("data: "))
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 19


async def test_the_sdk_reads_a_whole_answer() -> None:
    with trio.fail_after(5):
        async with open_groq(replies=["Fine."]) as groq, open_sdk(groq) as client:
            answer = await client.chat.completions.create(model=MODEL, messages=MESSAGES)

    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content) == ("assistant", "Fine.")
    assert choice.finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 16
    assert groq.chats[0].tokens_sent == 1


async def test_replies_follow_the_turns_of_each_conversation() -> None:
    def conversation(turns: int) -> list[dict[str, str]]:
        turn = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
        return (turn * turns)[:-1]

    with trio.fail_after(5):
        async with open_groq(replies=["one", "two"]) as groq, open_http(groq) as client:
            answers = []
            for turns in (2, 1, 3):
                body = BODY | {"messages": conversation(turns)}
                answers.append((await client.post(PATH, json=body)).json())

    texts = [answer["choices"][0]["message"]["content"] for answer in answers]
    assert texts == ["two", "one", "one"]


async def test_tool_calls_come_in_pieces_that_add_up() -> None:
    def script(messages: Sequence[dict[str, Any]]) -> Reply | str:
        if messages[-1]["role"] == "tool":
            return f"It is {messages[-1]['content']}."
        return Reply(tool_calls=(ToolCall("hours", '{"day": "Tuesday"}'), ToolCall("now", "{}")))

    with trio.fail_after(5):
        async with open_groq(replies=script) as groq, open_sdk(groq) as client:
            stream = await client.chat.completions.create(
                model=MODEL, messages=MESSAGES, stream=True
            )
            names, arguments, reasons = {}, {0: "", 1: ""}, []
            async with stream:
                async for chunk in stream:
                    reasons.append(chunk.choices[0].finish_reason)
                    for call in chunk.choices[0].delta.tool_calls or ():
                        assert call.function is not None
                        if call.id is not None:
                            names[call.index] = (call.id, call.function.name)
                        arguments[call.index] += call.function.arguments or ""
            tool = {"role": "tool", "tool_call_id": "call_0", "content": "open"}
            called: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [{}]}
            async with open_http(groq) as http:
                body = BODY | {"messages": [*MESSAGES, called, tool]}
                second = (await http.post(PATH, json=body)).json()

    assert names == {0: ("call_0", "hours"), 1: ("call_1", "now")}
    assert arguments == {0: '{"day": "Tuesday"}', 1: "{}"}
    assert reasons[-1] == "tool_calls"
    assert second["choices"][0]["message"]["content"] == "It is open."


@pytest.mark.parametrize(
    "change, status, code",
    [
        ({"model": "llama-3.1-8b-instant"}, 400, "model_decommissioned"),
        ({"model": "gpt-4"}, 404, "model_not_found"),
        ({"messages": []}, 400, None),
        ({"messages": [{"role": "bot", "content": "x"}]}, 400, None),
        ({"messages": [{"role": "user"}]}, 400, None),
        ({"n": 2}, 400, None),
        ({"logprobs": True}, 400, None),
        ({"tools": [{}] * 129}, 400, None),
        ({"reasoning_format": "hidden"}, 400, None),
    ],
)
async def test_a_wrong_body_is_refused(
    change: dict[str, Any], status: int, code: str | None
) -> None:
    with trio.fail_after(5):
        async with open_groq() as groq, open_http(groq) as client:
            response = await client.post(PATH, json=BODY | change)

    error = response.json()["error"]
    assert (response.status_code, error.get("code")) == (status, code)
    assert error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type"} | ({"code"} if code else set())


async def test_a_wrong_key_is_refused() -> None:
    with trio.fail_after(5):
        async with open_groq(api_key="other") as groq, open_sdk(groq) as client:
            with pytest.raises(sdk.AuthenticationError):
                await client.chat.completions.create(model=MODEL, messages=MESSAGES)


async def test_a_rate_limit_says_when_to_come_back_and_the_next_request_is_served() -> None:
    with trio.fail_after(5):
        async with open_groq() as groq, open_sdk(groq) as client:
            groq.conducts.once(ChatConduct(refusal=RATE_LIMITED), ChatConduct(refusal=INTERNAL))
            with pytest.raises(sdk.RateLimitError) as limited:
                await client.chat.completions.create(model=MODEL, messages=MESSAGES)
            with pytest.raises(sdk.InternalServerError) as broken:
                await client.chat.completions.create(model=MODEL, messages=MESSAGES)
            await client.chat.completions.create(model=MODEL, messages=MESSAGES)

    assert limited.value.response.headers["retry-after"] == "2"
    assert "retry-after" not in broken.value.response.headers
    assert limited.value.response.json() == {
        "error": {
            "message": RATE_LIMITED.message,
            "type": "tokens",
            "code": "rate_limit_exceeded",
        }
    }


async def test_an_error_in_mid_stream_is_an_api_error() -> None:
    got = ""

    async def read(client: sdk.AsyncGroq) -> None:
        nonlocal got
        async with await client.chat.completions.create(
            model=MODEL, messages=MESSAGES, stream=True
        ) as stream:
            async for chunk in stream:
                got += chunk.choices[0].delta.content or ""

    conduct = ChatConduct(error_after_tokens=3)
    with trio.fail_after(5):
        async with open_groq(chat=conduct) as groq, open_sdk(groq) as client:
            with pytest.raises(sdk.APIError) as caught:
                await read(client)

    assert got == "I heard you"
    assert caught.value.body == {
        "message": "Internal Server Error",
        "type": "internal_server_error",
    }


async def test_a_stream_can_break_off() -> None:
    conduct = ChatConduct(drop_after_tokens=2)
    with trio.fail_after(5):
        async with open_groq(chat=conduct) as groq, open_http(groq) as client:
            with pytest.raises(httpx.RemoteProtocolError):
                await client.post(PATH, json=BODY | {"stream": True})

    assert groq.chats[0].tokens_sent == 2
    assert groq.chats[0].exchange.outcome == "dropped"


async def test_a_client_that_leaves_a_stalled_stream_is_seen_and_after_how_many_tokens() -> None:
    got = ""
    with trio.fail_after(5):
        async with (
            open_groq(chat=ChatConduct(stall_after_tokens=4)) as groq,
            open_sdk(groq) as client,
        ):
            with trio.CancelScope() as scope:
                stream = await client.chat.completions.create(
                    model=MODEL, messages=MESSAGES, stream=True
                )
                async with stream:
                    async for chunk in stream:
                        got += chunk.choices[0].delta.content or ""
                        if got == "I heard you say:":
                            scope.cancel()
            await groq.server.wait_closed()

    (chat,) = groq.chats
    assert (chat.tokens_sent, chat.exchange.outcome) == (4, "cancelled")


async def test_tokens_take_their_time() -> None:
    conduct = ChatConduct(delay_s=0.05, token_gap_s=0.01)
    with trio.fail_after(5):
        async with (
            open_groq(replies=["a b c d e"], chat=conduct) as groq,
            open_http(groq) as client,
        ):
            begin = trio.current_time()
            await client.post(PATH, json=BODY | {"stream": True})
            assert trio.current_time() - begin >= 0.05 + 4 * 0.01


async def test_what_is_not_served_is_not_found() -> None:
    with trio.fail_after(5):
        async with open_groq() as groq, open_http(groq) as client:
            assert (await client.get("/openai/v1/models")).status_code == 404
            assert (await client.post("/v1/chat/completions", json=BODY)).status_code == 404
