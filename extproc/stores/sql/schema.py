"""The tables. A change here needs a migration; a test compares the two."""

from typing import Any, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Dialect,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    literal_column,
)

TEXT: Final = 400
"""Bytes of a text: six of them, the key of ``totals``, fit in an index entry of PostgreSQL (2,700)."""
NUMBER: Final = 1 << 50
"""The largest number of a row: eight thousand of them still add up to a BIGINT."""


def fit(text: str, size: int = TEXT) -> str:
    """The text as every database can keep it: no NUL, no half of a surrogate pair, ``size`` bytes of UTF-8 at most."""
    if text.isascii() and len(text) <= size and "\0" not in text:
        return text
    return text.replace("\0", "\ufffd").encode("utf-8", "replace")[:size].decode("utf-8", "ignore")


class FittedText(TypeDecorator[str]):
    """Text that is made to fit, where it is stored and where it is looked for."""

    impl = Text
    cache_ok = True

    def __init__(self, size: int = TEXT) -> None:
        super().__init__()
        self.size = size

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        return None if value is None else fit(value, self.size)


def whole(number: int) -> ColumnElement[int]:
    """A number in the SQL itself: as a parameter, two uses of it are two expressions to GROUP BY."""
    return literal_column(str(int(number)), BigInteger)


def _column(name: str, kind: Any, **options: Any) -> Column[Any]:
    return Column(name, kind, nullable=options.pop("nullable", False), **options)


def _texts(*names: str) -> list[Column[Any]]:
    return [_column(name, FittedText()) for name in names]


def _numbers(*names: str) -> list[Column[Any]]:
    return [_column(name, BigInteger) for name in names]


metadata = MetaData()

revision = Table("revision", metadata, _column("n", BigInteger, primary_key=True, autoincrement=False))

teams = Table(
    "teams",
    metadata,
    _column("name", FittedText(), primary_key=True),
    _column("models", JSON),
    _column("endpoints", JSON),
    _column("policy", FittedText()),
    _column("quota", JSON),
    _column("limits", JSON),
    _column("created", Double),
    _column("deleted", Boolean),
    _column("revision", BigInteger),
    Index("teams_revision", "revision"),
)

consumers = Table(
    "consumers",
    metadata,
    _column("name", FittedText(), primary_key=True),
    _column("team", FittedText()),
    _column("models", JSON),
    _column("endpoints", JSON),
    _column("policy", FittedText()),
    _column("quota", JSON),
    _column("limits", JSON),
    _column("disabled", Boolean),
    _column("note", FittedText(4000)),
    _column("created", Double),
    _column("deleted", Boolean),
    _column("revision", BigInteger),
    Index("consumers_revision", "revision"),
    Index("consumers_team", "team"),
)

keys = Table(
    "keys",
    metadata,
    _column("id", FittedText(), primary_key=True),
    _column("consumer", FittedText()),
    _column("digest", LargeBinary),
    _column("label", FittedText()),
    _column("hint", FittedText()),
    _column("created", Double),
    _column("expires", Double, nullable=True),
    _column("revoked", Double, nullable=True),
    _column("last_used", Double, nullable=True),
    _column("deleted", Boolean),
    _column("revision", BigInteger),
    UniqueConstraint("digest", name="keys_digest"),
    Index("keys_revision", "revision"),
    Index("keys_consumer", "consumer"),
)

ledger = Table(
    "ledger",
    metadata,
    _column("call_id", FittedText(), primary_key=True),
    *_numbers("started", "ended"),
    *_texts("consumer", "team", "key", "model", "endpoint", "provider", "target"),
    _column("attempts", BigInteger),
    _column("how", FittedText()),
    _column("status", BigInteger),
    _column("code", FittedText()),
    _column("stream", Boolean),
    *_texts("cache", "policy"),
    *_numbers("input", "output", "cached", "cache_creation", "reasoning"),
    _column("usage", FittedText()),
    _column("cost", BigInteger),
    _column("currency", FittedText()),
    _column("estimate", BigInteger),
    _column("worker", FittedText()),
    Index("ledger_started", "started"),
    Index("ledger_consumer_started", "consumer", "started"),
)

OWNERS: Final = ("consumer", "team", "model", "provider", "target", "currency")
"""What the totals are of, besides their ``bucket`` of time."""
SUMS: Final = (
    *("calls", "refusals", "cache_hits", "fallbacks"),
    *("input", "output", "cached", "cache_creation", "reasoning", "money"),
)

totals = Table(
    "totals",
    metadata,
    _column("bucket", BigInteger, primary_key=True, autoincrement=False),
    *(_column(name, FittedText(), primary_key=True) for name in OWNERS),
    *_numbers(*SUMS),
    Index("totals_consumer_bucket", "consumer", "bucket"),
)

_SERIAL: Final = BigInteger().with_variant(Integer, "sqlite")  # which alone SQLite counts up

records = Table(
    "audit_records",
    metadata,
    _column("n", _SERIAL, primary_key=True),
    _column("call_id", FittedText()),
    _column("time", BigInteger),
    *_texts("consumer", "team", "person", "model", "provider", "how", "policy"),
    _column("status", BigInteger),
    _column("content", Text),
    UniqueConstraint("call_id", name="audit_records_call_id"),
    Index("audit_records_time", "time"),
    Index("audit_records_consumer_time", "consumer", "time"),
    Index("audit_records_person_time", "person", "time"),
)
"""``content`` is the whole record as JSON. Its tokens are in ``audit_words``, which is made by its migration alone:
a table of FTS5 in SQLite, and in PostgreSQL one with a tsvector."""

verdicts = Table(
    "audit_verdicts",
    metadata,
    _column("id", _SERIAL, primary_key=True),
    _column("n", BigInteger),
    *_texts("check", "category", "action"),
    Index("audit_verdicts_n", "n"),
    Index("audit_verdicts_category", "category", "n"),
)

audit_readings = Table(
    "audit_readings",
    metadata,
    _column("id", _SERIAL, primary_key=True),
    _column("time", Double),
    _column("who", FittedText()),
    _column("what", FittedText()),
    _column("asked", FittedText(4000)),
    _column("found", BigInteger),
)
