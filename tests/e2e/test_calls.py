"""Calls of the real SDKs through a real Envoy: what the client asked is what the provider gets, and back."""

import base64
import json
from typing import Any

import anthropic
import httpx
import openai
import pytest
from world import ACME, CHAT, MAX_BODY, MESSAGES, World, call_id, chat, messages

from extproc.demo.gateway import Gateway
from extproc.demo.stub import StubProvider, running

pytestmark = pytest.mark.e2e

HI: Any = [{"role": "user", "content": "hi"}]
WEATHER: Any = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
PIXEL = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40).decode()


# --- every endpoint, sync and async, whole and streamed ---------------------------------------------------------


def test_chat(world: World, gpt: openai.OpenAI) -> None:
    """A chat completion, whole and streamed, under the provider's own model name."""
    whole = gpt.chat.completions.create(model="gpt", messages=HI)
    stream = gpt.chat.completions.create(model="gpt", messages=HI, stream=True)
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    assert "Hello from primary." == whole.choices[0].message.content == streamed
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 4
    assert [request.json["model"] for request in world.primary.requests] == ["gpt-primary", "gpt-primary"]


async def test_chat_async(async_gpt: openai.AsyncOpenAI) -> None:
    """The asynchronous client gets the same."""
    whole = await async_gpt.chat.completions.create(model="gpt", messages=HI)
    stream = await async_gpt.chat.completions.create(model="gpt", messages=HI, stream=True)
    streamed = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert "Hello from primary." == whole.choices[0].message.content == streamed


def test_completions(gpt: openai.OpenAI) -> None:
    """The older text completions, whole and streamed."""
    whole = gpt.completions.create(model="gpt", prompt="hi")
    stream = gpt.completions.create(model="gpt", prompt="hi", stream=True)

    assert "Hello from primary." == whole.choices[0].text == "".join(chunk.choices[0].text for chunk in stream)


async def test_completions_async(async_gpt: openai.AsyncOpenAI) -> None:
    """The asynchronous client gets the same."""
    whole = await async_gpt.completions.create(model="gpt", prompt="hi")
    stream = await async_gpt.completions.create(model="gpt", prompt="hi", stream=True)

    assert "Hello from primary." == whole.choices[0].text == "".join([c.choices[0].text async for c in stream])


def test_embeddings(world: World, gpt: openai.OpenAI) -> None:
    """As numbers and as base64, which the SDK asks for by default, vectors are the provider's."""
    with openai.OpenAI(base_url=world.primary.base_url, api_key="any") as direct:
        expected = direct.embeddings.create(model="gpt-primary", input=["a", "你好"], encoding_format="float")

    as_float = gpt.embeddings.create(model="gpt", input=["a", "你好"], encoding_format="float")
    as_base64 = gpt.embeddings.create(model="gpt", input=["a", "你好"])

    assert expected == as_float
    for wanted, got in zip(expected.data, as_base64.data, strict=True):
        assert wanted.embedding == pytest.approx(got.embedding, abs=1e-6)
    assert world.primary.requests[-1].json["encoding_format"] == "base64"


async def test_embeddings_async(async_gpt: openai.AsyncOpenAI) -> None:
    """The asynchronous client gets vectors too."""
    answer = await async_gpt.embeddings.create(model="gpt", input="a", dimensions=32)

    assert len(answer.data[0].embedding) == 32


def test_responses(gpt: openai.OpenAI) -> None:
    """The Responses API, whole and as typed events."""
    whole = gpt.responses.create(model="gpt", input="hi")
    events = list(gpt.responses.create(model="gpt", input="hi", stream=True))

    assert whole.output_text == "Hello from primary."
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == "Hello from primary."
    assert events[-1].type == "response.completed"
    assert events[-1].response.usage is not None


async def test_responses_async(async_gpt: openai.AsyncOpenAI) -> None:
    """The asynchronous client gets the same."""
    whole = await async_gpt.responses.create(model="gpt", input="hi")
    stream = await async_gpt.responses.create(model="gpt", input="hi", stream=True)
    events = [event async for event in stream]

    assert whole.output_text == "Hello from primary."
    assert events[-1].type == "response.completed"


def test_messages(claude: anthropic.Anthropic) -> None:
    """Anthropic's messages, whole and streamed."""
    whole = claude.messages.create(model="claude", max_tokens=100, messages=HI)
    with claude.messages.stream(model="claude", max_tokens=100, messages=HI) as stream:
        streamed = "".join(stream.text_stream)
        usage = stream.get_final_message().usage

    assert "Hello from claude." == whole.content[0].text == streamed
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == (1, 4)
    assert (usage.input_tokens, usage.output_tokens) == (1, 4)


