"""Naming the model for Envoy's routing, and what belongs to a gateway's front door: paths, sizes, the model list."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final
from urllib.parse import unquote

from extproc.core.call import Call, Model
from extproc.core.errors import (
    InvalidRequest,
    MethodNotAllowed,
    ModelNotFound,
    ProviderFailed,
    ProviderRejected,
    RequestTooLarge,
    UnknownEndpoint,
)
from extproc.core.filter import Filter, Reply
from extproc.core.secret import Secret
from extproc.dialects import base as dialects
from extproc.dialects.endpoints import MODELS_PATH

MODEL_HEADER: Final = "x-extproc-model"


class Routing(Filter):
    def __init__(self, call: Call, plugin: "RoutingPlugin") -> None:
        self._call = call
        self._plugin = plugin

    async def on_request_head(self) -> Reply | None:
        call = self._call
        if call.path == MODELS_PATH or call.path.startswith(MODELS_PATH + "/"):
            return self._models()
        if call.endpoint is None:
            raise UnknownEndpoint(f"There is nothing at {call.method} {call.path[:100]}.")
        if call.method != "POST":
            raise MethodNotAllowed(f"{call.path} is called with POST.", headers={"allow": "POST"})
        length = call.headers.get("content-length")
        self._check_size(int(length) if length.isdecimal() else 0)
        if call.headers.get("content-encoding").strip().lower() not in ("", "identity"):
            raise InvalidRequest("A compressed request body is not supported; send it as it is.")
        return None

    async def on_request(self) -> Reply | None:
        call = self._call
        if call.request is None or call.endpoint is None:
            raise InvalidRequest("The request has no body.")
        self._check_size(len(call.document.body) if call.document else 0)  # one sent in chunks says no length
        name = call.request.model
        model = self._plugin.models.get(name)
        if model is None:
            raise ModelNotFound(f"The model {name!r} does not exist.", param="model")
        if call.endpoint.dialect not in model.dialects:
            raise ModelNotFound(f"The model {name!r} is not served at {call.path}.", param="model")
        call.model = model
        call.headers[MODEL_HEADER] = name
        call.metadata |= {
            "model": name,
            "endpoint": call.endpoint.name,
            "query": call.query,
            "config": self._plugin.digest,
        }
        return None

    async def on_response_head(self) -> Reply | None:
        answered = self._call.answered
        if answered is not None and not answered.local:
            self._call.metadata |= {
                "provider": answered.provider,
                "target": answered.target,
                "attempts": answered.attempts,
            }
        return None

    async def on_response(self) -> None:
        """Errors of a provider: never with its key, never about its key, always JSON of the dialect."""
        call = self._call
        answered = call.answered
        if answered is None or answered.status < 400 or answered.local:
            return
        if answered.status in (401, 403):
            raise ProviderRejected("The provider did not accept the gateway's credentials; the operator has been told.")
        keys = self._plugin.keys_of(answered.provider)
        leaked = any(key.reveal().encode() in call.answer for key in keys)
        if leaked or not dialects.is_error_body(call.answer):
            raise ProviderFailed(f"The provider answered with status {answered.status}.", status=answered.status)

    def _check_size(self, size: int) -> None:
        if size > self._plugin.max_body:
            raise RequestTooLarge(f"The request body is larger than {self._plugin.max_body} bytes.")

    def _models(self) -> Reply:
        call = self._call
        if call.method != "GET":
            raise MethodNotAllowed(f"{MODELS_PATH} is called with GET.", headers={"allow": "GET"})
        allowed = [name for name in self._plugin.models if call.consumer and call.consumer.may_use(name)]
        wanted = unquote(call.path[len(MODELS_PATH) + 1 :])
        if not wanted:
            return Reply(dialects.model_list(call.dialect, allowed, self._plugin.since))
        if wanted not in allowed:
            raise ModelNotFound(f"The model {wanted!r} does not exist.", param="model")
        return Reply(dialects.model_card(call.dialect, wanted, self._plugin.since))


class RoutingPlugin:
    """``digest`` names the configuration: every attempt of the call is made with the one it began with."""

    def __init__(
        self,
        models: Mapping[str, Model],
        *,
        digest: str,
        max_body: int,
        since: int,
        keys_of: Callable[[str], Sequence[Secret]],
    ) -> None:
        self.models = models
        self.digest = digest
        self.max_body = max_body
        self.since = since
        self.keys_of = keys_of

    def open(self, call: Call) -> Filter:
        return Routing(call, self)
