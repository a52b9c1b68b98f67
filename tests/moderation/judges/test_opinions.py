import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.moderation.judges.opinions import category, highest, merged, occurrences, pieces, together
from extproc.moderation.types import JudgeFailed, Match, Opinion


@given(st.text(max_size=200), st.integers(2, 40), st.data())
def test_pieces_cover_the_text(text: str, size: int, data: st.DataObject) -> None:
    """Every run of characters that is no longer than the overlap is whole in a piece, and none is longer than asked."""
    overlap = data.draw(st.integers(0, size - 1))
    cut = pieces(text, size, overlap)

    assert all(text[start : start + len(piece)] == piece and len(piece) <= size for start, piece in cut)
    for start in range(max(1, len(text) - overlap + 1)):
        wanted = (start, min(start + overlap, len(text)))
        assert any(at <= wanted[0] and wanted[1] <= at + len(piece) for at, piece in cut)
    assert cut[-1][0] + len(cut[-1][1]) == len(text)


def test_merging() -> None:
    """The highest score of a category counts; spans are moved to where the piece stands, and what two saw is one."""
    first = Opinion({"a": 0.2, "b": 0.9}, [Match(8, 10, "b", 0.9)])
    second = Opinion({"a": 0.7}, [Match(0, 2, "b", 0.9), Match(3, 4, "a", 0.7)])

    assert merged([(0, first), (8, second)]) == Opinion(
        {"a": 0.7, "b": 0.9}, (Match(8, 10, "b", 0.9), Match(11, 12, "a", 0.7))
    )


def test_noise() -> None:
    """Scores that mean nothing are left out."""
    assert highest([("a", 0.001), ("b", 0.4), ("b", 0.3)]) == {"b": 0.4}


def test_words() -> None:
    """Words are found wherever they stand, also if they look like patterns; an empty one is nowhere."""
    words = {"a.b": ("x", 0.9), "": ("y", 0.1)}

    assert occurrences("a.b, acb, a.b", words) == (Match(0, 3, "x", 0.9, "a.b"), Match(10, 13, "x", 0.9, "a.b"))


@pytest.mark.parametrize(
    ("label", "name"),
    [("Suicide & Self-Harm", "suicide_self_harm"), ("PII", "pii"), ("political_figure", "political_figure")],
)
def test_categories(label: str, name: str) -> None:
    """Labels become words as policies write them."""
    assert category(label) == name


async def test_the_first_error_ends_the_others() -> None:
    """When one question fails, those that still wait are ended before the error is told."""
    ended = asyncio.Event()

    async def wait() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    async def fail() -> None:
        await asyncio.sleep(0)
        raise JudgeFailed("garbage")

    with pytest.raises(JudgeFailed, match="garbage"):
        await together([wait(), fail()])
    assert ended.is_set()
