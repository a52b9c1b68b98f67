"""The parent of the workers: what it starts, hands out, refuses, reports and ends."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY
from redis_server import RedisServer
from structlog.testing import capture_logs

from extproc.config.load import ConfigError, parse
from extproc.core.evidence import Ended, KeyRefused
from extproc.demo.gateway import free_port
from extproc.envoyconf.files import EnvoyFiles
from extproc.process import supervisor as module
from extproc.process.control import KeyCooling
from extproc.process.supervisor import Supervisor, stop_signals
from extproc.stores.sql import open_database

KEY = "sk-acme-example"
PROVIDER_KEY = "pk-never-to-be-seen"
TWO: dict[str, Any] = {"server": {"workers": 2}}


@pytest.fixture(name="metrics_directory", autouse=True)
def _metrics_directory(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the workers of a test share their metrics."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path_factory.mktemp("metrics")))


class Stage:
    """A configuration file, and supervisors that begin with it."""

    def __init__(self, directory: Path, redis: str) -> None:
        self.directory = directory
        self.redis = redis
        self.file = directory / "extproc.yaml"
        self.envoy_admin = f"127.0.0.1:{free_port()}"

    def document(self, **changes: Any) -> dict[str, Any]:
        document = {
            "gateway": {"admin": self.envoy_admin, "directory": str(self.directory / "envoy")},
            "server": {"grpc": f"unix:{self.directory}/x.sock", "drain": "100ms"},
            "state": {"journal": str(self.directory / "journal")},
            "database": {"url": f"sqlite:///{self.directory}/x.db"},
            "providers": {"p": {"base_url": "http://127.0.0.1:9/v1", "keys": [{"value": PROVIDER_KEY}]}},
            "models": {"m": {"route": {"provider": "p"}}},
            "consumers": {"acme": {"keys": [{"value": KEY}]}},
        }
        for part, change in changes.items():
            document[part] = {**document.get(part, {}), **change} if isinstance(change, dict) else change
        if "workers" in document["server"]:
            document["state"]["url"] = self.redis
        return document

    def write(self, **changes: Any) -> str:
        """Put a configuration into the file. Returns its digest."""
        content = yaml.safe_dump(self.document(**changes)).encode()
        self.file.write_bytes(content)
        return parse(content, self.file).digest

    def supervisor(self, *, files: EnvoyFiles | None = None, **changes: Any) -> Supervisor:
        """One that has begun with such a file, and started nothing yet."""
        self.write(**changes)
        database = open_database(f"sqlite:///{self.directory}/x.db")
        database.migrate()
        database.close()
        content = self.file.read_bytes()
        return Supervisor(parse(content, self.file), content, files=files)

    @asynccontextmanager
    async def running(self, **changes: Any) -> AsyncIterator[Supervisor]:
        supervisor = self.supervisor(**changes)
        try:
            await supervisor.start()
            yield supervisor
        finally:
            await supervisor.stop(notice=0)


@pytest.fixture(name="redis", scope="module")
def _redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest.fixture(name="stage")
def _stage(tmp_path: Path, redis: str) -> Stage:
    return Stage(tmp_path, redis)


async def until(holds: Callable[[], Any], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def pids(supervisor: Supervisor) -> list[int]:
    return [worker["pid"] for worker in supervisor.report()["workers"]]


# --- life -----------------------------------------------------------------------------------------------------


async def test_its_life(stage: Stage) -> None:
    """It is ready from the first worker that serves until it is told to stop, and then all workers have ended."""
    supervisor = stage.supervisor(**TWO)
    digest = supervisor.config_state.digest
    assert not supervisor.ready

    await supervisor.start()
    try:
        report = supervisor.report()
        started = pids(supervisor)
        assert supervisor.ready
        assert report["status"] == "ok"
        config = report["config"]
        assert (config["file"], config["digest"], config["refused"]) == (str(stage.file), digest, None)
        assert [(w["index"], w["state"], w["config"], w["restarts"]) for w in report["workers"]] == [
            (0, "serving", digest, 0),
            (1, "serving", digest, 0),
        ]
        assert {path.name for path in stage.directory.glob("x.sock*")} == {"x.sock", "x.sock.1"}
        assert REGISTRY.get_sample_value("extproc_workers", {"state": "serving"}) == 2
        supervisor.drain()
        assert not supervisor.ready
        assert supervisor.report()["workers"] == report["workers"]
    finally:
        await supervisor.stop(notice=0)

    assert not supervisor.ready
    assert supervisor.report()["status"] == "draining"
    assert not any(alive(pid) for pid in started)
    assert list(stage.directory.glob("x.sock*")) == []


async def test_the_report_is_json_without_secrets(stage: Stage) -> None:
    """It goes to anybody who asks the admin port."""
    async with stage.running() as supervisor:
        stage.file.write_text(f"consumers: {{acme: {{keys: [{{value: {KEY}}}], models: 3}}}}")
        await supervisor.reload()

        shown = json.dumps(supervisor.report())

    assert "consumers.acme.models" in shown
    assert not {secret for secret in (KEY, PROVIDER_KEY) if secret in shown}


async def test_a_worker_that_dies_is_started_again(stage: Stage) -> None:
    """With the configuration in force, not with what the file says by then."""
    restarts = REGISTRY.get_sample_value("extproc_worker_restarts_total") or 0
    async with stage.running() as supervisor:
        digest = supervisor.config_state.digest
        (first,) = pids(supervisor)
        stage.file.write_text("half: [")

        with capture_logs() as lines:
            os.kill(first, signal.SIGKILL)
            await until(lambda: supervisor.report()["status"] == "degraded")
            await until(lambda: supervisor.ready)

        (worker,) = supervisor.report()["workers"]
        assert (worker["state"], worker["config"], worker["restarts"]) == ("serving", digest, 1)
        assert worker["pid"] != first
        (ended,) = [line for line in lines if line["event"] == "worker ended"]
        assert (ended["worker"], ended["log_level"]) == (0, "error")
        assert ended["status"] != 0

    assert REGISTRY.get_sample_value("extproc_worker_restarts_total") == restarts + 1


async def test_a_worker_that_starts_while_another_configuration_comes_into_force(stage: Stage) -> None:
    """It began with the old one, and catches up: a revoked key works nowhere."""
    async with stage.running(**TWO) as supervisor:
        first = pids(supervisor)[0]
        os.kill(first, signal.SIGKILL)
        await until(lambda: supervisor.workers[0].state == "starting" and pids(supervisor)[0] != first)
        new = stage.write(**TWO, models={"other": {"route": {"provider": "p"}}})
        await supervisor.reload()
        assert supervisor.config_state.digest == new

        await until(lambda: supervisor.report()["status"] == "ok")
        assert [worker["config"] for worker in supervisor.report()["workers"]] == [new, new]

        newer = stage.write(**TWO)
        await supervisor.reload()
        assert [worker["config"] for worker in supervisor.report()["workers"]] == [newer, newer]


async def test_a_worker_that_cannot_start(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried again and again, with growing pauses; the supervisor says in time that it did not work."""
    monkeypatch.setattr(module, "_START", 0.2)
    monkeypatch.setattr(module, "_BACKOFF", (0.0, 0.1, 100.0))
    supervisor = stage.supervisor()
    (stage.directory / "x.sock").write_text("no socket")

    with capture_logs() as lines:
        with pytest.raises(RuntimeError, match="a worker did not start"):
            await supervisor.start()
        await until(lambda: len(lines) == 2)
    assert not supervisor.ready
    await asyncio.wait_for(supervisor.stop(notice=0), 5)

    assert [(line["event"], line["again_in"]) for line in lines] == [("worker ended", 0.1), ("worker ended", 100.0)]
    assert (stage.directory / "x.sock").read_text() == "no socket"


