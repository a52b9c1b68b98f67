"""Envoy's configuration from ours: one listener, a route per model, a cluster per target, two per worker stage.

`resources` makes the three lists that Envoy knows as LDS, RDS and CDS; `static` and `files` wrap them as one
file for one's own hands, or as files that Envoy watches.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from extproc.config.schema import Config
from extproc.core.call import Model, Target
from extproc.core.exchange import INTERNAL
from extproc.envoyconf import accesslog, clusters, replies
from extproc.envoyconf.fallback import Fallback, PriorityGroups
from extproc.filters.routing import MODEL_HEADER
from extproc.providers.provider import Provider

ROUTES: Final = "extproc"
TYPE: Final = "type.googleapis.com/"
Tree = dict[str, Any]

_NOT_FOR_PROVIDERS: Final = [
    MODEL_HEADER,
    "x-envoy-external-address",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-request-id",
]

_NOBODYS_TO_SEND: Final = (INTERNAL, "x-envoy-")
"""Ours and Envoy's own headers: with them a client could choose a route, a timeout or retries."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What Envoy is told: plain trees, ready for YAML."""

    listeners: list[Tree]
    routes: list[Tree]
    clusters: list[Tree]


def resources(
    config: Config,
    models: Mapping[str, Model],
    providers: Mapping[str, Provider],
    *,
    directory: Path | None = None,
    fallback: Fallback | None = None,
) -> Resources:
    """Everything for this configuration.

    ``directory``: where Envoy will find the routes as a file of their own; None puts them into the listener.
    ``fallback``: how a retry reaches the next group; Envoy 1.40's priority groups where not said.
    """
    fallback = fallback or PriorityGroups()
    route_table = _route_table(config, models, providers, fallback)
    return Resources(
        listeners=[_listener(config, route_table, directory)],
        routes=[route_table],
        clusters=[
            *clusters.processor(config),
            *(clusters.target(config, t, providers[t.provider]) for t in _targets(models)),
        ],
    )


def _targets(models: Mapping[str, Model]) -> Iterable[Target]:
    seen: set[str] = set()
    for model in models.values():
        for group in model.route:
            for target in group:
                name = clusters.name_of(target)
                if name not in seen:
                    seen.add(name)
                    yield target


# --- routes ---------------------------------------------------------------------------------------------------


def _route_table(
    config: Config, models: Mapping[str, Model], providers: Mapping[str, Provider], fallback: Fallback
) -> Tree:
    return {
        "name": ROUTES,
        # A client's own copy of the model header is gone before routes are looked at (see _listener).
        "virtual_hosts": [
            {
                "name": "all",
                "domains": ["*"],
                # The router keeps a request for its retries only up to this size.
                "request_body_buffer_limit": config.gateway.max_body,
                "routes": [
                    *(
                        _route(config, model, dialect, providers, fallback)
                        for model in models.values()
                        for dialect in sorted(model.dialects)
                    ),
                    _NO_MODEL,
                ],
            }
        ],
    }


_NO_MODEL: Final[Tree] = {
    # The router stage answers or names a model; only a call that it did not see ends here.
    "name": "no-model",
    "match": {"prefix": "/"},
    "direct_response": {"status": 404, "body": {"inline_string": ""}},
}


def _route(config: Config, model: Model, dialect: str, providers: Mapping[str, Provider], fallback: Fallback) -> Tree:
    groups = [
        usable
        for group in model.route
        if (usable := [t for t in group if t.weight and providers[t.provider].dialect == dialect])
    ]
    retry = config.models[model.name].retry
    prefix = "/v1/messages" if dialect == "anthropic" else "/v1/"
    action: Tree = {
        **fallback.action(groups),
        # Streams may last: the whole call has no limit, silence has one.
        "timeout": "0s",
        "idle_timeout": "0s",
        "auto_host_rewrite": True,
        "retry_policy": {
            "num_retries": len(groups) - 1,
            **_retry_on(retry.on),
            **fallback.retry_policy(),
            "per_try_idle_timeout": _seconds(retry.first_byte),
            "retry_back_off": {"base_interval": "0.025s", "max_interval": "0.25s"},
        },
    }
    return {
        "name": f"{model.name} ({dialect})",
        "match": {
            "prefix": prefix,
            "headers": [{"name": MODEL_HEADER, "string_match": {"exact": model.name}}],
        },
        "request_headers_to_remove": _NOT_FOR_PROVIDERS,
        "route": action,
    }


