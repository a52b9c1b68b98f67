"""The front door: paths, methods, sizes, the model list, the model's name for Envoy, and providers' errors."""

from typing import Any

import msgspec
import pytest
from fakes import MAX_BODY, NARROW_KEY, PROVIDER_KEY, Gateway
from playbook import (
    CALL,
    KEY,
    SETTLED,
    Answers,
    Close,
    Error,
    Playbook,
    Proceeds,
    answer,
    body,
    local,
    request,
    stream,
    whole,
)

from extproc.core.call import Outcome
from extproc.core.messages import BodyMode, RequestBody, RequestHead

CHAT = {"model": "gpt", "messages": []}


def asked(method: str = "POST", path: str = "/v1/chat/completions", key: str = KEY, **fields: str) -> RequestHead:
    named = {name.replace("_", "-"): value for name, value in fields.items()}
    return request(method, path, {"x-api-key": key, **named}, end=method in ("GET", "HEAD", "OPTIONS"))


@pytest.fixture(name="gateway")
def _gateway() -> Gateway:
    return Gateway()


@pytest.fixture(name="playbook")
def _playbook(gateway: Gateway) -> Playbook:
    return Playbook(gateway.exchange())


# --- heads ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/chat", "/v1/chat/completions/", "/V1/chat/completions", "//v1/models", "/v1/modelsx"]
)
def test_unknown_path(playbook: Playbook, method: str, path: str) -> None:
    """What is no endpoint is a 404 that names what was asked for."""
    assert playbook >> asked(method, path) << Answers(404, Error("unknown_endpoint", message=f"{method} {path}"))


def test_unknown_path_of_anthropic(playbook: Playbook) -> None:
    """Paths below /v1/messages answer as Anthropic's API does."""
    assert (
        playbook
        >> asked(path="/v1/messages/batches")
        << Answers(404, Error("not_found_error", message="/v1/messages/batches", dialect="anthropic"))
    )


def test_long_path_is_not_repeated_whole(playbook: Playbook) -> None:
    """The 404 shows the beginning of an absurd path."""
    playbook.say(asked(path="/" + "x" * 100_000))

    assert len(playbook.decisions[0].body) < 400


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v1/chat/completions", "POST"),
        ("PUT", "/v1/messages", "POST"),
        ("HEAD", "/v1/embeddings", "POST"),
        ("OPTIONS", "/v1/responses", "POST"),
        ("POST", "/v1/models", "GET"),
        ("HEAD", "/v1/models", "GET"),
        ("DELETE", "/v1/models/gpt", "GET"),
    ],
)
def test_wrong_method(playbook: Playbook, method: str, path: str, allow: str) -> None:
    """A wrong method is a 405 that says which is right."""
    playbook.say(asked(method, path))
    [decision] = playbook.decisions

    assert (decision.status, decision.headers["allow"]) == (405, allow)
    assert decision.reason == "extproc_method_not_allowed"


@pytest.mark.parametrize(
    ("length", "fits"), [("0", True), (str(MAX_BODY), True), (str(MAX_BODY + 1), False), ("9" * 40, False)]
)
def test_announced_length(playbook: Playbook, length: str, fits: bool) -> None:
    """A body that says it is too big is refused before it is sent."""
    decision = (
        Proceeds(removes={"x-api-key"})
        if fits
        else Answers(413, Error("request_too_large", message=f"{MAX_BODY} bytes"))
    )

    assert playbook >> asked(content_length=length) << decision


@pytest.mark.parametrize("spare", [0, 1])
def test_length_that_was_not_announced(playbook: Playbook, spare: int) -> None:
    """A body in chunks is measured when it is here."""
    data = msgspec.json.encode(CHAT)
    data = data[:-1] + b" " * (MAX_BODY - len(data) + spare) + b"}"
    playbook.say(asked())

    fits = Proceeds(sets={"x-extproc-model": "gpt"}, reroute=True)

    assert playbook >> RequestBody(data) << (Answers(413, Error("request_too_large")) if spare else fits)


@pytest.mark.parametrize("length", ["", "-1", "1e9", "\xb2", "10, 10", "chunked"])
def test_length_that_is_none(playbook: Playbook, length: str) -> None:
    """A length that is no number is Envoy's business, and no bug of ours."""
    assert playbook >> asked(content_length=length) << Proceeds(removes={"x-api-key"})


@pytest.mark.parametrize("encoding", ["gzip", "br", "gzip, identity"])
def test_compressed_request(playbook: Playbook, encoding: str) -> None:
    """A compressed request body is refused: we could not read it."""
    assert playbook >> asked(content_encoding=encoding) << Answers(400, Error("invalid_json", message="compressed"))


