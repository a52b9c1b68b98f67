"""Listener and routes: who gets where, for how long, and what nobody can pretend."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from envoyconf.configs import MANY, ONE, Tree, clusters, load, manager, rendered, routes, text
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from extproc.envoyconf.lint import lint
from extproc.envoyconf.render import bootstrap
from extproc.process.envoy import validate


def test_one_route_for_each_model_and_dialect() -> None:
    """A model is routed by its name, for each dialect that a target of it speaks; the rest ends in 404."""
    found = routes(rendered(MANY))

    assert list(found) == ["deepseek-r1 (anthropic)", "deepseek-r1 (openai)", "claude (anthropic)", "no-model"]
    assert found["deepseek-r1 (openai)"]["match"] == {
        "prefix": "/v1/",
        "headers": [{"name": "x-extproc-model", "string_match": {"exact": "deepseek-r1"}}],
    }
    assert found["claude (anthropic)"]["match"]["prefix"] == "/v1/messages"
    assert found["no-model"]["direct_response"]["status"] == 404


def test_messages_before_the_rest() -> None:
    """The longer prefix stands first, or its calls would go where the other dialect is spoken."""
    names = list(routes(rendered(MANY)))

    assert names.index("deepseek-r1 (anthropic)") < names.index("deepseek-r1 (openai)")


def test_times() -> None:
    """No limit on a stream's length; silence is the retry policy's."""
    action = routes(rendered(MANY))["deepseek-r1 (openai)"]["route"]

    assert (action["timeout"], action["idle_timeout"]) == ("0s", "0s")
    assert action["retry_policy"]["per_try_idle_timeout"] == "20s"
    assert manager(rendered(ONE))["stream_idle_timeout"] == "0s"
    assert manager(rendered(ONE))["request_timeout"] == "120s"


def test_host_is_each_attempts_own() -> None:
    """The Host header follows the endpoint that was picked."""
    assert routes(rendered(MANY))["deepseek-r1 (openai)"]["route"]["auto_host_rewrite"] is True


@pytest.mark.parametrize(
    ("on", "words", "statuses"),
    [
        (["connect"], {"connect-failure", "refused-stream", "reset-before-request"}, None),
        (["reset"], {"reset", "reset-before-request"}, None),
        (["5xx"], {"5xx", "reset-before-request"}, None),
        ([429, 503], {"retriable-status-codes", "reset-before-request"}, [429, 503]),
        (["4xx", 404], {"retriable-status-codes", "reset-before-request"}, list(range(400, 500))),
        ([], {"reset-before-request"}, None),
    ],
)
def test_when_it_is_retried(on: list[Any], words: set[str], statuses: list[int] | None) -> None:
    """Our words become Envoy's."""
    tree = {**ONE, "models": {"m": {"route": {"provider": "near"}, "retry": {"on": on}}}}
    policy = routes(rendered(tree))["m (openai)"]["route"]["retry_policy"]

    assert set(policy["retry_on"].split(",")) == words
    assert policy.get("retriable_status_codes") == statuses


def test_internal_headers_are_removed_first() -> None:
    """Before a route is looked at, and again before a provider sees the request."""
    made = rendered(ONE)
    [extension] = manager(made)["early_header_mutation_extensions"]
    prefixes = [m["remove_on_match"]["key_matcher"]["prefix"] for m in extension["typed_config"]["mutations"]]

    assert prefixes == ["x-extproc-", "x-envoy-"]
    removed = routes(made)["m (openai)"]["request_headers_to_remove"]
    assert {"x-extproc-model", "x-forwarded-for", "x-request-id"} <= set(removed)
    assert manager(made)["use_remote_address"] is True


def test_sizes() -> None:
    """What must be held whole fits, at every place that holds it."""
    made = rendered(MANY)
    largest = (64 << 20) + (1 << 20)  # an attempt's body may be longer than the client's

    assert made.listeners[0]["per_connection_buffer_limit_bytes"] >= largest
    assert manager(made)["http2_protocol_options"]["initial_stream_window_size"] >= largest
    assert made.routes[0]["virtual_hosts"][0]["request_body_buffer_limit"] == 16 << 20
    for cluster in made.clusters:
        if cluster["name"] == "extproc-access-log":
            continue  # bodies do not go there
        assert cluster["per_connection_buffer_limit_bytes"] >= largest


