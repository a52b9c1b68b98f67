"""The audit in a database, SQLite and PostgreSQL alike."""

import time
from typing import Any

import pytest
from audit.records import NOON, record, verdict
from sqlalchemy import func, select
from sqlalchemy import table as table_of

from extproc.audit.record import AuditReading, Page, Record, Retention, Search, digest
from extproc.stores.ports import NotFound
from extproc.stores.sql import Database


def ids(page: Page) -> list[str]:
    return [each.call_id for each in page.records]


def found(database: Database, **query: Any) -> list[str]:
    return ids(database.audit.search(Search(**query)))


def test_there_and_back(database: Database) -> None:
    """A record comes back as it was, whatever its texts have in them."""
    one = record(
        *("c1", NOON + 0.25, "\0 你好 ' \" \\ % 😀", "<&>"),
        verdicts=[verdict("phone", "mask", score=0.9, direction="response", place="choices[0]", start=1, end=12)],
        user="u-1",
        metadata={"a": {"b": [1]}},
        images=[digest("x")],
        cost=7,
        currency="CNY",
        first_byte=0.5,
        held=0.1,
        stream=True,
        team="blue",
        policy="strict",
        code="x\0",
    )

    assert database.audit.add([one]) == 1
    assert database.audit.show("c1") == one
    with pytest.raises(NotFound, match="'c2'"):
        database.audit.show("c2")


def test_once(database: Database) -> None:
    """A call has one record: the first, also within one batch."""
    database.audit.add([record("a", said="first"), record("a", said="second")])

    assert database.audit.add([record("a", said="third"), record("b")]) == 1
    assert database.audit.add([]) == 0
    assert database.audit.show("a").request[0].text == "first"
    assert found(database, text="third") == []
    assert sorted(found(database)) == ["a", "b"]


def test_by_what_is_known(database: Database) -> None:
    """Each filter, and all together; times with their end left out."""
    database.audit.add(
        [
            record("a", NOON, team="blue", user="ann", policy="strict"),
            record("b", NOON + 1, consumer="beta", model="m2", provider="p2"),
            record("c", NOON + 2, how="refused", status=403, code="blocked"),
        ]
    )

    assert found(database) == ["c", "b", "a"]
    assert found(database, since=NOON + 1) == ["c", "b"]
    assert found(database, until=NOON + 1) == ["a"]
    assert found(database, since=NOON + 0.9999, until=NOON + 1.0001) == ["b"]
    for query, expected in (
        *(({"consumer": "beta"}, "b"), ({"team": "blue"}, "a"), ({"person": "ann"}, "a"), ({"model": "m2"}, "b")),
        *(({"provider": "p2"}, "b"), ({"how": "refused"}, "c"), ({"status": 403}, "c"), ({"policy": "strict"}, "a")),
    ):
        assert found(database, **query) == [expected], query
    assert found(database, consumer="beta", status=403) == []


def test_by_verdict(database: Database) -> None:
    """Check, category and action must be of one and the same verdict."""
    database.audit.add(
        [
            record("a", verdicts=[verdict("phone", "mask", "pii"), verdict("politics", "flag")]),
            record("b", verdicts=[verdict("politics", "block"), verdict("politics", "block")]),
            record("c"),
        ]
    )

    assert found(database, category="politics") == ["b", "a"]
    assert found(database, category="politics", action="block") == ["b"]
    assert found(database, check="pii", category="politics") == []
    assert found(database, check="pii", action="mask") == ["a"]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("人工智能", ["a"]),
        ("智能", ["b", "a"]),
        ("智", ["b", "a"]),
        ("能", ["b", "a"]),
        ("能智", []),
        ("人工 合同", ["a"]),
        ("人工合同", []),
        ("工智人工", []),
        ("contract", ["b"]),
        ("Contract 编号", ["b"]),
        ("contr", []),
        ("contr*", ["b"]),
        ("ＣＯＮＴＲＡＣＴ", ["b"]),
        ("13812345678", ["b"]),
        ("naïve", ["b"]),
        ("naive", []),
        ("' OR 1=1 --", []),
        ('"a" NEAR(x) & | ! <-> :*', []),
        ("!!!", []),
        ("한국어", ["b"]),
    ],
)
def test_by_text(database: Database, asked: str, expected: list[str]) -> None:
    """Words of requests and answers, in Chinese by any characters that stand together; nothing is syntax."""
    database.audit.add(
        [
            record("a", said="请用人工智能写一份合同", answered="好"),
            record("b", NOON + 1, said="The CONTRACT, naïve", answered="编号 13812345678 智能 한국어"),
        ]
    )

    assert found(database, text=asked) == expected


def test_digests_are_not_found_by_text(database: Database) -> None:
    """What is kept as a digest has no words."""
    database.audit.add([record("a", text="digest")])

    assert found(database, text="hello") == []


