"""Calendar periods: the hour, day, week or month of a time zone in which a moment lies."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final, Literal
from zoneinfo import ZoneInfo

Calendar = Literal["hour", "day", "week", "month", "total"]
_HOUR: Final = 3600


@dataclass(frozen=True, slots=True)
class Period:
    """From ``start`` to just before ``end``, seconds since the epoch; ``end`` None: for ever. ``name`` is unique."""

    name: str
    start: int
    end: int | None

    def holds(self, moment: float) -> bool:
        return self.start <= moment and (self.end is None or moment < self.end)


def period(per: Calendar, timezone: str, moment: float) -> Period:
    """The period of this kind in which ``moment`` lies. Weeks begin on Monday (ISO 8601)."""
    if per == "total":
        return Period("total", 0, None)
    zone = _zone(timezone)
    local = datetime.fromtimestamp(moment, zone)
    if per == "hour":
        # Counted from the hour's own offset: the hour that a clock change repeats is two hours, not one of two.
        offset = int((local.utcoffset() or timedelta()).total_seconds())
        start = (int(moment) + offset) // _HOUR * _HOUR - offset
        return Period(f"{datetime.fromtimestamp(start, zone):%Y-%m-%dT%H%z}@{timezone}", start, start + _HOUR)
    midnight = local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    if per == "day":
        first, after = midnight, midnight + timedelta(days=1)
    elif per == "week":
        first = midnight - timedelta(days=local.weekday())
        after = first + timedelta(days=7)
    else:
        first = midnight.replace(day=1)
        after = (first + timedelta(days=32)).replace(day=1)
    # Arithmetic on local times is by the wall clock, so a day of 23 or 25 hours comes out right.
    return Period(f"{first:%Y-%m-%d}@{timezone}", int(first.timestamp()), int(after.timestamp()))


class Calendars:
    """The current periods. ``at`` is cheap: a period is worked out once, and used until it is over."""

    def __init__(self) -> None:
        self._current: dict[tuple[Calendar, str], Period] = {}

    def at(self, per: Calendar, timezone: str, moment: float) -> Period:
        known = self._current.get((per, timezone))
        if known is None or not known.holds(moment):
            known = self._current[per, timezone] = period(per, timezone, moment)
        return known


@lru_cache(maxsize=1000)
def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)
