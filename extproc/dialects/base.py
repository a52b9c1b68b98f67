"""One way to read and write the bodies of every endpoint, whatever its dialect."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from extproc.dialects import anthropic, openai, responses
from extproc.dialects.document import Document, InvalidField
from extproc.dialects.endpoints import CHAT, DialectName, Endpoint, EndpointName
from extproc.dialects.facts import (
    AnswerFacts,
    Chunk,
    Dialect,
    Ending,
    Prompt,
    RequestFacts,
    decode,
    decode_object,
)
from extproc.dialects.openai import ask_for_usage
from extproc.dialects.places import UNREADABLE, Piece, Place, Role, Said, erase_traces, whole_pieces
from extproc.dialects.places import request_places as _request_places
from extproc.dialects.places import rewrite_request as _rewrite_request
from extproc.dialects.sse import Event, replace_data
from extproc.dialects.tokens import Meter
from extproc.dialects.usage import MAX_TOKENS, Usage

__all__ = [
    "AnswerFacts",
    "Chunk",
    "Ending",
    "Piece",
    "Place",
    "RequestFacts",
    "StreamReader",
    "answer_texts",
    "ask_for_usage",
    "blocked_answer",
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
    "request_texts",
    "rewrite_answer",
    "rewrite_event",
    "rewrite_request",
    "text_event",
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

_TEXT_FIELDS: Final[dict[EndpointName, dict[str, Role]]] = {
    "chat": {
        "messages": "user",
        "documents": "user",
        "prediction": "assistant",
        "tools": "system",
        "functions": "system",
        "response_format": "system",
    },
    "completions": {"prompt": "user", "suffix": "user"},
    "embeddings": {"input": "user"},
    "responses": {"instructions": "system", "prompt": "user", "input": "user", "tools": "system", "text": "system"},
    "messages": {"system": "system", "messages": "user", "tools": "system"},
}
"""Where a request has text, and who says it unless the text tells."""


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


def request_texts(endpoint: Endpoint, document: Document) -> list[Place]:
    """Every text of a request with where it stands: messages, system, tool calls and results, tools' descriptions."""
    return _request_places(document, _TEXT_FIELDS[endpoint.name])


def rewrite_request(endpoint: Endpoint, document: Document, changes: Mapping[str, str]) -> None:
    """Replace texts, by the paths of their places. Top-level fields in which none stands keep their bytes."""
    _rewrite_request(document, _TEXT_FIELDS[endpoint.name], changes)


def answer_texts(endpoint: Endpoint, body: bytes) -> list[Piece]:
    """Every text of a whole answer, of all its choices. One unreadable piece where it is not JSON."""
    answer = decode_object(body)
    return [UNREADABLE] if answer is None else whole_pieces(dialect_for(endpoint).said(answer))


def rewrite_answer(endpoint: Endpoint, body: bytes, changes: Mapping[str, str]) -> bytes:
    """The answer with texts replaced, by the paths of their pieces; and without log probabilities if any is."""
    answer = decode_object(body)
    if answer is None:
        return body
    said = list(dialect_for(endpoint).said(answer))
    return _rewritten(answer, said, [changes.get(one.slot.path, one.slot.text) for one in said]) or body


def rewrite_event(endpoint: Endpoint, event: Event, texts: Sequence[str]) -> bytes:
    """The event with the texts of its pieces replaced, in order (those of unreadable ones count and stay).

    Its own bytes if nothing changes. Log probabilities, which tell the text once more, go where something does.
    """
    body = decode_object(event.data)
    if body is None:
        return event.raw
    said = list(dialect_for(endpoint).said(body, event.type))
    changed = _rewritten(body, said, texts)
    return event.raw if changed is None else replace_data(event.raw, changed)


def _rewritten(body: dict[str, Any], said: Sequence[Said], texts: Sequence[str]) -> bytes | None:
    changes = [(one.slot, text) for one, text in zip(said, texts, strict=True) if one.slot.text != text]
    changes = [(slot, text) for slot, text in changes if slot.what in ("text", "json")]
    if not changes:
        return None
    for slot, text in changes:
        slot.put(text)
    erase_traces(body)
    return msgspec.json.encode(body)


def text_event(endpoint: Endpoint, like: Event | None, key: str, text: str) -> bytes:
    """An event with more text of this key, such as the stream of ``like``, an event that was read, would have it.

    For what is held when ``closes`` names the key: it goes just before. Empty for the kind ``other``, whose texts
    come whole.
    """
    if key.split("/")[1] == "other":
        return b""
    said = like.chunk.said if like is not None and like.chunk is not None else None
    return dialect_for(endpoint).text_event(endpoint, said or {}, key, text)


def blocked_answer(endpoint: Endpoint, ending: Ending, *, stream: bool) -> tuple[bytes, str] | None:
    """A normal answer that says the sentence and cost nothing, and its content type; None where answers are no text."""
    dialect = dialect_for(endpoint)
    answer = dialect.blocked_answer(endpoint, ending)
    if answer is None:
        return None
    if stream:
        return dialect.trail(endpoint).blocked(ending), "text/event-stream"
    return msgspec.json.encode(answer), "application/json"


class StreamReader:
    """Reads a streamed answer on its way. What a provider sends never raises.

    ``usage`` is the last one reported, ``finished`` that the stream said its end, ``failed`` that it
    carried an error. ``sequence`` is the number that the next event would have, in APIs that number them.
    """

    __slots__ = ("_meter", "_parse", "_partial", "_trail", "failed", "finished", "sequence", "usage")

    def __init__(self, endpoint: Endpoint) -> None:
        self._parse = dialect_for(endpoint).parser()
        self._trail = dialect_for(endpoint).trail(endpoint)
        self._meter = Meter()
        self._partial = True
        self.usage: Usage | None = None
        self.finished = False
        self.failed = False
        self.sequence = 0

    def read(self, event: Event) -> None:
        """Take note of the event and leave what it says on it, as ``event.chunk``."""
        chunk = event.chunk = Chunk((UNREADABLE,)) if event.oversize else self._parse(event)
        if chunk is None:
            return
        for piece in chunk.pieces:
            if not piece.again and not piece.copy:
                self._meter.add(piece.text)
        if chunk.usage is not None:
            self.usage = chunk.usage
            self._partial = chunk.partial
        if chunk.finished:
            self.finished = True
        if chunk.failed:
            self.failed = True
        if chunk.sequence is not None:
            self.sequence = chunk.sequence + 1

    def sent(self, event: Event) -> None:
        """The event, which was read, is on its way to the client, its texts changed or not."""
        if event.chunk is not None and event.chunk.said is not None:
            self._trail.note(event.chunk.said)

    def blocked(self, ending: Ending) -> bytes:
        """The events that end the stream with a sentence, in the API's own way: after those that were ``sent``.

        What was being said is closed first; a tool call that was begun is not to be made.
        """
        return self._trail.blocked(ending)

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
