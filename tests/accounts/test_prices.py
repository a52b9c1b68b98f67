"""What tokens cost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.accounts.prices import FREE, Price, Prices
from extproc.dialects.usage import Usage

MILLION = 1_000_000
NANO = 1_000_000_000
R1 = Price(input=4 * NANO, cached=1 * NANO, cache_creation=5 * NANO, output=16 * NANO, reasoning=20 * NANO, request=7)
TOKENS = st.integers(0, 10**12)


def test_each_kind_has_its_price() -> None:
    """Cached and cache-creating tokens are parts of the input, reasoning is a part of the output."""
    usage = Usage(
        input=10 * MILLION, cached=3 * MILLION, cache_creation=1 * MILLION, output=5 * MILLION, reasoning=2 * MILLION
    )

    assert R1.cost(usage) == (6 * 4 + 3 * 1 + 1 * 5 + 3 * 16 + 2 * 20) * NANO + 7


@pytest.mark.parametrize(
    ("price", "tokens", "cost"), [(75, 1, 0), (75_000_000, 1, 75), (500_000, 1, 1), (499_999, 1, 0)]
)
def test_rounding(price: int, tokens: int, cost: int) -> None:
    """A call is rounded once, to the nearest billionth."""
    assert Price(input=price).cost(Usage(input=tokens)) == cost


@given(TOKENS, TOKENS, TOKENS, TOKENS)
def test_never_negative(cached: int, creation: int, output: int, reasoning: int) -> None:
    """Not even where a provider reports parts that are more than the whole."""
    assert R1.cost(Usage(input=5, cached=cached, cache_creation=creation, output=output, reasoning=reasoning)) >= 7


def test_the_price_in_force_when_the_call_began() -> None:
    """Days count from their beginning to just before their end; where none is in force, nothing is charged."""
    old, new = Price(input=1, until=100.0), Price(input=2, since=100.0, until=200.0)
    prices = Prices({"m": [old, new]}, {})

    assert prices.of("m", "p", "t", 99.9) is old
    assert prices.of("m", "p", "t", 100.0) is new
    assert prices.of("m", "p", "t", 200.0) is FREE
    assert prices.of("other", "p", "t", 0.0) is FREE


def test_a_targets_own_price_comes_first() -> None:
    """A target may cost something else than the model elsewhere; before it is known who answers, the dearest counts."""
    own, usual = Price(output=30 * NANO), Price(output=10 * NANO)
    prices = Prices({"m": [usual]}, {("m", "online", "max"): [own], ("n", "online", "max"): [Price(output=99 * NANO)]})
    usage = Usage(output=MILLION)

    assert prices.of("m", "online", "max", 0.0) is own
    assert prices.of("m", "home", "small", 0.0) is usual
    assert prices.highest("m", 0.0, usage) == 30 * NANO
    assert prices.cost("m", "home", "small", 0.0, usage) == 10 * NANO
    assert prices.cost("m", "", "", 0.0, usage) == 30 * NANO
