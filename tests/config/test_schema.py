"""The document: addresses, defaults, and a JSON Schema that agrees with it."""

from typing import Any

import pytest
from pydantic import ValidationError

from extproc.config.schema import Config, json_schema
from extproc.providers.presets import PRESETS


@pytest.mark.parametrize(
    ("written", "host", "port"),
    [("127.0.0.1:80", "127.0.0.1", 80), (":8080", "0.0.0.0", 8080), ("[::1]:81", "::1", 81), ("::1:81", "::1", 81),
     ("gateway.example:443", "gateway.example", 443), ("0.0.0.0:0", "0.0.0.0", 0)],
)  # fmt: skip
def test_addresses(written: str, host: str, port: int) -> None:
    """`host:port`, IPv6 with brackets or without, or the port alone."""
    listen = Config.model_validate({"gateway": {"listen": written}}).gateway.listen

    assert (listen.host, listen.port) == (host, port)


def test_an_address_as_text() -> None:
    """IPv6 gets its brackets back."""
    gateway = Config.model_validate({"gateway": {"listen": "[::1]:81", "admin": "127.0.0.1:82"}}).gateway

    assert (str(gateway.listen), str(gateway.admin)) == ("[::1]:81", "127.0.0.1:82")


def test_defaults_are_safe() -> None:
    """Admin ports are on loopback, clients' on all; sizes and times fit models."""
    config = Config()

    assert config.gateway.admin.host == config.server.http.host == "127.0.0.1"
    assert (config.gateway.max_body, config.gateway.max_answer) == (8 << 20, 32 << 20)
    assert config.server.message_timeout >= 30
    assert config.server.grpc.startswith("unix:")


def test_frozen() -> None:
    """A configuration in force cannot be changed in place."""
    with pytest.raises(ValidationError):
        Config().gateway.max_body = 1  # type: ignore[misc]


@pytest.mark.parametrize("url", ["redis://localhost:6379/0", "rediss://user:pw@host/1"])
def test_more_workers_with_redis(url: str) -> None:
    """Several workers are fine where they can share state."""
    assert Config.model_validate({"server": {"workers": 4}, "state": {"url": url}}).server.workers == 4


@pytest.mark.parametrize(
    ("server", "address"),
    [
        ({}, "unix:run/extproc-log.sock"),
        ({"grpc": "unix:/run/a.b/x"}, "unix:/run/a.b/x-log"),
        ({"grpc": "127.0.0.1:1"}, None),
        ({"grpc": "127.0.0.1:1", "access_log": "unix:/run/y"}, "unix:/run/y"),
        ({"access_log": "127.0.0.1:2"}, "127.0.0.1:2"),
    ],
)
def test_where_envoy_tells_us_later(server: dict[str, str], address: str | None) -> None:
    """Beside the server's own socket, or where the operator says."""
    assert Config.model_validate({"server": server}).server.log_address == address


@pytest.mark.parametrize(
    "key", [{"weight": 0}, {"weight": 1.5}, {"weight": 1001}, {"label": "x" * 65}, {"name": "x"}, {"sha256": "0" * 64}]
)
def test_keys_of_a_provider(key: dict[str, Any]) -> None:
    """A weight is a whole number from 1, a label is short, and there is nothing else."""
    with pytest.raises(ValidationError):
        Config.model_validate({"providers": {"p": {"keys": [{"value": "pk", **key}]}}})


@pytest.mark.parametrize("kind", PRESETS)
def test_every_preset_is_a_kind(kind: str) -> None:
    """What the presets know, the document takes."""
    assert Config.model_validate({"providers": {"p": {"kind": kind}}}).providers["p"].kind == kind


def nodes(value: Any) -> Any:
    yield value
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from nodes(child)


def test_json_schema() -> None:
    """Every field is described, unknown keys are refused, and references lead somewhere."""
    schema = json_schema()
    parts = [schema, *(part for part in schema["$defs"].values() if "properties" in part)]

    assert len(parts) > 10
    for part in parts:
        assert part["additionalProperties"] is False
    undescribed = [
        f"{part.get('title')}.{name}"
        for part in parts
        for name, field in part["properties"].items()
        if "description" not in field and "$ref" not in field
    ]
    assert undescribed == []
    references = {
        node["$ref"].rpartition("/")[2] for node in nodes(schema) if isinstance(node, dict) and "$ref" in node
    }
    assert references <= set(schema["$defs"])
