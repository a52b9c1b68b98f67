"""The stub providers, through plain HTTP and through the SDKs that users have."""

import asyncio
import gzip
import json
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path
from typing import Any

import anthropic
import httpx
import msgspec
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.demo.stub import Behaviour, StubProvider, running
from extproc.demo.stub.http1 import BadRequestError, Received, RequestParser

HELLO = {"model": "m", "messages": [{"role": "user", "content": "one two three"}]}
TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
CLAUDE_TOOL: Any = {"name": "weather", "input_schema": {"type": "object", "properties": {}}}


@pytest.fixture
async def stub() -> AsyncIterator[StubProvider]:
    stub = StubProvider("primary")
    await stub.start()
    yield stub
    await stub.stop()


@pytest.fixture
async def claude() -> AsyncIterator[StubProvider]:
    stub = StubProvider("claude", "anthropic")
    await stub.start()
    yield stub
    await stub.stop()


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=10, trust_env=False) as client:
        yield client


async def chat(http: httpx.AsyncClient, stub: StubProvider, **body: Any) -> httpx.Response:
    return await http.post(f"{stub.base_url}/chat/completions", json={**HELLO, **body})


def datas(text: str) -> list[Any]:
    """The JSON of each SSE event, the closing [DONE] left out."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [msgspec.json.decode(line) for line in lines if line != "[DONE]"]


def said(text: str) -> str:
    return "".join(c["delta"].get("content") or "" for e in datas(text) for c in e["choices"])


async def until(true: Callable[[], bool]) -> None:
    """Wait until ``true()``, at most 5 seconds."""
    deadline = time.monotonic() + 5
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


async def until_broken(http: httpx.AsyncClient, stub: StubProvider, *, stream: bool) -> tuple[bytes, httpx.Headers]:
    """The body's bytes that came before the connection broke, and the headers."""
    request = http.build_request("POST", f"{stub.base_url}/chat/completions", json={**HELLO, "stream": stream})
    answer, got = await http.send(request, stream=True), []

    async def read() -> None:
        async for part in answer.aiter_bytes():
            got.append(part)  # noqa: PERF401 - what came before the error counts

    with pytest.raises(httpx.ReadError):
        await read()
    return b"".join(got), answer.headers


def openai_client(stub: StubProvider) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=stub.base_url, api_key="k", max_retries=0, timeout=10)


def claude_client(stub: StubProvider) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=stub.base_url, api_key="k", max_retries=0, timeout=10)


# The OpenAI SDK


async def test_openai_sdk_reads_a_chat_answer(stub: StubProvider) -> None:
    """A plain answer names the stub and echoes the model; usage counts the words asked and the pieces said."""
    async with openai_client(stub) as client:
        answer = await client.chat.completions.create(**HELLO)  # type: ignore[call-overload]
    assert (answer.model, answer.choices[0].message.content) == ("m", "Hello from primary.")
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (3, 4, 7)
    assert stub.requests[0].headers["authorization"] == "Bearer k"
    assert (stub.requests[0].method, stub.requests[0].path, stub.hits) == ("POST", "/v1/chat/completions", 1)


