"""Who holds which key."""

import hashlib
import hmac
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.accounts.consumers import Consumers, Key, Snapshot, Team
from extproc.accounts.rules import Rule, Rules
from extproc.core.call import Consumer, Permissions
from extproc.stores.ports import Changes, ConsumerRecord, KeyRecord, TeamRecord

ACME, OTHER = Consumer("acme"), Consumer("other")


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def known(*keys: tuple[str, str]) -> Consumers:
    """Consumers whose keys are these: text and holder."""
    return Consumers({"acme": ACME, "other": OTHER}, [Key(digest(text), name) for text, name in keys])


KNOWN = known(("a1", "acme"), ("a2", "acme"), ("b", "other"))
NOW = 1_800_000_000.0


def holder(consumers: Consumers, key: str, now: float = NOW) -> Consumer | None:
    identity = consumers.find(key, now)
    return identity.consumer if identity else None


@pytest.mark.parametrize(
    ("key", "consumer"), [("a1", ACME), ("a2", ACME), ("b", OTHER), ("c", None), ("", None), ("A1", None)]
)
def test_find(key: str, consumer: Consumer | None) -> None:
    """Each key leads to its holder, and no other text to anybody."""
    assert holder(KNOWN, key) is consumer


@given(st.text(st.characters()))
def test_no_text_is_too_odd(key: str) -> None:
    """Any text may be asked for, half a surrogate pair too."""
    assert holder(KNOWN, key) is (ACME if key in ("a1", "a2") else OTHER if key == "b" else None)
    assert holder(known((key, "acme")), key) is ACME


