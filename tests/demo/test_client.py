"""The plain client of demo and tests, against a stub."""

import http.client
import json
from collections.abc import Iterator

import pytest

from extproc.demo.client import Client, Result
from extproc.demo.stub import Behaviour, StubProvider, running
from extproc.demo.stub.behaviour import Fault
from extproc.demo.waiting import until

KEY = "sk-demo-client"


@pytest.fixture(name="stub")
def _stub() -> Iterator[StubProvider]:
    stub = StubProvider("stub", behaviour=Behaviour(key=KEY, text="Grüße, 世界"))
    with running(stub):
        yield stub


@pytest.fixture(name="claude")
def _claude() -> Iterator[StubProvider]:
    stub = StubProvider("claude", "anthropic")
    with running(stub):
        yield stub


def client(stub: StubProvider, key: str = KEY) -> Client:
    return Client(f"http://{stub.host}:{stub.port}", key)


def test_a_whole_answer(stub: StubProvider) -> None:
    """Status, headers by lower-case name, the body as JSON, and its text."""
    result = client(stub).chat("m", "Wie geht's?")

    assert (result.status, result.text, result.events) == (200, "Grüße, 世界", [])
    assert result.headers["content-type"] == "application/json"
    assert result.json["choices"][0]["finish_reason"] == "stop"
    assert stub.requests[-1].json == {
        "model": "m",
        "stream": False,
        "messages": [{"role": "user", "content": "Wie geht's?"}],
    }


def test_a_streamed_answer(stub: StubProvider) -> None:
    """The data of its events, in order, and the text that they make."""
    stub.behaviour.events = 5

    result = client(stub).chat("m", "hi", stream=True)

    assert (result.status, result.json) == (200, None)
    assert result.text == "Grüße, 世界"
    assert result.events[-1] == "[DONE]"
    assert len(result.events) > 5
    assert json.loads(result.events[0])["object"] == "chat.completion.chunk"


def test_anthropic_messages(claude: StubProvider) -> None:
    """The body is what that API demands."""
    result = client(claude).messages("m", "hi")

    assert (result.status, result.json["type"]) == (200, "message")
    assert claude.requests[-1].json["max_tokens"] > 0


def test_get(stub: StubProvider) -> None:
    """A GET has no body, and the same key."""
    result = client(stub).get("/v1/models")

    assert (result.status, result.json["object"]) == (200, "list")
    assert stub.requests[-1].body == b""
    assert stub.requests[-1].headers["authorization"] == f"Bearer {KEY}"


def test_errors_are_results(stub: StubProvider) -> None:
    """A status is looked at, not raised, also where a stream was asked for."""
    wrong = client(stub, "sk-wrong").chat("m", "hi", stream=True)

    assert (wrong.status, wrong.events) == (401, [])
    assert "error" in wrong.json


def test_no_connection_is_left(stub: StubProvider) -> None:
    """Each call has a connection of its own, which is closed after it."""
    ours = client(stub)

    for _ in range(3):
        ours.chat("m", "hi")

    assert stub.hits == 3
    until(lambda: stub.open_connections == 0, "all are closed")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", ["reset", "reset_mid"])
def test_an_answer_that_breaks(stub: StubProvider, fault: Fault, stream: bool) -> None:
    """Half an answer is no answer: it is an error, never a result with what came so far."""
    stub.behaviour.fault = fault

    with pytest.raises((OSError, http.client.HTTPException)):
        client(stub).chat("m", "hi", stream=stream)


def test_text_of_chunks_without_any() -> None:
    """Chunks of a role, of usage or of a tool call have no text, and are none to read."""
    events = [
        {"choices": [{"delta": {"role": "assistant"}}]},
        {"choices": [{"delta": {"content": "a"}}]},
        {"choices": [{"delta": {"content": None}}]},
        {"choices": [{"delta": {"content": "b"}}]},
        {"choices": [], "usage": {"prompt_tokens": 1}},
    ]

    assert Result(200, {}, events=[*(json.dumps(e) for e in events), "[DONE]"]).text == "ab"