async def test_openai_sdk_reads_a_chat_stream(stub: StubProvider) -> None:
    """A stream gives reasoning, then the text in pieces, then usage in a chunk of its own if it was asked for."""
    stub.behaviour.reasoning = "Let me think."
    async with openai_client(stub) as client:
        stream = await client.chat.completions.create(  # type: ignore[call-overload]
            **HELLO, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    deltas = [c.choices[0].delta for c in chunks if c.choices]
    assert "".join(getattr(d, "reasoning_content", "") or "" for d in deltas) == "Let me think."
    assert [d.content for d in deltas if d.content] == ["Hell", "o fro", "m pri", "mary."]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens_details.reasoning_tokens == 3
    assert chunks[-1].usage.completion_tokens == 7
    assert all(c.usage is None for c in chunks[:-1])


@pytest.mark.parametrize("stream", [False, True])
async def test_openai_sdk_reads_a_tool_call(stub: StubProvider, stream: bool) -> None:
    """A tool call names the request's first tool, with whole arguments however they travelled."""
    stub.behaviour.tool_calls = True
    async with openai_client(stub) as client:
        if stream:
            async with client.chat.completions.stream(**HELLO, tools=[TOOL]) as events:  # type: ignore[arg-type]
                answer = await events.get_final_completion()
        else:
            answer = await client.chat.completions.create(**HELLO, tools=[TOOL])  # type: ignore[call-overload]
    calls: Any = answer.choices[0].message.tool_calls
    call = calls[0]
    assert (call.function.name, msgspec.json.decode(call.function.arguments)) == ("weather", {"city": "Hangzhou"})
    assert answer.choices[0].finish_reason == "tool_calls"


async def test_tool_calls_need_a_tool(stub: StubProvider, http: httpx.AsyncClient) -> None:
    """A request without tools is answered in words even by a stub that calls tools."""
    stub.behaviour.tool_calls = True
    message = (await chat(http, stub)).json()["choices"][0]["message"]
    assert message["content"] == "Hello from primary."
    assert "tool_calls" not in message


@pytest.mark.parametrize("stream", [False, True])
async def test_openai_sdk_reads_completions(stub: StubProvider, stream: bool) -> None:
    """The old completions endpoint answers the same text, streamed or not."""
    async with openai_client(stub) as client:
        if stream:
            chunks = [c async for c in await client.completions.create(model="m", prompt="a b", stream=True)]
            assert "".join(c.choices[0].text for c in chunks) == "Hello from primary."
            assert chunks[-1].choices[0].finish_reason == "stop"
        else:
            answer = await client.completions.create(model="m", prompt=["a b", "c"])
            assert answer.choices[0].text == "Hello from primary."
            assert answer.usage is not None
            assert answer.usage.prompt_tokens == 3


async def test_openai_sdk_reads_embeddings(stub: StubProvider) -> None:
    """Vectors are the same for the same text, as base64 (the SDK's default) or as floats, in the asked dimensions."""
    async with openai_client(stub) as client:
        packed = await client.embeddings.create(model="e", input=["one two", "three"], dimensions=8)
        plain = await client.embeddings.create(model="e", input="one two", dimensions=8, encoding_format="float")
        tokens = await client.embeddings.create(model="e", input=[1, 2, 3])
    assert packed.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-6)
    assert packed.data[0].embedding != packed.data[1].embedding
    assert sum(x * x for x in plain.data[0].embedding) == pytest.approx(1)
    assert (packed.usage.prompt_tokens, tokens.usage.prompt_tokens, len(tokens.data)) == (3, 3, 1)
    assert stub.requests[0].json["encoding_format"] == "base64"


async def test_openai_sdk_lists_models(stub: StubProvider) -> None:
    """The model list has the models that were given a behaviour, else the stub's own name."""
    async with openai_client(stub) as client:
        assert [m.id async for m in client.models.list()] == ["primary"]
        stub.models = {"a": Behaviour(), "b": Behaviour()}
        assert [m.id async for m in client.models.list()] == ["a", "b"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("reasoning", ["", "Let me think."])
async def test_openai_sdk_reads_responses(stub: StubProvider, stream: bool, reasoning: str) -> None:
    """The Responses API gives the same answer, streamed or not, with usage in its own words."""
    stub.behaviour.reasoning = reasoning
    stub.behaviour.cached_tokens = 1
    async with openai_client(stub) as client:
        if stream:
            async with client.responses.stream(model="m", input="one two") as events:
                kinds = [event.type async for event in events]
                answer = await events.get_final_response()
            assert kinds.count("response.output_text.delta") == 4
            assert kinds.count("response.reasoning_summary_text.delta") == len(reasoning.split())
            assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
        else:
            answer = await client.responses.create(model="m", input="one two")  # type: ignore[assignment]
    assert (answer.output_text, answer.model, answer.status) == ("Hello from primary.", "m", "completed")
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (2, 4 + len(reasoning.split()))
    assert answer.usage.input_tokens_details.cached_tokens == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_openai_sdk_reads_a_function_call_of_responses(stub: StubProvider, stream: bool) -> None:
    """The Responses API calls tools too."""
    stub.behaviour.tool_calls = True
    tools: Any = [{"type": "function", "name": "weather", "parameters": {}, "strict": False}]
    async with openai_client(stub) as client:
        if stream:
            async with client.responses.stream(model="m", input="hi", tools=tools) as events:
                answer: Any = await events.get_final_response()
        else:
            answer = await client.responses.create(model="m", input="hi", tools=tools)
    assert answer.output[0].name == "weather"
    assert msgspec.json.decode(answer.output[0].arguments) == {"city": "Hangzhou"}


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError),
        (429, openai.RateLimitError),
        (503, openai.InternalServerError),
    ],
)
async def test_openai_sdk_knows_the_errors(stub: StubProvider, status: int, error: type[openai.APIStatusError]) -> None:
    """A status becomes the SDK's own exception, with the stub's message and headers."""
    stub.behaviour = Behaviour(status=status, headers={"Retry-After": "7"})
    async with openai_client(stub) as client:
        with pytest.raises(error) as caught:
            await client.chat.completions.create(**HELLO)  # type: ignore[call-overload]
    assert caught.value.response.headers["retry-after"] == "7"
    assert "primary" in caught.value.body["message"]  # type: ignore[index]


