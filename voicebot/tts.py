"""Text to speech by Deepgram's REST interface, streamed by httpx.

One request per piece of text; the first bytes come while the rest is still being spoken.
Deadlines on the first chunk and on gaps are the caller's.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Self

import httpx
import trio

from voicebot import deepgram
from voicebot.errors import ProviderError, ProviderTimeout
from voicebot.transport import Client, open_client, reading

ERROR_BODY_S: Final = 1.0  # a refusal is one small JSON object; its status alone will do
_HEAD_BYTES: Final = 4  # of a WAV file, "RIFF"


@asynccontextmanager
async def open_synthesizer(
    *,
    url: str,
    api_key: str,
    model: str,
    spares: int = 0,
    ssl_context: ssl.SSLContext | None = None,
) -> AsyncGenerator[DeepgramSynthesizer]:
    """Yield a synthesizer for the whole process.

    Args:
        spares: connections to be ready beyond those in use; see `warm.py`.

    Owns: the connections to Deepgram, shared by all calls.
    """
    async with open_client(ssl_context=ssl_context, url=url, spares=spares) as client:
        yield DeepgramSynthesizer(client, url=url, api_key=api_key, model=model)


class DeepgramSynthesizer:
    """Speech over a client that others may share; see `ports.Synthesizer`."""

    name: Final = deepgram.TTS

    def __init__(self, client: Client, *, url: str, api_key: str, model: str) -> None:
        self.warm = client.warm  # says that speech is to be expected
        self._client = client
        self._url = deepgram.speak_url(url, model=model)
        self._headers = {"Authorization": f"Token {api_key}", "Content-Type": "application/json"}

    @asynccontextmanager
    async def open_speech(self, text: str) -> AsyncGenerator[AsyncIterator[bytes]]:
        """Stream one piece of speech; see `ports.Synthesizer`.

        Raises:
            LocalProtocolError: no text, or more than one request may hold.
        """
        request = self._client.build_request(
            "POST", self._url, content=deepgram.speak_body(text), headers=self._headers
        )
        try:
            response = await self._client.send(request, stream=True)
        except httpx.HTTPError as exc:
            raise _failed(exc) from exc
        async with reading(response) as chunks:
            if response.status_code != 200:
                body = await _read_refusal(chunks)
                raise deepgram.refused(deepgram.TTS, response.status_code, response.headers, body)
            yield _Speech(chunks, response.headers.get("content-type", ""))


class _Speech:
    """The chunks of one answer, checked before the first is handed out.

    A class and not a generator: one left half read needs no closing.
    """

    def __init__(self, chunks: AsyncIterator[bytes], content_type: str) -> None:
        self._chunks = chunks
        self._content_type = content_type
        self._checked = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._checked:
            return await self._next()
        head = b""
        try:
            while len(head) < _HEAD_BYTES:
                head += await self._next()
        except StopAsyncIteration:
            if not head:
                raise ProviderError(deepgram.TTS, "answered no audio", retryable=True) from None
        deepgram.check_speech(self._content_type, head)
        self._checked = True
        return head

    async def _next(self) -> bytes:
        try:
            return await anext(self._chunks)
        except httpx.HTTPError as exc:
            raise _failed(exc) from exc


async def _read_refusal(chunks: AsyncIterator[bytes]) -> bytes:
    body = b""
    with trio.move_on_after(ERROR_BODY_S):
        try:
            async for chunk in chunks:
                body += chunk
                if len(body) > 4_096:  # no refusal is that long; a page of HTML is
                    break
        except httpx.HTTPError:
            pass  # the status is the news
    return body


def _failed(exc: httpx.HTTPError) -> ProviderError:
    what = f"{type(exc).__name__}: {exc}"
    if isinstance(exc, httpx.TimeoutException):
        return ProviderTimeout(deepgram.TTS, what)
    return ProviderError(deepgram.TTS, what, retryable=True)
