"""The Anthropic dialect: messages."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from extproc.dialects.document import Document
from extproc.dialects.endpoints import Endpoint
from extproc.dialects.facts import (
    BLOCKED_MODEL,
    AnswerFacts,
    Chunk,
    Ending,
    Parser,
    Prompt,
    RequestFacts,
    Trail,
    decode_object,
    model_and_stream,
    number,
    text,
)
from extproc.dialects.places import UNREADABLE, Running, Said, Slot, walk
from extproc.dialects.sse import Event, encode
from extproc.dialects.texts import texts_of
from extproc.dialects.usage import count, from_anthropic

_MESSAGE_FRAME: Final = 4
_ERROR_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}


_KINDS: Final = {
    "": "content",
    ".text": "content",
    ".thinking": "reasoning",
    ".partial_json": "arguments",
    ".input": "arguments",
}
_DELTAS: Final = {
    "content": ("text_delta", "text"),
    "reasoning": ("thinking_delta", "thinking"),
    "arguments": ("input_json_delta", "partial_json"),
}
_WORDLESS: Final = frozenset({"message_delta", "message_stop", "content_block_stop", "ping", "error"})


def read_request(endpoint: Endpoint, document: Document) -> RequestFacts:
    del endpoint
    model, stream = model_and_stream(document)
    return RequestFacts(model, stream, wants_stream_usage=True)


def read_prompt(endpoint: Endpoint, document: Document) -> Prompt:
    del endpoint
    messages = document.get("messages", Any)
    tools = document.raw("tools")
    frame = _MESSAGE_FRAME * len(messages) if isinstance(messages, list) else 0
    schemas = [tools.decode()] if tools else []
    return Prompt([*texts_of(document.get("system", Any)), *texts_of(messages), *schemas], frame)


def read_answer(body: bytes) -> AnswerFacts:
    message = decode_object(body)
    if message is None:
        return AnswerFacts()
    return AnswerFacts(
        usage=from_anthropic(message.get("usage")),
        model=text(message.get("model")),
        finished=message.get("stop_reason") is not None,
        texts=list(texts_of(message.get("content"))),
    )


def parser() -> Parser:
    return _Messages().parse


def said(body: dict[str, Any], kind: str = "") -> Iterator[Said]:
    kind = _type(body, kind)
    index = number(body.get("index"))
    if kind == "content_block_delta":
        yield from _delta(body, index)
    elif kind == "content_block_start":
        yield from _block(body, "content_block", "content_block", index, begins=True)
    elif kind == "message_start":
        if isinstance(body.get("message"), dict):
            yield from _blocks(body["message"], "message.content")
    elif kind in ("message", ""):
        yield from _blocks(body, "content")
    elif kind not in _WORDLESS:
        for name in body:
            for slot in walk(body, name, name):
                yield Said(f"0/other/{slot.path}", slot, once=True)


def _delta(body: dict[str, Any], index: int) -> Iterator[Said]:
    delta = body.get("delta")
    if isinstance(delta, dict) and len(delta) == 2:
        for kind, (type_, field) in _DELTAS.items():
            if delta.get("type") == type_ and type(words := delta.get(field)) is str:  # nearly all that streams have
                if words:
                    yield Said(f"0/{kind}/{index}", Slot(f"delta.{field}", words, delta, field, "assistant"))
                return
    yield from _block(body, "delta", "delta", index)


def _type(body: dict[str, Any], kind: str) -> str:
    return body["type"] if isinstance(body.get("type"), str) else kind


def _blocks(message: dict[str, Any], path: str) -> Iterator[Said]:
    content = message.get("content")
    if isinstance(content, list):
        for i in range(len(content)):
            yield from _block(content, i, f"{path}[{i}]", i)
    elif content:
        yield from _block(message, "content", path, 0)


def _block(holder: Any, at: Any, path: str, index: int, *, begins: bool = False) -> Iterator[Said]:
    """``begins``: a block of a stream that starts with its input has no more of it."""
    if isinstance(holder, dict) and at not in holder:
        return
    for slot in walk(holder, at, path):
        inside = slot.path[len(path) :]
        kind = None if begins and inside == ".input" else _KINDS.get(inside)
        if kind is None:
            yield Said(f"0/other/{index}{inside}", slot, once=True)
        else:
            yield Said(f"0/{kind}/{index}", slot)


def trail(endpoint: Endpoint) -> Trail:
    del endpoint
    return _Trail()


class _Trail:
    """The content blocks that the client has seen, and which of them are open."""

    def __init__(self) -> None:
        self._begun = self._over = False
        self._open: set[int] = set()
        self._next = 0

    def note(self, said: dict[str, Any]) -> None:
        kind, index = said.get("type"), number(said.get("index"))
        if kind == "message_start":
            self._begun = True
        elif kind == "content_block_start":
            self._open.add(index)
            self._next = max(self._next, index + 1)
        elif kind == "content_block_stop":
            self._open.discard(index)
        elif kind == "message_stop":
            self._over = True

    def blocked(self, ending: Ending) -> bytes:
        if self._over:
            return b""
        events: list[dict[str, Any]] = []
        if not self._begun:
            message = {**_message(ending, []), "stop_reason": None}
            events.append({"type": "message_start", "message": message})
        events += [{"type": "content_block_stop", "index": index} for index in sorted(self._open)]
        at = {"index": self._next}
        events += [
            {"type": "content_block_start", **at, "content_block": {"type": "text", "text": ""}},
            {"type": "content_block_delta", **at, "delta": {"type": "text_delta", "text": ending.sentence}},
            {"type": "content_block_stop", **at},
            {
                "type": "message_delta",
                "delta": {"stop_reason": "end_turn", "stop_sequence": None},
                "usage": {"output_tokens": 0},
            },
            {"type": "message_stop"},
        ]
        return b"".join(encode(msgspec.json.encode(event), event["type"]) for event in events)


def _message(ending: Ending, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": f"msg_{ending.call_id}",
        "type": "message",
        "role": "assistant",
        "model": BLOCKED_MODEL,
        "content": content,
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 0, "output_tokens": 0},
    }


def blocked_answer(endpoint: Endpoint, ending: Ending) -> dict[str, Any] | None:
    del endpoint
    return _message(ending, [{"type": "text", "text": ending.sentence}])


def text_event(endpoint: Endpoint, like: dict[str, Any], key: str, text: str) -> bytes:
    del endpoint, like
    _, kind, index = key.split("/")
    type_, field = _DELTAS[kind]
    event = {"type": "content_block_delta", "index": int(index), "delta": {"type": type_, field: text}}
    return encode(msgspec.json.encode(event), "content_block_delta")


def error_body(*, status: int, message: str) -> bytes:
    kind = _ERROR_TYPES.get(status) or ("invalid_request_error" if 400 <= status < 500 else "api_error")
    return msgspec.json.encode({"type": "error", "error": {"type": kind, "message": message}})


def error_event(*, status: int, type: str, code: str, message: str, param: str | None, sequence: int) -> bytes:  # noqa: A002
    del type, code, param, sequence
    return encode(error_body(status=status, message=message), "error")


def model_card(name: str, created: int) -> dict[str, Any]:
    at = datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"type": "model", "id": name, "display_name": name, "created_at": at, "lifecycle": "active"}


def model_list(names: Sequence[str], created: int) -> dict[str, Any]:
    return {
        "data": [model_card(name, created) for name in names],
        "has_more": False,
        "first_id": names[0] if names else None,
        "last_id": names[-1] if names else None,
    }


class _Messages:
    """One stream. Its usage comes in parts: the input at the start, the output at the end, both cumulative."""

    def __init__(self) -> None:
        self._usage: dict[str, Any] = {}
        self._running = Running()

    def parse(self, event: Event) -> Chunk | None:
        if event.data is None:
            return None
        body = decode_object(event.data)
        if body is None:
            return Chunk((UNREADABLE,), failed=event.type == "error")
        kind = _type(body, event.type)
        chunk = Chunk(self._running.pieces(said(body, kind)), said=body)
        if kind == "message_start" and isinstance(message := body.get("message"), dict):
            chunk.usage, chunk.partial = self._merge(message.get("usage")), True
        elif kind == "message_delta":
            chunk.usage = self._merge(body.get("usage"))
        elif kind == "message_stop":
            chunk.finished = True
        elif kind == "error":
            chunk.failed = True
        over = kind in ("message_delta", "message_stop")
        block = f"/{number(body.get('index'))}" if kind == "content_block_stop" else None
        chunk.closes = self._running.closed(lambda key: over or (block is not None and key.endswith(block)))
        return chunk

    def _merge(self, usage: Any) -> Any:
        """A later number replaces an earlier one, but for a zero: providers fill fields that they do not know."""
        if not isinstance(usage, dict):
            return None
        for name, value in usage.items():
            if isinstance(value, dict) or count(value) or (name not in self._usage and count(value) == 0):
                self._usage[name] = value
        return from_anthropic(self._usage)
