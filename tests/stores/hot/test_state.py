"""What hot state promises, wherever it lives."""

import asyncio
import math
from dataclasses import replace

import pytest
from stores.hot.places import (
    DAY,
    MONEY,
    NOTHING,
    OPEN,
    PER_DAY,
    PER_SECOND,
    REQUESTS,
    TOKENS,
    Place,
    loaded,
    numbers,
)

from extproc.stores.ports import BUCKETS, Amounts, Granted, Loaded, Missing, Short

ALL = [TOKENS, MONEY, PER_DAY, REQUESTS, OPEN]


# --- reserve --------------------------------------------------------------------------------------------------


async def test_a_reservation_is_held_by_every_counter(place: Place) -> None:
    """Each counter gets its unit of the amounts, and the readings include it."""
    state = await loaded(place, *ALL)

    granted = await state.reserve("call", ALL, Amounts(30, 500), b"note")

    assert isinstance(granted, Granted)
    assert numbers(granted.readings) == [(0, 30), (0, 500), (30, 0), (1, 0), (0, 1)]
    assert numbers(await state.read(ALL)) == numbers(granted.readings)


async def test_a_quota_takes_what_just_fits(place: Place) -> None:
    """Used and held together may reach the limit, and not pass it."""
    state = await place.state()
    await state.load([Loaded(TOKENS, used=600)])

    assert isinstance(await state.reserve("a", [TOKENS], Amounts(300), b""), Granted)
    assert isinstance(await state.reserve("b", [TOKENS], Amounts(101), b""), Short)
    assert isinstance(await state.reserve("c", [TOKENS], Amounts(100), b""), Granted)
    assert isinstance(await state.reserve("d", [TOKENS], Amounts(1), b""), Short)
    assert isinstance(await state.reserve("e", [TOKENS], Amounts(0), b""), Granted)


async def test_one_that_is_short_keeps_all_from_holding(place: Place) -> None:
    """Every counter without room is named, and none holds anything."""
    state = await loaded(place, *ALL)

    short = await state.reserve("call", ALL, Amounts(101, 2 * 10**12), b"")

    assert isinstance(short, Short)
    assert list(short.counters) == [1, 2]
    assert numbers(short.readings) == [(0, 0)] * 5
    assert numbers(await state.read(ALL)) == [(0, 0)] * 5


async def test_open_calls_are_counted(place: Place) -> None:
    """So many at once and no more, whatever they take; one that ends makes room."""
    state = await place.state()

    assert isinstance(await state.reserve("a", [OPEN], NOTHING, b""), Granted)
    assert isinstance(await state.reserve("b", [OPEN], NOTHING, b""), Granted)
    short = await state.reserve("c", [OPEN], NOTHING, b"")
    assert isinstance(short, Short)
    assert numbers(short.readings) == [(0, 2)]
    assert short.readings[0].wait == 0

    assert await state.settle("a", [OPEN], Amounts(5), b"row") is None
    assert isinstance(await state.reserve("c", [OPEN], NOTHING, b""), Granted)


async def test_reserving_again_holds_once(place: Place) -> None:
    """A step that was repeated, because its answer was lost, gets the same answer and changes nothing."""
    state = await loaded(place, *ALL)

    first = await state.reserve("call", ALL, Amounts(30, 500), b"note")
    again = await state.reserve("call", ALL, Amounts(30, 500), b"note")

    assert isinstance(first, Granted)
    assert isinstance(again, Granted)
    assert numbers(again.readings) == numbers(first.readings)


async def test_a_reservation_that_arrives_late_holds_nothing(place: Place) -> None:
    """The call is settled already."""
    state = await loaded(place, TOKENS, OPEN)
    await state.settle("call", [TOKENS, OPEN], Amounts(7), b"row")

    assert isinstance(await state.reserve("call", [TOKENS, OPEN], Amounts(30), b""), Granted)
    assert numbers(await state.read([TOKENS, OPEN])) == [(7, 0), (0, 0)]


