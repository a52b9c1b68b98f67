"""The line between supervisor and worker."""

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from extproc.core.evidence import Ended
from extproc.process.control import (
    COMMANDS,
    REPORTS,
    Drain,
    KeyCooling,
    Ready,
    Reload,
    Reloaded,
    open_channel,
    receive,
    send,
)


@dataclass
class End:
    """One end of the line."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


@pytest.fixture(name="line")
async def _line() -> AsyncIterator[tuple[End, End]]:
    ends = [End(*await open_channel(end)) for end in socket.socketpair()]
    yield ends[0], ends[1]
    for end in ends:
        end.writer.close()


@pytest.mark.parametrize(
    ("message", "decoder"),
    [
        (Reload(b"models: {}\n"), COMMANDS),
        (Reload(bytes(range(256))), COMMANDS),
        (Drain(notice=3.0, grace=0.25), COMMANDS),
        (KeyCooling("deepseek/cn", "0a1b2c3d", 12.5), COMMANDS),
        (Ended(call={"call_id": "call-1", "prompt_tokens": 12.0}, flags=("local_reset",), sent=9), COMMANDS),
        (Ready("0123456789ab"), REPORTS),
        (Reloaded("0123456789ab"), REPORTS),
        (Reloaded("0123456789ab", "models.m: 两行\nof a problem"), REPORTS),
    ],
)
async def test_what_is_sent_is_what_is_received(line: tuple[End, End], message: Any, decoder: Any) -> None:
    """Every message arrives as it was, whatever bytes and line ends are in it."""
    here, there = line

    await send(here.writer, message)

    assert await receive(there.reader, decoder) == message


async def test_a_configuration_of_megabytes_fits(line: tuple[End, End]) -> None:
    """Far more than a socket buffers, or a line usually has."""
    here, there = line
    message = Reload(b"# a long configuration\n" * 500_000)

    sending = asyncio.ensure_future(send(here.writer, message))

    assert await receive(there.reader, COMMANDS) == message
    await sending


async def test_messages_keep_their_order(line: tuple[End, End]) -> None:
    """Messages that are sent at once are received one by one, in both directions."""
    here, there = line
    commands = [Reload(b"one"), Reload(b"two"), Drain(1.0, 2.0)]
    reports = [Ready("one"), Reloaded("two")]

    for command in commands:
        await send(here.writer, command)
    for report in reports:
        await send(there.writer, report)

    assert [await receive(there.reader, COMMANDS) for _ in commands] == commands
    assert [await receive(here.reader, REPORTS) for _ in reports] == reports


async def test_the_other_side_is_gone(line: tuple[End, End]) -> None:
    """What it said before is still heard; then there is nothing more, and asking again says so again."""
    here, there = line
    await send(here.writer, Ready("said"))

    here.writer.close()

    assert await receive(there.reader, REPORTS) == Ready("said")
    assert await receive(there.reader, REPORTS) is None
    assert await receive(there.reader, REPORTS) is None


async def test_a_side_that_dies_while_it_speaks(line: tuple[End, End]) -> None:
    """Half a message is none."""
    here, there = line
    here.writer.write(msgspec.json.encode(Reload(b"models: {}"))[:-1])

    here.writer.close()

    assert await receive(there.reader, COMMANDS) is None


async def test_a_side_that_dies_with_words_unread(line: tuple[End, End]) -> None:
    """Then the kernel says "connection reset" rather than "end": that is the same to us."""
    here, there = line
    await send(there.writer, Drain(0, 0))

    here.writer.transport.abort()

    assert await receive(there.reader, REPORTS) is None
