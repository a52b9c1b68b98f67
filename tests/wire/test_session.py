"""One ext_proc stream, bytes to bytes."""

from typing import Any

import pytest
from envoy.config.core.v3.base_pb2 import HeaderMap, HeaderValue
from envoy.service.ext_proc.v3.external_processor_pb2 import (
    HttpBody,
    HttpHeaders,
    HttpTrailers,
    ProcessingRequest,
    ProcessingResponse,
)
from fakes import Fake, Journal, exchange
from hypothesis import given
from hypothesis import strategies as st
from strategies import sse_streams

from extproc.core.errors import ProtocolError
from extproc.core.messages import PROCEED, Decision, Emit, Message, ResponseBody, Trailers
from extproc.wire.session import Session


class Scripted:
    """A machine that answers as told, and keeps what it was told."""

    idle_timeout: float | None = 3.0

    def __init__(self, *decisions: Decision) -> None:
        self.decisions = list(decisions)
        self.said: list[Message] = []
        self.closed = 0

    async def receive(self, message: Message) -> Decision:
        self.said.append(message)
        return self.decisions.pop(0)

    async def on_idle(self) -> Decision | None:
        return self.decisions.pop(0) if self.decisions else None

    async def close(self) -> None:
        self.closed += 1


def head(kind: str, **fields: str) -> bytes:
    values = [HeaderValue(key=name.replace("_", "-"), raw_value=value.encode()) for name, value in fields.items()]
    return sent(**{kind: HttpHeaders(headers=HeaderMap(headers=values))})


def sent(**fields: Any) -> bytes:
    data: bytes = ProcessingRequest(**fields).SerializeToString()
    return data


def piece(body: bytes, *, end: bool = False) -> bytes:
    return sent(response_body=HttpBody(body=body, end_of_stream=end))


TRAILERS = sent(response_trailers=HttpTrailers())


def read(out: list[bytes]) -> list[tuple[str, bytes, bool]]:
    """Each response: its field, the streamed bytes in it, whether they are the last."""
    found = []
    for data in out:
        response = ProcessingResponse.FromString(data)
        streamed = response.response_body.response.body_mutation.streamed_response
        found.append((str(response.WhichOneof("response")), streamed.body, streamed.end_of_stream))
    return found


async def test_pieces_that_arrive_together_are_one() -> None:
    """Pieces read at once are judged and answered as one."""
    machine = Scripted(Emit(b"out"))

    out = await Session(machine).receive([piece(b"a"), piece(b""), piece(b"b")])

    assert machine.said == [ResponseBody(b"ab", end=False)]
    assert read(out) == [("response_body", b"out", False)]


async def test_the_end_closes_a_batch() -> None:
    """The last piece is in the batch that it ends."""
    machine = Scripted(Emit(b"out", end=True))

    assert read(await Session(machine).receive([piece(b"a"), piece(b"b", end=True)])) == [
        ("response_body", b"out", True)
    ]
    assert machine.said == [ResponseBody(b"ab", end=True)]


async def test_other_messages_close_a_batch() -> None:
    """What comes after pieces is answered after them, in order."""
    machine = Scripted(Emit(b"1"), Emit(b"2", end=True))

    out = await Session(machine).receive([piece(b"a"), piece(b"b"), TRAILERS])

    assert machine.said == [ResponseBody(b"ab", end=False), Trailers()]
    assert read(out) == [
        ("response_body", b"1", False),
        ("response_body", b"2", False),
        ("response_trailers", b"", False),
    ]


async def test_messages_are_answered_in_order() -> None:
    """Messages of other kinds are answered one by one."""
    machine = Scripted(PROCEED, PROCEED)

    out = await Session(machine).receive([head("request_headers"), sent(request_body=HttpBody(body=b"{}"))])

    assert [field for field, _, _ in read(out)] == ["request_headers", "request_body"]


async def test_nothing_read_nothing_said() -> None:
    """No messages, no answers."""
    assert await Session(Scripted()).receive([]) == []


