"""A real server on a real port, a recorded caller, and what the tests ask of them."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING, Any, cast

import trio

from voicebot import audio, http, service, serving
from voicebot.config import Settings, load
from voicebot.simulator import Thresholds, wav
from voicebot.simulator.call import Recording, Script, run_call
from voicebot.simulator.dial import Account, dial, open_line
from voicebot.standins.voice import speak

if TYPE_CHECKING:
    from hypercorn.typing import ASGIFramework

#: Recorded human speech; Debian package asterisk-core-sounds-en-wav, CC-BY-SA-3.0.
RECORDINGS = Path("/usr/share/asterisk/sounds/en")
#: What is not configured is not asked of the simulator.
DEFAULTS = {"VOICEBOT_DEV": "true"}
PUBLIC_URL = "https://bot.example.com"
#: What must happen, however slow the machine: speed is measured in bench/ and not here.
PATIENT = Thresholds(max_clear_ms=2_000, max_reply_ms=15_000, max_underrun_ms=500)


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str
    app: http.App
    settings: Settings
    shutdown: trio.Event

    def stop(self) -> None:
        """Close the port under whoever is there: the last thing that signals do."""
        self.app.board.drain()
        self.shutdown.set()

    @property
    def account(self) -> Account:
        return Account(
            self.settings.twilio_account_sid,
            self.settings.twilio_auth_token.get_secret_value(),
            self.settings.public_url,
        )

    async def wait_idle(self) -> None:
        """Wait until the server has seen to its own end of every call."""
        with trio.fail_after(5):
            while self.app.board.lines.taken(trio.current_time()):  # noqa: ASYNC110  # another program, as far as tests go
                await trio.sleep(0.02)

    async def call(self, script: Script) -> Recording:
        """Call in as Twilio does: webhook, TwiML, media stream."""
        answer = await dial(self.url, self.account)
        async with open_line(self.url, answer.stream_url, self.account) as line:
            return await run_call(line, script, answer.identity)


@asynccontextmanager
async def open_server(
    environ: Mapping[str, str], open_service: http.OpenService = service.open_service
) -> AsyncGenerator[Server]:
    """Serve with these settings while the block runs, and stop at its end."""
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory(prefix="voicebot-e2e-"))
        settings = load(
            {**DEFAULTS, "VOICEBOT_DATABASE_URL": f"sqlite:///{folder}/calls.db", **environ}
        )
        app = http.create_app(settings, open_service)
        shutdown = trio.Event()
        nursery = await stack.enter_async_context(trio.open_nursery())
        urls = await nursery.start(
            partial(
                serving.serve,
                cast("ASGIFramework", app),
                host="127.0.0.1",
                port=0,
                grace_s=settings.drain_s,
                shutdown=shutdown,
                send_deadline_s=settings.send_deadline_s,
            )
        )
        yield Server(urls[0], app, settings, shutdown)
        shutdown.set()


@asynccontextmanager
async def open_process(
    *options: str,
    environ: Mapping[str, str],
    cwd: Path | None = None,
    stderr: IO[bytes] | None = None,
) -> AsyncGenerator[tuple[str, trio.Process]]:
    """Run `voicebot serve` as a process with this environment alone; give its URL, and it."""
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(
            partial(
                trio.run_process,
                [sys.executable, "-m", "voicebot", "serve", "--port", "0", *options],
                env=environ,
                cwd=cwd,
                stdout=subprocess.PIPE,
                stderr=stderr,
                check=False,
            )
        )
        assert process.stdout is not None
        said = ""
        while not (ready := re.search(r"ready on (http://\S+)\n", said)):
            data = await process.stdout.receive_some()
            assert data, said
            said += data.decode()
        yield ready[1], process
        if process.returncode is None:
            process.terminate()


async def exported(environ: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return the records of a database by CallSid, as `voicebot calls` has them."""
    command = [sys.executable, "-m", "voicebot", "calls", "--jsonl"]
    done = await trio.run_process(command, env={**os.environ, **environ}, capture_stdout=True)
    return {record["call_sid"]: record for record in map(json.loads, done.stdout.splitlines())}


def recorded(name: str, seconds: float = 10.0) -> bytes:
    """Return recorded human speech, or a generated voice where none is installed."""
    path = RECORDINGS / f"{name}.wav"
    if path.exists():
        return wav.read_mulaw(path)[: int(seconds * audio.BYTES_PER_S)]
    return speak(f"{name} is what I would like to say")[: int(seconds * audio.BYTES_PER_S)]


def at_level(mulaw: bytes, dbov: float) -> bytes:
    """Return the audio at another level."""
    gain = 10 ** ((dbov - audio.dbov(mulaw)) / 20)
    samples = (max(-32_000, min(32_000, round(audio.PCM16[code] * gain))) for code in mulaw)
    return audio.encode(b"".join(s.to_bytes(2, "little", signed=True) for s in samples))


def picked(seed: int) -> Callable[[list[str]], str]:
    """Return a function that picks from a list, by a seed."""
    return random.Random(seed).choice
