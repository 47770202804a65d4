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


def function(name: str, **more: Any) -> Any:
    return {"type": "function", "function": {"name": name, **more}}


TOOLS: Final = [function("hours", parameters={"type": "object"}), function("now")]
HOURS: Final = '{"day": "Tuesday"}'
CALLING: Final = Reply("One moment.", (ToolCall("hours", HOURS), ToolCall("now"), ToolCall("now")))


async def test_tool_calls_come_whole_after_the_text() -> None:
    body = BODY | {"stream": True, "tools": TOOLS}
    with trio.fail_after(5):
        async with open_groq(replies=[CALLING]) as groq, open_http(groq) as client:
            response = await client.post(PATH, json=body)

    events = [json.loads(event[len("data: ") :]) for event in response.text.split("\n\n")[:-2]]
    choices = [event["choices"][0] for event in events]
    assert [choice["delta"] for choice in choices] == [
        {"role": "assistant", "content": ""},
        {"content": "One"},
        {"content": " moment."},
        {"tool_calls": [{"index": 0, "id": "call_1_0", **function("hours", arguments=HOURS)}]},
        {"tool_calls": [{"index": 1, "id": "call_1_1", **function("now", arguments="{}")}]},
        {"tool_calls": [{"index": 2, "id": "call_1_2", **function("now", arguments="{}")}]},
        {},
    ]
    assert [choice["finish_reason"] for choice in choices] == [None] * 6 + ["tool_calls"]
    assert groq.chats[0].tokens_sent == 5


@pytest.mark.parametrize("size", [None, 1, 8])
async def test_tool_calls_come_whole_or_in_pieces_that_add_up(size: int | None) -> None:
    conduct = ChatConduct(argument_chars=size)
    with trio.fail_after(5):
        async with (
            open_groq(replies=[CALLING], chat=conduct) as groq,
            open_sdk(groq) as client,
        ):
            stream = await client.chat.completions.create(
                model=MODEL, messages=MESSAGES, tools=TOOLS, stream=True
            )
            async with stream:
                choices = [chunk.choices[0] async for chunk in stream]

    pieces = [call for choice in choices for call in choice.delta.tool_calls or ()]
    texts = [(call.index, call.function.arguments or "") for call in pieces if call.function]
    names = [(call.id, call.function.name) for call in pieces if call.id and call.function]
    assert names == [("call_1_0", "hours"), ("call_1_1", "now"), ("call_1_2", "now")]
    assert ["".join(text for n, text in texts if n == index) for index in range(3)] == [
        HOURS,
        "{}",
        "{}",
    ]
    longest = max(len(text) for _, text in texts)
    assert longest == (size or len(HOURS))
    assert choices[-1].finish_reason == "tool_calls"


async def test_a_whole_answer_has_its_tool_calls() -> None:
    with trio.fail_after(5):
        async with (
            open_groq(replies=[Reply(tool_calls=(ToolCall("hours", "{oops"),))]) as groq,
            open_sdk(groq) as client,
        ):
            answer = await client.chat.completions.create(
                model=MODEL, messages=MESSAGES, tools=TOOLS
            )

    (choice,) = answer.choices
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert (call.id, call.function.name, call.function.arguments) == ("call_1_0", "hours", "{oops")


def called(*idents: str, arguments: str = "{}", **more: Any) -> dict[str, Any]:
    calls = [{"id": ident, **function("now", arguments=arguments)} for ident in idents]
    return {"role": "assistant", "tool_calls": calls, **more}


def result(ident: str, content: str = "noon") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": ident, "content": content}


USER: Final = {"role": "user", "content": "x"}


async def test_replies_follow_the_results_of_tools_too() -> None:
    conversation = [USER, called("c0"), result("c0"), {"role": "assistant", "content": "y"}, USER]
    replies: list[str | Reply] = [Reply(tool_calls=(ToolCall("now"),)), "It is noon.", "Bye."]
    with trio.fail_after(5):
        async with open_groq(replies=replies) as groq, open_http(groq) as client:
            answers = []
            for length in (1, 3, 5):
                body = BODY | {"messages": conversation[:length], "tools": TOOLS}
                answers.append((await client.post(PATH, json=body)).json())

    messages = [answer["choices"][0]["message"] for answer in answers]
    assert [message["content"] for message in messages] == [None, *replies[1:]]


@pytest.mark.parametrize("offered", [{}, {"tools": TOOLS, "tool_choice": "none"}])
async def test_a_model_that_was_offered_no_tool_cannot_call_one(offered: dict[str, Any]) -> None:
    with trio.fail_after(5):
        async with open_groq(replies=[CALLING]) as groq, open_http(groq) as client:
            response = await client.post(PATH, json=BODY | offered)

    assert response.status_code == 400
    assert response.json()["error"]["code"] == "tool_use_failed"
    assert not groq.chats


