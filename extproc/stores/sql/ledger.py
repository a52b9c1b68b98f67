"""The ledger in two tables: a row for each call, and totals of them by quarter of an hour."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any, Final, NamedTuple
from zoneinfo import ZoneInfo

from msgspec import convert
from msgspec.structs import asdict, fields
from sqlalchemy import BigInteger, ColumnElement, Connection, Select, and_, case, cast, delete, func, select, text

from extproc.stores.ports import BUCKETS, GRAIN, Counter, Difference, Dimension, Ledger, Loaded, Row, UsageRow
from extproc.stores.sql.engine import Connections, insert
from extproc.stores.sql.schema import NUMBER, OWNERS, SUMS, fit, ledger, totals, whole

_CACHE_HITS: Final = ("hit", "semantic", "coalesced")
_MANY: Final = 500  # ids in one query
_LATEST: Final = 250_000_000_000_000  # milliseconds: in the year 9892, the last years of which a calendar knows
_KEY: Final = ("bucket", *OWNERS)
_TIMES: Final = ("day", "hour")
_REFUSED: Final = and_(ledger.c.how.in_(("refused", "failed")), ledger.c.attempts == 0, ledger.c.cache == "")
"""``Row.refused`` in SQL."""
_LINE: Final = (
    *("calls", "refusals", "cache_hits", "fallbacks"),
    *("input_tokens", "output_tokens", "cached_tokens", "cache_creation_tokens", "reasoning_tokens", "money"),
)
"""The fields of a line, in the order of ``SUMS``."""

Key = tuple[Any, ...]
"""A bucket, and the values of ``OWNERS``."""


class _Used(NamedTuple):
    """What calls of a model used, and in which bucket of a window they began."""

    model: str
    bucket: int
    tokens: int
    money: int
    requests: int


class SqlLedger(Ledger):
    """``currency`` is that of the accounts: money in others counts in no quota."""

    def __init__(self, connections: Connections, currency: str = "") -> None:
        self._connections = connections
        self.currency = currency

    # --- writing ----------------------------------------------------------------------------------------------

    def add(self, rows: Sequence[Row]) -> int:
        kept = {row.call_id: row for row in map(_kept, reversed(rows))}  # of two, the first
        if not kept:
            return 0
        with self._connections.writing() as connection:
            # Everybody takes rows, and then totals, in the same order: nobody waits for one who waits for him.
            query = insert(connection, ledger).on_conflict_do_nothing().returning(ledger.c.call_id)
            new = connection.execute(query, [asdict(kept[call_id]) for call_id in sorted(kept)]).scalars().all()
            sums = _totals(kept[call_id] for call_id in new)
            if sums:
                more = insert(connection, totals)
                more = more.on_conflict_do_update(
                    index_elements=list(totals.primary_key),
                    set_={name: totals.c[name] + more.excluded[name] for name in SUMS},
                )
                connection.execute(more, [_total(key, sums[key]) for key in sorted(sums)])
        return len(new)

    def repair(self) -> int:
        with self._connections.writing() as connection:
            if not self._connections.is_sqlite:
                # Until we are done, whoever has booked rows waits here to add to what we make.
                connection.execute(text("LOCK TABLE totals IN SHARE ROW EXCLUSIVE MODE"))
            connection.execute(delete(totals))
            connection.execute(insert(connection, totals).from_select([*_KEY, *SUMS], _recounted()))
            return int(connection.execute(select(func.count()).select_from(totals)).scalar_one())

    # --- reading ----------------------------------------------------------------------------------------------

    def has(self, call_ids: Sequence[str]) -> set[str]:
        names = {fit(call_id): call_id for call_id in call_ids}
        asked = list(names)
        found: set[str] = set()
        with self._connections.reading() as connection:
            for start in range(0, len(asked), _MANY):
                query = select(ledger.c.call_id).where(ledger.c.call_id.in_(asked[start : start + _MANY]))
                found.update(connection.execute(query).scalars())
        return {names[call_id] for call_id in found}

    def rows(
        self, consumer: str | None = None, since: float | None = None, until: float | None = None, limit: int = 100
    ) -> list[Row]:
        query = select(ledger).order_by(ledger.c.started.desc(), ledger.c.call_id.desc()).limit(limit)
        if consumer is not None:
            query = query.where(ledger.c.consumer == consumer)
        if since is not None:
            query = query.where(ledger.c.started >= _milliseconds(since))
        if until is not None:
            query = query.where(ledger.c.started < _milliseconds(until))
        with self._connections.reading() as connection:
            return [Row(**row) for row in connection.execute(query).mappings()]

    def typical_output(self, since: float) -> dict[str, tuple[float, int]]:
        query = (
            select(ledger.c.model, _sum(ledger.c.output), func.count())
            .where(ledger.c.how == "completed", ledger.c.usage == "reported", ledger.c.started >= _milliseconds(since))
            .group_by(ledger.c.model)
        )
        with self._connections.reading() as connection:
            return {model: (output / calls, calls) for model, output, calls in connection.execute(query)}

    def load(self, counters: Sequence[Counter], *, now: float) -> list[Loaded]:
        known: dict[object, list[_Used]] = {}
        loaded = []
        with self._connections.reading() as connection:
            for counter in counters:
                if counter.kind == "concurrent":
                    loaded.append(Loaded(counter))
                    continue
                # Counters that differ only in what they count, and of which models, share a query.
                asked = (
                    *(counter.kind, counter.start, counter.end, counter.seconds),
                    *(counter.scope.consumer, counter.scope.team),
                )
                if asked not in known:
                    query = self._quota(counter) if counter.kind == "quota" else self._window(counter, now)
                    known[asked] = [_Used(*row) for row in connection.execute(query)]
                loaded.append(_loaded(counter, known[asked]))
        return loaded

    def _quota(self, counter: Counter) -> Select[Any]:
        row = totals.c
        query = select(
            row.model,
            whole(0),
            _sum(row.input + row.output),
            _sum(case((row.currency == self.currency, row.money), else_=0)),
            _sum(row.calls - row.refusals),
        ).where(row.bucket >= counter.start)
        if counter.end is not None:
            query = query.where(row.bucket < counter.end)
        return _within(query, counter, row).group_by(row.model)

    def _window(self, counter: Counter, now: float) -> Select[Any]:
        row = ledger.c
        width = counter.seconds * 1000
        bucket = (row.started * whole(BUCKETS) // whole(width)).label("bucket")
        oldest = int((now - counter.seconds) * BUCKETS // counter.seconds)  # only a part of it is in the window
        query = select(
            row.model,
            bucket,
            _sum(row.input + row.output),
            _sum(case((row.currency == self.currency, row.cost), else_=0)),
            _sum(case((_REFUSED, 0), else_=1)),
        ).where(row.started >= -(-oldest * width // BUCKETS))
        return _within(query, counter, row).group_by(row.model, bucket)

    def usage(
        self,
        by: Sequence[Dimension],
        *,
        since: float | None = None,
        until: float | None = None,
        where: Mapping[str, str] | None = None,
        timezone: str = "UTC",
    ) -> list[UsageRow]:
        """Raises ValueError for a dimension or a time zone that there is not."""
        dimensions = tuple(dict.fromkeys(by))
        owners = [name for name in dimensions if name not in _TIMES]
        if wrong := {*owners, *(where or ())} - set(OWNERS[:-1]):
            raise ValueError(f"usage has no dimension {', '.join(sorted(wrong))}")
        try:
            zone = ZoneInfo(timezone)
        except (KeyError, ValueError, OSError):
            raise ValueError(f"there is no time zone {timezone!r}") from None
        group = [totals.c[name] for name in (*owners, "currency")]
        group += [totals.c.bucket] if len(owners) < len(dimensions) else []
        query = select(*group, *(_sum(totals.c[name]).label(name) for name in SUMS)).group_by(*group)
        for name, value in (where or {}).items():
            query = query.where(totals.c[name] == value)
        if since is not None:
            query = query.where(totals.c.bucket >= int(since) // GRAIN * GRAIN)
        if until is not None:
            query = query.where(totals.c.bucket < int(until) // GRAIN * GRAIN)
        with self._connections.reading() as connection:
            lines = _folded(connection.execute(query).mappings(), dimensions, zone)
        names = (*dimensions, "currency", *_LINE)
        return [convert(dict(zip(names, (*key, *lines[key]), strict=True)), UsageRow) for key in sorted(lines)]

    def verify(self) -> list[Difference]:
        kept = select(*(totals.c[name] for name in (*_KEY, *SUMS)))
        with self._connections.reading() as connection:
            # Each way gives only what the other does not have, or has otherwise.
            counted = _by_key(connection, _recounted().except_(kept))
            found = _by_key(connection, kept.except_(_recounted()))
        nothing = [0] * len(SUMS)
        return [
            Difference(where=f"{name} of {_place(key)}", ledger=of_rows, found=of_totals)
            for key in sorted(counted.keys() | found.keys())
            for name, of_rows, of_totals in zip(SUMS, counted.get(key, nothing), found.get(key, nothing), strict=True)
            if of_rows != of_totals
        ]


# --- rows and totals ------------------------------------------------------------------------------------------


def _milliseconds(moment: float) -> int:
    return math.ceil(moment * 1000)


def _moment(milliseconds: int) -> int:
    return max(0, min(milliseconds, _LATEST))


def _number(value: int) -> int:
    return max(0, min(value, NUMBER))


_FITS: Final[dict[type, Callable[[Any], Any]]] = {str: fit, int: _number, bool: bool}
_FIELDS: Final = {field.name: _FITS[field.type] for field in fields(Row)} | {"started": _moment, "ended": _moment}


def _kept(row: Row) -> Row:
    """The row as it is kept, and counted."""
    return Row(**{name: fits(getattr(row, name)) for name, fits in _FIELDS.items()})


def _totals(rows: Iterable[Row]) -> dict[Key, list[int]]:
    """SUMS by key, of rows as they are kept; ``_recounted`` says the same in SQL."""
    sums: dict[Key, list[int]] = {}
    for row in rows:
        key = (row.started // (1000 * GRAIN) * GRAIN, *(getattr(row, name) for name in OWNERS))
        sums[key] = _added(
            sums.get(key, [0] * len(SUMS)),
            [
                *(1, row.refused, row.cache in _CACHE_HITS, row.attempts > 1),
                *(row.input, row.output, row.cached, row.cache_creation, row.reasoning, row.cost),
            ],
        )
    return sums


def _recounted() -> Select[Any]:
    """The totals as the rows have them."""
    row = ledger.c
    key = [(row.started // whole(1000 * GRAIN) * whole(GRAIN)).label("bucket"), *(row[name] for name in OWNERS)]
    counted = (_REFUSED, row.cache.in_(_CACHE_HITS), row.attempts > 1)
    summed = (row.input, row.output, row.cached, row.cache_creation, row.reasoning, row.cost)
    sums = [func.count(), *(_sum(case((holds, 1), else_=0)) for holds in counted), *map(_sum, summed)]
    return select(*key, *(s.label(name) for name, s in zip(SUMS, sums, strict=True))).group_by(*key)


def _added(sums: Sequence[int], more: Sequence[int]) -> list[int]:
    return [a + b for a, b in zip(sums, more, strict=True)]


def _total(key: Key, sums: Sequence[int]) -> dict[str, Any]:
    return dict(zip((*_KEY, *SUMS), (*key, *sums), strict=True))


def _by_key(connection: Connection, query: Any) -> dict[Key, list[int]]:
    return {tuple(row[: len(_KEY)]): list(row[len(_KEY) :]) for row in connection.execute(query)}


def _place(key: Key) -> str:
    bucket, *owners = key
    names = [f"{name} {value}" for name, value in zip(OWNERS, owners, strict=True) if value]
    return ", ".join([*names, f"{datetime.fromtimestamp(int(bucket), UTC):%Y-%m-%dT%H:%MZ}"])


def _sum(column: ColumnElement[Any]) -> ColumnElement[int]:
    """PostgreSQL's sum of integers is a decimal."""
    return cast(func.sum(column), BigInteger)


