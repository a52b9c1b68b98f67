"""`extproc.yaml` as a document: frozen, unknown keys refused, every field described for the reference and editors."""

import re
from datetime import date, datetime
from decimal import Decimal
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator

from extproc.accounts.prices import Price as NanoPrice
from extproc.accounts.rules import Rule
from extproc.config.audit import Audit, AuditPolicy
from extproc.config.judges import Judge
from extproc.config.moderation import Moderation
from extproc.config.parts import Part, Positive, SecretRef
from extproc.config.units import Count, Money, Seconds, Size
from extproc.dialects.endpoints import DialectName, EndpointName
from extproc.providers.presets import PRESETS
from extproc.stores.ports import NANO, Unit

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@ -]{0,127}$")]
Weight = Annotated[int, Field(ge=0, le=1_000_000)]


class ConsumerKey(SecretRef):
    """A consumer's key: a secret of at least 8 characters, or the SHA-256 of one."""

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

    @property
    def is_loopback(self) -> bool:
        """Nobody on another machine can reach it."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


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
    max_body: Annotated[Size, Field(ge=1, le=1 << 30)] = 8 << 20
    """The largest request body; a larger one is answered with 413. At most 1GiB."""
    max_answer: Annotated[Size, Field(ge=1, le=1 << 30)] = 32 << 20
    """The largest answer that is not a stream; it is held in memory once. At most 1GiB."""
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
    access_log: Annotated[str | None, BeforeValidator(_endpoint)] = None
    """Address for what Envoy tells us later: calls cut by a dying worker, keys that providers refuse. Where not set, it
    is beside a Unix socket of `grpc` (`run/extproc-log.sock`), and off with `host:port`."""
    http: HostPort = Address(host="127.0.0.1", port=8081)
    """Admin port: `/healthz`, `/readyz`, `/metrics`, and the API of `admin` at `/api`."""
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

    @property
    def log_address(self) -> str | None:
        """Where the access log service listens; None: nowhere."""
        if self.access_log is None and self.grpc.startswith("unix:"):
            socket = Path(self.grpc.removeprefix("unix:"))
            return f"unix:{socket.with_stem(f'{socket.stem}-log')}"
        return self.access_log


class AdminTls(Part):
    """TLS of the admin port, health and metrics included."""

    cert: Path
    """Certificate chain, PEM."""
    key: Path
    """Private key, PEM."""
    client_ca: Path | None = None
    """Certificates that sign those of operators, PEM: who shows one of these needs no token."""


class Admin(Part):
    """The HTTP admin API, at `/api` on `server.http`. With neither tokens nor `tls.client_ca` it refuses everybody."""

    tokens: list[SecretRef] = []
    """Bearer tokens; any of them will do. On anything but loopback, short and well known ones are refused."""
    tls: AdminTls | None = None
    """TLS of the admin port, health and metrics included."""


class State(Part):
    """Where hot state lives: reservations, windows, what quotas have used."""

    url: Annotated[str, StringConstraints(pattern=r"^(memory://|rediss?://)")] = "memory://"
    """`memory://` for one worker, `redis://…` for more (also Redis Cluster)."""
    journal: Path = Path("run/extproc.journal")
    """With `memory://`: where open calls are noted, so that a killed worker loses none."""
    timeout: Positive = 1.0
    """How long Redis may take to answer."""


class Database(Part):
    """Where the ledger lives, and the consumers and keys that are not in this file."""

    url: Annotated[str, StringConstraints(pattern=r"^(sqlite:///|postgres(ql)?://)")] = "sqlite:///run/extproc.db"
    """`sqlite:///PATH` or `postgresql://…`."""


# --- accounts -------------------------------------------------------------------------------------------------


def _timezone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"there is no time zone {value!r}; they look like Asia/Shanghai") from None
    return value


TimeZone = Annotated[str, AfterValidator(_timezone)]
Currency = Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$")]
Glob = Annotated[str, StringConstraints(min_length=1, max_length=128)]


class Quota(Part):
    """What may be used in a calendar period, or in all: exactly one of `tokens`, `money` and `requests`."""

    tokens: Count | None = None
    """Tokens, in and out."""
    money: Money | None = None
    """An amount in the currency of `accounts`."""
    requests: Count | None = None
    """Calls that reached a provider or the cache."""
    per: Literal["hour", "day", "week", "month", "total"]
    """The period; weeks begin on Monday."""
    timezone: TimeZone | None = None
    """Whose calendar; that of `accounts` where not set."""
    model: Glob | None = None
    """Only calls of models that match count, together."""
    each: Literal["consumer", "team"] | None = None
    """Every consumer, or team, has a number of its own."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(x is not None for x in (self.tokens, self.money, self.requests)) != 1:
            raise ValueError("a quota is {tokens: N, per: …}, {money: N, per: …} or {requests: N, per: …}")
        return self

    def rule(self, timezone: str) -> Rule:
        """The same for the accounts; ``timezone`` where it names none."""
        if self.money is not None:
            unit, amount = "money", int(self.money * NANO)
        elif self.tokens is not None:
            unit, amount = "tokens", self.tokens
        else:
            unit, amount = "requests", self.requests or 0
        return Rule(
            "quota",
            cast(Unit, unit),
            amount,
            per=self.per,
            model=self.model or "",
            each=self.each or "",
            timezone=self.timezone or timezone,
        )


