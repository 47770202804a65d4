"""The tables of the database, and how it is opened and brought up to date.

Everything here holds its thread: the service calls it in one of its own. Alembic is imported
only where there is something to bring up to date.

SQLite: write-ahead log, so that reading and writing do not wait for each other; `synchronous` FULL,
because the end of a call is to survive a power cut as well and no caller waits for it; a writer
waits `LOCK_S` for another. The file is readable by its owner only: it holds what people said.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Connection,
    Dialect,
    Engine,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    StaticPool,
    Table,
    Text,
    TypeDecorator,
    create_engine,
    event,
    inspect,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from voicebot.errors import MissingPart, StoreError

HEAD: Final = "4"  # of `migrations/versions`
SETTING: Final = "VOICEBOT_DATABASE_URL"
LOCK_S: Final = 5  # a backup of a small database holds its lock less than this
CONNECT_S: Final = 5
STATEMENT_S: Final = 10  # the longest there is is an index lookup; a server that needs more hangs
UPGRADE_S: Final = 60  # how long another process may take that brings it up to date
_UPGRADE_LOCK: Final = 0x766F6963  # one number for all who bring a PostgreSQL database up to date


class Moment(TypeDecorator[str]):
    """A time as ISO 8601 text in Python and in SQLite, as `timestamptz` in PostgreSQL."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        """Choose the type of the column."""
        postgres = dialect.name == "postgresql"
        return dialect.type_descriptor(TIMESTAMP(timezone=True) if postgres else Text())

    def process_bind_param(self, value: str | None, dialect: Dialect) -> Any:
        """Turn text into what the driver takes."""
        return value if value is None or dialect.name == "sqlite" else datetime.fromisoformat(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:
        """Turn what the driver gives into text."""
        if isinstance(value, datetime):
            return value.astimezone(UTC).isoformat(timespec="milliseconds")
        return None if value is None else str(value)


def _json() -> Any:
    return JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


tables: Final = MetaData()

calls: Final = Table(
    "calls",
    tables,
    Column("sid", Text, primary_key=True),
    Column("direction", Text, nullable=False),
    Column("from_number", Text, nullable=False),
    Column("to_number", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("sequence", Integer, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("updated_at", Moment, nullable=False),
    Column("ended_at", Moment),
    Column("duration_s", Integer),
    Column("stream", Text),
    Column("stream_error", Text),
    Column("outcome", Text),
    Column("live", Boolean, nullable=False),
    Column("streams", Integer, nullable=False),
    Column("process", Text),
    Column("answered_by", Text),
    Column("metadata", _json()),
    Column("parameters", _json()),
    Column("summary", _json()),  # "turns": up to which number it has them
    Index("calls_by_time", "created_at", "sid"),
)
Index(
    "calls_live",
    calls.c.process,
    sqlite_where=calls.c.live,
    postgresql_where=calls.c.live,
)

turns: Final = Table(
    "turns",
    tables,
    Column("call_sid", Text, ForeignKey("calls.sid", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("caller", Text, nullable=False),
    Column("generated", Text, nullable=False),
    Column("heard", Text, nullable=False),
    Column("interrupted", Boolean, nullable=False),
    Column("goodbye", Boolean, nullable=False),
    # Seconds since the call began.
    Column("began", Float, nullable=False),
    Column("fell", Float),
    Column("first_text", Float),
    Column("first_audio", Float),
    Column("first_media", Float),
)

tools: Final = Table(
    "tools",
    tables,
    Column("call_sid", Text, ForeignKey("calls.sid", ondelete="CASCADE"), primary_key=True),
    Column("turn", Integer, primary_key=True),
    Column("place", Integer, primary_key=True),  # in the turn
    Column("name", Text, nullable=False),
    Column("arguments", _json(), nullable=False),
    Column("began", Float, nullable=False),
    Column("ended", Float),
    Column("result", Text, nullable=False),
)

processes: Final = Table(
    "processes",
    tables,
    Column("id", Text, primary_key=True),
    Column("place", Text, nullable=False),  # where `pid` means something
    Column("pid", Integer, nullable=False),
    Column("seen_at", Moment, nullable=False),
    # For new calls, of all who share them; 0: it takes none.
    Column("lines", Integer, nullable=False, server_default=text("0")),
)

requests: Final = Table(
    "requests",
    tables,
    Column("key", Text, primary_key=True),
    Column("body", Text, nullable=False),  # its hash
    Column("at", Moment, nullable=False),
    Column("answer", _json()),  # and its status; none: it is being carried out
    Index("requests_by_time", "at"),
)

dials: Final = Table(  # of the last day; see `allowance.py`
    "dials",
    tables,
    Column("key", Text, primary_key=True),
    Column("call_sid", Text),  # none: Twilio has not answered, or not to anybody who could tell
    Column("who", Text, nullable=False),
    Column("destination", Text, nullable=False),  # a keyed hash: this is no list of whom one calls
    Column("at", Moment, nullable=False),
    Column("until", Moment, nullable=False),  # it is over by then, whether one is told or not
    Column("held", Integer, nullable=False),  # minutes
    Column("used", Integer),  # minutes, once it is over
    Index("dials_by_time", "at"),
    Index("dials_by_call", "call_sid"),
)

refusals: Final = Table(
    "refusals",
    tables,
    Column("number", Integer, primary_key=True),
    Column("at", Moment, nullable=False),
    Column("who", Text, nullable=False),
    Column("to_number", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("setting", Text, nullable=False),
    Column("process", Text, nullable=False),
    Index("refusals_by_time", "at"),
)

standings: Final = Table(  # of calls that processes share; see `standing_table.py`
    "standings",
    tables,
    Column("key", Text, primary_key=True),  # CallSid, or what a call that is dialled goes by
    Column("process", Text, nullable=False),  # that had its line last
    Column("line", Text, nullable=False),  # dialled, expected, live, or empty: it has none
    Column("nonce", Text, nullable=False),  # makes its token, with a key that is not here
    Column("account_sid", Text, nullable=False),
    Column("past", Text, nullable=False),  # nonce of a token that was used
    Column("until", Moment),  # what is to come of it comes by then; none: it is live, or over
    Column("news", Boolean, nullable=False),  # the process that holds it is to look
    Column("at", Moment, nullable=False),
    Column("state", _json()),  # private; none as soon as the call is over
    Index("standings_by_time", "at"),
    Index("standings_by_line", "line", "process"),
)


def open_engine(url: str, *, create: bool = True) -> Engine:
    """Return the engine of a database that can be reached.

    Args:
        create: make an SQLite file that is not there.

    Raises:
        StoreError: it cannot be reached; the message has no password.
        MissingPart: the driver of PostgreSQL is not installed.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as exc:
        raise StoreError(f"{SETTING}: is not a URL of a database") from exc
    kind = parsed.drivername.partition("+")[0]
    if kind not in {"sqlite", "postgresql", "postgres"}:
        raise StoreError(f"{SETTING}: is neither of SQLite nor of PostgreSQL but of {kind}")
    engine = _sqlite(parsed, create) if kind == "sqlite" else _postgresql(parsed)
    try:
        with engine.connect():
            pass
    except SQLAlchemyError as exc:
        engine.dispose()
        raise StoreError(_cannot(parsed, exc)) from exc
    return engine


