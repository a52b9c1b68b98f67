"""Bodies that we write, as the real SDKs read them."""

from typing import Any

import anthropic
import httpx
import msgspec
import openai
import pytest

from extproc.dialects import base
from extproc.dialects.document import Document
from extproc.dialects.endpoints import BY_NAME, CHAT, EMBEDDINGS, MESSAGES, RESPONSES, DialectName, Endpoint
from extproc.dialects.sse import Splitter
from extproc.dialects.usage import MAX_TOKENS

ERROR = {"type": "invalid_request_error", "code": "model_not_found", "message": 'No "such" 模型.\n'}


def answering(status: int, body: bytes, kind: str = "application/json") -> httpx.Client:
    """An HTTP client whose server always gives this answer."""
    return httpx.Client(
        transport=httpx.MockTransport(lambda _: httpx.Response(status, content=body, headers={"content-type": kind}))
    )


def openai_client(http: httpx.Client) -> openai.OpenAI:
    return openai.OpenAI(api_key="k", base_url="http://gateway/v1", http_client=http, max_retries=0)


def test_every_endpoint_has_a_dialect() -> None:
    """Each endpoint can be read."""
    for endpoint in BY_NAME.values():
        assert base.StreamReader(endpoint).usage is None
        assert base.read_answer(endpoint, b"") == base.AnswerFacts()


def test_openai_error() -> None:
    """The openai SDK raises the error of the status, with our code, message and param."""
    body = base.error_body("openai", status=404, param="model", **ERROR)
    with openai_client(answering(404, body)) as client, pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="m", messages=[])

    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    assert caught.value.type == "invalid_request_error"
    assert caught.value.body == {**ERROR, "param": "model"}


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (405, "invalid_request_error"),
        (413, "request_too_large"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
        (529, "overloaded_error"),
    ],
)
def test_anthropic_error(status: int, kind: str) -> None:
    """The type of an Anthropic error follows from the status."""
    body = base.error_body("anthropic", status=status, **ERROR)

    assert msgspec.json.decode(body) == {"type": "error", "error": {"type": kind, "message": ERROR["message"]}}
    assert base.is_error_body(body)


@pytest.mark.parametrize(
    ("body", "is_error"),
    [
        (base.error_body("openai", status=400, **ERROR), True),
        (b'{"error":{"message":"m"}}', True),
        (b'{"error":"model not found"}', False),
        (b'{"object":"error","message":"m"}', False),
        (b'{"error":{"message":null}}', False),
        (b"<html>503</html>", False),
        (b"\xff", False),
        (b"", False),
    ],
)
def test_is_error_body(body: bytes, is_error: bool) -> None:
    """An error of a provider passes where an SDK can read it."""
    assert base.is_error_body(body) == is_error


def test_chat_stream_breaks_off() -> None:
    """The openai SDK raises our error in the middle of a stream."""
    said = b'data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"m","choices":[]}\n\n'
    body = said + base.error_event(CHAT, status=503, **ERROR)
    with openai_client(answering(200, body, "text/event-stream")) as client:
        stream = client.chat.completions.create(model="m", messages=[], stream=True)
        assert next(stream).id == "1"
        with pytest.raises(openai.APIError, match="No"):
            next(stream)

    assert body.endswith(b"data: [DONE]\n\n")
    assert base.error_event(None, status=503, **ERROR) == base.error_event(CHAT, status=503, **ERROR)


def test_responses_stream_breaks_off() -> None:
    """The openai SDK reads our error event as its own type."""
    body = base.error_event(RESPONSES, status=503, sequence=7, **ERROR)
    with openai_client(answering(200, body, "text/event-stream")) as client:
        stream = client.responses.create(model="m", input="", stream=True)
        event = next(iter(stream))

    assert event.type == "error"
    assert (event.message, event.code, event.param, event.sequence_number) == (ERROR["message"], ERROR["code"], None, 7)


def test_messages_stream_breaks_off() -> None:
    """Anthropic's error event has the same body as its error."""
    event = base.error_event(MESSAGES, status=503, **ERROR)

    assert event == b"event: error\ndata: " + base.error_body("anthropic", status=503, **ERROR) + b"\n\n"


@pytest.mark.parametrize("endpoint", list(BY_NAME.values()), ids=list(BY_NAME))
def test_our_own_error_event_is_read_as_failure(endpoint: Endpoint) -> None:
    """A reader sees the error event of its dialect."""
    reader = base.StreamReader(endpoint)
    for event in Splitter().feed(base.error_event(endpoint, status=500, **ERROR)):
        reader.read(event)

    assert reader.failed


def test_openai_model_list() -> None:
    """The openai SDK lists our models and reads one."""
    with openai_client(answering(200, base.model_list("openai", ["a", "模型"], 1_700_000_000))) as client:
        models = client.models.list().data
    with openai_client(answering(200, base.model_card("openai", "a", 1_700_000_000))) as client:
        card = client.models.retrieve("a")

    assert [model.id for model in models] == ["a", "模型"]
    assert card == models[0]
    assert (card.object, card.created, card.owned_by) == ("model", 1_700_000_000, "extproc")


def test_anthropic_model_list() -> None:
    """The anthropic SDK's types accept our list and the models in it."""
    page = msgspec.json.decode(base.model_list("anthropic", ["a", "b"], 1_700_000_000))
    card = anthropic.types.ModelInfo.model_validate_json(base.model_card("anthropic", "a", 1_700_000_000))

    assert [model["id"] for model in page["data"]] == ["a", "b"]
    assert (page["first_id"], page["last_id"], page["has_more"]) == ("a", "b", False)
    assert (card.type, card.id, card.display_name, card.created_at.timestamp()) == ("model", "a", "a", 1_700_000_000)


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
def test_empty_model_list(dialect: DialectName) -> None:
    """A consumer without models gets an empty list."""
    assert msgspec.json.decode(base.model_list(dialect, [], 0))["data"] == []


@pytest.mark.parametrize(
    ("endpoint", "content", "bound"),
    [
        (CHAT, {"max_tokens": 50}, 50),
        (CHAT, {"max_tokens": 50, "max_completion_tokens": 70}, 70),
        (CHAT, {"max_tokens": 50, "n": 3}, 150),
        (CHAT, {"max_tokens": 10**18, "n": 10**18}, MAX_TOKENS),
        (CHAT, {"max_tokens": "many"}, None),
        (CHAT, {"max_tokens": -5}, None),
        (CHAT, {"max_tokens": None}, None),
        (CHAT, {}, None),
        (RESPONSES, {"max_output_tokens": 9}, 9),
        (MESSAGES, {"max_tokens": 8}, 8),
        (EMBEDDINGS, {"max_tokens": 8}, 0),
    ],
)
def test_max_output(endpoint: Endpoint, content: dict[str, Any], bound: int | None) -> None:
    """What an answer may have at most is what the request says, for all its choices; nonsense says nothing."""
    assert base.max_output(endpoint, Document.parse(msgspec.json.encode({"model": "m", **content}))) == bound
