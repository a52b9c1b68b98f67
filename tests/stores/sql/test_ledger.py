"""The ledger: each call once, totals that are those of the rows, and what is asked of them."""

import threading
from collections import Counter as Multiset
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, event, update
from stores.sql.rows import NOON, ids, refused, row

from extproc.accounts.periods import period
from extproc.stores.ports import BUCKETS, GRAIN, Counter, Ledger, Loaded, Row, Scope, UsageRow
from extproc.stores.sql import Database
from extproc.stores.sql.schema import NUMBER, TEXT, ledger, totals


@pytest.fixture(name="books")
def _books(database: Database) -> Ledger:
    return database.ledger


def empty(database: Database) -> None:
    with database.engine.begin() as connection:
        connection.execute(delete(ledger))
        connection.execute(delete(totals))


@contextmanager
def queries(database: Database) -> Iterator[list[str]]:
    seen: list[str] = []

    def see(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        seen.append(statement)

    event.listen(database.engine, "before_cursor_execute", see)
    yield seen
    event.remove(database.engine, "before_cursor_execute", see)


# --- booking ----------------------------------------------------------------------------------------------------


def test_each_call_once(books: Ledger) -> None:
    """A call has one row, however often it is booked, in one batch or in several; the first one stays."""
    assert books.add([]) == 0
    assert books.add([row("a"), row("b"), row("a", output=99)]) == 2
    assert books.add([row("b", output=99), row("c")]) == 1

    assert books.has(["a", "b", "c", "d"]) == {"a", "b", "c"}
    assert {found.call_id: found.output for found in books.rows()} == {"a": 5, "b": 5, "c": 5}
    assert [line.calls for line in books.usage([])] == [3]
    assert books.verify() == []


def test_a_row_comes_back(books: Ledger) -> None:
    """Every field is kept."""
    full = Row(
        call_id="a",
        started=1_700_000_000_123,
        ended=1_700_000_001_456,
        consumer="行家",
        team="blue",
        key="k1",
        model="m",
        endpoint="chat",
        provider="p",
        target="p/m1",
        attempts=2,
        how="cancelled",
        status=200,
        code="x",
        stream=True,
        cache="miss",
        policy="strict",
        input=1,
        output=2,
        cached=3,
        cache_creation=4,
        reasoning=5,
        usage="estimated",
        cost=6_000_000_000_000,
        currency="CNY",
        estimate=7,
        worker="w1",
    )
    books.add([full])

    assert books.rows() == [full]


def test_no_text_and_no_number_breaks_it(books: Ledger) -> None:
    """What a client sent is made to fit; nobody's call is lost for it, and the totals are right."""
    odd = [
        row("\0nul", model="a\0b"),
        row(
            "long",
            model="一" * 10_000,
            target="x" * 10_000,
            provider="😀" * 5_000,
            consumer="c" * 5_000,
            team="é" * 999,
        ),
        row("half", model="\ud83d", endpoint="\udc80\ud800"),
        row("huge", input=1 << 80, cost=1 << 80, status=1 << 70, started=1 << 70, ended=1 << 90),
        row("negative", input=-5, cost=-(1 << 70), started=-1),
        *(row(f"most{n}", input=NUMBER, output=NUMBER, cost=NUMBER) for n in range(50)),
    ]

    assert books.add(odd) == len(odd)
    assert books.add(odd) == 0
    assert books.has([call.call_id for call in odd]) == {call.call_id for call in odd}
    assert books.verify() == []
    kept = {found.call_id: found for found in books.rows()}
    assert (kept["huge"].input, kept["negative"].input, kept["negative"].cost) == (NUMBER, 0, 0)
    assert len(kept["long"].model.encode()) <= TEXT
    assert kept["�nul"].model == "a�b"
    assert books.usage(["day", "hour"], timezone="Pacific/Kiritimati")
    scope = Scope(consumer="c" * 5_000)
    assert books.load([Counter("k", "quota", "requests", 1, scope)], now=NOON)[0].used == 1


def test_a_thousand_rows_are_few_statements(database: Database) -> None:
    """A batch is a handful of statements, however many rows it has."""
    database.ledger.add([row("warm")])
    batch = [row(f"c{n}", NOON + n, consumer=f"u{n % 50}", model=f"m{n % 7}") for n in range(1_000)]

    with queries(database) as seen:
        assert database.ledger.add(batch) == 1_000

    assert len(seen) <= 4


def at_once(works: Sequence[Callable[[], object]]) -> None:
    """Run all of them, each in its thread, from the same moment; raises what one of them raised."""
    ready = threading.Barrier(len(works))

    def run(work: Callable[[], object]) -> object:
        ready.wait()
        return work()

    with ThreadPoolExecutor(len(works)) as pool:
        for done in [pool.submit(run, work) for work in works]:
            done.result()


def test_threads_at_once(books: Ledger) -> None:
    """Threads that book the same calls, in any order, count every call once and never wait in a circle."""
    calls = [row(f"c{n:04}", NOON + n * 60, consumer=f"u{n % 5}", model=f"m{n % 3}") for n in range(1_500)]
    new: list[int] = []

    at_once([lambda order=order: new.append(books.add(calls[::order])) for order in (1, -1, 1, -1)])

    assert sum(new) == len(calls)
    assert [line.calls for line in books.usage([])] == [len(calls)]
    assert books.verify() == []


def test_threads_that_share_totals(books: Ledger) -> None:
    """Nor do those wait in a circle whose calls are their own, and add to the same totals."""
    buckets = range(200)

    def book(thread: int) -> None:
        for turn in range(3):
            order = buckets if thread % 2 else reversed(buckets)
            books.add([row(f"{thread}-{turn}-{n:03}", NOON + b * GRAIN) for n, b in enumerate(order)])

    at_once([partial(book, thread) for thread in range(6)])

    assert [line.calls for line in books.usage([])] == [6 * 3 * len(buckets)]
    assert books.verify() == []


# --- what is there ----------------------------------------------------------------------------------------------


def test_many_ids(books: Ledger) -> None:
    """Any number of calls can be asked for."""
    books.add([row(f"c{n}") for n in range(0, 1_200, 2)])

    assert books.has([]) == set()
    assert books.has([f"c{n}" for n in range(1_200)]) == {f"c{n}" for n in range(0, 1_200, 2)}


def test_rows(books: Ledger) -> None:
    """The newest first, from the first moment to just before the last, of one consumer or of all."""
    books.add([row(f"c{n}", NOON + n, consumer="acme" if n % 2 else "other") for n in range(6)])

    assert ids(books.rows()) == ["c5", "c4", "c3", "c2", "c1", "c0"]
    assert ids(books.rows("acme")) == ["c5", "c3", "c1"]
    assert ids(books.rows(since=NOON + 1, until=NOON + 3)) == ["c2", "c1"]
    assert ids(books.rows(since=NOON + 1.0005, until=NOON + 3.0005)) == ["c3", "c2"]
    assert ids(books.rows(limit=2)) == ["c5", "c4"]


def test_typical_output(books: Ledger) -> None:
    """The average of answers that came to their end and whose tokens the provider counted."""
    books.add(
        [
            *(row("a", output=10), row("b", output=20), row("c", model="other", output=3)),
            row("early", NOON - 1, output=1_000),
            row("cut", how="cancelled", output=1_000),
            row("guessed", usage="estimated", output=1_000),
            refused("no"),
        ]
    )

    assert books.typical_output(NOON) == {"m": (15.0, 2), "other": (3.0, 1)}
    assert books.typical_output(NOON + 1) == {}


# --- quotas and windows -----------------------------------------------------------------------------------------


def quota(unit: Any, start: int = 0, end: int | None = None, **scope: str) -> Counter:
    return Counter("k", "quota", unit, 1, Scope(**scope), start, end)


def window(unit: Any, seconds: int, **scope: str) -> Counter:
    return Counter("k", "window", unit, 1, Scope(**scope), seconds=seconds)


def test_quotas(books: Ledger) -> None:
    """A quota has what its scope used in its period: tokens in and out, money of our currency, calls not refused."""
    books.add(
        [
            row("a", model="gpt-4"),
            row("b", model="gpt-4o", consumer="other", cost=100),
            row("c", model="claude", team="red", currency="USD", cost=1_000),
            row("before", NOON - 1),
            row("after", NOON + GRAIN),
            refused("no"),
        ]
    )
    now = (NOON, NOON + GRAIN)
    asked = [
        *(quota("tokens", *now), quota("money", *now), quota("requests", *now)),
        *(quota("tokens", *now, consumer="acme"), quota("tokens", *now, team="red")),
        *(
            quota("money", *now, model="gpt-*"),
            quota("money", *now, model="gpt-4"),
            quota("money", *now, model="GPT-4"),
        ),
        *(
            quota("requests", *now, consumer="acme", team="blue", model="gpt-4"),
            quota("requests"),
            quota("tokens", NOON),
        ),
        Counter("k", "concurrent", "concurrent", 8),
    ]

    loaded = books.load(asked, now=NOON)

    assert [found.counter for found in loaded] == asked
    assert [found.used for found in loaded] == [45, 107, 3, 30, 15, 107, 7, 0, 1, 5, 60, 0]


@pytest.mark.parametrize(
    ("fields", "requests"),
    [({}, 0), ({"how": "failed"}, 0), ({"attempts": 1}, 1), ({"cache": "hit"}, 1), ({"how": "cancelled"}, 1)],
)
def test_what_is_a_refusal(books: Ledger, fields: dict[str, Any], requests: int) -> None:
    """A call that ended before a provider or the cache saw it is a refusal and no request; others are requests."""
    books.add([refused("no", **fields)])

    assert [line.refusals for line in books.usage([])] == [1 - requests]
    of_quota, of_window = books.load([quota("requests"), window("requests", 60)], now=NOON)
    assert (of_quota.used, sum(of_window.buckets.values())) == (requests, requests)


def test_a_refused_answer(books: Ledger) -> None:
    """An answer that we refused to pass on has cost what it has cost."""
    books.add([refused("no", attempts=1, input=10, output=5, cost=7, currency="CNY")])

    units = ("tokens", "money", "requests")
    assert [found.used for found in books.load([quota(unit) for unit in units], now=NOON)] == [15, 7, 1]
    windows = books.load([window(unit, 60) for unit in units], now=NOON)
    assert [sum(found.buckets.values()) for found in windows] == [15, 7, 1]


def test_windows(books: Ledger) -> None:
    """A window has amounts by bucket; the bucket that is partly in the window counts whole, an older one not."""
    books.add([row("in", NOON - 59.5), row("partly", NOON - 60), row("out", NOON - 60.001), row("now", NOON)])
    of_a_day = NOON * BUCKETS // 86400

    minute, second, day = books.load(
        [window("tokens", 60), window("requests", 1), window("requests", 86400)], now=NOON + 0.9
    )

    assert minute.buckets == {NOON - 60: 30, NOON: 15}
    assert second.buckets == {NOON * BUCKETS: 1}
    assert day.buckets == {of_a_day - 1: 3, of_a_day: 1}


def test_another_currency(database: Database) -> None:
    """Money counts in the currency of the accounts alone."""
    database.ledger.add([row("a"), row("b", currency="USD", cost=1_000)])
    database.ledger.currency = "USD"

    assert database.ledger.load([quota("money")], now=NOON)[0].used == 1_000


def test_counters_share_queries(database: Database) -> None:
    """Counters of the same calls and period are read together."""
    database.ledger.add([row("a")])
    asked = [quota(unit, model=model) for unit in ("tokens", "money") for model in ("", "m", "g*")]

    with queries(database) as seen:
        database.ledger.load([*asked, window("tokens", 60), window("requests", 60)], now=NOON)

    assert len([query for query in seen if query.startswith("SELECT")]) == 2


# --- any batches ------------------------------------------------------------------------------------------------

some = st.sampled_from
calls = st.builds(
    row,
    call_id=some([f"c{n}" for n in range(12)]),
    at=st.integers(-3 * GRAIN * 1_000, 3 * GRAIN * 1_000).map(lambda ms: NOON + ms / 1000),
    consumer=some(["acme", "other", ""]),
    team=some(["blue", ""]),
    model=some(["gpt-4", "gpt-4o", "claude", "a\0b", "[x]"]),
    provider=some(["p", "q"]),
    how=some(["completed", "refused", "failed", "cancelled", "lost"]),
    cache=some(["", "hit", "semantic", "coalesced", "miss", "bypass"]),
    attempts=st.integers(0, 3),
    input=st.integers(0, 100) | some([NUMBER * 2]),
    output=st.integers(0, 100),
    cost=st.integers(0, 10**12),
    currency=some(["CNY", "USD", ""]),
)
units = some(["tokens", "money", "requests"])
scopes = st.builds(
    Scope,
    consumer=some(["", "acme", "nobody"]),
    team=some(["", "blue"]),
    model=some(["", "gpt-4", "gpt-*", "[[]x]", "*o*"]),
)
counters = st.builds(
    Counter,
    st.just("k"),
    st.just("quota"),
    units,
    st.just(1),
    scopes,
    st.integers(-3, 1).map(lambda n: NOON + n * GRAIN),
    st.none() | st.integers(1, 3).map(lambda n: NOON + n * GRAIN),
) | st.builds(Counter, st.just("k"), st.just("window"), units, st.just(1), scopes, seconds=some([1, 60, 3600, 86400]))


def expected(booked: Sequence[Row], counter: Counter, now: float) -> Loaded:
    """The same by plain sums."""
    buckets: Multiset[int] = Multiset()
    for call in booked:
        scope, second = counter.scope, call.started / 1000
        tokens = min(call.input, NUMBER) + call.output
        amount = {
            "tokens": tokens,
            "money": call.cost if call.currency == "CNY" else 0,
            "requests": int(not call.refused),
        }[counter.unit]
        if (
            (not scope.consumer or call.consumer == scope.consumer)
            and (not scope.team or call.team == scope.team)
            and (not scope.model or fnmatchcase(call.model.replace("\0", "�"), scope.model))
            and amount
        ):
            if counter.kind == "quota" and counter.start <= second and (counter.end is None or second < counter.end):
                buckets[0] += amount
            elif counter.kind == "window":
                bucket = call.started * BUCKETS // (counter.seconds * 1000)
                if bucket >= (now - counter.seconds) * BUCKETS // counter.seconds:
                    buckets[bucket] += amount
    if counter.kind == "quota":
        return Loaded(counter, used=buckets[0])
    return Loaded(counter, buckets=dict(buckets))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(st.lists(calls, max_size=10), max_size=4), asked=st.lists(counters, min_size=1, max_size=6))
