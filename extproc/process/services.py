"""What a worker has for as long as it lives: its stores and books, and what it hears of the database and from Envoy."""

import asyncio
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from msgspec.structs import asdict

from extproc import auditing
from extproc.accounts.books import Books, Settlement
from extproc.accounts.consumers import Snapshot
from extproc.accounts.estimates import Estimator
from extproc.accounts.verify import differences
from extproc.app import Build, Services, build
from extproc.audit.writer import AuditWriter
from extproc.config.load import ConfigError, Loaded, Problem
from extproc.config.schema import Config
from extproc.core.evidence import Ended
from extproc.core.tasks import Tasks
from extproc.dialects.usage import Usage
from extproc.judging import build_judges
from extproc.providers.pool import Pools
from extproc.stores.memory import MemoryState
from extproc.stores.ports import Amounts, DatabaseUnavailable, HotState, Row
from extproc.stores.sql import Database, open_database
from extproc.telemetry import audit as audit_watch
from extproc.telemetry import books as watch
from extproc.telemetry import log

_LOG = log.get()
_WATCH: Final = 0.4
"""Seconds between two looks at the database for consumers and keys: a change works within a second."""
_TOUCH: Final = 5.0
"""Seconds between two notes of when keys were last used."""
_LEARN: Final = 7 * 86400.0
"""Seconds of the ledger from which estimates start."""
_BYTES_PER_TOKEN: Final = {"yes": 200, "no": 4}
"""Of an answer that nobody read to its end: an event of a stream has some two hundred bytes around its token."""


