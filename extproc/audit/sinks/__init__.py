"""Where records go besides the database: each optional, each with a queue of its own that can slow nobody."""

import threading
from collections import deque
from collections.abc import Sequence
from typing import Final, Protocol

from extproc.audit.record import Record

QUEUE: Final = 64 << 20
"""Bytes of records that may wait for one sink; what comes then is dropped, and counted."""
BATCH: Final = 500
TRIES: Final = 5
PATIENCE: Final = 5.0
"""Seconds that a sink has at the end for what still waits."""


class Sink(Protocol):
    """Takes records somewhere. Blocking."""

    name: str

    def write(self, records: Sequence[Record]) -> None:
        """Raises where it could not; then the same records come again, some times."""

    def close(self) -> None: ...


class Watch(Protocol):
    """What a queue tells its owner. Called from its thread."""

    def dropped(self, where: str, records: int) -> None: ...
    def trouble(self, work: str, error: BaseException) -> None: ...


class SinkQueue:
    """A sink, and the thread that feeds it: a daemon, since a sink that hangs must not keep the process."""

    def __init__(self, sink: Sink, watch: Watch, *, most: int = QUEUE, pause: float = 1.0) -> None:
        """``pause``: seconds before the second try, then twice as many each time."""
        self._sink = sink
        self._watch = watch
        self._most = most
        self._pause = pause
        self._records: deque[tuple[Record, int]] = deque()
        self._size = 0
        self._changed = threading.Condition()
        self._ending = False
        self._thread = threading.Thread(target=self._run, name=f"audit-{sink.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, record: Record, size: int) -> None:
        """``size``: bytes that it takes."""
        with self._changed:
            full = self._size + size > self._most
            if not full:
                self._records.append((record, size))
                self._size += size
                self._changed.notify()
        if full:
            self._watch.dropped(self._sink.name, 1)

    def stop(self, patience: float = PATIENCE) -> None:
        """Blocks until what waits is written, for ``patience`` seconds at most; the rest is dropped."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        self._thread.join(patience)
        if self._records:
            self._watch.dropped(self._sink.name, len(self._records))

    def _run(self) -> None:
        while batch := self._batch():
            if not self._written(batch):
                self._watch.dropped(self._sink.name, len(batch))
            with self._changed:
                for _ in batch:
                    self._size -= self._records.popleft()[1]
        self._sink.close()

    def _batch(self) -> list[Record]:
        """Waits for some; empty at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._records or self._ending)
            return [self._records[place][0] for place in range(min(BATCH, len(self._records)))]

    def _written(self, batch: Sequence[Record]) -> bool:
        pause = self._pause
        for _ in range(TRIES):
            try:
                self._sink.write(batch)
            except Exception as error:  # noqa: BLE001 - told, and tried again
                self._watch.trouble(self._sink.name, error)
            else:
                return True
            with self._changed:
                if self._changed.wait_for(lambda: self._ending, pause):
                    break
            pause *= 2
        return False
