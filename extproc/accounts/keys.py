"""Keys that we issue: a prefix, 196 random bits and a checksum, all of which a double click selects."""

import hashlib
import secrets
import string
import zlib
from typing import Final

PREFIX: Final = "sk-"
_ALPHABET: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase
_RANDOM: Final = 33  # characters of log2(62) bits
_CHECK: Final = 6  # characters that hold a CRC-32
_HINT: Final = 4


def new_key(prefix: str = PREFIX) -> str:
    """A key that nobody has seen."""
    body = prefix + "".join(secrets.choice(_ALPHABET) for _ in range(_RANDOM))
    return body + _checksum(body)


def is_ours(key: str, prefix: str = PREFIX) -> bool:
    """Whether it may be a key that we made: of one mistyped, cut or made by others this is false."""
    body = key[:-_CHECK]
    return key.startswith(prefix) and len(body) == len(prefix) + _RANDOM and key[-_CHECK:] == _checksum(body)


def digest(key: str) -> bytes:
    """SHA-256: all that is kept of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def hint(key: str) -> str:
    """Its last characters, by which its holder knows it again."""
    return key[-_HINT:]


def _checksum(body: str) -> str:
    number = zlib.crc32(body.encode("utf-8", "surrogatepass"))
    characters = []
    for _ in range(_CHECK):
        number, place = divmod(number, len(_ALPHABET))
        characters.append(_ALPHABET[place])
    return "".join(reversed(characters))
