"""One call: its line in the log, and what is counted of it."""

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from fakes import Boom, Clock
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from extproc.core.attempt import Attempt
from extproc.core.call import Answered, Call, Consumer, Model, Outcome
from extproc.core.messages import Headers
from extproc.dialects.base import StreamReader
from extproc.dialects.document import Document
from extproc.dialects.endpoints import CHAT, Endpoint
from extproc.dialects.facts import RequestFacts
from extproc.dialects.usage import Usage
from extproc.telemetry import calls

STARTED = 1000.0
USAGE = Usage(input=20, output=7, cached=5, cache_creation=3, reasoning=2)


@pytest.fixture(name="name")
def _name() -> str:
    """A name that no other test counts by."""
    return uuid4().hex


def bare(endpoint: Endpoint | None = CHAT, path: str = CHAT.path) -> Call:
    """A call of which nothing but its head is known."""
    return Call("call-1", Headers(), "POST", path, "", endpoint, "openai", started=STARTED, time=1.7e9)


def answered(name: str, *, stream: bool = False) -> Call:
    """A call that went all the way, at the second attempt; consumer, model and provider share a name."""
    call = bare()
    call.consumer = Consumer(name)
    call.model = Model(name, (), frozenset({"openai"}))
    call.request = RequestFacts(name, stream=stream, wants_stream_usage=False)
    call.answered = Answered(200, Headers(), provider=name, target="own-name", attempts=2)
    call.reader = StreamReader(CHAT) if stream else None
    call.usage = USAGE
    call.first_byte_at = STARTED + 0.25
    call.own_seconds = 0.002
    return call


def observe(call: Call, outcome: Outcome, *, seconds: float = 1.5) -> dict[str, Any]:
    """Observe a call that took so long. Returns its line."""
    with capture_logs() as lines:
        calls.observer(Clock(STARTED + seconds))(call, outcome)
    (line,) = lines
    return dict(line)


def grown(sample: str, **labels: str) -> Callable[[], float]:
    """How much this sample has grown since."""

    def value() -> float:
        return REGISTRY.get_sample_value(sample, labels) or 0.0

    before = value()
    return lambda: value() - before


def test_the_line_of_an_answered_call(name: str) -> None:
    """It says who asked for what, who answered at which attempt, how long it took and what it used."""
    assert observe(answered(name), Outcome("completed", 200)) == {
        "event": "call",
        "log_level": "info",
        "call_id": "call-1",
        "how": "completed",
        "status": 200,
        "endpoint": "chat",
        "seconds": 1.5,
        "own_seconds": 0.002,
        "consumer": name,
        "model": name,
        "stream": False,
        "provider": name,
        "target": "own-name",
        "attempts": 2,
        "first_byte_seconds": 0.25,
        "input_tokens": 20,
        "output_tokens": 7,
        "cached_tokens": 5,
        "cache_creation_tokens": 3,
        "reasoning_tokens": 2,
        "usage": "reported",
    }


def test_the_line_of_a_call_refused_at_its_head() -> None:
    """What is not known is not there; why it was refused is."""
    line = observe(bare(), Outcome("refused", 401, "invalid_api_key"))

    assert (line["how"], line["status"], line["code"]) == ("refused", 401, "invalid_api_key")
    assert not {"consumer", "model", "provider", "attempts", "first_byte_seconds", "input_tokens", "events"} & set(line)


def test_the_line_of_a_stream(name: str) -> None:
    """It counts the events that passed."""
    call = answered(name, stream=True)
    call.events = 12

    line = observe(call, Outcome("aborted", 200))

    assert (line["how"], line["stream"], line["events"]) == ("aborted", True, 12)


def test_an_answer_of_envoy_itself_names_no_provider() -> None:
    """Where no provider answered, none is in the line."""
    call = bare()
    call.answered = Answered(503, Headers(), local="no_healthy_upstream")

    assert "provider" not in observe(call, Outcome("completed", 503))


def test_what_a_client_may_write_at_will_is_cut() -> None:
    """A path or a model's name of any length does not fill the log."""
    call = bare(endpoint=None, path="/" + "p" * 500)
    call.request = RequestFacts("m" * 500, stream=False, wants_stream_usage=False)

    line = observe(call, Outcome("refused", 404, "model_not_found"))

    assert line["endpoint"] == "/" + "p" * 99
    assert line["model"] == "m" * 128


