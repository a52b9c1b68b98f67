"""Whether the numbers in use are those of the ledger."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from extproc.accounts.verify import differences
from extproc.stores.memory import MemoryState
from extproc.stores.ports import Amounts, Counter, Difference, Loaded, Row, Scope
from extproc.stores.sql import Database, open_database

NOW = 1_800_000_000.0


def quota(name: str) -> Counter:
    return Counter(f"{name}/tokens", "quota", "tokens", 1000, Scope(consumer=name))


def row(call_id: str, consumer: str, tokens: int) -> Row:
    return Row(call_id=call_id, started=round(NOW * 1000), ended=round(NOW * 1000), consumer=consumer, input=tokens)


@pytest.fixture(name="database")
def _database(tmp_path: Path) -> Iterator[Database]:
    database = open_database(f"sqlite:///{tmp_path}/l.db", currency="CNY")
    database.migrate()
    yield database
    database.close()


async def hot(**used: int) -> MemoryState:
    state = MemoryState("w", journal=None, wall=lambda: NOW)
    await state.load([Loaded(quota(name), number) for name, number in used.items()])
    return state


async def test_sound_books(database: Database) -> None:
    """Numbers that are the ledger's are no difference, nor are those that nobody has loaded."""
    database.ledger.add([row("c1", "acme", 30), row("c2", "idle", 5)])
    state = await hot(acme=30)

    counters = [quota("acme"), quota("idle"), quota("unknown")]
    assert await differences(state, database.ledger, counters, now=NOW, pause=0) == []


async def test_a_wrong_number(database: Database) -> None:
    """A number that stays wrong is named, with what it is and what it should be."""
    database.ledger.add([row("c1", "acme", 30), row("c2", "other", 7)])
    state = await hot(acme=31, other=7)

    found = await differences(state, database.ledger, [quota("acme"), quota("other")], now=NOW, pause=0)
    assert found == [Difference(where="acme/tokens", ledger=30, found=31)]


async def test_a_call_that_ends_meanwhile(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was counted and is not in the ledger yet is no difference, when it is there a moment later."""
    state = await hot(acme=0)
    await state.settle("c1", [quota("acme")], Amounts(30), b"{}")
    load, looks = database.ledger.load, []

    def late(*args: object, **more: object) -> object:
        looks.append(args)
        if len(looks) == 2:
            database.ledger.add([row("c1", "acme", 30)])
        return load(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(database.ledger, "load", late)
    assert await differences(state, database.ledger, [quota("acme")], now=NOW, pause=0) == []
    assert len(looks) == 2
