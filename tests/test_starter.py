"""`voicebot new NAME` writes a bot whose own test passes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from voicebot.__main__ import main
from voicebot.botfile import load_bot

FILES = {"bot.py", "test_bot.py", ".env.example", "README.md"}


def test_the_new_bots_own_test_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    assert main(["new", "shop"]) == 0

    assert {path.name for path in Path("shop").iterdir()} == FILES
    assert "voicebot serve --dev --bot bot.py" in capsys.readouterr().out
    root = Path(__file__).parent.parent
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd="shop",
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stdout
    assert "3 passed" in ran.stdout


def test_the_new_bot_is_named_in_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    main(["new", str(tmp_path / "shop")])

    bot = load_bot(str(tmp_path / "shop" / "bot.py"))

    assert bot.greeting == "Hello, this is shop. How can I help you?"
    assert "Today is {{today}}." in (bot.prompt or "")
    assert [tool.name for tool in bot.tools] == ["free_times", "book"]


def test_nothing_is_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("shop").mkdir()
    Path("shop/bot.py").write_text("mine")

    assert main(["new", "shop"]) == 2

    assert "shop/bot.py: is there already" in capsys.readouterr().err
    assert [path.name for path in Path("shop").iterdir()] == ["bot.py"]
    assert Path("shop/bot.py").read_text() == "mine"


@pytest.mark.parametrize("name", ["", "..", "a b", "-x"])
def test_a_name_that_is_none(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "--", name]) == 2
    assert "a name has letters" in capsys.readouterr().err
