"""How attempts find their group."""

from typing import Any

import pytest
from envoyconf.configs import MANY, ONE, Tree, load, rendered, routes

from extproc.core.call import Target
from extproc.envoyconf.fallback import PriorityGroups
from extproc.envoyconf.render import resources


def groups(action: Tree) -> list[list[tuple[str, int]]]:
    """Cluster and weight, group by group."""
    specifier = action["inline_cluster_specifier_plugin"]["extension"]["typed_config"]
    return [[(c["cluster_name"], c["weight"]) for c in group["clusters"]] for group in specifier["priority_groups"]]


def test_groups_in_order() -> None:
    """Attempt 1 picks by weight from the first, attempt 2 from the second."""
    action = PriorityGroups().action([[Target("a", "x", 90), Target("b", "y", 10)], [Target("c", "z")]])

    assert groups(action) == [[("a/x", 90), ("b/y", 10)], [("c/z", 1)]]
    assert PriorityGroups().retry_policy() == {"refresh_cluster_on_retry": True}


def test_as_many_retries_as_groups() -> None:
    """One attempt a group, of those that speak the dialect."""
    found = routes(rendered(MANY))
    openai, anthropic = found["deepseek-r1 (openai)"]["route"], found["deepseek-r1 (anthropic)"]["route"]

    assert groups(openai) == [
        [("near/R1", 90), ("six/deepseek-r1", 10)],
        [("far/deepseek-chat", 1)],
        [("azure/gpt-eu", 1)],
    ]
    assert openai["retry_policy"]["num_retries"] == 2
    assert groups(anthropic) == [[("claude/opus", 1)]]
    assert anthropic["retry_policy"]["num_retries"] == 0


def test_weight_zero_is_left_out() -> None:
    """A parked target is in no group."""
    assert groups(routes(rendered(MANY))["claude (anthropic)"]["route"]) == [[("claude/opus", 1)]]


@pytest.mark.parametrize("group", [0, 1])
def test_a_group_that_speaks_another_dialect_is_skipped(group: int) -> None:
    """The next attempt is made at once, and not at nobody."""
    route: list[Any] = [[{"provider": "near"}], [{"provider": "near", "model": "other"}]]
    route.insert(group, [{"provider": "claude"}])
    tree = {
        **ONE,
        "providers": ONE["providers"] | {"claude": {"kind": "anthropic"}},
        "models": {"m": {"route": route}},
    }

    assert groups(routes(rendered(tree))["m (openai)"]["route"]) == [[("near/m", 1)], [("near/other", 1)]]


def test_another_way_can_be_given() -> None:
    """The renderer asks an interface, so that other Envoys can have another way."""

    class First:
        def action(self, groups: Any) -> Tree:
            return {"cluster": f"{groups[0][0].provider}/{groups[0][0].model}"}

        def retry_policy(self) -> Tree:
            return {"retry_priority": {"name": "x"}}

    loaded, built = load(ONE)
    made = resources(loaded.config, built.models, built.providers, fallback=First())
    action = routes(made)["m (openai)"]["route"]

    assert action["cluster"] == "near/m"
    assert action["retry_policy"]["retry_priority"] == {"name": "x"}
    assert "refresh_cluster_on_retry" not in action["retry_policy"]
