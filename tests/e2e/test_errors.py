"""What goes wrong says why, in the dialect's own words, and never more than the client may know."""

import json
from typing import Any

import anthropic
import openai
import pytest
from world import ACME, CHAT, GLOBEX, MESSAGES, PROVIDER_KEYS, World, call_id, chat

from extproc.demo.stub import Behaviour
from extproc.demo.stub.script import Answer

pytestmark = pytest.mark.e2e

HI: Any = [{"role": "user", "content": "hi"}]
OPENAI = (CHAT, "/v1/completions", "/v1/embeddings", "/v1/responses")


def error_of(answer: Any, path: str) -> tuple[str, str]:
    """Code and message, after a look at the shape."""
    assert answer.headers["content-type"] == "application/json"
    assert call_id(answer)
    document = answer.json()
    error = document["error"]
    if path == MESSAGES:
        assert set(document) == {"type", "error"}
        assert document["type"] == "error"
        assert set(error) == {"type", "message"}
        return error["type"], error["message"]
    assert set(document) == {"error"}
    assert set(error) == {"message", "type", "param", "code"}
    return error["code"], error["message"]


BAD_BODIES = {
    "empty object": b"{}",
    "no JSON": b"hello",
    "half": b'{"model":"gpt","messages":[',
    "more than one": b'{"model":"gpt","messages":[]} {}',
    "a list": b"[1]",
    "a string": b'"gpt"',
    "null": b"null",
    "model is a number": b'{"model":1,"messages":[]}',
    "model is null": b'{"model":null,"messages":[]}',
    "model is empty": b'{"model":"","messages":[]}',
    "model twice": b'{"model":"gpt","model":"secret-model","messages":[]}',
    "stream is a string": b'{"model":"gpt","messages":[],"stream":"yes"}',
    "stream twice": b'{"model":"gpt","stream":false,"messages":[],"stream":true}',
    "not UTF-8": b'{"model":"gpt","messages":["\xff\xfe"]}',
    "a lone surrogate half": b'{"model":"gpt","messages":["\xed\xa0\x80"]}',
    "a byte order mark": b'\xef\xbb\xbf{"model":"gpt"}',
    "comments": b'{"model":"gpt" /* mine */}',
    "NaN": b'{"model":"gpt","temperature":NaN}',
    "single quotes": b"{'model':'gpt'}",
    "deep": b'{"model":"gpt","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "form": b"model=gpt&messages=hi",
    "NUL": b"\x00" * 100,
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES)
@pytest.mark.parametrize("path", [*OPENAI, MESSAGES])
def test_bad_bodies(world: World, path: str, body: bytes) -> None:
    """A body that cannot be read is a 400 that says why; no provider is asked."""
    answer = world.post(path, body)

    assert answer.status_code == 400
    code, message = error_of(answer, path)
    assert code == ("invalid_request_error" if path == MESSAGES else "invalid_json")
    assert len(message) > 20
    assert world.hits() == {}


def test_no_body(world: World) -> None:
    """So is no body at all."""
    for path in (CHAT, MESSAGES):
        answer = world.post(path, b"")
        assert answer.status_code == 400
        error_of(answer, path)


def test_a_content_type_is_not_asked_for(world: World) -> None:
    """What the body is counts, not what its header says."""
    answer = world.post(CHAT, chat("gpt"), headers={"content-type": "text/plain"})

    assert answer.status_code == 200


