"""Connects to a real server in every wrong way, by seeds, and looks at what is left of it.

    python -m tests.fuzz.sockets --connections 50000 --seed 1

Each connection is one of `KINDS`, drawn from the seed: bytes that are no protocol, HTTP that is
nearly right, upgrades that are, WebSocket frames that are not, streams of Twilio's with a true
signature and a true token and changed messages. It ends as clients end: closed, reset, half
closed or left open until the server has had enough.

What must be so afterwards: the process lives, its log has no error, its descriptors are back, and
a call is answered. Deepgram and Groq are stand-ins in this process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import socket
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import trio

from tests.e2e.running import open_process
from tests.fuzz.targets import SEEDS
from tests.keys import API_KEY, entry
from voicebot.simulator.dial import Account, dial
from voicebot.standins import open_standins

PUBLIC_URL: Final = "https://bot.example.com"
AT_ONCE: Final = 100  # most of them wait for a deadline of the server
#: A server that does not end a connection in this time is at fault: its own deadlines are 5 s.
PATIENCE_S: Final = 30.0
DEADLINE_S: Final = 6.0  # the longest of the server's for a peer that says nothing is 5 s
QUIET_S: Final = 40.0  # for the last deadlines of the server, on a machine that has much to do
UPGRADE: Final = (
    b"GET /twilio/stream HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
PATHS: Final = (
    *("/", "/healthz", "/readyz", "/metrics", "/calls", "/calls/CA1", "/calls/CA1/hangup"),
    *("/twilio/voice", "/twilio/status", "/twilio/stream", "/twilio/amd", "/openapi.json", "/nope"),
    *("*", "//", "/%00", "/calls/%2e%2e/%2e%2e", "http://b/healthz", "/" + "a" * 9_000),
)
#: Of the log: what must not be in it. A peer's faults are warnings of other names.
WRONG: Final = re.compile(
    r'"level": "(ERROR|CRITICAL)"|"event": "connection_failed"|Traceback|traceback'
)


@dataclass
class Outcome:
    """What came of all connections."""

    connections: Counter[str] = field(default_factory=Counter)
    stuck: list[int] = field(default_factory=list)  # by number: the server did not let go
    wrong: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """What is not as it must be."""
        stuck = [f"connection {number} was not ended" for number in self.stuck]
        return stuck + self.wrong


class Client:
    """Makes up connections. `number` names one for good: the same bytes, the same end."""

    def __init__(self, url: str, account: Account, seed: int) -> None:
        target = urlsplit(url)
        self._host, self._port = target.hostname or "", target.port or 0
        self._url, self._account, self._seed = url, account, seed
        stream_url = PUBLIC_URL.replace("https", "wss") + "/twilio/stream"
        self._signature = account.signature(stream_url, {})

    async def connect(self, number: int) -> str:
        """Hold one connection to its end; return its kind.

        Raises:
            trio.TooSlowError: the server holds it longer than it should.
        """
        rng = random.Random(f"{self._seed} {number}")
        kind = rng.choice(list(KINDS))
        with trio.fail_after(PATIENCE_S):
            parts = await KINDS[kind](self, rng)
            stream = await trio.open_tcp_stream(self._host, self._port)
            try:
                await self._play(rng, stream, parts)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # the server has had enough of it
            finally:
                await trio.aclose_forcefully(stream)
        return kind

    async def _play(
        self, rng: random.Random, stream: trio.SocketStream, parts: list[bytes]
    ) -> None:
        for part in parts:
            await stream.send_all(part)
            if rng.random() < 0.3:
                with trio.move_on_after(rng.random() * 0.02):
                    await stream.receive_some(65_536)
        end = rng.choice(("close", "close", "reset", "reset", "half", "wait"))
        if end == "reset":
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif end == "half":
            await stream.send_eof()
        if end in ("half", "wait"):
            while await stream.receive_some(65_536):
                pass

    # --- Kinds

    async def bytes_(self, rng: random.Random) -> list[bytes]:
        """No protocol at all, or TLS."""
        if rng.random() < 0.2:
            return [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(300)]
        return _cut(rng, rng.randbytes(rng.randrange(1, 3_000)))

    async def http(self, rng: random.Random) -> list[bytes]:
        """Requests that are nearly right, some behind each other."""
        requests = b"".join(self._request(rng) for _ in range(rng.randrange(1, 4)))
        return _cut(rng, _spoilt(rng, requests))

    def _request(self, rng: random.Random) -> bytes:
        method = rng.choice(("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PRI", "get", ""))
        body = rng.choice((b"", b'{"to": "+15550100123"}', b"[" * 500, rng.randbytes(200)))
        headers = {
            "Host": rng.choice(("a", "127.0.0.1", "", "\xff", "a" * 300)),
            "Content-Type": rng.choice(
                ("application/json", "application/x-www-form-urlencoded", "multipart/form-data", "")
            ),
            "Authorization": rng.choice((f"Bearer {API_KEY}", "Bearer", "Basic eDp5", "\x7f")),
            "X-Twilio-Signature": rng.choice(("", "AAAA", "é")),
            "Content-Length": rng.choice((str(len(body)), "-1", "99999999999", "1e3", "+5", "")),
            "Transfer-Encoding": rng.choice(("chunked", "gzip, chunked", "identity")),
            "Expect": "100-continue",
            "Range": rng.choice(("bytes=0-", "bytes=9-1", "bytes=" + "0-1," * 900)),
            "Upgrade": rng.choice(("h2c", "websocket", "TLS/1.0")),
            "X-Forwarded-For": "203.0.113.9",
            "Cookie": "a=" + "b" * rng.choice((1, 5_000, 20_000)),
        }
        chosen = rng.sample(list(headers), rng.randrange(len(headers)))
        lines = [f"{method} {rng.choice(PATHS)} HTTP/{rng.choice(('1.1', '1.0', '2.0', '9'))}"]
        lines += [f"{name}: {headers[name]}" for name in chosen]
        return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + body

    async def webhook(self, rng: random.Random) -> list[bytes]:
        """A form with a true signature, and anything in it."""
        path = "/twilio/" + rng.choice(
            ("voice", "status", "stream-status", "after-stream", "after-dial", "amd", "whisper")
        )
        odd = ("", "CA1", "x" * 200, "é\0", "in-progress", "-1", "9" * 40, "machine_end_beep")
        names: tuple[str, ...] = (
            "CallSid",
            "AccountSid",
            "From",
            "To",
            "CallStatus",
            "Direction",
            "SequenceNumber",
        )
        names += ("CallDuration", "AnsweredBy", "DialCallStatus", "StreamEvent", "StreamError")
        form = {name: rng.choice(odd) for name in rng.sample(names, rng.randrange(len(names)))}
        if rng.random() < 0.7:
            form["CallSid"] = f"CA{rng.randrange(10**6):032d}"
        body = urlencode(form).encode()
        headers = {
            "Host": "a",
            "Content-Type": "application/x-www-form-urlencoded",
            "Content-Length": str(len(body)),
            **self._account.signature(PUBLIC_URL + path, form),
        }
        head = f"POST {path} HTTP/1.1\r\n" + "".join(f"{n}: {v}\r\n" for n, v in headers.items())
        return _cut(rng, head.encode() + b"\r\n" + body)

    async def upgrade(self, rng: random.Random) -> list[bytes]:
        """An upgrade that is nearly right, and bytes behind it, too early perhaps."""
        behind = rng.choice((b"", b"\0", _frame(rng), rng.randbytes(50)))
        return [*_cut(rng, _spoilt(rng, self._upgrade())), behind]

    async def frames(self, rng: random.Random) -> list[bytes]:
        """A stream without a token, of frames that are not as they must be."""
        frames = [_frame(rng) for _ in range(rng.randrange(1, 12))]
        return [self._upgrade(), *_cut(rng, b"".join(frames))]

    async def stream(self, rng: random.Random) -> list[bytes]:
        """A stream that gets in, and messages that were changed."""
        answer = await dial(self._url, self._account)
        seeds = SEEDS["twilio_stream"]
        start = {**seeds[1]}
        start["start"] = {
            **start["start"],
            "callSid": answer.identity.call_sid,
            "accountSid": answer.identity.account_sid,
            "streamSid": answer.identity.stream_sid,
            "customParameters": dict(answer.identity.parameters),
        }
        messages = [seeds[0], start]
        for _ in range(rng.randrange(30)):
            message = dict(rng.choice(seeds[2:] if rng.random() < 0.95 else seeds))
            message["streamSid"] = answer.identity.stream_sid
            message.pop("sequenceNumber", None)
            for _ in range(rng.choice((0, 0, 1, 2))):
                message = _changed(rng, message)
            messages.append(message)
        texts = [json.dumps(message).encode() for message in messages]
        frames = [
            _framed(rng, text if rng.random() < 0.97 else _spoilt(rng, text)) for text in texts
        ]
        return [self._upgrade(), *_cut(rng, b"".join(frames))]

    def _upgrade(self) -> bytes:
        signed = "".join(f"{name}: {value}\r\n" for name, value in self._signature.items())
        return UPGRADE + signed.encode() + b"\r\n"


KINDS: Final = {
    one.__name__: one
    for one in (
        *(Client.bytes_, Client.http, Client.webhook),
        *(Client.upgrade, Client.frames, Client.stream),
    )
}


def _cut(rng: random.Random, data: bytes) -> list[bytes]:
    """Return the bytes as they may come in."""
    if rng.random() < 0.5 or len(data) < 2:
        return [data]
    at = rng.randrange(1, len(data))
    return [data[:at], data[at:]]


def _spoilt(rng: random.Random, data: bytes) -> bytes:
    for _ in range(rng.choice((0, 0, 1, 3))):
        at = rng.randrange(len(data) + 1)
        data = data[:at] + rng.randbytes(rng.randrange(4)) + data[at + rng.randrange(3) :]
    return data


def _changed(rng: random.Random, message: Any) -> Any:
    """Return a message with one value somewhere in it changed."""
    odd: tuple[Any, ...] = (
        None,
        0,
        -1,
        1e308,
        10**50,
        "",
        "9" * 30,
        "²",
        [],
        {},
        [[[]]],
        "\ud800",
        True,
    )
    if not isinstance(message, dict) or not message or rng.random() < 0.2:
        return rng.choice(odd)
    name = rng.choice(list(message))
    return {**message, name: _changed(rng, message[name])}


def _framed(rng: random.Random, payload: bytes) -> bytes:
    """Return a masked text frame."""
    return _header(0x81, len(payload)) + _masked(rng, payload)


def _frame(rng: random.Random) -> bytes:
    """Return a frame of any kind, with a length that may be a lie."""
    first = rng.choice(
        (0x81, 0x01, 0x80, 0x82, 0x88, 0x89, 0x8A, 0x83, 0xC1, 0xFF, rng.randrange(256))
    )
    payload = rng.choice((b"", b"{}", b"\x03\xe8", b"\xff\xff", rng.randbytes(126), b"x" * 70_000))
    length = rng.choice((len(payload),) * 6 + (2**40, 2**63, 125, 126))
    if rng.random() < 0.1:
        return bytes([first, min(len(payload), 125)]) + payload  # not masked
    return _header(first, length) + _masked(rng, payload)


def _header(first: int, length: int) -> bytes:
    if length < 126:
        return bytes([first, 0x80 | length])
    if length < 2**16:
        return bytes([first, 0xFE]) + length.to_bytes(2, "big")
    return bytes([first, 0xFF]) + length.to_bytes(8, "big")


def _masked(rng: random.Random, payload: bytes) -> bytes:
    mask, size = rng.randbytes(4), len(payload)
    whole = (mask * (size // 4 + 1))[:size]
    return mask + (int.from_bytes(payload) ^ int.from_bytes(whole)).to_bytes(size)


# --- The server


@asynccontextmanager
async def server(environ: Mapping[str, str], log: Path) -> AsyncGenerator[tuple[str, trio.Process]]:
    """Run `voicebot serve` as a process whose log goes to a file."""
    with log.open("wb") as stderr:
        async with open_process(environ={**os.environ, **environ}, stderr=stderr) as served:
            yield served


def descriptors(pid: int) -> int:
    """Return how many descriptors a process has."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process."""
    return (
        int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20
    )


