"""Dialogues with a state machine: what Envoy says (``>>``) and what we must decide (``<<``).

    assert (
        Playbook(exchange)
        >> request()
        << Proceeds()
        >> body({"model": "gpt"})
        << Proceeds(reroute=True)
    )

A playbook runs without an event loop: a filter that waits (on a ``fakes.Gate``) shows as ``<< Waits()``, and the
dialogue goes on with ``>> Release(gate)`` or ``>> Cancel()``. One that was never asserted fails its test.
"""

import asyncio
import difflib
import json
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from extproc.core.messages import (
    Answer,
    BodyMode,
    Decision,
    Emit,
    Headers,
    Message,
    Metadata,
    Proceed,
    RequestBody,
    RequestHead,
    ResponseBody,
    ResponseHead,
    Trailers,
)

CALL = "call-1"
"""The id of every call in the tests."""
KEY = "sk-consumer-key-0123456789"
"""A key that a client sends; no test may ever see it again."""


class Machine(Protocol):
    """What a playbook talks with."""

    def receive(self, message: Message) -> Coroutine[Any, Any, Decision]: ...
    def on_idle(self) -> Coroutine[Any, Any, Decision | None]: ...
    def close(self) -> Coroutine[Any, Any, None]: ...


# --- what happens ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Idle:
    """The idle timeout passed."""


SETTLED: Metadata = {"settled": "yes"}
"""Comes with our last word on a call: Envoy need not tell us later how it ended."""


@dataclass(frozen=True)
class Close:
    """The driver closes the exchange; nothing is decided."""


@dataclass(frozen=True)
class Cancel:
    """The driver cancels a ``receive`` that waits; nothing is decided."""


@dataclass(frozen=True)
class Release:
    """What a filter waited for has happened."""

    gate: Any


def request(
    method: str = "POST",
    path: str = "/v1/chat/completions",
    headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    *,
    end: bool = False,
) -> RequestHead:
    fields = headers.items() if isinstance(headers, Mapping) else headers
    return RequestHead(Headers([(":method", method), (":path", path), (":authority", "gateway"), *fields]), end)


def body(content: Any) -> RequestBody:
    return RequestBody(content if isinstance(content, bytes) else as_json(content))


def answer(
    status: int = 200,
    kind: str = "application/json",
    headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    *,
    end: bool = False,
    provider: str = "alpha",
    attempt: int = 1,
) -> ResponseHead:
    fields = headers.items() if isinstance(headers, Mapping) else headers
    known: Metadata = {
        "provider": provider,
        "target": f"{provider}-model",
        "attempt": float(attempt),
        "details": "via_upstream",
    }
    return ResponseHead(Headers([(":status", str(status)), ("content-type", kind), *fields]), end, known)


def stream(headers: Mapping[str, str] | Iterable[tuple[str, str]] = (), *, provider: str = "alpha") -> ResponseHead:
    return answer(200, "text/event-stream", headers, provider=provider)


def local(status: int, details: str) -> ResponseHead:
    """A reply that Envoy made itself."""
    return ResponseHead(
        Headers([(":status", str(status)), ("content-type", "application/json")]), False, {"details": details}
    )


def whole(content: Any) -> ResponseBody:
    return ResponseBody(content if isinstance(content, bytes) else as_json(content), end=True)


def piece(content: bytes, *, end: bool = False) -> ResponseBody:
    return ResponseBody(content, end)


