"""What one attempt needs of its provider: the model's name there, the path, and the key."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet

from extproc.core.attempt import Attempt
from extproc.core.errors import PolicyUnavailable
from extproc.core.evidence import PROVIDER_KEY
from extproc.providers.pool import Pool
from extproc.providers.provider import KEY_HEADERS, Provider


class TargetFilter:
    """The target's own model name in the body, the provider's path in the head."""

    def __init__(self, providers: Mapping[str, Provider]) -> None:
        self._providers = providers

    async def on_attempt(self, attempt: Attempt) -> None:
        provider = _provider_of(attempt, self._providers)
        provider.edit(attempt.endpoint, attempt.document, attempt.target)
        attempt.headers[":path"] = provider.path(attempt.endpoint, attempt.target, attempt.query)
        # Answers must be readable to us; one that is compressed all the same is decompressed.
        attempt.headers["accept-encoding"] = "identity"


class CredentialsFilter:
    """The provider's key in the header where it wants it, and in no other; the operator's headers likewise."""

    def __init__(self, providers: Mapping[str, Provider], pools: Mapping[str, Pool]) -> None:
        self._providers = providers
        self._pools = pools
        self._managed: AbstractSet[str] = {name for p in providers.values() for name in p.headers}

    async def on_attempt(self, attempt: Attempt) -> None:
        provider = _provider_of(attempt, self._providers)
        key = self._pools[provider.name].pick(attempt.consumer)
        # Also where there is no key: what an attempt before this one used must not be blamed for this one's answer.
        attempt.metadata[PROVIDER_KEY] = f"{provider.name}/{key.id}" if key else ""
        wanted = {**provider.headers, **provider.key_headers(key.secret if key else None)}
        for name in (*KEY_HEADERS, *self._managed):
            if name not in wanted:
                attempt.headers.remove(name)
        for name, value in wanted.items():
            attempt.headers[name] = value
        for name, value in provider.default_headers.items():
            if name not in attempt.headers:
                attempt.headers[name] = value


def _provider_of(attempt: Attempt, providers: Mapping[str, Provider]) -> Provider:
    provider = providers.get(attempt.provider)
    if provider is None:
        raise PolicyUnavailable("The gateway does not know the provider that was chosen for this call.")
    return provider
