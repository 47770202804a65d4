"""The command `voicebot simulate`: command line, and whole calls over real sockets."""

from __future__ import annotations

import argparse
import json
import math
import wave
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qsl

import pytest
import trio

from tests.toy_bot import Habits
from tests.toy_server import BUSY, ToyServer, serving
from tests.wav_files import write_wav
from voicebot.errors import ConfigError
from voicebot.simulator import command as simulate
from voicebot.simulator.call import (
    At,
    InterruptAfter,
)

# ------------------------------------------------------------------ command line


def parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    subparsers = parser.add_subparsers()
    simulate.add_arguments(subparsers.add_parser("simulate", exit_on_error=False))
    return parser.parse_args(["simulate", *argv])


def test_options_belong_to_the_wav_before_them() -> None:
    args = parse(
        *("--server", "http://h", "hello.wav", "stop.wav", "--interrupt-after", "1500"),
        *("bye.wav", "--at", "30", "--digits", "12#", "--at", "40", "mhm.wav", "--backchannel"),
        *("end.wav", "--out", "x"),
    )

    steps = [(s.wav or s.digits, s.when, s.backchannel) for s in args.steps]
    assert steps == [
        ("hello.wav", None, False),
        ("stop.wav", InterruptAfter(1_500), False),
        ("bye.wav", At(30), False),
        ("12#", At(40), False),
        ("mhm.wav", None, True),
        ("end.wav", None, False),
    ]
    assert (args.server, args.out) == ("http://h", Path("x"))


def test_a_caller_may_only_press_keys_and_must_do_something() -> None:
    assert [step.digits for step in parse("--digits", "12#").steps] == ["12#"]
    with pytest.raises(ConfigError, match="nothing to do"):
        simulate._read_script(parse())


