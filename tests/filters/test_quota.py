"""Quotas and limits in the life of a call."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fakes import CONSUMERS, MODELS, Clock, Fake, Gateway, Journal, opening
from playbook import KEY, answer, body, piece, request, stream

from extproc.accounts.books import Books
from extproc.accounts.estimates import Estimator
from extproc.accounts.prices import Price, Prices
from extproc.accounts.rules import Counters, Rule, Rules
from extproc.core.call import Call
from extproc.core.exchange import Exchange
from extproc.core.filter import Plugin, Reply
from extproc.core.messages import Answer, Message, Proceed
from extproc.dialects.usage import Usage
from extproc.filters.quota import QuotaPlugin, Treatment
from extproc.stores.memory import MemoryState
from extproc.stores.ports import Row, StateUnavailable
from extproc.stores.sql import open_database

NOW = 1_700_000_000.0
CHAT = {"model": "gpt", "messages": [{"role": "user", "content": "hello " * 40}], "max_tokens": 50}
ANSWER = {
    "id": "1",
    "choices": [{"message": {"content": "hi"}}],
    "usage": {"prompt_tokens": 60, "completion_tokens": 20},
}
AUTH = [("authorization", f"Bearer {KEY}")]


class Watch:
    """Hears nothing of interest."""

    def booked(self, rows: Sequence[Row]) -> None: ...
    def waiting(self, rows: int) -> None: ...
    def refused(self, row: Row, error: BaseException) -> None: ...
    def trouble(self, work: str, error: BaseException) -> None: ...


class AwayState(MemoryState):
    """A hot state that is away."""

    async def reserve(self, *_: Any, **__: Any) -> Any:
        raise StateUnavailable("away")


@dataclass
class World:
    """The product's chain with quotas in it."""

    directory: Path
    rules: Rules = field(default_factory=Rules)
    prices: Prices = field(default_factory=lambda: Prices({}, {}))
    treatment: Treatment = field(default_factory=Treatment)
    inner: Fake | None = None
    state: type[MemoryState] = MemoryState
    unavailable: list[str] = field(default_factory=list)

    async def open(self) -> "World":
        self.database = open_database(f"sqlite:///{self.directory}/l.db", currency="CNY")
        self.database.migrate()
        self.hot = self.state("w1", journal=None, wall=lambda: NOW)
        self.books = Books(self.hot, self.database.ledger, Watch(), wall=lambda: NOW)
        await self.books.start()
        self.estimator = Estimator(lambda model, kind, ratio: None)
        self.counters = Counters(self.rules)
        return self

    async def close(self) -> None:
        await self.books.stop()
        self.database.close()

    def exchange(self, call_id: str = "c1") -> Exchange:
        gateway = Gateway()
        audit, auth, *rest = gateway.plugins()
        quota = QuotaPlugin(
            books=self.books,
            counters=self.counters,
            prices=self.prices,
            estimator=self.estimator,
            models=MODELS,
            treatment=lambda consumer, model: self.treatment,
            on_unavailable=lambda action, error: self.unavailable.append(action),
            wall=lambda: NOW,
            currency="CNY",
            worker="w1",
        )
        plugins: list[Plugin] = [audit, auth, quota, *([self.inner] if self.inner else []), *rest]
        made = opening(plugins, Journal(), Clock())

        def named(head: Any) -> Any:
            call, chain = made(head)
            call.id = call_id
            return call, chain

        return Exchange(named, clock=Clock(), on_error=lambda call, error: None, max_answer=1 << 20)

    async def play(self, *messages: Message, call_id: str = "c1", close: bool = True) -> list[Any]:
        exchange = self.exchange(call_id)
        decided = [await exchange.receive(message) for message in messages]
        if close:
            await exchange.close()
        return decided

    async def row(self, call_id: str = "c1") -> Row:
        await self.books.flush()
        (found,) = [row for row in self.database.ledger.rows() if row.call_id == call_id]
        return found

    async def taken(self) -> list[int]:
        counters = self.counters.of(CONSUMERS["acme"], "gpt", NOW)
        return [reading.taken for reading in await self.hot.read(counters)]


