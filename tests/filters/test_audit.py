"""One trace and one record of every call."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from fakes import MODELS, Boom, Clock, Fake, Gateway, Journal, exchange, opening
from playbook import KEY, Close, Playbook, answer, body, piece, request, stream, whole

from extproc.audit.record import Record, TextForm, digest
from extproc.core.call import Call, Outcome, Verdict
from extproc.core.exchange import Exchange
from extproc.core.filter import Reply
from extproc.filters.audit import AuditPlugin
from extproc.moderation.personal import PersonalData

PHONE = "13812345678"
ASKED = {
    "model": "gpt",
    "user": "u-7",
    "metadata": {"team": "x"},
    "messages": [{"role": "user", "content": f"call {PHONE}"}],
}
SAID = {"choices": [{"index": 0, "message": {"content": f"I call {PHONE}", "reasoning_content": "hm"}}]}
AUTH = {"authorization": f"Bearer {KEY}"}


def plugin(
    seen: list[tuple[Call, Outcome]] | None = None, put: list[Record] | None = None, form: TextForm = "none"
) -> AuditPlugin:
    return AuditPlugin(
        lambda call, how: (seen if seen is not None else []).append((call, how)),
        put=(put if put is not None else []).append,
        form=lambda call: form,
        policy=lambda call: "strict",
        private=[PersonalData(["phone"])],
        clock=Clock(1002.5),
        currency="CNY",
    )


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
    records: list[Record] = []
    journal = Journal()
    playbook = Playbook(exchange(plugin(seen, records), Fake("inner", journal, acts), journal=journal))
    for message in (request(), body({"model": "gpt"}), answer(), whole({})):
        playbook.say(message)
    assert seen == []

    playbook.say(Close())
    playbook.say(Close())

    assert seen == [(journal.call, outcome)]
    assert len(journal.outcomes["inner"]) == 1
    assert records == []  # it was nobody's call


async def recorded(form: TextForm, *messages: Any, inner: Sequence[Fake] = ()) -> Record:
    """The record of a call through the product's chain."""
    records: list[Record] = []
    _, *rest = Gateway().plugins()
    made = opening([plugin(None, records, form), *inner, *rest], Journal(), Clock())
    machine = Exchange(made, clock=Clock(), on_error=lambda call, error: None, max_answer=1 << 20)
    for message in messages:
        await machine.receive(message)
    await machine.close()
    (record,) = records
    return record


def messages_of_a_call() -> list[Any]:
    return [request(headers=AUTH), body(ASKED), answer(), whole(SAID)]


async def test_what_a_record_says() -> None:
    """Who, what, where, how it ended and how long it took; and what the client said of itself."""
    verdict = Verdict("request", "pii", "phone", "flag", 0.9, "messages[0].content", 5, 16, "mobile")
    flags = Fake("f", Journal(), {"request": lambda call: call.verdicts.append(verdict)})
    record = await recorded("none", *messages_of_a_call(), inner=[flags])

    assert (record.consumer, record.model, record.endpoint, record.provider) == ("acme", "gpt", "chat", "alpha")
    assert (record.how, record.status, record.policy, record.currency) == ("completed", 200, "strict", "CNY")
    assert (record.user, record.metadata, record.seconds) == ("u-7", {"team": "x"}, 2.5)
    assert [(v.check, v.category, v.action, v.start, v.what) for v in record.verdicts] == [
        ("pii", "phone", "flag", 5, "mobile")
    ]
    assert (record.text, record.request, record.answer) == ("none", [], [])


async def test_texts_in_full() -> None:
    """As they came and as they went, also where moderation changed what the provider saw."""

    def change(call: Call) -> None:
        assert call.document is not None
        call.document.set("messages", [{"role": "user", "content": "masked"}])

    record = await recorded("full", *messages_of_a_call(), inner=[Fake("f", Journal(), {"request": change})])

    assert [(m.role, m.text) for m in record.request] == [("user", f"call {PHONE}")]
    assert {(m.role, m.text) for m in record.answer} == {("content", f"I call {PHONE}"), ("reasoning", "hm")}


async def test_texts_masked() -> None:
    """Personal data is masked, also where no policy masks it on its way."""
    record = await recorded("masked", *messages_of_a_call())

    assert [m.text for m in record.request] == ["call [PHONE]"]
    assert "I call [PHONE]" in [m.text for m in record.answer]


async def test_digests() -> None:
    """Only what tells whether a text is the same."""
    record = await recorded("digest", *messages_of_a_call())

    assert [(m.text, m.digest) for m in record.request] == [("", digest(f"call {PHONE}"))]


async def test_streams_and_cut_calls() -> None:
    """What passed is kept, whoever left when."""
    said = b"".join(
        b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": word}}]}).encode() + b"\n\n"
        for word in ("one ", "two ", "three")
    )
    record = await recorded("full", request(headers=AUTH), body(ASKED | {"stream": True}), stream(), piece(said))

    assert (record.how, [m.text for m in record.answer]) == ("aborted", ["one two three"])
    record = await recorded("full", request(headers=AUTH), body(ASKED | {"model": "nothing"}))
    assert (record.how, record.code, record.model, len(record.request)) == ("refused", "model_not_found", "", 1)
    assert "gpt" in MODELS
