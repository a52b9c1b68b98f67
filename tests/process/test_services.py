"""What a worker has for as long as it lives."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from extproc.accounts.keys import digest
from extproc.app import Build
from extproc.config.load import parse
from extproc.core.evidence import Ended
from extproc.process import services as module
from extproc.process.services import WorkerServices, hot_state
from extproc.stores.memory import MemoryState
from extproc.stores.ports import ConsumerRecord, KeyRecord, Loaded, Row
from extproc.stores.sql import Database, open_database


def content(directory: Path, **parts: Any) -> bytes:
    document = {
        "state": {"journal": str(directory / "journal")},
        "database": {"url": f"sqlite:///{directory}/accounts.db"},
        "audit": {"spill": str(directory / "audit")},
        "providers": {"home": {"base_url": "http://127.0.0.1:9/v1"}},
        "models": {"m": {"route": {"provider": "home"}, "price": {"input": 2, "output": 8}}},
        "consumers": {"acme": {"keys": [{"value": "sk-acme-example"}], "quota": [{"tokens": 1000, "per": "day"}]}},
        **parts,
    }
    return yaml.safe_dump(document).encode()


class Worker:
    """Services and the configuration in force."""

    def __init__(self, services: WorkerServices, built: Build, database: Database) -> None:
        self.services = services
        self.built = built
        self.database = database

    async def eventually(self, check: Any) -> None:
        async with asyncio.timeout(15):
            while not check():
                await asyncio.sleep(0.02)


@pytest.fixture(name="worker")
async def _worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Worker]:
    monkeypatch.setattr(module, "_WATCH", 0.02)
    monkeypatch.setattr(module, "_TOUCH", 0.02)
    loaded = parse(content(tmp_path), tmp_path / "extproc.yaml")
    database = open_database(loaded.config.database.url, currency="CNY")
    database.migrate()
    database.register.create_consumer(ConsumerRecord(name="early"))
    services = await WorkerServices.open(loaded, 0)
    worker = Worker(services, await services.build(loaded), database)
    services.start(lambda: worker.built)
    yield worker
    await services.close()
    database.close()


async def test_changes_of_the_database(worker: Worker) -> None:
    """What was there at the start is known, and what changes is known soon, in the configuration in force."""
    register = worker.database.register
    assert worker.built.consumers.get("early") is not None
    register.create_consumer(ConsumerRecord(name="late"))
    register.create_key(KeyRecord(id="k1", consumer="late", digest=digest("sk-late-0001")))
    await worker.eventually(lambda: worker.built.consumers.find("sk-late-0001", time.time()))
    register.revoke_key("k1", time.time())
    await worker.eventually(lambda: worker.built.consumers.find("sk-late-0001", time.time()) is None)


async def test_a_new_configuration_knows_the_database_too(worker: Worker, tmp_path: Path) -> None:
    """What is built later starts with what was read so far."""
    worker.database.register.create_consumer(ConsumerRecord(name="late"))
    await worker.eventually(lambda: worker.services.snapshot.consumers.get("late"))
    new = await worker.services.build(parse(content(tmp_path), tmp_path / "extproc.yaml"))

    assert new.consumers.get("late") is not None
    assert new.consumers.revision == worker.services.snapshot.revision


async def test_last_use_of_keys(worker: Worker) -> None:
    """It is noted, now and then."""
    register = worker.database.register
    register.create_key(KeyRecord(id="k1", consumer="early", digest=digest("sk-early-001")))
    worker.services.services().on_use("k1", 1_800_000_000.0)

    await worker.eventually(lambda: register.key("k1").last_used == 1_800_000_000.0)


CALL = {"call_id": "c1", "worker": "gone", "consumer": "acme", "model": "m", "endpoint": "chat", "stream": "yes"}


async def ended(worker: Worker, monkeypatch: pytest.MonkeyPatch, **more: Any) -> Row:
    """The row of a call whose end Envoy saw, with these facts about it."""
    call = CALL | more.pop("call", {})
    settled: list[Any] = []
    monkeypatch.setattr(worker.services.books, "adopt", settled.append)
    facts = {"provider": "home", "target": "m", "attempts": 1, "status": 200, "started": 1_800_000_000.0, **more}
    worker.services.on_ended(Ended(call=call, seconds=2.5, **facts), worker.built)
    (settlement,) = settled
    assert settlement.worker == call["worker"]
    assert [c.unit for c in settlement.counters] == ["tokens"]
    assert settlement.amounts.tokens == settlement.row.tokens
    row: Row = settlement.row
    return row


async def test_a_call_of_a_worker_that_died(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was reported before counts; else the prompt's estimate, and the bytes that passed."""
    row = await ended(worker, monkeypatch, upstream=True, sent=20_000, call={"prompt_tokens": 30.0})
    assert (row.input, row.output, row.usage, row.how, row.code) == (30, 100, "estimated", "aborted", "worker_died")
    assert (row.started, row.ended) == (1_800_000_000_000, 1_800_000_002_500)
    assert row.cost == 30 * 2000 + 100 * 8000

    row = await ended(worker, monkeypatch, upstream=True, sent=20_000, call={"input_tokens": 9.0, "output_tokens": 7.0})
    assert (row.input, row.output) == (9, 7)

    row = await ended(worker, monkeypatch, upstream=True, sent=400, received=100, call={"stream": "no"})
    assert (row.input, row.output) == (25, 100)


async def test_a_call_that_no_provider_saw(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs nothing."""
    row = await ended(worker, monkeypatch, upstream=False, received=100, call={"prompt_tokens": 30.0})

    assert (row.tokens, row.cost, row.provider) == (0, 0, "")


async def test_calls_that_are_nobodys_to_account_for(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own calls we settle ourselves; calls that say too little of themselves are none of ours."""
    settled: list[Any] = []
    monkeypatch.setattr(worker.services.books, "adopt", settled.append)
    own = worker.services.services().worker
    for call in ({**CALL, "worker": own}, {**CALL, "consumer": ""}, {"call_id": "c1"}, {}):
        worker.services.on_ended(Ended(call=call), worker.built)

    assert settled == []


async def test_numbers(worker: Worker) -> None:
    """A consumer's numbers are told as they are; those that are not the ledger's are told to whoever asks for none."""
    acme = worker.built.consumers.get("acme")
    assert acme is not None
    (counter,) = worker.built.consumers.counters.of(acme, "m", time.time())
    (shown,) = await worker.services.numbers("acme", worker.built)
    assert (shown["number"], shown["unit"], shown["limit"], shown["used"]) == (counter.key, "tokens", 1000, None)
    assert await worker.services.numbers("", worker.built) == []

    await worker.services._hot.load([Loaded(counter, 5)])
    (wrong,) = await worker.services.numbers("", worker.built)
    assert (wrong["where"], wrong["ledger"], wrong["found"]) == (counter.key, 0, 5)
    assert await worker.services.numbers("nobody", worker.built) == []


def test_hot_state(tmp_path: Path) -> None:
    """Memory for one worker, Redis for more."""
    memory = parse(content(tmp_path), tmp_path / "extproc.yaml").config
    redis = parse(content(tmp_path, state={"url": "redis://127.0.0.1:1"}), tmp_path / "extproc.yaml").config

    assert isinstance(hot_state(memory, "w"), MemoryState)
    assert type(hot_state(redis, "w")).__name__ == "RedisState"
