"""Durations, sizes and counts as people write them: `30s`, `4MiB`, `1M`."""

import re
from typing import Annotated, Final

from pydantic import BeforeValidator, WithJsonSchema

_DURATION: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE: Final = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
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
