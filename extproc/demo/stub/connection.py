"""One client connection of a stub: requests in, answers out at the pace and with the faults that were asked for."""

import asyncio
import socket
import struct
import zlib
from collections.abc import Iterator
from itertools import islice
from typing import Protocol, cast

from extproc.demo.stub.behaviour import Behaviour
from extproc.demo.stub.http1 import LAST_CHUNK, BadRequestError, Received, RequestParser, chunk, head
from extproc.demo.stub.script import Answer

GARBAGE = b"<html><body>\xff\xfe upstream says hello </body></html>"
BEFORE_RESET = 0.02  # seconds in which bytes already written can leave; a reset throws away what did not
KEEP_ALIVE = b": keep-alive\n\n"


class Owner(Protocol):
    """What a connection needs of the stub that it belongs to."""

    name: str
    aborted: int
    connections: "set[Connection]"

    def answer(self, request: Received) -> tuple[Behaviour, Answer]: ...

    def error(self, status: int, message: str) -> Answer: ...


class Connection(asyncio.Protocol):
    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._parser = RequestParser()
        self._busy = False  # from a request's arrival to its answer's last byte
        self._writable = asyncio.Event()
        self._writable.set()
        self._task: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._owner.connections.add(self)
        self.closed = asyncio.get_running_loop().create_future()

    def connection_lost(self, _exc: Exception | None) -> None:
        self._owner.connections.discard(self)
        if self._busy:
            self._owner.aborted += 1
        if self._task is not None:
            self._task.cancel()
        self.closed.set_result(None)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        self._parser.feed(data)
        self._serve()

    async def abort(self) -> None:
        """Close at once, of the stub's own accord, and wait until nothing of the connection is left."""
        task, self._busy = self._task, False
        self._transport.abort()
        await self.closed
        if task is not None:
            await asyncio.wait([task])

    def _serve(self) -> None:
        while not self._busy and not self._transport.is_closing():
            try:
                request = self._parser.next_request()
            except BadRequestError as error:
                self._send(self._owner.error(400, str(error)), Behaviour(), close=True, body=True)
                return
            if request is None:
                return
            behaviour, answer = self._owner.answer(request)
            close = request.headers.get("connection", "").lower() == "close"
            body = request.method != "HEAD"
            if isinstance(answer.body, bytes) and (not body or _plain(behaviour)):
                self._send(answer, behaviour, close=close, body=body)
                continue
            self._busy = True
            self._task = asyncio.get_running_loop().create_task(self._deliver(answer, behaviour, close=close))
            self._task.add_done_callback(self._delivered)

    def _send(self, answer: Answer, behaviour: Behaviour, *, close: bool, body: bool) -> None:
        whole = cast("bytes", answer.body)
        first = self._head(answer, behaviour, {"content-length": str(len(whole))}, close=close)
        self._transport.write(first + whole if body else first)
        if close:
            self._transport.close()

    def _delivered(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            context = {"message": "A stub failed to answer.", "exception": error, "protocol": self}
            asyncio.get_running_loop().call_exception_handler(context)
            self._busy = False
            self._transport.abort()
        self._serve()

    async def _deliver(self, answer: Answer, behaviour: Behaviour, *, close: bool) -> None:
        fault = behaviour.fault
        if fault == "silent":
            return  # and busy for ever
        if fault == "reset":
            self._reset()
            return
        if behaviour.delay:
            await asyncio.sleep(behaviour.delay)
        if fault == "garbage" and answer.status == 200:
            answer.body = GARBAGE
        queue = behaviour.queue if answer.status == 200 else 0.0
        cut = fault in ("reset_mid", "stall_mid")
        pack = zlib.compressobj(wbits=31) if behaviour.gzip else None
        if isinstance(answer.body, bytes) and not queue:
            whole = pack.compress(answer.body) + pack.flush() if pack else answer.body
            self._transport.write(self._head(answer, behaviour, {"content-length": str(len(whole))}, close=close))
            await self._write(whole[: len(whole) // 2] if cut else whole, behaviour.chunking, framed=False)
        else:
            self._transport.write(self._head(answer, behaviour, {"transfer-encoding": "chunked"}, close=close))
            await self._stream(answer, behaviour, queue, pack, cut=cut)
        if fault == "reset_mid":
            await asyncio.sleep(BEFORE_RESET)
            self._reset()
        elif fault != "stall_mid":
            self._busy = False
            if close:
                self._transport.close()

    async def _stream(
        self, answer: Answer, behaviour: Behaviour, queue: float, pack: "zlib._Compress | None", *, cut: bool
    ) -> None:
        """The body in chunks: first the signs of life of a call that waits, then the answer."""

        def packed(data: bytes) -> bytes:
            return pack.compress(data) + pack.flush(zlib.Z_SYNC_FLUSH) if pack else data

        whole = isinstance(answer.body, bytes)
        if queue:
            every = min(1.0, queue / 4)
            for _ in range(round(queue / every)):
                await self._write(packed(b"\n" if whole else KEEP_ALIVE), behaviour.chunking, framed=True)
                await asyncio.sleep(every)
        pace, now = behaviour.pace, asyncio.get_running_loop().time
        due = now()
        for number, part in enumerate(_parts(answer.body, behaviour, cut=cut)):
            if number and pace:
                due = max(due + pace, now())
                await asyncio.sleep(due - now())
            await self._write(packed(part), behaviour.chunking, framed=True)
            if self._transport.is_closing():
                return
        if not cut:
            if pack:
                await self._write(pack.flush(), behaviour.chunking, framed=True)
            self._transport.write(LAST_CHUNK)

    async def _write(self, data: bytes, size: int | None, *, framed: bool) -> None:
        """Write in network pieces of ``size`` bytes, each given to the network before the next."""
        for at in range(0, len(data), size or max(1, len(data))):
            piece = data[at : at + size] if size else data
            self._transport.write(chunk(piece) if framed else piece)
            if size:
                await asyncio.sleep(0)
            await self._writable.wait()

    def _head(self, answer: Answer, behaviour: Behaviour, framing: dict[str, str], *, close: bool) -> bytes:
        headers = {"content-type": answer.content_type, "x-served-by": self._owner.name, **framing}
        if behaviour.gzip:
            headers["content-encoding"] = "gzip"
        if close:
            headers["connection"] = "close"
        headers.update((name.lower(), value) for name, value in behaviour.headers.items())
        return head(answer.status, headers)

    def _reset(self) -> None:
        """Close so that the peer sees a reset: no lingering (socket(7))."""
        self._busy = False
        sock: socket.socket = self._transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()


def _plain(behaviour: Behaviour) -> bool:
    """Whether a whole body can be written at once."""
    return not (
        behaviour.fault or behaviour.delay or behaviour.queue or behaviour.chunking is not None or behaviour.gzip
    )


def _parts(body: bytes | Iterator[bytes], behaviour: Behaviour, *, cut: bool) -> Iterator[bytes]:
    """What is written one after the other: events, or all at once where network pieces may span events."""
    if isinstance(body, bytes):
        return iter([body[: len(body) // 2] if cut else body])
    events = islice(body, behaviour.fault_after) if cut else body
    return iter([b"".join(events)]) if behaviour.chunking is not None and not behaviour.pace else events
