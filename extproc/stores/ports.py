"""What accounts keep, and what keeps it: records of the database, numbers of the hot state, and their Protocols.

Money is an integer of billionths (nano) of the one currency of the accounts; times are seconds since the epoch
unless a name says otherwise. ``HotState`` is asynchronous; ``Ledger`` and ``Register`` block: call them from threads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

import msgspec

NANO: Final = 1_000_000_000
GRAIN: Final = 900
"""Seconds of the ledger's totals: every period of every time zone begins at a multiple of a quarter of an hour."""
BUCKETS: Final = 60
"""A sliding window is counted in this many pieces; a piece that is partly in the window counts whole."""

Unit = Literal["tokens", "money", "requests", "concurrent"]
Kind = Literal["quota", "window", "concurrent"]


class StateUnavailable(Exception):  # noqa: N818 - a state, not a fault of ours
    """The hot state cannot be asked now."""


class DatabaseUnavailable(Exception):  # noqa: N818 - likewise
    """The database cannot be asked now. The text says which, without its password, and why."""


# --- numbers --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scope:
    """Which calls count: those of the consumer, of the team, of models that match the glob; empty: of all."""

    consumer: str = ""
    team: str = ""
    model: str = ""


@dataclass(frozen=True, slots=True)
class Counter:
    """One number that calls add to, and the bound that it must not pass.

    ``key`` names what is counted and in which period, never the bound: a changed bound goes on with the same number.
    A ``quota`` counts from ``start`` to ``end`` (None: for ever); a ``window`` slides over the last ``seconds``. Both
    can be rebuilt from the ledger. ``concurrent`` counts open reservations only.
    """

    key: str
    kind: Kind
    unit: Unit
    limit: int
    scope: Scope = Scope()
    start: int = 0
    end: int | None = None
    seconds: int = 0


@dataclass(frozen=True, slots=True)
class Amounts:
    """What a call takes, or took."""

    tokens: int = 0
    money: int = 0
    requests: int = 1

    def of(self, unit: Unit) -> int:
        """The number that a counter of this unit gets; one for each open call."""
        match unit:
            case "tokens":
                return self.tokens
            case "money":
                return self.money
            case "requests":
                return self.requests
            case "concurrent":
                return 1


@dataclass(frozen=True, slots=True)
class Reading:
    """A counter's number. ``used``: settled, and for a window all that it holds; None: not loaded. ``held``: reserved
    by calls that are open. ``wait``: seconds until a window has room again for what was asked, or, where it has,
    until it is empty.
    """

    used: int | None
    held: int = 0
    wait: float = 0.0

    @property
    def taken(self) -> int:
        return (self.used or 0) + self.held


@dataclass(frozen=True, slots=True)
class Granted:
    """The reservation is made. ``readings`` follow the order of the counters and include it."""

    readings: Sequence[Reading]


@dataclass(frozen=True, slots=True)
class Short:
    """Nothing was reserved: these counters (their places in the list) have no room."""

    counters: Sequence[int]
    readings: Sequence[Reading]