def as_json(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode()


# --- what is decided ------------------------------------------------------------------------------------------


class Anything:
    """Equals whatever it is compared with."""

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0

    def __repr__(self) -> str:
        return "..."


ANY: Any = Anything()


class Json:
    """Equals bytes that are JSON of this value."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        try:
            return isinstance(other, bytes) and bool(msgspec.json.decode(other) == self.value)
        except msgspec.MsgspecError:
            return False

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Json({self.value!r})"


class Including:
    """Equals a mapping that holds at least these entries, or bytes that hold this part."""

    def __init__(self, part: Any) -> None:
        self.part = part

    def __eq__(self, other: object) -> bool:
        if isinstance(other, bytes):
            return self.part in other
        missing = object()
        return isinstance(other, Mapping) and all(other.get(k, missing) == v for k, v in self.part.items())

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Including({self.part!r})"


class Error:
    """Equals the body of an error of this code, and perhaps message, in the dialect."""

    def __init__(self, code: str, *, message: str = "", dialect: str = "openai") -> None:
        self.code, self.message, self.dialect = code, message, dialect

    def __eq__(self, other: object) -> bool:
        try:
            got = msgspec.json.decode(other) if isinstance(other, bytes) else None
        except msgspec.MsgspecError:
            return False
        if not isinstance(got, dict) or not isinstance(got.get("error"), dict):
            return False
        error = got["error"]
        if self.message not in error["message"] or not error["message"]:
            return False
        if self.dialect == "anthropic":
            return bool(got["type"] == "error" and set(error) == {"type", "message"} and error["type"] == self.code)
        return set(error) == {"message", "type", "param", "code"} and bool(error["code"] == self.code)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Error({self.code!r}, {self.message!r}, {self.dialect})"


@dataclass
class Proceeds:
    sets: Any = field(default_factory=dict)
    removes: Any = field(default_factory=set)
    body: Any = None
    reroute: bool = False
    mode: BodyMode | None = None
    metadata: Any = ANY


@dataclass
class Answers:
    status: int
    body: Any = ANY
    headers: Any = field(default_factory=lambda: {"content-type": "application/json", "x-extproc-call-id": CALL})
    reason: Any = ANY
    metadata: Any = ANY


@dataclass
class Emits:
    body: Any
    end: bool = False
    metadata: Any = ANY


@dataclass
class Silence:
    """Nothing to say."""


@dataclass
class Waits:
    """A filter waits; there is no decision yet."""


@dataclass
class Fails:
    """The stream must end with an error."""

    error: type[BaseException]


def seen(decision: Decision | None) -> Any:
    """The decision as a test writes it."""
    match decision:
        case Proceed():
            sets, removes = decision.headers.take_changes() if decision.headers is not None else ({}, set())
            return Proceeds(sets, removes, decision.body, decision.reroute, decision.response_mode, decision.metadata)
        case Answer():
            return Answers(decision.status, decision.body, dict(decision.headers), decision.reason, decision.metadata)
        case Emit():
            return Emits(decision.body, decision.end, decision.metadata)
        case None:
            return Silence()


# --- the dialogue ---------------------------------------------------------------------------------------------


class Playbook:
    """A dialogue with one machine; ``assert`` plays it. After that it can be continued."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._script: list[tuple[str, Any]] = []
        self._asserted = True
        self._waiting: Coroutine[Any, Any, Any] | None = None
        self.decisions: list[Any] = []
        """All decisions so far."""

    def __rshift__(self, said: Any) -> "Playbook":
        self._script.append((">>", said))
        self._asserted = False
        return self

    def __lshift__(self, decided: Any) -> "Playbook":
        self._script.append(("<<", decided))
        self._asserted = False
        return self

    def __bool__(self) -> bool:
        self._asserted = True
        script, self._script = self._script, []
        played: list[tuple[str, Any]] = []
        for side, said in script:
            if side == ">>":
                played.append((side, said))
                played += [("<<", decision) for decision in self._play(said)]
        if [(side, _by_identity(side, said)) for side, said in played] != [
            (side, _by_identity(side, said)) for side, said in script
        ]:
            raise AssertionError("\n" + "\n".join(_diff(script, played)))
        return True

    def __del__(self) -> None:
        if not self._asserted:
            raise AssertionError("a playbook was written but never asserted")

    def say(self, said: Any) -> Any:
        """Play one step outside of a script; the decision, or None where there is none to make."""
        decisions = self._play(said)
        return decisions[0] if decisions else None

    def _play(self, said: Any) -> list[Any]:
        match said:
            case Idle():
                clock, due = getattr(self._machine, "_clock", None), self._machine.idle_timeout
                if due is not None and hasattr(clock, "now"):
                    clock.now += due  # the silence has lasted
                return self._step(self._machine.on_idle())
            case Close():
                self._step(self._machine.close())
                return []
            case Cancel():
                assert self._waiting is not None, "nothing waits"
                waiting, self._waiting = self._waiting, None
                try:
                    waiting.throw(asyncio.CancelledError())
                except asyncio.CancelledError:
                    return []
                raise AssertionError("a filter's wait was cancelled and it went on")
            case Release():
                assert self._waiting is not None, "nothing waits"
                said.gate.open()
                waiting, self._waiting = self._waiting, None
                return self._step(waiting)
            case _:
                assert self._waiting is None, "drivers say one thing at a time"
                return self._step(self._machine.receive(said))

    def _step(self, work: Coroutine[Any, Any, Any]) -> list[Any]:
        decided: Any
        try:
            work.send(None)
        except StopIteration as stop:
            decided = seen(stop.value)
        except Exception as error:  # noqa: BLE001 - shown in the dialogue
            decided = Fails(type(error))
        else:
            self._waiting = work
            decided = Waits()
        self.decisions.append(decided)
        return [decided]


def _by_identity(side: str, said: Any) -> Any:
    return id(said) if side == ">>" else said


def _diff(script: list[tuple[str, Any]], played: list[tuple[str, Any]]) -> Iterable[str]:
    """Lines of the script; those that went otherwise are marked - (expected) and + (what came)."""
    came: list[str] = []
    expected = [_line(*step) for step in script]
    answers = [decided for side, decided in script if side == "<<"]
    for side, said in played:
        if side == "<<" and answers and answers[0] == said:
            came.append(_line(side, answers.pop(0)))  # a matcher prints as itself
        else:
            if side == "<<" and answers:
                answers.pop(0)
            came.append(_line(side, said))
    return difflib.ndiff(expected, came)


def _line(side: str, said: Any) -> str:
    match said:
        case RequestHead() | ResponseHead():
            shown = f"{type(said).__name__}({said.headers!r}, end={said.end}, {dict(said.attributes)})"
        case RequestBody() | ResponseBody() | Trailers():
            shown = repr(said)
        case _:
            shown = repr(said)
    return f"{side} {shown[:600]}"
