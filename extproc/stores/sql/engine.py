"""Connections to one database, SQLite or PostgreSQL: URLs, transactions, migrations, and what goes wrong."""

import fcntl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    Table,
    create_engine,
    event,
    exc,
    func,
    make_url,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite

from extproc.stores.ports import DatabaseUnavailable

_MIGRATIONS: Final = Path(__file__).parent / "migrations"
_LOCK: Final = int.from_bytes(b"extproc")
"""PostgreSQL's name for the lock under which one process migrates."""
_PRAGMAS: Final = ("busy_timeout = 5000", "journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON")
_SECRETS: Final = ("password", "sslpassword")
"""Parameters that a URL is not shown with."""
_alembic = threading.Lock()  # its environment is one for the process


class Connections:
    """A pool of connections, for any thread. ``name`` is the URL as it may be shown."""

    def __init__(self, url: str) -> None:
        """Connects to nothing yet. Raises ValueError for a URL that is none, DatabaseUnavailable without its driver."""
        given = _parsed(url)
        self._url = given.difference_update_query(_SECRETS)
        self.name = self._url.render_as_string(hide_password=True)
        self.is_sqlite = self._url.get_backend_name() == "sqlite"
        try:
            self.engine = _sqlite(self._url) if self.is_sqlite else _postgresql(self._url, _secrets(given))
        except ModuleNotFoundError as error:
            raise DatabaseUnavailable(f"{self.name} needs psycopg: pip install 'extproc[postgres]'") from error
        # What a transaction reads is of one moment; SQLite's are so by themselves.
        snapshot = {} if self.is_sqlite else {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        self._readers = self.engine.execution_options(**snapshot)
        # SQLite: one that reads first and then writes could fail at once, while this one waits for its turn.
        self._writers = self.engine.execution_options(begin="BEGIN IMMEDIATE")

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees the database as it is at one moment. Raises DatabaseUnavailable."""
        with self._available(), self._readers.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that is done whole or not at all. Raises DatabaseUnavailable."""
        with self._available(), self._writers.begin() as connection:
            yield connection

    def migrate(self) -> None:
        """Make the tables, or bring them up to date. Several processes may at once. Raises DatabaseUnavailable."""
        if not self.is_sqlite:
            with self.writing() as connection:
                connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
                self._upgrade(connection)
            return
        with self._alone(Path(self._url.database or "")), self.writing() as connection:
            self._upgrade(connection)

    def close(self) -> None:
        self.engine.dispose()

    def _upgrade(self, connection: Connection) -> None:
        from alembic import command  # noqa: PLC0415 - heavy, and needed once
        from alembic.config import Config  # noqa: PLC0415
        from alembic.util import CommandError  # noqa: PLC0415

        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
        try:
            with _alembic:
                command.upgrade(config, "head")
        except CommandError as error:
            raise DatabaseUnavailable(f"{self.name} was made by another version of extproc: {error}") from error

    @contextmanager
    def _alone(self, file: Path) -> Iterator[None]:
        """A lock beside the file: those who turn it into WAL at once fail, and do not wait for each other."""
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            lock = file.with_name(f"{file.name}.lock").open("w")
        except OSError as error:
            raise DatabaseUnavailable(f"{self.name}: {error.strerror}") from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _available(self) -> Iterator[None]:
        try:
            yield
        except (exc.IntegrityError, exc.DataError):
            raise  # a fault of ours, whatever the database's state
        except exc.TimeoutError as error:
            raise DatabaseUnavailable(f"{self.name}: all connections are in use") from error
        except (exc.DatabaseError, exc.InterfaceError) as error:
            reason, *_ = str(error.orig).strip().splitlines() or [type(error.orig).__name__]
            raise DatabaseUnavailable(f"{self.name}: {reason}") from error


def insert(connection: Connection, table: Table) -> sqlite.Insert | postgresql.Insert:
    """An INSERT that can say ON CONFLICT."""
    return sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)


def _parsed(url: str) -> URL:
    expected = "sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME"
    try:
        parsed = make_url(url)
    except (exc.ArgumentError, ValueError):  # the text of which may show a part of the password
        raise ValueError(
            f"the URL of the database cannot be read: it looks like {expected}, special characters as %XX"
        ) from None
    if "@" in (parsed.host or ""):  # of a password with an "@" of its own
        raise ValueError(f"the URL of the database has two @: it looks like {expected}, special characters as %XX")
    match parsed.get_backend_name():
        case "sqlite" if parsed.database and parsed.database != ":memory:":
            return parsed.set(drivername="sqlite")
        case "postgresql" | "postgres":
            return parsed.set(drivername="postgresql+psycopg")
    raise ValueError(f"the URL of the database looks like {expected}")


def _sqlite(url: URL) -> Engine:
    engine = create_engine(url, hide_parameters=True, pool_timeout=10)

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # transactions begin where we say so
        for pragma in _PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))

    return engine


def _secrets(url: URL) -> dict[str, Any]:
    return {name: value for name, value in url.query.items() if name in _SECRETS}


def _postgresql(url: URL, secrets: Mapping[str, Any]) -> Engine:
    options: dict[str, Any] = {"connect_timeout": 5, "tcp_user_timeout": 10_000, "application_name": "extproc"}
    options = {name: value for name, value in options.items() if name not in url.query}
    # A pooler between us and the database (PgBouncer) may not know the statements that we prepared.
    options |= {"client_encoding": "utf8", "prepare_threshold": None, **secrets}
    return create_engine(url, hide_parameters=True, pool_pre_ping=True, pool_timeout=10, connect_args=options)
