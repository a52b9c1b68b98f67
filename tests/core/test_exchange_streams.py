"""Streams under every chunking, and compressed answers."""

import gzip
import zlib
from collections.abc import Sequence

import pytest
from fakes import Fake, Gateway, Journal, exchange
from hypothesis import given
from hypothesis import strategies as st
from playbook import (
    CALL,
    KEY,
    SETTLED,
    Answers,
    Close,
    Emits,
    Error,
    Idle,
    Including,
    Playbook,
    Proceeds,
    answer,
    body,
    piece,
    request,
    stream,
    whole,
)
from strategies import chunkings, sse_streams

from extproc.core import encoding
from extproc.core.call import Call, Outcome
from extproc.core.exchange import CALL_ID
from extproc.core.filter import Cut, Filter, Reply
from extproc.core.messages import BodyMode, Trailers
from extproc.dialects.sse import Event
from extproc.dialects.usage import Usage

USAGE = {"prompt_tokens": 11, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 3}}
TEXT = 'data: {"choices":[{"delta":{"content":"你好 \\"usage\\": [DONE]"}}]}\n\n'.encode()
USAGE_EVENT = (
    b'data: {"choices":[],"usage":{"prompt_tokens":11,"completion_tokens":5,'
    b'"prompt_tokens_details":{"cached_tokens":3}}}\n\n'
)
DONE = b"data: [DONE]\n\n"
CHAT_STREAM = b": keep-alive\n\n" + TEXT + TEXT + USAGE_EVENT + DONE
REPORTED = Usage(input=11, output=5, cached=3)


def play(playbook: Playbook, pieces: Sequence[bytes], *, trailers: bool = False) -> bytes:
    """Feed the pieces and the end; what the client gets."""
    for part in pieces:
        playbook.say(piece(part))
    playbook.say(Trailers() if trailers else piece(b"", end=True))
    emitted = playbook.decisions[-len(pieces) - 1 :]
    assert all(isinstance(decision, Emits) for decision in emitted)
    assert [decision.end for decision in emitted] == [False] * len(pieces) + [True]
    return b"".join(decision.body for decision in emitted)


def begun(*plugins: Fake, headers: dict[str, str] | None = None) -> Playbook:
    playbook = Playbook(exchange(*plugins))
    for message in (request(), body({"model": "gpt", "stream": True}), stream(headers or {})):
        playbook.say(message)
    return playbook


@given(st.data(), sse_streams(), st.booleans())
def test_stream_without_policy_passes_byte_for_byte(data: st.DataObject, sent: bytes, trailers: bool) -> None:
    """Whatever a provider streams, however it is cut, arrives as the same bytes."""
    pieces = data.draw(chunkings(sent))

    assert play(begun(), pieces, trailers=trailers) == sent


@given(st.data(), sse_streams())
def test_held_back_stream_passes_byte_for_byte(data: st.DataObject, sent: bytes) -> None:
    """A filter that holds everything back until the end loses nothing."""
    playbook = begun(Fake("f", Journal(), {"events": "hold"}))

    assert play(playbook, data.draw(chunkings(sent))) == sent


@given(st.data(), sse_streams())
def test_compressed_stream_under_every_chunking(data: st.DataObject, sent: bytes) -> None:
    """A compressed stream is decompressed as it comes, wherever the borders fall, and says so no more."""
    packed = gzip.compress(sent) if data.draw(st.booleans()) else zlib.compress(sent)
    playbook = begun(headers={"content-encoding": "gzip"})

    assert playbook.decisions[-1].removes == {"content-length", "content-encoding"}
    assert play(playbook, data.draw(chunkings(packed))) == sent


