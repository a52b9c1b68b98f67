"""Records that outlive a killed process: appended to a file, which is written anew when most of it counts no more.

They are in the page cache when ``append`` returns: what a crash of the machine loses, nobody has promised.
"""

import contextlib
import errno
import fcntl
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

HEAD: Final = struct.Struct("<II")
"""Before each record: its length, and its CRC-32."""
_SPARE: Final = 4 << 20
_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_APPEND


class Journal:
    """A file of records that one process at a time has. ``spare``: bytes that it may grow to before it is rewritten."""

    def __init__(self, path: Path, *, spare: int = _SPARE) -> None:
        self.path = path
        self._spare = spare
        self._most = spare
        self._file = -1
        self._size = 0

    @property
    def is_grown(self) -> bool:
        """Time to ``rewrite`` it."""
        return self._size > self._most

    def open(self) -> list[bytes]:
        """Take the file, and read what is in it. Raises BlockingIOError while another process has it, and OSError."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while self._file < 0:
            # Until it is locked, whoever had it before may have put another file in its place.
            with contextlib.suppress(FileNotFoundError):
                self._file = lock(self.path, _FLAGS)
        found = list(records(self.path.read_bytes()))
        self._size = sum(HEAD.size + len(record) for record in found)
        os.ftruncate(self._file, self._size)
        return found

    def append(self, record: bytes) -> None:
        """Raises OSError, and then the file is as it was."""
        content = framed(record)
        if os.write(self._file, content) != len(content):
            os.ftruncate(self._file, self._size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        self._size += len(content)

    def rewrite(self, kept: Iterable[bytes]) -> None:
        """Keep these alone. Raises OSError, and then the file is as it was, and may grow twice as far."""
        self._most = 2 * max(self._size, self._spare)
        content = b"".join(map(framed, kept))
        new = self.path.with_name(f"{self.path.name}.new")
        try:
            file = lock(new, _FLAGS | os.O_TRUNC)
            try:
                new.write_bytes(content)
                new.replace(self.path)
            except OSError:
                os.close(file)
                raise
        except OSError:
            new.unlink(missing_ok=True)
            raise
        os.close(self._file)
        self._file, self._size = file, len(content)
        self._most = max(self._spare, 2 * self._size)

    def close(self, *, remove: bool) -> None:
        """Leave the file to others, or remove it."""
        if self._file < 0:
            return
        if remove:
            self.path.unlink(missing_ok=True)
        os.close(self._file)
        self._file = -1


def framed(record: bytes) -> bytes:
    return HEAD.pack(len(record), zlib.crc32(record)) + record


def records(content: bytes) -> Iterator[bytes]:
    """Those that are whole, up to the first that is not: it was being written when its process ended."""
    at = 0
    while at + HEAD.size <= len(content):
        length, checksum = HEAD.unpack_from(content, at)
        record = content[at + HEAD.size : at + HEAD.size + length]
        if not record or len(record) != length or zlib.crc32(record) != checksum:
            return
        yield record
        at += HEAD.size + length


def lock(path: Path, flags: int) -> int:
    """Raises BlockingIOError where another holds it, FileNotFoundError where it is no longer the file of that name."""
    file = os.open(path, flags, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(file), path.stat()):
            raise FileNotFoundError(path)
    except OSError:
        os.close(file)
        raise
    return file
