"""Clusters: our own two stages, and one for each target; with the ext_proc filters that belong to them."""

import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from extproc.config.schema import Config
from extproc.core.call import Target
from extproc.envoyconf import accesslog
from extproc.providers.provider import Provider
from extproc.wire.names import ATTRIBUTES, HEADERS_TO_US, NAMESPACE, STAGE, worker_address

Tree = dict[str, Any]
TYPE: Final = "type.googleapis.com/"
ROUTER_STAGE: Final = "extproc-router-stage"
UPSTREAM_STAGE: Final = "extproc-upstream-stage"
HTTP_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

# Each call holds a stream for as long as it lasts; Envoy's default of 1024 turns call 1025 into an error.
_UNBOUND: Final = 1_000_000
_SHARED: Final = 100_000
STREAMS_PER_CONNECTION: Final = {"granian": 1, "grpcio": _SHARED}
"""granian closes a connection, with every stream on it, when clients leave faster than it accepts streams (its
protection against HTTP/2's rapid reset, which cannot be set). So there nobody shares a connection with anybody.
"""
_GROWTH: Final = 1 << 20  # bytes: the target's name for the model, and room for the frames around a body
_DNS: Final = {
    "name": "envoy.clusters.dns",
    "typed_config": {
        "@type": f"{TYPE}envoy.extensions.clusters.dns.v3.DnsCluster",
        "dns_lookup_family": "V4_PREFERRED",
        "respect_dns_ttl": True,
    },
}
_CA_FILES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


def name_of(target: Target) -> str:
    """A target's cluster."""
    return f"{target.provider}/{target.model}"


def held(config: Config) -> int:
    """Bytes of the largest body that Envoy holds whole. An attempt's body may be longer than the client's own."""
    return max(config.gateway.max_body, config.gateway.max_answer) + _GROWTH


# --- our own ---------------------------------------------------------------------------------------------------


def processor(config: Config) -> list[Tree]:
    """A cluster for each stage: a full breaker of one must not keep the other from opening. And one for the log."""
    found = [_processor(config, ROUTER_STAGE), _processor(config, UPSTREAM_STAGE)]
    address = config.server.log_address
    return found if address is None else [*found, _ours(config, accesslog.CLUSTER, [address], streams=_SHARED)]


def _processor(config: Config, name: str) -> Tree:
    server = config.server
    hosts = [worker_address(server.grpc, index) for index in range(server.workers)]
    return {
        **_ours(config, name, hosts, streams=STREAMS_PER_CONNECTION[server.transport]),
        "lb_policy": "LEAST_REQUEST",
        "per_connection_buffer_limit_bytes": held(config),
        "health_checks": [
            {
                "timeout": "2s",
                "interval": "1s",
                "no_traffic_interval": "1s",
                "unhealthy_threshold": 2,
                "healthy_threshold": 1,
                **_probe(server.transport),
            }
        ],
        # A worker that died is left out after the first stream that it loses, until it answers again.
        "outlier_detection": {
            "split_external_local_origin_errors": True,
            "consecutive_local_origin_failure": 1,
            "enforcing_consecutive_local_origin_failure": 100,
            "enforcing_local_origin_success_rate": 0,
            "enforcing_consecutive_5xx": 0,
            "enforcing_success_rate": 0,
            "base_ejection_time": "1s",
            "max_ejection_time": "2s",
            "interval": "1s",
            "max_ejection_percent": 100,
        },
        # With no healthy worker, try one all the same: it may just have come back.
        "common_lb_config": {"healthy_panic_threshold": {"value": 1}},
    }


