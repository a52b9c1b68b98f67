"""Tokens of a call, counted the same way whatever the provider's way of counting."""

from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec

Source = Literal["reported", "estimated"]

MAX_TOKENS: Final = 10**12
"""No call has more tokens; a bigger number is a fault, and would overflow a database."""


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of one call.

    ``input`` is every prompt token; ``cached`` (read from the provider's cache) and ``cache_creation``
    (written to it) are parts of it. ``output`` is every generated token, ``reasoning`` a part of it.
    """

    input: int = 0
    output: int = 0
    cached: int = 0
    cache_creation: int = 0
    reasoning: int = 0
    source: Source = "reported"

    @property
    def total(self) -> int:
        return self.input + self.output


def from_openai(usage: Any) -> Usage | None:
    """Chat completions, completions and embeddings. ``prompt_tokens`` includes the cached ones.

    DeepSeek names these ``prompt_cache_hit_tokens``; what was written to the cache is OpenAI's
    ``cache_write_tokens`` and DashScope's ``cache_creation_input_tokens``. None where ``usage`` does not tell.
    """
    if not isinstance(usage, Mapping):
        return None
    prompt, completion = _part(usage, "prompt_tokens_details"), _part(usage, "completion_tokens_details")
    cached = count(prompt.get("cached_tokens"))
    if cached is None:
        cached = count(usage.get("prompt_cache_hit_tokens"))
    return _openai_like(
        usage,
        "prompt_tokens",
        "completion_tokens",
        cached=cached or 0,
        creation=count(prompt.get("cache_write_tokens")) or count(prompt.get("cache_creation_input_tokens")) or 0,
        reasoning=count(completion.get("reasoning_tokens")) or 0,
    )


def from_responses(usage: Any) -> Usage | None:
    """The Responses API: OpenAI's way of counting under other names. None where ``usage`` does not tell."""
    if not isinstance(usage, Mapping):
        return None
    details = _part(usage, "input_tokens_details")
    return _openai_like(
        usage,
        "input_tokens",
        "output_tokens",
        cached=count(details.get("cached_tokens")) or 0,
        creation=count(details.get("cache_write_tokens")) or 0,
        reasoning=count(_part(usage, "output_tokens_details").get("reasoning_tokens")) or 0,
    )


def from_anthropic(usage: Any) -> Usage | None:
    """Messages. ``input_tokens`` leaves out what was read from the cache and what was written to it.

    None where ``usage`` does not tell.
    """
    if not isinstance(usage, Mapping):
        return None
    fresh, output = count(usage.get("input_tokens")), count(usage.get("output_tokens"))
    if fresh is None or (output is None and usage.get("output_tokens") is not None):
        return None
    cached = count(usage.get("cache_read_input_tokens")) or 0
    creation = count(usage.get("cache_creation_input_tokens")) or 0
    reasoning = count(_part(usage, "output_tokens_details").get("thinking_tokens")) or 0
    return _checked(fresh + cached + creation, output or 0, cached, creation, reasoning)


def count(value: Any) -> int | None:
    """A number of tokens, or None where ``value`` is none: absent, negative, broken, absurd."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value <= MAX_TOKENS else None


def _openai_like(
    usage: Mapping[str, Any], input_name: str, output_name: str, *, cached: int, creation: int, reasoning: int
) -> Usage | None:
    total = count(usage.get("total_tokens"))
    tokens_in, tokens_out = count(usage.get(input_name)), count(usage.get(output_name))
    if tokens_in is None and total is not None:
        tokens_in = total - (tokens_out or 0)
    if tokens_in is None or tokens_in < 0:
        return None
    if tokens_out is None:
        if usage.get(output_name) is not None:
            return None
        tokens_out = max(total - tokens_in, 0) if total is not None else 0
    if reasoning and total == tokens_in + tokens_out + reasoning:
        tokens_out += reasoning  # xAI leaves reasoning out of completion_tokens; its total tells
    return _checked(tokens_in, tokens_out, cached, creation, reasoning)


def _checked(tokens_in: int, tokens_out: int, cached: int, creation: int, reasoning: int) -> Usage:
    """Parts are never more than the whole, whatever was reported."""
    cached = min(cached, tokens_in)
    return Usage(
        input=tokens_in,
        output=tokens_out,
        cached=cached,
        cache_creation=min(creation, tokens_in - cached),
        reasoning=min(reasoning, tokens_out),
    )


def _part(usage: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = usage.get(name)
    return part if isinstance(part, Mapping) else {}
