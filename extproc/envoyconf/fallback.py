"""How a retry reaches the next group of targets: one way per generation of Envoy."""

from collections.abc import Sequence
from typing import Any, Protocol

from extproc.core.call import Target
from extproc.envoyconf.clusters import name_of

Tree = dict[str, Any]


class Fallback(Protocol):
    """Turns ordered groups of targets into the parts of a route that choose among them."""

    def action(self, groups: Sequence[Sequence[Target]]) -> Tree:
        """The cluster specifier of a route action."""
        ...

    def retry_policy(self) -> Tree:
        """What a retry policy needs so that attempt N uses group N."""
        ...


class PriorityGroups:
    """Envoy 1.40: attempt N picks by weight in group N, each cluster with upstream filters of its own."""

    def action(self, groups: Sequence[Sequence[Target]]) -> Tree:
        return {
            "inline_cluster_specifier_plugin": {
                "extension": {
                    "name": "envoy.router.cluster_specifier_plugin.priority_group",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.router.cluster_specifiers.priority_group.v3."
                        "PriorityGroupClusterSpecifier",
                        "priority_groups": [
                            {
                                "name": f"group {number}",
                                "clusters": [{"cluster_name": name_of(t), "weight": t.weight} for t in group],
                            }
                            for number, group in enumerate(groups, 1)
                        ],
                    },
                }
            }
        }

    def retry_policy(self) -> Tree:
        return {"refresh_cluster_on_retry": True}
