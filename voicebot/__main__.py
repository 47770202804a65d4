"""The command line: `voicebot new | serve | simulate | call | calls | keys | standins`.

Reads the settings once and hands them down. Exit status 0: done; 1: it did not work; 2: it
could not be tried, because of the settings or the arguments.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import trio
from hypercorn.utils import LifespanFailureError

from voicebot import __version__, config, log
from voicebot.config import Settings
from voicebot.errors import ConfigError

if TYPE_CHECKING:
    from hypercorn.typing import ASGIFramework

    from voicebot.bot import Bot

ENV_FILE: Final = Path(".env")
GRACE_S: Final = 1.0  # for answers on their way when the port closes; calls have ended before


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    from voicebot import call_command, keys_command
    from voicebot import calls_command as calls
    from voicebot.simulator import command as simulate
    from voicebot.standins import command as standins

    parser = argparse.ArgumentParser(
        prog="voicebot",
        description="A phone voice bot on Twilio Media Streams that stops talking the moment "
        "the caller does.",
    )
    parser.add_argument("--version", action="version", version=f"voicebot {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    serve = commands.add_parser(
        "serve",
        help="answer calls",
        description="Answer calls. Without any provider's key the bot hears, thinks and speaks "
        "with what is installed on this machine. Nobody gets in who is not let in: Twilio by its "
        "signature, clients of the calls API by VOICEBOT_API_KEYS, this machine by --dev.",
    )
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    serve.add_argument("--port", type=_port, default=8000, help="0: any free one (%(default)s)")
    serve.add_argument(
        "--bot", metavar="BOT", help="bot.py, bot.py:name or package.module[:name] (VOICEBOT_BOT)"
    )
    serve.add_argument(
        "--dev",
        action="store_true",
        help="let this machine in without signature or key where none is configured; listens on "
        "127.0.0.1 only (VOICEBOT_DEV)",
    )
    serve.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes, one for each core, that share the port and the database "
        "(VOICEBOT_WORKERS)",
    )
    serve.add_argument(
        "--own-port",
        type=_port,
        metavar="PORT",
        help="the first of as many ports on 127.0.0.1 as there are workers, at which each of them "
        "answers for itself: for its metrics",
    )
    serve.add_argument("--worker", type=int, help=argparse.SUPPRESS)  # its number in the team
    serve.set_defaults(run=_serve)

    simulated = commands.add_parser(
        "simulate",
        help="play a recorded caller to the bot, and judge how it behaves",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    simulate.add_arguments(simulated)
    simulated.set_defaults(run=simulate.main)

    call_command.add_arguments(
        commands.add_parser("call", help="let the bot call a number, and watch the call")
    )

    listed = commands.add_parser(
        "calls",
        help="list the calls there were, show one, or export them",
        description="List the newest calls, show one as a transcript, or export them as JSON "
        "Lines, from the database that VOICEBOT_DATABASE_URL names.",
    )
    calls.add_arguments(listed)
    listed.set_defaults(run=calls.main)

    keys_command.add_arguments(
        commands.add_parser("keys", help="make keys of the calls API, or see which there are")
    )

    new = commands.add_parser("new", help="write a starting bot with a test")
    new.add_argument("name", type=Path, metavar="NAME", help="a folder, which is made")
    new.set_defaults(run=_new)

    stand_ins = commands.add_parser(
        "standins",
        help="local stand-ins for Deepgram, Groq and Twilio's REST API",
        description="Serve Deepgram, Groq and Twilio's REST API on this machine, on the true wire "
        "protocol, until Ctrl-C; `voicebot standins > .env` in the folder of `voicebot serve`. "
        "They try the wire and not the bot: sounds are recognised as the same set sentences, "
        "answers repeat them, calls are placed and not answered.",
    )
    standins.add_arguments(stand_ins)
    stand_ins.set_defaults(run=standins.main)

    args = parser.parse_args(argv)
    try:
        status: int = args.run(args)
    except ConfigError as exc:
        print("voicebot: these settings need attention:", file=sys.stderr)
        for problem in exc.problems:
            print(f"  {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130  # what a shell expects of an interrupted command
    return status


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"{text} is not a port")
    return int(text)


def _new(args: argparse.Namespace) -> int:
    from voicebot import starter

    starter.write_bot(args.name)
    print(starter.report(args.name))
    return 0


def _serve(args: argparse.Namespace) -> int:
    from voicebot import supervisor
    from voicebot.botfile import load_bot
    from voicebot.doors import check_doors
    from voicebot.screen import start_screen

    settings = config.load(env_file=ENV_FILE)
    if args.bot is not None:
        settings = settings.model_copy(update={"bot": args.bot})
    if args.dev:
        settings = settings.model_copy(update={"dev": True})
    check_doors(settings, args.host)
    log.configure(settings.log_level)
    bot = load_bot(settings.bot) if settings.bot else None
    workers = settings.workers if args.workers is None else args.workers
    if args.worker is None:
        _check_workers(settings, workers)
        print(start_screen(settings, args.host, args.port, bot, workers), flush=True)
    failure, status = None, 0
    try:
        if workers > 1 and args.worker is None:
            told = ["--bot", args.bot] if args.bot is not None else []
            command = supervisor.command([*told, *(["--dev"] if args.dev else [])])
            team = supervisor.Team(command, args.host, args.port, workers, args.own_port)
            status = trio.run(supervisor.supervise, team, partial(print, flush=True))
        else:
            trio.run(_serve_until_signal, settings, args, bot)
    except* OSError as group:
        reason = os.strerror(getattr(_first(group), "errno", None) or 0)
        failure = f"cannot listen on {args.host}:{args.port}: {reason}; see --port and --host"
    except* LifespanFailureError as group:
        # What the application said, without the server's words around it.
        failure = str(_first(group)).partition("voicebot cannot start:\n")[2].removesuffix("'")
    if failure is not None:
        print(f"voicebot: {failure}", file=sys.stderr)
        return 1
    return status


def _check_workers(settings: Settings, workers: int) -> None:
    """Check what `--workers` asks for, which the settings do not know of.

    Raises:
        ConfigError: it cannot be.
    """
    if not 1 <= workers <= config.MOST_WORKERS:
        raise ConfigError([f"--workers: must be from 1 to {config.MOST_WORKERS}"])
    if workers > 1 and not settings.database_url.get_secret_value():
        raise ConfigError([config.SHARES_NOTHING])


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first error of a group, however deep: there is one listener and one lifespan."""
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first


