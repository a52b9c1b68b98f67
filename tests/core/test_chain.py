"""The order in which filters are asked."""

from collections.abc import Sequence

import pytest
from fakes import Boom, Fake, Journal
from playbook import request

from extproc.core.call import Call, Outcome
from extproc.core.chain import Chain
from extproc.core.errors import InvalidKey
from extproc.core.filter import Filter, Reply
from extproc.dialects.sse import Event


@pytest.fixture(name="journal")
def _journal() -> Journal:
    return Journal()


def call() -> Call:
    return Call("call-1", request().headers, "POST", "/", "", None, "openai", 0.0, 0.0)


def opened(*plugins: Fake) -> Chain:
    return Chain.open(plugins, call())


async def test_requests_pass_in_order_and_answers_in_reverse(journal: Journal) -> None:
    """The outermost filter hears of a request first and of its answer last."""
    chain = opened(Fake("a", journal), Fake("b", journal), Fake("c", journal))

    assert await chain.request_head() is None
    assert await chain.request() is None
    await chain.response_head()
    await chain.events([], final=True)
    await chain.response()
    await chain.done(Outcome("completed"), print)

    order = {phase: [s[0] for s in journal.steps if s.endswith(f".{phase}")] for phase in ("request_head", "request")}
    assert order == {"request_head": ["a", "b", "c"], "request": ["a", "b", "c"]}
    assert journal.steps[6:] == [f"{f}.{p}" for p in ("response_head", "events", "response", "done") for f in "cba"]


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("phase", ["request_head", "request"])
async def test_a_reply_stops_the_chain(journal: Journal, phase: str, index: int) -> None:
    """Filters inside of the one that replies are not asked; on the way back it is passed over too."""
    reply = Reply(b"{}")
    chain = opened(*(Fake(name, journal, {phase: reply} if n == index else {}) for n, name in enumerate("abc")))

    assert await getattr(chain, phase)() is reply
    await chain.response_head()
    await chain.events([], final=True)
    await chain.response()

    expected = [f"{f}.{phase}" for f in "abc"[: index + 1]]
    back = list(reversed("abc"[:index]))
    assert journal.steps == expected + [f"{f}.{p}" for p in ("response_head", "events", "response") for f in back]


@pytest.mark.parametrize("phase", ["request_head", "request", "response_head", "response"])
async def test_an_exception_stops_the_chain(journal: Journal, phase: str) -> None:
    """What a filter raises comes out, and no further filter is asked."""
    chain = opened(Fake("a", journal), Fake("b", journal, {phase: InvalidKey("No.")}), Fake("c", journal))

    with pytest.raises(InvalidKey):
        await getattr(chain, phase)()

    assert [step[0] for step in journal.steps] == (["a", "b"] if phase.startswith("request") else ["c", "b"])


async def test_events_pass_from_filter_to_filter(journal: Journal) -> None:
    """What one filter lets through is what the next one outside sees; at the end nothing is held."""
    seen: list[tuple[int, bool]] = []

    class Watch(Filter):
        async def on_events(self, events: Sequence[Event], *, final: bool) -> Sequence[Event]:
            seen.append((len(events), final))
            return events

    inner = Fake("inner", journal, {"events": "hold"}).open(call())
    assert inner is not None
    chain = Chain([Watch(), inner])
    one, two = Event(b"data: 1\n\n"), Event(b"data: 2\n\n")

    assert await chain.events([one], final=False) == []
    assert await chain.events([two], final=True) == [one, two]
    assert seen == [(0, False), (2, True)]


async def test_every_end_is_heard(journal: Journal) -> None:
    """Each filter's end is run though others break; each break is reported."""
    errors: list[BaseException] = []
    bug = Boom()
    chain = opened(Fake("a", journal), Fake("b", journal, {"done": bug}), Fake("c", journal))

    await chain.done(Outcome("refused", 401, "x"), errors.append)

    assert journal.outcomes == {name: [Outcome("refused", 401, "x")] for name in "abc"}
    assert errors == [bug]


async def test_filters_that_are_not_concerned(journal: Journal) -> None:
    """A plugin that opens no filter for a call takes no part in it."""
    chain = opened(Fake("a", journal, concerned=False), Fake("b", journal))

    await chain.request()

    assert journal.steps == ["b.request"]
    assert await Chain(()).request_head() is None


async def test_a_filter_that_overrides_nothing() -> None:
    """Every phase of a bare filter lets pass."""
    bare = Filter()
    event = Event(b"data: 1\n\n")

    assert await bare.on_request_head() is None
    assert await bare.on_request() is None
    assert await bare.on_events([event], final=True) == [event]
    await bare.on_response_head()
    await bare.on_response()
    await bare.on_done(Outcome("completed"))