async def test_messages_async(async_claude: anthropic.AsyncAnthropic) -> None:
    """The asynchronous client gets the same."""
    whole = await async_claude.messages.create(model="claude", max_tokens=100, messages=HI)
    async with async_claude.messages.stream(model="claude", max_tokens=100, messages=HI) as stream:
        streamed = "".join([text async for text in stream.text_stream])

    assert "Hello from claude." == whole.content[0].text == streamed


def test_one_model_in_both_dialects(world: World, gpt: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    """A model with targets of both dialects is served at both paths, each by those that speak it."""
    said = gpt.chat.completions.create(model="both", messages=HI).choices[0].message.content
    written = claude.messages.create(model="both", max_tokens=100, messages=HI).content[0].text

    assert (said, written) == ("Hello from primary.", "Hello from claude.")
    assert world.seen("claude").json["model"] == "opus"


# --- tools, images, text ----------------------------------------------------------------------------------------


def test_tools(world: World, gpt: openai.OpenAI) -> None:
    """A tool is called, whole and with its arguments in pieces."""
    world.primary.behaviour.tool_calls = True
    world.primary.behaviour.tool_arguments = '{"city": "杭州", "note": "\\"quoted\\""}'
    world.primary.behaviour.events = 20
    whole = gpt.chat.completions.create(model="gpt", messages=HI, tools=[WEATHER])
    stream = gpt.chat.completions.create(model="gpt", messages=HI, tools=[WEATHER], stream=True)
    deltas = [c.choices[0].delta.tool_calls[0] for c in stream if c.choices[0].delta.tool_calls]
    arguments = "".join(delta.function.arguments or "" for delta in deltas)

    call = whole.choices[0].message.tool_calls[0]
    assert ("weather", world.primary.behaviour.tool_arguments) == (call.function.name, call.function.arguments)
    assert ("weather", world.primary.behaviour.tool_arguments) == (deltas[0].function.name, arguments)
    assert world.primary.requests[-1].json["tools"] == [WEATHER]


def test_tools_of_the_responses_api(world: World, gpt: openai.OpenAI) -> None:
    """A function call of the Responses API arrives in pieces and whole."""
    world.primary.behaviour.tool_calls = True
    tool: Any = {"type": "function", **WEATHER["function"], "strict": False}
    events = list(gpt.responses.create(model="gpt", input="hi", tools=[tool], stream=True))

    pieces = "".join(e.delta for e in events if e.type == "response.function_call_arguments.delta")
    assert '{"city": "Hangzhou"}' == pieces == events[-1].response.output[0].arguments


def test_tools_of_messages(world: World, claude: anthropic.Anthropic) -> None:
    """Anthropic's partial JSON is put together again by its SDK."""
    world.claude.behaviour.tool_calls = True
    tool: Any = {"name": "weather", "input_schema": WEATHER["function"]["parameters"]}
    with claude.messages.stream(model="claude", max_tokens=100, messages=HI, tools=[tool]) as stream:
        message = stream.get_final_message()

    assert (
        message.stop_reason,
        message.content[0].name,
        message.content[0].input,
    ) == ("tool_use", "weather", {"city": "Hangzhou"})


def test_images_as_parts(world: World, gpt: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    """Images in the body arrive as they were sent, in either dialect's form."""
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}", "detail": "low"}}
    content: Any = [{"type": "text", "text": "What is this?"}, part]
    gpt.chat.completions.create(model="gpt", messages=[{"role": "user", "content": content}])
    block: Any = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
    claude.messages.create(model="claude", max_tokens=100, messages=[{"role": "user", "content": [block]}])

    assert content == world.seen("primary").json["messages"][0]["content"]
    assert [block] == world.seen("claude").json["messages"][0]["content"]


def test_text_of_every_script(world: World, gpt: openai.OpenAI) -> None:
    """Chinese, combining marks, right-to-left, emoji of several code points, NUL and quotes: there and back."""
    text = '你好，世界 é e\u0301 שלום 👩\u200d👩\u200d👧\u200d👦 𝒳 "\\" \x00\x1f\u2028\ufeff 🏴'
    world.primary.behaviour.text = text
    world.primary.behaviour.events = 7
    message: Any = [{"role": "user", "content": text}]
    whole = gpt.chat.completions.create(model="gpt", messages=message)
    stream = gpt.chat.completions.create(model="gpt", messages=message, stream=True)

    assert text == whole.choices[0].message.content
    assert text == "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert [text, text] == [r.json["messages"][0]["content"] for r in world.primary.requests]


# --- the body's bytes -------------------------------------------------------------------------------------------

ODD = (
    b' \n{"temperature" : 1.0e-0,\t"seed":123456789012345678901234567890 , "model"  :"MODEL" ,\r\n'
    b'"messages":[ {"role":"user","content":"\\u4f60\\ud83d\\ude00 \\/ \xe4\xbd\xa0 \\"model\\":\\"gpt\\""} ],'
    b'"x\\u0065":[1.50,-0,1E+300,{"model":"gpt","model":"gpt"}], "\xe5\xad\x97" :null }\n '
)


def test_bytes_of_the_body_stay(world: World) -> None:
    """Whitespace, order, spelling of numbers and escapes stay; only the model's name is another."""
    answer = world.post(CHAT, ODD.replace(b"MODEL", b"gpt"))

    assert answer.status_code == 200
    assert ODD.replace(b"MODEL", b"gpt-primary") == world.seen("primary").body


def test_nothing_is_changed_where_names_are_the_same(world: World) -> None:
    """A target without a name of its own gets the client's bytes."""
    body = b'{ "max_tokens":5,"model":"claude","messages":[{"role":"user","content":"hi"}]   }'
    answer = world.post(MESSAGES, body)

    assert answer.status_code == 200
    assert body == world.seen("claude").body


def test_stream_options_are_all_that_is_added(world: World) -> None:
    """We ask for usage on the client's behalf, at the body's end."""
    world.post(CHAT, b'{"stream":true, "model":"gpt","messages":[] }')

    expected = b'{"stream":true, "model":"gpt-primary","messages":[] ,"stream_options":{"include_usage":true}}'
    assert json.loads(expected) == world.seen("primary").json
    assert world.seen("primary").body.startswith(b'{"stream":true, "model":"gpt-primary","messages":[]')
    assert len(expected) == len(world.seen("primary").body)


def test_stream_options_of_the_client_stay(world: World) -> None:
    """Other options are kept; a client that asked for usage itself is not touched at all."""
    world.post(CHAT, b'{"model":"gpt","stream":true,"stream_options":{ "include_obfuscation":false},"messages":[]}')
    asked = b'{"model":"gpt","stream":true,"stream_options": { "include_usage" : true },"messages":[]}'
    world.post(CHAT, asked)

    first, second = world.primary.requests
    assert first.json["stream_options"] == {"include_obfuscation": False, "include_usage": True}
    assert asked.replace(b'"gpt"', b'"gpt-primary"') == second.body


def test_head_of_the_request(world: World) -> None:
    """Query and headers of the client pass; the path is the provider's."""
    answer = world.post(
        f"{CHAT}?beta=true&x=%20y", chat("gpt"), headers={"openai-beta": "assistants=v2", "x-own": "值".encode()}
    )

    request = world.seen("primary")
    assert answer.status_code == 200
    assert (request.method, request.path, request.query) == ("POST", CHAT, "beta=true&x=%20y")
    assert request.headers["openai-beta"] == "assistants=v2"
    assert "值".encode() == request.headers["x-own"].encode("latin-1")
    assert f"127.0.0.1:{world.primary.port}" == request.headers["host"]


def test_head_of_the_answer(world: World) -> None:
    """Headers of the provider pass, and every answer has a call id of its own."""
    world.primary.behaviour.headers = {"x-ratelimit-remaining-requests": "7", "openai-processing-ms": "12"}
    first, second = world.chat("gpt"), world.chat("gpt")

    assert first.headers["x-ratelimit-remaining-requests"] == "7"
    assert first.headers["openai-processing-ms"] == "12"
    assert call_id(first) != call_id(second)


# --- big bodies -------------------------------------------------------------------------------------------------


def sized(size: int, model: str, **more: Any) -> bytes:
    """A request of exactly ``size`` bytes."""
    frame = json.dumps(messages(model, "", **more)).encode()
    return frame.replace(b'"content": ""', b'"content": "%b"' % (b"x" * (size - len(frame))))


def chunks(body: bytes) -> Any:
    """The body without a length in advance."""
    return (body[at : at + 65_521] for at in range(0, len(body), 65_521))


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("path", "model", "stub"), [(CHAT, "gpt", "primary"), (MESSAGES, "claude", "claude")])
def test_largest_body(world: World, path: str, model: str, stub: str, chunked: bool) -> None:
    """A body of exactly ``max_body`` passes whole, though the provider's name for the model is longer."""
    body = sized(MAX_BODY, model)
    answer = world.post(path, chunks(body) if chunked else body)

    assert (answer.status_code, len(body)) == (200, MAX_BODY)
    received = world.seen(stub).body
    assert body.replace(b'"model": "gpt"', b'"model": "gpt-primary"') == received or body == received


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("path", "model"), [(CHAT, "gpt"), (MESSAGES, "claude")])
def test_a_byte_too_much(world: World, path: str, model: str, chunked: bool) -> None:
    """One byte over ``max_body`` is 413 in the dialect's own words, and no provider is asked."""
    body = sized(MAX_BODY + 1, model)
    answer = world.post(path, chunks(body) if chunked else body)

    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/json"
    assert call_id(answer)
    error = answer.json()["error"]
    assert (error["code"] if path == CHAT else error["type"]) == "request_too_large"
    assert world.hits() == {}


