"""Listed words, found however they are disguised, and not found in words that merely contain them."""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Final, NamedTuple, Self

from ahocorasick_rs import AhoCorasick

from extproc.moderation.normalise import (
    ALIKE,
    DIGITS,
    LEET,
    SEPARATOR,
    SYMBOLS,
    Normal,
    collapse,
    normalise,
    places,
    squeeze,
)
from extproc.moderation.types import Match

_SLACK: Final = 16
"""Characters that a match may span beyond four times the longest word."""
_GAP: Final = 6
"""Characters that may separate two letters of a word."""
_TAIL: Final = 8
"""Digits that may be appended to a word: ``casino88``."""
_UNSPACED: Final = "\u2e80"
"""From here on scripts (Chinese, Japanese, Korean) write words without spaces between them."""
_SYMBOL: Final = re.compile(r"[@$][a-z0-9]")
"""Where a symbol may be a letter."""
_AMBIGUOUS: Final = re.compile(r"[1!|+][a-z0-9@$]|[a-z]1")
"""Where a digit or symbol may be one of several letters, or a separator."""
_PROSE: Final = re.compile(r"[\n\r,。!?;:、\"“”‘’'()《》〈〉「」『』【】〔〕\[\]{}<>—]|\.\.\.|\.\s")
"""Separators that stand between the words of Chinese sentences anyway."""
_SPELT_ON: Final = re.compile(r"[^a-z0-9]{1,3}(?:[b-hj-tv-z0-9]|[aiu][^a-z0-9]{1,3}[a-z0-9])(?![a-z0-9])")
"""Beside letters that stand apart: another one, so that they are a part of a word, unless it is a word itself."""
_BESIDE: Final = 9
"""Characters beside a match that decide about it."""
_CODE: Final = re.compile(r"[\s,;:!?\"'()\[\]{}<>/\\@=&]")
"""Separators that stand between the words of English sentences, addresses and programs anyway."""


class _Word(NamedTuple):
    said: str
    category: str
    folded: str


class _Reading(NamedTuple):
    """Letters of a word as they stand in a text: ``gaps`` between them (not between the words of a phrase)."""

    end: int
    gaps: Sequence[str]
    true: int
    repeated: int


