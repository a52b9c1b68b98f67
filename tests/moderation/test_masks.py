"""Masks and the way back from them."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.moderation.masks import Restorer, Vault
from extproc.moderation.types import Match

ORIGINALS = {"PHONE_1": "13812345678", "PHONE_12": "010-62345678", "BANK_CARD_1": "4111 1111", "客户_1": '甲"乙\\\n'}
PIECES = (
    *(
        "[PHONE_1]",
        "[phone_12]",
        "PHONE_1",
        "PHONE_12",
        "【PHONE_1】",
        "\\[PHONE\\_1\\]",
        "[BANK_CARD_1]",
        "[客户_1]",
        "客户_1",
    ),
    *(
        "[PHONE_3]",
        "[PHONE_",
        "PHONE",
        "[",
        "]",
        "\\",
        "\\\\",
        "_",
        "1",
        "2",
        " ",
        ",",
        "P",
        "MY_",
        "x",
        "【",
        "】",
        "n",
        "\\n",
    ),
    *("\\u005b", "\\u005D", "\\u005f", "\\u3010", "\\u3011", "BANK", "客"),
)
answers = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)


def restored(text: str, *, cuts: list[int] | None = None, json: bool = False) -> str:
    restorer = Restorer(ORIGINALS, json=json)
    borders = [0, *sorted(cuts or []), len(text)]
    pieces = [text[a:b] for a, b in pairwise(borders)]
    return "".join(restorer.feed(piece, final=False) for piece in pieces) + restorer.feed("", final=True)


def match(text: str, part: str, category: str) -> Match:
    return Match(text.index(part), text.index(part) + len(part), category)


def test_masks_are_numbered_by_original() -> None:
    """The same original has one mask throughout a call, another original another one."""
    vault = Vault()

    assert (
        vault.mask("a 1 b 2", [Match(2, 3, "phone"), Match(6, 7, "phone")], restore=True) == "a [PHONE_1] b [PHONE_2]"
    )
    assert vault.mask("2, x@y", [Match(0, 1, "phone"), Match(3, 6, "email")], restore=True) == "[PHONE_2], [EMAIL_1]"
    assert vault.originals == {"PHONE_1": "1", "PHONE_2": "2", "EMAIL_1": "x@y"}


@pytest.mark.parametrize("spelled", ["[PHONE_1]", "phone_1", "PHONE\\_1", "[PHONE_01]"])
def test_masks_do_not_collide(spelled: str) -> None:
    """A number that some text of the request has already, in any spelling, is not given again."""
    vault = Vault([f"what is {spelled}?", "call 138"])

    assert vault.mask("call 138", [Match(5, 8, "phone")], restore=True) == "call [PHONE_2]"


def test_masks_for_good() -> None:
    """What is not to be restored is gone: a label, stars, or a digest that is the same for the same original."""
    text = "call 138 or 139"
    found = [match(text, "138", "phone"), match(text, "139", "phone")]
    digests = Vault(style="hash", key=b"k").mask(
        "138 138 139", [Match(0, 3, "p"), Match(4, 7, "p"), Match(8, 11, "p")], False
    )
    one, same, other = digests.split()

    assert Vault().mask(text, found, restore=False) == "call [PHONE] or [PHONE]"
    assert Vault(style="stars").mask(text, found, restore=False) == "call *** or ***"
    assert one == same != other
    assert digests == Vault(style="hash", key=b"k").mask(
        "138 138 139", [Match(0, 3, "p"), Match(4, 7, "p"), Match(8, 11, "p")], False
    )
    assert Vault(style="hash").mask("1", [Match(0, 1, "p")], False) != Vault(style="hash").mask(
        "1", [Match(0, 1, "p")], False
    )


def test_overlapping_matches() -> None:
    """Matches of several checks may overlap; every character of theirs is masked."""
    assert Vault().mask("abcdef", [Match(1, 4, "x"), Match(0, 2, "y"), Match(3, 5, "z")], False) == "[Y][X][Z]f"


@given(st.text(max_size=40), st.lists(st.tuples(st.integers(0, 40), st.integers(1, 6)), max_size=6), st.booleans())
def test_what_is_masked_comes_back(text: str, places: list[tuple[int, int]], json_text: bool) -> None:
    """A text that is masked and sent back by the model unchanged is restored to the character."""
    vault = Vault([text])
    found = [Match(start, min(start + size, len(text)), "phone") for start, size in places if start < len(text)]
    masked = vault.mask(text, found, restore=True)
    if json_text:
        source = json.dumps(masked)
        assert json.loads(vault.restorer(json=True).feed(source, final=True)) == text
    else:
        assert vault.restorer().feed(masked, final=True) == text


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("call [PHONE_1].", "call 13812345678."),
        ("[phone_1]【PHONE_1】\\[PHONE_1\\]", "13812345678" * 3),
        ("\\[PHONE\\_1\\] and PHONE\\_12", "13812345678 and 010-62345678"),
        ("请拨打PHONE_1或PHONE_12。", "请拨打13812345678或010-62345678。"),
        ("[PHONE_1, PHONE_12]", "[13812345678, 010-62345678]"),
        ("[PHONE_2] PHONE_123 PHONE_1x MY_PHONE_1", "[PHONE_2] PHONE_123 PHONE_1x MY_PHONE_1"),
        ("phone_1 = 1", "phone_1 = 1"),
        ("[PHONE_1", "[13812345678"),
    ],
)
def test_masks_as_models_write_them(answer: str, wanted: str) -> None:
    """Slightly altered masks are recognised, in every chunking; unknown numbers and longer names are not."""
    assert restored(answer) == wanted
    assert restored(answer, cuts=list(range(len(answer)))) == wanted


@pytest.mark.parametrize(
    "mask",
    [
        "[客户_1]",
        "【客户_1】",
        "\\\\[客户\\\\_1\\\\]",
        "\\u005b客户_1\\u005D",
        "\\u3010客户\\u005f1\\u3011",
        "\\n客户_1",
    ],
)
def test_inside_json(mask: str) -> None:
    """In JSON the original is escaped, and the mask is recognised through JSON's own escapes."""
    source = f'{{"who": "{mask}!", "n": 1}}'
    answer = restored(source, json=True)

    assert json.loads(answer)["who"].lstrip("\n") == ORIGINALS["客户_1"] + "!"
    assert restored(source, cuts=list(range(len(source))), json=True) == answer


@given(answers, st.data(), st.booleans())
def test_every_chunking_gives_the_same(answer: str, data: st.DataObject, json_text: bool) -> None:
    """However the answer is cut, the same text comes out."""
    cuts = data.draw(st.lists(st.integers(0, len(answer)), max_size=6))
    whole = restored(answer, json=json_text)

    assert restored(answer, cuts=cuts, json=json_text) == whole
    assert restored(answer, cuts=list(range(len(answer))), json=json_text) == whole


@given(answers)
def test_little_is_held_back(answer: str) -> None:
    """No more is held back than the longest mask, and nothing of a text that cannot become one."""
    restorer = Restorer({"PHONE_1": "longer than its mask"})
    held = 0
    for character in answer:
        held += 1 - len(restorer.feed(character, final=False))
        assert held <= len("\\\\[PHONE\\_1\\\\]")

    assert Restorer(ORIGINALS).feed("hello wor", final=False) == "hello wor"
    assert Restorer(ORIGINALS).feed("see [PHO", final=False) == "see "


def test_nothing_to_restore() -> None:
    """Without masks everything passes at once."""
    assert Restorer({}).feed("[PHONE_", final=False) == "[PHONE_"
