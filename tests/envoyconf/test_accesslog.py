"""What Envoy is asked to tell us later, and where to."""

from pathlib import Path
from typing import Any

import pytest
from envoyconf.configs import MANY, ONE, Tree, clusters, http_options, manager, rendered, text

from extproc.process.envoy import validate

SERVICE = "type.googleapis.com/envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig"
CLUSTER = "extproc-access-log"


def logs(tree: Tree) -> tuple[list[Tree], list[Tree]]:
    """The entries for our service: of the connection manager, and of the router."""
    found = manager(rendered(tree))
    router = found["http_filters"][-1]["typed_config"]
    of_calls = [log for log in found["access_log"] if log["typed_config"]["@type"] == SERVICE]
    return of_calls, router["upstream_log"]


@pytest.mark.parametrize(
    ("server", "address"),
    [
        ({}, {"pipe": {"path": str(Path("run/extproc-log.sock").absolute())}}),
        ({"grpc": "unix:/run/x.sock"}, {"pipe": {"path": "/run/x-log.sock"}}),
        ({"grpc": "unix:/run/x"}, {"pipe": {"path": "/run/x-log"}}),
        ({"access_log": "unix:/tmp/own"}, {"pipe": {"path": "/tmp/own"}}),
        (
            {"grpc": "127.0.0.1:1", "access_log": "127.0.0.1:9"},
            {"socket_address": {"address": "127.0.0.1", "port_value": 9}},
        ),
    ],
)
def test_where_it_is(server: Any, address: Tree) -> None:
    """Beside the server's own socket, or where the operator says; over HTTP/2, whatever the transport."""
    cluster = clusters(rendered({**ONE, "server": server}))[CLUSTER]

    [group] = cluster["load_assignment"]["endpoints"]
    assert [each["endpoint"]["address"] for each in group["lb_endpoints"]] == [address]
    assert "http2_protocol_options" in http_options(cluster)["explicit_http_config"]
    assert "health_checks" not in cluster


@pytest.mark.parametrize(("address", "secure"), [("logs:9", True), ("unix:/run/log.sock", False)])
def test_tls(address: str, secure: bool) -> None:
    """The server's own TLS guards it too, except on a Unix socket."""
    server = {"grpc": "processor:8", "access_log": address, "tls": {"cert": "c", "key": "k", "ca": "ca"}}
    cluster = clusters(rendered({**ONE, "server": server}))[CLUSTER]

    assert ("transport_socket" in cluster) is secure
    if secure:
        assert cluster["transport_socket"]["typed_config"]["sni"] == "logs"


def test_calls_without_our_last_word() -> None:
    """Only those that we began and did not settle, with the target that Envoy chose last."""
    [log], _ = logs(MANY)
    config = log["typed_config"]["common_config"]
    began, unsettled = [f["metadata_filter"] for f in log["filter"]["and_filter"]["filters"]]

    assert began["matcher"]["path"] == [{"key": "call_id"}]
    assert began["match_if_key_not_found"] is False
    assert unsettled["matcher"]["path"] == [{"key": "settled"}]
    assert unsettled["match_if_key_not_found"] is True
    assert {tag["tag"] for tag in config["custom_tags"]} == {"provider", "target"}
    assert config["grpc_service"] == {"envoy_grpc": {"cluster_name": CLUSTER}}


def test_attempts_about_the_key() -> None:
    """Those with one of four statuses, each named whole, with the key and what the provider says of waiting."""
    _, [log] = logs(MANY)
    comparisons = [f["status_code_filter"]["comparison"] for f in log["filter"]["or_filter"]["filters"]]

    assert {(c["op"], c["value"]["default_value"]) for c in comparisons} == {
        ("EQ", 401),
        ("EQ", 402),
        ("EQ", 403),
        ("EQ", 429),
    }
    assert log["typed_config"]["additional_response_headers_to_log"] == ["x-extproc-provider-key", "retry-after"]
    assert "additional_request_headers_to_log" not in log["typed_config"]


def test_the_key_is_noted_on_the_answer() -> None:
    """The provider's own header of that name goes first; requests are left alone."""
    [_, mark, _] = http_options(clusters(rendered(MANY))["near/R1"])["http_filters"]
    mutations = mark["typed_config"]["mutations"]

    assert list(mutations) == ["response_mutations"]
    remove, append = mutations["response_mutations"]
    assert remove == {"remove": "x-extproc-provider-key"}
    assert append["append"]["header"]["value"] == "%DYNAMIC_METADATA(extproc:provider_key)%"


def test_off() -> None:
    """Without an address there is nothing of it, and Envoy accepts that too."""
    tree = {**ONE, "server": {"grpc": "127.0.0.1:9002"}}
    made = rendered(tree)

    assert logs(tree) == ([], [])
    assert CLUSTER not in clusters(made)
    assert len(http_options(clusters(made)["near/m"])["http_filters"]) == 2


@pytest.mark.e2e
@pytest.mark.parametrize("server", [{}, {"grpc": "127.0.0.1:9002"}])
def test_a_real_envoy_takes_it(server: Any, tmp_path: Path) -> None:
    """With the service and without."""
    assert validate(text({**ONE, "server": server}), tmp_path) == ""
