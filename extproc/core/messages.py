"""What Envoy tells us about a call, and what we decide: the words between `wire` and the state machines."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

Metadata = Mapping[str, str | float]
"""Dynamic metadata of one namespace: flat, strings and numbers."""


class Headers:
    """Header fields by lower-case name, which remember how they were changed.

    A field that came several times is one value joined by ``", "`` (RFC 9110, 5.3), so that nobody
    reads the first of two and Envoy's other filters the second.
    """

    __slots__ = ("_removed", "_set", "_values")

    def __init__(self, fields: Iterable[tuple[str, str]] = ()) -> None:
        listed = list(fields)
        values = dict(listed)
        if len(values) < len(listed):
            values = {}
            for name, value in listed:
                values[name] = f"{values[name]}, {value}" if name in values else value
        self._values = values
        self._set: dict[str, str] = {}
        self._removed: set[str] = set()

    def get(self, name: str, default: str = "") -> str:
        return self._values.get(name, default)

    def __getitem__(self, name: str) -> str:
        return self._values[name]

    def __setitem__(self, name: str, value: str) -> None:
        self._values[name] = value
        self._set[name] = value
        self._removed.discard(name)

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def remove(self, name: str) -> None:
        """Take a field away, also one that we cannot see (the upstream stage sees none)."""
        self._values.pop(name, None)
        self._set.pop(name, None)
        self._removed.add(name)

    def take_changes(self) -> tuple[dict[str, str], set[str]]:
        """What was set and what was removed since the last time this was asked."""
        changes = (self._set, self._removed)
        self._set, self._removed = {}, set()
        return changes

    def __repr__(self) -> str:
        return f"Headers({sorted(self._values)})"  # values may be secrets


class BodyMode(Enum):
    """How Envoy shall send us the body of an answer."""

    NONE = "none"
    BUFFERED = "buffered"
    STREAMED = "streamed"


# --- from Envoy -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class RequestHead:
    """Request headers; ``end`` when no body follows. The first message of a stream, so it carries what is known."""

    headers: Headers
    end: bool = False
    attributes: Metadata = field(default_factory=dict)
    metadata: Metadata = field(default_factory=dict)


@dataclass(slots=True)
class RequestBody:
    """The whole request body."""

    body: bytes


@dataclass(slots=True)
class ResponseHead:
    """Answer headers of the attempt that Envoy accepted, or of a reply that Envoy or we made."""

    headers: Headers
    end: bool = False
    attributes: Metadata = field(default_factory=dict)


@dataclass(slots=True)
class ResponseBody:
    """The whole answer (BUFFERED) or the next piece of it (STREAMED)."""

    body: bytes
    end: bool


@dataclass(slots=True)
class Trailers:
    """Trailers; they end their direction."""

    response: bool = True


Message = RequestHead | RequestBody | ResponseHead | ResponseBody | Trailers


# --- to Envoy -------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Proceed:
    """Go on, with these changes. ``body`` replaces the body; ``reroute`` lets Envoy choose the route again."""

    headers: Headers | None = None
    body: bytes | None = None
    reroute: bool = False
    metadata: Metadata | None = None
    response_mode: BodyMode | None = None


@dataclass(slots=True)
class Answer:
    """Answer the client at once and go no further. ``reason`` shows in Envoy's response code details."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    reason: str
    metadata: Metadata | None = None


@dataclass(slots=True)
class Emit:
    """The next bytes of a streamed answer, perhaps none; ``end`` ends it."""

    body: bytes
    end: bool = False
    metadata: Metadata | None = None


Decision = Proceed | Answer | Emit

PROCEED: Final = Proceed()
