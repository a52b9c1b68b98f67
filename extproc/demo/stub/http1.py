"""Just enough HTTP/1.1 (RFC 9112) for a server that answers one request after the other."""

from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

MAX_HEAD = 64 * 1024
MAX_BODY = 64 * 1024 * 1024


class BadRequestError(Exception):
    """The bytes are no HTTP/1.1 request that we accept; the connection cannot go on."""


@dataclass(slots=True)
class Received:
    """One request: header names in lower case, repeated ones joined by ``", "``; ``json`` is None if it is none."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes = b""
    json: Any = None


@dataclass(slots=True)
class RequestParser:
    """Bytes in by ``feed``, whole requests out by ``next_request``; sans I/O."""

    _buffer: bytearray = field(default_factory=bytearray)
    _head: Received | None = None
    _body: bytearray = field(default_factory=bytearray)

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next_request(self) -> Received | None:
        """The next complete request, or None while more bytes are needed.

        Raises BadRequestError; nothing more may be asked for then.
        """
        if self._head is None:
            self._head = self._take_head()
        request = self._head
        if request is None:
            return None
        if "transfer-encoding" in request.headers:
            done = self._take_chunks()
        else:
            done = self._take(_number(request.headers.get("content-length", "0"), 10))
        if not done:
            return None
        request.body, self._body, self._head = bytes(self._body), bytearray(), None
        return request

    def _take_head(self) -> Received | None:
        end = self._buffer.find(b"\r\n\r\n", 0, MAX_HEAD)
        if end < 0:
            if len(self._buffer) >= MAX_HEAD:
                raise BadRequestError("The request's head is too long.")
            return None
        line, *fields = self._buffer[:end].decode("latin-1").split("\r\n")
        del self._buffer[: end + 4]
        method, _, rest = line.partition(" ")
        target, _, version = rest.partition(" ")
        if version != "HTTP/1.1" or not target:
            raise BadRequestError("The request line is not one of HTTP/1.1.")
        headers: dict[str, str] = {}
        for each in fields:
            name, colon, value = each.partition(":")
            if not colon or not name or name != name.strip():
                raise BadRequestError("A header line is malformed.")
            name, value = name.lower(), value.strip()
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        if headers.get("transfer-encoding", "chunked").lower() != "chunked":
            raise BadRequestError("The transfer encoding is not known.")
        path, _, query = target.partition("?")
        return Received(method, path, query, headers)

    def _take(self, size: int) -> bool:
        if size > MAX_BODY:
            raise BadRequestError("The request's body is too long.")
        if len(self._buffer) < size:
            return False
        self._body += self._buffer[:size]
        del self._buffer[:size]
        return True

    def _take_chunks(self) -> bool:
        """Move complete chunks from buffer to body; True once the last one and its trailers are through."""
        while (end := self._buffer.find(b"\r\n", 0, MAX_HEAD)) >= 0:
            size = _number(self._buffer[:end].partition(b";")[0].decode("latin-1").strip(), 16)
            if size == 0:
                stop = self._buffer.find(b"\r\n\r\n", end)
                if stop >= 0:
                    del self._buffer[: stop + 4]
                return stop >= 0
            if size + len(self._body) > MAX_BODY:
                raise BadRequestError("The request's body is too long.")
            start, after = end + 2, end + 2 + size
            if len(self._buffer) < after + 2:
                return False
            if self._buffer[after : after + 2] != b"\r\n":
                raise BadRequestError("A chunk does not end where it said.")
            self._body += self._buffer[start:after]
            del self._buffer[: after + 2]
        if len(self._buffer) >= MAX_HEAD:
            raise BadRequestError("A chunk's size line is too long.")
        return False


def _number(digits: str, base: int) -> int:
    try:
        number = int(digits, base) if digits.isalnum() else -1
    except ValueError:
        number = -1
    if number < 0:
        raise BadRequestError("A length is not a number.")
    return number


def head(status: int, headers: dict[str, str]) -> bytes:
    """Status line and headers of an answer."""
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Unknown"
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} {phrase}\r\n{lines}\r\n".encode("latin-1")


def chunk(data: bytes) -> bytes:
    """``data``, which must not be empty, as one chunk; the last chunk is ``LAST_CHUNK``."""
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"
