"""What the rules look at: listeners, clusters and routes of a file, and which of the filters are ours."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from extproc.envoyconf.lint.tree import Document, Node
from extproc.wire.names import STAGE

Severity = Literal["error", "warning", "info"]
ROUTER = "envoy.filters.http.router"
HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


@dataclass(frozen=True, slots=True)
class Finding:
    """What would hurt. ``path`` is where, ``message`` why, ``fix`` what to write instead."""

    severity: Severity
    rule: str
    path: str
    line: int | None
    message: str
    fix: str


class Subject:
    """One file, with what it holds found once."""

    def __init__(self, document: Document, max_body: int) -> None:
        self.document = document
        self.max_body = max_body

    def finding(self, severity: Severity, rule: str, where: Node, message: str, fix: str) -> Finding:
        return Finding(severity, rule, where.path, self.document.line(where.path), message, fix)

    @cached_property
    def listeners(self) -> list[Node]:
        return [*self._static("listeners"), *self._resources("Listener")]

    @cached_property
    def clusters(self) -> list[Node]:
        return [*self._static("clusters"), *self._resources("Cluster")]

    @cached_property
    def managers(self) -> list[Node]:
        """HTTP connection managers."""
        return [m for listener in self.listeners for m in listener.typed("HttpConnectionManager")]

    @cached_property
    def route_tables(self) -> list[Node]:
        tables = [m.at("route_config") for m in self.managers if m.get("route_config")]
        return tables + self._resources("RouteConfiguration")

    @cached_property
    def routes(self) -> list[Node]:
        """Every route on which a model may be called.

        Not those that are plainly other traffic: where the operator turned us off, or of a listener without us
        beside one with us. They count all the same where they lead to a cluster with our upstream stage.
        """
        ours = {str(c.get("name")) for c in self.clusters if self.upstream_stage(c) is not None}
        without = [m.path for m in self.managers if not any(True for _ in self.filters(m))]
        if len(without) == len(self.managers):
            without = []
        found = []
        for table in self.route_tables:
            elsewhere = any(table.path.startswith(path + ".") for path in without)
            for host in table.items("virtual_hosts"):
                for route in host.items("routes"):
                    other = elsewhere or switched_off(host) is not None or switched_off(route) is not None
                    if not other or ours & {name for name, _ in destinations(route)}:
                        found.append(route)
        return found

    @cached_property
    def router_stages(self) -> list[Node]:
        """Our ext_proc filters in connection managers: those that say so, or the only candidates."""
        found = [f for m in self.managers for f in self.filters(m)]
        ours = [f for f in found if self.stage(f) == "router" or not self.stage(f)]
        return [f for f in ours if self.stage(f) == "router"] or ours

    @cached_property
    def upstream_stages(self) -> list[Node]:
        return [stage for cluster in self.clusters if (stage := self.upstream_stage(cluster)) is not None]

    @cached_property
    def processor_names(self) -> dict[str, set[str]]:
        """Clusters that our filters call → the stages that call them."""
        names: dict[str, set[str]] = {}
        for stages, kind in ((self.router_stages, "router"), (self.upstream_stages, "upstream")):
            for stage in stages:
                name = stage.get("grpc_service", "envoy_grpc", "cluster_name")
                if name:
                    names.setdefault(str(name), set()).add(kind)
        return names

    @cached_property
    def processors(self) -> list[Node]:
        return [c for c in self.clusters if c.get("name") in self.processor_names]

    @cached_property
    def targets(self) -> list[Node]:
        """Clusters that routes of a connection manager with our router stage can reach."""
        reached = {name for route in self.routes for name, _ in destinations(route)}
        return [c for c in self.clusters if c.get("name") in reached and c.get("name") not in self.processor_names]

    @staticmethod
    def filters(manager: Node) -> Iterator[Node]:
        """ext_proc filters of a connection manager."""
        for entry in manager.items("http_filters"):
            config = entry.at("typed_config")
            if config.kind == "ExternalProcessor":
                yield config

    @staticmethod
    def upstream_stage(cluster: Node) -> Node | None:
        options = cluster.at("typed_extension_protocol_options", HTTP_OPTIONS)
        for entry in options.items("http_filters"):
            config = entry.at("typed_config")
            if config.kind == "ExternalProcessor":
                return config
        return None

    @staticmethod
    def stage(ext_proc: Node) -> str:
        """What a filter tells us that it is."""
        for entry in ext_proc.items("grpc_service", "initial_metadata"):
            if entry.get("key") == STAGE:
                return str(entry.get("value", default=""))
        return ""

    def _static(self, kind: str) -> Iterator[Node]:
        for root in self.document.roots:
            yield from root.items("static_resources", kind)

    def _resources(self, kind: str) -> list[Node]:
        return [r for root in self.document.roots for r in root.items("resources") if r.kind == kind]


def switched_off(scope: Node) -> Node | None:
    """Where a route or a virtual host turns an ext_proc filter off."""
    for name in scope.get("typed_per_filter_config") or {}:
        config = scope.at("typed_per_filter_config", name)
        if "ext_proc" in name and config.kind in ("ExtProcPerRoute", "FilterConfig") and config.get("disabled"):
            return config.at("disabled")
    return None


def destinations(route: Node) -> Iterator[tuple[str, Node]]:
    """Names of the clusters that a route can choose, and where each stands."""
    action = route.at("route")
    if name := action.get("cluster"):
        yield str(name), action.at("cluster")
    for entry in action.items("weighted_clusters", "clusters"):
        yield str(entry.get("name", default="")), entry
    for specifier in action.typed("PriorityGroupClusterSpecifier"):
        for group in specifier.items("priority_groups"):
            for entry in group.items("clusters"):
                yield str(entry.get("cluster_name", default="")), entry
