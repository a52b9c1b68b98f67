"""What the books tell: rows booked and waiting, money spent, estimates compared, and trouble, once until it is over."""

import time
from collections.abc import Sequence
from typing import Final

import msgspec

from extproc.stores.ports import NANO, Row
from extproc.telemetry import log, metrics

_LOG = log.get()
_QUIET: Final = 10.0  # seconds between two lines about the same trouble


class Watch:
    """For ``accounts.books.Books``."""

    def __init__(self) -> None:
        self._told: dict[str, float] = {}

    def booked(self, rows: Sequence[Row]) -> None:
        for row in rows:
            metrics.counter(metrics.LEDGER_ROWS, row.how).inc()
            if row.cost:
                labels = (row.consumer, row.model, row.provider, row.currency)
                metrics.counter(metrics.MONEY, *labels).inc(row.cost / NANO)

    def waiting(self, rows: int) -> None:
        metrics.LEDGER_WAITING.set(rows)

    def refused(self, row: Row, error: BaseException) -> None:
        metrics.LEDGER_REFUSED.inc()
        _LOG.error("row not booked", row=msgspec.to_builtins(row), error=repr(error))

    def trouble(self, work: str, error: BaseException) -> None:
        metrics.counter(metrics.BOOKS_TROUBLE, work).inc()
        now = time.monotonic()
        if now - self._told.get(work, -_QUIET) >= _QUIET:
            self._told[work] = now
            _LOG.error("books", work=work, error=f"{type(error).__name__}: {error}")


def estimated(model: str, kind: str, ratio: float) -> None:
    """For ``accounts.estimates.Estimator``."""
    metrics.histogram(metrics.ESTIMATES, model, kind).observe(ratio)


def unavailable(action: str, error: BaseException) -> None:
    """A call came while the hot state was away, and was ``allowed`` or ``refused``."""
    del error
    metrics.counter(metrics.UNAVAILABLE, action).inc()
