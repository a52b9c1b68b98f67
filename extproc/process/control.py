"""What supervisor and workers say to each other: JSON lines over a socket pair that the worker inherits.

When either side goes away the other reads the end of the stream, so no process outlives its purpose.
"""

import asyncio
import socket
from typing import Any, Final, TypeVar

import msgspec

from extproc.core.evidence import Ended

_LIMIT: Final = 64 << 20  # bytes of one line: a configuration fits

T = TypeVar("T")


class Reload(msgspec.Struct, tag="reload"):
    """To a worker: use this content of the configuration file."""

    content: bytes


class Drain(msgspec.Struct, tag="drain"):
    """To a worker: say "not serving" to health checks, go on for ``notice`` seconds so that they see it, then take no
    new streams and stop once the open ones have ended, or ``grace`` seconds have passed.
    """

    notice: float
    grace: float


class Ready(msgspec.Struct, tag="ready"):
    """From a worker: it listens, with this configuration."""

    digest: str


class Reloaded(msgspec.Struct, tag="reloaded"):
    """From a worker: the configuration now in force; ``problem`` where a new one was not taken."""

    digest: str
    problem: str = ""


class KeyCooling(msgspec.Struct, tag="key_cooling"):
    """To a worker: leave this key of the provider alone for so many seconds from now."""

    provider: str
    key: str
    seconds: float


class Ask(msgspec.Struct, tag="ask"):
    """To a worker: the numbers in use of a consumer, or, with none named, those that are not the ledger's."""

    number: int
    consumer: str = ""


class Answered(msgspec.Struct, tag="answered"):
    """From a worker: the answer to ``Ask`` of this number; ``problem`` where there is none."""

    number: int
    lines: list[dict[str, Any]] = []
    problem: str = ""


Command = Reload | Drain | Ended | KeyCooling | Ask
"""``Ended``: account for this call, whose worker may have died before it could."""

COMMANDS: Final = msgspec.json.Decoder(Command)
Report = Ready | Reloaded | Answered
REPORTS: Final = msgspec.json.Decoder(Report)


async def open_channel(end: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    end.setblocking(False)
    return await asyncio.open_unix_connection(sock=end, limit=_LIMIT)


async def send(writer: asyncio.StreamWriter, message: Command | Report) -> None:
    writer.write(msgspec.json.encode(message) + b"\n")
    await writer.drain()


async def receive(reader: asyncio.StreamReader, decoder: msgspec.json.Decoder[T]) -> T | None:
    """The next message, None when the other side is gone."""
    try:
        line = await reader.readline()
    except ConnectionError:
        return None
    return decoder.decode(line) if line.endswith(b"\n") else None
