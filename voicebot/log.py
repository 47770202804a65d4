"""Logging: one JSON object a line on standard error, with the call it belongs to.

The message is a constant event name, values stand beside it. Content (numbers, words) is only
ever under names that begin with `pii_`, and those are left out unless asked for.
"""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from datetime import UTC, datetime
from typing import Final, TextIO

from voicebot.whose import call_sid, turn

_STANDARD: Final = frozenset(
    (*vars(logging.LogRecord("", 0, "", 0, "", (), None)), "message", "asctime", "taskName")
)


class JsonLines(logging.Formatter):
    """Formats a record as one line of JSON."""

    def __init__(self, *, content: bool) -> None:
        super().__init__()
        self._content = content

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "event": record.getMessage(),
        }
        sid = call_sid.get()
        if sid is not None:
            entry["call_sid"] = sid
        number = turn.get()
        if number is not None:
            entry["turn"] = number
        entry |= {
            name: value
            for name, value in vars(record).items()
            if name not in _STANDARD and (self._content or not name.startswith("pii_"))
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str, ensure_ascii=False)


class Sparing(logging.Filter):
    """Lets an event that belongs to no call pass so often a second and no more.

    Strangers cause such events, and must not fill a disk. The next one that passes says how many
    were left out before it.
    """

    def __init__(self, a_second: int = 20) -> None:
        """`a_second`: of one event, which is more than anybody reads."""
        super().__init__()
        self._most = a_second
        self._second = 0
        self._seen: Counter[str] = Counter()  # events are constants, so there are few
        self._left_out: Counter[str] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether a record is written."""
        if call_sid.get() is not None or not record.name.startswith("voicebot"):
            return True
        if int(record.created) != self._second:
            self._second = int(record.created)
            self._seen.clear()
        self._seen[record.msg] += 1
        if self._seen[record.msg] > self._most:
            self._left_out[record.msg] += 1
            return False
        if left_out := self._left_out.pop(record.msg, 0):
            record.left_out = left_out
        return True


def configure(level: str, *, content: bool = False, stream: TextIO | None = None) -> None:
    """Send all logging of the process to one stream; libraries only from WARNING on."""
    output = logging.StreamHandler(stream if stream is not None else sys.stderr)
    output.setFormatter(JsonLines(content=content))
    output.addFilter(Sparing())
    root = logging.getLogger()
    root.handlers[:] = [output]
    root.setLevel(logging.WARNING)
    logging.getLogger("voicebot").setLevel(level.upper())
