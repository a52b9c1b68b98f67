"""What one attempt needs of its provider: the model's name there, the path, and the key."""

import random
from collections.abc import Mapping
from collections.abc import Set as AbstractSet

from extproc.core.attempt import Attempt
from extproc.core.errors import PolicyUnavailable
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

    def __init__(self, providers: Mapping[str, Provider]) -> None:
        self._providers = providers
        self._managed: AbstractSet[str] = {name for p in providers.values() for name in p.headers}

    async def on_attempt(self, attempt: Attempt) -> None:
        provider = _provider_of(attempt, self._providers)
        key = random.choice(provider.keys) if provider.keys else None  # noqa: S311 - which of them is no secret
        wanted = {**provider.headers, **provider.key_headers(key)}
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
