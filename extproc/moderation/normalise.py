"""Texts as a reader sees them: folded, so that disguises of a letter are that letter, and mapped back to the original.

Three steps, each on the result of the one before: ``normalise`` undoes Unicode's disguises, ``squeeze`` takes what
stands between letters away and reads digits and symbols as letters (leetspeak), ``collapse`` takes repetitions away.
The first two look at one character at a time, so that a piece of a text folds like the same piece of the whole.
"""

import operator
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, compress, repeat
from typing import Final

SEPARATOR: Final = "\0"
_RUN: Final = re.compile(r"([a-z])\1+")

_LOOKALIKES: Final = (
    # Cyrillic, capitals before small ones since some differ in shape
    ("АВЕЁЅІЇЈКМНОРСТУҮХԚԜҺԌӀ", "abeesiijkmhopctyyxqwhgl"),
    ("авеёѕіїјкмнорстуүхԛԝһԍӏгпԁѵ", "abeesiijkmhopctyyxqwhglrndv"),
    # Greek
    ("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧϹϳ", "abezhikmnoptyxcj"),
    ("αβεικνορτυχωγηϲσ", "abeikvoptuxwynco"),
    # Latin letters that Unicode does not decompose, small capitals, turned letters
    ("ıłøđħŧɑɡɩɪʟǝəɛɔɐɹʀʙɢʜɴʏꜰꜱᴀᴄᴅᴇᴊᴋᴍᴏᴘᴛᴜᴠᴡᴢɓƈɗƙƥƭʋɠŀƒ", "ilodhtagiileeecarrbghnyfsacdejkmoptuvwzbcdkptvglf"),
    # Armenian, Cherokee, Lisu
    ("օոսհցԁքՕՏ", "onuhgdpos"),
    ("ᎪᏴᏟᎠᎬᎻᎥᎫᏦᏞᎷᏢᎡᏚᎢᏙᎳᏃ", "abcdehijklmprstvwz"),
    ("ꓮꓐꓚꓓꓰꓝꓖꓧꓲꓙꓗꓡꓟꓠꓳꓑꓣꓢꓔꓴꓦꓪꓫꓬꓜ", "abcdefghijklmnopqrstuvwxyz".replace("q", "")),
)
_ALPHABET: Final = "abcdefghijklmnopqrstuvwxyz"
_SERIES: Final = (0x1F150, 0x1F170, 0x1F1E6)
"""Letters A to Z in black circles, in black squares, and as halves of flags."""

_HOMOGLYPHS: Final[Mapping[str, str]] = {
    **{glyph: letter for glyphs, letters in _LOOKALIKES for glyph, letter in zip(glyphs, letters, strict=True)},
    **{chr(first + n): letter for first in _SERIES for n, letter in enumerate(_ALPHABET)},
    **{chr(0x249C + n): letter for n, letter in enumerate(_ALPHABET)},  # ⒜ would decompose into three characters
}
_UNSEEN: Final = frozenset({"\u115f", "\u1160", "\u2065", "\u3164", "\uffa0", *map(chr, range(0xFFF0, 0xFFF9))})

LEET: Final[Mapping[str, str]] = {
    "0": "o", "1": "il", "2": "z", "3": "e", "4": "a", "5": "s", "6": "g", "7": "t", "8": "b", "9": "g",
    "@": "a", "$": "s", "!": "il", "|": "il", "+": "t",
}  # fmt: skip
"""What a digit or symbol may stand for."""


class _Folds(dict[int, str]):
    """Folds of characters, made when first met; for str.translate."""

    def __missing__(self, code: int) -> str:
        self[code] = folded = _fold(chr(code))
        return folded


class _Letters(dict[int, str]):
    """Letters as they are, separators as SEPARATOR, and the given ones as they are read; for str.translate."""

    def __missing__(self, code: int) -> str:
        self[code] = kept = chr(code) if chr(code).isalnum() else SEPARATOR
        return kept


def _fold(char: str) -> str:
    if letter := _HOMOGLYPHS.get(char):
        return letter
    if "\ud800" <= char <= "\udfff":
        return "\ufffd"  # half of a pair: not text to any library
    parts = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", char).casefold())
    return unicodedata.normalize("NFC", "".join(_HOMOGLYPHS.get(part, part) for part in parts if not unseen(part)))


def unseen(char: str) -> bool:
    """Whether it takes no room of its own: formats (zero-width, tags), fillers, variation selectors, marks."""
    return char in _UNSEEN or unicodedata.category(char) in {"Cf", "Mn", "Me"}


def _readings(*symbols: str, also: Mapping[str, str] = {}) -> _Letters:
    return _Letters({ord(c): LEET[c][0] for c in (*"0123456789", *symbols)} | {ord(c): to for c, to in also.items()})


_FOLDS: Final = _Folds()
DIGITS: Final = _readings()
"""Digits are read as letters, symbols separate."""
SYMBOLS: Final = _readings("@", "$")
"""``@`` and ``$`` are read as letters too."""
ALIKE: Final = _readings("@", "$", "!", "|", "+", also={"l": "i"})
"""All of LEET is read as letters, and ``i``, ``l`` and what may be either are the same."""


@dataclass(frozen=True, slots=True)
class Normal:
    """A folded text, and for each of its characters the index of the original character that it comes from."""

    text: str
    offsets: Sequence[int]

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Where the folded characters ``start`` to just before ``end`` (at least one) stand in the original."""
        return self.offsets[start], self.offsets[end - 1] + 1


def normalise(text: str) -> Normal:
    """Compatibility forms, case, marks, invisible characters and lookalikes folded."""
    if text.isascii():
        return Normal(text.lower(), range(len(text)))
    folded = text.translate(_FOLDS)
    if all(len(_FOLDS[ord(char)]) == 1 for char in set(text)):
        return Normal(folded, range(len(text)))
    widths = [len(_FOLDS[code]) for code in map(ord, text)]
    return Normal(folded, list(chain.from_iterable(map(repeat, range(len(text)), widths))))


def squeeze(text: str, readings: Mapping[int, str]) -> str:
    """The letters of a folded text alone, without what separates them."""
    return text.translate(readings).replace(SEPARATOR, "")


def collapse(squeezed: str) -> str:
    """Each run of the same letter, a to z, as one."""
    if squeezed.isascii():
        return "".join(compress(squeezed, map(operator.ne, squeezed, SEPARATOR + squeezed)))
    return _RUN.sub(r"\1", squeezed)


def places(text: str, readings: Mapping[int, str], *, collapsed: bool) -> list[int]:
    """Where each character of the squeezed (and collapsed) text stands in the folded one; a run where it begins."""
    marked = text.translate(readings)
    kept = list(compress(range(len(text)), map(SEPARATOR.__ne__, marked)))
    if not collapsed:
        return kept
    first = bytearray(b"\1") * len(kept)
    for run in _RUN.finditer(marked.replace(SEPARATOR, "")):
        first[run.start() + 1 : run.end()] = bytes(run.end() - run.start() - 1)
    return list(compress(kept, first))
