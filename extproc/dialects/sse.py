"""Server-sent events, cut at their borders and nowhere else.

The line rules are those of https://html.spec.whatwg.org/multipage/server-sent-events.html: a line ends in
LF, CR or CRLF, an empty line ends an event, one leading byte order mark is ignored.
"""

import re
from dataclasses import dataclass, field
from typing import Any, Final

MAX_EVENT: Final = 1 << 20

_BOM: Final = b"\xef\xbb\xbf"
_CR: Final = 0x0D
_LINE_ENDS: Final = b"\r\n"
_END = re.compile(rb"[\r\n](?:\r\n?|(?<=\n)\n)")
"""The last byte of a line's end and the whole of the next one. ``\\r\\n`` alone does not match: it is one end."""
_LONGEST_END: Final = 3


@dataclass(slots=True)
class Event:
    """One event as it passed.

    ``raw`` is every byte of it, its terminating blank line included; ``data`` its data lines joined by
    LF, or None where it has none (a comment, a keep-alive, a bare blank line); ``type`` its ``event:``
    field. ``oversize`` marks a piece of an event too big to be read, which has neither. ``chunk`` is
    what the dialect's reader made of the data, so that it is parsed once.
    """

    raw: bytes
    data: bytes | None = None
    type: str = ""
    oversize: bool = False
    chunk: Any = field(default=None, repr=False, compare=False)


class Splitter:
    """Cuts a byte stream into events.

    The raws of all events together are the bytes that were fed, and the events are the same however the
    stream was chunked. An event of more than ``max_event`` bytes passes in pieces of that size. An event
    that ends in a lone CR is known to be complete only at the byte after it, which could be its LF.
    """

    def __init__(self, max_event: int = MAX_EVENT) -> None:
        self._max_event = max_event
        self._buffer = bytearray()
        self._searched = 0
        self._has_cr = False
        self._at_start = True
        self._oversize = False

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that ``chunk`` completes."""
        if not self._has_cr and b"\r" in chunk:
            self._has_cr = True
        if self._buffer:
            self._buffer += chunk
            events, done = self._split(self._buffer)
            del self._buffer[:done]
        else:
            events, done = self._split(chunk)
            self._buffer += chunk[done:]
        return events

    def finish(self) -> list[Event]:
        """What is left when the stream ends: an event that lacks its blank line, in pieces where it is too big."""
        rest, self._buffer = bytes(self._buffer), bytearray()
        events: list[Event] = []
        while rest:
            end = self._end(rest, 0)
            if end is None and len(rest) > self._max_event:
                end = self._max_event
                events.append(self._piece(rest[:end], ends=False))
            else:
                end = end or len(rest)
                events.append(self._event(rest[:end]))
            rest = rest[end:]
        return events

    def _split(self, source: bytes | bytearray) -> tuple[list[Event], int]:
        """The complete events at the head of ``source``, and where they end."""
        events: list[Event] = []
        start, size, limit = 0, len(source), self._max_event
        while start < size:
            end = self._end(source, start)
            if end is not None and not (end == size and source[end - 1] == _CR):
                events.append(self._event(bytes(source[start:end])))
                start = end
            elif end is None and size - start >= limit + _LONGEST_END:
                events.append(self._piece(bytes(source[start : start + limit]), ends=False))
                start += limit
            else:
                break
        return events, start

    def _end(self, source: bytes | bytearray, start: int) -> int | None:
        """Where the event (or the last piece of one) that starts at ``start`` ends.

        None where its blank line is not there yet, or begins ``max_event`` bytes further or later.
        """
        first = source[start]
        if not self._oversize and first in _LINE_ENDS:
            return start + 2 if source.startswith(b"\r\n", start) else start + 1
        begin = start + self._searched
        border = start + self._max_event
        if self._has_cr:
            found = _END.search(source, begin, border + _LONGEST_END - 1)
            at, end = found.span() if found else (-1, -1)
        else:
            at = source.find(b"\n\n", begin, border + 1)
            end = at + 2
        if 0 <= at < border:
            self._searched = at - start
            return end
        self._searched = max(min(len(source), border) - start - _LONGEST_END, 0)
        return None

    def _event(self, raw: bytes) -> Event:
        self._searched = 0
        if self._oversize:
            return self._piece(raw, ends=True)
        if self._at_start:
            self._at_start = False
            return _parse(raw, raw.removeprefix(_BOM))
        if not self._has_cr and raw.startswith(b"data:") and raw.find(b"\n", 0, -2) < 0 and raw.endswith(b"\n\n"):
            return Event(raw, raw[6:-2] if raw[5] == 0x20 else raw[5:-2])
        return _parse(raw, raw)

    def _piece(self, raw: bytes, *, ends: bool) -> Event:
        self._searched = 0
        self._at_start = False
        self._oversize = not ends
        return Event(raw, oversize=True)


def _parse(raw: bytes, text: bytes) -> Event:
    """The event that ``text`` spells; ``raw`` may hold a byte order mark before it."""
    data: list[bytes] = []
    kind = b""
    for line in _lines(text):
        name, _, value = line.partition(b":")
        if name == b"data":
            data.append(value.removeprefix(b" "))
        elif name == b"event":
            kind = value.removeprefix(b" ")
    return Event(raw, b"\n".join(data) if data else None, kind.decode(errors="replace"))


def encode(data: bytes, type: str = "") -> bytes:  # noqa: A002 - the field's own meaning; "event" would be the whole
    """An event with these data lines, ready to send."""
    head = f"event: {type}\n".encode() if type else b""
    return head + b"".join(b"data: %b\n" % line for line in _lines(data)) + b"\n"


def replace_data(raw: bytes, data: bytes) -> bytes:
    """The event ``raw`` with these data lines in place of its own; its other fields and comments stay."""
    lines = [line for line in _lines(raw.removeprefix(_BOM)) if line and line.partition(b":")[0] != b"data"]
    return b"".join(b"%b\n" % line for line in lines) + encode(data)


def _lines(text: bytes) -> list[bytes]:
    if b"\r" in text:
        text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return text.split(b"\n")
