"""Streamed answers: what passes, what is read from them, and what happens when one of the three sides stops."""

import asyncio
import gzip
import json
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anthropic
import httpx
import openai
import pytest
from world import ACME, CHAT, MESSAGES, World, call_id, chat, messages

from extproc.demo.stub import Behaviour
from extproc.demo.waiting import until

pytestmark = pytest.mark.e2e

ASK: Any = {"include_usage": True}
HI: Any = [{"role": "user", "content": "hi"}]
STREAMS = {
    "chat": (CHAT, chat("gpt", stream=True, stream_options=ASK), "primary"),
    "completions": (
        "/v1/completions",
        {"model": "gpt", "prompt": "hi", "stream": True, "stream_options": ASK},
        "primary",
    ),
    "responses": ("/v1/responses", {"model": "gpt", "input": "hi", "stream": True}, "primary"),
    "messages": (MESSAGES, messages("claude", stream=True), "claude"),
}


def number(text: bytes) -> bytes:
    """A stub numbers its answers."""
    return re.sub(rb"((?:primary|claude)-)\d+", rb"\1N", text)


# --- what passes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunking", [None, 1, 7, 4096])
@pytest.mark.parametrize("endpoint", STREAMS)
def test_byte_for_byte(world: World, endpoint: str, chunking: int | None) -> None:
    """However the network cuts it, the client reads the bytes that the provider wrote."""
    path, body, stub = STREAMS[endpoint]
    world.stubs[stub].behaviour = Behaviour(
        text="你好, 世界 👋 data: x\n\nevent: y", reasoning="let me see", events=9, chunking=chunking
    )
    direct = httpx.post(
        f"http://127.0.0.1:{world.stubs[stub].port}{path}",
        json={**body, "model": "gpt-primary" if stub == "primary" else "claude"},
    )
    through = world.post(path, body)

    assert through.headers["content-type"] == direct.headers["content-type"]
    assert number(direct.content) == number(through.content)
    assert len(through.content) > 500


def test_events_are_passed_as_they_come(world: World) -> None:
    """The client holds the first events while the provider has not said the rest."""
    world.primary.behaviour = Behaviour(events=50, fault="stall_mid", fault_after=3)
    with world.streaming(CHAT, chat("patient", stream=True)) as answer:
        lines = (line for line in answer.iter_lines() if line)
        assert [next(lines)[:6] for _ in range(3)] == ["data: "] * 3
        assert (world.primary.hits, world.primary.aborted) == (1, 0)


@pytest.mark.parametrize("endpoint", STREAMS)
def test_compressed_though_not_asked(world: World, endpoint: str) -> None:
    """A provider that compresses all the same is read all the same, and the client gets plain text."""
    path, body, stub = STREAMS[endpoint]
    world.stubs[stub].behaviour = Behaviour(gzip=True, text="Hello", events=1)
    answer = world.post(path, body, headers={"accept-encoding": "gzip"})

    assert "content-encoding" not in answer.headers
    assert b"Hello" in answer.content
    assert world.line(call_id=call_id(answer))["usage"] == "reported"


def test_compressed_answer_that_is_no_stream(world: World) -> None:
    """It reaches the client as it was compressed, and its usage is read."""
    world.primary.behaviour = Behaviour(gzip=True)
    with world.streaming(CHAT, chat("gpt")) as answer:
        raw = b"".join(answer.iter_raw())

    assert answer.headers["content-encoding"] == "gzip"
    assert b"Hello from primary." in gzip.decompress(raw)
    assert world.line(call_id=call_id(answer))["usage"] == "reported"


def test_longer_than_envoys_default_timeout(world: World) -> None:
    """A stream may last longer than the 15 seconds after which Envoy would end it by default."""
    world.primary.behaviour = Behaviour(events=64, pace=0.25, text="still here ")
    answer = world.post(CHAT, chat("gpt", stream=True))

    assert answer.elapsed.total_seconds() > 15
    assert answer.text.endswith("data: [DONE]\n\n")


