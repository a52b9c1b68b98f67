"""Connections: what a URL may be, what goes wrong and how it reads, and what does not wait."""

import sys
import threading
import time
import traceback
from pathlib import Path

import pytest
from sqlalchemy import select, text
from stores.databases import PASSWORD, postgres
from stores.sql.rows import row

from extproc.stores.ports import DatabaseUnavailable
from extproc.stores.sql import Database, open_database
from extproc.stores.sql.engine import Connections
from extproc.stores.sql.schema import ledger, revision


def shown(error: BaseException) -> str:
    """Everything that a log shows of it, but for the source of this file."""
    return "".join(line for line in traceback.format_exception(error) if __file__ not in line)


# --- URLs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("sqlite:///run/x.db", "sqlite:///run/x.db"),
        ("sqlite:////var/x.db", "sqlite:////var/x.db"),
        ("postgresql://u:pw-9f31c7@h/db", "postgresql+psycopg://u:***@h/db"),
        ("postgres://u:pw-9f31c7@h:5433/db?sslmode=require", "postgresql+psycopg://u:***@h:5433/db?sslmode=require"),
        ("postgresql://h/db?user=u&password=pw-9f31c7", "postgresql+psycopg://h/db?user=u"),
    ],
)
def test_urls(url: str, name: str) -> None:
    """SQLite has a path, PostgreSQL is asked by psycopg 3, and what is shown has no password."""
    connections = Connections(url)

    assert connections.name == name
    assert "pw-9f31c7" not in repr(connections.engine)
    assert connections.is_sqlite == url.startswith("sqlite")
    assert connections.engine.dialect.driver in ("pysqlite", "psycopg")


@pytest.mark.parametrize(
    "url",
    [
        *("", "x", "sqlite://", "sqlite:///:memory:", "mysql://u:pw-9f31c7@h/db"),
        *("postgresql://u:12@pw-9f31c7@h/db", "postgresql://u:pw-9f31c7@h:pw-9f31c7/db"),
    ],
)
def test_what_is_no_url(url: str) -> None:
    """What cannot be meant is refused at once, and the text shows nothing of it."""
    with pytest.raises(ValueError, match="sqlite:///PATH") as caught:
        open_database(url)

    assert "pw-9f31c7" not in shown(caught.value)


def test_without_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has no psycopg is told how to get it."""
    monkeypatch.setitem(sys.modules, "psycopg", None)

    with pytest.raises(DatabaseUnavailable, match=r"pip install 'extproc\[postgres\]'") as caught:
        open_database("postgresql://u:pw-9f31c7@h/db")

    assert "pw-9f31c7" not in shown(caught.value)


def test_a_timeout_of_ones_own() -> None:
    """Parameters of the URL go before our own."""
    database = open_database("postgresql://h/db?connect_timeout=1")

    assert database.engine.dialect.create_connect_args(database.engine.url)[1]["connect_timeout"] == "1"


# --- what goes wrong --------------------------------------------------------------------------------------------


def test_a_server_that_stops_and_comes_back() -> None:
    """Meanwhile every question is answered by DatabaseUnavailable, without the password; then all goes on by itself."""
    with postgres() as server:
        database = open_database(server.new())
        database.migrate()
        assert database.ledger.add([row("a")]) == 1

        server.stop()

        for ask in (lambda: database.ledger.add([row("b")]), database.register.consumers, database.migrate):
            with pytest.raises(DatabaseUnavailable, match=r"No such file or directory|terminating") as caught:
                ask()
            assert PASSWORD not in shown(caught.value)
            assert "postgres:***@" in str(caught.value)

        server.start()

        assert database.ledger.add([row("a"), row("b")]) == 1
        database.close()


def test_a_server_that_is_not_there() -> None:
    """A refused connection is said in one line, without the password."""
    database = open_database("postgresql://u:pw-9f31c7@127.0.0.1:1/db?connect_timeout=2")

    with pytest.raises(DatabaseUnavailable) as caught:
        database.register.revision()

    assert "pw-9f31c7" not in shown(caught.value)
    assert "\n" not in str(caught.value)
    assert "127.0.0.1" in str(caught.value)


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    """SQLite is not asked before `migrate`, which makes the directory."""
    database = open_database(f"sqlite:///{tmp_path}/a/b/accounts.db")

    with pytest.raises(DatabaseUnavailable, match="unable to open database file"):
        database.ledger.add([row("a")])
    database.migrate()

    assert database.ledger.add([row("a")]) == 1
    database.close()


def test_a_directory_that_cannot_be() -> None:
    """A place where nobody can make a directory is named."""
    database = open_database("sqlite:////proc/nothing/accounts.db")

    with pytest.raises(DatabaseUnavailable, match=r"/proc/nothing/accounts\.db: No such file or directory"):
        database.migrate()


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    """What is there can be read; a change says why it is not done."""
    file = tmp_path / "accounts.db"
    database = open_database(f"sqlite:///{file}")
    database.migrate()
    database.ledger.add([row("a")])
    database.close()
    database = open_database(f"sqlite:///file:{file}?mode=ro&uri=true")

    assert database.ledger.has(["a"]) == {"a"}
    with pytest.raises(DatabaseUnavailable, match="readonly"):
        database.ledger.add([row("b")])
    database.close()


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    """Somebody else's file is left as it is."""
    file = tmp_path / "accounts.db"
    file.write_text("a letter to my mother\n" * 100)
    database = open_database(f"sqlite:///{file}")

    with pytest.raises(DatabaseUnavailable, match="file is not a database"):
        database.migrate()

    assert file.read_text().startswith("a letter")
    database.close()


