"""Waiting for what other processes do."""

import time
from collections.abc import Callable
from typing import Any


def until(holds: Callable[[], Any], what: str, seconds: float = 20) -> None:
    """Wait for something to become true; raises TimeoutError that names it."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited in vain until {what}")
        time.sleep(0.05)