def test_any_batches(database: Database, batches: list[list[Row]], asked: list[Counter]) -> None:
    """After any batches the totals are those of the rows, and every counter is a plain sum of them."""
    empty(database)
    booked: dict[str, Row] = {}
    for batch in batches:
        before = len(booked)
        for call in batch:
            booked.setdefault(call.call_id, call)
        assert database.ledger.add(batch) == len(booked) - before

    assert database.ledger.verify() == []
    now = NOON + 0.25
    assert database.ledger.load(asked, now=now) == [expected(list(booked.values()), one, now) for one in asked]


# --- reports ----------------------------------------------------------------------------------------------------


def test_usage(books: Ledger) -> None:
    """A line has the sums of its calls, and the dimensions asked for; lines are in their order."""
    books.add(
        [
            row("a", cached=3, cache_creation=2, reasoning=1),
            row("b", model="l", attempts=2),
            row("c", cache="hit", attempts=0, usage="", input=0, output=0, cost=0),
            *(row(f"d{cache}", consumer="other", cache=cache) for cache in ("semantic", "coalesced", "miss", "bypass")),
            refused("e"),
        ]
    )

    assert books.usage(["consumer", "model"]) == [
        UsageRow(
            consumer="acme",
            model="l",
            currency="CNY",
            calls=1,
            fallbacks=1,
            input_tokens=10,
            output_tokens=5,
            money=7,
        ),
        UsageRow(
            consumer="acme",
            model="m",
            currency="CNY",
            calls=3,
            refusals=1,
            cache_hits=1,
            input_tokens=10,
            output_tokens=5,
            money=7,
            cached_tokens=3,
            cache_creation_tokens=2,
            reasoning_tokens=1,
        ),
        UsageRow(
            consumer="other",
            model="m",
            currency="CNY",
            calls=4,
            cache_hits=2,
            input_tokens=40,
            output_tokens=20,
            money=28,
        ),
    ]
    assert [(line.provider, line.target, line.calls) for line in books.usage(["provider", "target"])] == [
        ("", "", 1),
        ("p", "p/m1", 7),
    ]


