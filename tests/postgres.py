"""A PostgreSQL server for tests: one that is named, one that listens, or one of their own."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError

NAMED = "VOICEBOT_TEST_POSTGRES"  # its URL, of a user who may create databases
LISTENING = "postgresql://postgres@127.0.0.1:5432/postgres"


class NoServer(Exception):
    """There is none to be had; says why."""


@contextlib.contextmanager
def running_server() -> Iterator[str]:
    """Give the URL of a server that lets databases be made.

    Raises:
        NoServer: none is named, none listens that lets us in, and none can be started.
    """
    if named := os.environ.get(NAMED):
        yield named
    elif _lets_in(LISTENING):
        yield LISTENING
    else:
        with _started() as url:
            yield url


@contextlib.contextmanager
def new_database(server: str) -> Iterator[str]:
    """Give the URL of an empty database, and drop it afterwards."""
    name = f"voicebot_test_{secrets.token_hex(6)}"
    url = make_url(server).set(drivername="postgresql+psycopg")
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        yield url.set(database=name, drivername="postgresql").render_as_string(hide_password=False)
        with engine.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    finally:
        engine.dispose()


def _lets_in(server: str) -> bool:
    url = make_url(server).set(drivername="postgresql+psycopg")
    engine = create_engine(url, connect_args={"connect_timeout": 3})
    try:
        with engine.connect():
            return True
    except OperationalError:
        return False
    finally:
        engine.dispose()


@contextlib.contextmanager
def _started() -> Iterator[str]:
    programs = _programs()
    user = None
    if os.geteuid() == 0:  # which PostgreSQL refuses to run as
        user = next((u.pw_name for u in pwd.getpwall() if u.pw_name == "postgres"), "nobody")
    folder = Path(tempfile.mkdtemp(prefix="voicebot-postgres-"))
    if user is not None:
        shutil.chown(folder, user)
    data = folder / "data"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    try:
        _run([programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-N"], user, folder)
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c fsync=off -k {folder}"
        start: list[Path | str] = [
            "-D",
            data,
            "-l",
            folder / "log",
            "-o",
            options,
            "-w",
            "-t",
            "30",
            "start",
        ]
        _run([programs / "pg_ctl", *start], user, folder)
        try:
            yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
        finally:
            _run([programs / "pg_ctl", "-D", data, "-m", "immediate", "stop"], user, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _programs() -> Path:
    if found := shutil.which("initdb"):
        return Path(found).parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not versions:
        raise NoServer(
            f"no PostgreSQL: none listens on {LISTENING}, {NAMED} names none, and its programs "
            "are not installed (Debian: apt-get install postgresql)"
        )
    return versions[-1].parent


def _run(command: list[Path | str], user: str | None, folder: Path) -> None:
    # Not captured: the server would keep the pipe open that its starter was given.
    with (folder / "setup").open("ab") as output:
        done = subprocess.run(
            command, user=user, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    if done.returncode:
        said = (folder / "setup").read_text(errors="replace")[-500:]
        raise NoServer(f"PostgreSQL could not be started: {command[0]} failed: {said}")
