"""Answers by Groq, or by any server that speaks OpenAI's chat completions, streamed.

AsyncGroq makes the request and names the errors; the event stream is read here, because its
pydantic objects cost many times the reading of the line. What the lines mean is in
`completions.py`.
"""

from __future__ import annotations

import ssl
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Self

import anyio.lowlevel
import groq
import httpx
import trio

from voicebot import ports, sse
from voicebot.completions import (
    REGULAR_ENDS,
    Assembler,
    encode_message,
    encode_tool,
    read_event,
)
from voicebot.errors import (
    ProviderError,
    ProviderRejected,
    ProviderTimeout,
    RemoteProtocolError,
    ReplyCut,
)
from voicebot.refusals import PROVIDER, refusal
from voicebot.transport import open_client, reading

# Reasoning counts, and takes some 200 at low effort; what remains is about 5 minutes of speech.
MAX_COMPLETION_TOKENS: Final = 1_024
# After the last words only a few bytes are due. Read in time, they save the next turn a TLS
# handshake; they mostly come in the same packet.
LINGER_S: Final = 0.1


@asynccontextmanager
async def open_chats(
    *,
    base_url: str,
    api_key: str,
    models: Sequence[str],
    max_completion_tokens: int = MAX_COMPLETION_TOKENS,
    spares: int = 0,
    ssl_context: ssl.SSLContext | None = None,
) -> AsyncGenerator[tuple[GroqChat, ...]]:
    """Yield a chat for each model, for the whole process.

    Args:
        base_url: without `/openai/v1`, which the SDK appends.
        api_key: empty for a local server that wants none.
        spares: connections to be ready beyond those in use; see `warm.py`.

    Owns: the connections to the server, shared by all chats and calls.
    """
    async with open_client(ssl_context=ssl_context, url=base_url, spares=spares) as http:
        async with groq.AsyncGroq(
            api_key=api_key or "none",  # the SDK insists, and an empty header value is illegal
            base_url=base_url.rstrip("/").removesuffix("/openai/v1"),
            http_client=http,
            max_retries=0,  # the SDK would sleep for seconds, in silence; see Timeouts
        ) as client:
            # The SDK waits by anyio, which imports its half for Trio at the first wait of all:
            # 20 ms of the first caller's.
            await anyio.lowlevel.checkpoint()
            yield tuple(
                GroqChat(client, model, max_completion_tokens, http.warm) for model in models
            )


@asynccontextmanager
async def open_chat(
    *,
    base_url: str,
    api_key: str,
    model: str,
    max_completion_tokens: int = MAX_COMPLETION_TOKENS,
    spares: int = 0,
    ssl_context: ssl.SSLContext | None = None,
) -> AsyncGenerator[GroqChat]:
    """Yield a chat with one model; see `open_chats`."""
    async with open_chats(
        base_url=base_url,
        api_key=api_key,
        models=[model],
        max_completion_tokens=max_completion_tokens,
        spares=spares,
        ssl_context=ssl_context,
    ) as (chat,):
        yield chat


class GroqChat:
    """Replies over a client that others may share; see `ports.Chat`."""

    def __init__(
        self,
        client: groq.AsyncGroq,
        model: str,
        max_completion_tokens: int = MAX_COMPLETION_TOKENS,
        warm: Callable[[], None] = lambda: None,
    ) -> None:
        self.name, self.model = PROVIDER, model
        self.warm = warm  # says that a reply is to be expected
        # Loads the SDK's resources, which holds the loop for 90 ms: now and not in a call.
        self._create = client.chat.completions.with_raw_response.create
        self._options: dict[str, Any] = {
            "model": model,
            "max_completion_tokens": max_completion_tokens,
            "stream": True,
            **_reasoning_options(model),
        }

    @asynccontextmanager
    async def open_reply(
        self, messages: Sequence[ports.Message], tools: Sequence[ports.Tool] = ()
    ) -> AsyncGenerator[AsyncIterator[str | ports.ToolCall]]:
        """Stream one answer; see `ports.Chat`."""
        # Past the SDK's own look at each field of each message: in a long call it takes as long as
        # all the rest of a request, and they are as they go over the wire.
        body: dict[str, Any] = {"messages": [encode_message(message) for message in messages]}
        if tools:  # an empty list is refused
            body["tools"] = [encode_tool(tool) for tool in tools]
        try:
            answer = await self._create(**self._options, messages=(), extra_body=body)
        except (groq.GroqError, httpx.HTTPError, ValueError) as exc:
            raise _failed(exc) from exc
        async with reading(answer.http_response) as chunks:
            reply = _Reply(chunks, answer.headers.get("content-type", ""))
            yield reply
            await reply.linger()


