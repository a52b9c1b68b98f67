"""The files of envoy/ start as they are, serve a call, and hold nothing that `extproc envoy lint` would mind."""

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from world import CHAT, chat

from extproc.demo.gateway import Gateway, free_port
from extproc.demo.stub import Behaviour, StubProvider, running
from extproc.demo.waiting import until
from extproc.envoyconf.lint import lint
from extproc.stores.sql import open_database

pytestmark = pytest.mark.e2e

FILES = Path(__file__).parents[2] / "envoy"
NAMES = ["quickstart", "static", "snippet"]
KEY = {"authorization": "Bearer sk-team-a-0123456789"}


class Beside:
    """A server that runs `envoy/extproc.yaml`, with ports of its own in place of the files'."""

    def __init__(self, local: StubProvider, shop: StubProvider) -> None:
        self.local = local
        self.shop = shop
        self._grpc, self._access_log = free_port(), free_port()
        config: dict[str, Any] = yaml.safe_load((FILES / "extproc.yaml").read_text())
        config["server"]["grpc"] = f"127.0.0.1:{self._grpc}"
        config["server"]["access_log"] = f"127.0.0.1:{self._access_log}"
        config["providers"]["local"]["base_url"] = local.base_url
        self.config = config
        environment = {"DEEPSEEK_API_KEY": "pk-deepseek-0123456789", "TEAM_A_KEY": "sk-team-a-0123456789"}
        self.server = Gateway(config, command="serve", environment=environment)

    def envoy(self, name: str) -> Any:
        text = (FILES / f"{name}.yaml").read_text()
        ports = {
            "8080": self.server.url,
            "9901": self.server.envoy,
            "9002": f":{self._grpc}",
            "9010": f":{self._access_log}",
            "8000": f":{self.local.port}",
            "8001": f":{self.shop.port}",
        }
        for port, address in ports.items():
            text = text.replace(f"port_value: {port}}}", f"port_value: {address.rpartition(':')[2]}}}")
        return self.server.envoy_alone(text.replace("127.0.0.1:8000", f"127.0.0.1:{self.local.port}"))

    def chat(self, host: str = "llm.example.com", **more: Any) -> httpx.Response:
        return httpx.post(self.server.url + CHAT, json=chat("chat", **more), headers={**KEY, "host": host}, timeout=30)


@pytest.fixture(name="beside")
def _beside() -> Iterator[Beside]:
    local, shop = StubProvider("local"), StubProvider("shop")
    with running(local, shop):
        beside = Beside(local, shop)
        with beside.server:
            yield beside


@pytest.mark.parametrize("name", NAMES)
def test_nothing_would_hurt(name: str) -> None:
    """The lint that operators use finds nothing to mend."""
    assert [f for f in lint((FILES / f"{name}.yaml").read_text()) if f.severity != "info"] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_call(beside: Beside, name: str) -> None:
    """A key, a model and a provider: answered, streamed, metered, and refused where it must be."""
    with beside.envoy(name):
        until(lambda: beside.chat().status_code == 200, "a call is answered")
        beside.local.clear()
        whole = beside.chat()
        beside.local.behaviour = Behaviour(events=40, pace=0.01)
        streamed = beside.chat(stream=True)
        wrong = httpx.post(beside.server.url + CHAT, json=chat("chat"), headers={"host": "llm.example.com"})
        bad = httpx.post(beside.server.url + CHAT, content=b"{", headers={**KEY, "host": "llm.example.com"}, timeout=30)
        spoofed = httpx.post(
            beside.server.url + "/elsewhere",
            json=chat("chat"),
            headers={"x-extproc-model": "chat", "host": "llm.example.com"},
        )

    assert whole.json()["choices"][0]["message"]["content"] == "Hello from local."
    assert streamed.text.endswith("data: [DONE]\n\n")
    assert [r.json["model"] for r in beside.local.requests] == ["Qwen/Qwen3-8B"] * 2
    assert "authorization" not in beside.local.requests[0].headers
    assert "x-extproc-model" not in beside.local.requests[0].headers
    assert (wrong.status_code, bad.status_code, spoofed.status_code) == (401, 400, 401)
    line = next(x for x in beside.server.log().splitlines() if whole.headers["x-extproc-call-id"] in x)
    assert '"consumer":"team-a"' in line
    assert '"output_tokens":4' in line


@pytest.mark.parametrize("name", NAMES)
def test_no_server_no_call(beside: Beside, name: str) -> None:
    """Without extproc no call reaches a provider, and the static file says so in JSON."""
    with beside.envoy(name):
        until(lambda: beside.chat().status_code == 200, "a call is answered")
        beside.local.clear()
        beside.server.stop()
        refused = beside.chat()

    assert refused.status_code in (500, 503)
    assert beside.local.hits == 0
    if name == "static":
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "policy_unavailable")


@pytest.mark.parametrize("name", ["static", "snippet"])
def test_what_envoy_tells_later(beside: Beside, name: str) -> None:
    """A key that its provider refuses is left alone, and a call that a dying worker cuts is charged."""
    beside.config["providers"]["local"]["keys"] = [{"value": "pk-local-0123456789"}]
    beside.server.write(beside.config)
    database = open_database(f"sqlite:///{beside.server.directory}/extproc.db")
    with beside.envoy(name), closing(database):
        until(lambda: beside.chat().status_code == 200, "a call is answered")
        until(lambda: "authorization" in beside.local.requests[-1].headers or beside.chat().is_error, "it has a key")
        beside.local.behaviour = Behaviour(status=401)
        refused = beside.chat()
        until(lambda: '"event":"key refused"' in beside.server.log(), "the key is left alone")

        beside.local.behaviour = Behaviour(events=500, pace=0.02)
        host = {**KEY, "host": "llm.example.com"}
        body = chat("chat", stream=True)
        with httpx.stream("POST", beside.server.url + CHAT, json=body, headers=host, timeout=30) as answer:
            pieces = answer.iter_bytes()
            next(pieces)
            os.kill(beside.server.health()["workers"][0]["pid"], signal.SIGKILL)
            with pytest.raises(httpx.RemoteProtocolError):
                list(pieces)
        until(lambda: any(row.code == "worker_died" for row in database.ledger.rows(limit=100)), "it is charged")
        (row,) = [row for row in database.ledger.rows(limit=100) if row.code == "worker_died"]

    assert refused.status_code == 502
    assert "x-extproc-provider-key" not in refused.headers
    assert (row.call_id, row.consumer, row.model) == (answer.headers["x-extproc-call-id"], "team-a", "chat")
    assert (row.provider, row.target) == ("local", "Qwen/Qwen3-8B")
    assert row.output > 0


def test_a_dead_primary_in_the_static_file(beside: Beside) -> None:
    """The second group is asked next: an API that cannot be reached, or does not know the key of a test."""
    with beside.envoy("static"):
        until(lambda: beside.chat().status_code == 200, "a call is answered")
        beside.local.behaviour = Behaviour(status=503)
        answer = beside.chat()

    assert answer.status_code >= 500
    assert "local answers" not in answer.text


def test_other_traffic_of_the_snippet(beside: Beside) -> None:
    """What was there before is served as before, and extproc has no part in it."""
    with beside.envoy("snippet"):
        until(lambda: beside.chat().status_code == 200, "a call is answered")
        answer = beside.chat("shop.example.com")

    assert answer.headers["x-served-by"] == "shop"
    assert "x-extproc-call-id" not in answer.headers
    assert beside.shop.requests[0].headers["authorization"] == KEY["authorization"]
