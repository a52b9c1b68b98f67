"""The OpenAI dialect: chat completions, completions, embeddings, and what goes for the whole of its API."""

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final, cast

import msgspec

from extproc.dialects.document import Document, InvalidField, InvalidJson
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
from extproc.dialects.texts import texts_of, token_ids
from extproc.dialects.usage import from_openai

DONE: Final = b"[DONE]"
_MESSAGE_FRAME: Final = 4
"""Tokens around each message, after OpenAI's cookbook (``num_tokens_from_messages``)."""


_PLAIN: Final = {
    "content": "content",
    "reasoning_content": "reasoning/reasoning_content",
    "reasoning": "reasoning/reasoning",
    "refusal": "refusal",
}
_NESTED: Final = {".audio.transcript": "transcript", ".function_call.arguments": "arguments/function_call"}
_REASONING: Final = ("reasoning_content", "reasoning", "reasoning_details")
"""DeepSeek's name, OpenRouter's and vLLM's, and OpenRouter's parts. Several of them at once say the same."""
_CALL = re.compile(r"\.tool_calls\[(\d+)\]\.(?:function\.arguments|(custom)\.input)")
_PART = re.compile(r"\.content(?:\[\d+\])?(?:\.text)?")
_THOUGHT = re.compile(r"\.content(?:\[\d+\])?\.thinking(?:\[\d+\])?(?:\.text)?")


def read_request(endpoint: Endpoint, document: Document) -> RequestFacts:
    model, stream = model_and_stream(document)
    if endpoint.name == "embeddings":
        return RequestFacts(model, stream, wants_stream_usage=True)
    try:
        asked = _stream_options(document).get("include_usage", bool)
    except (InvalidJson, InvalidField) as error:
        reason = error.message.removesuffix(".")
        raise InvalidField("stream_options", f"Invalid value for 'stream_options': {reason}.") from error
    return RequestFacts(model, stream, wants_stream_usage=bool(asked))


def ask_for_usage(document: Document) -> None:
    """Have the usage sent at the end of a stream; other options that the client set stay."""
    options = _stream_options(document)
    options.set("include_usage", True)
    document.set_raw("stream_options", options.body)


def _stream_options(document: Document) -> Document:
    raw = document.raw("stream_options")
    return Document.parse(b"{}" if raw is None or raw == b"null" else raw)


def read_prompt(endpoint: Endpoint, document: Document) -> Prompt:
    if endpoint.name == "chat":
        messages = document.get("messages", Any)
        schemas = [raw.decode() for name in ("tools", "functions", "response_format") if (raw := document.raw(name))]
        frame = _MESSAGE_FRAME * len(messages) if isinstance(messages, list) else 0
        return Prompt([*texts_of(messages), *schemas], frame)
    given = document.get("input" if endpoint.name == "embeddings" else "prompt", Any)
    return Prompt([*texts_of(given), *texts_of(document.get("suffix", Any))], token_ids(given))


def read_answer(body: bytes) -> AnswerFacts:
    answer = decode_object(body)
    if answer is None:
        return AnswerFacts()
    choices = _choices(answer)
    texts: list[str] = []
    for choice in choices:
        texts += texts_of(choice.get("text"))
        said = choice.get("delta") or choice.get("message")
        if isinstance(said, dict):
            reasoning = next((said[name] for name in _REASONING if said.get(name)), None)
            called = said.get("tool_calls") or said.get("function_call") or said.get("refusal")
            texts += texts_of([said.get("content"), reasoning, called])
    return AnswerFacts(
        usage=from_openai(answer.get("usage")),
        model=text(answer.get("model")),
        finished=all(choice.get("finish_reason") for choice in choices),
        texts=texts,
    )


def parser() -> Parser:
    return _Stream().parse


def error_body(*, type: str, code: str, message: str, param: str | None) -> bytes:  # noqa: A002 - the API's name
    return msgspec.json.encode({"error": {"message": message, "type": type, "param": param, "code": code}})


def error_event(*, status: int, type: str, code: str, message: str, param: str | None, sequence: int) -> bytes:  # noqa: A002
    del status, sequence
    return encode(error_body(type=type, code=code, message=message, param=param)) + encode(DONE)


def model_card(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "extproc"}


def model_list(names: Iterable[str], created: int) -> dict[str, Any]:
    return {"object": "list", "data": [model_card(name, created) for name in names]}


def said(body: dict[str, Any], kind: str = "") -> Iterator[Said]:
    del kind
    choices = body.get("choices")
    if not isinstance(choices, list):
        if choices:
            yield Said("", Slot("choices", "", body, "choices", "assistant", "unread"))
        return
    for i, choice in enumerate(choices):
        if not isinstance(choice, dict):
            yield Said("", Slot(f"choices[{i}]", "", choices, i, "assistant", "unread"))
            continue
        index = number(choice.get("index"), i)
        for field in ("text", "delta", "message"):
            if choice.get(field):
                yield from _said_in(choice, field, f"choices[{i}].{field}", index)


def _said_in(choice: dict[str, Any], field: str, path: str, index: int) -> Iterator[Said]:
    value, whole = choice[field], field == "message"
    if not isinstance(value, dict):
        yield from (Said(f"{index}/content", slot, whole) for slot in walk(choice, field, path))
        return
    reasoning = next((name for name in _REASONING if value.get(name)), None)
    for name, part in value.items():
        if not part or name == "role":
            continue
        copy = name in _REASONING and name != reasoning
        if type(part) is str and name in _PLAIN:  # nearly all that streams have
            yield Said(
                f"{index}/{_PLAIN[name]}", Slot(f"{path}.{name}", part, value, name, "assistant"), whole, copy=copy
            )
            continue
        for slot in walk(value, name, f"{path}.{name}"):
            at = slot.path[len(path) :]
            kind = _kind(value, at)
            yield Said(f"{index}/{kind or 'other' + at}", slot, whole, kind is None, copy)


