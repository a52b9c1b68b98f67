"""A JSON object whose top-level values stay the bytes that the client sent."""

import re
from collections.abc import Hashable
from functools import cache
from typing import Any, Final, TypeVar, cast

import msgspec

T = TypeVar("T")

MAX_FIELDS: Final = 1000
"""A request has some twenty fields; each costs a microsecond to find."""

_KEY = re.compile(rb'[ \t\n\r]*+("[^"\\]*+(?:\\.[^"\\]*+)*+")[ \t\n\r]*+:[ \t\n\r]*+')
_AFTER = re.compile(rb"[ \t\n\r]*+([,}])")
_TOP: Final[msgspec.json.Decoder[dict[str, msgspec.Raw]]] = msgspec.json.Decoder(dict[str, msgspec.Raw])


class InvalidJson(ValueError):  # noqa: N818 - what is wrong is all that its name should say
    """The body is not one JSON object of one meaning. ``message``, a phrase, may be shown to the client."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidField(ValueError):  # noqa: N818
    """The field ``name`` is missing or of the wrong type. ``message``, a sentence, may be shown to the client."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name
        self.message = message


class Document:
    """A JSON object of which single top-level fields can be read and changed.

    A change touches the bytes of its own field: the whitespace, the order of keys and the spelling of
    every other value stay. A field that is new comes last; one that is removed takes one comma with it.
    """

    __slots__ = ("_changes", "_fields", "_head", "_original", "_written")

    def __init__(self, body: bytes, head: int, fields: dict[str, tuple[int, int, int]]) -> None:
        self._original = body
        self._head = head
        self._fields = fields
        self._changes: dict[str, bytes | None] = {}
        self._written: bytes | None = body

    @classmethod
    def parse(cls, body: bytes) -> "Document":
        """Read the top level of ``body`` and check the whole of its syntax.

        Raises ``InvalidJson``. A name that comes twice, be it in another case, is refused too: we would
        read the one and the provider, perhaps, the other (Go's encoding/json ignores case).
        """
        try:
            if not body.isascii():
                body.decode()
            values = _TOP.decode(body)
        except msgspec.ValidationError as error:
            raise InvalidJson("it is not a JSON object") from error
        except msgspec.DecodeError as error:
            reason = str(error).removeprefix("JSON is malformed: ")
            raise InvalidJson(f"it is not valid JSON: {reason}") from error
        except UnicodeDecodeError as error:
            raise InvalidJson(f"it is not valid UTF-8 (byte {error.start})") from error
        except RecursionError as error:
            raise InvalidJson("it is nested too deeply") from error
        if len(values) > MAX_FIELDS:
            raise InvalidJson(f"it has more than {MAX_FIELDS} fields")
        head = body.index(b"{") + 1
        fields = _locate(body, head, values) if values else {}
        return cls(body, next(iter(fields.values()))[0] if fields else head, fields)

    def __contains__(self, name: str) -> bool:
        return self._changes[name] is not None if name in self._changes else name in self._fields

    def raw(self, name: str) -> bytes | None:
        """The bytes of the field's value, None where it is missing."""
        if name in self._changes:
            return self._changes[name]
        if name not in self._fields:
            return None
        _, start, end = self._fields[name]
        return self._original[start:end]

    def get(self, name: str, type_: type[T]) -> T | None:
        """The field's value, decoded strictly; None where it is missing or null.

        Raises ``InvalidField`` where it is of another type.
        """
        raw = self.raw(name)
        if raw is None or raw == b"null":
            return None
        try:
            return cast(T, _decoder(cast(Hashable, type_)).decode(raw))
        except (msgspec.MsgspecError, RecursionError) as error:
            raise InvalidField(name, f"Invalid value for '{name}': {error}.") from error

    def set(self, name: str, value: Any) -> None:
        """Give the field this value."""
        self.set_raw(name, msgspec.json.encode(value))

    def set_raw(self, name: str, raw: bytes) -> None:
        """Give the field this value, which must be valid JSON."""
        if self.raw(name) != raw:
            self._changes[name] = raw
            self._written = None

    def remove(self, name: str) -> None:
        """Take the field away, if it is there."""
        if name in self._fields:
            self._changes[name] = None
            self._written = None
        elif self._changes.pop(name, None) is not None:
            self._written = None

    @property
    def body(self) -> bytes:
        """The document as bytes; the client's own bytes object while nothing has been changed."""
        if self._written is None:
            self._written = self._write()
        return self._written

    def _write(self) -> bytes:
        original, changes = self._original, self._changes
        parts = [original[: self._head]]
        end_before = self._head
        empty = True
        for name, (key, start, end) in self._fields.items():
            changed = name in changes
            value = changes.get(name)
            if not changed or value is not None:
                parts.append(original[key if empty else end_before : start])
                parts.append(original[start:end] if value is None else value)
                empty = False
            end_before = end
        for name, value in changes.items():
            if name not in self._fields and value is not None:
                parts.append(b"" if empty else b",")
                parts.append(msgspec.json.encode(name) + b":" + value)
                empty = False
        parts.append(original[end_before:])
        return b"".join(parts)


def _locate(body: bytes, head: int, values: dict[str, msgspec.Raw]) -> dict[str, tuple[int, int, int]]:
    """For each field, where its key starts, where its value starts and where that ends.

    ``values`` holds the last of duplicate keys. A value at its expected place followed by a comma or
    brace is the whole value, so the walk is in step with the JSON from key to key or it has met a duplicate.
    """
    fields: dict[str, tuple[int, int, int]] = {}
    seen: set[str] = set()
    at = head
    while key := _KEY.match(body, at):
        token = key[1]
        name = msgspec.json.decode(token, type=str) if b"\\" in token else token[1:-1].decode()
        raw = bytes(values[name])
        start = key.end()
        end = start + len(raw)
        after = _AFTER.match(body, end) if body.startswith(raw, start) else None
        folded = name.casefold()
        if after is None or folded in seen:
            raise InvalidJson(f"it has the field '{name[:100]}' twice")
        seen.add(folded)
        fields[name] = (key.start(1), start, end)
        at = after.end()
        if after[1] == b"}":
            break
    return fields


@cache
def _decoder(type_: Hashable) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(type_)
