"""Reserving and settling, and the way of every row into the ledger."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from extproc.accounts import books as module
from extproc.accounts.books import Books, Settlement
from extproc.stores.memory import MemoryState
from extproc.stores.ports import (
    Amounts,
    Counter,
    DatabaseUnavailable,
    Granted,
    Missing,
    Row,
    Scope,
    Short,
    StateUnavailable,
)
from extproc.stores.sql import Database, open_database

NOW = 1_800_000_000.0
QUOTA = Counter("acme/tokens/total", "quota", "tokens", 100, Scope(consumer="acme"))
MINUTE = Counter("acme/requests/minute", "window", "requests", 3, Scope(consumer="acme"), seconds=60)


def row(call_id: str, tokens: int = 0, **more: Any) -> Row:
    settings = {"started": round(NOW * 1000), "ended": round(NOW * 1000), "consumer": "acme", "input": tokens, **more}
    return Row(call_id=call_id, **settings)


class Watch:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.left = 0
        self.refusals: list[Row] = []
        self.troubles: list[tuple[str, BaseException]] = []

    def booked(self, rows: Sequence[Row]) -> None:
        self.rows += rows

    def waiting(self, rows: int) -> None:
        self.left = rows

    def refused(self, row: Row, error: BaseException) -> None:
        self.refusals.append(row)
        self.troubles.append(("row", error))

    def trouble(self, work: str, error: BaseException) -> None:
        self.troubles.append((work, error))


class Fragile(MemoryState):
    """A hot state that can be away."""

    away = False

    def __getattribute__(self, name: str) -> Any:
        if name in ("beat", "reserve", "settle", "load", "forget", "booked", "orphans", "alive") and self.away:
            return self._fail
        return super().__getattribute__(name)

    async def _fail(self, *_: Any, **__: Any) -> None:
        raise StateUnavailable("it is away")


class World:
    """Books over a hot state in memory and a ledger in SQLite."""

    def __init__(self, directory: Path, *, worker: str = "w1", database: Database | None = None) -> None:
        self.now = NOW
        self.directory = directory
        self.database = database or open_database(f"sqlite:///{directory}/ledger.db", currency="CNY")
        self.database.migrate()
        self.hot = Fragile(worker, journal=directory / "journal", wall=lambda: NOW)
        self.watch = Watch()
        self.books = Books(self.hot, self.database.ledger, self.watch, wall=lambda: self.now)

    async def call(self, call_id: str, hold: int = 40, *counters: Counter) -> Granted | Short:
        return await self.books.reserve(row(call_id, how="lost"), counters or (QUOTA,), Amounts(hold))

    async def end(self, call_id: str, tokens: int, *counters: Counter) -> None:
        await self.books.settle(Settlement(row(call_id, tokens), Amounts(tokens), counters or (QUOTA,)))

    async def taken(self, counter: Counter = QUOTA) -> tuple[int | None, int]:
        (reading,) = await self.hot.read([counter])
        return reading.used, reading.held

    def booked(self) -> dict[str, int]:
        return {found.call_id: found.tokens for found in self.database.ledger.rows(limit=10_000)}


@pytest.fixture(name="world")
async def _world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(module, "FLUSH", 0.01)
    monkeypatch.setattr(module, "BEAT", 0.01)
    world = World(tmp_path)
    await world.books.start()
    yield world
    await world.books.stop()
    world.database.close()


async def eventually(check: Any) -> None:
    async with asyncio.timeout(10):
        while not check():
            await asyncio.sleep(0.01)


async def test_a_call(world: World) -> None:
    """What a call may take is held until it ends; then what it took is counted, and its row is in the ledger."""
    assert isinstance(await world.call("c1", 40), Granted)
    assert await world.taken() == (0, 40)
    await world.end("c1", 25)
    assert await world.taken() == (25, 0)
    await eventually(lambda: world.booked() == {"c1": 25})
    assert await world.hot.orphans() == []


async def test_no_room(world: World) -> None:
    """A call for which there is no room holds nothing, and leaves a row that counts on nothing."""
    await world.call("c1", 80)
    short = await world.call("c2", 21)

    assert isinstance(short, Short)
    assert short.counters == [0]
    world.books.book(row("c2", how="refused", code="insufficient_quota"))
    assert await world.taken() == (0, 80)
    await eventually(lambda: world.booked() == {"c2": 0})


async def test_numbers_are_loaded_from_the_ledger(world: World) -> None:
    """What was used before this life of the hot state counts from the first call on."""
    world.database.ledger.add([row("old", 70)])

    assert isinstance(await world.call("c1", 31), Short)
    assert isinstance(await world.call("c2", 30), Granted)
    assert await world.taken() == (70, 30)


async def test_a_crowd_asks_the_ledger_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred first calls at once load the number once, and do not overspend it."""
    asked: list[Any] = []
    load = world.database.ledger.load

    def watched(counters: Sequence[Counter], *, now: float) -> Any:
        asked.append(counters)
        return load(counters, now=now)

    monkeypatch.setattr(world.database.ledger, "load", watched)
    held = await asyncio.gather(*(world.call(f"c{n}", 10) for n in range(100)))

    assert sum(isinstance(one, Granted) for one in held) == 10
    assert asked == [[QUOTA]]


