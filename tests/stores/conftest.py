"""Databases for tests: what is asked of one is asked of both kinds."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from stores.databases import Postgres, postgres

from extproc.stores.sql import Database, open_database


@pytest.fixture(name="postgres", scope="session")
def _postgres() -> Iterator[Postgres]:
    with postgres() as server:
        yield server


@pytest.fixture(name="url", params=["sqlite", "postgresql"])
def _url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/accounts.db"
    return str(request.getfixturevalue("postgres").new())


@pytest.fixture(name="database")
def _database(url: str) -> Iterator[Database]:
    """A database with its tables, and with the currency CNY."""
    database = open_database(url, currency="CNY")
    database.migrate()
    yield database
    database.close()
