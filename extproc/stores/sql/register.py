"""Consumers, teams and keys in tables, with the revision at which each changed last."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from msgspec.structs import asdict, replace
from sqlalchemy import Connection, RowMapping, Table, bindparam, or_, select, update

from extproc.stores.ports import Changes, Conflict, ConsumerRecord, KeyRecord, NotFound, Register, TeamRecord
from extproc.stores.sql.engine import Connections, insert
from extproc.stores.sql.schema import consumers, keys, revision, teams

R = TypeVar("R", TeamRecord, ConsumerRecord, KeyRecord)

_TABLES: Final[dict[type, Table]] = {TeamRecord: teams, ConsumerRecord: consumers, KeyRecord: keys}
_WORDS: Final = {teams: "team", consumers: "consumer", keys: "key"}
_FIXED: Final = {"name", "created", "deleted"}


@dataclass(frozen=True, slots=True)
class _Change:
    """A transaction that raises the revision. The row of the revision is its lock: there is one at a time."""

    connection: Connection
    revision: int

    def save(self, record: R) -> R:
        """Insert or overwrite; as it is kept."""
        table = _TABLES[type(record)]
        values = {**asdict(record), "revision": self.revision}
        query = insert(self.connection, table).values(values)
        anew = {name: query.excluded[name] for name in values}
        query = query.on_conflict_do_update(index_elements=list(table.primary_key), set_=anew)
        return _record(type(record), self.connection.execute(query.returning(table)).mappings().one())


class SqlRegister(Register):
    """Teams, consumers and keys of the database. What is deleted stays as a tombstone, for those who read changes."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self.known_teams: frozenset[str] = frozenset()
        self.known_consumers: frozenset[str] = frozenset()

    def revision(self) -> int:
        with self._connections.reading() as connection:
            return int(connection.execute(select(revision.c.n)).scalar_one())

    def changes(self, since: int) -> Changes:
        with self._connections.reading() as connection:
            return Changes(
                revision=connection.execute(select(revision.c.n)).scalar_one(),
                teams=_changed(connection, TeamRecord, since),
                consumers=_changed(connection, ConsumerRecord, since),
                keys=_changed(connection, KeyRecord, since),
            )

    # --- teams ------------------------------------------------------------------------------------------------

    def create_team(self, team: TeamRecord) -> TeamRecord:
        if team.name in self.known_teams:
            raise Conflict(f"the team {team.name!r} is in the configuration file")
        with self._change() as change:
            return _create(change, team, team.name)

    def update_team(self, name: str, changes: Mapping[str, Any]) -> TeamRecord:
        with self._change() as change:
            return change.save(_edited(_one(change.connection, TeamRecord, name), changes))

    def delete_team(self, name: str) -> None:
        with self._change() as change:
            team = _one(change.connection, TeamRecord, name)
            members = _all(change.connection, ConsumerRecord, consumers.c.team == name)
            if members:
                raise Conflict(f"the team {name!r} has consumers: {', '.join(member.name for member in members[:5])}")
            change.save(replace(team, deleted=True))

    def teams(self) -> list[TeamRecord]:
        with self._connections.reading() as connection:
            return _all(connection, TeamRecord)

    def team(self, name: str) -> TeamRecord:
        with self._connections.reading() as connection:
            return _one(connection, TeamRecord, name)

    # --- consumers --------------------------------------------------------------------------------------------

    def create_consumer(self, consumer: ConsumerRecord) -> ConsumerRecord:
        if consumer.name in self.known_consumers:
            raise Conflict(f"the consumer {consumer.name!r} is in the configuration file")
        with self._change() as change:
            self._know_team(change.connection, consumer.team)
            return _create(change, consumer, consumer.name)

    def update_consumer(self, name: str, changes: Mapping[str, Any]) -> ConsumerRecord:
        with self._change() as change:
            consumer = _one(change.connection, ConsumerRecord, name)
            if "team" in changes:
                self._know_team(change.connection, changes["team"])
            return change.save(_edited(consumer, changes))

    def delete_consumer(self, name: str) -> None:
        with self._change() as change:
            change.save(replace(_one(change.connection, ConsumerRecord, name), deleted=True))
            held = update(keys).where(keys.c.consumer == name, ~keys.c.deleted)
            change.connection.execute(held.values(deleted=True, revision=change.revision))

    def consumers(self) -> list[ConsumerRecord]:
        with self._connections.reading() as connection:
            return _all(connection, ConsumerRecord)

    def consumer(self, name: str) -> ConsumerRecord:
        with self._connections.reading() as connection:
            return _one(connection, ConsumerRecord, name)

    # --- keys -------------------------------------------------------------------------------------------------

    def create_key(self, key: KeyRecord) -> KeyRecord:
        with self._change() as change:
            if key.consumer not in self.known_consumers:
                _one(change.connection, ConsumerRecord, key.consumer)
            taken = select(keys.c.id).where(or_(keys.c.id == key.id, keys.c.digest == key.digest))
            if change.connection.execute(taken).first():
                raise Conflict("there is, or was, such a key already")
            return change.save(replace(key, created=key.created or time.time()))

    def keys(self, consumer: str | None = None) -> list[KeyRecord]:
        with self._connections.reading() as connection:
            return _all(connection, KeyRecord, *([] if consumer is None else [keys.c.consumer == consumer]))

    def key(self, key_id: str) -> KeyRecord:
        with self._connections.reading() as connection:
            return _one(connection, KeyRecord, key_id)

    def expire_key(self, key_id: str, at: float) -> KeyRecord:
        with self._change() as change:
            key = _one(change.connection, KeyRecord, key_id)
            return change.save(replace(key, expires=at if key.expires is None else min(at, key.expires)))

    def revoke_key(self, key_id: str, at: float) -> KeyRecord:
        with self._change() as change:
            key = _one(change.connection, KeyRecord, key_id)
            return change.save(replace(key, revoked=at if key.revoked is None else min(at, key.revoked)))

    def delete_key(self, key_id: str) -> None:
        with self._change() as change:
            change.save(replace(_one(change.connection, KeyRecord, key_id), deleted=True))

    def touch(self, used: Mapping[str, float]) -> None:
        if not used:
            return
        later = or_(keys.c.last_used.is_(None), keys.c.last_used < bindparam("used"))
        query = update(keys).where(keys.c.id == bindparam("key"), later).values(last_used=bindparam("used"))
        with self._connections.writing() as connection:
            connection.execute(select(revision.c.n).with_for_update())  # one writer at a time
            connection.execute(query, [{"key": key_id, "used": at} for key_id, at in used.items()])

    # --- within a transaction ---------------------------------------------------------------------------------

    @contextmanager
    def _change(self) -> Iterator[_Change]:
        with self._connections.writing() as connection:
            raised = update(revision).values(n=revision.c.n + 1).returning(revision.c.n)
            yield _Change(connection, connection.execute(raised).scalar_one())

    def _know_team(self, connection: Connection, name: str) -> None:
        if name and name not in self.known_teams:
            _one(connection, TeamRecord, name)


