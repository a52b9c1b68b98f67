"""Keys that we issue: how they are made, known again, and told from what only looks like one."""

import hashlib
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.accounts.keys import digest, hint, is_ours, new_key

KEY = new_key()


def test_a_key() -> None:
    """A prefix for scanners, then letters and digits only: one double click selects what follows it."""
    assert re.fullmatch(r"sk-[0-9A-Za-z]{39}", KEY)
    assert 33 * math.log2(62) > 192


def test_no_two_are_the_same() -> None:
    """Each is random in every place before its checksum."""
    keys = [new_key() for _ in range(300)]

    assert len(set(keys)) == 300
    assert all(len({key[place] for key in keys}) > 40 for place in range(3, 36))


def test_another_prefix() -> None:
    """The prefix can be one's own; the checksum covers it."""
    key = new_key("corp-")

    assert key.startswith("corp-")
    assert is_ours(key, "corp-")
    assert not is_ours(key)
    assert not is_ours("sk-" + key.removeprefix("corp-"))


@given(st.integers(0, len(KEY) - 1), st.characters())
def test_one_mistyped_character(place: int, character: str) -> None:
    """A key with any one character replaced is told from the key."""
    typed = KEY[:place] + character + KEY[place + 1 :]

    assert is_ours(typed) is (typed == KEY)


@given(st.integers(0, len(KEY) - 2))
def test_two_characters_swapped(place: int) -> None:
    """So is one with two neighbours swapped."""
    typed = KEY[:place] + KEY[place + 1] + KEY[place] + KEY[place + 2 :]

    assert is_ours(typed) is (typed == KEY)


@given(st.text(st.characters()))
def test_any_text(text: str) -> None:
    """No text is too odd to be asked about, half a surrogate pair neither."""
    assert not is_ours(text)
    assert not is_ours(f"sk-{text}")
    assert len(digest(text)) == 32


@pytest.mark.parametrize(
    "text", ["", "sk-", KEY[:-1], f"{KEY}0", f" {KEY}"], ids=["empty", "prefix", "cut", "more", "space"]
)
def test_what_is_not_whole(text: str) -> None:
    """A key that was cut, or has something around it, is none."""
    assert not is_ours(text)


def test_digest() -> None:
    """What is kept is SHA-256, as `printf %s KEY | sha256sum` has it."""
    assert digest(KEY) == hashlib.sha256(KEY.encode()).digest()


def test_hint() -> None:
    """Its holder knows it again by four characters, from which nobody can find it."""
    assert hint(KEY) == KEY[-4:]
