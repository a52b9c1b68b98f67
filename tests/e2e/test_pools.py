"""Pools of providers' keys: one that a provider refuses is left alone, by what Envoy tells of the attempt."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from extproc.core.secret import Secret
from extproc.demo.client import Client, Result
from extproc.demo.gateway import Gateway, free_port
from extproc.demo.stub import Behaviour, StubProvider, running
from extproc.demo.stub.http1 import Received
from extproc.demo.stub.script import Answer
from extproc.demo.waiting import until
from extproc.providers.pool import key_id

pytestmark = pytest.mark.e2e

ACME, GLOBEX = "sk-acme-example", "sk-globex-example"


def keys(provider: str) -> tuple[str, str]:
    return f"pk-{provider}-first", f"pk-{provider}-second"


class Choosy(StubProvider):
    """Behaves by the key that it is asked with; remembers which keys those were."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.by_key: dict[str, Behaviour] = {}
        self.used: list[str] = []

    def answer(self, request: Received) -> tuple[Behaviour, Answer]:
        key = request.headers.get("authorization", "").removeprefix("Bearer ")
        self.used.append(key)
        self.behaviour = self.by_key.get(key, Behaviour())
        return super().answer(request)


class Site:
    """A gateway whose providers, one for each test, are all the same stub; `backup` is another one."""

    def __init__(self, transport: str, directory: Path) -> None:
        self.stub, self.backup = Choosy("pool"), Choosy("backup")
        self.transport = transport
        self.rotated = directory / "rotated"
        self.rotated.write_text("pk-rotated-first\n")
        self.gateway: Gateway

    def config(self, **server: Any) -> dict[str, Any]:
        names = (
            "limited",
            "innocent",
            "denied-401",
            "denied-402",
            "denied-403",
            "weary",
            "clung",
            "blamed",
            "spoofing",
            "killed",
            "reloaded",
            "late",
            "shown",
        )
        providers: dict[str, Any] = {
            name: {"base_url": self.stub.base_url, "keys": [{"value": key} for key in keys(name)]} for name in names
        }
        providers["clung"]["pick"] = "sticky"
        providers["rotated"] = {"base_url": self.stub.base_url, "keys": [{"file": str(self.rotated)}]}
        providers["keyless"] = {"base_url": self.stub.base_url}
        providers["backup"] = {"base_url": self.backup.base_url, "keys": [{"value": "pk-backup"}]}
        models: dict[str, Any] = {name: {"route": [[{"provider": name}]]} for name in providers}
        models["limited"] = {"route": [[{"provider": "limited"}], [{"provider": "backup"}]]}
        on = ["429", "401", "5xx"]
        models["blamed"] = {"route": [[{"provider": "blamed"}], [{"provider": "backup"}]], "retry": {"on": on}}
        models["keyless"] = {"route": [[{"provider": "blamed"}], [{"provider": "keyless"}]], "retry": {"on": on}}
        return {
            "server": {"transport": self.transport, **server},
            "providers": providers,
            "models": models,
            "consumers": {"acme": {"keys": [{"value": ACME}]}, "globex": {"keys": [{"value": GLOBEX}]}},
        }

    def refuse(self, key: str, status: int, **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.stub.by_key[key] = Behaviour(status=status, headers=named)

    def chat(self, model: str, key: str = ACME) -> Result:
        return Client(self.gateway.url, key).chat(model, "hi")

    def used(self, model: str, calls: int, key: str = ACME) -> list[str]:
        """The keys that so many calls in a row were made with."""
        self.stub.used.clear()
        for _ in range(calls):
            self.chat(model, key)
        return list(self.stub.used)

    def metric(self, name: str, **labels: str) -> float | None:
        for family in text_string_to_metric_families(self.gateway.metrics()):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return sample.value
        return None

    def available(self, provider: str, key: str) -> bool:
        value = self.metric("extproc_provider_key_available", provider=provider, key=key_id(Secret(key)))
        assert value is not None
        return value == 1

    def failures(self, provider: str, key: str, status: int) -> float:
        labels = {"provider": provider, "key": key_id(Secret(key)), "status": str(status)}
        return self.metric("extproc_provider_key_failures_total", **labels) or 0

    def cooled(self, provider: str, key: str) -> None:
        """Wait until everybody knows that the key is to be left alone."""
        until(lambda: not self.available(provider, key), f"{key} cools down")
        time.sleep(0.1)  # from the supervisor to its worker


@pytest.fixture(name="transport", params=["grpcio", "granian"], scope="module")
def _transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(name="shared_site", scope="module")
def _shared_site(transport: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(transport, tmp_path_factory.mktemp("site"))
    with running(site.stub, site.backup):
        site.gateway = Gateway(site.config())
        with site.gateway:
            yield site


@pytest.fixture(name="site")
def _site(shared_site: Site) -> Site:
    for stub in (shared_site.stub, shared_site.backup):
        stub.by_key.clear()
        stub.used.clear()
        stub.clear()
    return shared_site


def test_a_key_over_its_limit(site: Site) -> None:
    """The client sees the fallback; the calls after it use the other key, until `retry-after` is over."""
    first, second = keys("limited")
    site.refuse(first, 429, retry_after="3")

    answers = [site.chat("limited") for _ in range(2)]
    began = time.monotonic()
    assert {answer.status for answer in answers} == {200}
    assert {answer.headers["x-served-by"] for answer in answers} == {"backup", "pool"}
    site.cooled("limited", first)

    assert site.used("limited", 5) == [second] * 5
    until(lambda: site.available("limited", first), "it is back")
    assert 2.5 < time.monotonic() - began < 6
    site.stub.by_key.clear()
    assert set(site.used("limited", 4)) == {first, second}
    assert site.failures("limited", first, 429) == 1


def test_mistakes_of_a_client(site: Site) -> None:
    """What a client did wrong, and what a provider suffers from, is not held against a key."""
    first, second = keys("innocent")
    for status in (400, 404, 408, 413, 422, 500, 503):
        site.refuse(first, status)
        site.refuse(second, status)
        assert site.chat("innocent").status == status
    time.sleep(0.6)

    assert (site.available("innocent", first), site.available("innocent", second)) == (True, True)
    assert 'provider="innocent",status' not in site.gateway.metrics()


@pytest.mark.parametrize("status", [401, 402, 403])
def test_a_key_that_is_not_accepted(site: Site, status: int) -> None:
    """After one attempt the other key makes every call."""
    name = f"denied-{status}"
    first, second = keys(name)
    site.refuse(first, status)
    until(lambda: site.chat(name).status != 200, "the key is tried")
    site.cooled(name, first)

    assert site.used(name, 6) == [second] * 6
    assert site.failures(name, first, status) == 1


def test_all_keys_cool(site: Site) -> None:
    """The one that is back first is used, and what the provider says reaches the client."""
    first, second = keys("weary")
    site.refuse(first, 429, retry_after="60")
    site.refuse(second, 429, retry_after="30")
    assert [site.chat("weary").status for _ in range(2)] == [429, 429]
    site.cooled("weary", first)
    site.cooled("weary", second)

    assert site.used("weary", 3) == [second] * 3
    site.stub.by_key.clear()
    assert site.chat("weary").status == 200


def test_sticky(site: Site) -> None:
    """A consumer keeps its key; when that cools, it has the other one."""
    (mine,) = set(site.used("clung", 5))
    (theirs,) = set(site.used("clung", 5, GLOBEX))
    (other,) = set(keys("clung")) - {mine}

    site.refuse(mine, 403)
    site.chat("clung")
    site.cooled("clung", mine)

    assert site.used("clung", 3) == [other] * 3
    assert theirs in keys("clung")


def test_who_is_blamed(site: Site) -> None:
    """Each attempt's answer is held against its own key, and against nobody where it had none."""
    first, second = keys("blamed")
    for key in (first, second, ""):
        site.refuse(key, 503 if key else 401)
    site.backup.by_key["pk-backup"] = Behaviour(status=429, headers={"retry-after": "1"})
    assert site.chat("blamed").status == 429
    assert site.chat("keyless").status == 502
    site.cooled("backup", "pk-backup")
    time.sleep(0.5)

    assert (site.available("blamed", first), site.available("blamed", second)) == (True, True)
    assert site.failures("backup", "pk-backup", 429) == 1
    assert 'provider="blamed",status' not in site.gateway.metrics()


def test_nobody_sees_how_it_is_done(site: Site) -> None:
    """A provider gets no header more, a client reads none, and a provider cannot blame another's key."""
    first, second = keys("spoofing")
    victim = f"limited/{key_id(Secret(keys('limited')[1]))}"
    for key in (first, second):
        site.refuse(key, 403, x_extproc_provider_key=victim)
    refused = site.chat("spoofing")
    site.stub.by_key.clear()
    whole = site.chat("spoofing")
    streamed = Client(site.gateway.url, ACME).chat("spoofing", "hi", stream=True)
    until(lambda: sum(site.failures("spoofing", key, 403) for key in (first, second)) == 1, "it is heard")

    assert [answer.status for answer in (refused, whole, streamed)] == [502, 200, 200]
    for answer in (refused, whole, streamed):
        assert {name for name in answer.headers if name.startswith("x-extproc-")} == {"x-extproc-call-id"}
    for request in site.stub.requests:
        assert {name for name in request.headers if name.startswith("x-")} == set()
    assert site.failures("limited", keys("limited")[1], 403) == 0


def test_a_worker_that_is_new(site: Site) -> None:
    """It does not try again what its predecessor has learnt."""
    first, second = keys("killed")
    site.refuse(first, 401)
    until(lambda: site.chat("killed").status == 502, "the key is tried")
    site.cooled("killed", first)

    (worker,) = site.gateway.health()["workers"]
    os.kill(worker["pid"], signal.SIGKILL)
    until(lambda: site.gateway.health()["workers"][0]["pid"] != worker["pid"], "another worker is there")
    until(lambda: site.chat("killed").status == 200, "it answers")

    assert site.used("killed", 4) == [second] * 4


def test_a_changed_configuration(site: Site) -> None:
    """A key that is still there cools on; one whose file has changed is a new key, used by the next attempt."""
    first, second = keys("reloaded")
    site.refuse(first, 401)
    until(lambda: site.chat("reloaded").status == 502, "the key is tried")
    site.cooled("reloaded", first)
    assert site.used("rotated", 1) == ["pk-rotated-first"]
    before = site.gateway.health()["config"]["digest"]

    site.rotated.write_text("pk-rotated-anew\n")
    until(lambda: site.gateway.health()["config"]["digest"] != before, "the new configuration is in force")

    assert site.used("rotated", 1) == ["pk-rotated-anew"]
    assert site.available("rotated", "pk-rotated-anew")
    assert f'key="{key_id(Secret("pk-rotated-first"))}"' not in site.gateway.metrics()
    assert site.used("reloaded", 4) == [second] * 4


def test_no_key_is_shown(site: Site) -> None:
    """Not in logs, metrics, health, Envoy's files, its configuration dump or its access log; ids are."""
    first, _ = keys("shown")
    site.refuse(first, 401)
    until(lambda: site.chat("shown").status == 502, "the key is tried")
    site.cooled("shown", first)
    gateway = site.gateway
    until(lambda: key_id(Secret(first)) in gateway.access_log(), "the access log names the key")
    pages = (
        f"{gateway.envoy}/config_dump",
        f"{gateway.envoy}/stats",
        f"{gateway.http}/metrics",
        f"{gateway.http}/healthz",
    )
    shown = [(gateway.get(page) or b"").decode() for page in pages]
    shown += [file.read_text() for file in (gateway.directory / "envoy").iterdir()]
    shown += [gateway.log(), gateway.access_log()]

    assert all(shown)
    assert [text for text in shown if "pk-" in text] == []
    assert f'"key":"{key_id(Secret(first))}"' in gateway.log()


@pytest.mark.parametrize("over", ["unix", "tcp"])
def test_envoy_before_us(site: Site, over: str) -> None:
    """An Envoy that runs while nobody serves the access log finds it when it is there."""
    first, second = keys("late")
    address = {"access_log": f"127.0.0.1:{free_port()}"} if over == "tcp" else {}
    late = Site(site.transport, site.rotated.parent)
    late.stub, late.backup = site.stub, site.backup
    late.gateway = Gateway(late.config(**address), command="serve")
    with late.gateway.envoy_alone():
        assert late.chat("late").status == 503
        time.sleep(1)
        with late.gateway:
            until(lambda: late.chat("late").status == 200, "calls are answered")
            late.refuse(first, 403)
            until(lambda: late.chat("late").status == 502, "the key is tried")
            late.cooled("late", first)

            assert late.used("late", 4) == [second] * 4
