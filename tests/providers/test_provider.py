"""A provider as it is called: address, path, key header, and the edits of its bodies."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.secret import Secret
from extproc.dialects.document import Document
from extproc.dialects.endpoints import BY_NAME
from extproc.providers.provider import Provider

CHAT, COMPLETIONS, EMBEDDINGS = BY_NAME["chat"], BY_NAME["completions"], BY_NAME["embeddings"]
MESSAGES, RESPONSES = BY_NAME["messages"], BY_NAME["responses"]
KEY = Secret("pk-1")


def provider(base_url: str | None = "https://p.example/v1", **settings: Any) -> Provider:
    return Provider.build("p", base_url=base_url, **settings)


# --- address ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base_url", "scheme", "host", "port", "authority"),
    [
        ("https://api.example/v1", "https", "api.example", 443, "api.example"),
        ("https://api.example:443/v1", "https", "api.example", 443, "api.example"),
        ("https://API.Example:8443", "https", "api.example", 8443, "api.example:8443"),
        ("http://10.0.0.7:8000/v1", "http", "10.0.0.7", 8000, "10.0.0.7:8000"),
        ("http://api.example", "http", "api.example", 80, "api.example"),
        ("http://[::1]:8000/v1", "http", "::1", 8000, "[::1]:8000"),
    ],
)
def test_address(base_url: str, scheme: str, host: str, port: int, authority: str) -> None:
    """Scheme, host and port are the URL's; the Host header leaves the usual port out."""
    made = provider(base_url)

    assert (made.scheme, made.host, made.port, made.authority) == (scheme, host, port, authority)


@pytest.mark.parametrize(
    ("base_url", "reason"),
    [
        (None, "base_url is missing"),
        ("", "base_url is missing"),
        ("api.example/v1", "must begin with http"),
        ("ftp://api.example", "must begin with http"),
        ("https://", "names no host"),
        ("https://api.example:0", "port 0"),
        ("https://api.example:99999", "not a URL"),
        ("https://api.example:port", "not a URL"),
        ("https://user:pw@api.example", "user name or a password"),
        ("https://api.example/v1#x", "fragment"),
        ("https://api.example/v1?key=abc", "looks like a secret"),
    ],
)
def test_an_address_that_is_none(base_url: str | None, reason: str) -> None:
    """A mistake is a sentence for the operator, and holds no password."""
    with pytest.raises(ValueError, match=reason) as caught:
        provider(base_url)
    assert "pw" not in str(caught.value)


# --- path -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slash", ["", "/", "//"])
@pytest.mark.parametrize("prefix", ["", "/v1", "/compatible-mode/v1", "/api/predict/r1/v1"])
def test_path(prefix: str, slash: str) -> None:
    """The endpoint's own part comes after the path of the URL, however that ends."""
    made = provider(f"https://p.example{prefix}{slash}")

    assert made.path(CHAT, "m", "") == f"{prefix}/chat/completions"
    assert made.path(COMPLETIONS, "m", "") == f"{prefix}/completions"
    assert made.path(EMBEDDINGS, "m", "") == f"{prefix}/embeddings"
    assert made.path(RESPONSES, "m", "") == f"{prefix}/responses"


def test_path_of_anthropic() -> None:
    """Its URL has no version, its path has."""
    assert provider(None, kind="anthropic").path(MESSAGES, "m", "beta=true") == "/v1/messages?beta=true"
    other = provider("https://api.deepseek.com/anthropic", kind="deepseek", dialect="anthropic")
    assert other.path(MESSAGES, "m", "") == "/anthropic/v1/messages"


@pytest.mark.parametrize("path", ["", "/", "/openai", "/openai/"])
def test_azure_by_deployment(path: str) -> None:
    """With `api_version` the deployment is in the path, whatever its name holds."""
    made = provider(f"https://n.openai.azure.com{path}", kind="azure", api_version="2024-10-21")

    expected = "/openai/deployments/my%20model%2Fv1/chat/completions?api-version=2024-10-21"
    assert made.path(CHAT, "my model/v1", "") == expected


@pytest.mark.parametrize("path", ["", "/", "/openai/v1", "/openai/v1/"])
def test_azure_as_it_is_now(path: str) -> None:
    """Without it the path is OpenAI's own."""
    made = provider(f"https://n.openai.azure.com{path}", kind="azure")

    assert made.path(CHAT, "m", "") == "/openai/v1/chat/completions"


def test_api_version_is_azures() -> None:
    """Elsewhere it would be silently ignored."""
    with pytest.raises(ValueError, match="azure only"):
        provider(api_version="2024-10-21")


@pytest.mark.parametrize(
    ("query", "sent"),
    [
        ("", "v=2&team=a"),
        ("x=1", "x=1&v=2&team=a"),
        ("v=evil&x=1&v=", "x=1&v=2&team=a"),
        ("x=%20%26&y", "x=+%26&y=&v=2&team=a"),
    ],
)
def test_query(query: str, sent: str) -> None:
    """What the operator set wins over the client's of that name; the rest of the client's stays."""
    made = provider("https://p.example/v1?v=2", query={"team": "a"})
    _, _, found = made.path(CHAT, "m", query).partition("?")

    assert sorted(found.split("&")) == sorted(sent.split("&"))


@given(st.text(alphabet="abc=&%20+?/", max_size=20))
def test_a_query_of_nobodys_business(query: str) -> None:
    """Where the operator set none, the client's is not touched at all."""
    assert provider().path(CHAT, "m", query) == "/v1/chat/completions" + (f"?{query}" if query else "")