async def test_nothing_to_count_by(place: Place) -> None:
    """A call that no rule binds is open and settled like any other."""
    state = await place.state()

    assert await state.reserve("call", [], Amounts(30), b"note") == Granted([])
    assert await state.settle("call", [], Amounts(30), b"row") is None
    await state.booked(["call"])


# --- what is missing ------------------------------------------------------------------------------------------


async def test_what_is_not_loaded_is_asked_for(place: Place) -> None:
    """Nothing is done until it is loaded; windows that the state is too young to know are to be loaded too."""
    state = await place.state()

    assert await state.reserve("call", ALL, Amounts(1), b"") == Missing([0, 1, 2, 3])
    assert numbers(await state.read(ALL)) == [(None, 0), (None, 0), (None, 0), (None, 0), (0, 0)]

    await state.load([Loaded(counter) for counter in (TOKENS, PER_DAY)])
    assert await state.reserve("call", ALL, Amounts(1), b"") == Missing([1, 3])

    await state.load([Loaded(counter) for counter in (MONEY, REQUESTS)])
    assert isinstance(await state.reserve("call", ALL, Amounts(1), b""), Granted)


async def test_an_old_state_knows_its_windows(place: Place) -> None:
    """A window that nobody used while the state was there is empty."""
    state = await place.state()
    await place.age()

    assert numbers(await state.read([PER_DAY])) == [(0, 0)]
    assert isinstance(await state.reserve("call", [PER_DAY], Amounts(1), b""), Granted)


async def test_loading_sets_what_is_missing_alone(place: Place) -> None:
    """Two workers that load at once do no harm: the second finds the numbers there."""
    state = await place.state()
    await state.load([Loaded(TOKENS, used=10), Loaded(PER_DAY), Loaded(OPEN)])
    await state.reserve("call", [TOKENS, PER_DAY], Amounts(5), b"")

    await state.load([Loaded(TOKENS, used=700), Loaded(PER_DAY, buckets={10**9: 50})])

    assert numbers(await state.read([TOKENS, PER_DAY, OPEN])) == [(10, 5), (5, 0), (0, 0)]


async def test_what_is_forgotten_must_be_loaded_anew(place: Place) -> None:
    """What is held stays held; windows and open calls know what they know."""
    state = await loaded(place, *ALL)
    await state.reserve("call", ALL, Amounts(30, 500), b"")

    await state.forget(ALL)

    assert numbers(await state.read(ALL)) == [(None, 30), (None, 500), (30, 0), (1, 0), (0, 1)]
    assert await state.reserve("other", ALL, Amounts(1), b"") == Missing([0, 1])
    assert await state.settle("call", ALL, Amounts(1), b"row") == Missing([0, 1])

    await state.load([Loaded(TOKENS, used=100), Loaded(MONEY, used=200)])
    assert numbers(await state.read(ALL)) == [(100, 30), (200, 500), (30, 0), (1, 0), (0, 1)]
    assert await state.settle("call", ALL, Amounts(1, 2), b"row") is None
    assert numbers(await state.read(ALL)) == [(101, 0), (202, 0), (1, 0), (1, 0), (0, 0)]


async def test_a_quota_that_binds_no_more_is_only_released(place: Place) -> None:
    """It is not loaded and nobody asks for it: the ledger tells it when somebody does."""
    state = await loaded(place, TOKENS, MONEY)
    await state.reserve("call", [TOKENS, MONEY], Amounts(30, 500), b"")
    await state.forget([MONEY])

    assert await state.settle("call", [TOKENS], Amounts(20, 400), b"row") is None
    assert numbers(await state.read([TOKENS, MONEY])) == [(20, 0), (None, 0)]


# --- settle ---------------------------------------------------------------------------------------------------


