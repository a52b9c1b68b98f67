"""Patterns of an operator's own, on RE2: no pattern and no text takes more than linear time."""

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Final

import re2

from extproc.moderation.types import Match

MAX_MEM: Final = 8 << 20
"""Bytes that a compiled pattern and its automata may take."""
SURROGATES = re.compile("[\ud800-\udfff]")
_EMPTY: Final = ((b"", (0, 0)), (b"a", (0, 0)), (b"a", (1, 1)))
_OUTSIDE_RE2: Final = (
    (re.compile(r"\(\?<?[=!]"), "lookaround"),
    (re.compile(r"\\[1-9]|\(\?P=|\\k[<{']"), "backreferences"),
    (re.compile(r"\(\?>|[*+?}]\+"), "atomic groups and possessive repetition"),
    (re.compile(r"\(\?\("), "conditions"),
)


class Patterns:
    r"""Finds what an operator's patterns match, by category.

    A match spans at most ``reach`` characters: a pattern is matched against so much of the text from each place on,
    whatever follows. So ``\d+`` finds a long number in pieces, one after the other, which together cover it, and
    ``a.*b`` does not find a ``b`` further away. That is the same in a whole text and in a window of a stream. Where
    matches overlap, the later one is cut to what the earlier one leaves.

    Raises ValueError for a pattern that RE2 does not take, or that matches the empty text: with pattern and reason.
    """

    def __init__(self, patterns: Mapping[str, Sequence[str]], *, reach: int = 256, max_mem: int = MAX_MEM) -> None:
        if reach < 1:
            raise ValueError(f"reach: must be at least 1, not {reach}")
        self._reach = reach
        options = re2.Options()
        options.max_mem = max_mem
        options.log_errors = False
        self._patterns = [
            (category, pattern, _compiled(category, pattern, options))
            for category, several in patterns.items()
            for pattern in several
        ]

    @property
    def reach(self) -> int:
        return self._reach

    def find(self, text: str) -> Sequence[Match]:
        found: list[Match] = []
        source = _Source(text)
        for category, pattern, compiled in self._patterns:
            found += (Match(*span, category, 1.0, pattern) for span in self._spans(compiled, source))
        return apart(found)

    def _spans(self, pattern: Any, source: "_Source") -> Iterator[tuple[int, int]]:
        """The matches of one pattern, from left to right, none of them empty.

        After the first, the search looks only as far as a match that begins within ``reach`` may end: a pattern like
        ``a.*b|a`` would otherwise read the whole rest of the text again for each of its matches.
        """
        first = pattern.search(source.data)
        if first is None:
            return
        reach, size = self._reach, source.size
        start = source.character(first.start())
        while start < size:
            found = pattern.search(source.data, source.byte(start), source.byte(start + 2 * reach))
            if found is None:
                start += reach
                continue
            start = source.character(found.start())
            if source.character(found.end()) - start > reach:
                found = pattern.match(source.data, source.byte(start), source.byte(start + reach))
            end = source.character(found.end()) if found else start
            if end > start:
                yield start, end
            start = max(end, start + 1)


class _Source:
    """A text as RE2 reads it, UTF-8, with its characters' places. Half a surrogate pair is a character unknown."""

    def __init__(self, text: str) -> None:
        self.size = len(text)
        self.data = (text if text.isascii() else SURROGATES.sub("\ufffd", text)).encode()
        self._text = text
        self._starts: list[int] = []

    def byte(self, character: int) -> int:
        if len(self.data) == self.size:
            return min(character, self.size)
        return self._table()[min(character, self.size)]

    def character(self, byte: int) -> int:
        return byte if len(self.data) == self.size else bisect_right(self._table(), byte) - 1

    def _table(self) -> list[int]:
        if not self._starts:
            widths = (1 if c < "\x80" else 2 if c < "\u0800" else 3 if c < "\U00010000" else 4 for c in self._text)
            self._starts = [0, *accumulate(widths)]
        return self._starts


def apart(found: Sequence[Match]) -> list[Match]:
    """These matches in order, without overlap: each cut to what those before it leave; the longest of a place first."""
    kept: list[Match] = []
    border = 0
    for match in sorted(found, key=lambda match: (match.start, -match.end)):
        if match.end > border:
            kept.append(match if match.start >= border else match._replace(start=border))
            border = match.end
    return kept


def _compiled(category: str, pattern: str, options: Any) -> Any:
    try:
        compiled = re2.compile(pattern.encode(), options)
    except (re2.error, UnicodeEncodeError) as error:
        reason = error.args[0] if isinstance(error, re2.error) else "not valid Unicode"
        if isinstance(reason, bytes):
            reason = reason.decode(errors="replace")
        names = [name for outside, name in _OUTSIDE_RE2 if outside.search(pattern)]
        hint = f" (RE2 has no {' and no '.join(names)})" if names else ""
        raise ValueError(f"{category}: pattern {pattern!r}: {reason}{hint}") from None
    if any(empty in (found.span() for found in compiled.finditer(text)) for text, empty in _EMPTY):
        raise ValueError(f"{category}: pattern {pattern!r}: matches where there is nothing")
    return compiled
