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
from voicebot.standins import FAULTS, Chaos, open_standins
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


def test_help_lists_every_fault() -> None:
    parser = argparse.ArgumentParser(prog="x")
    add_arguments(parser)
    words = parser.format_help().partition("faults by WHERE:")[2].split()

    assert words == [word for where, names in FAULTS.items() for word in (where, *names)]


@pytest.mark.parametrize(
    "options, said",
    [
        (["--fault", "listen"], "listen has no fault ''"),
        (["--fault", "listen=net-0002"], "listen has no fault 'net-0002'; --help lists them"),
        (
            ["--fault", "ears=deaf"],
            "'ears' is none of listen, flux, speak, speak-socket, chat,",
        ),
        (["--fault-rate", "20"], "'20' is no number from 0 to 1"),
        (["--fault-rate", "often"], "'often' is no number from 0 to 1"),
    ],
)
def test_wrong_options_are_refused_with_what_is_right(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(options)

    assert said in capsys.readouterr().err


async def reported(options: list[str], requests: int) -> list[str]:
    """Run the command, make as many requests to each of Groq and Twilio; return its reports."""
    ports = ["--deepgram-port", "0", "--groq-port", "0", "--twilio-port", "0"]
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(
            partial(
                trio.run_process,
                [sys.executable, "-c", SERVE, *ports, *options],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
        assert process.stdout is not None
        assert process.stderr is not None
        output = b""
        while output.count(b"\n") < 9:
            output += await process.stdout.receive_some()
        urls = dict(line.split("=") for line in output.decode().splitlines())
        async with httpx.AsyncClient(verify=False, timeout=0.3) as client:
            for _ in range(requests):
                for url in (
                    f"{urls['GROQ_BASE_URL']}/openai/v1/chat/completions",
                    f"{urls['TWILIO_API_URL']}/x",
                ):
                    try:
                        await client.post(url)
                    except httpx.HTTPError:
                        pass  # what was asked for
        reports = b""
        while reports.count(b"\n") < 2 * requests:
            reports += await process.stderr.receive_some()
        process.send_signal(signal.SIGTERM)
    return reports.decode().splitlines()


async def test_named_faults_are_inflicted_and_reported() -> None:
    options = ["--fault", "chat=413", "--fault", "twilio=reset-connect", "--faults", "x"]
    with trio.fail_after(30):
        lines = await reported([*options, "--fault-rate", "0"], requests=1)

    path = "POST /openai/v1/chat/completions"
    assert sorted(line.rpartition(" bytes")[0].rpartition(" ")[0] for line in lines) == [
        f"groq {path} 413 complete",
        "twilio - - 0 dropped",
    ]
    assert sorted(line.partition(" bytes ")[2] for line in lines) == [
        "fault 413",
        "fault reset-connect",
    ]


async def test_random_faults_are_those_of_the_seed() -> None:
    requests = 6
    options = ["--faults", "spring", "--fault-rate", "0.5", "--first-token-ms", "0"]
    with trio.fail_after(30):
        lines = await reported(options, requests)

    chaos = Chaos("spring", 0.5)
    for host, service in (("groq", "chat"), ("twilio", "rest")):
        expected = [
            fault.name if (fault := chaos.fault(service, n)) else ""  # type: ignore[arg-type]
            for n in range(1, requests + 1)
        ]
        told = [line.partition(" fault ")[2] for line in lines if line.startswith(host)]
        assert told == expected
        assert len(set(expected)) > 2


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