class Lexicon:
    """A check for words by category. Scripts that space their words are matched at the borders of words only.

    A match inside a phrase of ``allow`` does not count. Where matches overlap, the later one is cut short; one inside
    another is dropped. Raises ValueError for a word without a visible character. The search for candidates releases
    the interpreter lock.
    """

    def __init__(self, groups: Mapping[str, Sequence[str]], allow: Sequence[str] = (), *, score: float = 1.0) -> None:
        self._score = score
        allowed = dict.fromkeys(_folded(phrase) for phrase in allow)
        words = {
            word.folded: word
            for word in reversed(
                [_Word(said, category, _folded(said)) for category in groups for said in groups[category]]
            )
        }
        self._words = [word for word in reversed(words.values()) if word.folded not in allowed]
        self._plain = AhoCorasick([*(word.folded for word in self._words), *allowed])
        self._collapsed = _Disguised(self._words, lambda folded: collapse(squeeze(folded, DIGITS)))
        self._alike = _Disguised(self._words, lambda folded: squeeze(folded, ALIKE))
        longest = max(map(len, (*words, *allowed)), default=0)
        self._span = 4 * longest + _SLACK if longest else 0

    @classmethod
    def from_files(
        cls,
        *paths: Path | str,
        groups: Mapping[str, Sequence[str]] = {},
        allow: Sequence[str] = (),
        category: str = "lexicon",
        score: float = 1.0,
    ) -> Self:
        """Words of UTF-8 files, one a line, besides the given ones.

        ``[name]`` begins a category, ``[allow]`` the phrases to allow, ``#`` a comment; ``category`` is for words
        before any heading. Raises OSError, and ValueError for a file that is not UTF-8.
        """
        lists: dict[str, list[str]] = {name: list(words) for name, words in groups.items()}
        allowed = list(allow)
        for path in paths:
            for heading, word in _read(Path(path), category):
                (allowed if heading == "allow" else lists.setdefault(heading, [])).append(word)
        return cls(lists, allowed, score=score)

    @property
    def reach(self) -> int:
        """Twice what a match may span, so that all that decides about it is seen."""
        return 2 * self._span

    def find(self, text: str) -> Sequence[Match]:
        normal = normalise(text)
        found: list[tuple[int, int, int]] = []
        allowed: list[tuple[int, int]] = []
        for index, start, end in self._plain.find_matches_as_indexes(normal.text, overlapping=True):
            if index >= len(self._words):
                allowed.append(normal.span(start, end))
            elif self._stands(normal, start, end):
                found.append((*normal.span(start, end), index))
        found += self._find_disguised(normal)
        return self._settle(found, allowed)

    def _find_disguised(self, normal: Normal) -> Iterator[tuple[int, int, int]]:
        views = [(DIGITS, self._collapsed)]
        if ("@" in normal.text or "$" in normal.text) and _SYMBOL.search(normal.text):
            views.append((SYMBOLS, self._collapsed))
        if any(char in normal.text for char in "1!|+") and _AMBIGUOUS.search(normal.text):
            views.append((ALIKE, self._alike))
        for readings, words in views:
            squeezed = squeeze(normal.text, readings)
            collapsed = words is self._collapsed
            candidates = words.search(collapse(squeezed) if collapsed else squeezed)
            if not candidates:
                continue
            at = [*places(normal.text, readings, collapsed=collapsed), len(normal.text)]
            for index, first in candidates:
                for start in _starts(normal.text, at[first], at[first + 1]):
                    if (end := self._reads(normal, readings, start, self._words[index].folded)) is not None:
                        yield (*normal.span(start, end), index)
                        break

    def _reads(self, normal: Normal, readings: Mapping[int, str], start: int, word: str) -> int | None:
        """The end of the word that begins here in a disguise that nobody writes by chance."""
        if word[0] < _UNSPACED and _joins(self._neighbour(normal, start, -1)):
            return None
        reading = _read_letters(normal.text[start : start + self._span], word, readings)
        if reading is None:
            return None
        end = start + reading.end
        if word[-1] < _UNSPACED and _joins(self._neighbour(normal, end - 1, 1)):
            return None
        before, after = self._around(normal, start, end)
        plausible = _is_spelt if word.isascii() or max(word) < _UNSPACED else _is_split
        return end if plausible(reading, before, after) else None

    def _around(self, normal: Normal, start: int, end: int) -> tuple[str, str]:
        """Some characters before, the nearest first, and after."""
        before = "".join(self._neighbour(normal, start, -step) for step in range(1, _BESIDE + 1))
        return before, "".join(self._neighbour(normal, end - 1, step) for step in range(1, _BESIDE + 1))

    def _neighbour(self, normal: Normal, at: int, step: int) -> str:
        """The folded character so many places away; nothing where the original is too far away to be seen."""
        there = at + step
        if not 0 <= there < len(normal.text) or abs(normal.offsets[there] - normal.offsets[at]) >= self._span // 2:
            return ""
        return normal.text[there]

    def _stands(self, normal: Normal, start: int, end: int) -> bool:
        """Whether no letter joins the word that is written here; digits may, where nothing else is joined to them."""
        text = normal.text
        return (
            text[start] >= _UNSPACED or not text[start].isalnum() or self._ends(normal, start, -1, end - start)
        ) and (text[end - 1] >= _UNSPACED or not text[end - 1].isalnum() or self._ends(normal, end - 1, 1, end - start))

    def _ends(self, normal: Normal, at: int, step: int, size: int) -> bool:
        char = self._neighbour(normal, at, step)
        if size >= 4 and normal.text[at].isalpha():
            for further in range(2, _TAIL + 2):
                if not (char.isascii() and char.isdigit()):
                    break
                char = self._neighbour(normal, at, step * further)
        return not _joins(char)

    def _settle(self, found: list[tuple[int, int, int]], allowed: list[tuple[int, int]]) -> list[Match]:
        allowed.sort()
        starts = [start for start, _ in allowed]
        ends = list(accumulate((end for _, end in allowed), max))
        matches: list[Match] = []
        done = 0
        for start, end, index in sorted(found, key=lambda it: (it[0], -it[1], it[2])):
            before = bisect_right(starts, start)
            if end <= done or end - start > self._span or (before and ends[before - 1] >= end):
                continue
            word = self._words[index]
            matches.append(Match(max(start, done), end, word.category, self._score, word.said))
            done = end
        return matches