def _record(kind: type[R], row: RowMapping) -> R:
    return kind(**{name: row[name] for name in kind.__struct_fields__})


def _all(connection: Connection, kind: type[R], *conditions: Any) -> list[R]:
    """What is not deleted, in the order of the names."""
    table = _TABLES[kind]
    found = connection.execute(select(table).where(~table.c.deleted, *conditions)).mappings()
    return sorted((_record(kind, row) for row in found), key=lambda record: getattr(record, _identity(table)))


def _one(connection: Connection, kind: type[R], name: str) -> R:
    table = _TABLES[kind]
    query = select(table).where(table.c[_identity(table)] == name, ~table.c.deleted)
    row = connection.execute(query).mappings().first()
    if row is None:
        raise NotFound(f"there is no {_WORDS[table]} {name!r}")
    return _record(kind, row)


def _changed(connection: Connection, kind: type[R], since: int) -> list[R]:
    table = _TABLES[kind]
    query = select(table).where(table.c.revision > since if since > 0 else ~table.c.deleted)
    return [_record(kind, row) for row in connection.execute(query).mappings()]


def _create(change: _Change, record: R, name: str) -> R:
    table = _TABLES[type(record)]
    if change.connection.execute(select(table.c.name).where(table.c.name == name, ~table.c.deleted)).first():
        raise Conflict(f"there is a {_WORDS[table]} {name!r} already")
    return change.save(replace(record, created=record.created or time.time()))


def _edited(record: R, changes: Mapping[str, Any]) -> R:
    """Raises ValueError for what is no field of it, or one that stays."""
    wrong = set(changes) - (set(record.__struct_fields__) - _FIXED)
    if wrong:
        raise ValueError(f"cannot be changed: {', '.join(sorted(wrong))}")
    return replace(record, **changes)


def _identity(table: Table) -> str:
    return next(iter(table.primary_key)).name