def test_bad_bodies_as_the_sdks_see_them(gpt: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    """BadRequestError, in both."""
    with pytest.raises(openai.BadRequestError, match="stream"):
        gpt.chat.completions.create(model="gpt", messages=HI, extra_body={"stream": "yes"})
    with pytest.raises(anthropic.BadRequestError, match="stream"):
        claude.messages.create(model="claude", max_tokens=1, messages=HI, extra_body={"stream": "yes"})


def test_names_with_quotes_and_newlines(world: World) -> None:
    """What a client sends comes back escaped, in JSON that parses, and cut where it is absurd."""
    for name in ('"', "\\", "\n\r\t", "</script>", "你好\u2028", "x" * 100_000, "%s{0}", '","code":"ok'):
        answer = world.chat(name)
        assert answer.status_code == 404
        code, message = error_of(answer, CHAT)
        assert code == "model_not_found"
        assert len(message) < 100_200


@pytest.mark.parametrize("status", [400, 402, 404, 409, 418, 422, 429, 500, 503])
def test_a_providers_error_passes(world: World, status: int) -> None:
    """Its status and JSON are the client's to read."""
    world.primary.behaviour = Behaviour(status=status, headers={"retry-after": "3"})
    answer = world.chat("gpt")

    assert answer.status_code == status
    assert answer.json()["error"]["message"] == f"primary answers {status}."
    assert answer.headers["retry-after"] == "3"
    assert world.line(call_id=call_id(answer))["status"] == status


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("stream", [False, True])
def test_a_provider_that_refuses_our_key(world: World, status: int, stream: bool) -> None:
    """The client's own key is fine, so it reads 502 and nothing of the provider's words."""
    world.primary.behaviour = Behaviour(status=status)
    answer = world.chat("gpt", stream=stream)

    assert answer.status_code == 502
    code, message = error_of(answer, CHAT)
    assert code == "provider_auth_failed"
    assert "primary answers" not in message
    line = world.line(call_id=call_id(answer))
    assert (line["status"], line["code"], line["provider"]) == (502, "provider_auth_failed", "primary")


def test_a_provider_that_refuses_our_key_in_messages(world: World) -> None:
    """In Anthropic's words too."""
    world.claude.behaviour = Behaviour(status=401)
    answer = world.messages("claude")

    assert (answer.status_code, error_of(answer, MESSAGES)[0]) == (502, "api_error")


@pytest.mark.parametrize("status", [500, 400])
def test_a_compressed_error_is_read(world: World, status: int) -> None:
    """An error that a provider compressed, though it was asked not to, passes like any other."""
    world.primary.behaviour = Behaviour(status=status, gzip=True)
    answer = world.chat("gpt")

    assert answer.status_code == status
    assert answer.json()["error"]["message"] == f"primary answers {status}."


@pytest.mark.parametrize("page", [b"<html>nginx 10.0.0.7</html>", b"", b'{"detail": "Traceback"}', b"\xff"])
def test_an_error_page_is_not_shown(world: World, monkeypatch: pytest.MonkeyPatch, page: bytes) -> None:
    """A provider's error that is not the dialect's own is put into words of ours."""
    monkeypatch.setattr(world.primary, "error", lambda status, _: Answer(page, status))
    world.primary.behaviour = Behaviour(status=500)
    answer = world.chat("gpt")

    assert answer.status_code == 500
    assert error_of(answer, CHAT) == ("provider_error", "The provider answered with status 500.")


def test_a_key_in_a_providers_error_is_not_shown(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some providers repeat the key that they refuse; the client does not read it."""
    told = f"quota of {PROVIDER_KEYS['primary']} exceeded"
    monkeypatch.setattr(world.primary, "error", lambda status, _: _error(status, told))
    world.primary.behaviour = Behaviour(status=429)
    answer = world.chat("gpt")

    assert answer.status_code == 429
    assert PROVIDER_KEYS["primary"] not in answer.text
    assert error_of(answer, CHAT)[0] == "provider_error"


def _error(status: int, message: str) -> Any:
    return Answer(
        json.dumps({"error": {"message": message, "type": "x", "param": None, "code": None}}).encode(), status
    )


@pytest.mark.parametrize("path", ["/nowhere", "/v1/nowhere", "/v1/messages/nowhere"])
def test_unknown_paths(world: World, path: str) -> None:
    """404 in the dialect that the path looks like."""
    answer = world.post(path, chat("gpt"))

    assert answer.status_code == 404
    code, message = error_of(answer, MESSAGES if path.startswith(MESSAGES) else CHAT)
    assert code in ("unknown_endpoint", "not_found_error")
    assert path in message


def test_headers_too_large(world: World) -> None:
    """Envoy's own word, in the dialect's shape or as a closed connection; the next call is served."""
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ACME}\r\nx-big: {'x' * 100_000}\r\n\r\n"
    with world.connect() as connection:
        connection.sendall(head.encode())
        said = connection.recv(4096)

    assert said == b"" or said.startswith(b"HTTP/1.1 431")
    assert world.chat("gpt").status_code == 200


def test_a_bad_answer_of_a_provider_passes(world: World) -> None:
    """200 and no JSON is the provider's word; its usage is estimated and the client reads what was said."""
    world.primary.behaviour = Behaviour(fault="garbage")
    answer = world.chat("gpt")

    assert answer.status_code == 200
    assert b"upstream says hello" in answer.content
    assert world.line(call_id=call_id(answer))["how"] == "completed"


def test_refusals_are_counted_by_reason(world: World) -> None:
    """Each refusal counts under its code, and its consumer where it is known."""

    def counted() -> tuple[float, float]:
        return (
            world.metric("extproc_refusals_total", code="model_not_allowed"),
            world.metric("extproc_calls_total", consumer="globex", how="refused", status="403"),
        )

    before = counted()
    world.line(call_id=call_id(world.chat("secret-model", key=GLOBEX)))

    assert counted() == (before[0] + 1, before[1] + 1)


def test_a_refused_name_is_no_label(world: World) -> None:
    """A name that a client made up does not become a metric of its own."""
    for number in range(20):
        world.line(call_id=call_id(world.chat(f"made-up-{number}")))

    assert "made-up-" not in world.gateway.metrics()


def test_calls_after_errors_are_served(world: World) -> None:
    """A keep-alive connection outlives the errors on it."""
    statuses = [world.post(CHAT, body).status_code for body in (b"{", b"[]") * 10]
    assert set(statuses) == {400}

    assert world.chat("gpt").status_code == 200
