"""Stand-ins: a clock, a gate, filters that do as told at a chosen phase, and exchanges made of them."""

import hashlib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from playbook import CALL, KEY

from extproc.accounts.consumers import Consumers, Key
from extproc.core.call import Call, Consumer, Model, Outcome, Permissions, Target
from extproc.core.chain import Chain
from extproc.core.exchange import Exchange, Opening
from extproc.core.filter import Filter, Plugin, Reply
from extproc.core.messages import RequestHead
from extproc.core.secret import Secret
from extproc.dialects.endpoints import ENDPOINTS, Endpoint, dialect_of
from extproc.dialects.sse import Event
from extproc.filters.audit import AuditPlugin
from extproc.filters.auth import AuthPlugin
from extproc.filters.routing import RoutingPlugin
from extproc.filters.usage import UsagePlugin

Phase = Literal["request_head", "request", "response_head", "events", "response", "done"]
PHASES: tuple[Phase, ...] = ("request_head", "request", "response_head", "events", "response", "done")

PROVIDER_KEY = "sk-provider-key-9876543210"
"""A provider's key; no client may ever see it."""


class Boom(Exception):  # noqa: N818 - it is what it is
    """A bug in a filter. Its text is nobody's business outside."""

    def __init__(self) -> None:
        super().__init__("boom: secret detail")


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Gate:
    """Something to wait for, without an event loop: a playbook opens it."""

    def __init__(self) -> None:
        self.is_open = False

    def open(self) -> None:
        self.is_open = True

    def __await__(self) -> Generator[Any, None, None]:
        while not self.is_open:
            yield self


@dataclass
class Journal:
    """What the fake filters of one call went through."""

    steps: list[str] = field(default_factory=list)
    outcomes: dict[str, list[Outcome]] = field(default_factory=dict)
    errors: list[tuple[str, BaseException]] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)

    def on_error(self, call_id: str, error: BaseException) -> None:
        self.errors.append((call_id, error))

    @property
    def call(self) -> Call:
        return self.calls[-1]


@dataclass
class Fake:
    """A plugin whose filter records every phase, then does what ``acts`` says for it.

    An exception is raised, a ``Gate`` awaited, a ``Reply`` returned, a function called with the call;
    ``"hold"`` holds events back until the end.
    """

    name: str
    journal: Journal
    acts: Mapping[str, Any] = field(default_factory=dict)
    concerned: bool = True

    def open(self, call: Call) -> Filter | None:
        return FakeFilter(self, call) if self.concerned else None


class FakeFilter(Filter):
    def __init__(self, plugin: Fake, call: Call) -> None:
        self._plugin = plugin
        self._call = call
        self._held: list[Event] = []

    async def on_request_head(self) -> Reply | None:
        return await self._act("request_head")  # type: ignore[no-any-return]

    async def on_request(self) -> Reply | None:
        return await self._act("request")  # type: ignore[no-any-return]

    async def on_response_head(self) -> Reply | None:
        return await self._act("response_head")  # type: ignore[no-any-return]

    async def on_events(self, events: Sequence[Event], *, final: bool) -> Sequence[Event]:
        done = await self._act("events")
        if done == "hold":
            self._held += events
            if not final:
                return []
            events, self._held = self._held, []
        return events

    async def on_response(self) -> None:
        await self._act("response")

    async def on_done(self, outcome: Outcome) -> None:
        self._plugin.journal.outcomes.setdefault(self._plugin.name, []).append(outcome)
        await self._act("done")

    async def _act(self, phase: Phase) -> Any:
        self._plugin.journal.steps.append(f"{self._plugin.name}.{phase}")
        act = self._plugin.acts.get(phase)
        if isinstance(act, BaseException):
            raise act
        if isinstance(act, Gate):
            await act
            return None
        return act(self._call) if callable(act) else act


def opening(plugins: Sequence[Plugin], journal: Journal, clock: Clock) -> Opening:
    """Makes calls that are all called the same."""

    def opened(head: RequestHead) -> tuple[Call, Chain]:
        path, _, query = head.headers.get(":path").partition("?")
        call = Call(
            id=CALL,
            headers=head.headers,
            method=head.headers.get(":method"),
            path=path,
            query=query,
            endpoint=ENDPOINTS.get(path),
            dialect=dialect_of(path),
            started=clock(),
            time=1_700_000_000.0,
        )
        journal.calls.append(call)
        return call, Chain.open(plugins, call)

    return opened


def exchange(*plugins: Plugin, journal: Journal | None = None, clock: Clock | None = None) -> Exchange:
    """An exchange with these plugins, outermost first."""
    journal = journal or Journal()
    clock = clock or Clock()
    made = opening(plugins, journal, clock)
    return Exchange(made, clock=clock, on_error=journal.on_error, max_answer=MAX_ANSWER)


def route(*providers: str) -> tuple[tuple[Target, ...], ...]:
    return tuple((Target(provider, f"{provider}-model"),) for provider in providers)


MODELS = {
    "gpt": Model("gpt", route("alpha", "beta"), frozenset({"openai"}), idle=30.0),
    "claude": Model("claude", route("gamma"), frozenset({"anthropic"})),
    "qwen/both": Model("qwen/both", route("alpha"), frozenset({"openai", "anthropic"})),
}
CONSUMERS = {"acme": Consumer("acme"), "narrow": Consumer("narrow", [Permissions(["gpt*"], ["chat", "messages"])])}
NARROW_KEY = "sk-narrow-key-000000"
MAX_ANSWER = 1 << 20
MAX_BODY = 1000


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


@dataclass
class Gateway:
    """The chain that the product runs, and what can be seen of it."""

    journal: Journal = field(default_factory=Journal)
    clock: Clock = field(default_factory=Clock)
    asks: bool = True
    used: list[tuple[str, float]] = field(default_factory=list)
    audited: list[tuple[Call, Outcome]] = field(default_factory=list)

    def plugins(self) -> list[Plugin]:
        def asks_usage(provider: str, endpoint: Endpoint, stream: bool) -> bool:
            return self.asks and stream and endpoint.name in ("chat", "completions")

        return [
            AuditPlugin(
                lambda call, outcome: self.audited.append((call, outcome)),
                put=lambda record: None,
                form=lambda call: "none",
                policy=lambda call: "default",
                private=(),
                clock=self.clock,
                currency="CNY",
            ),
            AuthPlugin(
                Consumers(CONSUMERS, [Key(digest(KEY), "acme"), Key(digest(NARROW_KEY), "narrow")]),
                lambda key, at: self.used.append((key, at)),
            ),
            UsagePlugin(asks_usage),
            RoutingPlugin(
                MODELS,
                digest="config-1",
                max_body=MAX_BODY,
                since=1_700_000_000,
                keys_of=lambda provider: (Secret(PROVIDER_KEY),) if provider == "alpha" else (),
            ),
        ]

    def exchange(self) -> Exchange:
        return exchange(*self.plugins(), journal=self.journal, clock=self.clock)
