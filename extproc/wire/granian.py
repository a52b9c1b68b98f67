"""Driver on granian (HTTP/2 in Rust, ASGI): ext_proc only, at half the CPU of grpc.aio.

granian has no trailers. A failure before the first answer travels as a status in the headers ("Trailers-Only"
in gRPC's HTTP/2 protocol); later, the stream is reset. A stream that the peer has finished ends without a status.
Health is a plain ``GET /healthz``: 200 while serving, 503 when draining.
"""

import asyncio
import errno
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from struct import Struct
from typing import Any, Final
from urllib.parse import quote

import grpc
import structlog
from granian import net
from granian.constants import HTTPModes, Interfaces, SSLProtocols
from granian.http import HTTP2Settings
from granian.server.embed import Server as Granian

from extproc.wire.driver import (
    METHOD,
    OpenSession,
    SocketFile,
    Stream,
    StreamError,
    Streams,
    Tls,
    metadata_of,
    placing,
    unix_path,
)

_CLEANUP: Final = 5.0  # seconds that a cut stream gets to notice
_LOOK_AHEAD: Final = 0.5  # seconds between looks for peers that left while their session is at work
_AHEAD: Final = 256 * 1024  # bytes read for that
_BACKLOG: Final = 4096
_MANY: Final = 2**31 - 1

_HTTP2: Final = HTTP2Settings(
    # A slow session holds back its own stream; it must never fill the window of all the others.
    initial_connection_window_size=2**30,
    initial_stream_window_size=256 * 1024,
    max_frame_size=256 * 1024,
    max_concurrent_streams=_MANY,
    max_headers_size=64 * 1024,
    keep_alive_interval=60_000,
    keep_alive_timeout=20,
)

_Event = dict[str, Any]
_Receive = Callable[[], Awaitable[_Event]]
_Send = Callable[[_Event], Awaitable[None]]

_log = structlog.get_logger("extproc.wire")

_PREFIX: Final = Struct(">BI")
_GRPC: Final = (b"content-type", b"application/grpc")
_START: Final = {"type": "http.response.start", "status": 200, "headers": [_GRPC]}
_END: Final = {"type": "http.response.body", "body": b"", "more_body": False}


