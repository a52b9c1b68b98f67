"""The server where Envoy reaches it over TCP, and by TLS in both ways, as the rendered configuration has it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from wire.rig import Certificates, certificates
from world import ACME

from extproc.demo.client import Client
from extproc.demo.gateway import Gateway, free_port
from extproc.demo.stub import Behaviour, StubProvider, running

pytestmark = pytest.mark.e2e


@pytest.fixture(name="stub", scope="module")
def _stub() -> Iterator[StubProvider]:
    stub = StubProvider("stub")
    with running(stub):
        yield stub


@pytest.fixture(name="pem", scope="module")
def _pem(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("pem"))


def configuration(stub: StubProvider, **server: Any) -> dict[str, Any]:
    return {
        "server": server,
        "providers": {"stub": {"base_url": stub.base_url}},
        "models": {"m": {"route": [[{"provider": "stub"}]]}},
        "consumers": {"acme": {"keys": [{"value": ACME}]}},
    }


def tls(pem: Certificates, *, mutual: bool) -> dict[str, Any]:
    made: dict[str, Any] = {"cert": str(pem.cert), "key": str(pem.key), "ca": str(pem.ca)}
    return made | ({"client": {"cert": str(pem.client_cert), "key": str(pem.client_key)}} if mutual else {})


@pytest.mark.parametrize("kind", ["plain", "tls", "mutual tls"])
def test_calls_over_tcp(stub: StubProvider, transport: str, pem: Certificates, kind: str) -> None:
    """A call, a stream and a body of megabytes pass, whatever is between Envoy and the server."""
    server: dict[str, Any] = {"transport": transport, "grpc": f"127.0.0.1:{free_port()}"}
    if kind != "plain":
        server["tls"] = tls(pem, mutual=kind == "mutual tls")
    stub.behaviour = Behaviour()
    with Gateway(configuration(stub, **server)) as gateway:
        client = Client(gateway.url, ACME)
        whole = client.chat("m", "hi")
        streamed = client.chat("m", "hi", stream=True)
        stub.behaviour.text = "y" * (5 << 20)
        big = client.chat("m", "x" * (5 << 20))

    assert whole.text == streamed.text == "Hello from stub."
    assert len(big.text) == 5 << 20
    assert len(stub.requests[-1].json["messages"][0]["content"]) == 5 << 20


def test_a_server_that_envoy_does_not_trust(
    stub: StubProvider, transport: str, pem: Certificates, tmp_path: Path
) -> None:
    """A server whose certificate another authority signed gets no call to judge, so no call passes."""
    other = certificates(tmp_path)
    server = {"transport": transport, "grpc": f"127.0.0.1:{free_port()}", "tls": tls(pem, mutual=False)}
    server["tls"] |= {"ca": str(other.ca)}
    stub.clear()
    gateway = Gateway(configuration(stub, **server), command="serve")
    with gateway, gateway.envoy_alone():
        answer = Client(gateway.url, ACME).chat("m", "hi")

    assert (answer.status, answer.json["error"]["code"]) == (503, "policy_unavailable")
    assert stub.hits == 0
