"""Configurations to render, and where to look in what is rendered."""

import json
from pathlib import Path
from typing import Any

from extproc.app import Parts, check
from extproc.config.load import Loaded, parse
from extproc.envoyconf.clusters import HTTP_OPTIONS
from extproc.envoyconf.render import Resources, resources, static

Tree = dict[str, Any]

ONE: Tree = {
    "providers": {"near": {"base_url": "http://127.0.0.1:9001/v1", "keys": [{"value": "pk-near-secret"}]}},
    "models": {"m": {"route": {"provider": "near"}}},
    "consumers": {"acme": {"keys": [{"value": "sk-acme-secret"}]}},
}
MANY: Tree = {
    "gateway": {"max_body": "16MiB", "max_answer": "64MiB"},
    "providers": {
        "near": {"kind": "vllm", "base_url": "http://r1.internal:8000/v1", "max_connections": 7777},
        "far": {"kind": "deepseek", "keys": [{"value": "pk-far-secret"}], "connect_timeout": "2s"},
        "azure": {"kind": "azure", "base_url": "https://n.openai.azure.com", "api_version": "2024-10-21"},
        "claude": {"kind": "anthropic", "keys": [{"value": "pk-claude-secret"}]},
        "six": {"base_url": "http://[::1]:9001/v1"},
    },
    "models": {
        "deepseek-r1": {
            "route": [
                [{"provider": "near", "model": "R1", "weight": 90}, {"provider": "six", "weight": 10}],
                [{"provider": "far", "model": "deepseek-chat"}],
                [{"provider": "azure", "model": "gpt-eu"}, {"provider": "claude", "model": "opus"}],
            ],
            "retry": {"on": ["connect", "reset", 429, "5xx"], "first_byte": "20s", "idle": "10s"},
        },
        "claude": {"route": [[{"provider": "claude", "weight": 0}, {"provider": "claude", "model": "opus"}]]},
    },
    "consumers": {"acme": {"keys": [{"value": "sk-acme-secret"}]}},
}


def load(tree: Tree) -> tuple[Loaded, Parts]:
    loaded = parse(json.dumps(tree).encode(), Path("extproc.yaml"))  # JSON is YAML, and no name in it is a number
    return loaded, check(loaded)


def rendered(tree: Tree, directory: Path | None = None) -> Resources:
    loaded, built = load(tree)
    return resources(loaded.config, built.models, built.providers, directory=directory)


def text(tree: Tree) -> str:
    """The static file."""
    loaded, _ = load(tree)
    return static(loaded.config, rendered(tree))


def manager(made: Resources) -> Tree:
    found: Tree = made.listeners[0]["filter_chains"][0]["filters"][0]["typed_config"]
    return found


def routes(made: Resources) -> dict[str, Tree]:
    return {route["name"]: route for route in made.routes[0]["virtual_hosts"][0]["routes"]}


def clusters(made: Resources) -> dict[str, Tree]:
    return {cluster["name"]: cluster for cluster in made.clusters}


def http_options(cluster: Tree) -> Tree:
    found: Tree = cluster["typed_extension_protocol_options"][HTTP_OPTIONS]
    return found
