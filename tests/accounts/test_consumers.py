"""Who holds which key."""

import hashlib
import hmac
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.accounts.consumers import Consumers
from extproc.core.call import Consumer

ACME, OTHER = Consumer("acme"), Consumer("other")


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


KNOWN = Consumers({"acme": ACME, "other": OTHER}, {"acme": [digest("a1"), digest("a2")], "other": [digest("b")]})


@pytest.mark.parametrize(
    ("key", "consumer"), [("a1", ACME), ("a2", ACME), ("b", OTHER), ("c", None), ("", None), ("A1", None)]
)
def test_find(key: str, consumer: Consumer | None) -> None:
    """Each key leads to its holder, and no other text to anybody."""
    assert KNOWN.find(key) is consumer


@given(st.text(st.characters()))
def test_no_text_is_too_odd(key: str) -> None:
    """Any text may be asked for, half a surrogate pair too."""
    assert KNOWN.find(key) is (ACME if key in ("a1", "a2") else OTHER if key == "b" else None)
    assert Consumers({"acme": ACME}, {"acme": [digest(key)]}).find(key) is ACME


def test_digests_that_begin_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests in one bucket are told apart by the whole, compared in constant time."""
    compared: list[bytes] = []
    real = hmac.compare_digest

    def watch(a: Any, b: Any) -> bool:
        compared.append(a)
        return real(a, b)

    monkeypatch.setattr(hmac, "compare_digest", watch)
    near = digest("a1")[:8] + b"\0" * 24
    consumers = Consumers({"acme": ACME, "other": OTHER}, {"other": [near], "acme": [digest("a1")]})

    assert consumers.find("a1") is ACME
    assert compared == [near, digest("a1")]


def test_no_keys_no_consumers() -> None:
    """An empty book knows nobody."""
    assert Consumers({}, {}).find("a1") is None
    assert Consumers({"acme": ACME}, {"acme": []}).find("a1") is None


def test_keys_are_not_kept() -> None:
    """Only digests are held."""
    assert b"a1" not in str(vars(KNOWN)).encode()
