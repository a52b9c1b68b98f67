"""Masks in place of what must not be read further on, and the way back from them in the answer."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2s
from itertools import count, filterfalse
from json import dumps
from secrets import token_bytes
from typing import Final, Literal

from extproc.moderation.patterns import apart
from extproc.moderation.types import Match

Style = Literal["label", "stars", "hash"]
_NOT_WORD = re.compile(r"\W+")
_CONTEXT: Final = 6
"""Characters of what is already out that decide whether a mask may begin: an escape of JSON."""


class Vault:
    """The masks of one call and what they stand for. ``texts``: all of the request, so that no mask is already in it.

    ``style`` is how a mask looks that nobody restores: ``[PHONE]``, stars in the length of the original, or
    ``[PHONE:5ee0b1d2]``, the same for the same original under the same ``key`` (default: within the vault).
    """

    def __init__(self, texts: Iterable[str] = (), *, style: Style = "label", key: bytes | None = None) -> None:
        self._texts = tuple(texts)
        self._style = style
        self._key = token_bytes(16) if key is None else key
        self._names: dict[tuple[str, str], str] = {}
        self._numbers: dict[str, Iterator[int]] = {}
        self._originals: dict[str, str] = {}

    @property
    def originals(self) -> Mapping[str, str]:
        """What stands behind each mask that is to be restored, by its name: ``PHONE_1``."""
        return self._originals

    def mask(self, text: str, matches: Sequence[Match], restore: bool) -> str:
        """``text`` with a mask for each match; matches of several checks may overlap."""
        parts: list[str] = []
        done = 0
        for match in apart(matches):
            original = text[match.start : match.end]
            label = _NOT_WORD.sub("_", match.category).strip("_").upper() or "MASK"
            mask = self._restored(label, original) if restore else self._gone(label, original)
            parts += text[done : match.start], mask
            done = match.end
        parts.append(text[done:])
        return "".join(parts)

    def restorer(self, *, json: bool = False) -> "Restorer":
        """For one running text of the answer; ``json``: it is JSON, as the arguments of a tool call are."""
        return Restorer(self._originals, json=json)

    def _restored(self, label: str, original: str) -> str:
        name = self._names.get((label, original))
        if name is None:
            if label not in self._numbers:
                self._numbers[label] = filterfalse(self._numbers_in_use(label).__contains__, count(1))
            name = self._names[label, original] = f"{label}_{next(self._numbers[label])}"
            self._originals[name] = original
        return f"[{name}]"

    def _numbers_in_use(self, label: str) -> set[int]:
        seen = re.compile(rf"{re.escape(label)}\\*_0*(\d{{1,9}})(?!\d)", re.IGNORECASE)
        return {int(number) for text in self._texts for number in seen.findall(text)}

    def _gone(self, label: str, original: str) -> str:
        if self._style == "stars":
            return "*" * len(original)
        if self._style == "hash":
            data = original.encode(errors="surrogatepass")
            return f"[{label}:{blake2s(data, key=self._key[:32], digest_size=4).hexdigest()}]"
        return f"[{label}]"


class Restorer:
    r"""Puts the originals back into one text that arrives in pieces.

    A mask is recognised as models write it: ``[PHONE_1]``, ``[phone_1]``, ``【PHONE_1】``, ``\[PHONE\_1\]`` and
    ``PHONE_1`` by itself; in ``json`` with JSON's escapes too, and the original is escaped then. A number that is not
    known stays as it is. However the text was cut, the pieces given back make the same text.
    """

    def __init__(self, originals: Mapping[str, str], *, json: bool = False) -> None:
        self._originals = {
            name.upper(): dumps(value, ensure_ascii=False)[1:-1] if json else value for name, value in originals.items()
        }
        self._forms = _Forms(self._originals, json=json) if originals else None
        self._text = ""
        self._out = 0

    def feed(self, piece: str, *, final: bool) -> str:
        """What can be said of the text so far. Only an end that may still become a mask is kept back."""
        if self._forms is None:
            return piece
        text = self._text + piece
        border = len(text) if final else self._forms.border(text, self._out)
        parts: list[str] = []
        done = self._out
        for found in self._forms.whole.finditer(text, done):
            if found.start() >= border:
                break
            original = self._originals.get(self._forms.name(found))
            if original is not None:
                parts += text[done : found.start()], original
                done = found.end()
        parts.append(text[done:border])
        border = max(border, done)
        kept = max(border - _CONTEXT, 0)
        self._text, self._out = text[kept:], border - kept
        return "".join(parts)


class _Forms:
    """The forms that masks of some labels take: ``whole`` matches one, ``border`` tells where a text may be cut."""

    def __init__(self, names: Iterable[str], *, json: bool) -> None:
        digits: dict[str, int] = {}
        for name in names:
            label, _, number = name.rpartition("_")
            digits[label] = max(digits.get(label, 0), len(number))
        slashes = rf"\\{{0,{3 if json else 1}}}"
        openers, lines, closers = (
            (*plain, *escaped) if json else plain
            for plain, escaped in (
                (("[", "【"), (r"\u005b", r"\u3010")),
                (("_",), (r"\u005f",)),
                (("]", "】"), (r"\u005d", r"\u3011")),
            )
        )
        before, after = r"(?<![0-9A-Za-z_])", r"(?![0-9A-Za-z_])"
        if json:
            before = rf"(?:{before}|(?<=\\[bfnrt])|(?<=\\u[0-9A-Fa-f]{{4}}))"

        labels = "|".join(map(re.escape, sorted(digits, key=len, reverse=True)))
        number = rf"[0-9]{{1,{max(digits.values())}}}"
        line = rf"{slashes}(?i:{_any(lines)})"
        mask = rf"({labels}){line}({number})"
        opener, closer = _any(openers), _any(closers)
        plain = rf"(?i:(?:{opener}){mask}(?:{closer}))"
        escaped = rf"(?i:\\{slashes}(?:{opener}){mask}\\{slashes}(?:{closer}))"
        self.whole = re.compile(rf"{escaped}|{plain}|{before}{mask}{after}")

        closing = rf"\\?{slashes}{_beginnings(closers, '(?!)')}"
        numbered = rf"{slashes}(?i:%s)"
        bare, tail = (
            _beginnings(digits, numbered % _beginnings(lines, rf"[0-9]{{0,{max(digits.values())}}}(?:\Z|{ending})"))
            for ending in ("(?!)", closing)
        )
        self._partial = re.compile(rf"(?!\Z)(?:(?i:\\?{slashes}{_beginnings(openers, tail)})|{before}{bare})")
        self._longest = max(map(len, digits)) + max(digits.values()) + 3 * (5 + len(r"\u005b"))

    def border(self, text: str, start: int) -> int:
        """Where in ``text``, not before ``start``, its last characters begin that may still become a mask."""
        found = self._partial.search(text, max(start, len(text) - self._longest))
        return found.start() if found else len(text)

    def name(self, found: re.Match[str]) -> str:
        """``PHONE_1``, for a match of ``whole``."""
        return "_".join(filter(None, found.groups())).upper()


def _any(literals: Iterable[str]) -> str:
    return "|".join(map(re.escape, literals))


def _beginnings(literals: Iterable[str], rest: str) -> str:
    """A pattern of what is left of a text that may end anywhere in one of these, or after it in ``rest``."""
    several = []
    for literal in literals:
        pattern = rest
        for character in reversed(literal):
            pattern = rf"(?:\Z|{re.escape(character)}{pattern})"
        several.append(pattern)
    return f"(?:{'|'.join(several)})"
