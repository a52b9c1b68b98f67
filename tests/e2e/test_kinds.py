"""Each kind of provider, before a stub that behaves as its public documentation says; see docs/providers.md."""

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from wire.rig import Certificates, certificates
from world import ACME, CHAT, MESSAGES, World, call_id

from extproc.demo.gateway import Gateway
from extproc.demo.stub import Behaviour, StubProvider, running

pytestmark = pytest.mark.e2e

KEY = "pk-of-the-provider-51e0"
# kind → path prefix of its stub, settings of its own, how the stub wants the key, how else it behaves
KINDS: dict[str, tuple[str, dict[str, Any], Behaviour]] = {
    "openai": ("/v1", {}, Behaviour(key=KEY)),
    "azure": ("/openai/v1", {"query": {"api-version": "preview"}}, Behaviour(key=KEY, key_style="api-key")),
    "azure-deployments": (
        "/openai/deployments/its-name",
        {"kind": "azure", "api_version": "2024-10-21"},
        Behaviour(key=KEY, key_style="api-key"),
    ),
    "deepseek": (
        "/v1",
        {},
        Behaviour(key=KEY, queue=0.3, usage="last_chunk", reasoning="let me think", cached_tokens=64, input_tokens=100),
    ),
    "dashscope": ("/compatible-mode/v1", {}, Behaviour(key=KEY)),
    "pai-eas": ("/api/predict/r1_32b/v1", {}, Behaviour(key=KEY, key_style="raw-authorization")),
    "modelscope": ("/v1", {}, Behaviour(key=KEY)),
    "ollama": ("/v1", {"keys": []}, Behaviour()),
    "vllm": ("/v1", {}, Behaviour(key=KEY, usage="always", reasoning="let me think")),
    "sglang": ("/v1", {}, Behaviour(key=KEY, reasoning="let me think")),
    "openai-compatible": ("/api/v3", {}, Behaviour(key=KEY)),
    "old": (
        "/v1",
        {"kind": "openai-compatible", "stream_usage": "never"},
        Behaviour(key=KEY, refuse_stream_options=True, usage="none"),
    ),
    "anthropic": ("", {}, Behaviour(key=KEY, key_style="x-api-key", cached_tokens=5, cache_creation_tokens=3)),
    "deepseek-anthropic": (
        "/anthropic",
        {"kind": "deepseek", "dialect": "anthropic"},
        Behaviour(key=KEY, key_style="x-api-key"),
    ),
}
ANTHROPIC = ("anthropic", "deepseek-anthropic")
OPENAI = tuple(name for name in KINDS if name not in ANTHROPIC)


@pytest.fixture(name="kinds", scope="module")
def _kinds(transport: str) -> Iterator[World]:
    stubs = {
        name: StubProvider(name, "anthropic" if name in ANTHROPIC else "openai", prefix=prefix)
        for name, (prefix, _, _) in KINDS.items()
    }
    with running(*stubs.values()) as run:
        providers, models = {}, {}
        for name, (prefix, settings, _) in KINDS.items():
            stub = stubs[name]
            path = "" if "api_version" in settings else prefix
            providers[name] = {
                "kind": name,
                "base_url": f"http://127.0.0.1:{stub.port}{path}",
                "keys": [{"value": KEY}],
            } | settings
            models[name] = {"route": [{"provider": name, "model": "its-name"}]}
        config = {
            "server": {"transport": transport},
            "providers": providers,
            "models": models,
            "consumers": {"acme": {"keys": [{"value": ACME}]}},
        }
        usual = {name: behaviour for name, (_, _, behaviour) in KINDS.items()}
        with World(Gateway(config), stubs, run, usual) as world:
            yield world


@pytest.fixture(name="world")
def _world(kinds: World) -> World:
    kinds.reset()
    return kinds


def body_of(name: str, *, stream: bool) -> dict[str, Any]:
    body: dict[str, Any] = {"model": name, "messages": [{"role": "user", "content": "hi"}], "stream": stream}
    return body | ({"max_tokens": 9} if name in ANTHROPIC else {})


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_a_call(world: World, name: str, stream: bool) -> None:
    """The path, key and model name are that provider's, and what was used is in our log."""
    path = MESSAGES if name in ANTHROPIC else CHAT
    answer = world.post(path, body_of(name, stream=stream))

    assert answer.status_code == 200
    received = world.seen(name)
    prefix = KINDS[name][0]
    assert received.path == prefix + (path if name in ANTHROPIC else "/chat/completions")
    assert received.json["model"] == "its-name"
    assert received.headers["host"] == f"127.0.0.1:{world.stubs[name].port}"
    line = world.line(call_id=call_id(answer))
    assert (line["provider"], line["target"]) == (name, "its-name")
    assert line["usage"] == ("estimated" if name == "old" else "reported")
    assert line["output_tokens"] > 0


@pytest.mark.parametrize("name", OPENAI)
def test_usage_of_a_stream_is_asked_for(world: World, name: str) -> None:
    """`stream_options` go to those that know them; the client, which did not ask, sees no event of usage alone."""
    answer = world.post(CHAT, body_of(name, stream=True))

    assert world.seen(name).json.get("stream_options") == (None if name == "old" else {"include_usage": True})
    assert '"choices":[]' not in answer.text
    assert answer.text.endswith("data: [DONE]\n\n")


