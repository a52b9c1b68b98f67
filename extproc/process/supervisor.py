"""The parent of the workers: starts them, starts them again, hands them new configurations, ends them in order."""

import asyncio
import contextlib
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from extproc.app import Parts, check, check_moderation
from extproc.config.load import ConfigError, Loaded, Problem, parse
from extproc.config.schema import Config
from extproc.core.evidence import Ended
from extproc.core.tasks import Tasks
from extproc.envoyconf.clusters import held
from extproc.envoyconf.files import EnvoyFiles
from extproc.envoyconf.render import Resources, resources
from extproc.process.accesslog import AccessLog
from extproc.process.control import (
    REPORTS,
    Answered,
    Ask,
    Command,
    Drain,
    KeyCooling,
    Ready,
    Reload,
    Reloaded,
    open_channel,
    receive,
    send,
)
from extproc.process.envoy import EnvoyAdmin
from extproc.process.watch import changes
from extproc.providers.pool import Pools
from extproc.telemetry import log, metrics

_LOG = log.get()
_START: Final = 30.0  # seconds for a worker to listen
_ANSWER: Final = 60.0  # seconds for a worker to compare all its numbers with the ledger
_LATE: Final = 15.0  # seconds that a draining worker may take beyond its grace
_BACKOFF: Final = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0)  # seconds before a worker that keeps ending is started again
_LINGER: Final = 900.0  # seconds that clusters out of use stay, for calls that wait for a first byte and then retry
_STEADY: Final = 10.0  # seconds after which a worker counts as sound

WorkerState = Literal["starting", "serving", "down", "draining"]


@dataclass(slots=True)
class Worker:
    """One worker process, through all its restarts."""

    index: int
    state: WorkerState = "starting"
    process: asyncio.subprocess.Process | None = None
    digest: str = ""
    restarts: int = 0
    reader: asyncio.StreamReader | None = None
    writer: asyncio.StreamWriter | None = None
    answers: asyncio.Queue[Reloaded] = field(default_factory=asyncio.Queue)
    ready: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True)
class ConfigState:
    """What is in force, and what was refused since."""

    digest: str
    loaded_at: float
    problems: tuple[Problem, ...] = ()
    refused_at: float | None = None


