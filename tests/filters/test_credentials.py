"""What each attempt needs of its provider: every one sets and removes all of it."""

import itertools
from typing import Any

import msgspec
import pytest
from fakes import Clock
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.attempt import Attempt
from extproc.core.errors import PolicyUnavailable
from extproc.core.messages import Headers
from extproc.core.secret import Secret
from extproc.dialects.document import Document
from extproc.dialects.endpoints import BY_NAME
from extproc.filters.credentials import CredentialsFilter, TargetFilter
from extproc.providers.pool import Pools, key_id
from extproc.providers.provider import KEY_HEADERS, Provider


def provider(name: str, **settings: Any) -> Provider:
    keys = [Secret(f"key-of-{name}")] if settings.pop("keyed", True) else []
    return Provider.build(name, base_url=settings.pop("base_url", f"https://{name}.example/v1"), keys=keys, **settings)


PROVIDERS = {
    p.name: p
    for p in (
        provider("bearer"),
        provider("raw", kind="pai-eas", base_url="https://eas.example/service/v1", headers={"X-Region": "north"}),
        provider("azure", kind="azure", base_url="https://azure.example"),
        provider("claude", kind="anthropic", base_url="https://claude.example"),
        provider("keyless", keyed=False, headers={"x-tenant": "t1", "x-region": "south"}),
        provider("query", query={"version": "2"}),
    )
}
POOLS = {
    name: Pools(Clock()).pool(name, [(key, 1, "") for key in provider.keys]) for name, provider in PROVIDERS.items()
}
KEYS = {
    "bearer": {"authorization": "Bearer key-of-bearer"},
    "raw": {"authorization": "key-of-raw", "x-region": "north"},
    "azure": {"api-key": "key-of-azure"},
    "claude": {"x-api-key": "key-of-claude", "anthropic-version": "2023-06-01"},
    "keyless": {"x-tenant": "t1", "x-region": "south"},
    "query": {"authorization": "Bearer key-of-query"},
}
PATHS = {
    "bearer": "/v1/chat/completions?a=1",
    "raw": "/service/v1/chat/completions?a=1",
    "azure": "/openai/v1/chat/completions?a=1",
    "claude": "/v1/messages?a=1",
    "keyless": "/v1/chat/completions?a=1",
    "query": "/v1/chat/completions?a=1&version=2",
}
MANAGED = {*KEY_HEADERS, "x-region", "x-tenant"}


async def attempt(name: str, sent: dict[str, str], number: int = 1, **fields: Any) -> tuple[dict[str, str], bytes]:
    """The headers and the body that this provider gets, where Envoy had ``sent`` before."""
    headers = Headers({":path": "/v1/chat/completions", **sent}.items())
    endpoint = BY_NAME["messages" if name == "claude" else "chat"]
    document = Document.parse(msgspec.json.encode({"model": "gpt", **fields}))
    this = Attempt("call-1", "gpt", endpoint, "a=1", name, f"{name}-model", number, document, headers)
    for each in (TargetFilter(PROVIDERS), CredentialsFilter(PROVIDERS, POOLS)):
        await each.on_attempt(this)
    changed, removed = headers.take_changes()
    applied = {k: v for k, v in sent.items() if k not in removed} | changed
    return applied, this.document.body


@pytest.mark.parametrize("name", PROVIDERS)
async def test_one_attempt(name: str) -> None:
    """The provider gets its own model name, path, key and headers, and answers uncompressed."""
    headers, body = await attempt(name, {"accept": "*/*"})

    assert headers == {"accept": "*/*", ":path": PATHS[name], "accept-encoding": "identity"} | KEYS[name]
    assert msgspec.json.decode(body) == {"model": f"{name}-model"}


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(PROVIDERS, 2)))
async def test_fallback(first: str, second: str) -> None:
    """What attempt 1 set does not reach the provider of attempt 2, whichever two they are."""
    left, _ = await attempt(first, {"content-type": "application/json"})
    got, body = await attempt(second, left, 2)

    fresh, _ = await attempt(second, {"content-type": "application/json"})
    # The version may stay: a call's attempts are of one dialect, so it never meets a provider without it.
    version = {"anthropic-version"} if first == "claude" else set()
    assert {k: v for k, v in got.items() if k not in version} == {k: v for k, v in fresh.items() if k not in version}
    assert f"key-of-{first}" not in str(got)
    assert msgspec.json.decode(body)["model"] == f"{second}-model"


