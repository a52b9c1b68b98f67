"""Usage and ledger as lines, and CSV that no spreadsheet takes for formulas."""

import csv
import io
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from admin.office import Office, row
from hypothesis import given
from hypothesis import strategies as st

from extproc.admin import reports
from extproc.admin.bodies import RowsQuery, UsageQuery
from extproc.admin.errors import Invalid
from extproc.stores.ports import Ledger


@pytest.fixture(name="ledger")
def _ledger(tmp_path: Path) -> Iterator[Ledger]:
    office = Office(tmp_path)
    yield office.database.ledger
    office.database.close()


@pytest.mark.parametrize(
    ("nano", "text"),
    [(0, "0.00"), (1, "0.000000001"), (12_500_000_000, "12.50"), (10**18, "1000000000.00"), (123_456_000, "0.123456")],
)
def test_money(nano: int, text: str) -> None:
    """Exact, with two decimals at least, and never as `1E-9`."""
    assert reports.money(nano) == text


@given(st.integers(0, 10**18))
def test_money_is_exact(nano: int) -> None:
    """The text is the number, whatever it is."""
    assert Decimal(reports.money(nano)) * 10**9 == nano


def test_usage(ledger: Ledger) -> None:
    """A line has the dimensions asked for, in that order, then the sums; nothing else."""
    ledger.add(
        [
            row(1),
            row(2, model="n"),
            row(3, consumer="other"),
            row(4, how="refused", attempts=0, input=0, output=0, cost=0),
        ]
    )

    columns, lines = reports.usage(ledger, UsageQuery(by="model, consumer"), "UTC")

    assert tuple(columns) == ("model", "consumer", *reports.SUMS, *reports.MORE_SUMS)
    assert all(tuple(line) == tuple(columns) for line in lines)
    found = {(line["model"], line["consumer"]): (line["calls"], line["money"], line["refusals"]) for line in lines}
    assert found == {
        ("m", "acme"): (2, "0.0015", 1),
        ("n", "acme"): (1, "0.0015", 0),
        ("m", "other"): (1, "0.0015", 0),
    }


def test_usage_by_default_has_what_a_bill_needs(ledger: Ledger) -> None:
    """Consumer, model and provider, with calls, tokens and money."""
    ledger.add([row(1), row(2)])

    columns, (line,) = reports.usage(ledger, UsageQuery(), "UTC")

    wanted = ("consumer", "model", "provider", "calls", "input_tokens", "output_tokens", "money")
    assert tuple(columns[:7]) == wanted
    assert [line[name] for name in wanted] == ["acme", "m", "p", 2, 200, 40, "0.003"]


@pytest.mark.parametrize(("zone", "days"), [("UTC", ["2025-12-31", "2026-01-01"]), ("Asia/Shanghai", ["2026-01-01"])])
def test_days_are_those_of_the_time_zone(ledger: Ledger, zone: str, days: list[str]) -> None:
    """A call an hour before midnight UTC is of the next day in Shanghai."""
    ledger.add([row(-3600), row(1)])

    _, of_the_query = reports.usage(ledger, UsageQuery.model_validate({"by": "day", "timezone": zone}), "America/Lima")
    _, of_the_accounts = reports.usage(ledger, UsageQuery(by="day"), zone)

    assert [line["day"] for line in of_the_query] == days
    assert of_the_accounts == of_the_query


def test_bounds_and_filters(ledger: Ledger) -> None:
    """Only what was asked for is added up."""
    ledger.add([row(0), row(3600, provider="q"), row(7200)])

    query = UsageQuery(by="provider", since="2026-01-01T01:00:00Z", until="2026-01-01T02:00:00Z")
    _, between = reports.usage(ledger, query, "UTC")
    _, of_one = reports.usage(ledger, UsageQuery(by="provider", provider="p", consumer="acme"), "UTC")

    assert [(line["provider"], line["calls"]) for line in between] == [("q", 1)]
    assert [(line["provider"], line["calls"]) for line in of_one] == [("p", 2)]


def test_dimensions_that_there_are_not() -> None:
    """The sentence lists those that there are."""
    with pytest.raises(Invalid, match="not kept by 'colour', but by consumer, team, model"):
        reports.dimensions("consumer,colour")


def test_calls(ledger: Ledger) -> None:
    """Every field of a row, the newest first, times with their milliseconds and money instead of nano."""
    ledger.add([row(1), row(2, consumer="other"), row(3)])

    columns, lines = reports.calls(ledger, RowsQuery(limit=2), "UTC")
    _, of_other = reports.calls(ledger, RowsQuery(consumer="other"), "UTC")

    assert [line["call_id"] for line in lines] == ["call-0003", "call-0002"]
    assert [line["call_id"] for line in of_other] == ["call-0002"]
    assert (lines[0]["started"], lines[0]["ended"]) == ("2026-01-01T00:00:03.000Z", "2026-01-01T00:00:03.500Z")
    assert lines[0]["money"] == "0.0015"
    assert "cost" not in columns
    assert tuple(lines[0]) == tuple(columns)


@pytest.mark.parametrize("first", [*"=+-@\t\r\n＝＋－＠"])
def test_csv_holds_no_formulas(first: str) -> None:
    """A text that a spreadsheet would work out begins with an apostrophe."""
    text = f"{first}HYPERLINK(1)"

    (line,) = csv.DictReader(io.StringIO(reports.csv_text([{"label": text}], ["label"])))

    assert line["label"] == f"'{text}".replace("\r", "\n")


def test_csv() -> None:
    """Numbers stay numbers, nothing stays empty, and what has commas or quotes comes back as it was."""
    lines = [{"a": -1, "b": None, "c": 'x,"y"\nz'}, {"a": 2, "b": "中", "c": ""}]

    text = reports.csv_text(lines, ["a", "b", "c"])

    assert list(csv.reader(io.StringIO(text))) == [["a", "b", "c"], ["-1", "", 'x,"y"\nz'], ["2", "中", ""]]


def test_csv_of_nothing() -> None:
    """It has a head all the same."""
    assert reports.csv_text([], ["a", "b"]) == "a,b\n"
