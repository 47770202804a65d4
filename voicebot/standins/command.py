"""`voicebot standins`: the stand-ins in a process of their own, until Ctrl-C.

Prints the environment that makes the bot use them on standard output, and one line for every
request on standard error: `voicebot standins > .env` in the folder of the bot is enough. With
`--fault` or `--faults` they misbehave, and the line says which fault a request met.
"""

from __future__ import annotations

import argparse
import signal
import sys
import textwrap
from typing import Final, TypeVar

import trio

from voicebot.standins import (
    FAULTS,
    Chaos,
    ChatConduct,
    Conduct,
    FluxConduct,
    ListenConduct,
    RestConduct,
    Rule,
    SpeakConduct,
    SpeakSocketConduct,
    open_standins,
)
from voicebot.standins.catalogue import HOSTS
from voicebot.standins.http11 import Exchange
from voicebot.standins.speak import RATE

C = TypeVar("C", bound=Conduct)

# Consecutive and outside the ranges of well-known services and of ephemeral ports.
DEEPGRAM_PORT: Final = 8701
GROQ_PORT: Final = 8702
TWILIO_PORT: Final = 8703

# What a bot with a telephone needs besides. Nobody is reached there: example.com is nobody's.
TELEPHONE: Final = {
    "PUBLIC_URL": "https://bot.example.com",
    "TWILIO_FROM_NUMBER": "+15550100123",
}

# What a caller in the same region as the vendors sees, roughly; the library's default is 0.
RESULT_MS: Final = 150.0
FIRST_BYTE_MS: Final = 150.0
FIRST_TOKEN_MS: Final = 200.0
TOKEN_GAP_MS: Final = 2.0  # gpt-oss-20b: 500 to 1,000 tokens a second
FAULT_RATE: Final = 0.2  # a call makes some dozen requests: none goes by without, few end by them


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    add("--deepgram-port", type=int, default=DEEPGRAM_PORT, help="0: any (%(default)s)")
    add("--groq-port", type=int, default=GROQ_PORT, help="0: any (%(default)s)")
    add("--twilio-port", type=int, default=TWILIO_PORT, help="0: any (%(default)s)")
    add("--result-ms", type=float, default=RESULT_MS, help="delay of transcripts (%(default)s)")
    add(
        "--first-byte-ms",
        type=float,
        default=FIRST_BYTE_MS,
        help="speech: time to the first byte (%(default)s)",
    )
    add(
        "--speech-rate",
        type=float,
        default=RATE,
        help="speech: times real time (%(default)s)",
    )
    add(
        "--first-token-ms",
        type=float,
        default=FIRST_TOKEN_MS,
        help="answers: time to the first token (%(default)s)",
    )
    add(
        "--token-gap-ms",
        type=float,
        default=TOKEN_GAP_MS,
        help="answers: time between tokens (%(default)s)",
    )
    add(
        "--fault",
        action="append",
        default=[],
        type=_fault,
        metavar="WHERE=NAME",
        help="let this happen to all requests; may be given once for each WHERE",
    )
    add(
        "--faults",
        metavar="SEED",
        help="let faults happen at random, the same ones for the same seed",
    )
    add(
        "--fault-rate",
        type=_rate,
        default=FAULT_RATE,
        metavar="RATE",
        help="of --faults, among all requests (%(default)s)",
    )
    add("--quiet", action="store_true", help="no line for every request")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _list_faults()


def _list_faults() -> str:
    return "faults by WHERE:\n" + "\n".join(
        textwrap.fill(
            f"{where:14}{' '.join(names)}",
            width=96,
            initial_indent="  ",
            subsequent_indent=" " * 16,
            break_on_hyphens=False,
        )
        for where, names in FAULTS.items()
    )


def _fault(text: str) -> tuple[str, str]:
    where, _, name = text.partition("=")
    if where not in FAULTS:
        raise argparse.ArgumentTypeError(f"{where!r} is none of {', '.join(FAULTS)}")
    if name not in FAULTS[where]:
        raise argparse.ArgumentTypeError(f"{where} has no fault {name!r}; --help lists them")
    return where, name


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = -1
    if not 0 <= rate <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to 1")
    return rate


def main(args: argparse.Namespace) -> int:
    """Run the command; return the exit status."""
    status = 0
    try:
        trio.run(_serve, args)
    except* OSError as group:
        sys.stderr.write(f"voicebot standins: {_first(group)}; choose other ports, see --help\n")
        status = 1
    return status


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first


async def _serve(args: argparse.Namespace) -> None:
    named = dict(args.fault)
    chaos = None if args.faults is None else Chaos(args.faults, args.fault_rate)

    def rule(service: str, usual: C) -> Rule[C]:
        if service in named:
            fault: Conduct = FAULTS[service][named[service]]
            return fault.over(usual)
        return usual if chaos is None else chaos.rule(usual)

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with open_standins(
            args.host,
            deepgram_port=args.deepgram_port,
            groq_port=args.groq_port,
            twilio_port=args.twilio_port,
            listen=rule("listen", ListenConduct(result_delay_s=args.result_ms / 1000)),
            flux=rule("flux", FluxConduct(result_delay_s=args.result_ms / 1000)),
            speak=rule(
                "speak", SpeakConduct(delay_s=args.first_byte_ms / 1000, rate=args.speech_rate)
            ),
            speak_socket=rule(
                "speak-socket",
                SpeakSocketConduct(first_byte_s=args.first_byte_ms / 1000, rate=args.speech_rate),
            ),
            chat=rule(
                "chat",
                ChatConduct(
                    delay_s=args.first_token_ms / 1000, token_gap_s=args.token_gap_ms / 1000
                ),
            ),
            rest=rule("rest", RestConduct()),
            report=None if args.quiet else _report,
        ) as standins:
            for host in HOSTS:
                if host in named:
                    standins.inflict(host, named[host])
            for name, value in {**standins.environment(), **TELEPHONE}.items():
                sys.stdout.write(f"{name}={value}\n")
            sys.stdout.flush()
            async for _ in signals:
                return


def _report(exchange: Exchange) -> None:
    fault = exchange.conduct.name
    sys.stderr.write(
        f"{exchange.service} {exchange.method} {exchange.path} "
        f"{exchange.status} {exchange.outcome} {exchange.sent_bytes} bytes"
        f"{fault and ' fault '}{fault}\n"
    )
