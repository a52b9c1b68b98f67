"""Moments as operators write and read them."""

from contextlib import suppress
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.admin import times
from extproc.admin.errors import Invalid

NOW = datetime(2026, 3, 10, 12, 0, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("7d", "2026-03-03T12:00:00+00:00"),
        ("90m", "2026-03-10T10:30:00+00:00"),
        ("2026-03-01", "2026-03-01T00:00:00+08:00"),
        ("2026-03-01T18:00", "2026-03-01T18:00:00+08:00"),
        ("2026-03-01T18:00:00Z", "2026-03-01T18:00:00+00:00"),
        ("2026-03-01T18:00:00-05:00", "2026-03-01T18:00:00-05:00"),
    ],
)
def test_past(text: str, moment: str) -> None:
    """A span reaches back; a date begins in the time zone asked for, unless it names its own."""
    assert times.past(text, "Asia/Shanghai", NOW) == datetime.fromisoformat(moment).timestamp()


@pytest.mark.parametrize(
    ("text", "moment"), [("90d", "2026-06-08T12:00:00+00:00"), ("2027-01-01", "2027-01-01T00:00:00+08:00")]
)
def test_future(text: str, moment: str) -> None:
    """A span reaches ahead."""
    assert times.future(text, "Asia/Shanghai", NOW) == datetime.fromisoformat(moment).timestamp()


@pytest.mark.parametrize("text", ["0s", "2026-03-10", "2025-01-01", "1999-12-31T23:59:59Z"])
def test_a_future_that_is_over(text: str) -> None:
    """A key cannot be made to end before it begins."""
    with pytest.raises(Invalid, match="is over already"):
        times.future(text, "Asia/Shanghai", NOW)


@pytest.mark.parametrize("text", ["", "7", "7 weeks", "yesterday", "2026-13-01", "-7d", "1e9d", "7d7d"])
def test_what_is_no_moment(text: str) -> None:
    """The sentence shows how one looks."""
    with pytest.raises(Invalid, match="should look like 7d, 2026-12-31"):
        times.past(text, "UTC", NOW)


@pytest.mark.parametrize("text", ["99999999999999d", "30000d", "0001-01-01", "9999-12-31", f"{'9' * 400}d"])
def test_beyond_all_bounds(text: str) -> None:
    """What no calendar has is refused, and breaks nothing."""
    with pytest.raises(Invalid, match="out of all bounds"):
        times.past(text, "UTC", NOW)


@given(st.text())
def test_no_text_is_too_odd(text: str) -> None:
    """Whatever is written is a moment or refused."""
    for read in (times.past, times.future):
        with suppress(Invalid):
            assert 0 <= read(text, "Asia/Shanghai", NOW) < 2**38


@pytest.mark.parametrize(
    ("moment", "digits", "shown"),
    [
        (None, "seconds", None),
        (NOW, "seconds", "2026-03-10T12:00:00Z"),
        (NOW + 0.25, "milliseconds", "2026-03-10T12:00:00.250Z"),
    ],
)
def test_shown(moment: float | None, digits: str, shown: str | None) -> None:
    """Times are shown in UTC, and say so."""
    assert times.shown(moment, digits) == shown
