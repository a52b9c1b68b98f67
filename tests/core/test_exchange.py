"""A call at the router stage, as a dialogue: how it goes when nobody objects."""

import pytest
from fakes import Clock, Fake, Journal, exchange
from playbook import (
    CALL,
    SETTLED,
    Answers,
    Close,
    Emits,
    Playbook,
    Proceeds,
    answer,
    body,
    local,
    piece,
    request,
    stream,
    whole,
)

from extproc.core.call import Call, Outcome
from extproc.core.exchange import CALL_ID
from extproc.core.filter import Filter, Reply
from extproc.core.messages import (
    BodyMode,
    Trailers,
)

SIGNED = {CALL_ID: CALL}
CHAT = {"model": "gpt", "messages": []}


def test_plain_call() -> None:
    """Head, body, answer head, answer body: all pass as they are, but for the call's id on the answer."""
    journal = Journal()

    assert (
        Playbook(exchange(Fake("outer", journal), Fake("inner", journal), journal=journal))
        >> request()
        << Proceeds(metadata={"call_id": CALL})
        >> body(CHAT)
        << Proceeds(reroute=True, metadata=None)
        >> answer()
        << Proceeds(sets=SIGNED, mode=BodyMode.BUFFERED, metadata=None)
        >> whole({"id": 1})
        << Proceeds(metadata=SETTLED)
        >> Close()
    )
    assert journal.steps == [
        "outer.request_head",
        "inner.request_head",
        "outer.request",
        "inner.request",
        "inner.response_head",
        "outer.response_head",
        "inner.response",
        "outer.response",
        "inner.done",
        "outer.done",
    ]
    assert journal.outcomes == {"outer": [Outcome("completed", 200)], "inner": [Outcome("completed", 200)]}
    assert journal.errors == []


def test_streamed_call() -> None:
    """Each piece of a stream is answered with the events that it completes."""
    journal = Journal()

    assert (
        Playbook(exchange(Fake("outer", journal), Fake("inner", journal), journal=journal))
        >> request()
        << Proceeds()
        >> body(CHAT | {"stream": True})
        << Proceeds(reroute=True)
        >> stream({"content-length": "7"})
        << Proceeds(sets=SIGNED, removes={"content-length"}, mode=BodyMode.STREAMED)
        >> piece(b"data: 1\n\nda")
        << Emits(b"data: 1\n\n")
        >> piece(b"ta: 2\n\n")
        << Emits(b"data: 2\n\n")
        >> piece(b"data: [DONE]\n\n", end=True)
        << Emits(b"data: [DONE]\n\n", end=True)
        >> Close()
    )
    assert journal.steps[6:8] == ["inner.events", "outer.events"]
    assert journal.outcomes["inner"] == [Outcome("completed", 200)]
    assert journal.call.events == 3


def test_stream_that_ends_in_trailers() -> None:
    """Trailers end a stream as the last piece would; what was held back goes before them."""
    journal = Journal()

    assert (
        Playbook(exchange(Fake("f", journal, {"events": "hold"}), journal=journal))
        >> request()
        << Proceeds()
        >> body(CHAT)
        << Proceeds(reroute=True)
        >> stream()
        << Proceeds(sets=SIGNED, removes={"content-length"}, mode=BodyMode.STREAMED)
        >> piece(b"data: 1\n\n: unfinished")
        << Emits(b"")
        >> Trailers()
        << Emits(b"data: 1\n\n: unfinished", end=True)
        >> Close()
    )
    assert journal.outcomes["f"] == [Outcome("completed", 200)]


def test_request_trailers_do_not_end_a_stream() -> None:
    """Only the answer's own trailers are its end."""
    assert (
        Playbook(exchange())
        >> request()
        << Proceeds()
        >> body(CHAT)
        << Proceeds(reroute=True)
        >> stream()
        << Proceeds(sets=SIGNED, removes={"content-length"}, mode=BodyMode.STREAMED)
        >> Trailers(response=False)
        << Proceeds()
        >> piece(b"data: 1\n\n", end=True)
        << Emits(b"data: 1\n\n", end=True)
    )


@pytest.mark.parametrize("before", [0, 1, 2])
def test_trailers_elsewhere_pass(before: int) -> None:
    """Trailers of the request, and of a buffered answer, change nothing."""
    playbook = Playbook(exchange())
    for message in [request(), body(CHAT), answer()][: before + 1]:
        playbook.say(message)

    assert playbook >> Trailers(response=before == 2) << Proceeds()


@pytest.mark.parametrize(
    "kind", ["application/json", "application/problem+json; charset=utf-8", "Application/JSON", ""]
)
def test_json_answers_are_read_whole(kind: str) -> None:
    """JSON, by any name of it, and answers that do not say what they are, come to us whole."""
    playbook = Playbook(exchange())
    playbook.say(request())
    playbook.say(body(CHAT))

    assert playbook >> answer(200, kind) << Proceeds(sets=SIGNED, mode=BodyMode.BUFFERED)


