"""However a call ends, and at whatever step: every filter is done exactly once, and knows how."""

import gzip
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from fakes import Boom, Clock, Fake, Gate, Gateway, Journal, exchange
from hypothesis import given
from hypothesis import strategies as st
from playbook import (
    KEY,
    Cancel,
    Close,
    Idle,
    Playbook,
    Release,
    Waits,
    answer,
    body,
    local,
    piece,
    request,
    stream,
    whole,
)

from extproc.core.call import Outcome
from extproc.core.errors import InvalidKey
from extproc.core.filter import Reply
from extproc.core.messages import Trailers

ABORTED = Outcome("aborted", 0, "aborted")
ABORTED_200 = Outcome("aborted", 200, "aborted")
COMPLETED = Outcome("completed", 200)


@dataclass(frozen=True)
class Kind:
    """A kind of call: its steps, each with the outcome if it ends after it; what one filter of it does."""

    steps: Callable[[], list[tuple[object, Outcome]]]
    acts: dict[str, object]


def requested() -> list[tuple[object, Outcome]]:
    return [(request(), ABORTED), (body({"model": "gpt"}), ABORTED)]


KINDS: dict[str, Kind] = {
    "plain": Kind(lambda: [*requested(), (answer(), ABORTED_200), (whole({"id": 1}), COMPLETED)], {}),
    "no body": Kind(lambda: [*requested(), (answer(end=True), COMPLETED)], {}),
    "unseen": Kind(lambda: [*requested(), (answer(200, "audio/mpeg"), COMPLETED)], {}),
    "streamed": Kind(
        lambda: [
            *requested(),
            (stream(), ABORTED_200),
            (piece(b"data: 1\n\nda"), ABORTED_200),
            (piece(b"ta: 2\n\n"), ABORTED_200),
            (piece(b"", end=True), COMPLETED),
        ],
        {},
    ),
    "trailers": Kind(
        lambda: [*requested(), (stream(), ABORTED_200), (piece(b"data: 1\n\n"), ABORTED_200), (Trailers(), COMPLETED)],
        {"events": "hold"},
    ),
    "compressed": Kind(
        lambda: [
            *requested(),
            (stream({"content-encoding": "gzip"}), ABORTED_200),
            (piece(gzip.compress(b"data: 1\n\n", mtime=0)), ABORTED_200),
            (piece(b"", end=True), COMPLETED),
        ],
        {},
    ),
    "silent": Kind(
        lambda: [
            *requested(),
            (stream(), ABORTED_200),
            (piece(b"data: 1\n\n"), ABORTED_200),
            (Idle(), Outcome("failed", 200, "provider_timeout")),
            (piece(b"data: late\n\n", end=True), Outcome("failed", 200, "provider_timeout")),
        ],
        {},
    ),
    "damaged": Kind(
        lambda: [
            *requested(),
            (stream({"content-encoding": "gzip"}), ABORTED_200),
            (piece(b"not gzip"), Outcome("failed", 200, "provider_error")),
        ],
        {},
    ),
    "unreadable": Kind(
        lambda: [(request(), ABORTED), (body(b"{"), Outcome("refused", 400, "invalid_json"))],
        {},
    ),
    "refused": Kind(
        lambda: [
            (request(), Outcome("refused", 401, "invalid_api_key")),
            (local(401, "extproc_invalid_api_key"), Outcome("refused", 401, "invalid_api_key")),
        ],
        {"request_head": InvalidKey("No.")},
    ),
    "broken": Kind(
        lambda: [*requested()[:1], (body({"model": "gpt"}), Outcome("failed", 503, "policy_unavailable"))],
        {"request": Boom()},
    ),
    "broken stream": Kind(
        lambda: [
            *requested(),
            (stream(), ABORTED_200),
            (piece(b"data: 1\n\n"), Outcome("failed", 200, "policy_unavailable")),
            (piece(b"data: 2\n\n", end=True), Outcome("failed", 200, "policy_unavailable")),
        ],
        {"events": Boom()},
    ),
    "replied at head": Kind(
        lambda: [(request("GET", end=True), Outcome("replied", 200)), (local(200, "x"), Outcome("replied", 200))],
        {"request_head": Reply(b"{}")},
    ),
    "replied at body": Kind(
        lambda: [requested()[0], (body({"model": "gpt"}), Outcome("replied", 200))], {"request": Reply(b"{}")}
    ),
    "too large": Kind(
        lambda: [requested()[0], (local(413, "too_large"), Outcome("refused", 413, "too_large"))],
        {},
    ),
    "no provider": Kind(
        lambda: [*requested(), (local(503, "no_healthy_upstream"), Outcome("failed", 503, "no_healthy_upstream"))],
        {},
    ),
    "error": Kind(
        lambda: [
            *requested(),
            (answer(429), Outcome("aborted", 429, "aborted")),
            (whole({}), Outcome("completed", 429)),
        ],
        {},
    ),
}
STEPS = [(name, step) for name, kind in KINDS.items() for step in range(len(kind.steps()) + 1)]


def opened(kind: Kind, journal: Journal, waits: dict[str, object] | None = None) -> Playbook:
    """A call of this kind: a filter outside, the one that acts, one inside; one of them may wait."""
    plugins = [
        Fake("outer", journal, waits or {}),
        Fake("actor", journal, kind.acts),
        Fake("absent", journal, concerned=False),
        Fake("inner", journal),
    ]
    return Playbook(exchange(*plugins, journal=journal))


