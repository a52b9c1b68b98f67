"""What operators send: which of it is taken, and as what it is stored."""

from typing import Any

import pytest
from pydantic import ValidationError

from extproc.admin.bodies import ConsumerChange, NewConsumer, NewKey, NewTeam, Rotation, RowsQuery, UsageQuery
from extproc.config.schema import Limit, Quota


def test_rules_are_stored_normalised() -> None:
    """Amounts are whole numbers or exact texts, and what was not set is not there; the schema reads them again."""
    quota = [{"tokens": "10M", "per": "month"}, {"money": "0.5", "per": "day", "timezone": "Asia/Shanghai"}]
    limits = [{"requests": "60", "per": "minute", "model": "gpt-*"}, {"concurrent": 8, "each": "consumer"}]

    fields = NewTeam.model_validate({"name": "growth", "quota": quota, "limits": limits}).fields()

    assert fields == {
        "name": "growth",
        "quota": [
            {"tokens": 10_000_000, "per": "month"},
            {"money": "0.5", "per": "day", "timezone": "Asia/Shanghai"},
        ],
        "limits": [
            {"requests": 60, "per": "minute", "model": "gpt-*"},
            {"concurrent": 8, "each": "consumer"},
        ],
    }
    assert [Quota.model_validate(rule) for rule in fields["quota"]]
    assert [Limit.model_validate(rule) for rule in fields["limits"]]


def test_only_what_was_set_changes() -> None:
    """What is left out stays; null takes away a team or a policy."""
    assert ConsumerChange.model_validate({"note": "x"}).fields() == {"note": "x"}
    assert ConsumerChange.model_validate({"team": None, "policy": None}).fields() == {"team": "", "policy": ""}
    assert ConsumerChange.model_validate({}).fields() == {}


@pytest.mark.parametrize("name", ["acme", "A", "team:acme@corp", "acme 2", "a" * 128])
def test_names(name: str) -> None:
    """Letters, digits and a few signs, which mean nothing to a shell, a path or a spreadsheet."""
    assert NewConsumer(name=name).name == name


@pytest.mark.parametrize(
    "name",
    ["", "=cmd", "+1", "-x", "@x", " x", "a/b", "../x", "a\n", "a\x1b[0m", "中", "a" * 129, "a%2Fb", "a?b", "a#b"],
)
def test_what_is_no_name(name: str) -> None:
    """What could be a formula, a path or an escape sequence is refused."""
    with pytest.raises(ValidationError):
        NewConsumer(name=name)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (NewConsumer, {"name": "a", "modles": ["*"]}),
        (NewConsumer, {"name": "a", "quota": [{"tokens": 1}]}),
        (NewConsumer, {"name": "a", "quota": [{"tokens": 1, "money": 1, "per": "day"}]}),
        (NewConsumer, {"name": "a", "quota": [{"tokens": -1, "per": "day"}]}),
        (NewConsumer, {"name": "a", "limits": [{"tokens": 1, "per": "month"}]}),
        (NewConsumer, {"name": "a", "limits": [{"concurrent": 1, "per": "day"}]}),
        (NewConsumer, {"name": "a", "endpoints": ["images"]}),
        (NewConsumer, {"name": "a", "models": [""]}),
        (NewConsumer, {"name": "a", "models": None}),
        (NewConsumer, {"name": "a", "note": "a\x1b]0;x\x07"}),
        (ConsumerChange, {"name": "b"}),
        (NewTeam, {"name": "a", "team": "b"}),
        (NewKey, {"label": "a\u202eb"}),
        (NewKey, {"label": "x" * 101}),
        (NewKey, {"key": "sk-of-my-own"}),
        (Rotation, {"overlap": "-1s"}),
        (Rotation, {"overlap": "400d"}),
        (RowsQuery, {"limit": 0}),
        (RowsQuery, {"limit": 10_001}),
        (UsageQuery, {"consumers": "acme"}),
        (UsageQuery, {"timezone": "Mars/Base"}),
    ],
)
def test_what_is_refused(kind: Any, body: dict[str, Any]) -> None:
    """A mistake is not passed over: unknown fields, rules that say nothing, characters that move a cursor."""
    with pytest.raises(ValidationError):
        kind.model_validate(body)
