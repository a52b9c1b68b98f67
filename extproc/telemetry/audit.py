"""What the audit's writer tells: records written, waiting and lost, and trouble, once until it is over."""

import time
from typing import Final

from extproc.telemetry import log, metrics

_LOG = log.get()
_QUIET: Final = 10.0  # seconds between two lines about the same trouble


class Watch:
    """For ``audit.writer.AuditWriter``."""

    def __init__(self) -> None:
        self._told: dict[str, float] = {}

    def written(self, records: int) -> None:
        metrics.AUDIT_RECORDS.inc(records)

    def waiting(self, size: int) -> None:
        metrics.AUDIT_WAITING.set(size)

    def dropped(self, where: str, records: int) -> None:
        metrics.counter(metrics.AUDIT_DROPPED, where).inc(records)
        if self._is_news(f"dropped {where}"):
            _LOG.error("audit records lost", where=where, records=records)

    def refused(self, record: str, error: BaseException) -> None:
        metrics.AUDIT_REFUSED.inc()
        _LOG.error("record not kept", call_id=record, error=type(error).__name__)

    def trouble(self, work: str, error: BaseException) -> None:
        metrics.counter(metrics.AUDIT_TROUBLE, work).inc()
        if self._is_news(work):
            _LOG.error("audit", work=work, error=f"{type(error).__name__}: {error}")

    def _is_news(self, what: str) -> bool:
        now = time.monotonic()
        if now - self._told.get(what, -_QUIET) < _QUIET:
            return False
        self._told[what] = now
        return True
