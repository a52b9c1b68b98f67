"""What a call used."""

from typing import Any

import pytest
from fakes import Gateway
from playbook import (
    CALL,
    KEY,
    SETTLED,
    Close,
    Emits,
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

from extproc.core.messages import BodyMode, Message, ResponseBody
from extproc.dialects.usage import Usage

NAMES = {
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "cache_creation_tokens",
    "reasoning_tokens",
    "usage_source",
}
PROMPT = {"messages": [{"role": "user", "content": "How many roads must a man walk down?"}]}


def asked(gateway: Gateway, path: str = "/v1/chat/completions", model: str = "gpt", **fields: Any) -> Playbook:
    playbook = Playbook(gateway.exchange())
    playbook.say(request(path=path, headers={"x-api-key": KEY}))
    playbook.say(body({"model": model, **PROMPT, **fields}))
    return playbook


@pytest.mark.parametrize(
    ("path", "content", "usage"),
    [
        (
            "/v1/chat/completions",
            {
                "choices": [{"message": {"content": "hi"}}],
                "usage": {
                    "prompt_tokens": 9,
                    "completion_tokens": 4,
                    "prompt_tokens_details": {"cached_tokens": 2},
                    "completion_tokens_details": {"reasoning_tokens": 1},
                },
            },
            Usage(input=9, output=4, cached=2, reasoning=1),
        ),
        ("/v1/completions", {"usage": {"prompt_tokens": 3, "completion_tokens": 1}}, Usage(input=3, output=1)),
        ("/v1/embeddings", {"usage": {"prompt_tokens": 8, "total_tokens": 8}}, Usage(input=8)),
        ("/v1/responses", {"usage": {"input_tokens": 5, "output_tokens": 6}}, Usage(input=5, output=6)),
        (
            "/v1/messages",
            {"usage": {"input_tokens": 5, "output_tokens": 6, "cache_creation_input_tokens": 7}},
            Usage(input=12, output=6, cache_creation=7),
        ),
    ],
)
def test_reported(path: str, content: Any, usage: Usage) -> None:
    """What the provider reports in its JSON is booked, and told to Envoy with the answer's body."""
    gateway = Gateway()
    playbook = asked(gateway, path, "qwen/both")
    playbook.say(answer())

    assert (
        playbook
        >> whole(content)
        << Proceeds(
            metadata={
                "input_tokens": usage.input,
                "output_tokens": usage.output,
                "cached_tokens": usage.cached,
                "cache_creation_tokens": usage.cache_creation,
                "reasoning_tokens": usage.reasoning,
                "usage_source": "reported",
                **SETTLED,
            }
        )
    )
    assert gateway.journal.call.usage == usage


@pytest.mark.parametrize("content", [{"choices": [{"message": {"content": "The answer is blowing."}}]}, b"no json"])
def test_estimated(content: Any) -> None:
    """Where nothing is reported, prompt and answer are estimated, and marked so."""
    gateway = Gateway()
    playbook = asked(gateway)
    playbook.say(answer())

    assert playbook >> whole(content) << Proceeds(metadata=Including({"usage_source": "estimated"}))
    assert set(playbook.decisions[-1].metadata) == {*NAMES, *SETTLED}
    usage = gateway.journal.call.usage
    assert usage is not None
    assert usage.input > 5
    assert (usage.output > 0) == isinstance(content, dict)


@pytest.mark.parametrize("status", [400, 429, 500])
def test_errors_use_nothing(status: int) -> None:
    """An error of a provider is no usage."""
    gateway = Gateway()
    playbook = asked(gateway)
    playbook.say(answer(status))

    assert playbook >> whole({"error": {"message": "x"}}) << Proceeds(metadata=SETTLED) >> Close()
    assert gateway.audited[0][0].usage is None


def text(content: str) -> ResponseBody:
    return piece(f'data: {{"choices":[{{"delta":{{"content":"{content}"}}}}]}}\n\n'.encode())


def test_stream_is_estimated_at_its_end() -> None:
    """A stream that reports nothing is estimated when it ends, and told to Envoy with the last piece."""
    gateway = Gateway()
    playbook = asked(gateway, stream=True)
    playbook.say(stream())
    playbook.say(text("The answer, my friend,"))

    assert gateway.journal.call.usage is None
    assert (
        playbook
        >> piece(b"data: [DONE]\n\n", end=True)
        << Emits(b"data: [DONE]\n\n", end=True, metadata=Including({"usage_source": "estimated"}))
    )


def test_reported_in_a_stream_is_told_at_once() -> None:
    """Reported usage does not wait for the end of the stream."""
    playbook = asked(Gateway(), stream=True, stream_options={"include_usage": True})
    playbook.say(stream())
    event = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'

    assert (
        playbook
        >> piece(event)
        << Emits(event, metadata=Including({"input_tokens": 3, "output_tokens": 2, "usage_source": "reported"}))
    )
    assert playbook >> piece(b"data: [DONE]\n\n", end=True) << Emits(b"data: [DONE]\n\n", end=True, metadata=SETTLED)


def test_usage_beside_text_is_never_hidden() -> None:
    """An event that carries text with its usage is the client's, whoever asked."""
    playbook = asked(Gateway(), stream=True)
    playbook.say(stream())
    event = b'data: {"choices":[{"delta":{"content":"x"}}],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'

    assert playbook >> piece(event) << Emits(event)


@pytest.mark.parametrize("asked_by_us", [True, False])
def test_hidden_only_where_we_asked(asked_by_us: bool) -> None:
    """A provider that reports by itself shows its event to all; one that we asked, to those that asked too."""
    playbook = asked(Gateway(asks=asked_by_us), stream=True)
    playbook.say(stream())
    event = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'

    assert playbook >> piece(event) << Emits(b"" if asked_by_us else event, metadata=Including({"input_tokens": 3}))


@pytest.mark.parametrize("silent", [True, False])
def test_broken_stream_has_used_what_passed(silent: bool) -> None:
    """A stream that ends early is estimated by what passed: prompt and text so far."""
    gateway = Gateway()
    playbook = asked(gateway, stream=True)
    playbook.say(stream())
    playbook.say(text("one two three four five six seven"))
    if silent:
        playbook.say(Idle())
    playbook.say(Close())

    usage = gateway.audited[0][0].usage
    assert usage is not None
    assert (usage.source, usage.input > 5, 5 < usage.output < 15) == ("estimated", True, True)


def test_left_before_the_answer_uses_nothing() -> None:
    """A call that never got an answer is not estimated."""
    gateway = Gateway()
    playbook = asked(gateway, stream=True)
    playbook.say(Close())

    assert gateway.audited[0][0].usage is None


def test_left_after_the_usage_keeps_it() -> None:
    """What was reported stands, also where the client leaves before the end."""
    gateway = Gateway()
    playbook = asked(gateway, stream=True)
    for message in (
        stream(),
        piece(b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'),
        Close(),
    ):
        playbook.say(message)

    assert gateway.audited[0][0].usage == Usage(input=3, output=2)


START = piece(
    b'event: message_start\ndata: {"type":"message_start","message":'
    b'{"usage":{"input_tokens":70,"cache_read_input_tokens":20,"output_tokens":1}}}\n\n'
)
DELTA = piece(
    b"event: content_block_delta\ndata: "
    b'{"type":"content_block_delta","delta":{"text":"one two three four five six seven"}}\n\n'
)


@pytest.mark.parametrize("end", [Close(), piece(b"", end=True)], ids=["left", "ended"])
def test_partly_reported(end: Message | Close) -> None:
    """An Anthropic stream without its last report has the reported input and an estimated output."""
    gateway = Gateway()
    playbook = asked(gateway, "/v1/messages", "claude", stream=True)
    for message in (stream(provider="gamma"), START, DELTA, end, Close()):
        playbook.say(message)

    usage = gateway.audited[0][0].usage
    assert usage is not None
    assert (usage.input, usage.cached, usage.source) == (90, 20, "estimated")
    assert 5 < usage.output < 15


def test_model_list_has_no_usage() -> None:
    """A reply of our own at a path that is no endpoint opens no usage."""
    gateway = Gateway()
    playbook = Playbook(gateway.exchange())
    playbook.say(request("GET", "/v1/models", {"x-api-key": KEY}, end=True))
    playbook.say(Close())

    assert gateway.audited[0][0].usage is None


def test_other_answers_are_not_estimated() -> None:
    """What passes unseen, such as audio, is not counted."""
    gateway = Gateway()
    playbook = asked(gateway)

    assert (
        playbook
        >> answer(200, "audio/mpeg")
        << Proceeds(sets={"x-extproc-call-id": CALL}, mode=BodyMode.NONE)
        >> Close()
    )
    assert gateway.audited[0][0].usage is None
