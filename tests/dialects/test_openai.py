"""Chat completions, completions and embeddings, as providers of the OpenAI dialect really speak them."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import JSON_VALUES, chunkings

from extproc.dialects import base
from extproc.dialects.document import Document, InvalidField
from extproc.dialects.endpoints import CHAT, COMPLETIONS, EMBEDDINGS, Endpoint
from extproc.dialects.sse import Event, Splitter
from extproc.dialects.usage import Usage

OPENAI = b"""\
data: {"id":"c1","object":"chat.completion.chunk","created":1,"model":"gpt-4o","service_tier":"default","system_fingerprint":"fp","choices":[{"index":0,"delta":{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":null}],"usage":null,"obfuscation":"x1"}

data: {"id":"c1","object":"chat.completion.chunk","created":1,"model":"gpt-4o","choices":[{"index":0,"delta":{"content":"Hello"},"logprobs":null,"finish_reason":null}],"usage":null}

data: {"id":"c1","object":"chat.completion.chunk","created":1,"model":"gpt-4o","choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}],"usage":null}

data: {"id":"c1","object":"chat.completion.chunk","created":1,"model":"gpt-4o","choices":[],"usage":{"prompt_tokens":19,"completion_tokens":10,"total_tokens":29,"prompt_tokens_details":{"cached_tokens":3,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":2,"audio_tokens":0}}}

data: [DONE]

"""  # noqa: E501

DEEPSEEK = b"""\
: keep-alive

: keep-alive


data: {"id":"d1","object":"chat.completion.chunk","created":1,"model":"deepseek-reasoner","system_fingerprint":"fp","choices":[{"index":0,"delta":{"role":"assistant","content":null,"reasoning_content":"Let me think"},"logprobs":null,"finish_reason":null}]}

data: {"id":"d1","object":"chat.completion.chunk","created":1,"model":"deepseek-reasoner","choices":[{"index":0,"delta":{"content":"Hello","reasoning_content":null},"logprobs":null,"finish_reason":null}]}

data: {"id":"d1","object":"chat.completion.chunk","created":1,"model":"deepseek-reasoner","choices":[{"index":0,"delta":{"content":"","reasoning_content":null},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":19,"completion_tokens":10,"total_tokens":29,"prompt_tokens_details":{"cached_tokens":3},"completion_tokens_details":{"reasoning_tokens":2},"prompt_cache_hit_tokens":3,"prompt_cache_miss_tokens":16}}

data: [DONE]

"""  # noqa: E501

VLLM = b"""\
data: {"id":"v1","object":"chat.completion.chunk","created":1,"model":"DeepSeek-R1","choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"usage":{"prompt_tokens":19,"total_tokens":19,"completion_tokens":0}}

data: {"id":"v1","object":"chat.completion.chunk","created":1,"model":"DeepSeek-R1","choices":[{"index":0,"delta":{"content":"Hello"},"logprobs":null,"finish_reason":null}],"usage":{"prompt_tokens":19,"total_tokens":20,"completion_tokens":1}}

data: {"id":"v1","object":"chat.completion.chunk","created":1,"model":"DeepSeek-R1","choices":[],"usage":{"prompt_tokens":19,"total_tokens":29,"completion_tokens":10,"prompt_tokens_details":{"cached_tokens":3}}}

data: [DONE]

"""  # noqa: E501

DASHSCOPE = b"""\
data: {"choices":[{"delta":{"content":"","role":"assistant"},"index":0,"logprobs":null,"finish_reason":null}],"object":"chat.completion.chunk","usage":null,"created":1,"system_fingerprint":null,"model":"qwen-max","id":"q1"}

data: {"choices":[{"finish_reason":"stop","delta":{"content":"Hello"},"index":0,"logprobs":null}],"object":"chat.completion.chunk","usage":null,"created":1,"system_fingerprint":null,"model":"qwen-max","id":"q1"}

data: {"choices":[],"object":"chat.completion.chunk","usage":{"prompt_tokens":19,"completion_tokens":10,"total_tokens":29,"prompt_tokens_details":{"cached_tokens":3}},"created":1,"system_fingerprint":null,"model":"qwen-max","id":"q1"}

data: [DONE]

"""  # noqa: E501


def document(**fields: Any) -> Document:
    return Document.parse(msgspec.json.encode(fields))


def read(chunks: list[bytes], endpoint: Endpoint = CHAT) -> tuple[base.StreamReader, list[Event]]:
    splitter, reader = Splitter(), base.StreamReader(endpoint)
    events = [event for chunk in chunks for event in splitter.feed(chunk)] + splitter.finish()
    for event in events:
        reader.read(event)
    return reader, events


def chunk(**fields: Any) -> bytes:
    return b"data: " + msgspec.json.encode(fields) + b"\n\n"


@pytest.mark.parametrize(
    ("stream", "reasoning", "usage_only"),
    [(OPENAI, 2, 1), (DEEPSEEK, 2, 0), (VLLM, 0, 1), (DASHSCOPE, 0, 1)],
    ids=["openai", "deepseek", "vllm", "dashscope"],
)
@given(data=st.data())
def test_streams(stream: bytes, reasoning: int, usage_only: int, data: st.DataObject) -> None:
    """The usage, the end and the usage event are read in each provider's stream, under every chunking."""
    reader, events = read(data.draw(chunkings(stream)))

    assert reader.usage == Usage(input=19, output=10, cached=3, reasoning=reasoning)
    assert reader.finished
    assert not reader.failed
    assert not reader.usage_is_partial()
    assert sum(reader.is_usage_only(event) for event in events) == usage_only
    assert reader.estimate_output() >= 2


def test_vllm_repeats_its_usage() -> None:
    """A usage that comes with every chunk counts what passed so far, so a broken stream has the last one."""
    reader, events = read(
        [
            VLLM.partition(
                b'data: {"id":"v1","object":"chat.completion.chunk","created":1,"model":"DeepSeek-R1","choices":[],'
            )[0]
        ]
    )

    assert reader.usage == Usage(input=19, output=1)
    assert not reader.finished
    assert not any(reader.is_usage_only(event) for event in events)


def test_no_usage_is_estimated() -> None:
    """Without a report, what passed is counted: content, reasoning and the arguments of tool calls."""
    words = "the quick brown fox jumps over the lazy dog "
    call = {"index": 0, "id": "t", "type": "function", "function": {"name": "f", "arguments": words}}
    deltas = [{"content": words}, {"reasoning_content": words}, {"reasoning": words}, {"tool_calls": [call]}]
    reader, _ = read([chunk(choices=[{"index": 0, "delta": delta}]) for delta in deltas])

    assert reader.usage is None
    assert reader.usage_is_partial()
    assert 35 <= reader.estimate_output() <= 48


def test_completions_stream() -> None:
    """The legacy completions keep their text elsewhere."""
    reader, _ = read([chunk(choices=[{"text": "Hello there", "index": 0}])], COMPLETIONS)

    assert reader.estimate_output() >= 2


def test_a_model_that_says_usage() -> None:
    """Text about usage, errors and ends is text."""
    text = '"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\ndata: [DONE]\n\ndata: {"error":{}}'
    reader, events = read([chunk(choices=[{"index": 0, "delta": {"content": text}}], usage=None)])

    assert len(events) == 1
    assert (reader.usage, reader.finished, reader.failed) == (None, False, False)
    assert not reader.is_usage_only(events[0])


@pytest.mark.parametrize(
    "stream",
    [
        chunk(error={"message": "overloaded", "type": "server_error", "code": None}),
        chunk(object="error", message="out of memory", code=500),
        b'event: error\ndata: {"code":"Throttling","message":"slow down"}\n\n',
        b"event: error\ndata: not json\n\n",
    ],
)
def test_errors_inside_a_stream(stream: bytes) -> None:
    """Each way in which servers tell of an error in the middle of a stream is seen."""
    reader, _ = read([stream])

    assert reader.failed
    assert not reader.finished


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"[",
        b"null",
        b"7",
        b'"x"',
        b"\xff",
        b"[DONE",
        b'{"choices":7}',
        b'{"choices":[null]}',
        b"[" * 100_000,
    ],
)
def test_malformed_data_never_raises(data: bytes) -> None:
    """What cannot be read is passed over."""
    reader, _ = read([b"data: " + data + b"\n\n"])

    assert (reader.usage, reader.finished, reader.failed) == (None, False, False)


@given(JSON_VALUES, JSON_VALUES, JSON_VALUES, JSON_VALUES)
def test_any_shape_is_survived(delta: Any, choices: Any, usage: Any, error: Any) -> None:
    """Chunks of any shape: no exception in a stream, nor in a whole answer."""
    said = {"content": delta, "tool_calls": delta, "reasoning": delta}
    for body in ({"choices": [{"delta": said, "text": delta}], "usage": usage}, {"choices": choices, "error": error}):
        reader, _ = read([chunk(**body)])
        reader.estimate_output()
        base.read_answer(CHAT, msgspec.json.encode(body)).estimate_output()


def test_odd_choices_do_not_hide_the_usage() -> None:
    """A shape of choices that we do not know leaves the usage readable."""
    reader, _ = read([chunk(choices={"0": {}}, usage={"prompt_tokens": 3, "completion_tokens": 4})])

    assert reader.usage == Usage(input=3, output=4)


def test_oversize_events_are_passed_over() -> None:
    """A piece of an event that is too big says nothing."""
    reader = base.StreamReader(CHAT)
    reader.read(Event(b"data: [DONE]\n\n", oversize=True))

    assert not reader.finished


def test_usage_only_means_no_choices() -> None:
    """Chunks without choices but without usage, or with both, are not the usage event."""
    usage = {"prompt_tokens": 3, "completion_tokens": 4}
    filters = chunk(choices=[], prompt_filter_results=[])  # Azure's first chunk
    both = chunk(choices=[{"index": 0, "delta": {}}], usage=usage)
    reader, events = read([filters, both, chunk(choices=[], usage=usage)])

    assert [reader.is_usage_only(event) for event in events] == [False, False, True]


def test_answer() -> None:
    """A whole chat completion, after the blank lines that DeepSeek sends while it queues."""
    body = {
        "model": "deepseek-chat",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello there"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
    }
    facts = base.read_answer(CHAT, b"\n\n\n" + msgspec.json.encode(body))

    assert (facts.usage, facts.model, facts.finished) == (Usage(input=3, output=4), "deepseek-chat", True)
    assert facts.estimate_output() == 3


def test_answer_of_tools_without_usage() -> None:
    """Without usage the tool calls count for the estimate."""
    call = {"id": "t", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Berlin"}'}}
    body = {"choices": [{"message": {"content": None, "tool_calls": [call]}, "finish_reason": None}]}
    facts = base.read_answer(CHAT, msgspec.json.encode(body))

    assert facts.usage is None
    assert not facts.finished
    assert 5 <= facts.estimate_output() <= 15


def test_answer_of_embeddings() -> None:
    """Embeddings have an input and no output."""
    body = {
        "object": "list",
        "model": "e",
        "data": [{"embedding": [0.1]}],
        "usage": {"prompt_tokens": 8, "total_tokens": 8},
    }
    facts = base.read_answer(EMBEDDINGS, msgspec.json.encode(body))

    assert (facts.usage, facts.finished, facts.estimate_output()) == (Usage(input=8), True, 0)


@pytest.mark.parametrize("body", [b"", b"\n", b"<html>", b"[]", b'{"usage":', b"\xff"])
def test_answer_that_is_no_json(body: bytes) -> None:
    """An answer that cannot be read says nothing and raises nothing."""
    assert base.read_answer(CHAT, body) == base.AnswerFacts()


@pytest.mark.parametrize(
    ("fields", "facts"),
    [
        ({}, (False, False)),
        ({"stream": None, "stream_options": None}, (False, False)),
        ({"stream": True}, (True, False)),
        ({"stream": True, "stream_options": {}}, (True, False)),
        ({"stream": True, "stream_options": {"include_usage": None}}, (True, False)),
        ({"stream": True, "stream_options": {"include_usage": True, "other": 1}}, (True, True)),
    ],
)
def test_request(fields: dict[str, Any], facts: tuple[bool, bool]) -> None:
    """The model, whether to stream, whether the client asked for the usage."""
    assert base.read_request(CHAT, document(model="m", **fields)) == base.RequestFacts("m", *facts)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "model"),
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
        ({"model": 5}, "model"),
        ({"model": ["m"]}, "model"),
        ({"model": "m", "stream": "true"}, "stream"),
        ({"model": "m", "stream": 1}, "stream"),
        ({"model": "m", "stream_options": "usage"}, "stream_options"),
        ({"model": "m", "stream_options": {"include_usage": True, "Include_usage": False}}, "stream_options"),
        ({"model": "m", "stream_options": {"include_usage": "yes"}}, "stream_options"),
    ],
)
def test_request_of_wrong_types(fields: dict[str, Any], name: str) -> None:
    """A field that we rely on must have its type; the error names it."""
    with pytest.raises(InvalidField) as caught:
        base.read_request(CHAT, document(**fields))

    assert caught.value.name == name


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'{"model":"m"}', b'{"model":"m","stream_options":{"include_usage":true}}'),
        (b'{"stream_options": null}', b'{"stream_options": {"include_usage":true}}'),
        (b'{"stream_options": { "a": 1 }, "z":0}', b'{"stream_options": { "a": 1,"include_usage":true }, "z":0}'),
        (b'{"stream_options":{"include_usage": false}}', b'{"stream_options":{"include_usage": true}}'),
    ],
)
def test_ask_for_usage(before: bytes, after: bytes) -> None:
    """We ask for the usage and leave the client's other options alone."""
    asked = Document.parse(before)
    base.ask_for_usage(asked)

    assert asked.body == after


def test_asking_where_the_client_asked() -> None:
    """Nothing changes where the client asked already."""
    body = b'{"stream_options":{"include_usage":true}}'
    asked = Document.parse(body)
    base.ask_for_usage(asked)

    assert asked.body is body


def test_prompt_of_chat() -> None:
    """Messages, parts and tools' JSON are the text of a chat request; images are not."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 10_000}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    request = document(
        model="m",
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "What is this?"}, image]},
        ],
        tools=tools,
    )

    assert list(base.prompt_texts(CHAT, request)) == ["Be brief.", "What is this?", msgspec.json.encode(tools).decode()]
    assert 20 <= base.estimate_prompt(CHAT, request) <= 60


@pytest.mark.parametrize("endpoint", [COMPLETIONS, EMBEDDINGS])
@pytest.mark.parametrize(
    ("given_input", "texts", "tokens"),
    [
        ("Hello there", ["Hello there"], 3),
        (["Hello", "there"], ["Hello", "there"], 3),
        ([1, 2, 3], [], 3),
        ([[1, 2, 3], [4]], [], 4),
        ({"odd": 1}, [], 0),
        (None, [], 0),
    ],
)
def test_prompt_of_other_endpoints(endpoint: Endpoint, given_input: Any, texts: list[str], tokens: int) -> None:
    """Texts, lists of texts and token ids, whose number is exact."""
    field = "input" if endpoint is EMBEDDINGS else "prompt"
    request = document(**{"model": "m", field: given_input})

    assert list(base.prompt_texts(endpoint, request)) == texts
    assert base.estimate_prompt(endpoint, request) == tokens


@given(JSON_VALUES)
def test_prompt_of_any_shape(value: Any) -> None:
    """Odd shapes are estimated as far as they go."""
    request = document(model="m", messages=value, prompt=value, input=value, tools=value)
    for endpoint in (CHAT, COMPLETIONS, EMBEDDINGS):
        assert base.estimate_prompt(endpoint, request) >= 0
