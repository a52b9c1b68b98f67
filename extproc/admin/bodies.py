"""What operators send, and what they get to see: of API and commands alike."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from extproc.config.schema import Glob, Limit, Name, Quota, TimeZone
from extproc.config.units import Seconds
from extproc.dialects.endpoints import EndpointName


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("has characters that cannot be shown")
    return text


NewName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@ -]{0,127}$")]
Label = Annotated[str, StringConstraints(max_length=100), AfterValidator(_printable)]
Note = Annotated[str, StringConstraints(max_length=1000), AfterValidator(_printable)]
Overlap = Annotated[Seconds, Field(ge=0, le=366 * 86400)]
Format = Literal["json", "csv"]
Source = Literal["database", "file"]
State = Literal["active", "expired", "revoked"]


# --- what they send -------------------------------------------------------------------------------------------


class Body(BaseModel):
    """What all of them have in common."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class TeamChange(Body):
    """What can be changed of a team. What is left out stays as it is, or has its default."""

    models: list[Glob] = ["*"]
    """Globs of the models that may be used."""
    endpoints: list[EndpointName] = []
    """Endpoints that may be called; empty: all."""
    policy: Name | None = None
    """The policy of its calls; a consumer's goes before its team's."""
    quota: list[Quota] = []
    """What may be used in a calendar period; what is a team's is shared by its consumers."""
    limits: list[Limit] = []
    """How fast it may be used; what is a team's is shared by its consumers."""

    def fields(self) -> dict[str, Any]:
        """What was set, as records have it: rules normalised, an empty text for nothing."""
        values = self.model_dump(mode="json", exclude_none=True)
        return {name: values.get(name, "") for name in sorted(self.model_fields_set)}


class NewTeam(TeamChange):
    """A team to be made."""

    name: NewName
    """Its name."""


class ConsumerChange(TeamChange):
    """What can be changed of a consumer. What is left out stays as it is, or has its default."""

    team: Name | None = None
    """The team that it belongs to."""
    disabled: bool = False
    """Its keys do not work."""
    note: Note = ""
    """For people."""


class NewConsumer(ConsumerChange):
    """A consumer to be made."""

    name: NewName
    """Its name."""


class NewKey(Body):
    """A key to be made."""

    label: Label = ""
    """What it is for."""
    expires: str | None = None
    """When it ends: `90d` from now, or a date or time; never, where not set."""


class Rotation(Body):
    """How a key is replaced by a new one."""

    overlap: Overlap = 86400.0
    """How long the old one still works."""


class RowsQuery(Body):
    """Which calls."""

    consumer: str | None = None
    """Those of one consumer."""
    since: str | None = None
    """Those that began then or later: `7d` ago, or a date or time."""
    until: str | None = None
    """Those that began before: likewise."""
    limit: Annotated[int, Field(ge=1, le=10_000)] = 100
    """At most so many, the newest first."""
    format: Format | None = None
    """Without it, by the Accept header."""


class AuditQuery(Body):
    """Which records: all that is given must hold; check, category and action of one and the same verdict."""

    text: str = ""
    """Words of the request or the answer; `word*` is how one begins."""
    since: str | None = None
    """Calls that began then or later: `7d` ago, or a date or time."""
    until: str | None = None
    """Calls that began before: likewise."""
    consumer: str | None = None
    """Those of one consumer."""
    team: str | None = None
    """Those of one team."""
    person: str | None = None
    """Those with this `user`, as the client sent it."""
    model: str | None = None
    """Those of one public model."""
    provider: str | None = None
    """Those that one provider answered."""
    how: str | None = None
    """completed, replied, refused, aborted, failed or lost."""
    status: int | None = None
    """Those answered with this status."""
    policy: str | None = None
    """Those under one policy."""
    check: str | None = None
    """Those in which this check or judge found something."""
    category: str | None = None
    """Those in which something of this category was found."""
    action: Literal["flag", "mask", "block"] | None = None
    """Those in which something was found and this was done."""


class AuditPageQuery(AuditQuery):
    """Which records, and how many of them."""

    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    """At most so many, the newest first."""
    cursor: str = ""
    """Where to go on: `next` of the answer before."""


class UsageQuery(Body):
    """Which totals, and how they are parted. Totals are kept for every quarter of an hour."""

    by: str = "consumer,model,provider"
    """Some of consumer, team, model, provider, target, day and hour, with commas."""
    since: str | None = None
    """From then on: `7d` ago, or a date or time."""
    until: str | None = None
    """To just before: likewise."""
    consumer: str | None = None
    """Those of one consumer."""
    team: str | None = None
    """Those of one team."""
    model: str | None = None
    """Those of one public model."""
    provider: str | None = None
    """Those of one provider."""
    target: str | None = None
    """Those of one model of a provider."""
    timezone: TimeZone | None = None
    """Whose days and hours; that of the accounts where not set."""
    format: Format | None = None
    """Without it, by the Accept header."""

    def where(self) -> dict[str, str]:
        """The values that dimensions must have."""
        asked = {name: getattr(self, name) for name in ("consumer", "team", "model", "provider", "target")}
        return {name: value for name, value in asked.items() if value is not None}


# --- what they see --------------------------------------------------------------------------------------------


class _View(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class TeamView(_View):
    """A team."""

    name: str
    source: Source
    """What is of the configuration file is changed there."""
    models: list[str]
    endpoints: list[str]
    policy: str | None
    quota: list[dict[str, Any]]
    limits: list[dict[str, Any]]
    created: str | None = None


class ConsumerView(TeamView):
    """A consumer."""

    team: str | None
    disabled: bool = False
    note: str = ""


class KeyView(_View):
    """A key, without the key. ``hint``: its last characters."""

    id: str
    consumer: str
    label: str
    hint: str
    state: State
    created: str | None
    expires: str | None
    revoked: str | None
    last_used: str | None


class CreatedKey(KeyView):
    """A key that was just made."""

    key: str
    """The key itself: shown here, and never again."""
    replaces: KeyView | None = None
    """The key that it takes the place of."""
