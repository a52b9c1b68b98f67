"""The OpenAI dialect: chat completions, completions, embeddings, and what goes for the whole of its API."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from extproc.dialects.document import Document, InvalidField, InvalidJson
from extproc.dialects.endpoints import Endpoint
from extproc.dialects.facts import AnswerFacts, Chunk, Parser, Prompt, RequestFacts, decode, model_and_stream, text
from extproc.dialects.sse import Event, encode
from extproc.dialects.texts import texts_of, token_ids
from extproc.dialects.usage import from_openai

DONE: Final = b"[DONE]"
_MESSAGE_FRAME: Final = 4
"""Tokens around each message, after OpenAI's cookbook (``num_tokens_from_messages``)."""


class _Said(msgspec.Struct, gc=False):
    """A delta or a message. ``reasoning_content`` is DeepSeek's name, ``reasoning`` OpenRouter's and vLLM's."""

    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    refusal: Any = None
    tool_calls: Any = None
    function_call: Any = None


class _Choice(msgspec.Struct, gc=False):
    delta: _Said | None = None
    message: _Said | None = None
    text: Any = None
    finish_reason: Any = None


class _Completion(msgspec.Struct, gc=False):
    """An answer, or a chunk of a streamed one."""

    choices: list[_Choice] | None = None
    usage: Any = None
    error: Any = None
    object: Any = None
    model: Any = None


class _Odd(msgspec.Struct, gc=False):
    """What can be read of a chunk whose choices are of another shape."""

    usage: Any = None
    error: Any = None
    object: Any = None
    model: Any = None


_COMPLETION: Final = msgspec.json.Decoder(_Completion)
_ODD: Final = msgspec.json.Decoder(_Odd)


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
    answer = _read(body)
    if answer is None:
        return AnswerFacts()
    choices = answer.choices or []
    return AnswerFacts(
        usage=from_openai(answer.usage),
        model=text(answer.model),
        finished=all(choice.finish_reason for choice in choices),
        texts=_texts(choices),
    )


def parser() -> Parser:
    return _parse


def error_body(*, type: str, code: str, message: str, param: str | None) -> bytes:  # noqa: A002 - the API's name
    return msgspec.json.encode({"error": {"message": message, "type": type, "param": param, "code": code}})


def error_event(*, status: int, type: str, code: str, message: str, param: str | None, sequence: int) -> bytes:  # noqa: A002
    del status, sequence
    return encode(error_body(type=type, code=code, message=message, param=param)) + encode(DONE)


def model_card(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "extproc"}


def model_list(names: Iterable[str], created: int) -> dict[str, Any]:
    return {"object": "list", "data": [model_card(name, created) for name in names]}


def _parse(event: Event) -> Chunk | None:
    data = event.data
    if data is None:
        return None
    if data.startswith(b"[") and data.strip() == DONE:
        return Chunk(finished=True)
    failed = event.type == "error"
    chunk = _read(data)
    if chunk is None:
        return Chunk(failed=True) if failed else None
    usage = chunk.usage
    return Chunk(
        texts=_texts(chunk.choices) if chunk.choices else (),
        usage=from_openai(usage) if usage is not None else None,
        failed=failed or bool(chunk.error) or chunk.object == "error",
        usage_only=usage is not None and chunk.choices == [],
    )


def _read(data: bytes) -> _Completion | None:
    completion = decode(_COMPLETION, data)
    if completion is None and (odd := decode(_ODD, data)):
        return _Completion(usage=odd.usage, error=odd.error, object=odd.object, model=odd.model)
    return completion


def _texts(choices: Sequence[_Choice]) -> list[str]:
    found: list[str] = []
    for choice in choices:
        if choice.text:
            found.extend(texts_of(choice.text))
        said = choice.delta or choice.message
        if said is None:
            continue
        if said.content:
            found += [said.content] if isinstance(said.content, str) else texts_of(said.content)
        if reasoning := said.reasoning_content or said.reasoning:
            found += [reasoning] if isinstance(reasoning, str) else texts_of(reasoning)
        if called := said.tool_calls or said.function_call or said.refusal:
            found += texts_of(called)
    return found