def test_usage_where_and_when(books: Ledger) -> None:
    """Lines can be of one value of a dimension, and of a time, in whole quarters of an hour."""
    books.add([row(f"c{n}", NOON + n * 600, consumer=f"u{n % 2}", model=f"m{n % 3}") for n in range(6)])

    assert [(line.team, line.calls) for line in books.usage(["team"], where={"consumer": "u0"})] == [("blue", 3)]
    assert [line.calls for line in books.usage([], where={"consumer": "u0", "model": "m0"})] == [1]
    assert books.usage([], where={"model": "nothing"}) == []
    assert [line.calls for line in books.usage([], since=NOON + 899.9)] == [6]
    assert [line.calls for line in books.usage([], since=NOON + 900)] == [4]
    assert [line.calls for line in books.usage([], since=NOON + 900, until=NOON + 2_000)] == [1]


def test_money_of_several_currencies(books: Ledger) -> None:
    """Each currency has its line; calls that cost nothing join the one that there is, if it is one."""
    books.add([row("a"), refused("b"), row("c", consumer="two"), row("d", consumer="two", currency="USD")])
    books.add([refused("e", consumer="two"), refused("f", consumer="none")])

    found = [(line.consumer, line.currency, line.calls, line.money) for line in books.usage(["consumer"])]

    assert found == [
        *(("acme", "CNY", 2, 7), ("none", "", 1, 0)),
        *(("two", "", 1, 0), ("two", "CNY", 1, 7), ("two", "USD", 1, 7)),
    ]


