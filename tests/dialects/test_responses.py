"""The Responses API."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import JSON_VALUES, chunkings

from extproc.dialects import base
from extproc.dialects.document import Document
from extproc.dialects.endpoints import RESPONSES
from extproc.dialects.sse import Splitter, encode
from extproc.dialects.usage import Usage

USAGE = {
    "input_tokens": 37,
    "input_tokens_details": {"cached_tokens": 5},
    "output_tokens": 11,
    "output_tokens_details": {"reasoning_tokens": 4},
    "total_tokens": 48,
}
READ = Usage(input=37, output=11, cached=5, reasoning=4)


def stream(last: str, usage: Any = USAGE) -> bytes:
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": {"status": "in_progress", "model": "gpt-5", "usage": None}},
        {"type": "response.output_item.added", "output_index": 0, "item": {"type": "message", "content": []}},
        {"type": "response.output_text.delta", "item_id": "m", "delta": "Hello there", "obfuscation": "zzzz"},
        {"type": "response.function_call_arguments.delta", "item_id": "f", "delta": '{"city":"Berlin"}'},
        {"type": "response.audio.delta", "delta": "A" * 1000},
        {"type": "response.output_text.done", "item_id": "m", "text": "Hello there"},
        {"type": last, "response": {"status": last.partition(".")[2], "usage": usage}},
    ]
    return b"".join(
        encode(msgspec.json.encode({**event, "sequence_number": number}), event["type"])
        for number, event in enumerate(events)
    )


def read(chunks: list[bytes]) -> base.StreamReader:
    splitter, reader = Splitter(), base.StreamReader(RESPONSES)
    for event in [event for chunk in chunks for event in splitter.feed(chunk)] + splitter.finish():
        reader.read(event)
        assert not reader.is_usage_only(event)
    return reader


@pytest.mark.parametrize("last", ["response.completed", "response.incomplete", "response.failed"])
@given(data=st.data())
def test_stream(last: str, data: st.DataObject) -> None:
    """The last event carries the usage, however the response ended and the stream was cut."""
    reader = read(data.draw(chunkings(stream(last))))

    assert reader.usage == READ
    assert reader.finished
    assert reader.failed == (last == "response.failed")
    assert reader.sequence == 7


def test_stream_without_usage() -> None:
    """Text and arguments count, audio and the repetition of the whole text do not."""
    reader = read([stream("response.completed", usage=None)])

    assert reader.usage is None
    assert reader.usage_is_partial()
    assert 6 <= reader.estimate_output() <= 14


@pytest.mark.parametrize("data", [b'{"type":"error","code":"x","message":"m","sequence_number":3}', b"oops"])
def test_error_event(data: bytes) -> None:
    """An error event fails the stream and does not end it properly."""
    reader = read([encode(data, "error")])

    assert reader.failed
    assert not reader.finished


@given(JSON_VALUES)
def test_any_shape_is_survived(value: Any) -> None:
    """Events and answers of any shape raise nothing."""
    for kind in (value, "response.completed", "response.output_text.delta"):
        event = {"type": kind, "delta": value, "response": value, "sequence_number": value}
        read([encode(msgspec.json.encode(event))]).estimate_output()
    base.read_answer(RESPONSES, msgspec.json.encode({"output": value, "usage": value, "status": value}))


def test_answer() -> None:
    """A whole response: usage, model, whether it is at its end, text and arguments."""
    output = [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "why"}]},
        {"type": "message", "content": [{"type": "output_text", "text": "Hello there", "annotations": []}]},
        {"type": "function_call", "name": "f", "arguments": "{}"},
    ]
    body = {"status": "completed", "model": "gpt-5", "output": output, "usage": USAGE}
    facts = base.read_answer(RESPONSES, msgspec.json.encode(body))

    assert (facts.usage, facts.model, facts.finished) == (READ, "gpt-5", True)
    assert list(facts.texts) == ["why", "Hello there", "f", "{}"]
    assert not base.read_answer(RESPONSES, b'{"status":"in_progress"}').finished
    assert base.read_answer(RESPONSES, b"<html>") == base.AnswerFacts()


@pytest.mark.parametrize(
    ("given_input", "texts"),
    [
        ("Hello", ["Hello"]),
        ([{"role": "user", "content": [{"type": "input_text", "text": "Hello"}, {"type": "input_image"}]}], ["Hello"]),
        ([{"type": "function_call_output", "call_id": "c", "output": "42"}], ["42"]),
        (7, []),
    ],
)
def test_request(given_input: Any, texts: list[str]) -> None:
    """Instructions, input and tools are the text; the usage is always told."""
    request = Document.parse(
        msgspec.json.encode(
            {"model": "m", "stream": True, "instructions": "Be brief.", "input": given_input, "tools": []}
        )
    )

    assert base.read_request(RESPONSES, request) == base.RequestFacts("m", stream=True, wants_stream_usage=True)
    assert list(base.prompt_texts(RESPONSES, request)) == ["Be brief.", *texts, "[]"]
    assert base.estimate_prompt(RESPONSES, request) > 0