def _ours(config: Config, name: str, hosts: Sequence[str], *, streams: int) -> Tree:
    """A gRPC service of ours. ``streams``: how many share a connection."""
    cluster: Tree = {
        "name": name,
        "type": "STATIC" if all(_is_static(h) for h in hosts) else "STRICT_DNS",
        "connect_timeout": "1s",
        "circuit_breakers": _breakers(_UNBOUND),
        "typed_extension_protocol_options": {
            HTTP_OPTIONS: {
                "@type": TYPE + HTTP_OPTIONS,
                "explicit_http_config": {
                    "http2_protocol_options": {
                        "max_concurrent_streams": streams,
                        "initial_stream_window_size": 4 << 20,
                        "initial_connection_window_size": 64 << 20,
                        "connection_keepalive": {"interval": "30s", "timeout": "10s"},
                    }
                },
            }
        },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(host)}} for host in hosts]}],
        },
    }
    tls = config.server.tls
    if tls is not None and not hosts[0].startswith("unix:"):
        common: Tree = {"validation_context": {"trusted_ca": {"filename": str(tls.ca)}}, "alpn_protocols": ["h2"]}
        if tls.client is not None:
            common["tls_certificates"] = [
                {
                    "certificate_chain": {"filename": str(tls.client.cert)},
                    "private_key": {"filename": str(tls.client.key)},
                }
            ]
        cluster["transport_socket"] = _tls_socket(common, host=hosts[0].rpartition(":")[0])
    return cluster


def _probe(transport: str) -> Tree:
    if transport == "granian":
        return {"http_health_check": {"path": "/healthz", "codec_client_type": "HTTP2"}}
    return {"grpc_health_check": {}}


def _is_static(host: str) -> bool:
    if host.startswith("unix:"):
        return True
    try:
        ipaddress.ip_address(host.rpartition(":")[0].strip("[]"))
    except ValueError:
        return False
    return True


def _address(host: str) -> Tree:
    if host.startswith("unix:"):
        return {"pipe": {"path": str(Path(host.removeprefix("unix:")).absolute())}}
    name, _, port = host.rpartition(":")
    return {"socket_address": {"address": name.strip("[]"), "port_value": int(port)}}


def router_stage(config: Config) -> Tree:
    """The ext_proc filter of the HTTP connection manager: once per call."""
    return {
        **_filter(config, ROUTER_STAGE, "router"),
        "processing_mode": {
            "request_header_mode": "SEND",
            "request_body_mode": "BUFFERED",
            "response_header_mode": "SEND",
            "response_body_mode": "NONE",
            "request_trailer_mode": "SKIP",
            "response_trailer_mode": "SKIP",
        },
        "allow_mode_override": True,
        "response_attributes": list(ATTRIBUTES),
        "metadata_options": {"receiving_namespaces": {"untyped": [NAMESPACE]}},
    }


def upstream_stage(config: Config) -> Tree:
    """The ext_proc filter of a target's cluster: once per attempt, the request only."""
    return {
        **_filter(config, UPSTREAM_STAGE, "upstream"),
        "processing_mode": {
            "request_header_mode": "SEND",  # holds the headers until the body's answer, which changes them
            "request_body_mode": "BUFFERED",
            "response_header_mode": "SKIP",
            "response_body_mode": "NONE",
            "request_trailer_mode": "SKIP",
            "response_trailer_mode": "SKIP",
        },
        "request_attributes": [expression for expression, name in ATTRIBUTES.items() if name != "details"],
        "metadata_options": {
            "forwarding_namespaces": {"untyped": [NAMESPACE]},
            "receiving_namespaces": {"untyped": [NAMESPACE]},
        },
    }


def _filter(config: Config, cluster: str, stage: str) -> Tree:
    return {
        "@type": f"{TYPE}envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor",
        "grpc_service": {
            "envoy_grpc": {"cluster_name": cluster},
            "initial_metadata": [{"key": STAGE, "value": stage}],
        },
        "failure_mode_allow": False,
        "forward_rules": {"allowed_headers": {"patterns": [_pattern(name) for name in HEADERS_TO_US]}},
        "message_timeout": f"{config.server.message_timeout:g}s",
    }


