"""`voicebot call`: have the bot call somebody, and watch the call to its end.

By the calls API of a server (`--server`), with its metadata and what is said; or at Twilio
directly, with the status alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import httpx
import trio

from voicebot import config, telephony
from voicebot.call_record import FINAL_STATUSES
from voicebot.config import Settings
from voicebot.errors import CallBarred, ProviderError
from voicebot.outbound import OutboundCall, missing_settings, read_call

ENV_FILE: Final = Path(".env")
POLL_S: Final = 1.0  # people do not read faster, and Twilio counts requests
REQUEST_S: Final = 15.0  # of the server, which waits for Twilio up to 10 s

Show = Callable[[str], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.description = (
        "Have the bot call a number, and show how the call goes until it has ended. With --server "
        "that server places it, and what is said is shown; otherwise Twilio is asked directly."
    )
    parser.add_argument("to", metavar="NUMBER", help="E.164, like +15550100123")
    parser.add_argument("--from", metavar="NUMBER", help="TWILIO_FROM_NUMBER if absent")
    parser.add_argument("--server", metavar="URL", help="http(s)://host:port of a running server")
    parser.add_argument(
        "--metadata", action="append", default=[], metavar="NAME=TEXT",
        help="given to the bot and kept with the record; needs --server",
    )  # fmt: skip
    parser.add_argument("--voicemail", metavar="TEXT", help="left on a machine; needs --server")
    parser.add_argument("--ring-timeout", type=int, metavar="S", help="seconds it may ring")
    parser.add_argument("--no-wait", action="store_true", help="only place the call")
    parser.set_defaults(run=main)


def main(args: argparse.Namespace) -> int:
    """Place the call and follow it; return the exit status."""
    settings = config.load(env_file=ENV_FILE)
    fields: dict[str, Any] = {"to": args.to}
    if getattr(args, "from"):
        fields["from"] = getattr(args, "from")
    if args.ring_timeout is not None:
        fields["ring_timeout_s"] = args.ring_timeout
    problems = []
    for pair in args.metadata:
        name, equals, text = pair.partition("=")
        if not name or not equals:
            problems.append(f"--metadata {pair}: must be NAME=TEXT")
        fields.setdefault("metadata", {})[name] = text
    if args.voicemail:
        fields["voicemail"] = args.voicemail
    if not args.server and (args.metadata or args.voicemail):
        problems.append("--metadata and --voicemail need --server: it is the server that uses them")
    if problems:
        print(f"cannot call: {'; '.join(problems)}", file=sys.stderr)
        return 2

    def show(text: str) -> None:
        print(text, flush=True)

    status, problem = trio.run(call, settings, fields, args.server, not args.no_wait, show)
    if problem:
        print(problem, file=sys.stderr)
    return status


async def call(
    settings: Settings, fields: Mapping[str, Any], server: str | None, wait: bool, show: Show
) -> tuple[int, str]:
    """Place a call, and show what becomes of it.

    Returns:
        The exit status and what is wrong: 0 it was placed, and completed where it was waited
        for; 1 refused, failed, or nobody there; 2 wrong usage or settings.

    Cancellation: the call goes on.
    """
    asked = read_call(fields, settings)
    if not isinstance(asked, OutboundCall) and not (server and asked == {"from": "is missing"}):
        return 2, "cannot call: " + "; ".join(f"{name} {text}" for name, text in asked.items())
    try:
        if server:
            last = await _at_server(server, settings, fields, wait, show)
        else:
            last = await _at_twilio(settings, asked, wait, show)
    except _Refused as exc:
        return exc.status, f"not called: {exc}"
    return (0, "") if last == "completed" or not wait else (1, f"nobody was talked to: {last}")


class _Refused(Exception):
    """Something is wrong, and the exit status says whose fault it is."""

    def __init__(self, text: str, status: int = 1) -> None:
        super().__init__(text)
        self.status = status


async def _at_twilio(
    settings: Settings, asked: OutboundCall | dict[str, str], wait: bool, show: Show
) -> str:
    """Place a call at Twilio, show its status as it changes, and return the last."""
    if missing := missing_settings(settings, from_given=True):
        raise _Refused(f"set {', '.join(missing)}", 2)
    assert isinstance(asked, OutboundCall)  # all is given
    try:
        config.tolls_of(settings).check(asked.to, asked.from_)
    except CallBarred as exc:
        raise _Refused(f"{exc}; {exc.hint}") from exc
    try:
        async with telephony.open_telephony(settings) as phone:
            placed = await phone.place_call(asked)
            known = placed.status
            show(f"{known} {placed.sid}; it is answered by the server at {settings.public_url}")
            while wait and known not in FINAL_STATUSES:
                await trio.sleep(POLL_S)
                placed = await phone.fetch_call(placed.sid)
                if placed.status != known:
                    known = placed.status
                    show(known)
            return known
    except ProviderError as exc:
        refusal = telephony.explain(exc)
        code = f" (Twilio {refusal.code})" if refusal.code else ""
        raise _Refused(f"{refusal.message}{code}; {refusal.hint}") from exc


async def _at_server(
    server: str, settings: Settings, fields: Mapping[str, Any], wait: bool, show: Show
) -> str:
    """Have a server place a call, show its status and what is said, and return the last status."""
    key = settings.api_key.get_secret_value()
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        async with httpx.AsyncClient(
            base_url=server, headers=headers, timeout=REQUEST_S, trust_env=False
        ) as client:
            answer = await client.post("/calls", json=dict(fields))
            if answer.status_code != 201:
                raise _Refused(_why(answer))
            sid, known, told = answer.json()["call_sid"], answer.json()["status"], 0
            show(f"{known} {sid}")
            while wait:
                record = (await client.get(f"/calls/{sid}")).raise_for_status().json()
                turns = record.get("turns") or (record.get("summary") or {}).get("turns") or []
                for turn in turns[told:]:
                    for who, said in (("caller", turn["caller"]), ("bot", turn["heard"])):
                        if said:
                            show(f"  {who}: {said}")
                told = max(told, len(turns))
                if record["status"] != known:
                    known = record["status"]
                    show(known)
                if known in FINAL_STATUSES:
                    break
                await trio.sleep(POLL_S)
            return str(known)
    except httpx.HTTPError as exc:
        text = str(exc) or type(exc).__name__
        raise _Refused(f"{server}: {text}; is the server running?") from exc


def _why(answer: httpx.Response) -> str:
    try:
        error = answer.json()["error"]
        return f"{error['message']}{f'; {hint}' if (hint := error.get('hint')) else ''}"
    except (ValueError, LookupError, TypeError):
        return f"the server answered {answer.status_code}"