def test_synchronous_clients_and_a_changing_stub() -> None:
    """``running`` serves synchronous code; what a stub does can be changed from there."""
    one, two = StubProvider("one"), StubProvider("two", "anthropic")
    with running(one, two):
        with openai.OpenAI(base_url=one.base_url, api_key="k", max_retries=0) as client:
            assert client.chat.completions.create(**HELLO).choices[0].message.content == "Hello from one."  # type: ignore[call-overload]
            one.behaviour = Behaviour(text="Changed.")
            stream = client.chat.completions.create(**HELLO, stream=True)  # type: ignore[call-overload]
            assert "".join(c.choices[0].delta.content or "" for c in stream) == "Changed."
        with anthropic.Anthropic(base_url=two.base_url, api_key="k", max_retries=0) as claude:
            answer = claude.messages.create(**HELLO, max_tokens=9)  # type: ignore[call-overload]
            assert answer.content[0].text == "Hello from two."
            with claude.messages.stream(**HELLO, max_tokens=9) as events:  # type: ignore[arg-type]
                assert events.get_final_text() == "Hello from two."
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((one.host, one.port))


def test_running_says_that_a_port_is_taken() -> None:
    """A taken port is an OSError of the caller, and the stubs that did start are stopped."""
    first, second = StubProvider("first"), StubProvider("second")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        second.port = taken.getsockname()[1]
        with pytest.raises(OSError, match="in use"), running(first, second):
            pass
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((first.host, first.port))


# The Anthropic SDK


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("usage", ["reported", "always", "last_chunk"])
async def test_anthropic_sdk_reads_messages(claude: StubProvider, stream: bool, usage: Any) -> None:
    """Thinking, text and all usage arrive, streamed or not, wherever in the stream the usage was."""
    claude.behaviour = Behaviour(reasoning="Let me.", usage=usage, cached_tokens=5, cache_creation_tokens=6)
    async with claude_client(claude) as client:
        if stream:
            async with client.messages.stream(**HELLO, max_tokens=9) as events:  # type: ignore[arg-type]
                answer: Any = await events.get_final_message()
        else:
            answer = await client.messages.create(**HELLO, max_tokens=9)  # type: ignore[call-overload]
    assert [b.type for b in answer.content] == ["thinking", "text"]
    assert (answer.content[0].thinking, answer.content[1].text) == ("Let me.", "Hello from claude.")
    assert (answer.model, answer.stop_reason) == ("m", "end_turn")
    read = (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.cache_read_input_tokens)
    assert read == (3, 6, 5)
    assert answer.usage.cache_creation_input_tokens == 6
    assert "anthropic-version" in claude.requests[0].headers
    assert claude.requests[0].path == "/v1/messages"


@pytest.mark.parametrize("stream", [False, True])
async def test_anthropic_sdk_reads_a_tool_use(claude: StubProvider, stream: bool) -> None:
    """A tool use carries its input as an object, put together by the SDK where it was streamed."""
    claude.behaviour.tool_calls = True
    async with claude_client(claude) as client:
        if stream:
            async with client.messages.stream(**HELLO, max_tokens=9, tools=[CLAUDE_TOOL]) as events:  # type: ignore[arg-type]
                answer: Any = await events.get_final_message()
        else:
            answer = await client.messages.create(**HELLO, max_tokens=9, tools=[CLAUDE_TOOL])  # type: ignore[call-overload]
    assert (answer.content[0].name, answer.content[0].input) == ("weather", {"city": "Hangzhou"})
    assert answer.stop_reason == "tool_use"


