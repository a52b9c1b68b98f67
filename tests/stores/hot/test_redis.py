"""Hot state in Redis: several workers, and what happens when Redis does not do what it should."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio.cluster import RedisCluster
from redis_server import RedisServer, free_ports
from stores.hot.places import DAY, MONEY, NOTHING, OPEN, PER_DAY, REQUESTS, TOKENS, RedisPlace, loaded, numbers

from extproc.stores.ports import LEASE, Amounts, Granted, Loaded, Missing, Orphan, Short, StateUnavailable
from extproc.stores.redis import PREFIX, RedisState

ALL = [TOKENS, MONEY, PER_DAY, REQUESTS, OPEN]


@pytest.fixture(name="own_server", params=[False, True], ids=["alone", "cluster"])
def _own_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    """A server that a test may end."""
    with RedisServer(tmp_path / "redis", cluster=request.param) as server:
        yield server


@asynccontextmanager
async def running(url: str, worker: str = "w1", seconds: float = 1.0) -> AsyncIterator[RedisState]:
    """A state whose Redis has so many seconds to answer."""
    state = RedisState(url, worker, timeout=seconds)
    await state.start()
    try:
        yield state
    finally:
        await state.stop()


def lapse(redis: RedisPlace, worker: str) -> None:
    """Its last beat is long ago."""
    with redis.server.client() as client:
        assert client.zadd(f"{PREFIX}workers", {worker: 1.0}, xx=True, ch=True) == 1


async def open_call(state: RedisState, call: str = "call") -> None:
    assert isinstance(await state.reserve(call, ALL, Amounts(30, 500), b"\xff\x00note"), Granted)


# --- several workers ------------------------------------------------------------------------------------------


async def test_workers_share_the_numbers(redis: RedisPlace) -> None:
    """Two hundred calls at once, of two workers: as many are granted as fit."""
    counters = [TOKENS, PER_DAY, replace(OPEN, limit=1000)]
    states = [await loaded(redis, *counters), await redis.state("w2")]

    answers = await asyncio.gather(
        *(states[i % 2].reserve(f"{i}", counters, Amounts(7), b"") for i in range(200)),
    )

    assert sum(isinstance(answer, Granted) for answer in answers) == 100 // 7
    assert numbers(await states[1].read(counters)) == [(0, 98), (98, 0), (0, 14)]


async def test_a_worker_lives_by_its_beats(redis: RedisPlace) -> None:
    """For a lease after the last of them, and no longer."""
    state = await redis.state("w1")
    assert await state.alive("w1")
    assert not await state.alive("w2")

    with redis.server.client() as client:
        seconds, micros = client.time()
        lease = client.zscore(f"{PREFIX}workers", "w1") - (seconds + micros / 1e6)
    assert LEASE - 1 < lease <= LEASE

    lapse(redis, "w1")
    assert not await state.alive("w1")

    await state.beat()
    assert await state.alive("w1")


async def test_a_worker_that_calls_is_alive(redis: RedisPlace) -> None:
    """Even where its beats were lost: what it holds must be found if it dies now."""
    one, two = await loaded(redis, *ALL), await redis.state("w2")
    with redis.server.client() as client:
        client.delete(f"{PREFIX}workers")

    await open_call(one)

    assert await two.alive("w1")


async def test_a_dead_worker_leaves_orphans(redis: RedisPlace) -> None:
    """Open calls with their note, settled ones with their row; those of the living are nobody's business."""
    one, two = await loaded(redis, *ALL), await redis.state("w2")
    await open_call(one, "open")
    await open_call(one, "settled")
    await one.settle("settled", ALL, Amounts(10, 10), b"\xffrow")
    assert await two.orphans() == []

    lapse(redis, "w1")

    orphans = [Orphan("open", "w1", note=b"\xff\x00note"), Orphan("settled", "w1", row=b"\xffrow")]
    assert sorted(await two.orphans(), key=lambda orphan: orphan.call_id) == orphans


async def test_orphans_go_when_they_are_dealt_with(redis: RedisPlace) -> None:
    """A settled one stays until its row is booked; then nothing is left of the worker."""
    one, two = await loaded(redis, *ALL), await redis.state("w2")
    await open_call(one)
    lapse(redis, "w1")

    assert await two.settle("call", ALL, Amounts(10, 20), b"row", worker="w1") is None
    assert numbers(await two.read(ALL)) == [(10, 0), (20, 0), (10, 0), (1, 0), (0, 0)]
    assert await two.orphans() == [Orphan("call", "w1", row=b"row")]

    await two.booked(["call"], worker="w1")
    assert await two.orphans() == []
    with redis.server.client() as client:
        assert client.zrange(f"{PREFIX}workers", 0, -1) == [b"w2"]


