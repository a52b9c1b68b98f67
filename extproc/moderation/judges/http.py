"""JSON over HTTP to a judge's service: what goes wrong becomes JudgeFailed, without keys and texts."""

import ssl
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx
import msgspec

from extproc.core.secret import Secret
from extproc.moderation.types import JudgeFailed, QuestionRefused

_T = TypeVar("_T")
_CONNECT: Final = 5.0
_SILENCE: Final = 60.0  # seconds, where nobody else bounds the call
_OF_THE_QUESTION: Final = (400, 413, 422)


class Endpoint:
    """One service under ``base_url``; its connections are kept. ``ca`` is who signs its certificate, if not the usual.

    Raises OSError where ``ca`` cannot be read.
    """

    def __init__(self, base_url: str, key: Secret | None = None, ca: Path | None = None) -> None:
        self._base_url = base_url.rstrip("/")
        self._key = key
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(_SILENCE, connect=_CONNECT),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            verify=True if ca is None else ssl.create_default_context(cafile=ca),
        )

    async def post(self, path: str, body: Any, answer: type[_T]) -> _T:
        """The answer, decoded as ``answer``. Raises JudgeFailed: ``error`` or ``garbage``."""
        headers = {"content-type": "application/json"}
        if self._key:
            headers["authorization"] = f"Bearer {self._key.reveal()}"
        try:
            response = await self._client.post(
                f"{self._base_url}{path}", content=msgspec.json.encode(body), headers=headers
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            # What httpx says may quote the URL, and a URL may have a key in it.
            raise JudgeFailed("error", type(error).__name__) from None
        if response.status_code in _OF_THE_QUESTION:
            raise QuestionRefused(f"status {response.status_code}")
        if response.status_code != httpx.codes.OK:
            raise JudgeFailed("error", f"status {response.status_code}")
        try:
            return msgspec.json.decode(response.content, type=answer)
        except (msgspec.DecodeError, UnicodeDecodeError):
            # The message of the original quotes what it could not read.
            raise JudgeFailed("garbage", f"not the JSON of {path}") from None

    async def close(self) -> None:
        await self._client.aclose()