async def test_anthropic_stream_has_the_documented_events(claude: StubProvider, http: httpx.AsyncClient) -> None:
    """The events come in the order of Anthropic's documentation, ping included."""
    answer = await http.post(f"{claude.base_url}/v1/messages", json={**HELLO, "stream": True})
    kinds = [e["type"] for e in datas(answer.text)]
    assert kinds == re.findall(r"event: (\w+)\n", answer.text)
    assert kinds[:3] == ["message_start", "ping", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "invalid_request_error"), (429, "rate_limit_error"), (500, "api_error"), (529, "overloaded_error")],
)
async def test_anthropic_sdk_knows_the_errors(claude: StubProvider, status: int, kind: str) -> None:
    """An error has Anthropic's shape and type."""
    claude.behaviour.status = status
    async with claude_client(claude) as client:
        with pytest.raises(anthropic.APIStatusError) as caught:
            await client.messages.create(**HELLO, max_tokens=9)  # type: ignore[call-overload]
    assert caught.value.status_code == status
    assert caught.value.body["error"]["type"] == kind  # type: ignore[index]


# Usage, keys, paths, odd requests


async def test_usage_styles_of_a_stream(stub: StubProvider, http: httpx.AsyncClient) -> None:
    """Usage is where each style has it: asked for at the end, in every chunk, on the last with choices, nowhere."""

    async def usages(style: Any, asked: bool) -> list[Any]:
        stub.behaviour.usage = style
        options = {"stream_options": {"include_usage": True}} if asked else {}
        events = datas((await chat(http, stub, stream=True, **options)).text)
        return [e.get("usage", "absent") for e in events]

    total = {"absent": "absent", None: None}

    def outputs(found: list[Any]) -> list[Any]:
        return [u["completion_tokens"] if isinstance(u, dict) else total[u] for u in found]

    assert outputs(await usages("reported", asked=False)) == ["absent"] * 6
    assert outputs(await usages("reported", asked=True)) == [None] * 6 + [4]
    assert outputs(await usages("none", asked=True)) == ["absent"] * 6
    assert outputs(await usages("always", asked=False)) == [0, 1, 2, 3, 4, 4]
    assert outputs(await usages("always", asked=True)) == [0, 1, 2, 3, 4, 4, 4]
    assert outputs(await usages("last_chunk", asked=False)) == [None] * 5 + [4]


@pytest.mark.parametrize("path", ["chat/completions", "completions", "embeddings", "responses"])
async def test_usage_none_leaves_usage_out(stub: StubProvider, http: httpx.AsyncClient, path: str) -> None:
    """A provider that reports nothing has no usage in any JSON answer."""
    stub.behaviour.usage = "none"
    answer = await http.post(f"{stub.base_url}/{path}", json={**HELLO, "prompt": "p", "input": "i"})
    assert answer.status_code == 200
    assert "usage" not in answer.json()


async def test_token_numbers_can_be_set(stub: StubProvider, http: httpx.AsyncClient) -> None:
    """Input, cached and reasoning tokens are what the behaviour says."""
    stub.behaviour = Behaviour(input_tokens=100, cached_tokens=60, reasoning_tokens=30, events=2, usage="last_chunk")
    usage = (await chat(http, stub)).json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (100, 32, 132)
    assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_cache_hit_tokens"] == 60
    assert usage["prompt_cache_miss_tokens"] == 40
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 30


async def test_more_pieces_than_characters_repeat_the_text(stub: StubProvider, http: httpx.AsyncClient) -> None:
    """Streamed or not, the text is the same, in exactly as many pieces as asked for."""
    stub.behaviour = Behaviour(text="你好", events=5)
    streamed = (await chat(http, stub, stream=True)).text
    plain = (await chat(http, stub)).json()
    assert said(streamed) == plain["choices"][0]["message"]["content"] == "你好 你好 你好"
    assert len(datas(streamed)) == 7
    assert plain["usage"]["completion_tokens"] == 5


@pytest.mark.parametrize(
    ("style", "good"),
    [
        (None, {"authorization": "Bearer s"}),
        ("bearer", {"authorization": "Bearer s"}),
        ("api-key", {"api-key": "s"}),
        ("x-api-key", {"x-api-key": "s"}),
        ("raw-authorization", {"authorization": "s"}),
    ],
)
async def test_key_must_come_as_told(stub: StubProvider, http: httpx.AsyncClient, style: Any, good: Any) -> None:
    """The right key in the right header passes; any other way is 401 in the dialect's shape."""
    stub.behaviour = Behaviour(key="s", key_style=style)
    every = [{}, {"authorization": "Bearer s"}, {"authorization": "s"}, {"api-key": "s"}, {"x-api-key": "s"}]
    for headers in [*every, {name: f"{value}x" for name, value in good.items()}]:
        answer = await http.post(f"{stub.base_url}/chat/completions", json=HELLO, headers=headers)
        assert answer.status_code == (200 if headers == good else 401)
        if headers != good:
            assert answer.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("style", [None, "bearer", "x-api-key"])
