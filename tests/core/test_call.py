"""What is known of a call."""

import pytest
from playbook import request

from extproc.core.call import Call, Consumer, Permissions


@pytest.mark.parametrize(
    ("globs", "model", "allowed"),
    [
        (("*",), "anything/at all", True),
        (("deepseek-*",), "deepseek-r1", True),
        (("deepseek-*",), "deepseek", False),
        (("deepseek-*",), "x-deepseek-r1", False),
        (("gpt-?",), "gpt-4", True),
        (("gpt-?",), "gpt-4o", False),
        (("GPT",), "gpt", False),
        (("a", "b"), "b", True),
        ((), "a", False),
    ],
)
def test_models_by_glob(globs: tuple[str, ...], model: str, allowed: bool) -> None:
    """A consumer may use what one of its globs matches whole, case and all."""
    assert Consumer("acme", [Permissions(globs)]).may_use(model) is allowed


@pytest.mark.parametrize(
    ("own", "teams", "allowed"),
    [
        ((), (), True),
        (("chat",), (), True),
        (("chat",), ("chat", "messages"), True),
        (("embeddings",), (), False),
        (("chat",), ("messages",), False),
    ],
)
def test_what_a_consumer_may_do_its_team_may_too(own: tuple[str, ...], teams: tuple[str, ...], allowed: bool) -> None:
    """Models and endpoints must be allowed by the consumer's own permissions and by its team's; no list means all."""
    consumer = Consumer("acme", [Permissions(endpoints=own), Permissions(["gpt*"], teams)], team="search")

    assert consumer.may_call("chat") is allowed
    assert consumer.may_use("gpt-4")
    assert not consumer.may_use("qwen")


def test_metadata_is_taken_once() -> None:
    """What was taken is not sent again; nothing is None."""
    call = Call("call-1", request().headers, "POST", "/", "", None, "openai", 0.0, 0.0)
    call.metadata["a"] = 1

    assert call.take_metadata() == {"a": 1}
    assert call.take_metadata() is None
