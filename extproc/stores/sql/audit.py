"""The audit in tables: records as JSON beside the columns that they are searched by, and an index of their words.

Words are made by ``audit.record.tokens`` for both databases, so that both find the same.
"""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from msgspec.structs import asdict
from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    cast,
    column,
    delete,
    exists,
    false,
    func,
    select,
    table,
    text,
    tuple_,
)
from sqlalchemy import insert as plain_insert
from sqlalchemy.dialects.postgresql import TSQUERY

from extproc.audit.record import (
    AuditReading,
    AuditStore,
    Page,
    Record,
    Retention,
    Search,
    asked,
    decode,
    encode,
    tokens,
)
from extproc.stores.ports import NotFound
from extproc.stores.sql.engine import Connections, insert
from extproc.stores.sql.schema import audit_readings, fit, records, verdicts

_LOCK: Final = int.from_bytes(b"audit")
"""PostgreSQL's name for the lock under which records are numbered: the numbers are in the order of the commits."""
_MANY: Final = 500
_EQUAL: Final = ("consumer", "team", "person", "model", "provider", "how", "policy", "status")
_VERDICT: Final = ("check", "category", "action")
_WORDS: Final = table("audit_words", column("n"), column("rowid"), column("tokens"), column("audit_words"))
_ADD_WORDS: Final = {
    "sqlite": text("INSERT INTO audit_words (rowid, tokens) VALUES (:n, :tokens)"),
    "postgresql": text("INSERT INTO audit_words (n, tokens) VALUES (:n, array_to_tsvector(:tokens))"),
}