@pytest.fixture(name="make")
async def _make(tmp_path: Path) -> AsyncIterator[Any]:
    made: list[World] = []

    async def make(*rules: Rule, **more: Any) -> World:
        world = await World(tmp_path, Rules(consumers={"acme": rules}), **more).open()
        made.append(world)
        return world

    yield make
    for world in made:
        await world.close()


def asked(content: Any = CHAT) -> list[Message]:
    return [request(headers=AUTH), body(content)]


def code(said: Any) -> str:
    assert isinstance(said, Answer)
    return str(msgspec.json.decode(said.body)["error"]["code"])


TOKENS = Rule("quota", "tokens", 200)
MINUTE = Rule("window", "requests", 2, per="minute")


async def test_a_call_is_settled_with_what_was_reported(make: Any) -> None:
    """It holds prompt and max_tokens, and in the end counts the usage that the provider reported, once."""
    world = await make(TOKENS)
    exchange = world.exchange()
    for message in asked():
        await exchange.receive(message)
    (held,) = await world.taken()
    assert 100 < held <= 200
    await exchange.receive(answer())
    await exchange.receive(piece(msgspec.json.encode(ANSWER), end=True))
    await exchange.close()

    assert await world.taken() == [80]
    row = await world.row()
    assert (row.consumer, row.model, row.provider, row.input, row.output) == ("acme", "gpt", "alpha", 60, 20)
    assert (row.how, row.usage, row.estimate, row.status) == ("completed", "reported", held, 200)


async def test_what_clients_are_told(make: Any) -> None:
    """Answers say what is left of the tightest bound of tokens and of requests, and when it is renewed."""
    world = await make(TOKENS, MINUTE, Rule("window", "requests", 1000, per="second"))
    *_, head, _ = await world.play(*asked(), answer(), piece(msgspec.json.encode(ANSWER), end=True))

    assert isinstance(head, Proceed)
    assert head.headers is not None
    shown = {name: head.headers[name] for name in head.headers if name.startswith("x-ratelimit")}
    assert shown["x-ratelimit-limit-requests"] == "2"
    assert shown["x-ratelimit-remaining-requests"] == "1"
    assert shown["x-ratelimit-reset-requests"] in ("1m0s", "1m1s")
    assert shown["x-ratelimit-limit-tokens"] == "200"
    assert 0 < int(shown["x-ratelimit-remaining-tokens"]) < 100
    assert "x-ratelimit-reset-tokens" not in shown  # it is for ever


async def test_too_many_requests(make: Any) -> None:
    """The third call in a minute is refused with the time to wait; its row counts on nothing."""
    world = await make(MINUTE)
    for n in range(2):
        await world.play(*asked(), answer(), piece(msgspec.json.encode(ANSWER), end=True), call_id=f"c{n}")
    *_, said = await world.play(*asked(), call_id="third")

    assert code(said) == "rate_limit_exceeded"
    assert said.status == 429
    assert 59 <= int(said.headers["retry-after"]) <= 61
    assert said.headers["x-ratelimit-remaining-requests"] == "0"
    assert await world.taken() == [2]
    row = await world.row("third")
    assert (row.how, row.code, row.status, row.tokens) == ("refused", "rate_limit_exceeded", 429, 0)


async def test_a_quota_that_is_used_up(make: Any) -> None:
    """It is another code; clients are told not to try again by themselves when it is for long, or for ever."""
    world = await make(Rule("quota", "tokens", 60, per="month"))
    *_, said = await world.play(*asked())

    assert code(said) == "insufficient_quota"
    assert int(said.headers["retry-after"]) > 86_400
    assert said.headers["x-should-retry"] == "false"
    assert "does not suffice" in str(said.body)

    world = await make(Rule("quota", "tokens", 60))
    *_, said = await world.play(*asked(), call_id="c2")
    assert "retry-after" not in said.headers
    assert said.headers["x-should-retry"] == "false"