async def test_what_waits_is_in_the_ledger_before_it_is_asked(world: World) -> None:
    """A number that has to be loaded has every row that was settled, also one that was not written yet."""
    await world.call("c1", 40)
    async with world.books._writing:  # nothing is written meanwhile
        await world.end("c1", 40)
        await world.hot.forget([QUOTA])
        waiting = world.books.reserve(row("c2", how="lost"), (QUOTA,), Amounts(61))
        await asyncio.sleep(0.05)
        assert world.booked() == {}
    assert isinstance(await waiting, Short)
    assert await world.taken() == (40, 0)


async def test_settling_twice_counts_once(world: World) -> None:
    """One call has one row and is counted once, whoever says so again."""
    await world.call("c1", 40)
    await asyncio.gather(*(world.end("c1", 25) for _ in range(5)))
    await eventually(lambda: world.watch.left == 0)

    assert await world.taken() == (25, 0)
    assert world.booked() == {"c1": 25}


async def test_a_state_that_is_away_when_a_call_ends(world: World) -> None:
    """The row goes into the ledger at once; when the state is back, the call is counted once and nothing is held."""
    await world.call("c1", 40)
    await world.call("c2", 30)
    world.hot.away = True
    await world.end("c1", 25)
    await eventually(lambda: world.booked() == {"c1": 25})
    world.hot.away = False
    await eventually(lambda: not world.books._stranded)

    await world.end("c2", 5)
    assert isinstance(await world.call("c3", 70), Granted)
    assert await world.taken() == (30, 70)
    assert world.watch.troubles[0][0] == "settle"


