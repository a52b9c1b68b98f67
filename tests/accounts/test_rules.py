"""Which numbers a call adds to."""

from datetime import datetime

import pytest

from extproc.accounts.rules import Counters, Rule, Rules, quotas
from extproc.core.call import Consumer
from extproc.stores.ports import Scope

NOW = datetime.fromisoformat("2026-11-25T12:00:00+08:00").timestamp()
ACME, LONER = Consumer("acme", team="search"), Consumer("a/b c")
MONTH = Rule("quota", "tokens", 100, per="month", timezone="Asia/Shanghai")


def keys(rules: Rules, consumer: Consumer = ACME, model: str = "gpt-4", now: float = NOW) -> dict[str, int]:
    return {counter.key: counter.limit for counter in Counters(rules).of(consumer, model, now)}


def test_all_that_match_apply() -> None:
    """Everybody's, the model's, the team's and the consumer's own rules all bind a call."""
    rules = Rules(
        everybody=[Rule("window", "requests", 1000, per="second")],
        teams={"search": [Rule("concurrent", "concurrent", 8)], "other": [Rule("concurrent", "concurrent", 1)]},
        models={"gpt-4": [Rule("window", "tokens", 60_000, per="minute")], "qwen": [MONTH]},
        consumers={"acme": [MONTH], "other": [MONTH]},
    )

    assert keys(rules) == {
        "all/requests/last-second": 1000,
        "model:gpt-4/tokens/last-minute": 60_000,
        "team:search/concurrent": 8,
        "consumer:acme/tokens/month/2026-11-01@Asia/Shanghai": 100,
    }
    assert keys(rules, LONER) == {"all/requests/last-second": 1000, "model:gpt-4/tokens/last-minute": 60_000}


def test_models_of_a_rule() -> None:
    """A rule with a glob binds the models that match, together."""
    rules = Rules(consumers={"acme": [Rule("window", "requests", 5, per="hour", model="gpt-*")]})

    assert keys(rules) == {"consumer:acme/model:gpt-*/requests/last-hour": 5}
    assert keys(rules, model="gpt-3") == keys(rules)
    assert keys(rules, model="qwen") == {}


def test_each_has_its_own() -> None:
    """A rule for each consumer, or team, counts them apart; who has no team has no team's number."""
    rules = Rules(
        everybody=[
            Rule("window", "requests", 1, per="day", each="consumer"),
            Rule("concurrent", "concurrent", 2, each="team"),
        ],
        models={"gpt-4": [Rule("window", "requests", 3, per="day", each="consumer")]},
    )

    assert keys(rules) == {
        "consumer:acme/requests/last-day": 1,
        "team:search/concurrent": 2,
        "consumer:acme/model:gpt-4/requests/last-day": 3,
    }
    assert keys(rules, LONER) == {
        "consumer:a%2Fb%20c/requests/last-day": 1,
        "consumer:a%2Fb%20c/model:gpt-4/requests/last-day": 3,
    }


def test_of_two_bounds_of_one_number_the_lower_counts() -> None:
    """Two rules that count the same share the number."""
    rules = Rules(consumers={"acme": [MONTH, Rule("quota", "tokens", 7, per="month", timezone="Asia/Shanghai")]})

    assert list(keys(rules).values()) == [7]


def test_a_new_period_is_a_new_number() -> None:
    """The counters of a consumer change when a period is over, and are the same until then."""
    counters = Counters(Rules(consumers={"acme": [MONTH]}))
    december = datetime.fromisoformat("2026-12-01T00:00:00+08:00").timestamp()

    now = counters.of(ACME, "gpt-4", NOW)
    assert counters.of(ACME, "gpt-4", december - 0.001) is now
    (after,) = counters.of(ACME, "gpt-4", december)
    assert after.key == "consumer:acme/tokens/month/2026-12-01@Asia/Shanghai"
    assert (after.start, now[0].end) == (int(december), int(december))
    assert counters.of(ACME, "gpt-4", NOW) == now


def test_forget() -> None:
    """After a change of rules the counters are worked out anew."""
    consumers = {"acme": [MONTH]}
    counters = Counters(Rules(consumers=consumers))
    counters.of(ACME, "gpt-4", NOW)
    consumers["acme"] = []
    counters.forget("acme")

    assert counters.of(ACME, "gpt-4", NOW) == ()


@pytest.mark.parametrize(
    ("rule", "scope"),
    [
        (MONTH, Scope(consumer="acme")),
        (Rule("quota", "money", 1, model="gpt-*"), Scope(consumer="acme", model="gpt-*")),
    ],
)
def test_scope(rule: Rule, scope: Scope) -> None:
    """A counter says which rows of the ledger make up its number."""
    (counter,) = Counters(Rules(consumers={"acme": [rule]})).of(ACME, "gpt-4", NOW)

    assert counter.scope == scope


def test_quotas() -> None:
    """Each number of a quota comes once, whoever shares it; windows and open calls are not numbers of the ledger."""
    rules = Rules(
        everybody=[Rule("quota", "money", 5, per="day"), Rule("window", "tokens", 9, per="minute")],
        consumers={"a": [Rule("quota", "tokens", 1, model="gpt*"), Rule("concurrent", "concurrent", 1)]},
    )
    found = quotas(rules, [Consumer("a"), Consumer("b")], ["gpt-1", "gpt-2", "qwen"], NOW)

    assert [counter.key for counter in found] == [
        "all/money/day/2026-11-25@UTC",
        "consumer:a/model:gpt*/tokens/total/total",
    ]
