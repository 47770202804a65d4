"""A Twilio REST API for tests: answers what it was told to, and keeps what it was asked."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import parse_qs

import h11
import trio

ACCOUNT_SID = "AC" + "0" * 32
CALL_SID = "CA" + "1" * 32


@dataclass
class Asked:
    """One request."""

    method: str
    path: str
    headers: dict[str, str]
    form: dict[str, list[str]]


@dataclass
class FakeTwilio:
    """Set `status` and `answer` before asking. `answer` None: the request hangs for ever."""

    url: str = ""
    status: int = 201
    answer: Any = field(
        default_factory=lambda: {"sid": CALL_SID, "status": "queued", "account_sid": ACCOUNT_SID}
    )
    sids: bool = False  # whether each call gets a SID of its own
    asked: list[Asked] = field(default_factory=list)

    def refuse(self, status: int, code: int, message: str = "no") -> None:
        """Answer as Twilio does when it refuses."""
        self.status = status
        self.answer = {"code": code, "message": message, "more_info": "", "status": status}

    async def serve(self, stream: trio.SocketStream) -> None:
        """Answer one connection."""
        http = h11.Connection(h11.SERVER)
        async with stream:
            while True:
                request, body = None, b""
                while True:
                    event = http.next_event()
                    if event is h11.NEED_DATA:
                        http.receive_data(await stream.receive_some())
                    elif isinstance(event, h11.Request):
                        request = event
                    elif isinstance(event, h11.Data):
                        body += event.data
                    elif isinstance(event, h11.EndOfMessage):
                        break
                    else:
                        return
                assert request is not None
                headers = {name.decode(): value.decode() for name, value in request.headers}
                form = parse_qs(body.decode())
                self.asked.append(
                    Asked(request.method.decode(), request.target.decode(), headers, form)
                )
                if self.answer is None:
                    await trio.sleep_forever()
                if self.sids:
                    self.answer = {**self.answer, "sid": f"CA{len(self.asked):032x}"}
                text = self.answer if isinstance(self.answer, str) else json.dumps(self.answer)
                reply = h11.Response(
                    status_code=self.status,
                    headers=[
                        ("content-type", "application/json"),
                        ("content-length", str(len(text))),
                    ],
                )
                for sent in (reply, h11.Data(data=text.encode()), h11.EndOfMessage()):
                    await stream.send_all(http.send(sent) or b"")
                http.start_next_cycle()


@asynccontextmanager
async def open_fake_twilio() -> AsyncGenerator[FakeTwilio]:
    """Serve on a free port of loopback."""
    twilio = FakeTwilio()
    async with trio.open_nursery() as nursery:
        listeners: list[trio.SocketListener] = await nursery.start(
            partial(trio.serve_tcp, twilio.serve, 0, host="127.0.0.1")
        )
        port = listeners[0].socket.getsockname()[1]
        twilio.url = f"http://127.0.0.1:{port}"
        yield twilio
        nursery.cancel_scope.cancel(reason="test is over")
