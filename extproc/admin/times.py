"""Moments as operators write and read them."""

import re
from datetime import UTC, datetime
from typing import Final
from zoneinfo import ZoneInfo

from extproc.admin.errors import Invalid
from extproc.config.units import seconds

_AGE: Final = re.compile(r"[0-9.]+ *(ms|s|m|h|d)")
_END: Final = datetime(9999, 1, 1, tzinfo=UTC).timestamp()


def past(text: str, timezone: str, now: float) -> float:
    """`7d` (ago), or a date or time of ``timezone`` → seconds since the epoch. Raises Invalid."""
    return _moment(text, timezone, now, -1)


def future(text: str, timezone: str, now: float) -> float:
    """`90d` (from now), or a date or time of ``timezone`` that is still to come. Raises Invalid."""
    moment = _moment(text, timezone, now, 1)
    if moment <= now:
        raise Invalid(f"{text!r} is over already")
    return moment


def _moment(text: str, timezone: str, now: float, sign: int) -> float:
    try:
        written = datetime.fromisoformat(text)
    except ValueError:
        if not _AGE.fullmatch(text):
            raise Invalid(f"{text!r} should look like 7d, 2026-12-31 or 2026-12-31T18:00") from None
        moment = now + sign * seconds(text)
    else:
        moment = (written if written.tzinfo else written.replace(tzinfo=ZoneInfo(timezone))).timestamp()
    if not 0 <= moment <= _END:
        raise Invalid(f"{text!r} is out of all bounds")
    return moment


def shown(moment: float | None, digits: str = "seconds") -> str | None:
    """ISO 8601 in UTC."""
    if moment is None:
        return None
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec=digits).replace("+00:00", "Z")
