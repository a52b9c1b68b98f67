"""Whether the numbers in use are those of the ledger."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Final

from extproc.stores.ports import Counter, Difference, HotState, Ledger

_LOOKS: Final = 4
_PAUSE: Final = 0.3  # seconds: by then every row that was counted is in the ledger
_BATCH: Final = 500


async def differences(
    hot: HotState, ledger: Ledger, counters: Iterable[Counter], *, now: float, pause: float = _PAUSE
) -> list[Difference]:
    """Numbers of the hot state that are not what the ledger's rows add up to. A number that is not loaded is none.

    Calls that end meanwhile are in the one before the other, so what differs is looked at again: only what stays the
    same wrong number counts. Raises StateUnavailable or DatabaseUnavailable.
    """
    found: list[Difference] = []
    for some in _batches(counters):
        suspects = await _compare(hot, ledger, some, now)
        for _ in range(_LOOKS):
            if not suspects:
                break
            await asyncio.sleep(pause)
            before = {each.where: each.found - each.ledger for each in suspects}
            again = await _compare(hot, ledger, [c for c in some if c.key in before], now)
            suspects = [each for each in again if each.found - each.ledger == before[each.where]]
        found += suspects
    return found


async def _compare(hot: HotState, ledger: Ledger, counters: Sequence[Counter], now: float) -> list[Difference]:
    readings = await hot.read(counters)
    known = [(c, reading.used) for c, reading in zip(counters, readings, strict=True) if reading.used is not None]
    loaded = await asyncio.to_thread(ledger.load, [counter for counter, _ in known], now=now)
    return [
        Difference(where=counter.key, ledger=one.used, found=used)
        for (counter, used), one in zip(known, loaded, strict=True)
        if used != one.used
    ]


def _batches(counters: Iterable[Counter]) -> Iterator[tuple[Counter, ...]]:
    remaining = iter(counters)
    while some := tuple(islice(remaining, _BATCH)):
        yield some