@given(st.data(), st.sampled_from(["hidden", "wanted", "not asked"]), st.booleans())
def test_usage_event_is_hidden_only_where_we_asked(data: st.DataObject, case: str, packed: bool) -> None:
    """The client sees the usage event unless we asked for it and the client did not; we read it always."""
    gateway = Gateway(asks=case != "not asked")
    options = {"stream_options": {"include_usage": True}} if case == "wanted" else {}
    playbook = Playbook(gateway.exchange())
    playbook.say(request(headers={"authorization": f"Bearer {KEY}"}))
    playbook.say(body({"model": "gpt", "stream": True, **options}))
    playbook.say(stream({"content-encoding": "gzip"} if packed else {}))
    sent = gzip.compress(CHAT_STREAM) if packed else CHAT_STREAM

    got = play(playbook, data.draw(chunkings(sent)))
    playbook.say(Close())

    assert got == (CHAT_STREAM.replace(USAGE_EVENT, b"") if case == "hidden" else CHAT_STREAM)
    [(call, outcome)] = gateway.audited
    assert (call.usage, outcome) == (REPORTED, Outcome("completed", 200))


ANTHROPIC_STREAM = (
    b'event: message_start\ndata: {"type":"message_start","message":{"usage":{"input_tokens":7,'
    b'"cache_read_input_tokens":2,"output_tokens":1}}}\n\n'
    b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"hi"}}\n\n'
    b'event: ping\r\ndata: {"type": "ping"}\r\n\r\n'
    b'event: message_delta\ndata: {"type":"message_delta","usage":{"output_tokens":9}}\n\n'
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
)


@given(st.data())
def test_usage_of_messages_under_every_chunking(data: st.DataObject) -> None:
    """Anthropic's usage, told in two events, is the same however the stream is cut, and the stream is whole."""
    gateway = Gateway()
    playbook = Playbook(gateway.exchange())
    playbook.say(request(path="/v1/messages", headers={"x-api-key": KEY}))
    playbook.say(body({"model": "claude", "stream": True, "messages": []}))
    playbook.say(stream(provider="gamma"))

    assert play(playbook, data.draw(chunkings(ANTHROPIC_STREAM))) == ANTHROPIC_STREAM
    assert gateway.journal.call.usage == Usage(input=9, output=9, cached=2)


@given(st.data())
def test_estimate_under_every_chunking(data: st.DataObject) -> None:
    """Where a provider reports nothing, the estimate is the same however the stream is cut."""
    usages = []
    for cut in ([TEXT * 3 + DONE], data.draw(chunkings(TEXT * 3 + DONE))):
        gateway = Gateway()
        playbook = Playbook(gateway.exchange())
        playbook.say(request(headers={"api-key": KEY}))
        playbook.say(body({"model": "gpt", "stream": True, "messages": [{"role": "user", "content": "hello there"}]}))
        playbook.say(stream())
        play(playbook, cut)
        usages.append(gateway.journal.call.usage)

    assert usages[0] == usages[1]
    assert usages[0] is not None
    assert usages[0].source == "estimated"
    assert usages[0].input > 0
    assert usages[0].output > 0


# --- compressed -----------------------------------------------------------------------------------------------


def test_compressed_json_passes_as_it_came() -> None:
    """Filters read the plain text; the client gets the very bytes of the provider."""
    journal = Journal()
    read: list[bytes] = []

    def look(call: Call) -> None:
        read.append(call.answer)

    playbook = Playbook(exchange(Fake("f", journal, {"response": look}), journal=journal))
    playbook.say(request())
    playbook.say(body({"model": "gpt"}))

    assert (
        playbook
        >> answer(headers={"content-encoding": "GZip "})
        << Proceeds(sets={CALL_ID: CALL}, mode=BodyMode.BUFFERED)
        >> whole(gzip.compress(b'{"usage": {"prompt_tokens": 3}}'))
        << Proceeds()
    )
    assert read == [b'{"usage": {"prompt_tokens": 3}}']
    assert journal.call.facts is not None
    assert journal.call.facts.usage == Usage(input=3)


def test_changed_compressed_json_goes_plain() -> None:
    """An answer that a filter changed is sent uncompressed, and says so."""

    def change(call: Call) -> None:
        call.answer = b"{}"

    playbook = Playbook(exchange(Fake("f", Journal(), {"response": change})))
    for message in (request(), body({"model": "gpt"}), answer(headers={"content-encoding": "gzip"})):
        playbook.say(message)

    assert (
        playbook
        >> whole(gzip.compress(b'{"a": 1}'))
        << Proceeds(sets={"content-length": "2"}, removes={"content-encoding"}, body=b"{}")
    )