class Limit(Part):
    """How fast it may be used: `tokens` or `requests` within any second, minute, hour or day, or calls at once."""

    tokens: Count | None = None
    """Tokens, in and out."""
    requests: Count | None = None
    """Calls."""
    concurrent: Count | None = None
    """Calls open at once."""
    per: Literal["second", "minute", "hour", "day"] | None = None
    """The length of the window, which slides."""
    model: Glob | None = None
    """Only calls of models that match count, together."""
    each: Literal["consumer", "team"] | None = None
    """Every consumer, or team, has a number of its own."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        counted = sum(x is not None for x in (self.tokens, self.requests))
        if counted + (self.concurrent is not None) != 1 or (self.per is not None) != bool(counted):
            raise ValueError("a limit is {tokens: N, per: …}, {requests: N, per: …} or {concurrent: N}")
        return self

    def rule(self) -> Rule:
        """The same for the accounts."""
        model, each = self.model or "", self.each or ""
        if self.concurrent is not None:
            return Rule("concurrent", "concurrent", self.concurrent, model=model, each=each)
        unit: Unit = "tokens" if self.tokens is not None else "requests"
        amount = self.tokens if self.tokens is not None else self.requests or 0
        return Rule("window", unit, amount, per=self.per or "minute", model=model, each=each)


class Price(Part):
    """What tokens cost, `per` so many; in force from one day until another."""

    input: Money = Decimal()
    """Prompt tokens."""
    cached: Money | None = None
    """Prompt tokens that the provider read from its cache; as `input` where not set."""
    cache_creation: Money | None = None
    """Prompt tokens that the provider wrote to its cache; as `input` where not set."""
    output: Money = Decimal()
    """Generated tokens."""
    reasoning: Money | None = None
    """Generated tokens of reasoning; as `output` where not set."""
    request: Money = Decimal()
    """Each call."""
    currency: Currency | None = None
    """The currency of these amounts; that of `accounts` where not set."""
    per: Annotated[Count, Field(ge=1)] = 1_000_000
    """So many tokens cost these amounts."""
    since: date | datetime | None = Field(default=None, alias="from")
    """First day (or moment) on which it is in force. The price in force when a call began counts."""
    until: date | datetime | None = None
    """First day (or moment) on which it is not any more."""

    def nano(self, rate: Decimal, timezone: str) -> NanoPrice:
        """The same for the accounts. ``rate``: what one of its currency is in that of the accounts."""

        def tokens(amount: Money | None, otherwise: Money) -> int:
            return round((otherwise if amount is None else amount) * rate * NANO * 1_000_000 / self.per)

        return NanoPrice(
            input=tokens(self.input, self.input),
            cached=tokens(self.cached, self.input),
            cache_creation=tokens(self.cache_creation, self.input),
            output=tokens(self.output, self.output),
            reasoning=tokens(self.reasoning, self.output),
            request=round(self.request * rate * NANO),
            since=_moment(self.since, timezone, float("-inf")),
            until=_moment(self.until, timezone, float("inf")),
        )


def _moment(value: date | datetime | None, timezone: str, otherwise: float) -> float:
    if value is None:
        return otherwise
    moment = value if isinstance(value, datetime) else datetime(value.year, value.month, value.day)  # noqa: DTZ001
    return (moment if moment.tzinfo else moment.replace(tzinfo=ZoneInfo(timezone))).timestamp()


Prices = Annotated[
    list[Price],
    BeforeValidator(
        lambda value: [value] if isinstance(value, dict) else value, json_schema_input_type=Price | list[Price]
    ),
]


class Accounts(Part):
    """What the numbers mean, and the bounds for everybody together."""

    currency: Currency = "CNY"
    """The one currency in which money is counted."""
    rates: dict[Currency, Annotated[Money, Field(gt=0)]] = {}
    """What one of another currency is in this one: for prices in it."""
    timezone: TimeZone = "UTC"
    """Whose calendar the periods of quotas follow, where they name no other."""
    quota: list[Quota] = []
    """Quotas of all calls together, or of `each` consumer or team."""
    limits: list[Limit] = []
    """Limits of all calls together, or of `each` consumer or team."""


class Team(Part):
    """A group of consumers, who share its quotas and limits and may do no more than it may."""

    models: list[Glob] = ["*"]
    """Globs of the models that its consumers may use; all where not set."""
    endpoints: list[EndpointName] = []
    """Endpoints that its consumers may call; all where not set."""
    quota: list[Quota] = []
    """Quotas that its consumers share."""
    limits: list[Limit] = []
    """Limits that its consumers share."""
    policy: str | None = None
    """The policy of consumers that name none."""


class QuotaPolicy(Part):
    """How quotas and limits treat what is not an ordinary call."""

    on_error: Literal["refuse", "allow"] = "refuse"
    """What happens to calls while the hot state cannot be asked: `allow` books them later, whatever they take."""
    cached: Literal["free", "charge"] = "free"
    """Whether answers from the cache count as what the provider would have taken."""


class Policy(Part):
    """What happens to a call on its way. Its consumer names it, else the team, else the model, else it is `default`."""

    quota: QuotaPolicy = QuotaPolicy()
    """How quotas and limits treat what is not an ordinary call."""
    moderation: Moderation = Moderation()
    """Which texts are judged, how, and what is done about them."""
    audit: AuditPolicy = AuditPolicy()
    """What is kept of its calls for the audit."""


class ProviderKey(SecretRef):
    """A provider's key: a secret, and its part of the calls."""

    weight: Annotated[int, Field(ge=1, le=1000)] = 1
    """Share of the calls, or of the consumers."""
    label: Annotated[str, StringConstraints(max_length=64)] = ""
    """A name for it where the pool is shown; never the key."""


