"""The scenarios of docs/providers.md as they stand there, stubs in the providers' places; and false certificates."""

import copy
import re
import ssl
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from wire.rig import certificates
from world import ACME, World, call_id

from extproc.demo.gateway import Gateway
from extproc.demo.stub import Behaviour, StubProvider, running
from extproc.demo.waiting import until
from extproc.providers.presets import PRESETS

pytestmark = pytest.mark.e2e

PAGE = (Path(__file__).parents[2] / "docs/providers.md").read_text()
FALLBACK, MIGRATION = (
    yaml.safe_load(re.sub(r"\bon:", '"on":', block))  # which YAML 1.1 reads as true
    for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    if "models:" in block
)
CALLS = 100


@dataclass
class Scene:
    """A documented configuration, running: hosts and ports of its providers are ours, all else is the document's."""

    world: World
    config: dict[str, Any]

    @property
    def route(self) -> list[list[dict[str, Any]]]:
        (model,) = self.config["models"].values()
        return list(model["route"])

    def calls(self, count: int) -> list[dict[str, Any]]:
        """The log lines of some calls, by the documented consumer for the documented model."""
        (model,), (consumer,) = self.config["models"], self.config["consumers"].values()
        key = secret(consumer["keys"][0]["env"])
        ids = {call_id(self.world.chat(model, key=key)) for _ in range(count)}

        def found() -> list[dict[str, Any]]:
            return [line for line in self.world.lines() if line["call_id"] in ids]

        until(lambda: len(found()) == count, "each call has its log line")
        return found()

    def call(self) -> dict[str, Any]:
        (line,) = self.calls(1)
        return line

    def weigh(self, **weights: int) -> None:
        """Edit the weights of the first group in the file, and wait until Envoy splits by them."""
        gateway = self.world.gateway
        for target in self.route[0]:
            target["weight"] = weights[target["provider"]]
        before = gateway.health()["config"]["digest"]
        gateway.write(self.config)
        until(lambda: gateway.health()["config"]["digest"] != before, "the file is read")
        version = f'rds.extproc.version_text: "{gateway.health()["config"]["digest"]}-'
        until(lambda: version in (gateway.get(f"{gateway.envoy}/stats") or b"").decode(), "envoy has the routes")


def secret(variable: str) -> str:
    return f"value-of-{variable}"


@contextmanager
def played(documented: dict[str, Any], transport: str) -> Iterator[Scene]:
    """Each stub stands below the path of the provider that it plays, and demands that provider's key."""
    config = copy.deepcopy(documented) | {"server": {"transport": transport}}
    stubs, usual = {}, {}
    for name, settings in config["providers"].items():
        path = urlsplit(settings.get("base_url") or PRESETS[settings["kind"]].base_url).path
        stubs[name] = StubProvider(name, prefix=path)
        keys = [secret(key["env"]) for key in settings.get("keys", [])]
        usual[name] = Behaviour(key=keys[0] if keys else None)
    variables = re.findall(r"'env': '(\w+)'", str(documented))
    with running(*stubs.values()) as run:
        for name, settings in config["providers"].items():
            settings["base_url"] = stubs[name].base_url
        gateway = Gateway(config, environment={name: secret(name) for name in variables})
        with World(gateway, stubs, run, usual) as world:
            world.reset()
            yield Scene(world, config)


def test_a_model_of_ones_own_falls_back_twice(transport: str) -> None:
    """Each group answers when those before it fail, under its own model name, address and key, and the log says who."""
    with played(FALLBACK, transport) as scene:
        world = scene.world
        targets = {target["provider"]: target["model"] for group in scene.route for target in group}
        answered = []
        for failing in ([], ["r1"], ["r1", "distilled"]):
            for name in failing:
                world.stubs[name].behaviour.status = 503
            line = scene.call()
            assert (line["status"], line["attempts"], line["usage"]) == (200, len(failing) + 1, "reported")
            assert line["target"] == targets[line["provider"]]
            answered.append(line["provider"])

        assert answered[:2] == ["r1", "distilled"]
        assert answered[2] in {"deepseek", "bailian"}
        (last,) = world.stubs[answered[2]].requests
        assert last.json["model"] == targets[answered[2]]
        assert last.headers["host"] == f"127.0.0.1:{world.stubs[answered[2]].port}"
        assert not [request for request in world.distilled.requests if "authorization" in request.headers]
        until(lambda: world.metric("extproc_attempts_total", number="3") == 1, "the third attempt is counted")
        assert world.metric("extproc_attempts_total", number="2", provider="distilled") == 2


