"""Who watches over workers: started, started again, told to stop; with processes that do little."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from voicebot import supervisor
from voicebot.supervisor import Team, hold_port, supervise

# Writes what it is and what it hears into a file of its own; ends at SIGTERM, or when nobody is
# there any more.
WORKER = """
import os, signal, sys, threading
number = sys.argv[sys.argv.index("--worker") + 1]
log = open(os.path.join(os.environ["FOLDER"], number), "a")
def note(text):
    log.write(text + "\\n"); log.flush()
def stop(*_):
    note("stop"); os._exit(0)
signal.signal(signal.SIGTERM, stop)
note(f"start {os.getpid()}")
FAILS
print("ready on http://x", flush=True)
sys.stdin.read()
note("alone")
"""


class Stage:
    """A supervisor, its workers and their files."""

    def __init__(self, folder: Path, fails: str = "") -> None:
        self.folder = folder
        self.said: list[str] = []
        script = WORKER.replace("FAILS", fails)
        self.team = Team([sys.executable, "-c", script], "127.0.0.1", 0, 2)
        self.status: int | None = None
        self.running = False

    def heard(self, number: int) -> list[str]:
        path = self.folder / str(number)
        return path.read_text().split("\n")[:-1] if path.exists() else []

    async def run(self) -> None:
        self.running = True
        self.status = await supervise(self.team, self.said.append)
        self.running = False

    async def until(self, holds: Callable[[], bool]) -> None:
        with trio.fail_after(20):
            while not holds():  # noqa: ASYNC110  # other processes
                await trio.sleep(0.02)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setenv("FOLDER", str(tmp_path))
    monkeypatch.setattr(supervisor, "BACKOFF_S", (0.05, 1.0))
    return Stage(tmp_path)


async def test_all_are_told_to_stop_and_waited_for(stage: Stage) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.run)
        await stage.until(lambda: bool(stage.said))
        os.kill(os.getpid(), signal.SIGTERM)
    assert stage.status == 0
    assert stage.said == ["ready on http://x"]  # once, of all
    assert [stage.heard(number)[1:] for number in (0, 1)] == [["stop"], ["stop"]]


async def test_one_that_dies_is_started_again_and_the_other_left_alone(stage: Stage) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.run)
        await stage.until(lambda: bool(stage.said))
        for lives in (2, 3):
            os.kill(int(stage.heard(1)[-1].split()[1]), signal.SIGKILL)
            await stage.until(lambda lives=lives: len(stage.heard(1)) == lives)  # type: ignore[misc]  # each its own
        await stage.until(lambda: len(stage.heard(1)) == 3)
        os.kill(os.getpid(), signal.SIGTERM)
    assert stage.status == 0
    assert len(stage.heard(0)) == 2


async def test_one_that_dies_while_all_stop_is_not_started_again(stage: Stage) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.run)
        await stage.until(lambda: bool(stage.said))
        os.kill(int(stage.heard(0)[0].split()[1]), signal.SIGSTOP)  # it takes its time
        os.kill(os.getpid(), signal.SIGTERM)
        await stage.until(lambda: stage.heard(1)[1:] == ["stop"])
        await trio.sleep(0.2)
        assert stage.running
        os.kill(int(stage.heard(0)[0].split()[1]), signal.SIGCONT)
    assert (stage.status, len(stage.heard(0)), len(stage.heard(1))) == (0, 2, 2)


async def test_where_none_can_start_one_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOLDER", str(tmp_path))
    stage = Stage(tmp_path, "sys.exit(3)")
    with trio.fail_after(20):
        await stage.run()
    assert (stage.status, stage.said) == (3, [])
    assert (len(stage.heard(0)), stage.heard(1)) == (1, [])


async def test_a_supervisor_that_goes_leaves_no_worker(stage: Stage) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.run)
        await stage.until(lambda: bool(stage.said))
        nursery.cancel_scope.cancel()
    for number in (0, 1):
        pid = int(stage.heard(number)[0].split()[1])
        assert not os.path.exists(f"/proc/{pid}")  # noqa: ASYNC240  # no disk


def test_a_port_that_is_held_is_for_those_who_share_it() -> None:
    with hold_port("127.0.0.1", 0) as port:
        with pytest.raises(OSError, match="in use"):
            socket.create_server(("127.0.0.1", port))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        with socket.create_server(("127.0.0.1", port), reuse_port=True):
            socket.create_connection(("127.0.0.1", port)).close()
    with hold_port("127.0.0.1", port):  # although a connection lingers
        pass


def test_a_port_that_a_stranger_would_share_is_not_free() -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as stranger:
        with pytest.raises(OSError, match="in use"), hold_port(*stranger.getsockname()):
            pass