@pytest.mark.parametrize("kind", ["audio/mpeg", "text/html", "application/octet-stream"])
def test_other_answers_pass_unseen(kind: str) -> None:
    """What is neither JSON nor a stream of events passes without us; the call is completed at its head."""
    journal = Journal()
    playbook = Playbook(exchange(Fake("f", journal), journal=journal))
    playbook.say(request())
    playbook.say(body(CHAT))

    assert playbook >> answer(200, kind) << Proceeds(sets=SIGNED, mode=BodyMode.NONE) >> Close()
    assert journal.outcomes["f"] == [Outcome("completed", 200)]


@pytest.mark.parametrize("kind", ["text/event-stream", "text/html", "application/json"])
def test_errors_are_read_whole(kind: str) -> None:
    """An error of a provider comes to us whole, whatever it calls itself."""
    playbook = Playbook(exchange())
    playbook.say(request())
    playbook.say(body(CHAT))

    assert playbook >> answer(500, kind) << Proceeds(sets=SIGNED, mode=BodyMode.BUFFERED)


@pytest.mark.parametrize("status", [200, 401, 500])
def test_answer_without_body(status: int) -> None:
    """An answer without a body is whole at its head: filters judge it there, as they judge any."""
    journal = Journal()
    playbook = Playbook(exchange(Fake("f", journal), journal=journal))
    playbook.say(request())
    playbook.say(body(CHAT))

    assert playbook >> answer(status, end=True) << Proceeds(sets=SIGNED, mode=BodyMode.NONE) >> Close()
    assert journal.steps[2:] == ["f.response_head", "f.response", "f.done"]
    assert journal.outcomes["f"] == [Outcome("completed", status)]


def test_what_filters_change_is_sent() -> None:
    """Headers, body and metadata that filters change travel with the next decision, and once only."""

    def at_head(call: Call) -> None:
        call.headers["x-added"] = "1"
        call.headers.remove("x-gone")
        call.metadata["who"] = "acme"

    def at_request(call: Call) -> None:
        assert call.document is not None
        call.document.set("model", "other")
        call.metadata["model"] = "other"

    def at_response_head(call: Call) -> None:
        assert call.answered is not None
        call.answered.headers["x-cache"] = "miss"

    def at_response(call: Call) -> None:
        call.answer = b'{"changed": true}'
        call.metadata["tokens"] = 3

    journal = Journal()
    acts = {
        "request_head": at_head,
        "request": at_request,
        "response_head": at_response_head,
        "response": at_response,
    }
    changed = b'{"model":"other", "x":  1}'
    assert (
        Playbook(exchange(Fake("f", journal, acts), journal=journal))
        >> request(headers={"x-gone": "1"})
        << Proceeds(sets={"x-added": "1"}, removes={"x-gone"}, metadata={"call_id": CALL, "who": "acme"})
        >> body(b'{"model":"gpt", "x":  1}')
        << Proceeds(sets={"content-length": str(len(changed))}, body=changed, reroute=True, metadata={"model": "other"})
        >> answer(headers={"content-encoding": "identity"})
        << Proceeds(sets=SIGNED | {"x-cache": "miss"}, mode=BodyMode.BUFFERED, metadata=None)
        >> whole({"id": 1})
        << Proceeds(
            sets={"content-length": "17"},
            removes={"content-encoding"},
            body=b'{"changed": true}',
            metadata={"tokens": 3} | SETTLED,
        )
    )


def test_metadata_of_a_stream_goes_with_its_pieces() -> None:
    """What is known in the middle of a stream is told there, even where no bytes are ready."""
    journal = Journal()

    def at_events(call: Call) -> str:
        call.metadata["tokens"] = call.events
        return "hold"

    playbook = Playbook(exchange(Fake("f", journal, {"events": at_events}), journal=journal))
    for message in (request(), body(CHAT), stream()):
        playbook.say(message)

    assert playbook >> piece(b"data: 1\n\n") << Emits(b"", metadata={"tokens": 1})


# --- replies of our own ---------------------------------------------------------------------------------------

REPLY = Reply(b'{"cached": 1}', headers={"content-type": "application/json", "age": "3"})


@pytest.mark.parametrize("phase", ["request_head", "request"])
def test_reply(phase: str) -> None:
    """A reply passes the filters outside the one that made it, and no others; then it is sent."""
    journal = Journal()
    plugins = [Fake("outer", journal), Fake("cache", journal, {phase: REPLY}), Fake("inner", journal)]
    playbook = Playbook(exchange(*plugins, journal=journal))
    if phase == "request":
        playbook.say(request())
        journal.steps.clear()

    assert (
        playbook
        >> (request() if phase == "request_head" else body(CHAT))
        << Answers(200, REPLY.body, {**REPLY.headers, CALL_ID: CALL}, "extproc_reply")
        >> Close()
    )
    assert journal.steps == [
        f"outer.{phase}",
        f"cache.{phase}",
        "outer.response",
        "inner.done",
        "cache.done",
        "outer.done",
    ]
    assert journal.outcomes == {name: [Outcome("replied", 200)] for name in ("outer", "cache", "inner")}


