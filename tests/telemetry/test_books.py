"""What the books tell."""

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from extproc.stores.ports import NANO, Row
from extproc.telemetry import books
from extproc.telemetry.books import Watch, estimated, unavailable


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def row(**more: object) -> Row:
    return Row(call_id="c", started=0, ended=0, consumer="books-test", **more)  # type: ignore[arg-type]


def test_rows_and_money() -> None:
    """Rows are counted by how calls ended, money by who spent it and where."""
    labels = {"consumer": "books-test", "model": "m", "provider": "p", "currency": "CNY"}
    before = sample("extproc_ledger_rows_total", how="lost")
    paid = row(how="lost", model="m", provider="p", cost=3 * NANO // 2, currency="CNY")
    Watch().booked([paid, paid, row(how="refused")])

    assert sample("extproc_ledger_rows_total", how="lost") - before == 2
    assert sample("extproc_money_total", **labels) == 3.0


def test_trouble_is_told_once_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is counted every time, and logged when it begins and every ten seconds."""
    now = [100.0]
    monkeypatch.setattr(books.time, "monotonic", lambda: now[0])
    watch, before = Watch(), sample("extproc_books_trouble_total", work="flush")
    with capture_logs() as lines:
        for at in (100.0, 100.5, 109.0, 111.0):
            now[0] = at
            watch.trouble("flush", OSError("no"))

    assert sample("extproc_books_trouble_total", work="flush") - before == 4
    assert [line["error"] for line in lines] == ["OSError: no"] * 2


def test_a_row_that_is_refused_is_logged_whole() -> None:
    """Nothing is lost: what the database did not take can be read in the log."""
    with capture_logs() as lines:
        Watch().refused(row(input=5, model="m"), ValueError("no"))

    assert lines[0]["row"]["consumer"] == "books-test"
    assert lines[0]["row"]["input"] == 5


def test_estimates_and_calls_without_a_state() -> None:
    """How good estimates are is a histogram by model; calls while the state is away are counted by what was done."""
    labels = {"model": "books-test", "kind": "prompt", "le": "1.1"}
    estimated("books-test", "prompt", 1.05)
    estimated("books-test", "prompt", 3.0)
    before = sample("extproc_state_unavailable_total", action="allowed")
    unavailable("allowed", OSError())

    assert sample("extproc_estimate_ratio_bucket", **labels) == 1.0
    assert sample("extproc_state_unavailable_total", action="allowed") - before == 1