def test_a_server_that_refuses_stream_options(world: World) -> None:
    """`stream_usage: never` takes the client's own options out too, since the server would refuse the call."""
    body = body_of("old", stream=True) | {"stream_options": {"include_usage": True}}
    answer = world.post(CHAT, body)

    assert answer.status_code == 200
    assert "stream_options" not in world.seen("old").json
    assert world.line(call_id=call_id(answer))["usage"] == "estimated"


def test_deepseek_while_a_call_queues(world: World) -> None:
    """Blank lines before JSON and comments in a stream pass, and hide neither text nor usage."""
    whole = world.post(CHAT, body_of("deepseek", stream=False))
    streamed = world.post(CHAT, body_of("deepseek", stream=True))

    assert whole.content.startswith(b"\n")
    assert whole.json()["choices"][0]["message"]["reasoning_content"] == "let me think"
    assert streamed.text.startswith(": keep-alive\n\n")
    assert '"reasoning_content":"' in streamed.text
    for answer in (whole, streamed):
        line = world.line(call_id=call_id(answer))
        assert (line["input_tokens"], line["cached_tokens"], line["reasoning_tokens"]) == (100, 64, 3)


def test_anthropic_version(world: World) -> None:
    """The version is set where the client sent none, and the client's where it did."""
    world.post(MESSAGES, body_of("anthropic", stream=False))
    world.post(MESSAGES, body_of("anthropic", stream=False), headers={"anthropic-version": "2099-01-01"})

    versions = [r.headers["anthropic-version"] for r in world.anthropic.requests]
    assert versions == ["2023-06-01", "2099-01-01"]


def test_caches_of_anthropic(world: World) -> None:
    """Tokens read from and written to its cache are input too."""
    answer = world.post(MESSAGES, body_of("anthropic", stream=True))

    line = world.line(call_id=call_id(answer))
    assert (line["input_tokens"], line["cached_tokens"], line["cache_creation_tokens"]) == (9, 5, 3)


def test_ollama_without_a_key(world: World) -> None:
    """No key is sent where none is configured, least of all the client's."""
    world.post(CHAT, body_of("ollama", stream=False))

    assert not {"authorization", "api-key", "x-api-key"} & set(world.ollama.requests[0].headers)


def test_a_wrong_key_is_the_operators_business(world: World) -> None:
    """The stubs do check: with another key there is no answer, and the client reads 502, not 401."""
    world.modelscope.behaviour = Behaviour(key="another")
    answer = world.post(CHAT, body_of("modelscope", stream=False))

    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "provider_auth_failed")


# --- TLS --------------------------------------------------------------------------------------------------------


@pytest.fixture(name="pem", scope="module")
def _pem(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("pem"))


def over_tls(
    transport: str, pem: Certificates, provider: dict[str, Any], *, oldest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2
) -> tuple[httpx.Response, list[str | None]]:
    """The answer of a gateway with this provider, and the server names that TLS asked for."""
    names: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem.cert, pem.key)
    context.set_alpn_protocols(["http/1.1"])
    context.minimum_version = oldest
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    stub = StubProvider("stub", tls=context)
    with running(stub):
        provider = {name: str(value).replace("PORT", str(stub.port)) for name, value in provider.items()}
        config = {
            "server": {"transport": transport},
            "providers": {"stub": provider},
            "models": {"m": {"route": [{"provider": "stub"}]}},
            "consumers": {"acme": {"keys": [{"value": ACME}]}},
        }
        with Gateway(config) as gateway:
            body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
            headers = {"authorization": f"Bearer {ACME}"}
            return httpx.post(gateway.url + CHAT, json=body, headers=headers, timeout=30), names


def test_https_with_a_ca_of_ones_own(transport: str, pem: Certificates) -> None:
    """The name is asked for by SNI and verified against the operator's authority."""
    answer, names = over_tls(transport, pem, {"base_url": "https://localhost:PORT/v1", "ca": pem.ca})

    assert answer.json()["choices"][0]["message"]["content"] == "Hello from stub."
    assert set(names) == {"localhost"}


def test_https_that_wants_the_newest_tls(transport: str, pem: Certificates) -> None:
    """A provider that has left TLS 1.2 behind is reached, though Envoy as a client offers no more by default."""
    provider = {"base_url": "https://localhost:PORT/v1", "ca": pem.ca}
    answer, _ = over_tls(transport, pem, provider, oldest=ssl.TLSVersion.TLSv1_3)

    assert answer.status_code == 200


def test_https_by_another_name(transport: str, pem: Certificates) -> None:
    """`tls_name` is what the certificate has to say where the address says something else."""
    provider = {"base_url": "https://127.0.0.1:PORT/v1", "ca": pem.ca, "tls_name": "localhost"}
    answer, names = over_tls(transport, pem, provider)

    assert answer.status_code == 200
    assert set(names) == {"localhost"}


@pytest.mark.parametrize("fault", ["unknown authority", "another name"])
def test_https_that_cannot_be_trusted(transport: str, pem: Certificates, tmp_path: Path, fault: str) -> None:
    """A certificate of another authority or name is no provider: 503, and nothing was sent to it."""
    provider: dict[str, Any] = {"base_url": "https://localhost:PORT/v1", "ca": pem.ca}
    if fault == "unknown authority":
        provider["ca"] = certificates(tmp_path).ca
    else:
        provider["tls_name"] = "api.openai.com"
    answer, _ = over_tls(transport, pem, provider)

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "provider_unavailable")
