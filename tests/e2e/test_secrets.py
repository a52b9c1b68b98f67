"""Keys stay where they belong: a consumer's never reaches a provider, a provider's nothing but that provider."""

import pytest
from world import ACME, CHAT, GLOBEX, LEAVER, PROVIDER_KEYS, World, chat

from extproc.demo.stub import Behaviour

pytestmark = pytest.mark.e2e

CONSUMERS = (ACME, GLOBEX, LEAVER)


def everything(world: World) -> list[str]:
    """Calls of every kind, well and badly ended. Returns all that clients got to read."""
    read = []
    for key in CONSUMERS:
        read += [world.chat("gpt", key=key), world.chat("gpt", key=key, stream=True)]
    read += [world.messages("claude"), world.messages("claude", stream=True), world.chat("secret-model", key=GLOBEX)]
    read += [world.chat("secret-model")]
    read += [world.post(CHAT, b"{", key=ACME), world.post(CHAT, chat("nobody")), world.post("/nowhere", b"{}")]
    for headers in ({"x-api-key": GLOBEX}, {"api-key": f"{ACME}x"}, {"authorization": f"Basic {ACME}"}):
        read.append(world.post(CHAT, chat("gpt"), headers=headers))
    for behaviour in (
        Behaviour(status=401),
        Behaviour(status=503),
        Behaviour(fault="reset"),
        Behaviour(fault="stall_mid", events=9),
        Behaviour(fault="garbage"),
    ):
        world.primary.behaviour = world.claude.behaviour = behaviour
        read += [world.chat("trio", stream=True), world.chat("gpt"), world.messages("claude-pair")]
    read += [world.chat("all-dead"), world.post(f"{CHAT}?key=1", chat("gpt"), key="sk-unknown-0123456789")]
    return [f"{answer.headers} {answer.text}" for answer in read]


def test_no_key_in_what_clients_read(world: World) -> None:
    """No answer, and no error, holds a key of anybody."""
    found = [(key, text) for text in everything(world) for key in (*CONSUMERS, *PROVIDER_KEYS.values()) if key in text]

    assert found == []


def test_no_consumers_key_at_a_provider(world: World) -> None:
    """And each provider sees its own key only."""
    everything(world)
    requests = [(name, r) for name, stub in world.stubs.items() for r in stub.requests]

    assert {name for name, _ in requests} == set(PROVIDER_KEYS)
    for name, request in requests:
        seen = f"{request.path}?{request.query} {request.headers} {request.body!r}"
        others = [key for other, key in PROVIDER_KEYS.items() if other != name]
        assert [key for key in (*CONSUMERS, *others) if key in seen] == []
        assert PROVIDER_KEYS[name] in seen


def test_no_key_in_anything_that_we_write_or_show(world: World) -> None:
    """Logs, metrics, health, Envoy's files, its configuration dump, its statistics: none holds a key."""
    everything(world)
    published = world.published()

    assert {"log", "metrics"} <= set(published)
    assert all(published.values())
    for place, text in published.items():
        assert [key for key in (*CONSUMERS, *PROVIDER_KEYS.values()) if key in text] == [], place
