"""An operator's own patterns."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.moderation.patterns import Patterns, apart
from extproc.moderation.types import Match


def spans(check: Patterns, text: str) -> list[tuple[int, int]]:
    return [(match.start, match.end) for match in check.find(text)]


def test_finds_by_category() -> None:
    """Each match has the category and the pattern that found it, and its place in the original text."""
    check = Patterns({"staff": [r"工号\d{4}", r"EMP-\d+"], "code": [r"(?i)project x"]})
    text = "😀工号1234和EMP-77，Project X"

    assert check.find(text) == [
        Match(1, 7, "staff", 1.0, r"工号\d{4}"),
        Match(8, 14, "staff", 1.0, r"EMP-\d+"),
        Match(15, 24, "code", 1.0, r"(?i)project x"),
    ]


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        (r"(a)\1", "no backreferences"),
        (r"(?P<x>a)(?P=x)", "no backreferences"),
        ("a(?=b)", "no lookaround"),
        ("(?<!a)b", "no lookaround"),
        ("(?>a)", "no atomic groups"),
        ("(a", r"missing \)"),
        ("a{2000}", "repetition size"),
        ("x*", "matches where there is nothing"),
        (r"\b", "matches where there is nothing"),
        ("$", "matches where there is nothing"),
        ("\ud800", "not valid Unicode"),
    ],
)
def test_bad_patterns(pattern: str, reason: str) -> None:
    """A pattern that RE2 does not take is refused with its category, itself and the reason."""
    with pytest.raises(ValueError, match=reason) as refused:
        Patterns({"own": ["fine", pattern]})

    assert str(refused.value).startswith(f"own: pattern {pattern!r}: ")


def test_memory_is_bounded() -> None:
    """A pattern whose automaton is over the bound is refused."""
    with pytest.raises(ValueError, match="too large"):
        Patterns({"own": ["(?:[a-z]{500}[0-9]{400}|x{900}){1}"]}, max_mem=10_000)


def test_reach_must_be_positive() -> None:
    """Without a reach nothing could be found."""
    with pytest.raises(ValueError, match="at least 1"):
        Patterns({}, reach=0)


def test_longer_than_reach() -> None:
    """A long run is covered by pieces of the reach; ends further apart than it are no match."""
    assert spans(Patterns({"n": [r"\d+"]}, reach=10), "x" + "1" * 25) == [(1, 11), (11, 21), (21, 26)]
    assert spans(Patterns({"n": ["<.*?>"]}, reach=10), "<12345678> <123456789> <1>") == [(0, 10), (23, 26)]


def test_borders_are_those_of_the_whole_text() -> None:
    """Word borders and line ends mean the text's own, not those of what is searched at a time."""
    assert spans(Patterns({"n": [r"\b\d{3}\b"]}, reach=3), "12345 678") == [(6, 9)]
    assert spans(Patterns({"n": ["ab$"]}, reach=2), "ab ab") == [(3, 5)]


def test_overlaps_are_cut() -> None:
    """What two patterns find overlapping is covered once."""
    assert spans(Patterns({"a": ["abcd"], "b": ["cdef", "bc"]}), "abcdef") == [(0, 4), (4, 6)]
    assert apart([Match(2, 5, "b"), Match(0, 3, "a"), Match(0, 1, "c")]) == [Match(0, 3, "a"), Match(3, 5, "b")]


@given(st.text(alphabet=st.characters(codec=None), max_size=50))
def test_any_text(text: str) -> None:
    """No text makes it fail, half surrogate pairs included, and every character is in some match of 'anything'."""
    found = spans(Patterns({"all": [r"(?s)."]}), text)

    assert found == [(place, place + 1) for place in range(len(text))]


@given(st.text(alphabet="ab1中 ", max_size=120), st.data())
def test_a_window_with_context_is_enough(text: str, data: st.DataObject) -> None:
    """What lies in a part of a text is found the same with only ``reach`` characters of context."""
    check = Patterns({"own": ["a1{1,5}b", "中", r"\bb1\b"]}, reach=8)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    offset = max(start - check.reach, 0)
    window = [(a + offset, b + offset) for a, b in spans(check, text[offset : end + check.reach])]

    assert [span for span in window if span[0] < end and span[1] > start] == [
        span for span in spans(check, text) if span[0] < end and span[1] > start
    ]


def test_no_pattern_hangs() -> None:
    """Patterns that blow up elsewhere, or read the rest of the text for each match, stay linear."""
    check = Patterns({"own": ["(a+)+$", "a.*b|a{40}", "(x+x+)+y"]}, reach=64)
    started = time.process_time()

    assert check.find("a" * 200_000)
    assert not check.find("x" * 200_000)
    assert time.process_time() - started < 5
