"""`voicebot calls`: a table, a transcript, an export."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.databases import moment, record, summary, tool, turn
from voicebot.__main__ import main
from voicebot.database import News, open_database

GREETING = turn(0, heard="Hello.")
ORDER = turn(
    1,
    "a table for two",
    "Certainly. I have",
    generated="Certainly. I have booked it.",
    interrupted=True,
    tools=[tool(arguments={"guests": 2}, began=2.5, ended=3.0, result="booked")],
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith(("VOICEBOT_", "TWILIO_", "DEEPGRAM_", "GROQ_", "PUBLIC_URL")):
            monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture
def calls() -> None:
    database = open_database("sqlite:///voicebot.db")
    over = record(
        "CAover", status="completed", outcome="hung_up", process="p", ended_at=moment(75),
        summary=summary(GREETING, ORDER), metadata={"order": 7}, answered_by="human",
    )  # fmt: skip
    live = record("CAlive", at=90, process="p", direction="outbound")
    database.write([News(over, {0: GREETING, 1: ORDER}), News(live, {0: GREETING})])
    database.engine.dispose()


@pytest.mark.usefixtures("calls")
def test_calls_are_listed_the_newest_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calls"]) == 0

    head, live, over = capsys.readouterr().out.splitlines()
    assert head.split() == [
        *("BEGAN", "SID", "DIRECTION", "FROM", "TO", "STATUS", "OUTCOME", "LENGTH", "TURNS"),
    ]
    assert live.split()[2:] == [
        *("CAlive", "outbound", "+15550100123", "+15550100456", "in-progress", "live", "-", "1"),
    ]
    assert over.split()[-3:] == ["hung_up", "1:15", "2"]


@pytest.mark.usefixtures("calls")
def test_a_call_is_shown_as_a_transcript_with_what_was_heard(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["calls", "CAover"]) == 0

    shown = capsys.readouterr().out
    assert "status completed" in shown
    assert "outcome hung_up" in shown
    assert 'metadata: {"order": 7}' in shown
    assert "answered by: human" in shown
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert "0.0 s bot Hello." in lines
    at = lines.index("1.0 s caller a table for two")
    assert lines[at + 1 : at + 4] == [
        '2.5 s tool book({"guests": 2}): booked',
        "bot Certainly. I have",
        "[interrupted by the caller; not heard: booked it.]",
    ]


@pytest.mark.usefixtures("calls")
def test_export_is_one_whole_call_a_line_the_oldest_first(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["calls", "--jsonl"]) == 0

    over, live = map(json.loads, capsys.readouterr().out.splitlines())
    assert (over["call_sid"], live["call_sid"]) == ("CAover", "CAlive")
    assert over["turns"] == [GREETING, ORDER]
    assert over["summary"]["timeline"] == summary()["timeline"]
    assert (live["summary"], live["turns"]) == (None, [GREETING])


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize(
    "argv, found",
    [
        pytest.param(["--limit", "1"], ["CAlive"], id="limit"),
        pytest.param(["--since", moment(80)], ["CAlive"], id="a time"),
        pytest.param(["--since", moment(0), "--jsonl"], ["CAover", "CAlive"], id="jsonl"),
        pytest.param(["--since", "2099-01-01"], [], id="none"),
        pytest.param(["CAlive", "--jsonl"], ["CAlive"], id="one call"),
    ],
)  # fmt: skip
def test_what_is_asked_for_is_shown(
    argv: list[str], found: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calls", *argv]) == 0

    shown = capsys.readouterr().out
    assert [sid for sid in ("CAover", "CAlive") if sid in shown] == found


def test_so_long_ago(capsys: pytest.CaptureFixture[str]) -> None:
    database = open_database("sqlite:///voicebot.db")
    for sid, ago in (("CAold", timedelta(hours=3)), ("CAnew", timedelta(minutes=30))):
        at = (datetime.now(UTC) - ago).isoformat(timespec="milliseconds")
        database.write([News(record(sid, created_at=at))])
    database.engine.dispose()

    assert main(["calls", "--since", "2h"]) == 0

    shown = capsys.readouterr().out
    assert "CAnew" in shown
    assert "CAold" not in shown


@pytest.mark.usefixtures("calls")
def test_no_such_call(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calls", "CAnone"]) == 1
    assert "there is no call CAnone" in capsys.readouterr().err


def test_without_a_database_it_says_where_one_comes_from(
    capsys: pytest.CaptureFixture[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["calls"]) == 1
    assert "voicebot.db does not exist" in capsys.readouterr().err
    assert list(folder.iterdir()) == []

    monkeypatch.setenv("VOICEBOT_DATABASE_URL", "")
    assert main(["calls"]) == 1
    assert "VOICEBOT_DATABASE_URL is empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv", [["--since", "soon"], ["--since", "99999999999d"], ["--limit", "0"]]
)
def test_wrong_arguments(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["calls", *argv])
    assert caught.value.code == 2
    assert argv[1] in capsys.readouterr().err


@pytest.mark.usefixtures("calls")
def test_a_reader_that_has_had_enough_is_no_error(folder: Path) -> None:
    database = open_database("sqlite:///voicebot.db")
    database.write([News(record(f"CA{n}", metadata={"x": "y" * 5_000})) for n in range(200)])
    database.engine.dispose()
    root = Path(__file__).parents[1]
    command = f"{sys.executable} -m voicebot calls --jsonl | head -c 100; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout) == 100


@pytest.mark.usefixtures("calls")
def test_a_call_is_shown_with_its_recording(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOICEBOT_RECORDING__PATH", "recordings")
    (folder / "recordings").mkdir()
    (folder / "recordings/CAover.wav").write_bytes(b"")
    for sid, shown in (("CAover", True), ("CAlive", False)):
        assert main(["calls", sid]) == 0
        assert ("recording: recordings/CAover.wav\n" in capsys.readouterr().out) is shown


def test_importing_the_service_does_not_import_the_database() -> None:
    code = "import sys, voicebot.http, voicebot.__main__; sys.exit('sqlalchemy' in sys.modules)"
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
