"""Rules about listeners, routes and the clusters of providers."""

from collections.abc import Iterator

from extproc.envoyconf.lint.model import HTTP_OPTIONS, ROUTER, Finding, Subject, destinations, switched_off
from extproc.envoyconf.lint.processor import breaker
from extproc.envoyconf.lint.tree import Node, seconds

_INTERNAL = "x-extproc-"
_KEYS = ("authorization", "x-api-key", "api-key")
_SHORT = 300.0  # seconds; reasoning models are silent for longer than people think


# --- bypass and spoofing --------------------------------------------------------------------------------------


def router_stage(subject: Subject) -> Iterator[Finding]:
    for manager in subject.managers:
        names = [f.get("name") for f in manager.items("http_filters")]
        kinds = [f.at("typed_config").kind for f in manager.items("http_filters")]
        proxies = any(r.get("route") for r in subject.routes if r.path.startswith(manager.path)) or manager.get("rds")
        if "ExternalProcessor" not in kinds:
            if proxies and (subject.upstream_stages or subject.router_stages or not subject.processor_names):
                yield subject.finding(
                    "error",
                    "bypass",
                    manager.at("http_filters"),
                    "no ext_proc filter of ours: calls of this listener reach providers without identity or limits",
                    "add the router stage before envoy.filters.http.router",
                )
            continue
        if "Router" in kinds and kinds.index("ExternalProcessor") > kinds.index("Router"):
            yield subject.finding(
                "error",
                "filter-order",
                manager.at("http_filters", kinds.index("ExternalProcessor")),
                f"it stands after {ROUTER}, which ends the chain",
                "put it before the router filter",
            )
        for index, kind in enumerate(kinds):
            entry = manager.at("http_filters", index)
            if kind == "ExternalProcessor" and entry.get("disabled"):
                yield subject.finding(
                    "error",
                    "bypass",
                    entry.at("disabled"),
                    f"{names[index]} is off unless a route turns it on",
                    "remove it",
                )


def disabled_on_route(subject: Subject) -> Iterator[Finding]:
    for table in subject.route_tables:
        for host in table.items("virtual_hosts"):
            routes = [r for r in host.items("routes") if r.get("route")]
            for scope, covered in ((host, routes), *((r, [r]) for r in routes)):
                switch = switched_off(scope)
                if switch is None or not covered:
                    continue
                if any(r in subject.routes for r in covered):
                    yield subject.finding(
                        "error",
                        "bypass",
                        switch,
                        "calls of this route are unseen by the processor: no identity, no limits, the client's own key",
                        "remove it",
                    )
                else:
                    reached = sorted({name for r in covered for name, _ in destinations(r)})
                    yield subject.finding(
                        "info",
                        "bypass",
                        switch,
                        f"the processor sees nothing of these calls: right if no model is behind {', '.join(reached)}",
                        "remove it, if one is",
                    )


def spoofed_route(subject: Subject) -> Iterator[Finding]:
    for manager in subject.managers:
        mutations = [
            m for e in manager.items("early_header_mutation_extensions") for m in e.items("typed_config", "mutations")
        ]
        removed = {str(m.get("remove", default="")) for m in mutations}
        prefixes = tuple(
            p for m in mutations if (p := str(m.get("remove_on_match", "key_matcher", "prefix", default="")))
        )
        seen = any(True for _ in subject.filters(manager))
        for route in subject.routes:
            if not route.path.startswith(manager.path):
                continue
            for match in route.items("match", "headers"):
                name = str(match.get("name", default=""))
                if name.startswith(_INTERNAL) and name not in removed and not name.startswith(prefixes):
                    yield subject.finding(
                        "warning" if seen else "error",
                        "spoofable-header",
                        match.at("name"),
                        f"a client that sends {name} itself chooses this route"
                        + (" until the processor has answered" if seen else ""),
                        "early_header_mutation_extensions that remove it, as `extproc envoy render` writes them",
                    )


def header_mutations(subject: Subject) -> Iterator[Finding]:
    for root in subject.document.roots:
        for node in root.walk():
            if not node.path.endswith("request_headers_to_add"):
                continue
            for entry in node.items():
                name = str(entry.get("header", "key", default="")).lower()
                value = str(entry.get("header", "value", default="")).lower()
                append = entry.get("append_action", default="APPEND_IF_EXISTS_OR_ADD")
                if name.startswith(_INTERNAL) and append != "OVERWRITE_IF_EXISTS_OR_ADD":
                    yield subject.finding(
                        "error",
                        "spoofable-header",
                        entry.at("append_action"),
                        f"{append} leaves a client's own {name} beside ours",
                        "append_action: OVERWRITE_IF_EXISTS_OR_ADD",
                    )
                if any(f"%req({key}" in value for key in _KEYS):
                    yield subject.finding(
                        "error",
                        "key-leak",
                        entry.at("header", "value"),
                        "it copies the client's key to where providers and logs can read it",
                        "remove it",
                    )


