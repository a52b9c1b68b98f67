"""Any steps in any order: hot state says what a simple account of them says."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from dataclasses import replace as changed
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stores.hot.places import DAY, MemoryPlace, Place, RedisPlace, numbers

from extproc.stores.ports import Amounts, Counter, Granted, HotState, Loaded, Missing, Short

COUNTERS = (
    Counter("tokens", "quota", "tokens", 60),
    Counter("money", "quota", "money", 40, start=0, end=2**31),
    Counter("requests", "quota", "requests", 5),
    Counter("requests/day", "window", "requests", 4, seconds=DAY),
    Counter("tokens/day", "window", "tokens", 70, seconds=DAY),
    Counter("concurrent", "concurrent", "concurrent", 3),
)
QUOTAS = COUNTERS[:3]
CALLS = ("a", "b", "c", "d", "e")

Answer = Granted | Short | Missing | None


@dataclass
class Account:
    """What hot state is, told as plainly as can be. Windows are so long that nothing leaves them."""

    used: dict[str, int | None] = field(default_factory=lambda: {c.key: None if c in QUOTAS else 0 for c in COUNTERS})
    open: dict[str, dict[Counter, int]] = field(default_factory=dict)
    rows: set[str] = field(default_factory=set)

    def held(self, counter: Counter) -> int:
        return sum(holds.get(counter, 0) for holds in self.open.values())

    def readings(self) -> list[tuple[int | None, int]]:
        return [self._reading(counter) for counter in COUNTERS]

    def missing(self, counters: Sequence[Counter]) -> list[int]:
        return [place for place, counter in enumerate(counters) if self.used[counter.key] is None]

    def reserve(self, call: str, counters: Sequence[Counter], amounts: Amounts) -> Answer:
        if missing := self.missing(counters):
            return Missing(missing)
        if call not in self.open and call not in self.rows:
            holds = {counter: amounts.of(counter.unit) for counter in counters}
            taken = [sum(part or 0 for part in self._reading(counter)) for counter in counters]
            if short := [i for i, c in enumerate(counters) if taken[i] + holds[c] > c.limit]:
                return Short(short, [])
            self.open[call] = holds
        return Granted([])

    def settle(self, call: str, counters: Sequence[Counter], amounts: Amounts) -> Answer:
        if call in self.rows:
            return None
        if missing := self.missing(counters):
            return Missing(missing)
        for counter in {*counters, *self.open.pop(call, {})}:
            used = self.used[counter.key]
            if used is not None and counter.kind != "concurrent":
                self.used[counter.key] = used + amounts.of(counter.unit)
        self.rows.add(call)
        return None

    def _reading(self, counter: Counter) -> tuple[int | None, int]:
        used, held = self.used[counter.key], self.held(counter)
        return ((used or 0) + held, 0) if counter.kind == "window" else (used, held)


@dataclass(frozen=True)
class Reserve:
    call: str
    counters: Sequence[Counter]
    amounts: Amounts

    async def take(self, state: HotState, account: Account) -> None:
        expected = account.reserve(self.call, self.counters, self.amounts)
        answer = await state.reserve(self.call, self.counters, self.amounts, self.call.encode())

        match answer:
            case Missing():
                assert answer == expected
            case Granted() | Short():
                readings = dict(zip(COUNTERS, account.readings(), strict=True))
                assert numbers(answer.readings) == [readings[counter] for counter in self.counters]
                assert changed(answer, readings=[]) == expected


@dataclass(frozen=True)
class Settle:
    call: str
    counters: Sequence[Counter]
    amounts: Amounts

    async def take(self, state: HotState, account: Account) -> None:
        expected = account.settle(self.call, self.counters, self.amounts)

        assert await state.settle(self.call, self.counters, self.amounts, b"row") == expected


@dataclass(frozen=True)
class Release:
    call: str

    async def take(self, state: HotState, account: Account) -> None:
        account.open.pop(self.call, None)
        await state.release(self.call)


@dataclass(frozen=True)
class Booked:
    calls: Sequence[str]

    async def take(self, state: HotState, account: Account) -> None:
        account.rows -= set(self.calls)
        await state.booked(self.calls)


@dataclass(frozen=True)
class Load:
    counters: Sequence[Counter]
    used: int

    async def take(self, state: HotState, account: Account) -> None:
        for counter in self.counters:
            if account.used[counter.key] is None:
                account.used[counter.key] = self.used
        await state.load([Loaded(counter, used=self.used) for counter in self.counters])


@dataclass(frozen=True)
class Forget:
    counters: Sequence[Counter]

    async def take(self, state: HotState, account: Account) -> None:
        account.used |= {counter.key: None for counter in self.counters if counter.kind == "quota"}
        await state.forget(self.counters)


Step = Reserve | Settle | Release | Booked | Load | Forget

some_counters = st.lists(st.sampled_from(COUNTERS), unique=True)
some_amounts = st.builds(Amounts, st.integers(0, 40), st.integers(0, 30), st.integers(0, 1))
calls = st.sampled_from(CALLS)
steps = st.one_of(
    st.builds(Reserve, calls, some_counters, some_amounts),
    st.builds(Settle, calls, some_counters, some_amounts),
    st.builds(Load, some_counters, st.integers(0, 20)),
    st.builds(Release, calls),
    st.builds(Booked, st.lists(calls)),
    st.builds(Forget, some_counters),
)


async def play(place: Place, script: Sequence[Step], *, everything_loaded: bool) -> None:
    state = await place.state()
    await place.age()
    account = Account()
    try:
        if everything_loaded:
            await Load(QUOTAS, 0).take(state, account)
        for step in script:
            await step.take(state, account)
            assert numbers(await state.read(COUNTERS)) == account.readings(), step
    finally:
        await place.close()


scripts = given(script=st.lists(steps, max_size=40), everything_loaded=st.booleans())


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@scripts
def test_memory(script: Sequence[Step], everything_loaded: bool, tmp_path: Path) -> None:
    """In memory, with a journal."""
    asyncio.run(play(MemoryPlace(tmp_path / "journal"), script, everything_loaded=everything_loaded))


@pytest.mark.parametrize("server", ["redis_server", "redis_cluster"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@scripts
def test_redis(script: Sequence[Step], everything_loaded: bool, server: str, request: pytest.FixtureRequest) -> None:
    """In Redis, alone and as a cluster."""
    asyncio.run(play(RedisPlace(request.getfixturevalue(server)), script, everything_loaded=everything_loaded))