def over_http2(url: str) -> httpx.Client:
    headers = {"authorization": f"Bearer {ACME}", "content-type": "application/json"}
    return httpx.Client(base_url=url, http1=False, http2=True, timeout=60, headers=headers)


def test_largest_body_over_http2(world: World) -> None:
    """The window of an HTTP/2 stream is no limit below ``max_body``, nor below ``max_answer``."""
    world.primary.behaviour.text = "y" * (20 << 20)
    with over_http2(world.gateway.url) as client:
        answer = client.post(CHAT, content=sized(MAX_BODY, "patient"))

    assert (answer.http_version, answer.status_code) == ("HTTP/2", 200)
    assert world.seen("primary").body.endswith(b"x" * 1000 + b'"}]}')
    assert len(answer.json()["choices"][0]["message"]["content"]) == 20 << 20


@pytest.mark.parametrize("http2", [False, True])
def test_largest_body_where_answers_are_small(transport: str, http2: bool) -> None:
    """Envoy holds ``max_body`` and what the attempt adds to it, also where ``max_answer`` leaves no room."""
    with running(stub := StubProvider("stub")):
        config = {
            "server": {"transport": transport},
            "gateway": {"max_body": "1MiB", "max_answer": "64KiB"},
            "providers": {"stub": {"base_url": stub.base_url}},
            "models": {"m": {"route": [[{"provider": "stub", "model": "a-much-longer-name"}]]}},
            "consumers": {"acme": {"keys": [{"value": ACME}]}},
        }
        with Gateway(config) as gateway, over_http2(gateway.url) if http2 else httpx.Client(timeout=60) as client:
            headers = {"authorization": f"Bearer {ACME}", "content-type": "application/json"}
            answer = client.post(gateway.url + CHAT, content=sized(1 << 20, "m", stream=True), headers=headers)

    assert answer.status_code == 200
    assert len(stub.requests[0].body) > 1 << 20


