"""Metrics of one process, and of several as one."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.parser import text_string_to_metric_families

from extproc.telemetry import metrics

DOCS = Path(__file__).parents[2] / "docs" / "operations.md"

# Two workers count and stay, one ends; then its parent is asked for the metrics of all, before and after `forget`.
FAMILY = """
import subprocess, sys
from extproc.telemetry import metrics

if len(sys.argv) > 1:
    metrics.counter(metrics.ERRORS, "router").inc(int(sys.argv[1]))
    metrics.STREAMS_OPEN.inc(int(sys.argv[1]))
    metrics.gauge(metrics.WORKERS, "serving").set(int(sys.argv[1]))
    print(flush=True)
    input()
else:
    start = lambda n: subprocess.Popen([sys.executable, "-c", {script!r}, n], stdin=-1, stdout=-1)
    children = []
    for number in ("3", "4"):
        children.append(start(number))
        children[-1].stdout.readline()
    print(metrics.exposition().decode() + "# EOF of the first")
    children[0].communicate(b"\\n")
    metrics.forget(children[0].pid)
    print(metrics.exposition().decode())
    children[1].communicate(b"\\n")
"""


def families() -> Iterator[tuple[str, Counter | Gauge | Histogram]]:
    """Every metric of ours by the name that Prometheus shows."""
    for metric in vars(metrics).values():
        if isinstance(metric, Counter | Gauge | Histogram):
            name = next(iter(metric.describe())).name
            yield (f"{name}_total" if isinstance(metric, Counter) else name), metric


def samples(exposition: str) -> dict[str, float]:
    return {
        " ".join((sample.name, *sample.labels.values())): sample.value
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
    }


@pytest.fixture(name="family", scope="module")
def _family(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, float], dict[str, float]]:
    """What a family of processes counts: while all live, and when the first child is dead and forgotten."""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path_factory.mktemp("metrics"))}
    script = FAMILY.replace("{script!r}", "open(sys.argv[0]).read()")
    file = tmp_path_factory.mktemp("script") / "family.py"
    file.write_text(script)
    done = subprocess.run(
        [sys.executable, file], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    before, after = done.stdout.split("# EOF of the first")
    return samples(before), samples(after)


def test_counters_of_all_processes_are_summed(family: tuple[dict[str, float], dict[str, float]]) -> None:
    """What a process counted stays counted when it is dead."""
    before, after = family

    assert before["extproc_errors_total router"] == 7
    assert after["extproc_errors_total router"] == 7


def test_what_is_open_now_is_summed_over_the_living(family: tuple[dict[str, float], dict[str, float]]) -> None:
    """A dead process holds no streams."""
    before, after = family

    assert before["extproc_streams_open"] == 7
    assert after["extproc_streams_open"] == 4


def test_the_last_word_on_workers_counts(family: tuple[dict[str, float], dict[str, float]]) -> None:
    """A gauge that one process speaks of is not summed: the newest value is it."""
    before, _ = family

    assert before["extproc_workers serving"] == 4


def test_children_are_found_once() -> None:
    """The same labels lead to the same child, other labels to another."""
    code, other = uuid4().hex, uuid4().hex

    metrics.counter(metrics.REFUSALS, code).inc()
    metrics.counter(metrics.REFUSALS, code).inc()
    metrics.counter(metrics.REFUSALS, other).inc(5)

    assert metrics.counter(metrics.REFUSALS, code) is metrics.counter(metrics.REFUSALS, code)
    assert REGISTRY.get_sample_value("extproc_refusals_total", {"code": code}) == 2
    assert REGISTRY.get_sample_value("extproc_refusals_total", {"code": other}) == 5


def test_long_and_quick_times_are_told_apart() -> None:
    """A stream of minutes and our own work of a tenth of a millisecond each fall between two buckets, not beyond."""

    def buckets(metric: Histogram) -> list[float]:
        labels = [uuid4().hex for _ in metric._labelnames]
        metrics.histogram(metric, *labels).observe(0)
        return [
            float(sample.labels["le"])
            for family in metric.collect()
            for sample in family.samples
            if sample.name.endswith("_bucket") and labels[0] in sample.labels.values()
        ]

    assert min(buckets(metrics.OWN_SECONDS)) <= 0.0001
    assert sorted(buckets(metrics.CALL_SECONDS))[-2] >= 1800
    assert sorted(buckets(metrics.FIRST_BYTE_SECONDS))[-2] >= 300


def test_the_documentation_names_them_all() -> None:
    """Every metric is in the table for operators, and nothing else is."""
    table = DOCS.read_text().partition("## Metrics")[2].partition("## Logs")[0]
    names = {name for row in re.findall(r"^\| (`extproc_[^|]*) \|", table, re.MULTILINE) for name in row.split(", ")}

    assert {name.strip("`") for name in names} == {name for name, _ in families()} | {"extproc_provider_key_available"}


def test_keys_that_may_be_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They are read when they are asked for: a key that is gone is gone, one that is back is back."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    rows = [{"provider": "p", "key": "0a1b2c3d", "available": False}, {"provider": "q", "key": "4e", "available": True}]
    keys = metrics.KeysAvailable(lambda: rows)
    before = samples(metrics.exposition(keys).decode())
    rows[0]["available"] = True
    del rows[1]

    assert before == {
        "extproc_provider_key_available 0a1b2c3d p": 0,
        "extproc_provider_key_available 4e q": 1,
    }
    assert samples(metrics.exposition(keys).decode()) == {"extproc_provider_key_available 0a1b2c3d p": 1}
