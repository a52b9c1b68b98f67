"""Noticing that files changed, on any file system: by their content."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

from extproc.config.load import fingerprints

INTERVAL = 0.25  # seconds


async def changes(in_force: Callable[[], Mapping[Path, bytes]]) -> AsyncIterator[None]:
    """Yields when files are no longer what was read last, and were the same at two looks: not half written.

    ``in_force``: the files of the configuration in force, with the fingerprint of what was read of each. What was
    tried and refused is not tried again until it changes; going back to what is in force is a change too.
    """
    tried: dict[Path, bytes] | None = None
    before: dict[Path, bytes] | None = None
    while True:
        await asyncio.sleep(INTERVAL)
        read = in_force()
        now = await asyncio.to_thread(fingerprints, read)
        steady, before = now == before, now
        if not steady or now == (read if tried is None else tried):
            continue
        tried = None if now == read else now
        yield
        if in_force() is not read:
            tried = None  # taken: from now on it is what others are compared with
