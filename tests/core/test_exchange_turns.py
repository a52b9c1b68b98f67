"""Messages out of turn, and the playbook itself."""

import pytest
from fakes import Fake, Journal, exchange
from playbook import (
    Close,
    Emits,
    Fails,
    Playbook,
    Proceeds,
    Waits,
    answer,
    body,
    piece,
    request,
    stream,
    whole,
)

from extproc.core.errors import ProtocolError
from extproc.core.exchange import TURNS, State
from extproc.core.messages import (
    Message,
    RequestBody,
    RequestHead,
    ResponseBody,
    ResponseHead,
    Trailers,
)

CHAT = {"model": "gpt", "messages": []}

MESSAGES: dict[type[Message], Message] = {
    RequestHead: request(),
    RequestBody: body(CHAT),
    ResponseHead: answer(),
    ResponseBody: whole({}),
    Trailers: Trailers(),
}
WAYS: dict[State, list[Message]] = {
    State.REQUEST_HEAD: [],
    State.REQUEST_BODY: [request()],
    State.RESPONSE_HEAD: [request(), body(CHAT)],
    State.RESPONSE_WHOLE: [request(), body(CHAT), answer()],
    State.RESPONSE_STREAM: [request(), body(CHAT), stream()],
    State.OVER: [request(), body(CHAT), answer(), whole({})],
}


def fresh(message: Message) -> Message:
    """The message with headers of its own."""
    match message:
        case RequestHead():
            return request()
        case ResponseHead(headers=headers):
            return answer(200, headers.get("content-type"))
        case _:
            return message


def in_state(state: State, *plugins: Fake) -> Playbook:
    playbook = Playbook(exchange(*plugins))
    for message in WAYS[state]:
        playbook.say(fresh(message))
    return playbook


def test_every_state_is_tested() -> None:
    """The tables below leave no state and no message out."""
    assert set(WAYS) == set(State) == set(TURNS)
    assert {kind for turn in TURNS.values() for kind in turn} == set(MESSAGES)


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("state", State, ids=lambda state: state.name)
def test_turns(state: State, kind: type[Message]) -> None:
    """In each state the messages of its turn get a decision, and any other is a protocol error."""
    playbook = in_state(state)

    decision = playbook.say(fresh(MESSAGES[kind]))

    assert (decision == Fails(ProtocolError)) == (kind not in TURNS[state])


@pytest.mark.parametrize("state", State, ids=lambda state: state.name)
def test_wrong_turn_still_settles(state: State) -> None:
    """After a protocol error the driver closes; every filter is done once all the same."""
    journal = Journal()
    playbook = in_state(state, Fake("f", journal))
    wrong = next(kind for kind in MESSAGES if kind not in TURNS[state])

    assert playbook >> fresh(MESSAGES[wrong]) << Fails(ProtocolError) >> Close()
    assert len(journal.outcomes.get("f", [])) == (state is not State.REQUEST_HEAD)


def test_nothing_is_left_after_close() -> None:
    """A closed exchange has nothing to say: not to silence, not to a second close, not to a new request."""
    journal = Journal()
    machine = exchange(Fake("f", journal), journal=journal)
    playbook = Playbook(machine)
    for said in (request(), body(CHAT), stream(), Close(), Close()):
        playbook.say(said)

    assert machine.idle_timeout is None
    assert playbook >> piece(b"data: late\n\n") << Emits(b"") >> request() << Fails(ProtocolError)
    assert len(journal.outcomes["f"]) == 1


# --- playbooks ----------------------------------------------------------------------------------------------


def test_playbook_shows_what_differs() -> None:
    """A dialogue that goes otherwise fails with the lines that differ."""
    with pytest.raises(AssertionError) as failure:
        assert Playbook(exchange()) >> request() << Fails(ValueError) >> body({"model": "gpt"}) << Waits()

    lines = str(failure.value).splitlines()
    assert any(line.startswith("- << Fails(") for line in lines)
    assert any(line.startswith("+ << Proceeds(") for line in lines)
    assert any(line.startswith("  >> RequestBody(") for line in lines)


def test_playbook_must_be_asserted() -> None:
    """A dialogue that was only written down is a failure of its test."""
    playbook = Playbook(exchange()) >> request()

    with pytest.raises(AssertionError, match="never asserted"):
        playbook.__del__()
    assert playbook << Proceeds()