async def test_calls_at_once(make: Any) -> None:
    """One more than may be open is refused, and goes through when one has ended."""
    world = await make(Rule("concurrent", "concurrent", 1))
    first = world.exchange("c1")
    for message in asked():
        await first.receive(message)
    *_, said = await world.play(*asked(), call_id="c2")
    assert code(said) == "rate_limit_exceeded"
    assert said.headers["retry-after"] == "1"
    await first.close()

    *_, last = await world.play(*asked(), call_id="c3")
    assert isinstance(last, Proceed)


async def test_larger_than_the_limit(make: Any) -> None:
    """A request that can never pass is not told to wait."""
    world = await make(Rule("window", "tokens", 40, per="minute"))
    *_, said = await world.play(*asked())

    assert "too large" in str(said.body)
    assert "retry-after" not in said.headers


@pytest.mark.parametrize("steps", range(5))
async def test_a_client_that_leaves(make: Any, steps: int) -> None:
    """Wherever a call is cut, it is counted once with what passed, and nothing stays held."""
    world = await make(TOKENS, Rule("concurrent", "concurrent", 5), MINUTE)
    said = b'data: {"choices":[{"delta":{"content":"' + b"word " * 20 + b'"}}]}\n\n'
    messages = [*asked(CHAT | {"stream": True}), stream(), piece(said)]
    await world.play(*messages[:steps])

    tokens, concurrent, requests = await world.taken()
    assert concurrent == 0
    if steps == 0:
        assert (tokens, requests) == (0, 0)  # it had not begun
        return
    row = await world.row()
    assert row.how == "aborted"
    assert tokens == row.tokens
    assert requests == (1 if steps > 1 else 0)
    if steps == 1:
        assert row.tokens == 0
    elif steps == 4:
        assert row.usage == "estimated"
        assert row.input > 30
        assert 15 <= row.output <= 40
    elif steps == 2:
        assert (row.input > 30, row.output) == (True, 0)  # the provider may have read the prompt


async def test_a_client_that_leaves_while_the_state_thinks(make: Any) -> None:
    """The reservation is made whole, and released: nothing stays held."""
    world = await make(TOKENS)
    exchange = world.exchange()
    await exchange.receive(request(headers=AUTH))
    task = asyncio.ensure_future(exchange.receive(body(CHAT)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await exchange.close()

    assert await world.taken() == [0]
    assert (await world.row()).how == "aborted"


@pytest.mark.parametrize(("allow", "action"), [(True, "allowed"), (False, "refused")])
async def test_a_state_that_is_away(make: Any, allow: bool, action: str) -> None:
    """The policy decides: a clear refusal, or a call that is counted when it ends."""
    world = await make(TOKENS, state=AwayState, treatment=Treatment(allow_on_error=allow))
    *_, last = await world.play(*asked(), close=False)

    assert world.unavailable == [action]
    if allow:
        assert isinstance(last, Proceed)
        await world.play(*asked(), answer(), piece(msgspec.json.encode(ANSWER), end=True), call_id="c2")
        assert await world.taken() == [80]
        assert (await world.row("c2")).tokens == 80
    else:
        assert code(last) == "policy_unavailable"
        assert last.status == 503
        await world.play(*asked(), call_id="c3")
        assert (await world.row("c3")).code == "policy_unavailable"


async def test_money(make: Any) -> None:
    """A call costs what its target's price says, and holds what the dearest one would."""
    prices = Prices(
        {"gpt": [Price(input=2 * 10**9, output=8 * 10**9)]}, {("gpt", "beta", "beta-model"): [Price(output=10**12)]}
    )
    world = await make(Rule("quota", "money", 10**9), prices=prices)
    exchange = world.exchange()
    for message in asked():
        await exchange.receive(message)
    assert await world.taken() == [50 * 10**6]
    await exchange.receive(answer())
    await exchange.receive(piece(msgspec.json.encode(ANSWER), end=True))
    await exchange.close()

    assert await world.taken() == [60 * 2000 + 20 * 8000]
    row = await world.row()
    assert (row.cost, row.currency) == (280_000, "CNY")


@pytest.mark.parametrize(("charge", "tokens"), [(False, 0), (True, 80)])
async def test_answers_of_the_cache(make: Any, charge: bool, tokens: int) -> None:
    """They cost nothing unless the policy says so, and are limited like any call."""

    def hit(call: Call) -> Reply:
        call.cache = "hit"
        call.usage = Usage(input=60, output=20)
        return Reply(b"{}")

    inner = Fake("cache", Journal(), {"request": hit})
    world = await make(TOKENS, MINUTE, treatment=Treatment(charge_cached=charge), inner=inner)
    *_, said = await world.play(*asked())

    assert isinstance(said, Answer)
    assert said.headers["x-ratelimit-remaining-requests"] == "1"
    assert await world.taken() == [tokens, 1]
    row = await world.row()
    assert (row.how, row.cache, row.tokens) == ("replied", "hit", tokens)


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        ([request(headers=AUTH), body({"model": "nothing"})], "model_not_found"),
        ([request(headers=AUTH), body(b"{")], "invalid_json"),
        ([request(headers=AUTH, path="/v1/messages"), body({"model": "gpt"})], "model_not_found"),
    ],
)
async def test_calls_that_are_refused_further_in(make: Any, messages: list[Message], code: str) -> None:
    """They leave a row, and count on nothing."""
    world = await make(Rule("quota", "tokens", 10_000), MINUTE)
    await world.play(*messages)

    row = await world.row()
    assert (row.how, row.code, row.tokens) == ("refused", code, 0)
    assert await world.taken() == [0, 0]


