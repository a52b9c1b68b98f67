"""A provider as it is called: its address, paths, key headers, and the edits that its bodies need."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, quote, urlencode, urlsplit

from extproc.core.secret import Secret
from extproc.dialects.base import ask_for_usage
from extproc.dialects.document import Document
from extproc.dialects.endpoints import DialectName, Endpoint, EndpointName
from extproc.providers.presets import ANTHROPIC, PRESETS, KeyStyle, Preset, StreamUsage

KEY_HEADERS: Final = ("authorization", "x-api-key", "api-key")
"""Every header in which some provider, or we ourselves, look for a key."""

_PORTS: Final = {"http": 80, "https": 443}
_STREAM_OPTIONS: Final[frozenset[EndpointName]] = frozenset({"chat", "completions"})
_SECRET_NAMES: Final = ("key", "token", "secret", "password", "credential")


@dataclass(frozen=True, slots=True)
class Provider:
    """One provider. Built once from the configuration; every attempt at it reads this."""

    name: str
    kind: str
    dialect: DialectName
    scheme: str
    host: str
    port: int
    base_path: str
    keys: tuple[Secret, ...]
    key_style: KeyStyle
    stream_usage: StreamUsage
    headers: Mapping[str, str]
    default_headers: Mapping[str, str]
    query: Mapping[str, str]
    deployments: bool = False

    @classmethod
    def build(
        cls,
        name: str,
        *,
        kind: str = "openai-compatible",
        base_url: str | None = None,
        dialect: DialectName | None = None,
        keys: Sequence[Secret] = (),
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        stream_usage: StreamUsage | None = None,
        api_version: str | None = None,
    ) -> "Provider":
        """Raises ValueError with a sentence for the operator. ``api_version`` chooses Azure's deployment paths."""
        preset = _preset(kind, dialect)
        url = _base_url(kind, base_url or preset.base_url)
        if api_version is not None and kind != "azure":
            raise ValueError("api_version is for kind azure only")
        deployments = api_version is not None
        own_query = dict(query or {}) | ({"api-version": api_version} if api_version else {})
        return cls(
            name=name,
            kind=kind,
            dialect=preset.dialect,
            scheme=url.scheme,
            host=url.hostname or "",
            port=url.port or _PORTS[url.scheme],
            base_path=_base_path(kind, url, deployments=deployments),
            keys=tuple(keys),
            key_style=preset.key_style,
            stream_usage=stream_usage or preset.stream_usage,
            headers=_headers(headers or {}),
            default_headers=preset.headers,
            query=_query(own_query | dict(parse_qsl(url.query))),
            deployments=deployments,
        )

    @property
    def authority(self) -> str:
        """The Host header: the default port is left out."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    def path(self, endpoint: Endpoint, model: str, query: str) -> str:
        """Path and query of an attempt. The client's ``query`` is kept, but what the operator set wins."""
        path = self.base_path
        if self.deployments:
            path += f"/deployments/{quote(model, safe='')}"
        path += endpoint.suffix
        if not self.query:
            return f"{path}?{query}" if query else path
        kept = [(key, value) for key, value in parse_qsl(query, keep_blank_values=True) if key not in self.query]
        return f"{path}?{urlencode([*kept, *self.query.items()])}"

    def key_headers(self, key: Secret | None) -> dict[str, str]:
        """The header that carries the key, as this provider wants it."""
        if key is None:
            return {}
        match self.key_style:
            case "bearer":
                return {"authorization": f"Bearer {key.reveal()}"}
            case "raw":
                return {"authorization": key.reveal()}
            case header:
                return {header: key.reveal()}

    def asks_usage(self, endpoint: Endpoint, stream: bool) -> bool:
        """Whether we have the usage of such a call added to the stream."""
        return stream and self.stream_usage == "ask" and endpoint.name in _STREAM_OPTIONS

    def edit(self, endpoint: Endpoint, document: Document, model: str) -> None:
        """Put the target's model name into the body, and the options of streams as this server takes them."""
        if document.get("model", str) != model:
            document.set("model", model)
        if endpoint.name not in _STREAM_OPTIONS:
            return
        if self.stream_usage == "never":
            if "stream_options" in document:
                document.remove("stream_options")
        elif self.asks_usage(endpoint, bool(document.get("stream", bool))) and not _asked(document):
            ask_for_usage(document)


def _asked(document: Document) -> bool:
    options = document.get("stream_options", Any)
    return isinstance(options, dict) and options.get("include_usage") is True


def _preset(kind: str, dialect: DialectName | None) -> Preset:
    preset = PRESETS.get(kind)
    if preset is None:
        raise ValueError(f"there is no kind {kind!r}; the kinds are {', '.join(sorted(PRESETS))}")
    if dialect is None or dialect == preset.dialect:
        return preset
    if dialect == "openai":
        raise ValueError(f"kind {kind} speaks anthropic only; for another dialect use kind openai-compatible")
    # The Anthropic side of a provider: DeepSeek's /anthropic, DashScope's /apps/anthropic, vLLM's /v1/messages.
    return Preset(
        kind,
        dialect=dialect,
        key_style="x-api-key" if preset.key_style == "bearer" else preset.key_style,
        stream_usage="reported",
        headers=ANTHROPIC.headers,
    )


def _base_url(kind: str, base_url: str | None) -> SplitResult:
    if not base_url:
        raise ValueError(f"base_url is missing; kind {kind} has none of its own")
    try:
        url = urlsplit(base_url)
        port = url.port
    except ValueError as error:
        raise ValueError(f"base_url is not a URL: {error}") from None
    if url.scheme not in _PORTS:
        raise ValueError("base_url must begin with http:// or https://")
    if not url.hostname or port == 0:
        raise ValueError("base_url names no host, or port 0")
    if url.username is not None or url.password is not None:
        raise ValueError("base_url must not hold a user name or a password; put keys under keys")
    if url.fragment:
        raise ValueError("base_url must not have a fragment (#...)")
    return url


def _base_path(kind: str, url: SplitResult, *, deployments: bool) -> str:
    path = url.path.rstrip("/")
    if kind != "azure":
        return path
    if deployments:
        return path if path.endswith("/openai") else f"{path}/openai"
    return path or "/openai/v1"


def _query(query: Mapping[str, str]) -> Mapping[str, str]:
    for name in query:
        if any(word in name.lower() for word in _SECRET_NAMES):
            raise ValueError(f"the query parameter {name!r} looks like a secret; URLs are logged, so put it under keys")
    return query


def _headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    for name, value in headers.items():
        if not name.isascii() or not name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"{name!r} is not a header name")
        if not value.isprintable() or not value.isascii():
            raise ValueError(f"the header {name} has characters that HTTP does not carry")
        if name.lower() in (*KEY_HEADERS, "host", "content-length", "content-type", "transfer-encoding"):
            raise ValueError(f"the header {name} is set by the gateway; put keys under keys")
    return {name.lower(): value for name, value in headers.items()}
