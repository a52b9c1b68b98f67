"""One way to read and write the bodies of every endpoint, whatever its dialect."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from extproc.dialects import anthropic, openai, responses
from extproc.dialects.document import Document, InvalidField
from extproc.dialects.endpoints import CHAT, DialectName, Endpoint, EndpointName
from extproc.dialects.facts import AnswerFacts, Chunk, Dialect, Prompt, RequestFacts, decode
from extproc.dialects.openai import ask_for_usage
from extproc.dialects.sse import Event
from extproc.dialects.tokens import Meter
from extproc.dialects.usage import MAX_TOKENS, Usage

__all__ = [
    "AnswerFacts",
    "Chunk",
    "RequestFacts",
    "StreamReader",
    "ask_for_usage",
    "dialect_for",
    "error_body",
    "error_event",
    "estimate_prompt",
    "is_error_body",
    "max_output",
    "model_card",
    "model_list",
    "prompt_texts",
    "read_answer",
    "read_prompt",
    "read_request",
]

_DIALECTS: Final[dict[EndpointName, Dialect]] = {
    "chat": openai,
    "completions": openai,
    "embeddings": openai,
    "responses": responses,
    "messages": anthropic,
}

_MAX_OUTPUT: Final[dict[EndpointName, tuple[str, ...]]] = {
    "chat": ("max_completion_tokens", "max_tokens"),
    "completions": ("max_tokens",),
    "embeddings": (),
    "responses": ("max_output_tokens",),
    "messages": ("max_tokens",),
}


def dialect_for(endpoint: Endpoint) -> Dialect:
    """What reads the bodies of ``endpoint``."""
    return _DIALECTS[endpoint.name]


def read_request(endpoint: Endpoint, document: Document) -> RequestFacts:
    """Raises ``InvalidField`` where the model is missing, or a field that we read is of the wrong type."""
    return dialect_for(endpoint).read_request(endpoint, document)


def prompt_texts(endpoint: Endpoint, document: Document) -> Sequence[str]:
    """All text of the request, tools' JSON included. Raises ``InvalidField`` on a number too big to be read."""
    return dialect_for(endpoint).read_prompt(endpoint, document).texts


def estimate_prompt(endpoint: Endpoint, document: Document) -> int:
    """Tokens of the request, roughly; images, audio and files not counted. Raises as ``prompt_texts``."""
    return dialect_for(endpoint).read_prompt(endpoint, document).estimate()


def read_prompt(endpoint: Endpoint, document: Document) -> Prompt:
    """What there is to count in a request. Raises as ``prompt_texts``."""
    return dialect_for(endpoint).read_prompt(endpoint, document)


def max_output(endpoint: Endpoint, document: Document) -> int | None:
    """Tokens that the answer may have at most, all its choices together; None where the request does not say.

    A value of the wrong type counts as none: what to say of it is the provider's business.
    """
    choices = _number(document, "n") or 1
    for name in _MAX_OUTPUT[endpoint.name]:
        if (bound := _number(document, name)) is not None:
            return min(bound * choices, MAX_TOKENS)
    return 0 if endpoint.name == "embeddings" else None


def _number(document: Document, name: str) -> int | None:
    try:
        value = document.get(name, int)
    except InvalidField:
        return None
    return value if value is not None and value > 0 else None


def read_answer(endpoint: Endpoint, body: bytes) -> AnswerFacts:
    """What a whole answer says; nothing where it cannot be read. Blank lines before the JSON are allowed for."""
    return dialect_for(endpoint).read_answer(body)


class StreamReader:
    """Reads a streamed answer on its way. What a provider sends never raises.

    ``usage`` is the last one reported, ``finished`` that the stream said its end, ``failed`` that it
    carried an error. ``sequence`` is the number that the next event would have, in APIs that number them.
    """

    __slots__ = ("_meter", "_parse", "_partial", "failed", "finished", "sequence", "usage")

    def __init__(self, endpoint: Endpoint) -> None:
        self._parse = dialect_for(endpoint).parser()
        self._meter = Meter()
        self._partial = True
        self.usage: Usage | None = None
        self.finished = False
        self.failed = False
        self.sequence = 0

    def read(self, event: Event) -> None:
        """Take note of the event and leave what it says on it, as ``event.chunk``."""
        chunk = event.chunk = self._parse(event)
        if chunk is None:
            return
        for text in chunk.texts:
            self._meter.add(text)
        if chunk.usage is not None:
            self.usage = chunk.usage
            self._partial = chunk.partial
        if chunk.finished:
            self.finished = True
        if chunk.failed:
            self.failed = True
        if chunk.sequence is not None:
            self.sequence = chunk.sequence + 1

    def usage_is_partial(self) -> bool:
        """Whether nothing was reported yet that counts the output."""
        return self._partial

    def estimate_output(self) -> int:
        """Tokens of the text that passed: content, reasoning, arguments of tool calls."""
        return self._meter.tokens

    @staticmethod
    def is_usage_only(event: Event) -> bool:
        """Whether an event that was read is the one that ``include_usage`` adds: usage and no choices."""
        return event.chunk is not None and event.chunk.usage_only


class _Error(msgspec.Struct):
    message: str


class _ErrorBody(msgspec.Struct):
    error: _Error


_ERROR_BODY: Final = msgspec.json.Decoder(_ErrorBody)


def is_error_body(body: bytes) -> bool:
    """Whether this is an error in the shape that SDKs of either dialect read: an ``error`` with its message."""
    return decode(_ERROR_BODY, body) is not None


def error_body(
    dialect: DialectName,
    *,
    status: int,
    type: str,  # noqa: A002 - the API's name
    code: str,
    message: str,
    param: str | None = None,
) -> bytes:
    """An error as JSON. OpenAI's has all the fields; the type of Anthropic's follows from the status."""
    if dialect == "anthropic":
        return anthropic.error_body(status=status, message=message)
    return openai.error_body(type=type, code=code, message=message, param=param)


def error_event(
    endpoint: Endpoint | None,
    *,
    status: int,
    type: str,  # noqa: A002 - the API's name
    code: str,
    message: str,
    param: str | None = None,
    sequence: int = 0,
) -> bytes:
    """The events that end a broken stream, so that the client's SDK raises. ``sequence``: of a ``StreamReader``."""
    return dialect_for(endpoint or CHAT).error_event(
        status=status, type=type, code=code, message=message, param=param, sequence=sequence
    )


def model_list(dialect: DialectName, names: Sequence[str], created: int) -> bytes:
    """The answer to GET /v1/models. ``created``: seconds since the epoch."""
    page: dict[str, Any] = (
        anthropic.model_list(names, created) if dialect == "anthropic" else openai.model_list(names, created)
    )
    return msgspec.json.encode(page)


def model_card(dialect: DialectName, name: str, created: int) -> bytes:
    """The answer to GET /v1/models/NAME. ``created``: seconds since the epoch."""
    card: dict[str, Any] = (
        anthropic.model_card(name, created) if dialect == "anthropic" else openai.model_card(name, created)
    )
    return msgspec.json.encode(card)
