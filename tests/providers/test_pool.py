"""Pools of keys: who gets which, and how long one that was refused is left alone."""

import gc
import math
from collections import Counter
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import pytest
from fakes import Clock
from hypothesis import example, given
from hypothesis import strategies as st

from extproc.core.secret import Secret
from extproc.providers.pool import LADDERS, MAX_RETRY_AFTER, Pool, Pools, key_id, retry_after

WEIGHTS = st.lists(st.integers(1, 20), min_size=1, max_size=6)
NOW = 1_700_000_000.0


def secret(number: int) -> Secret:
    return Secret(f"pk-{number}")


ID = [key_id(secret(n)) for n in range(10)]


class Bench:
    """Keys of one provider, with a clock of their own. A key is called by its number."""

    def __init__(self, weights: list[int], by: Any = "least_used") -> None:
        self.clock = Clock()
        self.pools = Pools(self.clock)
        self.pool = self.made(weights, by)

    def made(self, weights: list[int], by: Any = "least_used") -> Pool:
        keys = [(secret(number), weight, f"label {number}") for number, weight in enumerate(weights)]
        return self.pools.pool("p", keys, by=by)

    def pick(self, consumer: str = "acme") -> int:
        key = self.pool.pick(consumer)
        assert key is not None
        return ID.index(key.id)

    def fail(self, number: int, status: int, wait: float | None = None) -> float | None:
        return self.pools.failed("p", ID[number], status, wait)

    def available(self) -> list[int]:
        return [n for n, row in enumerate(self.pool.state(NOW)) if row["available"]]


# --- which key --------------------------------------------------------------------------------------------------


def test_names_of_keys() -> None:
    """A key is called by the beginning of its digest."""
    assert key_id(Secret("pk-0")) == "d9065778"
    assert key_id(Secret("pk-1")) != key_id(Secret("pk-0"))


def test_no_keys() -> None:
    """A provider without keys has none to pick."""
    assert Bench([]).pool.pick("acme") is None


@given(WEIGHTS, st.integers(1, 200))
def test_the_least_used(weights: list[int], rounds: int) -> None:
    """At every moment each key has had its share, give or take one use."""
    bench = Bench(weights)
    uses = Counter[int]()
    for number in range(1, rounds + 1):
        uses[bench.pick()] += 1
        for key, weight in enumerate(weights):
            assert abs(uses[key] - number * weight / sum(weights)) <= len(weights)


@given(WEIGHTS, st.integers(2, 50))
def test_it_is_the_same_every_time(weights: list[int], rounds: int) -> None:
    """The same uses give the same picks; of keys that are equal the first is taken."""
    one, other = Bench(weights), Bench(weights)

    assert [one.pick() for _ in range(rounds)] == [other.pick() for _ in range(rounds)]
    assert Bench(weights).pick() == 0


def test_a_key_that_was_away_catches_nothing_up() -> None:
    """It gets its share again when it is back, and not every call for a while."""
    bench = Bench([1, 1, 1])
    bench.fail(1, 403)
    assert {bench.pick() for _ in range(300)} == {0, 2}

    bench.clock.now += 300

    assert all(9 <= uses <= 11 for uses in Counter(bench.pick() for _ in range(30)).values())


@pytest.mark.parametrize("before", [[1, 1], [1, 1, 1]])
def test_a_changed_configuration_gives_nothing_to_catch_up_on(before: list[int]) -> None:
    """Neither to a key that is new, nor to one that was away when it came."""
    bench = Bench(before)
    bench.pick()
    bench.fail(2, 401)
    for _ in range(100):
        bench.pick()

    bench.pool = bench.made([1, 1, 1])
    bench.clock.now += 300

    assert all(9 <= uses <= 11 for uses in Counter(bench.pick() for _ in range(30)).values())


@given(st.lists(st.integers(1, 5), min_size=2, max_size=5))
def test_sticky_by_weight(weights: list[int]) -> None:
    """Consumers are spread by weight."""
    bench = Bench(weights, "sticky")
    holders = Counter(bench.pick(f"consumer {n}") for n in range(2000))

    for key, weight in enumerate(weights):
        share = weight / sum(weights)
        assert abs(holders[key] / 2000 - share) < 5 * math.sqrt(share * (1 - share) / 2000)


