"""Rules about our own two filters and the clusters behind them."""

from collections.abc import Iterator

from extproc.envoyconf.lint.model import HTTP_OPTIONS, Finding, Subject
from extproc.envoyconf.lint.tree import Node, seconds
from extproc.wire.names import ATTRIBUTES, HEADERS_TO_US, NAMESPACE, STAGE

UPSTREAM_ATTRIBUTES = tuple(e for e, name in ATTRIBUTES.items() if name != "details")
_DEFAULT_BREAKER = 1024


def _both(subject: Subject) -> Iterator[tuple[Node, str]]:
    yield from ((stage, "router") for stage in subject.router_stages)
    yield from ((stage, "upstream") for stage in subject.upstream_stages)


def fails_open(subject: Subject) -> Iterator[Finding]:
    for stage, _ in _both(subject):
        if stage.get("failure_mode_allow"):
            yield subject.finding(
                "error",
                "fails-open",
                stage.at("failure_mode_allow"),
                "while the processor is away, every call passes without identity, and with the client's own key",
                "failure_mode_allow: false",
            )
        for field in ("disable_immediate_response", "observability_mode"):
            if stage.get(field):
                yield subject.finding(
                    "error",
                    "fails-open",
                    stage.at(field),
                    "refusals are ignored, and the call goes on",
                    f"{field}: false",
                )


def message_timeout(subject: Subject) -> Iterator[Finding]:
    for stage, _ in _both(subject):
        timeout = seconds(stage.get("message_timeout", default="0.2s"))
        if timeout is not None and timeout < 1:
            yield subject.finding(
                "warning",
                "message-timeout",
                stage.at("message_timeout"),
                f"a check that takes longer than {timeout:g} s turns into 504 (Envoy's default is 200 ms)",
                "message_timeout: 30s",
            )
        if stage.get("grpc_service", "timeout"):
            yield subject.finding(
                "warning",
                "grpc-timeout",
                stage.at("grpc_service", "timeout"),
                "where Envoy obeys it, it bounds the whole stream and cuts long answers",
                "leave it out; message_timeout is the clock",
            )


def stage_name(subject: Subject) -> Iterator[Finding]:
    for stage, kind in _both(subject):
        if subject.stage(stage) != kind:
            yield subject.finding(
                "error",
                "stage-name",
                stage.at("grpc_service", "initial_metadata"),
                "the processor cannot tell which stage is calling, and refuses the stream",
                f"initial_metadata: [{{key: {STAGE}, value: {kind}}}]",
            )


def modes(subject: Subject) -> Iterator[Finding]:
    wanted = {
        "router": {"request_body_mode": ("BUFFERED",), "request_header_mode": ("SEND", "DEFAULT")}
        | {"response_header_mode": ("SEND", "DEFAULT")},
        "upstream": {"request_body_mode": ("BUFFERED",), "request_header_mode": ("SEND", "DEFAULT")}
        | {"response_header_mode": ("SKIP",), "response_body_mode": ("NONE",)},
    }
    defaults = {"request_body_mode": "NONE", "response_body_mode": "NONE"}
    for stage, kind in _both(subject):
        for field, accepted in wanted[kind].items():
            mode = stage.get("processing_mode", field, default=defaults.get(field, "DEFAULT"))
            if mode not in accepted:
                yield subject.finding(
                    "error",
                    "processing-mode",
                    stage.at("processing_mode", field),
                    f"{field} is {mode} at the {kind} stage; what is not sent cannot be judged or changed, and a "
                    "streamed request can reach a provider twice when it is retried",
                    f"{field}: {accepted[0]}",
                )
        if kind == "router" and not stage.get("allow_mode_override"):
            yield subject.finding(
                "error",
                "mode-override",
                stage.at("allow_mode_override"),
                "the processor cannot ask for the answer's body, so usage is never read",
                "allow_mode_override: true",
            )


