"""The OpenAI dialect: chat, completions, embeddings, models; the Responses API has a module of its own."""

import base64
import hashlib
import struct
from collections.abc import Iterable, Iterator
from typing import Any

from extproc.demo.stub import responses
from extproc.demo.stub.script import CREATED, Answer, OddRequestError, Script, streamed, to_json, whole

DONE = b"data: [DONE]\n\n"
DIMENSIONS = 16
MAX_DIMENSIONS = 8192


def error(status: int, message: str) -> bytes:
    """An error as the API writes it."""
    kind, code = {
        401: ("invalid_request_error", "invalid_api_key"),
        404: ("invalid_request_error", "unknown_url"),
        429: ("requests", "rate_limit_exceeded"),
    }.get(status, ("server_error" if status >= 500 else "invalid_request_error", None))
    return to_json({"error": {"message": message, "type": kind, "param": None, "code": code}})


def models(name: str, ids: Iterable[str]) -> Answer:
    return whole(
        {
            "object": "list",
            "data": [{"id": each, "object": "model", "created": CREATED, "owned_by": name} for each in ids],
        }
    )


def chat(script: Script) -> Answer:
    """https://platform.openai.com/docs/api-reference/chat"""
    script.require("messages", list)
    _check_stream_options(script)
    if script.stream:
        return streamed(_chunks(script, f"chatcmpl-{script.number}", "chat.completion.chunk", _chat_choices(script)))
    message: dict[str, Any] = {"role": "assistant", "content": script.said, "refusal": None}
    if script.reasoning:
        message["reasoning_content"] = "".join(script.reasoning)
    if script.tool is not None:
        function = {"name": script.tool, "arguments": script.said}
        message |= {
            "content": None,
            "tool_calls": [{"id": f"call_{script.number}", "type": "function", "function": function}],
        }
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish(script)}
    return _answer(script, f"chatcmpl-{script.number}", "chat.completion", choice)


def completions(script: Script) -> Answer:
    """https://platform.openai.com/docs/api-reference/completions"""
    script.require("prompt", str, list)
    _check_stream_options(script)
    script.tool = None
    if script.stream:
        return streamed(_chunks(script, f"cmpl-{script.number}", "text_completion", _text_choices(script)))
    choice = {"index": 0, "text": script.said, "logprobs": None, "finish_reason": "stop"}
    return _answer(script, f"cmpl-{script.number}", "text_completion", choice)


def embeddings(script: Script) -> Answer:
    """https://platform.openai.com/docs/api-reference/embeddings ; the same input has the same vector everywhere."""
    inputs = script.require("input", str, list)
    if isinstance(inputs, str) or (inputs and isinstance(inputs[0], int)):
        inputs = [inputs]
    size = script.request.get("dimensions", DIMENSIONS)
    if not isinstance(size, int) or not 1 <= size <= MAX_DIMENSIONS:
        raise OddRequestError("Invalid parameter: 'dimensions'.")
    as_base64 = script.request.get("encoding_format") == "base64"
    data: list[dict[str, Any]] = []
    for index, each in enumerate(inputs):
        vector = _vector(to_json(each), size)
        packed = base64.b64encode(struct.pack(f"<{size}f", *vector)).decode() if as_base64 else vector
        data.append({"object": "embedding", "index": index, "embedding": packed})
    body: dict[str, Any] = {"object": "list", "data": data, "model": script.model}
    if script.behaviour.usage != "none":
        body["usage"] = {"prompt_tokens": script.input_tokens, "total_tokens": script.input_tokens}
    return whole(body)


def _vector(text: bytes, size: int) -> list[float]:
    raw = [each - 127.5 for each in hashlib.shake_256(text).digest(size)]
    length = sum(each * each for each in raw) ** 0.5
    return [each / length for each in raw]


def _check_stream_options(script: Script) -> None:
    if script.request.get("stream_options") is None:
        return
    if script.behaviour.refuse_stream_options:
        raise OddRequestError("Unknown parameter: 'stream_options'.")
    if not script.stream:
        raise OddRequestError("The 'stream_options' parameter is only allowed when 'stream' is enabled.")


def _finish(script: Script) -> str:
    return "stop" if script.tool is None else "tool_calls"


def _answer(script: Script, call_id: str, kind: str, choice: dict[str, Any]) -> Answer:
    body = {"id": call_id, "object": kind, "created": CREATED, "model": script.model, "choices": [choice]}
    if script.behaviour.usage != "none":
        body["usage"] = _usage(script, script.output_tokens)
    return whole(body)


def _usage(script: Script, output: int) -> dict[str, Any]:
    asked, cached = script.input_tokens, script.behaviour.cached_tokens
    usage: dict[str, Any] = {
        "prompt_tokens": asked,
        "completion_tokens": output,
        "total_tokens": asked + output,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": min(script.reasoning_tokens, output)},
    }
    if script.behaviour.usage == "last_chunk":
        usage |= {"prompt_cache_hit_tokens": cached, "prompt_cache_miss_tokens": asked - cached}
    return usage


def _chat_choices(script: Script) -> Iterator[tuple[dict[str, Any], int]]:
    """The choice of each chunk, with the output tokens that it brings."""

    def choice(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}

    yield choice({"role": "assistant", "content": "" if script.tool is None else None}), 0
    for piece in script.reasoning:
        yield choice({"reasoning_content": piece}), 1
    if script.tool is None:
        for piece in script.pieces():
            yield choice({"content": piece}), 1
    else:
        call = {"id": f"call_{script.number}", "type": "function", "function": {"name": script.tool, "arguments": ""}}
        yield choice({"tool_calls": [{"index": 0, **call}]}), 0
        for piece in script.pieces():
            yield choice({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}), 1
    yield choice({}, _finish(script)), 0


def _text_choices(script: Script) -> Iterator[tuple[dict[str, Any], int]]:
    for piece in script.pieces():
        yield {"index": 0, "text": piece, "logprobs": None, "finish_reason": None}, 1
    yield {"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}, 0


def _chunks(script: Script, call_id: str, kind: str, choices: Iterator[tuple[dict[str, Any], int]]) -> Iterator[bytes]:
    base = {"id": call_id, "object": kind, "created": CREATED, "model": script.model}
    options = script.request.get("stream_options")
    asked = isinstance(options, dict) and options.get("include_usage") is True
    style, output = script.behaviour.usage, 0
    for choice, tokens in choices:
        output += tokens
        chunk = {**base, "choices": [choice]}
        last = choice["finish_reason"] is not None
        if style == "always" or (style == "last_chunk" and last):
            chunk["usage"] = _usage(script, script.output_tokens if last else output)
        elif style == "last_chunk" or (style == "reported" and asked):
            chunk["usage"] = None
        yield _event(chunk)
    if asked and style in ("reported", "always"):
        yield _event({**base, "choices": [], "usage": _usage(script, script.output_tokens)})
    yield DONE


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % to_json(chunk)


ENDPOINTS = {
    "/chat/completions": chat,
    "/completions": completions,
    "/embeddings": embeddings,
    "/responses": responses.respond,
}
