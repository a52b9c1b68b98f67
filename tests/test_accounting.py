"""What the configuration means to the accounts."""

from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from extproc import accounting
from extproc.accounts.consumers import Consumers
from extproc.accounts.prices import Price
from extproc.config.load import Loaded, parse
from extproc.core.call import Consumer, Model
from extproc.dialects.usage import Usage
from extproc.filters.quota import Treatment
from extproc.stores.ports import NANO, Changes, ConsumerRecord, KeyRecord, TeamRecord

NOW = datetime.fromisoformat("2026-11-25T12:00:00+08:00").timestamp()
MILLION = 1_000_000


def loaded(**parts: Any) -> Loaded:
    document = {
        "providers": {"home": {"base_url": "http://h/v1"}, "online": {"base_url": "http://o/v1"}},
        "models": {
            "r1": {
                "route": [[{"provider": "home"}], [{"provider": "online", "model": "max", "price": {"output": 30}}]],
                "price": {"input": 4, "cached": 1, "output": 16},
                "limits": [{"requests": 5, "per": "second"}],
                "policy": "open",
            }
        },
        "consumers": {"acme": {"keys": [{"value": "sk-acme-example"}], "models": ["r*"], "team": "search"}},
        "teams": {"search": {"endpoints": ["chat"], "policy": "strict", "limits": [{"concurrent": 8}]}},
        "policies": {
            "strict": {},
            "open": {"quota": {"on_error": "allow"}},
            "default": {"quota": {"cached": "charge"}},
        },
        **parts,
    }
    return parse(yaml.safe_dump(document).encode(), Path("extproc.yaml"))


def everybody(**parts: Any) -> Consumers:
    file = loaded(**parts)
    return accounting.consumers(file.config, file.consumer_digests)


def bounds(consumer: str = "acme", model: str = "r1", **parts: Any) -> dict[str, int]:
    found = everybody(**parts)
    who = found.get(consumer)
    assert who is not None
    return {counter.key: counter.limit for counter in found.counters.of(who, model, NOW)}


def test_consumers_of_the_file() -> None:
    """A consumer has its own permissions and its team's, and its team's policy where it has none."""
    found = everybody().find("sk-acme-example", NOW)

    assert found is not None
    assert (found.consumer.name, found.consumer.team, found.consumer.policy) == ("acme", "search", "strict")
    assert (found.consumer.may_use("r1"), found.consumer.may_use("gpt")) == (True, False)
    assert (found.consumer.may_call("chat"), found.consumer.may_call("embeddings")) == (True, False)


def test_rules_of_all_parts() -> None:
    """Bounds of everybody, of the team, of the model and of the consumer come together, in units of the accounts."""
    accounts = {
        "timezone": "Asia/Shanghai",
        "quota": [
            {"money": "0.5", "per": "day", "each": "consumer"},
            {"requests": "2k", "per": "hour", "timezone": "UTC"},
        ],
    }
    acme = {"keys": [], "team": "search", "quota": [{"tokens": "10M", "per": "month", "model": "r*"}]}

    assert bounds(accounts=accounts, consumers={"acme": acme}) == {
        "consumer:acme/money/day/2026-11-25@Asia/Shanghai": NANO // 2,
        "all/requests/hour/2026-11-25T04+0000@UTC": 2000,
        "model:r1/requests/last-second": 5,
        "team:search/concurrent": 8,
        "consumer:acme/model:r*/tokens/month/2026-11-01@Asia/Shanghai": 10 * MILLION,
    }


def test_consumers_of_the_database() -> None:
    """Their rules are read like those of the file, in the time zone of the accounts."""
    found = everybody(accounts={"timezone": "Asia/Shanghai"})
    record = ConsumerRecord(
        name="globex", team="search", quota=[{"tokens": 500, "per": "month"}], limits=[{"requests": 9, "per": "minute"}]
    )
    found.apply(Changes(revision=1, consumers=[record], keys=[KeyRecord(id="k", consumer="globex", digest=b"d" * 32)]))
    globex = found.get("globex")

    assert globex is not None
    assert {counter.key: counter.limit for counter in found.counters.of(globex, "r1", NOW)} == {
        "model:r1/requests/last-second": 5,
        "team:search/concurrent": 8,
        "consumer:globex/tokens/month/2026-11-01@Asia/Shanghai": 500,
        "consumer:globex/requests/last-minute": 9,
    }