# --- routes ---------------------------------------------------------------------------------------------------


def route_timeouts(subject: Subject) -> Iterator[Finding]:
    for route in subject.routes:
        action = route.at("route")
        if action.value is None:
            continue
        timeout = seconds(action.get("timeout", default="15s"))
        if timeout is not None and 0 < timeout < _SHORT:
            given = "" if action.get("timeout") else " (Envoy's default)"
            yield subject.finding(
                "warning",
                "route-timeout",
                action.at("timeout"),
                f"{timeout:g} s{given} for the whole call cuts longer streams",
                "timeout: 0s",
            )
        retry = action.at("retry_policy")
        if retry.get("per_try_timeout"):
            yield subject.finding(
                "warning",
                "per-try-timeout",
                retry.at("per_try_timeout"),
                "it covers the whole try, the stream included, not only its first byte",
                "per_try_idle_timeout",
            )
        groups = [g for s in action.typed("PriorityGroupClusterSpecifier") for g in s.items("priority_groups")]
        if len(groups) > 1 and not retry.get("per_try_idle_timeout"):
            yield subject.finding(
                "info",
                "first-byte",
                retry.at("per_try_idle_timeout"),
                "a provider that stays silent is never given up for the next group",
                "per_try_idle_timeout: 60s",
            )


def idle_timeouts(subject: Subject) -> Iterator[Finding]:
    for manager in subject.managers:
        timeout = seconds(manager.get("stream_idle_timeout", default="300s"))
        if timeout is not None and 0 < timeout < _SHORT:
            yield subject.finding(
                "warning",
                "stream-idle-timeout",
                manager.at("stream_idle_timeout"),
                f"{timeout:g} s of silence end a call, also while a reasoning model thinks or a call queues",
                "stream_idle_timeout: 0s, and per_try_idle_timeout on the routes",
            )


def retries(subject: Subject) -> Iterator[Finding]:
    for route in subject.routes:
        action = route.at("route")
        retry = action.at("retry_policy")
        grouped = any(True for _ in action.typed("PriorityGroupClusterSpecifier"))
        if retry.value is None:
            if grouped:
                yield subject.finding(
                    "warning",
                    "no-retry",
                    retry,
                    "groups after the first are never used",
                    "retry_policy with num_retries",
                )
            continue
        on = str(retry.get("retry_on", default=""))
        if retry.get("num_retries") and not on:
            yield subject.finding(
                "warning", "retry-on", retry.at("retry_on"), "nothing is retried without it", "retry_on: 5xx,reset"
            )
        if retry.get("retriable_status_codes") and "retriable-status-codes" not in on:
            yield subject.finding(
                "warning",
                "retry-on",
                retry.at("retriable_status_codes"),
                "the statuses count only when retry_on has retriable-status-codes",
                "retry_on: …,retriable-status-codes",
            )
        if (grouped or action.get("weighted_clusters")) and not retry.get("refresh_cluster_on_retry"):
            yield subject.finding(
                "error" if grouped else "warning",
                "refresh-cluster",
                retry.at("refresh_cluster_on_retry"),
                "a retry goes to the cluster that has just failed",
                "refresh_cluster_on_retry: true",
            )


def buffer_limits(subject: Subject) -> Iterator[Finding]:
    for listener in subject.listeners:
        limit = int(listener.get("per_connection_buffer_limit_bytes", default=1 << 20))
        if limit < subject.max_body and any(m.path.startswith(listener.path) for m in subject.managers):
            yield subject.finding(
                "warning",
                "buffer-limit",
                listener.at("per_connection_buffer_limit_bytes"),
                f"a request above {limit} bytes is answered with 413",
                f"per_connection_buffer_limit_bytes: {subject.max_body + (1 << 20)}",
            )
    for manager in subject.managers:
        window = manager.at("http2_protocol_options", "initial_stream_window_size")
        if window.value is not None and int(window.value) < subject.max_body:
            yield subject.finding(
                "warning",
                "buffer-limit",
                window,
                f"a request above {window.value} bytes is answered with 413 over HTTP/2",
                f"initial_stream_window_size: {subject.max_body + (1 << 20)}",
            )
    for root in subject.document.roots:
        for node in root.walk():
            limited = node.path.endswith(("request_body_buffer_limit", "per_request_buffer_limit_bytes"))
            if limited and 0 < int(node.value or 0) < subject.max_body:
                yield subject.finding(
                    "warning",
                    "buffer-limit",
                    node,
                    f"a request above {node.value} bytes is refused, or not retried",
                    f"{node.path.rpartition('.')[2]}: {subject.max_body}",
                )


# --- clusters of providers ------------------------------------------------------------------------------------


