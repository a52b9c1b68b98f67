"""Quotas and limits: a call reserves what it may take, and is settled with what it took, however it ends."""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from extproc.accounts.books import Books, Settlement
from extproc.accounts.estimates import Estimator, Prompt
from extproc.accounts.prices import Prices
from extproc.accounts.rules import Counters
from extproc.core.call import Call, Consumer, Model, Outcome
from extproc.core.errors import InsufficientQuota, PolicyUnavailable, RateLimited, Refusal
from extproc.core.filter import Filter, Reply
from extproc.dialects import base as dialects
from extproc.dialects.document import InvalidField
from extproc.dialects.usage import Usage
from extproc.stores.ports import Amounts, Counter, Granted, Reading, Row, Short, StateUnavailable, Unit

_HITS: Final = frozenset({"hit", "semantic", "coalesced"})
_HEADERS: Final[tuple[Unit, ...]] = ("tokens", "requests")
_PATIENCE: Final = 60.0
"""Seconds: clients that are told to wait longer should not try again by themselves."""
_CONCURRENT_WAIT: Final = 1.0


@dataclass(frozen=True, slots=True)
class Treatment:
    """A policy's word on quotas: calls pass while the hot state is away; answers of the cache count."""

    allow_on_error: bool = False
    charge_cached: bool = False


class Quota(Filter):
    def __init__(self, call: Call, plugin: "QuotaPlugin") -> None:
        self._call = call
        self._plugin = plugin
        self._model: Model | None = None
        self._prompt: Prompt | None = None
        self._counters: Sequence[Counter] = ()
        self._hold: asyncio.Task[Granted | Short] | None = None
        self._amounts = Amounts()

    async def on_request(self) -> Reply | None:
        call, plugin = self._call, self._plugin
        self._model = model = plugin.models.get(call.request.model) if call.request else None
        if call.consumer is None or model is None:
            return None  # it is refused further in
        self._counters = plugin.counters.of(call.consumer, model.name, call.time)
        usage = self._estimate(model)
        self._amounts = Amounts(usage.total, plugin.prices.highest(model.name, call.time, usage))
        call.metadata |= {
            "prompt_tokens": usage.input,
            "stream": "yes" if call.request and call.request.stream else "no",
        }
        note = self._row(Outcome("lost"), Usage(input=usage.input, source="estimated"))
        self._hold = plugin.books.reserve(note, self._counters, self._amounts)
        try:
            held = await asyncio.shield(self._hold)
        except StateUnavailable as error:
            if plugin.treatment(call.consumer, model).allow_on_error:
                plugin.on_unavailable("allowed", error)
                return None
            plugin.on_unavailable("refused", error)
            raise PolicyUnavailable("The gateway cannot count this call now, so it was not let through.") from error
        call.answer_headers |= _headers(self._counters, held.readings, call.time)
        if isinstance(held, Short):
            raise self._refusal(held)
        return None

    async def on_done(self, outcome: Outcome) -> None:
        """The one place where a call is counted. Calls of nobody, and those that could take nothing, leave no row."""
        call, plugin, model = self._call, self._plugin, self._model
        if call.consumer is None:
            return
        if model is None or self._hold is None or await self._declined(self._hold):
            plugin.books.book(self._row(outcome, None))
            return
        row = self._row(outcome, self._usage(outcome))
        call.cost = row.cost
        amounts = Amounts(row.tokens, row.cost, int(not row.refused))
        counters = plugin.counters.of(call.consumer, model.name, call.time)  # by the rules that are in force now
        await plugin.books.settle(Settlement(row, amounts, counters))
        if self._prompt is not None and call.usage is not None and call.cache not in _HITS:
            whole = outcome.how == "completed" and outcome.status < 300
            plugin.estimator.learn(model.name, self._prompt, call.usage, completed=whole)

    @staticmethod
    async def _declined(hold: "asyncio.Task[Granted | Short]") -> bool:
        """Whether there was no room. Where the hot state was away, the call may have passed: it is counted."""
        try:
            return isinstance(await hold, Short)
        except StateUnavailable:
            return False

    # --- before -----------------------------------------------------------------------------------------------

    def _estimate(self, model: Model) -> Usage:
        """What the call may take at most, or commonly; nothing where nobody asks for tokens or money."""
        call, estimator = self._call, self._plugin.estimator
        if call.endpoint is None or call.document is None:
            return Usage()
        if not any(counter.unit in ("tokens", "money") for counter in self._counters):
            return Usage()
        try:
            read = dialects.read_prompt(call.endpoint, call.document)
        except InvalidField:
            return Usage()
        self._prompt = prompt = estimator.prompt(model.name, read.count(), read.tokens)
        bound = dialects.max_output(call.endpoint, call.document)
        return Usage(
            input=prompt.tokens,
            output=estimator.answer(model.name) if bound is None else bound,
            source="estimated",
        )

    def _refusal(self, held: Short) -> Refusal:
        counter, reading = max(
            ((self._counters[place], held.readings[place]) for place in held.counters),
            key=lambda pair: _wait(pair[0], pair[1], self._call.time),
        )
        wait = _wait(counter, reading, self._call.time)
        headers = {} if math.isinf(wait) else {"retry-after": str(max(math.ceil(wait), 1))}
        if wait > _PATIENCE:
            headers["x-should-retry"] = "false"  # the SDKs of OpenAI and Anthropic obey it
        quota = any(self._counters[place].kind == "quota" for place in held.counters)
        kind = InsufficientQuota if quota else RateLimited
        return kind(_sentence(counter, reading, self._amounts, wait), headers=headers)

    # --- after ------------------------------------------------------------------------------------------------

    def _usage(self, outcome: Outcome) -> Usage | None:
        """What is charged: what the provider took, or of the cache's answer what the policy says."""
        call = self._call
        if call.cache in _HITS and call.consumer is not None:
            return call.usage if self._plugin.treatment(call.consumer, self._model).charge_cached else None
        if call.usage is None and outcome.how == "aborted" and call.model is not None and call.answered is None:
            return Usage(input=self._prompt_tokens(), source="estimated")  # the provider may have it by then
        return call.usage

    def _prompt_tokens(self) -> int:
        call = self._call
        if self._prompt is not None:
            return self._prompt.tokens
        if call.endpoint is None or call.document is None:
            return 0
        try:
            return dialects.estimate_prompt(call.endpoint, call.document)
        except InvalidField:
            return 0

    def _row(self, outcome: Outcome, usage: Usage | None) -> Row:
        call, plugin = self._call, self._plugin
        assert call.consumer is not None  # noqa: S101 - calls of nobody have no row
        model = self._model.name if self._model else ""
        provider, target, attempts = "", "", 0
        if call.answered is not None:
            provider, target, attempts = call.answered.provider, call.answered.target, call.answered.attempts
        used = usage or Usage()
        return Row(
            call_id=call.id,
            started=round(call.time * 1000),
            ended=round(plugin.wall() * 1000),
            consumer=call.consumer.name,
            team=call.consumer.team,
            key=call.key,
            model=model,
            endpoint=call.endpoint.name if call.endpoint else "",
            provider=provider,
            target=target,
            attempts=attempts,
            how=outcome.how,
            status=outcome.status,
            code=outcome.code,
            stream=bool(call.request and call.request.stream),
            cache=call.cache,
            input=used.input,
            output=used.output,
            cached=used.cached,
            cache_creation=used.cache_creation,
            reasoning=used.reasoning,
            usage=used.source if usage else "",
            cost=plugin.prices.cost(model, provider, target, call.time, used) if usage else 0,
            currency=plugin.currency,
            estimate=self._amounts.tokens,
            worker=plugin.worker,
        )


