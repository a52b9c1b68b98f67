"""Compressed answers. We ask providers for identity; some compress all the same."""

import zlib
from typing import Final

from extproc.core.errors import ProviderFailed

MAX_DECODED: Final = 64 << 20  # bytes: a small compressed body must not fill the memory


class Decoder:
    """Incremental gzip or deflate: one decompressor a stream."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=47)  # 32 + 15: gzip or zlib by its header

    @classmethod
    def of(cls, encoding: str) -> "Decoder | None":
        """The decoder for a content-encoding, None where there is nothing to undo."""
        name = encoding.strip().lower()
        if name in ("", "identity"):
            return None
        if name in ("gzip", "x-gzip", "deflate"):
            return cls()
        raise ProviderFailed(f"The provider compressed its answer with {name[:20]!r}, which the gateway cannot read.")

    def feed(self, piece: bytes) -> bytes:
        """The bytes that became readable; raises ProviderFailed on a damaged or absurdly large stream."""
        plain = b""
        while piece:
            try:
                plain += self._zlib.decompress(piece, MAX_DECODED - len(plain))
            except zlib.error as error:
                raise ProviderFailed("The provider's compressed answer is damaged.") from error
            if self._zlib.unconsumed_tail or len(plain) >= MAX_DECODED:
                raise ProviderFailed("The provider's compressed answer is too large.")
            # RFC 1952, 2.2: members may follow one another; zeros may pad them.
            piece = self._zlib.unused_data.lstrip(b"\0")
            if piece:
                self._zlib = zlib.decompressobj(wbits=47)
        return plain


def decode(body: bytes, encoding: str) -> bytes:
    """The whole body, readable; the very same object where it was not compressed."""
    decoder = Decoder.of(encoding)
    return body if decoder is None else decoder.feed(body)
