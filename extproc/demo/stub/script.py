"""What a stub says in one call, before a dialect puts it into JSON or events."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from extproc.demo.stub.behaviour import Behaviour

CREATED = 1_735_689_600  # fixed, so that answers are the same on every run

to_json = msgspec.json.Encoder().encode


class OddRequestError(Exception):
    """The request is not what the endpoint takes; the message is for the client."""


@dataclass(slots=True)
class Answer:
    """A whole body, or the SSE events of a stream."""

    body: bytes | Iterator[bytes]
    status: int = 200
    content_type: str = "application/json"


def whole(body: dict[str, Any]) -> Answer:
    return Answer(to_json(body))


def streamed(events: Iterator[bytes]) -> Answer:
    return Answer(events, content_type="text/event-stream; charset=utf-8")


class Script:
    """The words, tool call and token numbers of one answer. Calls are numbered, for ids that repeat on every run."""

    __slots__ = ("_count", "behaviour", "input_tokens", "model", "number", "reasoning", "request", "said", "tool")

    def __init__(self, name: str, number: int, request: dict[str, Any], behaviour: Behaviour) -> None:
        model = request.get("model")
        self.model: str = model if isinstance(model, str) else name
        self.number = f"{name}-{number}"
        self.request = request
        self.behaviour = behaviour
        self.reasoning: list[str] = re.findall(r"\S+\s*", behaviour.reasoning)
        self.tool: str | None = _first_tool(request) if behaviour.tool_calls else None
        self._count = max(1, behaviour.events)
        if self.tool is None:
            text = f"Hello from {name}." if behaviour.text is None else behaviour.text
            self.said = " ".join([text] * -(-self._count // len(text))) if text else ""
        else:
            self.said = behaviour.tool_arguments
        self._count = min(self._count, len(self.said))
        self.input_tokens: int = _words(request) if behaviour.input_tokens is None else behaviour.input_tokens

    @property
    def stream(self) -> bool:
        return self.request.get("stream") is True

    @property
    def reasoning_tokens(self) -> int:
        told = self.behaviour.reasoning_tokens
        return len(self.reasoning) if told is None else told

    @property
    def output_tokens(self) -> int:
        return self._count + self.reasoning_tokens

    def pieces(self) -> Iterator[str]:
        """What is said (the text, or the tool's arguments) in near equal pieces."""
        size, count = len(self.said), self._count
        for at in range(count):
            yield self.said[at * size // count : (at + 1) * size // count]

    def require(self, field: str, *kinds: type) -> Any:
        """The request's value of ``field``. Raises OddRequestError if it is missing or none of these kinds."""
        value = self.request.get(field)
        if not isinstance(value, kinds):
            raise OddRequestError(f"Missing or invalid parameter: '{field}'.")
        return value


def _first_tool(request: dict[str, Any]) -> str | None:
    match request.get("tools"):
        case [{"function": {"name": str(name)}}, *_] | [{"name": str(name)}, *_]:
            return name
    return None


def _words(value: Any) -> int:
    """The words of all texts in a request, wherever a dialect puts them; a list of tokens has one a number."""
    match value:
        case str():
            return len(value.split())
        case list():
            return sum(1 if isinstance(each, int) else _words(each) for each in value)
        case dict():
            texts = ("messages", "system", "content", "text", "prompt", "input", "instructions")
            return sum(_words(value[key]) for key in texts if key in value)
    return 0