def _sqlite(url: URL, create: bool) -> Engine:
    path = url.database or ":memory:"
    memory = path == ":memory:"
    if not memory and not Path(path).exists():
        if not create:
            raise StoreError(
                f"{path} does not exist: `voicebot serve` makes it in the folder where it runs, "
                f"or wherever {SETTING} says"
            )
        try:
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        except OSError as exc:
            raise StoreError(_cannot(url, exc)) from exc
    connect = {"timeout": LOCK_S, "check_same_thread": False}
    if memory:  # one connection is one database
        engine = create_engine(url, connect_args=connect, poolclass=StaticPool)
    else:
        engine = create_engine(url, connect_args=connect)

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: object) -> None:
        connection.isolation_level = None  # the driver begins no transactions of its own
        _use_write_ahead_log(connection)
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A transaction that will write takes the lock first: one that finds out later cannot wait.
        reads = connection.get_execution_options().get("reads", False)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


def _use_write_ahead_log(connection: Any) -> None:
    """Switch a new file over; for good. SQLite itself does not wait for others who do the same."""
    until = time.monotonic() + LOCK_S
    while connection.execute("PRAGMA journal_mode").fetchone()[0] == "delete":
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)


def _postgresql(url: URL) -> Engine:
    try:
        import psycopg  # noqa: F401  # the extra may not be installed
    except ImportError as exc:
        raise MissingPart(
            f"{SETTING} is of PostgreSQL, whose driver is not installed: "
            "pip install 'voicebot[postgres]'"
        ) from exc
    engine = create_engine(
        url.set(drivername="postgresql+psycopg"),
        pool_size=7,  # the writer, two readers, four steps of calls that are shared
        max_overflow=0,
        pool_pre_ping=True,  # a connection that a firewall has forgotten is replaced, not met
        connect_args={
            "connect_timeout": CONNECT_S,
            "prepare_threshold": None,  # a pooler between may give each transaction another server
            # A network that swallows everything is noticed.
            "tcp_user_timeout": STATEMENT_S * 1000,
            "keepalives_idle": STATEMENT_S,
            "keepalives_interval": 2,
            "keepalives_count": 3,
        },
    )

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # For this transaction, as poolers take no settings of a session.
        connection.exec_driver_sql(
            f"SET LOCAL statement_timeout = '{STATEMENT_S}s'; SET LOCAL lock_timeout = '{LOCK_S}s'"
        )

    return engine


