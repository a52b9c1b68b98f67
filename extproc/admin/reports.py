"""Usage and ledger as lines: money as a decimal text, times as ISO 8601, CSV that no spreadsheet takes for formulas."""

import csv
import io
import time
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, cast, get_args

from msgspec.structs import asdict, fields

from extproc.admin import times
from extproc.admin.bodies import RowsQuery, UsageQuery
from extproc.admin.errors import Invalid
from extproc.stores.ports import Dimension, Ledger, Row

Line = dict[str, Any]
DIMENSIONS: Final[tuple[str, ...]] = get_args(Dimension)
SUMS: Final = ("calls", "input_tokens", "output_tokens", "money", "currency")
MORE_SUMS: Final = (
    *("refusals", "cache_hits", "fallbacks"),
    *("cached_tokens", "cache_creation_tokens", "reasoning_tokens"),
)
_FORMULA: Final = tuple("=+-@\t\n＝＋－＠")  # what begins one, where full width counts as well


def dimensions(text: str) -> list[Dimension]:
    """`consumer,day` → these. Raises Invalid."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in DIMENSIONS:
            raise Invalid(f"usage is not kept by {name!r}, but by {', '.join(DIMENSIONS)}")
    return cast("list[Dimension]", names)


def usage(ledger: Ledger, query: UsageQuery, timezone: str) -> tuple[Sequence[str], list[Line]]:
    """Columns and lines: the dimensions that were asked for, then the sums. Raises Invalid."""
    by = dimensions(query.by)
    zone = query.timezone or timezone
    rows = ledger.usage(by, **_times(query, zone), where=query.where(), timezone=zone)
    columns = (*by, *SUMS, *MORE_SUMS)
    values = ({**asdict(row), "money": money(row.money)} for row in rows)
    return columns, [{name: value[name] for name in columns} for value in values]


def calls(ledger: Ledger, query: RowsQuery, timezone: str) -> tuple[Sequence[str], list[Line]]:
    """Columns and lines: every field of the rows; ``money`` is what they cost. Raises Invalid."""
    rows = ledger.rows(query.consumer, **_times(query, timezone), limit=query.limit)
    columns = tuple("money" if field.name == "cost" else field.name for field in fields(Row))
    values = (
        {
            **asdict(row),
            "money": money(row.cost),
            "started": times.shown(row.started / 1000, "milliseconds"),
            "ended": times.shown(row.ended / 1000, "milliseconds"),
        }
        for row in rows
    )
    return columns, [{name: value[name] for name in columns} for value in values]


def _times(query: UsageQuery | RowsQuery, timezone: str) -> dict[str, float | None]:
    now = time.time()
    asked = {"since": query.since, "until": query.until}
    return {name: None if text is None else times.past(text, timezone, now) for name, text in asked.items()}


def money(nano: int) -> str:
    """Exactly, with at least two decimals: `12.50`, `0.000123`."""
    whole, _, rest = f"{Decimal(nano).scaleb(-9):f}".partition(".")
    return f"{whole}.{rest.rstrip('0').ljust(2, '0')}"


def csv_text(lines: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """With a head; nothing is an empty cell."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for line in lines:
        writer.writerow([_cell(line[column]) for column in columns])
    return out.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, str):
        text = value.replace("\r", "\n")  # which alone the writer puts in quotes
        return f"'{text}" if text.startswith(_FORMULA) else text
    return "" if value is None else value
