"""What the supervisor makes of what Envoy tells it, and when workers hear of it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs
from wire.test_accesslog import broken, message, refused

from extproc.config.schema import Server
from extproc.core.evidence import Ended, KeyRefused
from extproc.core.secret import Secret
from extproc.process import accesslog as module
from extproc.process.accesslog import AccessLog
from extproc.process.control import KeyCooling
from extproc.providers.pool import Pool, Pools, key_id
from extproc.wire.accesslog import METHOD

SECRET = Secret("pk-never-to-be-seen")
KEY = key_id(SECRET)


def call(number: int) -> Ended:
    return Ended(call={"call_id": f"call-{number}"})


class Stage:
    """An access log, a pool of one key, and workers that hear what they are told when they serve."""

    def __init__(self, directory: Path) -> None:
        self.address = f"unix:{directory}/log.sock"
        self.serves = True
        self.told: list[Ended] = []
        self.cooling: list[KeyCooling] = []
        self.keys = Pools(asyncio.get_running_loop().time)
        self.pool: Pool = self.keys.pool("p", [(SECRET, 1, "")])
        self.log = self.made()

    def made(self, **settings: Any) -> AccessLog:
        server = Server(**{"access_log": self.address, **settings})
        return AccessLog(server, self.keys, tell_one=self._tell_one, tell_all=self._tell_all)

    async def _tell_one(self, ended: Ended) -> bool:
        if self.serves:
            self.told.append(ended)
        return self.serves

    async def _tell_all(self, cooling: KeyCooling) -> None:
        self.cooling.append(cooling)

    def numbers(self) -> list[str]:
        return [str(ended.call["call_id"]).removeprefix("call-") for ended in self.told]


@pytest.fixture(name="stage")
async def _stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    monkeypatch.setattr(module, "_DELAY", 0.2)
    monkeypatch.setattr(module, "_TICK", 0.01)
    stage = Stage(tmp_path)
    await stage.log.start()
    yield stage
    await stage.log.stop()


async def until(holds: Callable[[], Any], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.01)


async def test_a_call_waits_for_its_own_worker(stage: Stage) -> None:
    """Another one hears of it only when its own has had the time to account for it."""
    began = asyncio.get_running_loop().time()
    stage.log.ended(call(1))
    await until(lambda: stage.told)

    assert asyncio.get_running_loop().time() - began >= 0.2
    assert stage.told == [call(1)]


async def test_while_no_worker_serves(stage: Stage) -> None:
    """Calls wait, keep their order, and are told once each."""
    stage.serves = False
    for number in range(5):
        stage.log.ended(call(number))
    await asyncio.sleep(0.3)
    assert stage.told == []

    stage.serves = True
    await until(lambda: len(stage.told) == 5)
    await asyncio.sleep(0.05)

    assert stage.numbers() == ["0", "1", "2", "3", "4"]


async def test_there_is_an_end_to_waiting(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest are dropped where too many wait, and counted."""
    monkeypatch.setattr(module, "_ROOM", 3)
    before = REGISTRY.get_sample_value("extproc_ended_dropped_total") or 0
    for number in range(5):
        stage.log.ended(call(number))
    await until(lambda: stage.told)

    assert stage.numbers() == ["2", "3", "4"]
    assert REGISTRY.get_sample_value("extproc_ended_dropped_total") == before + 2


async def test_the_end(stage: Stage) -> None:
    """What waits is handed on at once."""
    stage.log.ended(call(1))
    await stage.log.stop()

    assert stage.told == [call(1)]


async def test_a_key_that_is_refused(stage: Stage) -> None:
    """All workers hear for how long to leave it alone; it is counted, and logged without the key."""
    labels = {"provider": "p", "key": KEY, "status": "401"}
    before = REGISTRY.get_sample_value("extproc_provider_key_failures_total", labels) or 0
    with capture_logs() as lines:
        for _ in range(3):
            stage.log.key_refused(KeyRefused("p", KEY, 401))
        await until(lambda: stage.cooling)

    assert stage.cooling == [KeyCooling("p", KEY, 300.0)]
    assert REGISTRY.get_sample_value("extproc_provider_key_failures_total", labels) == before + 3
    assert [(x["event"], x["key"], x["seconds"]) for x in lines] == [("key refused", KEY, 300.0)]
    assert "pk-never" not in repr(lines)
    assert [row["failures"] for row in stage.pool.state(0.0)] == [3]


@pytest.mark.parametrize(("header", "seconds"), [("30", 30.0), ("", 10.0), ("later", 10.0), ("99999999", 3600.0)])
async def test_the_provider_says_how_long(stage: Stage, header: str, seconds: float) -> None:
    """Its header is read, where it can be."""
    stage.log.key_refused(KeyRefused("p", KEY, 429, header))
    await until(lambda: stage.cooling)

    assert stage.cooling == [KeyCooling("p", KEY, seconds)]


@pytest.mark.parametrize("answer", [KeyRefused("p", KEY, 400), KeyRefused("p", "0", 401), KeyRefused("q", KEY, 401)])
async def test_what_concerns_no_key(stage: Stage, answer: KeyRefused) -> None:
    """Nobody hears of it."""
    with capture_logs() as lines:
        stage.log.key_refused(answer)
        await asyncio.sleep(0.05)

    assert (stage.cooling, lines) == ([], [])


async def test_from_the_wire(stage: Stage) -> None:
    """What Envoy says on its stream arrives in the same places."""
    async with grpc.aio.insecure_channel(stage.address, options=[("grpc.default_authority", "localhost")]) as channel:
        stream = channel.stream_unary(METHOD)()
        await stream.write(message(broken("call-7"), refused(f"p/{KEY}", 402)))
        await until(lambda: stage.told and stage.cooling)

    assert stage.numbers() == ["7"]
    assert stage.cooling == [KeyCooling("p", KEY, 1800.0)]


async def test_off(stage: Stage) -> None:
    """Without an address nothing listens, and the log says what that costs."""
    log = stage.made(access_log=None, grpc="127.0.0.1:1")
    with capture_logs() as lines:
        await log.start()
    await log.stop()

    (line,) = lines
    assert (line["log_level"], line["mend"]) == ("warning", "set server.access_log")


async def test_an_address_in_use(stage: Stage) -> None:
    """It is an error at the start."""
    with pytest.raises(OSError, match="another server listens here"):
        await stage.made().start()
