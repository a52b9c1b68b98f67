"""A call: one client request and its answer, as the filters see it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

from extproc.core.messages import Headers
from extproc.dialects.base import AnswerFacts, RequestFacts, StreamReader
from extproc.dialects.document import Document
from extproc.dialects.endpoints import DialectName, Endpoint
from extproc.dialects.usage import Usage

How = Literal["completed", "replied", "refused", "aborted", "failed", "lost"]


@dataclass(frozen=True, slots=True)
class Permissions:
    """What may be used: globs of public model names, and names of endpoints, all of them where there is none."""

    models: Sequence[str] = ("*",)
    endpoints: Sequence[str] = ()

    def cover(self, model: str) -> bool:
        return any(fnmatchcase(model, pattern) for pattern in self.models)


@dataclass(frozen=True, slots=True)
class Consumer:
    """Whoever holds an API key that we issued. It may use what its own and its team's ``permissions`` all allow."""

    name: str
    permissions: Sequence[Permissions] = (Permissions(),)
    team: str = ""
    policy: str = ""

    def may_use(self, model: str) -> bool:
        return all(each.cover(model) for each in self.permissions)

    def may_call(self, endpoint: str) -> bool:
        return all(not each.endpoints or endpoint in each.endpoints for each in self.permissions)


@dataclass(frozen=True, slots=True)
class Target:
    """A provider and its own name for the model. ``weight`` is the share within its group."""

    provider: str
    model: str
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Model:
    """A public model name and its route: attempt 1 uses the first group, the first fallback the second."""

    name: str
    route: Sequence[Sequence[Target]]
    dialects: frozenset[DialectName]
    idle: float | None = None
    policy: str = ""


@dataclass(slots=True)
class Answered:
    """The answer's head. ``local`` when Envoy made it itself; ``attempts`` tries were made before it."""

    status: int
    headers: Headers
    provider: str = ""
    target: str = ""
    attempts: int = 0
    local: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found in a text of the call, and what was done about it.

    ``action``: ``flag``, ``mask``, ``block``, or ``error`` where a judge had no opinion. ``place`` names the text
    (``messages[2].content``), ``start`` and ``end`` are characters of it. ``what`` is for the operator alone.
    """

    direction: str
    check: str
    category: str
    action: str
    score: float = 1.0
    place: str = ""
    start: int = 0
    end: int = 0
    what: str = ""


@dataclass(slots=True)
class Outcome:
    """How a call ended.

    ``completed``: the provider's answer was passed on whole, whatever its status. ``replied``: we answered.
    ``refused``: we declined; ``code`` says why. ``aborted``: client or provider left in the middle.
    ``failed``: something of ours broke. ``lost``: our process died with the call, and nobody saw its end.
    """

    how: How
    status: int = 0
    code: str = ""


@dataclass(slots=True)
class Call:
    """What is known of a call; filters edit it in place.

    ``started`` and the other times are seconds of a monotonic clock, ``time`` is seconds since the epoch.
    """

    id: str
    headers: Headers
    method: str
    path: str
    query: str
    endpoint: Endpoint | None
    dialect: DialectName
    started: float
    time: float

    consumer: Consumer | None = None
    key: str = ""
    """Which of the consumer's keys was sent: its id in the database, empty for one of the configuration file."""
    document: Document | None = None
    request: RequestFacts | None = None
    model: Model | None = None
    asked_usage: bool = False

    answered: Answered | None = None
    answer: bytes = b""
    facts: AnswerFacts | None = None
    reader: StreamReader | None = None
    usage: Usage | None = None
    cache: str = ""
    """How the cache answered: ``hit``, ``semantic``, ``coalesced``, ``miss`` or ``bypass``; empty: it was not asked."""
    cost: int = 0
    """What it cost: nano of the accounts' currency."""
    verdicts: list[Verdict] = field(default_factory=list)
    held: float = 0.0
    """Seconds for which moderation held back some part of the answer, at most."""
    answer_headers: dict[str, str] = field(default_factory=dict)
    """Headers for the client, whoever answers."""

    wake_after: float | None = None
    """Seconds of silence in a stream after which what filters hold back is due."""

    first_byte_at: float | None = None
    own_seconds: float = 0.0
    events: int = 0
    metadata: dict[str, str | float] = field(default_factory=dict)
    """Dynamic metadata to send with the next decision."""

    def take_metadata(self) -> dict[str, str | float] | None:
        taken, self.metadata = self.metadata, {}
        return taken or None
