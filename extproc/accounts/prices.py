"""What tokens cost: integers of nano (billionths) of the accounts' currency, rounded once a call."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from extproc.dialects.usage import Usage

_PER: Final = 1_000_000
MAX_COST: Final = 2**53
"""Nano; the largest number that every store knows exactly. No call costs nine million."""


@dataclass(frozen=True, slots=True)
class Price:
    """Nano per million tokens of each kind, and nano per ``request``; in force from ``since`` until ``until``.

    ``cached`` and ``cache_creation`` are parts of the input, ``reasoning`` is a part of the output.
    """

    input: int = 0
    cached: int = 0
    cache_creation: int = 0
    output: int = 0
    reasoning: int = 0
    request: int = 0
    since: float = float("-inf")
    until: float = float("inf")

    def cost(self, usage: Usage) -> int:
        """Nano, to the nearest one, and at most MAX_COST."""
        fresh = max(usage.input - usage.cached - usage.cache_creation, 0)
        said = max(usage.output - usage.reasoning, 0)
        tokens = (
            fresh * self.input
            + usage.cached * self.cached
            + usage.cache_creation * self.cache_creation
            + said * self.output
            + usage.reasoning * self.reasoning
        )
        return min((tokens + _PER // 2) // _PER + self.request, MAX_COST)


FREE: Final = Price()


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices of public models, and of single targets where they have their own: ``(model, provider, target)``."""

    models: Mapping[str, Sequence[Price]]
    targets: Mapping[tuple[str, str, str], Sequence[Price]]

    def of(self, model: str, provider: str, target: str, began: float) -> Price:
        """The price for a call that began then; free where none is in force."""
        prices = self.targets.get((model, provider, target)) or self.models.get(model, ())
        return next((price for price in prices if price.since <= began < price.until), FREE)

    def cost(self, model: str, provider: str, target: str, began: float, usage: Usage) -> int:
        """Nano; at the highest price where it is not known which target answered."""
        if not provider:
            return self.highest(model, began, usage)
        return self.of(model, provider, target, began).cost(usage)

    def highest(self, model: str, began: float, usage: Usage) -> int:
        """What this usage costs at the dearest of the model's targets, since any of them may answer."""
        lists = [self.models.get(model, ()), *(prices for key, prices in self.targets.items() if key[0] == model)]
        costs = (price.cost(usage) for prices in lists for price in prices if price.since <= began < price.until)
        return max(costs, default=0)
