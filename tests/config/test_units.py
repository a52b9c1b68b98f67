"""Durations and sizes as people write them."""

from typing import Any

import pytest

from extproc.config.units import seconds, size


@pytest.mark.parametrize(
    ("written", "value"),
    [("30s", 30), ("250ms", 0.25), ("1.5s", 1.5), ("5m", 300), ("2h", 7200), ("1d", 86400), (7, 7), (0.5, 0.5),
     ("7", 7), (" 30 s ", 30), ("0s", 0)],
)  # fmt: skip
def test_seconds(written: Any, value: float) -> None:
    """A unit, or a bare number of seconds."""
    assert seconds(written) == value


@pytest.mark.parametrize(
    ("written", "value"),
    [("8MiB", 8 << 20), ("64KB", 64_000), ("1GiB", 1 << 30), ("1GB", 10**9), ("10B", 10), ("2KiB", 2048), (4096, 4096),
     ("1.5MB", 1_500_000), ("7", 7)],
)  # fmt: skip
def test_size(written: Any, value: int) -> None:
    """A unit, of 1000 or of 1024, or a bare number of bytes."""
    assert (size(written), type(size(written))) == (value, int)


@pytest.mark.parametrize("odd", ["", "s", "-1s", "1 minute", "1S", "1e3", "٣s", "1,5s", "1s2", True, None, [], "1m30s"])
def test_what_is_no_duration(odd: Any) -> None:
    """Anything else is refused with an example."""
    with pytest.raises(ValueError, match="should look like 30s"):
        seconds(odd)


@pytest.mark.parametrize("odd", ["", "8M", "8mib", "-1", "8 megabytes", False, None, "0x10"])
def test_what_is_no_size(odd: Any) -> None:
    """A unit that could mean two things is none."""
    with pytest.raises(ValueError, match="should look like 4MiB"):
        size(odd)
