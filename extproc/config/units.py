"""Durations, sizes, counts and money as people write them: `30s`, `4MiB`, `1M`, `0.015`."""

import re
from decimal import Decimal, InvalidOperation
from typing import Annotated, Final

from pydantic import BeforeValidator, WithJsonSchema

_DURATION: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE: Final = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_COUNT: Final = {"k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
MAX_COUNT: Final = 10**15
MAX_MONEY: Final = 9_000_000  # in billionths it is still a number that Lua knows exactly
_NUMBER: Final = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


def _scaled(value: object, units: dict[str, float] | dict[str, int], bare: float, example: str) -> float:
    text = str(value)
    match = None if isinstance(value, bool) else _NUMBER.fullmatch(text)
    scale = bare if match and not match[2] else units.get(match[2]) if match else None
    if match is None or scale is None:
        raise ValueError(f"{text!r} should look like {example}; units are {', '.join(units)}")
    return float(match[1]) * scale


def seconds(value: object) -> float:
    """`30s`, `5m`, `250ms` or a bare number of seconds → seconds."""
    return _scaled(value, _DURATION, 1.0, "30s")


def size(value: object) -> int:
    """`4MiB`, `64KB` or a bare number of bytes → bytes."""
    return int(_scaled(value, _SIZE, 1, "4MiB"))


def count(value: object) -> int:
    """`10M`, `60k` or a bare number → that many."""
    match = None if isinstance(value, bool) else _NUMBER.fullmatch(str(value))
    scale = _COUNT.get(match[2], None if match[2] else 1) if match else None
    if match is None or scale is None:
        raise ValueError(f"{str(value)!r} should look like 60k; units are {', '.join(_COUNT)}")
    scaled = Decimal(match[1]) * scale
    if scaled != int(scaled) or scaled > MAX_COUNT:
        raise ValueError(f"{value} is not a whole number of at most {MAX_COUNT}")
    return int(scaled)


def money(value: object) -> Decimal:
    """`500` or `"0.015"` → the amount, exactly; as a float it is taken as it is written."""
    try:
        amount = Decimal(str(value))
    except InvalidOperation:
        amount = Decimal("NaN")
    if isinstance(value, bool) or not amount.is_finite() or not 0 <= amount <= MAX_MONEY:
        raise ValueError(f"{str(value)!r} should be an amount of money like 500 or 0.015, and at most {MAX_MONEY}")
    return amount


Count = Annotated[
    int,
    BeforeValidator(count),
    WithJsonSchema({"type": ["string", "integer"], "pattern": r"^\d+(\.\d+)?[kMGT]?$", "description": "a count: 60k"}),
]
Money = Annotated[
    Decimal,
    BeforeValidator(money),
    WithJsonSchema(
        {"type": ["number", "string"], "pattern": r"^\d+(\.\d+)?$", "description": "an amount of money: 500"}
    ),
]
Seconds = Annotated[
    float,
    BeforeValidator(seconds),
    WithJsonSchema(
        {"type": ["string", "number"], "pattern": r"^\d+(\.\d+)?(ms|s|m|h|d)?$", "description": "a duration: 30s"}
    ),
]
Size = Annotated[
    int,
    BeforeValidator(size),
    WithJsonSchema(
        {"type": ["string", "integer"], "pattern": r"^\d+(\.\d+)?([KMG]i?B|B)?$", "description": "a size: 4MiB"}
    ),
]
