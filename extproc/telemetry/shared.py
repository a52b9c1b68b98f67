"""A directory in which processes share their metrics; prometheus_client looks for it when it is imported."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_PREFIX: Final = "extproc-metrics-"


@contextlib.contextmanager
def metrics_directory() -> Iterator[Path]:
    """Enter before anything imports `telemetry.metrics`; child processes inherit it.

    We hold a lock on it, which the kernel takes from a process that is killed: so the next one can tell what was left
    behind, and removes it.
    """
    _remove_stale()
    directory, lock = _new()
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(lock)


def _new() -> tuple[Path, int]:
    while True:
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
        # Until it is locked, another process that starts now may take it for a stale one.
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            return directory, _lock(directory)


def _remove_stale() -> None:
    for directory in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # in use, another user's, or just removed
            lock = _lock(directory)
            shutil.rmtree(directory, ignore_errors=True)
            os.close(lock)


def _lock(directory: Path) -> int:
    """Raises BlockingIOError where another holds it, FileNotFoundError where it is gone."""
    lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        directory.stat()  # whoever held it before us may have removed it
    except OSError:
        os.close(lock)
        raise
    return lock
