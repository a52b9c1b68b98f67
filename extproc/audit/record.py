"""What is kept of a call, and what keeps it: the record, questions about records, and the store's Protocol.

Times are seconds since the epoch, durations are seconds, ``cost`` is nano of ``currency``.
"""

import hashlib
import operator
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, Protocol

import msgspec

TextForm = Literal["full", "masked", "digest", "none"]

_SPACELESS: Final = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Characters of scripts that put no space between words."""
_WORD: Final = re.compile(rf"([{_SPACELESS}]+)|([^\W_{_SPACELESS}]+)")
"""A run of them, or a word of another script."""
_LONGEST: Final = 64
MAX_TOKENS: Final = 20_000
"""Different tokens of one record that can be searched for: a tsvector holds a megabyte."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one check found, and what was done: ``action`` is `flag`, `mask` or `block`.

    ``place``, ``start``, ``end`` and ``what`` are as in ``moderation.types.Finding``.
    """

    check: str
    category: str
    action: str
    score: float = 1.0
    direction: Literal["request", "response"] = "request"
    place: str = ""
    start: int = 0
    end: int = 0
    what: str = ""


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one side said: its text, or the SHA-256 of it in hexadecimal, as the policy says."""

    role: str
    text: str = ""
    digest: str = ""


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One call. ``text``: in which form ``request`` and ``answer`` are kept.

    ``key`` is the id of the consumer's key, ``how`` and ``code`` are as in ``core.call.Outcome``; ``usage``:
    `reported`, `estimated` or empty. ``own``: our work, ``held``: how long moderation held the answer back.
    ``images``: the SHA-256 of each. ``user`` and ``metadata`` are what the client sent in these fields.
    """

    call_id: str
    time: float
    consumer: str = ""
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
    input: int = 0
    output: int = 0
    cached: int = 0
    cache_creation: int = 0
    reasoning: int = 0
    usage: str = ""
    cost: int = 0
    currency: str = ""
    cache: str = ""
    policy: str = ""
    verdicts: list[Verdict] = []
    seconds: float = 0.0
    first_byte: float | None = None
    own: float = 0.0
    held: float = 0.0
    text: TextForm = "none"
    request: list[Message] = []
    answer: list[Message] = []
    images: list[str] = []
    user: str = ""
    metadata: dict[str, Any] = {}


def encode(record: Record) -> bytes:
    """JSON on one line."""
    return msgspec.json.encode(record)


def decode(content: bytes | str) -> Record:
    """Raises msgspec.DecodeError."""
    return msgspec.json.decode(content, type=Record)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def kept(form: TextForm, said: Iterable[tuple[str, str]]) -> list[Message]:
    """``said`` (role and text of each message) in this form; for `masked`, the texts are masked already."""
    match form:
        case "full" | "masked":
            return [Message(role, text) for role, text in said]
        case "digest":
            return [Message(role, digest=digest(text)) for role, text in said]
        case "none":
            return []


# --- full text ------------------------------------------------------------------------------------------------


def tokens(texts: Iterable[str]) -> list[str]:
    """What texts are found by: words, and of scripts without spaces every pair of neighbours and the last character."""
    found: dict[str, None] = {}
    for text in texts:
        for run, word in _words(text):
            found.update(dict.fromkeys(_pairs(run) if run else (word[:_LONGEST],)))
            if len(found) >= MAX_TOKENS:
                return list(found)[:MAX_TOKENS]
    return list(found)


def asked(text: str) -> tuple[list[str], list[str], list[str]]:
    """What a search for ``text`` looks for: whole tokens, beginnings of tokens, and runs that must stand together.

    A word with an asterisk after it, and a single character, are beginnings.
    """
    whole: list[str] = []
    beginnings: list[str] = []
    together: list[str] = []
    for part in text.split():
        words = list(_words(part))
        for place, (run, word) in enumerate(words, 1):
            if not run:
                open_end = part.endswith("*") and place == len(words)
                (beginnings if open_end else whole).append(word[:_LONGEST])
            elif len(run) == 1:
                beginnings.append(run)
            else:
                # The last character alone is a token only where the run ends in the text as well.
                whole += _pairs(run)[:-1]
                together += [run] if len(run) > 2 else []
    return whole, beginnings, together


def _words(text: str) -> Iterator[tuple[str, str]]:
    """Runs and words: one of each two is empty. One by one: all at once would keep other threads from running."""
    for match in _WORD.finditer(unicodedata.normalize("NFKC", text).casefold()):
        yield match[1] or "", match[2] or ""


def _pairs(run: str) -> list[str]:
    return [*map(operator.add, run, run[1:]), run[-1]]


# --- the store ------------------------------------------------------------------------------------------------


class Search(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which records: all that is given must hold. ``check``, ``category``, ``action``: of one and the same verdict.

    ``person``: the client's `user`. ``since`` and ``until`` bound the time of the call, the end left out.
    """

    text: str = ""
    since: float | None = None
    until: float | None = None
    consumer: str | None = None
    team: str | None = None
    person: str | None = None
    model: str | None = None
    provider: str | None = None
    how: str | None = None
    status: int | None = None
    policy: str | None = None
    check: str | None = None
    category: str | None = None
    action: str | None = None


class Page(msgspec.Struct, frozen=True):
    """Records, the newest first. ``next``: the cursor of the page after this one; empty: there is none."""

    records: list[Record]
    next: str = ""


class AuditReading(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody looked at the audit, or deleted from it. ``asked``: the question; ``found``: how many records."""

    time: float
    who: str
    what: Literal["search", "show", "tail", "export", "delete", "retention", "readings"]
    asked: str = ""
    found: int = 0


class Retention(msgspec.Struct, frozen=True):
    """Seconds that records are kept, by policy and otherwise; None: for ever."""

    otherwise: float | None = None
    policies: Mapping[str, float] = {}


class AuditStore(Protocol):
    """Records in a database. Blocking; every method raises DatabaseUnavailable."""

    def add(self, records: Sequence[Record]) -> int:
        """Keep them; of a call that has a record already nothing changes. How many were new."""
        ...

    def search(self, query: Search, *, limit: int = 100, cursor: str = "") -> Page:
        """Raises ValueError for a cursor that is none."""
        ...

    def show(self, call_id: str) -> Record:
        """Raises NotFound."""
        ...

    def last(self) -> int:
        """The number of the newest record, 0 where there is none."""
        ...

    def after(self, number: int, query: Search, limit: int = 100) -> list[tuple[int, Record]]:
        """Records that came later, in the order in which they came, with their numbers."""
        ...

    def delete(self, query: Search) -> int:
        """How many there were."""
        ...

    def expire(self, retention: Retention, now: float) -> int:
        """Delete what is too old. How many there were."""
        ...

    def note(self, reading: AuditReading) -> None: ...
    def readings(self, limit: int = 100) -> list[AuditReading]:
        """The newest first."""
        ...