class Frames:
    """gRPC's messages, each behind a flag and a length, out of pieces of any size."""

    __slots__ = ("_max", "_needed", "_pieces", "_size")

    def __init__(self, max_message: int) -> None:
        self._max = max_message
        self._pieces: list[bytes] = []
        self._size = 0
        self._needed = _PREFIX.size

    def feed(self, data: bytes) -> list[bytes]:
        """Give the messages that ``data`` completes. Raises StreamError for a message that we do not take."""
        if self._pieces:
            self._pieces.append(data)
            self._size += len(data)
            if self._size < self._needed:
                return []
            data = b"".join(self._pieces)
            self._pieces = []
        messages = []
        start, end = 0, len(data)
        self._needed = _PREFIX.size
        while end - start >= _PREFIX.size:
            compressed, length = _PREFIX.unpack_from(data, start)
            if compressed:
                raise StreamError(grpc.StatusCode.UNIMPLEMENTED, "compressed messages are not accepted")
            if length > self._max:
                text = f"a message of {length} bytes is over the limit of {self._max}"
                raise StreamError(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
            stop = start + _PREFIX.size + length
            if stop > end:
                self._needed = stop - start
                break
            messages.append(data[start + _PREFIX.size : stop])
            start = stop
        if start < end:
            self._pieces = [data[start:]]
            self._size = end - start
        return messages

    def finish(self) -> None:
        """Nothing more comes. Raises StreamError inside a message."""
        if self._pieces:
            raise StreamError(grpc.StatusCode.INTERNAL, "the stream ended inside a message")


def frame(messages: Iterable[bytes]) -> bytes:
    """Put gRPC's flag and length before each message."""
    return b"".join(part for message in messages for part in (_PREFIX.pack(0, len(message)), message))


class _Reader:
    """A stream's messages. While its session is at work, a little is read ahead, to notice a peer that left."""

    __slots__ = ("_ahead", "_ended", "_frames", "_pending", "_receive", "_size", "_stream")

    def __init__(self, receive: _Receive, max_message: int, stream: Stream) -> None:
        self._receive = receive
        self._frames = Frames(max_message)
        self._stream = stream
        self._ahead: deque[_Event] = deque()
        self._size = 0
        self._pending: asyncio.Future[_Event] | None = None
        self._ended = False

    async def read(self) -> list[bytes] | None:
        while not self._ended:
            if self._ahead:
                event = self._ahead.popleft()
                self._size -= len(event["body"])
            else:
                pending, self._pending = self._pending, None
                event = await (self._receive() if pending is None else pending)
            self._ended = not event.get("more_body", False)
            messages = self._frames.feed(event.get("body", b""))
            if messages:
                return messages
        self._frames.finish()
        return None

    def look_ahead(self) -> None:
        if self._stream.busy and self._pending is None and not self._ended and self._size < _AHEAD:
            self._pending = asyncio.ensure_future(self._receive())
            self._pending.add_done_callback(self._looked)

    def close(self) -> None:
        if self._pending is not None:
            self._pending.cancel()

    def _looked(self, pending: asyncio.Future[_Event]) -> None:
        if self._pending is not pending or pending.cancelled():
            return  # read() has it
        self._pending = None
        if pending.exception() is not None or not pending.result().get("more_body", False):
            self._ended = True
            self._stream.cut(StreamError(grpc.StatusCode.CANCELLED, "the peer has left"))
            return
        event = pending.result()
        self._ahead.append(event)
        self._size += len(event["body"])
        self.look_ahead()


class _Response:
    """The answering half of a stream."""

    __slots__ = ("_begun", "_send")

    def __init__(self, send: _Send) -> None:
        self._send = send
        self._begun = False

    async def write(self, messages: list[bytes]) -> None:
        if not self._begun:
            self._begun = True
            await self._send(_START)
        await self._send({"type": "http.response.body", "body": frame(messages), "more_body": True})

    async def end(self) -> None:
        """The peer has finished."""
        if self._begun:
            await self._send(_END)
        else:
            await self._status(grpc.StatusCode.OK, "")

    async def fail(self, error: StreamError) -> None:
        """Let the peer see a failure; granian resets a stream that has begun and is left without an end."""
        if not self._begun:
            await self._status(error.code, error.text)

    async def _status(self, code: grpc.StatusCode, text: str) -> None:
        status = [(b"grpc-status", b"%d" % code.value[0]), (b"grpc-message", quote(text, safe=" ").encode())]
        await self._send({**_START, "headers": [_GRPC, *status]})
        await self._send(_END)


class _Granian(Granian):
    """granian inside this process and event loop, on a socket that is bound already."""

    def __init__(self, target: Callable[..., Awaitable[None]], tls: Tls | None, sock: socket.socket) -> None:
        super().__init__(
            target,
            interface=Interfaces.ASGINL,
            http=HTTPModes.http2,
            http2_settings=_HTTP2,
            websockets=False,
            backlog=_BACKLOG,
            backpressure=_MANY,
            log_enabled=False,  # what matters of a stream we log ourselves
            # leaves the handlers of this process alone
            log_dictconfig={"incremental": True, "formatters": {}, "handlers": {}, "loggers": {}},
            ssl_cert=tls.cert if tls else None,
            ssl_key=tls.key if tls else None,
            ssl_ca=tls.client_ca if tls else None,
            ssl_client_verify=tls is not None and tls.client_ca is not None,
            ssl_protocol_min=SSLProtocols.tls12,  # Envoy's default as a client
        )
        self._bound = sock

    def finish(self) -> None:
        """Accept no more and say GOAWAY; ``serve`` returns when the last stream is over."""
        self.interrupt_signal = True
        self.main_loop_interrupt.set()

    def abandon(self) -> None:
        """Leave connections that do not end to the end of the process."""
        worker: Any
        for worker in self.wrks:
            worker.kill()

    def _init_shared_socket(self) -> None:
        unix = self._bound.family == socket.AF_UNIX
        holder: Any = vars(net)["SocketHolder"]  # its stub knows no constructor
        self._shd = holder(self._bound.detach(), unix, _BACKLOG)


class GranianServer:
    """ext_proc on ``unix:path`` or ``host:port``; messages up to ``max_message`` bytes."""

    def __init__(self, address: str, open_session: OpenSession, *, tls: Tls | None, max_message: int) -> None:
        self._address = address
        self._tls = tls
        self._max_message = max_message
        self._streams = Streams(open_session)
        self._readers: set[_Reader] = set()
        self._draining = False
        self._stopping = False
        self._granian: _Granian | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._file: SocketFile | None = None

    @property
    def streams(self) -> int:
        return len(self._streams)

    async def start(self) -> None:
        if self._tls is not None:
            self._tls.check()
        path = unix_path(self._address)
        if path is None:
            sock = _tcp(self._address)
        else:
            with placing(path) as place:
                sock = _listening(socket.AF_UNIX, str(place))
            self._file = SocketFile.at(path)
        self._granian = _Granian(self._app, self._tls, sock)
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._granian.serve()), loop.create_task(self._look_ahead())]
        while not self._granian.wrks:
            if self._tasks[0].done():
                await self._tasks[0]
            await asyncio.sleep(0)

    async def wait(self) -> None:
        await asyncio.shield(self._tasks[0])

    async def drain(self) -> None:
        self._draining = True

    async def stop(self, grace: float) -> None:
        if self._granian is None:
            return
        self._draining = self._stopping = True
        if self._file is not None:
            self._file.remove()
        self._granian.finish()
        if not await self._streams.wait_empty(grace):
            self._streams.cut(StreamError(grpc.StatusCode.UNAVAILABLE, "the processor is stopping"))
            if not await self._streams.wait_empty(_CLEANUP):
                _log.warning("streams do not end", streams=len(self._streams))
        await asyncio.wait(self._tasks[:1], timeout=_CLEANUP)
        self._granian.abandon()
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        await self._streams.settle()

    async def _look_ahead(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_AHEAD)
            for reader in list(self._readers):
                reader.look_ahead()

    async def _app(self, scope: dict[str, Any], receive: _Receive, send: _Send) -> None:
        match scope["path"], scope["method"]:
            case "/healthz", "GET" | "HEAD":
                await _plain(send, *((503, b"NOT_SERVING") if self._draining else (200, b"SERVING")))
            case path, "POST" if path == METHOD:
                pairs = ((name.decode("latin-1"), value) for name, value in scope["headers"])
                metadata = metadata_of(pairs)
                if metadata.get("content-type", "").startswith("application/grpc"):
                    await self._process(metadata, receive, send)
                else:
                    await _plain(send, 415, b"gRPC is spoken here")
            case path, _ if path in {METHOD, "/healthz"}:
                await _plain(send, 405, b"no such method here")
            case _:
                await _plain(send, 404, b"nothing here")

    async def _process(self, metadata: dict[str, str], receive: _Receive, send: _Send) -> None:
        response = _Response(send)
        try:
            if self._stopping:
                raise StreamError(grpc.StatusCode.UNAVAILABLE, "the processor is stopping")
            stream = self._streams.open(metadata, response.write)
            reader = _Reader(receive, self._max_message, stream)
            self._readers.add(reader)
            try:
                await stream.run(reader.read)
            finally:
                self._readers.discard(reader)
                reader.close()
        except StreamError as error:
            await response.fail(error)
        else:
            await response.end()


async def _plain(send: _Send, status: int, text: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": text, "more_body": False})


def _tcp(address: str) -> socket.socket:
    """Listen on ``host:port``; the first address of the host counts, IPv4 before IPv6."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        raise OSError(errno.EINVAL, "neither unix:path nor host:port", address)
    found = socket.getaddrinfo(host.strip("[]") or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, target = min(found, key=lambda info: info[0] != socket.AF_INET)
    try:
        return _listening(family, target)
    except OSError as error:
        raise OSError(error.errno, error.strerror, address) from error


def _listening(family: int, target: str | tuple[Any, ...]) -> socket.socket:
    sock = socket.socket(family)
    try:
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.bind(target)
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock
