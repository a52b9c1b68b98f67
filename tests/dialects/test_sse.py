"""Cutting a byte stream into events."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import chunkings, sse_streams

from extproc.dialects.sse import Event, Splitter, encode


def split(chunks: list[bytes], max_event: int = 1 << 20) -> list[Event]:
    splitter = Splitter(max_event)
    return [event for chunk in chunks for event in splitter.feed(chunk)] + splitter.finish()


def spelled(events: list[Event]) -> list[tuple[bytes | None, str]]:
    return [(event.data, event.type) for event in events]


@given(st.data(), sse_streams(), st.sampled_from([1, 2, 3, 5, 10, 40, 1 << 20]))
def test_events_do_not_depend_on_chunks(data: st.DataObject, stream: bytes, max_event: int) -> None:
    """Every chunking of a stream gives the same events, big ones included, and no byte is lost or made up."""
    whole = split([stream], max_event)

    assert split(data.draw(chunkings(stream)), max_event) == whole
    assert split([stream[i : i + 1] for i in range(len(stream))], max_event) == whole
    assert b"".join(event.raw for event in whole) == stream


@given(sse_streams())
def test_fields_are_those_of_a_slow_reader(stream: bytes) -> None:
    """Data and type of each event are what the rules of the standard say, applied line by line."""
    wanted = []
    lines = stream.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    data: list[bytes] = []
    kind = b""
    for number, line in enumerate(lines):
        if line:
            name, _, value = line.partition(b":")
            value = value[1:] if value[:1] == b" " else value
            if name == b"data":
                data.append(value)
            elif name == b"event":
                kind = value
        if not line or number == len(lines) - 1:
            if data:
                wanted.append((b"\n".join(data), kind.decode(errors="replace")))
            data, kind = [], b""

    assert [(event.data, event.type) for event in split([stream]) if event.data is not None] == wanted


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_line_ends(end: bytes) -> None:
    """LF, CRLF and CR end lines alike."""
    stream = b"event: a\ndata: 1\ndata:2\n\n: hi\n\ndata:  3\n\n".replace(b"\n", end)

    assert spelled(split([stream])) == [(b"1\n2", "a"), (None, ""), (b" 3", "")]


def test_event_comes_with_its_last_byte() -> None:
    """An event is not held back until the next one begins."""
    splitter = Splitter()

    assert splitter.feed(b"data: 1\n") == []
    assert splitter.feed(b"\n") == [Event(b"data: 1\n\n", b"1")]
    assert splitter.feed(b"data: 2\r\n\r\n") == [Event(b"data: 2\r\n\r\n", b"2")]


def test_crlf_over_two_chunks() -> None:
    """A CR at the end of a chunk waits for the LF that may belong to it."""
    splitter = Splitter()

    assert splitter.feed(b"data: 1\r\n\r") == []
    assert splitter.feed(b"\ndata: 2") == [Event(b"data: 1\r\n\r\n", b"1")]
    assert splitter.finish() == [Event(b"data: 2", b"2")]


def test_blank_lines_and_comments_pass() -> None:
    """What carries no data is an event without data, byte for byte."""
    events = split([b"\n\n: keep-alive\n\ndata: 1\n\n\n"])

    assert [event.raw for event in events] == [b"\n", b"\n", b": keep-alive\n\n", b"data: 1\n\n", b"\n"]
    assert [event.data for event in events] == [None, None, None, b"1", None]


def test_byte_order_mark() -> None:
    """One byte order mark is allowed for at the start, and only there."""
    events = split([b"\xef\xbb", b"\xbfdata: 1\n\n\xef\xbb\xbfdata: 2\n\n"])

    assert [event.data for event in events] == [b"1", None]


def test_an_event_too_big_passes_in_pieces() -> None:
    """An oversize event is passed on unread; the one after it is read again."""
    big = b"data: " + b"x" * 100 + b"\n\n"

    events = split([big + b"data: 1\n\n"], max_event=40)

    assert [len(event.raw) for event in events] == [40, 40, 28, 9]
    assert [event.oversize for event in events] == [True, True, True, False]
    assert [event.data for event in events] == [None, None, None, b"1"]


def test_an_oversize_event_is_not_collected() -> None:
    """Memory stays bounded: pieces leave as soon as they are full."""
    splitter = Splitter(max_event=1000)

    passed = sum(len(event.raw) for _ in range(100) for event in splitter.feed(b"x" * 100))

    assert passed >= 9000


@given(st.lists(st.text("ab \n", max_size=5), max_size=4), st.sampled_from(["", "error"]))
def test_encode_is_read_back(lines: list[str], kind: str) -> None:
    """What we write is one event with the same data, line breaks included."""
    data = "\n".join(lines).encode()

    assert spelled(split([encode(data, kind)])) == [(data, kind)]
