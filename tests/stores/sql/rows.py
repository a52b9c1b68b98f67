"""Rows of the ledger for tests."""

from collections.abc import Iterable
from typing import Any

from extproc.stores.ports import Row

NOON = 1_741_003_200
"""2025-03-03, a Monday, 12:00 UTC."""


def row(call_id: str, at: float = NOON, **fields: Any) -> Row:
    """A call of acme that began at ``at`` (seconds) and took a second, an attempt, 10 + 5 tokens and 7 nano CNY."""
    usual = {
        "consumer": "acme",
        "team": "blue",
        "model": "m",
        "provider": "p",
        "target": "p/m1",
        "attempts": 1,
        "input": 10,
        "output": 5,
        "usage": "reported",
        "cost": 7,
        "currency": "CNY",
    }
    started = round(at * 1000)
    return Row(call_id=call_id, **{"started": started, "ended": started + 1000, **usual, **fields})


def refused(call_id: str, at: float = NOON, **fields: Any) -> Row:
    """A call that we refused: nothing was used."""
    nothing = {"attempts": 0, "input": 0, "output": 0, "usage": "", "cost": 0, "currency": "", "provider": ""}
    return row(call_id, at, **{"how": "refused", "status": 429, "target": "", **nothing, **fields})


def ids(rows: Iterable[Row]) -> list[str]:
    return [found.call_id for found in rows]
