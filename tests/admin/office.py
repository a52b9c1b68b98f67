"""An admin API over a real database, and clients of it."""

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml
from starlette.applications import Starlette

from extproc.admin.api import Backend
from extproc.admin.http import application
from extproc.admin.routes import Quota
from extproc.config.load import parse
from extproc.stores.ports import Difference, Row
from extproc.stores.sql import open_database

TOKEN = "t0k-9f2c51e7a80b4d6398be11fa6c0d27e4"
FILE_KEY = "sk-of-the-file-0123456789"
DOCUMENT: dict[str, Any] = {
    "accounts": {"currency": "CNY", "timezone": "Asia/Shanghai"},
    "consumers": {
        "filed": {"keys": [{"value": FILE_KEY}], "team": "listed", "quota": [{"tokens": "10M", "per": "month"}]},
        "org/filed": {},
    },
    "teams": {"listed": {"limits": [{"concurrent": 8}]}},
    "policies": {"strict": {}},
}


class Subject:
    """Something to report on."""

    ready = True

    def report(self) -> dict[str, Any]:
        return {"status": "ok"}


async def numbers(name: str) -> list[dict[str, Any]]:
    return [{"counter": f"consumer:{name}/tokens/month", "used": 3}]


class Office:
    """The API on a database of its own. What it is asked for goes through ``client``."""

    def __init__(self, directory: Path, *, quota: Quota | None = numbers, **changes: Any) -> None:
        self.database = open_database(f"sqlite:///{directory}/accounts.db", currency="CNY")
        self.database.migrate()
        self.tokens = [TOKEN]
        self.differences: list[Difference] = []
        self.quota = quota
        self.document = {**DOCUMENT, **changes}
        self.app: Starlette = application(Subject(), lambda: b"calls_total 1.0\n", self.backend())

    def backend(self) -> Backend:
        loaded = parse(yaml.safe_dump(self.document).encode(), Path("extproc.yaml"))

        async def verify() -> list[Difference]:
            return self.differences

        return Backend(
            register=self.database.register,
            ledger=self.database.ledger,
            audit=self.database.audit,
            config=lambda: loaded.config,
            tokens=lambda: [hashlib.sha256(token.encode()).digest() for token in self.tokens],
            pools=lambda: [{"provider": "p", "label": "main", "state": "used"}],
            verify=verify,
            quota=self.quota,
        )

    @asynccontextmanager
    async def client(self, token: str | None = TOKEN) -> AsyncIterator[httpx.AsyncClient]:
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://admin", headers=headers) as client:
            yield client


def row(number: int, **more: Any) -> Row:
    """A call of 2026-01-01 00:00 UTC and so many seconds."""
    started = 1_767_225_600_000 + 1000 * number
    usual: dict[str, Any] = {
        "call_id": f"call-{number:04}",
        "started": started,
        "ended": started + 500,
        "consumer": "acme",
        "model": "m",
        "provider": "p",
        "target": "m-1",
        "attempts": 1,
        "status": 200,
        "input": 100,
        "output": 20,
        "cost": 1_500_000,
        "currency": "CNY",
    }
    return Row(**{**usual, **more})