@pytest.mark.parametrize("content", [b"not gzip at all", gzip.compress(b"x" * 100, mtime=0)[:20] + b"\0" * 40])
def test_damaged(content: bytes) -> None:
    """A damaged answer is a 502, or an error event in a stream; nothing of it is logged as a bug of ours."""
    journal = Journal()
    compressed = {"content-encoding": "gzip"}
    playbook = Playbook(exchange(Fake("f", journal), journal=journal))
    for message in (request(), body({"model": "gpt"}), answer(headers=compressed)):
        playbook.say(message)

    assert playbook >> whole(content) << Answers(502, Error("provider_error", message="damaged"))
    assert begun(headers=compressed) >> piece(content) << Emits(Including(b"damaged"), end=True)
    assert journal.errors == []


def test_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small answer that unpacks to an absurd size is refused before it does."""
    monkeypatch.setattr(encoding, "MAX_DECODED", 1 << 20)
    bomb = gzip.compress(b"\0" * (4 << 20))
    compressed = {"content-encoding": "gzip"}
    playbook = Playbook(exchange())
    for message in (request(), body({"model": "gpt"}), answer(headers=compressed)):
        playbook.say(message)

    assert playbook >> whole(bomb) << Answers(502, Error("provider_error", message="too large"))
    assert begun(headers=compressed) >> piece(bomb) << Emits(Including(b"too large"), end=True)


# --- filters that hold back, and filters that end it ------------------------------------------------------------


def test_a_filter_ends_a_stream() -> None:
    """What it says last goes out and ends the stream; what the provider sends after it is nobody's."""
    journal = Journal()

    def cut(call: Call) -> None:
        if call.events > 1:
            raise Cut(b"data: farewell\n\n", "content_blocked")

    playbook = begun(Fake("f", journal, {"events": cut}))

    assert (
        playbook
        >> piece(b"data: 1\n\n")
        << Emits(b"data: 1\n\n")
        >> piece(b"data: 2\n\n")
        << Emits(b"data: farewell\n\n", end=True, metadata=SETTLED)
        >> piece(b"data: 3\n\n", end=True)
        << Emits(b"", end=True)
        >> Close()
    )
    assert journal.outcomes["f"] == [Outcome("replied", 200, "content_blocked")]


class Patient(Filter):
    """Holds the first events until the stream has been silent for a while."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._held: list[Event] = []

    async def on_events(self, events: Sequence[Event], *, final: bool) -> Sequence[Event]:
        self._held += events
        if events and not final and self._call.events == 1:
            self._call.wake_after = 0.2
            return []
        self._call.wake_after = None
        out, self._held = self._held, []
        return out


class PatientPlugin:
    def open(self, call: Call) -> Filter:
        return Patient(call)


def test_what_is_held_back_is_due_in_time() -> None:
    """A filter that asks to be woken gets the silence, and lets out what it held; the stream goes on."""
    machine = exchange(PatientPlugin())
    playbook = Playbook(machine)
    for message in (request(), body({"model": "gpt", "stream": True}), stream()):
        playbook.say(message)

    assert playbook >> piece(b"data: 1\n\n") << Emits(b"")
    assert machine.idle_timeout == 0.2
    assert (
        playbook
        >> Idle()
        << Emits(b"data: 1\n\n", end=False)
        >> piece(b"data: 2\n\n", end=True)
        << Emits(b"data: 2\n\n", end=True)
        >> Close()
    )


def test_another_answer_instead_of_the_providers() -> None:
    """A filter may answer itself when the provider's answer has only begun; filters outside it see that answer."""
    journal = Journal()
    outer = Fake("outer", journal)
    inner = Fake("inner", journal, {"response_head": Reply(b'{"ours": 1}')})
    playbook = Playbook(exchange(outer, inner, journal=journal))
    playbook.say(request())
    playbook.say(body({"model": "gpt"}))

    assert playbook >> stream() << Answers(200, b'{"ours": 1}') >> Close()
    assert "outer.response" in journal.steps
    assert "inner.response" not in journal.steps
    assert journal.outcomes["outer"] == [Outcome("replied", 200)]
