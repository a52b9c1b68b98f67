"""Requests that cannot be read."""

import pytest
from fakes import Fake, Journal, exchange
from playbook import (
    Answers,
    Close,
    Error,
    Including,
    Playbook,
    Proceeds,
    as_json,
    body,
    local,
    request,
)

from extproc.core.call import Outcome

CHAT = {"model": "gpt", "messages": []}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b'"x"', "not a JSON object"),
        (b'{"model": "gpt", "model": "other"}', "twice"),
        (b'{"model": "gpt", "Model": "other"}', "twice"),
        (b'{"model": "gpt\xff"}', "UTF-8"),
        (b'{"model": 1}', "'model'"),
        (b'{"model": ""}', "'model'"),
        (b'{"messages": []}', "'model'"),
        (b'{"model": "gpt", "stream": "yes"}', "'stream'"),
        (b'{"model": "gpt", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested"),
        (b"{" + b",".join(b'"f%d":1' % i for i in range(1001)) + b"}", "1000 fields"),
    ],
)
@pytest.mark.parametrize(
    ("path", "code", "dialect"),
    [("/v1/chat/completions", "invalid_json", "openai"), ("/v1/messages", "invalid_request_error", "anthropic")],
)
def test_unreadable_body(content: bytes, message: str, path: str, code: str, dialect: str) -> None:
    """A body that is not one JSON object of one meaning is a 400 in the caller's dialect; no filter sees it."""
    journal = Journal()
    playbook = Playbook(exchange(Fake("f", journal), journal=journal))
    playbook.say(request(path=path))

    assert (
        playbook
        >> body(content)
        << Answers(400, Error(code, message=message, dialect=dialect), reason="extproc_invalid_json")
        >> Close()
    )
    assert journal.steps == ["f.request_head", "f.done"]
    assert journal.outcomes["f"] == [Outcome("refused", 400, "invalid_json")]
    assert journal.errors == []


@pytest.mark.parametrize("field", [{"model": 1}, {"model": "gpt", "stream_options": 7}])
def test_wrong_field_is_named(field: dict[str, object]) -> None:
    """The error says which field was wrong, where the dialect has a place for it."""
    playbook = Playbook(exchange())
    playbook.say(request())

    assert playbook >> body(field) << Answers(400, Including(f'"param":"{list(field)[-1]}"'.encode()))


def test_huge_body_passes() -> None:
    """A body of megabytes passes as the very bytes that came."""
    content = as_json(CHAT | {"x": "é" * 4_000_000})
    playbook = Playbook(exchange())
    playbook.say(request())

    assert playbook >> body(content) << Proceeds(reroute=True, body=None)


def test_missing_body() -> None:
    """A POST that ends at its head is a 400."""
    assert (
        Playbook(exchange())
        >> request(end=True)
        << Answers(400, Error("invalid_json", message="no body"))
        >> local(400, "extproc_invalid_json")
        << Proceeds()
    )


def test_body_for_no_endpoint() -> None:
    """Where no filter refused an unknown path, its body is not let through either."""
    playbook = Playbook(exchange())
    playbook.say(request(path="/v1/unknown"))

    assert playbook >> body(CHAT) << Answers(503, Error("policy_unavailable"))
