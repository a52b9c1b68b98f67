"""What is measured: Envoy alone, with a processor that does nothing, and with us, before the same provider."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from extproc.demo.gateway import Gateway, free_port
from extproc.demo.waiting import until

KEY: Final = "sk-bench-0123456789"
TRANSPORTS: Final = ("grpcio", "granian")
EVENTS: Final = 250
EVENTS_A_SECOND: Final = 50
_TICK: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Subject:
    """A way to the provider. ``worker`` is the process of ours that does the work, where there is one."""

    name: str
    port: int
    envoy: int
    worker: int | None = None


@contextmanager
def subjects() -> Iterator[list[Subject]]:
    """All of them run at once; who is not called costs next to nothing."""
    with ExitStack() as stack:
        provider = stack.enter_context(_provider())
        yield [
            stack.enter_context(_alone(provider)),
            *(stack.enter_context(_idle(transport, provider)) for transport in TRANSPORTS),
            *(stack.enter_context(_with(transport, provider)) for transport in TRANSPORTS),
        ]


def _configuration(provider: int, transport: str) -> dict[str, Any]:
    return {
        # One thread of Envoy for one worker of ours: what is compared is one core of each.
        "gateway": {"access_log": "", "concurrency": 1},
        "server": {"transport": transport},
        "providers": {
            "stub": {"base_url": f"http://127.0.0.1:{provider}/v1", "keys": [{"value": "pk-bench-01234567"}]}
        },
        "models": {"m": {"route": [[{"provider": "stub", "model": "the-providers-own-name"}]]}},
        "consumers": {"bench": {"keys": [{"value": KEY}], "models": ["m*"]}},
    }


@contextmanager
def _provider() -> Iterator[int]:
    port = free_port()
    command = [sys.executable, "-m", "extproc.demo.stub", "--port", str(port)]
    command += ["--events", str(EVENTS), "--pace", str(1 / EVENTS_A_SECOND)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        until(lambda: Gateway.get(f"http://127.0.0.1:{port}/v1/models"), "the provider is ready")
        yield port
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def _with(transport: str, provider: int) -> Iterator[Subject]:
    with Gateway(_configuration(provider, transport)) as gateway:
        [worker] = [w["pid"] for w in gateway.health()["workers"]]
        yield Subject(transport, _port(gateway), _envoy_of(gateway.pid, gateway), worker)


@contextmanager
def _alone(provider: int) -> Iterator[Subject]:
    """The same Envoy, with everything of ours taken out of the file."""
    gateway, tree = _rendered(_configuration(provider, "granian"))
    manager = tree["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    manager["http_filters"] = manager["http_filters"][-1:]
    del manager["early_header_mutation_extensions"], manager["local_reply_config"]
    target = tree["static_resources"]["clusters"][-1]
    options = next(iter(target["typed_extension_protocol_options"].values()))
    options["http_filters"] = options["http_filters"][-1:]
    tree["static_resources"]["clusters"] = [target]
    with gateway.envoy_alone(yaml.safe_dump(tree), concurrency=1):
        yield Subject("Envoy alone", _port(gateway), _envoy_of(os.getpid(), gateway))


@contextmanager
def _idle(transport: str, provider: int) -> Iterator[Subject]:
    """The same Envoy and transport, before a processor that does nothing."""
    gateway, tree = _rendered(_configuration(provider, transport))
    command = [sys.executable, "-m", "bench.nothing", str(gateway.file)]
    process = subprocess.Popen(command)
    try:
        until((gateway.directory / "extproc.sock").exists, "the processor is ready")
        with gateway.envoy_alone(yaml.safe_dump(tree), concurrency=1):
            envoy = _envoy_of(os.getpid(), gateway)
            yield Subject(f"{transport}, doing nothing", _port(gateway), envoy, process.pid)
    finally:
        process.terminate()
        process.wait(10)


def _rendered(configuration: dict[str, Any]) -> tuple[Gateway, dict[str, Any]]:
    """Envoy's file for it; its one route needs no model header, since nobody sets it."""
    gateway = Gateway(configuration)
    command = [sys.executable, "-m", "extproc", "envoy", "render", "--config", str(gateway.file)]
    tree: dict[str, Any] = yaml.safe_load(subprocess.run(command, check=True, capture_output=True).stdout)
    manager = tree["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    host = manager["route_config"]["virtual_hosts"][0]
    host["routes"] = host["routes"][:1]
    host["routes"][0]["match"] = {"prefix": "/"}
    return gateway, tree


def _port(gateway: Gateway) -> int:
    return int(gateway.url.rpartition(":")[2])


def _envoy_of(parent: int, gateway: Gateway) -> int:
    return next(pid for pid in _children(parent) if "envoy" in (c := _command(pid)) and str(gateway.directory) in c)


# --- processes ------------------------------------------------------------------------------------------------


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
