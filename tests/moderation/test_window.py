"""One running text of a stream: what may go out, what is changed in it, and what ends it."""

import re
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.call import Verdict
from extproc.moderation.rules import Rule
from extproc.moderation.types import Action, Match
from extproc.moderation.window import Running


class Words:
    """Finds these words, longest first, as a check does."""

    def __init__(self, *words: str, category: str = "word") -> None:
        self._pattern = re.compile("|".join(re.escape(word) for word in sorted(words, key=len, reverse=True)))
        self._category = category
        self.reach = max(map(len, words))

    def find(self, text: str) -> Sequence[Match]:
        return [Match(m.start(), m.end(), self._category) for m in self._pattern.finditer(text)]


MASK = Rule("mask", Words("13812345678", "1381234"), action=Action.MASK)
BLOCK = Rule("block", Words("毒品", "forbidden"), action=Action.BLOCK)
FLAG = Rule("flag", Words("maybe"), action=Action.FLAG)


def running(*rules: Rule, hold: int = 100) -> Running:
    return Running("0/content", rules, hold=hold, mask=lambda rule, text, match: f"<{len(text)}>")


def play(pieces: Sequence[str], *rules: Rule) -> tuple[str, list[Verdict]]:
    """What goes out of these pieces, and what was found; after a block, what went out before it."""
    text, out, found = running(*rules), "", []
    for number, piece in enumerate([*pieces, ""]):
        text.add(piece)
        verdicts = text.settle(due=False, final=number == len(pieces))
        found += verdicts
        out += text.take(text.settled)[0]
        if any(verdict.action == "block" for verdict in verdicts):
            break
    return out, found


def cut(text: str, places: Sequence[int]) -> list[str]:
    borders = [0, *sorted({place % (len(text) + 1) for place in places}), len(text)]
    return [text[a:b] for a, b in pairwise(borders)]


TEXTS = st.lists(
    st.sampled_from(
        ["13812345678", "1381234", "138", "毒", "品", "forbid", "den", "maybe", " ", "好", "ok ", "12345678"]
    ),
    max_size=12,
).map("".join)


@given(TEXTS, st.lists(st.integers(0, 100), max_size=10))
def test_every_chunking_is_the_same(text: str, places: list[int]) -> None:
    """However a text is cut, the same goes out, and the same is found at the same places."""
    assert play(cut(text, places), MASK, BLOCK, FLAG) == play([text], MASK, BLOCK, FLAG)


@given(TEXTS, st.lists(st.integers(0, 100), max_size=10))
def test_nothing_is_lost_and_nothing_added(text: str, places: list[int]) -> None:
    """Where nothing is masked or blocked, what goes out is the text, in order."""
    out, _ = play(cut(text, places), FLAG)

    assert out == text


@given(TEXTS, st.lists(st.integers(0, 100), max_size=10), st.lists(st.booleans(), min_size=12, max_size=12))
def test_a_block_never_goes_out(text: str, places: list[int], due: list[bool]) -> None:
    """Also where time is up again and again, no whole forbidden word goes out: its end waits for its verdict."""
    run, out = running(BLOCK), ""
    pieces = cut(text, places)
    for number, piece in enumerate(pieces):
        run.add(piece)
        verdicts = run.settle(due=due[number % len(due)], final=number == len(pieces) - 1)
        out += run.take(run.settled)[0]
        if verdicts:
            break

    assert "毒品" not in out
    assert "forbidden" not in out


def test_only_what_a_check_needs_is_held() -> None:
    """A text without anything in it goes out but for its last characters, and those when time is up."""
    run = running(BLOCK)
    run.add("a long and harmless text, and 毒")

    assert run.settle(due=False, final=False) == []
    assert run.end - run.settled == BLOCK.check.reach  # type: ignore[union-attr]
    assert run.settle(due=True, final=False) == []
    assert run.end - run.settled <= 1


def test_what_may_be_a_number_waits_also_when_time_is_up() -> None:
    """The beginning of a number does not go out before it is known what it is."""
    run = running(MASK)
    run.add("call 13812")
    run.settle(due=True, final=False)
    assert run.take(run.settled)[0] == "call "
    run.add("345678 now")
    run.settle(due=False, final=True)

    assert run.take(run.settled) == ("<11> now", True)


def test_a_longer_match_wins() -> None:
    """A match at the end of what came waits for what may make it longer."""
    run = running(MASK)
    run.add("x 1381234")
    run.settle(due=True, final=False)
    assert run.settled == 2
    run.add("5678")
    (verdict,) = run.settle(due=False, final=True)

    assert (verdict.start, verdict.end, verdict.action) == (2, 13, "mask")
    assert run.take(run.settled) == ("x <11>", True)


def test_a_change_over_several_pieces() -> None:
    """It goes out whole where it begins, and what it stood for not at all."""
    run = running(MASK)
    run.add("a 13812345678 b")
    run.settle(due=False, final=True)

    assert [run.take(end) for end in (4, 8, 15)] == [("a <11>", True), ("", True), (" b", True)]


def test_a_block_settles_what_is_before_it() -> None:
    """What was harmless goes out, and the verdict says where it is."""
    run = running(FLAG, BLOCK)
    run.add("maybe, then forbidden things")
    verdicts = run.settle(due=False, final=True)

    assert [(v.check, v.action, v.start, v.end) for v in verdicts] == [
        ("flag", "flag", 0, 5),
        ("block", "block", 12, 21),
    ]
    assert run.take(run.settled)[0] == "maybe, then "


def test_a_judge_says_how_far() -> None:
    """Nothing is settled beyond what was judged elsewhere."""
    run = running(FLAG)
    run.add("one two three four five six")
    run.settle(due=True, final=True, until=7)

    assert run.take(run.settled)[0] == "one two"


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_long_text_is_forgotten_behind(size: int) -> None:
    """Memory does not grow with the text, and every match is found."""
    run, found, out = running(FLAG), 0, 0
    text = ("some words " * 20 + "maybe ") * 200
    for at in range(0, len(text), size):
        run.add(text[at : at + size])
        found += len(run.settle(due=False, final=False))
        out += len(run.take(run.settled)[0])
    found += len(run.settle(due=False, final=True))
    out += len(run.take(run.settled)[0])

    assert (found, out) == (200, len(text))
    assert len(run._text) < 20_000
