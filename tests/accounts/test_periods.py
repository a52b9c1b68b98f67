"""Hours, days, weeks and months of a time zone."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.accounts.periods import Calendar, Calendars, Period, period
from extproc.stores.ports import GRAIN

ZONES = ("UTC", "Asia/Shanghai", "America/New_York", "Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe")


def at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@pytest.mark.parametrize(
    ("per", "zone", "moment", "start", "end"),
    [
        ("month", "Asia/Shanghai", "2026-11-30T23:59:59+08:00", "2026-11-01T00:00+08:00", "2026-12-01T00:00+08:00"),
        ("month", "Asia/Shanghai", "2026-12-01T00:00:00+08:00", "2026-12-01T00:00+08:00", "2027-01-01T00:00+08:00"),
        ("month", "UTC", "2026-11-30T17:00:00+00:00", "2026-11-01T00:00+00:00", "2026-12-01T00:00+00:00"),
        ("month", "UTC", "2028-02-29T12:00:00+00:00", "2028-02-01T00:00+00:00", "2028-03-01T00:00+00:00"),
        ("week", "UTC", "2026-11-25T12:00:00+00:00", "2026-11-23T00:00+00:00", "2026-11-30T00:00+00:00"),
        ("week", "UTC", "2027-01-03T23:59:00+00:00", "2026-12-28T00:00+00:00", "2027-01-04T00:00+00:00"),
        ("day", "America/New_York", "2026-03-08T12:00:00-04:00", "2026-03-08T00:00-05:00", "2026-03-09T00:00-04:00"),
        ("day", "America/New_York", "2026-11-01T12:00:00-05:00", "2026-11-01T00:00-04:00", "2026-11-02T00:00-05:00"),
        ("hour", "Asia/Kolkata", "2026-11-25T12:29:00+05:30", "2026-11-25T12:00+05:30", "2026-11-25T13:00+05:30"),
        ("hour", "UTC", "2026-11-25T12:00:00+00:00", "2026-11-25T12:00+00:00", "2026-11-25T13:00+00:00"),
    ],
)
def test_period(per: Calendar, zone: str, moment: str, start: str, end: str) -> None:
    """A period begins and ends by the wall clock of its zone, also where a day has 23 or 25 hours."""
    found = period(per, zone, at(moment))

    assert (found.start, found.end) == (int(at(start)), int(at(end)))


def test_total() -> None:
    """All time is one period."""
    assert period("total", "Asia/Shanghai", 5.0) == Period("total", 0, None)


@given(
    per=st.sampled_from(["hour", "day", "week", "month"]),
    zone=st.sampled_from(ZONES),
    moment=st.integers(int(at("2020-01-01T00:00+00:00")), int(at("2040-01-01T00:00+00:00"))),
)
def test_periods_follow_each_other(per: Calendar, zone: str, moment: int) -> None:
    """A moment lies in its period, the next begins where it ends, and the ledger can add it up."""
    found = period(per, zone, moment)
    assert found.end is not None
    after = period(per, zone, found.end)

    assert found.holds(moment)
    assert not found.holds(found.end)
    assert period(per, zone, found.start) == found
    assert period(per, zone, found.end - 1) == found
    assert after.start == found.end
    assert after.name != found.name
    assert found.start % GRAIN == 0


def test_an_hour_that_comes_twice_is_two() -> None:
    """When clocks go back, each of the two hours of one name has a number of its own."""
    first, second = (period("hour", "America/New_York", at(f"2026-11-01T01:30-0{x}:00")) for x in (4, 5))

    assert first.name != second.name
    assert first.end == second.start


def test_calendars_remember() -> None:
    """The same period is given until it is over, also when clocks go back over its beginning."""
    calendars = Calendars()
    noon = datetime(2026, 11, 30, 23, 59, 59, tzinfo=ZoneInfo("Asia/Shanghai")).timestamp()

    november = calendars.at("month", "Asia/Shanghai", noon)
    assert calendars.at("month", "Asia/Shanghai", noon - 86400) is november
    december = calendars.at("month", "Asia/Shanghai", noon + 1)
    assert december.start == november.end
    assert calendars.at("month", "Asia/Shanghai", noon) == november
    assert datetime.fromtimestamp(december.start, UTC).isoformat() == "2026-11-30T16:00:00+00:00"