class _Reply:
    """The parts of one answer. Over at `finish_reason`, whatever the server does then.

    Where that was not the model's own end, it ends with ReplyCut.

    A class and not a generator: one left half read needs no closing.
    """

    def __init__(self, chunks: AsyncIterator[bytes], content_type: str) -> None:
        self._chunks = chunks
        self._content_type = content_type
        self._decoder = sse.Decoder()
        self._events: deque[sse.Event] = deque()
        self._assembler = Assembler()
        self._parts: deque[str | ports.ToolCall] = deque()
        self._finish_reason = ""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str | ports.ToolCall:
        while not self._parts:
            if self._finish_reason in REGULAR_ENDS:
                raise StopAsyncIteration
            if self._finish_reason:
                raise ReplyCut(PROVIDER, self._finish_reason)
            if not self._events:
                await self._read()
                continue
            piece = read_event(self._events.popleft())
            self._parts += self._assembler.feed(piece)
            self._finish_reason = piece.finish_reason
        return self._parts.popleft()

    async def linger(self) -> None:
        """Read the few bytes after a finished answer, so that its connection can be kept."""
        if self._finish_reason:
            with trio.move_on_after(LINGER_S):
                try:
                    async for _ in self._chunks:
                        pass
                except httpx.HTTPError:
                    pass  # the answer is complete; the connection is not worth an error

    async def _read(self) -> None:
        if not self._content_type.startswith("text/event-stream"):
            raise ProviderError(
                PROVIDER,
                f"answered {self._content_type[:80] or 'no content type'} instead of an event "
                "stream: check GROQ_BASE_URL",
            )
        try:
            self._events += self._decoder.feed(await anext(self._chunks))
        except StopAsyncIteration:
            raise ProviderError(PROVIDER, "the answer broke off", retryable=True) from None
        except (httpx.HTTPError, RemoteProtocolError) as exc:
            raise _failed(exc) from exc


def _reasoning_options(model: str) -> dict[str, Any]:
    """Return what keeps a model's reasoning short and out of the answer.

    Source: Groq's page "reasoning". `include_reasoning` and `reasoning_format` exclude each
    other; models without reasoning refuse all of them.
    """
    name = model.rpartition("/")[2]
    if name.startswith("gpt-oss"):
        return {"reasoning_effort": "low", "include_reasoning": False}
    if name.startswith("qwen3"):
        return {"reasoning_effort": "none"}
    return {}


def _failed(exc: Exception) -> ProviderError:
    match exc:
        case groq.APIStatusError():
            return _refused(exc)
        case groq.APITimeoutError() | httpx.TimeoutException():
            return ProviderTimeout(PROVIDER, _cause(exc))
        case groq.APIConnectionError() | httpx.HTTPError():
            return ProviderError(PROVIDER, _cause(exc), retryable=True)
        case _:
            return ProviderError(PROVIDER, _cause(exc))


def _refused(exc: groq.APIStatusError) -> ProviderRejected:
    body = exc.body
    error = body.get("error", body) if isinstance(body, dict) else body
    return refusal(error, exc.status_code, exc.response.headers)


def _cause(exc: Exception) -> str:
    """Name an error, and under the SDK's vague ones the cause."""
    inner = exc.__cause__ or exc
    return f"{type(inner).__name__}: {inner}"[:300]
