"""Each rule: the rendered configuration is clean, and one wrong turn in it is found where it is."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from extproc.app import check
from extproc.config.load import parse
from extproc.envoyconf.lint import Finding, lint
from extproc.envoyconf.render import resources, static

CONFIG = """
providers:
  near: {base_url: "http://127.0.0.1:9001/v1"}
  far: {kind: deepseek, keys: [{value: provider-key}]}
models:
  m: {route: [[{provider: near, weight: 90}, {provider: far, weight: 10}], [{provider: far, model: other}]]}
consumers: {acme: {keys: [{value: sk-acme-example}]}}
"""

LISTENER = "static_resources.listeners[0]"
MANAGER = f"{LISTENER}.filter_chains[0].filters[0].typed_config"
STAGE = f"{MANAGER}.http_filters[0].typed_config"
ROUTE = f"{MANAGER}.route_config.virtual_hosts[0].routes[0]"
OPTIONS = "typed_extension_protocol_options.envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
NEAR = "static_resources.clusters[3]"
FAR = "static_resources.clusters[4]"
UPSTREAM = f"{NEAR}.{OPTIONS}.http_filters[0].typed_config"


@pytest.fixture(name="good", scope="module")
def _good() -> Any:
    loaded = parse(CONFIG.encode(), Path("extproc.yaml"))
    built = check(loaded)
    return yaml.safe_load(static(loaded.config, resources(loaded.config, built.models, built.providers)))


def at(tree: Any, path: str) -> Any:
    """The value at a path as findings write it."""
    for key in re.findall(r"envoy\.extensions\.upstreams\.http\.v3\.HttpProtocolOptions|[^.\[\]]+", path):
        tree = tree[int(key)] if isinstance(tree, list) else tree[key]
    return tree


def change(tree: Any, path: str, value: Any) -> None:
    parent, _, key = path.rpartition(".")
    if value is None:
        at(tree, parent).pop(key, None)
    else:
        at(tree, parent)[key] = value


def found(tree: Any) -> list[Finding]:
    return lint(yaml.safe_dump(tree, sort_keys=False))


def camel(tree: Any) -> Any:
    """The same with lowerCamelCase names, as protobuf's JSON writes them."""
    if isinstance(tree, list):
        return [camel(x) for x in tree]
    if not isinstance(tree, dict):
        return tree
    return {re.sub(r"_([a-z])", lambda m: m[1].upper(), k) if "." not in k else k: camel(v) for k, v in tree.items()}


def test_what_we_render_is_clean(good: Any) -> None:
    """The rendered configuration has nothing that would hurt, in either spelling."""
    assert found(good) == []
    assert found(camel(good)) == []


def test_a_size_to_write_has_room(good: Any) -> None:
    """A body of `max_body` grows by what an attempt adds to it, so a limit of just that size would be too small."""
    tree = copy.deepcopy(good)
    change(tree, f"{LISTENER}.per_connection_buffer_limit_bytes", 1 << 20)
    change(tree, f"{MANAGER}.http2_protocol_options.initial_stream_window_size", 1 << 20)

    assert [f.fix.partition(": ")[2] for f in found(tree)] == [str((8 << 20) + (1 << 20))] * 2


