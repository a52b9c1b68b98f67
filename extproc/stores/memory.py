"""Hot state in the memory of the one worker; a journal keeps its calls when the worker is killed."""

import asyncio
import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from extproc.stores.journal import Journal
from extproc.stores.ports import (
    BUCKETS,
    Amounts,
    Counter,
    Granted,
    Kind,
    Loaded,
    Missing,
    Orphan,
    Reading,
    Short,
    StateUnavailable,
    Unit,
)

_DAY: Final = 86_400
_MINUTE: Final = 60
_ORPHANS: Final = 256
_LOCK_TRIES: Final = 50
_LOCK_PAUSE: Final = 0.1  # seconds
_NOTHING: Final = Amounts(requests=0)


class _Hold(msgspec.Struct, array_like=True, frozen=True):
    """What a call holds of a counter; of a window, where it was counted."""

    kind: Kind
    unit: Unit
    amount: int
    bucket: int = 0


class _Open(msgspec.Struct, array_like=True, frozen=True, tag="open"):
    worker: str
    call_id: str
    note: bytes
    holds: dict[str, _Hold]


class _Settled(msgspec.Struct, array_like=True, frozen=True, tag="settled"):
    worker: str
    call_id: str
    row: bytes


class _Gone(msgspec.Struct, array_like=True, frozen=True, tag="gone"):
    """Released, or booked."""

    worker: str
    call_ids: list[str]


_Record = _Open | _Settled | _Gone

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(_Record).decode


class _Concurrent:
    """What open calls hold."""

    __slots__ = ("held", "used")

    def __init__(self) -> None:
        self.used: int | None = 0
        self.held = 0

    @property
    def is_missing(self) -> bool:
        return self.used is None

    def slide(self, _now: float) -> None:
        """It does not depend on time."""

    def excess(self, amount: int, limit: int) -> int:
        return (self.used or 0) + self.held + amount - limit

    def hold(self, amount: int) -> None:
        self.held += amount

    def finish(self, hold: _Hold, _amount: int) -> None:
        self.held = max(0, self.held - hold.amount)

    def count(self, _amount: int) -> None:
        """It counts nobody but those who are there."""

    def read(self, _amount: int, _limit: int) -> Reading:
        return Reading(self.used, self.held)

    def is_over(self, _now: float) -> bool:
        return not self.held


class _Quota(_Concurrent):
    """What a period has used, once that is loaded, and what open calls hold of it."""

    __slots__ = ("expires",)

    def __init__(self) -> None:
        super().__init__()
        self.used = None
        self.expires = math.inf

    def finish(self, hold: _Hold, amount: int) -> None:
        super().finish(hold, amount)
        if self.used is not None:
            self.used += amount

    def count(self, amount: int) -> None:
        self.used = (self.used or 0) + amount

    def load(self, loaded: Loaded, now: float) -> None:
        self.used = loaded.used
        # Calls may end after the period, and orphans much later.
        self.expires = math.inf if loaded.counter.end is None else max(loaded.counter.end, now) + _DAY

    def is_over(self, now: float) -> bool:
        return self.expires < now or (self.used is None and not self.held)


class _Window:
    """What the last seconds have used, by bucket, as of when it was told to ``slide``."""

    __slots__ = ("_buckets", "_newest", "_now", "_seconds", "_total", "expires", "is_missing")

    def __init__(self, seconds: int, *, is_missing: bool) -> None:
        self._seconds = seconds
        self._buckets: dict[int, int] = {}
        self._total = 0
        self.is_missing = is_missing

    def slide(self, now: float) -> None:
        self._now = now
        self._newest = _bucket(now, self._seconds)
        for bucket in [bucket for bucket in self._buckets if bucket < self._newest - BUCKETS]:
            self._total -= self._buckets.pop(bucket)

    def excess(self, amount: int, limit: int) -> int:
        return self._total + amount - limit

    def hold(self, amount: int) -> None:
        self.count(amount)

    def finish(self, hold: _Hold, amount: int) -> None:
        if hold.bucket >= self._newest - BUCKETS:
            self._add(hold.bucket, amount - hold.amount)

    def count(self, amount: int) -> None:
        self._add(self._newest, amount)
        self.expires = self._now + 2 * self._seconds

    def load(self, loaded: Loaded, now: float) -> None:
        self.is_missing = False
        self.expires = now + 2 * self._seconds
        for bucket, amount in loaded.buckets.items():
            self._add(min(bucket, self._newest), amount)
        self.slide(now)

    def read(self, amount: int, limit: int) -> Reading:
        return Reading(None) if self.is_missing else Reading(self._total, wait=self._wait(amount, limit))

    def is_over(self, now: float) -> bool:
        return self.expires < now

    def _add(self, bucket: int, amount: int) -> None:
        """Never below zero."""
        before = self._buckets.pop(bucket, 0)
        after = max(0, before + amount)
        self._total += after - before
        if after:
            self._buckets[bucket] = after

    def _wait(self, amount: int, limit: int) -> float:
        if amount > limit:
            return math.inf
        if not self._buckets:
            return 0.0
        excess = self.excess(amount, limit)
        if excess <= 0:
            return self._leaves_in(max(self._buckets))
        order = sorted(self._buckets)
        freed = itertools.accumulate(self._buckets[bucket] for bucket in order)
        return next(self._leaves_in(bucket) for bucket, room in zip(order, freed, strict=True) if room >= excess)

    def _leaves_in(self, bucket: int) -> float:
        return (bucket + BUCKETS + 1) * self._seconds / BUCKETS - self._now