def test_the_last_group_shares_the_calls_out(transport: str) -> None:
    """With both models of one's own gone, either API answers; when they fail too, their error is the answer."""
    with played(FALLBACK, transport) as scene:
        for name in ("r1", "distilled"):
            scene.world.run(scene.world.stubs[name].stop())
        assert {line["provider"] for line in scene.calls(40)} == {"deepseek", "bailian"}

        for name in ("deepseek", "bailian"):
            scene.world.stubs[name].behaviour.status = 429
        line = scene.call()
        assert (line["status"], line["attempts"]) == (429, 3)


def test_from_one_model_to_another_and_back(transport: str) -> None:
    """Every step is an edit of the weights in the file; none of the calls in between fails."""
    with played(MIGRATION, transport) as scene:
        assert [target["weight"] for target in scene.route[0]] == [90, 10]
        # what OpenAI may have of a hundred calls: five standard deviations on either side
        for weight, least, most in ((90, 75, 100), (50, 25, 75), (0, 0, 0), (50, 25, 75), (90, 75, 100)):
            if weight != scene.route[0][0]["weight"]:
                scene.weigh(openai=weight, deepseek=100 - weight)
            lines = scene.calls(CALLS)

            assert {line["status"] for line in lines} == {200}
            assert least <= Counter(line["provider"] for line in lines)["openai"] <= most


def test_a_parked_provider_is_still_the_fallback(transport: str) -> None:
    """With weight 0 OpenAI gets no first attempt, but answers where DeepSeek does not."""
    with played(MIGRATION, transport) as scene:
        scene.weigh(openai=0, deepseek=100)
        assert scene.call()["provider"] == "deepseek"
        scene.world.deepseek.behaviour.status = 503
        line = scene.call()

        assert (line["provider"], line["attempts"], line["status"]) == ("openai", 2, 200)


# --- false certificates -----------------------------------------------------------------------------------------


@pytest.fixture(name="distrust", scope="module")
def _distrust(transport: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Impostors whose certificate another authority signed, in both dialects, and an honest backup."""
    pem = certificates(tmp_path_factory.mktemp("impostor"))
    authority = certificates(tmp_path_factory.mktemp("authority")).ca
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem.cert, pem.key)
    context.set_alpn_protocols(["http/1.1"])
    stubs = {
        "impostor": StubProvider("impostor", tls=context),
        "claude-impostor": StubProvider("claude-impostor", "anthropic", tls=context),
        "backup": StubProvider("backup"),
    }
    with running(*stubs.values()) as run:

        def lying(name: str, path: str, kind: str) -> dict[str, Any]:
            base_url = f"https://localhost:{stubs[name].port}{path}"
            return {"kind": kind, "base_url": base_url, "ca": str(authority), "keys": [{"value": "pk-not-for-you"}]}

        config = {
            "server": {"transport": transport},
            "providers": {
                "impostor": lying("impostor", "/v1", "openai"),
                "claude-impostor": lying("claude-impostor", "", "anthropic"),
                "backup": {"base_url": stubs["backup"].base_url},
            },
            "models": {
                "pair": {"route": [[{"provider": "impostor"}], [{"provider": "backup", "model": "honest"}]]},
                "alone": {"route": [[{"provider": "claude-impostor"}]]},
            },
            "consumers": {"acme": {"keys": [{"value": ACME}]}},
        }
        with World(Gateway(config), stubs, run) as world:
            yield world


@pytest.fixture(name="world")
def _world(distrust: World) -> World:
    distrust.reset()
    return distrust


@pytest.mark.parametrize("stream", [False, True])
def test_an_impostor_is_passed_over(world: World, stream: bool) -> None:
    """A certificate that the operator's authority did not sign is a failed connection: the next group answers."""
    answer = world.chat("pair", stream=stream)

    assert answer.status_code == 200
    assert world.hits() == {"backup": 1}
    line = world.line(call_id=call_id(answer))
    assert (line["provider"], line["target"], line["attempts"]) == ("backup", "honest", 2)


def test_an_impostor_alone(world: World) -> None:
    """With no other group left the client reads so in its dialect, Envoy's log has the reason, and nothing was sent."""
    answer = world.messages("alone")

    assert (answer.status_code, answer.json()["type"]) == (503, "error")
    assert answer.json()["error"]["type"] == "overloaded_error"
    assert world.hits() == {}
    assert "CERTIFICATE_VERIFY_FAILED" in world.access_line(call_id(answer))["details"]