async def test_two_that_find_the_same_orphan(redis: RedisPlace) -> None:
    """It counts once, whether the second settles it before or after the first has booked it."""
    one, two, three = await loaded(redis, *ALL), await redis.state("w2"), await redis.state("w3")
    await open_call(one)
    lapse(redis, "w1")

    await asyncio.gather(*(s.settle("call", ALL, Amounts(10, 20), b"row", worker="w1") for s in (two, three)))
    await two.booked(["call"], worker="w1")
    await three.settle("call", ALL, Amounts(10, 20), b"row", worker="w1")
    await three.release("call", worker="w1")

    assert numbers(await two.read(ALL)) == [(10, 0), (20, 0), (10, 0), (1, 0), (0, 0)]
    assert await two.orphans() == []


async def test_an_orphan_is_released(redis: RedisPlace) -> None:
    """One that used nothing goes as if it had never been."""
    one, two = await loaded(redis, *ALL), await redis.state("w2")
    await open_call(one)
    lapse(redis, "w1")

    await two.release("call", worker="w1")

    assert numbers(await two.read(ALL)) == [(0, 0)] * 5
    assert await two.orphans() == []


async def test_many_orphans_come_by_and_by(redis: RedisPlace) -> None:
    """Some hundred at a time, and in the end each of them once settled is gone."""
    one, two = await redis.state("w1"), await redis.state("w2")
    await asyncio.gather(*(one.reserve(f"{i}", [], NOTHING, b"") for i in range(600)))
    lapse(redis, "w1")

    seen = set()
    while orphans := await two.orphans():
        assert len(orphans) <= 256
        seen |= {orphan.call_id for orphan in orphans}
        await asyncio.gather(*(two.release(orphan.call_id, worker="w1") for orphan in orphans))

    assert seen == {f"{i}" for i in range(600)}


async def test_who_leaves_is_dead_at_once(redis: RedisPlace) -> None:
    """What it left is an orphan without waiting for its lease to end."""
    one, two = await loaded(redis, *ALL), await redis.state("w2")
    await open_call(one)

    await one.stop()

    assert not await two.alive("w1")
    assert [orphan.call_id for orphan in await two.orphans()] == ["call"]


# --- what it costs --------------------------------------------------------------------------------------------


async def test_one_round_trip_a_step(redis: RedisPlace) -> None:
    """Redis sees one command to reserve and one to settle."""
    state = await loaded(redis, *ALL)
    await open_call(state, "before")  # connected, and the scripts are known
    await state.settle("before", ALL, Amounts(1), b"row")
    with redis.server.client() as client, redis.server.client() as other, client.monitor() as monitor:
        await open_call(state)
        await state.settle("call", ALL, Amounts(10, 10), b"row")
        other.echo("end")

        seen = []
        while (command := monitor.next_command())["command"] != "ECHO end":
            seen += [command["command"].split()[0]] if command["client_type"] != "lua" else []

    assert [name for name in seen if name not in ("CLIENT", "HELLO")] == ["EVALSHA", "EVALSHA"]


async def test_scripts_that_redis_forgot(redis: RedisPlace) -> None:
    """They are told again."""
    state = await loaded(redis, *ALL)
    await open_call(state)
    with redis.server.client() as client:
        client.script_flush()

    assert await state.settle("call", ALL, Amounts(10, 10), b"row") is None


async def test_nothing_stays_for_ever(redis: RedisPlace) -> None:
    """Periods and windows expire some time after they are over, calls leave nothing; totals stay."""
    now = int(time.time())
    month, past = (replace(TOKENS, key=f"month-{end}", end=end) for end in (now + 30 * DAY, now - 90 * DAY))
    counters = [TOKENS, month, past, PER_DAY, OPEN]
    state = await loaded(redis, *counters)
    await state.reserve("call", counters, Amounts(10), b"note")
    await state.settle("call", counters, Amounts(20), b"row")
    await state.booked(["call"])

    with redis.server.client() as client:
        left = {key.decode().removeprefix(PREFIX): client.ttl(key) for key in client.scan_iter()}

    assert left == {
        "epoch": -1,
        "workers": -1,
        f"number:{TOKENS.key}": -1,
        f"number:{month.key}": pytest.approx(31 * DAY, abs=10),
        f"number:{past.key}": pytest.approx(DAY, abs=10),
        f"number:{PER_DAY.key}": pytest.approx(2 * DAY, abs=10),
    }


