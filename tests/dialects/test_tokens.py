"""Estimates of tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.dialects.tokens import Meter, estimate


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("", 0, 0),
        ("Hi", 1, 1),
        ("The quick brown fox jumps over the lazy dog.", 9, 12),
        ("我不能处理这个问题", 5, 7),
        ("人工智能是计算机科学的一个分支，它企图了解智能的实质。", 14, 22),
        ("def add(a: int, b: int) -> int:\n    return a + b\n", 15, 24),
        ("3.14159265358979", 6, 12),
        ("Съешь же ещё этих мягких французских булок", 12, 20),
        ("😀😀", 2, 6),
    ],
)
def test_by_script(text: str, low: int, high: int) -> None:
    """Texts of several scripts come near to what today's tokenizers count."""
    assert low <= estimate(text) <= high


@given(st.text(), st.text())
def test_more_text_is_not_fewer_tokens(a: str, b: str) -> None:
    """Every text has an estimate, lone surrogates too, and it grows with the text."""
    assert 0 <= estimate(a) <= estimate(a + b)
    assert estimate(a + b) <= estimate(a) + estimate(b) + 1


@given(st.lists(st.text(max_size=10), max_size=20), st.integers(1, 2000))
def test_meter_counts_pieces(pieces: list[str], times: int) -> None:
    """Pieces add up to the estimate of their text, rounded once a batch."""
    meter = Meter()
    for piece in pieces * times:
        meter.add(piece)
    text = "".join(pieces * times)

    assert estimate(text) <= meter.tokens <= estimate(text) + 1 + len(text) // 4000
