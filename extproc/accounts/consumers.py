"""Who holds which key."""

import hashlib
import hmac
from collections.abc import Iterable, Mapping

from extproc.core.call import Consumer

_PREFIX = 8  # bytes of a digest that choose the bucket; the whole is compared in constant time


class Consumers:
    """Finds the consumer of a key. Keys are known by their SHA-256 alone."""

    def __init__(self, consumers: Mapping[str, Consumer], digests: Mapping[str, Iterable[bytes]]) -> None:
        self._buckets: dict[bytes, list[tuple[bytes, Consumer]]] = {}
        for name, keys in digests.items():
            for digest in keys:
                self._buckets.setdefault(digest[:_PREFIX], []).append((digest, consumers[name]))

    def find(self, key: str) -> Consumer | None:
        digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
        for known, consumer in self._buckets.get(digest[:_PREFIX], ()):
            if hmac.compare_digest(known, digest):
                return consumer
        return None
