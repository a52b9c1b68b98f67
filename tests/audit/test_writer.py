"""Every record gets to the database once, whatever is away or dies on the way, and no call waits for it."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from audit.records import NOON, Watch, record
from stores.databases import Postgres, postgres

from extproc.audit.record import AuditStore, Record, Retention, Search
from extproc.audit.writer import AuditWriter
from extproc.stores.ports import DatabaseUnavailable
from extproc.stores.sql import Database, open_database


@pytest.fixture(name="server", scope="module")
def _server() -> Iterator[Postgres]:
    """A server that tests may stop."""
    with postgres() as server:
        yield server


@pytest.fixture(name="database", params=["sqlite", "postgresql"])
def _database(request: pytest.FixtureRequest, tmp_path: Path, server: Postgres) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path}/audit.db" if request.param == "sqlite" else server.new()
    with opened(url) as database:
        yield database


@contextmanager
def opened(url: str) -> Iterator[Database]:
    database = open_database(url)
    database.migrate()
    yield database
    database.close()


@asynccontextmanager
async def writing(store: AuditStore, spill: Path, watch: Watch, **more: Any) -> AsyncIterator[AuditWriter]:
    writer = AuditWriter(store, spill=spill, watch=watch, **more)
    await writer.start()
    try:
        yield writer
    finally:
        await writer.stop()


def kept(database: Database) -> list[str]:
    return sorted(each.call_id for each in database.audit.search(Search(), limit=100_000).records)


async def until(condition: Any) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.02)


class Away:
    """A store that is away, or does not take some records."""

    def __init__(self, store: AuditStore) -> None:
        self.store = store
        self.away = True
        self.bad: set[str] = set()

    def add(self, records: Sequence[Record]) -> int:
        if self.away:
            raise DatabaseUnavailable("away")
        if self.bad & {each.call_id for each in records}:
            raise ValueError("bad")
        return self.store.add(records)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


async def test_records_are_written(database: Database, tmp_path: Path) -> None:
    """Within a moment, and at the end whatever still waits."""
    watch = Watch()
    async with writing(database.audit, tmp_path / "spill", watch) as writer:
        writer.put(record("a", said="你好"))
        await until(lambda: watch.records == 1)
        assert kept(database) == ["a"]
        writer.put(record("b"))

    assert kept(database) == ["a", "b"]
    assert (watch.lost, watch.refusals, watch.troubles, watch.bytes) == ({}, [], [], 0)
    assert list((tmp_path / "spill").iterdir()) == []


async def test_the_database_is_away(tmp_path: Path, database: Database) -> None:
    """Records wait in the spill, in a process that ends as well, and are written when it is back."""
    watch, store = Watch(), Away(database.audit)
    async with writing(store, tmp_path / "spill", watch) as writer:
        for n in range(500):
            writer.put(record(f"{n:03}", said="x" * 1000))
        await until(lambda: watch.troubles and watch.bytes > 500_000)
    assert kept(database) == []

    store.away = False
    async with writing(store, tmp_path / "spill", watch):
        await until(lambda: watch.records == 500)

    assert kept(database) == [f"{n:03}" for n in range(500)]
    assert watch.lost == {}


async def test_a_server_that_is_stopped(tmp_path: Path) -> None:
    """PostgreSQL is stopped and started while calls end: every one has its record, once."""
    watch = Watch()
    with postgres() as server, opened(server.new()) as database:
        async with writing(database.audit, tmp_path / "spill", watch) as writer:
            for n in range(1500):
                writer.put(record(f"{n:04}", said="text"))
                await asyncio.sleep(0.001)
                if n == 500:
                    await asyncio.to_thread(server.stop)
                if n == 1000:
                    await asyncio.to_thread(server.start)
            await until(lambda: watch.bytes == 0 and len(kept(database)) == 1500)

        assert watch.troubles
        assert watch.lost == {}
        assert kept(database) == [f"{n:04}" for n in range(1500)]


async def test_kill_9(tmp_path: Path, database: Database) -> None:
    """A process that is killed in the middle loses no record that it was given; the next one writes them."""
    url = database.engine.url.render_as_string(hide_password=False)
    script = textwrap.dedent("""
        import asyncio, sys
        from pathlib import Path
        from audit.records import Watch, record
        from extproc.audit.writer import AuditWriter
        from extproc.stores.sql import open_database

        async def main():
            writer = AuditWriter(open_database(sys.argv[1]).audit, spill=Path(sys.argv[2]), watch=Watch())
            await writer.start()
            n = 0
            while True:
                writer.put(record(f"{n:06}", said="text " * 20))
                print(n, flush=True)
                n += 1
                if n % 20 == 0:
                    await asyncio.sleep(0.001)

        asyncio.run(main())
    """)
    spill = tmp_path / "spill"
    url = url.replace("postgresql+psycopg", "postgresql")
    told = tmp_path / "told"
    with told.open("wb") as out:
        process = subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-c", script, url, str(spill)],
            stdout=out,
            env={**os.environ, "PYTHONPATH": f"{Path(__file__).parents[1]}:{Path(__file__).parents[2]}"},
        )
        await until(lambda: told.stat().st_size > 30_000)
        process.send_signal(signal.SIGKILL)
        process.wait()
    last = int(told.read_text().splitlines()[-2])
    assert list(spill.iterdir())

    watch = Watch()
    async with writing(database.audit, spill, watch):
        await until(lambda: watch.records and not watch.bytes and len(list(spill.iterdir())) == 0)

    found = kept(database)
    assert found[: last + 1] == [f"{n:06}" for n in range(last + 1)]
    assert len(found) == len(set(found)) <= last + 3


async def test_a_record_that_is_not_taken(tmp_path: Path, database: Database) -> None:
    """It is told, and keeps no other from the database."""
    watch, store = Watch(), Away(database.audit)
    store.away, store.bad = False, {"007", "050"}
    async with writing(store, tmp_path / "spill", watch) as writer:
        for n in range(100):
            writer.put(record(f"{n:03}"))
        writer.put(record("bad", metadata={"a": object()}))

    assert len(kept(database)) == 98
    assert watch.refusals == ["bad", "007", "050"]


async def test_the_spill_is_full(tmp_path: Path, database: Database) -> None:
    """What does not fit is lost, and counted; what is there gets to the database."""
    watch, store = Watch(), Away(database.audit)
    async with writing(store, tmp_path / "spill", watch, limit=10_000) as writer:
        for n in range(30):
            writer.put(record(f"{n:03}", said="x" * 1000))
        store.away = False

    assert watch.lost == {"spill": 30 - len(kept(database))}
    assert 5 <= len(kept(database)) <= 9


async def test_the_spill_is_broken(tmp_path: Path, database: Database) -> None:
    """Records are held in memory, bounded, and written from there; what does not fit is counted."""
    (tmp_path / "spill").write_text("this is no directory")
    watch, store = Watch(), Away(database.audit)
    async with writing(store, tmp_path / "spill", watch) as writer:
        for n in range(20):
            writer.put(record(f"{n:03}", said="x" * (1 << 20)))
        store.away = False

    assert watch.troubles[0] == "spill: FileExistsError"
    assert watch.lost == {"memory": 20 - len(kept(database))}
    assert len(kept(database)) == 15


async def test_no_call_waits(tmp_path: Path, database: Database) -> None:
    """Putting a record of 4 KB takes a small part of a millisecond, also while the database is away."""
    watch, one = Watch(), record("a", said="x" * 4096)
    async with writing(Away(database.audit), tmp_path / "spill", watch) as writer:
        spent = []
        for _ in range(2000):
            began = time.perf_counter()
            writer.put(one)
            spent.append(time.perf_counter() - began)

    assert sorted(spent)[1000] < 0.0005


async def test_retention(tmp_path: Path, database: Database) -> None:
    """What is too old is deleted by itself, and that is noted with its number."""
    database.audit.add([record("old", NOON), record("new", NOON + 100)])
    retention = Retention(50.0)
    more = {"retention": lambda: retention, "wall": lambda: NOON + 101}
    async with writing(database.audit, tmp_path / "spill", Watch(), **more):
        await until(database.audit.readings)

    assert kept(database) == ["new"]
    (reading,) = database.audit.readings()
    assert (reading.who, reading.what, reading.found) == ("retention", "retention", 1)
