"""One try at one upstream, as a dialogue."""

from typing import Any

import pytest
from fakes import Boom, Gate, Journal
from playbook import (
    Answers,
    Cancel,
    Close,
    Error,
    Fails,
    Idle,
    Playbook,
    Proceeds,
    Release,
    Silence,
    Waits,
    answer,
    body,
    request,
    whole,
)

from extproc.core.attempt import CALL_FIELDS, Attempt, AttemptExchange
from extproc.core.errors import ModelNotFound, ProtocolError
from extproc.core.messages import Message, RequestHead, Trailers

KNOWN = {
    "call_id": "call-1",
    "consumer": "acme",
    "model": "gpt",
    "endpoint": "chat",
    "query": "a=1",
    "config": "config-1",
}
JSON = {"content-type": "application/json"}


def head(known: dict[str, Any] | None = None, **target: Any) -> RequestHead:
    """The head as Envoy sends it at the upstream stage."""
    message = request(headers={"authorization": "old"})
    message.metadata = KNOWN if known is None else known
    message.attributes = {"provider": "alpha", "target": "alpha-model", "attempt": 2.0, **target}
    return message


class Stage:
    """An upstream stage whose one filter does as told."""

    def __init__(self, act: Any = None) -> None:
        self.act = act
        self.attempts: list[tuple[str, Attempt]] = []
        self.journal = Journal()
        self.playbook = Playbook(AttemptExchange(self.run, on_error=self.journal.on_error))

    async def run(self, config: str, attempt: Attempt) -> None:
        self.attempts.append((config, attempt))
        if isinstance(self.act, Exception):
            raise self.act
        if isinstance(self.act, Gate):
            await self.act
        elif self.act is not None:
            self.act(attempt)


def test_attempt() -> None:
    """The head goes on untouched; with the body everything is decided, and filters know what they need."""

    def edit(attempt: Attempt) -> None:
        attempt.document.set("model", attempt.target)
        attempt.headers["authorization"] = "new"
        attempt.headers.remove("api-key")
        attempt.metadata["region"] = "north"

    stage = Stage(edit)
    changed = b'{"model":"alpha-model", "x":  1}'

    assert (
        stage.playbook
        >> head()
        << Proceeds(metadata=None)
        >> body(b'{"model":"gpt", "x":  1}')
        << Proceeds(
            sets={"authorization": "new", "content-length": str(len(changed))},
            removes={"api-key"},
            body=changed,
            metadata={"region": "north"},
        )
        >> Idle()
        << Silence()
        >> Close()
    )
    [(config, attempt)] = stage.attempts
    assert config == "config-1"
    assert (attempt.call_id, attempt.model, attempt.endpoint.name, attempt.query) == ("call-1", "gpt", "chat", "a=1")
    assert attempt.consumer == "acme"
    assert (attempt.provider, attempt.target, attempt.number) == ("alpha", "alpha-model", 2)


def test_body_and_length_are_sent_even_where_unchanged() -> None:
    """An attempt before this one may have left its own length, so ours is always said, with the body it counts."""
    stage = Stage()
    content = b'{"model":"gpt"}'

    assert (
        stage.playbook
        >> head()
        << Proceeds()
        >> body(content)
        << Proceeds(sets={"content-length": "15"}, body=content, metadata=None)
    )


def test_first_attempt_by_default() -> None:
    """Where Envoy does not count, it is the first."""
    stage = Stage()
    message = head()
    message.attributes = {"provider": "alpha", "target": "alpha-model"}
    stage.playbook.say(message)
    stage.playbook.say(body({"model": "gpt"}))

    assert stage.attempts[0][1].number == 1


@pytest.mark.parametrize(("endpoint", "code"), [("chat", "policy_unavailable"), ("messages", "overloaded_error")])
def test_bug(endpoint: str, code: str) -> None:
    """A filter that breaks fails the call closed, in the dialect of its endpoint, without a word of what broke."""
    bug = Boom()
    stage = Stage(bug)
    stage.playbook.say(head(KNOWN | {"endpoint": endpoint}))

    dialect = "openai" if endpoint == "chat" else "anthropic"
    assert stage.playbook >> body({"model": "gpt"}) << Answers(503, Error(code, dialect=dialect), JSON)
    assert b"boom" not in stage.playbook.decisions[-1].body
    assert stage.journal.errors == [("call-1", bug)]


def test_refusal() -> None:
    """A refusal of a filter is the answer, and no bug."""
    stage = Stage(ModelNotFound("Gone."))
    stage.playbook.say(head())

    assert stage.playbook >> body({"model": "gpt"}) << Answers(404, Error("model_not_found", message="Gone."), JSON)
    assert stage.journal.errors == []


@pytest.mark.parametrize("known", [{}, KNOWN | {"endpoint": "nonsense"}, {"call_id": "call-1"}])
def test_call_that_skipped_the_first_stage(known: dict[str, Any]) -> None:
    """A call that the router stage did not let through gets no credentials."""
    stage = Stage()
    stage.playbook.say(head(known))

    assert stage.playbook >> body({"model": "gpt"}) << Answers(503, Error("policy_unavailable"), JSON)
    assert stage.attempts == []


@pytest.mark.parametrize("content", [b"", b"[]", b'{"a":1,"a":2}'])
def test_unreadable_body(content: bytes) -> None:
    """A body that passed the router stage and cannot be read any more is our fault, not the caller's."""
    stage = Stage()
    stage.playbook.say(head())

    assert stage.playbook >> body(content) << Answers(503, Error("policy_unavailable"), JSON)
    assert stage.attempts == []


def test_absurd_attempt_count() -> None:
    """Attributes of a wrong configuration fail closed, as any bug."""
    stage = Stage()
    stage.playbook.say(head(attempt="x"))

    assert stage.playbook >> body({"model": "gpt"}) << Answers(503, Error("policy_unavailable"), JSON)
    assert [type(error) for _, error in stage.journal.errors] == [ValueError]


SAID: dict[str, list[Message]] = {
    "nothing": [],
    "head": [head()],
    "body": [head(), body({"model": "gpt"})],
}
KINDS: dict[str, Message] = {
    "head": head(),
    "head without body": request(end=True),
    "body": body({"model": "gpt"}),
    "answer head": answer(),
    "answer body": whole({}),
    "trailers": Trailers(),
    "request trailers": Trailers(response=False),
}
TURNS = {("nothing", "head"), ("head", "body")}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("state", SAID)
def test_turns(state: str, kind: str) -> None:
    """A head, then a body: all else is a protocol error."""
    stage = Stage()
    for message in SAID[state]:
        stage.playbook.say(message)

    assert (stage.playbook.say(KINDS[kind]) == Fails(ProtocolError)) == ((state, kind) not in TURNS)


@pytest.mark.parametrize("step", [Release, Cancel])
def test_client_leaves_while_a_filter_waits(step: type) -> None:
    """An attempt holds nothing: leaving it in the middle is no trouble."""
    gate = Gate()
    stage = Stage(gate)
    stage.playbook.say(head())

    assert stage.playbook >> body({"model": "gpt"}) << Waits()
    if step is Release:
        assert stage.playbook >> Release(gate) << Proceeds(sets={"content-length": "16"}, body=b'{"model": "gpt"}')
    else:
        assert stage.playbook >> Cancel()
    assert stage.playbook >> Close()
    assert stage.journal.errors == []


def test_fields_of_a_call() -> None:
    """What the two stages agree on is all there is to an attempt's knowledge of its call."""
    assert set(CALL_FIELDS) == set(KNOWN)