class _Disguised:
    """An automaton over words in a reduced form that several of them may share."""

    def __init__(self, words: Sequence[_Word], reduce: Callable[[str], str]) -> None:
        self._indexes: dict[str, list[int]] = {}
        for index, word in enumerate(words):
            # Two letters are too few to be recognised apart from each other, two Chinese characters are not.
            if not word.folded.isdigit() and len(word.folded) > (2 if word.folded.isascii() else 1):
                form = reduce(word.folded)
                if len(form) > 1:
                    self._indexes.setdefault(form, []).append(index)
        self._forms = list(self._indexes.values())
        self._automaton = AhoCorasick(self._indexes)

    def search(self, text: str) -> list[tuple[int, int]]:
        """Words that may be there, and where: (index of the word, index of the first character)."""
        hits = self._automaton.find_matches_as_indexes(text, overlapping=True)
        return [(index, start) for form, start, _ in hits for index in self._forms[form]]


def _folded(said: str) -> str:
    folded = normalise(said).text.strip()
    if not folded:
        raise ValueError(f"{said!r} has no visible character")
    return folded


def _read(path: Path, category: str) -> Iterable[tuple[str, str]]:
    """Category and word of each line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from error
    for line in lines:
        said = line.partition("#")[0].strip() if line.lstrip().startswith("#") or " #" in line else line.strip()
        if said.startswith("[") and said.endswith("]"):
            category = said[1:-1].strip()
        elif said:
            yield category, said


def _joins(char: str) -> bool:
    """Whether this neighbour makes a longer word."""
    return char.isalnum() and char < _UNSPACED


def _starts(text: str, first: int, following: int) -> Iterator[int]:
    """Where a word may begin whose first letter is repeated from ``first`` to just before ``following``."""
    yield first
    for at in range(following - 1, first, -1):
        if text[at] == text[first] and text[at - 1] != text[first]:
            yield at
            return


def _read_letters(text: str, word: str, readings: Mapping[int, str]) -> _Reading | None:
    """Reads the word at the start of the text, letters repeated at will; None where another letter comes first."""
    letters, breaks = _spelling(word)
    gaps: list[str] = []
    taken = repeated = true = end = 0
    for at, char in enumerate(text):
        if readings[ord(char)] == SEPARATOR:
            if taken == len(letters):
                break
            continue
        if taken < len(letters) and _fits(char, letters[taken]):
            if taken and taken not in breaks:
                gaps.append(text[end:at])
            taken += 1
        elif taken and _fits(char, letters[taken - 1]):
            if at > end:
                gaps.append(text[end:at])
            repeated += 1
        elif taken == len(letters):
            break
        else:
            return None
        true += char.isalpha()
        end = at + 1
    return _Reading(end, gaps, true, repeated) if taken == len(letters) else None


def _spelling(word: str) -> tuple[str, set[int]]:
    """The letters of a folded phrase, and which of them begin another of its words."""
    letters = [char for char in word if char.isalnum()]
    breaks: set[int] = set()
    count = 0
    for char in word:
        if char.isalnum():
            count += 1
        else:
            breaks.add(count)
    return "".join(letters), breaks


def _fits(char: str, letter: str) -> bool:
    return char == letter or letter in LEET.get(char, "")


def _is_spelt(reading: _Reading, before: str, after: str) -> bool:
    """For scripts with spaces: most letters apart from each other, or one symbol within what is one word."""
    gaps = reading.gaps
    size = len(gaps) + 1
    if reading.true < (size / 2 if size < 4 else 1) or any(len(gap) > _GAP for gap in gaps):
        return False
    apart = sum(map(bool, gaps))
    if not apart:
        return size >= 6 or reading.repeated != 1
    if _SPELT_ON.match(before) or _SPELT_ON.match(after):
        return False
    if apart >= 0.6 * len(gaps) or (size >= 5 and all(one or other for one, other in pairwise(gaps))):
        return True
    symbols = {gap for gap in gaps if gap}
    return (
        size >= 5
        and len(symbols) == 1
        and not any(_CODE.search(symbol) for symbol in symbols)
        and (apart > 1 or symbols != {"."})
        and not _goes_on(before)
        and not _goes_on(after)
    )


def _goes_on(beside: str) -> bool:
    """Whether a symbol joins something else to the word: ``list_of-``."""
    return len(beside) > 1 and not beside[0].isalnum() and not beside[0].isspace() and _joins(beside[1])


def _is_split(reading: _Reading, before: str, after: str) -> bool:
    """For scripts without spaces: whatever is not the punctuation of a sentence, or all characters alone."""
    gaps = [gap for gap in reading.gaps if gap]
    if any(len(gap) > _GAP for gap in gaps):
        return False
    if not any(_PROSE.search(gap) for gap in gaps):
        return True
    if len(gaps) < len(reading.gaps):
        return False
    return len(gaps) > 1 or not (before[:1].isalnum() or after[:1].isalnum())
