"""Log lines: one JSON object each, with the call, without content."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from voicebot import log, whose


@pytest.fixture
def output() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    stream = io.StringIO()
    log.configure("INFO", stream=stream)
    yield stream
    root.handlers[:] = before
    root.setLevel(level)
    logging.getLogger("voicebot").setLevel(logging.NOTSET)


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_line_with_its_values_and_its_call(output: io.StringIO) -> None:
    token = whose.call_sid.set("CA1")
    logging.getLogger("voicebot.x").info("turn_ended", extra={"turn": 3})
    whose.call_sid.reset(token)
    logging.getLogger("voicebot.x").debug("not_shown")
    logging.getLogger("library").info("not_shown")

    [line] = lines(output)
    del line["time"]
    assert line == {
        "level": "INFO",
        "logger": "voicebot.x",
        "event": "turn_ended",
        "call_sid": "CA1",
        "turn": 3,
    }


def test_content_is_left_out_unless_asked_for(output: io.StringIO) -> None:
    logging.getLogger("voicebot.x").info("said", extra={"pii_text": "my card number"})
    log.configure("INFO", content=True, stream=output)
    logging.getLogger("voicebot.x").info("said", extra={"pii_text": "my card number"})

    assert [line.get("pii_text") for line in lines(output)] == [None, "my card number"]


def test_a_traceback_stays_in_its_line(output: io.StringIO) -> None:
    try:
        raise ValueError("wrong")
    except ValueError:
        logging.getLogger("voicebot.x").exception("crashed")

    [line] = lines(output)
    assert "ValueError: wrong" in str(line["traceback"])


def test_a_line_of_a_turn_says_which(output: io.StringIO) -> None:
    token = whose.turn.set(0)
    logging.getLogger("voicebot.x").info("said")
    whose.turn.reset(token)
    logging.getLogger("voicebot.x").info("said")
    logging.getLogger("voicebot.x").info("turn_over", extra={"turn": 7})  # what is told wins

    assert [line.get("turn") for line in lines(output)] == [0, None, 7]


def test_what_strangers_cause_is_not_written_more_than_so_often_a_second() -> None:
    sparing = log.Sparing(2)

    def passes(event: str, second: float) -> int | bool:
        record = logging.makeLogRecord({"name": "voicebot.ws", "msg": event, "created": second})
        return sparing.filter(record) and getattr(record, "left_out", True)

    assert [passes("refused", 7.0 + n / 10) for n in range(5)] == [True, True, False, False, False]
    assert passes("other", 7.6) is True
    assert passes("refused", 8.0) == 3  # left out before
    assert passes("refused", 8.1) is True

    token = whose.call_sid.set("CA1")  # of a call nothing is left out
    assert all(passes("refused", 8.2) for _ in range(5))
    whose.call_sid.reset(token)