@pytest.mark.parametrize("encoding", ["identity", "Identity ", ""])
def test_request_that_says_it_is_not_compressed(playbook: Playbook, encoding: str) -> None:
    """It is as it is."""
    assert playbook >> asked(content_encoding=encoding) << Proceeds(removes={"x-api-key"})


# --- models ---------------------------------------------------------------------------------------------------


def test_model_is_named_for_the_route(playbook: Playbook, gateway: Gateway) -> None:
    """The model goes into a header for Envoy's routes, and with the rest into metadata for the attempts."""
    assert (
        playbook
        >> asked(path="/v1/chat/completions?a=1&b=%20", x_extproc_model="spoofed")
        << Proceeds(removes={"x-api-key", "x-extproc-model"})
        >> body(CHAT)
        << Proceeds(
            sets={"x-extproc-model": "gpt"},
            reroute=True,
            metadata={
                "model": "gpt",
                "endpoint": "chat",
                "query": "a=1&b=%20",
                "config": "config-1",
            },
        )
    )
    assert gateway.journal.call.model is not None
    assert gateway.journal.call.model.name == "gpt"


@pytest.mark.parametrize("model", ["gpt-5", "GPT", "gpt ", "../gpt", "模型", "x\r\ny", "x" * 500])
def test_unknown_model(playbook: Playbook, model: str) -> None:
    """A model that is not configured is a 404."""
    playbook.say(asked())

    assert playbook >> body(CHAT | {"model": model}) << Answers(404, Error("model_not_found")) >> Close()


@pytest.mark.parametrize(
    ("path", "model", "served"),
    [
        ("/v1/chat/completions", "claude", False),
        ("/v1/embeddings", "claude", False),
        ("/v1/responses", "gpt", True),
        ("/v1/messages", "claude", True),
        ("/v1/messages", "qwen/both", True),
        ("/v1/chat/completions", "qwen/both", True),
    ],
)
def test_model_at_the_endpoint_of_another_dialect(playbook: Playbook, path: str, model: str, served: bool) -> None:
    """A model is there only for the endpoints whose dialect its providers speak."""
    playbook.say(asked(path=path))

    decision = (
        Proceeds(sets={"x-extproc-model": model}, reroute=True)
        if served
        else Answers(404, Error("model_not_found", message=f"not served at {path}"))
    )
    assert playbook >> body(CHAT | {"model": model}) << decision


def test_anthropic_client_reads_anthropic_errors(playbook: Playbook) -> None:
    """A model that is not served at /v1/messages is told in that dialect."""
    playbook.say(asked(path="/v1/messages"))

    assert playbook >> body(CHAT) << Answers(404, Error("not_found_error", message="not served", dialect="anthropic"))


@pytest.mark.parametrize(
    ("key", "names"), [(KEY, ["gpt", "claude", "qwen/both"]), (NARROW_KEY, ["gpt"])], ids=["all", "narrow"]
)
def test_model_list(playbook: Playbook, gateway: Gateway, key: str, names: list[str]) -> None:
    """The list has what the consumer may use, and nothing else."""
    playbook.say(asked("GET", "/v1/models", key))
    playbook.say(local(200, "extproc_reply"))
    playbook.say(Close())
    listed = msgspec.json.decode(playbook.decisions[0].body)

    assert playbook.decisions[0].status == 200
    assert playbook.decisions[0].headers == {"content-type": "application/json", "x-extproc-call-id": CALL}
    assert listed["object"] == "list"
    assert [card["id"] for card in listed["data"]] == names
    assert gateway.audited[0][1] == Outcome("replied", 200)


def test_model_list_ignores_the_query(playbook: Playbook) -> None:
    """Anthropic's SDK asks with a page size."""
    playbook.say(asked("GET", "/v1/models?limit=20"))

    assert playbook.decisions[0].status == 200


@pytest.mark.parametrize("path", ["/v1/models/qwen/both", "/v1/models/qwen%2Fboth"])
def test_model_card(playbook: Playbook, path: str) -> None:
    """One model by its name, however its slash is written."""
    playbook.say(asked("GET", path))

    assert playbook.decisions[0].status == 200
    assert msgspec.json.decode(playbook.decisions[0].body)["id"] == "qwen/both"


@pytest.mark.parametrize("name", ["claude", "nothing", "%", "%ff", "gpt/x"])
def test_model_card_of_another(playbook: Playbook, name: str) -> None:
    """A model that the consumer may not use is as good as none."""
    assert playbook >> asked("GET", f"/v1/models/{name}", NARROW_KEY) << Answers(404, Error("model_not_found"))


# --- what providers answer ------------------------------------------------------------------------------------


def answered(
    playbook: Playbook, status: int, content: bytes, *, path: str = "/v1/chat/completions", **head: Any
) -> Any:
    """What becomes of this answer of a provider."""
    playbook.say(asked(path=path))
    playbook.say(body({"model": "qwen/both", "messages": []}))
    playbook.say(answer(status, **head))
    return playbook.say(whole(content))


