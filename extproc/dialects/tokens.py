"""How many tokens a text has, roughly and fast, for when nobody reports it."""

import math
import string
from typing import Final

_LETTERS: Final = string.ascii_letters.encode()
_SPACE: Final = b" \t"
_CONTINUATION: Final = bytes(range(0x80, 0xC0))

# The classes of UTF-8's lead bytes (the continuation bytes are gone by then) and tokens per character.
_RATES: Final = (
    (bytes(range(0xE3, 0xEE)), 0.65),  # U+3000 to U+DFFF: Chinese, Japanese, Korean and their punctuation
    (string.digits.encode(), 0.5),
    (b"\r\n", 0.5),
    (bytes(range(0xC0, 0xE0)), 0.4),  # U+0080 to U+07FF: accented Latin, Greek, Cyrillic, Hebrew, Arabic
    (b"\xe0\xe1", 0.5),  # U+0800 to U+1FFF: the scripts of South and South East Asia
    (b"\xe2\xee\xef", 0.7),  # typographic punctuation, symbols, full-width forms
    (bytes(range(0xF0, 0xF8)), 2.0),  # emoji and rare ideographs
)
_LETTER_RATE: Final = 0.25
_INDENT_RATE: Final = 0.25  # per pair of spaces
_PUNCTUATION_RATE: Final = 0.7  # ASCII punctuation and control characters: what is left

_BATCH: Final = 8192


def estimate(text: str) -> int:
    """Tokens of ``text``, by the kind of its characters; a few milliseconds for a megabyte.

    The rates follow what providers publish for today's vocabularies of 100,000 to 200,000 entries:
    DeepSeek gives 0.6 tokens per Chinese and 0.3 per English character, Qwen 1.5 to 1.8 Chinese
    characters per token, OpenAI 4 English characters or 0.75 words per token. An English word of 4.7
    letters with its share of punctuation comes to 1.3 tokens here, its space being part of it. Digits
    stand alone (Qwen) or in groups of up to three (OpenAI, DeepSeek). Expect an error of 10 to 20 % on
    prose, more on text that is no language: base64 has more tokens than this says.
    """
    data = text.encode(errors="replace")
    rest = data.translate(None, _LETTERS)
    tokens = (len(data) - len(rest)) * _LETTER_RATE + data.count(b"  ") * _INDENT_RATE
    rest = rest.translate(None, _SPACE)
    if not rest.isascii():
        rest = rest.translate(None, _CONTINUATION)
    for members, rate in _RATES:
        if not rest:
            break
        size = len(rest)
        rest = rest.translate(None, members)
        tokens += (size - len(rest)) * rate
    return math.ceil(tokens + len(rest) * _PUNCTUATION_RATE)


class Meter:
    """Counts the tokens of a text that comes in pieces, smaller than a word perhaps."""

    __slots__ = ("_pieces", "_size", "_tokens")

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._size = 0
        self._tokens = 0

    def add(self, piece: str) -> None:
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > _BATCH:
            self._tokens = self.tokens
            self._pieces.clear()
            self._size = 0

    @property
    def tokens(self) -> int:
        """Tokens so far."""
        return self._tokens + estimate("".join(self._pieces))