async def _serve_until_signal(
    settings: Settings, args: argparse.Namespace, bot: Bot | None
) -> None:
    """Serve until SIGTERM or Ctrl-C, then let live calls end; each further signal waits less.

    A worker takes the end of its standard input for a signal: its supervisor has gone.

    Owns: the server nursery: the server itself, who hears signals, and who drains by them
    (`drain.py`) and then has the port closed.
    """
    from voicebot import http, service, serving

    app = http.create_app(settings, partial(service.open_sole_service, bot=bot))
    shutdown = trio.Event()
    run = partial(
        serving.serve,
        cast("ASGIFramework", app),  # whose scope type is hypercorn's own
        host=args.host,
        port=args.port,
        grace_s=GRACE_S,
        shutdown=shutdown,
        send_deadline_s=settings.send_deadline_s,
        together=args.worker is not None,
        own_port=args.own_port,
    )
    word_send, words = trio.open_memory_channel[None](10)  # more say no more
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as server:  # ends when `run` has, or is cut short

            async def hear_signals() -> None:
                async for _ in signals:
                    await word_send.send(None)

            async def hear_the_end() -> None:
                async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as supervisor:
                    while await supervisor.receive_some():
                        pass
                await word_send.send(None)

            async def drain_on_signal() -> None:
                await words.receive()
                if live := app.board.lines.taken(trio.current_time()):
                    print(
                        f"stopping: {live} live call(s) may go on for {settings.drain_s:g} s; "
                        "once more says goodbye to them now",
                        flush=True,
                    )
                await app.drain(words.receive)
                shutdown.set()
                await words.receive()
                server.cancel_scope.cancel(reason="signal")

            async def run_to_end(*, task_status: trio.TaskStatus[list[str]]) -> None:
                await run(task_status=task_status)
                server.cancel_scope.cancel(reason="served")

            server.start_soon(hear_signals)
            if args.worker is not None:
                server.start_soon(hear_the_end)
            server.start_soon(drain_on_signal)
            url, *_ = await server.start(run_to_end)  # the other is of this process alone
            if app.service is not None:  # else the start has failed, which is about to be raised
                print(f"ready on {url}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
