"""`extproc.yaml` as a document: frozen, unknown keys refused, every field described for the reference and editors."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from extproc.config.units import Seconds, Size
from extproc.dialects.endpoints import DialectName
from extproc.providers.presets import PRESETS

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@ -]{0,127}$")]
Positive = Annotated[Seconds, Field(gt=0)]
Weight = Annotated[int, Field(ge=0, le=1_000_000)]


class Part(BaseModel):
    """What all parts of the document have in common."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class SecretRef(Part):
    """Where a secret is: exactly one of the three."""

    env: str | None = None
    """Name of an environment variable that holds it."""
    file: Path | None = None
    """File that holds it; relative to the configuration file. White space at its end is dropped."""
    value: str | None = Field(default=None, repr=False)
    """The secret itself: for tests and demonstrations."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(x is not None for x in (self.env, self.file, self.value)) != 1:
            raise ValueError("a secret is {env: NAME}, {file: PATH} or {value: TEXT}")
        return self


class ConsumerKey(SecretRef):
    """A consumer's key: a secret, or the SHA-256 of one."""

    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{64}$")] | None = None
    """SHA-256 of the key, in hexadecimal: then the key itself is nowhere on the server."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(x is not None for x in (self.env, self.file, self.value, self.sha256)) != 1:
            raise ValueError("a key is {env: NAME}, {file: PATH}, {value: TEXT} or {sha256: HEX}")
        return self


class Address(Part):
    """A listening address, written `host:port`."""

    host: str
    port: Annotated[int, Field(ge=0, le=65535)]

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _address(value: object) -> object:
    if isinstance(value, str):
        host, colon, port = value.rpartition(":")
        if not colon or not port.isdigit():
            raise ValueError(f"{value!r} should look like 127.0.0.1:8080")
        return {"host": host.strip("[]") or "0.0.0.0", "port": int(port)}
    return value


HostPort = Annotated[Address, BeforeValidator(_address, json_schema_input_type=str)]


def _endpoint(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch(r"unix:.+|[^:]*:\d+|\[.+\]:\d+", value):
        raise ValueError(f"{value!r} should look like unix:run/extproc.sock or 127.0.0.1:50051")
    return value


class Gateway(Part):
    """The Envoy that we render."""

    listen: HostPort = Address(host="0.0.0.0", port=8080)
    """Where clients call."""
    admin: HostPort = Address(host="127.0.0.1", port=9901)
    """Envoy's own admin interface. It has no password: keep it on loopback."""
    max_body: Annotated[Size, Field(ge=1)] = 8 << 20
    """The largest request body; a larger one is answered with 413."""
    max_answer: Annotated[Size, Field(ge=1)] = 32 << 20
    """The largest answer that is not a stream; it is held in memory once."""
    request_timeout: Seconds = 120.0
    """Time for a client to send its whole request."""
    concurrency: Annotated[int, Field(ge=1)] | None = None
    """Worker threads of Envoy; one per core where not set."""
    access_log: str = "-"
    """File for Envoy's access log; `-` is standard output, an empty string is none."""
    ca: Path | None = None
    """Certificates that sign the providers'; the system's own where not set."""
    directory: Path = Path("run/envoy")
    """Where the rendered files go; Envoy watches them."""


class ClientTls(Part):
    """The certificate with which Envoy shows itself to the server."""

    cert: Path
    """Certificate chain, PEM."""
    key: Path
    """Private key, PEM."""


class ServerTls(Part):
    """TLS between Envoy and the server."""

    cert: Path
    """Certificate chain, PEM."""
    key: Path
    """Private key, PEM."""
    ca: Path
    """Certificate that signs the server's, and Envoy's where `client` is set; PEM."""
    client: ClientTls | None = None
    """Demand a certificate of Envoy too (mutual TLS)."""


class Server(Part):
    """The external processor itself."""

    grpc: Annotated[str, BeforeValidator(_endpoint)] = "unix:run/extproc.sock"
    """Address for Envoy: `unix:PATH` or `host:port`. With several workers, each has its own: `PATH.1`, `port + 1`."""
    http: HostPort = Address(host="127.0.0.1", port=8081)
    """Admin port: `/healthz`, `/readyz`, `/metrics`."""
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    """Worker processes. More than one needs Redis as `state`."""
    transport: Literal["grpcio", "granian"] = "granian"
    """What carries ext_proc: `granian` at about two thirds of the CPU, or `grpcio`, the reference."""
    message_timeout: Positive = 30.0
    """How long Envoy waits for one answer of ours; set it above the slowest check."""
    drain: Seconds = 30.0
    """How long open calls may go on after SIGTERM."""
    notice: Seconds = 3.0
    """How long `serve` takes new calls after SIGTERM, so that health checks see it go; `up` drains Envoy instead."""
    tls: ServerTls | None = None
    """TLS between Envoy and the server; not for Unix sockets."""

    @model_validator(mode="after")
    def _no_tls_on_unix(self) -> Self:
        if self.tls and self.grpc.startswith("unix:"):
            raise ValueError("tls: a Unix socket has none; use host:port")
        return self


