"""Who gets into a real server, and which servers refuse to start: processes and sockets."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trio

from tests.e2e.running import PUBLIC_URL, open_process, recorded
from tests.keys import API_KEY, entry
from tests.test_http import WEBHOOK
from tests.wav_files import write_wav
from voicebot import audio
from voicebot.standins import open_standins

SERVE = ("voicebot", "serve", "--port", "0")
HYPERCORN = ("hypercorn", "-ktrio", "-w0", "-b127.0.0.1:0", "voicebot.http:app")
ACCOUNT = {
    "TWILIO_ACCOUNT_SID": "AC" + "0" * 32,
    "TWILIO_AUTH_TOKEN": "planted",
    "PUBLIC_URL": PUBLIC_URL,
}
OURS = ("VOICEBOT_", "TWILIO_", "DEEPGRAM_", "GROQ_", "PUBLIC_URL")
BARE = {name: value for name, value in os.environ.items() if not name.startswith(OURS)} | {
    "PYTHONPATH": str(Path(__file__).parents[2]),
    "VOICEBOT_DATABASE_URL": "",
}


@pytest.mark.parametrize(
    "command, environ, told",
    [
        (SERVE, {}, "nobody could reach this server. To try it on this machine: `voicebot serve"),
        (HYPERCORN, {}, "nobody could reach this server"),
        ((*SERVE, "--host", "0.0.0.0"), ACCOUNT, "`voicebot keys new NAME --scopes all` makes"),
        ((*SERVE, "--dev", "--host", "0.0.0.0"), {}, "--host 0.0.0.0: --dev"),
        ((*SERVE, "--host", "::"), {"VOICEBOT_DEV": "true"}, "--host ::: --dev"),
        ((*SERVE, "--dev"), ACCOUNT, "PUBLIC_URL: --dev"),
        (HYPERCORN, {**ACCOUNT, "VOICEBOT_DEV": "true"}, "PUBLIC_URL: --dev"),
        (SERVE, {**ACCOUNT, "VOICEBOT_API_KEY": "x"}, "VOICEBOT_API_KEY: is what"),
        (SERVE, {**ACCOUNT, "VOICEBOT_API_KEYS": API_KEY}, "VOICEBOT_API_KEYS: entry 1 is a key"),
    ],
)
def test_a_server_that_would_be_open_or_shut_by_mistake_does_not_start(
    command: tuple[str, ...], environ: dict[str, str], told: str, tmp_path: Path
) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", *command],
        env={**BARE, **environ},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert told in ended.stderr
    assert "ready on" not in ended.stdout
    assert API_KEY not in ended.stdout + ended.stderr
    if command is not HYPERCORN:
        assert ended.returncode == 2
        assert "Traceback" not in ended.stderr
    assert ended.returncode != 0


@asynccontextmanager
async def served(
    folder: Path, *options: str, telephone: bool = False, **environ: str
) -> AsyncGenerator[httpx.AsyncClient]:
    """Run `voicebot serve` with stand-ins; give a client of it."""
    with trio.fail_after(60):
        async with open_standins() as standins:
            given = {**standins.environment(), "PUBLIC_URL": PUBLIC_URL}
            if not telephone:
                given = {k: v for k, v in given.items() if k.startswith(("DEEPGRAM", "GROQ"))}
            environ = {**BARE, **given, **environ}
            async with (
                open_process(*options, environ=environ, cwd=folder) as (url, _),
                httpx.AsyncClient(base_url=url, trust_env=False) as client,
            ):
                yield client


async def test_dev_lets_this_machine_in_and_nobody_behind_a_proxy(tmp_path: Path) -> None:
    async with served(tmp_path, "--dev") as client:
        for headers, status in (
            ({}, 200),
            ({"X-Forwarded-For": "203.0.113.9"}, 403),
            ({"Via": "1.1 tunnel"}, 403),
            ({"Host": "bot.example.com"}, 403),
        ):
            webhook = await client.post("/twilio/voice", data=WEBHOOK, headers=headers)
            listed = await client.get("/calls", headers=headers)
            assert (webhook.status_code, listed.status_code) == (status, status)


async def test_a_telephone_alone_opens_webhooks_to_twilio_and_nothing_else(tmp_path: Path) -> None:
    async with served(tmp_path, telephone=True) as client:
        webhook = await client.post("/twilio/voice", data=WEBHOOK)
        listed = await client.get("/calls")
        assert (await client.get("/healthz")).status_code == 200
    assert webhook.status_code == 403
    assert "X-Twilio-Signature" in webhook.text
    assert listed.status_code == 403
    assert "voicebot keys new" in listed.text


async def test_a_key_opens_what_its_entry_says(tmp_path: Path) -> None:
    async with served(
        tmp_path, telephone=True, VOICEBOT_API_KEYS=entry("read", "metrics")
    ) as client:
        assert (await client.get("/calls")).status_code == 401
        client.headers["Authorization"] = f"Bearer {API_KEY}"
        assert (await client.get("/calls")).status_code == 200
        assert (await client.get("/metrics")).status_code == 200
        assert (await client.post("/calls", json={"to": "+15550100123"})).status_code == 403


@pytest.mark.parametrize("telephone", [False, True], ids=["without an account", "with one"])
async def test_simulate_starts_a_server_that_it_gets_into(telephone: bool, tmp_path: Path) -> None:
    samples = [audio.PCM16[code] / 32_768 for code in recorded("hello-world", 2)]
    write_wav(tmp_path / "caller.wav", 8_000, 1, 2, samples)
    with trio.fail_after(60):
        async with open_standins(texts=("hello",), replies=["Good day."]) as standins:
            given = {**standins.environment(), "PUBLIC_URL": PUBLIC_URL}
            if not telephone:
                given = {k: v for k, v in given.items() if not k.startswith("TWILIO")}
            done = await trio.run_process(
                [sys.executable, "-m", "voicebot", "simulate", "caller.wav"],
                env={**BARE, **given, "VOICEBOT_API_KEY": "of another server"},
                cwd=tmp_path,
                capture_stdout=True,
                check=False,
            )
    said = done.stdout.decode()
    assert "what was said, by the server's account:" in said
    assert "Good day." in said
