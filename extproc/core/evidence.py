"""What Envoy tells us later, in its access logs: how calls ended, and which keys providers refuse."""

from typing import Final

import msgspec

SETTLED: Final = "settled"
"""Metadata of a call's last decision: the router stage has said its last word."""
PROVIDER_KEY: Final = "provider_key"
"""Metadata that names the key of an attempt: the provider, a slash, the key's id; empty where it has none."""


class Ended(msgspec.Struct, frozen=True, kw_only=True, tag="ended"):
    """A call that ended without our last word on it. ``call``: all that the router stage had said of it.

    ``provider`` and ``target`` are those that Envoy chose last; ``upstream``: whether the call was sent to one.
    ``received`` and ``sent`` are bytes of the request's body and of the answer's, as the client sent and got them.
    ``started``: seconds since the epoch. ``details`` and ``flags`` are Envoy's own words for what happened.
    """

    call: dict[str, str | float]
    provider: str = ""
    target: str = ""
    attempts: int = 0
    status: int = 0
    details: str = ""
    flags: tuple[str, ...] = ()
    received: int = 0
    sent: int = 0
    started: float = 0.0
    seconds: float = 0.0
    upstream: bool = False


class KeyRefused(msgspec.Struct, frozen=True):
    """A provider's answer to one attempt that is about the key. ``retry_after`` is its header as it came, or empty."""

    provider: str
    key: str
    status: int
    retry_after: str = ""
