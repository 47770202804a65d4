"""What a stranger, or a caller gone bad, can do to a port: a program that does it when it is told.

    python -m bench.attackers --port 8000 --public-url https://bot.example.com < orders

An order is a line, `NAME[+NAME] SECONDS ADDRESS CUT`: which attacks at once, how long at most, from
where in 127.0.0.0/8, and how many peers must be cut off for it to be over sooner. The answer is a
line of JSON, what came of it in numbers. It shares no code with the server. Its own processor time
is not the server's fault: whoever starts it gives it a lower priority (`nice`), and each attack
says by how much it holds itself back.
"""

from __future__ import annotations

import argparse
import base64
import itertools
import json
import os
import secrets
import socket
import struct
import sys
import zlib
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlencode

import trio

from voicebot.simulator.dial import VOICE_PATH, Account, read_twiml

PEERS: Final = 30  # at once, where it is not their number that matters
STREAM: Final = "/twilio/stream"
KEY: Final = base64.b64encode(bytes(16)).decode()
LARGE: Final = 60_000


@dataclass
class Target:
    """Where the server is, who may ask it, and what has come of it so far."""

    port: int
    account: Account
    address: str  # of the attacker; 127.0.0.1 is where a proxy comes from, and is not counted
    seen: Counter[str] = field(default_factory=Counter)

    async def connect(self, source: str = "") -> trio.SocketStream:
        """Connect from an address of this machine."""
        return await trio.open_tcp_stream(
            "127.0.0.1", self.port, local_address=source or self.address
        )

    @asynccontextmanager
    async def peer(self, source: str = "") -> AsyncGenerator[trio.SocketStream]:
        """Connect; count how it ends: kept to the end of the block, or cut by the server."""
        stream = await self.connect(source)
        self.seen["opened"] += 1
        try:
            async with stream:
                yield stream
            self.seen["kept"] += 1
        except (trio.BrokenResourceError, OSError):
            self.seen["cut"] += 1

    def upgrade(self, more: str = "", *, signed: bool = True) -> bytes:
        """Return an upgrade request."""
        url = self.account.public_url.replace("http", "ws", 1) + STREAM
        headers = self.account.signature(url, {}) if signed else {}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return (
            f"GET {STREAM} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n{lines}{more}\r\n"
        ).encode()

    def webhook(self, call_sid: str, *, signed: bool = True) -> bytes:
        """Return the request that tells of a call."""
        form = {
            "CallSid": call_sid,
            "AccountSid": self.account.sid,
            "From": "+12025550147",
            "To": "+12025550188",
            "CallStatus": "ringing",
            "Direction": "inbound",
        }
        signature = {"X-Twilio-Signature": "AAAAAAAAAAAAAAAAAAAAAAAAAAA="}
        if signed:
            signature = self.account.signature(self.account.public_url + VOICE_PATH, form)
        [(name, value)] = signature.items()
        body = urlencode(form)
        return (
            f"POST {VOICE_PATH} HTTP/1.1\r\nHost: a\r\n{name}: {value}\r\n"
            f"Content-Type: application/x-www-form-urlencoded\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}"
        ).encode()

    async def ask(self, stream: trio.SocketStream, request: bytes) -> tuple[int, bytes]:
        """Return status and body of the answer to a request.

        Raises:
            BrokenResourceError: there is none.
        """
        await stream.send_all(request)
        answer = b""
        while True:
            chunk = bytes(await stream.receive_some())
            if not chunk:
                raise trio.BrokenResourceError
            answer += chunk
            head, found, body = answer.partition(b"\r\n\r\n")
            if found:
                status = int(head.split()[1])
                lengths = [
                    int(line.partition(b":")[2])
                    for line in head.lower().split(b"\r\n")
                    if line.startswith(b"content-length")
                ]
                if status == 101 or len(body) >= sum(lengths):
                    self.seen[str(status)] += 1
                    return status, body

    async def upgraded(self, stream: trio.SocketStream, more: str = "") -> None:
        """Turn a connection into a media socket.

        Raises:
            BrokenResourceError: the server does not.
        """
        if (await self.ask(stream, self.upgrade(more)))[0] != 101:
            raise trio.BrokenResourceError

    async def begin_call(self, stream: trio.SocketStream) -> str:
        """Have a call answered, and begin its stream; return whose it is.

        Raises:
            BrokenResourceError: there is no line.
        """
        sid = "CA" + secrets.token_hex(16)
        async with await self.connect() as other:
            body = (await self.ask(other, self.webhook(sid)))[1]
        if b"<Stream" not in body:
            self.seen["busy"] += 1
            raise trio.BrokenResourceError
        await self.upgraded(stream)
        stream_sid = "MZ" + secrets.token_hex(16)
        start = {
            "accountSid": self.account.sid,
            "streamSid": stream_sid,
            "callSid": sid,
            "customParameters": read_twiml(body)[1],
        }
        await stream.send_all(
            frame(json.dumps({"event": "start", "start": start, "streamSid": stream_sid}))
        )
        self.seen["calls"] += 1
        return stream_sid


