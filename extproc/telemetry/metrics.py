"""Prometheus metrics. With several processes they share files (PROMETHEUS_MULTIPROC_DIR, set before this import)."""

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest, multiprocess
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

_QUICK: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0)
_LONG: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 1800.0)

CALLS: Final = Counter("extproc_calls", "Calls ended.", ["endpoint", "model", "consumer", "how", "status"])
REFUSALS: Final = Counter("extproc_refusals", "Calls declined or broken off, by reason.", ["code"])
TOKENS: Final = Counter("extproc_tokens", "Tokens used.", ["consumer", "model", "provider", "kind", "source"])
MONEY: Final = Counter("extproc_money", "What calls cost.", ["consumer", "model", "provider", "currency"])
ESTIMATES: Final = Histogram(
    "extproc_estimate_ratio",
    "Tokens reported by the provider ÷ tokens that were expected.",
    ["model", "kind"],
    buckets=(0.1, 0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0),
)
UNAVAILABLE: Final = Counter("extproc_state_unavailable", "Calls that could not be counted at once.", ["action"])
LEDGER_ROWS: Final = Counter("extproc_ledger_rows", "Rows booked.", ["how"])
LEDGER_WAITING: Final = Gauge("extproc_ledger_waiting", "Rows that wait for the database.", multiprocess_mode="livesum")
LEDGER_REFUSED: Final = Counter("extproc_ledger_refused", "Rows that the database did not take; each is in the log.")
BOOKS_TROUBLE: Final = Counter("extproc_books_trouble", "Work on the books that failed and is tried again.", ["work"])
AUDIT_RECORDS: Final = Counter("extproc_audit_records", "Records of calls written to the database.")
AUDIT_WAITING: Final = Gauge(
    "extproc_audit_waiting_bytes", "Records that wait for the database.", multiprocess_mode="livesum"
)
AUDIT_DROPPED: Final = Counter(
    "extproc_audit_dropped", "Records lost to the database (spill, memory) or to a sink.", ["where"]
)
AUDIT_REFUSED: Final = Counter("extproc_audit_refused", "Records that the database did not take; each is in the log.")
AUDIT_TROUBLE: Final = Counter("extproc_audit_trouble", "Work on the audit that failed and is tried again.", ["work"])
ATTEMPTS: Final = Counter("extproc_attempts", "Tries at upstreams.", ["provider", "target", "number"])
CALL_SECONDS: Final = Histogram("extproc_call_seconds", "The whole call.", ["endpoint", "streamed"], buckets=_LONG)
FIRST_BYTE_SECONDS: Final = Histogram(
    "extproc_first_byte_seconds", "Until the answer's headers.", ["endpoint", "streamed"], buckets=_LONG
)
OWN_SECONDS: Final = Histogram("extproc_own_seconds", "Our own work for one call.", ["stage"], buckets=_QUICK)
VERDICTS: Final = Counter(
    "extproc_verdicts", "What moderation found in texts.", ["direction", "check", "category", "action"]
)
JUDGE_FAILURES: Final = Counter("extproc_judge_failures", "Questions without an opinion.", ["judge", "reason"])
HELD_SECONDS: Final = Histogram(
    "extproc_held_seconds", "How long a part of an answer was held back, at most.", ["endpoint"], buckets=_QUICK
)
STREAMS_OPEN: Final = Gauge("extproc_streams_open", "Calls that hold a stream of ours.", multiprocess_mode="livesum")
ERRORS: Final = Counter("extproc_errors", "Unexpected exceptions; each is in the log.", ["stage"])
RELOADS: Final = Counter("extproc_config_reloads", "Configurations read.", ["result"])
CONFIG_OK: Final = Gauge(
    "extproc_config_last_reload_successful",
    "1 where the file as it is is in force.",
    multiprocess_mode="mostrecent",
)
CONFIG_TIME: Final = Gauge(
    "extproc_config_last_change_timestamp_seconds",
    "When the configuration in force was read.",
    multiprocess_mode="mostrecent",
)
WORKERS: Final = Gauge("extproc_workers", "Worker processes by state.", ["state"], multiprocess_mode="mostrecent")
KEY_FAILURES: Final = Counter(
    "extproc_provider_key_failures", "Attempts answered with a status about the key.", ["provider", "key", "status"]
)
ENDED_DROPPED: Final = Counter("extproc_ended_dropped", "Broken calls that no worker could account for in time.")
WORKER_RESTARTS: Final = Counter("extproc_worker_restarts", "Workers that had to be started again.")


@cache
def counter(metric: Counter, *labels: str) -> Counter:
    """The child for these labels; finding it anew for each call costs more than counting."""
    return metric.labels(*labels)


@cache
def histogram(metric: Histogram, *labels: str) -> Histogram:
    return metric.labels(*labels)


@cache
def gauge(metric: Gauge, *labels: str) -> Gauge:
    return metric.labels(*labels)


class KeysAvailable(Collector):
    """A gauge for each key of ``pools``, whose rows have provider, key and available; read when it is asked for."""

    def __init__(self, pools: Callable[[], Iterable[Mapping[str, Any]]]) -> None:
        self._pools = pools

    def collect(self) -> Iterable[Metric]:
        gauge = GaugeMetricFamily(
            "extproc_provider_key_available",
            "1 where attempts use the key, 0 where it cools.",
            labels=("provider", "key"),
        )
        for row in self._pools():
            gauge.add_metric((row["provider"], row["key"]), float(row["available"]))
        return (gauge,)


def exposition(*more: Collector) -> bytes:
    """The metrics of all processes, as Prometheus reads them, and those of ``more``."""
    registry = CollectorRegistry()
    for each in more:
        registry.register(each)
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def forget(pid: int) -> None:
    """A process ended: its gauges count no more."""
    multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]
