"""OpenAI's Responses API: it is of the OpenAI dialect, but its answers and streams have a shape of their own."""

import re
from collections.abc import Iterator
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
from extproc.dialects.places import UNREADABLE, Running, Said, Slot, What, walk
from extproc.dialects.sse import Event, encode
from extproc.dialects.texts import texts_of
from extproc.dialects.usage import count, from_responses

_ENDS: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})
_ITEM_FRAME: Final = 4
_STEMS: Final = {
    "output_text": "content",
    "reasoning_text": "reasoning",
    "reasoning_summary_text": "summary",
    "function_call_arguments": "arguments",
    "mcp_call_arguments": "arguments",
    "custom_tool_call_input": "arguments",
    "code_interpreter_call_code": "code",
    "audio.transcript": "transcript",
}
"""What an event of a text is named after → the kind of the text; where they are not the same."""
_PARTS: Final = {"output_text": "content", "reasoning_text": "reasoning", "summary_text": "summary"}
_INSIDE = re.compile(r"\.(content|summary)\[(\d+)\]\.(text|refusal)|\.(arguments|input|code)")
_WHOLE_FIELDS: Final = ("text", "refusal", "arguments", "input", "code", "transcript", "diff")
_INDICES: Final = ("output_index", "content_index", "summary_index")
_LIFE: Final = _ENDS | {"response.created", "response.queued", "response.in_progress"}


def read_request(endpoint: Endpoint, document: Document) -> RequestFacts:
    del endpoint
    model, stream = model_and_stream(document)
    return RequestFacts(model, stream, wants_stream_usage=True)


def read_prompt(endpoint: Endpoint, document: Document) -> Prompt:
    del endpoint
    items = document.get("input", Any)
    schemas = [raw.decode() for name in ("tools", "text") if (raw := document.raw(name))]
    frame = _ITEM_FRAME * len(items) if isinstance(items, list) else _ITEM_FRAME
    return Prompt([*texts_of(document.get("instructions", Any)), *texts_of(items), *schemas], frame)


def read_answer(body: bytes) -> AnswerFacts:
    response = decode_object(body)
    if response is None:
        return AnswerFacts()
    return AnswerFacts(
        usage=from_responses(response.get("usage")),
        model=text(response.get("model")),
        finished=response.get("status") in ("completed", "incomplete", "failed"),
        texts=list(texts_of(response.get("output"))),
    )


def parser() -> Parser:
    return _Stream().parse


def error_event(*, status: int, type: str, code: str, message: str, param: str | None, sequence: int) -> bytes:  # noqa: A002
    del status, type
    body = {"type": "error", "code": code, "message": message, "param": param, "sequence_number": sequence}
    return encode(msgspec.json.encode(body), "error")


def said(body: dict[str, Any], kind: str = "") -> Iterator[Said]:
    kind = _type(body, kind)
    if not kind:
        yield from _items(body, "output")
        return
    stem, _, verb = kind.removeprefix("response.").rpartition(".")
    where = [body[name] for name in _INDICES if type(body.get(name)) is int]
    index, part = ([*where, 0, 0])[:2]
    if kind in _LIFE:
        if isinstance(body.get("response"), dict):
            yield from _items(body["response"], "response.output")
    elif kind == "error":
        return
    elif stem == "output_item" and "item" in body:
        yield from _item(body, "item", "item", index)
    elif stem in ("content_part", "reasoning_summary_part") and "part" in body:
        yield from _part(body, "part", "part", index, part)
    elif verb == "delta" and isinstance(body.get("delta"), str):
        if body["delta"]:
            what: What = "unread" if stem == "audio" else "text"
            yield Said(_key(stem, where), Slot("delta", body["delta"], body, "delta", "assistant", what))
    elif verb == "done" and (field := next((name for name in _WHOLE_FIELDS if body.get(name)), None)):
        for slot in walk(body, field, field):
            yield Said(_key(stem, where), slot, whole=True)
    else:
        begin = f"{index}.content[{part}].annotations[{number(body.get('annotation_index'))}]"
        for name in body:
            for slot in walk(body, name, name):
                inside = slot.path.removeprefix("annotation") if name == "annotation" else f".{slot.path}"
                yield Said(f"0/other/{begin}{inside}", slot, whole=True)


def _type(body: dict[str, Any], kind: str) -> str:
    return body["type"] if isinstance(body.get("type"), str) else kind


def _key(stem: str, where: list[int]) -> str:
    return "/".join(["0", _STEMS.get(stem, stem), *map(str, where)])


def _items(response: dict[str, Any], path: str) -> Iterator[Said]:
    output = response.get("output")
    if isinstance(output, list):
        for i in range(len(output)):
            yield from _item(output, i, f"{path}[{i}]", i)
    elif output:
        yield Said("", Slot(path, "", response, "output", "assistant", "unread"))


def _item(holder: Any, at: Any, path: str, index: int) -> Iterator[Said]:
    is_reasoning = isinstance(holder[at], dict) and holder[at].get("type") == "reasoning"
    for slot in walk(holder, at, path):
        inside = slot.path[len(path) :]
        found = _INSIDE.fullmatch(inside)
        if found is None:
            key = f"other/{index}{inside}"
        elif found[4]:
            key = f"{'code' if found[4] == 'code' else 'arguments'}/{index}"
        else:
            kind = "refusal" if found[3] == "refusal" else found[1]
            key = f"{'reasoning' if kind == 'content' and is_reasoning else kind}/{index}/{found[2]}"
        yield Said(f"0/{key}", slot, whole=True)