def _cannot(url: URL, exc: Exception) -> str:
    shown = url.render_as_string(hide_password=True)
    reason = str(getattr(exc, "orig", None) or exc).strip()
    if url.password:
        reason = reason.replace(str(url.password), "***")
    return (
        f"{SETTING}: the database {shown} cannot be opened: {reason}; set it to one that can, or "
        "leave it empty to keep records only as long as the process runs"
    )


def version(connection: Connection) -> str | None:
    """Return the version of the tables, None where there are none."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return found


def check(engine: Engine) -> None:
    """Check that the tables are of this version.

    Raises:
        StoreError: they are not; the message says what to do.
    """
    with engine.connect().execution_options(reads=True) as connection:
        found = version(connection)
    if found != HEAD:
        have = "has no records yet" if found is None else f"is of version {found}, not {HEAD}"
        raise StoreError(
            f"{SETTING}: the database {have}; `voicebot serve` brings it up to date when it starts"
        )


# Alembic keeps which upgrade is under way in its module, so in one process there can be one.
_one_upgrade: Final = threading.Lock()


def upgrade(engine: Engine, to: str = "head") -> None:
    """Bring the tables up to date, in one transaction; several may try at once.

    Raises:
        StoreError: it cannot be done, or the tables are of a newer program.
    """
    with engine.connect().execution_options(reads=True) as connection:
        if version(connection) == HEAD:
            return
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    try:
        with _one_upgrade, engine.begin() as connection:
            if engine.dialect.name == "postgresql":
                # A large table takes longer than any other statement may.
                connection.execute(text("SET LOCAL statement_timeout = 0"))
                connection.execute(text(f"SET LOCAL lock_timeout = '{UPGRADE_S}s'"))
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_UPGRADE_LOCK})"))
            config.attributes["connection"] = connection
            command.upgrade(config, to)
    except CommandError as exc:
        raise StoreError(
            f"{SETTING}: the database is not of this version of voicebot, but of a newer one, or "
            f"of another program: {exc}"
        ) from exc
    except SQLAlchemyError as exc:
        raise StoreError(_cannot(engine.url, exc)) from exc
