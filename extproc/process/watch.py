"""Noticing that files changed, on any file system: by their content."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from extproc.config.load import fingerprint

INTERVAL = 0.5  # seconds


async def changes(files: Callable[[], Sequence[Path]]) -> AsyncIterator[None]:
    """Yields once for each change of content; ``files`` is asked anew each time."""
    seen = await asyncio.to_thread(fingerprint, files())
    watched = tuple(files())
    while True:
        await asyncio.sleep(INTERVAL)
        now = tuple(files())
        current = await asyncio.to_thread(fingerprint, now)
        if now == watched and current != seen:
            yield
        watched, seen = now, current
