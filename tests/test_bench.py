"""The benchmark runs, and what it says follows from what it measured."""

import json
import subprocess
import sys

import pytest

from bench import lookup
from bench.__main__ import Result, percentile, table, targets
from bench.load import Load, Seen, request

SERVING = {"Envoy alone", "grpcio", "granian"}
IDLE = {"grpcio, doing nothing", "granian, doing nothing"}
ACCOUNTS = {"no accounts", "accounts in memory", "accounts in Redis"}


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("only", "names"),
    [
        ("1 connection, small", SERVING | IDLE),
        ("200 streams", SERVING),
        ("accounts: small, 32", ACCOUNTS),
    ],
)
def test_a_quick_run(only: str, names: set[str]) -> None:
    """Every subject serves every call of a short round, and only accounts in Redis ask Redis: twice a call."""
    command = [sys.executable, "-m", "bench", "--quick", "--json", "--only", only]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    figures = [f for f in json.loads(done.stdout) if f["calls"]]

    assert {f["subject"] for f in figures} == names
    assert [f["failed"] for f in figures] == [0] * len(figures)
    assert all(f["worker_cpu_seconds"] > 0 for f in figures if f["subject"] != "Envoy alone")
    for each in figures:
        trips = 2 if each["subject"] == "accounts in Redis" else 0
        assert each["redis_scripts"] / each["calls"] == pytest.approx(
            trips, abs=0.3
        )  # heartbeats, and calls at the edge


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


def accounts(*, rate: int, scripts: int) -> list[Result]:
    made = []
    for subject, calls, asked in (
        ("no accounts", 1000, 0),
        ("accounts in memory", rate, 0),
        ("accounts in Redis", 500, scripts),
    ):
        result = Result("accounts: small, 32 at once", subject)
        result.add(Seen(calls=calls, seconds=1.0, latencies=[0.001] * 10), 0.1, 0.2, 0, asked)
        made.append(result)
    return made


@pytest.mark.parametrize(
    ("rate", "scripts", "holds"),
    [(850, 1050, [True, True]), (849, 1050, [False, True]), (850, 1051, [True, False])],
)
def test_what_accounts_may_cost(rate: int, scripts: int, holds: list[bool]) -> None:
    """Accounts are compared with the same worker without them, and Redis is asked twice a call."""
    found = accounts(rate=rate, scripts=scripts)

    assert [x[3] for x in targets(found)] == holds
    assert [row.split("|")[4].strip() for row in list(table(found))[2:]] == ["1.00", f"{rate / 1000:.2f}", "0.50"]


def test_finding_consumers() -> None:
    """Everybody's key is found among all, with a quota and a limit; the table has a line for each size."""
    known = lookup.applied(lookup.records(20))
    identity = known.find(lookup.key(7), 0.0)
    assert identity is not None
    assert identity.consumer.name == "c7"
    assert [c.kind for c in known.counters.of(identity.consumer, "m", 0.0)] == ["quota", "window"]
    assert known.find(lookup.key(20), 0.0) is None

    lines = list(lookup.table((10, 20), 30))
    assert [line.split("|")[1].strip() for line in lines[2:4]] == ["10", "20"]
    assert lines[-2].startswith("30 records")


def test_percentile() -> None:
    """Percentiles of many, of one, and of none."""
    assert percentile(list(range(1, 1001)), 50) == pytest.approx(500.5)
    assert percentile(list(range(1, 1001)), 99) == pytest.approx(990, abs=1)
    assert (percentile([7.0], 99), percentile([], 99)) == (7.0, 0.0)
