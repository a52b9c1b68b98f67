"""Reserving and settling, and the way of every row into the ledger, whatever dies on it.

A call is counted once: its row is in the ledger before the hot state forgets it, the ledger takes each row once, and
a number that may lack a row, or have one twice, is dropped and loaded from the ledger anew.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import msgspec

from extproc.core.tasks import Tasks
from extproc.stores.ports import (
    LEASE,
    Amounts,
    Counter,
    DatabaseUnavailable,
    Granted,
    HotState,
    Ledger,
    Missing,
    Row,
    Short,
    StateUnavailable,
)

FLUSH: Final = 0.05
"""Seconds between two writes to the ledger."""
BEAT: Final = 2.0
"""Seconds between two signs of life."""
GRACE: Final = 8.0
"""Seconds in which something better than a guess may still be said of a call whose worker died."""
MAX_WAITING: Final = 100_000
"""Rows that may wait for a database that is away; then no more calls are taken."""
_BATCH: Final = 2000
_TRIES: Final = 5


class Watch(Protocol):
    """What the books tell their owner, for metrics and logs."""

    def booked(self, rows: Sequence[Row]) -> None: ...
    def waiting(self, rows: int) -> None: ...
    def refused(self, row: Row, error: BaseException) -> None:
        """The database does not take this row."""

    def trouble(self, what: str, error: BaseException) -> None: ...


@dataclass(slots=True)
class Settlement:
    """A call's end. ``worker``: whose call it was, where it was not our own."""

    row: Row
    amounts: Amounts
    counters: Sequence[Counter] = ()
    worker: str = ""
    stranded: bool = field(default=False, repr=False)
    """The hot state was away: the row goes into the ledger first, and what it counts on is loaded anew afterwards."""


