"""OpenAI's Responses API, whole and streamed: https://platform.openai.com/docs/api-reference/responses"""

from collections.abc import Iterator
from typing import Any

from extproc.demo.stub.script import CREATED, Answer, Script, streamed, to_json, whole


def respond(script: Script) -> Answer:
    script.require("input", str, list)
    if script.stream:
        return streamed(_numbered(script))
    return whole(_response(script, "completed", _items(script)))


def _response(script: Script, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
    request, done = script.request, status == "completed"
    usage = {
        "input_tokens": script.input_tokens,
        "input_tokens_details": {"cached_tokens": script.behaviour.cached_tokens},
        "output_tokens": script.output_tokens,
        "output_tokens_details": {"reasoning_tokens": script.reasoning_tokens},
        "total_tokens": script.input_tokens + script.output_tokens,
    }
    body = {
        "id": f"resp_{script.number}",
        "object": "response",
        "created_at": CREATED,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": request.get("instructions"),
        "metadata": {},
        "model": script.model,
        "output": output,
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": request.get("tool_choice", "auto"),
        "tools": request.get("tools", []),
        "top_p": 1.0,
    }
    if script.behaviour.usage != "none":
        body["usage"] = usage if done else None
    return body


def _items(script: Script) -> list[dict[str, Any]]:
    reasoning = [_reasoning(script, ["".join(script.reasoning)])] if script.reasoning else []
    said = _said(script, script.said, "completed")
    return [*reasoning, said]


def _reasoning(script: Script, texts: list[str]) -> dict[str, Any]:
    summary = [{"type": "summary_text", "text": text} for text in texts]
    return {"type": "reasoning", "id": f"rs_{script.number}", "summary": summary}


def _said(script: Script, said: str | None, status: str) -> dict[str, Any]:
    """The output item of the answer, a message or a function call; ``said`` None: announced, not begun."""
    if script.tool is not None:
        call = {"call_id": f"call_{script.number}", "name": script.tool, "arguments": said or ""}
        return {"type": "function_call", "id": f"fc_{script.number}", "status": status, **call}
    content = [] if said is None else [_part(said)]
    return {
        "type": "message",
        "id": f"msg_{script.number}",
        "status": status,
        "role": "assistant",
        "content": content,
    }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _numbered(script: Script) -> Iterator[bytes]:
    for number, (kind, fields) in enumerate(_events(script)):
        event = {"type": f"response.{kind}", "sequence_number": number, **fields}
        yield b"event: response.%b\ndata: %b\n\n" % (kind.encode(), to_json(event))


def _events(script: Script) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "created", {"response": _response(script, "in_progress", [])}
    yield "in_progress", {"response": _response(script, "in_progress", [])}
    if script.reasoning:
        yield from _reasoning_events(script)
    index = 1 if script.reasoning else 0
    item, done = _said(script, None, "in_progress"), _said(script, script.said, "completed")
    at = {"item_id": item["id"], "output_index": index}
    yield "output_item.added", {"output_index": index, "item": item}
    if script.tool is None:
        at["content_index"] = 0
        yield "content_part.added", {**at, "part": _part("")}
        for piece in script.pieces():
            yield "output_text.delta", {**at, "delta": piece, "logprobs": []}
        yield "output_text.done", {**at, "text": script.said, "logprobs": []}
        yield "content_part.done", {**at, "part": _part(script.said)}
    else:
        for piece in script.pieces():
            yield "function_call_arguments.delta", {**at, "delta": piece}
        yield "function_call_arguments.done", {**at, "name": script.tool, "arguments": script.said}
    yield "output_item.done", {"output_index": index, "item": done}
    yield "completed", {"response": _response(script, "completed", _items(script))}


def _reasoning_events(script: Script) -> Iterator[tuple[str, dict[str, Any]]]:
    text = "".join(script.reasoning)
    at = {"item_id": f"rs_{script.number}", "output_index": 0, "summary_index": 0}
    yield "output_item.added", {"output_index": 0, "item": _reasoning(script, [])}
    yield "reasoning_summary_part.added", {**at, "part": {"type": "summary_text", "text": ""}}
    for piece in script.reasoning:
        yield "reasoning_summary_text.delta", {**at, "delta": piece}
    yield "reasoning_summary_text.done", {**at, "text": text}
    yield "reasoning_summary_part.done", {**at, "part": {"type": "summary_text", "text": text}}
    yield "output_item.done", {"output_index": 0, "item": _reasoning(script, [text])}
