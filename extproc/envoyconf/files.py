"""The rendered configuration as files that Envoy watches: renamed into place, in an order that drops no call."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from extproc.config.schema import Config
from extproc.envoyconf.render import Resources, Tree, bootstrap, discovery

BOOTSTRAP: Final = "bootstrap.yaml"
_CLUSTER: Final = "envoy.config.cluster.v3.Cluster"
_LISTENER: Final = "envoy.config.listener.v3.Listener"
_ROUTES: Final = "envoy.config.route.v3.RouteConfiguration"


class EnvoyFiles:
    """One directory of files. Clusters are added before routes name them, and taken away after."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def bootstrap(self) -> Path:
        return self.directory / BOOTSTRAP

    def write_all(self, config: Config, made: Resources, version: str) -> None:
        """For an Envoy that is not running yet, or may be restarted."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._put(BOOTSTRAP, bootstrap(config, self.directory))
        self.write_clusters(made, version)
        self.write_traffic(made, version)

    def write_clusters(self, made: Resources, version: str, *, beside: Iterable[Tree] = ()) -> None:
        """``beside``: clusters of older configurations that calls still use."""
        self._put("clusters.yaml", discovery(_CLUSTER, [*made.clusters, *beside], version))

    def write_traffic(self, made: Resources, version: str) -> None:
        """Listeners and routes."""
        self._put("routes.yaml", discovery(_ROUTES, made.routes, version))
        self._put("listeners.yaml", discovery(_LISTENER, made.listeners, version))

    def _put(self, name: str, text: str) -> None:
        beside = self.directory / f".{name}.{os.getpid()}"
        beside.write_text(text)
        beside.replace(self.directory / name)
