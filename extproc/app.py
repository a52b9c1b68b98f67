"""Everything that one configuration becomes, and the swap from one to the next."""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from extproc import accounting, auditing, moderating
from extproc.accounts.books import Books
from extproc.accounts.consumers import Consumers, Snapshot
from extproc.accounts.estimates import Estimator
from extproc.accounts.prices import Prices
from extproc.audit.record import Record
from extproc.config.load import ConfigError, Loaded, Problem
from extproc.core.attempt import Attempt, AttemptExchange
from extproc.core.call import Call, Model, Target
from extproc.core.chain import Chain
from extproc.core.exchange import Exchange
from extproc.core.filter import AttemptFilter, Plugin
from extproc.core.messages import RequestHead
from extproc.dialects.endpoints import ENDPOINTS, DialectName, Endpoint, dialect_of
from extproc.filters.audit import AuditPlugin
from extproc.filters.auth import AuthPlugin, OnUse
from extproc.filters.credentials import CredentialsFilter, TargetFilter
from extproc.filters.moderation import ModerationPlugin
from extproc.filters.quota import QuotaPlugin
from extproc.filters.routing import RoutingPlugin
from extproc.filters.usage import UsagePlugin
from extproc.moderation.types import Item, Judge, JudgeFailed, Opinion
from extproc.providers.pool import Pool, Pools
from extproc.providers.provider import Provider
from extproc.telemetry import books, calls, metrics
from extproc.wire.names import STAGE
from extproc.wire.session import Session

_KEPT: Final = 4
"""Configurations that attempts of older calls may still ask for."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a configuration says, checked: enough to render Envoy's."""

    digest: str
    models: Mapping[str, Model]
    providers: Mapping[str, Provider]
    pools: Mapping[str, Pool]


@dataclass(frozen=True, slots=True)
class Services:
    """What a worker has for as long as it lives, whatever the configuration."""

    books: Books
    estimator: Estimator
    snapshot: Snapshot
    keys: Pools
    on_use: OnUse
    put: Callable[[Record], None]
    worker: str


@dataclass(frozen=True, slots=True)
class Build:
    """What one configuration became. A call keeps the one that it began with, through all its attempts."""

    parts: Parts
    consumers: Consumers
    prices: Prices
    plugins: Sequence[Plugin]
    attempt_filters: Sequence[AttemptFilter]
    max_answer: int
    currency: str
    judges: Mapping[str, Judge]

    @property
    def digest(self) -> str:
        return self.parts.digest


def check(loaded: Loaded, keys: Pools | None = None) -> Parts:
    """Raises ConfigError where the parts do not fit together. ``keys``: what is known of providers' keys so far."""
    providers = _providers(loaded)
    pools = _pools(loaded, keys or Pools(time.monotonic))
    return Parts(loaded.digest, _models(loaded, providers), providers, pools)


def check_moderation(loaded: Loaded) -> None:
    """Raises ConfigError where a check cannot be made, or a sink's library is missing."""
    moderating.guards(loaded, dict.fromkeys(loaded.config.judges, _NOBODY))
    auditing.sinks(loaded)


class _Nobody:
    """Stands for a judge where nothing is judged."""

    name = ""
    max_chars = 0

    async def judge(self, item: Item) -> Opinion:
        raise JudgeFailed("error", item.direction)

    async def close(self) -> None:
        """Nothing is open."""


_NOBODY: Final = _Nobody()


def build(loaded: Loaded, services: Services, judges: Mapping[str, Judge]) -> Build:
    """Make everything. Raises ConfigError where the parts do not fit together."""
    parts = check(loaded, services.keys)
    guards = moderating.guards(loaded, judges)
    forms = {name: policy.audit.text for name, policy in loaded.config.policies.items()}
    models, providers = parts.models, parts.providers
    consumers = accounting.consumers(loaded.config, loaded.consumer_digests)
    consumers.apply(services.snapshot.everything())
    prices = accounting.prices(loaded.config)
    currency = loaded.config.accounts.currency

    def policy_of(call: Call) -> str:
        model = models.get(call.request.model) if call.request else None
        return (call.consumer.policy if call.consumer else "") or (model.policy if model else "") or "default"

    def asks_usage(provider: str, endpoint: Endpoint, stream: bool) -> bool:
        known = providers.get(provider)
        return known is not None and known.asks_usage(endpoint, stream)

    return Build(
        parts=parts,
        consumers=consumers,
        prices=prices,
        plugins=(  # outermost first (design: order of concerns)
            AuditPlugin(
                calls.observer(time.monotonic),
                put=services.put,
                form=lambda call: forms.get(policy_of(call), forms.get("default", "masked")),
                policy=policy_of,
                private=moderating.PRIVATE,
                clock=time.monotonic,
                currency=currency,
            ),
            AuthPlugin(consumers, services.on_use),
            QuotaPlugin(
                books=services.books,
                counters=consumers.counters,
                prices=prices,
                estimator=services.estimator,
                models=models,
                treatment=accounting.treatment(loaded.config),
                on_unavailable=books.unavailable,
                wall=time.time,
                currency=currency,
                worker=services.worker,
            ),
            ModerationPlugin(
                guard=moderating.choose(guards),
                models=models,
                on_failure=calls.count_judge_failure,
                clock=time.monotonic,
                wall=time.time,
            ),
            UsagePlugin(asks_usage),
            RoutingPlugin(
                models,
                digest=loaded.digest,
                max_body=loaded.config.gateway.max_body,
                since=int(time.time()),
                keys_of=lambda name: providers[name].keys if name in providers else (),
            ),
        ),
        attempt_filters=(TargetFilter(providers), CredentialsFilter(providers, parts.pools)),
        max_answer=loaded.config.gateway.max_answer,
        currency=currency,
        judges=judges,
    )


