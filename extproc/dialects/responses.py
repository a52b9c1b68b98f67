"""OpenAI's Responses API: it is of the OpenAI dialect, but its answers and streams have a shape of their own."""

from typing import Any, Final

import msgspec

from extproc.dialects.document import Document
from extproc.dialects.endpoints import Endpoint
from extproc.dialects.facts import AnswerFacts, Chunk, Parser, Prompt, RequestFacts, decode, model_and_stream, text
from extproc.dialects.sse import Event, encode
from extproc.dialects.texts import texts_of
from extproc.dialects.usage import count, from_responses

_ENDS: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})
_AUDIO: Final = "response.audio.delta"
_ITEM_FRAME: Final = 4


class _Response(msgspec.Struct, gc=False):
    status: Any = None
    output: Any = None
    usage: Any = None
    model: Any = None


class _Event(msgspec.Struct, gc=False):
    """``response`` is kept raw: the first events carry it too, with instructions and tools and no usage."""

    type: Any = None
    delta: Any = None
    response: msgspec.Raw = msgspec.Raw(b"")
    sequence_number: Any = None


_RESPONSE: Final = msgspec.json.Decoder(_Response)
_EVENT: Final = msgspec.json.Decoder(_Event)


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
    response = decode(_RESPONSE, body)
    if response is None:
        return AnswerFacts()
    return AnswerFacts(
        usage=from_responses(response.usage),
        model=text(response.model),
        finished=response.status in ("completed", "incomplete", "failed"),
        texts=list(texts_of(response.output)),
    )


def parser() -> Parser:
    return _parse


def error_event(*, status: int, type: str, code: str, message: str, param: str | None, sequence: int) -> bytes:  # noqa: A002
    del status, type
    body = {"type": "error", "code": code, "message": message, "param": param, "sequence_number": sequence}
    return encode(msgspec.json.encode(body), "error")


def _parse(event: Event) -> Chunk | None:
    said = decode(_EVENT, event.data)
    if said is None:
        return Chunk(failed=True) if event.type == "error" else None
    kind = said.type if isinstance(said.type, str) else event.type
    ended = kind in _ENDS
    response = decode(_RESPONSE, bytes(said.response)) if ended else None
    return Chunk(
        texts=(said.delta,) if isinstance(said.delta, str) and kind != _AUDIO else (),
        usage=from_responses(response.usage) if response is not None else None,
        finished=ended,
        failed=kind in ("error", "response.failed"),
        sequence=count(said.sequence_number),
    )
