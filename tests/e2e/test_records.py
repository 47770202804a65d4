"""What is on record when a server is killed in the middle of its calls, and started again."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import trio

from tests.databases import database_url, postgres_server
from tests.e2e.running import open_process, recorded
from tests.keys import API_KEY, entry
from voicebot.errors import VoicebotError
from voicebot.simulator.call import Script, Utterance, WhenSilent, run_call
from voicebot.simulator.dial import Account, dial, open_line
from voicebot.standins import open_standins

__all__ = ["database_url", "postgres_server"]  # fixtures

CALLS = 20
WRITTEN_S = 0.5  # a turn is in the database so long after its end; two transactions on a busy disk


@asynccontextmanager
async def served(environ: Mapping[str, str]) -> AsyncGenerator[tuple[str, trio.Process]]:
    """Run `voicebot serve` as a process, without an account for this machine; give its URL."""
    local = [] if environ.get("TWILIO_ACCOUNT_SID") else ["--dev"]
    async with open_process(*local, environ={**os.environ, **environ}) as served:
        yield served


async def test_kill_9_in_the_middle_of_20_calls_loses_no_finished_turn(database_url: str) -> None:
    environ = {
        "VOICEBOT_DATABASE_URL": database_url,
        "VOICEBOT_GREETING": "Hello.",
        "VOICEBOT_API_KEYS": entry(),
    }
    with trio.fail_after(90):
        async with open_standins(
            texts=lambda heard: "tell me more", replies=lambda messages: "There is more to tell."
        ) as standins:
            environ = {**standins.environment(), **environ}
            for name in ("TWILIO_ACCOUNT_SID", "TWILIO_AUTH_TOKEN"):
                environ.pop(name)
            async with served(environ) as (url, process):
                before = await hold_calls_and_kill(url, process)
            async with served(environ) as (url, process):
                after = await closed_calls(url)
        exported = await trio.run_process(
            [sys.executable, "-m", "voicebot", "calls", "--jsonl"],
            env={**os.environ, **environ},
            capture_stdout=True,
        )

    assert len(before) == CALLS
    assert sorted(after) == sorted(before)
    for sid, turns in before.items():
        record = after[sid]
        assert record["status"] == "completed"
        assert record["ended_at"] is not None
        assert record["turns"][: len(turns)] == turns
        assert len(turns) >= 2
    lines = [json.loads(line) for line in exported.stdout.splitlines()]
    assert {line["call_sid"]: line["turns"] for line in lines} == {
        sid: record["turns"] for sid, record in after.items()
    }


async def hold_calls_and_kill(url: str, process: trio.Process) -> dict[str, list[Any]]:
    """Hold the calls until each has finished a turn and goes on; return what was known of them."""
    script = Script(
        tuple(Utterance("more", recorded("im-sorry", 1.0), WhenSilent()) for _ in range(20))
    )

    async def hold() -> None:
        try:
            answer = await dial(url, Account())
            async with open_line(url, answer.stream_url, Account()) as line:
                await run_call(line, script, answer.identity)
        except VoicebotError:
            pass  # the server is killed

    async with trio.open_nursery() as callers:  # owns: the phones
        for _ in range(CALLS):
            callers.start_soon(hold)
        while True:
            known = await all_calls(url)
            if len(known) == CALLS and all(len(r["turns"]) >= 2 for r in known.values()):
                break
            await trio.sleep(0.2)
        assert {record["status"] for record in known.values()} == {"in-progress"}
        await trio.sleep(WRITTEN_S)
        process.send_signal(signal.SIGKILL)
        await process.wait()
        callers.cancel_scope.cancel()
    return {sid: record["turns"] for sid, record in known.items()}


async def closed_calls(url: str) -> dict[str, dict[str, Any]]:
    """Wait until the new process has closed what the old one left."""
    while True:
        known = await all_calls(url)
        if all(record["outcome"] == "lost" for record in known.values()):
            return known
        await trio.sleep(0.1)


async def all_calls(url: str) -> dict[str, dict[str, Any]]:
    async with httpx.AsyncClient(trust_env=False) as client:
        headers = {"Authorization": f"Bearer {API_KEY}"}
        answer = await client.get(f"{url}/calls", headers=headers)
    return {record["call_sid"]: record for record in answer.json()["calls"]}
