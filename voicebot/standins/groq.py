"""A local stand-in for Groq: `POST /openai/v1/chat/completions`, streamed and whole.

    async with open_groq(replies=["Yes.", "No."]) as groq:
        groq.url                                         # http://127.0.0.1:…
        groq.conducts.once(ChatConduct(stall_after_tokens=3))
        groq.replies = [Reply("One moment.", (ToolCall("hours", '{"day": 1}'),)), "From noon."]

No model: answers come from a script, cut into one token a word. Not served: audio endpoints,
the list of models.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import trio

from voicebot.standins.groq_rules import (
    INTERNAL,
    INVALID_KEY,
    NOT_FOUND,
    UNASKED_CALL,
    ApiError,
    check_body,
    refuse,
    usual_headers,
)
from voicebot.standins.http11 import (
    KEPT,
    Answer,
    Exchange,
    HttpServer,
    Report,
    open_http_server,
)
from voicebot.standins.script import Conduct, Conducts, Rule, nth

QUOTED_WORDS: Final = 8  # of the caller's last message in the default answer
CREATED: Final = 1_767_225_600  # 2026-01-01: constant, so that no run differs from another
FINGERPRINT: Final = "fp_standin"

REASONING: Final = "The caller wants a short answer."  # gpt-oss sends some unless told not to

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function the model wants called; `arguments` is JSON as text, or wrong JSON."""

    name: str
    arguments: str = "{}"


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model says, then calls. `reasoning` is sent unless the request declines it."""

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    reasoning: str = REASONING
    finish_reason: str | None = None  # None: tool_calls or stop, as it should be


#: The n-th reply answers the n-th message of the user, or results of tools, in each conversation;
#: or a function of the messages as sent.
Replies = Sequence[str | Reply] | Callable[[Sequence[Json]], str | Reply]


#: What else is in a stream, before each of its tokens. The first three cannot be understood, the
#: others are to be skipped.
Extra = Literal[
    "malformed-json",
    "no-object",
    "wrong-types",
    "no-choices",
    "reasoning",
    "comment",
    "empty-delta",
]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ChatConduct(Conduct):
    """How one request is treated. A token is a word with the space before it, or a tool call.

    `delay_s` is the time to the first token. What is said of tokens, streams and their ends is
    of streamed answers only; what is said of tool calls, of replies that have some.
    """

    refusal: ApiError | None = None
    argument_chars: int | None = None  # of a tool call in one token, its name before; None: whole
    arguments: str | None = None  # of every tool call, instead of the script's
    call_id: str | None = None  # of every tool call, though ids should differ
    token_gap_s: float = 0.0
    extra: Extra | None = None
    unknown_fields: bool = False  # that nobody has documented, in every chunk
    stall_after_tokens: int | None = None  # then nothing more comes
    drop_after_tokens: int | None = None  # then the connection ends without an end of the body
    reset_after_tokens: int | None = None  # the same, by RST
    end_after_tokens: int | None = None  # then the body ends, without finish_reason and `[DONE]`
    error_after_tokens: int | None = None  # then an error, and the end
    error_event: str = "error"  # the name of the event with it; "": it has none
    finish_reason: str | None = None  # instead of the script's
    done: bool = True  # False: the stream ends without `[DONE]`
    hold_open: bool = False  # True: after all is said the body is not ended

    def spoil(self, reply: Reply) -> Reply:
        """Return the reply with what this conduct changes of it."""
        calls = reply.tool_calls
        if self.arguments is not None:
            calls = tuple(replace(call, arguments=self.arguments) for call in calls)
        return replace(
            reply, tool_calls=calls, finish_reason=self.finish_reason or reply.finish_reason
        )


CHAT: Final = ChatConduct()


@dataclass(eq=False, slots=True)
class Chat:
    """One accepted request. `exchange.outcome` is "cancelled" where the client left early."""

    exchange: Exchange
    body: Json
    reply: Reply
    tokens: Sequence[str]
    tokens_sent: int = 0

    @property
    def messages(self) -> list[Json]:
        """The conversation as the client sent it."""
        messages: list[Json] = self.body["messages"]
        return messages


class Groq:
    """Control and inspection of a running stand-in. Made by `open_groq`."""

    def __init__(self, api_key: str, replies: Replies, rule: Rule[ChatConduct]) -> None:
        self.conducts: Conducts[ChatConduct] = Conducts(rule)
        self.replies = replies
        self.chats: deque[Chat] = deque(maxlen=KEPT)
        self.server: HttpServer
        self._api_key = api_key

    @property
    def url(self) -> str:
        """What `GROQ_BASE_URL` is to be."""
        return self.server.url

    async def answer(self, exchange: Exchange, answer: Answer) -> None:
        """Serve one request."""
        if (exchange.method, exchange.path) != ("POST", "/openai/v1/chat/completions"):
            await refuse(answer, NOT_FOUND)
            return
        conduct = self.conducts.take(exchange)
        await conduct.meet(answer)
        body, error = check_body(exchange)
        if exchange.headers.get("authorization") != f"Bearer {self._api_key}":
            error = INVALID_KEY
        if (error := conduct.refusal or error) is not None:
            await refuse(answer, error)
            return
        reply = self._reply(body["messages"])
        if reply.tool_calls and (not body.get("tools") or body.get("tool_choice") == "none"):
            await refuse(answer, UNASKED_CALL)
            return
        reply = conduct.spoil(reply)
        chat = Chat(exchange, body, reply, re.findall(r"\s*\S+", reply.text))
        self.chats.append(chat)
        if body.get("stream"):
            await _Completion(chat, conduct).stream(answer)
        else:
            await answer.send_json(200, _Completion(chat, conduct).whole(), usual_headers())
            chat.tokens_sent = len(chat.tokens)

    def _reply(self, messages: Sequence[Json]) -> Reply:
        if callable(self.replies):
            reply = self.replies(messages)
        else:
            turns = sum(
                message["role"] == "user" or bool(message.get("tool_calls")) for message in messages
            )
            reply = nth(self.replies, max(0, turns - 1))
        return Reply(reply) if isinstance(reply, str) else reply


def quote_caller(messages: Sequence[Json]) -> str:
    """Return the default answer: it quotes the last words of the user."""
    said = [str(message["content"]) for message in messages if message["role"] == "user"]
    if not said:
        return "Hello, how can I help you?"
    words = " ".join(said[-1].split()[-QUOTED_WORDS:]).rstrip(".!?")
    return f"I heard you say: {words}. What else can I do for you?"


class _Completion:
    """The wire form of one answer."""

    def __init__(self, chat: Chat, conduct: ChatConduct) -> None:
        self._chat = chat
        self._conduct = conduct
        number = chat.exchange.number
        self._number = number
        self._id = f"chatcmpl-{number:08d}"
        self._request = {"id": f"req_{number:026d}"}
        self._model: str = chat.body["model"]
        reply = chat.reply
        normal = "tool_calls" if reply.tool_calls else "stop"
        self._finish_reason = reply.finish_reason or normal
        declined = (
            chat.body.get("include_reasoning") is False
            or chat.body.get("reasoning_format") == "hidden"
        )
        self._reasoning = "" if declined else reply.reasoning

    def whole(self) -> Json:
        """Return the answer to a request that is not streamed."""
        reply = self._chat.reply
        message: Json = {"role": "assistant", "content": reply.text or None}
        if self._reasoning:
            message["reasoning"] = self._reasoning
        if reply.tool_calls:
            message["tool_calls"] = [
                self._call(n, call, call.arguments) for n, call in enumerate(reply.tool_calls)
            ]
        return {
            "id": self._id,
            "object": "chat.completion",
            "created": CREATED,
            "model": self._model,
            "choices": [
                {
                    "index": 0,
                    "message": message,
                    "logprobs": None,
                    "finish_reason": self._finish_reason,
                }
            ],
            "usage": self._usage(),
            "system_fingerprint": FINGERPRINT,
            "x_groq": self._request,
        }

    async def stream(self, answer: Answer) -> None:
        """Send the answer as server-sent events."""
        conduct = self._conduct
        headers = [("Content-Type", "text/event-stream"), ("Cache-Control", "no-cache")]
        await answer.start(200, [*headers, *usual_headers()])
        role = {"role": "assistant", "content": ""}
        await self._event(answer, {**self._chunk(role), "x_groq": self._request})
        if self._reasoning:
            await self._event(answer, self._chunk(self._thought(self._reasoning)))
        deltas: list[Json] = [{"content": token} for token in self._chat.tokens]
        deltas += self._calls(conduct.argument_chars)
        for n, delta in enumerate(deltas):
            if await self._break(n, answer):
                return
            if n:
                await trio.sleep(conduct.token_gap_s)
            await self._send_extra(answer)
            await self._event(answer, self._chunk(delta))
            self._chat.tokens_sent += 1
        if await self._break(len(deltas), answer):
            return
        final = self._chunk({}, self._finish_reason)
        await self._event(answer, {**final, "x_groq": {**self._request, "usage": self._usage()}})
        if (self._chat.body.get("stream_options") or {}).get("include_usage"):
            usage = {**self._chunk({}), "choices": [], "usage": self._usage()}
            await self._event(answer, usage)
        if conduct.done:
            await answer.write(b"data: [DONE]\n\n")
        if conduct.hold_open:
            await trio.sleep_forever()
        await answer.end()

    async def _event(self, answer: Answer, value: Json, name: str = "") -> None:
        if self._conduct.unknown_fields:
            value = {**value, "weather": {"in": ["Berlin"]}}
            if "choices" in value:
                value["choices"] = [{**choice, "mood": None} for choice in value["choices"]]
        head = f"event: {name}\n" if name else ""
        await answer.write(f"{head}data: {json.dumps(value, ensure_ascii=False)}\n\n".encode())

    async def _send_extra(self, answer: Answer) -> None:
        chunk = self._chunk({})
        match self._conduct.extra:
            case "malformed-json":
                await answer.write(b'data: {"id": "chatcmpl-\n\n')
            case "no-object":
                await answer.write(b'data: ["chatcmpl"]\n\n')
            case "wrong-types":
                await self._event(answer, {**chunk, "choices": {"delta": "x"}})
            case "no-choices":
                await self._event(answer, {**chunk, "choices": []})
            case "reasoning":
                await self._event(answer, self._chunk(self._thought(REASONING)))
            case "comment":
                await answer.write(b": still here\n\n")
            case "empty-delta":
                await self._event(answer, self._chunk({"content": None, "tool_calls": None}))

    def _thought(self, text: str) -> Json:
        return {"reasoning": text, "channel": "analysis"}

    async def _break(self, sent: int, answer: Answer) -> bool:
        """Misbehave if it is time to; return whether the answer is over."""
        conduct = self._conduct
        if sent == conduct.stall_after_tokens:
            await trio.sleep_forever()
        if sent == conduct.drop_after_tokens:
            answer.drop(reset=False)
        if sent == conduct.reset_after_tokens:
            answer.drop(reset=True)
        if sent == conduct.error_after_tokens:
            await self._event(answer, INTERNAL.body(), conduct.error_event)
        if sent in (conduct.error_after_tokens, conduct.end_after_tokens):
            await answer.end()
            return True
        return False

    def _calls(self, size: int | None) -> list[Json]:
        """Return the tool calls, each whole or in pieces: id and name, then the arguments."""
        pieces: list[Json] = []
        for n, call in enumerate(self._chat.reply.tool_calls):
            first, *rest = [call.arguments] if size is None else ["", *_cut(call.arguments, size)]
            pieces.append({"index": n, **self._call(n, call, first)})
            pieces += [{"index": n, "function": {"arguments": text}} for text in rest]
        return [{"tool_calls": [piece]} for piece in pieces]

    def _call(self, n: int, call: ToolCall, arguments: str) -> Json:
        """Return a tool call. No other of any conversation has its id, unless it is to."""
        function = {"name": call.name, "arguments": arguments}
        ident = self._conduct.call_id or f"call_{self._number}_{n}"
        return {"id": ident, "type": "function", "function": function}

    def _chunk(self, delta: Json, finish_reason: str | None = None) -> Json:
        return {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": CREATED,
            "model": self._model,
            "system_fingerprint": FINGERPRINT,
            "choices": [
                {
                    "index": 0,
                    "delta": delta,
                    "logprobs": None,
                    "finish_reason": finish_reason,
                }
            ],
        }

    def _usage(self) -> Json:
        # Four characters a token is the usual rule of thumb for English.
        prompt = sum(len(str(message.get("content") or "")) for message in self._chat.messages) // 4
        completion = len(self._chat.tokens)
        return {
            "queue_time": 0.0,
            "prompt_tokens": prompt,
            "prompt_time": 0.0,
            "completion_tokens": completion,
            "completion_time": 0.0,
            "total_tokens": prompt + completion,
            "total_time": 0.0,
        }


def _cut(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


@asynccontextmanager
async def open_groq(
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    api_key: str = "standin",
    replies: Replies = quote_caller,
    chat: Rule[ChatConduct] = CHAT,
    report: Report | None = None,
) -> AsyncGenerator[Groq]:
    """Serve the stand-in while the block runs.

    Args:
        api_key: the only key that is accepted.
        replies: what the model says.
        chat: the standing conduct.
        report: called when a request is over.

    Owns: the listening socket and all connections.
    """
    groq = Groq(api_key, replies, chat)
    async with open_http_server("groq", groq.answer, host, port, report) as server:
        groq.server = server
        yield groq
