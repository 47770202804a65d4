"""The command `voicebot simulate`: play recorded callers to a bot, and judge it.

    voicebot simulate hello.wav stop.wav --interrupt-after 1500 bye.wav

speaks hello.wav when the greeting is over, stop.wav 1.5 s into the reply, and bye.wav when the
bot has answered that. An option about *when* belongs to the WAV before it. The call goes over
the real protocol to `--server`, or to a server started for the time of the call.

Exit status: 0 the bot passed, 1 it failed a threshold, 2 the call could not be held.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio
from dotenv import dotenv_values

from voicebot.api_keys import new_key
from voicebot.errors import ConfigError, VoicebotError
from voicebot.simulator.call import Recording, run_call
from voicebot.simulator.caller import At, InterruptAfter, Script, Utterance, When, WhenSilent
from voicebot.simulator.dial import SERVE, Account, dial, leaves, open_line, open_server
from voicebot.simulator.network import Network
from voicebot.simulator.report import write_report
from voicebot.simulator.transcript import read_transcript
from voicebot.simulator.verdict import Thresholds, Verdict, judge
from voicebot.simulator.wav import read_mulaw

PASSED: Final = 0
FAILED: Final = 1
NOT_HELD: Final = 2  # argparse's status for a wrong command line, too
_DIGITS: Final = re.compile(r"[0-9A-D*#]+")
_SERVER: Final = re.compile(r"https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:]+\])(:[0-9]{1,5})?/?")


@dataclass(frozen=True, slots=True)
class _Step:
    """A WAV or digits on the command line, and the options behind it."""

    wav: str = ""
    digits: str = ""
    when: When | None = None
    backchannel: bool = False

    @property
    def name(self) -> str:
        return Path(self.wav).name or f"keys {self.digits}"


class _Steps(argparse.Action):
    """Collects WAVs in order, and gives each option to the step before it.

    argparse takes positional arguments in one run only, so that the WAVs behind an option
    come as further values of that option.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        given = [str(value) for value in values or ()]
        steps: list[_Step] = list(getattr(namespace, "steps", None) or ())
        if option_string == "--digits":
            digits = given.pop(0)
            if not _DIGITS.fullmatch(digits):
                raise argparse.ArgumentError(self, f"{digits!r} is not of 0-9, A-D, * and #")
            steps.append(_Step(digits=digits))
        elif option_string is not None:
            if not steps:
                raise argparse.ArgumentError(self, "must come after the WAV it belongs to")
            steps[-1] = self._refine(steps[-1], option_string, given)
        namespace.steps = steps + [_Step(wav=wav) for wav in given]

    def _refine(self, step: _Step, option: str, given: list[str]) -> _Step:
        if option == "--backchannel":
            return replace(step, backchannel=True)
        if step.when is not None:
            raise argparse.ArgumentError(
                self, f"{step.name} has its time already; put each option right behind its WAV"
            )
        text = given.pop(0)
        try:
            number = float(text)
        except ValueError as exc:
            raise argparse.ArgumentError(self, f"{text!r} is not a number") from exc
        if not 0 <= number < 1e9:
            raise argparse.ArgumentError(self, f"{text} is not a time")
        return replace(step, when=At(number) if option == "--at" else InterruptAfter(number))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of `voicebot simulate`."""
    limits = Thresholds()
    parser.description = (
        "Play recorded callers to a bot as Twilio would, write what happened, and judge it.\n"
        "Exit status 1: the bot fails a threshold. 2: the call could not be held."
    )
    parser.epilog = (
        "Options of the script belong to the WAV before them. A WAV with none is spoken when\n"
        "the bot has replied and been silent for 0.8 s. All other options stand before the\n"
        "first WAV or behind the last.\n\n"
        "example: voicebot simulate hello.wav stop.wav --interrupt-after 1500 bye.wav"
    )
    parser.add_argument(
        "wavs", nargs="*", action=_Steps, metavar="WAV", help="what the caller says, in order"
    )
    script = parser.add_argument_group("script")
    script.add_argument(
        "--at", nargs="+", action=_Steps, metavar=("S", "WAV"),
        help="speak it S seconds after the start of the call",
    )  # fmt: skip
    script.add_argument(
        "--interrupt-after", nargs="+", action=_Steps, metavar=("MS", "WAV"),
        help="speak it MS milliseconds after the bot became audible",
    )  # fmt: skip
    script.add_argument(
        "--backchannel", nargs="*", action=_Steps, metavar="WAV",
        help='it is a cough or "mm-hm": the bot must go on with its reply',
    )  # fmt: skip
    script.add_argument(
        "--digits", nargs="+", action=_Steps, metavar=("KEYS", "WAV"),
        help="press these keys, as a step of the script of its own",
    )  # fmt: skip
    parser.add_argument(
        "--hang-up-after", type=float, metavar="S",
        help="hang up S seconds after the start (default: when the last reply is over)",
    )  # fmt: skip
    parser.add_argument(
        "--server",
        metavar="URL",
        help="http(s)://host:port of a running server (default: start one)",
    )
    parser.add_argument(
        "--bot", metavar="BOT",
        help="the bot of the server that is started: bot.py, bot.py:name or package.module",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=Path("simulation"), metavar="DIR",
        help="where call.wav, timeline.json and timeline.txt go (default: simulation)",
    )  # fmt: skip
    network = parser.add_argument_group("network", "what the line to the server is like")
    for name, unit, text in (
        ("delay_ms", "MS", "every message, either way, is that long under way"),
        ("jitter_ms", "MS", "and up to that much longer, by chance, in order"),
        ("lost_marks", "P", "this part of the marks never comes back, 0 to 1"),
    ):
        network.add_argument(
            "--" + name.replace("_", "-"), type=float, default=0.0, metavar=unit,
            help=f"{text} (default: 0)",
        )  # fmt: skip
    network.add_argument(
        "--seed", type=int, default=0, metavar="N",
        help="of that chance: the same number gives the same chances (default: 0)",
    )  # fmt: skip
    verdict = parser.add_argument_group("thresholds")
    for option, kind, text in (
        ("max_clear_ms", float, "from the caller's first sound to clear"),
        ("max_late_media", int, "media messages after a clear"),
        ("max_reply_ms", float, "from the caller's last sound to the bot's first"),
        ("max_underrun_ms", float, "holes in the bot's audio, per second of it"),
        ("guard_ms", float, "media this soon after a clear is of the stopped reply"),
    ):
        default = getattr(limits, option)
        verdict.add_argument(
            "--" + option.replace("_", "-"), type=kind, default=default, metavar="N",
            help=f"{text} (default: {default:g})",
        )  # fmt: skip


def main(args: argparse.Namespace) -> int:
    """Hold the call, write the report, print it, and return the exit status."""
    problems: list[str] = []
    status = NOT_HELD
    try:
        script = _read_script(args)
        server, network = _check_server(args.server), _read_network(args)
        if server is not None and args.bot:
            raise ConfigError(["--bot: the server at --server has its bot already"])
        account, api_key = _known()
        hold = partial(_hold_call, api_key=api_key)
        recording, said = trio.run(hold, script, network, server, account, args.bot)
        limits = {option.name: getattr(args, option.name, None) for option in fields(Thresholds)}
        given = {name: value for name, value in limits.items() if value is not None}
        verdict = judge(recording, Thresholds(**given))
        sys.stdout.write(_write(args.out, recording, verdict))
        sys.stdout.write(f"\n{said}")
        sys.stdout.write(f"\nwritten: call.wav, timeline.json, timeline.txt in {args.out}\n")
        status = PASSED if verdict.passed else FAILED
    except* VoicebotError as group:
        problems = [str(problem) for problem in leaves(group)]
    except* KeyboardInterrupt:
        problems = ["interrupted, nothing is written"]
    for problem in problems:
        sys.stderr.write(f"voicebot simulate: {problem}\n")
    return status


def _write(directory: Path, recording: Recording, verdict: Verdict) -> str:
    try:
        return write_report(directory, recording, verdict)
    except OSError as exc:
        raise ConfigError([f"--out {directory}: {exc}"]) from exc


async def _hold_call(
    script: Script,
    network: Network,
    server: str | None,
    account: Account,
    bot: str | None = None,
    *,
    api_key: str,
) -> tuple[Recording, str]:
    """Return what happened, and what the server says was said."""
    if server is None:
        async with _open_server(account, bot) as (started, key):
            return await _hold_call(script, network, started, account, api_key=key)
    answer = await dial(server, account)
    async with open_line(server, answer.stream_url, account) as line:
        recording = await run_call(line, script, answer.identity, network)
    return recording, await read_transcript(server, answer.identity.call_sid, api_key)


@asynccontextmanager
async def _open_server(account: Account, bot: str | None) -> AsyncGenerator[tuple[str, str]]:
    """Run a server for the call; give its URL, and a key by which its record can be read.

    Owns: the server.
    """
    key, known = new_key("simulate", ["read"])
    environ = {"VOICEBOT_API_KEYS": known.entry}
    options = ["--bot", bot] if bot else []
    if not account.auth_token:
        # Nothing to sign with: the server takes this machine's word, and has no public address.
        environ["PUBLIC_URL"] = ""
        options.append("--dev")
    else:
        environ["VOICEBOT_DEV"] = "false"  # a `.env` may say otherwise
    async with open_server([*SERVE, *options], environ) as url:
        yield url, key


def _read_script(args: argparse.Namespace) -> Script:
    """Return the script of the command line; every WAV that cannot be read is named."""
    steps: list[_Step] = getattr(args, "steps", None) or []
    if not steps:
        raise ConfigError(["the caller has nothing to do: name a WAV, or --digits KEYS"])
    problems: list[str] = []
    utterances: list[Utterance] = []
    for step in steps:
        sound = b""
        if step.wav:
            try:
                sound = read_mulaw(Path(step.wav))
            except ConfigError as exc:
                problems += exc.problems
        when = WhenSilent() if step.when is None else step.when
        utterances.append(Utterance(step.name, sound, when, step.digits, step.backchannel))
    if problems:
        raise ConfigError(problems)
    return Script(tuple(utterances), hang_up_after_s=args.hang_up_after)


def _read_network(args: argparse.Namespace) -> Network:
    try:
        return Network(
            delay_ms=args.delay_ms,
            jitter_ms=args.jitter_ms,
            lost_marks=args.lost_marks,
            seed=args.seed,
        )
    except ValueError as exc:
        raise ConfigError([f"the network: {exc}"]) from exc


def _check_server(server: str | None) -> str | None:
    if server is None:
        return None
    if not _SERVER.fullmatch(server):
        raise ConfigError([f"--server {server}: must be http(s)://host[:port] and nothing else"])
    return server.rstrip("/")


def _known() -> tuple[Account, str]:
    """Return the account the server has and a key of its, from the environment or `.env`.

    Not through `config.py`, which belongs to the service under test.
    """
    known = {**dotenv_values(".env"), **os.environ}
    sid = known.get("TWILIO_ACCOUNT_SID") or Account().sid
    token, public_url = known.get("TWILIO_AUTH_TOKEN") or "", known.get("PUBLIC_URL") or ""
    return Account(sid, token, public_url), known.get("VOICEBOT_API_KEY") or ""