# --- answers --------------------------------------------------------------------------------------------------


def _within(query: Select[Any], counter: Counter, row: Any) -> Select[Any]:
    if counter.scope.consumer:
        query = query.where(row.consumer == counter.scope.consumer)
    if counter.scope.team:
        query = query.where(row.team == counter.scope.team)
    return query


def _loaded(counter: Counter, found: Iterable[_Used]) -> Loaded:
    buckets: dict[int, int] = {}
    for used in found:
        amount: int = getattr(used, counter.unit)
        if amount and (not counter.scope.model or fnmatchcase(used.model, counter.scope.model)):
            buckets[used.bucket] = buckets.get(used.bucket, 0) + amount
    return Loaded(counter, buckets=buckets) if counter.kind == "window" else Loaded(counter, used=sum(buckets.values()))


def _folded(
    found: Iterable[Mapping[Any, Any]], dimensions: Sequence[Dimension], zone: ZoneInfo
) -> dict[tuple[str, ...], list[int]]:
    """SUMS by the values of the dimensions, and the currency."""
    lines: dict[tuple[str, ...], list[int]] = {}
    for row in found:
        key = (*(_label(row, name, zone) for name in dimensions), row["currency"])
        lines[key] = _added(lines.get(key, [0] * len(SUMS)), [row[name] for name in SUMS])
    currencies: dict[tuple[str, ...], list[str]] = {}
    for key in sorted(lines):
        currencies.setdefault(key[:-1], []).append(key[-1])
    for values, (none, *others) in currencies.items():
        # Calls that cost nothing have no currency: where there is just one, they join its line.
        if not none and len(others) == 1 and not lines[*values, none][-1]:
            lines[*values, others[0]] = _added(lines[*values, others[0]], lines.pop((*values, none)))
    return lines


def _label(row: Mapping[Any, Any], dimension: Dimension, zone: ZoneInfo) -> str:
    if dimension not in _TIMES:
        return str(row[dimension])
    local = datetime.fromtimestamp(row["bucket"], zone)
    return f"{local:%Y-%m-%d}" if dimension == "day" else local.replace(minute=0).isoformat(timespec="minutes")