def test_pages(database: Database) -> None:
    """A cursor goes on where the page ended, also among calls of one moment, and whatever comes meanwhile."""
    database.audit.add([record(f"c{n:02}", NOON + n // 4) for n in range(10)])

    seen: list[str] = []
    cursor = ""
    while True:
        page = database.audit.search(Search(), limit=3, cursor=cursor)
        seen += ids(page)
        database.audit.add([record(f"new{len(seen)}", NOON + 100)])
        cursor = page.next
        if not cursor:
            break

    assert seen == [f"c{n:02}" for n in reversed(range(10))]
    for wrong in ("x", "1", "1.x", "1.2.3", "١.٢"):
        with pytest.raises(ValueError, match="is no cursor"):
            database.audit.search(Search(), cursor=wrong)


def test_what_comes_later(database: Database) -> None:
    """Records in the order in which they came, from a number on."""
    assert database.audit.last() == 0
    database.audit.add([record("a", NOON + 9)])
    number = database.audit.last()
    database.audit.add([record("b", NOON), record("c", NOON, consumer="beta")])

    assert [each.call_id for _, each in database.audit.after(number, Search())] == ["b", "c"]
    assert [each.call_id for _, each in database.audit.after(number, Search(consumer="beta"))] == ["c"]
    assert database.audit.after(database.audit.last(), Search()) == []


def test_deletion(database: Database) -> None:
    """Of a person, of a consumer, of all before a time: with verdicts and words, and in any number."""
    database.audit.add(
        [record(f"c{n}", NOON + n, "秘密", user=f"u{n % 2}", verdicts=[verdict("x")]) for n in range(1200)]
    )

    assert database.audit.delete(Search(person="u1")) == 600
    assert database.audit.delete(Search(person="u1")) == 0
    assert database.audit.delete(Search(until=NOON + 1000)) == 500
    assert len(database.audit.search(Search(text="秘密"), limit=1000).records) == 100
    assert len(database.audit.search(Search(category="x"), limit=1000).records) == 100
    assert database.audit.delete(Search(consumer="acme")) == 100
    with database.engine.connect() as connection:
        for table in ("audit_records", "audit_verdicts", "audit_words"):
            assert connection.execute(select(func.count()).select_from(table_of(table))).scalar() == 0


def test_numbers_are_not_used_again(database: Database) -> None:
    """Whoever follows what comes misses nothing because of a deletion."""
    database.audit.add([record("a"), record("b")])
    number = database.audit.last()
    database.audit.delete(Search(consumer="acme"))
    database.audit.add([record("c")])

    assert [each.call_id for _, each in database.audit.after(number, Search())] == ["c"]


def test_retention(database: Database) -> None:
    """What is too old goes, by the policy's own age, else by the one for all; without any it stays."""
    day = 86400.0
    database.audit.add(
        [record(f"{policy}-{age}", NOON - age * day, policy=policy) for policy in ("", "short") for age in (1, 10, 100)]
    )

    assert database.audit.expire(Retention(), NOON) == 0
    assert database.audit.expire(Retention(50 * day, {"short": 5 * day, "other": 1.0}), NOON) == 3
    assert sorted(found(database)) == ["-1", "-10", "short-1"]
    assert database.audit.expire(Retention(None, {"short": 1.0}), NOON) == 1


def test_readings(database: Database) -> None:
    """Who has looked, the newest first."""
    readings = [AuditReading(time=NOON + n, who="ann", what="search", asked="政治", found=n) for n in range(3)]
    for each in readings:
        database.audit.note(each)

    assert database.audit.readings() == readings[::-1]
    assert database.audit.readings(1) == readings[2:]


def test_a_large_text(database: Database) -> None:
    """A megabyte of text is kept, and found by what stands in it."""
    text = "".join(chr(0x4E00 + n * 7919 % 20000) for n in range(350_000))

    assert database.audit.add([record("a", said=f"开头{text}")]) == 1
    assert found(database, text="开头") == ["a"]
    assert database.audit.show("a").request[0].text.endswith(text)


def test_many(database: Database) -> None:
    """Ten thousand records are searched within a fraction of a second, by text and by verdict."""

    def made(n: int) -> Record:
        said = f"第{n}号客户问：请把这份合同翻译成英文，编号 no{n}。" + "其他内容" * 20
        return record(f"c{n:05}", NOON + n, said, verdicts=[verdict("phone", "mask")] if n % 100 == 0 else [])

    for start in range(0, 10_000, 1000):
        database.audit.add([made(n) for n in range(start, start + 1000)])
    spent: list[float] = []
    for query, expected in (
        *((Search(text="no1234"), 1), (Search(text="翻译成英文"), 100), (Search(text="第777号"), 1)),
        *((Search(category="phone", action="mask"), 100), (Search(text="没有的话"), 0), (Search(consumer="acme"), 100)),
    ):
        began = time.perf_counter()
        page = database.audit.search(query)
        spent.append(time.perf_counter() - began)
        assert len(page.records) == expected, query
    assert sorted(spent)[3] < 0.25
    assert max(spent) < 2, spent
