"""Refusals and bugs at every phase of a call: nothing passes, and the client reads why in its own dialect."""

import pytest
from fakes import MAX_ANSWER, Boom, Fake, Journal, exchange
from playbook import (
    CALL,
    Answers,
    Close,
    Emits,
    Error,
    Idle,
    Including,
    Playbook,
    Proceeds,
    Silence,
    answer,
    body,
    local,
    piece,
    request,
    stream,
    whole,
)

from extproc.core.call import Outcome
from extproc.core.errors import PolicyUnavailable, Refusal
from extproc.core.exchange import CALL_ID
from extproc.core.filter import Reply
from extproc.core.messages import BodyMode, Message


class TooFast(Refusal):
    status, type, code = 429, "rate_limit_error", "rate_limit_exceeded"


PATHS = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages"}
CODES = {
    "openai": {"refusal": "rate_limit_exceeded", "bug": "policy_unavailable"},
    "anthropic": {"refusal": "rate_limit_error", "bug": "overloaded_error"},
}
WHOLE_PHASES = ["request_head", "request", "response_head", "response"]


def dialogue(path: str) -> list[Message]:
    return [request(path=path), body({"model": "gpt", "max_tokens": 1, "messages": []}), answer(), whole({"id": 1})]


@pytest.mark.parametrize("dialect", PATHS)
@pytest.mark.parametrize("phase", WHOLE_PHASES)
def test_refusal(phase: str, dialect: str) -> None:
    """A refusal at any phase before the answer went out is the answer, with its status, headers and words."""
    journal = Journal()
    refusal = TooFast("Slow down.", headers={"retry-after": "7"})
    plugins = [Fake("outer", journal), Fake("f", journal, {phase: refusal}), Fake("inner", journal)]
    playbook = Playbook(exchange(*plugins, journal=journal))
    step = WHOLE_PHASES.index(phase)
    messages = dialogue(PATHS[dialect])
    for message in messages[:step]:
        playbook.say(message)

    assert (
        playbook
        >> messages[step]
        << Answers(
            429,
            Error(CODES[dialect]["refusal"], message="Slow down.", dialect=dialect),
            {"content-type": "application/json", "retry-after": "7", CALL_ID: CALL},
            "extproc_rate_limit_exceeded",
        )
        >> local(429, "extproc_rate_limit_exceeded")
        << Proceeds()
        >> Close()
    )
    assert journal.errors == []
    assert set(journal.outcomes) == {"outer", "f", "inner"}
    assert all(o == [Outcome("refused", 429, "rate_limit_exceeded")] for o in journal.outcomes.values())
    later = "inner" if step < 2 else "outer"
    assert f"{later}.{phase}" not in journal.steps


@pytest.mark.parametrize("dialect", PATHS)
@pytest.mark.parametrize("phase", WHOLE_PHASES)
def test_bug(phase: str, dialect: str) -> None:
    """A filter that breaks refuses the call with a 503 that says nothing of what broke; it is reported to us."""
    journal = Journal()
    bug = Boom()
    playbook = Playbook(exchange(Fake("f", journal, {phase: bug}), journal=journal))
    step = WHOLE_PHASES.index(phase)
    messages = dialogue(PATHS[dialect])
    for message in messages[:step]:
        playbook.say(message)

    assert (
        playbook
        >> messages[step]
        << Answers(503, Error(CODES[dialect]["bug"], dialect=dialect), reason="extproc_policy_unavailable")
        >> Close()
    )
    assert b"boom" not in playbook.decisions[-2].body
    assert journal.errors == [(CALL, bug)]
    assert journal.outcomes == {"f": [Outcome("failed", 503, "policy_unavailable")]}


@pytest.mark.parametrize("phase", ["request_head", "request"])
@pytest.mark.parametrize(
    ("error", "status", "outcome"),
    [
        (TooFast("No."), 429, Outcome("refused", 429, "rate_limit_exceeded")),
        (Boom(), 503, Outcome("failed", 503, "policy_unavailable")),
    ],
)
def test_reply_is_refused(phase: str, error: Exception, status: int, outcome: Outcome) -> None:
    """A filter that refuses or breaks over a reply of ours keeps it from the client."""
    journal = Journal()
    plugins = [
        Fake("outer", journal, {"response": error}),
        Fake("cache", journal, {phase: Reply(b'{"secret": 1}')}),
    ]
    playbook = Playbook(exchange(*plugins, journal=journal))
    messages = dialogue(PATHS["openai"])
    for message in messages[: WHOLE_PHASES.index(phase)]:
        playbook.say(message)

    assert playbook >> messages[WHOLE_PHASES.index(phase)] << Answers(status, Error(outcome.code)) >> Close()
    assert journal.outcomes["outer"] == journal.outcomes["cache"] == [outcome]


