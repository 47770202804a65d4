"""What `deploy/` says of settings, waits and files. Neither systemd nor Docker runs it here."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from voicebot import hooks
from voicebot.__main__ import GRACE_S
from voicebot.archive import FLUSH_S
from voicebot.config import load
from voicebot.drain import CALLBACKS_S
from voicebot.plan import Timeouts

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "voicebot@.service"
FILES = [UNIT, DEPLOY / "Dockerfile", DEPLOY / "compose.yaml"]


def lines(path: Path) -> list[str]:
    """Return what is no comment."""
    return [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]


def settings_of(path: Path) -> dict[str, str]:
    """Return the settings that a file gives a value."""
    found = re.findall(r"\b(VOICEBOT_[A-Z0-9_]+)(?:=|: )(\S+)", "\n".join(lines(path)))
    return {name: re.sub(r"\$\{\w+.*\}", "secret", value) for name, value in found}


def number(pattern: str, path: Path) -> float:
    [value] = re.findall(pattern, "\n".join(lines(path)), re.MULTILINE)
    return float(value)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_settings_exist_and_are_well_formed(path: Path) -> None:
    known = (ROOT / "docs/settings.md").read_text()
    for name in re.findall(r"VOICEBOT_[A-Z0-9_]+", path.read_text()):
        assert f"`{name}`" in known
    load(settings_of(path))


@pytest.mark.parametrize(
    "path, wait",
    [(UNIT, r"^TimeoutStopSec=(\d+)$"), (DEPLOY / "compose.yaml", r"stop_grace_period: (\d+)s$")],
    ids=["systemd", "compose"],
)
def test_a_server_that_drains_is_waited_for_to_its_end(path: Path, wait: str) -> None:
    drain_s = load(settings_of(path)).drain_s
    behind_s = Timeouts().parting_s + CALLBACKS_S + GRACE_S + hooks.GRACE_S + FLUSH_S
    assert drain_s >= 60  # a service has minutes
    assert number(wait, path) > drain_s + behind_s


def test_the_signal_is_the_one_that_drains_and_reaches_the_server_alone() -> None:
    assert {"KillSignal=SIGTERM", "KillMode=mixed"} <= set(lines(UNIT))
    assert "STOPSIGNAL SIGTERM" in lines(DEPLOY / "Dockerfile")


def test_the_unit_is_one() -> None:
    verify = shutil.which("systemd-analyze")
    if verify is None:
        pytest.skip("systemd-analyze is not installed")
    checked = subprocess.run(
        [verify, "verify", "--recursive-errors=no", str(UNIT)],
        capture_output=True,
        text=True,
        check=False,
    )
    # There is no voicebot where the unit will find it.
    known = re.compile(r"Command /opt/voicebot/bin/voicebot is not executable")
    said = [line for line in checked.stderr.splitlines() if UNIT.stem in line]
    assert [line for line in said if not known.search(line)] == []


def test_the_image_is_made_of_files_that_are_there_and_let_in() -> None:
    docker, ignored = lines(DEPLOY / "Dockerfile"), lines(ROOT / ".dockerignore")
    copied = [line.split()[1:-1] for line in docker if re.match(r"COPY (?!--from)", line)]
    names = [name for copies in copied for name in copies]
    assert names
    assert ignored[0] == "*"
    for name in names:
        assert (ROOT / name).exists()
        assert f"!{name}" in ignored
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    given = re.findall(r"EXTRAS=(\S+)", (DEPLOY / "Dockerfile").read_text())
    assert {extra for names in given for extra in names.split(",")} <= set(extras)


def test_the_image_runs_as_nobody_in_particular() -> None:
    docker = lines(DEPLOY / "Dockerfile")
    [user] = [line.split()[1] for line in docker if line.startswith("USER")]
    assert user.isdigit()
    assert int(user) > 0
    last = max(n for n, line in enumerate(docker) if line.startswith("RUN"))
    assert docker.index(f"USER {user}") > last
