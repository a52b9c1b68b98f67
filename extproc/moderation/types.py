"""The words of moderation: texts and where they stand, what checks and judges find, what is done about it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, Literal, NamedTuple, Protocol

Direction = Literal["request", "response"]
Role = Literal["system", "user", "assistant", "tool"]


class Action(IntEnum):
    """What is done about a text; the strictest of several wins."""

    PASS = 0
    FLAG = 1
    MASK = 2
    BLOCK = 3


SCORES: Final[Mapping[str, float]] = {"low": 0.3, "medium": 0.6, "high": 0.9, "controversial": 0.5, "unsafe": 0.9}
"""Levels as judges name them → how sure and how bad, from 0 to 1. A threshold may be given as either."""


class Match(NamedTuple):
    """Something found in a text: characters ``start`` to just before ``end``.

    ``category`` is the reason (``phone``, ``politics``, ``injection``), ``score`` from 0 to 1. ``what`` names the rule
    that matched, for the operator; clients never see it.
    """

    start: int
    end: int
    category: str
    score: float = 1.0
    what: str = ""


class Check(Protocol):
    """Finds things in a text, in this process and at once. Deterministic; safe to call from threads."""

    @property
    def reach(self) -> int:
        """Characters that the longest match may span: so much text a stream is held back at most."""
        ...

    def find(self, text: str) -> Sequence[Match]:
        """In order of ``start``; matches of one check do not overlap."""
        ...


@dataclass(frozen=True, slots=True)
class Image:
    """An image of a message: an ``http(s)`` or ``data:`` URL."""

    url: str


@dataclass(frozen=True, slots=True)
class Item:
    """What a judge is asked about. ``context``: what was said before it, oldest first, as (role, text).

    ``policy`` and ``call_id`` are for judges of one's own; the opinion does not depend on the call.
    """

    text: str
    direction: Direction
    role: Role = "user"
    images: Sequence[Image] = ()
    context: Sequence[tuple[Role, str]] = ()
    policy: str = ""
    call_id: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a judge says: scores by category (empty: nothing is wrong), and spans where it names them."""

    scores: Mapping[str, float] = field(default_factory=dict)
    matches: Sequence[Match] = ()


class JudgeFailed(Exception):  # noqa: N818 - it did not give an opinion; the policy says what then
    """No opinion: ``reason`` is one of ``timeout``, ``busy``, ``open`` (circuit), ``error``, ``garbage``."""

    def __init__(self, reason: str, message: str = "") -> None:
        super().__init__(message or reason)
        self.reason = reason


class QuestionRefused(JudgeFailed):
    """``error``: it does not answer this question, and may well answer others."""

    def __init__(self, message: str) -> None:
        super().__init__("error", message)


class Judge(Protocol):
    """Gives opinions, remotely. Bounded in time and number; remembers what it was asked a moment ago."""

    name: str
    max_chars: int
    """Characters of one question; a longer text is asked about in pieces, cut between characters, with overlap."""

    async def judge(self, item: Item) -> Opinion:
        """Raises JudgeFailed, and nothing else."""
        ...

    async def close(self) -> None: ...