@pytest.mark.parametrize(("name", "step"), STEPS)
def test_client_leaves_after_every_step(name: str, step: int) -> None:
    """After each step of each kind of call, its end finds every opened filter done once, with the right outcome."""
    journal = Journal()
    steps = KINDS[name].steps()
    playbook = opened(KINDS[name], journal)
    for said, _ in steps[:step]:
        playbook.say(said)
    assert journal.outcomes == {}

    playbook.say(Close())
    playbook.say(Close())

    expected = {} if step == 0 else {filter_: [steps[step - 1][1]] for filter_ in ("outer", "actor", "inner")}
    assert journal.outcomes == expected


def test_last_steps_are_ends() -> None:
    """Each kind of call, played whole, has another outcome than one that was left."""
    assert all(kind.steps()[-1][1].how != "aborted" for kind in KINDS.values())


PHASES = ["request_head", "request", "response_head", "events", "response"]


@given(st.sampled_from(sorted(KINDS)), st.sampled_from(PHASES), st.booleans(), st.integers(0, 3), st.data())
def test_client_leaves_while_a_filter_waits(
    name: str, phase: str, cancelled: bool, more: int, data: st.DataObject
) -> None:
    """A filter waits when the client leaves: whether ``receive`` is cancelled or ends first, all are done once."""
    journal, gate = Journal(), Gate()
    kind = KINDS[name]
    steps = kind.steps()
    playbook = opened(kind, journal, {phase: gate})
    expected: Outcome | None = None
    going = True
    for number, (said, after) in enumerate(steps):
        expected = after
        if playbook.say(said) == Waits():
            if cancelled:
                playbook.say(Cancel())
                expected = left(number, steps)
                going = False
            else:
                playbook.say(Release(gate))
                going = more > 0
                more -= 1
        elif data.draw(st.integers(0, 9)) == 0:
            going = False
        if not going:
            break

    playbook.say(Close())

    assert journal.outcomes == {filter_: [expected] for filter_ in ("outer", "actor", "inner")}


def left(number: int, steps: list[tuple[object, Outcome]]) -> Outcome:
    """The outcome of a call that was left in the middle of this step."""
    head = [message for message, _ in steps[: number + 1] if type(message).__name__ == "ResponseHead"]
    return Outcome("aborted", int(head[-1].headers.get(":status")) if head else 0, "aborted")  # type: ignore[attr-defined]


def test_client_leaves_while_a_silent_stream_is_ended() -> None:
    """The provider's silence stays the outcome when the client leaves before the filters have flushed."""
    journal, gate = Journal(), Gate()
    playbook = opened(KINDS["silent"], journal, {"events": gate})
    for said in (request(), body({"model": "gpt"}), stream()):
        playbook.say(said)

    assert playbook >> Idle() << Waits() >> Cancel() >> Close()
    assert journal.outcomes["outer"] == [Outcome("failed", 200, "provider_timeout")]


@pytest.mark.parametrize("name", sorted(KINDS))
def test_done_that_breaks(name: str) -> None:
    """A filter whose end breaks is reported and keeps no other from its own."""
    journal = Journal()
    plugins = [
        Fake("outer", journal, {"done": Boom()}),
        Fake("actor", journal, KINDS[name].acts | {"done": Boom()}),
        Fake("inner", journal, {"done": InvalidKey("even this")}),
    ]
    playbook = Playbook(exchange(*plugins, journal=journal))
    steps = KINDS[name].steps()
    for said, _ in steps:
        playbook.say(said)
    journal.errors.clear()

    playbook.say(Close())

    assert journal.outcomes == {filter_: [steps[-1][1]] for filter_ in ("outer", "actor", "inner")}
    assert [type(error) for _, error in journal.errors] == [InvalidKey, Boom, Boom]


def test_done_may_wait() -> None:
    """Settling takes its time; the next filter's turn comes after it."""
    journal, gate = Journal(), Gate()
    playbook = Playbook(exchange(Fake("outer", journal), Fake("slow", journal, {"done": gate}), journal=journal))
    playbook.say(request())

    playbook.say(Close())
    assert set(journal.outcomes) == {"slow"}
    playbook.say(Release(gate))

    assert set(journal.outcomes) == {"outer", "slow"}


@given(st.integers(0, 6), st.sampled_from(["completed", "refused", "other key"]))
def test_audit_sees_every_call_once(step: int, how: str) -> None:
    """The product's own chain leaves one trace of each call, wherever it is left."""
    gateway = Gateway(clock=Clock())
    key = "nobody" if how == "other key" else KEY
    model = "unknown" if how == "refused" else "gpt"
    playbook = Playbook(gateway.exchange())
    for said in [
        request(headers={"authorization": f"Bearer {key}"}),
        body({"model": model, "stream": True}),
        stream(),
        piece(b'data: {"choices":[{"delta":{"content":"hello"}}]}\n\n'),
        piece(b"", end=True),
    ][: {"completed": step, "refused": min(step, 2), "other key": min(step, 1)}[how]]:
        playbook.say(said)
    playbook.say(Close())
    playbook.say(Close())

    assert len(gateway.audited) == (step > 0)