def test_an_answered_call_is_counted(name: str) -> None:
    """Once, by endpoint, model, consumer, how and status; its tokens by kind, its times where they belong."""
    ours = {"consumer": name, "model": name}
    once = grown("extproc_calls_total", **ours, endpoint="chat", how="completed", status="200")
    times = {
        sample: grown(sample, endpoint="chat", streamed="no")
        for sample in ("extproc_call_seconds_sum", "extproc_first_byte_seconds_sum")
    }
    own = grown("extproc_own_seconds_sum", stage="router")

    observe(answered(name), Outcome("completed", 200))

    assert once() == 1
    assert times["extproc_call_seconds_sum"]() == pytest.approx(1.5)
    assert times["extproc_first_byte_seconds_sum"]() == pytest.approx(0.25)
    assert own() == pytest.approx(0.002)
    for kind, tokens in {"input": 20, "output": 7, "cached": 5, "cache_creation": 3, "reasoning": 2}.items():
        labels = {**ours, "provider": name, "kind": kind, "source": "reported"}
        assert REGISTRY.get_sample_value("extproc_tokens_total", labels) == tokens


def test_kinds_of_tokens_that_nobody_used_have_no_row(name: str) -> None:
    """Input and output are always there, parts of them where there are any; what was estimated says so."""
    call = answered(name)
    call.usage = Usage(input=4, source="estimated")

    observe(call, Outcome("completed", 200))

    labels = {"consumer": name, "model": name, "provider": name, "source": "estimated"}
    assert REGISTRY.get_sample_value("extproc_tokens_total", {**labels, "kind": "input"}) == 4
    assert REGISTRY.get_sample_value("extproc_tokens_total", {**labels, "kind": "output"}) == 0
    assert REGISTRY.get_sample_value("extproc_tokens_total", {**labels, "kind": "cached"}) is None


def test_a_streamed_call_is_timed_apart(name: str) -> None:
    """Streams take long by nature, so their times are not mixed with those of whole answers."""
    streamed = grown("extproc_call_seconds_count", endpoint="chat", streamed="yes")
    whole = grown("extproc_call_seconds_count", endpoint="chat", streamed="no")

    observe(answered(name, stream=True), Outcome("completed", 200))

    assert (streamed(), whole()) == (1, 0)


@pytest.mark.parametrize(
    ("how", "counted"), [("refused", 1), ("failed", 1), ("completed", 0), ("replied", 0), ("aborted", 0)]
)
def test_refusals_are_counted_by_reason(name: str, how: Any, counted: int) -> None:
    """A call that we declined or broke off counts for its reason, any other does not."""
    refusals = grown("extproc_refusals_total", code=name)

    observe(bare(), Outcome(how, 429, name))

    assert refusals() == counted


def test_what_clients_invent_makes_no_rows() -> None:
    """Unknown paths and models share one row: a client cannot blow up the metrics."""
    call = bare(endpoint=None, path="/invented")
    call.request = RequestFacts("invented", stream=False, wants_stream_usage=False)
    row = {"endpoint": "other", "model": "", "consumer": "", "how": "refused", "status": "404"}
    counted = grown("extproc_calls_total", **row)

    observe(call, Outcome("refused", 404, "not_found"))

    assert counted() == 1


def test_attempts_are_counted_by_number(name: str) -> None:
    """Which target was tried, and whether it was the first try or a fallback."""
    attempt = Attempt("call-1", "m", CHAT, "", name, "own-name", 2, Document.parse(b"{}"), Headers())

    calls.count_attempt(attempt)
    calls.count_attempt(attempt)

    labels = {"provider": name, "target": "own-name"}
    assert REGISTRY.get_sample_value("extproc_attempts_total", {**labels, "number": "2"}) == 2
    assert REGISTRY.get_sample_value("extproc_attempts_total", {**labels, "number": "1"}) is None


def test_an_exception_that_nobody_foresaw(name: str) -> None:
    """It is in the log whole, with the call that it hit, and counted for its stage."""
    boom = Boom()

    with capture_logs() as lines:
        calls.error(name)("call-1", boom)

    assert lines == [
        {"event": "unexpected", "log_level": "error", "stage": name, "call_id": "call-1", "exc_info": boom}
    ]
    assert REGISTRY.get_sample_value("extproc_errors_total", {"stage": name}) == 1
