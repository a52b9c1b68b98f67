"""What operators look up in the audit, and delete from it: by the API and by commands, and never without a note."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec
from msgspec.structs import asdict

from extproc.admin import times
from extproc.admin.bodies import AuditQuery
from extproc.admin.errors import Invalid
from extproc.admin.reports import Line, money
from extproc.audit.record import AuditReading, AuditStore, Page, Record, Search

_PAGE: Final = 500
_TEXTS: Final = ("request", "answer", "metadata")

What = Literal["search", "show", "tail", "export", "delete", "readings"]


@dataclass(frozen=True, slots=True)
class Records:
    """``who`` asks is noted before there is an answer. Blocking.

    Methods raise NotFound, Invalid and DatabaseUnavailable, with a text for the operator.
    """

    store: AuditStore
    timezone: Callable[[], str]
    wall: Callable[[], float] = time.time

    def search(self, who: str, query: AuditQuery, *, limit: int, cursor: str = "") -> tuple[list[Line], str]:
        """Records without their texts, the newest first, and the cursor of the next page."""
        page = self._page(self.asked(query), limit, cursor)
        self._note(who, "search", _written(query), len(page.records))
        return [_without_texts(record) for record in page.records], page.next

    def show(self, who: str, call_id: str) -> Line:
        self._note(who, "show", call_id, 0)
        record = self.store.show(call_id)
        self._note(who, "show", call_id, 1)
        return line(record)

    def export(self, who: str, query: AuditQuery) -> Iterator[Record]:
        """All that match, the newest first. Noted at its start, and once more with their number at its end."""
        search = self.asked(query)
        self._note(who, "export", _written(query), 0)
        found, cursor = 0, ""
        try:
            while True:
                page = self._page(search, _PAGE, cursor)
                found += len(page.records)
                yield from page.records
                cursor = page.next
                if not cursor:
                    return
        finally:
            self._note(who, "export", _written(query), found)

    def tail(self, who: str, query: AuditQuery) -> Callable[[], list[Line]]:
        """A function that gives what has come since it was called last, without texts. Noted where there is some."""
        search, number = self.asked(query), self.store.last()
        self._note(who, "tail", _written(query), 0)

        def more() -> list[Line]:
            nonlocal number
            found = self.store.after(number, search)
            if found:
                self._note(who, "tail", _written(query), len(found))
                number = found[-1][0]
            return [_without_texts(record) for _, record in found]

        return more

    def delete(self, who: str, query: AuditQuery) -> int:
        """How many there were. Raises Invalid where nothing is asked for: that would be everything."""
        search = self.asked(query)
        if search == Search():
            raise Invalid("say what to delete: by consumer, by person, or what is older than a time")
        self._note(who, "delete", _written(query), 0)
        gone = self.store.delete(search)
        self._note(who, "delete", _written(query), gone)
        return gone

    def readings(self, who: str, limit: int) -> list[Line]:
        found = self.store.readings(limit)
        self._note(who, "readings", "", len(found))
        return [{**asdict(reading), "time": times.shown(reading.time, "milliseconds")} for reading in found]

    def asked(self, query: AuditQuery) -> Search:
        now, zone = self.wall(), self.timezone()
        values = query.model_dump(include=set(Search.__struct_fields__))
        for name in ("since", "until"):
            values[name] = None if values[name] is None else times.past(values[name], zone, now)
        return Search(**values)

    def _page(self, search: Search, limit: int, cursor: str) -> Page:
        try:
            return self.store.search(search, limit=limit, cursor=cursor)
        except ValueError as error:
            raise Invalid(str(error)) from error

    def _note(self, who: str, what: What, asked: str, found: int) -> None:
        self.store.note(AuditReading(time=self.wall(), who=who, what=what, asked=asked, found=found))


def line(record: Record) -> Line:
    """Every field, ready for JSON: times as ISO 8601, money as a decimal."""
    values: dict[str, Any] = {name: msgspec.to_builtins(value) for name, value in asdict(record).items()}
    values["time"] = times.shown(record.time, "milliseconds")
    return {"money" if name == "cost" else name: value for name, value in values.items()} | {
        "money": money(record.cost)
    }


def _without_texts(record: Record) -> Line:
    return {name: value for name, value in line(record).items() if name not in _TEXTS}


def _written(query: AuditQuery) -> str:
    """The question, as the note keeps it."""
    asked = query.model_dump(exclude_defaults=True, exclude={"limit", "cursor"})
    return msgspec.json.encode(asked, order="sorted").decode() if asked else ""