@pytest.mark.parametrize("fault", ["reset", None])
def test_largest_body_with_fallback(world: World, fault: Any) -> None:
    """The second attempt gets the whole body too, whether the first read it or not."""
    world.primary.behaviour.fault = fault
    world.primary.behaviour.status = 503
    body = sized(MAX_BODY, "pair", stream=True)
    answer = world.post(CHAT, body)

    assert answer.status_code == 200
    received = world.seen("backup").json
    assert json.loads(body)["messages"] == received["messages"]
    assert world.hits() == {"primary": 1, "backup": 1}


def test_largest_body_when_the_first_is_dead(world: World) -> None:
    """A refused connection costs nothing of the body."""
    answer = world.post(CHAT, sized(MAX_BODY, "dead-first"))

    assert answer.status_code == 200
    assert len(world.seen("backup").body) > MAX_BODY


def test_big_answers(world: World) -> None:
    """Answers of many MiB come whole, at once and as a stream of many events."""
    world.primary.behaviour.text = "0123456789abcdef" * (1 << 18)
    world.primary.behaviour.events = 3000
    whole = world.chat("gpt")
    with world.streaming(CHAT, chat("gpt", stream=True)) as answer:
        lines = [line for line in answer.iter_lines() if line.startswith('data: {"id"')]
    pieces = [json.loads(line[6:])["choices"][0]["delta"].get("content", "") for line in lines]

    assert world.primary.behaviour.text == whole.json()["choices"][0]["message"]["content"]
    assert world.primary.behaviour.text == "".join(pieces)
    assert world.line(call_id=call_id(answer))["output_tokens"] == 3000


def test_an_answer_too_big(world: World) -> None:
    """An answer that is not a stream and larger than ``max_answer`` is an error, in the dialect's words."""
    world.primary.behaviour.text = "x" * (35 << 20)
    answer = world.chat("patient")

    assert answer.status_code == 502
    assert answer.json()["error"]["code"] == "provider_error"
    assert world.line(call_id=call_id(answer))["status"] == 502
