"""Records as lines of JSON in a file, which is put aside when it is large or old. Processes may share it."""

import fcntl
import os
import time
from collections.abc import Sequence
from pathlib import Path

from extproc.audit.record import Record, encode


class FileSink:
    """``keep``: how many files that were put aside stay, the newest ones. Sizes are bytes, ages seconds."""

    def __init__(self, path: Path, *, max_size: int = 64 << 20, max_age: float | None = None, keep: int = 10) -> None:
        self.name = f"file:{path.name}"
        self._path = path
        self._max_size = max_size
        self._max_age = max_age
        self._keep = keep

    def write(self, records: Sequence[Record]) -> None:
        """Raises OSError."""
        content = b"".join(encode(record) + b"\n" for record in records)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(self._path.with_name(f".{self._path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # The age of the lock is that of the file: nothing else says when a file began.
            if self._is_due(len(content), os.fstat(lock).st_mtime):
                self._rotate()
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                began = os.fstat(file).st_size
                if not began:
                    os.utime(lock)
                if os.write(file, content) != len(content):
                    os.ftruncate(file, began)  # a part of a line would spoil the next one
                    raise OSError(f"{self._path}: the disk is full")
            finally:
                os.close(file)
        finally:
            os.close(lock)

    def close(self) -> None:
        """Nothing is open between two writes."""

    def _is_due(self, more: int, began: float) -> bool:
        try:
            size = self._path.stat().st_size
        except FileNotFoundError:
            return False
        old = self._max_age is not None and time.time() - began >= self._max_age
        return bool(size) and (old or size + more > self._max_size)

    def _rotate(self) -> None:
        aside = self._path.with_name(f"{self._path.name}.{time.time_ns():019}")
        self._path.replace(aside)
        old = sorted(self._path.parent.glob(f"{self._path.name}.{'[0-9]' * 19}"))
        for path in old[: max(0, len(old) - self._keep)]:
            path.unlink(missing_ok=True)
