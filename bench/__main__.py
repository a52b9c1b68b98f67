"""``make bench``: one table from one run, in which everything takes turns on the same machine."""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Final

from bench import lookup
from bench.load import Load, Seen
from bench.stage import KEY, Subject, cpu_seconds, memory, subjects

SIZES: Final = {"small": 0, "100 KB": 100_000}
CONNECTIONS: Final = (1, 32, 256)
STREAMS: Final = 200
EVERYBODY: Final = ("Envoy alone", "grpcio, doing nothing", "granian, doing nothing", "grpcio", "granian")
STREAMING: Final = ("Envoy alone", "grpcio", "granian")
ACCOUNTED: Final = ("no accounts", "accounts in memory", "accounts in Redis")


@dataclass(frozen=True, slots=True)
class Case:
    """A load, and by name who is put under it; all are compared with the first."""

    load: Load
    subjects: Sequence[str]


@dataclass(slots=True)
class Result:
    """One subject under one load, all rounds together. Times are milliseconds, rates calls a second."""

    case: str
    subject: str
    rates: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    calls: int = 0
    failed: int = 0
    envoy_cpu: float = 0.0
    worker_cpu: float = 0.0
    seconds: float = 0.0
    worker_bytes: int = 0
    scripts: int = 0

    @property
    def rate(self) -> float:
        return median(self.rates)

    def add(self, seen: Seen, envoy_cpu: float, worker_cpu: float, grown: int, scripts: int = 0) -> None:
        self.rates.append(seen.calls / seen.seconds)
        self.latencies += [1000 * x for x in seen.latencies]
        self.first += [1000 * x for x in seen.first]
        self.gaps += [1000 * x for x in seen.gaps]
        self.calls += seen.calls
        self.failed += seen.failed
        self.envoy_cpu += envoy_cpu
        self.worker_cpu += worker_cpu
        self.seconds += seen.seconds
        self.worker_bytes = max(self.worker_bytes, grown)
        self.scripts += scripts


def percentile(values: Sequence[float], percent: int) -> float:
    return quantiles(values, n=100)[percent - 1] if len(values) > 1 else (values[0] if values else 0.0)


def measure(subject: Subject, load: Load, result: Result) -> None:
    """One turn of one subject."""
    pids = [subject.envoy] + ([subject.worker] if subject.worker else [])
    before = [cpu_seconds(pid) for pid in pids]
    rest = memory(subject.worker) if subject.worker else 0
    scripts = subject.scripts()
    grown = 0
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "seen.json"
        command = [sys.executable, "-m", "bench.load", json.dumps(asdict(load)), str(file)]
        with subprocess.Popen(command) as process:
            while process.poll() is None:
                if load.stream and subject.worker:
                    grown = max(grown, memory(subject.worker) - rest)
                time.sleep(0.1)
        if process.returncode:
            raise RuntimeError(f"the load generator ended with status {process.returncode}")
        seen = Seen(**json.loads(file.read_text()))
    spent = [cpu_seconds(pid) - b for pid, b in zip(pids, before, strict=True)]
    result.add(seen, spent[0], spent[1] if len(spent) > 1 else 0.0, grown, subject.scripts() - scripts)


def cases(seconds: float) -> dict[str, Case]:
    made = {
        f"{connections} connection{'s' * (connections > 1)}, {name}": Case(
            Load(0, connections, seconds, size, key=KEY), EVERYBODY
        )
        for name, size in SIZES.items()
        for connections in CONNECTIONS
    }
    made[f"{STREAMS} streams, 50 events/s"] = Case(Load(0, STREAMS, stream=True, key=KEY), STREAMING)
    for connections, name in ((1, "small"), (32, "small"), (32, "100 KB")):
        load = Load(0, connections, seconds, SIZES[name], key=KEY)
        made[f"accounts: {name}, {connections} at once"] = Case(load, ACCOUNTED)
    return made


def run(rounds: int, seconds: float, only: str) -> list[Result]:
    """Everything takes turns, so that what the machine does meanwhile meets all alike."""
    chosen = {name: case for name, case in cases(seconds).items() if only in name}
    with subjects({name for case in chosen.values() for name in case.subjects}) as running:
        found = {subject.name: subject for subject in running}
        warm = Load(0, 8, 0.5, key=KEY)
        for subject in running:
            warm.port = subject.port
            measure(subject, warm, Result("warm-up", subject.name))
        results = {(name, s): Result(name, s) for name, case in chosen.items() for s in case.subjects}
        for number in range(rounds):
            for name, case in chosen.items():
                turn = number % len(case.subjects)
                for who in (*case.subjects[turn:], *case.subjects[:turn]):
                    case.load.port = found[who].port
                    print(f"\rround {number + 1} of {rounds}: {name}: {who} ".ljust(79), end="", file=sys.stderr)
                    measure(found[who], case.load, results[name, who])
        print("\r".ljust(80) + "\r", end="", file=sys.stderr)
    return list(results.values())


# --- the table ------------------------------------------------------------------------------------------------