def test_the_end_of_a_month_in_shanghai(books: Ledger) -> None:
    """A month, its days and its hours end at midnight of the time zone named, for quotas and for reports."""
    february = period("month", "Asia/Shanghai", 1_740_700_000)
    midnight = february.end
    assert midnight == 1_740_758_400  # 2025-02-28T16:00Z
    books.add([row("last", midnight - 0.001), row("first", midnight), row("next", midnight + 3_600)])

    days = books.usage(["day"], timezone="Asia/Shanghai")
    hours = books.usage(["hour"], timezone="Asia/Shanghai")
    in_utc = books.usage(["day"])
    march = period("month", "Asia/Shanghai", midnight)
    used = books.load([quota("requests", p.start, p.end) for p in (february, march)], now=midnight)

    assert [(line.day, line.calls) for line in days] == [("2025-02-28", 1), ("2025-03-01", 2)]
    assert [(line.hour, line.calls) for line in hours] == [
        *(("2025-02-28T23:00+08:00", 1), ("2025-03-01T00:00+08:00", 1), ("2025-03-01T01:00+08:00", 1)),
    ]
    assert [(line.day, line.calls) for line in in_utc] == [("2025-02-28", 3)]
    assert [found.used for found in used] == [1, 2]
    assert [line.calls for line in books.usage([], since=march.start, until=march.end)] == [2]


