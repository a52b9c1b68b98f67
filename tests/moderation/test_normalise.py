"""Texts as a reader sees them, and where their characters come from."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.moderation.normalise import ALIKE, DIGITS, SYMBOLS, collapse, normalise, places, squeeze

TEXTS = st.text(st.characters(), max_size=60)


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("HeRoIn", "heroin"),
        ("ｈｅｒｏｉｎ", "heroin"),
        ("ﬁne ㎏ Ⓖⓐⓜⓔ ⒜", "fine kg game a"),
        ("𝓱𝓮𝓻𝓸𝓲𝓷 𝕙𝕖𝕣𝕠𝕚𝕟", "heroin heroin"),
        ("сосаіпе НЕ", "cocaine he"),
        ("ροκεr", "poker"),
        ("🅷🅴🆁🅾 🇭🇪", "hero he"),
        ("h\u200be\u0301r\ufeffo\u00ad", "hero"),
        ("ʜᴇʀᴏɪɴ", "heroin"),
        ("毒\u2060品，好！", "毒品,好!"),
        ("Straße", "strasse"),
        ("한국 が", "한국 か"),
        ("a\ud800b", "a\ufffdb"),
        ("tag\U000e0041\U000e0042", "tag"),
    ],
)
def test_disguises_of_letters_fold(text: str, folded: str) -> None:
    """Case, width, styles, marks, invisible characters and lookalikes fold to the plain letter."""
    assert normalise(text).text == folded


@given(TEXTS)
def test_each_folded_character_knows_where_it_comes_from(text: str) -> None:
    """The folds of the single characters, in their places, make the folded text, whatever the text."""
    normal = normalise(text)
    assert len(normal.text) == len(normal.offsets)
    assert list(normal.offsets) == sorted(normal.offsets)
    assert "".join(normalise(char).text for char in text) == normal.text
    for at, offset in enumerate(normal.offsets):
        assert normal.text[at] in normalise(text[offset]).text
        assert normal.span(at, at + 1) == (offset, offset + 1)


@given(TEXTS, st.sampled_from([DIGITS, SYMBOLS, ALIKE]), st.booleans())
def test_places_belong_to_the_reduced_text(text: str, readings: Mapping[int, str], collapsed: bool) -> None:
    """Each character of a squeezed or collapsed text stands in the folded text where it is said to."""
    folded = normalise(text).text
    reduced = squeeze(folded, readings)
    if collapsed:
        reduced = collapse(reduced)
    at = places(folded, readings, collapsed=collapsed)
    assert len(at) == len(reduced)
    assert [folded[place].translate(readings) for place in at] == list(reduced)


def test_separators_go_and_digits_are_read() -> None:
    """Squeezing takes spaces and punctuation away and reads digits, and symbols where they may be letters."""
    assert squeeze("h-3 r.0_1n!", DIGITS) == "heroin"
    assert squeeze("c@$ino", DIGITS) == "cino"
    assert squeeze("c@$ino", SYMBOLS) == "casino"
    assert squeeze("k1!|", ALIKE) == squeeze("kill", ALIKE)
    assert squeeze("毒-品", DIGITS) == "毒品"


def test_repeated_letters_collapse_and_chinese_does_not() -> None:
    """Runs of a letter become one; a Chinese character that is repeated on purpose stays so."""
    assert collapse("fuuuckk") == "fuck"
    assert collapse("天天aaa毒") == "天天a毒"