class QuotaPlugin:
    """``treatment`` gives the policy's word for a consumer and a model; ``wall`` is seconds since the epoch."""

    def __init__(
        self,
        *,
        books: Books,
        counters: Counters,
        prices: Prices,
        estimator: Estimator,
        models: Mapping[str, Model],
        treatment: Callable[[Consumer, Model | None], Treatment],
        on_unavailable: Callable[[str, BaseException], None],
        wall: Callable[[], float],
        currency: str,
        worker: str,
    ) -> None:
        self.books = books
        self.counters = counters
        self.prices = prices
        self.estimator = estimator
        self.models = models
        self.treatment = treatment
        self.on_unavailable = on_unavailable
        self.wall = wall
        self.currency = currency
        self.worker = worker

    def open(self, call: Call) -> Filter | None:
        call.metadata["worker"] = self.worker
        return Quota(call, self) if call.endpoint else None


# --- what clients are told ------------------------------------------------------------------------------------


def _wait(counter: Counter, reading: Reading, now: float) -> float:
    """Seconds until it is worth trying again; infinite where it never is."""
    if counter.kind == "concurrent":
        return _CONCURRENT_WAIT
    if counter.kind == "window":
        return reading.wait
    return math.inf if counter.end is None else max(counter.end - now, 0.0)


def _headers(counters: Sequence[Counter], readings: Sequence[Reading], now: float) -> dict[str, str]:
    """What is left of tokens and of requests: of each, of the bound that is nearest."""
    headers: dict[str, str] = {}
    for unit in _HEADERS:
        bounds = [pair for pair in zip(counters, readings, strict=True) if pair[0].unit == unit]
        if not bounds:
            continue
        counter, reading = min(bounds, key=lambda pair: (pair[0].limit - pair[1].taken) / max(pair[0].limit, 1))
        headers[f"x-ratelimit-limit-{unit}"] = str(counter.limit)
        headers[f"x-ratelimit-remaining-{unit}"] = str(max(counter.limit - reading.taken, 0))
        reset = _wait(counter, reading, now)
        if not math.isinf(reset):
            headers[f"x-ratelimit-reset-{unit}"] = _span(reset)
    return headers


def _span(seconds: float) -> str:
    """As OpenAI writes it: ``250ms``, ``6s``, ``1m30s``, ``2h0m0s``."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def _sentence(counter: Counter, reading: Reading, amounts: Amounts, wait: float) -> str:
    whose = _whose(counter)
    if counter.kind == "concurrent":
        return f"Too many calls at once{whose}: {counter.limit} may be open. Please try again when one has ended."
    what = counter.unit
    if counter.kind == "quota":
        if amounts.of(counter.unit) > 1 and reading.taken < counter.limit:
            reason = f"The quota of {what}{whose} does not suffice for this request"
        else:
            reason = f"The quota of {what}{whose} is used up"
        return f"{reason}." if math.isinf(wait) else f"{reason}; it is renewed in {_span(wait)}."
    if math.isinf(wait):
        takes = amounts.of(counter.unit)
        return f"The request is too large: it may take {takes} {what}, and the limit{whose} is {counter.limit}."
    return f"Rate limit{whose} reached: {counter.limit} {what} in {_span(counter.seconds)}. Try again in {_span(wait)}."


def _whose(counter: Counter) -> str:
    """A client is told about itself: the names of consumers and teams are the operator's affair."""
    scope = counter.scope
    holder = "key" if scope.consumer else "team" if scope.team else "gateway"
    return f" of this {holder}" + (f" for the model {scope.model!r}" if scope.model else "")
