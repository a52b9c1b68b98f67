"""Accounts and the audit in a database: SQLite by default, PostgreSQL by URL."""

from sqlalchemy import Engine

from extproc.stores.sql.audit import SqlAudit
from extproc.stores.sql.engine import Connections
from extproc.stores.sql.ledger import SqlLedger
from extproc.stores.sql.register import SqlRegister

__all__ = ["Database", "SqlAudit", "SqlLedger", "SqlRegister", "open_database"]


class Database:
    """Register, ledger and audit of one database, for any thread. ``name`` is its URL as it may be shown."""

    def __init__(self, connections: Connections, currency: str) -> None:
        self._connections = connections
        self.name = connections.name
        self.register = SqlRegister(connections)
        self.ledger = SqlLedger(connections, currency)
        self.audit = SqlAudit(connections)

    @property
    def engine(self) -> Engine:
        return self._connections.engine

    def migrate(self) -> None:
        """Make the tables, or bring them up to date. Several processes may at once. Raises DatabaseUnavailable."""
        self._connections.migrate()

    def close(self) -> None:
        self._connections.close()


def open_database(url: str, *, currency: str = "") -> Database:
    """Connects when it is used first. ``currency``: that of the accounts, in which quotas of money count.

    Raises ValueError for a URL that is none, DatabaseUnavailable where the driver is not installed.
    """
    return Database(Connections(url), currency)