@given(WEIGHTS.filter(lambda weights: len(weights) > 1), st.data())
def test_sticky_to_the_end(weights: list[int], data: st.DataObject) -> None:
    """A key that cools moves its own consumers and no others, and they come back to it."""
    bench = Bench(weights, "sticky")
    names = [f"consumer {n}" for n in range(60)]
    before = {name: bench.pick(name) for name in names}
    cold = data.draw(st.integers(0, len(weights) - 1))

    bench.fail(cold, 429)
    during = {name: bench.pick(name) for name in names}
    bench.clock.now += 11

    assert cold not in during.values()
    assert all(during[name] == before[name] for name in names if before[name] != cold)
    assert {name: bench.pick(name) for name in names} == before


@pytest.mark.parametrize("by", ["least_used", "sticky"])
def test_all_of_them_cool(by: str) -> None:
    """The one that comes back first is used: a provider that still refuses says so itself."""
    bench = Bench([1, 1, 1], by)
    for key, status in enumerate((402, 429, 401)):
        bench.fail(key, status)

    assert {bench.pick(name) for name in ("acme", "globex", "initech")} == {1}


# --- how long ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 400, 404, 408, 413, 422, 424, 428, 430, 451, 499, 500, 503, 4010, 40, 0, -401])
def test_what_is_not_about_the_key(status: int) -> None:
    """A client's own mistakes, and a provider's trouble, leave the key where it is."""
    bench = Bench([1, 1])

    assert bench.fail(0, status) is None
    assert bench.available() == [0, 1]
    assert bench.pool.state(NOW)[0]["failures"] == 0


def test_keys_that_nobody_knows() -> None:
    """A key of another provider, or of yesterday, changes nothing."""
    bench = Bench([1])

    assert bench.pools.failed("q", ID[0], 401, None) is None
    assert bench.pools.failed("p", "00000000", 401, None) is None
    assert bench.available() == [0]


@pytest.mark.parametrize("status", LADDERS)
def test_the_ladder(status: int) -> None:
    """Each cool-down is twice the one before, up to a bound, while the provider goes on refusing."""
    bench = Bench([1, 1])
    first, longest = LADDERS[status]
    steps = []
    for _ in range(12):
        steps.append(seconds := bench.fail(0, status))
        assert seconds is not None
        bench.clock.now += seconds - 0.01
        assert bench.available() == [1]
        bench.clock.now += 0.02
        assert bench.available() == [0, 1]

    assert steps == [min(first * 2**n, longest) for n in range(12)]


@pytest.mark.parametrize("status", LADDERS)
def test_a_key_that_is_well_again(status: int) -> None:
    """One that was not refused for as long as its next cool-down would last begins anew."""
    bench = Bench([1, 1])
    first, _ = LADDERS[status]
    bench.fail(0, status)
    bench.clock.now += first
    assert bench.fail(0, status) == 2 * first

    bench.clock.now += 2 * first + 4 * first
    assert bench.fail(0, status) == first


@given(st.lists(st.floats(0, 9.9), max_size=50), st.sampled_from(sorted(LADDERS)))
def test_calls_that_were_under_way(moments: list[float], status: int) -> None:
    """However many of them fail in a cool-down, it is neither longer nor higher on the ladder for it."""
    bench = Bench([1, 1])
    first, longest = LADDERS[status]
    began = bench.clock.now
    assert bench.fail(0, status) == first
    for moment in sorted(moments):
        bench.clock.now = began + moment
        assert bench.fail(0, status) == 0.0

    bench.clock.now = began + first
    assert bench.available() == [0, 1]
    assert bench.fail(0, status) == min(2 * first, longest)
    assert bench.pool.state(NOW)[0]["failures"] == len(moments) + 2


def test_another_reason() -> None:
    """A graver one lengthens a cool-down and begins a ladder of its own; a lighter one changes nothing."""
    bench = Bench([1, 1])
    bench.fail(0, 429)

    assert bench.fail(0, 401) == 300.0
    assert bench.fail(0, 429) == 0.0
    bench.clock.now += 299
    assert bench.available() == [1]
    assert bench.pool.state(NOW)[0]["last_status"] == 401


@given(st.floats(0, 1e9))
def test_the_provider_says_how_long(asked: float) -> None:
    """With 429 it is heard, within reason; with the others it is about something else."""
    bench = Bench([1, 1, 1])

    assert bench.fail(0, 429, asked) == min(max(asked, 1.0), MAX_RETRY_AFTER)
    assert [bench.fail(1, 401, asked), bench.fail(2, 402, asked)] == [300.0, 1800.0]