def test_refusal_of_ours_counts_as_failed() -> None:
    """A refusal whose source is us is no fault of the caller's: the call has failed."""
    journal = Journal()
    refusal = PolicyUnavailable("The moderator is away.")

    assert (
        Playbook(exchange(Fake("f", journal, {"request_head": refusal}), journal=journal))
        >> request()
        << Answers(503, Error("policy_unavailable", message="The moderator is away."))
        >> Close()
    )
    assert journal.outcomes["f"] == [Outcome("failed", 503, "policy_unavailable")]
    assert journal.errors == []


def test_refusal_at_the_head_of_a_stream() -> None:
    """Before a stream has begun, a refusal is still an ordinary answer."""
    journal = Journal()
    playbook = Playbook(exchange(Fake("f", journal, {"response_head": TooFast("No.")}), journal=journal))
    playbook.say(request())
    playbook.say(body({"model": "gpt"}))

    assert playbook >> stream() << Answers(429, Error("rate_limit_exceeded"))


def test_refusal_carries_metadata() -> None:
    """What was known when the call was refused is told to Envoy's access log."""
    journal = Journal()

    assert (
        Playbook(exchange(Fake("f", journal, {"request_head": TooFast("No.")})))
        >> request()
        << Answers(429, metadata={"call_id": CALL, "settled": "yes"})
    )


def test_unknown_encoding_is_refused() -> None:
    """An answer compressed in a way that we cannot read does not pass."""
    journal = Journal()
    answers: list[list[Message]] = [
        [stream({"content-encoding": "br"})],
        [answer(headers={"content-encoding": "zstd"}), whole({})],
    ]
    for messages in answers:
        playbook = Playbook(exchange(Fake("f", journal), journal=journal))
        for message in (request(), body({"model": "gpt"}), *messages):
            playbook.say(message)

        assert playbook.decisions[-1] == Answers(502, Error("provider_error", message="compressed"))
    assert journal.errors == []


# --- in the middle of a stream --------------------------------------------------------------------------------


def streaming(path: str, *plugins: Fake, journal: Journal) -> Playbook:
    playbook = Playbook(exchange(*plugins, journal=journal))
    for message in (request(path=path), body({"model": "gpt", "stream": True}), stream()):
        playbook.say(message)
    return playbook


FAREWELL = {
    "/v1/chat/completions": (b'data: {"error":{"message":', b"data: [DONE]\n\n"),
    "/v1/responses": (b'event: error\ndata: {"type":"error"', b'"sequence_number":0}\n\n'),
    "/v1/messages": (b'event: error\ndata: {"type":"error","error":{"type":', b"}}\n\n"),
}


@pytest.mark.parametrize("path", FAREWELL)
@pytest.mark.parametrize("end", [False, True])
@pytest.mark.parametrize(
    ("error", "code", "reported"), [(TooFast("No."), "rate_limit_exceeded", 0), (Boom(), "policy_unavailable", 1)]
)
def test_stream_is_cut(path: str, end: bool, error: Exception, code: str, reported: int) -> None:
    """A filter that objects in a stream ends it with an error event of the dialect; nothing of the piece passes."""
    journal = Journal()
    playbook = streaming(path, Fake("f", journal, {"events": error}), journal=journal)
    opening, ending = FAREWELL[path]

    assert playbook >> piece(b"data: forbidden\n\n", end=end) << Emits(Including(opening), end=True) >> Close()

    said = playbook.decisions[-2].body
    assert said.startswith(opening)
    assert said.endswith(ending)
    assert b"forbidden" not in said
    assert b"boom" not in said
    assert len(journal.errors) == reported
    assert journal.outcomes["f"] == [Outcome("failed", 200, code)]


def test_what_was_held_back_is_not_said_after_a_cut() -> None:
    """Events that a filter held back stay unsaid when another one objects."""
    journal = Journal()
    seen = []

    def second(call: object) -> None:
        seen.append(call)
        if len(seen) == 2:
            raise TooFast("No.")

    plugins = [Fake("outer", journal, {"events": second}), Fake("inner", journal, {"events": "hold"})]
    playbook = streaming("/v1/messages", *plugins, journal=journal)

    assert (
        playbook
        >> piece(b"data: held\n\n")
        << Emits(b"")
        >> piece(b"data: also\n\n")
        << Emits(Including(b"event: error"), end=True)
    )
    assert b"held" not in playbook.decisions[-1].body