class Provider(Part):
    """An upstream service with a base URL, a dialect and keys of its own."""

    kind: Literal[tuple(sorted(PRESETS))] = "openai-compatible"  # type: ignore[valid-type]
    """What it is: sets base URL, dialect, how the key is sent, and the quirks."""
    base_url: str | None = None
    """Where it is, with the path that stands before `/chat/completions`; `kind` knows some."""
    dialect: DialectName | None = None
    """The body format that it speaks, where it is not the kind's own."""
    keys: list[ProviderKey] = []
    """Its API keys; each attempt picks one that the provider has not refused of late."""
    pick: Literal["least_used", "sticky"] = "least_used"
    """How: the one least used for its weight, or for each consumer the same one, as long as it is not refused."""
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
    price: Prices = []
    """What its tokens cost, where it is not the model's own price."""


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
    price: Prices = []
    """What its tokens cost, or a list of prices with the days on which they are in force."""
    quota: list[Quota] = []
    """Quotas of all its calls together, or of `each` consumer or team."""
    limits: list[Limit] = []
    """Limits of all its calls together, or of `each` consumer or team."""
    policy: str | None = None
    """The policy of calls whose consumer has none."""


class Consumer(Part):
    """Whoever holds an API key that we issued."""

    keys: list[ConsumerKey] = []
    """Its keys; more can be made with `extproc key create`."""
    team: str | None = None
    """The team that it belongs to."""
    models: list[Glob] = ["*"]
    """Globs of the models that it may use; all where not set."""
    endpoints: list[EndpointName] = []
    """Endpoints that it may call; all where not set."""
    quota: list[Quota] = []
    """What it may use in a calendar period."""
    limits: list[Limit] = []
    """How fast it may use it."""
    policy: str | None = None
    """Its policy."""


class Config(Part):
    """The whole of `extproc.yaml`."""

    gateway: Gateway = Gateway()
    server: Server = Server()
    admin: Admin = Admin()
    state: State = State()
    database: Database = Database()
    accounts: Accounts = Accounts()
    audit: Audit = Audit()
    providers: dict[Name, Provider] = {}
    """The upstream services, by name."""
    models: dict[Name, Model] = {}
    """What clients may ask for, by public name."""
    teams: dict[Name, Team] = {}
    """Groups of consumers, by name."""
    consumers: dict[Name, Consumer] = {}
    """Who may call, by name; more can be made with `extproc consumer create`."""
    policies: dict[Name, Policy] = {}
    """What happens to calls, by name; `default` applies where nothing names another."""
    judges: dict[Name, Judge] = {}
    """Remote judges, by name: the checks of policies use them."""

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