async def test_a_settled_call_counts_what_it_took(place: Place) -> None:
    """What was held is released; a window is corrected to what was taken."""
    state = await loaded(place, *ALL)
    await state.reserve("call", ALL, Amounts(30, 500), b"")

    assert await state.settle("call", ALL, Amounts(50, 300), b"row") is None

    assert numbers(await state.read(ALL)) == [(50, 0), (300, 0), (50, 0), (1, 0), (0, 0)]


async def test_a_call_that_was_no_request(place: Place) -> None:
    """One that counts for nothing, such as a cached answer, gives its place in a window back."""
    state = await loaded(place, *ALL)
    await state.reserve("call", ALL, Amounts(30, 500), b"")

    assert await state.settle("call", ALL, NOTHING, b"row") is None

    assert numbers(await state.read(ALL)) == [(0, 0)] * 5


async def test_settling_again_counts_once(place: Place) -> None:
    """For as long as the row is kept the call is known, whatever amounts come."""
    state = await loaded(place, *ALL)
    await state.reserve("call", ALL, Amounts(30, 500), b"")
    await state.settle("call", ALL, Amounts(50, 300), b"row")

    assert await state.settle("call", ALL, Amounts(70, 900), b"another row") is None

    assert numbers(await state.read(ALL)) == [(50, 0), (300, 0), (50, 0), (1, 0), (0, 0)]


async def test_a_call_without_a_reservation_counts_whole(place: Place) -> None:
    """Its reservation is lost, or there was none: what it took counts all the same."""
    state = await loaded(place, *ALL)

    assert await state.settle("call", ALL, Amounts(50, 300), b"row") is None
    assert await state.settle("call", ALL, Amounts(50, 300), b"row") is None

    assert numbers(await state.read(ALL)) == [(50, 0), (300, 0), (50, 0), (1, 0), (0, 0)]


async def test_rules_that_came_and_went_meanwhile(place: Place) -> None:
    """A new counter counts the call, and one that binds no more gets what it held corrected."""
    state = await loaded(place, *ALL)
    await state.reserve("call", [TOKENS, REQUESTS, OPEN], Amounts(30, 500), b"")

    assert await state.settle("call", [MONEY, PER_DAY], Amounts(50, 300), b"row") is None

    assert numbers(await state.read(ALL)) == [(50, 0), (300, 0), (50, 0), (1, 0), (0, 0)]


async def test_a_released_call_was_never_there(place: Place) -> None:
    """Releasing what is not there, or twice, changes nothing."""
    state = await loaded(place, *ALL)
    await state.reserve("call", ALL, Amounts(30, 500), b"")

    await state.release("call")
    await state.release("call")
    await state.release("unknown")

    assert numbers(await state.read(ALL)) == [(0, 0)] * 5


async def test_a_settled_call_cannot_be_released(place: Place) -> None:
    """What it took is taken."""
    state = await loaded(place, TOKENS)
    await state.reserve("call", [TOKENS], Amounts(30), b"")
    await state.settle("call", [TOKENS], Amounts(20), b"row")

    await state.release("call")

    assert numbers(await state.read([TOKENS])) == [(20, 0)]


async def test_a_booked_call_is_unknown(place: Place) -> None:
    """What comes later under its name is another call."""
    state = await loaded(place, TOKENS)
    await state.settle("call", [TOKENS], Amounts(20), b"row")
    await state.booked(["call", "unknown"])
    await state.booked([])

    await state.settle("call", [TOKENS], Amounts(3), b"row")

    assert numbers(await state.read([TOKENS])) == [(23, 0)]