async def test_a_worker_that_does_not_obey_is_killed(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop ends in time whatever a worker does."""
    monkeypatch.setattr(module, "_LATE", 0.2)
    supervisor = stage.supervisor()
    await supervisor.start()
    (pid,) = pids(supervisor)
    os.kill(pid, signal.SIGSTOP)

    await asyncio.wait_for(supervisor.stop(notice=0), 5)

    assert not alive(pid)


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT])
async def test_stop_signals(name: signal.Signals) -> None:
    """SIGTERM and SIGINT are requests to stop in order."""
    stopping = stop_signals()
    try:
        assert not stopping.is_set()
        os.kill(os.getpid(), name)
        await asyncio.wait_for(stopping.wait(), 5)
    finally:
        for each in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(each)


# --- reload ---------------------------------------------------------------------------------------------------


async def test_every_worker_takes_a_new_configuration(stage: Stage) -> None:
    """When it is in force, all workers have it, and no process was exchanged for it."""
    accepted = REGISTRY.get_sample_value("extproc_config_reloads_total", {"result": "accepted"}) or 0
    async with stage.running(**TWO) as supervisor:
        before = pids(supervisor)
        digest = stage.write(**TWO, models={"n": {"route": {"provider": "p"}}})

        await supervisor.reload()

        report = supervisor.report()
        assert report["status"] == "ok"
        assert report["config"]["digest"] == digest
        assert [w["config"] for w in report["workers"]] == [digest, digest]
        assert pids(supervisor) == before
    assert REGISTRY.get_sample_value("extproc_config_reloads_total", {"result": "accepted"}) == accepted + 1


async def test_a_changed_file_is_noticed(stage: Stage) -> None:
    """Nobody has to say so; secret files that the configuration names count as well."""
    secret = stage.directory / "key"
    secret.write_text("pk-first")
    keys = {"p": {"base_url": "http://127.0.0.1:9/v1", "keys": [{"file": str(secret)}]}}
    async with stage.running(providers=keys) as supervisor:
        (worker,) = supervisor.workers
        before = supervisor.config_state.digest
        secret.write_text("pk-second")

        await until(lambda: supervisor.config_state.digest != before)
        await until(lambda: worker.digest == supervisor.config_state.digest)


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"modles": {}}, "modles", "unknown key"),
    ({"models": {"m": {"route": {"provider": "nobody"}}}}, "models.m.route[0][0].provider", "nobody"),
    ({"providers": {"p": {"base_url": "ftp://p"}}}, "providers.p", "http://"),
    ({"server": {"drain": "1s"}}, "server", "restart"),
    ({"gateway": {"admin": "127.0.0.1:1"}}, "gateway.admin", "restart"),
    ({"gateway": {"directory": "elsewhere"}}, "gateway.directory", "restart"),
    ({"gateway": {"concurrency": 7}}, "gateway.concurrency", "restart"),
    ({"gateway": {"max_answer": "40MiB"}}, "gateway.max_answer", "restart"),
    ({"gateway": {"max_body": "64MiB"}}, "gateway.max_body", "restart"),
]


@pytest.mark.parametrize(("changes", "path", "reason"), WRONG)
async def test_a_wrong_file_changes_nothing(stage: Stage, changes: dict[str, Any], path: str, reason: str) -> None:
    """It is refused whole, and where and why is reported until there is a right one."""
    supervisor = stage.supervisor()
    before = supervisor.config_state.digest
    stage.file.write_text(yaml.safe_dump(stage.document(**changes)))

    with capture_logs() as lines:
        await supervisor.reload()

    config = supervisor.report()["config"]
    (problem,) = config["refused"]["problems"]
    assert (problem["path"], config["digest"]) == (path, before)
    assert reason in problem["message"]
    assert supervisor.report()["status"] == "degraded"
    assert REGISTRY.get_sample_value("extproc_config_last_reload_successful") == 0
    assert [(x["event"], x["problems"]) for x in lines] == [
        ("configuration refused; the old one stays", [f"{path}: {problem['message']}"])
    ]

    digest = stage.write(models={"m": {"route": {"provider": "p", "model": "mended"}}})
    await supervisor.reload()

    config = supervisor.report()["config"]
    assert (config["digest"], config["refused"]) == (digest, None)
    assert REGISTRY.get_sample_value("extproc_config_last_reload_successful") == 1


async def test_a_file_that_is_gone_changes_nothing(stage: Stage) -> None:
    """An editor or a mount that takes the file away for a moment does no harm."""
    supervisor = stage.supervisor()
    before = supervisor.config_state.digest
    stage.file.unlink()

    await supervisor.reload()

    config = supervisor.report()["config"]
    assert config["digest"] == before
    assert config["refused"]["problems"] == [{"path": "", "message": "cannot be read: No such file or directory"}]


def test_a_first_configuration_that_does_not_fit(stage: Stage) -> None:
    """There is nothing to fall back on: it is an error of the start."""
    with pytest.raises(ConfigError, match=r"providers\.p: base_url"):
        stage.supervisor(providers={"p": {"base_url": "ftp://p"}})


# --- what Envoy tells later -------------------------------------------------------------------------------------


KEYS = {
    "p": {"base_url": "http://127.0.0.1:9/v1", "keys": [{"value": PROVIDER_KEY, "label": "main"}, {"value": "pk-2"}]}
}


async def test_the_pools(stage: Stage) -> None:
    """Each key is shown with its state and without itself; the state survives a change of the configuration."""
    supervisor = stage.supervisor(providers=KEYS)
    first, second = (row["key"] for row in supervisor.pools())
    supervisor._access_log.key_refused(KeyRefused("p", first, 403))

    stage.write(providers=KEYS, models={"n": {"route": {"provider": "p"}}})
    await supervisor.reload()

    rows = supervisor.pools()
    assert [(r["provider"], r["key"], r["label"], r["available"], r["last_status"]) for r in rows] == [
        ("p", first, "main", False, 403),
        ("p", second, "", True, None),
    ]
    assert 290 < rows[0]["cooling_until"] - time.time() < 301
    assert PROVIDER_KEY not in json.dumps(rows)
    await supervisor.stop(notice=0)


async def test_every_worker_hears_of_a_refused_key(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that serve at once, one that starts again as soon as it serves."""
    told: list[tuple[int, Any]] = []
    tell = Supervisor._tell

    async def listen(worker: module.Worker, command: Any) -> None:
        told.append((worker.index, command))
        await tell(worker, command)

    monkeypatch.setattr(Supervisor, "_tell", staticmethod(listen))
    async with stage.running(providers=KEYS) as supervisor:
        key = supervisor.pools()[0]["key"]
        supervisor._access_log.key_refused(KeyRefused("p", key, 402))
        await until(lambda: told)
        os.kill(pids(supervisor)[0], signal.SIGKILL)
        await until(lambda: not supervisor.ready)
        await until(lambda: len(told) > 1)
        assert supervisor.ready

    assert told[0] == (0, KeyCooling("p", key, 1800.0))
    assert (told[1][0], told[1][1].key) == (0, key)
    assert 1770 < told[1][1].seconds < 1800


async def test_a_broken_call_is_told_to_a_worker(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker of those that serve, in turn; with none, nobody is told yet."""
    monkeypatch.setattr("extproc.process.accesslog._DELAY", 0.0)
    told: list[tuple[int, str]] = []

    async def listen(worker: module.Worker, command: Any) -> None:
        if isinstance(command, Ended):
            told.append((worker.index, str(command.call["call_id"])))

    supervisor = stage.supervisor(**TWO)
    monkeypatch.setattr(Supervisor, "_tell", staticmethod(listen))
    assert not await supervisor._tell_one(Ended(call={"call_id": "call-0"}))
    for worker in supervisor.workers:
        worker.state = "serving"
    for number in range(4):
        assert await supervisor._tell_one(Ended(call={"call_id": f"call-{number}"}))
    supervisor.workers[0].state = "down"
    assert await supervisor._tell_one(Ended(call={"call_id": "call-4"}))

    assert sorted(told) == [(0, "call-1"), (0, "call-3"), (1, "call-0"), (1, "call-2"), (1, "call-4")]
    await supervisor.stop(notice=0)


# --- Envoy's files --------------------------------------------------------------------------------------------


class Admin:
    """Envoy's admin interface, as far as we ask it: says which clusters are there once it may."""

    def __init__(self) -> None:
        self.clusters: set[str] = set()
        self.asked = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.asked += 1
        body = json.dumps({"cluster_statuses": [{"name": name} for name in self.clusters]}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()


@pytest.fixture(name="admin")
async def _admin(stage: Stage) -> AsyncIterator[Admin]:
    admin = Admin()
    host, _, port = stage.envoy_admin.rpartition(":")
    async with await asyncio.start_server(admin.serve, host, int(port)):
        yield admin


def names(file: Path) -> set[str]:
    return {resource["name"] for resource in yaml.safe_load(file.read_text())["resources"]}


async def test_clusters_come_before_the_routes_that_name_them(stage: Stage, admin: Admin) -> None:
    """Envoy gets its new routes when it can use the new clusters; the old ones stay for calls under way."""
    directory = stage.directory / "envoy"
    files = EnvoyFiles(directory)
    supervisor = stage.supervisor(files=files)
    files.write_all(supervisor.config, supervisor._made, "first")
    before = {name: (directory / f"{name}.yaml").read_text() for name in ("clusters", "routes", "listeners")}
    old = names(directory / "clusters.yaml")

    stage.write(models={"m": {"route": {"provider": "p", "model": "another"}}})
    reloading = asyncio.ensure_future(supervisor.reload())
    await until(lambda: admin.asked > 1)

    between = names(directory / "clusters.yaml")
    assert old < between
    assert (directory / "routes.yaml").read_text() == before["routes"]

    admin.clusters = between
    await asyncio.wait_for(reloading, 5)

    assert (directory / "routes.yaml").read_text() != before["routes"]
    assert names(directory / "clusters.yaml") == between
    await supervisor.stop(notice=0)


async def test_old_clusters_go_in_the_end(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the time that a call may wait for its first byte, what no route names is taken away."""
    monkeypatch.setattr(module, "_LINGER", 0.05)
    directory = stage.directory / "envoy"
    supervisor = stage.supervisor(files=EnvoyFiles(directory))
    directory.mkdir()
    old = {cluster["name"] for cluster in supervisor._made.clusters}

    stage.write(models={"m": {"route": {"provider": "p", "model": "another"}}})
    monkeypatch.setattr("extproc.process.envoy._SETTLE", 0.0)
    await supervisor.reload()

    assert old < names(directory / "clusters.yaml")
    new = {cluster["name"] for cluster in supervisor._made.clusters}
    await until(lambda: names(directory / "clusters.yaml") == new)

    stage.write(models={"m": {"route": {"provider": "p", "model": "a third"}}})
    await supervisor.reload()
    assert not (old - new) & names(directory / "clusters.yaml")
    await supervisor.stop(notice=0)


async def test_an_envoy_that_says_nothing_gets_its_routes_all_the_same(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be down, or its admin port out of reach: its files are right when it looks again."""
    monkeypatch.setattr("extproc.process.envoy._SETTLE", 0.1)
    directory = stage.directory / "envoy"
    supervisor = stage.supervisor(files=EnvoyFiles(directory))
    directory.mkdir()

    stage.write(models={"n": {"route": {"provider": "p"}}})
    with capture_logs() as lines:
        await supervisor.reload()
    await supervisor.stop(notice=0)

    assert "envoy has not confirmed" in lines[-1]["event"]
    assert '"n"' in json.dumps(yaml.safe_load((directory / "routes.yaml").read_text()))