def test_outer_filter_changes_a_reply() -> None:
    """A filter outside judges the reply like any answer and may change it."""
    journal = Journal()

    def mask(call: Call) -> None:
        call.answer = call.answer.replace(b"1", b"*")

    plugins = [Fake("outer", journal, {"response": mask}), Fake("cache", journal, {"request_head": REPLY})]
    assert Playbook(exchange(*plugins)) >> request() << Answers(200, b'{"cached": *}', {**REPLY.headers, CALL_ID: CALL})


def test_reply_to_a_request_without_body() -> None:
    """A reply at the head needs no body; its own passage through Envoy's answer phases is let alone."""
    journal = Journal()
    assert (
        Playbook(exchange(Fake("f", journal, {"request_head": REPLY}), journal=journal))
        >> request("GET", end=True)
        << Answers(200, REPLY.body, {**REPLY.headers, CALL_ID: CALL})
        >> local(200, "extproc_reply")
        << Proceeds()
        >> Close()
    )
    assert journal.outcomes["f"] == [Outcome("replied", 200)]
    assert journal.steps == ["f.request_head", "f.done"]


# --- replies of Envoy's own -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "details", "before", "outcome"),
    [
        (413, "request_payload_too_large", 1, Outcome("refused", 413, "request_payload_too_large")),
        (503, "no_healthy_upstream", 2, Outcome("failed", 503, "no_healthy_upstream")),
        (504, "response_timeout", 2, Outcome("failed", 504, "response_timeout")),
        (503, "upstream_reset{127.0.0.1:9}", 2, Outcome("failed", 503, "upstream_reset")),
    ],
)
def test_local_reply_of_envoy(status: int, details: str, before: int, outcome: Outcome) -> None:
    """Envoy's own answer, which may come while we still wait for the body, gets our id and passes unread."""
    journal = Journal()
    playbook = Playbook(exchange(Fake("f", journal), journal=journal))
    for message in [request(), body(CHAT)][:before]:
        playbook.say(message)

    assert playbook >> local(status, details) << Proceeds(sets=SIGNED, mode=BodyMode.NONE) >> Close()
    assert journal.outcomes["f"] == [outcome]
    assert "f.response" not in journal.steps


def test_local_reply_before_the_request() -> None:
    """Envoy refuses some requests before we see them: no call of ours, nothing to settle."""
    journal = Journal()

    assert Playbook(exchange(Fake("f", journal))) >> local(400, "http1.codec_error") << Proceeds() >> Close()
    assert journal.steps == []


# --- headers that are ours alone ------------------------------------------------------------------------------


def test_internal_headers_are_removed() -> None:
    """A client's or a provider's own x-extproc-* headers are gone before a filter reads them."""
    journal = Journal()
    seen: list[list[str]] = []

    def look(call: Call) -> None:
        seen.append([name for name in (call.answered or call).headers if name.startswith("x-extproc-")])

    acts = {"request_head": look, "response_head": look}
    assert (
        Playbook(exchange(Fake("f", journal, acts), journal=journal))
        >> request(headers={"x-extproc-model": "spoofed", "x-extproc-call-id": "mine", "x-extproc": "is not ours"})
        << Proceeds(removes={"x-extproc-model", "x-extproc-call-id"})
        >> body(CHAT)
        << Proceeds(reroute=True)
        >> answer(headers={"x-extproc-cache": "hit", CALL_ID: "theirs"})
        << Proceeds(sets=SIGNED, removes={"x-extproc-cache"}, mode=BodyMode.BUFFERED)
    )
    assert seen == [[], []]
    assert CALL not in ("mine", "theirs")


# --- times ----------------------------------------------------------------------------------------------------


def test_own_time_is_ours_alone() -> None:
    """Own seconds are those inside of receive; the first byte is when the answer's head came."""
    journal, clock = Journal(), Clock(100.0)

    def work(call: Call) -> None:
        clock.now += 0.5

    acts = {"request_head": work, "request": work, "response_head": work}
    playbook = Playbook(exchange(Fake("f", journal, acts), journal=journal, clock=clock))
    for message in (request(), body(CHAT), answer()):
        playbook.say(message)
        clock.now += 10

    assert journal.call.own_seconds == 1.5
    assert journal.call.first_byte_at == 121.0


def test_filters_that_override_nothing() -> None:
    """A filter without a word to say is as good as none."""

    class Mute(Fake):
        def open(self, call: Call) -> Filter:
            del call
            return Filter()

    journal = Journal()
    playbook = Playbook(exchange(Mute("mute", journal), Fake("absent", journal, concerned=False)))
    for message in (request(), body(CHAT), answer()):
        playbook.say(message)

    assert playbook >> whole({"id": 1}) << Proceeds() >> Close()
    assert journal.steps == []
