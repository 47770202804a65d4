"""Server-sent events: bytes of an event stream to events.

Sans-IO. Only what a one-way stream needs: `event` and `data`; `id` and `retry` serve
reconnecting, which a reply cannot do.

Source: WHATWG HTML, 9.2.6 "Interpreting an event stream".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from voicebot.errors import RemoteProtocolError

# A chunk of a chat completion is about 300 bytes; one with 128 tools in it stays below this.
MAX_EVENT_BYTES: Final = 1_048_576


@dataclass(frozen=True, slots=True)
class Event:
    """One event; `name` is empty where the stream gives none."""

    name: str
    data: str


class Decoder:
    """Chunks cut anywhere in, whole events out.

    Lines end with LF, CR LF or CR, also when a chunk ends between CR and LF.
    """

    def __init__(self) -> None:
        self._tail = b""  # the line not ended yet
        self._after_cr = False
        self._first_line = True
        self._name = ""
        self._data: list[str] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[Event]:
        """Return the events that this chunk completes.

        Raises:
            RemoteProtocolError: an event is longer than `MAX_EVENT_BYTES`.
        """
        if not chunk:
            return []
        fresh = chunk.removeprefix(b"\n") if self._after_cr else chunk
        self._after_cr = chunk.endswith(b"\r")
        events = []
        lines = (self._tail + fresh).splitlines(keepends=True)
        self._tail = lines.pop() if lines and not lines[-1].endswith((b"\n", b"\r")) else b""
        for line in lines:
            event = self._line(line.rstrip(b"\r\n").decode("utf-8", "replace"))
            if event is not None:
                events.append(event)
        if self._size + len(self._tail) > MAX_EVENT_BYTES:
            raise RemoteProtocolError("oversized_event", f"more than {MAX_EVENT_BYTES} bytes")
        return events

    def _line(self, line: str) -> Event | None:
        if self._first_line:
            line = line.removeprefix("\ufeff")  # a byte order mark may come first
            self._first_line = False
        if not line:
            return self._dispatch()
        field, _, value = line.partition(":")  # a comment is a line with an empty field name
        value = value.removeprefix(" ")
        if field == "data":
            self._data.append(value)
            self._size += len(value) + 1  # its line end: without it, empty lines are free
        elif field == "event":
            self._name = value
        return None

    def _dispatch(self) -> Event | None:
        event = Event(self._name, "\n".join(self._data)) if self._data else None
        self._name, self._data, self._size = "", [], 0
        return event