async def test_held_back_says_nothing() -> None:
    """What is held back needs no answer; metadata and the end do."""
    session = Session(Scripted(Emit(b""), Emit(b"", metadata={"a": 1}), Emit(b"", end=True)))

    assert await session.receive([piece(b"a")]) == []
    [told] = await session.receive([piece(b"b")])
    assert ProcessingResponse.FromString(told).dynamic_metadata.fields["extproc"].struct_value.fields["a"].number_value
    assert read(await session.receive([piece(b"c", end=True)])) == [("response_body", b"", True)]


@pytest.mark.parametrize("body", [b"", b"held"])
async def test_what_is_left_goes_before_trailers(body: bytes) -> None:
    """Trailers end the stream, so what was held is a piece ahead of them that does not."""
    out = await Session(Scripted(Emit(body, end=True, metadata={"a": 1}))).receive([TRAILERS])

    assert read(out) == [("response_body", body, False)] * bool(body) + [("response_trailers", b"", False)]
    assert all(ProcessingResponse.FromString(data).HasField("dynamic_metadata") for data in out)


async def test_idle() -> None:
    """What is said into a silence is a piece of the stream; where there is nothing to say, nothing is."""
    session = Session(Scripted(Emit(b"late", end=True)))

    assert session.idle_timeout == 3.0
    assert read(await session.on_idle()) == [("response_body", b"late", True)]
    assert await session.on_idle() == []


async def test_close() -> None:
    """Closing closes the machine, and tells whoever counts streams, though the machine breaks."""
    machine, closed = Scripted(), []
    await Session(machine, on_close=lambda: closed.append(1)).close()
    assert (machine.closed, closed) == (1, [1])

    class Broken(Scripted):
        async def close(self) -> None:
            raise OSError

    with pytest.raises(OSError):
        await Session(Broken(), on_close=lambda: closed.append(2)).close()
    assert closed == [1, 2]


@pytest.mark.parametrize("data", [b"", b"\xff", b"nonsense"])
async def test_undecodable(data: bytes) -> None:
    """Bytes that are no message end the stream with an error."""
    with pytest.raises(ProtocolError):
        await Session(Scripted(Emit(b""))).receive([piece(b"a"), data])


async def test_out_of_turn() -> None:
    """So does a message out of turn."""
    with pytest.raises(ProtocolError):
        await Session(exchange()).receive([TRAILERS])


async def begin(session: Session) -> None:
    """A streamed call up to the head of its answer, the first messages at once."""
    opening = [
        head("request_headers", _path="/v1/chat/completions"),
        sent(request_body=HttpBody(body=b'{"model":"m"}')),
    ]
    opening[0] = sent(
        request_headers=HttpHeaders(
            headers=HeaderMap(
                headers=[
                    HeaderValue(key=":method", raw_value=b"POST"),
                    HeaderValue(key=":path", raw_value=b"/v1/chat/completions"),
                ]
            )
        )
    )
    answer = HttpHeaders(
        headers=HeaderMap(
            headers=[
                HeaderValue(key=":status", raw_value=b"200"),
                HeaderValue(key="content-type", raw_value=b"text/event-stream"),
            ]
        )
    )
    out = await session.receive(opening) + await session.receive([sent(response_headers=answer)])
    assert [field for field, _, _ in read(out)] == ["request_headers", "request_body", "response_headers"]


@given(sse_streams(), st.data(), st.booleans(), st.booleans())
async def test_stream_in_any_batches(stream: bytes, data: st.DataObject, trailers: bool, held: bool) -> None:
    """However pieces are cut and arrive, and whether filters hold them, the same bytes go on and end once."""
    session = Session(exchange(*[Fake("f", Journal(), {"events": "hold"})] * held))
    await begin(session)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    messages = [piece(part) for part in pieces] + [TRAILERS if trailers else piece(b"", end=True)]
    out: list[bytes] = []
    while messages:
        size = data.draw(st.integers(1, len(messages)))
        out += await session.receive(messages[:size])
        messages = messages[size:]

    said = read(out)
    assert b"".join(body for _, body, _ in said) == stream
    assert [end for _, _, end in said].count(True) == (not trailers)
    assert said[-1][2] or said[-1][0] == "response_trailers"
    await session.close()
