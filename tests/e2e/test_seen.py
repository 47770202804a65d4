"""What is seen of calls from outside: the log, without content, and the metrics."""

from __future__ import annotations

import io
import json
import logging
import os
import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.running import PUBLIC_URL, open_process, open_server, recorded
from tests.keys import entry
from tests.servers import open_http_server
from tests.test_alerts import names_exported, names_used
from tests.test_otel import accept, installed, received
from voicebot import Bot, log, service, tool
from voicebot.simulator.call import Script, Utterance, WhenSilent, run_call
from voicebot.simulator.dial import CALLED, CALLER, Account, dial, open_line
from voicebot.standins import Standins, open_standins
from voicebot.standins.groq import Reply, ToolCall
from voicebot.standins.twilio import ACCOUNT_SID, AUTH_TOKEN
from voicebot.watch import LEFT_S

SAID = "tango whisky foxtrot 4929 1234"
ANSWERED = "Sierra hotel uniform."
PROMPT = "Your secret word is zulu."
KEY = f"vb_{'5eed' * 16}"


@pytest.fixture
def output() -> Iterator[io.StringIO]:
    """The whole log at DEBUG, as `voicebot serve` writes it."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    stream = io.StringIO()
    log.configure("DEBUG", stream=stream)
    yield stream
    root.handlers[:] = before
    root.setLevel(level)
    logging.getLogger("voicebot").setLevel(logging.NOTSET)


def caller(words: int = 1) -> Script:
    name = "hello-world"
    return Script(
        tuple(Utterance(f"{name}-{n}", recorded(name), WhenSilent()) for n in range(words))
    )


# Those whose answers, or what they make of ours, quote what was said.
FAULTS = [
    ("", ""),
    ("chat", "400-tool-use-failed"),
    ("chat", "malformed-json"),
    ("chat", "error-event"),
    ("listen", "malformed-json"),
    ("speak", "empty"),
]


async def test_the_log_holds_nothing_that_was_said_nor_who_said_it(output: io.StringIO) -> None:
    tokens: list[str] = []

    async def hold(where: str, fault: str) -> None:
        async with open_standins(texts=(SAID,) * 9, replies=[ANSWERED] * 9) as standins:
            environ = {
                **standins.environment(),
                "PUBLIC_URL": PUBLIC_URL,
                "TWILIO_FROM_NUMBER": "+12025550199",
                "VOICEBOT_GREETING": "Kilo, who is it?",
                "VOICEBOT_PROMPT": PROMPT,
                "VOICEBOT_API_KEYS": entry(key=KEY),
            }
            async with open_server(environ) as server:
                if where:
                    standins.inflict(where, fault)
                answer = await dial(server.url, server.account)
                tokens.extend(answer.identity.parameters.values())
                async with open_line(server.url, answer.stream_url, server.account) as line:
                    await run_call(line, caller(), answer.identity)
                await server.wait_idle()
                async with httpx.AsyncClient(trust_env=False) as client:
                    bearer = {"Authorization": f"Bearer {KEY}"}
                    await client.get(f"{server.url}/calls", headers=bearer)
                    call = {"to": "+12025550123", "metadata": {"name": "Quebec"}}
                    await client.post(f"{server.url}/calls", json=call, headers=bearer)

    with trio.fail_after(90):
        async with trio.open_nursery() as nursery:
            for where, fault in FAULTS:
                nursery.start_soon(hold, where, fault)

    text = output.getvalue()
    lines = [json.loads(line) for line in text.splitlines()]
    assert sum(line["event"] == "call_ended" for line in lines) == len(FAULTS)
    assert sum(line["event"] == "provider_failed" for line in lines) >= len(FAULTS) - 1
    assert all(line.get("call_sid") for line in lines if line["event"] in {
        "call_ended", "provider_failed", "call_answered", "stream_closed", "thinking_failed",
    })  # fmt: skip
    assert all("turn" in line for line in lines if line["event"] == "thinking_failed")
    assert tokens
    numbers = [CALLER[1:], CALLED[1:], "2025550123", "2025550199"]
    words = ["tango", "whisky", "4929", "sierra", "uniform", "zulu", "kilo", "quebec"]
    secrets = [AUTH_TOKEN, standins_key(), KEY, *tokens]
    found = {secret for secret in (*numbers, *secrets) if secret in text}
    assert found | {word for word in words if word in text.lower()} == set()


def standins_key() -> str:
    from voicebot.standins import API_KEY

    return API_KEY


BOT = """\
import time

from voicebot import Bot, tool


@tool()
async def look_up(name: str) -> str:
    \"\"\"Look a guest up.

    Args:
        name: of the guest
    \"\"\"
    time.sleep(0.6)  # as whoever forgets that there is only one loop
    return "There is one."


