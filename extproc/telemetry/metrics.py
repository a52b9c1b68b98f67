"""Prometheus metrics. With several processes they share files (PROMETHEUS_MULTIPROC_DIR, set before this import)."""

from functools import cache
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess

_QUICK: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0)
_LONG: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 1800.0)

CALLS: Final = Counter("extproc_calls", "Calls ended.", ["endpoint", "model", "consumer", "how", "status"])
REFUSALS: Final = Counter("extproc_refusals", "Calls declined or broken off, by reason.", ["code"])
TOKENS: Final = Counter("extproc_tokens", "Tokens used.", ["consumer", "model", "provider", "kind", "source"])
ATTEMPTS: Final = Counter("extproc_attempts", "Tries at upstreams.", ["provider", "target", "number"])
CALL_SECONDS: Final = Histogram("extproc_call_seconds", "The whole call.", ["endpoint", "streamed"], buckets=_LONG)
FIRST_BYTE_SECONDS: Final = Histogram(
    "extproc_first_byte_seconds", "Until the answer's headers.", ["endpoint", "streamed"], buckets=_LONG
)
OWN_SECONDS: Final = Histogram("extproc_own_seconds", "Our own work for one call.", ["stage"], buckets=_QUICK)
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


def exposition() -> bytes:
    """The metrics of all processes, as Prometheus reads them."""
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def forget(pid: int) -> None:
    """A process ended: its gauges count no more."""
    multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]