WRONG = [
    (f"{STAGE}.failure_mode_allow", True, "fails-open", "error"),
    (f"{UPSTREAM}.failure_mode_allow", True, "fails-open", "error"),
    (f"{STAGE}.disable_immediate_response", True, "fails-open", "error"),
    (f"{STAGE}.observability_mode", True, "fails-open", "error"),
    (f"{STAGE}.message_timeout", None, "message-timeout", "warning"),
    (f"{UPSTREAM}.message_timeout", "0.5s", "message-timeout", "warning"),
    (f"{STAGE}.grpc_service.timeout", "30s", "grpc-timeout", "warning"),
    (f"{STAGE}.grpc_service.initial_metadata", None, "stage-name", "error"),
    (f"{STAGE}.processing_mode.request_body_mode", "STREAMED", "processing-mode", "error"),
    (f"{STAGE}.processing_mode.request_header_mode", "SKIP", "processing-mode", "error"),
    (f"{UPSTREAM}.processing_mode.request_body_mode", "FULL_DUPLEX_STREAMED", "processing-mode", "error"),
    (f"{UPSTREAM}.processing_mode.response_header_mode", None, "processing-mode", "error"),
    (f"{STAGE}.allow_mode_override", None, "mode-override", "error"),
    (f"{STAGE}.metadata_options.receiving_namespaces", None, "metadata-namespaces", "error"),
    (f"{UPSTREAM}.metadata_options.forwarding_namespaces", None, "metadata-namespaces", "error"),
    (f"{STAGE}.response_attributes", None, "attributes", "warning"),
    (f"{UPSTREAM}.request_attributes", None, "attributes", "error"),
    (f"{STAGE}.forward_rules.allowed_headers", {"patterns": [{"exact": ":path"}]}, "headers-withheld", "error"),
    (f"{STAGE}.grpc_service.envoy_grpc.cluster_name", "nowhere", "unknown-cluster", "error"),
    ("static_resources.clusters[0].circuit_breakers", None, "circuit-breaker", "warning"),
    ("static_resources.clusters[1].per_connection_buffer_limit_bytes", None, "buffer-limit", "warning"),
    ("static_resources.clusters[0].typed_extension_protocol_options", None, "processor-http2", "error"),
    (f"{LISTENER}.per_connection_buffer_limit_bytes", None, "buffer-limit", "warning"),
    (f"{MANAGER}.route_config.virtual_hosts[0].request_body_buffer_limit", 65536, "buffer-limit", "warning"),
    (f"{MANAGER}.http2_protocol_options.initial_stream_window_size", 1 << 20, "buffer-limit", "warning"),
    (f"{MANAGER}.stream_idle_timeout", "60s", "stream-idle-timeout", "warning"),
    (f"{MANAGER}.early_header_mutation_extensions", None, "spoofable-header", "warning"),
    (f"{MANAGER}.access_log", None, "access-log", "info"),
    (f"{MANAGER}.access_log", None, "access-log-service", "info"),
    (f"{MANAGER}.http_filters[1].typed_config.upstream_log", None, "access-log-service", "info"),
    (f"{MANAGER}.http_filters[0].disabled", True, "bypass", "error"),
    (f"{ROUTE}.route.timeout", None, "route-timeout", "warning"),
    (f"{ROUTE}.route.timeout", "20s", "route-timeout", "warning"),
    (f"{ROUTE}.route.retry_policy.per_try_timeout", "30s", "per-try-timeout", "warning"),
    (f"{ROUTE}.route.retry_policy.per_try_idle_timeout", None, "first-byte", "info"),
    (f"{ROUTE}.route.retry_policy.retry_on", None, "retry-on", "warning"),
    (f"{ROUTE}.route.retry_policy.retry_on", "5xx", "retry-on", "warning"),
    (f"{ROUTE}.route.retry_policy.refresh_cluster_on_retry", None, "refresh-cluster", "error"),
    (f"{ROUTE}.route.retry_policy", None, "no-retry", "warning"),
    (f"{NEAR}.circuit_breakers", None, "circuit-breaker", "warning"),
    (f"{FAR}.transport_socket", None, "tls", "error"),
    (f"{FAR}.transport_socket.typed_config.sni", None, "tls", "warning"),
    (f"{FAR}.transport_socket.typed_config.common_tls_context.validation_context", None, "tls", "error"),
    (f"{FAR}.{OPTIONS}.http_filters", None, "no-upstream-stage", "error"),
]


@pytest.mark.parametrize(("path", "value", "rule", "severity"), WRONG)
def test_a_wrong_turn_is_found(good: Any, path: str, value: Any, rule: str, severity: str) -> None:
    """One change for the worse gives this finding, at this place or right above it."""
    tree = copy.deepcopy(good)
    change(tree, path, value)

    findings = [f for f in found(tree) if f.rule == rule]

    assert findings
    assert findings[0].severity == severity
    assert path.startswith(findings[0].path) or findings[0].path.startswith(path.rpartition(".")[0])
    assert findings[0].line
    assert findings[0].message
    assert findings[0].fix


def _drop_router_stage(tree: Any) -> None:
    at(tree, MANAGER)["http_filters"].pop(0)


def _swap_filters(tree: Any) -> None:
    at(tree, MANAGER)["http_filters"].reverse()


def _disable_on_route(tree: Any) -> None:
    at(tree, ROUTE)["typed_per_filter_config"] = {
        "envoy.filters.http.ext_proc": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExtProcPerRoute",
            "disabled": True,
        }
    }


def _append_header(tree: Any) -> None:
    header = {"header": {"key": "x-extproc-model", "value": "m"}}
    at(tree, ROUTE)["request_headers_to_add"] = [header]


def _copy_key(tree: Any) -> None:
    header = {"header": {"key": "x-key", "value": "%REQ(authorization)%"}, "append_action": "ADD_IF_ABSENT"}
    at(tree, ROUTE)["request_headers_to_add"] = [header]


def _codec_first(tree: Any) -> None:
    at(tree, f"{NEAR}.{OPTIONS}")["http_filters"].reverse()


def _few_retries(tree: Any) -> None:
    for threshold in at(tree, f"{NEAR}.circuit_breakers")["thresholds"]:
        del threshold["max_retries"]


def _second_worker(tree: Any) -> None:
    cluster = tree["static_resources"]["clusters"][0]
    endpoints = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    endpoints.append(copy.deepcopy(endpoints[0]))
    del cluster["health_checks"]