async def test_anthropic_keys(claude: StubProvider, http: httpx.AsyncClient, style: Any) -> None:
    """The Anthropic dialect takes both ways in which its clients send keys, or just the one that it is told."""
    claude.behaviour = Behaviour(key="k", key_style=style)
    for way, headers in (("bearer", {"authorization": "Bearer k"}), ("x-api-key", {"x-api-key": "k"}), ("none", {})):
        answer = await http.post(f"{claude.base_url}/v1/messages", json=HELLO, headers=headers)
        assert answer.status_code == (200 if way == style or (style is None and headers) else 401)
        if answer.status_code == 401:
            assert answer.json()["error"]["type"] == "authentication_error"


async def test_anthropic_sdk_sends_a_key_that_is_taken(claude: StubProvider) -> None:
    """By default the SDK's key is taken however its version sends it, and a wrong one is refused."""
    claude.behaviour.key = "k"
    async with claude_client(claude) as client:
        assert (await client.messages.create(**HELLO, max_tokens=9)).type == "message"  # type: ignore[call-overload]
        claude.behaviour.key = "other"
        with pytest.raises(anthropic.AuthenticationError):
            await client.messages.create(**HELLO, max_tokens=9)  # type: ignore[call-overload]


async def test_models_have_behaviours_of_their_own(stub: StubProvider, http: httpx.AsyncClient) -> None:
    """The model named in the body decides, others get the default."""
    stub.models["broken"] = Behaviour(status=503)
    assert (await chat(http, stub, model="broken")).status_code == 503
    assert (await chat(http, stub, model="fine")).status_code == 200
    assert [r.json["model"] for r in stub.requests] == ["broken", "fine"]
    stub.clear()
    assert (stub.requests, stub.hits, stub.aborted) == ([], 0, 0)


