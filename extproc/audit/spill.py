"""Records on their way to the database, in files: a killed process and a database that is away lose none.

A directory may be shared by processes. Each appends to segments of its own, which it holds locked; segments that
nobody holds were left by a process that died, and whoever finds them takes them over. What is in the page cache when
``append`` returns outlives the process, not a crash of the machine.
"""

import contextlib
import errno
import os
import secrets
import struct
from collections import deque
from pathlib import Path
from typing import Final

from extproc.stores.journal import HEAD, framed, lock, records

SEGMENT: Final = 8 << 20
LIMIT: Final = 1 << 30
_BATCH: Final = 1 << 20
_NEW: Final = os.O_RDWR | os.O_CREAT
_MARK: Final = struct.Struct("<Q")


class SpillFull(Exception):  # noqa: N818
    """The files have the size that they may have."""


class _Segment:
    """A file that this process has locked: how far it is done with, then framed records."""

    def __init__(self, path: Path, file: int) -> None:
        self.path = path
        self._file = file
        self.size = max(os.fstat(file).st_size, _MARK.size)
        marked = os.pread(file, _MARK.size, 0)
        self.at = min(_MARK.unpack(marked)[0] if len(marked) == _MARK.size else 0, self.size) or _MARK.size

    def append(self, content: bytes) -> None:
        """Raises OSError, and then the file is as it was."""
        if os.pwrite(self._file, content, self.size) != len(content):
            os.ftruncate(self._file, self.size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        self.size += len(content)

    def read(self) -> tuple[list[bytes], int]:
        """The next records, and where they end. None of them where the rest of the file cannot be read."""
        content = os.pread(self._file, min(_BATCH, self.size - self.at), self.at)
        if len(content) >= HEAD.size:
            length, _ = HEAD.unpack_from(content)
            if HEAD.size + length > len(content):
                content = os.pread(self._file, min(HEAD.size + length, self.size - self.at), self.at)
        found = list(records(content))
        return found, self.at + sum(HEAD.size + len(each) for each in found)

    def done(self, at: int) -> None:
        """What stands before ``at`` is not needed any more; where that is all, the file is emptied."""
        self.at = at
        if at == self.size:
            os.ftruncate(self._file, _MARK.size)
            self.at = self.size = _MARK.size
        os.pwrite(self._file, _MARK.pack(self.at), 0)

    def close(self, *, remove: bool) -> None:
        if remove:
            self.path.unlink(missing_ok=True)
        os.close(self._file)


class Spill:
    """A queue of records in files of ``directory``, at most ``limit`` bytes. For one thread."""

    def __init__(self, directory: Path, *, limit: int = LIMIT, segment: int = SEGMENT) -> None:
        self._directory = directory
        self._limit = limit
        self._most = segment
        self._segments: deque[_Segment] = deque()
        self._current: _Segment | None = None
        self._read_to = 0
        self.lost = 0
        """Bytes of segments that could not be read."""

    @property
    def waiting(self) -> int:
        """Bytes that are not done."""
        return sum(segment.size - segment.at for segment in self._segments)

    def append(self, record: bytes) -> None:
        """Raises SpillFull and OSError."""
        content = framed(record)
        if self.waiting + len(content) > self._limit:
            raise SpillFull(str(self._directory))
        if self._current is None or self._current.size >= self._most:
            self._current = self._begin()
        self._current.append(content)

    def read(self) -> list[bytes]:
        """The oldest records that are not done, a megabyte of them; they stay until they are ``done``."""
        while self._segments:
            segment = self._segments[0]
            if segment.at < segment.size:
                found, self._read_to = segment.read()
                if found:
                    return found
                # The last of it was being written when its process ended.
                self.lost += segment.size - segment.at
            elif segment is self._current:
                return []
            self._drop(segment)
        return []

    def done(self) -> None:
        """What was read last is kept elsewhere. Nothing else was ``read`` or adopted since. Raises OSError."""
        segment = self._segments[0]
        segment.done(self._read_to)
        if segment.at == segment.size and segment is not self._current:
            self._drop(segment)

    def adopt(self) -> int:
        """Take over what dead processes left. How many segments that were. Raises OSError."""
        found = 0
        ours = {segment.path for segment in self._segments}
        for path in sorted(self._directory.glob("*.audit")):
            if path in ours:
                continue
            with contextlib.suppress(BlockingIOError, FileNotFoundError):
                self._segments.appendleft(_Segment(path, lock(path, os.O_RDWR)))
                found += 1
        return found

    def close(self) -> None:
        """Leave what is not done to the next process."""
        for segment in self._segments:
            segment.close(remove=segment.at == segment.size)
        self._segments.clear()
        self._current = None

    def _begin(self) -> _Segment:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._directory / f"{secrets.token_hex(8)}.audit"
        segment = _Segment(path, lock(path, _NEW))
        self._segments.append(segment)
        return segment

    def _drop(self, segment: _Segment) -> None:
        self._segments.popleft()
        if segment is self._current:
            self._current = None
        segment.close(remove=True)