async def test_the_clock_of_redis_goes_back(redis: RedisPlace) -> None:
    """What was counted in its future counts as of now, and does not stay until that future has come."""
    state = await loaded(redis, PER_DAY)
    with redis.server.client() as client:
        client.hset(f"{PREFIX}number:{PER_DAY.key}", str(2**40), "40")

    reading = (await state.read([PER_DAY]))[0]

    assert reading.used == 40
    assert reading.wait <= DAY * 61 / 60
    assert (await state.read([PER_DAY]))[0].used == 40


async def test_a_cluster_is_recognised(redis_cluster: RedisServer) -> None:
    """By asking it, or because the URL says so; the same URL works for both."""
    for url in (redis_cluster.url, f"{redis_cluster.url}?cluster=true"):
        async with running(url) as state:
            assert isinstance(state._client, RedisCluster)


# --- when Redis fails -----------------------------------------------------------------------------------------


async def test_redis_killed_and_started_again(own_server: RedisServer) -> None:
    """It says so in time, works again by itself, asks for what was lost, and goes on from there."""
    async with running(own_server.url) as state:
        await state.load([Loaded(counter) for counter in ALL])
        await asyncio.gather(*(state.reserve(f"{i}", [], NOTHING, b"") for i in range(50)))
        await open_call(state)

        own_server.kill()
        begun = time.monotonic()
        answers = await asyncio.gather(
            *(state.reserve(f"down-{i}", ALL, NOTHING, b"") for i in range(50)), return_exceptions=True
        )
        assert {type(answer) for answer in answers} == {StateUnavailable}
        assert time.monotonic() - begun < 1.5

        own_server.start()
        assert await state.reserve("call", ALL, Amounts(1), b"") == Missing([0, 1, 2, 3])
        await state.load([Loaded(TOKENS, used=70), *(Loaded(counter) for counter in ALL[1:])])
        assert await state.settle("call", ALL, Amounts(50, 300), b"row") is None
        assert numbers(await state.read(ALL)) == [(120, 0), (300, 0), (50, 0), (1, 0), (0, 0)]


async def test_redis_restarted_between_calls(own_server: RedisServer) -> None:
    """Connections that died meanwhile fail no call."""
    async with running(own_server.url, seconds=20) as state:
        await asyncio.gather(*(state.reserve(f"{i}", [], NOTHING, b"") for i in range(100)))

        own_server.restart()

        answers = await asyncio.gather(*(state.reserve(f"new-{i}", [], NOTHING, b"") for i in range(100)))
        assert answers == [Granted([])] * 100


async def test_redis_that_is_not_there_yet() -> None:
    """Starting fails in time and says where it looked; stopping is quiet."""
    (port,) = free_ports(1)
    state = RedisState(f"redis://user:hidden@127.0.0.1:{port}/0", "w1")

    with pytest.raises(StateUnavailable, match=f"Redis at 127.0.0.1:{port}/?.*") as failure:
        await state.start()
    await state.stop()

    assert "hidden" not in str(failure.value)


async def test_redis_that_comes_after_us(tmp_path: Path) -> None:
    """What could not start works when Redis is there."""
    server = RedisServer(tmp_path)
    state = RedisState(server.url, "w1")
    with pytest.raises(StateUnavailable):
        await state.start()

    with server:
        assert await state.reserve("call", [TOKENS], Amounts(1), b"") == Missing([0])
        await state.stop()


async def test_redis_that_does_not_answer(own_server: RedisServer) -> None:
    """The wait is bounded. What was reserved all the same is taken back with a beat; what a call has, it keeps."""
    async with running(own_server.url, seconds=0.4) as state:
        await state.load([Loaded(TOKENS)])
        assert isinstance(await state.reserve("ours", [TOKENS], Amounts(1), b""), Granted)
        own_server.pause()
        begun = time.monotonic()
        answers = await asyncio.gather(
            *(state.reserve(f"{i}", [TOKENS], Amounts(1), b"") for i in range(100)), return_exceptions=True
        )
        assert {type(answer) for answer in answers} == {StateUnavailable}
        assert 0.3 < time.monotonic() - begun < 0.9
        with pytest.raises(StateUnavailable, match=r"no answer within 0\.4 s"):
            await state.release("ours")

        own_server.resume()
        await _answers(state)
        assert isinstance(await state.reserve("50", [TOKENS], Amounts(1), b""), Granted)
        await state.beat()

        assert numbers(await state.read([TOKENS])) == [(0, 1)]
        await state.release("50")


