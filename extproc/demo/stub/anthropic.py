"""The Anthropic dialect: https://docs.anthropic.com/en/api/messages and .../messages-streaming"""

from collections.abc import Iterator
from typing import Any

import msgspec

from extproc.demo.stub.script import Answer, OddRequestError, Script, streamed, to_json, whole

ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}


def error(status: int, message: str) -> bytes:
    """An error as the API writes it."""
    kind = ERROR_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return to_json({"type": "error", "error": {"type": kind, "message": message}})


def messages(script: Script) -> Answer:
    script.require("messages", list)
    if "stream_options" in script.request:
        raise OddRequestError("stream_options: Extra inputs are not permitted")
    if script.stream:
        return streamed(_events(script))
    body = _message(script, _content(script), _stop_reason(script))
    if script.behaviour.usage != "none":
        body["usage"] = _usage(script, script.output_tokens)
    return whole(body)


def _message(script: Script, content: list[dict[str, Any]], stop_reason: str | None) -> dict[str, Any]:
    return {
        "id": f"msg_{script.number}",
        "type": "message",
        "role": "assistant",
        "model": script.model,
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": None,
    }


def _content(script: Script) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if script.reasoning:
        thinking = "".join(script.reasoning)
        blocks.append({"type": "thinking", "thinking": thinking, "signature": f"sig_{script.number}"})
    if script.tool is None:
        blocks.append({"type": "text", "text": script.said})
    else:
        blocks.append({**_tool(script, script.tool), "input": msgspec.json.decode(script.said)})
    return blocks


def _tool(script: Script, name: str) -> dict[str, Any]:
    return {"type": "tool_use", "id": f"toolu_{script.number}", "name": name, "input": {}}


def _stop_reason(script: Script) -> str:
    return "end_turn" if script.tool is None else "tool_use"


def _usage(script: Script, output: int) -> dict[str, Any]:
    return {
        "input_tokens": script.input_tokens,
        "cache_creation_input_tokens": script.behaviour.cache_creation_tokens,
        "cache_read_input_tokens": script.behaviour.cached_tokens,
        "output_tokens": output,
    }


def _events(script: Script) -> Iterator[bytes]:
    style, start, end = script.behaviour.usage, _message(script, [], None), {}
    if style == "last_chunk":
        start["usage"], end["usage"] = {"input_tokens": 0, "output_tokens": 0}, _usage(script, script.output_tokens)
    elif style == "always":
        start["usage"], end["usage"] = _usage(script, 1), _usage(script, script.output_tokens)
    elif style == "reported":
        start["usage"], end["usage"] = _usage(script, 1), {"output_tokens": script.output_tokens}
    yield _event("message_start", message=start)
    yield _event("ping")
    index = 0
    if script.reasoning:
        deltas = [{"type": "thinking_delta", "thinking": piece} for piece in script.reasoning]
        deltas.append({"type": "signature_delta", "signature": f"sig_{script.number}"})
        yield from _block(index, {"type": "thinking", "thinking": "", "signature": ""}, iter(deltas))
        index = 1
    if script.tool is None:
        texts = ({"type": "text_delta", "text": piece} for piece in script.pieces())
        yield from _block(index, {"type": "text", "text": ""}, texts)
    else:
        parts = ({"type": "input_json_delta", "partial_json": piece} for piece in script.pieces())
        yield from _block(index, _tool(script, script.tool), parts)
    yield _event("message_delta", delta={"stop_reason": _stop_reason(script), "stop_sequence": None}, **end)
    yield _event("message_stop")


def _block(index: int, block: dict[str, Any], deltas: Iterator[dict[str, str]]) -> Iterator[bytes]:
    yield _event("content_block_start", index=index, content_block=block)
    for delta in deltas:
        yield _event("content_block_delta", index=index, delta=delta)
    yield _event("content_block_stop", index=index)


def _event(kind: str, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), to_json({"type": kind, **fields}))


ENDPOINTS = {"/v1/messages": messages}
