"""`voicebot calls`: lists calls, shows one as a transcript, exports them as JSON Lines."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, Final

from voicebot import config
from voicebot.errors import MissingPart, StoreError
from voicebot.recording import path_of

if TYPE_CHECKING:
    from voicebot.call_record import CallRecord
    from voicebot.database import Database

LIMIT: Final = 50  # a screenful
UNHEARD_CHARS: Final = 80  # of what was not heard, shown; a language model may be a page ahead
_AGO: Final = {"m": "minutes", "h": "hours", "d": "days"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's arguments."""
    parser.add_argument("sid", nargs="?", metavar="SID", help="show this call")
    parser.add_argument(
        "--since",
        type=_moment,
        metavar="TIME",
        help="calls from then on: ISO 8601, like 2026-11-27 or 2026-11-27T09:00, or so long ago, "
        "like 30m, 12h, 7d",
    )
    parser.add_argument(
        "--limit", type=_count, default=LIMIT, metavar="N", help="at most so many (%(default)s)"
    )
    parser.add_argument(
        "--jsonl",
        action="store_true",
        help="everything that is known, one JSON object a line, the oldest first; all of them",
    )


def main(args: argparse.Namespace) -> int:
    """Run the command; return its exit status."""
    settings = config.load(env_file=Path(".env"))
    url = settings.database_url.get_secret_value()
    if not url:
        return _fail("VOICEBOT_DATABASE_URL is empty, so no records are kept")
    from voicebot.database import open_database

    try:
        database = open_database(url, create=False)
    except (StoreError, MissingPart) as exc:
        return _fail(str(exc))
    try:
        return _run(database, args, settings.recording.path)
    except BrokenPipeError:
        sys.stdout = None  # whoever read has had enough; Python would flush, and complain
        return 0
    except Exception as exc:
        if not database.is_away(exc):
            raise
        return _fail(f"the database cannot be read: {getattr(exc, 'orig', None) or exc}")
    finally:
        database.engine.dispose()


def _run(database: Database, args: argparse.Namespace, recordings: str) -> int:
    if args.sid:
        record = database.get(args.sid)
        if record is None:
            return _fail(f"there is no call {args.sid}; `voicebot calls` lists them")
        path = path_of(Path(recordings), record.sid) if recordings else None
        if path is not None and not path.is_file():
            path = None
        lines = iter([_json(record)]) if args.jsonl else _transcript(record, path)
    elif args.jsonl:
        lines = map(_json, database.every(args.since))
    else:
        lines = _table(database.latest(args.limit, args.since))
    for line in lines:
        print(line)
    sys.stdout.flush()
    return 0


def _fail(message: str) -> int:
    print(f"voicebot: {message}", file=sys.stderr)
    return 1


def _json(record: CallRecord) -> str:
    whole = record.as_json()
    if whole["summary"] is not None:  # its turns stand beside it
        whole["summary"] = {n: value for n, value in whole["summary"].items() if n != "turns"}
    return json.dumps(whole, ensure_ascii=False)


def _table(records: list[CallRecord]) -> Iterator[str]:
    if not records:
        yield "no calls"
        return
    rows = [("BEGAN", "SID", "DIRECTION", "FROM", "TO", "STATUS", "OUTCOME", "LENGTH", "TURNS")]
    rows += [
        (
            _local(record.created_at),
            record.sid,
            record.direction,
            record.from_ or "-",
            record.to or "-",
            record.status,
            "live" if record.live else record.outcome or "-",
            _length(record),
            str(len(record.as_json()["turns"])),
        )
        for record in records
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _transcript(record: CallRecord, recording: Path | None) -> Iterator[str]:
    whole = record.as_json()
    yield f"{record.sid}, {record.direction}, {record.from_ or '-'} to {record.to or '-'}"
    ended = "not over" if record.ended_at is None else f"ended {_local(record.ended_at)}"
    yield f"began {_local(record.created_at)}, {ended}, {_length(record)}, status {record.status}"
    outcome = "live" if record.live else record.outcome or "not known"
    yield f"outcome {outcome}, process {record.process or '-'}"
    for name in ("answered_by", "stream_error", "metadata", "parameters"):
        if whole[name]:
            yield f"{name.replace('_', ' ')}: {_said(whole[name])}"
    if recording is not None:
        yield f"recording: {recording}"
    for turn in whole["turns"]:
        yield ""
        yield from _turn(turn)


def _turn(turn: Mapping[str, Any]) -> Iterator[str]:
    at = f"{turn['began']:8.1f} s"
    if turn["caller"]:
        yield f"{at}  caller  {turn['caller']}"
        at = " " * len(at)
    for tool in turn["tools"]:
        done = "not finished" if tool["ended"] is None else tool["result"]
        yield f"{tool['began']:8.1f} s  tool    {tool['name']}({_said(tool['arguments'])}): {done}"
    unheard = shorten(turn["generated"].removeprefix(turn["heard"]), UNHEARD_CHARS, placeholder="…")
    yield f"{at}  bot     {turn['heard'] or '(nothing was heard)'}"
    if turn["interrupted"]:
        rest = f"; not heard: {unheard}" if unheard else ""
        yield f"{' ' * len(at)}          [interrupted by the caller{rest}]"


def _said(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _local(at: str) -> str:
    return datetime.fromisoformat(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _length(record: CallRecord) -> str:
    seconds: float | None = record.duration_s
    if seconds is None and record.ended_at is not None:
        began, ended = map(datetime.fromisoformat, (record.created_at, record.ended_at))
        seconds = (ended - began).total_seconds()
    return "-" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def _moment(text: str) -> str:
    try:
        if text[-1:] in _AGO and text[:-1].isascii() and text[:-1].isdigit():
            at = datetime.now(UTC) - timedelta(**{_AGO[text[-1]]: int(text[:-1])})
        else:
            at = datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text} is no time") from None
    return at.isoformat(timespec="milliseconds")


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 10_000:
        raise argparse.ArgumentTypeError(f"{text} is not from 1 to 10000")
    return int(text)