def test_hours_of_odd_time_zones(books: Ledger) -> None:
    """Hours begin where the zone's do, and the hour that a clock change repeats is two."""
    repeated = 1_761_438_600  # 2025-10-26T00:30Z: in Berlin 02:30, for the first time
    books.add([row("a", repeated), row("b", repeated + 3_600), row("c", NOON + 800), row("d", NOON + 1_000)])

    berlin = books.usage(["day", "hour"], since=repeated - 3_600, timezone="Europe/Berlin")
    kathmandu = books.usage(["hour"], until=repeated - 3_600, timezone="Asia/Kathmandu")

    assert {(line.day, line.hour, line.calls) for line in berlin} == {
        *(("2025-10-26", "2025-10-26T02:00+02:00", 1), ("2025-10-26", "2025-10-26T02:00+01:00", 1)),
    }
    assert [(line.hour, line.calls) for line in kathmandu] == [
        *(("2025-03-03T17:00+05:45", 1), ("2025-03-03T18:00+05:45", 1)),
    ]


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"by": ["nonsense"]}, "no dimension nonsense"),
        ({"by": ["currency"]}, "no dimension currency"),
        ({"by": [], "where": {"calls": "1"}}, "no dimension calls"),
        ({"by": ["day"], "timezone": "Mars/Olympus"}, "no time zone 'Mars/Olympus'"),
        ({"by": ["day"], "timezone": "../../etc/passwd"}, "no time zone"),
    ],
)
def test_a_report_that_cannot_be(books: Ledger, asked: dict[str, Any], text: str) -> None:
    """What there is not is named."""
    with pytest.raises(ValueError, match=text):
        books.usage(**asked)