def test_bytes_after_a_cut_are_swallowed() -> None:
    """What the provider sends after we ended its stream reaches nobody, and no filter."""
    journal = Journal()
    playbook = streaming("/v1/messages", Fake("f", journal, {"events": Boom()}), journal=journal)
    playbook.say(piece(b"data: 1\n\n"))
    steps = list(journal.steps)

    assert (
        playbook
        >> piece(b"data: 2\n\n")
        << Emits(b"")
        >> piece(b"data: 3\n\n", end=True)
        << Emits(b"", end=True)
        >> Idle()
        << Silence()
        >> Close()
    )
    assert journal.steps == [*steps, "f.done"]


# --- silence --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FAREWELL)
def test_silent_provider(path: str) -> None:
    """A stream that falls silent ends with an error event; whole events that were held go before it."""
    journal = Journal()
    playbook = streaming(path, Fake("f", journal, {"events": "hold"}), journal=journal)

    assert (
        playbook
        >> piece(b"data: held\n\ndata: half an ev")
        << Emits(b"")
        >> Idle()
        << Emits(Including(b"The provider stopped"), end=True)
        >> piece(b"ent\n\n")
        << Emits(b"")
        >> Close()
    )
    said = playbook.decisions[-3].body
    assert said.startswith(b"data: held\n\n" + FAREWELL[path][0])
    assert b"half an ev" not in said
    assert journal.outcomes["f"] == [Outcome("failed", 200, "provider_timeout")]


@pytest.mark.parametrize("error", [Boom(), TooFast("No.")])
def test_silent_provider_and_a_filter_that_objects(error: Exception) -> None:
    """Where what was held may not be said, the error event comes alone."""
    journal = Journal()
    playbook = streaming("/v1/messages", Fake("f", journal, {"events": error}), journal=journal)

    assert playbook >> Idle() << Emits(Including(b"event: error"), end=True) >> Close()
    assert journal.errors == [(CALL, error)]
    assert journal.outcomes["f"] == [Outcome("failed", 200, "provider_timeout")]


@pytest.mark.parametrize("said", range(4))
def test_silence_outside_a_stream(said: int) -> None:
    """Silence before, after and without a stream is not ours to end."""
    journal = Journal()
    playbook = Playbook(exchange(Fake("f", journal)))
    for message in dialogue(PATHS["openai"])[:said]:
        playbook.say(message)

    assert playbook >> Idle() << Silence()


def test_error_event_is_numbered() -> None:
    """Where events are numbered, the error event has the next number."""
    playbook = streaming("/v1/responses", journal=Journal())
    event = b'data: {"type":"response.created","sequence_number":41}\n\n'

    assert playbook >> piece(event) << Emits(event) >> Idle() << Emits(Including(b'"sequence_number":42'), end=True)


def test_modes_are_given_with_the_head_only() -> None:
    """No decision but the one on the answer's head chooses how its body comes."""
    playbook = Playbook(exchange())
    for message in dialogue(PATHS["openai"]):
        playbook.say(message)

    assert [decision.mode for decision in playbook.decisions] == [None, None, BodyMode.BUFFERED, None]


@pytest.mark.parametrize(("kind", "mode"), [("application/json", None), ("audio/mpeg", BodyMode.NONE)])
def test_answer_that_says_it_is_too_big(kind: str, mode: BodyMode | None) -> None:
    """What must be read whole and would not fit is refused at once; what passes unseen may be of any size."""
    playbook = Playbook(exchange())
    playbook.say(request())
    playbook.say(body({"model": "gpt", "messages": []}))
    expected = (
        Answers(502, Error("provider_error", message="larger"))
        if mode is None
        else Proceeds(sets={CALL_ID: CALL}, mode=mode)
    )

    assert playbook >> answer(kind=kind, headers={"content-length": str(MAX_ANSWER + 1)}) << expected


def test_answer_that_just_fits() -> None:
    """An answer of exactly the limit is read."""
    playbook = Playbook(exchange())
    playbook.say(request())
    playbook.say(body({"model": "gpt", "messages": []}))

    head = answer(headers={"content-length": str(MAX_ANSWER)})

    assert playbook >> head << Proceeds(sets={CALL_ID: CALL}, mode=BodyMode.BUFFERED)