def upstream_stage(subject: Subject) -> Iterator[Finding]:
    known = {c.get("name") for c in subject.clusters}
    for route in subject.routes:
        for name, where in destinations(route):
            if subject.clusters and name not in known:
                yield subject.finding("error", "unknown-cluster", where, f"there is no cluster {name!r}", "define it")
    for cluster in subject.targets:
        options = cluster.at("typed_extension_protocol_options", HTTP_OPTIONS)
        if subject.upstream_stage(cluster) is None:
            yield subject.finding(
                "error",
                "no-upstream-stage",
                options.at("http_filters"),
                f"calls to {cluster.get('name')} get no provider key, model name or path",
                "add our ext_proc filter before envoy.filters.http.upstream_codec",
            )
            continue
        kinds = [f.at("typed_config").kind for f in options.items("http_filters")]
        if kinds[-1:] != ["UpstreamCodec"]:
            yield subject.finding(
                "error",
                "upstream-codec",
                options.at("http_filters"),
                "the last upstream filter must be envoy.filters.http.upstream_codec",
                "move it to the end",
            )


def target_clusters(subject: Subject) -> Iterator[Finding]:
    retried = any(r.get("route", "retry_policy") for r in subject.routes)
    for cluster in subject.targets:
        yield from breaker(subject, cluster, "calls of a model last long, so many are open at once")
        thresholds = list(cluster.items("circuit_breakers", "thresholds"))
        most = max((int(t.get("max_retries", default=3)) for t in thresholds), default=3)
        if retried and most <= 3:
            yield subject.finding(
                "warning",
                "max-retries",
                thresholds[0].at("max_retries") if thresholds else cluster.at("circuit_breakers"),
                f"only {most} retries at once (Envoy's default is 3): under load, most calls do not fall back",
                "max_retries: 1000000",
            )
        yield from _tls(subject, cluster)


def _tls(subject: Subject, cluster: Node) -> Iterator[Finding]:
    ports = {n.value for n in cluster.walk() if n.path.endswith("port_value")}
    socket = cluster.at("transport_socket")
    config = socket.at("typed_config")
    if socket.value is None:
        if {443, "443"} & ports:
            yield subject.finding(
                "error",
                "tls",
                socket,
                "port 443 without TLS: the provider's key would travel in clear",
                "transport_socket",
            )
        return
    if config.kind != "UpstreamTlsContext":
        return
    context = config.at("common_tls_context", "validation_context")
    if not any(n.path.endswith(("trusted_ca", "validation_context_sds_secret_config")) for n in config.walk()):
        yield subject.finding(
            "error",
            "tls",
            context,
            "no certificate authority is named, so any certificate is accepted, and with it anybody gets the key",
            "validation_context: {trusted_ca: {filename: /etc/ssl/certs/ca-certificates.crt}}",
        )
    if not config.get("sni") and not any(n.path.endswith("auto_sni") for n in cluster.walk()):
        yield subject.finding("warning", "tls", config.at("sni"), "many providers answer by SNI only", "sni: HOST")


# --- the log --------------------------------------------------------------------------------------------------


def access_log(subject: Subject) -> Iterator[Finding]:
    for manager in subject.managers:
        texts = [str(n.value) for n in manager.at("access_log").walk() if isinstance(n.value, str)]
        if any(True for _ in subject.filters(manager)) and not any("(extproc" in t for t in texts):
            yield subject.finding(
                "info",
                "access-log",
                manager.at("access_log"),
                "the access log knows no consumer, model or usage",
                "%DYNAMIC_METADATA(extproc:consumer)% and the other fields of `extproc envoy render`",
            )


def access_log_service(subject: Subject) -> Iterator[Finding]:
    for manager in subject.managers:
        if not any(True for _ in subject.filters(manager)):
            continue
        if not any(True for _ in manager.at("access_log").typed("HttpGrpcAccessLogConfig")):
            yield subject.finding(
                "info",
                "access-log-service",
                manager.at("access_log"),
                "nobody tells of calls that a dying worker cuts, so what they used is only estimated",
                "an http_grpc access log as `extproc envoy render` writes it, to server.access_log",
            )
        routers = [f.at("typed_config") for f in manager.items("http_filters") if f.at("typed_config").kind == "Router"]
        for router in routers:
            if not any(True for _ in router.at("upstream_log").typed("HttpGrpcAccessLogConfig")):
                yield subject.finding(
                    "info",
                    "access-log-service",
                    router.at("upstream_log"),
                    "nobody tells of keys that a provider refuses, so they are used again and again",
                    "an upstream_log as `extproc envoy render` writes it, to server.access_log",
                )


RULES = (
    router_stage,
    disabled_on_route,
    spoofed_route,
    header_mutations,
    route_timeouts,
    idle_timeouts,
    retries,
    buffer_limits,
    upstream_stage,
    target_clusters,
    access_log,
    access_log_service,
)
