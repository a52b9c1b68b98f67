"""How long it takes to find a consumer and its counters among many: ``python -m bench.lookup`` prints a table."""

import hashlib
import random
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Final

from extproc import accounting
from extproc.accounts.consumers import Consumers
from extproc.config.schema import Config
from extproc.stores.ports import Changes, ConsumerRecord, KeyRecord

SIZES: Final = (10, 1_000, 10_000, 100_000)
APPLIED: Final = 10_000
_CALLS: Final = 2_000
_ROUNDS: Final = 15
_MODEL: Final = "m"


def records(count: int) -> Changes:
    """So many consumers with a key, a quota and a limit each."""
    return Changes(
        revision=1,
        consumers=[consumer(number) for number in range(count)],
        keys=[
            KeyRecord(id=f"k{number}", consumer=f"c{number}", digest=hashlib.sha256(key(number).encode()).digest())
            for number in range(count)
        ],
    )


def applied(changes: Changes) -> Consumers:
    known = accounting.consumers(Config())
    known.apply(changes)
    return known


def lookups(known: Consumers, count: int) -> float:
    """Seconds of processor time to find one call's consumer and counters, anybody's out of ``count``."""
    sent = [key(number) for number in random.Random(0).choices(range(count), k=_CALLS)]  # noqa: S311 - no secret
    now = time.time()

    def look() -> None:
        for each in sent:
            identity = known.find(each, now)
            assert identity is not None
            known.counters.of(identity.consumer, _MODEL, now)

    look()  # the counters are worked out when they are asked for first
    return median(_seconds(look) for _ in range(_ROUNDS)) / _CALLS


def table(sizes: tuple[int, ...] = SIZES, count: int = APPLIED) -> Iterator[str]:
    """Its lines, each when it is measured."""
    yield "| consumers | µs to find one, and its counters | ratio |"
    yield "|--:|--:|--:|"
    least = 0.0
    for size in sizes:
        seconds = lookups(applied(records(size)), size)
        least = least or seconds
        yield f"| {size:,} | {1e6 * seconds:.2f} | {seconds / least:.2f} |"
    changes = records(count)
    known = applied(Changes(revision=0))
    yield ""
    yield f"{count:,} records that change at once are taken in {1000 * _seconds(lambda: known.apply(changes)):.0f} ms, "
    one = Changes(revision=2, consumers=[consumer(0)])
    yield f"one among them in {1000 * median(_seconds(lambda: known.apply(one)) for _ in range(_ROUNDS)):.2f} ms."


def consumer(number: int) -> ConsumerRecord:
    return ConsumerRecord(
        name=f"c{number}", quota=[{"tokens": 10**9, "per": "month"}], limits=[{"tokens": 10**6, "per": "minute"}]
    )


def key(number: int) -> str:
    return f"sk-{number:032}"


def _seconds(work: Callable[[], None]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


if __name__ == "__main__":
    for line in table():
        print(line, flush=True)