def test_a_rule_of_the_database_that_cannot_be_read() -> None:
    """Its consumer, or everyone of its team, is let in no more: a bound that is not understood must not become none."""
    bad = [{"tokens": 5, "per": "year"}]
    found = everybody()
    good, wrong = ConsumerRecord(name="x"), ConsumerRecord(name="x", quota=bad)
    found.apply(Changes(revision=1, consumers=[good]))
    assert found.get("x") is not None
    found.apply(Changes(revision=2, consumers=[wrong]))
    assert (found.get("x"), found.unreadable) == (None, {"x"})
    found.apply(Changes(revision=3, consumers=[good]))
    assert (found.get("x") is not None, found.unreadable) == (True, set())

    found.apply(
        Changes(revision=4, teams=[TeamRecord(name="t", quota=bad)], consumers=[ConsumerRecord(name="y", team="t")])
    )
    member = found.get("y")
    assert member is not None
    assert not member.may_use("r1")


def test_prices() -> None:
    """Prices are nano of the accounts' currency per million tokens; a target's own replaces the model's."""
    prices = accounting.prices(loaded().config)
    usage = Usage(input=MILLION, cached=MILLION // 2, output=MILLION)

    assert prices.of("r1", "home", "r1", NOW) == Price(4 * NANO, NANO, 4 * NANO, 16 * NANO, 16 * NANO)
    assert prices.of("r1", "home", "r1", NOW).cost(usage) == (2 * NANO + NANO // 2) + 16 * NANO
    assert prices.of("r1", "online", "max", NOW).cost(usage) == 30 * NANO


def test_prices_in_other_currencies_and_units() -> None:
    """A rate turns them into the accounts' currency; `per` says of how many tokens a price is."""
    price = {"input": "0.00015", "per": "1k", "currency": "USD", "request": "0.01"}
    models = {"m": {"route": {"provider": "home"}, "price": price}}
    prices = accounting.prices(loaded(models=models, accounts={"currency": "CNY", "rates": {"USD": "7.1"}}).config)

    assert prices.of("m", "home", "m", NOW).input == int(Decimal("0.15") * Decimal("7.1") * NANO)
    assert prices.of("m", "home", "m", NOW).request == int(Decimal("0.071") * NANO)


def test_prices_with_dates() -> None:
    """A day begins at midnight of the accounts' time zone."""
    price = [{"input": 1, "until": "2026-12-01"}, {"input": 2, "from": "2026-12-01"}]
    models = {"m": {"route": {"provider": "home"}, "price": price}}
    prices = accounting.prices(loaded(models=models, accounts={"timezone": "Asia/Shanghai"}).config)
    midnight = datetime.fromisoformat("2026-12-01T00:00:00+08:00").timestamp()

    assert prices.of("m", "home", "m", midnight - 1).input == NANO
    assert prices.of("m", "home", "m", midnight).input == 2 * NANO


@pytest.mark.parametrize(
    ("consumer", "model", "treatment"),
    [
        (Consumer("a", policy="open"), None, Treatment(allow_on_error=True)),
        (Consumer("a", policy="strict"), Model("m", (), frozenset(), policy="open"), Treatment()),
        (Consumer("a"), Model("m", (), frozenset(), policy="open"), Treatment(allow_on_error=True)),
        (Consumer("a"), Model("m", (), frozenset()), Treatment(charge_cached=True)),
        (Consumer("a", policy="unknown"), None, Treatment(charge_cached=True)),
    ],
)
def test_treatment(consumer: Consumer, model: Model | None, treatment: Treatment) -> None:
    """The consumer's policy counts, else the model's, else the default one."""
    assert accounting.treatment(loaded().config)(consumer, model) == treatment