class SqlAudit(AuditStore):
    """Records, and the note of everybody who has looked at them."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def add(self, records_: Sequence[Record]) -> int:
        kept: dict[str, Record] = {}
        for record in records_:
            kept.setdefault(fit(record.call_id), record)
        if not kept:
            return 0
        with self._connections.writing() as connection:
            if not self._connections.is_sqlite:
                connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
            query = insert(connection, records).on_conflict_do_nothing().returning(records.c.call_id, records.c.n)
            new = {
                call_id: n
                for start in range(0, len(kept), _MANY)
                for call_id, n in connection.execute(
                    query.values([_row(each) for each in list(kept.values())[start : start + _MANY]])
                )
            }
            found = [
                {"n": n, "check": verdict.check, "category": verdict.category, "action": verdict.action}
                for call_id, n in new.items()
                for verdict in kept[call_id].verdicts
            ]
            if found:
                connection.execute(plain_insert(verdicts), found)
            self._add_words(connection, ((n, kept[call_id]) for call_id, n in new.items()))
        return len(new)

    def _add_words(self, connection: Connection, numbered: Iterable[tuple[int, Record]]) -> None:
        rows = []
        for n, record in numbered:
            time.sleep(0)  # lets the loop's thread go on: it would wait for five milliseconds otherwise
            words = tokens(message.text for message in (*record.request, *record.answer) if message.text)
            if words:
                rows.append({"n": n, "tokens": " ".join(words) if self._connections.is_sqlite else words})
        if rows:
            connection.execute(_ADD_WORDS[connection.dialect.name], rows)

    # --- reading ----------------------------------------------------------------------------------------------

    def search(self, query: Search, *, limit: int = 100, cursor: str = "") -> Page:
        asked_for = self._matching(select(records.c.time, records.c.n, records.c.content), query)
        asked_for = asked_for.order_by(records.c.time.desc(), records.c.n.desc()).limit(limit + 1)
        if cursor:
            asked_for = asked_for.where(tuple_(records.c.time, records.c.n) < tuple_(*_place(cursor)))
        with self._connections.reading() as connection:
            rows = connection.execute(asked_for).all()
        more = f"{rows[limit - 1].time}.{rows[limit - 1].n}" if len(rows) > limit else ""
        return Page([decode(row.content) for row in rows[:limit]], more)

    def show(self, call_id: str) -> Record:
        with self._connections.reading() as connection:
            content = connection.execute(select(records.c.content).where(records.c.call_id == call_id)).scalar()
        if content is None:
            raise NotFound(f"there is no record of the call {call_id!r}")
        return decode(content)

    def last(self) -> int:
        with self._connections.reading() as connection:
            return int(connection.execute(select(func.coalesce(func.max(records.c.n), 0))).scalar_one())

    def after(self, number: int, query: Search, limit: int = 100) -> list[tuple[int, Record]]:
        asked_for = self._matching(select(records.c.n, records.c.content), query)
        asked_for = asked_for.where(records.c.n > number).order_by(records.c.n).limit(limit)
        with self._connections.reading() as connection:
            return [(n, decode(content)) for n, content in connection.execute(asked_for)]

    def _matching(self, rows: Select[Any], query: Search) -> Select[Any]:
        for name in _EQUAL:
            value = getattr(query, name)
            if value is not None:
                rows = rows.where(records.c[name] == value)
        if query.since is not None:
            rows = rows.where(records.c.time >= _milliseconds(query.since))
        if query.until is not None:
            rows = rows.where(records.c.time < _milliseconds(query.until))
        of_verdict = [verdicts.c[name] == getattr(query, name) for name in _VERDICT if getattr(query, name) is not None]
        if of_verdict:
            rows = rows.where(exists().where(verdicts.c.n == records.c.n, *of_verdict))
        return rows.where(*self._with_text(query.text)) if query.text else rows

    def _with_text(self, wanted: str) -> list[ColumnElement[bool]]:
        whole, beginnings, together = asked(wanted)
        if not whole and not beginnings:
            return [false()]
        if self._connections.is_sqlite:
            terms = [*(f'"{word}"' for word in whole), *(f'"{word}"*' for word in beginnings)]
            found = select(_WORDS.c.rowid).where(_WORDS.c.audit_words.op("MATCH")(" AND ".join(terms)))
        else:
            terms = [*(f"'{word}'" for word in whole), *(f"'{word}':*" for word in beginnings)]
            found = select(_WORDS.c.n).where(_WORDS.c.tokens.op("@@")(cast(" & ".join(terms), TSQUERY)))
        return [records.c.n.in_(found), *(records.c.content.contains(run, autoescape=True) for run in together)]

    # --- deleting ---------------------------------------------------------------------------------------------

    def delete(self, query: Search) -> int:
        return self._delete(self._matching(select(records.c.n), query))

    def expire(self, retention: Retention, now: float) -> int:
        gone = 0
        for policy, seconds in retention.policies.items():
            gone += self.delete(Search(policy=policy, until=now - seconds))
        if retention.otherwise is not None:
            others = self._matching(select(records.c.n), Search(until=now - retention.otherwise))
            gone += self._delete(others.where(records.c.policy.not_in(list(retention.policies))))
        return gone

    def _delete(self, found: Select[Any]) -> int:
        """Some at a time: calls that end meanwhile are recorded in between."""
        words = _WORDS.c.rowid if self._connections.is_sqlite else _WORDS.c.n
        gone = 0
        while True:
            with self._connections.writing() as connection:
                numbers = connection.execute(found.limit(_MANY)).scalars().all()
                for each, n in ((_WORDS, words), (verdicts, verdicts.c.n), (records, records.c.n)):
                    connection.execute(delete(each).where(n.in_(numbers)))
            gone += len(numbers)
            if len(numbers) < _MANY:
                return gone

    # --- who has looked ---------------------------------------------------------------------------------------

    def note(self, reading: AuditReading) -> None:
        with self._connections.writing() as connection:
            connection.execute(plain_insert(audit_readings), asdict(reading))

    def readings(self, limit: int = 100) -> list[AuditReading]:
        query = select(*(audit_readings.c[name] for name in AuditReading.__struct_fields__))
        query = query.order_by(audit_readings.c.id.desc()).limit(limit)
        with self._connections.reading() as connection:
            return [AuditReading(**row) for row in connection.execute(query).mappings()]


def _row(record: Record) -> Mapping[str, Any]:
    return {
        "call_id": record.call_id,
        "time": _milliseconds(record.time),
        "person": record.user,
        "content": encode(record).decode(),
        **{name: getattr(record, name) for name in _EQUAL if name != "person"},
    }


def _milliseconds(moment: float) -> int:
    return math.ceil(round(moment * 1000, 3))


def _place(cursor: str) -> tuple[int, int]:
    time, _, n = cursor.partition(".")
    if not (time.isascii() and time.isdigit() and n.isascii() and n.isdigit()):
        raise ValueError(f"{cursor!r} is no cursor")
    return int(time), int(n)
