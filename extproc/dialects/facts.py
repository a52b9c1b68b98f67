"""What we read in requests and answers, the same for every dialect."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

import msgspec

from extproc.dialects.document import Document, InvalidField
from extproc.dialects.endpoints import Endpoint
from extproc.dialects.places import Piece, Said
from extproc.dialects.sse import Event
from extproc.dialects.tokens import Tokens, count, estimate
from extproc.dialects.usage import Usage

T = TypeVar("T")

BLOCKED_MODEL: Final = "from-security-guard"
"""The model of answers that we make ourselves in place of a blocked one."""


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """``wants_stream_usage``: the client expects the usage in a stream, since it asked or the API always tells."""

    model: str
    stream: bool
    wants_stream_usage: bool


@dataclass(frozen=True, slots=True)
class Prompt:
    """The texts of a request, and ``tokens`` of it that are not text: token ids, the frame of messages."""

    texts: Sequence[str]
    tokens: int = 0

    def count(self) -> Tokens:
        """Tokens of the texts, by the kind of their characters."""
        return count("\n".join(self.texts))

    def estimate(self) -> int:
        """Tokens in all."""
        return self.count().total + self.tokens


@dataclass(frozen=True, slots=True)
class AnswerFacts:
    """``usage`` is what the provider reported; ``finished``: the answer says that it came to its end."""

    usage: Usage | None = None
    model: str | None = None
    finished: bool = False
    texts: Sequence[str] = field(default=(), repr=False)

    def estimate_output(self) -> int:
        """Tokens of the generated text."""
        return estimate("\n".join(self.texts))


class Chunk(msgspec.Struct, gc=False):
    """What one event of a stream says.

    ``pieces`` are its texts, ``closes`` the keys of those that are complete with it. ``usage`` counts the whole
    stream so far; it is ``partial`` where the provider will correct it at the end. ``usage_only``: the event is there
    for the usage alone. ``sequence``: its number, where the API numbers events. ``said``: its data, decoded, not to
    be changed.
    """

    pieces: Sequence[Piece] = ()
    closes: Sequence[str] = ()
    usage: Usage | None = None
    partial: bool = False
    finished: bool = False
    failed: bool = False
    usage_only: bool = False
    sequence: int | None = None
    said: dict[str, Any] | None = None


Parser = Callable[[Event], Chunk | None]
"""Reads the events of one stream in order; None for an event that says nothing."""


class Trail(Protocol):
    """What a client has of a stream, as far as it matters for ending it."""

    def note(self, said: dict[str, Any]) -> None: ...
    def blocked(self, ending: "Ending") -> bytes: ...


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """How we end a call ourselves. ``created``: seconds since the epoch; ``include_usage``: the client asked for it."""

    sentence: str
    created: int
    call_id: str
    include_usage: bool = False


class Dialect(Protocol):
    """How the bodies of an endpoint are read; a module of this package each."""

    def read_request(self, endpoint: Endpoint, document: Document) -> RequestFacts: ...
    def read_prompt(self, endpoint: Endpoint, document: Document) -> Prompt: ...
    def read_answer(self, body: bytes) -> AnswerFacts: ...
    def parser(self) -> Parser: ...
    def said(self, body: dict[str, Any], kind: str = "") -> Iterator[Said]: ...
    def trail(self, endpoint: Endpoint) -> Trail: ...
    def blocked_answer(self, endpoint: Endpoint, ending: Ending) -> dict[str, Any] | None: ...
    def text_event(self, endpoint: Endpoint, like: dict[str, Any], key: str, text: str) -> bytes: ...
    def error_event(
        self,
        *,
        status: int,
        type: str,  # noqa: A002 - the API's name
        code: str,
        message: str,
        param: str | None,
        sequence: int,
    ) -> bytes: ...


def model_and_stream(document: Document) -> tuple[str, bool]:
    """The two fields that every endpoint shares. Raises ``InvalidField``."""
    model = document.get("model", str)
    if not model:
        raise InvalidField("model", "You must provide a model: 'model' is missing or empty.")
    return model, document.get("stream", bool) or False


def decode(decoder: msgspec.json.Decoder[T], data: bytes | None) -> T | None:
    """The decoded data; None where it does not fit, since what a provider sends must never raise."""
    if not data:
        return None
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def decode_object(data: bytes | None) -> dict[str, Any] | None:
    """The JSON object that the data is; None where it is none."""
    return decode(_OBJECT, data)


_OBJECT: Final[msgspec.json.Decoder[dict[str, Any]]] = msgspec.json.Decoder(dict[str, Any])


def number(value: Any, default: int = 0) -> int:
    """An index, or the default where ``value`` is none."""
    return value if type(value) is int else default


def text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