class WorkerServices:
    """Everything of one worker that outlives a configuration. ``current`` gives the one in force."""

    def __init__(self, loaded: Loaded, database: Database, hot: HotState, worker: str) -> None:
        self._database = database
        self._hot = hot
        self._worker = worker
        self._used: dict[str, float] = {}
        self._tasks = Tasks()
        self.books = Books(hot, database.ledger, watch.Watch())
        self.estimator = Estimator(watch.estimated)
        self.snapshot = Snapshot()
        self.keys = Pools(time.monotonic)
        self._config = loaded.config
        audit = loaded.config.audit
        self._audit = AuditWriter(
            database.audit,
            spill=audit.spill,
            limit=audit.spill_size,
            watch=audit_watch.Watch(),
            sinks=auditing.sinks(loaded),
            retention=lambda: auditing.retention(self._config),
        )

    @classmethod
    async def open(cls, loaded: Loaded, index: int) -> "WorkerServices":
        """Raises DatabaseUnavailable or StateUnavailable."""
        config = loaded.config
        worker = f"{socket.gethostname()}/{index}/{secrets.token_hex(4)}"
        database = await asyncio.to_thread(open_database, config.database.url, currency=config.accounts.currency)
        made = cls(loaded, database, hot_state(config, worker), worker)
        made.snapshot.apply(await asyncio.to_thread(database.register.changes, 0))
        answers = await asyncio.to_thread(database.ledger.typical_output, time.time() - _LEARN)
        for model, (tokens, _) in answers.items():
            made.estimator.seed(model, tokens)
        await made.books.start()
        await made._audit.start()
        return made

    def services(self) -> Services:
        return Services(
            books=self.books,
            estimator=self.estimator,
            snapshot=self.snapshot,
            keys=self.keys,
            on_use=self._used.__setitem__,
            put=self._audit.put,
            worker=self._worker,
        )

    def start(self, current: Callable[[], Build]) -> None:
        """Look at the database from now on."""
        self._tasks.spawn(self._watch_register(current))
        self._tasks.spawn(self._note_use())

    async def close(self) -> None:
        await self._tasks.cancel()
        await self.books.stop()
        await self._audit.stop()
        await self._touch()
        await asyncio.to_thread(self._database.close)

    async def build(self, loaded: Loaded) -> Build:
        """What this configuration becomes, off the loop but for its judges. Raises ConfigError."""
        try:
            judges = build_judges(loaded.config, loaded.judge_keys)
        except (OSError, ModuleNotFoundError) as error:
            raise ConfigError(loaded.file, [Problem("judges", str(error))]) from error
        made = await asyncio.to_thread(build, loaded, self.services(), judges)
        self._config = loaded.config
        return made

    async def retire(self, gone: Sequence[Build]) -> None:
        """Close what only these used."""
        for judge in [judge for each in gone for judge in each.judges.values()]:
            await judge.close()

    # --- consumers and keys -----------------------------------------------------------------------------------

    async def _watch_register(self, current: Callable[[], Build]) -> None:
        register = self._database.register
        while True:
            await asyncio.sleep(_WATCH)
            since = min(self.snapshot.revision, current().consumers.revision)
            try:
                if await asyncio.to_thread(register.revision) == since:
                    continue
                changes = await asyncio.to_thread(register.changes, since)
            except DatabaseUnavailable as error:
                _LOG.error("consumers and keys cannot be read; those known stay", error=str(error))
                continue
            self.snapshot.apply(changes)
            consumers = current().consumers
            consumers.apply(changes)
            if consumers.unreadable:
                _LOG.error(
                    "rules of the database cannot be read; who is bound by them may use nothing",
                    names=sorted(consumers.unreadable),
                )

    async def _note_use(self) -> None:
        while True:
            await asyncio.sleep(_TOUCH)
            await self._touch()

    async def _touch(self) -> None:
        used = dict(self._used)
        if not used:
            return
        self._used.clear()
        try:
            await asyncio.to_thread(self._database.register.touch, used)
        except DatabaseUnavailable as error:
            _LOG.error("the last use of keys is not noted", error=str(error))

    # --- the numbers in use -----------------------------------------------------------------------------------

    async def numbers(self, consumer: str, build: Build) -> list[dict[str, Any]]:
        """A consumer's numbers; with none named, quotas that are not what the ledger says.

        Raises StateUnavailable or DatabaseUnavailable.
        """
        now, models = time.time(), list(build.parts.models)
        if not consumer:
            counters = build.consumers.quotas(models, now)
            await self.books.flush()
            found = await differences(self._hot, self._database.ledger, counters, now=now)
            return [asdict(each) for each in found]
        known = build.consumers.get(consumer)
        mine = {c.key: c for model in models for c in build.consumers.counters.of(known, model, now)} if known else {}
        readings = await self._hot.read(list(mine.values()))
        return [
            {
                "number": counter.key,
                "kind": counter.kind,
                "unit": counter.unit,
                "limit": counter.limit,
                "used": reading.used,
                "held": reading.held,
                "renewed": counter.end,
            }
            for counter, reading in zip(mine.values(), readings, strict=True)
        ]

    # --- what Envoy tells later -------------------------------------------------------------------------------

    def on_ended(self, ended: Ended, build: Build) -> None:
        """Envoy saw the end of a call. If it was a worker's that died, what passed is what is known of it."""
        call = ended.call
        worker, call_id, name = (str(call.get(key, "")) for key in ("worker", "call_id", "consumer"))
        if not worker or not call_id or not name or worker == self._worker:
            return
        began, model = float(ended.started), str(call.get("model", ""))
        consumer = build.consumers.get(name)
        usage = _usage_of(ended)
        row = Row(
            call_id=call_id,
            started=round(began * 1000),
            ended=round((began + ended.seconds) * 1000),
            consumer=name,
            team=consumer.team if consumer else "",
            model=model,
            endpoint=str(call.get("endpoint", "")),
            provider=ended.provider if ended.upstream else "",
            target=ended.target if ended.upstream else "",
            attempts=ended.attempts,
            how="aborted",
            status=ended.status,
            code="worker_died",
            stream=call.get("stream") == "yes",
            input=usage.input,
            output=usage.output,
            usage=usage.source,
            cost=build.prices.cost(model, ended.provider, ended.target, began, usage),
            currency=build.currency,
            worker=worker,
        )
        counters = build.consumers.counters.of(consumer, model, began) if consumer else ()
        self.books.adopt(Settlement(row, Amounts(row.tokens, row.cost), counters, worker))


def _usage_of(ended: Ended) -> Usage:
    """What was reported before the worker died, or what passed, in bytes."""
    call = ended.call
    if not ended.upstream:
        return Usage(source="estimated")
    prompt = int(call.get("input_tokens") or call.get("prompt_tokens") or 0) or ended.received // 4
    output = int(call.get("output_tokens") or 0) or ended.sent // _BYTES_PER_TOKEN[str(call.get("stream", "no"))]
    return Usage(input=prompt, output=output, source="estimated")


def hot_state(config: Config, worker: str) -> HotState:
    """The hot state of the configuration, for this worker."""
    state = config.state
    if state.url == "memory://":
        return MemoryState(worker, journal=state.journal)
    from extproc.stores.redis import RedisState  # noqa: PLC0415 - an extra

    return RedisState(state.url, worker, timeout=state.timeout)
