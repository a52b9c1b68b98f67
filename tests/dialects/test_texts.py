"""Text inside requests and answers."""

from typing import Any

import pytest
from hypothesis import given
from strategies import JSON_VALUES

from extproc.dialects.texts import texts_of, token_ids


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ("hi", ["hi"]),
        ([{"role": "user", "content": "hi"}, {"role": "assistant", "content": None}], ["hi"]),
        (
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "look"},
                        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
                    ],
                }
            ],
            ["look"],
        ),
        ([{"tool_calls": [{"function": {"name": "f", "arguments": '{"a":1}'}}]}], ["f", '{"a":1}']),
        ([{"type": "tool_use", "name": "f", "input": {"city": "Köln"}}], ["f", '{"city":"Köln"}']),
        ([{"type": "tool_result", "content": [{"type": "text", "text": "21°"}]}], ["21°"]),
        ([{"type": "thinking", "thinking": "hm", "signature": "AAAA"}], ["hm"]),
        ([{"type": "image", "source": {"type": "base64", "data": "AAAA"}}], []),
        ([{"type": "document", "source": {"type": "text", "data": "page"}, "title": "T"}], ["page", "T"]),
        ([{"type": "function_call_output", "output": "42"}], ["42"]),
        ([{"type": "reasoning", "summary": [{"text": "why"}], "encrypted_content": "AAAA"}], ["why"]),
        (7, []),
        (None, []),
    ],
)
def test_finds_text_and_nothing_else(value: Any, texts: list[str]) -> None:
    """Parts, tool calls and results are text; images, audio and signatures are not."""
    assert list(texts_of(value)) == texts


@given(JSON_VALUES)
def test_any_shape(value: Any) -> None:
    """Whatever the shape, nothing raises."""
    assert all(isinstance(text, str) for text in texts_of({"content": value, "input": value, "source": value}))
    assert token_ids(value) >= 0


def test_deep_nesting() -> None:
    """Nesting costs no stack."""
    value: Any = "deep"
    for _ in range(100_000):
        value = {"content": [value]}

    assert list(texts_of(value)) == ["deep"]


@pytest.mark.parametrize(("value", "count"), [([1, 2, 3], 3), ([[1, 2], [3]], 3), (["a"], 0), ("a", 0), ([], 0)])
def test_token_ids(value: Any, count: int) -> None:
    """Inputs given as token ids are counted by their number."""
    assert token_ids(value) == count