def _bucket(now: float, seconds: int) -> int:
    return math.floor(now * BUCKETS / seconds)


_Number = _Concurrent | _Window


class MemoryState:
    """Hot state of one process. No method awaits once it has begun to look: each is one step.

    ``worker`` names one life of the process: what the journal holds of another is an orphan. Time goes on from where
    it was at the start, however the wall clock jumps.
    """

    def __init__(
        self,
        worker: str,
        *,
        journal: Path | None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._worker = worker
        self._journal = None if journal is None else Journal(journal)
        self._clock = clock
        self._offset = wall() - clock()
        self._born = self._swept = self._now()
        self._numbers: dict[str, _Number] = {}
        self._open: dict[tuple[str, str], _Open] = {}
        self._rows: dict[tuple[str, str], _Settled] = {}

    async def start(self) -> None:
        """Takes the journal, for which it waits some seconds: a process that is killed has it to its very end."""
        if self._journal is None:
            return
        try:
            for record in await self._take(self._journal):
                self._replay(_decode(record))
            self._inherit()
            self._journal.rewrite(self._kept())
        except (OSError, msgspec.MsgspecError) as error:
            self._journal.close(remove=False)
            raise StateUnavailable(f"{self._journal.path} cannot be used: {error}") from error

    async def beat(self) -> None:
        now = self._now()
        if now - self._swept >= _MINUTE:
            self._swept = now
            for key in [key for key, number in self._numbers.items() if number.is_over(now)]:
                del self._numbers[key]

    async def reserve(
        self, call_id: str, counters: Sequence[Counter], amounts: Amounts, note: bytes
    ) -> Granted | Short | Missing:
        now = self._now()
        numbers = [self._number(counter, now) for counter in counters]
        if missing := [place for place, number in enumerate(numbers) if number.is_missing]:
            return Missing(missing)
        call = (self._worker, call_id)
        if call not in self._open and call not in self._rows:
            asked = [(c, number, amounts.of(c.unit)) for c, number in zip(counters, numbers, strict=True)]
            if short := [i for i, (c, number, amount) in enumerate(asked) if number.excess(amount, c.limit) > 0]:
                return Short(short, [number.read(amount, c.limit) for c, number, amount in asked])
            holds = {
                c.key: _Hold(c.kind, c.unit, amount, _bucket(now, c.seconds) if c.kind == "window" else 0)
                for c, _, amount in asked
            }
            self._write(_Open(self._worker, call_id, note, holds))
            for c, number, amount in asked:
                self._numbers[c.key] = number
                number.hold(amount)
        return Granted([number.read(0, c.limit) for c, number in zip(counters, numbers, strict=True)])

    async def settle(
        self,
        call_id: str,
        counters: Sequence[Counter],
        amounts: Amounts,
        row: bytes,
        *,
        worker: str = "",
        whole: bool = False,
    ) -> Missing | None:
        now = self._now()
        owner = worker or self._worker
        reservation = self._open.get((owner, call_id))
        is_ours_to_count = reservation is not None or owner == self._worker or whole
        if (owner, call_id) in self._rows or not is_ours_to_count:
            return None
        numbers = [self._number(counter, now) for counter in counters]
        if missing := [place for place, number in enumerate(numbers) if number.is_missing]:
            return Missing(missing)
        self._write(_Settled(owner, call_id, row))
        holds = {} if reservation is None else reservation.holds
        self._finish(holds, amounts, now)
        for counter, number in zip(counters, numbers, strict=True):
            if counter.key not in holds:
                self._numbers[counter.key] = number
                number.count(amounts.of(counter.unit))
        return None

    async def release(self, call_id: str, *, worker: str = "") -> None:
        reservation = self._open.get((worker or self._worker, call_id))
        if reservation is not None:
            self._write(_Gone(reservation.worker, [call_id]))
            self._finish(reservation.holds, _NOTHING, self._now())

    async def load(self, loaded: Sequence[Loaded]) -> None:
        now = self._now()
        for one in loaded:
            key, number = one.counter.key, self._number(one.counter, now)
            if isinstance(number, _Quota | _Window) and (number.is_missing or key not in self._numbers):
                number.load(one, now)
                self._numbers[key] = number

    async def forget(self, counters: Sequence[Counter]) -> None:
        for counter in counters:
            number = self._numbers.get(counter.key)
            if isinstance(number, _Quota):
                number.used = None

    async def booked(self, call_ids: Sequence[str], *, worker: str = "") -> None:
        owner = worker or self._worker
        if kept := [call_id for call_id in call_ids if (owner, call_id) in self._rows]:
            self._write(_Gone(owner, kept))

    async def read(self, counters: Sequence[Counter]) -> list[Reading]:
        now = self._now()
        return [self._number(counter, now).read(0, counter.limit) for counter in counters]

    async def alive(self, worker: str) -> bool:
        return worker == self._worker

    async def orphans(self) -> list[Orphan]:
        opened = (Orphan(c.call_id, c.worker, note=c.note) for c in self._open.values() if c.worker != self._worker)
        settled = (Orphan(c.call_id, c.worker, row=c.row) for c in self._rows.values() if c.worker != self._worker)
        return list(itertools.islice(itertools.chain(opened, settled), _ORPHANS))

    async def stop(self) -> None:
        if self._journal is not None:
            self._journal.close(remove=not self._open and not self._rows)

    def _now(self) -> float:
        return self._offset + self._clock()

    def _number(self, counter: Counter, now: float) -> _Number:
        """What is known of a counter, or would be."""
        number = self._numbers.get(counter.key) or self._new(counter, now)
        number.slide(now)
        return number

    def _new(self, counter: Counter, now: float) -> _Number:
        match counter.kind:
            case "quota":
                return _Quota()
            case "concurrent":
                return _Concurrent()
            case "window":
                # What it does not know may have been counted by the life before.
                return _Window(counter.seconds, is_missing=now - self._born < counter.seconds)

    def _finish(self, holds: Mapping[str, _Hold], amounts: Amounts, now: float) -> None:
        """End what a call holds; the counters get what it took."""
        for key, hold in holds.items():
            if (number := self._numbers.get(key)) is not None:
                number.slide(now)
                number.finish(hold, amounts.of(hold.unit))

    # --- the journal ----------------------------------------------------------------------------------------------

    async def _take(self, journal: Journal) -> list[bytes]:
        for _ in range(_LOCK_TRIES):
            try:
                return journal.open()
            except BlockingIOError:
                await asyncio.sleep(_LOCK_PAUSE)
        raise StateUnavailable(f"another process uses {journal.path}: one gateway each, or Redis as state.url")

    def _write(self, record: _Record) -> None:
        """To the journal first: what it did not take has not happened."""
        if self._journal is not None:
            try:
                self._journal.append(_encode(record))
            except OSError as error:
                raise StateUnavailable(f"{self._journal.path}: {error.strerror}") from error
        self._replay(record)
        if self._journal is not None and self._journal.is_grown:
            with contextlib.suppress(OSError):  # it goes on with the long one
                self._journal.rewrite(self._kept())

    def _replay(self, record: _Record) -> None:
        match record:
            case _Open():
                self._open[record.worker, record.call_id] = record
            case _Settled():
                self._open.pop((record.worker, record.call_id), None)
                self._rows[record.worker, record.call_id] = record
            case _Gone():
                for call_id in record.call_ids:
                    self._open.pop((record.worker, call_id), None)
                    self._rows.pop((record.worker, call_id), None)

    def _inherit(self) -> None:
        """Hold what the calls of lives before hold. Windows are loaded without it: there it counts for nothing yet."""
        for call, record in self._open.items():
            holds = {
                key: msgspec.structs.replace(hold, amount=0) if hold.kind == "window" else hold
                for key, hold in record.holds.items()
            }
            self._open[call] = msgspec.structs.replace(record, holds=holds)
            for key, hold in holds.items():
                if hold.kind != "window":
                    new = _Quota() if hold.kind == "quota" else _Concurrent()
                    self._numbers.setdefault(key, new).hold(hold.amount)

    def _kept(self) -> Iterator[bytes]:
        return map(_encode, itertools.chain(self._open.values(), self._rows.values()))