# --- headers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "headers"),
    [
        ({"kind": "openai"}, {"authorization": "Bearer pk-1"}),
        ({"kind": "azure"}, {"api-key": "pk-1"}),
        ({"kind": "anthropic"}, {"x-api-key": "pk-1"}),
        ({"kind": "pai-eas"}, {"authorization": "pk-1"}),
        ({"kind": "deepseek"}, {"authorization": "Bearer pk-1"}),
        ({"kind": "deepseek", "dialect": "anthropic"}, {"x-api-key": "pk-1"}),
        ({"kind": "pai-eas", "dialect": "anthropic"}, {"authorization": "pk-1"}),
    ],
)
def test_how_the_key_is_sent(settings: dict[str, Any], headers: dict[str, str]) -> None:
    """Each kind has its header; no key is no header."""
    made = provider(**settings)

    assert made.key_headers(KEY) == headers
    assert made.key_headers(None) == {}


def test_headers_of_the_operator() -> None:
    """Names are lower case from here on."""
    assert provider(headers={"X-Team": "a b"}).headers == {"x-team": "a b"}


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("authorization", "x", "put keys under keys"),
        ("X-Api-Key", "x", "put keys under keys"),
        ("Host", "x", "set by the gateway"),
        ("content-length", "1", "set by the gateway"),
        ("x y", "1", "not a header name"),
        ("", "1", "not a header name"),
        ("x-ü", "1", "not a header name"),
        ("x", "a\r\nb: c", "characters that HTTP does not carry"),
        ("x", "häßlich", "characters that HTTP does not carry"),
    ],
)
def test_headers_that_are_refused(name: str, value: str, reason: str) -> None:
    """What would break a request, or belongs elsewhere, is refused at start."""
    with pytest.raises(ValueError, match=reason):
        provider(headers={name: value})


@pytest.mark.parametrize("name", ["api_key", "access-token", "Secret", "subscription-key", "password"])
def test_secrets_in_the_query_are_refused(name: str) -> None:
    """URLs are logged by everyone on the way."""
    with pytest.raises(ValueError, match="looks like a secret"):
        provider(query={name: "x"})


# --- kinds and dialects -----------------------------------------------------------------------------------------


def test_a_kind_that_is_none() -> None:
    """The message lists those that there are."""
    with pytest.raises(ValueError, match="the kinds are anthropic, azure"):
        provider(kind="openapi")


def test_a_dialect_that_a_kind_does_not_speak() -> None:
    """Anthropic's API is Anthropic's."""
    with pytest.raises(ValueError, match="speaks anthropic only"):
        provider(kind="anthropic", dialect="openai")


def test_the_other_side_of_a_kind_has_no_address() -> None:
    """The Anthropic side of a provider is elsewhere than its OpenAI side."""
    with pytest.raises(ValueError, match="base_url is missing"):
        provider(None, kind="deepseek", dialect="anthropic")


# --- bodies -----------------------------------------------------------------------------------------------------


def edited(made: Provider, body: dict[str, Any], endpoint: Any = CHAT, model: str = "its-name") -> dict[str, Any]:
    document = Document.parse(json.dumps(body).encode())
    made.edit(endpoint, document, model)
    found: dict[str, Any] = json.loads(document.body)
    return found


def test_model_name() -> None:
    """The target's name replaces the public one, at every endpoint."""
    for endpoint in (CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES):
        assert edited(provider(), {"model": "m", "x": 1}, endpoint) == {"model": "its-name", "x": 1}


def test_nothing_to_change() -> None:
    """The same name leaves the very same bytes."""
    document = Document.parse(b' { "model" : "m" } ')
    before = document.body
    provider().edit(CHAT, document, "m")

    assert document.body is before


@pytest.mark.parametrize(
    ("policy", "options", "sent"),
    [
        ("ask", None, {"include_usage": True}),
        ("ask", {}, {"include_usage": True}),
        ("ask", {"x": 1}, {"x": 1, "include_usage": True}),
        ("ask", {"include_usage": False}, {"include_usage": True}),
        ("ask", {"include_usage": True}, {"include_usage": True}),
        ("reported", None, None),
        ("reported", {"include_usage": True}, {"include_usage": True}),
        ("never", None, None),
        ("never", {"include_usage": True}, None),
        ("never", {"x": 1}, None),
    ],
)
@pytest.mark.parametrize("endpoint", [CHAT, COMPLETIONS], ids=["chat", "completions"])
def test_stream_options(
    endpoint: Any, policy: Any, options: dict[str, Any] | None, sent: dict[str, Any] | None
) -> None:
    """Asked for, left alone, or taken out, as the provider needs it."""
    body = {"model": "m", "stream": True} | ({} if options is None else {"stream_options": options})

    assert edited(provider(stream_usage=policy), body, endpoint).get("stream_options") == sent


@pytest.mark.parametrize("stream", [False, None])
def test_no_stream_no_options(stream: bool | None) -> None:
    """OpenAI refuses `stream_options` where there is no stream."""
    body = {"model": "m"} | ({} if stream is None else {"stream": stream})

    assert "stream_options" not in edited(provider(), body)


@pytest.mark.parametrize("endpoint", [EMBEDDINGS, RESPONSES], ids=["embeddings", "responses"])
def test_other_endpoints_have_no_such_options(endpoint: Any) -> None:
    """A stream of the Responses API reports by itself."""
    assert "stream_options" not in edited(provider(), {"model": "m", "stream": True}, endpoint)
    assert not provider().asks_usage(endpoint, stream=True)


@pytest.mark.parametrize(("policy", "asks"), [("ask", True), ("reported", False), ("never", False)])
def test_who_is_asked(policy: Any, asks: bool) -> None:
    """Whether the client must be spared an event follows from the same policy."""
    made = provider(stream_usage=policy)

    assert made.asks_usage(CHAT, stream=True) is asks
    assert not made.asks_usage(CHAT, stream=False)
