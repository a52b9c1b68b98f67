"""Load, from a process of its own: ``python -m bench.load '{"port": 8080, ...}' FILE`` writes what it measured as JSON.

Closed loop: each connection sends its next call when the answer before is whole. It speaks just enough HTTP/1.1
to cost little, since it shares the machine with what it measures.
"""

import asyncio
import json
import re
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import uvloop

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)

PATIENCE: Final = 60.0  # seconds beyond which a load that does not end is an error


@dataclass(slots=True)
class Load:
    """``seconds`` of calls over ``connections``; with ``streams`` each of them is one streamed call, to its end.

    ``body`` is the size of a request in bytes, ``pad`` included.
    """

    port: int
    connections: int = 1
    seconds: float = 1.0
    body: int = 0
    stream: bool = False
    key: str = ""


@dataclass(slots=True)
class Seen:
    """Seconds everywhere. ``first`` is the time to a stream's first event, ``gaps`` the times between events."""

    calls: int = 0
    failed: int = 0
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)


def request(load: Load) -> bytes:
    """The bytes of one call, always the same."""
    document: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": load.stream}
    body = json.dumps(document)
    if (missing := load.body - len(body)) > 0:
        body = body.replace('"hi"', f'"{"x" * (missing + 2)}"')
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {load.key}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return (head + body).encode()


class Caller(asyncio.Protocol):
    """One connection: call after call until ``deadline``."""

    def __init__(self, sent: bytes, seen: Seen, deadline: float) -> None:
        self._sent = sent
        self._seen = seen
        self._deadline = deadline
        self._missing = 0
        self._head = b""
        self._began = 0.0
        self._transport: asyncio.Transport
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._call()

    def connection_lost(self, _exc: Exception | None) -> None:
        if not self.done.done():
            self._seen.failed += 1
            self.done.set_result(None)

    def data_received(self, data: bytes) -> None:
        if not self._missing:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            length = _LENGTH.search(self._head, 0, end + 2)
            self._seen.failed += not self._head.startswith(b"HTTP/1.1 200")
            self._missing = int(length[1]) if length else 0
            data, self._head = self._head[end + 4 :], b""
        self._missing -= len(data)
        if self._missing > 0:
            return
        now = time.perf_counter()
        self._seen.calls += 1
        self._seen.latencies.append(now - self._began)
        if now < self._deadline:
            self._call()
        else:
            self.done.set_result(None)
            self._transport.close()

    def _call(self) -> None:
        self._began = time.perf_counter()
        self._transport.write(self._sent)


class Listener(asyncio.Protocol):
    """One streamed call; when each of its events arrived. The first chunk comes with the head."""

    def __init__(self, sent: bytes, seen: Seen) -> None:
        self._sent = sent
        self._seen = seen
        self._last: float | None = None
        self._began = 0.0
        self._tail = b""
        self._transport: asyncio.Transport
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._began = time.perf_counter()
        self._transport.write(self._sent)

    def connection_lost(self, _exc: Exception | None) -> None:
        if not self.done.done():
            self._seen.failed += 1
            self.done.set_result(None)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        events = data.count(b"data: {")
        if events and self._last is None:
            self._seen.first.append(now - self._began)
            self._last = now
            events -= 1
        if events and self._last is not None:
            self._seen.gaps.append(now - self._last)
            self._seen.gaps += [0.0] * (events - 1)  # arrived together
            self._last = now
        self._tail = (self._tail + data)[-16:]
        if self._tail.endswith(b"0\r\n\r\n"):
            self._seen.calls += 1
            self.done.set_result(None)
            self._transport.close()


async def run(load: Load) -> Seen:
    """Returns when every connection is done."""
    loop, seen, sent = asyncio.get_running_loop(), Seen(), request(load)
    began = time.perf_counter()
    callers: list[Caller | Listener] = []
    for number in range(load.connections):
        caller = Listener(sent, seen) if load.stream else Caller(sent, seen, began + load.seconds)
        await loop.create_connection(lambda caller=caller: caller, "127.0.0.1", load.port)
        callers.append(caller)
        if load.stream and number % 10 == 9:
            await asyncio.sleep(0.02)  # streams that all began at once would come in step
    async with asyncio.timeout(load.seconds + PATIENCE):
        await asyncio.gather(*(caller.done for caller in callers))
    seen.seconds = time.perf_counter() - began
    return seen


if __name__ == "__main__":
    measured = uvloop.run(run(Load(**json.loads(sys.argv[1]))))
    Path(sys.argv[2]).write_text(json.dumps(asdict(measured)))