def test_without_tables(url: str) -> None:
    """A database that was never migrated says what is missing."""
    database = open_database(url)
    with pytest.raises(DatabaseUnavailable, match=r"no such table|does not exist"):
        database.register.revision()
    database.close()


def test_a_fault_of_ours_is_no_outage(database: Database) -> None:
    """What the database refuses to keep is raised as it is, so that nobody waits for it to become better."""
    connections = Connections(str(database.engine.url.render_as_string(hide_password=False)))

    with pytest.raises(Exception, match=r"(?i)not.null") as caught, connections.writing() as connection:
        connection.execute(text("INSERT INTO revision (n) VALUES (NULL)"))

    assert not isinstance(caught.value, DatabaseUnavailable)
    connections.close()


# --- transactions -----------------------------------------------------------------------------------------------


@pytest.fixture(name="connections")
def _connections(database: Database) -> Connections:
    return database._connections


def test_readers_do_not_wait_for_a_writer(database: Database, connections: Connections) -> None:
    """A read while a writer is busy is quick, and sees what was there before."""
    database.ledger.add([row("a")])
    with connections.writing() as busy:
        busy.execute(ledger.update().values(model="other"))
        begun = time.monotonic()
        seen = database.ledger.rows()[0].model

        assert time.monotonic() - begun < 1

    assert seen == "m"
    assert database.ledger.rows()[0].model == "other"


def test_a_reader_sees_one_moment(database: Database, connections: Connections) -> None:
    """What is committed between two reads of a transaction is in neither."""
    database.ledger.add([row("a")])
    with connections.reading() as connection:
        before = connection.execute(select(ledger.c.call_id)).scalars().all()
        database.ledger.add([row("b")])
        after = connection.execute(select(ledger.c.call_id)).scalars().all()

    assert before == after == ["a"]


def test_writers_wait_for_each_other(connections: Connections) -> None:
    """One that reads and then writes loses no change of another."""

    def raise_it() -> None:
        for _ in range(10):
            with connections.writing() as connection:
                now = connection.execute(select(revision.c.n).with_for_update()).scalar_one()
                time.sleep(0.002)
                connection.execute(revision.update().values(n=now + 1))

    threads = [threading.Thread(target=raise_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    with connections.reading() as connection:
        assert connection.execute(select(revision.c.n)).scalar_one() == 40


def test_what_fails_leaves_nothing(database: Database, connections: Connections) -> None:
    """A transaction that ends in an exception has changed nothing."""

    class StopError(Exception):
        pass

    def half() -> None:
        with connections.writing() as connection:
            connection.execute(revision.update().values(n=99))
            raise StopError

    with pytest.raises(StopError):
        half()

    assert database.register.revision() == 0


def test_settings_of_sqlite(tmp_path: Path) -> None:
    """Every connection waits for its turn, does not stop readers, and keeps what was committed."""
    connections = Connections(f"sqlite:///{tmp_path}/accounts.db")
    connections.migrate()
    with connections.reading() as connection:
        said = [
            connection.execute(text(f"PRAGMA {name}")).scalar_one()
            for name in ("journal_mode", "busy_timeout", "synchronous", "foreign_keys")
        ]
    connections.close()

    assert said == ["wal", 5000, 1, 1]