async def test_what_is_not_ours_and_unknown_is_left_alone(place: Place) -> None:
    """Somebody else may have settled and booked it; who knows better says so."""
    state = await loaded(place, TOKENS)

    assert await state.settle("call", [TOKENS], Amounts(20), b"row", worker="dead") is None
    assert numbers(await state.read([TOKENS])) == [(0, 0)]

    assert await state.settle("call", [TOKENS], Amounts(20), b"row", worker="dead", whole=True) is None
    assert await state.settle("call", [TOKENS], Amounts(20), b"row", worker="dead", whole=True) is None
    assert numbers(await state.read([TOKENS])) == [(20, 0)]
    assert [(o.call_id, o.worker, o.note, o.row) for o in await state.orphans()] == [("call", "dead", b"", b"row")]

    await state.booked(["call"], worker="dead")
    assert await state.orphans() == []


async def test_great_numbers_are_exact(place: Place) -> None:
    """Beyond 2^53, where doubles have gaps."""
    quota = replace(MONEY, limit=2**62)
    state = await place.state()
    await state.load([Loaded(quota, used=2**60 + 1)])

    granted = await state.reserve("call", [quota], Amounts(0, 2**59 + 1), b"")
    assert isinstance(granted, Granted)
    assert numbers(granted.readings) == [(2**60 + 1, 2**59 + 1)]

    await state.settle("call", [quota], Amounts(0, 2**58 + 3), b"row")
    assert numbers(await state.read([quota])) == [(2**60 + 2**58 + 4, 0)]


# --- windows --------------------------------------------------------------------------------------------------


async def test_a_window_forgets(place: Place) -> None:
    """What was counted leaves a little after the window's length, never before, and ``wait`` tells when."""
    state = await loaded(place, PER_SECOND)
    await place.age()
    await state.reserve("a", [PER_SECOND], Amounts(60), b"")
    short = await state.reserve("b", [PER_SECOND], Amounts(41), b"")
    assert isinstance(short, Short)
    assert 0.5 < short.readings[0].wait <= 1 + 1 / BUCKETS

    await place.elapse(short.readings[0].wait / 2)
    assert isinstance(await state.reserve("b", [PER_SECOND], Amounts(41), b""), Short)

    await place.elapse(short.readings[0].wait / 2 + 0.001)
    assert numbers(await state.read([PER_SECOND])) == [(0, 0)]
    assert isinstance(await state.reserve("b", [PER_SECOND], Amounts(100), b""), Granted)


async def test_how_long_to_wait(place: Place) -> None:
    """Until those that are in the way have left; for ever for what never fits; where there is room, until empty."""
    state = await loaded(place, PER_SECOND)
    await place.age()
    await state.reserve("a", [PER_SECOND], Amounts(60), b"")
    await place.elapse(0.3)
    granted = await state.reserve("b", [PER_SECOND], Amounts(40), b"")
    assert isinstance(granted, Granted)
    waits = []
    for amount in (60, 61, 101):
        short = await state.reserve("c", [PER_SECOND], Amounts(amount), b"")
        assert isinstance(short, Short)
        waits.append(short.readings[0].wait)

    first, second, never = waits
    assert first < second <= granted.readings[0].wait <= 1 + 1 / BUCKETS
    assert second - first == pytest.approx(0.3, abs=0.1)
    assert never == math.inf
    assert (await state.read([PER_SECOND]))[0].wait == pytest.approx(second, abs=0.1)


async def test_an_empty_window_has_nothing_to_wait_for(place: Place) -> None:
    """Not even for a call that took nothing."""
    state = await loaded(place, PER_DAY)

    granted = await state.reserve("a", [PER_DAY], NOTHING, b"")

    assert isinstance(granted, Granted)
    assert granted.readings[0].wait == 0


async def test_a_call_longer_than_the_window(place: Place) -> None:
    """What was counted at its start has left when it ends, and nothing is left to correct."""
    state = await loaded(place, PER_SECOND)
    await place.age()
    await state.reserve("long", [PER_SECOND], Amounts(60), b"")
    await place.elapse(1.1)
    await state.reserve("other", [PER_SECOND], Amounts(30), b"")

    await state.settle("long", [PER_SECOND], Amounts(90), b"row")

    assert numbers(await state.read([PER_SECOND])) == [(30, 0)]


