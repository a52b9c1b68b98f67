"""Who may use the API: whoever sends one of the tokens, or has shown a certificate that the server verified."""

import hashlib
import hmac
from collections.abc import Callable, Sequence
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from extproc.telemetry import log

CERTIFIED: Final = "client_certificate"
"""Name in the state of a request: whose verified certificate its connection began with; empty without one."""
WHO: Final = "who"
"""Name in the state of a request that passed: who sent it, as the audit notes it."""

_LOG = log.get()
_CLOSED: Final = (
    "The admin API is closed: set admin.tokens (or admin.tls.client_ca) in the configuration file, "
    "then send a token as `Authorization: Bearer TOKEN`."
)
_MISSING: Final = "Send one of admin.tokens as `Authorization: Bearer TOKEN`."
_WRONG: Final = "This is none of admin.tokens."


class Guard:
    """An application behind a lock. Nothing of it is reached otherwise, whatever the path."""

    def __init__(self, app: ASGIApp, tokens: Callable[[], Sequence[bytes]], *, certificates: bool = False) -> None:
        """``tokens``: the SHA-256 of those in force. ``certificates``: the server asks clients for theirs."""
        self._app = app
        self._tokens = tokens
        self._certificates = certificates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_private(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["cache-control"] = "no-store"
                headers["x-content-type-options"] = "nosniff"
            await send(message)

        who, refusal = self._judged(scope)
        if refusal:
            answer = error("unauthorized", refusal, 401, {"www-authenticate": "Bearer"})
            await answer(scope, receive, send_private)
            return
        scope["state"] = {**scope.get("state", {}), WHO: who}
        try:
            await self._app(scope, receive, send_private)
        except Exception:  # noqa: BLE001 - the last to see it
            # It has been answered; of bodies and headers nothing is in a traceback.
            _LOG.exception("admin failed", method=scope["method"])

    def _judged(self, scope: Scope) -> tuple[str, str]:
        """Who it is, or why not."""
        headers = Headers(scope=scope)
        # A browser shows a certificate for any page that asks it to call us, and says so with `origin`.
        certified = scope.get("state", {}).get(CERTIFIED)
        if certified and "origin" not in headers:
            return f"certificate {certified}", ""
        tokens = self._tokens()
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return "", _MISSING if tokens or self._certificates else _CLOSED
        digest = hashlib.sha256(token.strip().encode("latin-1")).digest()
        known = [hmac.compare_digest(digest, each) for each in tokens]
        if any(known):
            return f"token {digest.hex()[:12]}", ""
        return "", _WRONG if tokens else _CLOSED


def error(code: str, message: str, status: int, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": {"code": code, "message": message}}, status, headers)
