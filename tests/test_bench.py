"""The benchmark runs, and what it says follows from what it measured."""

import json
import subprocess
import sys

import pytest

from bench.__main__ import Result, percentile, table, targets
from bench.load import Load, Seen, request


@pytest.mark.e2e
@pytest.mark.parametrize("only", ["1 connection, small", "200 streams"])
def test_a_quick_run(only: str) -> None:
    """Every subject serves every call of a short round."""
    command = [sys.executable, "-m", "bench", "--quick", "--json", "--only", only]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    figures = [f for f in json.loads(done.stdout) if f["calls"]]

    names = {"Envoy alone", "grpcio", "granian"}
    idle = {"grpcio, doing nothing", "granian, doing nothing"}
    assert {f["subject"] for f in figures} == (names if "streams" in only else names | idle)
    assert [f["failed"] for f in figures] == [0] * len(figures)
    assert all(f["worker_cpu_seconds"] > 0 for f in figures if f["subject"] != "Envoy alone")


@pytest.mark.parametrize("size", [0, 1000, 100_000])
def test_size_of_a_request(size: int) -> None:
    """A body has the size that was asked for, and says so."""
    head, _, body = request(Load(1, body=size, key="k")).partition(b"\r\n\r\n")

    assert len(body) == (size or 80)
    assert f"content-length: {len(body)}".encode() in head
    assert json.loads(body)["model"] == "m"


def results(ours: int) -> list[Result]:
    made = []
    for subject, calls in (("Envoy alone", 1000), ("granian", ours)):
        result = Result("32 connections, small", subject)
        result.add(Seen(calls=calls, seconds=1.0, latencies=[0.001] * 10), 0.1, 0.2, 0)
        made.append(result)
    return made


@pytest.mark.parametrize(("ours", "holds"), [(299, False), (300, True)])
def test_a_target(ours: int, holds: bool) -> None:
    """A target is judged by the ratio within the run."""
    assert [x[3] for x in targets(results(ours))] == [holds]
    assert any("| 0.30 |" in row and "granian" in row for row in table(results(ours)))


def test_percentile() -> None:
    """Percentiles of many, of one, and of none."""
    assert percentile(list(range(1, 1001)), 50) == pytest.approx(500.5)
    assert percentile(list(range(1, 1001)), 99) == pytest.approx(990, abs=1)
    assert (percentile([7.0], 99), percentile([], 99)) == (7.0, 0.0)
