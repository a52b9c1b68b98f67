"""The numbers in use, for a command: asked of Redis, or of the server that has them in its memory."""

import asyncio
import secrets
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Final

import msgspec
import typer

from extproc import accounting
from extproc.accounts.verify import differences
from extproc.commands.common import fail
from extproc.config.load import resolved
from extproc.config.schema import Config
from extproc.stores.ports import Difference, StateUnavailable
from extproc.stores.sql import Database

_PATIENCE: Final = 90.0  # seconds


def wrong_numbers(config: Config, file: Path, database: Database) -> list[Difference]:
    """Numbers in use that are not the ledger's. Ends the command where somebody has them and does not say."""
    if config.state.url != "memory://":
        try:
            return asyncio.run(_of_redis(config, database))
        except StateUnavailable as error:
            fail(f"the numbers in use cannot be asked: {error}")
    if not config.admin.tokens or config.admin.tls is not None:
        typer.echo(
            "not compared: the numbers in use, which the server has in its memory;"
            " with admin.tokens set, GET /api/ledger/verify does it",
            err=True,
        )
        return []
    return _of_the_server(config, resolved(config.admin.tokens[0], file.parent))


async def _of_redis(config: Config, database: Database) -> list[Difference]:
    from extproc.stores.redis import RedisState

    state = RedisState(config.state.url, f"verify/{secrets.token_hex(4)}", timeout=config.state.timeout)
    try:
        everybody = accounting.consumers(config)
        everybody.apply(database.register.changes(0))
        now = time.time()
        return await differences(state, database.ledger, everybody.quotas(list(config.models), now), now=now)
    finally:
        await state.stop()


def _of_the_server(config: Config, token: str) -> list[Difference]:
    url = f"http://{config.server.http}/api/ledger/verify"
    request = urllib.request.Request(url, headers={"authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE) as answer:  # noqa: S310
            return msgspec.json.decode(answer.read(), type=list[Difference])
    except urllib.error.HTTPError as error:
        fail(f"the server at {config.server.http} does not say: status {error.code}")
    except OSError:
        typer.echo(f"no numbers are in use: nobody is at {config.server.http}", err=True)
        return []