def test_our_filter_is_the_first_and_the_router_the_last() -> None:
    """Nothing of Envoy's sees a call before we do."""
    kinds = [f["typed_config"]["@type"].rpartition(".")[2] for f in manager(rendered(ONE))["http_filters"]]

    assert kinds == ["ExternalProcessor", "Router"]


@pytest.mark.parametrize(("setting", "log"), [("-", "StdoutAccessLog"), ("a.log", "FileAccessLog"), ("", None)])
def test_access_log(setting: str, log: str | None) -> None:
    """To standard output, to a file, or none; and to our own service in any case."""
    found = manager(rendered({**ONE, "gateway": {"access_log": setting}}))["access_log"]

    assert [x["typed_config"]["@type"].rpartition(".")[2] for x in found] == [
        *([log] if log else []),
        "HttpGrpcAccessLogConfig",
    ]


def test_routes_of_their_own(tmp_path: Path) -> None:
    """For files, the listener asks for its routes beside it, so that they can change without it."""
    made = rendered(ONE, tmp_path)
    loaded, _ = load(ONE)

    source = manager(made)["rds"]["config_source"]["path_config_source"]
    assert source["path"] == f"{tmp_path}/routes.yaml"
    assert source["watched_directory"]["path"] == str(tmp_path)
    assert "route_config" not in manager(made)
    started = yaml.safe_load(bootstrap(loaded.config, tmp_path))
    assert set(started["dynamic_resources"]) == {"cds_config", "lds_config"}


def test_each_target_once() -> None:
    """Models that share a target share its cluster; a target with weight 0 has one too."""
    names = list(clusters(rendered(MANY)))

    assert len(names) == len(set(names))
    assert set(names) == {
        "extproc-router-stage",
        "extproc-upstream-stage",
        "extproc-access-log",
        "near/R1",
        "six/deepseek-r1",
        "far/deepseek-chat",
        "azure/gpt-eu",
        "claude/opus",
        "claude/claude",
    }


@pytest.mark.parametrize("tree", [ONE, MANY], ids=["one", "many"])
def test_no_secret_is_rendered(tree: Tree) -> None:
    """Keys are ours alone: Envoy's files hold none."""
    assert "secret" not in text(tree)


NAMES = st.text("abcXYZ019._:/@ -", min_size=1, max_size=12).filter(lambda name: name[0].isalnum())
TARGETS = st.fixed_dictionaries(
    {"provider": st.sampled_from(["near", "far", "azure", "claude", "six"]), "weight": st.integers(1, 100)},
    optional={"model": NAMES},
)
MODELS = st.dictionaries(
    NAMES, st.fixed_dictionaries({"route": st.lists(st.lists(TARGETS, min_size=1, max_size=3), min_size=1, max_size=3)})
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(MODELS, st.sampled_from(["grpcio", "granian"]), st.sampled_from(["unix:a.sock", "127.0.0.1:9", "host:9"]))
def test_any_configuration(models: Tree, transport: str, address: str) -> None:
    """Whatever is asked for, every route leads to clusters that are there, and our own lint finds nothing to mend."""
    tree = {**MANY, "models": models, "server": {"transport": transport, "grpc": address}}
    written = text(tree)

    assert [f for f in lint(written, max_body=16 << 20) if f.severity != "info"] == []


@pytest.mark.e2e
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"server": {"transport": "grpcio"}},
        {"server": {"grpc": "127.0.0.1:9002"}},
        {"server": {"grpc": "processor.internal:9002"}},
        {"server": {"grpc": "[::1]:9002", "workers": 4}, "state": {"url": "redis://x"}},
        {"server": {"grpc": "localhost:9002", "tls": {"cert": "CERT", "key": "KEY", "ca": "CERT"}}},
        {"gateway": {"listen": "[::]:8080", "access_log": ""}},
    ],
    ids=["default", "grpcio", "tcp", "name", "workers", "tls", "ipv6"],
)
@pytest.mark.parametrize("tree", [ONE, MANY], ids=["one", "many"])
def test_envoy_accepts_it(tree: Tree, change: Tree, tmp_path: Path) -> None:
    """The real one, with every rule that it has."""
    from wire.rig import certificates

    pem = certificates(tmp_path)
    merged = {**tree, **change, "gateway": {**tree.get("gateway", {}), **change.get("gateway", {})}}
    written = text(merged).replace("filename: CERT", f"filename: {pem.ca}")

    assert not validate(written, tmp_path)