def test_waiting_in_the_providers_queue(world: World) -> None:
    """Signs of life keep a call from being given up, and comments pass; longer than first_byte and idle here."""
    world.primary.behaviour = Behaviour(queue=2.0)
    streamed = world.post(CHAT, chat("gpt", stream=True))
    whole = world.post(CHAT, chat("gpt"))

    assert streamed.text.startswith(": keep-alive\n\n")
    assert streamed.text.endswith("data: [DONE]\n\n")
    assert whole.json()["choices"][0]["message"]["content"] == "Hello from primary."
    assert world.line(call_id=call_id(whole))["output_tokens"] == 4


async def test_streams_do_not_mix(world: World, async_gpt: openai.AsyncOpenAI) -> None:
    """A hundred streams at once, each with a text of its own."""

    async def one(number: int) -> bool:
        name, text = f"gpt-{number % 10}", f"answer of model {number % 10} " * 10
        world.primary.models["gpt-primary"] = Behaviour(events=20, pace=0.01)
        stream = await async_gpt.chat.completions.create(
            model="gpt", messages=[{"role": "user", "content": f"{name} {text}"}], stream=True, user=str(number)
        )
        pieces = [c.choices[0].delta.content or "" async for c in stream if c.choices]
        return "".join(pieces).startswith("Hello from primary.")

    assert all(await asyncio.gather(*map(one, range(100))))
    assert sorted(r.json["user"] for r in world.primary.requests) == sorted(map(str, range(100)))
    until(lambda: len(world.lines(how="completed")) == 100, "all are in the log")


# --- usage ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_usage_that_the_client_did_not_ask_for(world: World, endpoint: str) -> None:
    """We ask for usage on the client's behalf, read it, and take its event out again."""
    path, body, _ = STREAMS[endpoint]
    asked = world.post(path, body)
    hidden = world.post(path, {name: value for name, value in body.items() if name != "stream_options"})

    assert b'"usage":{' in asked.content
    assert b"usage" not in hidden.content.replace(b'"usage":null', b"")
    assert hidden.content.count(b"data: ") == asked.content.count(b"data: ") - 1
    assert [r.json["stream_options"] for r in world.primary.requests] == [ASK, ASK]
    for answer in (asked, hidden):
        line = world.line(call_id=call_id(answer))
        assert (line["input_tokens"], line["output_tokens"], line["usage"]) == (1, 4, "reported")


@pytest.mark.parametrize("usage", ["reported", "always", "last_chunk", "none"])
def test_usage_however_it_is_reported(world: World, gpt: openai.OpenAI, usage: Any) -> None:
    """At the end, in every chunk, on the last chunk or not at all: read where reported, estimated where not."""
    world.primary.behaviour = Behaviour(usage=usage, events=8, text="one two three four five six seven eight")
    stream = gpt.chat.completions.create(model="gpt", messages=HI, stream=True)
    text = "".join(c.choices[0].delta.content or "" for c in stream)  # every chunk that comes has choices

    assert text == world.primary.behaviour.text
    line = world.line(how="completed")
    assert line["usage"] == ("estimated" if usage == "none" else "reported")
    assert 6 <= line["output_tokens"] <= 12


@pytest.mark.parametrize("stream", [False, True])
def test_cached_and_reasoning_tokens(world: World, stream: bool) -> None:
    """All kinds of tokens are told apart, in both dialects, in our log and in Envoy's."""
    spent = Behaviour(input_tokens=100, cached_tokens=60, reasoning="a b c", reasoning_tokens=3)
    world.primary.behaviour = spent
    world.claude.behaviour = Behaviour(input_tokens=100, cached_tokens=60, cache_creation_tokens=7)
    said = world.line(call_id=call_id(world.post(CHAT, chat("gpt", stream=stream))))
    written = world.line(call_id=call_id(world.post(MESSAGES, messages("claude", stream=stream))))

    kinds = ("input_tokens", "output_tokens", "cached_tokens", "cache_creation_tokens", "reasoning_tokens")
    assert [said[kind] for kind in kinds] == [100, 7, 60, 0, 3]
    assert [written[kind] for kind in kinds] == [167, 4, 60, 7, 0]
    envoys = world.access_line(said["call_id"])
    assert [envoys[kind] for kind in kinds if kind in envoys] == [100, 7, 60, 3]
    assert (envoys["consumer"], envoys["model"], envoys["provider"], envoys["target"]) == (
        "acme",
        "gpt",
        "primary",
        "gpt-primary",
    )
    assert (envoys["attempts"], envoys["usage_source"], envoys["status"]) == (1, "reported", 200)