async def test_a_state_that_lost_everything(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers come back from the ledger; a call that was open meanwhile is counted whole when it ends."""
    await world.call("c1", 40)
    await world.end("c1", 40)
    await world.call("c2", 30)
    await eventually(lambda: world.booked() == {"c1": 40})
    monkeypatch.setattr(world.books, "_hot", empty := MemoryState("w1", journal=None, wall=lambda: NOW))
    await world.end("c2", 20)

    assert isinstance(await world.call("c3", 41), Short)
    assert isinstance(await world.call("c4", 40), Granted)
    (reading,) = await empty.read([QUOTA])
    assert (reading.used, reading.held) == (60, 40)


async def test_a_database_that_is_away(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows wait for it and nothing is lost; numbers that have to be loaded refuse calls meanwhile."""
    await world.call("c1", 40)
    add = world.database.ledger.add

    def away(*_: Any, **__: Any) -> Any:
        raise DatabaseUnavailable("the database is away")

    monkeypatch.setattr(world.database.ledger, "add", away)
    await world.end("c1", 25)
    await eventually(lambda: world.watch.troubles)
    assert isinstance(await world.call("c2", 40), Granted)
    with pytest.raises(StateUnavailable, match="the database is away"):
        await world.call("c3", 1, MINUTE)
    monkeypatch.setattr(world.database.ledger, "add", add)

    await eventually(lambda: world.booked() == {"c1": 25})
    assert await world.taken() == (25, 40)


async def test_too_many_rows_wait(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """When more rows wait than fit, calls are refused instead of forgotten."""
    monkeypatch.setattr(module, "MAX_WAITING", 2)
    async with world.books._writing:
        for n in range(3):
            world.books.book(row(f"r{n}"))
        with pytest.raises(StateUnavailable, match="too many calls wait"):
            await world.call("c1")
    await eventually(lambda: world.watch.left == 0)
    assert isinstance(await world.call("c1"), Granted)


async def test_a_row_that_the_database_does_not_take(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told with all that it holds, and the others are written."""
    add = world.database.ledger.add

    def picky(rows: Sequence[Row]) -> int:
        if any(one.call_id == "bad" for one in rows):
            raise ValueError("no")
        return add(rows)

    monkeypatch.setattr(world.database.ledger, "add", picky)
    for name in ("a", "b", "bad", "c", "d"):
        world.books.book(row(name, 1))

    await eventually(lambda: set(world.booked()) == {"a", "b", "c", "d"})
    assert [one.call_id for one in world.watch.refusals] == ["bad"]


async def test_a_reservation_is_never_cut_in_two(world: World) -> None:
    """Whoever waits for it may leave at any time: it is made whole, and can be settled."""
    hold = world.books.reserve(row("c1", how="lost"), (QUOTA,), Amounts(40))
    waiting = asyncio.ensure_future(asyncio.shield(hold))
    await asyncio.sleep(0)
    waiting.cancel()

    assert isinstance(await hold, Granted)
    await world.end("c1", 0)
    assert await world.taken() == (0, 0)


async def test_the_windows_of_a_stranded_call(world: World) -> None:
    """A window gets back what the call did not take, also when it is settled late."""
    window = Counter("acme/tokens/minute", "window", "tokens", 100, Scope(consumer="acme"), seconds=60)
    await world.call("c1", 90, window)
    world.hot.away = True
    await world.end("c1", 10, window)
    await eventually(lambda: world.booked() == {"c1": 10})
    world.hot.away = False
    await eventually(lambda: not world.books._stranded)

    assert await world.taken(window) == (10, 0)


# --- workers that die -----------------------------------------------------------------------------------------


@pytest.fixture(name="second")
async def _second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """The next life after one that was killed with c1 settled, c2 open, and nothing written to the ledger."""
    monkeypatch.setattr(module, "BEAT", 0.01)
    first = World(tmp_path)
    await first.hot.start()
    await first.call("c1", 40)
    first.books._hot = first.hot
    await first.end("c1", 25)
    await first.books.reserve(row("c2", 7, how="lost"), (QUOTA,), Amounts(60))
    first.hot._journal.close(remove=False)  # type: ignore[union-attr]
    first.database.close()
    second = World(tmp_path, worker="w2")
    await second.books.start()
    yield second
    await second.books.stop()
    second.database.close()


async def test_what_a_killed_worker_had_settled_is_booked(second: World) -> None:
    """Its rows are written by the next one; what it had open is held until more is known."""
    await eventually(lambda: second.booked() == {"c1": 25})

    assert isinstance(await second.call("c3", 16), Short)
    assert isinstance(await second.call("c4", 15), Granted)


async def test_what_a_killed_worker_had_open_is_lost(second: World) -> None:
    """Where nobody saw its end, a call is booked with its prompt, and the rest of what it held comes back."""
    await eventually(lambda: "c1" in second.booked())
    second.now += module.GRACE
    await eventually(lambda: second.booked() == {"c1": 25, "c2": 7})

    assert isinstance(await second.call("c3", 1), Granted)
    assert await second.taken() == (32, 1)
    lost = next(one for one in second.database.ledger.rows() if one.call_id == "c2")
    assert (lost.how, lost.ended) == ("lost", round(second.now * 1000))
    assert await second.hot.orphans() == []


async def test_what_envoy_saw_of_a_killed_workers_call(second: World) -> None:
    """The end that Envoy saw counts, and not the guess; the call is counted once."""
    end = Settlement(row("c2", 33, how="aborted"), Amounts(33), (QUOTA,), worker="w1")
    second.books.adopt(end)
    await eventually(lambda: second.booked() == {"c1": 25, "c2": 33})
    second.now += module.GRACE * 3
    await asyncio.sleep(0.1)

    assert second.booked() == {"c1": 25, "c2": 33}
    assert isinstance(await second.call("c3", 1), Granted)
    assert await second.taken() == (58, 1)


async def test_what_envoy_saw_of_a_call_whose_worker_lives(world: World) -> None:
    """It is that worker's own business, and forgotten after a while."""
    await world.call("c1", 40)
    world.books.adopt(Settlement(row("c1", 99), Amounts(99), (QUOTA,), worker="w1"))
    await asyncio.sleep(0.05)
    world.now += 60
    await eventually(lambda: not world.books._ended)

    assert await world.taken() == (0, 40)
    assert world.booked() == {}


async def test_numbers_that_stay_missing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state that forgets at once what it is told refuses calls instead of turning for ever."""

    async def missing(*_: Any) -> Missing:
        return Missing([0])

    monkeypatch.setattr(world.hot, "reserve", missing, raising=False)
    with pytest.raises(StateUnavailable, match="missing"):
        await world.call("c1")