async def test_a_call_is_corrected_where_it_was_counted(place: Place) -> None:
    """What it took leaves the window with its start, not with its end."""
    state = await loaded(place, PER_SECOND)
    await place.age()
    await state.reserve("call", [PER_SECOND], Amounts(60), b"")
    before = (await state.read([PER_SECOND]))[0]
    await place.elapse(0.4)

    await state.settle("call", [PER_SECOND], Amounts(90), b"row")

    after = (await state.read([PER_SECOND]))[0]
    assert after.used == 90
    assert after.wait == pytest.approx(before.wait - 0.4, abs=0.1)


async def test_a_window_is_loaded_by_bucket(place: Place) -> None:
    """What has left counts no more, and what lies ahead by another's clock counts as of now."""
    state = await place.state()
    newest = math.floor(place.now() * BUCKETS / DAY)
    buckets = {newest - BUCKETS - 2: 1, newest - 10: 20, newest: 300, newest + 100: 4000}
    await state.load([Loaded(replace(PER_DAY, limit=10**6), buckets=buckets)])

    reading = (await state.read([PER_DAY]))[0]
    assert reading.used == 4320
    assert reading.wait <= DAY * (1 + 1 / BUCKETS)


async def test_an_unused_window_can_be_loaded(place: Place) -> None:
    """Though it is known to be empty: the ledger may have what was not counted here."""
    state = await place.state()
    await place.age()

    await state.load([Loaded(PER_DAY, buckets={math.floor(place.now() * BUCKETS / DAY): 5})])

    assert numbers(await state.read([PER_DAY])) == [(5, 0)]


async def test_never_more_than_the_limit_in_any_window(place: Place) -> None:
    """Wherever a window is laid over what was granted, it holds no more than the limit."""
    counter = replace(PER_SECOND, limit=10)
    state = await loaded(place, counter)
    await place.age()
    granted = []
    end = place.now() + 2.2
    while (before := place.now()) < end:
        if isinstance(await state.reserve(f"call-{before}", [counter], Amounts(1), b""), Granted):
            granted.append((before, place.now()))
        await place.elapse(0.011)

    assert len(granted) >= 20
    # The step took place between two looks at the clock: surely within a second are those that began and ended in one.
    for i, (began, _) in enumerate(granted):
        assert sum(ended <= began + 1 for _, ended in granted[i:]) <= 10


# --- at once --------------------------------------------------------------------------------------------------


async def test_many_at_the_edge(place: Place) -> None:
    """Two hundred at once, and as many are granted as fit."""
    counters = [TOKENS, PER_DAY, replace(OPEN, limit=1000)]
    state = await loaded(place, *counters)

    answers = await asyncio.gather(*(state.reserve(f"{i}", counters, Amounts(7), b"") for i in range(200)))

    assert sum(isinstance(answer, Granted) for answer in answers) == 100 // 7
    assert numbers(await state.read(counters)) == [(0, 98), (98, 0), (0, 14)]


async def test_calls_that_come_and_go_at_once(place: Place) -> None:
    """However they interleave: in the end nothing is held, and used is what they took together."""
    counters = [TOKENS, MONEY, OPEN]
    state = await loaded(place, *counters)
    most = 0

    async def call(number: int) -> int:
        nonlocal most
        name = f"call-{number}"
        for _ in range(50):
            if isinstance(await state.reserve(name, counters, Amounts(10, 10), b""), Granted):
                most = max(most, (await state.read(counters))[2].held)
                if number % 3 == 0:
                    await state.release(name)
                    return 0
                await asyncio.gather(*(state.settle(name, counters, Amounts(number, number), b"") for _ in range(3)))
                return number
            await asyncio.sleep(0.001)
        return 0

    took = sum(await asyncio.gather(*(call(number) for number in range(30))))

    assert took > 0
    assert most <= 2
    assert numbers(await state.read(counters)) == [(took, 0), (took, 0), (0, 0)]
