"""The gateway as a child process, as demo, tests and benchmarks use it."""

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from extproc.demo.gateway import Gateway, free_port
from extproc.demo.waiting import until

KEY = "sk-acme-example"


def configuration(**more: Any) -> dict[str, Any]:
    return {
        "providers": {"p": {"base_url": "http://127.0.0.1:9/v1"}},
        "models": {"m": {"route": {"provider": "p"}}},
        "consumers": {"acme": {"keys": [{"value": KEY}]}},
        **more,
    }


@pytest.fixture(name="idle")
def _idle() -> Iterator[Gateway]:
    """One that was not started."""
    gateway = Gateway(configuration(gateway={"max_body": "1MiB"}), command="serve")
    yield gateway
    gateway._directory.cleanup()


def written(gateway: Gateway) -> Any:
    return yaml.safe_load(gateway.file.read_text())


def test_a_free_port_is_free() -> None:
    """One can listen on it at once."""
    with socket.create_server(("127.0.0.1", free_port())) as server:
        assert server.getsockname()[1] > 0


def test_addresses_are_added_to_the_configuration(idle: Gateway) -> None:
    """All that it listens on and writes is its own; what the configuration says of the same parts is kept."""
    document = written(idle)

    assert idle.url == f"http://{document['gateway']['listen']}"
    assert idle.base_url == f"{idle.url}/v1"
    assert idle.envoy == f"http://{document['gateway']['admin']}"
    assert idle.http == f"http://{document['server']['http']}"
    assert document["gateway"]["max_body"] == "1MiB"
    assert document["consumers"] == configuration()["consumers"]
    for path in (document["gateway"]["directory"], document["server"]["grpc"].removeprefix("unix:")):
        assert idle.directory in Path(path).parents


def test_a_configuration_may_overrule_the_addresses(idle: Gateway) -> None:
    """A test may want an address or a time of its own."""
    idle.write(configuration(server={"drain": "9s"}))

    assert written(idle)["server"]["drain"] == "9s"
    assert f"http://{written(idle)['server']['http']}" == idle.http


def test_two_share_nothing(idle: Gateway) -> None:
    """They can run side by side."""
    other = Gateway(configuration())
    try:
        assert not {idle.url, idle.http, idle.envoy} & {other.url, other.http, other.envoy}
        assert idle.directory != other.directory
    finally:
        other._directory.cleanup()


def test_a_gateway_never_started_can_be_asked_and_stopped(idle: Gateway) -> None:
    """It has no health, no metrics and no process."""
    assert (idle.pid, idle.health(), idle.metrics(), idle.stop()) == (0, {}, "", 0)


def test_its_life() -> None:
    """Calls can be made when it has started; what it wrote can be read; nothing is left of it in the end."""
    environment = {"TEST_PROVIDER_KEY": "pk-from-the-environment"}
    provider = {"base_url": "http://127.0.0.1:9/v1", "keys": [{"env": "TEST_PROVIDER_KEY"}]}
    with Gateway(configuration(providers={"p": provider}), command="serve", environment=environment) as gateway:
        pid = gateway.pid
        assert gateway.health()["config"]["file"] == str(gateway.file)
        assert 'extproc_workers{state="serving"} 1.0' in gateway.metrics()
        assert gateway.get(f"{gateway.http}/nowhere") is None
        assert '"event":"serving"' in gateway.log()

        assert gateway.stop() == 0
        assert '"event":"draining"' in gateway.log()
        assert gateway.health() == {}

    assert not Path(f"/proc/{pid}").exists()
    assert not gateway.directory.exists()


def test_a_log_of_ones_own_outlives_it(tmp_path: Path) -> None:
    """Where the caller says where the log goes, it stays there, and a second run is appended."""
    log = tmp_path / "log"
    for _ in range(2):
        with Gateway(configuration(), command="serve", log=log):
            pass

    assert log.read_text().count('"event":"serving"') == 2


def test_one_that_does_not_start(idle: Gateway) -> None:
    """The error has the log, so that a failing test says why."""
    idle.write({"modles": {}})

    with pytest.raises(RuntimeError, match="modles: unknown key"):
        idle.start()

    assert idle.stop() == 2


def test_one_that_ended_by_itself() -> None:
    """Its status is what it ended with."""
    with Gateway(configuration(), command="serve") as gateway:
        os.kill(gateway.pid, signal.SIGKILL)
        until(lambda: gateway.stop() == -signal.SIGKILL, "its end is noticed")


@pytest.mark.e2e
def test_up_is_started_when_its_envoy_is(tmp_path: Path) -> None:
    """The first call needs no waiting: it gets the gateway's answer."""
    with Gateway(configuration(), log=tmp_path / "log") as gateway:
        assert gateway.get(f"{gateway.envoy}/ready") == b"LIVE\n"
        with socket.create_connection(("127.0.0.1", int(gateway.url.rpartition(":")[2])), timeout=10) as client:
            client.sendall(b"GET /v1/models HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n\r\n")
            assert client.recv(12) == b"HTTP/1.1 401"