def metadata(subject: Subject) -> Iterator[Finding]:
    for stage, kind in _both(subject):
        directions = ("receiving",) if kind == "router" else ("forwarding", "receiving")
        for direction in directions:
            field = f"{direction}_namespaces"
            if NAMESPACE not in (stage.get("metadata_options", field, "untyped") or ()):
                yield subject.finding(
                    "error",
                    "metadata-namespaces",
                    stage.at("metadata_options", field),
                    "the stages share nothing but this metadata: without it no attempt gets credentials, and the "
                    "access log knows no usage",
                    f"metadata_options: {{{field}: {{untyped: [{NAMESPACE}]}}}}",
                )
        field, needed = (
            ("response_attributes", tuple(ATTRIBUTES))
            if kind == "router"
            else ("request_attributes", UPSTREAM_ATTRIBUTES)
        )
        missing = [a for a in needed if a not in (stage.get(field) or ())]
        if missing:
            yield subject.finding(
                "error" if kind == "upstream" else "warning",
                "attributes",
                stage.at(field),
                "the processor does not learn which target was picked: " + ", ".join(missing),
                f"{field}: [{', '.join(repr(a) for a in needed)}]",
            )
        allowed = stage.get("forward_rules", "allowed_headers", "patterns")
        if allowed is not None:
            patterns = [next(iter(p.items())) for p in allowed if isinstance(p, dict) and p]
            withheld = [n for n in HEADERS_TO_US if not any(_matches(kind_, text, n) for kind_, text in patterns)]
            if withheld:
                yield subject.finding(
                    "error",
                    "headers-withheld",
                    stage.at("forward_rules", "allowed_headers"),
                    "the processor does not see " + ", ".join(withheld),
                    "allow them, or leave forward_rules out",
                )


def _matches(kind: str, text: object, name: str) -> bool:
    bare = name.rstrip("*")
    return (kind == "exact" and text == name) or (kind == "prefix" and bare.startswith(str(text)))


def shared_cluster(subject: Subject) -> Iterator[Finding]:
    for cluster in subject.processors:
        if len(subject.processor_names[str(cluster.get("name"))]) > 1:
            yield subject.finding(
                "warning",
                "shared-cluster",
                cluster.at("name"),
                "both stages use this cluster: when its breaker is full of calls that wait, no attempt can open, and "
                "all fail together",
                "give the upstream stage a cluster of its own with the same endpoints",
            )


def processor_cluster(subject: Subject) -> Iterator[Finding]:
    known = {c.get("name") for c in subject.clusters}
    for stage, _ in _both(subject):
        name = stage.get("grpc_service", "envoy_grpc", "cluster_name")
        if subject.clusters and name not in known:
            where = stage.at("grpc_service", "envoy_grpc", "cluster_name")
            yield subject.finding(
                "error", "unknown-cluster", where, f"there is no cluster {name!r}", "name the processor's"
            )
    for cluster in subject.processors:
        options = cluster.at("typed_extension_protocol_options", HTTP_OPTIONS)
        http2 = any(n.path.endswith("http2_protocol_options") for n in options.walk())
        if not http2 and cluster.get("http2_protocol_options") is None:
            yield subject.finding(
                "error",
                "processor-http2",
                cluster.at("typed_extension_protocol_options"),
                "gRPC needs HTTP/2; without it every call fails",
                "explicit_http_config: {http2_protocol_options: {}}",
            )
        yield from breaker(subject, cluster, "each call holds a stream of ours as long as it lasts")
        limit = cluster.get("per_connection_buffer_limit_bytes", default=1 << 20)
        if int(limit) < subject.max_body:
            yield subject.finding(
                "warning",
                "buffer-limit",
                cluster.at("per_connection_buffer_limit_bytes"),
                f"a body of {subject.max_body} bytes does not pass {limit} at once, and stalls",
                f"per_connection_buffer_limit_bytes: {subject.max_body + (1 << 20)}",
            )
        endpoints = [e for group in cluster.items("load_assignment", "endpoints") for e in group.items("lb_endpoints")]
        if len(endpoints) > 1 and not cluster.get("health_checks"):
            yield subject.finding(
                "info",
                "health-checks",
                cluster.at("health_checks"),
                "a worker that died is chosen again and again",
                "health_checks and outlier_detection as `extproc envoy render` writes them",
            )


def breaker(subject: Subject, cluster: Node, why: str) -> Iterator[Finding]:
    """Envoy's default of 1024, or a limit below it, on a cluster that many calls use at once."""
    lowest = {"max_requests": _DEFAULT_BREAKER, "max_pending_requests": _DEFAULT_BREAKER}
    thresholds = [t for t in cluster.items("circuit_breakers", "thresholds") if t.get("priority") != "HIGH"]
    for field, default in lowest.items():
        values = [int(t.get(field, default=default)) for t in thresholds] or [default]
        if min(values) <= _DEFAULT_BREAKER:
            where = thresholds[0].at(field) if thresholds else cluster.at("circuit_breakers")
            yield subject.finding(
                "warning",
                "circuit-breaker",
                where,
                f"{field} of {min(values)}: {why}, so the next call gets an error",
                f"circuit_breakers: {{thresholds: [{{{field}: 1000000}}]}}",
            )


RULES = (
    fails_open,
    message_timeout,
    stage_name,
    modes,
    metadata,
    shared_cluster,
    processor_cluster,
)
