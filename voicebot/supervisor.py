"""Several processes that serve one port, and who watches over them.

    supervisor
      one task for each worker: starts it, reads what it prints, starts it again when it has ended
      signals: each is passed on to every worker, which drains by it

Each worker is `voicebot serve` with a listening socket of its own on the same port
(SO_REUSEPORT), so the kernel gives a connection to a process that lives, and nothing waits in a
queue that nobody reads. The supervisor holds the port without listening, so that no other program
gets it while a worker starts. Calls are in the workers only: one that dies takes no other with it.

A worker ends by itself, as by a signal, when its standard input ends: the supervisor has gone.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

READY: Final = "ready on "  # what a worker prints, and its URL
BACKOFF_S: Final = (0.5, 30.0)  # before a worker is started again; doubles
SETTLED_S: Final = 60.0  # who has served so long has not died of how it was started

log = logging.getLogger(__name__)


class CannotStart(Exception):
    """A worker could not start, and has said why; `status` is its exit status."""

    def __init__(self, status: int) -> None:
        super().__init__(f"exit status {status}")
        self.status = status


@dataclass(frozen=True, slots=True)
class Team:
    """What the workers of a supervisor have in common.

    `command` runs one; `own_port`: worker number n also listens at this port + n, on loopback.
    """

    command: Sequence[str]
    host: str
    port: int
    size: int
    own_port: int | None = None


async def supervise(team: Team, say: Callable[[str], None]) -> int:
    """Run a team until a signal has drained it, or until it turns out that none can start.

    Args:
        say: prints a line.

    Returns the exit status.

    Raises:
        OSError: somebody else listens at the port.

    Owns: the workers. Each signal goes to all of them; cancelled, they are killed.
    """
    status = 0
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        with hold_port(team.host, team.port) as port:
            team = Team(team.command, team.host, port, team.size, team.own_port)
            try:
                async with trio.open_nursery() as nursery:  # owns: a task for each worker
                    workers = [_Worker(team, number, say) for number in range(team.size)]

                    async def pass_on() -> None:
                        async for number in signals:
                            for worker in workers:
                                worker.signal(number)

                    nursery.start_soon(pass_on)
                    async with trio.open_nursery() as working:
                        # Alone, for what is wrong is wrong with all, and is said once.
                        await working.start(workers[0].run)
                        for worker in workers[1:]:
                            working.start_soon(worker.run)
                        for worker in workers:
                            await worker.ready.wait()
                        if all(worker.url for worker in workers):
                            say(f"{READY}{workers[0].url}")
                    nursery.cancel_scope.cancel(reason="all have ended")
            except* CannotStart as group:
                status = _status(group)
    return status


def _status(group: BaseExceptionGroup[BaseException]) -> int:
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first.status if isinstance(first, CannotStart) else 1


class hold_port:  # a context manager
    """Hold a port for sockets of this user that share it, and see that it was free before.

    Gives its number. Nothing listens by it: the kernel gives it no connection.
    """

    def __init__(self, host: str, port: int) -> None:
        self._family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._address = host, port
        self._held: socket.socket | None = None

    def __enter__(self) -> int:
        """Raises OSError: somebody has it."""
        # Who shares a port takes part of what comes: so first without sharing.
        with socket.create_server(self._address, family=self._family) as free:
            address = free.getsockname()
        self._held = socket.socket(self._family, socket.SOCK_STREAM)
        self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._held.bind(address)
        # Only for the bind, past connections that linger: kept, it would let others in.
        self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        return int(address[1])

    def __exit__(self, *exc: object) -> None:
        """Let it go."""
        if self._held is not None:
            self._held.close()


class _Worker:
    """One place in the team, and the process that has it."""

    def __init__(self, team: Team, number: int, say: Callable[[str], None]) -> None:
        self._team = team
        self._number = number
        self._say = say
        self._process: trio.Process | None = None
        self._stopping = trio.Event()
        self._told: list[int] = []  # signals
        self.ready = trio.Event()  # or never will be
        self.url = ""

    def signal(self, number: int) -> None:
        """Pass a signal on; from the first on the process is not started again."""
        self._stopping.set()
        self._told.append(number)
        if self._process is not None:
            self._process.send_signal(number)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a process running until it is told to stop. Reports when it is ready.

        Raises:
            CannotStart: the first has ended before it was ready.
        """
        pause = BACKOFF_S[0]
        try:
            while not self._stopping.is_set():
                began = trio.current_time()
                status = await self._run_once(task_status)
                if self._stopping.is_set():
                    return
                if not self.ready.is_set():
                    raise CannotStart(status)
                served_s = trio.current_time() - began
                pause = BACKOFF_S[0] if served_s >= SETTLED_S else pause
                log.error(
                    "worker_died",
                    extra={
                        "worker": self._number,
                        "exit_status": status,
                        "served_s": round(served_s, 1),
                        "again_s": pause,
                        "hint": "its calls are lost; call_lost names them",
                    },
                )
                with trio.move_on_after(pause):
                    await self._stopping.wait()
                pause = min(2 * pause, BACKOFF_S[1])
        finally:
            if not self.ready.is_set():
                self.ready.set()
                task_status.started()

    async def _run_once(self, task_status: trio.TaskStatus[None]) -> int:
        """Run a process to its end; return its exit status."""
        process = await trio.lowlevel.open_process(
            self._command(),
            env={**os.environ, "VOICEBOT_SHARED": "true"},
            stdin=subprocess.PIPE,  # ends with this process, however that ends
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is passed on, and comes once
        )
        self._process = process
        try:
            for number in self._told:
                process.send_signal(number)
            await self._read(process, task_status)
            return await process.wait()
        finally:
            self._process = None
            if process.returncode is None:
                process.kill()
            with trio.move_on_after(1.0, shield=True):  # a killed process is gone at once
                await process.wait()
                for pipe in (process.stdin, process.stdout):
                    if pipe is not None:
                        await pipe.aclose()

    def _command(self) -> list[str]:
        team = self._team
        command = [*team.command, "--host", team.host, "--port", str(team.port)]
        command += ["--worker", str(self._number)]
        if team.own_port is not None:
            command += ["--own-port", str(team.own_port + self._number)]
        return command

    async def _read(self, process: trio.Process, task_status: trio.TaskStatus[None]) -> None:
        """Pass on what a worker prints, but for what all of them do, until it prints no more."""
        assert process.stdout is not None
        rest = b""
        async for data in process.stdout:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                text = line.decode(errors="replace")
                if not text.startswith(READY):
                    self._say(text)
                    continue
                self.url = text.removeprefix(READY)
                log.info("worker_ready", extra={"worker": self._number, "pid": process.pid})
                if not self.ready.is_set():
                    self.ready.set()
                    task_status.started()


def command(arguments: Sequence[str]) -> list[str]:
    """Return how a worker is called: as this program was, by the same interpreter."""
    return [sys.executable, "-m", "voicebot", "serve", *arguments]
