"""Quotas and limits: which numbers a call adds to, and the bounds of each."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final, Literal, cast
from urllib.parse import quote

from extproc.accounts.periods import Calendar, Calendars
from extproc.core.call import Consumer
from extproc.stores.ports import Counter, Kind, Scope, Unit

Per = Literal["second", "minute", "hour", "day", "week", "month", "total"]
WINDOWS: Final[dict[str, int]] = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}


@dataclass(frozen=True, slots=True)
class Rule:
    """A bound on what a consumer, a team, a model or everybody takes.

    ``amount``: tokens, nano of the accounts' currency, requests, or open calls. ``model``: a glob; only calls of models
    that match count, together. ``each``: every consumer, or every team, has a number of its own.
    """

    kind: Kind
    unit: Unit
    amount: int
    per: Per = "total"
    model: str = ""
    each: Literal["", "consumer", "team"] = ""
    timezone: str = "UTC"


@dataclass(frozen=True, slots=True)
class Rules:
    """All rules of a configuration and its database, by whom they bind."""

    everybody: Sequence[Rule] = ()
    teams: Mapping[str, Sequence[Rule]] = field(default_factory=dict)
    models: Mapping[str, Sequence[Rule]] = field(default_factory=dict)
    consumers: Mapping[str, Sequence[Rule]] = field(default_factory=dict)

    def matching(self, consumer: Consumer, model: str) -> Iterable[tuple[Scope, Rule]]:
        """The rules that bind this call, outermost first, and whose calls each counts."""
        owners = (
            (Scope(), self.everybody),
            (Scope(model=model), self.models.get(model, ())),
            (Scope(team=consumer.team), self.teams.get(consumer.team, ()) if consumer.team else ()),
            (Scope(consumer=consumer.name), self.consumers.get(consumer.name, ())),
        )
        for scope, rules in owners:
            for rule in rules:
                if (not rule.model or fnmatchcase(model, rule.model)) and (rule.each != "team" or consumer.team):
                    yield _scope(scope, rule, consumer), rule


def _scope(owner: Scope, rule: Rule, consumer: Consumer) -> Scope:
    return Scope(
        consumer=consumer.name if rule.each == "consumer" else owner.consumer,
        team=consumer.team if rule.each == "team" else owner.team,
        model=owner.model or rule.model,
    )


class Counters:
    """The counters of calls, by consumer and model. Worked out once, and again when a period of theirs is over."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._calendars = Calendars()
        self._known: dict[tuple[str, str], tuple[float, float, Sequence[Counter]]] = {}

    def of(self, consumer: Consumer, model: str, now: float) -> Sequence[Counter]:
        """The counters that a call which begins ``now`` adds to; each key once, with the least of its bounds."""
        known = self._known.get((consumer.name, model))
        if known is not None and known[0] <= now < known[1]:
            return known[2]
        found: dict[str, Counter] = {}
        for scope, rule in self._rules.matching(consumer, model):
            counter = self._counter(scope, rule, now)
            same = found.get(counter.key)
            if same is None or counter.limit < same.limit:
                found[counter.key] = counter
        counters = tuple(found.values())
        since = max((c.start for c in counters), default=0)
        until = min((c.end for c in counters if c.end is not None), default=float("inf"))
        self._known[consumer.name, model] = since, until, counters
        return counters

    def forget(self, consumer: str) -> None:
        """The consumer, or its team, is another one now."""
        for known in [key for key in self._known if key[0] == consumer]:
            del self._known[known]

    def _counter(self, scope: Scope, rule: Rule, now: float) -> Counter:
        subject = _subject(scope)
        if rule.kind == "concurrent":
            return Counter(f"{subject}/concurrent", "concurrent", "concurrent", rule.amount, scope)
        if rule.kind == "window":
            key = f"{subject}/{rule.unit}/last-{rule.per}"
            return Counter(key, "window", rule.unit, rule.amount, scope, seconds=WINDOWS[rule.per])
        when = self._calendars.at(cast(Calendar, rule.per), rule.timezone, now)
        key = f"{subject}/{rule.unit}/{rule.per}/{when.name}"
        return Counter(key, "quota", rule.unit, rule.amount, scope, start=when.start, end=when.end)


def quotas(rules: Rules, consumers: Iterable[Consumer], models: Sequence[str], now: float) -> Iterator[Counter]:
    """Every number of a quota that these consumers have now, once."""
    counters = Counters(rules)
    seen: set[str] = set()
    for consumer in consumers:
        for model in models:
            for counter in counters.of(consumer, model, now):
                if counter.kind == "quota" and counter.key not in seen:
                    seen.add(counter.key)
                    yield counter


def _subject(scope: Scope) -> str:
    parts = (("team", scope.team), ("consumer", scope.consumer), ("model", scope.model))
    return "/".join(f"{name}:{quote(value, safe='*@')}" for name, value in parts if value) or "all"
