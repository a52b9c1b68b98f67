"""What the drivers of Envoy's ext_proc service share: the life of a stream, its silence, its end, its address."""

import asyncio
import errno
import os
import secrets
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import grpc
import structlog

SERVICE: Final = "envoy.service.ext_proc.v3.ExternalProcessor"
METHOD: Final = f"/{SERVICE}/Process"

_log = structlog.get_logger("extproc.wire")


class Session(Protocol):
    """One ext_proc stream, sans-io: serialized ProcessingRequests in, serialized ProcessingResponses out."""

    @property
    def idle_timeout(self) -> float | None:
        """Seconds without a message after which ``on_idle`` is due; None: never. May change after any message."""

    async def receive(self, messages: list[bytes]) -> list[bytes]:
        """Answer messages that arrived together, in order. An exception ends the stream with an error."""

    async def on_idle(self) -> list[bytes]:
        """Say what to send into the silence; the silence is counted anew from here."""

    async def close(self) -> None:
        """The stream is over, however it ended: called exactly once, after everything else, in a task of its own."""


OpenSession = Callable[[Mapping[str, str]], Session]
"""Gives the session for a stream's initial metadata (lower-case names). ValueError: the metadata is not acceptable."""


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files. With ``client_ca``, clients must show a certificate signed by it."""

    cert: Path
    key: Path
    client_ca: Path | None = None

    def check(self) -> None:
        """Raise OSError unless the files can be read and fit together."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.cert, self.key)
            if self.client_ca is not None:
                context.load_verify_locations(self.client_ca)
        except OSError as error:
            raise OSError(error.errno, f"TLS files {self.cert}, {self.key}, {self.client_ca}: {error}") from error


class Server(Protocol):
    """A listening ext_proc service."""

    @property
    def streams(self) -> int:
        """Streams open now."""

    async def start(self) -> None:
        """Listen. Raises OSError or RuntimeError when the address or the TLS files do not work."""

    async def wait(self) -> None:
        """Until it has ended: stopped, or by itself; raises what ended it, where that is known."""

    async def drain(self) -> None:
        """Turn the health check to "not serving"; streams, old and new, are served as before."""

    async def stop(self, grace: float) -> None:
        """Take no new streams, give open ones ``grace`` seconds, cut the rest with an error, wait for every close."""


class StreamError(Exception):
    """The stream must end with this gRPC status, which is never OK."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


_BUG: Final = (grpc.StatusCode.INTERNAL, "the processor failed")


def metadata_of(pairs: Iterable[tuple[str, str | bytes]]) -> dict[str, str]:
    """Give a stream's initial metadata by lower-case name: repeated values joined by a comma, binary ones left out."""
    found: dict[str, str] = {}
    for name, value in pairs:
        if name.startswith(":") or name.endswith("-bin"):
            continue
        text = value if isinstance(value, str) else value.decode("latin-1")
        found[name] = f"{found[name]},{text}" if name in found else text
    return found


