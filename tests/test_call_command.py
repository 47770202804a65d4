"""`voicebot call`: what it asks for, and what it shows of the call."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.test_telephony import FROM, TO, settings_for
from tests.twilio_rest import ACCOUNT_SID, CALL_SID, open_fake_twilio
from voicebot import call_command
from voicebot.config import Settings, load
from voicebot.standins.twilio import open_twilio


async def run(
    settings: Settings, fields: dict[str, Any], *, wait: bool = False
) -> tuple[int, str, list[str]]:
    shown: list[str] = []
    with trio.fail_after(20):
        status, problem = await call_command.call(settings, fields, None, wait, shown.append)
    return status, problem, shown


async def test_a_call_is_placed_and_not_waited_for() -> None:
    async with open_fake_twilio() as twilio:
        status, problem, shown = await run(settings_for(twilio.url), {"to": TO})
    assert (status, problem) == (0, "")
    [line] = shown
    assert line.startswith(f"queued {CALL_SID}; it is answered by the server at https://")
    assert twilio.asked[0].form["From"] == [FROM]


async def test_what_becomes_of_it_is_shown_once_each(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_twilio(
        account_sid=ACCOUNT_SID, auth_token="planted-secret-0123456789"
    ) as twilio:
        results: list[tuple[int, str, list[str]]] = []

        async def watch() -> None:
            results.append(await run(settings_for(twilio.url), {"to": TO}, wait=True))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            while not twilio.calls:  # noqa: ASYNC110  # another program, as far as tests go
                await trio.sleep(0.1)
            [sid] = twilio.calls
            for step in ("ringing", "in-progress", "completed"):
                twilio.advance(sid, step)
                await trio.sleep(3.5)
    [(status, problem, shown)] = results
    assert (status, problem) == (0, "")
    assert shown[1:] == ["ringing", "in-progress", "completed"]


async def test_nobody_there_is_said_and_no_success(autojump_clock: trio.testing.MockClock) -> None:
    async with open_fake_twilio() as twilio:
        twilio.answer["status"] = "busy"
        status, problem, _ = await run(settings_for(twilio.url), {"to": TO}, wait=True)
    assert (status, problem) == (1, "nobody was talked to: busy")


async def test_it_says_why_twilio_refused() -> None:
    async with open_fake_twilio() as twilio:
        twilio.refuse(400, 21211)
        fields = {"to": TO, "from": "+15550100789"}
        status, problem, _ = await run(settings_for(twilio.url), fields)
    assert status == 1
    assert problem.startswith("not called: to is not a number Twilio can call (Twilio 21211); ")
    assert twilio.asked[0].form["From"] == ["+15550100789"]


async def test_bad_numbers_and_missing_settings_are_named() -> None:
    status, problem, _ = await run(settings_for(), {"to": "12", "from": "x"})
    assert status == 2
    assert "to must be E.164" in problem
    assert "from must be E.164" in problem

    status, problem, _ = await run(load({}), {"to": TO, "from": FROM})
    assert status == 2
    for name in ("TWILIO_ACCOUNT_SID", "TWILIO_AUTH_TOKEN", "PUBLIC_URL"):
        assert name in problem


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--metadata", "name", "--server", "http://127.0.0.1:9"], "must be NAME=TEXT"),
        (["--metadata", "name=Ada"], "need --server"),
        (["--voicemail", "Hello."], "need --server"),
        (["--ring-timeout", "2"], "ring_timeout_s must be"),
    ],
)
def test_what_is_wrong_with_the_arguments_is_said(
    tmp_path: Path, arguments: list[str], said: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "voicebot", "call", TO, "--from", FROM, *arguments],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert said in done.stderr


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "voicebot", "call", TO, "--server", "http://127.0.0.1:9"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "http://127.0.0.1:9" in done.stderr
    assert "is the server running?" in done.stderr