def test_metrics_of_a_stream(world: World) -> None:
    """A call is counted once, and its tokens by kind."""
    labels = {"consumer": "acme", "model": "gpt", "kind": "output", "source": "reported"}

    def counted() -> tuple[float, float]:
        calls = world.metric("extproc_calls_total", endpoint="chat", model="gpt", how="completed", status="200")
        return calls, world.metric("extproc_tokens_total", **labels)

    before = counted()
    answer = world.post(CHAT, chat("gpt", stream=True))
    world.line(call_id=call_id(answer))

    assert counted() == (before[0] + 1, before[1] + 4)


# --- a provider that stops --------------------------------------------------------------------------------------


def test_silence_in_the_middle_ends_with_an_error(world: World, gpt: openai.OpenAI) -> None:
    """The SDK raises, with our words, and the text so far has arrived."""
    world.primary.behaviour = Behaviour(events=50, fault="stall_mid", fault_after=5)
    stream = gpt.chat.completions.create(model="gpt", messages=HI, stream=True)
    seen: list[Any] = []
    with pytest.raises(openai.APIError, match="The provider stopped in the middle of its answer") as caught:
        seen.extend(stream)

    assert len(seen) == 5
    assert caught.value.code == "provider_timeout"
    line = world.line(how="failed")
    assert (line["code"], line["status"], line["usage"]) == ("provider_timeout", 200, "estimated")
    assert world.hits() == {"primary": 1}
    until(lambda: world.primary.aborted == 1, "the provider's connection is closed")


def test_silence_in_the_middle_of_messages(world: World, claude: anthropic.Anthropic) -> None:
    """Anthropic's SDK raises as well."""
    world.claude.behaviour = Behaviour(events=50, fault="stall_mid", fault_after=5)
    with (
        pytest.raises(anthropic.APIStatusError, match="The provider stopped"),
        claude.messages.stream(model="claude", max_tokens=9, messages=HI) as stream,
    ):
        stream.until_done()

    assert world.line(how="failed")["code"] == "provider_timeout"


@pytest.mark.parametrize("endpoint", STREAMS)
def test_error_event_is_the_dialects_own(world: World, endpoint: str) -> None:
    """What was said stays whole; then comes one error event, and the answer ends in order."""
    path, body, stub = STREAMS[endpoint]
    world.stubs[stub].behaviour = Behaviour(events=50, fault="stall_mid", fault_after=4)
    answer = world.post(path, body)

    last = answer.text.rstrip("\n").split("\n\n")[-1] if endpoint not in ("chat", "completions") else answer.text
    assert "The provider stopped in the middle of its answer." in last
    data = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    assert len(data) == 5


@pytest.mark.parametrize("endpoint", STREAMS)
def test_a_provider_that_breaks_off(world: World, endpoint: str) -> None:
    """A reset in the middle reaches the client as a broken stream, and is never retried."""
    path, body, stub = STREAMS[endpoint]
    world.stubs[stub].behaviour = Behaviour(events=50, fault="reset_mid", fault_after=4)
    with pytest.raises(httpx.RemoteProtocolError):
        world.post(path, {**body, "model": "pair" if stub == "primary" else "claude-pair"})

    line = world.line(how="aborted")
    assert (line["attempts"], line["status"]) == (1, 200)
    assert world.hits() == {stub: 1}


@pytest.mark.parametrize("fault", ["reset_mid", "stall_mid"])
def test_a_plain_answer_that_breaks_off(world: World, fault: Any) -> None:
    """Half a JSON answer is an error and not half an answer: nothing of it has reached the client yet."""
    world.primary.behaviour = Behaviour(text="x" * 1000, fault=fault)
    answer = world.post(CHAT, chat("gpt"))

    assert answer.status_code in (502, 503, 504)
    assert answer.json()["error"]["type"] == "upstream_error"
    assert call_id(answer)


# --- a client that leaves ---------------------------------------------------------------------------------------


def settled(world: World) -> bool:
    return world.metric("extproc_streams_open") == 0


