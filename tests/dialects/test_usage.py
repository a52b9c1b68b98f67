"""Usage as providers report it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import JSON_VALUES

from extproc.dialects.usage import Usage, from_anthropic, from_openai, from_responses

NUMBERS = st.integers(-5, 10**15) | st.floats() | JSON_VALUES


@pytest.mark.parametrize(
    ("reported", "usage"),
    [
        ({"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21}, Usage(input=9, output=12)),
        (
            {
                "prompt_tokens": 2006,
                "completion_tokens": 300,
                "total_tokens": 2306,
                "prompt_tokens_details": {"cached_tokens": 1920, "audio_tokens": 0, "cache_write_tokens": 80},
                "completion_tokens_details": {"reasoning_tokens": 256, "accepted_prediction_tokens": 0},
            },
            Usage(input=2006, output=300, cached=1920, cache_creation=80, reasoning=256),
        ),
        (  # DeepSeek
            {
                "prompt_tokens": 20,
                "completion_tokens": 50,
                "total_tokens": 70,
                "prompt_cache_hit_tokens": 16,
                "prompt_cache_miss_tokens": 4,
                "completion_tokens_details": {"reasoning_tokens": 40},
            },
            Usage(input=20, output=50, cached=16, reasoning=40),
        ),
        (  # vLLM
            {"prompt_tokens": 7, "total_tokens": 10, "completion_tokens": 3, "prompt_tokens_details": None},
            Usage(input=7, output=3),
        ),
        (  # DashScope with its explicit cache
            {
                "prompt_tokens": 1500,
                "completion_tokens": 10,
                "total_tokens": 1510,
                "prompt_tokens_details": {"cached_tokens": 0, "cache_creation_input_tokens": 1400},
            },
            Usage(input=1500, output=10, cache_creation=1400),
        ),
        (  # xAI leaves the reasoning out of completion_tokens
            {
                "prompt_tokens": 32,
                "completion_tokens": 9,
                "total_tokens": 135,
                "completion_tokens_details": {"reasoning_tokens": 94},
            },
            Usage(input=32, output=103, reasoning=94),
        ),
        ({"prompt_tokens": 8, "total_tokens": 8}, Usage(input=8)),  # embeddings
        ({"total_tokens": 8}, Usage(input=8)),
        ({"prompt_tokens": 12.0, "completion_tokens": 3.0}, Usage(input=12, output=3)),
        ({"prompt_tokens": 5, "completion_tokens": None}, Usage(input=5)),
        ({"prompt_tokens": 5, "completion_tokens": -1}, None),
        ({"prompt_tokens": "5", "completion_tokens": 1}, None),
        ({"prompt_tokens": True, "completion_tokens": 1}, None),
        ({"prompt_tokens": 10**30, "completion_tokens": 1}, None),
        (
            {"prompt_tokens": 5, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 99}},
            Usage(input=5, output=1, cached=5),
        ),
        ({}, None),
        (None, None),
        ([], None),
        (7, None),
    ],
)
def test_openai(reported: Any, usage: Usage | None) -> None:
    """``prompt_tokens`` is the whole input; what is no number was not reported."""
    assert from_openai(reported) == usage


@pytest.mark.parametrize(
    ("reported", "usage"),
    [
        (
            {
                "input_tokens": 328,
                "input_tokens_details": {"cached_tokens": 300, "cache_write_tokens": 20},
                "output_tokens": 52,
                "output_tokens_details": {"reasoning_tokens": 40},
                "total_tokens": 380,
            },
            Usage(input=328, output=52, cached=300, cache_creation=20, reasoning=40),
        ),
        ({"input_tokens": 3, "output_tokens": 4}, Usage(input=3, output=4)),
        ({"prompt_tokens": 3}, None),
        (None, None),
    ],
)
def test_responses(reported: Any, usage: Usage | None) -> None:
    """The Responses API counts as chat completions do, under other names."""
    assert from_responses(reported) == usage


@pytest.mark.parametrize(
    ("reported", "usage"),
    [
        (
            {
                "input_tokens": 21,
                "cache_creation_input_tokens": 188,
                "cache_read_input_tokens": 1000,
                "output_tokens": 393,
                "output_tokens_details": {"thinking_tokens": 100},
                "cache_creation": {"ephemeral_5m_input_tokens": 188, "ephemeral_1h_input_tokens": 0},
                "service_tier": "standard",
            },
            Usage(input=1209, output=393, cached=1000, cache_creation=188, reasoning=100),
        ),
        ({"input_tokens": 3, "output_tokens": 4, "cache_read_input_tokens": None}, Usage(input=3, output=4)),
        ({"output_tokens": 4}, None),
        ({"input_tokens": 4, "output_tokens": "many"}, None),
        ("none", None),
    ],
)
def test_anthropic(reported: Any, usage: Usage | None) -> None:
    """``input_tokens`` leaves the cache out, so what was read from it and written to it is added."""
    assert from_anthropic(reported) == usage


@pytest.mark.parametrize("read", [from_openai, from_responses, from_anthropic])
@given(data=st.data())
def test_garbage_never_raises_and_parts_stay_parts(read: Any, data: st.DataObject) -> None:
    """Whatever is reported: no exception, nothing negative, no part bigger than its whole."""
    names = [
        "prompt_tokens", "completion_tokens", "total_tokens", "input_tokens", "output_tokens",
        "cache_read_input_tokens", "cache_creation_input_tokens", "prompt_cache_hit_tokens",
    ]  # fmt: skip
    details = ["prompt_tokens_details", "completion_tokens_details", "input_tokens_details", "output_tokens_details"]
    parts = ["cached_tokens", "reasoning_tokens", "cache_write_tokens", "thinking_tokens"]
    reported = data.draw(
        st.fixed_dictionaries(
            {},
            optional=dict.fromkeys(names, NUMBERS)
            | dict.fromkeys(details, NUMBERS | st.fixed_dictionaries({}, optional=dict.fromkeys(parts, NUMBERS))),
        )
    )
    usage = read(reported)

    if usage is not None:
        assert min(usage.input, usage.output, usage.cached, usage.cache_creation, usage.reasoning) >= 0
        assert usage.cached + usage.cache_creation <= usage.input
        assert usage.reasoning <= usage.output
        assert usage.total == usage.input + usage.output
        assert usage.source == "reported"