async def attack(connections: int, seed: int, folder: Path) -> Outcome:
    """Hold connections 0 to `connections` of a seed with a new server."""
    outcome = Outcome()
    log = folder / "log"
    async with open_standins() as standins:
        environ = {
            **standins.environment(),
            "PUBLIC_URL": PUBLIC_URL,
            "TWILIO_FROM_NUMBER": "+15550100123",
            "VOICEBOT_GREETING": "Hello.",
            "VOICEBOT_DATABASE_URL": f"sqlite:///{folder}/calls.db",
            "VOICEBOT_API_KEYS": entry(),
            "VOICEBOT_MAX_CALLS": "10000",  # a webhook takes a line for as long as its token lives
            "VOICEBOT_LIMITS__CONNECTIONS": "20000",  # there must be two for each call
            "VOICEBOT_TOKEN_TTL_S": "10",
        }
        account = Account(environ["TWILIO_ACCOUNT_SID"], environ["TWILIO_AUTH_TOKEN"], PUBLIC_URL)
        async with server(environ, log) as (url, process):
            client = Client(url, account, seed)
            await _hold(client, range(-200, 0), outcome)  # what is opened once is open by then
            await trio.sleep(DEADLINE_S)
            base, memory = descriptors(process.pid), resident_mb(process.pid)
            await _hold(client, range(connections), outcome)
            if process.returncode is not None:
                outcome.wrong.append(f"the server has ended: {process.returncode}")
                return outcome
            left = await _settled(process.pid, base)
            outcome.connections["fds before"], outcome.connections["fds after"] = base, left
            outcome.connections["MB before"] = round(memory)
            outcome.connections["MB after"] = round(resident_mb(process.pid))
            if left > base:
                outcome.wrong.append(f"{left - base} descriptors are left, of {base} before")
            try:
                with trio.fail_after(PATIENCE_S):
                    await dial(url, account)
            except Exception as exc:
                outcome.wrong.append(f"a call is not answered: {exc!r}")
    for line in log.read_text(errors="replace").splitlines():
        if WRONG.search(line):
            outcome.wrong.append(f"in the log: {line[:200]} … {line[-1_500:]}")
    return outcome