@dataclass(frozen=True, slots=True)
class Missing:
    """Nothing was done: the numbers of these counters (their places in the list) are to be loaded first."""

    counters: Sequence[int]


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the ledger says of a counter: ``used`` of a quota; of a window, amounts by bucket.

    Bucket n of a window of w seconds holds what began in [n·w/BUCKETS, (n+1)·w/BUCKETS).
    """

    counter: Counter
    used: int = 0
    buckets: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Orphan:
    """What a worker left behind that is no more: a reservation (``note``), or a settled call (``row``)."""

    call_id: str
    worker: str
    note: bytes = b""
    row: bytes = b""


class HotState(Protocol):
    """The numbers in use. Every method that changes them is one atomic step, and one round trip."""

    async def start(self) -> None:
        """Be ready, and alive for the others from now on. Raises StateUnavailable."""

    async def beat(self) -> None:
        """Say that this worker lives; without it for LEASE seconds its calls are orphans."""

    async def reserve(
        self, call_id: str, counters: Sequence[Counter], amounts: Amounts, note: bytes
    ) -> Granted | Short | Missing:
        """Hold ``amounts`` on every counter, or on none. ``note`` is kept with it. Raises StateUnavailable."""
        ...

    async def settle(
        self,
        call_id: str,
        counters: Sequence[Counter],
        amounts: Amounts,
        row: bytes,
        *,
        worker: str = "",
        whole: bool = False,
    ) -> Missing | None:
        """Release what the call held and count ``amounts``; keep ``row`` until it is ``booked``.

        ``worker``: whose call it is, where it is not our own. A call without a reservation is counted whole, on
        ``counters``; another worker's only if ``whole``, since somebody else may have settled and booked it. One that
        is settled already is left alone for as long as its row is kept. A window gets the difference where the
        reservation was counted. A quota that is held, not loaded and not among ``counters`` is only released.
        Raises StateUnavailable.
        """
        ...

    async def release(self, call_id: str, *, worker: str = "") -> None:
        """Take back a reservation as if it had never been. Raises StateUnavailable."""

    async def load(self, loaded: Sequence[Loaded]) -> None:
        """Set numbers that are missing; those that are there stay. Raises StateUnavailable."""

    async def forget(self, counters: Sequence[Counter]) -> None:
        """Drop what quotas have used: it must be loaded anew. What is held stays. Raises StateUnavailable."""

    async def booked(self, call_ids: Sequence[str], *, worker: str = "") -> None:
        """These rows are in the ledger and need not be kept. Raises StateUnavailable."""

    async def read(self, counters: Sequence[Counter]) -> list[Reading]:
        """The numbers as they are. Raises StateUnavailable."""
        ...

    async def alive(self, worker: str) -> bool:
        """Whether that worker lives. Raises StateUnavailable."""
        ...

    async def orphans(self) -> list[Orphan]:
        """What dead workers left, some hundred at most; each goes away by ``settle`` or ``booked``.

        Raises StateUnavailable.
        """
        ...

    async def stop(self) -> None:
        """Leave in order: nothing of ours is an orphan for long."""


LEASE: Final = 6.0
"""Seconds after its last beat at which a worker counts as dead."""


# --- the ledger -----------------------------------------------------------------------------------------------


class Row(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One call in the ledger. ``started`` and ``ended`` are milliseconds since the epoch; ``cost`` is nano.

    ``how``: as in ``core.call.Outcome``, or ``lost`` where worker and call ended together. ``usage``: ``reported``,
    ``estimated`` or empty where nothing was used. ``cache``: how the cache answered, empty where it did not.
    """

    call_id: str
    started: int
    ended: int
    consumer: str
    team: str = ""
    key: str = ""
    model: str = ""
    endpoint: str = ""
    provider: str = ""
    target: str = ""
    attempts: int = 0
    how: str = "completed"
    status: int = 0
    code: str = ""
    stream: bool = False
    cache: str = ""
    policy: str = ""
    input: int = 0
    output: int = 0
    cached: int = 0
    cache_creation: int = 0
    reasoning: int = 0
    usage: str = ""
    cost: int = 0
    currency: str = ""
    estimate: int = 0
    worker: str = ""

    @property
    def tokens(self) -> int:
        return self.input + self.output

    @property
    def refused(self) -> bool:
        """It ended before a provider or the cache saw it: it counts as a refusal, and not as a request."""
        return self.how in ("refused", "failed") and not self.attempts and not self.cache


Dimension = Literal["consumer", "team", "model", "provider", "target", "day", "hour"]