async def test_calls_of_nobody_leave_no_row(make: Any) -> None:
    """Strangers cannot fill the ledger."""
    world = await make(TOKENS)
    await world.play(request(headers=[("authorization", "Bearer sk-stranger-0000")]))
    await world.play(request(headers=AUTH, path="/v1/models", method="GET", end=True))
    await world.books.flush()

    assert world.database.ledger.rows() == []


async def test_a_provider_that_fails(make: Any) -> None:
    """An error answer takes no tokens; it was a request all the same."""
    world = await make(TOKENS, MINUTE)
    await world.play(*asked(), answer(500), piece(b'{"error":{"message":"no"}}', end=True))

    assert await world.taken() == [0, 1]
    row = await world.row()
    assert (row.how, row.status, row.tokens) == ("completed", 500, 0)


async def test_estimates_learn(make: Any) -> None:
    """What providers report of prompts and answers is what the next call holds."""
    world = await make(Rule("quota", "tokens", 10**9))
    asking = {name: value for name, value in CHAT.items() if name != "max_tokens"}
    reported = {**ANSWER, "usage": {"prompt_tokens": 120, "completion_tokens": 3000}}
    for n in range(60):
        await world.play(*asked(asking), answer(), piece(msgspec.json.encode(reported), end=True), call_id=f"c{n}")
    before = (await world.taken())[0]
    exchange = world.exchange("last")
    for message in asked(asking):
        await exchange.receive(message)

    assert (await world.taken())[0] - before == pytest.approx(3120, rel=0.1)
    await exchange.close()


async def test_a_stream_is_settled_when_it_ends(make: Any) -> None:
    """With the usage of its last event, and not before."""
    world = await make(TOKENS)
    exchange = world.exchange()
    for message in asked(CHAT | {"stream": True}):
        await exchange.receive(message)
    held = await world.taken()
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":5}}\n\ndata: [DONE]\n\n'
    await exchange.receive(stream())
    await exchange.receive(piece(b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'))
    assert await world.taken() == held
    await exchange.receive(piece(usage, end=True))
    await exchange.close()

    assert await world.taken() == [12]
    assert (await world.row()).stream