class Books:
    """One worker's books. ``threaded`` runs what blocks."""

    def __init__(
        self,
        hot: HotState,
        ledger: Ledger,
        watch: Watch,
        *,
        wall: Callable[[], float] = time.time,
        grace: float = GRACE,
    ) -> None:
        self._hot = hot
        self._ledger = ledger
        self._watch = watch
        self._wall = wall
        self._grace = grace
        self._rows: deque[Settlement] = deque()
        self._booked: dict[str, list[str]] = {}
        self._stranded: deque[Settlement] = deque()
        self._loading = asyncio.Lock()
        self._writing = asyncio.Lock()
        self._orphans: dict[str, float] = {}
        self._ended: dict[str, tuple[Settlement, float]] = {}
        self._tasks = Tasks()

    async def start(self) -> None:
        """Raises StateUnavailable or DatabaseUnavailable."""
        await self._hot.start()
        # What the life before had settled must be in the ledger before that is asked for any number.
        await self._adopt_orphans()
        await self.flush()
        for seconds, work in ((FLUSH, self.flush), (BEAT, self._hot.beat), (BEAT, self._tend)):
            self._tasks.spawn(self._every(seconds, work))

    async def stop(self) -> None:
        """Write what there is, once more, and leave."""
        await self._tasks.cancel()
        for last in (self._settle_stranded, self.flush, self._hot.stop):
            await self._try(last)

    # --- calls ------------------------------------------------------------------------------------------------

    def reserve(self, note: Row, counters: Sequence[Counter], amounts: Amounts) -> "asyncio.Task[Granted | Short]":
        """Hold ``amounts``; ``note`` is the row of the call if nothing more is ever heard of it.

        A task, which must not be cancelled: a reservation that nobody waited for would be held for ever. It raises
        StateUnavailable, also where rows wait for the database by the ten thousand.
        """
        return self._tasks.spawn(self._reserve(note, counters, amounts))

    async def _reserve(self, note: Row, counters: Sequence[Counter], amounts: Amounts) -> Granted | Short:
        if len(self._rows) > MAX_WAITING:
            raise StateUnavailable("too many calls wait to be booked: the database is away")
        content = msgspec.json.encode(note)
        held = await self._hot.reserve(note.call_id, counters, amounts, content)
        if not isinstance(held, Missing):
            return held
        async with self._loading:
            for _ in range(_TRIES):
                held = await self._hot.reserve(note.call_id, counters, amounts, content)
                if not isinstance(held, Missing):
                    return held
                await self._load([counters[place] for place in held.counters])
        raise StateUnavailable("numbers that were just loaded are missing")

    async def settle(self, settlement: Settlement) -> None:
        """Count what the call took, and have its row written. Never raises for want of a store: it is done later."""
        try:
            await self._settle(settlement)
        except StateUnavailable as error:
            self._watch.trouble("settle", error)
            settlement.stranded = True
        self._queue(settlement)

    def book(self, row: Row) -> None:
        """Have a row written that counts on nothing."""
        self._queue(Settlement(row, Amounts(requests=0)))

    def adopt(self, settlement: Settlement) -> None:
        """The end of another worker's call, as Envoy saw it. It counts where that worker died and cannot say more."""
        self._ended[settlement.row.call_id] = settlement, self._wall()

    # --- the way into the ledger ------------------------------------------------------------------------------

    async def flush(self) -> None:
        """Write the rows that wait. Raises DatabaseUnavailable or StateUnavailable; what is not done yet waits on."""
        async with self._writing:
            while self._rows:
                batch = [self._rows[place] for place in range(min(_BATCH, len(self._rows)))]
                await self._add([each.row for each in batch])
                for each in batch:
                    self._rows.popleft()
                    if each.stranded:
                        self._stranded.append(each)
                    else:
                        self._booked.setdefault(each.worker, []).append(each.row.call_id)
                self._watch.booked([each.row for each in batch])
                self._watch.waiting(len(self._rows))
            while self._booked:
                worker, call_ids = self._booked.popitem()
                try:
                    await self._hot.booked(call_ids, worker=worker)
                except StateUnavailable:
                    self._booked.setdefault(worker, []).extend(call_ids)
                    raise

    def _queue(self, settlement: Settlement) -> None:
        self._rows.append(settlement)
        self._watch.waiting(len(self._rows))

    async def _add(self, rows: Sequence[Row]) -> None:
        """One row that the database does not take must not keep the others from it."""
        try:
            await asyncio.to_thread(self._ledger.add, rows)
        except DatabaseUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - told, with the row
            if len(rows) == 1:
                self._watch.refused(rows[0], error)
                return
            half = len(rows) // 2
            await self._add(rows[:half])
            await self._add(rows[half:])

    async def _settle(self, settlement: Settlement) -> None:
        content = msgspec.json.encode(settlement.row)
        for _ in range(_TRIES):
            missing = await self._hot.settle(
                settlement.row.call_id,
                settlement.counters,
                settlement.amounts,
                content,
                worker=settlement.worker,
            )
            if missing is None:
                return
            async with self._loading:
                await self._load([settlement.counters[place] for place in missing.counters])
        raise StateUnavailable("numbers that were just loaded are missing")

    async def _load(self, counters: Sequence[Counter]) -> None:
        """Ask the ledger, in which by then is every row that we counted. Raises StateUnavailable."""
        try:
            await self.flush()
            loaded = await asyncio.to_thread(self._ledger.load, counters, now=self._wall())
        except DatabaseUnavailable as error:
            raise StateUnavailable(f"the ledger cannot be asked: {error}") from error
        await self._hot.load(loaded)

    # --- what others, or we ourselves, left behind --------------------------------------------------------------

    async def _tend(self) -> None:
        await self._settle_stranded()
        await self._adopt_ended()
        await self._adopt_orphans()

    async def _settle_stranded(self) -> None:
        while self._stranded:
            each = self._stranded[0]
            each.counters = [counter for counter in each.counters if counter.kind == "quota"]
            await self._settle(each)
            await self._hot.forget(each.counters)
            self._stranded.popleft()
            self._booked.setdefault(each.worker, []).append(each.row.call_id)

    async def _adopt_ended(self) -> None:
        for call_id, (settlement, since) in list(self._ended.items()):
            if not await self._hot.alive(settlement.worker):
                await self.settle(settlement)
            elif self._wall() - since < LEASE + self._grace:
                continue
            del self._ended[call_id]

    async def _adopt_orphans(self) -> None:
        """Book what dead workers left: their rows at once, what they had open when nobody can say more of it."""
        now = self._wall()
        orphans = await self._hot.orphans()
        self._orphans = {each.call_id: self._orphans.get(each.call_id, now) for each in orphans}
        for each in orphans:
            if each.row:
                row = msgspec.json.decode(each.row, type=Row)
                self._queue(Settlement(row, Amounts(), worker=each.worker))
            elif now - self._orphans[each.call_id] >= self._grace:
                note = msgspec.json.decode(each.note, type=Row)
                row = msgspec.structs.replace(note, ended=round(now * 1000), how="lost")
                await self.settle(Settlement(row, Amounts(row.tokens, row.cost), worker=each.worker))

    # --- keeping on -------------------------------------------------------------------------------------------

    async def _every(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(seconds)
            await self._try(work)

    async def _try(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - tried again; the books must go on
            self._watch.trouble(getattr(work, "__name__", "work"), error)