def test_digests_that_begin_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests in one bucket are told apart by the whole, compared in constant time."""
    compared: list[bytes] = []
    real = hmac.compare_digest

    def watch(a: Any, b: Any) -> bool:
        compared.append(a)
        return real(a, b)

    monkeypatch.setattr(hmac, "compare_digest", watch)
    near = digest("a1")[:8] + b"\0" * 24
    consumers = Consumers({"acme": ACME, "other": OTHER}, [Key(near, "other"), Key(digest("a1"), "acme")])

    assert holder(consumers, "a1") is ACME
    assert compared == [near, digest("a1")]


def test_no_keys_no_consumers() -> None:
    """An empty book knows nobody."""
    assert Consumers().find("a1", NOW) is None
    assert known().find("a1", NOW) is None


def test_keys_are_not_kept() -> None:
    """Only digests are held."""
    assert b"a1" not in str(vars(KNOWN)).encode()


# --- the database ---------------------------------------------------------------------------------------------


def parse_rules(quota: list[dict[str, Any]], limits: list[dict[str, Any]]) -> list[Rule]:
    return [Rule("quota", "tokens", x["tokens"]) for x in quota] + [Rule("window", "requests", 1) for _ in limits]


def key(name: str, consumer: str, **more: Any) -> KeyRecord:
    return KeyRecord(id=f"id-{name}", consumer=consumer, digest=digest(name), **more)


def fresh() -> Consumers:
    return Consumers(
        {"acme": ACME},
        [Key(digest("a1"), "acme")],
        teams={"file-team": Team(Permissions(["gpt*"]), "strict")},
        rules=Rules(consumers={"acme": [Rule("quota", "tokens", 7)]}),
        parse_rules=parse_rules,
    )


def test_consumers_of_the_database_come_and_go() -> None:
    """A record and its key are known when they come, unknown when it is disabled or deleted, known again after."""
    consumers = fresh()
    record = ConsumerRecord(name="globex", models=["qwen*"], endpoints=["chat"])
    consumers.apply(Changes(revision=1, consumers=[record], keys=[key("g1", "globex")]))

    found = consumers.find("g1", NOW)
    assert found is not None
    assert (found.consumer.name, found.key) == ("globex", "id-g1")
    assert found.consumer.may_use("qwen-max")
    assert not found.consumer.may_use("gpt")
    assert consumers.revision == 1

    consumers.apply(Changes(revision=2, consumers=[ConsumerRecord(name="globex", disabled=True)]))
    assert consumers.find("g1", NOW) is None
    consumers.apply(Changes(revision=3, consumers=[record]))
    assert consumers.find("g1", NOW) is not None
    consumers.apply(Changes(revision=4, consumers=[ConsumerRecord(name="globex", deleted=True)]))
    assert consumers.find("g1", NOW) is None


def test_keys_end() -> None:
    """A key works until it expires or is revoked, whichever is first, and not at that moment."""
    consumers = fresh()
    keys = [
        key("expires", "acme", expires=NOW + 10),
        key("revoked", "acme", expires=NOW + 10, revoked=NOW + 5),
        key("gone", "acme", revoked=NOW - 1),
    ]
    consumers.apply(Changes(revision=1, keys=keys))

    assert holder(consumers, "expires", NOW + 9.9) is ACME
    assert holder(consumers, "expires", NOW + 10) is None
    assert holder(consumers, "revoked", NOW + 4.9) is ACME
    assert holder(consumers, "revoked", NOW + 5) is None
    assert holder(consumers, "gone", NOW) is None

    consumers.apply(Changes(revision=2, keys=[key("expires", "acme", deleted=True)]))
    assert holder(consumers, "expires", NOW) is None
    assert holder(consumers, "a1", NOW) is ACME


def test_a_key_that_was_deleted_takes_only_itself_along() -> None:
    """Other keys of the same bucket stay."""
    consumers = fresh()
    near = KeyRecord(id="near", consumer="acme", digest=digest("g1")[:8] + b"\0" * 24)
    consumers.apply(Changes(revision=1, keys=[near, key("g1", "acme")]))
    consumers.apply(Changes(revision=2, keys=[KeyRecord(id="near", consumer="acme", deleted=True)]))

    assert holder(consumers, "g1") is ACME


def test_of_two_consumers_of_one_name_the_files_counts() -> None:
    """A record with the name of a consumer of the file changes nothing of it, but its keys are keys of that one."""
    consumers = fresh()
    record = ConsumerRecord(name="acme", disabled=True, quota=[{"tokens": 1}])
    consumers.apply(Changes(revision=1, consumers=[record], keys=[key("more", "acme")]))

    assert holder(consumers, "a1") is ACME
    assert holder(consumers, "more") is ACME
    assert [c.limit for c in consumers.counters.of(ACME, "gpt", NOW)] == [7]


def test_teams() -> None:
    """A consumer may do what its team may and has its policy, unless it has its own; changes of the team count."""
    consumers = fresh()
    consumers.apply(
        Changes(
            revision=1,
            teams=[TeamRecord(name="search", models=["qwen*"], policy="open", quota=[{"tokens": 50}])],
            consumers=[
                ConsumerRecord(name="one", team="search"),
                ConsumerRecord(name="two", team="file-team", policy="mine"),
                ConsumerRecord(name="lost", team="nowhere"),
            ],
        )
    )
    one, two, lost = (consumers.get(name) for name in ("one", "two", "lost"))
    assert one is not None
    assert two is not None
    assert lost is not None
    assert (one.may_use("qwen-max"), one.may_use("gpt"), one.policy) == (True, False, "open")
    assert (two.may_use("gpt-4"), two.may_use("qwen"), two.policy) == (True, False, "mine")
    assert not lost.may_use("gpt")
    assert [c.limit for c in consumers.counters.of(one, "qwen-max", NOW)] == [50]

    consumers.apply(Changes(revision=2, teams=[TeamRecord(name="search", models=["gpt*"], quota=[{"tokens": 60}])]))
    one = consumers.get("one")
    assert one is not None
    assert (one.may_use("qwen-max"), one.may_use("gpt")) == (False, True)
    assert [c.limit for c in consumers.counters.of(one, "gpt", NOW)] == [60]

    consumers.apply(Changes(revision=3, teams=[TeamRecord(name="search", deleted=True)]))
    one = consumers.get("one")
    assert one is not None
    assert not one.may_use("gpt")


def test_a_snapshot_remembers_the_last_of_each() -> None:
    """It starts a new configuration with all that is there, and with nothing that was deleted."""
    snapshot = Snapshot()
    snapshot.apply(
        Changes(revision=1, consumers=[ConsumerRecord(name="a"), ConsumerRecord(name="b")], keys=[key("k", "a")])
    )
    snapshot.apply(
        Changes(revision=5, consumers=[ConsumerRecord(name="b", deleted=True)], teams=[TeamRecord(name="t")])
    )
    everything = snapshot.everything()

    assert everything.revision == 5
    assert [c.name for c in everything.consumers] == ["a"]
    assert [k.id for k in everything.keys] == ["id-k"]
    assert [t.name for t in everything.teams] == ["t"]