def table(results: list[Result]) -> Iterator[str]:
    first: dict[str, Result] = {}
    for r in results:
        first.setdefault(r.case, r)
    calls = [r for r in results if r.latencies]
    if calls:
        yield "| load | | calls/s | ratio | p50 ms | p99 ms | CPU ms/call: Envoy | worker |"
        yield "|---|---|--:|--:|--:|--:|--:|--:|"
    for r in calls:
        yield (
            f"| {r.case} | {r.subject} | {r.rate:,.0f} | {r.rate / first[r.case].rate:.2f} "
            f"| {percentile(r.latencies, 50):.2f} | {percentile(r.latencies, 99):.2f} "
            f"| {1000 * r.envoy_cpu / r.calls:.2f} | {_or_dash(1000 * r.worker_cpu / r.calls)} |"
        )
    streams = [r for r in results if r.gaps]
    if streams:
        yield ""
        yield (
            "| streams | | first event p50 ms | gap p50 ms | gap p99 ms | added p99 ms "
            "| CPU: Envoy | worker | CPU µs/event | KB/stream |"
        )
        yield "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|"
    for r in streams:
        p99 = percentile(r.gaps, 99)
        yield (
            f"| {r.case} | {r.subject} | {percentile(r.first, 50):.1f} | {percentile(r.gaps, 50):.1f} | {p99:.1f} "
            f"| {p99 - percentile(first[r.case].gaps, 99):+.1f} | {r.envoy_cpu / r.seconds:.0%} "
            f"| {_or_dash(100 * r.worker_cpu / r.seconds, '%')} "
            f"| {_or_dash(1e6 * r.worker_cpu / (len(r.gaps) + len(r.first)))} "
            f"| {_or_dash(r.worker_bytes / 1024 / STREAMS)} |"
        )


def _or_dash(value: float, unit: str = "") -> str:
    return f"{value:.{0 if value >= 10 else 2}f}{unit}" if value else "–"


def targets(results: list[Result]) -> Iterator[tuple[str, float, str, bool]]:
    """What was to be reached: words, what was measured, the bound in words, whether it holds."""
    found = {(r.case, r.subject): r for r in results}
    for transport, bound in (("granian", 0.30), ("grpcio", 0.20)):
        if ("32 connections, small", transport) in found:
            ratio = found["32 connections, small", transport].rate / found["32 connections, small", "Envoy alone"].rate
            yield f"{transport}: calls/s at 32 connections, as a ratio", ratio, f"≥ {bound:.2f}", ratio >= bound
        case = "1 connection, small"
        if (case, transport) in found:
            added = percentile(found[case, transport].latencies, 50) - percentile(
                found[case, "Envoy alone"].latencies, 50
            )
            yield f"{transport}: ms added at 1 connection, median", added, "≤ 2", added <= 2
        case = f"{STREAMS} streams, 50 events/s"
        if (case, transport) in found:
            gap = percentile(found[case, transport].gaps, 99) - percentile(found[case, "Envoy alone"].gaps, 99)
            yield f"{transport}: ms added to the gap between events, p99, {STREAMS} streams", gap, "< 20", gap < 20
    case = "accounts: small, 32 at once"
    if (case, "no accounts") in found:
        ratio = found[case, "accounts in memory"].rate / found[case, "no accounts"].rate
        yield (
            "accounts in memory: calls/s at 32 connections, as a ratio to the run without",
            ratio,
            "≥ 0.85",
            ratio >= 0.85,
        )
        trips = found[case, "accounts in Redis"].scripts / found[case, "accounts in Redis"].calls
        yield "accounts in Redis: round trips a call, to reserve and to settle", trips, "≤ 2.1", trips <= 2.1


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round: shows that it works, not how fast")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each subject, load and round")
    parser.add_argument("--only", default="", metavar="TEXT", help="loads whose name has this text")
    parser.add_argument("--json", action="store_true", help="print figures instead of a table")
    options = parser.parse_args()
    rounds, seconds = (1, 0.5) if options.quick else (options.rounds, options.seconds)
    results = run(rounds, seconds, options.only)
    if options.json:
        print(json.dumps([_figures(r) for r in results], indent=2))
        return
    print(
        f"{os.cpu_count()} cores, Python {platform.python_version()}, {rounds} round(s) of {seconds:g} s, interleaved\n"
    )
    print("\n".join(table(results)))
    print()
    for words, value, bound, holds in targets(results):
        print(f"{'reached' if holds else 'MISSED '}  {words}: {value:.2f} ({bound})")
    if not options.only:
        print()
        print("\n".join(lookup.table(*((lookup.SIZES[:2], 1_000) if options.quick else ()))))
    if failed := sum(r.failed for r in results):
        print(f"\n{failed} calls failed: nothing above counts.", file=sys.stderr)
        sys.exit(1)


def _figures(r: Result) -> dict[str, Any]:
    return {
        "case": r.case,
        "subject": r.subject,
        "calls": r.calls,
        "failed": r.failed,
        "rate": r.rate,
        "p50_ms": percentile(r.latencies, 50),
        "p99_ms": percentile(r.latencies, 99),
        "first_event_p50_ms": percentile(r.first, 50),
        "gap_p50_ms": percentile(r.gaps, 50),
        "gap_p99_ms": percentile(r.gaps, 99),
        "envoy_cpu_seconds": r.envoy_cpu,
        "worker_cpu_seconds": r.worker_cpu,
        "worker_bytes_grown": r.worker_bytes,
        "redis_scripts": r.scripts,
    }


if __name__ == "__main__":
    main()