async def _hold(client: Client, numbers: range, outcome: Outcome) -> None:
    # Owns: AT_ONCE tasks that take the next number until there is none.
    waiting = iter(numbers)
    async with trio.open_nursery() as nursery:

        async def one_after_another() -> None:
            for number in waiting:
                try:
                    outcome.connections[await client.connect(number)] += 1
                except trio.TooSlowError:
                    outcome.stuck.append(number)
                except OSError as exc:
                    outcome.connections[f"not connected: {type(exc).__name__}"] += 1
                except Exception as exc:  # of `dial`: all lines are taken, for example
                    outcome.connections[f"not begun: {type(exc).__name__}"] += 1

        for _ in range(AT_ONCE):
            nursery.start_soon(one_after_another)


async def _settled(pid: int, base: int) -> int:
    """Wait until the descriptors are back; return how many there are."""
    deadline = trio.current_time() + QUIET_S
    while (left := descriptors(pid)) > base and trio.current_time() < deadline:  # noqa: ASYNC110  # another process
        await trio.sleep(0.25)
    return left


def main() -> int:
    """Run it; the exit status is 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--connections", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        outcome = trio.run(attack, args.connections, args.seed, Path(folder))
    print(f"{args.connections} connections of seed {args.seed}, {time.monotonic() - began:.0f} s")
    for what, count in sorted(outcome.connections.items()):
        print(f"  {what}: {count}")
    for problem in outcome.problems[:20]:
        print(f"  WRONG {problem}")
    return int(bool(outcome.problems))


if __name__ == "__main__":
    sys.exit(main())