def test_the_provider_says_longer() -> None:
    """What it says while the key cools counts where it is longer."""
    bench = Bench([1, 1])
    bench.fail(0, 429, 20)

    assert bench.fail(0, 429, 5) == 0.0
    assert bench.fail(0, 429, 60) == 60.0
    assert bench.fail(0, 429, 60.5) == 0.0


@given(st.lists(st.tuples(st.floats(0, 5000), st.sampled_from([400, *LADDERS]), st.none() | st.floats(0, 1e6))))
def test_any_row_of_failures(failures: list[tuple[float, int, float | None]]) -> None:
    """A key always comes back by itself, and never later than the longest of all cool-downs."""
    bench = Bench([1])
    for pause, status, wait in failures:
        bench.clock.now += pause
        bench.fail(0, status, wait)
        assert bench.pick() == 0

    bench.clock.now += 21600
    assert bench.available() == [0]


# --- what is kept, and shown ------------------------------------------------------------------------------------


def test_what_is_shown() -> None:
    """Everything about a key but the key."""
    bench = Bench([1, 3])
    bench.fail(1, 429, 30)
    bench.clock.now += 10
    one, other = bench.pool.state(NOW)

    assert one == {
        "key": ID[0],
        "label": "label 0",
        "weight": 1,
        "available": True,
        "cooling_until": None,
        "failures": 0,
        "last_status": None,
    }
    assert (other["available"], other["cooling_until"], other["failures"]) == (False, NOW + 20, 1)
    assert (other["weight"], other["last_status"]) == (3, 429)
    assert "pk-" not in repr((one, other, bench.pool.keys))


def test_a_changed_configuration() -> None:
    """Keys that are still there keep their state, others are forgotten with the last configuration that had them."""
    bench = Bench([1, 1, 1])
    bench.fail(0, 401)
    bench.fail(2, 401)

    bench.pool = bench.made([5, 1])
    gc.collect()
    assert bench.available() == [1]

    bench.pool = bench.made([5, 1, 1])
    assert bench.available() == [1, 2]


def test_another_process_says_so() -> None:
    """A key is left alone for as long as it is told, and all that cool can be told to a third."""
    bench, other = Bench([1, 1]), Bench([1, 1])
    bench.fail(0, 429, 30)
    bench.clock.now += 10
    for provider, key, seconds in bench.pools.cooling():
        other.pools.cool(provider, key, seconds)
    other.pools.cool("p", "00000000", 99)

    assert other.available() == [1]
    assert other.pools.cooling() == [("p", ID[0], 20.0)]
    other.clock.now += 20
    assert other.available() == [0, 1]
    assert other.pools.cooling() == []


# --- retry-after ------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**9))
def test_seconds(seconds: int) -> None:
    """A number of seconds is one, with space around it or none."""
    assert retry_after(f" {seconds} ", NOW) == seconds


@given(st.integers(-(10**6), 10**6))
def test_a_date(seconds: int) -> None:
    """A date is so many seconds from now; one that is over is now."""
    date = format_datetime(datetime.fromtimestamp(NOW + seconds, UTC), usegmt=True)

    assert retry_after(date, NOW) == max(seconds, 0)


@pytest.mark.parametrize(
    "text", ["Tue, 14 Nov 2023 22:14:20", "Tuesday, 14-Nov-23 22:14:20 GMT", "Tue Nov 14 22:14:20 2023"]
)
def test_dates_as_they_once_were(text: str) -> None:
    """The obsolete forms of HTTP dates are in GMT too."""
    assert retry_after(text, NOW) == 60


@pytest.mark.parametrize(
    "text", ["", "soon", "-5", "1.5", "1e3", "²", "٣", "0x10", "Tue, 99 Nov 2023 22:14:20 GMT", "inf"]
)
def test_nonsense(text: str) -> None:
    """What says nothing is as if nothing had been said."""
    assert retry_after(text, NOW) is None


@given(st.text())
@example("Mon, 01 Jan 0001 00:00:00 GMT")
@example("9" * 400)
@example("Fri, 31 Dec 9999 23:59:59 -2359")
def test_any_text(text: str) -> None:
    """Whatever a provider writes, it is a time that is not negative, or nothing."""
    found = retry_after(text, NOW)

    assert found is None or 0 <= found < math.inf
