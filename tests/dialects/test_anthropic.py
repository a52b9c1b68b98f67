"""Anthropic's messages."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import JSON_VALUES, chunkings

from extproc.dialects import base
from extproc.dialects.document import Document, InvalidField
from extproc.dialects.endpoints import MESSAGES
from extproc.dialects.sse import Splitter, encode
from extproc.dialects.usage import Usage

STREAM = b"""\
event: message_start
data: {"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","model":"claude-sonnet-4","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":25,"cache_creation_input_tokens":100,"cache_read_input_tokens":300,"cache_creation":{"ephemeral_5m_input_tokens":100},"output_tokens":1,"service_tier":"standard"}}}

event: content_block_start
data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}

event: ping
data: {"type": "ping"}

event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hello there"}}

event: content_block_stop
data: {"type":"content_block_stop","index":0}

event: content_block_delta
data: {"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":"{\\"city\\":\\"Berlin\\"}"}}

event: content_block_delta
data: {"type":"content_block_delta","index":2,"delta":{"type":"signature_delta","signature":"EqQBCgIYAhIM1gbcDa9GJwZA2b3hGgxBdjrkzLoky3dl1pkiMOYds"}}

event: message_delta
data: {"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":15}}

event: message_stop
data: {"type":"message_stop"}

"""  # noqa: E501


def read(chunks: list[bytes]) -> base.StreamReader:
    splitter, reader = Splitter(), base.StreamReader(MESSAGES)
    for event in [event for chunk in chunks for event in splitter.feed(chunk)] + splitter.finish():
        reader.read(event)
        assert not reader.is_usage_only(event)
    return reader


def usages(start: dict[str, Any], end: dict[str, Any]) -> base.StreamReader:
    events = [{"type": "message_start", "message": {"usage": start}}, {"type": "message_delta", "usage": end}]
    return read([encode(msgspec.json.encode(event), str(event["type"])) for event in events])


@given(st.data())
def test_stream(data: st.DataObject) -> None:
    """Input from the start, output from the end, under every chunking."""
    reader = read(data.draw(chunkings(STREAM)))

    assert reader.usage == Usage(input=425, output=15, cached=300, cache_creation=100)
    assert reader.finished
    assert not reader.failed
    assert not reader.usage_is_partial()
    assert 6 <= reader.estimate_output() <= 14


def test_broken_stream() -> None:
    """Before message_delta the input is known and the output is not."""
    reader = read([STREAM.partition(b"event: message_delta")[0]])

    assert reader.usage == Usage(input=425, output=1, cached=300, cache_creation=100)
    assert reader.usage_is_partial()
    assert not reader.finished


def test_late_numbers_correct_early_ones() -> None:
    """Numbers are cumulative; servers that know the input only at the end start with zero."""
    assert usages({"input_tokens": 0, "output_tokens": 0}, {"input_tokens": 30, "output_tokens": 7}).usage == Usage(
        input=30, output=7
    )
    corrected = {"input_tokens": 12, "cache_read_input_tokens": 20, "output_tokens": 7}
    assert usages({"input_tokens": 30, "output_tokens": 1}, corrected).usage == Usage(input=32, output=7, cached=20)


def test_a_zero_or_garbage_at_the_end_erases_nothing() -> None:
    """A field that the end does not know keeps what the start said."""
    late = {"input_tokens": 0, "cache_read_input_tokens": None, "output_tokens": 7}
    assert usages({"input_tokens": 30, "cache_read_input_tokens": 4}, late).usage == Usage(input=34, output=7, cached=4)
    assert usages({"input_tokens": 30}, {"input_tokens": "?", "output_tokens": -2}).usage == Usage(input=30)


def test_a_model_that_says_usage() -> None:
    """Text about usage and ends is text."""
    text = '{"type":"message_stop"}\n\nevent: message_stop\n\n"usage":{"input_tokens":1,"output_tokens":1}'
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
    reader = read([encode(msgspec.json.encode(delta), "content_block_delta")])

    assert (reader.usage, reader.finished, reader.failed) == (None, False, False)


@pytest.mark.parametrize(
    "data", [b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}', b"oops", b"{}"]
)
def test_error_event(data: bytes) -> None:
    """An error event fails the stream, readable or not."""
    assert read([encode(data, "error")]).failed


@given(JSON_VALUES)
def test_any_shape_is_survived(value: Any) -> None:
    """Events, answers and requests of any shape raise nothing."""
    for kind in (value, "message_start", "message_delta", "content_block_delta"):
        for event in (
            {"delta": value, "usage": value, "message": value},
            {"delta": {"text": value}, "message": {"usage": value}},
        ):
            read([encode(msgspec.json.encode({"type": kind, **event}))]).estimate_output()
    base.read_answer(MESSAGES, msgspec.json.encode({"content": value, "usage": value})).estimate_output()
    request = Document.parse(msgspec.json.encode({"system": value, "messages": value, "tools": value}))
    assert base.estimate_prompt(MESSAGES, request) >= 0


def test_answer() -> None:
    """A whole message: usage, model, whether it stopped, text and tool input."""
    content = [
        {"type": "thinking", "thinking": "Hm", "signature": "AAAA"},
        {"type": "text", "text": "Hello"},
        {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}},
    ]
    usage = {"input_tokens": 2, "cache_read_input_tokens": 3, "output_tokens": 4}
    body = {"type": "message", "model": "claude", "content": content, "stop_reason": "tool_use", "usage": usage}
    facts = base.read_answer(MESSAGES, msgspec.json.encode(body))

    assert (facts.usage, facts.model, facts.finished) == (Usage(input=5, output=4, cached=3), "claude", True)
    assert list(facts.texts) == ["Hm", "Hello", "f", '{"a":1}']
    assert base.read_answer(MESSAGES, b"<html>") == base.AnswerFacts()


def test_request() -> None:
    """System, messages and tools are the text; the usage is always told."""
    body = {
        "model": "claude",
        "max_tokens": 10,
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": "Hello"},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "21"}]},
        ],
        "tools": [],
    }
    request = Document.parse(msgspec.json.encode(body))

    assert base.read_request(MESSAGES, request) == base.RequestFacts("claude", stream=False, wants_stream_usage=True)
    assert list(base.prompt_texts(MESSAGES, request)) == ["Be brief.", "Hello", "21", "[]"]


def test_request_without_model() -> None:
    """The model is required in every dialect."""
    with pytest.raises(InvalidField):
        base.read_request(MESSAGES, Document.parse(b'{"messages":[]}'))
