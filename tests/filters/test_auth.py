"""Who is calling, and may they."""

import hmac
from typing import Any

import pytest
from fakes import NARROW_KEY, Gateway
from playbook import KEY, SETTLED, Answers, Close, Error, Including, Playbook, Proceeds, body, request

from extproc.core.call import Outcome

CHAT = {"model": "gpt", "messages": []}
ADMITTED = {"call_id": "call-1", "consumer": "acme"}


def said(*fields: tuple[str, str], path: str = "/v1/chat/completions") -> tuple[Gateway, Playbook]:
    """A call whose head has these fields."""
    gateway = Gateway()
    return gateway, Playbook(gateway.exchange()) >> request(path=path, headers=fields)


@pytest.mark.parametrize(
    "fields",
    [
        [("authorization", f"Bearer {KEY}")],
        [("authorization", f"bearer {KEY}")],
        [("authorization", f"BEARER   {KEY}  ")],
        [("x-api-key", KEY)],
        [("api-key", KEY)],
        [("api-key", f" {KEY} ")],
        [("authorization", f"Bearer {KEY}"), ("x-api-key", KEY)],
        [("authorization", f"Bearer {KEY}"), ("x-api-key", KEY), ("api-key", KEY)],
        [("authorization", "Bearer "), ("x-api-key", KEY)],
        [("x-api-key", ""), ("api-key", KEY)],
    ],
)
def test_key_in_any_of_three_headers(fields: list[tuple[str, str]]) -> None:
    """The key counts in each of the three headers, also in several at once; none of them goes on."""
    gateway, playbook = said(*fields)

    assert playbook << Proceeds(removes={name for name, _ in fields}, metadata=ADMITTED)
    assert gateway.journal.call.consumer is not None
    assert gateway.journal.call.consumer.name == "acme"


WRONG = "The API key is not valid."
NONE = "No API key was sent"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([], NONE),
        ([("authorization", "")], "must be: Bearer"),
        ([("authorization", "Bearer")], NONE),
        ([("authorization", "Bearer ")], NONE),
        ([("x-api-key", "")], NONE),
        ([("x-api-key", "  ")], NONE),
        ([("authorization", KEY)], "must be: Bearer"),
        ([("authorization", f"Basic {KEY}")], "must be: Bearer"),
        ([("authorization", f"Basic {KEY}"), ("x-api-key", KEY)], "must be: Bearer"),
        ([("authorization", f"Bearer{KEY}")], "must be: Bearer"),
        ([("authorization", f"Bearer\t{KEY}")], "must be: Bearer"),
        ([("x-api-key", f"Bearer {KEY}")], WRONG),
        ([("cookie", KEY)], NONE),
        ([("x-key", KEY), ("proxy-authorization", f"Bearer {KEY}")], NONE),
        ([("authorization", f"Bearer {KEY}"), ("x-api-key", NARROW_KEY)], "Several different API keys"),
        ([("x-api-key", KEY), ("api-key", "nonsense")], "Several different API keys"),
        ([("x-api-key", KEY), ("x-api-key", KEY)], WRONG),
        ([("authorization", f"Bearer {KEY}"), ("authorization", f"Bearer {NARROW_KEY}")], WRONG),
        ([("authorization", f"Bearer {KEY}x")], WRONG),
        ([("authorization", f"Bearer {KEY[:-1]}")], WRONG),
        ([("authorization", f"Bearer {KEY.upper()}")], WRONG),
        ([("authorization", "Bearer 密钥".encode().decode("latin-1"))], WRONG),
        ([("api-key", "\x00\xff'; DROP TABLE")], WRONG),
        ([("api-key", "*")], WRONG),
        ([("api-key", "k" * 1_000_000)], WRONG),
        ([("authorization", "Bearer " + KEY * 50_000)], WRONG),
    ],
)
def test_no_valid_key(fields: list[tuple[str, str]], message: str) -> None:
    """No key, a wrong one, one in the wrong place or several are a 401 that repeats none of what was sent."""
    gateway, playbook = said(*fields)

    assert playbook << Answers(401, Error("invalid_api_key", message=message)) >> Close()
    answered = playbook.decisions[0].body.decode()
    assert not any(value.strip() in answered for _, value in fields if len(value.strip()) > 8)
    assert gateway.audited[0][1] == Outcome("refused", 401, "invalid_api_key")
    assert gateway.journal.errors == []


def test_answer_in_the_dialect_of_the_path() -> None:
    """An Anthropic client reads an Anthropic error."""
    _, playbook = said(path="/v1/messages")

    assert playbook << Answers(401, Error("authentication_error", message=NONE, dialect="anthropic"))


@pytest.mark.parametrize("fields", [[], [("x-api-key", "nonsense")]])
@pytest.mark.parametrize("path", ["/v1/models", "/v1/nothing", "/"])
def test_identity_comes_before_everything(path: str, fields: list[tuple[str, str]]) -> None:
    """Who has no key learns nothing of paths and models."""
    _, playbook = said(*fields, path=path)

    assert playbook << Answers(401, Error("invalid_api_key"))


def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests are compared by hmac.compare_digest, which does not tell how far they agree."""
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def watch(a: Any, b: Any) -> bool:
        compared.append((a, b))
        return real(a, b)

    monkeypatch.setattr(hmac, "compare_digest", watch)
    _, playbook = said(("api-key", KEY))

    assert playbook << Proceeds(removes={"api-key"})
    assert len(compared) == 1
    assert all(len(side) == 32 for side in compared[0])


@pytest.mark.parametrize(
    ("key", "model", "allowed"),
    [(NARROW_KEY, "gpt", True), (NARROW_KEY, "claude", False), (NARROW_KEY, "nothing", False), (KEY, "claude", True)],
)
def test_model_permission(key: str, model: str, allowed: bool) -> None:
    """A consumer's globs say which models it may use; whether another exists is not told."""
    path = "/v1/messages" if allowed and model == "claude" else "/v1/chat/completions"
    _, playbook = said(("x-api-key", key), path=path)
    assert playbook << Proceeds(removes={"x-api-key"})

    if allowed:
        assert playbook >> body(CHAT | {"model": model}) << Proceeds(sets={"x-extproc-model": model}, reroute=True)
    else:
        assert (
            playbook
            >> body(CHAT | {"model": model})
            << Answers(403, Error("model_not_allowed", message=model), metadata=SETTLED)
        )
        assert Including(b'"param":"model"') == playbook.decisions[-1].body
