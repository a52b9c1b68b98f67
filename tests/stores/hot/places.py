"""Places where hot state lives in tests, and the counters of these tests."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Protocol

from redis_server import RedisServer

from extproc.stores.memory import MemoryState
from extproc.stores.ports import Amounts, Counter, HotState, Loaded, Reading
from extproc.stores.redis import PREFIX, RedisState

DAY = 86_400
TOKENS = Counter("all/tokens", "quota", "tokens", 1000)
MONEY = Counter("all/money", "quota", "money", 10**12)
REQUESTS = Counter("all/requests", "window", "requests", 3, seconds=DAY)
PER_DAY = Counter("all/tokens/day", "window", "tokens", 100, seconds=DAY)
PER_SECOND = Counter("all/tokens/second", "window", "tokens", 100, seconds=1)
OPEN = Counter("all/concurrent", "concurrent", "concurrent", 2)
NOTHING = Amounts(requests=0)


def numbers(readings: Sequence[Reading]) -> list[tuple[int | None, int]]:
    """What is used, and what is held."""
    return [(reading.used, reading.held) for reading in readings]


class Place(Protocol):
    """One hot state, empty at first. ``state`` gives a worker access to it until the place is closed."""

    async def state(self, worker: str = "w1") -> HotState: ...
    def now(self) -> float:
        """Its clock: seconds since the epoch."""
        ...

    async def elapse(self, seconds: float) -> None: ...
    async def age(self) -> None:
        """From now on the state is older than every window."""

    async def close(self) -> None: ...


class MemoryPlace:
    """Its time stands still until it is told to elapse."""

    def __init__(self, journal: Path | None) -> None:
        self.journal = journal
        self._now = 1_750_000_000.0
        self._opened = AsyncExitStack()

    async def state(self, worker: str = "w1") -> HotState:
        state = MemoryState(worker, journal=self.journal, clock=self.now, wall=self.now)
        await state.start()
        self._opened.push_async_callback(state.stop)
        return state

    def now(self) -> float:
        return self._now

    async def elapse(self, seconds: float) -> None:
        self._now += seconds

    async def age(self) -> None:
        self._now += 400 * DAY

    async def close(self) -> None:
        await self._opened.aclose()
        if self.journal is not None:
            self.journal.unlink(missing_ok=True)


class RedisPlace:
    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self._opened = AsyncExitStack()
        self.clear()

    async def state(self, worker: str = "w1") -> RedisState:
        state = RedisState(self.server.url, worker, timeout=5)
        await state.start()
        self._opened.push_async_callback(state.stop)
        return state

    def clear(self) -> None:
        with self.server.client() as client:
            client.flushall()

    def now(self) -> float:
        return time.time()

    async def elapse(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def age(self) -> None:
        with self.server.client() as client:
            client.set(f"{PREFIX}epoch", "0")

    async def close(self) -> None:
        await self._opened.aclose()


async def loaded(place: Place, *counters: Counter, worker: str = "w1") -> HotState:
    """A state in which nothing is missing, and nothing used."""
    state = await place.state(worker)
    await state.load([Loaded(counter) for counter in counters])
    return state