def _part(holder: Any, at: Any, path: str, index: int, part: int) -> Iterator[Said]:
    type_ = holder[at].get("type") if isinstance(holder[at], dict) else None
    kind = _PARTS.get(type_, "content") if isinstance(type_, str) else "content"
    for slot in walk(holder, at, path):
        inside = slot.path[len(path) :]
        if inside in ("", ".text", ".refusal"):
            yield Said(f"0/{'refusal' if inside == '.refusal' else kind}/{index}/{part}", slot, whole=True)
        else:
            yield Said(f"0/other/{index}.content[{part}]{inside}", slot, whole=True)


class _Stream:
    def __init__(self) -> None:
        self._running = Running()

    def parse(self, event: Event) -> Chunk | None:
        if event.data is None or event.data == b"[DONE]":
            return None
        body = decode_object(event.data)
        if body is None:
            return Chunk((UNREADABLE,), failed=event.type == "error")
        kind = _type(body, event.type)
        pieces = self._running.pieces(said(body, kind))
        ended = kind in _ENDS
        closing = {piece.key for piece in pieces} if kind.endswith((".done", "annotation.added")) else set()
        response = body.get("response")
        return Chunk(
            pieces,
            closes=self._running.closed(lambda key: ended or key in closing),
            usage=from_responses(response.get("usage")) if ended and isinstance(response, dict) else None,
            finished=ended,
            failed=kind in ("error", "response.failed"),
            sequence=count(body.get("sequence_number")),
            said=body,
        )


def trail(endpoint: Endpoint) -> Trail:
    del endpoint
    return _Trail()


class _Trail:
    """The response as it began, and the items that the client has seen, of which some are open."""

    def __init__(self) -> None:
        self._response: dict[str, Any] = {}
        self._over = False
        self._open: dict[int, Any] = {}
        self._next = 0
        self._sequence = 0

    def note(self, said: dict[str, Any]) -> None:
        kind, index = said.get("type"), number(said.get("output_index"))
        self._sequence = max(self._sequence, number(said.get("sequence_number"), -1) + 1)
        if kind == "response.created" and isinstance(said.get("response"), dict):
            self._response = said["response"]
        elif kind == "response.output_item.added":
            self._open[index] = said.get("item")
            self._next = max(self._next, index + 1)
        elif kind == "response.output_item.done":
            self._open.pop(index, None)
        elif kind in _ENDS:
            self._over = True

    def blocked(self, ending: Ending) -> bytes:
        """What was said before is not in the response that ends it: it was withdrawn."""
        if self._over:
            return b""
        response = self._response or _response(ending, "in_progress", [])
        events: list[tuple[str, dict[str, Any]]] = []
        if not self._response:
            events += [(kind, {"response": response}) for kind in ("response.created", "response.in_progress")]
        for index, item in self._open.items():
            if isinstance(item, dict):
                done = {"output_index": index, "item": {**item, "status": "incomplete"}}
                events.append(("response.output_item.done", done))
        item = _item_of(ending)
        part = item["content"][0]
        at = {"output_index": self._next}
        in_part = {**at, "item_id": item["id"], "content_index": 0}
        final = {**response, "status": "completed", "output": [item], "usage": _NO_USAGE}
        events += [
            ("response.output_item.added", {**at, "item": {**item, "status": "in_progress", "content": []}}),
            ("response.content_part.added", {**in_part, "part": {**part, "text": ""}}),
            ("response.output_text.delta", {**in_part, "delta": ending.sentence, "logprobs": []}),
            ("response.output_text.done", {**in_part, "text": ending.sentence, "logprobs": []}),
            ("response.content_part.done", {**in_part, "part": part}),
            ("response.output_item.done", {**at, "item": item}),
            ("response.completed", {"response": final}),
        ]
        return b"".join(
            _event(kind, {**fields, "sequence_number": number_})
            for number_, (kind, fields) in enumerate(events, self._sequence)
        )


_NO_USAGE: Final = {
    "input_tokens": 0,
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens": 0,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 0,
}


def _event(kind: str, fields: dict[str, Any]) -> bytes:
    return encode(msgspec.json.encode({"type": kind, **fields}), kind)


def _item_of(ending: Ending) -> dict[str, Any]:
    part = {"type": "output_text", "text": ending.sentence, "annotations": [], "logprobs": []}
    name = f"msg_{ending.call_id}"
    return {"id": name, "type": "message", "role": "assistant", "status": "completed", "content": [part]}


def _response(ending: Ending, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": f"resp_{ending.call_id}",
        "object": "response",
        "created_at": ending.created,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": BLOCKED_MODEL,
        "output": output,
        "parallel_tool_calls": True,
        "temperature": None,
        "tool_choice": "auto",
        "tools": [],
        "top_p": None,
    }


def blocked_answer(endpoint: Endpoint, ending: Ending) -> dict[str, Any] | None:
    del endpoint
    return {**_response(ending, "completed", [_item_of(ending)]), "usage": _NO_USAGE}


def text_event(endpoint: Endpoint, like: dict[str, Any], key: str, text: str) -> bytes:
    del endpoint
    _, kind, *where = key.split("/")
    stem = _type(like, "").removeprefix("response.").rpartition(".")[0]
    if _STEMS.get(stem, stem) != kind:
        stem = next((stem for stem, named in _STEMS.items() if named == kind), kind)
    names = ("output_index", "summary_index") if kind == "summary" else _INDICES
    event: dict[str, Any] = dict(zip(names, map(int, where), strict=False))
    event |= {name: like[name] for name in ("item_id", "sequence_number") if name in like}
    if kind == "content":
        event["logprobs"] = []
    return _event(f"response.{stem}.delta", {**event, "delta": text})
