"""Migrations: they end at the tables of the code, whoever else migrates at the same time."""

import fcntl
import importlib.resources
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text
from stores.sql.rows import row

from extproc.stores.ports import DatabaseUnavailable
from extproc.stores.sql import Database, open_database
from extproc.stores.sql.schema import metadata


def include_name(name: str | None, kind: str, _: Any) -> bool:
    """The index of words is of each database's own kind, and known to its migration alone."""
    return not (kind == "table" and name is not None and name.startswith("audit_words"))


def test_they_make_the_tables_of_the_code(database: Database) -> None:
    """Whoever changes a table writes the step to it."""
    with database.engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"version_table": "extproc_version", "compare_type": True, "include_name": include_name}
        )

        assert compare_metadata(context, metadata) == []


def test_again(database: Database) -> None:
    """A database that is up to date stays as it is."""
    database.ledger.add([row("a")])

    database.migrate()

    assert database.ledger.has(["a"]) == {"a"}


def test_processes_at_once(url: str) -> None:
    """Several processes that start together make the tables once, and all can use them."""
    script = (
        "import sys, alembic.command; from extproc.stores.sql import open_database;"
        "database = open_database(sys.argv[1]); print('ready', flush=True); sys.stdin.read();"
        "database.migrate(); print(database.register.revision()); database.close()"
    )
    command = [sys.executable, "-W", "error", "-c", script, url]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.close()
        process.stdin = None

    assert [process.communicate(timeout=60) for process in processes] == [("0\n", "")] * 4


def test_threads_at_once(url: str) -> None:
    """Nor do threads get into each other's way."""
    database = open_database(url)
    failures: list[BaseException] = []

    def migrate() -> None:
        try:
            database.migrate()
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=migrate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert database.register.revision() == 0
    database.close()


def test_one_at_a_time(tmp_path: Path) -> None:
    """SQLite is not even opened while another process migrates: it would be told that the file is locked."""
    database = open_database(f"sqlite:///{tmp_path}/accounts.db")
    with (tmp_path / "accounts.db.lock").open("w") as lock, ThreadPoolExecutor(1) as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)
        migration = pool.submit(database.migrate)
        with pytest.raises(TimeoutError):
            migration.result(timeout=0.5)
        assert not (tmp_path / "accounts.db").exists()

        fcntl.flock(lock, fcntl.LOCK_UN)

        migration.result(timeout=30)
    database.close()


def test_a_newer_database(database: Database) -> None:
    """A version that does not know what it finds leaves it alone."""
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE extproc_version SET version_num = '9999'"))

    with pytest.raises(DatabaseUnavailable, match="another version of extproc"):
        database.migrate()


def test_beside_others(url: str) -> None:
    """Another application of the same database may use Alembic too."""
    database = open_database(url)
    with database.engine.begin() as connection:
        connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('theirs')"))

    database.migrate()

    with database.engine.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all() == ["theirs"]
        assert "ledger" in inspect(connection).get_table_names()
    database.close()


def test_they_are_in_the_package() -> None:
    """Whoever installs extproc has them: they lie within it, and end in .py as all that is packed."""
    steps = importlib.resources.files("extproc.stores.sql") / "migrations" / "versions"

    assert sorted(step.name for step in steps.iterdir() if step.name[0].isdigit()) == [
        "0001_accounts.py",
        "0002_audit.py",
    ]