@pytest.mark.parametrize("endpoint", STREAMS)
def test_client_leaves_in_the_middle(world: World, endpoint: str) -> None:
    """The provider is told, the call is settled once, with what had passed."""
    path, body, stub = STREAMS[endpoint]
    world.stubs[stub].behaviour = Behaviour(events=500, pace=0.02, text="word ")
    with world.streaming(path, body) as answer:
        lines = (line for line in answer.iter_lines() if line.startswith("data: "))
        for _ in range(12):
            next(lines)

    line = world.line(call_id=call_id(answer))
    assert (line["how"], line["usage"]) == ("aborted", "estimated")
    assert 0 < line["output_tokens"] < 400
    until(lambda: world.stubs[stub].aborted == 1, "the provider sees that nobody listens")
    until(lambda: settled(world), "no stream of ours stays open")


def test_client_leaves_before_the_first_byte(world: World) -> None:
    """While the provider still thinks, too."""
    world.primary.behaviour = Behaviour(fault="silent")
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            world.gateway.url + CHAT,
            json=chat("patient", stream=True),
            headers={"authorization": f"Bearer {ACME}"},
            timeout=0.5,
        )

    assert world.line(how="aborted")["model"] == "patient"
    until(lambda: world.primary.aborted == 1, "the provider sees that nobody listens")
    until(lambda: settled(world), "no stream of ours stays open")


@pytest.mark.parametrize("part", [0.0, 0.5, 0.99])
def test_client_leaves_while_it_sends(world: World, part: float) -> None:
    """Half a request is nobody's call: no provider is asked, and nothing stays open."""
    body = json.dumps(chat("gpt", "x" * 100_000)).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ACME}\r\ncontent-length: {len(body)}\r\n\r\n"
    with world.connect() as connection:
        connection.sendall(head.encode() + body[: int(part * len(body))])
        until(lambda: world.metric("extproc_streams_open") > 0, "we have seen its head")

    line = world.line(how="aborted")
    assert (line["consumer"], line["status"]) == ("acme", 0)
    until(lambda: settled(world), "no stream of ours stays open")
    assert world.hits() == {}


def test_client_that_sends_too_slowly(world: World) -> None:
    """A request that does not arrive in time is 408, in the dialect's words."""
    head = f"POST {MESSAGES} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ACME}\r\ncontent-length: 99\r\n\r\n{{"
    status, _, body = world.raw(head.encode())

    assert (status, json.loads(body)["type"]) == (408, "error")
    assert world.line(status=408)["how"] == "refused"


def test_client_that_reads_slowly(world: World) -> None:
    """A reader that dawdles holds back its own stream only, and gets all of it."""
    world.primary.behaviour = Behaviour(events=4000, text="0123456789abcdef" * 250_000)
    body = json.dumps(chat("patient", stream=True)).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ACME}\r\ncontent-length: {len(body)}\r\n"
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.settimeout(30)
        slow.connect(world.address)
        slow.sendall(f"{head}\r\n".encode() + body)
        read = bytearray(slow.recv(1000))
        world.primary.behaviour = Behaviour()
        others = [world.post(CHAT, chat("gpt", stream=True)) for _ in range(10)]
        while not read.endswith(b"0\r\n\r\n"):
            read += slow.recv(1 << 20)

    assert all(answer.text.endswith("data: [DONE]\n\n") for answer in others)
    assert b"data: [DONE]" in read[-200:]
    assert read.count(b"0123456789abcdef") > 200_000


def test_many_clients_leave_at_random(world: World) -> None:
    """Sixty clients leave after a different time each; every call is settled once and nothing stays open."""
    world.primary.behaviour = Behaviour(events=200, pace=0.01)
    body = json.dumps(chat("gpt", stream=True)).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ACME}\r\ncontent-length: {len(body)}\r\n\r\n"
    whole = head.encode() + body

    def leave(number: int) -> None:
        with world.connect() as connection:
            if number % 3:
                connection.sendall(whole)
                time.sleep(number / 100)
            else:
                connection.sendall(whole[: number * len(whole) // 60])

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(leave, range(60)))
    until(lambda: settled(world), "no stream of ours stays open")
    lines = world.lines()

    assert 40 <= len(lines) <= 60
    assert len({line["call_id"] for line in lines}) == len(lines)
    assert {line["how"] for line in lines} == {"aborted"}
    assert world.post(CHAT, chat("gpt")).status_code == 200
