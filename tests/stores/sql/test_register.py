"""The register: what can be created, changed and deleted, and how others learn of it."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Any

import pytest

from extproc.stores.ports import Conflict, ConsumerRecord, KeyRecord, NotFound, Register, TeamRecord
from extproc.stores.sql import Database


@pytest.fixture(name="register")
def _register(database: Database) -> Register:
    return database.register


def key(key_id: str, consumer: str = "acme", **fields: Any) -> KeyRecord:
    return KeyRecord(**{"id": key_id, "consumer": consumer, "digest": sha256(key_id.encode()).digest(), **fields})


FULL = ConsumerRecord(
    name="acme",
    team="blue",
    models=["deepseek-*", "通义-*"],
    endpoints=["chat"],
    policy="strict",
    quota=[{"tokens": 10, "per": "month"}],
    limits=[{"concurrent": 8}],
    disabled=True,
    note="of Wile E.\nCoyote",
    created=1.5,
)


# --- teams and consumers ----------------------------------------------------------------------------------------


def test_what_is_created_is_there(register: Register) -> None:
    """A record comes back as it went in; without a time of its own it is created now."""
    team = register.create_team(TeamRecord(name="blue", models=["m"], policy="p", limits=[{"requests": 1}]))
    assert register.create_consumer(FULL) == register.consumer("acme") == FULL
    plain = register.create_consumer(ConsumerRecord(name="Zed"))
    kept = register.create_key(key("k1", label="laptop", hint="abcd", expires=9.25))

    assert register.team("blue") == team
    assert register.teams() == [team]
    assert register.consumers() == [plain, FULL]  # by name, capitals first
    assert plain.models == ["*"]
    assert register.key("k1") == kept
    assert (kept.label, kept.hint, kept.expires, kept.revoked) == ("laptop", "abcd", 9.25, None)
    assert all(abs(record.created - time.time()) < 60 for record in (team, plain, kept))


def test_a_name_that_is_taken(register: Register) -> None:
    """Nothing is created twice, and a failure raises no revision."""
    register.create_team(TeamRecord(name="blue"))
    register.create_consumer(ConsumerRecord(name="acme"))
    before = register.revision()

    with pytest.raises(Conflict, match="there is a team 'blue' already"):
        register.create_team(TeamRecord(name="blue", policy="x"))
    with pytest.raises(Conflict, match="there is a consumer 'acme' already"):
        register.create_consumer(ConsumerRecord(name="acme", policy="x"))

    assert register.consumer("acme").policy == register.team("blue").policy == ""
    assert register.revision() == before


def test_names_of_the_configuration_file(register: Register) -> None:
    """Its names are taken; its teams take consumers, and its consumers take keys."""
    register.known_teams, register.known_consumers = frozenset({"red"}), frozenset({"filed"})

    with pytest.raises(Conflict, match="configuration file"):
        register.create_consumer(ConsumerRecord(name="filed"))
    with pytest.raises(Conflict, match="configuration file"):
        register.create_team(TeamRecord(name="red"))

    assert register.create_consumer(ConsumerRecord(name="acme", team="red")).team == "red"
    assert register.create_key(key("k1", "filed")).consumer == "filed"
    assert register.keys("filed") == [register.key("k1")]


def test_a_team_that_nobody_knows(register: Register) -> None:
    """A consumer is in a team that there is, or in none."""
    with pytest.raises(NotFound, match="there is no team 'blue'"):
        register.create_consumer(FULL)
    register.create_consumer(ConsumerRecord(name="acme"))
    with pytest.raises(NotFound, match="there is no team 'blue'"):
        register.update_consumer("acme", {"team": "blue"})
    register.create_team(TeamRecord(name="blue"))

    assert register.update_consumer("acme", {"team": "blue"}).team == "blue"
    assert register.update_consumer("acme", {"team": ""}).team == ""


def test_changes_of_fields(register: Register) -> None:
    """Only what is named changes."""
    register.create_team(TeamRecord(name="blue"))
    register.create_consumer(FULL)

    changed = register.update_consumer("acme", {"disabled": False, "quota": []})
    team = register.update_team("blue", {"quota": [{"money": 5, "per": "day"}], "policy": "lax"})

    assert changed == register.consumer("acme")
    assert (changed.disabled, changed.quota, changed.note) == (False, [], FULL.note)
    assert (team.policy, team.quota) == ("lax", [{"money": 5, "per": "day"}])


@pytest.mark.parametrize("field", ["name", "created", "deleted", "revision", "nonsense"])
def test_fields_that_cannot_be_changed(register: Register, field: str) -> None:
    """What identifies a record stays, and what is no field of it is refused."""
    register.create_consumer(ConsumerRecord(name="acme"))

    with pytest.raises(ValueError, match=f"cannot be changed: {field}"):
        register.update_consumer("acme", {field: "x", "note": "y"})

    assert register.consumer("acme").note == ""


def test_a_team_with_consumers_stays(register: Register) -> None:
    """A team goes when its last consumer has gone."""
    register.create_team(TeamRecord(name="blue"))
    register.create_consumer(ConsumerRecord(name="acme", team="blue"))

    with pytest.raises(Conflict, match="the team 'blue' has consumers: acme"):
        register.delete_team("blue")
    register.delete_consumer("acme")
    register.delete_team("blue")

    assert register.teams() == []


@pytest.mark.parametrize(
    "ask",
    [
        lambda r: r.team("no"),
        lambda r: r.update_team("no", {}),
        lambda r: r.delete_team("no"),
        lambda r: r.consumer("no"),
        lambda r: r.consumer("acme\0"),
        lambda r: r.update_consumer("no", {}),
        lambda r: r.delete_consumer("no"),
        lambda r: r.create_key(key("k", "no")),
        lambda r: r.key("no"),
        lambda r: r.key("\ud800"),
        lambda r: r.expire_key("no", 1),
        lambda r: r.revoke_key("no", 1),
        lambda r: r.delete_key("no"),
    ],
)
def test_what_is_not_there(register: Register, ask: Callable[[Register], object]) -> None:
    """It is named, however odd its name, and the revision stays."""
    register.create_consumer(ConsumerRecord(name="acme"))

    with pytest.raises(NotFound, match="there is no"):
        ask(register)

    assert register.revision() == 1


def test_a_deleted_consumer_takes_its_keys(register: Register) -> None:
    """Its name is free, and a new consumer of that name is new, and has none of the keys."""
    register.create_team(TeamRecord(name="blue"))
    register.create_consumer(FULL)
    register.create_consumer(ConsumerRecord(name="other"))
    for name, owner in (("k1", "acme"), ("k2", "acme"), ("k3", "other")):
        register.create_key(key(name, owner))

    register.delete_consumer("acme")

    assert [record.name for record in register.consumers()] == ["other"]
    assert [record.id for record in register.keys(None)] == ["k3"]
    with pytest.raises(NotFound):
        register.key("k1")

    anew = register.create_consumer(ConsumerRecord(name="acme", created=9.0))

    assert register.consumer("acme") == anew == ConsumerRecord(name="acme", created=9.0)
    assert register.keys("acme") == []


# --- keys -------------------------------------------------------------------------------------------------------


def test_a_key_that_was_there_is_no_new_one(register: Register) -> None:
    """The digest and the id of a key are never used again, not even when it is revoked or deleted."""
    register.create_consumer(ConsumerRecord(name="acme"))
    for name in ("live", "revoked", "deleted"):
        register.create_key(key(name))
    register.revoke_key("revoked", 5)
    register.delete_key("deleted")

    for name in ("live", "revoked", "deleted"):
        with pytest.raises(Conflict, match="such a key already"):
            register.create_key(key("new", digest=key(name).digest))
        with pytest.raises(Conflict, match="such a key already"):
            register.create_key(key(name, digest=b"new"))

    assert [record.id for record in register.keys("acme")] == ["live", "revoked"]


def test_the_end_of_a_key(register: Register) -> None:
    """A key ends at the earlier of two times, and was revoked when it was revoked first."""
    register.create_consumer(ConsumerRecord(name="acme"))
    register.create_key(key("k1"))

    assert [register.expire_key("k1", at).expires for at in (50.5, 60, 40)] == [50.5, 50.5, 40]
    assert [register.revoke_key("k1", at).revoked for at in (30.25, 35)] == [30.25, 30.25]
    assert register.key("k1").expires == 40


def test_last_use(register: Register) -> None:
    """The last use of a key is the latest that anybody saw, and raises no revision."""
    register.create_consumer(ConsumerRecord(name="acme"))
    register.create_key(key("k1"))
    register.create_key(key("k2"))
    before = register.revision()

    register.touch({})
    register.touch({"k1": 20.5, "gone": 1.0})
    register.touch({"k1": 10.0, "k2": 5.0})

    assert (register.key("k1").last_used, register.key("k2").last_used) == (20.5, 5.0)
    assert register.revision() == before
    assert register.changes(before).keys == []


def test_last_uses_at_once(register: Register) -> None:
    """Several workers may tell of the same keys in any order, and none waits in a circle."""
    register.create_consumer(ConsumerRecord(name="acme"))
    names = [register.create_key(key(f"k{n}")).id for n in range(200)]

    def touch(order: int) -> None:
        for turn in range(5):
            register.touch(dict.fromkeys(names[::order], float(turn)))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(touch, (1, -1, 1, -1)))

    assert {record.last_used for record in register.keys("acme")} == {4.0}


# --- changes ----------------------------------------------------------------------------------------------------


def test_every_change_raises_the_revision(register: Register) -> None:
    """Each by one, so that asking for it is enough to know that there is nothing new."""
    steps: list[Callable[[], object]] = [
        lambda: register.create_team(TeamRecord(name="blue")),
        lambda: register.update_team("blue", {"policy": "x"}),
        lambda: register.create_consumer(ConsumerRecord(name="acme", team="blue")),
        lambda: register.update_consumer("acme", {"note": "x"}),
        lambda: register.create_key(key("k1")),
        lambda: register.create_key(key("k2")),
        lambda: register.expire_key("k1", 1),
        lambda: register.revoke_key("k1", 1),
        lambda: register.delete_key("k1"),
        lambda: register.delete_consumer("acme"),
        lambda: register.delete_team("blue"),
    ]
    assert register.revision() == 0
    for number, step in enumerate(steps, 1):
        step()
        assert register.revision() == number


def test_changes_since(register: Register) -> None:
    """Who was at a revision gets what came after it, what is deleted too; who begins gets what is there."""
    register.create_team(TeamRecord(name="blue"))
    register.create_consumer(ConsumerRecord(name="acme", team="blue"))
    register.create_consumer(ConsumerRecord(name="gone"))
    register.create_key(key("k1"))
    register.create_key(key("k2", "gone"))
    seen = register.changes(0)
    register.delete_consumer("gone")
    register.revoke_key("k1", 5)

    assert seen.revision == 5
    assert {record.name for record in seen.consumers} == {"acme", "gone"}
    news = register.changes(seen.revision)
    assert (news.revision, news.teams) == (7, [])
    assert [(record.name, record.deleted) for record in news.consumers] == [("gone", True)]
    assert {record.id: (record.deleted, record.revoked) for record in news.keys} == {
        "k1": (False, 5.0),
        "k2": (True, None),
    }
    fresh = register.changes(0)
    assert ([record.name for record in fresh.consumers], [record.id for record in fresh.keys]) == (["acme"], ["k1"])
    assert [record.name for record in fresh.teams] == ["blue"]
    assert register.changes(7).consumers == register.changes(7).keys == []


def test_writers_at_once(register: Register) -> None:
    """Whoever follows the changes while many write misses none of them: the order of revisions is that of commits."""
    register.create_consumer(ConsumerRecord(name="acme"))
    writers, each = 6, 8
    failures: list[BaseException] = []

    def write(writer: int) -> None:
        try:
            for number in range(each):
                register.create_key(key(f"{writer}-{number}"))
                register.touch({f"{w}-{number}": float(number) for w in range(writers)})
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(writers)]
    for thread in threads:
        thread.start()
    followed: set[str] = set()
    at = 1
    while at < 1 + writers * each and not failures:
        news = register.changes(at)
        assert len(news.keys) == news.revision - at
        followed |= {record.id for record in news.keys}
        at = news.revision
    for thread in threads:
        thread.join()

    assert failures == []
    assert followed == {f"{writer}-{number}" for writer in range(writers) for number in range(each)}
    assert register.revision() == 1 + writers * each


def test_one_of_many_creates_it(register: Register) -> None:
    """Of several who create the same consumer at the same time, one does."""
    ends: list[type[BaseException] | None] = []
    ready = threading.Barrier(5)

    def create() -> None:
        ready.wait()
        try:
            register.create_consumer(ConsumerRecord(name="acme"))
            ends.append(None)
        except BaseException as error:  # noqa: BLE001
            ends.append(type(error))

    threads = [threading.Thread(target=create) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(ends, key=str) == [Conflict] * 4 + [None]
    assert register.revision() == 1
