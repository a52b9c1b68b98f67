"""A changed file takes effect with no restart, no dropped call and no broken stream; a wrong one is refused whole."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from extproc.demo.client import Client
from extproc.demo.gateway import Gateway
from extproc.demo.stub import Behaviour, StubProvider, running
from extproc.demo.waiting import until

pytestmark = pytest.mark.e2e

KEY = "sk-acme-example"


class Stage:
    """Two stubs and a gateway whose configuration the tests change."""

    def __init__(self, transport: str) -> None:
        self.old = StubProvider("old")
        self.new = StubProvider("new")
        self.transport = transport
        self.gateway: Gateway

    def config(self, **changes: Any) -> dict[str, Any]:
        config = {
            "server": {"transport": self.transport},
            "providers": {"old": {"base_url": self.old.base_url}, "new": {"base_url": self.new.base_url}},
            "models": {"m": {"route": [[{"provider": "old"}]]}},
            "consumers": {"acme": {"keys": [{"value": KEY}]}},
        }
        return config | changes

    def digest(self) -> str:
        digest: str = self.gateway.health()["config"]["digest"]
        return digest

    def change(self, **changes: Any) -> None:
        """Write a changed file and wait until it is in force."""
        before = self.digest()
        self.gateway.write(self.config(**changes))
        until(lambda: self.digest() != before, "the new configuration is in force")

    def served_by(self, model: str = "m") -> str:
        return Client(self.gateway.url, KEY).chat(model, "hi").headers.get("x-served-by", "")


@pytest.fixture(name="stage", params=["grpcio", "granian"])
def _stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    stage = Stage(request.param)
    with running(stage.old, stage.new):
        stage.gateway = Gateway(stage.config())
        with stage.gateway:
            yield stage


def test_weights_move_under_load_without_an_error(stage: Stage) -> None:
    """A route moved from one provider to another, and its old cluster removed, drops no call and breaks no stream."""
    stage.old.models["m"] = Behaviour(events=250, pace=0.02)
    results: list[tuple[int, int]] = []

    def long_stream() -> None:
        answer = Client(stage.gateway.url, KEY).chat("m", "go on", stream=True)
        results.append((answer.status, len([e for e in answer.events if e != "[DONE]"])))

    stop = threading.Event()
    statuses: list[int] = []

    def short_calls() -> None:
        client = Client(stage.gateway.url, KEY)
        while not stop.is_set():
            statuses.append(client.chat("short", "hi").status)

    stage.gateway.write(stage.config(models=_models("old", short="old")))
    until(lambda: stage.served_by("short") == "old", "the model `short` is known")
    threads = [threading.Thread(target=long_stream) for _ in range(4)]
    load = threading.Thread(target=short_calls)
    for thread in (*threads, load):
        thread.start()
    until(lambda: stage.old.open_connections >= 4, "the streams have begun")
    for share in (90, 50, 10):
        stage.change(models=_models(("old", share), ("new", 100 - share), short="new"))
    stage.change(providers={"new": {"base_url": stage.new.base_url}}, models=_models("new", short="new"))
    until(lambda: stage.served_by() == "new", "the new provider answers")
    for thread in threads:
        thread.join(60)
    stop.set()
    load.join(10)

    assert results == [(200, 252)] * 4
    assert {200} == set(statuses)


def test_streams_live_through_a_new_listener_and_a_new_cluster(stage: Stage) -> None:
    """What Envoy replaces whole, listener or cluster, goes on for the streams that it has."""
    stage.old.models["m"] = Behaviour(events=250, pace=0.02)
    events: list[str] = []
    thread = threading.Thread(
        target=lambda: events.extend(Client(stage.gateway.url, KEY).chat("m", "go on", stream=True).events)
    )
    thread.start()
    until(lambda: stage.old.open_connections > 0, "the stream has begun")
    stage.change(gateway={"request_timeout": "77s"})
    old = {"base_url": stage.old.base_url, "connect_timeout": "7s"}
    stage.change(gateway={"request_timeout": "77s"}, providers={**stage.config()["providers"], "old": old})
    assert not events  # it goes on
    thread.join(20)

    assert events[-1] == "[DONE]"
    assert '"how":"aborted"' not in stage.gateway.log()


def _models(*targets: str | tuple[str, int], short: str) -> dict[str, Any]:
    group = [
        {"provider": t, "weight": 1} if isinstance(t, str) else {"provider": t[0], "weight": t[1]} for t in targets
    ]
    return {"m": {"route": [group]}, "short": {"route": [[{"provider": short}]]}}


def test_a_provider_that_moves_is_followed(stage: Stage) -> None:
    """The same names with another base URL: the cluster is exchanged in place."""
    assert stage.served_by() == "old"

    stage.change(providers={"old": {"base_url": stage.new.base_url}, "new": {"base_url": stage.new.base_url}})

    until(lambda: stage.served_by() == "new", "the moved provider answers")


def test_a_new_consumer_and_a_revoked_one(stage: Stage) -> None:
    """A key works as soon as the file with it is in force, and no longer than that."""
    stage.change(consumers={"globex": {"keys": [{"value": "sk-globex-example"}]}})

    assert Client(stage.gateway.url, "sk-globex-example").chat("m", "hi").status == 200
    assert Client(stage.gateway.url, KEY).chat("m", "hi").status == 401


@pytest.mark.parametrize(
    ("changes", "path", "reason"),
    [
        ({"models": {"m": {"route": [[{"provider": "nobody"}]]}}}, "models.m.route[0][0].provider", "nobody"),
        ({"modles": {}}, "modles", "unknown key"),
        ({"providers": {"old": {"base_url": "ftp://x"}, "new": {"base_url": "http://x"}}}, "providers.old", "http://"),
        ({"server": {"workers": 3}, "state": {"url": "redis://localhost"}}, "server", "restart"),
    ],
)
def test_a_wrong_file_is_refused_whole(stage: Stage, changes: dict[str, Any], path: str, reason: str) -> None:
    """The old configuration stays; path and reason are on the admin port, in the log and in the metrics."""
    before = stage.digest()

    stage.gateway.write(stage.config(**changes))
    until(lambda: stage.gateway.health()["config"]["refused"], "the file is refused")

    health = stage.gateway.health()
    problem = health["config"]["refused"]["problems"][0]
    assert path == problem["path"]
    assert reason in problem["message"]
    assert health["status"] == "degraded"
    assert before == health["config"]["digest"]
    assert "configuration refused" in stage.gateway.log()
    assert "extproc_config_last_reload_successful 0.0" in stage.gateway.metrics()
    assert stage.served_by() == "old"

    stage.gateway.write(stage.config())
    until(lambda: stage.gateway.health()["status"] == "ok", "the mended file is accepted")


def test_yaml_that_is_none_is_refused(stage: Stage) -> None:
    """Half a file, as a bad editor leaves it, changes nothing."""
    stage.gateway.file.write_text("models: {m: [")
    until(lambda: stage.gateway.health()["config"]["refused"], "the file is refused")

    assert stage.served_by() == "old"