class State(Part):
    """Where hot state lives."""

    url: Annotated[str, StringConstraints(pattern=r"^(memory://|rediss?://)")] = "memory://"
    """`memory://` for one worker, `redis://…` for more."""


class Provider(Part):
    """An upstream service with a base URL, a dialect and keys of its own."""

    kind: Literal[tuple(sorted(PRESETS))] = "openai-compatible"  # type: ignore[valid-type]
    """What it is: sets base URL, dialect, how the key is sent, and the quirks."""
    base_url: str | None = None
    """Where it is, with the path that stands before `/chat/completions`; `kind` knows some."""
    dialect: DialectName | None = None
    """The body format that it speaks, where it is not the kind's own."""
    keys: list[SecretRef] = []
    """Its API keys; each attempt picks one."""
    headers: dict[str, str] = {}
    """Request headers to set for it. A client's own of these names are not passed to any provider."""
    query: dict[str, str] = {}
    """Query parameters to add."""
    api_version: str | None = None
    """Azure: the `api-version` of its deployment paths; without it the newer `/openai/v1` is used."""
    stream_usage: Literal["ask", "reported", "never"] | None = None
    """Usage of streams: ask for it with `stream_options`, comes by itself, or must not be asked for."""
    connect_timeout: Positive = 5.0
    """Time to connect before the next group is tried."""
    max_connections: Annotated[int, Field(ge=1)] = 10_000
    """Connections and calls at once that Envoy may hold to it."""
    ca: Path | None = None
    """Certificates that sign this provider's."""
    tls_name: str | None = None
    """Name to ask for and to verify in its certificate, where it is not the host of `base_url`."""


class Target(Part):
    """One place where a model can be had."""

    provider: str
    """A provider's name."""
    model: str | None = None
    """The provider's own name for the model; the public name where not set."""
    weight: Weight = 1
    """Share of the calls within its group."""


RetryOn = Annotated[str, StringConstraints(pattern=r"^(connect|reset|[45]xx|[45]\d\d)$"), BeforeValidator(str)]


class Retry(Part):
    """When the next group is tried. An answer that has begun is never retried."""

    on: list[RetryOn] = ["connect", "reset", "429", "5xx"]
    """`connect`, `reset`, `4xx`, `5xx` or single statuses. A first byte that is late counts too."""
    first_byte: Positive = 300.0
    """How long a provider may be silent before its answer begins; then the next group is tried."""
    idle: Positive = 120.0
    """How long a streamed answer may be silent before it is ended with an error event; less than `first_byte`."""

    @model_validator(mode="after")
    def _one_clock(self) -> Self:
        if self.idle >= self.first_byte:
            raise ValueError("idle must be less than first_byte: Envoy cuts any silence of first_byte without a word")
        return self


def _groups(value: object) -> object:
    # One group, or one target, may be written without its brackets.
    if isinstance(value, dict):
        return [[value]]
    if isinstance(value, list) and value and all(isinstance(x, dict) for x in value):
        return [value]
    return value


class Model(Part):
    """A public model name: what a client asks for."""

    route: Annotated[list[Annotated[list[Target], Field(min_length=1)]], Field(min_length=1), BeforeValidator(_groups)]
    """Ordered groups of targets: attempt 1 picks from the first by weight, a retry from the next."""
    retry: Retry = Retry()
    """When the next group is tried."""


class Consumer(Part):
    """Whoever holds an API key that we issued."""

    keys: Annotated[list[ConsumerKey], Field(min_length=1)]
    """Its keys."""
    models: list[str] = ["*"]
    """Globs of the models that it may use; all where not set."""


class Config(Part):
    """The whole of `extproc.yaml`."""

    gateway: Gateway = Gateway()
    server: Server = Server()
    state: State = State()
    providers: dict[Name, Provider] = {}
    """The upstream services, by name."""
    models: dict[Name, Model] = {}
    """What clients may ask for, by public name."""
    consumers: dict[Name, Consumer] = {}
    """Who may call, by name."""

    @model_validator(mode="after")
    def _workers_need_redis(self) -> Self:
        if self.server.workers > 1 and self.state.url == "memory://":
            raise ValueError("More than one worker or replica needs Redis: set state.url to redis://…")
        return self


def json_schema() -> dict[str, Any]:
    """JSON Schema of the document, for editors."""
    schema = Config.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "extproc.yaml"
    return schema
