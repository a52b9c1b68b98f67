"""What is kept of a call, and by which words it is found."""

import hashlib

import pytest
from audit.records import record, verdict
from hypothesis import given
from hypothesis import strategies as st

from extproc.audit.record import MAX_TOKENS, Message, Record, asked, decode, digest, encode, kept, tokens


def test_there_and_back() -> None:
    """A record is one line of JSON, Chinese as it is, and comes back whole."""
    one = record("c", said="你好\n", verdicts=[verdict("phone", "mask", start=1, end=3)], metadata={"a": [1, None]})

    assert decode(encode(one)) == one
    assert b"\n" not in encode(one)
    assert "你好" in encode(one).decode()


def test_the_forms_of_a_text() -> None:
    """Full and masked texts are kept as they come, a digest is the SHA-256 of each message, none is nothing."""
    said = [("system", "规则"), ("user", "hello")]

    assert kept("full", said) == kept("masked", said) == [Message("system", "规则"), Message("user", "hello")]
    assert [each.digest for each in kept("digest", said)] == [
        hashlib.sha256(text.encode()).hexdigest() for _, text in said
    ]
    assert [each.text for each in kept("digest", said)] == ["", ""]
    assert kept("none", said) == []
    assert len(digest("\ud800")) == 64


def test_nothing_of_a_secret_has_a_place() -> None:
    """A record has the id of a key and no headers: there is no field that a key or a token could be in."""
    assert {"headers", "authorization", "secret", "token"} & set(Record.__struct_fields__) == set()


def test_words() -> None:
    """Words are folded; Chinese becomes pairs of neighbours, and the last character."""
    assert tokens(["Hello, ＨＥＬＬＯ world_1"]) == ["hello", "world", "1"]
    assert tokens(["买iPhone手机吧"]) == ["买", "iphone", "手机", "机吧", "吧"]
    assert len(tokens(["".join(map(chr, range(0x4E00, 0x9FFF)))] * 3)) == MAX_TOKENS


def test_what_is_asked_for() -> None:
    """Words whole, or how they begin; a run of Chinese by its pairs and as a whole; one character is a beginning."""
    assert asked("Foo bar*") == (["foo"], ["bar"], [])
    assert asked("人工智能") == (["人工", "工智", "智能"], [], ["人工智能"])
    assert asked("智能") == (["智能"], [], [])
    assert asked("智") == ([], ["智"], [])
    assert asked("!?") == ([], [], [])


@given(st.text(), st.text(), st.text())
def test_what_is_there_is_found(before: str, text: str, after: str) -> None:
    """Whatever stands between two spaces of a text is found by itself, by its tokens."""
    known = set(tokens([f"{before} {text} {after}"]))
    whole, beginnings, _ = asked(text)

    assert set(whole) <= known
    assert all(any(token.startswith(each) for token in known) for each in beginnings)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"call_id": 1, "time": 0}'])
def test_what_is_no_record(content: bytes) -> None:
    """It is refused."""
    with pytest.raises(ValueError):
        decode(content)
