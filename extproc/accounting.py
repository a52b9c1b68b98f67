"""What the configuration, and records of the database, mean to the accounts."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from extproc.accounts import prices as nano
from extproc.accounts.consumers import Consumers, Key, Team
from extproc.accounts.rules import Rule, Rules
from extproc.config.schema import Config, Limit, Price, Quota
from extproc.core.call import Consumer, Model, Permissions
from extproc.filters.quota import Treatment


def consumers(config: Config, digests: Mapping[str, Iterable[bytes]] | None = None) -> Consumers:
    """Everybody of the configuration file, with the SHA-256 of their keys; those of the database are applied to it."""
    teams = {
        name: Team(Permissions(team.models, team.endpoints), team.policy or "") for name, team in config.teams.items()
    }
    timezone = config.accounts.timezone

    def parse_rules(quota: list[dict[str, Any]], limits: list[dict[str, Any]]) -> list[Rule]:
        return _rules([Quota.model_validate(x) for x in quota], [Limit.model_validate(x) for x in limits], timezone)

    return Consumers(
        {name: _consumer(name, config, teams) for name in config.consumers},
        [Key(digest, name) for name, keys in (digests or {}).items() for digest in keys],
        teams=teams,
        rules=Rules(
            everybody=_rules(config.accounts.quota, config.accounts.limits, timezone),
            teams={name: _rules(x.quota, x.limits, timezone) for name, x in config.teams.items()},
            models={name: _rules(x.quota, x.limits, timezone) for name, x in config.models.items()},
            consumers={name: _rules(x.quota, x.limits, timezone) for name, x in config.consumers.items()},
        ),
        parse_rules=parse_rules,
    )


def _consumer(name: str, config: Config, teams: Mapping[str, Team]) -> Consumer:
    settings = config.consumers[name]
    permissions = [Permissions(settings.models, settings.endpoints)]
    policy = settings.policy or ""
    if settings.team:
        team = teams[settings.team]
        permissions.append(team.permissions)
        policy = policy or team.policy
    return Consumer(name, permissions, settings.team or "", policy)


def _rules(quota: Iterable[Quota], limits: Iterable[Limit], timezone: str) -> list[Rule]:
    return [*(q.rule(timezone) for q in quota), *(limit.rule() for limit in limits)]


def prices(config: Config) -> nano.Prices:
    """All prices, in nano of the accounts' currency."""
    return nano.Prices(
        models={name: _prices(model.price, config) for name, model in config.models.items()},
        targets={
            (name, target.provider, target.model or name): _prices(target.price, config)
            for name, model in config.models.items()
            for group in model.route
            for target in group
            if target.price
        },
    )


def _prices(listed: Sequence[Price], config: Config) -> list[nano.Price]:
    accounts = config.accounts
    rates = {accounts.currency: Decimal(1), **accounts.rates}
    return [price.nano(rates[price.currency or accounts.currency], accounts.timezone) for price in listed]


def treatment(config: Config) -> Callable[[Consumer, Model | None], Treatment]:
    """What the policy of a consumer, else of a model, else the default one, says of quotas."""
    known = {
        name: Treatment(policy.quota.on_error == "allow", policy.quota.cached == "charge")
        for name, policy in config.policies.items()
    }
    default = known.get("default", Treatment())

    def of(consumer: Consumer, model: Model | None) -> Treatment:
        return known.get(consumer.policy or (model.policy if model else ""), default)

    return of