class UsageRow(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a report: the values of the dimensions asked for (others are empty), and sums. ``money``: nano."""

    consumer: str = ""
    team: str = ""
    model: str = ""
    provider: str = ""
    target: str = ""
    day: str = ""
    hour: str = ""
    currency: str = ""
    calls: int = 0
    refusals: int = 0
    cache_hits: int = 0
    fallbacks: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cache_creation_tokens: int = 0
    reasoning_tokens: int = 0
    money: int = 0


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """Two numbers that should be one: ``where`` names them, ``ledger`` is what the rows say, ``found`` the other."""

    where: str
    ledger: int
    found: int


class Ledger(Protocol):
    """The truth about what was used: one row a call, and totals of them. Blocking."""

    def add(self, rows: Sequence[Row]) -> int:
        """Book rows and their totals in one transaction; those that are there already are left alone.

        How many were new.
        """
        ...

    def has(self, call_ids: Sequence[str]) -> set[str]:
        """Which of these calls have a row."""
        ...

    def load(self, counters: Sequence[Counter], *, now: float) -> list[Loaded]:
        """What quotas and windows have used, for ``HotState.load``."""
        ...

    def rows(
        self, consumer: str | None = None, since: float | None = None, until: float | None = None, limit: int = 100
    ) -> list[Row]:
        """The calls that began from ``since`` to just before ``until``, newest first."""
        ...

    def typical_output(self, since: float) -> dict[str, tuple[float, int]]:
        """Model → tokens of an answer on average, and of how many: completed calls whose usage was reported."""
        ...

    def usage(
        self,
        by: Sequence[Dimension],
        *,
        since: float | None = None,
        until: float | None = None,
        where: Mapping[str, str] | None = None,
        timezone: str = "UTC",
    ) -> list[UsageRow]:
        """A report from the totals. ``since`` and ``until`` are rounded down to GRAIN; days are those of ``timezone``.

        Money of different currencies is never added up: ``currency`` parts lines where there are several.
        """
        ...

    def verify(self) -> list[Difference]:
        """Where the totals differ from the rows."""
        ...

    def repair(self) -> int:
        """Make the totals anew from the rows. How many there are."""
        ...


# --- consumers and keys ---------------------------------------------------------------------------------------


class Conflict(Exception):  # noqa: N818
    """What was to be created is there already, or a change does not fit what is there. The text is for the operator."""


class NotFound(Exception):  # noqa: N818
    """There is no such thing. The text names it."""


class TeamRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A group of consumers. ``quota`` and ``limits`` are rules as in the configuration file, normalised."""

    name: str
    models: list[str] = msgspec.field(default_factory=lambda: ["*"])
    endpoints: list[str] = []
    policy: str = ""
    quota: list[dict[str, Any]] = []
    limits: list[dict[str, Any]] = []
    created: float = 0.0
    deleted: bool = False


class ConsumerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A consumer of the database. ``endpoints`` are names (``chat``, …); empty: all of them."""

    name: str
    team: str = ""
    models: list[str] = msgspec.field(default_factory=lambda: ["*"])
    endpoints: list[str] = []
    policy: str = ""
    quota: list[dict[str, Any]] = []
    limits: list[dict[str, Any]] = []
    disabled: bool = False
    note: str = ""
    created: float = 0.0
    deleted: bool = False


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A key, of which only the SHA-256 is known. ``hint`` is its last four characters; ``id`` names it."""

    id: str
    consumer: str
    digest: bytes = b""
    label: str = ""
    hint: str = ""
    created: float = 0.0
    expires: float | None = None
    revoked: float | None = None
    last_used: float | None = None
    deleted: bool = False


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that changed after a revision, deleted things too (``deleted``). ``revision``: the newest."""

    revision: int
    teams: list[TeamRecord] = []
    consumers: list[ConsumerRecord] = []
    keys: list[KeyRecord] = []


class Register(Protocol):
    """Consumers, teams and keys of the database. Every change raises the revision. Blocking.

    Every method of it and of ``Ledger`` raises DatabaseUnavailable. ``known_teams`` and ``known_consumers`` are the
    names that the configuration file has.
    """

    known_teams: frozenset[str]
    known_consumers: frozenset[str]

    def revision(self) -> int: ...
    def changes(self, since: int) -> Changes:
        """``since`` 0: everything that is not deleted."""
        ...

    def create_team(self, team: TeamRecord) -> TeamRecord:
        """Raises Conflict."""
        ...

    def update_team(self, name: str, changes: Mapping[str, Any]) -> TeamRecord:
        """Raises NotFound."""
        ...

    def delete_team(self, name: str) -> None:
        """Raises NotFound; Conflict while it has consumers."""

    def teams(self) -> list[TeamRecord]: ...
    def team(self, name: str) -> TeamRecord:
        """Raises NotFound."""
        ...

    def create_consumer(self, consumer: ConsumerRecord) -> ConsumerRecord:
        """Raises Conflict; NotFound for its team, unless ``known_teams`` of the configuration has it."""
        ...

    def update_consumer(self, name: str, changes: Mapping[str, Any]) -> ConsumerRecord:
        """``changes``: fields of ConsumerRecord but the name. Raises NotFound."""
        ...

    def delete_consumer(self, name: str) -> None:
        """Its keys go with it; its rows of the ledger stay. Raises NotFound."""

    def consumers(self) -> list[ConsumerRecord]: ...
    def consumer(self, name: str) -> ConsumerRecord:
        """Raises NotFound."""
        ...

    def create_key(self, key: KeyRecord) -> KeyRecord:
        """Raises Conflict for an id or a digest that is there; NotFound for a consumer that nobody knows."""
        ...

    def keys(self, consumer: str | None = None) -> list[KeyRecord]: ...
    def key(self, key_id: str) -> KeyRecord:
        """Raises NotFound."""
        ...

    def expire_key(self, key_id: str, at: float) -> KeyRecord:
        """Let it end at ``at``, where it does not end before. Raises NotFound."""
        ...

    def revoke_key(self, key_id: str, at: float) -> KeyRecord:
        """Raises NotFound."""
        ...

    def delete_key(self, key_id: str) -> None:
        """Raises NotFound."""

    def touch(self, used: Mapping[str, float]) -> None:
        """Remember when keys were last used; the revision stays."""