@pytest.mark.parametrize("prefix", ["/compatible-mode/v1", "/openai/deployments/x", ""])
async def test_prefix_is_the_path_of_the_base_url(http: httpx.AsyncClient, prefix: str) -> None:
    """Endpoints live below the prefix and nowhere else; the query is kept apart."""
    stub = StubProvider("deep", prefix=prefix)
    await stub.start()
    try:
        assert stub.base_url.endswith(f":{stub.port}{prefix}")
        good = await http.post(f"{stub.base_url}/chat/completions?api-version=1", json=HELLO)
        bad = await http.post(f"http://127.0.0.1:{stub.port}/other/chat/completions", json=HELLO)
    finally:
        await stub.stop()
    assert (good.status_code, bad.status_code) == (200, 404)
    assert (stub.requests[0].path, stub.requests[0].query) == (f"{prefix}/chat/completions", "api-version=1")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/chat/completions", b"{"),
        ("/chat/completions", b""),
        ("/chat/completions", b"[1]"),
        ("/chat/completions", b'{"model": "m"}'),
        ("/chat/completions", b'{"messages": [], "stream_options": {"include_usage": true}}'),
        ("/completions", b'{"prompt": 1}'),
        ("/embeddings", b'{"input": "x", "dimensions": -1}'),
        ("/embeddings", b"{}"),
        ("/responses", b"{}"),
    ],
)
async def test_odd_requests_are_400(stub: StubProvider, http: httpx.AsyncClient, path: str, body: bytes) -> None:
    """What an endpoint cannot take is a 400 in the dialect's shape, and the connection lives on."""
    answer = await http.post(stub.base_url + path, content=body)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert (await chat(http, stub)).status_code == 200
    assert stub.open_connections == 1


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nothing", 404), ("GET", "/chat/completions", 405)])
async def test_unknown_paths_and_methods(
    stub: StubProvider, http: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    """What is not there is 404, a wrong method 405, both in the dialect's shape."""
    answer = await http.request(method, stub.base_url + path)
    assert answer.status_code == status
    assert "primary" in answer.json()["error"]["message"]
    assert (await http.head(stub.base_url + path)).text == ""


async def test_old_servers_refuse_stream_options(stub: StubProvider, http: httpx.AsyncClient) -> None:
    """A stub told so answers 400 to stream_options, and streams without them."""
    stub.behaviour.refuse_stream_options = True
    refused = await chat(http, stub, stream=True, stream_options={"include_usage": True})
    assert (refused.status_code, "stream_options" in refused.text) == (400, True)
    assert said((await chat(http, stub, stream=True)).text) == "Hello from primary."


# Delivery and faults


async def test_reset_before_any_answer(stub: StubProvider, http: httpx.AsyncClient) -> None:
    """The client sees a connection reset, and the request was received."""
    stub.behaviour.fault = "reset"
    reader, writer = await asyncio.open_connection(stub.host, stub.port)
    body = json.dumps(HELLO).encode()
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
    with pytest.raises(ConnectionResetError):
        await reader.read(1)
    writer.close()
    assert (stub.hits, stub.aborted) == (1, 0)


async def test_reset_in_the_middle_of_a_stream(stub: StubProvider, http: httpx.AsyncClient) -> None:
    """Exactly so many events arrive, then the connection breaks."""
    stub.behaviour = Behaviour(fault="reset_mid", fault_after=3)
    got, _ = await until_broken(http, stub, stream=True)
    assert got.count(b"\n\n") == 3
    assert stub.aborted == 0


async def test_reset_in_the_middle_of_json(stub: StubProvider, http: httpx.AsyncClient) -> None:
    """Half of the JSON arrives."""
    stub.behaviour.fault = "reset_mid"
    got, headers = await until_broken(http, stub, stream=False)
    assert len(got) == int(headers["content-length"]) // 2


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", ["silent", "stall_mid"])
async def test_silence_lasts_until_the_client_leaves(stub: StubProvider, stream: bool, fault: Any) -> None:
    """A silent or stalled answer keeps its connection; the client's leaving is noticed and counted."""
    stub.behaviour.fault = fault
    async with httpx.AsyncClient(timeout=httpx.Timeout(5, read=0.1), trust_env=False) as http:
        with pytest.raises(httpx.ReadTimeout):
            await http.post(f"{stub.base_url}/chat/completions", json={**HELLO, "stream": stream})
    await until(lambda: stub.aborted == 1)
    await until(lambda: stub.open_connections == 0)


async def test_client_leaving_a_stream_is_noticed(stub: StubProvider, http: httpx.AsyncClient) -> None:
    """A stream whose client left before the end counts as aborted; one read to its end does not."""
    await chat(http, stub, stream=True)
    stub.behaviour = Behaviour(events=1000, pace=0.01)
    url = f"{stub.base_url}/chat/completions"
    async with http.stream("POST", url, json={**HELLO, "stream": True}) as answer:
        async for _ in answer.aiter_bytes():
            break
    await until(lambda: stub.aborted == 1)
    assert stub.hits == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_garbage(stub: StubProvider, http: httpx.AsyncClient, stream: bool) -> None:
    """A 200 whose body is not what its content type promises."""
    stub.behaviour.fault = "garbage"
    answer = await chat(http, stub, stream=stream)
    assert (answer.status_code, b"data:" in answer.content) == (200, False)
    assert answer.headers["content-type"].startswith("text/event-stream" if stream else "application/json")
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(answer.content)


@pytest.mark.parametrize("chunking", [None, 1, 7, 1000])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("queue", [0, 0.01])
@pytest.mark.parametrize("pace", [0, 0.001])
async def test_delivery_does_not_change_the_answer(
    stub: StubProvider, http: httpx.AsyncClient, *, chunking: int | None, packed: bool, queue: float, pace: float
) -> None:
    """In whatever pieces, compressed or not, after a queue or not, the client reads the same answer."""
    stub.behaviour = Behaviour(chunking=chunking, gzip=packed, queue=queue, pace=pace, delay=0.001, text="你好，世界")
    plain, streamed = await chat(http, stub), await chat(http, stub, stream=True)
    assert plain.json()["choices"][0]["message"]["content"] == said(streamed.text) == "你好，世界"
    assert streamed.text.endswith("data: [DONE]\n\n")
    for answer in (plain, streamed):
        assert ("content-encoding" in answer.headers) is packed


async def test_queue_sends_signs_of_life(stub: StubProvider, http: httpx.AsyncClient) -> None:
    """As DeepSeek: headers at once, then blank lines before JSON and comments before events."""
    stub.behaviour.queue = 0.02
    assert (await chat(http, stub)).text.startswith("\n\n\n\n{")
    streamed = (await chat(http, stub, stream=True)).text
    assert streamed.startswith(": keep-alive\n\n" * 4 + "data: ")
    stub.behaviour.status = 503
    assert (await chat(http, stub)).status_code == 503


async def test_gzip_is_sent_unasked(stub: StubProvider, http: httpx.AsyncClient) -> None:
    """Compression is forced on clients that want identity."""
    stub.behaviour.gzip = True
    request = http.build_request(
        "POST", f"{stub.base_url}/chat/completions", json=HELLO, headers={"accept-encoding": "identity"}
    )
    answer = await http.send(request, stream=True)
    raw = b"".join([part async for part in answer.aiter_raw()])
    assert msgspec.json.decode(gzip.decompress(raw))["model"] == "m"


async def test_events_come_at_their_pace(stub: StubProvider, http: httpx.AsyncClient) -> None:
    """The first event comes at once, and the second not before its pause is over."""
    stub.behaviour.pace = 600
    url = f"{stub.base_url}/chat/completions"
    async with http.stream("POST", url, json={**HELLO, "stream": True}) as answer:
        first = await anext(answer.aiter_text())
    assert first.count("data: ") == first.count("\n\n") == 1


async def test_large_answers_wait_for_a_slow_reader(stub: StubProvider) -> None:
    """An answer larger than the sockets' buffers is delivered whole to a client that reads late."""
    stub.behaviour = Behaviour(text="x" * 8_000_000, events=1000)
    reader, writer = await asyncio.open_connection(stub.host, stub.port, limit=1024)
    body = json.dumps({**HELLO, "stream": True}).encode()
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body))
    writer.write(body)
    await until(lambda: stub.hits == 1)
    raw = await reader.read()
    writer.close()
    assert raw.count(b"x" * 8000) == 1000
    assert raw.endswith(b"0\r\n\r\n")