async def _answers(state: RedisState) -> None:
    while True:
        try:
            await state.read([TOKENS])
        except StateUnavailable:
            continue
        return


async def test_a_password_is_not_told(tmp_path: Path) -> None:
    """Neither the right one nor a wrong one appears in an error."""
    with RedisServer(tmp_path, requirepass="right-one") as server:
        async with running(server.url) as state:
            assert await state.alive("w1")

        for url in (server.url.replace("right-one", "wrong-one"), server.url.replace(":right-one@", "")):
            with pytest.raises(StateUnavailable) as failure:
                await RedisState(url, "w1").start()
            assert "one" not in str(failure.value)


@pytest.mark.parametrize("url", ["redis://:pa/ss@host:1", "redis://host:port", "redis://h?socket_timeout=x"])
def test_what_is_no_url(url: str) -> None:
    """It is refused when it is read, and no part of it is told."""
    with pytest.raises(ValueError, match="percent-encoded") as failure:
        RedisState(url, "w1")

    assert failure.value.__cause__ is None
    assert "pa" not in str(failure.value).replace("password", "")


async def test_redis_without_memory(own_server: RedisServer) -> None:
    """A step that finds no room has done nothing."""
    async with running(own_server.url) as state:
        await state.load([Loaded(counter) for counter in ALL])
        with closing(own_server.client()) as client:
            client.config_set("maxmemory", "1")
            with pytest.raises(StateUnavailable, match=r"OOM|maxmemory"):
                await open_call(state)
            client.config_set("maxmemory", "0")

        assert numbers(await state.read(ALL)) == [(0, 0)] * 5
        assert await state.orphans() == []


async def test_redis_that_became_a_replica(tmp_path: Path) -> None:
    """It cannot be written to, until it is a master again."""
    (nowhere,) = free_ports(1)
    with RedisServer(tmp_path) as server, closing(server.client()) as client:
        async with running(server.url) as state:
            await state.load([Loaded(TOKENS)])
            client.replicaof("127.0.0.1", nowhere)
            with pytest.raises(StateUnavailable, match="read only"):
                await state.reserve("call", [TOKENS], Amounts(1), b"")

            client.replicaof("NO", "ONE")
            assert isinstance(await state.reserve("call", [TOKENS], Amounts(1), b""), Granted)
            await state.release("call")


@pytest.mark.parametrize("step", ["reserve", "settle", "release"])
async def test_a_cancelled_step(redis: RedisPlace, step: str) -> None:
    """Wherever a caller gives up: the client works, and only the call's own is held, until a beat takes it back."""
    wide = replace(OPEN, limit=1000)
    state = await loaded(redis, TOKENS)
    counters = [TOKENS, wide]
    took = 0
    for turns in range(1, 40):
        call = f"{step}-{turns}"
        if step != "reserve":
            await state.reserve(call, counters, Amounts(5), b"")
        work: dict[str, Any] = {
            "reserve": lambda call=call: state.reserve(call, counters, Amounts(5), b""),
            "settle": lambda call=call: state.settle(call, counters, Amounts(3), b""),
            "release": lambda call=call: state.release(call),
        }
        task = asyncio.ensure_future(work[step]())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

        held = [reading.held for reading in await state.read(counters)]
        assert held in ([0, 0], [5, 1])
        if step == "settle":
            await state.settle(call, counters, Amounts(3), b"")
            took += 3
        elif task.cancelled():
            await state.beat()
        else:
            await state.release(call)
        assert numbers(await state.read(counters)) == [(took, 0), (0, 0)]


async def test_short_calls_are_short_again_and_again(redis: RedisPlace) -> None:
    """A refusal leaves nothing behind, however often it is repeated."""
    state = await loaded(redis, TOKENS)
    for _ in range(20):
        assert isinstance(await state.reserve("call", [TOKENS], Amounts(1001), b""), Short)

    with redis.server.client() as client:
        assert not client.exists(f"{PREFIX}open:w1")