# --- verify and repair ------------------------------------------------------------------------------------------


def test_totals_that_are_wrong(database: Database) -> None:
    """What differs is named, both ways, and made right from the rows."""
    books = database.ledger
    books.add([row("a"), row("b", consumer="other"), row("c", model="n")])
    right = books.usage(["consumer", "model", "hour"])
    with database.engine.begin() as connection:
        connection.execute(update(totals).where(totals.c.consumer == "other").values(calls=5, money=0))
        connection.execute(delete(totals).where(totals.c.model == "n"))
        connection.execute(delete(ledger).where(ledger.c.call_id == "a"))

    found = {difference.where: (difference.ledger, difference.found) for difference in books.verify()}

    at = "provider p, target p/m1, currency CNY, 2025-03-03T12:00Z"
    assert found == {
        f"calls of consumer other, team blue, model m, {at}": (1, 5),
        f"money of consumer other, team blue, model m, {at}": (7, 0),
        **{
            f"{name} of consumer acme, team blue, model {model}, {at}": (number, 0) if model == "n" else (0, number)
            for model in ("m", "n")
            for name, number in (("calls", 1), ("input", 10), ("output", 5), ("money", 7))
        },
    }
    assert books.repair() == 2
    assert books.verify() == []
    assert books.usage(["consumer", "model", "hour"]) == [
        line for line in right if (line.consumer, line.model) != ("acme", "m")
    ]


def test_repair_while_others_book(books: Ledger) -> None:
    """Totals are right after a repair, and what is booked meanwhile is in them."""

    def book(thread: int) -> None:
        for number in range(20):
            books.add([row(f"{thread}-{number}", NOON + number * GRAIN)])

    def repair() -> None:
        for _ in range(10):
            books.repair()
            assert books.verify() == []

    at_once([repair, *(partial(book, thread) for thread in range(3))])

    assert books.verify() == []
    assert [line.calls for line in books.usage([])] == [60]
