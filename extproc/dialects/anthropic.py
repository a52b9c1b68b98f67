"""The Anthropic dialect: messages."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from extproc.dialects.document import Document
from extproc.dialects.endpoints import Endpoint
from extproc.dialects.facts import AnswerFacts, Chunk, Parser, Prompt, RequestFacts, decode, model_and_stream, text
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


class _Message(msgspec.Struct, gc=False):
    content: Any = None
    stop_reason: Any = None
    usage: Any = None
    model: Any = None


class _Delta(msgspec.Struct, gc=False):
    text: Any = None
    thinking: Any = None
    partial_json: Any = None


class _Event(msgspec.Struct, gc=False):
    type: Any = None
    delta: _Delta | None = None
    message: _Message | None = None
    usage: Any = None


_MESSAGE: Final = msgspec.json.Decoder(_Message)
_EVENT: Final = msgspec.json.Decoder(_Event)


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
    message = decode(_MESSAGE, body)
    if message is None:
        return AnswerFacts()
    return AnswerFacts(
        usage=from_anthropic(message.usage),
        model=text(message.model),
        finished=message.stop_reason is not None,
        texts=list(texts_of(message.content)),
    )


def parser() -> Parser:
    return _Messages().parse


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

    def parse(self, event: Event) -> Chunk | None:
        said = decode(_EVENT, event.data)
        if said is None:
            return Chunk(failed=True) if event.type == "error" else None
        kind = said.type if isinstance(said.type, str) else event.type
        if kind == "content_block_delta":
            return Chunk(texts=_texts(said.delta)) if said.delta else None
        if kind == "message_start":
            return Chunk(usage=self._merge(said.message.usage), partial=True) if said.message else None
        if kind == "message_delta":
            return Chunk(usage=self._merge(said.usage))
        if kind == "message_stop":
            return Chunk(finished=True)
        return Chunk(failed=True) if kind == "error" else None

    def _merge(self, usage: Any) -> Any:
        """A later number replaces an earlier one, but for a zero: providers fill fields that they do not know."""
        if not isinstance(usage, dict):
            return None
        for name, value in usage.items():
            if isinstance(value, dict) or count(value) or (name not in self._usage and count(value) == 0):
                self._usage[name] = value
        return from_anthropic(self._usage)


def _texts(delta: _Delta) -> list[str]:
    return [said for said in (delta.text, delta.thinking, delta.partial_json) if isinstance(said, str)]