def _providers(loaded: Loaded) -> dict[str, Provider]:
    made: dict[str, Provider] = {}
    problems: list[Problem] = []
    for name, settings in loaded.config.providers.items():
        try:
            made[name] = Provider.build(
                name,
                kind=settings.kind,
                base_url=settings.base_url,
                dialect=settings.dialect,
                keys=loaded.provider_keys[name],
                headers=settings.headers,
                query=settings.query,
                stream_usage=settings.stream_usage,
                api_version=settings.api_version,
            )
        except ValueError as error:
            problems.append(Problem(f"providers.{name}", str(error)))
    if problems:
        raise ConfigError(loaded.file, problems)
    return made


def _pools(loaded: Loaded, known: Pools) -> dict[str, Pool]:
    made = {}
    for name, provider in loaded.config.providers.items():
        secrets = zip(provider.keys, loaded.provider_keys[name], strict=True)
        made[name] = known.pool(name, [(secret, key.weight, key.label) for key, secret in secrets], by=provider.pick)
    return made


def _models(loaded: Loaded, providers: Mapping[str, Provider]) -> dict[str, Model]:
    models: dict[str, Model] = {}
    for name, settings in loaded.config.models.items():
        route = tuple(tuple(Target(t.provider, t.model or name, t.weight) for t in group) for group in settings.route)
        dialects: frozenset[DialectName] = frozenset(
            providers[t.provider].dialect for group in route for t in group if t.weight
        )
        models[name] = Model(name, route, dialects, idle=settings.retry.idle, policy=settings.policy or "")
    return models


class App:
    """The configuration in force. ``swap`` is one assignment: calls see the old one or the new one, whole."""

    def __init__(self, first: Build) -> None:
        self._current = first
        self._known = {first.digest: first}

    @property
    def digest(self) -> str:
        return self._current.digest

    @property
    def current(self) -> Build:
        return self._current

    def swap(self, new: Build) -> list[Build]:
        """Returns those that no call may ask for any more."""
        gone = [self._known.pop(new.digest)] if new.digest in self._known else []
        self._known[new.digest] = new
        while len(self._known) > _KEPT:
            gone.append(self._known.pop(next(iter(self._known))))
        self._current = new
        return gone

    def open_session(self, metadata: Mapping[str, str]) -> Session:
        """The session for one ext_proc stream, by its initial metadata."""
        stage = metadata.get(STAGE, "")
        if stage == "router":
            current = self._current
            opening = Opening(current.plugins)
            on_error = calls.error(stage)
            machine = Exchange(opening, clock=time.monotonic, on_error=on_error, max_answer=current.max_answer)
            metrics.STREAMS_OPEN.inc()
            return Session(machine, on_close=metrics.STREAMS_OPEN.dec)
        if stage == "upstream":
            return Session(AttemptExchange(self._attempt, on_error=calls.error(stage)))
        raise ValueError(f"{STAGE} must be router or upstream, not {stage!r}")

    async def _attempt(self, digest: str, attempt: Attempt) -> None:
        chosen = self._known.get(digest, self._current)
        calls.count_attempt(attempt)
        for each in chosen.attempt_filters:
            await each.on_attempt(attempt)


class Opening:
    """Makes a call and its chain from the request's head."""

    __slots__ = ("_plugins",)

    def __init__(self, plugins: Sequence[Plugin]) -> None:
        self._plugins = plugins

    def __call__(self, head: RequestHead) -> tuple[Call, Chain]:
        path, _, query = head.headers.get(":path").partition("?")
        now = time.time()
        call = Call(
            id=f"{int(now * 1000):012x}{secrets.token_hex(10)}",
            headers=head.headers,
            method=head.headers.get(":method"),
            path=path,
            query=query,
            endpoint=ENDPOINTS.get(path),
            dialect=dialect_of(path),
            started=time.monotonic(),
            time=now,
        )
        return call, Chain.open(self._plugins, call)
