"""A Redis and a cluster of one node for all tests of hot state; each test begins with an empty state."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis_server import RedisServer
from stores.hot.places import MemoryPlace, Place, RedisPlace


@pytest.fixture(name="redis_server", scope="session")
def _redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(name="redis_cluster", scope="session")
def _redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("cluster"), cluster=True) as server:
        yield server


@pytest.fixture(name="place", params=["memory", "redis", "cluster"])
async def _place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    """Each kind of hot state in turn."""
    place: Place
    match request.param:
        case "memory":
            place = MemoryPlace(tmp_path / "journal")
        case kind:
            place = RedisPlace(request.getfixturevalue({"redis": "redis_server"}.get(kind, "redis_cluster")))
    yield place
    await place.close()


@pytest.fixture(name="redis", params=["redis_server", "redis_cluster"])
async def _redis(request: pytest.FixtureRequest) -> AsyncIterator[RedisPlace]:
    """Redis, alone and as a cluster."""
    place = RedisPlace(request.getfixturevalue(request.param))
    yield place
    await place.close()