OPENAI_ERROR = b'{ "error": {"message": "slow down", "type": "x", "code": 7}, "more": [1] }'


def test_where_the_answer_came_from(playbook: Playbook) -> None:
    """Provider, its model and the number of attempts are told to Envoy's access log with the head."""
    playbook.say(asked())
    playbook.say(body(CHAT))

    assert (
        playbook
        >> answer(provider="beta", attempt=2)
        << Proceeds(
            sets={"x-extproc-call-id": CALL},
            mode=BodyMode.BUFFERED,
            metadata={"provider": "beta", "target": "beta-model", "attempts": 2},
        )
    )


@pytest.mark.parametrize("status", [400, 404, 429, 500, 529])
@pytest.mark.parametrize("content", [OPENAI_ERROR, b'{"type":"error","error":{"type":"x","message":"no"}}'])
def test_error_in_json_passes(playbook: Playbook, gateway: Gateway, status: int, content: bytes) -> None:
    """An error that SDKs can read passes byte for byte, with its status."""
    assert answered(playbook, status, content) == Proceeds()
    playbook.say(Close())
    assert gateway.audited[0][1] == Outcome("completed", status)


@pytest.mark.parametrize(
    "content", [b"", b"<html>Bad Gateway</html>", b"{", b"{}", b'{"error": "text"}', b'"x"', b"\xff"]
)
@pytest.mark.parametrize("status", [400, 500, 502])
def test_error_that_is_no_json_is_wrapped(playbook: Playbook, status: int, content: bytes) -> None:
    """An error that no SDK can read becomes one that they can, with the same status and none of its words."""
    decision = answered(playbook, status, content, kind="text/html")

    assert decision == Answers(status, Error("provider_error", message=f"status {status}"))
    assert b"html" not in decision.body


def test_error_without_a_body_is_wrapped(playbook: Playbook) -> None:
    """An error of a head alone is wrapped too."""
    playbook.say(asked())
    playbook.say(body(CHAT))

    assert playbook >> answer(500, end=True) << Answers(500, Error("provider_error"))


def test_wrapped_in_the_dialect(playbook: Playbook) -> None:
    """An Anthropic client reads an Anthropic error."""
    decision = answered(playbook, 500, b"oops", path="/v1/messages")

    assert decision == Answers(500, Error("api_error", dialect="anthropic"))


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("end", [False, True])
def test_provider_refuses_our_key(playbook: Playbook, gateway: Gateway, status: int, end: bool) -> None:
    """A provider's 401 or 403 is about our credentials, not the caller's: a 502 that says nothing of them."""
    content = b'{"error": {"message": "Incorrect API key provided: sk-pro***210", "code": "invalid_api_key"}}'
    playbook.say(asked())
    playbook.say(body(CHAT))
    decision = playbook.say(answer(status, headers={"www-authenticate": "Bearer"}, end=end))
    if not end:
        decision = playbook.say(whole(content))

    assert decision == Answers(502, Error("provider_auth_failed"))
    assert b"sk-pro" not in decision.body
    playbook.say(Close())
    assert gateway.audited[0][1] == Outcome("refused", 502, "provider_auth_failed")


def test_error_with_a_key_in_it(playbook: Playbook) -> None:
    """An error that repeats a provider's key is replaced, with its status."""
    content = OPENAI_ERROR.replace(b"slow down", b"bad key " + PROVIDER_KEY.encode())
    decision = answered(playbook, 400, content)

    assert decision == Answers(400, Error("provider_error"))
    assert PROVIDER_KEY.encode() not in decision.body


def test_streamed_error_is_judged_too(playbook: Playbook) -> None:
    """An error that calls itself a stream of events is wrapped like any."""
    decision = answered(playbook, 503, b"data: oops\n\n", kind="text/event-stream")

    assert decision == Answers(503, Error("provider_error"))


@pytest.mark.parametrize(("status", "details"), [(401, "x"), (503, "no_healthy_upstream"), (504, "response_timeout")])
def test_local_replies_are_no_providers(playbook: Playbook, status: int, details: str) -> None:
    """Envoy's own replies are left as they are."""
    playbook.say(asked())
    playbook.say(body(CHAT))

    assert (
        playbook
        >> local(status, details)
        << Proceeds(sets={"x-extproc-call-id": CALL}, mode=BodyMode.NONE, metadata=SETTLED)
    )


def test_success_is_not_judged(playbook: Playbook) -> None:
    """Only errors are looked into."""
    assert answered(playbook, 200, b"\xff not json") == Proceeds()
    assert Playbook(Gateway().exchange()) >> stream() << Proceeds()
