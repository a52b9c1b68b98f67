"""No key is seen where things are printed."""

import copy
import io
import pickle
import sys
import traceback
from typing import Any

import pytest
import structlog
from fakes import PROVIDER_KEY, Clock, Fake, Gateway, Journal, exchange
from playbook import KEY, Close, Playbook, answer, body, request, whole

from extproc.core.attempt import Attempt
from extproc.core.call import Call, Outcome
from extproc.core.errors import Refusal
from extproc.core.messages import Headers, Proceed
from extproc.core.secret import Secret
from extproc.dialects.document import Document
from extproc.dialects.endpoints import CHAT
from extproc.filters.credentials import CredentialsFilter, TargetFilter
from extproc.providers.pool import Pools
from extproc.providers.provider import Provider
from extproc.telemetry import calls, log

KEYS = (KEY, PROVIDER_KEY)


def shown(thing: object) -> str:
    return f"{thing!r} {thing!s} {thing} {[thing]} {format(thing)}"


def assert_no_key(text: str) -> None:
    assert not any(key in text for key in KEYS)


def test_secret() -> None:
    """A secret shows nothing of itself, and only gives itself away when told to."""
    secret = Secret(PROVIDER_KEY)

    assert_no_key(shown(secret))
    assert not hasattr(secret, "__dict__")
    assert secret.reveal() == PROVIDER_KEY
    assert bool(secret)
    assert not Secret("")


def test_secrets_compare() -> None:
    """Secrets are equal where their texts are, and never equal to the text."""
    assert Secret("a") == Secret("a") != Secret("b")
    assert len({Secret("a"), Secret("a"), Secret("b")}) == 2
    assert Secret("a") != "a"
    assert Secret("é") == Secret("é")


@pytest.mark.parametrize("copier", [pickle.dumps, copy.copy, copy.deepcopy])
def test_secret_does_not_travel(copier: Any) -> None:
    """A secret is not written elsewhere by the way."""
    with pytest.raises(TypeError, match="secret"):
        copier(Secret(PROVIDER_KEY))


POOL = Pools(Clock()).pool("alpha", [(Secret(PROVIDER_KEY), 1, "first")])


def provider() -> Provider:
    return Provider.build("alpha", base_url="https://alpha.example/v1", keys=[Secret(PROVIDER_KEY)])


async def attempted() -> Attempt:
    headers = Headers([("authorization", f"Bearer {KEY}")])
    this = Attempt("call-1", "gpt", CHAT, "", "alpha", "m", 1, Document.parse(b'{"model":"gpt"}'), headers)
    for each in (TargetFilter({"alpha": provider()}), CredentialsFilter({"alpha": provider()}, {"alpha": POOL})):
        await each.on_attempt(this)
    assert PROVIDER_KEY in headers["authorization"]
    return this


async def test_things_of_a_call() -> None:
    """Heads, headers, attempts, providers, pools, decisions: none shows a key that is in it."""
    head = request(headers={"authorization": f"Bearer {KEY}"})
    attempt = await attempted()

    pools = (POOL.keys, POOL.state(0.0), POOL.pick("acme"))
    for thing in (head, head.headers, attempt, attempt.headers, provider(), pools, Proceed(headers=attempt.headers)):
        assert_no_key(shown(thing))


@pytest.mark.parametrize("key", [KEY, PROVIDER_KEY])
def test_call(key: str) -> None:
    """A call shows no key at any step, nor do the exceptions of its filters."""
    gateway = Gateway()
    playbook = Playbook(gateway.exchange())
    for said in (request(headers={"authorization": f"Bearer {key}", "x-api-key": "x" * 20}), Close()):
        playbook.say(said)
        assert_no_key(shown(gateway.journal.call) + shown(playbook.decisions))

    playbook = Playbook(gateway.exchange())
    leak = answer(401)
    for message in (request(headers={"api-key": KEY}), body({"model": "gpt"}), leak, whole({"error": {}})):
        playbook.say(message)
        assert_no_key(shown(gateway.journal.call) + shown(playbook.decisions))


class Leaky(Exception):  # noqa: N818
    """A bug at a place where keys are at hand."""


def break_with_keys_at_hand(call: Call) -> None:
    keys = KEYS
    raise Leaky(f"{len(keys)} keys and {call!r}")


@pytest.mark.parametrize("pretty", [True, False])
def test_logs(pretty: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the line of a call nor the traceback of a bug shows a key, on a terminal or off it."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    log.setup(out, pretty=pretty)
    try:
        monkeypatch.setattr(calls, "_LOG", structlog.get_logger())
        journal = Journal()
        journal.on_error = calls.error("router")  # type: ignore[assignment, method-assign]
        fake = Fake("f", journal, {"request": break_with_keys_at_hand})
        playbook = Playbook(exchange(fake, journal=journal))
        playbook.say(request(headers={"authorization": f"Bearer {KEY}"}))
        playbook.say(body({"model": "gpt"}))
        calls.observer(lambda: 0.0)(journal.call, Outcome("failed", 503, "policy_unavailable"))
    finally:
        structlog.reset_defaults()
    out.seek(0)
    written = out.read()

    assert "Leaky" in written
    assert "call-1" in written
    assert_no_key(written)


def test_exceptions() -> None:
    """A refusal and its traceback show what is meant for the client, no more."""
    secret = Secret(PROVIDER_KEY)
    try:
        raise Refusal(f"No: {secret}") from ValueError(secret)
    except Refusal as refusal:
        text = "".join(traceback.format_exception(refusal)) + shown(refusal) + shown(sys.exc_info())

    assert "No:" in text
    assert_no_key(text)