def _retry_on(conditions: Sequence[str]) -> Tree:
    """Our words → Envoy's. Its `5xx` also covers a connection that fails or is reset."""
    plain = {"connect": ["connect-failure", "refused-stream"], "reset": ["reset"], "5xx": ["5xx"], "4xx": []}
    names: list[str] = []
    statuses: list[int] = []
    for condition in conditions:
        names += plain.get(condition, [])
        if condition == "4xx":
            statuses += range(400, 500)
        elif condition.isdigit():
            statuses.append(int(condition))
    if statuses:
        names.append("retriable-status-codes")
    policy: Tree = {"retry_on": ",".join(dict.fromkeys([*names, "reset-before-request"]))}
    if statuses:
        policy["retriable_status_codes"] = sorted(set(statuses))
    return policy


# --- listener -------------------------------------------------------------------------------------------------


def _listener(config: Config, route_table: Tree, directory: Path | None) -> Tree:
    gateway = config.gateway
    manager: Tree = {
        "@type": f"{TYPE}envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "extproc",
        **({"route_config": route_table} if directory is None else {"rds": _rds(directory)}),
        "codec_type": "AUTO",
        "use_remote_address": True,
        "skip_xff_append": True,  # providers need not know who calls
        "generate_request_id": True,
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
        "server_name": "extproc",
        "request_timeout": _seconds(gateway.request_timeout),
        "request_headers_timeout": "10s",
        "stream_idle_timeout": "0s",
        "http2_protocol_options": {
            "max_concurrent_streams": 1000,
            # Over HTTP/2 the window of a stream, not the listener's limit, is how much of a body Envoy holds.
            "initial_stream_window_size": clusters.held(config),
            "initial_connection_window_size": 16 << 20,
        },
        "early_header_mutation_extensions": [
            {
                "name": "envoy.http.early_header_mutation.header_mutation",
                "typed_config": {
                    "@type": f"{TYPE}envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
                    "mutations": [{"remove_on_match": {"key_matcher": {"prefix": p}}} for p in _NOBODYS_TO_SEND],
                },
            }
        ],
        "local_reply_config": replies.local_reply_config(),
        "http_filters": [
            {"name": "envoy.filters.http.ext_proc", "typed_config": clusters.router_stage(config)},
            {
                "name": "envoy.filters.http.router",
                "typed_config": {
                    "@type": f"{TYPE}envoy.extensions.filters.http.router.v3.Router",
                    "suppress_envoy_headers": True,
                    "upstream_log": accesslog.refused_keys(config),
                },
            },
        ],
        "access_log": [*replies.access_log(gateway.access_log), *accesslog.ended(config)],
    }
    return {
        "name": "gateway",
        "address": socket_address(gateway.listen.host, gateway.listen.port),
        "per_connection_buffer_limit_bytes": clusters.held(config),
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }


def _rds(directory: Path) -> Tree:
    return {"route_config_name": ROUTES, "config_source": _watched(directory, "routes.yaml")}


def socket_address(host: str, port: int) -> Tree:
    return {"socket_address": {"address": host, "port_value": port}}


def _seconds(value: float) -> str:
    return f"{value:g}s"


# --- files ----------------------------------------------------------------------------------------------------


def static(config: Config, made: Resources) -> str:
    """One self-contained file."""
    tree = {
        **_bootstrap(config),
        "static_resources": {"listeners": made.listeners, "clusters": made.clusters},
    }
    return dump(tree)


def bootstrap(config: Config, directory: Path) -> str:
    """The file to start Envoy with; it watches `listeners.yaml`, `clusters.yaml` and `routes.yaml` beside it."""
    tree = {
        **_bootstrap(config),
        "dynamic_resources": {
            "cds_config": _watched(directory, "clusters.yaml"),
            "lds_config": _watched(directory, "listeners.yaml"),
        },
    }
    return dump(tree)


def discovery(kind: str, items: list[Tree], version: str) -> str:
    """A discovery response: ``kind`` is the resource's full type name."""
    return dump({"version_info": version, "resources": [{"@type": TYPE + kind, **item} for item in items]})


def _bootstrap(config: Config) -> Tree:
    admin = config.gateway.admin
    return {
        "node": {"id": "extproc", "cluster": "extproc"},
        "admin": {"address": socket_address(admin.host, admin.port)},
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": {
                        "@type": f"{TYPE}envoy.extensions.resource_monitors.downstream_connections.v3."
                        "DownstreamConnectionsConfig",
                        "max_active_downstream_connections": 50_000,
                    },
                }
            ]
        },
    }


def _watched(directory: Path, name: str) -> Tree:
    path = os.path.abspath(directory)  # noqa: PTH100 - resolve() would follow a mount's symbolic links
    return {
        "path_config_source": {"path": f"{path}/{name}", "watched_directory": {"path": path}},
        "resource_api_version": "V3",
    }


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        del data
        return True


def dump(tree: Tree) -> str:
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
