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
from dataclasses import dataclass
from typing import Any, Final

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


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatConduct(Conduct):
    """How one request is treated. A token is a word with the space before it, or a tool call.

    `delay_s` is the time to the first token. Only streamed answers can break after some
    tokens.
    """

    refusal: ApiError | None = None
    argument_chars: int | None = None  # of a tool call in one token, its name before; None: whole
    token_gap_s: float = 0.0
    stall_after_tokens: int | None = None  # then nothing more comes
    drop_after_tokens: int | None = None  # then the connection ends without an end of the body
    error_after_tokens: int | None = None  # then an event with `error`, and the end


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
        chat = Chat(exchange, body, reply, re.findall(r"\s*\S+", reply.text))
        self.chats.append(chat)
        if body.get("stream"):
            await _Completion(chat).stream(answer, conduct)
        else:
            await answer.send_json(200, _Completion(chat).whole(), usual_headers())
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

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
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

    async def stream(self, answer: Answer, conduct: ChatConduct) -> None:
        """Send the answer as server-sent events."""
        headers = [("Content-Type", "text/event-stream"), ("Cache-Control", "no-cache")]
        await answer.start(200, [*headers, *usual_headers()])
        role = {"role": "assistant", "content": ""}
        await _event(answer, {**self._chunk(role), "x_groq": self._request})
        if self._reasoning:
            thought = {"reasoning": self._reasoning, "channel": "analysis"}
            await _event(answer, self._chunk(thought))
        deltas: list[Json] = [{"content": token} for token in self._chat.tokens]
        deltas += self._calls(conduct.argument_chars)
        for n, delta in enumerate(deltas):
            if await self._break(n, answer, conduct):
                return
            if n:
                await trio.sleep(conduct.token_gap_s)
            await _event(answer, self._chunk(delta))
            self._chat.tokens_sent += 1
        if await self._break(len(deltas), answer, conduct):
            return
        final = self._chunk({}, self._finish_reason)
        await _event(answer, {**final, "x_groq": {**self._request, "usage": self._usage()}})
        if (self._chat.body.get("stream_options") or {}).get("include_usage"):
            await _event(answer, {**self._chunk({}), "choices": [], "usage": self._usage()})
        await answer.write(b"data: [DONE]\n\n")
        await answer.end()

    async def _break(self, sent: int, answer: Answer, conduct: ChatConduct) -> bool:
        """Misbehave if it is time to; return whether the answer is over."""
        if sent == conduct.stall_after_tokens:
            await trio.sleep_forever()
        if sent == conduct.drop_after_tokens:
            answer.drop(reset=False)
        if sent == conduct.error_after_tokens:
            await _event(answer, INTERNAL.body(), name="error")
            await answer.end()
        return sent == conduct.error_after_tokens

    def _calls(self, size: int | None) -> list[Json]:
        """Return the tool calls, each whole or in pieces: id and name, then the arguments."""
        pieces: list[Json] = []
        for n, call in enumerate(self._chat.reply.tool_calls):
            first, *rest = [call.arguments] if size is None else ["", *_cut(call.arguments, size)]
            pieces.append({"index": n, **self._call(n, call, first)})
            pieces += [{"index": n, "function": {"arguments": text}} for text in rest]
        return [{"tool_calls": [piece]} for piece in pieces]

    def _call(self, n: int, call: ToolCall, arguments: str) -> Json:
        """Return a tool call. No other of any conversation has its id."""
        function = {"name": call.name, "arguments": arguments}
        return {"id": f"call_{self._number}_{n}", "type": "function", "function": function}

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


async def _event(answer: Answer, value: Json, name: str = "") -> None:
    head = f"event: {name}\n" if name else ""
    await answer.write(f"{head}data: {json.dumps(value, ensure_ascii=False)}\n\n".encode())


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
