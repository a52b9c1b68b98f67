"""What the audit's writer tells."""

from collections.abc import Iterator

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from extproc.telemetry.audit import Watch


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


@pytest.fixture(name="logged")
def _logged() -> Iterator[list[dict[str, object]]]:
    with capture_logs() as lines:
        yield lines  # type: ignore[misc]


def test_records(logged: list[dict[str, object]]) -> None:
    """Written and waiting ones are counted, without a line."""
    watch, before = Watch(), value("extproc_audit_records_total")
    watch.written(3)
    watch.waiting(42)

    assert value("extproc_audit_records_total") - before == 3
    assert value("extproc_audit_waiting_bytes") == 42
    assert logged == []


def test_losses_and_trouble(logged: list[dict[str, object]]) -> None:
    """Each is counted, and told once for as long as it goes on; a refused record by its call alone."""
    watch = Watch()
    lost, trouble = (
        value("extproc_audit_dropped_total", where="spill"),
        value("extproc_audit_trouble_total", work="x"),
    )
    for _ in range(3):
        watch.dropped("spill", 2)
        watch.trouble("x", OSError("full"))
    watch.refused("c1", ValueError("what the client said"))

    assert value("extproc_audit_dropped_total", where="spill") - lost == 6
    assert value("extproc_audit_trouble_total", work="x") - trouble == 3
    assert [line["event"] for line in logged] == ["audit records lost", "audit", "record not kept"]
    assert "client" not in str(logged)
