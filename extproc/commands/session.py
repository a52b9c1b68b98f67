"""The database that a configuration file names, for one command."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import typer
from pydantic import ValidationError

from extproc.admin.errors import Invalid
from extproc.admin.operations import Operations
from extproc.commands.common import fail, refused
from extproc.config.load import ConfigError, Problem, described, document
from extproc.config.schema import Config
from extproc.stores.ports import Conflict, DatabaseUnavailable, Ledger, NotFound
from extproc.stores.sql import Database, open_database


@dataclass(frozen=True, slots=True)
class Session:
    """What a command works with."""

    config: Config
    operations: Operations
    ledger: Ledger
    database: Database


@contextmanager
def session(file: Path) -> Iterator[Session]:
    """The database is made, or brought up to date. What goes wrong ends the command with one line for each reason."""
    try:
        config = document(file)
    except ConfigError as error:
        refused(error.file, error.problems)
    try:
        database = _opened(config, file)
        try:
            database.migrate()
            yield Session(config, Operations(database.register, lambda: config, _say), database.ledger, database)
        finally:
            database.close()
    except (Conflict, NotFound, DatabaseUnavailable) as error:
        fail(str(error))
    except Invalid as error:
        fail(str(error), 2)
    except ValidationError as error:
        fail("\n".join(str(problem) for problem in described(error.errors())), 2)


def _opened(config: Config, file: Path) -> Database:
    try:
        return open_database(config.database.url, currency=config.accounts.currency)
    except ValueError as error:
        refused(file, [Problem("database.url", str(error))])


def _say(action: str, name: str, **more: str) -> None:
    details = "".join(f", {key} {value}" for key, value in more.items())
    typer.echo(f"{action}: {name}{details}", err=True)