@pytest.mark.parametrize(
    "more",
    [
        [called("c0"), result("c0")],
        [called("c0", content=None), result("c0", "")],
        [called("c0", "c1", content="One moment."), result("c1"), result("c0")],
        [called("c0"), result("c0"), called("c0"), result("c0"), USER],
    ],
)
async def test_tool_calls_that_are_answered_are_taken(more: list[dict[str, Any]]) -> None:
    with trio.fail_after(5):
        async with open_groq() as groq, open_http(groq) as client:
            response = await client.post(PATH, json=BODY | {"messages": [USER, *more]})

    assert response.status_code == 200


@pytest.mark.parametrize(
    "more, said",
    [
        ([called("c0")], "'c0' has no answer"),
        ([called("c0"), USER], "'messages.2' : the tool call 'c0' before it has no answer"),
        ([called("c0"), USER, result("c0")], "'messages.2' : the tool call 'c0'"),
        ([called("c0", "c1"), result("c0")], "'c1' has no answer"),
        ([called("c0", "c1"), result("c0"), called("c2"), result("c2")], "'c1' before it"),
        ([called("c0"), result("c0"), result("c0")], "'messages.3' : 'tool_call_id' is none"),
        ([called("c0"), result("c1")], "'messages.2' : 'tool_call_id' is none"),
        ([result("c0")], "'messages.1' : 'tool_call_id' is none"),
        ([{"role": "tool", "content": "noon"}], "'tool_call_id' is none"),
        ([called("c0"), result("c0") | {"content": None}], "'content' is missing"),
        ([called("c0", "c0"), result("c0")], "ids must differ"),
        ([called(content="x")], "minimum number of items is 1"),
        ([called("")], "a call is an id"),
        ([{"role": "assistant", "tool_calls": [{}]}], "a call is an id"),
        ([{"role": "assistant", "tool_calls": [{"id": "c0", **function("now")}]}], "a call is an"),
        ([{"role": "assistant", "tool_calls": {"id": "c0"}}], "minimum number of items is 1"),
        ([called("c0", arguments=""), result("c0")], "must be a JSON object"),
        ([called("c0", arguments='{"a'), result("c0")], "must be a JSON object"),
        ([called("c0", arguments="[]"), result("c0")], "must be a JSON object"),
        ([called("c0", role="user", content="x"), result("c0")], "'tool_calls' is unsupported"),
        ([USER | {"tool_call_id": "c0"}], "'tool_call_id' is unsupported"),
    ],
)
async def test_a_conversation_with_loose_ends_is_refused(
    more: list[dict[str, Any]], said: str
) -> None:
    with trio.fail_after(5):
        async with open_groq() as groq, open_http(groq) as client:
            response = await client.post(PATH, json=BODY | {"messages": [USER, *more]})

    assert response.status_code == 400
    assert said in response.json()["error"]["message"]


SCHEMA: Final = {"type": "object", "properties": {"day": {"type": "string"}}, "required": ["day"]}


@pytest.mark.parametrize(
    "tools, said",
    [
        ([function("a-b_C9", description="d", parameters=SCHEMA, strict=True)], None),
        ([], "minimum number of items is 1"),
        ({}, "minimum number of items is 1"),
        ([{}], "0 : a tool is"),
        (["now"], "0 : a tool is"),
        ([TOOLS[0], TOOLS[1] | {"type": "web"}], "1 : a tool is"),
        ([{"type": "function", "name": "now"}], "0 : a tool is"),
        ([TOOLS[0] | {"name": "now"}], "'name' is unsupported"),
        ([function("now", schema={})], "'schema' is unsupported"),
        ([function("")], "a name has"),
        ([function("right now")], "a name has"),
        ([function("x" * 65)], "a name has"),
        ([function("now", description=None)], "'description' must be text"),
        ([function("now", parameters=None)], "'parameters' : must be the schema of an object"),
        ([function("now", parameters={})], "must be the schema of an object"),
        ([function("now", parameters={"type": "string"})], "must be the schema of an object"),
        ([function("now", parameters=SCHEMA | {"properties": {"day": "string"}})], "'properties'"),
        ([function("now", parameters=SCHEMA | {"properties": ["day"]})], "'properties'"),
        ([function("now", parameters=SCHEMA | {"required": ["hour"]})], "'required'"),
        ([function("now", parameters=SCHEMA | {"required": True})], "'required'"),
        ([TOOLS[0], TOOLS[0]], "names must differ"),
        ([function(f"f{n}") for n in range(128)], None),
        ([function(f"f{n}") for n in range(129)], "maximum number of items is 128"),
    ],
)
async def test_tools_must_be_functions_with_a_schema(tools: Any, said: str | None) -> None:
    with trio.fail_after(5):
        async with open_groq() as groq, open_http(groq) as client:
            response = await client.post(PATH, json=BODY | {"tools": tools})

    assert response.status_code == (400 if said else 200)
    assert (said or "") in response.text


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