def _kind(value: dict[str, Any], at: str) -> str | None:
    """The kind of the text at this place in a message, and what else its key says; None where it has no more."""
    if call := _CALL.fullmatch(at):
        index = number(value["tool_calls"][int(call[1])].get("index"), int(call[1]))
        return f"arguments/{index}/custom" if call[2] else f"arguments/{index}"
    if _PART.fullmatch(at):
        return "content"
    if _THOUGHT.fullmatch(at):
        return "reasoning/thinking"
    if at.startswith(".reasoning"):
        return "reasoning/" + at[1:].partition("[")[0]
    return _NESTED.get(at)


class _Stream:
    def __init__(self) -> None:
        self._running = Running()

    def parse(self, event: Event) -> Chunk | None:
        data = event.data
        if data is None:
            return None
        if data.startswith(b"[") and data.strip() == DONE:
            return Chunk(finished=True, closes=self._running.closed(lambda _: True))
        failed = event.type == "error"
        body = decode_object(data)
        if body is None:
            return Chunk((UNREADABLE,), failed=failed)
        usage = body.get("usage")
        pieces = self._running.pieces(said(body)) if body.get("choices") else ()
        return Chunk(
            pieces,
            closes=self._closed(body),
            usage=from_openai(usage) if usage is not None else None,
            failed=failed or bool(body.get("error")) or body.get("object") == "error",
            usage_only=usage is not None and body.get("choices") == [],
            said=body,
        )

    def _closed(self, body: dict[str, Any]) -> list[str]:
        ended = tuple(
            f"{number(choice.get('index'), i)}/"
            for i, choice in enumerate(_choices(body))
            if choice.get("finish_reason")
        )
        return self._running.closed((lambda key: key.startswith(ended)) if ended else None)


def _choices(body: dict[str, Any]) -> list[dict[str, Any]]:
    choices = body.get("choices")
    return [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []


def trail(endpoint: Endpoint) -> Trail:
    return _Trail(endpoint)


class _Trail:
    """The choices that the client has seen, and which of them have ended."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._head: dict[str, Any] = {}
        self._ended: dict[int, bool] = {}

    def note(self, said: dict[str, Any]) -> None:
        self._head = self._head or _head(said)
        for i, choice in enumerate(_choices(said)):
            index = number(choice.get("index"), i)
            self._ended[index] = self._ended.get(index, False) or bool(choice.get("finish_reason"))

    def blocked(self, ending: Ending) -> bytes:
        head = self._head or _own_head(self._endpoint, ending)
        going = [index for index, ended in self._ended.items() if not ended] or ([] if self._ended else [0])
        deltas = [_choice(self._endpoint, index, {"content": ending.sentence}) for index in going]
        if not self._ended:
            deltas = [_choice(self._endpoint, 0, {"role": "assistant", "content": ""}), *deltas]
        stops = [_choice(self._endpoint, index, {}, "stop") for index in going]
        events = [{**head, "choices": [choice]} for choice in (*deltas, *stops)]
        if ending.include_usage:
            events.append({**head, "choices": [], "usage": _NO_USAGE})
        return b"".join(encode(msgspec.json.encode(event)) for event in events) + encode(DONE)


_NO_USAGE: Final = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


def _head(said: dict[str, Any]) -> dict[str, Any]:
    """What every chunk of a stream repeats."""
    return {name: said[name] for name in ("id", "object", "created", "model") if name in said}


def _own_head(endpoint: Endpoint, ending: Ending) -> dict[str, Any]:
    chat = endpoint.name == "chat"
    return {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{ending.call_id}",
        "object": "chat.completion.chunk" if chat else "text_completion",
        "created": ending.created,
        "model": BLOCKED_MODEL,
    }


def _choice(endpoint: Endpoint, index: int, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    said = {"delta": delta} if endpoint.name == "chat" else {"text": delta.get("content", "")}
    return {"index": index, **said, "logprobs": None, "finish_reason": finish_reason}


def blocked_answer(endpoint: Endpoint, ending: Ending) -> dict[str, Any] | None:
    if endpoint.name == "embeddings":
        return None
    head = _own_head(endpoint, ending)
    choice = _choice(endpoint, 0, {"content": ending.sentence}, "stop")
    if endpoint.name == "chat":
        head["object"] = "chat.completion"
        choice["message"] = {"role": "assistant", "refusal": None, **choice.pop("delta")}
    return {**head, "choices": [choice], "usage": _NO_USAGE}


def text_event(endpoint: Endpoint, like: dict[str, Any], key: str, text: str) -> bytes:
    index, _, kind = key.partition("/")
    choice = _choice(endpoint, int(index), _delta(kind, text))
    return encode(msgspec.json.encode({**_head(like), "choices": [choice]}))


def _delta(kind: str, text: str) -> dict[str, Any]:
    name, *which = kind.split("/")
    if name == "arguments":
        if which[0] == "function_call":
            return {"function_call": {"arguments": text}}
        said = {"custom": {"input": text}} if which[1:] else {"function": {"arguments": text}}
        return {"tool_calls": [{"index": int(which[0]), **said}]}
    if name == "reasoning":
        said_as: dict[str, Any] = {
            "thinking": {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": text}]}]},
            "reasoning_details": {"reasoning_details": [{"type": "reasoning.text", "text": text}]},
        }
        return cast(dict[str, Any], said_as.get(which[0], {which[0]: text}))
    return {"audio": {"transcript": text}} if name == "transcript" else {name: text}
