"""All stand-ins together, in this process and in one of their own."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from functools import partial

import httpx
import pytest
import trio

from voicebot.config import load
from voicebot.standins import open_standins
from voicebot.standins.command import add_arguments

SERVE = """
import argparse
from voicebot.config import load
from voicebot.standins.command import add_arguments, main
parser = argparse.ArgumentParser()
add_arguments(parser)
raise SystemExit(main(parser.parse_args()))
"""


async def test_the_environment_names_three_live_services_and_nothing_is_left_after() -> None:
    before = trio.lowlevel.current_statistics().tasks_living
    with trio.fail_after(5):
        async with open_standins() as standins:
            environment = standins.environment()
            async with httpx.AsyncClient(verify=False) as client:
                for name in ("DEEPGRAM_URL", "GROQ_BASE_URL", "TWILIO_API_URL"):
                    assert (await client.get(f"{environment[name]}/x")).status_code in (401, 404)
                assert standins.connections_open == 3
            await standins.wait_closed()
    assert trio.lowlevel.current_statistics().tasks_living == before


def test_default_ports_are_fixed_and_differ() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args([])

    assert (args.deepgram_port, args.groq_port, args.twilio_port) == (8701, 8702, 8703)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
async def test_the_command_prints_the_environment_and_a_line_a_request_and_stops(
    stop: signal.Signals,
) -> None:
    ports = ["--deepgram-port", "0", "--groq-port", "0", "--twilio-port", "0"]
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            process: trio.Process = await nursery.start(
                partial(
                    trio.run_process,
                    [sys.executable, "-c", SERVE, *ports],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
            )
            assert process.stdout is not None
            assert process.stderr is not None
            output = b""
            while output.count(b"\n") < 9:
                output += await process.stdout.receive_some()
            environment = dict(line.split("=") for line in output.decode().splitlines())
            async with httpx.AsyncClient(verify=False) as client:
                await client.get(environment["GROQ_BASE_URL"] + "/x")
            reported = await process.stderr.receive_some()
            process.send_signal(stop)
        # run_process raises for an exit status other than 0.

    assert reported == b"groq GET /x 404 complete 102 bytes\n"
    # A bot that takes this environment starts: nothing it needs for a telephone is missing.
    assert load(environment).telephony
    assert environment["GROQ_API_KEY"] == environment["DEEPGRAM_API_KEY"] == "standin"
    assert environment["TWILIO_ACCOUNT_SID"].startswith("AC")
