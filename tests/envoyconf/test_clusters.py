"""Clusters: our own two stages, and one for each target."""

from pathlib import Path
from typing import Any

import pytest
from envoyconf.configs import MANY, ONE, Tree, clusters, http_options, manager, rendered

from extproc.envoyconf import clusters as made
from extproc.wire.names import ATTRIBUTES

STAGES = ["extproc-router-stage", "extproc-upstream-stage"]
OURS = [*STAGES, "extproc-access-log"]


def target(name: str, tree: Tree = MANY) -> Tree:
    return clusters(rendered(tree))[name]


def stage_of(cluster: Tree) -> Tree:
    found: Tree = http_options(cluster)["http_filters"][0]["typed_config"]
    return found


def endpoint(cluster: Tree) -> Tree:
    found: Tree = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
    return found


# --- our own ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grpc", "kind", "address"),
    [
        ("127.0.0.1:9002", "STATIC", {"socket_address": {"address": "127.0.0.1", "port_value": 9002}}),
        ("[::1]:9002", "STATIC", {"socket_address": {"address": "::1", "port_value": 9002}}),
        ("processor:9002", "STRICT_DNS", {"socket_address": {"address": "processor", "port_value": 9002}}),
        ("unix:/run/extproc.sock", "STATIC", {"pipe": {"path": "/run/extproc.sock"}}),
    ],
)
def test_where_we_are(grpc: str, kind: str, address: Tree) -> None:
    """Both stages are at the server's address, each in a cluster of its own."""
    for name in STAGES:
        cluster = target(name, {**ONE, "server": {"grpc": grpc}})
        assert cluster["type"] == kind
        assert endpoint(cluster)["address"] == address


def test_a_relative_socket() -> None:
    """Envoy may run elsewhere: the path is made absolute."""
    cluster = target(STAGES[0], {**ONE, "server": {"grpc": "unix:run/x.sock"}})

    assert endpoint(cluster)["address"] == {"pipe": {"path": str(Path("run/x.sock").absolute())}}


def test_workers() -> None:
    """Each worker is an endpoint, so that Envoy balances and leaves out who is gone."""
    tree = {**ONE, "server": {"grpc": "127.0.0.1:9002", "workers": 3}, "state": {"url": "redis://x"}}
    [group] = target(STAGES[0], tree)["load_assignment"]["endpoints"]

    ports = [e["endpoint"]["address"]["socket_address"]["port_value"] for e in group["lb_endpoints"]]
    assert ports == [9002, 9003, 9004]


@pytest.mark.parametrize(("transport", "probe"), [("granian", "http_health_check"), ("grpcio", "grpc_health_check")])
def test_health_checks(transport: str, probe: str) -> None:
    """Envoy asks in the way that the transport answers."""
    [check] = target(STAGES[0], {**ONE, "server": {"transport": transport}})["health_checks"]

    assert probe in check


@pytest.mark.parametrize("name", STAGES)
def test_room_for_every_call(name: str) -> None:
    """A stream of ours for each open call: no breaker at 1024, no small windows."""
    cluster = target(name)
    for threshold in cluster["circuit_breakers"]["thresholds"]:
        limits = ("max_connections", "max_pending_requests", "max_requests", "max_retries")
        assert all(threshold[limit] >= 100_000 for limit in limits)
    http2 = http_options(cluster)["explicit_http_config"]["http2_protocol_options"]
    assert http2["initial_stream_window_size"] >= 1 << 20


@pytest.mark.parametrize(("transport", "streams"), [("granian", 1), ("grpcio", 100_000)])
def test_who_shares_a_connection(transport: str, streams: int) -> None:
    """With granian nobody: it closes a connection when clients leave too fast, with all that is on it."""
    for name in STAGES:
        http2 = http_options(target(name, {**ONE, "server": {"transport": transport}}))["explicit_http_config"]
        assert http2["http2_protocol_options"]["max_concurrent_streams"] == streams


@pytest.mark.parametrize("mutual", [False, True])
def test_tls_to_us(mutual: bool) -> None:
    """The server's certificate is verified; with `client`, Envoy shows one."""
    tls: dict[str, Any] = {"cert": "c", "key": "k", "ca": "ca"}
    tls |= {"client": {"cert": "cc", "key": "ck"}} if mutual else {}
    socket = target(STAGES[0], {**ONE, "server": {"grpc": "processor:9", "tls": tls}})["transport_socket"]

    assert socket["typed_config"]["sni"] == "processor"
    common = socket["typed_config"]["common_tls_context"]
    assert common["validation_context"]["trusted_ca"] == {"filename": "ca"}
    assert common["alpn_protocols"] == ["h2"]
    assert ("tls_certificates" in common) is mutual


def test_the_router_stage() -> None:
    """It fails closed, waits long enough, and sends what the exchange needs."""
    stage = manager(rendered({**ONE, "server": {"message_timeout": "45s"}}))["http_filters"][0]["typed_config"]

    assert stage["failure_mode_allow"] is False
    assert stage["message_timeout"] == "45s"
    assert stage["allow_mode_override"] is True
    assert stage["processing_mode"] == {
        "request_header_mode": "SEND",
        "request_body_mode": "BUFFERED",
        "response_header_mode": "SEND",
        "response_body_mode": "NONE",
        "request_trailer_mode": "SKIP",
        "response_trailer_mode": "SKIP",
    }
    assert set(stage["response_attributes"]) == set(ATTRIBUTES)
    assert stage["metadata_options"] == {"receiving_namespaces": {"untyped": ["extproc"]}}
    assert {"key": "x-extproc-stage", "value": "router"} in stage["grpc_service"]["initial_metadata"]


