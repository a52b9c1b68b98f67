"""One gateway for each transport, which all end-to-end tests share; its stubs behave well when a test begins."""

import hashlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anthropic
import openai
import pytest
from world import ACME, GLOBEX, LEAVER, PROVIDER_KEYS, World, refusing_port, write_key

from extproc.demo.gateway import Gateway
from extproc.demo.stub import StubProvider, running

TIGHT = {"first_byte": "1500ms", "idle": "1s"}
PRIMARY = {"provider": "primary", "model": "gpt-primary"}
BACKUP = {"provider": "backup", "model": "qwen-max-longer-than-the-public-name"}
THIRD = {"provider": "third", "model": "gpt-eu"}


def _url(stub: StubProvider) -> str:
    return f"http://{stub.host}:{stub.port}"


@pytest.fixture(name="transport", params=["grpcio", "granian"], scope="session")
def _transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(name="shared_world", scope="session")
def _shared_world(transport: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp(transport)
    stubs = {
        "primary": StubProvider("primary"),
        "backup": StubProvider("backup", prefix="/compatible-mode/v1"),
        "third": StubProvider("third", prefix="/openai/deployments/gpt-eu"),
        "claude": StubProvider("claude", "anthropic"),
        "claude-backup": StubProvider("claude-backup", "anthropic", prefix="/anthropic"),
    }
    with running(*stubs.values()) as run, refusing_port() as port:
        dead = {"base_url": f"http://127.0.0.1:{port}/v1", "keys": [{"value": "pk-dead-7c7c7c7c"}]}
        config: dict[str, Any] = {
            "server": {"transport": transport},
            "gateway": {"request_timeout": "5s"},
            "providers": {
                "primary": {
                    "kind": "openai",
                    "base_url": f"{_url(stubs['primary'])}/v1",
                    "keys": [{"value": PROVIDER_KEYS["primary"]}],
                    "headers": {"openai-organization": "org-primary", "x-team": "primary-only"},
                },
                "backup": {
                    "kind": "dashscope",
                    "base_url": f"{_url(stubs['backup'])}/compatible-mode/v1",
                    "keys": [{"env": "BACKUP_KEY"}],
                },
                "third": {
                    "kind": "azure",
                    "base_url": _url(stubs["third"]),
                    "api_version": "2024-10-21",
                    "keys": [{"file": write_key(directory, "third")}],
                    "headers": {"x-third": "3"},
                },
                "claude": {
                    "kind": "anthropic",
                    "base_url": _url(stubs["claude"]),
                    "keys": [{"value": PROVIDER_KEYS["claude"]}],
                },
                "claude-backup": {
                    "kind": "deepseek",
                    "dialect": "anthropic",
                    "base_url": f"{_url(stubs['claude-backup'])}/anthropic",
                    "keys": [{"value": PROVIDER_KEYS["claude-backup"]}],
                },
                "dead": dead,
                "dead-claude": dead | {"kind": "anthropic", "base_url": f"http://127.0.0.1:{port}"},
            },
            "models": {
                "gpt": {"route": [[PRIMARY]], "retry": TIGHT},
                "patient": {"route": [[PRIMARY]]},
                "pair": {"route": [[PRIMARY], [BACKUP]], "retry": TIGHT},
                "trio": {"route": [[PRIMARY], [BACKUP], [THIRD]], "retry": TIGHT},
                "picky": {"route": [[PRIMARY], [BACKUP]], "retry": {**TIGHT, "on": ["connect", 429]}},
                "dead-first": {"route": [[{"provider": "dead"}], [BACKUP]]},
                "all-dead": {"route": [[{"provider": "dead"}], [{"provider": "dead", "model": "other"}]]},
                "split": {"route": [[PRIMARY | {"weight": 90}, BACKUP | {"weight": 10}]]},
                "parked": {"route": [[PRIMARY, BACKUP | {"weight": 0}]]},
                "claude": {"route": [[{"provider": "claude"}]], "retry": TIGHT},
                "claude-pair": {
                    "route": [[{"provider": "claude", "model": "opus"}], [{"provider": "claude-backup"}]],
                    "retry": TIGHT,
                },
                "claude-dead": {"route": [[{"provider": "dead-claude"}]]},
                "both": {"route": [[PRIMARY], [{"provider": "claude", "model": "opus"}]]},
                "secret-model": {"route": [[{"provider": "third", "model": "gpt-eu"}]]},
            },
            "consumers": {
                "acme": {"keys": [{"value": ACME}]},
                "globex": {
                    "keys": [{"sha256": hashlib.sha256(GLOBEX.encode()).hexdigest()}],
                    "models": ["gpt*", "claude"],
                },
                "leaver": {"keys": [{"env": "LEAVER_KEY"}]},
            },
        }
        environment = {"BACKUP_KEY": PROVIDER_KEYS["backup"], "LEAVER_KEY": LEAVER}
        gateway = Gateway(config, environment=environment, log=directory / "log")
        with World(gateway, stubs, run) as world:
            yield world
            published = world.published()
        published["log"] = gateway.log() + gateway.access_log()  # with what they wrote at the end
        found = [(secret, place) for place, text in published.items() for secret in SECRETS if secret in text]
        assert not found, f"secrets were published: {found}"


SECRETS = (ACME, GLOBEX, LEAVER, *PROVIDER_KEYS.values(), "pk-dead-7c7c7c7c")


@pytest.fixture(name="world")
def _world(shared_world: World) -> World:
    shared_world.reset()
    return shared_world


@pytest.fixture(name="gpt")
def _gpt(world: World) -> Iterator[openai.OpenAI]:
    """OpenAI's own client, which does not retry."""
    with openai.OpenAI(base_url=world.gateway.base_url, api_key=ACME, max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(name="async_gpt")
async def _async_gpt(world: World) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=world.gateway.base_url, api_key=ACME, max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(name="claude")
def _claude(world: World) -> Iterator[anthropic.Anthropic]:
    """Anthropic's own client, which does not retry."""
    with anthropic.Anthropic(base_url=world.gateway.url, api_key=ACME, max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(name="async_claude")
async def _async_claude(world: World) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=world.gateway.url, api_key=ACME, max_retries=0, timeout=60) as client:
        yield client
