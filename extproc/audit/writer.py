"""The way of every record to the database and to the sinks, off the path of its call.

``put`` appends the record to a file of ``spill`` by one write(2); from there it is written to the database, in batches,
and dropped from the file when the database has it. So a record survives its process and a database that is away, and
memory holds none of those that wait.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

import msgspec

from extproc.audit import sinks as queues
from extproc.audit.record import AuditReading, AuditStore, Record, Retention, decode, encode
from extproc.audit.sinks import Sink, SinkQueue
from extproc.audit.spill import LIMIT, Spill, SpillFull
from extproc.core.tasks import Tasks
from extproc.stores.ports import DatabaseUnavailable

FLUSH: Final = 0.05
"""Seconds between two writes to the database."""
AWAY: Final = 1.0
"""Seconds before a database that is away is asked again."""
ADOPT: Final = 5.0
"""Seconds between two looks for what dead processes left."""
EXPIRE: Final = 600.0
"""Seconds between two deletions of what is too old."""
_MEMORY: Final = 16 << 20
"""Bytes of records that are held in memory while the spill's disk is full or broken."""


class Watch(queues.Watch, Protocol):
    """What the writer tells its owner, for metrics and logs. Called from any thread."""

    def written(self, records: int) -> None: ...
    def waiting(self, size: int) -> None:
        """Bytes that wait for the database."""

    def refused(self, record: str, error: BaseException) -> None:
        """The database does not take this record, or it is none; ``record`` is its call's id, where known."""


class AuditWriter:
    """One process's writer. ``retention`` gives what is in force; None: nothing is deleted here."""

    def __init__(
        self,
        store: AuditStore,
        *,
        spill: Path,
        watch: Watch,
        sinks: Sequence[Sink] = (),
        limit: int = LIMIT,
        retention: Callable[[], Retention] | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """``spill``: a directory, which processes may share; ``limit``: bytes of ours in it."""
        self._store = store
        self._watch = watch
        self._retention = retention
        self._wall = wall
        self._spill = Spill(spill, limit=limit)
        self._memory: deque[bytes] = deque()
        self._held = 0
        self._sinks = [SinkQueue(sink, watch) for sink in sinks]
        self._writing = asyncio.Lock()
        self._tasks = Tasks()

    async def start(self) -> None:
        """Begin to write. What a process before has left is written first. Raises nothing: the database may be away."""
        for sink in self._sinks:
            sink.start()
        for seconds, work in ((FLUSH, self.flush), (ADOPT, self._adopt), (EXPIRE, self._expire)):
            self._tasks.spawn(self._every(seconds, work))

    async def stop(self) -> None:
        """Write what there is, once more; what the database does not take now stays in the spill."""
        await self._tasks.cancel()
        await self._try(self.flush)
        self._spill.close()
        if self._held:
            self._watch.dropped("memory", len(self._memory))
        await asyncio.gather(*(asyncio.to_thread(sink.stop) for sink in self._sinks))

    def put(self, record: Record) -> None:
        """Never waits, and never raises."""
        try:
            content = encode(record)
        except (ValueError, TypeError, msgspec.MsgspecError) as error:
            self._watch.refused(record.call_id, error)
            return
        try:
            self._spill.append(content)
        except SpillFull:
            self._watch.dropped("spill", 1)
        except OSError as error:
            self._watch.trouble("spill", error)
            self._hold(content)
        for sink in self._sinks:
            sink.put(record, len(content))

    async def flush(self) -> None:
        """Write the records that wait. Raises DatabaseUnavailable and OSError; what is not written waits on."""
        async with self._writing:
            try:
                while batch := self._spill.read():
                    await asyncio.to_thread(self._add, batch)
                    self._spill.done()
                while self._memory:
                    batch = list(self._memory)
                    await asyncio.to_thread(self._add, batch)
                    for content in batch:
                        self._held -= len(content)
                        self._memory.popleft()
            finally:
                self._watch.waiting(self._spill.waiting + self._held)

    def _hold(self, content: bytes) -> None:
        if self._held + len(content) > _MEMORY:
            self._watch.dropped("memory", 1)
            return
        self._memory.append(content)
        self._held += len(content)

    def _add(self, batch: Sequence[bytes]) -> None:
        records = []
        for content in batch:
            time.sleep(0)  # lets the loop's thread go on between two records
            try:
                records.append(decode(content))
            except msgspec.MsgspecError as error:
                self._watch.refused("", error)
        self._add_records(records)

    def _add_records(self, records: Sequence[Record]) -> None:
        """One record that the database does not take must not keep the others from it."""
        try:
            self._watch.written(self._store.add(records))
        except DatabaseUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - told, with the record
            if len(records) == 1:
                self._watch.refused(records[0].call_id, error)
                return
            half = len(records) // 2
            self._add_records(records[:half])
            self._add_records(records[half:])

    # --- keeping on -------------------------------------------------------------------------------------------

    async def _adopt(self) -> None:
        async with self._writing:  # between a reading and its end the segments stay in their order
            self._spill.adopt()

    async def _expire(self) -> None:
        if self._retention is None:
            return
        now = self._wall()
        gone = await asyncio.to_thread(self._store.expire, self._retention(), now)
        if gone:
            reading = AuditReading(time=now, who="retention", what="retention", found=gone)
            await asyncio.to_thread(self._store.note, reading)

    async def _every(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            away = not await self._try(work)
            await asyncio.sleep(max(seconds, AWAY) if away else seconds)

    async def _try(self, work: Callable[[], Awaitable[None]]) -> bool:
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - tried again; the records must go on
            self._watch.trouble(getattr(work, "__name__", "work").strip("_"), error)
            return False
        return True
