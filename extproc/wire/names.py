"""Names that Envoy's configuration and our wire agree on."""

from typing import Final

NAMESPACE: Final = "extproc"
"""Namespace of dynamic metadata and of cluster metadata."""

STAGE: Final = "x-extproc-stage"
"""gRPC initial metadata that says which of our filters opened a stream: `router` or `upstream`."""

ATTRIBUTES: Final[dict[str, str]] = {
    f"xds.cluster_metadata.filter_metadata['{NAMESPACE}']['provider']": "provider",
    f"xds.cluster_metadata.filter_metadata['{NAMESPACE}']['target']": "target",
    "upstream.request_attempt_count": "attempt",
    "response.code_details": "details",
}
"""Attribute expression, as Envoy is configured to send it → our name for it."""


KEY_HEADER: Final = "x-extproc-provider-key"
"""What Envoy notes on a provider's answer, for its own log: the key that the attempt was made with."""

HEADERS_TO_US: Final = (
    ":method",
    ":path",
    ":status",
    "authorization",
    "x-api-key",
    "api-key",
    "content-length",
    "content-type",
    "content-encoding",
    "anthropic-version",
    "x-extproc-*",
)
"""Header fields that Envoy sends us, a `*` at the end for a prefix. Others pass by: they cost time on both sides, and
cookies are none of our business. A filter that reads another adds it here."""


def worker_address(address: str, index: int) -> str:
    """Where worker ``index`` listens: each has an address of its own, so that Envoy balances, not the kernel."""
    if index == 0:
        return address
    if address.startswith("unix:"):
        return f"{address}.{index}"
    host, _, port = address.rpartition(":")
    return f"{host}:{int(port) + index}"
