"""Compressed answers made readable."""

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import chunkings

from extproc.core import encoding
from extproc.core.encoding import Decoder, decode
from extproc.core.errors import ProviderFailed


@pytest.mark.parametrize("name", ["", "identity", " Identity "])
def test_plain(name: str) -> None:
    """What is not compressed is the same object, unread."""
    body = b"\x1f\x8b not looked at"

    assert decode(body, name) is body
    assert Decoder.of(name) is None


@pytest.mark.parametrize(
    ("name", "compress"), [("gzip", gzip.compress), ("X-GZIP", gzip.compress), ("deflate", zlib.compress)]
)
@given(data=st.data(), plain=st.binary(max_size=200))
def test_every_chunking(name: str, compress: object, data: st.DataObject, plain: bytes) -> None:
    """What was compressed comes out the same, whole and in pieces."""
    packed = compress(plain)  # type: ignore[operator]
    decoder = Decoder.of(name)

    assert decoder is not None
    assert b"".join(decoder.feed(part) for part in data.draw(chunkings(packed))) == plain
    assert decode(packed, name) == plain


@given(st.data(), st.lists(st.tuples(st.binary(max_size=30), st.integers(0, 3)), min_size=1, max_size=4))
def test_members_that_follow_one_another(data: st.DataObject, members: list[tuple[bytes, int]]) -> None:
    """A gzip stream may have several members, and zeros after them: a client would read all, so must we."""
    packed = b"".join(gzip.compress(plain) + b"\0" * zeros for plain, zeros in members)
    decoder = Decoder()

    assert b"".join(decoder.feed(part) for part in data.draw(chunkings(packed))) == b"".join(p for p, _ in members)


@pytest.mark.parametrize("name", ["br", "zstd", "gzip, br", "x" * 1000])
def test_unknown(name: str) -> None:
    """An encoding that we cannot undo is the provider's fault, and is told in few words."""
    with pytest.raises(ProviderFailed) as failure:
        decode(b"", name)

    assert len(failure.value.message) < 120


@pytest.mark.parametrize(
    "body", [b"{}", gzip.compress(b"a", mtime=0)[:-8] + b"\xff" * 8, gzip.compress(b"a", mtime=0) + b"garbage"]
)
def test_damaged(body: bytes) -> None:
    """Damage anywhere is told, also behind the end."""
    with pytest.raises(ProviderFailed, match="damaged"):
        decode(body, "gzip")


@pytest.mark.parametrize("members", [1, 3])
def test_bomb(monkeypatch: pytest.MonkeyPatch, members: int) -> None:
    """What unpacks to more than the limit is refused, in one member or in several."""
    monkeypatch.setattr(encoding, "MAX_DECODED", 1000)

    assert decode(gzip.compress(b"\0" * 999), "gzip") == b"\0" * 999
    with pytest.raises(ProviderFailed, match="too large"):
        decode(gzip.compress(b"\0" * (1200 // members)) * members, "gzip")