class Supervisor:
    """Runs workers for one configuration file. ``files``: keep Envoy's rendered files up to date there."""

    def __init__(self, loaded: Loaded, content: bytes, *, files: EnvoyFiles | None = None) -> None:
        self._loaded = loaded
        self._content = content
        self._keys = Pools(time.monotonic)
        self._built = check(loaded, self._keys)
        check_moderation(loaded)
        self._files = files
        self._made = self._render(loaded, self._built)
        self._generation = 0
        self._told = 0
        self._asked: dict[int, asyncio.Future[Answered]] = {}
        self._leaving: dict[str, dict[str, Any]] = {}
        self._tasks = Tasks()
        self._draining = False
        self._stopping = False
        self._admin = EnvoyAdmin(loaded.config.gateway.admin)
        self._access_log = AccessLog(loaded.config.server, self._keys, tell_one=self._tell_one, tell_all=self._tell_all)
        self.workers = [Worker(i) for i in range(loaded.config.server.workers)]
        self.config_state = ConfigState(loaded.digest, time.time())
        metrics.CONFIG_OK.set(1)
        metrics.CONFIG_TIME.set(time.time())

    @property
    def config(self) -> Config:
        return self._loaded.config

    @property
    def admin_tokens(self) -> tuple[bytes, ...]:
        """SHA-256 of those in force."""
        return self._loaded.admin_tokens

    @property
    def ready(self) -> bool:
        return not self._draining and any(w.state == "serving" for w in self.workers)

    def report(self) -> dict[str, Any]:
        """What `/healthz` says."""
        state = self.config_state
        refused = None
        if state.refused_at is not None:
            problems = [{"path": p.path, "message": p.message} for p in state.problems]
            refused = {"at": state.refused_at, "problems": problems}
        sound = refused is None and all(w.state == "serving" and w.digest == state.digest for w in self.workers)
        return {
            "status": "draining" if self._draining else "ok" if sound else "degraded",
            "config": {
                "file": str(self._loaded.file),
                "digest": state.digest,
                "loaded_at": state.loaded_at,
                "refused": refused,
            },
            "workers": [
                {
                    "index": w.index,
                    "state": w.state,
                    "pid": w.process.pid if w.process else None,
                    "config": w.digest,
                    "restarts": w.restarts,
                }
                for w in self.workers
            ],
        }

    def pools(self) -> list[dict[str, Any]]:
        """Every key of every provider: whether it is used, and what was last held against it. Never the key."""
        wall = time.time()
        return [{"provider": name, **key} for name, pool in self._built.pools.items() for key in pool.state(wall)]

    # --- life -------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """All workers listen when this returns. Raises RuntimeError or OSError when one cannot, or we ourselves."""
        if self._files is not None:
            self._files.write_all(self.config, self._made, self._version())
        await self._access_log.start()
        for worker in self.workers:
            self._tasks.spawn(self._keep(worker))
        try:
            async with asyncio.timeout(_START):
                await asyncio.gather(*(w.ready.wait() for w in self.workers))
        except TimeoutError:
            raise RuntimeError("a worker did not start; its reason is in the log") from None
        self._tasks.spawn(self._watch())

    def drain(self) -> None:
        """Say that the end is near. Workers go on, and one that dies is still started again."""
        self._draining = True

    async def stop(self, *, notice: float) -> None:
        """Drain the workers, then end them. ``notice``: seconds for health checks to see it."""
        self.drain()
        self._stopping = True
        await self._access_log.stop()
        drain = Drain(notice, self.config.server.drain)
        await asyncio.gather(*(self._end(w, drain) for w in self.workers))
        await self._tasks.cancel()

    async def _keep(self, worker: Worker) -> None:
        failures = 0
        while not self._stopping:
            began = time.monotonic()
            try:
                await self._run(worker)
            except OSError as error:
                _LOG.error("worker could not be started", worker=worker.index, error=str(error))
            if self._stopping:
                return
            failures = 0 if time.monotonic() - began > _STEADY else failures + 1
            pause = _BACKOFF[min(failures, len(_BACKOFF) - 1)]
            status = worker.process.returncode if worker.process else None
            _LOG.error("worker ended", worker=worker.index, status=status, again_in=pause)
            worker.restarts += 1
            metrics.WORKER_RESTARTS.inc()
            await asyncio.sleep(pause)

    async def _run(self, worker: Worker) -> None:
        """One life of a worker process."""
        worker.state = "starting"
        ours, theirs = socket.socketpair()
        with theirs:
            worker.process = process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "extproc", "worker",
                "--config", str(self._loaded.file), "--index", str(worker.index), "--control", str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
        worker.reader, worker.writer = await open_channel(ours)
        try:
            with contextlib.suppress(ConnectionError):
                await send(worker.writer, Reload(self._content))
            await self._listen(worker)
        finally:
            worker.state = "down"
            worker.writer.close()
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            await process.wait()
            metrics.forget(process.pid)
            self._count_workers()

    async def _listen(self, worker: Worker) -> None:
        assert worker.reader is not None  # noqa: S101 - set by _run
        while (report := await receive(worker.reader, REPORTS)) is not None:
            if isinstance(report, Answered):
                asked = self._asked.get(report.number)
                if asked is not None and not asked.done():
                    asked.set_result(report)
                continue
            worker.digest = report.digest
            if isinstance(report, Ready):
                worker.state = "serving"
                worker.ready.set()
                self._count_workers()
                _LOG.info("worker serves", worker=worker.index, config=report.digest)
                await self._catch_up(worker)
                for provider, key, seconds in self._keys.cooling():
                    await self._try_to_tell(worker, KeyCooling(provider, key, seconds))
            else:
                worker.answers.put_nowait(report)

    async def _end(self, worker: Worker, drain: Drain) -> None:
        process = worker.process
        if process is None or process.returncode is not None or worker.writer is None:
            return
        worker.state = "draining"
        with contextlib.suppress(ConnectionError):
            await self._tell(worker, drain)
        try:
            await asyncio.wait_for(process.wait(), drain.notice + drain.grace + _LATE)
        except TimeoutError:
            process.kill()
            await process.wait()

    @staticmethod
    async def _tell(worker: Worker, command: Command) -> None:
        if worker.writer is not None:
            await send(worker.writer, command)

    async def _try_to_tell(self, worker: Worker, command: Command) -> bool:
        try:
            await self._tell(worker, command)
        except ConnectionError:
            return False  # it is going down
        return True

    async def _tell_one(self, call: Ended) -> bool:
        """Some worker, each in turn."""
        serving = [w for w in self.workers if w.state == "serving"]
        if not serving:
            return False
        self._told += 1
        return await self._try_to_tell(serving[self._told % len(serving)], call)

    async def ask(self, consumer: str = "") -> list[dict[str, Any]]:
        """What a worker says of the numbers in use: see ``control.Ask``. Raises RuntimeError with the reason."""
        serving = [w for w in self.workers if w.state == "serving"]
        if not serving:
            raise RuntimeError("no worker serves")
        self._told += 1
        number, answer = self._told, asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        try:
            async with asyncio.timeout(_ANSWER):
                await self._tell(serving[number % len(serving)], Ask(number, consumer))
                told: Answered = await answer
        except (ConnectionError, TimeoutError):
            raise RuntimeError("the worker did not answer") from None
        finally:
            del self._asked[number]
        if told.problem:
            raise RuntimeError(told.problem)
        return told.lines

    async def _tell_all(self, cooling: KeyCooling) -> None:
        """Also those that drain: their calls may still be tried anew. One that starts is told when it serves."""
        for worker in self.workers:
            if worker.state in ("serving", "draining"):
                await self._try_to_tell(worker, cooling)

    def _count_workers(self) -> None:
        for state in ("starting", "serving", "down", "draining"):
            metrics.gauge(metrics.WORKERS, state).set(sum(w.state == state for w in self.workers))

    # --- reload -----------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        async for _ in changes(lambda: self._loaded.files):
            await self.reload()

    async def reload(self) -> None:
        """Read the file again: checked whole, built, handed to every worker, then to Envoy. Or refused whole."""
        file = self._loaded.file
        try:
            content = await asyncio.to_thread(file.read_bytes)
            loaded, built, made = await asyncio.to_thread(self._prepare, content, file)
            self._check_fixed(loaded)
            await self._hand_out(content, loaded.digest)
        except ConfigError as error:
            self._refuse(error.problems)
        except OSError as error:
            self._refuse((Problem("", f"cannot be read: {error.strerror}"),))
        else:
            await self._adopt(loaded, content, built, made)

    def _prepare(self, content: bytes, file: Path) -> tuple[Loaded, Parts, Resources]:
        loaded = parse(content, file)
        built = check(loaded, self._keys)
        check_moderation(loaded)
        return loaded, built, self._render(loaded, built)

    def _render(self, loaded: Loaded, built: Parts) -> Resources:
        directory = self._files.directory if self._files else None
        try:
            return resources(loaded.config, built.models, built.providers, directory=directory)
        except FileNotFoundError as error:
            raise ConfigError(loaded.file, [Problem("gateway.ca", str(error))]) from error

    def _check_fixed(self, new: Loaded) -> None:
        """What a running process cannot change."""
        old, fresh = self.config, new.config
        problems = []
        problems += [
            Problem(part, "changed, which takes effect with a restart only; nothing was applied")
            for part in ("server", "state", "database")
            if getattr(old, part) != getattr(fresh, part)
        ]
        if old.accounts.currency != fresh.accounts.currency:
            problems.append(Problem("accounts.currency", "changed, which takes effect with a restart only"))
        problems += [
            Problem(f"gateway.{name}", "changed, which takes effect with a restart only; nothing was applied")
            for name in ("admin", "directory", "concurrency")
            if getattr(old.gateway, name) != getattr(fresh.gateway, name)
        ]
        problems += [
            Problem(f"audit.{name}", "changed, which takes effect with a restart only; nothing was applied")
            for name in ("spill", "spill_size", "sinks")
            if getattr(old.audit, name) != getattr(fresh.audit, name)
        ]
        if old.admin.tls != fresh.admin.tls:
            problems.append(Problem("admin.tls", "changed, which takes effect with a restart only"))
        # Workers take messages of this size and no more; and a changed cluster of ours breaks all calls in Envoy.
        if held(old) != held(fresh):
            name = "max_answer" if old.gateway.max_answer != fresh.gateway.max_answer else "max_body"
            reason = "changed the larger of max_body and max_answer, which takes effect with a restart only"
            problems.append(Problem(f"gateway.{name}", f"{reason}; nothing was applied"))
        if problems:
            raise ConfigError(new.file, problems)

    async def _hand_out(self, content: bytes, digest: str) -> None:
        """Every serving worker takes it, before Envoy sends calls by it; one that is just starting catches up."""
        serving = [w for w in self.workers if w.state == "serving"]
        problems = [p for w in serving if (p := await self._reload_one(w, content, digest))]
        if problems:
            raise ConfigError(self._loaded.file, [Problem("", p) for p in problems])

    async def _reload_one(self, worker: Worker, content: bytes, digest: str) -> str:
        try:
            await self._tell(worker, Reload(content))
            async with asyncio.timeout(_START):
                while (answer := await worker.answers.get()).digest != digest and not answer.problem:
                    pass  # an answer to what it had to catch up with before
                return answer.problem
        except (ConnectionError, TimeoutError):
            return ""  # it is going down, and its successor starts with what is in force

    async def _catch_up(self, worker: Worker) -> None:
        """A worker that began with an older configuration than the one in force gets that."""
        if worker.state == "serving" and worker.digest != self.config_state.digest:
            with contextlib.suppress(ConnectionError):
                await self._tell(worker, Reload(self._content))

    async def _adopt(self, loaded: Loaded, content: bytes, built: Parts, made: Resources) -> None:
        before, self._made = self._made, made
        self._loaded, self._content, self._built = loaded, content, built
        self.config_state = ConfigState(loaded.digest, time.time())
        metrics.CONFIG_OK.set(1)
        metrics.CONFIG_TIME.set(time.time())
        metrics.counter(metrics.RELOADS, "accepted").inc()
        _LOG.info("configuration in force", config=loaded.digest)
        for worker in self.workers:
            await self._catch_up(worker)
        if self._files is not None:
            await self._update_envoy(self._files, before, made)

    async def _update_envoy(self, files: EnvoyFiles, before: Resources, made: Resources) -> None:
        self._generation += 1
        self._leave(before, made)
        files.write_clusters(made, self._version(), beside=self._leaving.values())
        if not await self._admin.settled(c["name"] for c in made.clusters):
            _LOG.warning("envoy has not confirmed the new clusters; its routes are switched all the same")
        files.write_traffic(made, self._version())
        self._tasks.spawn(self._retire(files, self._generation))

    def _leave(self, before: Resources, made: Resources) -> None:
        """Clusters that calls may still retry to stay for a while beside those that are in use."""
        self._leaving |= {cluster["name"]: cluster for cluster in before.clusters}
        for cluster in made.clusters:
            self._leaving.pop(cluster["name"], None)

    async def _retire(self, files: EnvoyFiles, generation: int) -> None:
        """Take old clusters away when no call can still be waiting for a first byte under the old routes."""
        await asyncio.sleep(_LINGER)
        if generation == self._generation:
            self._leaving.clear()
            files.write_clusters(self._made, f"{self._version()}-alone")

    def _version(self) -> str:
        return f"{self._loaded.digest}-{self._generation}"

    def _refuse(self, problems: tuple[Problem, ...]) -> None:
        self.config_state.problems = problems
        self.config_state.refused_at = time.time()
        metrics.CONFIG_OK.set(0)
        metrics.counter(metrics.RELOADS, "refused").inc()
        _LOG.error("configuration refused; the old one stays", problems=[str(p) for p in problems])


def stop_signals() -> asyncio.Event:
    """Set by SIGTERM or SIGINT."""
    event = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, event.set)
    return event