def frame(payload: str | bytes, opcode: int = 0x81) -> bytes:
    """Return a frame as a client sends it, with a mask of zeros."""
    data = payload.encode() if isinstance(payload, str) else payload
    if len(data) < 126:
        length = bytes([0x80 | len(data)])
    elif len(data) < 65_536:
        length = b"\xfe" + struct.pack("!H", len(data))
    else:
        length = b"\xff" + struct.pack("!Q", len(data))
    return bytes([opcode]) + length + bytes(4) + data


def media(stream_sid: str, at_ms: int) -> str:
    """Return 20 ms of silence."""
    payload = base64.b64encode(b"\xff" * 160).decode()
    inner = {"track": "inbound", "timestamp": str(at_ms), "payload": payload}
    return json.dumps({"event": "media", "streamSid": stream_sid, "media": inner})


async def until_cut(stream: trio.SocketStream) -> None:
    """Read until the server closes; then raise as a write would."""
    while await stream.receive_some():
        pass
    raise trio.BrokenResourceError


async def crowd(peer: Callable[[], Awaitable[None]], count: int = PEERS) -> None:
    """Do the same so many times at once."""
    async with trio.open_nursery() as nursery:  # ends with all, or with the attack
        for _ in range(count):
            nursery.start_soon(peer)


# ------------------------------------------------------------------ connections


async def connection_flood(target: Target) -> None:
    """Up to 500 connections a second of one address, held."""

    async def hold() -> None:
        async with target.peer() as stream:
            await until_cut(stream)

    async with trio.open_nursery() as nursery:
        while True:
            nursery.start_soon(hold)
            await trio.sleep(0.002)


async def connections_of_many(target: Target) -> None:
    """Up to 200 connections a second, each of another address, held."""

    async def hold(source: str) -> None:
        async with target.peer(source) as stream:
            await until_cut(stream)

    async with trio.open_nursery() as nursery:
        for n in itertools.count():
            nursery.start_soon(hold, f"127.1.{n // 250 % 250}.{n % 250 + 1}")
            await trio.sleep(0.005)


async def slow_headers(target: Target) -> None:
    """A request whose head never ends, a byte each fifth of a second."""

    async def drip() -> None:
        async with target.peer() as stream:
            await stream.send_all(b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ")
            while True:
                await stream.send_all(b"a")
                await trio.sleep(0.2)

    await crowd(drip)


async def slow_body(target: Target) -> None:
    """A webhook whose body comes a byte each fifth of a second."""

    async def drip() -> None:
        async with target.peer() as stream:
            await stream.send_all(target.webhook("CA1", signed=False)[:-100])
            while True:
                await stream.send_all(b"a")
                await trio.sleep(0.2)

    await crowd(drip)


async def half_open(target: Target) -> None:
    """Peers that never write, and read only to see whether they are cut off."""

    async def wait() -> None:
        async with target.peer() as stream:
            await until_cut(stream)

    await crowd(wait)


async def pipelined_and_reset(target: Target) -> None:
    """Requests all at once, and a reset before they are answered; 100 a second."""

    async def reset() -> None:
        async with target.peer() as stream:
            await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n" * 20)
            linger = struct.pack("ii", 1, 0)
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    while True:
        await reset()
        await trio.sleep(0.01)


def packet(make: Callable[[Target], bytes]) -> Callable[[Target], Awaitable[None]]:
    """Return an attack that sends the same to one connection after the other, 100 a second."""

    async def attack(target: Target) -> None:
        data = make(target)
        while True:
            async with target.peer() as stream:
                await stream.send_all(data)
                with trio.move_on_after(1.0):
                    await until_cut(stream)
            await trio.sleep(0.01)

    attack.__doc__ = make.__doc__
    return attack


def byte_behind_upgrade(target: Target) -> bytes:
    return target.upgrade() + b"x"


def headers_not_ascii(target: Target) -> bytes:
    return target.upgrade("\0")[:-3] + b"Sec-WebSocket-Protocol: \xe9\r\n\r\n"


def garbage_tls(target: Target) -> bytes:
    return b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)) * 4


