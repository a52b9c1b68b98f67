"""Quotas and limits in one text: `10M tokens/month`, `60 requests/minute model=gpt-*`, `8 concurrent`."""

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Final

_QUOTA: Final = ("tokens", "money", "requests")
_LIMIT: Final = ("tokens", "requests")
_UNIT: Final = re.compile(r"(\w+)/(\w+)")
_LARGE: Final = (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3))


def quota(text: str) -> dict[str, str]:
    """The fields of a `Quota`, amounts as they were written. Raises ValueError."""
    amount, unit, more = _parts(text, "10M tokens/month")
    return _with_period(text, amount, unit, more, units=_QUOTA, options=("model", "each", "timezone"))


def limit(text: str) -> dict[str, str]:
    """The fields of a `Limit`, likewise. Raises ValueError."""
    amount, unit, more = _parts(text, "60 requests/minute or 8 concurrent")
    if unit == "concurrent":
        return {"concurrent": amount, **_options(text, more, ("model", "each"))}
    return _with_period(text, amount, unit, more, units=_LIMIT, options=("model", "each"))


def written(rule: Mapping[str, Any]) -> str:
    """A normalised rule as such a text."""
    (unit,) = [name for name in (*_QUOTA, "concurrent") if rule.get(name) is not None]
    per = f"/{rule['per']}" if "per" in rule else ""
    more = [f"{name}={shlex.quote(rule[name])}" for name in ("model", "each", "timezone") if rule.get(name)]
    return " ".join([f"{_short(rule[unit])} {unit}{per}", *more])


def _short(amount: int | str) -> str:
    for letter, size in _LARGE:
        if isinstance(amount, int) and amount and amount % size == 0:
            return f"{amount // size}{letter}"
    return str(amount)


def _parts(text: str, example: str) -> tuple[str, str, list[str]]:
    try:
        amount, unit, *more = shlex.split(text)
    except ValueError:
        raise ValueError(f"{text!r} should look like {example}") from None
    return amount, unit, more


def _with_period(
    text: str, amount: str, unit: str, more: Sequence[str], *, units: Sequence[str], options: Sequence[str]
) -> dict[str, str]:
    match = _UNIT.fullmatch(unit)
    if match is None or match[1] not in units:
        raise ValueError(f"{text!r} should have {' or '.join(f'{name}/PERIOD' for name in units)} after the amount")
    return {match[1]: amount, "per": match[2], **_options(text, more, options)}


def _options(text: str, more: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    found = {}
    for word in more:
        name, equals, value = word.partition("=")
        if not equals or name not in known or name in found:
            raise ValueError(f"{text!r} may end with {', '.join(f'{name}=…' for name in known)}, not with {word!r}")
        found[name] = value
    return found
