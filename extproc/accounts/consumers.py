"""Who holds which key, and what it may use: of the configuration file, and of the database as it changes."""

import hashlib
import hmac
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from extproc.accounts.rules import Counters, Rule, Rules, quotas
from extproc.core.call import Consumer, Permissions
from extproc.stores.ports import Changes, ConsumerRecord, Counter, KeyRecord, TeamRecord

_PREFIX: Final = 8  # bytes of a digest that choose the bucket; the whole is compared in constant time
_NOTHING: Final = Permissions(models=())


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose key was sent. ``key``: its id in the database, empty for one of the configuration file."""

    consumer: Consumer
    key: str = ""


@dataclass(frozen=True, slots=True)
class Team:
    """What the consumers of a team share, beside its rules."""

    permissions: Permissions
    policy: str = ""


@dataclass(frozen=True, slots=True)
class Key:
    """A key, known by its SHA-256 alone. ``until``: seconds since the epoch at which it ends."""

    digest: bytes
    consumer: str
    id: str = ""
    until: float = float("inf")


class Keys:
    """Finds a key by its digest. Finding one takes as long among ten thousand as among ten."""

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        self._buckets: dict[bytes, list[Key]] = {}
        for key in keys:
            self.add(key)

    def add(self, key: Key) -> None:
        self._buckets.setdefault(key.digest[:_PREFIX], []).append(key)

    def remove(self, digest: bytes) -> None:
        bucket = self._buckets.get(digest[:_PREFIX], [])
        bucket[:] = [key for key in bucket if key.digest != digest]
        if not bucket:
            self._buckets.pop(digest[:_PREFIX], None)

    def find(self, digest: bytes) -> Key | None:
        for key in self._buckets.get(digest[:_PREFIX], ()):
            if hmac.compare_digest(key.digest, digest):
                return key
        return None


@dataclass(slots=True)
class Snapshot:
    """What the database said last, by name; deleted things are not in it."""

    revision: int = 0
    teams: dict[str, TeamRecord] = field(default_factory=dict)
    consumers: dict[str, ConsumerRecord] = field(default_factory=dict)
    keys: dict[str, KeyRecord] = field(default_factory=dict)

    def apply(self, changes: Changes) -> None:
        self.revision = changes.revision
        _apply(self.teams, ((team.name, team) for team in changes.teams))
        _apply(self.consumers, ((consumer.name, consumer) for consumer in changes.consumers))
        _apply(self.keys, ((key.id, key) for key in changes.keys))

    def everything(self) -> Changes:
        """The same as changes since the beginning."""
        return Changes(
            revision=self.revision,
            teams=list(self.teams.values()),
            consumers=list(self.consumers.values()),
            keys=list(self.keys.values()),
        )


def _apply(known: dict[str, Any], changed: Iterable[tuple[str, Any]]) -> None:
    for name, record in changed:
        if record.deleted:
            known.pop(name, None)
        else:
            known[name] = record


ParseRules = Callable[[list[dict[str, Any]], list[dict[str, Any]]], list[Rule]]
"""Quotas and limits as the database has them → rules. Raises ValueError."""


class Consumers:
    """Everybody who may call. Of two consumers, or teams, of one name that of the configuration file counts.

    ``rules`` are those of the file; those of the database are added as they come. A consumer whose team nobody knows
    may use nothing; one whose rules, or whose team's, cannot be read neither: it is named in ``unreadable``.
    """

    def __init__(
        self,
        consumers: Mapping[str, Consumer] | None = None,
        keys: Iterable[Key] = (),
        *,
        teams: Mapping[str, Team] | None = None,
        rules: Rules | None = None,
        parse_rules: ParseRules = lambda quota, limits: [],  # noqa: ARG005
    ) -> None:
        self._file_consumers = dict(consumers or {})
        self._file_keys = Keys(keys)
        self._file_teams = dict(teams or {})
        rules = rules or Rules()
        self._rules = Rules(rules.everybody, dict(rules.teams), rules.models, dict(rules.consumers))
        self._parse_rules = parse_rules
        self._teams = dict(self._file_teams)
        self._records: dict[str, ConsumerRecord] = {}
        self._consumers = dict(self._file_consumers)
        self._keys = Keys()
        self._known_keys: dict[str, bytes] = {}
        self.revision = 0
        self.unreadable: set[str] = set()
        self.counters = Counters(self._rules)

    def find(self, key: str, now: float) -> Identity | None:
        """Whose key this is; None for nobody's, and for one that has ended or whose consumer is disabled."""
        digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
        found = self._file_keys.find(digest) or self._keys.find(digest)
        if found is None or now >= found.until:
            return None
        consumer = self._consumers.get(found.consumer)
        return Identity(consumer, found.id) if consumer is not None else None

    def get(self, name: str) -> Consumer | None:
        return self._consumers.get(name)

    def quotas(self, models: Sequence[str], now: float) -> Iterator[Counter]:
        """The numbers of all quotas that anybody has now, each once."""
        return quotas(self._rules, list(self._consumers.values()), models, now)

    def apply(self, changes: Changes) -> None:
        """Take what changed in the database."""
        self.revision = changes.revision
        for team in changes.teams:
            if team.name not in self._file_teams:
                self._apply_team(team)
        changed = {record.name: record for record in changes.consumers}
        self._records |= changed
        if changes.teams:
            teams = {team.name for team in changes.teams}
            changed |= {record.name: record for record in self._records.values() if record.team in teams}
        for record in changed.values():
            self._apply_consumer(record)
        for key in changes.keys:
            self._apply_key(key)

    def _apply_team(self, team: TeamRecord) -> None:
        if not self._set_rules(self._rules.teams, team.name, team) or team.deleted:
            self._teams.pop(team.name, None)
        else:
            self._teams[team.name] = Team(Permissions(team.models, team.endpoints), team.policy)

    def _apply_consumer(self, record: ConsumerRecord) -> None:
        if record.deleted:
            del self._records[record.name]
        if record.name in self._file_consumers:
            return
        self.counters.forget(record.name)
        if not self._set_rules(self._rules.consumers, record.name, record) or record.deleted or record.disabled:
            self._consumers.pop(record.name, None)
            return
        permissions = [Permissions(record.models, record.endpoints)]
        policy = record.policy
        if record.team:
            team = self._teams.get(record.team, Team(_NOTHING))
            permissions.append(team.permissions)
            policy = policy or team.policy
        self._consumers[record.name] = Consumer(record.name, permissions, record.team, policy)

    def _set_rules(self, rules: Mapping[str, Any], name: str, record: TeamRecord | ConsumerRecord) -> bool:
        """Whether they could be read: a bound that is not understood must not become none."""
        assert isinstance(rules, dict)  # noqa: S101 - our own copies
        self.unreadable.discard(name)
        rules.pop(name, None)
        if record.deleted:
            return True
        try:
            rules[name] = self._parse_rules(record.quota, record.limits)
        except ValueError:
            self.unreadable.add(name)
        return name in rules

    def _apply_key(self, key: KeyRecord) -> None:
        known = self._known_keys.pop(key.id, None)
        if known is not None:
            self._keys.remove(known)
        if key.deleted:
            return
        until = min(x if x is not None else float("inf") for x in (key.expires, key.revoked))
        self._known_keys[key.id] = key.digest
        self._keys.add(Key(key.digest, key.consumer, key.id, until))