def many_headers(target: Target) -> bytes:
    return b"GET / HTTP/1.1\r\nHost: a\r\n" + b"a: b\r\n" * 50_000


# ------------------------------------------------------------------ requests


async def bad_signatures(target: Target) -> None:
    """Webhooks with a wrong signature over ten connections, as fast as they are answered."""

    async def ask() -> None:
        while True:
            async with target.peer() as stream:
                while True:
                    await target.ask(stream, target.webhook("CA1", signed=False))
            await trio.sleep(0.01)

    await crowd(ask, 10)


async def webhook_flood(target: Target) -> None:
    """Twilio's own webhooks of 100 new calls a second, by a proxy of the machine."""
    async with trio.open_nursery() as nursery:

        async def call() -> None:
            async with target.peer("127.0.0.1") as stream:
                sid = "CA" + secrets.token_hex(16)
                _, body = await target.ask(stream, target.webhook(sid))
                target.seen["answered" if b"<Stream" in body else "busy"] += b"<Response" in body

        while True:
            nursery.start_soon(call)
            await trio.sleep(0.01)


# ------------------------------------------------------------------ media sockets


async def upgrade_and_no_start(target: Target) -> None:
    """Upgrades of whoever has seen one of Twilio's signatures, and nothing behind."""

    async def wait() -> None:
        async with target.peer() as stream:
            await target.upgraded(stream)
            await until_cut(stream)

    await crowd(wait)


async def bad_tokens(target: Target) -> None:
    """Streams of calls that there are not; 100 a second."""
    start = {"accountSid": "AC1", "streamSid": "MZ1", "callSid": "CA1"}
    message = frame(json.dumps({"event": "start", "start": start, "streamSid": "MZ1"}))
    while True:
        async with target.peer() as stream:
            await target.upgraded(stream)
            await stream.send_all(message)
            await until_cut(stream)
        await trio.sleep(0.01)


async def oversize_frames(target: Target) -> None:
    """Frames that say they have 1 TB, and messages of 50 MB in fragments."""
    for huge in itertools.cycle((True, False)):
        async with target.peer() as stream:
            await target.upgraded(stream)
            if huge:
                await stream.send_all(b"\x82\xff" + struct.pack("!Q", 1 << 40) + bytes(4))
            for n in range(1_000):
                chunk = bytes(50_000)
                await stream.send_all(chunk if huge else frame(chunk, 0x02 if n == 0 else 0x00))
        await trio.sleep(0.05)


