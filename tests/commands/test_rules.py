"""Quotas and limits in one text."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.commands.rules import limit, quota, written
from extproc.config.schema import Limit, Quota

AMOUNTS = st.integers(0, 10**15)
GLOBS = st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=20)
MORE = st.fixed_dictionaries({}, optional={"model": GLOBS, "each": st.sampled_from(["consumer", "team"])})
ZONES = st.fixed_dictionaries({}, optional={"timezone": st.sampled_from(["Asia/Shanghai", "UTC", "America/Lima"])})
PERIODS = st.sampled_from(["hour", "day", "week", "month", "total"])
WINDOWS = st.sampled_from(["second", "minute", "hour", "day"])
MONEY = st.decimals(0, 9_000_000, places=4).map(lambda amount: f"{amount:f}")


def normal(kind: Any, fields: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = kind.model_validate(fields).model_dump(mode="json", exclude_none=True)
    return found


@st.composite
def quotas(draw: st.DrawFn) -> dict[str, Any]:
    amount = draw(
        st.one_of(
            AMOUNTS.map(lambda n: {"tokens": n}),
            AMOUNTS.map(lambda n: {"requests": n}),
            MONEY.map(lambda m: {"money": m}),
        )
    )
    return normal(Quota, {**amount, "per": draw(PERIODS), **draw(MORE), **draw(ZONES)})


@st.composite
def limits(draw: st.DrawFn) -> dict[str, Any]:
    n = draw(AMOUNTS)
    window = {"per": draw(WINDOWS)}
    kind = draw(st.sampled_from([{"tokens": n, **window}, {"requests": n, **window}, {"concurrent": n}]))
    return normal(Limit, {**kind, **draw(MORE)})


@given(quotas())
def test_every_quota_has_a_text(rule: dict[str, Any]) -> None:
    """What is shown can be given back, and is the same rule."""
    assert normal(Quota, quota(written(rule))) == rule


@given(limits())
def test_every_limit_has_a_text(rule: dict[str, Any]) -> None:
    """Likewise, with windows and with calls at once."""
    assert normal(Limit, limit(written(rule))) == rule


@given(st.text())
def test_no_text_is_too_odd(text: str) -> None:
    """Any text is a rule's fields, or refused."""
    for read in (quota, limit):
        with suppress(ValueError):
            assert set(read(text)) < {"tokens", "money", "requests", "concurrent", "per", "model", "each", "timezone"}


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("10M tokens/month", {"tokens": "10M", "per": "month"}),
        ("500 money/month", {"money": "500", "per": "month"}),
        ("1k requests/total", {"requests": "1k", "per": "total"}),
        ("  10M   tokens/day  ", {"tokens": "10M", "per": "day"}),
        (
            "1M tokens/day model=gpt-* each=consumer timezone=Asia/Shanghai",
            {"tokens": "1M", "per": "day", "model": "gpt-*", "each": "consumer", "timezone": "Asia/Shanghai"},
        ),
        ("1M tokens/day 'model=my model'", {"tokens": "1M", "per": "day", "model": "my model"}),
    ],
)
def test_quota(text: str, fields: dict[str, str]) -> None:
    """An amount, what of, and how often; then what narrows it."""
    assert quota(text) == fields


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("60 requests/minute", {"requests": "60", "per": "minute"}),
        ("60k tokens/second model=o*", {"tokens": "60k", "per": "second", "model": "o*"}),
        ("8 concurrent", {"concurrent": "8"}),
        ("8 concurrent each=team", {"concurrent": "8", "each": "team"}),
    ],
)
def test_limit(text: str, fields: dict[str, str]) -> None:
    """The same with windows, or calls at once."""
    assert limit(text) == fields


@pytest.mark.parametrize(
    ("read", "text", "reason"),
    [
        (quota, "", "should look like 10M tokens/month"),
        (quota, "10M", "should look like 10M tokens/month"),
        (quota, "10M tokens", "should have tokens/PERIOD or money/PERIOD or requests/PERIOD after the amount"),
        (quota, "10M tokens per month", "after the amount"),
        (quota, "10M apples/month", "after the amount"),
        (quota, "10M 'tokens/month", "should look like"),
        (quota, "8 concurrent", "after the amount"),
        (quota, "10M tokens/month colour=red", "may end with model=…, each=…, timezone=…, not with 'colour=red'"),
        (quota, "10M tokens/month model=a model=b", "not with 'model=b'"),
        (quota, "10M tokens/month model", "not with 'model'"),
        (limit, "60", "should look like 60 requests/minute or 8 concurrent"),
        (limit, "5 money/minute", "should have tokens/PERIOD or requests/PERIOD"),
        (limit, "60 requests/minute timezone=UTC", "may end with model=…, each=…, not with"),
    ],
)
def test_what_is_no_rule(read: Any, text: str, reason: str) -> None:
    """The sentence says what was written and how it should look."""
    with pytest.raises(ValueError) as refused:
        read(text)

    assert str(refused.value).startswith(repr(text))
    assert reason in str(refused.value)


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ({"tokens": 10_000_000, "per": "month"}, "10M tokens/month"),
        ({"tokens": 1_500, "per": "day"}, "1500 tokens/day"),
        ({"money": "0.5", "per": "day", "timezone": "UTC"}, "0.5 money/day timezone=UTC"),
        ({"requests": 0, "per": "minute"}, "0 requests/minute"),
        ({"concurrent": 8, "model": "a b"}, "8 concurrent model='a b'"),
    ],
)
def test_written(rule: dict[str, Any], text: str) -> None:
    """Short where that is exact."""
    assert written(rule) == text
