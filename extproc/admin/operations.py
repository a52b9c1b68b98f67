"""What operators do to teams, consumers and keys, by the API and by commands."""

import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from extproc.accounts.keys import digest, hint, new_key
from extproc.admin import times
from extproc.admin.bodies import (
    ConsumerChange,
    ConsumerView,
    CreatedKey,
    KeyView,
    NewConsumer,
    NewKey,
    NewTeam,
    Rotation,
    State,
    TeamChange,
    TeamView,
)
from extproc.config.schema import Config, Consumer, Team
from extproc.stores.ports import Conflict, ConsumerRecord, KeyRecord, NotFound, Register, TeamRecord

V = TypeVar("V", bound=TeamView)


class Changed(Protocol):
    """Is told of every change: what was done, to what, and more without secrets."""

    def __call__(self, action: str, name: str, **more: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Operations:
    """``config`` gives the configuration in force: what is in its file is shown, and changed there. Blocking.

    Methods raise NotFound, Conflict, Invalid and DatabaseUnavailable, with a text for the operator.
    """

    register: Register
    config: Callable[[], Config]
    changed: Changed
    wall: Callable[[], float] = time.time

    # --- teams ------------------------------------------------------------------------------------------------

    def teams(self) -> list[TeamView]:
        return _merged(
            (_team_of_file(name, team) for name, team in self.config().teams.items()),
            (_team(record) for record in self.register.teams()),
        )

    def team(self, name: str) -> TeamView:
        listed = self.config().teams.get(name)
        return _team(self.register.team(name)) if listed is None else _team_of_file(name, listed)

    def create_team(self, new: NewTeam) -> TeamView:
        self._check(new)
        record = self.register.create_team(TeamRecord(**new.fields()))
        self.changed("team created", record.name)
        return _team(record)

    def update_team(self, name: str, change: TeamChange) -> TeamView:
        self._check(change)
        _not_in(self.config().teams, "team", name)
        record = self.register.update_team(name, change.fields())
        self.changed("team updated", name)
        return _team(record)

    def delete_team(self, name: str) -> None:
        _not_in(self.config().teams, "team", name)
        self.register.delete_team(name)
        self.changed("team deleted", name)

    # --- consumers --------------------------------------------------------------------------------------------

    def consumers(self, team: str | None = None) -> list[ConsumerView]:
        found = _merged(
            (_consumer_of_file(name, consumer) for name, consumer in self.config().consumers.items()),
            (_consumer(record) for record in self.register.consumers()),
        )
        return [consumer for consumer in found if team is None or consumer.team == team]

    def consumer(self, name: str) -> ConsumerView:
        listed = self.config().consumers.get(name)
        return _consumer(self.register.consumer(name)) if listed is None else _consumer_of_file(name, listed)

    def create_consumer(self, new: NewConsumer) -> ConsumerView:
        self._check(new)
        record = self.register.create_consumer(ConsumerRecord(**new.fields()))
        self.changed("consumer created", record.name)
        return _consumer(record)

    def update_consumer(self, name: str, change: ConsumerChange) -> ConsumerView:
        return self._update_consumer("updated", name, change)

    def enable_consumer(self, name: str) -> ConsumerView:
        return self._update_consumer("enabled", name, ConsumerChange(disabled=False))

    def disable_consumer(self, name: str) -> ConsumerView:
        return self._update_consumer("disabled", name, ConsumerChange(disabled=True))

    def _update_consumer(self, what: str, name: str, change: ConsumerChange) -> ConsumerView:
        self._check(change)
        _not_in(self.config().consumers, "consumer", name)
        record = self.register.update_consumer(name, change.fields())
        self.changed(f"consumer {what}", name)
        return _consumer(record)

    def delete_consumer(self, name: str) -> None:
        _not_in(self.config().consumers, "consumer", name)
        self.register.delete_consumer(name)
        self.changed("consumer deleted", name)

    # --- keys -------------------------------------------------------------------------------------------------

    def keys(self, consumer: str | None = None) -> list[KeyView]:
        """Of the database: keys of the configuration file have no names."""
        if consumer is not None:
            self.consumer(consumer)
        return [self._key(record) for record in self.register.keys(consumer)]

    def find_key(self, key: str) -> KeyView:
        wanted = digest(key)
        found = [record for record in self.register.keys(None) if record.digest == wanted]
        if not found:
            raise NotFound("the database has no such key")
        return self._key(found[0])

    def create_key(self, consumer: str, new: NewKey) -> CreatedKey:
        now = self.wall()
        expires = times.future(new.expires, self.config().accounts.timezone, now) if new.expires else None
        created = self._issue(consumer, new.label, now, expires)
        self.changed("key created", created.id, consumer=consumer)
        return created

    def rotate_key(self, key_id: str, rotation: Rotation) -> CreatedKey:
        """A new key now, the old one ends after the overlap. The new one lives as long as the old one was to live."""
        now = self.wall()
        old = self.register.key(key_id)
        state = _state(old, now)
        if state != "active":
            raise Conflict(f"the key {key_id!r} is {state}: create a new one")
        expires = None if old.expires is None else now + old.expires - old.created
        created = self._issue(old.consumer, old.label, now, expires)
        ending = self.register.expire_key(key_id, now + rotation.overlap)
        self.changed("key rotated", key_id, consumer=old.consumer, successor=created.id)
        return created.model_copy(update={"replaces": self._key(ending)})

    def revoke_key(self, key_id: str) -> KeyView:
        record = self.register.revoke_key(key_id, self.wall())
        self.changed("key revoked", key_id, consumer=record.consumer)
        return self._key(record)

    def delete_key(self, key_id: str) -> None:
        self.register.delete_key(key_id)
        self.changed("key deleted", key_id)

    def _issue(self, consumer: str, label: str, now: float, expires: float | None) -> CreatedKey:
        key = new_key()
        self._tell_names()
        record = KeyRecord(
            id=f"key-{secrets.token_hex(6)}",
            consumer=consumer,
            digest=digest(key),
            label=label,
            hint=hint(key),
            created=now,
            expires=expires,
        )
        return CreatedKey(**self._key(self.register.create_key(record)).model_dump(), key=key)

    def _key(self, record: KeyRecord) -> KeyView:
        return KeyView(
            id=record.id,
            consumer=record.consumer,
            label=record.label,
            hint=record.hint,
            state=_state(record, self.wall()),
            created=times.shown(record.created),
            expires=times.shown(record.expires),
            revoked=times.shown(record.revoked),
            last_used=times.shown(record.last_used),
        )

    # --- what fits --------------------------------------------------------------------------------------------

    def _check(self, change: TeamChange) -> None:
        config = self._tell_names()
        if change.policy is not None and change.policy not in {"default", *config.policies}:
            raise Conflict(f"no policy is called {change.policy!r}")

    def _tell_names(self) -> Config:
        """The register asks for the names of the file, which a reload may have changed."""
        config = self.config()
        self.register.known_teams = frozenset(config.teams)
        self.register.known_consumers = frozenset(config.consumers)
        return config


def _not_in(listed: Mapping[str, object], kind: str, name: str) -> None:
    if name in listed:
        raise Conflict(f"the {kind} {name!r} is in the configuration file: change it there")


def _merged(listed: Iterable[V], stored: Iterable[V]) -> list[V]:
    """By name; of two that share it, that of the file counts."""
    found = {view.name: view for view in stored} | {view.name: view for view in listed}
    return [found[name] for name in sorted(found)]


def _state(key: KeyRecord, now: float) -> State:
    if key.revoked is not None and key.revoked <= now:
        return "revoked"
    return "expired" if key.expires is not None and key.expires <= now else "active"


def _team(record: TeamRecord) -> TeamView:
    return TeamView(**_stored(record))


def _consumer(record: ConsumerRecord) -> ConsumerView:
    return ConsumerView(**_stored(record), team=record.team or None, disabled=record.disabled, note=record.note)


def _stored(record: TeamRecord | ConsumerRecord) -> dict[str, Any]:
    return {
        "name": record.name,
        "source": "database",
        "models": record.models,
        "endpoints": record.endpoints,
        "policy": record.policy or None,
        "quota": record.quota,
        "limits": record.limits,
        "created": times.shown(record.created),
    }


def _team_of_file(name: str, team: Team) -> TeamView:
    return TeamView(**_listed(name, team))


def _consumer_of_file(name: str, consumer: Consumer) -> ConsumerView:
    return ConsumerView(**_listed(name, consumer), team=consumer.team)


def _listed(name: str, part: Team | Consumer) -> dict[str, Any]:
    return {
        "name": name,
        "source": "file",
        "models": part.models,
        "endpoints": part.endpoints,
        "policy": part.policy,
        "quota": [rule.model_dump(mode="json", exclude_none=True) for rule in part.quota],
        "limits": [rule.model_dump(mode="json", exclude_none=True) for rule in part.limits],
    }
