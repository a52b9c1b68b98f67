"""The whole gateway as one child process, on ports of its own: for the demo, the tests and the benchmarks."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import yaml

from extproc.demo.waiting import until
from extproc.process.envoy import binary

_READY: Final = 40.0  # seconds


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Gateway:
    """`extproc up` (or another command) with ``config``, to which addresses and directories are added."""

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        command: str = "up",
        environment: Mapping[str, str] | None = None,
        log: Path | None = None,
    ) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="extproc-")
        self.directory = Path(self._directory.name)
        self.file = self.directory / "extproc.yaml"
        self.log_file = log or self.directory / "log"
        self.access_file = self.log_file.with_name(f"{self.log_file.name}.access")
        self._command = command
        self._environment = environment or {}
        ports = {name: free_port() for name in ("listen", "envoy", "http")}
        self.url = f"http://127.0.0.1:{ports['listen']}"
        self.http = f"http://127.0.0.1:{ports['http']}"
        self.envoy = f"http://127.0.0.1:{ports['envoy']}"
        self._base = {
            "gateway": {
                "listen": f"127.0.0.1:{ports['listen']}",
                "admin": f"127.0.0.1:{ports['envoy']}",
                "directory": str(self.directory / "envoy"),
            },
            "server": {
                "grpc": f"unix:{self.directory}/extproc.sock",
                "access_log": f"unix:{self.directory}/log.sock",
                "http": f"127.0.0.1:{ports['http']}",
                "drain": "3s",
                "notice": "0s",
            },
            "state": {"journal": str(self.directory / "extproc.journal")},
            "audit": {"spill": str(self.directory / "audit")},
            "database": {"url": f"sqlite:///{self.directory}/extproc.db"},
        }
        self._process: subprocess.Popen[bytes] | None = None
        self.write(config)

    @property
    def base_url(self) -> str:
        """What the openai SDK wants."""
        return f"{self.url}/v1"

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    def write(self, config: Mapping[str, Any]) -> None:
        """Replace the configuration file by one rename, as an editor or an orchestrator does."""
        merged = {**config}
        for part, settings in self._base.items():
            merged[part] = {**settings, **config.get(part, {})}
        self.directory.mkdir(exist_ok=True)
        beside = self.file.with_suffix(".new")
        beside.write_text(yaml.safe_dump(merged, allow_unicode=True, sort_keys=False))
        beside.replace(self.file)

    def start(self) -> Self:
        """Returns when calls can be made. Raises RuntimeError with the log when it ends instead."""
        command = [sys.executable, "-m", "extproc", self._command, "--config", str(self.file)]
        self._process = self._spawn(command, env={**os.environ, **self._environment}, start_new_session=True)
        deadline = time.monotonic() + _READY
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                log = self.log()
                self.stop()
                raise RuntimeError(f"the gateway did not start:\n{log[-4000:]}")
            time.sleep(0.05)
        return self

    def _is_ready(self) -> bool:
        ready = self.get(f"{self.http}/readyz") is not None
        return ready and (self._command != "up" or self.get(f"{self.envoy}/ready") is not None)

    def stop(self) -> int:
        """End it as an operator would. Returns its exit status."""
        process = self._process
        if process is None:
            return 0
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return process.returncode

    def _spawn(self, command: list[str], **more: Any) -> subprocess.Popen[bytes]:
        """Envoy's access log goes to standard output, and every log to standard error; in one file they would mix."""
        with self.log_file.open("ab") as log, self.access_file.open("ab") as access:
            return subprocess.Popen(command, stdout=access, stderr=log, **more)

    @contextmanager
    def envoy_alone(self, text: str | None = None, *, concurrency: int | None = None) -> Iterator[None]:
        """An Envoy with this or the rendered static configuration, whether or not the server runs."""
        if text is None:
            command = [sys.executable, "-m", "extproc", "envoy", "render", "--config", str(self.file)]
            text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        file = self.directory / "envoy.yaml"
        file.write_text(text)
        command = [binary(), "-c", str(file), "--use-dynamic-base-id", "-l", "warn"]
        command += [] if concurrency is None else ["--concurrency", str(concurrency)]
        process = self._spawn(command)
        try:
            until(lambda: self.get(f"{self.envoy}/ready"), "envoy is ready")
            yield
        finally:
            process.terminate()
            process.wait(10)

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def access_log(self) -> str:
        """Envoy's own lines, one a call."""
        return self.access_file.read_text(errors="replace")

    def health(self) -> dict[str, Any]:
        body = self.get(f"{self.http}/healthz")
        found: dict[str, Any] = json.loads(body) if body else {}  # noqa: TID251 - our own report
        return found

    def metrics(self) -> str:
        return (self.get(f"{self.http}/metrics") or b"").decode()

    @staticmethod
    def get(url: str) -> bytes | None:
        """The body of a 200, None for anything else."""
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - loopback http
                body: bytes = answer.read()
                return body
        except (OSError, urllib.error.URLError):
            return None

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            self._directory.cleanup()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._directory.cleanup()
