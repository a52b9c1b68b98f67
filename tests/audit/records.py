"""Records for tests, and what watches their writer."""

from typing import Any

from extproc.audit.record import Message, Record, Verdict

NOON = 1_741_003_200.0
"""2025-03-03, a Monday, 12:00 UTC."""


def record(call_id: str, at: float = NOON, said: str = "", answered: str = "", **more: Any) -> Record:
    """A call of acme."""
    usual: dict[str, Any] = {
        "consumer": "acme",
        "model": "m",
        "provider": "p",
        "status": 200,
        "text": "full",
        "request": [Message("user", said)] if said else [],
        "answer": [Message("assistant", answered)] if answered else [],
    }
    return Record(call_id=call_id, time=at, **{**usual, **more})


def verdict(category: str, action: str = "block", check: str = "lexicon", **more: Any) -> Verdict:
    return Verdict(check=check, category=category, action=action, **more)


class Watch:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.records = 0
        self.bytes = 0
        self.lost: dict[str, int] = {}
        self.refusals: list[str] = []
        self.troubles: list[str] = []

    def written(self, records: int) -> None:
        self.records += records

    def waiting(self, size: int) -> None:
        self.bytes = size

    def dropped(self, where: str, records: int) -> None:
        self.lost[where] = self.lost.get(where, 0) + records

    def refused(self, record: str, _: BaseException) -> None:
        self.refusals.append(record)

    def trouble(self, work: str, error: BaseException) -> None:
        self.troubles.append(f"{work}: {type(error).__name__}")
