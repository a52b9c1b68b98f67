"""One trace of every call."""

import pytest
from fakes import Boom, Fake, Journal, exchange
from playbook import Close, Playbook, answer, body, request, whole

from extproc.core.call import Call, Outcome
from extproc.core.filter import Reply
from extproc.filters.audit import AuditPlugin


@pytest.mark.parametrize(
    ("acts", "outcome"),
    [
        ({}, Outcome("completed", 200)),
        ({"request": Reply(b"{}")}, Outcome("replied", 200)),
        ({"request_head": Boom()}, Outcome("failed", 503, "policy_unavailable")),
        ({"done": Boom()}, Outcome("completed", 200)),
    ],
)
def test_once(acts: dict[str, object], outcome: Outcome) -> None:
    """A call is observed once, when it is over, with its outcome, whatever the filters inside did."""
    seen: list[tuple[Call, Outcome]] = []
    journal = Journal()
    audit = AuditPlugin(lambda call, how: seen.append((call, how)))
    playbook = Playbook(exchange(audit, Fake("inner", journal, acts), journal=journal))
    for message in (request(), body({"model": "gpt"}), answer(), whole({})):
        playbook.say(message)
    assert seen == []

    playbook.say(Close())
    playbook.say(Close())

    assert seen == [(journal.call, outcome)]
    assert len(journal.outcomes["inner"]) == 1
