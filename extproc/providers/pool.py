"""The keys of a provider: which one an attempt uses, and how long one that was refused is left alone."""

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, Final, Literal
from weakref import WeakValueDictionary

from extproc.core.secret import Secret

Pick = Literal["least_used", "sticky"]

LADDERS: Final[dict[int, tuple[float, float]]] = {
    401: (300.0, 3600.0),
    402: (1800.0, 21600.0),
    403: (300.0, 3600.0),
    429: (10.0, 300.0),
}
"""Status that is about the key → seconds of the first cool-down, and of the longest; each is twice the one before."""
MAX_RETRY_AFTER: Final = 3600.0
_MIN: Final = 1.0  # seconds: nothing that is shorter is worth a cool-down, or a change of one


class KeyState:
    """What is known of a key. ``turn``: the more it was used for its weight, the later its turn comes."""

    __slots__ = ("__weakref__", "failures", "seconds", "status", "step", "turn", "until")

    def __init__(self) -> None:
        self.turn = 0.0
        self.until = -math.inf
        self.seconds = 0.0
        self.step = 0
        self.status = 0
        self.failures = 0

    def failed(self, status: int, retry_after: float | None, now: float) -> float:
        """Cool down. Returns for how many seconds from now; 0 where that changes nothing.

        What fails while it is cooling was under way before, or had no other key to use: that is no new step.
        """
        cooling = now < self.until
        goes_on = status == self.status and now < self.until + 2 * self.seconds
        step = 0 if not goes_on else self.step if cooling else self.step + 1
        asked = retry_after if status == 429 else None
        first, longest = LADDERS[status]
        seconds = min(first * 2.0**step, longest) if asked is None else min(max(asked, _MIN), MAX_RETRY_AFTER)
        self.failures += 1
        if cooling and ((goes_on and asked is None) or now + seconds < self.until + _MIN):
            return 0.0
        self.status, self.step, self.seconds, self.until = status, step, seconds, now + seconds
        return seconds


@dataclass(frozen=True, slots=True)
class Key:
    """A key. ``id`` names it where it is shown: the first eight hexadecimal digits of its SHA-256."""

    secret: Secret
    id: str
    state: KeyState
    weight: int = 1
    label: str = ""


class Pool:
    """The keys of one provider in one configuration; ``clock`` is monotonic."""

    def __init__(self, keys: Sequence[Key], *, by: Pick, clock: Callable[[], float]) -> None:
        self.keys = tuple(keys)
        self._by = by
        self._clock = clock
        # Whose turn it was last, under this configuration or the one before.
        self._turn = max((key.state.turn - 1 / key.weight for key in keys if key.state.turn), default=0.0)

    def pick(self, consumer: str) -> Key | None:
        """The key for an attempt of this consumer; None where the provider has none.

        When all of them cool down it is the one that comes back first: a provider that still refuses shows it itself.
        """
        now = self._clock()
        healthy = [key for key in self.keys if key.state.until <= now]
        if not healthy:
            return min(self.keys, key=lambda key: key.state.until, default=None)
        if self._by == "sticky":
            return min(healthy, key=lambda key: _distance(consumer, key))
        return self._least_used(healthy)

    def _least_used(self, healthy: Sequence[Key]) -> Key:
        """Start-time fair queueing: a key that was away gets its share again, and nothing to catch up on."""
        key = min(healthy, key=lambda key: max(key.state.turn, self._turn))
        self._turn = max(key.state.turn, self._turn)
        key.state.turn = self._turn + 1 / key.weight
        return key

    def state(self, wall: float) -> list[dict[str, Any]]:
        """Each key for those who look after it. ``wall``: seconds since the epoch now, as ``cooling_until`` is."""
        now = self._clock()
        return [
            {
                "key": key.id,
                "label": key.label,
                "weight": key.weight,
                "available": key.state.until <= now,
                "cooling_until": wall + key.state.until - now if key.state.until > now else None,
                "failures": key.state.failures,
                "last_status": key.state.status or None,
            }
            for key in self.keys
        ]


class Pools:
    """What a process knows of keys. It outlives configurations, for as long as one of them has the key."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._states: WeakValueDictionary[tuple[str, str], KeyState] = WeakValueDictionary()

    def pool(self, provider: str, keys: Iterable[tuple[Secret, int, str]], *, by: Pick = "least_used") -> Pool:
        """The pool of a provider with these keys, weights and labels."""
        made = []
        for secret, weight, label in keys:
            name = key_id(secret)
            state = self._states.setdefault((provider, name), KeyState())
            made.append(Key(secret, name, state, weight, label))
        return Pool(made, by=by, clock=self._clock)

    def failed(self, provider: str, key: str, status: int, retry_after: float | None) -> float | None:
        """A provider refused this key. Returns the seconds for which it cools from now on, 0 where nothing changes.

        None: there is no such key, or the status is not about it.
        """
        state = self._states.get((provider, key))
        return state.failed(status, retry_after, self._clock()) if state and status in LADDERS else None

    def cooling(self) -> list[tuple[str, str, float]]:
        """Provider, key and seconds of each that is left alone now."""
        now = self._clock()
        return [(*name, state.until - now) for name, state in self._states.items() if state.until > now]

    def cool(self, provider: str, key: str, seconds: float) -> None:
        """Leave a key alone, because another process said so."""
        state = self._states.get((provider, key))
        if state is not None:
            state.until = self._clock() + seconds


def key_id(secret: Secret) -> str:
    return hashlib.sha256(secret.reveal().encode()).hexdigest()[:8]


def retry_after(text: str, now: float) -> float | None:
    """Seconds to wait by a ``retry-after`` header (RFC 9110, 10.2.3); None where it says nothing that can be read.

    ``now``: seconds since the epoch, for a header that names a date.
    """
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text[:10])
    try:
        date = parsedate_to_datetime(text)
        return max(date.replace(tzinfo=date.tzinfo or UTC).timestamp() - now, 0.0)
    except (ValueError, TypeError, OverflowError):
        return None


def _distance(consumer: str, key: Key) -> float:
    """Weighted rendezvous hashing: a consumer keeps its key while that is there, whatever happens to the others."""
    digest = hashlib.sha256(f"{consumer}\0{key.id}".encode()).digest()
    return -math.log((int.from_bytes(digest[:8]) + 1) / 2**64) / key.weight
