"""Identity and permission: whose key it is, and whether its holder may use the model."""

from collections.abc import Callable
from typing import Final

from extproc.accounts.consumers import Consumers
from extproc.core.call import Call
from extproc.core.errors import EndpointNotAllowed, InvalidKey, ModelNotAllowed
from extproc.core.filter import Filter, Reply
from extproc.providers.provider import KEY_HEADERS

MAX_KEY: Final = 512  # characters; no key of ours is longer, and hashing is not for strangers' megabytes

OnUse = Callable[[str, float], None]
"""Told the id of a key of the database, and when it was used."""


class Auth(Filter):
    def __init__(self, call: Call, consumers: Consumers, on_use: OnUse) -> None:
        self._call = call
        self._consumers = consumers
        self._on_use = on_use

    async def on_request_head(self) -> Reply | None:
        call = self._call
        identity = self._consumers.find(_sent_key(call), call.time)
        if identity is None:
            raise InvalidKey("The API key is not valid.")
        call.consumer, call.key = identity.consumer, identity.key
        call.metadata["consumer"] = identity.consumer.name
        if identity.key:
            self._on_use(identity.key, call.time)
        if call.endpoint is not None and not identity.consumer.may_call(call.endpoint.name):
            raise EndpointNotAllowed(f"This key may not call {call.path}.")
        return None

    async def on_request(self) -> Reply | None:
        call = self._call
        if call.consumer is None or call.request is None or not call.consumer.may_use(call.request.model):
            model = call.request.model if call.request else ""
            raise ModelNotAllowed(f"This key may not use the model {model!r}.", param="model")
        return None


class AuthPlugin:
    def __init__(self, consumers: Consumers, on_use: OnUse) -> None:
        self._consumers = consumers
        self._on_use = on_use

    def open(self, call: Call) -> Filter:
        return Auth(call, self._consumers, self._on_use)


def _sent_key(call: Call) -> str:
    """The one key that the client sent. The headers leave the call here: no provider ever sees them."""
    sent = {}
    for name in KEY_HEADERS:
        if name in call.headers:
            sent[name] = call.headers[name]
            call.headers.remove(name)
    bearer = sent.get("authorization")
    if bearer is not None:
        scheme, _, credentials = bearer.partition(" ")
        if scheme.lower() != "bearer":
            raise InvalidKey("The Authorization header must be: Bearer, a space, and the API key.")
        sent["authorization"] = credentials
    keys = {key.strip() for key in sent.values()} - {""}
    if not keys:
        raise InvalidKey("No API key was sent. Send it as `Authorization: Bearer KEY`, `x-api-key` or `api-key`.")
    if len(keys) > 1:
        raise InvalidKey("Several different API keys were sent; send one.")
    key = keys.pop()
    if len(key) > MAX_KEY:
        raise InvalidKey("The API key is not valid.")
    return key