async def compression_bomb(target: Target) -> None:
    """Compression is offered, and 10 MB are sent in 10 KB whatever the answer is."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = deflate.compress(bytes(10_000_000)) + deflate.flush(zlib.Z_SYNC_FLUSH)
    offer = "Sec-WebSocket-Extensions: permessage-deflate\r\n"
    while True:
        async with target.peer() as stream:
            await target.upgraded(stream, offer)
            await stream.send_all(frame(bomb[:-4], 0xC1))
            await until_cut(stream)
        await trio.sleep(0.05)


async def deep_json(target: Target) -> None:
    """The JSON that costs most, before anybody has said whose call it is."""
    lists = frame("[" + ",".join(["[[[[[[[]]]]]]]"] * 4_000) + "]")
    while True:
        async with target.peer() as stream:
            await target.upgraded(stream)
            while True:
                await stream.send_all(lists + frame("[" * LARGE) + frame("9" * LARGE))
        await trio.sleep(0.05)


# ------------------------------------------------------------------ calls


def call_flood(make: Callable[[str, int], bytes]) -> Callable[[Target], Awaitable[None]]:
    """Return an attack that begins a call, and another when that is cut off; sends all it can."""

    async def attack(target: Target) -> None:
        while True:
            async with target.peer() as stream:
                sid = await target.begin_call(stream)
                for n in itertools.count():
                    await stream.send_all(b"".join(make(sid, 100 * n + k) for k in range(100)))
            await trio.sleep(0.3)

    attack.__doc__ = make.__doc__
    return attack


def message_flood(sid: str, n: int) -> bytes:
    return frame(media(sid, 20 * n))


def key_flood(sid: str, n: int) -> bytes:
    key = {"track": "inbound_track", "digit": "1"}
    return frame(json.dumps({"event": "dtmf", "streamSid": sid, "dtmf": key}))


def ping_flood(sid: str, n: int) -> bytes:
    return frame(b"", 0x89)


async def keys_in_time(target: Target) -> None:
    """A call that presses 45 keys a second, which no limit of messages forbids."""
    while True:
        async with target.peer() as stream:
            sid = await target.begin_call(stream)
            while True:
                await stream.send_all(key_flood(sid, 0))
                await trio.sleep(1 / 45)
        await trio.sleep(0.3)


async def stalled_reader(target: Target) -> None:
    """A call that speaks in time, has a buffer of 4 KB and reads nothing of it."""

    async def stall() -> None:
        raw = trio.socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        await raw.bind((target.address, 0))
        await raw.connect(("127.0.0.1", target.port))
        async with trio.SocketStream(raw) as stream:
            sid = await target.begin_call(stream)
            for n in itertools.count():
                await stream.send_all(frame(media(sid, 20 * n)))
                await trio.sleep(0.02)

    while True:
        try:
            await stall()
        except (trio.BrokenResourceError, OSError):
            target.seen["cut"] += 1
        await trio.sleep(0.3)


ATTACKS: Final[dict[str, Callable[[Target], Awaitable[None]]]] = {
    "connection-flood": connection_flood,
    "connections-of-many": connections_of_many,
    "slow-headers": slow_headers,
    "slow-body": slow_body,
    "half-open": half_open,
    "pipelined-and-reset": pipelined_and_reset,
    "byte-behind-upgrade": packet(byte_behind_upgrade),
    "headers-not-ascii": packet(headers_not_ascii),
    "garbage-tls": packet(garbage_tls),
    "many-headers": packet(many_headers),
    "bad-signatures": bad_signatures,
    "upgrade-and-no-start": upgrade_and_no_start,
    "bad-tokens": bad_tokens,
    "oversize-frames": oversize_frames,
    "compression-bomb": compression_bomb,
    "deep-json": deep_json,
    "message-flood": call_flood(message_flood),
    "key-flood": call_flood(key_flood),
    "keys-in-time": keys_in_time,
    "ping-flood": call_flood(ping_flood),
    "stalled-reader": stalled_reader,
    "webhook-flood": webhook_flood,
}


async def obey(port: int, account: Account) -> None:
    """Take orders until there are no more."""
    async for line in trio.wrap_file(sys.stdin):
        names, seconds, address, cut = line.split()
        target = Target(port, account, address)
        with trio.move_on_after(float(seconds)):
            async with trio.open_nursery() as nursery:  # owns the attacks; its time ends them
                for name in names.split("+"):
                    nursery.start_soon(ATTACKS[name], target)
                while target.seen["cut"] < int(cut) and len(nursery.child_tasks):  # noqa: ASYNC110  # counters tell nobody
                    await trio.sleep(0.05)
                nursery.cancel_scope.cancel(reason="cut off")
        sys.stdout.write(json.dumps(target.seen) + "\n")
        sys.stdout.flush()


def main() -> None:
    """Run the command line. The account's token comes by TWILIO_AUTH_TOKEN, as to the server."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--public-url", required=True)
    options = parser.parse_args()
    sid, token = os.environ["TWILIO_ACCOUNT_SID"], os.environ["TWILIO_AUTH_TOKEN"]
    trio.run(obey, options.port, Account(sid, token, options.public_url))


if __name__ == "__main__":
    main()
