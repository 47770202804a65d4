"""What a chunk of an answer costs: read here, and read by Groq's SDK, from the same bytes.

    python -m bench.chat_parsing [--answers 300 --chunks 200]

No sockets: the bytes come from a transport of httpx, one event at a time, so what is counted is
reading alone, in CPU time. The two take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Self

import groq
import httpx
import trio

from voicebot.llm import GroqChat
from voicebot.ports import Message

ASK = [Message("user", "Hello?")]


class Body(httpx.AsyncByteStream):
    """The events of one answer."""

    def __init__(self, events: Sequence[bytes]) -> None:
        self._events = iter(events)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        event = next(self._events, None)
        if event is None:
            raise StopAsyncIteration
        return event


class Canned(httpx.AsyncBaseTransport):
    """Answers every request with the same stream."""

    def __init__(self, chunks: int) -> None:
        deltas = [{"role": "assistant", "content": ""}, *[{"content": " word"}] * chunks, {}]
        self._events = [b"data: %s\n\n" % json.dumps(chunk(delta)).encode() for delta in deltas]
        self._events.append(b"data: [DONE]\n\n")

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer with the stream."""
        await trio.lowlevel.checkpoint()
        headers = {"content-type": "text/event-stream"}
        return httpx.Response(200, headers=headers, stream=Body(self._events))


def chunk(delta: dict[str, str]) -> dict[str, object]:
    """Return a chunk with all that Groq puts into one."""
    choice = {"index": 0, "delta": delta, "logprobs": None}
    return {
        "id": "chatcmpl-3f2c0c4e-6c7a-4d8e-9d55-0a9f5d1d7c11",
        "object": "chat.completion.chunk",
        "created": 1_795_000_000,
        "model": "openai/gpt-oss-20b",
        "system_fingerprint": "fp_2b5a1c9d3e",
        "choices": [{**choice, "finish_reason": None if delta else "stop"}],
    }


async def read_here(client: groq.AsyncGroq, chat: GroqChat) -> tuple[str, float]:
    """Return the words of an answer, and the seconds of CPU from its head to its end."""
    async with chat.open_reply(ASK) as parts:
        began = time.process_time()
        words = [str(part) async for part in parts]
        return "".join(words), time.process_time() - began


async def read_by_sdk(client: groq.AsyncGroq, chat: GroqChat) -> tuple[str, float]:
    """Do the same with the SDK's own stream."""
    async with await client.chat.completions.create(
        model="openai/gpt-oss-20b", messages=[{"role": "user", "content": "Hello?"}], stream=True
    ) as stream:
        began = time.process_time()
        words = [chunk.choices[0].delta.content or "" async for chunk in stream]
        return "".join(words), time.process_time() - began


Read = Callable[[groq.AsyncGroq, GroqChat], Awaitable[tuple[str, float]]]


async def measure(answers: int, chunks: int) -> None:
    """Print the cost of a chunk, in both ways."""
    ways: dict[str, Read] = {"here": read_here, "SDK": read_by_sdk}
    costs: dict[str, list[float]] = {name: [] for name in ways}
    async with httpx.AsyncClient(transport=Canned(chunks)) as http:
        client = groq.AsyncGroq(api_key="none", http_client=http, max_retries=0)
        chat = GroqChat(client, "openai/gpt-oss-20b")
        for n in range(answers + 5):
            for name, read in ways.items():
                words, seconds = await read(client, chat)
                assert words == " word" * chunks
                if n >= 5:  # the first ones load modules and build models
                    costs[name].append(seconds / chunks * 1e6)
    for name, found in costs.items():
        median, p95 = statistics.median(found), statistics.quantiles(found, n=20)[-1]
        print(f"{name}: {min(found):.1f} µs a chunk at least, median {median:.1f}, p95 {p95:.1f}")


def main() -> None:
    """Run as the head of this file says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--answers", type=int, default=300)
    parser.add_argument("--chunks", type=int, default=200)
    options = parser.parse_args()
    trio.run(measure, options.answers, options.chunks)


if __name__ == "__main__":
    main()
