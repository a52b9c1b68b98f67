"""An operator's file as plain trees with paths and line numbers, in Envoy's snake_case whichever spelling was used."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import yaml

_HUMP: Final = re.compile(r"(?<=[a-z0-9])([A-Z])")
_CAMEL: Final = re.compile(r"[a-z]+[a-z0-9]*(?:[A-Z][a-z0-9]*)+")


@dataclass(frozen=True, slots=True)
class Node:
    """A value and where it stands: ``path`` as `static_resources.clusters[0].name`."""

    path: str
    value: Any

    def get(self, *keys: str | int, default: Any = None) -> Any:
        """The value below, ``default`` where anything on the way is missing."""
        value = self.value
        for key in keys:
            if isinstance(key, int):
                value = value[key] if isinstance(value, list) and key < len(value) else None
            else:
                value = value.get(key) if isinstance(value, Mapping) else None
            if value is None:
                return default
        return value

    def at(self, *keys: str | int) -> "Node":
        """The node below, with value None where it is missing."""
        path = self.path
        for key in keys:
            path = f"{path}[{key}]" if isinstance(key, int) else f"{path}.{key}" if path else key
        return Node(path, self.get(*keys))

    def items(self, *keys: str | int) -> Iterator["Node"]:
        """The entries of the list below."""
        below = self.at(*keys)
        if isinstance(below.value, list):
            for index in range(len(below.value)):
                yield below.at(index)

    def walk(self) -> Iterator["Node"]:
        """The node itself and all below it."""
        yield self
        if isinstance(self.value, Mapping):
            for key in self.value:
                yield from self.at(key).walk()
        elif isinstance(self.value, list):
            for index in range(len(self.value)):
                yield from self.at(index).walk()

    @property
    def kind(self) -> str:
        """The last part of `@type`."""
        return str(self.get("@type", default="")).rpartition(".")[2]

    def typed(self, kind: str) -> Iterator["Node"]:
        """All nodes below whose `@type` ends in ``kind``."""
        return (node for node in self.walk() if isinstance(node.value, Mapping) and node.kind == kind)


class Document:
    """The documents of a file. ``lines`` gives the line of a path, starting at 1."""

    def __init__(self, text: str) -> None:
        """Raises yaml.YAMLError."""
        self.lines: dict[str, int] = {}
        self.roots: list[Node] = []
        for index, node in enumerate(yaml.compose_all(text, Loader=yaml.SafeLoader)):
            prefix = "" if index == 0 else f"document {index + 1}: "
            self.roots.append(Node(prefix, self._plain(node, prefix)))

    def line(self, path: str) -> int | None:
        """The line of the path, or of the nearest thing around it that is there."""
        while path:
            if path in self.lines:
                return self.lines[path]
            path = re.sub(r"(\.?[^.\[\]]+|\[\d+\])$", "", path)
        return None

    def _plain(self, node: yaml.Node, path: str) -> Any:
        self.lines[path] = node.start_mark.line + 1
        if isinstance(node, yaml.MappingNode):
            found = {}
            for key_node, value_node in node.value:
                key = _snake(str(key_node.value))
                below = f"{path}.{key}" if path and not path.endswith(": ") else path + key
                found[key] = self._plain(value_node, below)
                self.lines[below] = key_node.start_mark.line + 1
            return found
        if isinstance(node, yaml.SequenceNode):
            return [self._plain(child, f"{path}[{index}]") for index, child in enumerate(node.value)]
        if node.tag == "tag:yaml.org,2002:null":
            return None
        if node.tag == "tag:yaml.org,2002:bool":
            return str(node.value).lower() in ("true", "yes", "on")
        if node.tag == "tag:yaml.org,2002:int":
            return int(str(node.value).replace("_", ""), 0)
        return str(node.value)


def _snake(key: str) -> str:
    return _HUMP.sub(r"_\1", key).lower() if _CAMEL.fullmatch(key) else key


def seconds(value: object) -> float | None:
    """A duration as Envoy writes it (`15s`, `0.2s`); None where it is none."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)s", str(value))
    return float(match[1]) if match else None