bot = Bot("You are brief.", "Hello.", tools=[look_up])
"""


@asynccontextmanager
async def served(environ: dict[str, str], errors: Path) -> AsyncGenerator[str]:
    """Run `voicebot serve --bot bot.py` as a process, with its log in a file; give its URL."""
    environ = {**os.environ, **environ}
    with errors.open("wb") as stderr:
        async with open_process("--bot", "bot.py", environ=environ, stderr=stderr) as (url, _):
            yield url


async def scraped(url: str) -> tuple[dict[str, float], str]:
    """Return each sample of `/metrics` by name and labels, and the text."""
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(f"{url}/metrics", headers={"Authorization": f"Bearer {KEY}"})
    assert answer.status_code == 200
    found = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found, answer.text


async def test_a_served_call_is_in_the_metrics_and_who_holds_the_loop_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    await (trio.Path(tmp_path) / "bot.py").write_text(BOT)
    root = str(Path(__file__).parents[2])
    replies: list[str | Reply] = [
        Reply(tool_calls=(ToolCall("look_up", '{"name": "Ann"}'),)),
        "One. Good bye.",
    ]
    with trio.fail_after(90):
        async with (
            open_http_server(accept) as collector,
            open_standins(texts=("is Ann there",) * 4, replies=replies) as standins,
        ):
            environ = {
                **environment(standins),
                **({"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url} if installed else {}),
                "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]),
            }
            async with served(environ, tmp_path / "log") as url:
                before, _ = await scraped(url)
                account = Account(ACCOUNT_SID, AUTH_TOKEN, PUBLIC_URL)
                answer = await dial(url, account)
                async with open_line(url, answer.stream_url, account) as line:
                    await run_call(line, caller(), answer.identity)
                over = "voicebot_calls_total{direction=inbound,outcome=hung_up}"
                while (await scraped(url))[0].get(over) != 1:  # noqa: ASYNC110  # another process
                    await trio.sleep(0.05)
                await trio.sleep(0.1)
                found, text = await scraped(url)

    assert before["voicebot_calls_live"] == 0
    assert before["voicebot_lines"] > 0
    assert found["voicebot_calls_started_total{direction=inbound}"] == 1
    assert found["voicebot_calls_live"] == found["voicebot_leaked_tasks"] == 0
    assert found["voicebot_turns_total"] >= 2
    assert found["voicebot_response_seconds_count"] >= 1
    for stage in ("end_of_turn", "first_token", "first_piece", "first_audio", "first_media"):
        assert found[f"voicebot_response_stage_seconds_count{{stage={stage}}}"] >= 1
    for part, provider in (("stt", "deepgram-stt"), ("llm", "groq"), ("tts", "deepgram-tts")):
        labels = f"part={part},provider={provider}"
        assert found[f"voicebot_provider_requests_total{{{labels}}}"] >= 1
        assert found[f"voicebot_provider_latency_seconds_count{{{labels},stage=accepted}}"] >= 1
        assert (
            found[f"voicebot_provider_breaker_open{{part={part},place=1,provider={provider}}}"] == 0
        )
    assert found["voicebot_media_messages_total{direction=in}"] > 50
    assert found["voicebot_bot_audio_seconds_total{fate=heard}"] > 0.1
    assert found["voicebot_queue_peak_seconds_count{queue=socket}"] == 1
    assert found["voicebot_loop_lag_seconds_count"] > before["voicebot_loop_lag_seconds_count"]
    assert found["voicebot_loop_held_total"] >= 1
    assert found["process_resident_memory_bytes"] > 1e6

    assert names_used() - names_exported(text) == set()

    if installed:
        names = [span.name for _, span in received(collector.exchanges)]
        assert names.count("voicebot.call") == 1
        assert {"voicebot.turn", "execute_tool look_up", "speech_to_text deepgram-stt"} <= set(
            names
        )

    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    held = held_by_tool(lines)
    assert held["held_ms"] >= 400
    assert held["call_sid"] == answer.identity.call_sid
    assert re.fullmatch(r"bot\.py:\d+ look_up", held["at"][0])


def environment(standins: Standins) -> dict[str, str]:
    return {**standins.environment(), "PUBLIC_URL": PUBLIC_URL, "VOICEBOT_API_KEYS": entry(key=KEY)}


def held_by_tool(lines: list[dict[str, Any]]) -> dict[str, Any]:
    found = [
        line for line in lines if line["event"] == "loop_held" and line["task"] == "tool look_up"
    ]
    assert found, [line for line in lines if line["event"] == "loop_held"]
    return found[0]


async def test_what_a_call_leaves_behind_is_in_the_metrics_until_it_has_gone() -> None:
    gone = trio.Event()

    @tool(idempotent=False)
    async def hold_on() -> str:
        """Hold on."""
        with trio.CancelScope(shield=True):  # a bug in a tool
            await gone.wait()
        return "done"

    bot = Bot("You are brief.", "Hello.", tools=[hold_on])
    replies: list[str | Reply] = [Reply(tool_calls=(ToolCall("hold_on", "{}"),)), "Done."]
    with trio.fail_after(60):
        async with open_standins(texts=("hold on",) * 4, replies=replies) as standins:
            opened = partial(service.open_service, bot=bot)
            async with open_server(environment(standins), opened) as server:
                await server.call(caller())
                assert (await scraped(server.url))[0]["voicebot_leaked_tasks"] == 0  # not yet
                await trio.sleep(LEFT_S + 0.5)
                left, _ = await scraped(server.url)
                gone.set()
                await server.wait_idle()
                after, _ = await scraped(server.url)

    assert left["voicebot_leaked_tasks"] >= 3  # that of the socket, the tools' and the tool's
    assert left["voicebot_calls_live"] == 1
    assert after["voicebot_leaked_tasks"] == after["voicebot_calls_live"] == 0