# --- targets ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "address", "port", "hostname"),
    [
        ("near/R1", None, "r1.internal", 8000, "r1.internal:8000"),
        ("six/deepseek-r1", "STATIC", "::1", 9001, "[::1]:9001"),
        ("far/deepseek-chat", None, "api.deepseek.com", 443, "api.deepseek.com"),
    ],
)
def test_where_a_target_is(name: str, kind: str | None, address: str, port: int, hostname: str) -> None:
    """The address of its base URL, and the Host header that belongs to it."""
    cluster = target(name)

    assert cluster.get("type") == kind
    assert ("cluster_type" in cluster) == (kind is None)  # a name, resolved again and again
    assert endpoint(cluster)["address"] == {"socket_address": {"address": address, "port_value": port}}
    assert endpoint(cluster)["hostname"] == hostname


def test_which_target_it_is() -> None:
    """The attempt reads from the cluster's metadata which provider and model it is for."""
    assert target("near/R1")["metadata"] == {"filter_metadata": {"extproc": {"provider": "near", "target": "R1"}}}


def test_the_upstream_stage() -> None:
    """Every target has it, before the codec, and it fails closed."""
    for name, cluster in clusters(rendered(MANY)).items():
        if name in OURS:
            continue
        kinds = [f["name"].rpartition(".")[2] for f in http_options(cluster)["http_filters"]]
        assert kinds == ["ext_proc", "header_mutation", "upstream_codec"]
        stage = stage_of(cluster)
        assert stage["failure_mode_allow"] is False
        assert (stage["processing_mode"]["request_header_mode"], stage["processing_mode"]["request_body_mode"]) == (
            "SEND",
            "BUFFERED",
        )
        assert stage["metadata_options"]["forwarding_namespaces"] == {"untyped": ["extproc"]}
        assert {"key": "x-extproc-stage", "value": "upstream"} in stage["grpc_service"]["initial_metadata"]
        assert stage["grpc_service"]["envoy_grpc"]["cluster_name"] == STAGES[1]


def test_limits_of_a_provider() -> None:
    """Connections and time to connect are its own."""
    assert target("near/R1")["circuit_breakers"]["thresholds"][0]["max_requests"] == 7777
    assert target("far/deepseek-chat")["connect_timeout"] == "2s"


def test_plain_http_is_http_1() -> None:
    """What has no TLS has no ALPN: servers of models speak HTTP/1.1 there."""
    assert http_options(target("near/R1"))["explicit_http_config"] == {"http_protocol_options": {}}
    assert "transport_socket" not in target("near/R1")


def test_tls_to_a_provider() -> None:
    """It is asked for by name, verified by name, and speaks the better of two protocols."""
    cluster = target("far/deepseek-chat")
    tls = cluster["transport_socket"]["typed_config"]
    validation = tls["common_tls_context"]["validation_context"]

    assert tls["sni"] == "api.deepseek.com"
    assert validation["trusted_ca"]["filename"] == str(made.system_ca())
    assert validation["match_typed_subject_alt_names"] == [
        {"san_type": "DNS", "matcher": {"exact": "api.deepseek.com"}}
    ]
    assert set(http_options(cluster)["auto_config"]) == {"http_protocol_options", "http2_protocol_options"}


@pytest.mark.parametrize(
    ("settings", "sni", "ca", "san"),
    [
        ({"base_url": "https://10.0.0.7/v1", "ca": "own.pem"}, None, "own.pem", ("IP_ADDRESS", "10.0.0.7")),
        ({"base_url": "https://[::1]/v1", "ca": "own.pem"}, None, "own.pem", ("IP_ADDRESS", "::1")),
        ({"base_url": "https://10.0.0.7/v1", "tls_name": "a.b", "ca": "own.pem"}, "a.b", "own.pem", ("DNS", "a.b")),
        ({"base_url": "https://x.y/v1"}, "x.y", "all.pem", ("DNS", "x.y")),
    ],
)
def test_tls_of_ones_own(settings: Tree, sni: str | None, ca: str, san: tuple[str, str]) -> None:
    """An address is verified as one and not asked for; `ca` and `tls_name` are the provider's, then the gateway's."""
    tree = {**ONE, "gateway": {"ca": "all.pem"}, "providers": {"near": settings}}
    tls = target("near/m", tree)["transport_socket"]["typed_config"]
    validation = tls["common_tls_context"]["validation_context"]

    assert tls.get("sni") == sni
    assert validation["trusted_ca"]["filename"] == ca
    [match] = validation["match_typed_subject_alt_names"]
    assert (match["san_type"], match["matcher"]["exact"]) == san


def test_no_trusted_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Better no start than a connection that believes anyone."""
    monkeypatch.setattr(made, "_CA_FILES", ("/nowhere/ca.pem",))

    with pytest.raises(FileNotFoundError, match=r"set gateway\.ca"):
        rendered(MANY)