async def test_two_thousand_connections_at_once(stub: StubProvider) -> None:
    """2,000 clients are connected at the same time, and each is answered."""
    count, body = 2000, json.dumps(HELLO).encode()
    clients = []
    for _ in range(count // 100):
        clients += await asyncio.gather(*(asyncio.open_connection(stub.host, stub.port) for _ in range(100)))
    await until(lambda: stub.open_connections == count)
    for _, writer in clients:
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
    heads = await asyncio.gather(*(reader.readuntil(b"\r\n") for reader, _ in clients))
    assert set(heads) == {b"HTTP/1.1 200 OK\r\n"}
    for _, writer in clients:
        writer.transport.abort()
    await until(lambda: stub.open_connections == 0)
    assert stub.hits == count


async def test_a_stopped_stub_comes_back_at_its_port(http: httpx.AsyncClient) -> None:
    """Stopping cuts what runs and refuses connections; starting again takes the same port."""
    stub = StubProvider("back", behaviour=Behaviour(delay=30))
    await stub.start()
    waiting = asyncio.gather(chat(http, stub), return_exceptions=True)
    await until(lambda: stub.hits == 1)
    await stub.stop()
    await stub.stop()
    assert isinstance((await waiting)[0], httpx.TransportError)
    assert (stub.open_connections, stub.aborted) == (0, 0)
    with pytest.raises(httpx.ConnectError):
        await chat(http, stub)
    stub.behaviour.delay = 0
    await stub.start()
    try:
        assert (await chat(http, stub)).status_code == 200
    finally:
        await stub.stop()


def certificate(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's and a client's TLS context for 127.0.0.1."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.now(UTC)
    cert = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = cert.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "server.pem").write_bytes(private + pem)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(folder / "server.pem")
    return server, ssl.create_default_context(cadata=pem.decode())


async def test_tls(tmp_path: Path) -> None:
    """A stub with a certificate speaks https, streams and resets included."""
    server, client = certificate(tmp_path)
    stub = StubProvider("secure", tls=server)
    await stub.start()
    async with httpx.AsyncClient(verify=client, trust_env=False) as http:
        assert stub.base_url.startswith("https://")
        assert said((await chat(http, stub, stream=True)).text) == "Hello from secure."
        stub.behaviour.fault = "reset"
        with pytest.raises(httpx.TransportError):
            await chat(http, stub)
    await stub.stop()


# HTTP/1.1


def parsed(pieces: list[bytes]) -> list[Received]:
    parser, found = RequestParser(), []
    for piece in pieces:
        parser.feed(piece)
        while (request := parser.next_request()) is not None:
            found.append(request)
    return found


@given(st.lists(st.integers(0, 400), max_size=12))
def test_requests_are_the_same_in_any_pieces(cuts: list[int]) -> None:
    """Pipelined requests with length, with chunks and without a body are found wherever the network cut them."""
    raw = (
        b"POST /a?q=1 HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello"
        b"POST /b HTTP/1.1\r\nTransfer-Encoding: chunked\r\nX-A: 1\r\nx-a: 2\r\n\r\n3\r\nabc\r\nA;ext=1\r\n"
        b"0123456789\r\n0\r\nTrailer: t\r\n\r\nGET /c HTTP/1.1\r\n\r\n"
        b"POST /d HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
    )
    edges = [0, *sorted(min(cut, len(raw)) for cut in cuts), len(raw)]
    a, b, c, d = parsed([raw[i:j] for i, j in pairwise(edges)])
    assert (a.method, a.path, a.query, a.body) == ("POST", "/a", "q=1", b"hello")
    assert a.headers == {"host": "h", "content-length": "5", "expect": "100-continue"}
    assert (b.path, b.body, b.headers["x-a"]) == ("/b", b"abc0123456789", "1, 2")
    assert (c.method, c.path, c.body) == ("GET", "/c", b"")
    assert (d.path, d.body) == ("/d", b"")


@pytest.mark.parametrize(
    "raw",
    [
        b"hello\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nspace : 1\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 1, 2\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 99999999999\r\n\r\n",
        b"POST / HTTP/1.1\r\ntransfer-encoding: gzip\r\n\r\n",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\nabc\r\n",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nfffffffff\r\n",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n" + b"1" * 70_000,
        b"x" * 70_000,
    ],
)
async def test_bytes_that_are_no_request(stub: StubProvider, raw: bytes) -> None:
    """The parser says so, and the stub answers 400 and closes."""
    with pytest.raises(BadRequestError):
        parsed([raw])
    reader, writer = await asyncio.open_connection(stub.host, stub.port)
    writer.write(raw)
    answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"invalid_request_error" in answer


async def test_pipelined_requests_are_answered_in_turn(stub: StubProvider) -> None:
    """Requests sent at once get their answers one after the other, a slow one first."""
    stub.models["slow"] = Behaviour(delay=0.02)
    reader, writer = await asyncio.open_connection(stub.host, stub.port)
    for model, extra in (("slow", b""), ("fast", b"connection: close\r\n")):
        body = json.dumps({**HELLO, "model": model}).encode()
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\n%bcontent-length: %d\r\n\r\n" % (extra, len(body)) + body)
    raw = await reader.read()
    writer.close()
    assert re.findall(rb'"model":"(\w+)"', raw) == [b"slow", b"fast"]


async def test_chunked_request_bodies(stub: StubProvider, http: httpx.AsyncClient) -> None:
    """A body of unknown length is read as any other, several megabytes of it too."""
    big = json.dumps({**HELLO, "pad": "p" * 3_000_000}).encode()

    async def body() -> AsyncIterator[bytes]:
        for at in range(0, len(big), 50_000):
            yield big[at : at + 50_000]

    answer = await http.post(f"{stub.base_url}/chat/completions", content=body())
    assert (answer.status_code, stub.requests[0].body == big) == (200, True)
    assert stub.requests[0].headers["transfer-encoding"] == "chunked"


# The command


@pytest.fixture
def command() -> Iterator[Callable[..., tuple[subprocess.Popen[str], str]]]:
    processes: list[subprocess.Popen[str]] = []

    def start(*options: str) -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "extproc.demo.stub", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout is not None
        return process, process.stdout.readline().split()[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_command_runs_a_stub_until_sigterm(command: Callable[..., tuple[subprocess.Popen[str], str]]) -> None:
    """The command prints its base URL, behaves as told, and ends quietly on SIGTERM, open streams or not."""
    process, url = command(
        "--name", "cli", "--events", "6", "--pace", "0.001", "--usage", "none", "--header", "x-a: 1", "--fault",
        "stall_mid", "--fault-after", "3", "--gzip", "--chunking", "5", "--prefix", "/api",
    )  # fmt: skip
    assert url.endswith("/api")
    with (
        httpx.Client(trust_env=False) as http,
        http.stream("POST", f"{url}/chat/completions", json={**HELLO, "stream": True}) as answer,
    ):
        assert answer.headers["x-a"] == "1"
        text = ""
        for part in answer.iter_text():
            text += part
            if text.count("\n\n") == 3:
                break
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert process.stderr is not None
    assert process.stderr.read() == ""


async def test_a_call_that_breaks_the_stub_is_reported(stub: StubProvider, http: httpx.AsyncClient) -> None:
    """A behaviour that cannot be carried out goes to the loop's exception handler, and the client is cut off."""
    reports: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context))
    stub.behaviour.delay = "soon"  # type: ignore[assignment]
    with pytest.raises(httpx.TransportError):
        await chat(http, stub)
    assert len(reports) == 1