class Streams:
    """The open streams of a server, and the closes that are still under way."""

    def __init__(self, open_session: OpenSession) -> None:
        self._open_session = open_session
        self._open: set[Stream] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return len(self._open)

    def open(self, metadata: Mapping[str, str], write: Callable[[list[bytes]], Awaitable[None]]) -> "Stream":
        """Begin a stream, owned by the running task, which must ``run`` it at once. Raises StreamError."""
        try:
            session = self._open_session(metadata)
        except ValueError as error:
            raise StreamError(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error
        except Exception as error:
            _log.exception("session not opened")
            raise StreamError(*_BUG) from error
        stream = Stream(session, write, self)
        self._open.add(stream)
        self._empty.clear()
        return stream

    def ended(self, stream: "Stream", close: Awaitable[None]) -> None:
        """Forget a stream and keep its ``close`` alive until it is done."""
        self._open.discard(stream)
        task = asyncio.get_running_loop().create_task(_logged(close))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        if not self._open:
            self._empty.set()

    def cut(self, error: StreamError) -> None:
        """End every open stream with ``error``."""
        for stream in list(self._open):
            stream.cut(error)

    async def wait_empty(self, seconds: float) -> bool:
        """Wait until no stream is open; False when some still were after ``seconds``."""
        try:
            await asyncio.wait_for(self._empty.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def settle(self) -> None:
        """Wait until every stream that ended is closed."""
        while self._closing:
            await asyncio.wait(self._closing)


async def _logged(close: Awaitable[None]) -> None:
    try:
        await close
    except Exception:  # noqa: BLE001 - the last to see it
        _log.exception("session not closed")


class Stream:
    """One open stream: feeds its session, one thing at a time, and notices silence.

    The clock is read once a message; a timer is set only when none is that fires early enough.
    """

    __slots__ = (
        "_cause",
        "_due",
        "_idle",
        "_last",
        "_lock",
        "_loop",
        "_session",
        "_streams",
        "_task",
        "_timer",
        "_write",
    )

    def __init__(self, session: Session, write: Callable[[list[bytes]], Awaitable[None]], streams: Streams) -> None:
        self._session = session
        self._write = write
        self._streams = streams
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._lock = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._last = 0.0
        self._idle: asyncio.Task[None] | None = None
        self._cause: StreamError | None = None

    @property
    def busy(self) -> bool:
        """The session is at work, or its output is on its way."""
        return self._lock.locked()

    async def run(self, read: Callable[[], Awaitable[list[bytes] | None]]) -> None:
        """Carry messages from ``read`` (None: the peer has finished) to the session until the stream is over.

        Raises StreamError where the peer must see a failure.
        """
        try:
            self._listen()
            while (messages := await read()) is not None:
                async with self._lock:
                    out = await self._session.receive(messages)
                    if out:
                        await self._write(out)
                self._listen()
        except asyncio.CancelledError:
            if self._cause is None or self._task is None:
                raise
            self._task.uncancel()
            raise self._cause from None
        except StreamError:
            raise
        except Exception as error:
            _log.exception("stream failed")
            raise StreamError(*_BUG) from error
        finally:
            self._task = None
            if self._timer is not None:
                self._timer.cancel()
            self._streams.ended(self, self._close())

    def cut(self, error: StreamError) -> None:
        """End the stream with ``error``, whatever it is doing."""
        if self._task is not None and self._cause is None:
            self._cause = error
            self._task.cancel()

    async def _close(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            await asyncio.wait([self._idle])
        await self._session.close()

    def _listen(self) -> None:
        """Count silence from now."""
        timeout = self._session.idle_timeout
        if timeout is None:
            return
        self._last = self._loop.time()
        due = self._last + timeout
        if self._timer is None or due < self._due:
            self._arm(due)

    def _arm(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = due
        self._timer = self._loop.call_at(due, self._ring)

    def _ring(self) -> None:
        self._timer = None
        timeout = self._session.idle_timeout
        if timeout is None or self._lock.locked():
            return  # _listen sets the next timer, when the session is done with what it has
        due = self._last + timeout
        if due > self._loop.time():
            self._arm(due)
        else:
            self._idle = self._loop.create_task(self._break_silence())

    async def _break_silence(self) -> None:
        try:
            async with self._lock:
                timeout = self._session.idle_timeout
                if timeout is not None and self._last + timeout <= self._loop.time():
                    out = await self._session.on_idle()
                    if out:
                        await self._write(out)
        except Exception:  # noqa: BLE001 - the stream's task raises it
            _log.exception("stream failed in silence")
            self.cut(StreamError(*_BUG))
            return
        if self._task is not None:
            self._listen()


def unix_path(address: str) -> Path | None:
    """Give the path of ``unix:path``; None for ``host:port``."""
    return Path(address.removeprefix("unix:")) if address.startswith("unix:") else None


@contextmanager
def placing(path: Path) -> Iterator[Path]:
    """Give a path to bind a Unix socket to; afterwards it stands at ``path``, for its user only.

    A socket that nobody listens on is replaced in one step. Raises OSError when somebody does, or when
    ``path`` is something else.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_socket():
        raise OSError(errno.EEXIST, "not a socket, and not ours to replace", str(path))
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            pass
        except OSError as error:
            if error.errno != errno.EAGAIN:
                raise OSError(error.errno, error.strerror, str(path)) from error
            raise OSError(errno.EADDRINUSE, "another server listens here", str(path)) from error
        else:
            raise OSError(errno.EADDRINUSE, "another server listens here", str(path))
    place = path.with_name(f"{path.name}.{secrets.token_hex(2)}")
    try:
        yield place
        place.chmod(0o600)
        place.replace(path)
    finally:
        place.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class SocketFile:
    """A Unix socket that we put at ``path``; removed at the end unless another server has taken the place."""

    path: Path
    device: int
    inode: int

    @classmethod
    def at(cls, path: Path) -> "SocketFile":
        path = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links
        stat = path.lstat()
        return cls(path, stat.st_dev, stat.st_ino)

    def remove(self) -> None:
        try:
            stat = self.path.lstat()
        except FileNotFoundError:
            return
        if (stat.st_dev, stat.st_ino) == (self.device, self.inode):
            self.path.unlink(missing_ok=True)