def _one_cluster_for_both(tree: Any) -> None:
    at(tree, UPSTREAM)["grpc_service"]["envoy_grpc"]["cluster_name"] = "extproc-router-stage"


def _route_to_nowhere(tree: Any) -> None:
    at(tree, ROUTE)["route"]["cluster"] = "nowhere"


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        (_drop_router_stage, "bypass"),
        (_swap_filters, "filter-order"),
        (_disable_on_route, "bypass"),
        (_append_header, "spoofable-header"),
        (_copy_key, "key-leak"),
        (_codec_first, "upstream-codec"),
        (_few_retries, "max-retries"),
        (_second_worker, "health-checks"),
        (_one_cluster_for_both, "shared-cluster"),
        (_route_to_nowhere, "unknown-cluster"),
    ],
)
def test_a_wrong_structure_is_found(good: Any, wrong: Callable[[Any], None], rule: str) -> None:
    """What takes more than one value to get wrong."""
    tree = copy.deepcopy(good)
    wrong(tree)

    assert rule in {f.rule for f in found(tree)}


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "empty"),
        ("a: [", "yaml"),
        ("just text", "not-envoy"),
        ("modles: {}", "not-envoy"),
        ("static_resources: {clusters: [{name: x, transport_socket: {typed_config: {sni: x}}}]}", "no-type"),
    ],
)
def test_a_file_that_is_none(text: str, rule: str) -> None:
    """A file that cannot be judged says why, and raises nothing."""
    assert rule in {f.rule for f in lint(text)}


OFF = {
    "envoy.filters.http.ext_proc": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExtProcPerRoute",
        "disabled": True,
    }
}


def test_a_whole_host_without_us(good: Any) -> None:
    """A virtual host that turns us off leads past us, if a model is behind it."""
    tree = copy.deepcopy(good)
    at(tree, f"{MANAGER}.route_config.virtual_hosts[0]")["typed_per_filter_config"] = OFF

    assert [(f.severity, f.path.endswith("disabled")) for f in found(tree) if f.rule == "bypass"] == [("error", True)]


def _other_host(tree: Any) -> None:
    shop = {"match": {"prefix": "/"}, "route": {"cluster": "shop"}}
    host = {"name": "shop", "domains": ["shop.example.com"], "typed_per_filter_config": OFF, "routes": [shop]}
    at(tree, f"{MANAGER}.route_config")["virtual_hosts"].append(host)


def _other_listener(tree: Any) -> None:
    listener = copy.deepcopy(at(tree, LISTENER))
    listener["name"] = "other"
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    manager["http_filters"] = manager["http_filters"][-1:]
    manager["route_config"]["virtual_hosts"][0]["routes"] = [{"match": {"prefix": "/"}, "route": {"cluster": "shop"}}]
    tree["static_resources"]["listeners"].append(listener)


@pytest.mark.parametrize("add", [_other_host, _other_listener])
def test_other_traffic_is_left_alone(good: Any, add: Callable[[Any], None]) -> None:
    """What is no model's may keep its 15 seconds, its 1024 requests and its own headers."""
    tree = copy.deepcopy(good)
    tree["static_resources"]["clusters"].append({"name": "shop", "type": "STATIC", "connect_timeout": "1s"})
    add(tree)

    assert [f for f in found(tree) if f.severity != "info"] == []


def test_another_listener_that_leads_to_a_model(good: Any) -> None:
    """A second way to a model's cluster, without us, is a way past us."""
    tree = copy.deepcopy(good)
    _other_listener(tree)
    name = at(good, NEAR)["name"]
    tree["static_resources"]["listeners"][1]["filter_chains"][0]["filters"][0]["typed_config"]["route_config"][
        "virtual_hosts"
    ][0]["routes"][0]["route"]["cluster"] = name

    assert "bypass" in {f.rule for f in found(tree)}


def test_lines_are_those_of_the_file(good: Any) -> None:
    """The line is where the operator looks."""
    tree = copy.deepcopy(good)
    change(tree, f"{STAGE}.failure_mode_allow", True)
    text = yaml.safe_dump(tree, sort_keys=False)

    finding = next(f for f in lint(text) if f.rule == "fails-open")

    assert "failure_mode_allow: true" in text.splitlines()[(finding.line or 0) - 1]


def test_discovery_files_are_read_too(good: Any) -> None:
    """Listeners and clusters in files of their own, as documents of one stream."""
    listener = {"@type": "type.googleapis.com/envoy.config.listener.v3.Listener", **at(good, LISTENER)}
    clusters = [
        {"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", **c}
        for c in copy.deepcopy(good["static_resources"]["clusters"])
    ]
    del clusters[3]["circuit_breakers"]
    text = yaml.safe_dump_all([{"resources": [listener]}, {"resources": clusters}], sort_keys=False)

    assert {"circuit-breaker", "max-retries"} == {f.rule for f in lint(text)}