@pytest.mark.parametrize(
    "argv,complaint",
    [
        (("--at", "3", "a.wav"), "must come after the WAV it belongs to"),
        (("a.wav", "--at", "3", "--at", "4"), "a.wav has its time already"),
        (("a.wav", "--at", "soon"), "'soon' is not a number"),
        (("a.wav", "--interrupt-after", "-1"), "is not a time|expected"),
        (("a.wav", "--interrupt-after", "nan"), "is not a time"),
        (("a.wav", "--digits", "12x"), "is not of 0-9"),
    ],
)
def test_misplaced_option_is_refused(argv: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(argparse.ArgumentError, match=complaint):
        parse(*argv)


def test_every_wav_that_cannot_be_read_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = simulate.main(parse(str(tmp_path / "a.wav"), str(tmp_path / "b.wav")))

    assert status == 2
    complaint = capsys.readouterr().err
    assert "a.wav: cannot be read" in complaint
    assert "b.wav: cannot be read" in complaint


@pytest.mark.parametrize("server", ["localhost:80", "ftp://h", "http://h/x", "http://u:p@h", ""])
def test_wrong_server_is_refused(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wav = write_wav(tmp_path / "a.wav", 8_000, 1, 2, [0.5] * 80)

    assert simulate.main(parse(str(wav), "--server", server)) == 2
    assert "must be http(s)://host[:port]" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--delay-ms", "--jitter-ms", "--lost-marks"])
def test_network_that_cannot_be_is_refused(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wav = write_wav(tmp_path / "a.wav", 8_000, 1, 2, [0.5] * 80)

    assert simulate.main(parse(str(wav), option, "-2")) == 2
    assert f"the network: {option[2:].replace('-', '_')} -2.0 is no" in capsys.readouterr().err


# ------------------------------------------------------------------ over real sockets


async def simulated(server: ToyServer, tmp_path: Path, *argv: str) -> int:
    """Run the command in a thread, as it has a Trio loop of its own."""
    with trio.fail_after(30):
        async with serving(server) as url:
            args = parse(*argv, "--server", url, "--out", str(tmp_path / "out"))
            return await trio.to_thread.run_sync(simulate.main, args)


@pytest.fixture
def wavs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    for name in ("TWILIO_ACCOUNT_SID", "TWILIO_AUTH_TOKEN", "PUBLIC_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)  # no .env of the developer's

    def write(name: str, milliseconds: int) -> str:
        tone_hz = [0.5 * math.sin(2 * math.pi * 500 * i / 16_000) for i in range(16 * milliseconds)]
        return str(write_wav(tmp_path / name, 16_000, 1, 2, tone_hz))

    return write


async def test_command_passes_a_good_bot_and_writes_the_report(
    tmp_path: Path, wavs: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    server = ToyServer(Habits(greeting_ms=1_500, reply_ms=400))
    stop = wavs("stop.wav", 400)

    status = await simulated(server, tmp_path, stop, "--interrupt-after", "400")

    out = capsys.readouterr().out
    assert status == 0, out
    assert "verdict: PASS" in out
    assert "no interruption at" not in out
    report = json.loads((tmp_path / "out" / "timeline.json").read_text())
    assert report["interruptions"][0]["clears"] == 1
    assert (tmp_path / "out" / "timeline.txt").read_text() in out
    with wave.open(str(tmp_path / "out" / "call.wav"), "rb") as file:
        assert file.getnchannels() == 2
        assert file.getnframes() / 8 == pytest.approx(report["call"]["duration_ms"], abs=30)
    voice, upgrade, record = server.requests
    form = dict(parse_qsl(voice[2]))
    assert voice[0] == "POST /twilio/voice HTTP/1.1"
    assert form["CallSid"] == report["call"]["call_sid"]
    assert form["CallStatus"] == "ringing"
    assert upgrade[0] == "GET /twilio/stream HTTP/1.1"
    assert "sec-websocket-extensions" not in upgrade[1]
    assert "x-twilio-signature" not in upgrade[1]
    [start] = [m for _, m in server.habits.records if m["event"] == "start"]
    assert start["start"]["callSid"] == form["CallSid"]
    assert start["start"]["customParameters"] == {"token": "t-1"}
    assert server.habits.records[-1][1]["event"] == "stop"
    # Another server need not have records, and none is needed for the verdict.
    assert record[0] == f"GET /calls/{form['CallSid']} HTTP/1.1"
    assert "what was said is not known" in out


async def test_what_was_to_interrupt_and_met_silence_is_told(
    tmp_path: Path, wavs: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    server = ToyServer(Habits(greeting_ms=300, reply_ms=400))

    await simulated(server, tmp_path, wavs("stop.wav", 400), "--interrupt-after", "900")

    out = capsys.readouterr().out
    assert "no interruption at" in out
    assert "stop.wav: the bot was silent by then" in out
    assert "\ninterruption at" not in out


async def test_command_fails_a_bot_without_clear(
    tmp_path: Path, wavs: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    server = ToyServer(Habits(greeting_ms=1_500, reply_ms=400, clears=0))
    stop = wavs("stop.wav", 400)

    status = await simulated(server, tmp_path, stop, "--interrupt-after", "400")

    assert status == 1
    assert "sent no clear" in capsys.readouterr().out


async def test_command_has_a_network(tmp_path: Path, wavs: Callable[..., str]) -> None:
    server = ToyServer(Habits(greeting_ms=400))
    network = ("--delay-ms", "100", "--jitter-ms", "50", "--lost-marks", "1", "--seed", "3")

    await simulated(server, tmp_path, wavs("a.wav", 100), *network, "--hang-up-after", "1")

    report = json.loads((tmp_path / "out" / "timeline.json").read_text())
    asked = {key: report["network"][key] for key in ("delay_ms", "jitter_ms", "lost_marks", "seed")}
    assert asked == {"delay_ms": 100, "jitter_ms": 50, "lost_marks": 1, "seed": 3}
    media = [event for event in report["events"] if event["event"] == "media"]
    assert all(100 <= event["transit_ms"] <= 151 for event in media)
    assert media[0]["at_ms"] >= 100  # the bot begins when `start` has arrived
    assert "mark" not in [message["event"] for _, message in server.habits.records]


@pytest.mark.parametrize(
    "server,complaint",
    [
        (ToyServer(Habits(), twiml=BUSY), "<Say> All lines are busy., <Hangup>"),
        (ToyServer(Habits(), twiml="busy"), "is not TwiML"),
        (ToyServer(Habits(), status=503), "answered 503"),
        (ToyServer(Habits(), status=403), "TWILIO_AUTH_TOKEN"),
    ],
)
async def test_call_that_is_not_connected_is_explained(
    server: ToyServer,
    complaint: str,
    tmp_path: Path,
    wavs: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert await simulated(server, tmp_path, wavs("a.wav", 100)) == 2
    assert complaint in capsys.readouterr().err


async def test_refused_upgrade_is_explained(
    tmp_path: Path, wavs: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    server = ToyServer(Habits())
    server.upgrades = False

    assert await simulated(server, tmp_path, wavs("a.wav", 100)) == 2
    assert "refused the media stream with 403" in capsys.readouterr().err


def test_server_that_is_not_there_is_explained(
    wavs: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert simulate.main(parse(wavs("a.wav", 100), "--server", "http://127.0.0.1:1")) == 2
    assert "is the server running? Start it with `voicebot serve --dev`" in capsys.readouterr().err