def _pattern(name: str) -> Tree:
    return {"prefix": name[:-1]} if name.endswith("*") else {"exact": name}


# --- targets --------------------------------------------------------------------------------------------------


def target(config: Config, target: Target, provider: Provider) -> Tree:
    """The cluster of one target: where it is, how to speak to it, and our upstream stage."""
    settings = config.providers[target.provider]
    name = name_of(target)
    static = _is_static(f"{provider.host}:0")
    cluster: Tree = {
        "name": name,
        **({"type": "STATIC"} if static else {"cluster_type": _DNS}),
        "connect_timeout": f"{settings.connect_timeout:g}s",
        "lb_policy": "LEAST_REQUEST",
        "per_connection_buffer_limit_bytes": held(config),
        "circuit_breakers": _breakers(settings.max_connections),
        "metadata": {"filter_metadata": {NAMESPACE: {"provider": target.provider, "target": target.model}}},
        "typed_extension_protocol_options": {
            HTTP_OPTIONS: {
                "@type": TYPE + HTTP_OPTIONS,
                "common_http_protocol_options": {"idle_timeout": "60s"},
                **_protocol(provider),
                "http_filters": [
                    {"name": "envoy.filters.http.ext_proc", "typed_config": upstream_stage(config)},
                    *accesslog.key_mark(config),
                    {
                        "name": "envoy.filters.http.upstream_codec",
                        "typed_config": {
                            "@type": f"{TYPE}envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec"
                        },
                    },
                ],
            }
        },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [
                {
                    "lb_endpoints": [
                        {
                            "endpoint": {
                                "address": {"socket_address": {"address": provider.host, "port_value": provider.port}},
                                "hostname": provider.authority,  # becomes the Host header (auto_host_rewrite)
                            }
                        }
                    ]
                }
            ],
        },
    }
    if provider.scheme == "https":
        ca = settings.ca or config.gateway.ca or system_ca()
        common = {"validation_context": {"trusted_ca": {"filename": str(ca)}}}
        cluster["transport_socket"] = _tls_socket(common, host=settings.tls_name or provider.host)
    return cluster


def _protocol(provider: Provider) -> Tree:
    if provider.scheme == "https":
        # ALPN offers HTTP/2 and HTTP/1.1.
        return {
            "auto_config": {
                "http_protocol_options": {},
                "http2_protocol_options": {
                    "initial_stream_window_size": 1 << 20,
                    "initial_connection_window_size": 16 << 20,
                    "connection_keepalive": {"interval": "30s", "timeout": "10s"},
                },
            }
        }
    return {"explicit_http_config": {"http_protocol_options": {}}}


def _tls_socket(common: Tree, *, host: str) -> Tree:
    """TLS that verifies the certificate and the name in it; an address is verified, but not asked for by SNI."""
    is_address = _is_static(f"{host}:0")
    kind = "ip_address" if is_address else "dns"
    common["tls_params"] = {"tls_maximum_protocol_version": "TLSv1_3"}  # as a client, Envoy offers 1.2 by default
    common["validation_context"]["match_typed_subject_alt_names"] = [
        {"san_type": {"ip_address": "IP_ADDRESS", "dns": "DNS"}[kind], "matcher": {"exact": host.strip("[]")}}
    ]
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": f"{TYPE}envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            **({} if is_address else {"sni": host}),
            "common_tls_context": common,
        },
    }


def system_ca() -> Path:
    """The system's trusted certificates. Raises FileNotFoundError where there are none in the usual places."""
    for name in _CA_FILES:
        if Path(name).exists():
            return Path(name)
    raise FileNotFoundError("no trusted certificates found on this system: set gateway.ca")


def _breakers(limit: int) -> Tree:
    threshold = {
        "max_connections": limit,
        "max_pending_requests": limit,
        "max_requests": limit,
        "max_retries": limit,
    }
    return {"thresholds": [{"priority": "DEFAULT", **threshold}, {"priority": "HIGH", **threshold}]}