@given(st.lists(st.sampled_from(sorted(PROVIDERS)), min_size=1, max_size=5))
async def test_any_row_of_attempts(names: list[str]) -> None:
    """After any row of attempts, the managed headers are those of the last provider alone."""
    headers: dict[str, str] = {"authorization": "Bearer spoofed", "x-tenant": "spoofed"}
    for number, name in enumerate(names, 1):
        headers, _ = await attempt(name, headers, number)

    assert {k: v for k, v in headers.items() if k in MANAGED} == {
        k: v for k, v in KEYS[names[-1]].items() if k in MANAGED
    }


@pytest.mark.parametrize("name", PROVIDERS)
async def test_headers_of_a_client(name: str) -> None:
    """Keys and operators' headers that a client sends are gone, also those that this provider does not want."""
    spoofed = dict.fromkeys(MANAGED, "spoofed")
    headers, _ = await attempt(name, spoofed)

    assert "spoofed" not in headers.values()


async def test_removed_though_unseen() -> None:
    """Key headers are removed even where we see none: Envoy may hold what it does not show."""
    headers = Headers()
    document = Document.parse(b'{"model":"gpt"}')
    this = Attempt("call-1", "gpt", BY_NAME["chat"], "", "keyless", "m", 1, document, headers)
    await CredentialsFilter(PROVIDERS, POOLS).on_attempt(this)

    assert headers.take_changes()[1] == set(KEY_HEADERS)


async def test_default_header_is_the_clients_to_choose() -> None:
    """The API version that a client asks for is kept; it is ours only where the client sent none."""
    headers, _ = await attempt("claude", {"anthropic-version": "2099-01-01"})

    assert headers["anthropic-version"] == "2099-01-01"


async def test_usage_is_asked_for() -> None:
    """A stream's usage is asked for on the client's behalf, and its other options stay."""
    _, body = await attempt("bearer", {}, stream=True, stream_options={"x": 1})

    assert msgspec.json.decode(body)["stream_options"] == {"x": 1, "include_usage": True}


class Several:
    """A provider with three keys, and attempts at it by whom we like."""

    def __init__(self, by: Any) -> None:
        self.clock = Clock()
        self.pools = Pools(self.clock)
        self.secrets = [Secret(f"key-{n}") for n in range(3)]
        self._provider = Provider.build("many", base_url="https://a.example/v1", keys=self.secrets)
        pool = self.pools.pool("many", [(secret, 1, "") for secret in self.secrets], by=by)
        self._filter = CredentialsFilter({"many": self._provider}, {"many": pool})

    async def used(self, consumer: str = "acme") -> int:
        """The number of the key that an attempt gets. Its id is in the metadata, the key is not."""
        headers = Headers()
        document = Document.parse(b'{"model":"gpt"}')
        this = Attempt("call-1", "gpt", BY_NAME["chat"], "", "many", "m", 1, document, headers, consumer)
        await self._filter.on_attempt(this)
        secret = headers["authorization"].removeprefix("Bearer ")
        assert this.metadata == {"provider_key": f"many/{key_id(Secret(secret))}"}
        return int(secret.removeprefix("key-"))


async def test_each_of_several_keys() -> None:
    """They take turns."""
    several = Several("least_used")

    assert [await several.used() for _ in range(6)] == [0, 1, 2, 0, 1, 2]


async def test_a_key_of_ones_own() -> None:
    """Sticky: a consumer keeps its key, and all keys have consumers."""
    several = Several("sticky")
    names = [f"consumer-{n}" for n in range(50)]
    before = {name: await several.used(name) for name in names}

    assert {name: await several.used(name) for name in names} == before
    assert set(before.values()) == {0, 1, 2}


async def test_a_key_that_was_refused() -> None:
    """No attempt uses it until it has cooled down."""
    several = Several("least_used")
    several.pools.failed("many", key_id(several.secrets[1]), 401, None)

    assert {await several.used() for _ in range(10)} == {0, 2}
    several.clock.now += 301
    assert {await several.used() for _ in range(10)} == {0, 1, 2}


async def test_no_key() -> None:
    """The attempt says so, lest its answer be held against the key of the attempt before."""
    document = Document.parse(b'{"model":"gpt"}')
    this = Attempt("call-1", "gpt", BY_NAME["chat"], "", "keyless", "m", 2, document, Headers())
    await CredentialsFilter(PROVIDERS, POOLS).on_attempt(this)

    assert this.metadata == {"provider_key": ""}


@pytest.mark.parametrize("each", [TargetFilter(PROVIDERS), CredentialsFilter(PROVIDERS, POOLS)])
async def test_unknown_provider(each: TargetFilter | CredentialsFilter) -> None:
    """A provider that this configuration does not know gets nothing."""
    document = Document.parse(b'{"model":"gpt"}')
    this = Attempt("call-1", "gpt", BY_NAME["chat"], "", "gone", "m", 1, document, Headers())

    with pytest.raises(PolicyUnavailable):
        await each.on_attempt(this)
