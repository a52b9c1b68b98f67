"""Weights and fallback: each attempt has its own target, model name, key, host and path, and nothing of another's."""

import socket
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest
from world import CHAT, PROVIDER_KEYS, World, call_id, chat

from extproc.demo.stub import Behaviour, Received
from extproc.demo.waiting import until

pytestmark = pytest.mark.e2e

HI: Any = [{"role": "user", "content": "hi"}]
FAILURES = {
    "reset": Behaviour(fault="reset"),
    "429": Behaviour(status=429),
    "500": Behaviour(status=500),
    "502": Behaviour(status=502),
    "503": Behaviour(status=503),
    "504": Behaviour(status=504),
    "529": Behaviour(status=529),
    "silent": Behaviour(fault="silent"),
    "late": Behaviour(delay=5.0),
}


def keys(request: Received) -> dict[str, str]:
    names = ("authorization", "x-api-key", "api-key")
    return {name: request.headers[name] for name in names if name in request.headers}


def assert_primary(world: World, request: Received) -> None:
    assert request.json["model"] == "gpt-primary"
    assert request.path == CHAT
    assert request.headers["host"] == f"127.0.0.1:{world.primary.port}"
    assert keys(request) == {"authorization": f"Bearer {PROVIDER_KEYS['primary']}"}
    assert request.headers["x-team"] == "primary-only"
    assert request.headers["openai-organization"] == "org-primary"
    assert int(request.headers["content-length"]) == len(request.body)


def assert_backup(world: World, request: Received) -> None:
    assert request.json["model"] == "qwen-max-longer-than-the-public-name"
    assert request.path == "/compatible-mode/v1/chat/completions"
    assert request.headers["host"] == f"127.0.0.1:{world.backup.port}"
    assert keys(request) == {"authorization": f"Bearer {PROVIDER_KEYS['backup']}"}
    assert not {"x-team", "openai-organization", "x-third"} & set(request.headers)
    assert int(request.headers["content-length"]) == len(request.body)


def assert_third(world: World, request: Received) -> None:
    assert request.json["model"] == "gpt-eu"
    assert request.path == "/openai/deployments/gpt-eu/chat/completions"
    assert "api-version=2024-10-21" in request.query
    assert request.headers["host"] == f"127.0.0.1:{world.third.port}"
    assert keys(request) == {"api-key": PROVIDER_KEYS["third"]}
    assert request.headers["x-third"] == "3"
    assert not {"x-team", "openai-organization"} & set(request.headers)
    assert int(request.headers["content-length"]) == len(request.body)


# --- fallback ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("failure", FAILURES)
def test_the_second_group_answers(world: World, failure: str, stream: bool) -> None:
    """Whatever keeps the primary from answering, the backup answers, each asked in its own words."""
    world.primary.behaviour = FAILURES[failure]
    answer = world.chat("pair", stream=stream, temperature=0.5)

    assert answer.status_code == 200
    assert answer.headers["x-served-by"] == "backup"
    assert world.hits() == {"primary": 1, "backup": 1}
    assert_primary(world, world.seen("primary"))
    assert_backup(world, world.seen("backup"))
    assert world.seen("backup").json["temperature"] == 0.5
    line = world.line(call_id=call_id(answer))
    assert (line["provider"], line["attempts"], line["output_tokens"]) == ("backup", 2, 4)


@pytest.mark.parametrize("stream", [False, True])
def test_a_refused_connection(world: World, gpt: openai.OpenAI, stream: bool) -> None:
    """A primary that is not there at all costs the client nothing."""
    answer: Any = gpt.chat.completions.create(model="dead-first", messages=HI, stream=stream)
    text = (
        "".join(chunk.choices[0].delta.content or "" for chunk in answer)
        if stream
        else answer.choices[0].message.content
    )

    assert text == "Hello from backup."
    assert_backup(world, world.seen("backup"))
    assert world.line(model="dead-first")["attempts"] == 2


def test_the_third_group_answers(world: World) -> None:
    """Two that fail in different ways, then the third."""
    world.primary.behaviour = Behaviour(fault="reset")
    world.backup.behaviour = Behaviour(status=503)
    answer = world.chat("trio", stream=True)

    assert answer.headers["x-served-by"] == "third"
    assert_primary(world, world.seen("primary"))
    assert_backup(world, world.seen("backup"))
    assert_third(world, world.seen("third"))
    assert world.line(call_id=call_id(answer))["attempts"] == 3


def test_attempts_are_counted(world: World) -> None:
    """Each attempt is counted for the target that it went to, under its number."""
    world.primary.behaviour = Behaviour(status=503)

    def counted() -> tuple[float, float]:
        name = "extproc_attempts_total"
        return (
            world.metric(name, provider="primary", target="gpt-primary", number="1"),
            world.metric(name, provider="backup", number="2"),
        )

    first = counted()
    world.line(call_id=call_id(world.chat("pair")))
    second = counted()

    assert (second[0] - first[0], second[1] - first[1]) == (1, 1)


def test_query_of_the_client_goes_to_each(world: World) -> None:
    """The query is the client's on every attempt, and an attempt's own part of it stays with that attempt."""
    world.primary.behaviour = world.backup.behaviour = Behaviour(status=503)
    world.post(f"{CHAT}?user=a%2Fb", chat("trio"))

    assert world.seen("primary").query == world.seen("backup").query == "user=a%2Fb"
    assert sorted(world.seen("third").query.split("&")) == ["api-version=2024-10-21", "user=a%2Fb"]


def test_headers_of_the_client_go_to_each(world: World) -> None:
    """The client's own headers are there on every attempt, even where an operator's header has that name for one."""
    world.primary.behaviour = Behaviour(status=503)
    world.chat("pair", headers={"x-own": "mine", "accept-language": "zh"})

    for stub in ("primary", "backup"):
        assert world.seen(stub).headers["x-own"] == "mine"
        assert world.seen(stub).headers["accept-language"] == "zh"


def test_a_long_name_then_a_short_one(world: World) -> None:
    """The body of attempt 2 is the client's with its own name in it, not attempt 1's cut or padded."""
    world.backup.behaviour = Behaviour(status=503)
    world.primary.behaviour = Behaviour(status=503)
    body = chat("trio", "你好" * 1000, stream=True)
    world.post(CHAT, body)

    lengths = set()
    for stub in ("primary", "backup", "third"):
        received = world.seen(stub)
        assert received.json["messages"] == body["messages"]
        lengths.add(len(received.body))
    assert len(lengths) == 3


@pytest.mark.parametrize("status", [400, 404, 413, 422])
def test_the_clients_own_fault_is_not_retried(world: World, status: int) -> None:
    """A request that no provider would take is answered with the first one's word."""
    world.primary.behaviour = Behaviour(status=status)
    answer = world.chat("pair")

    assert answer.status_code == status
    assert "primary answers" in answer.json()["error"]["message"]
    assert world.hits() == {"primary": 1}


def test_only_what_is_configured_is_retried(world: World) -> None:
    """`retry.on` is the operator's: 503 is not in this model's list, 429 is."""
    world.primary.behaviour = Behaviour(status=503)
    kept = world.chat("picky")
    world.primary.behaviour = Behaviour(status=429)
    retried = world.chat("picky")

    assert (kept.status_code, retried.status_code) == (503, 200)
    assert retried.headers["x-served-by"] == "backup"


def test_an_answer_that_has_begun_is_never_retried(world: World) -> None:
    """Headers and one event are an answer, whatever comes after."""
    world.primary.behaviour = Behaviour(fault="stall_mid", fault_after=1)
    answer = world.chat("pair", stream=True)

    assert answer.status_code == 200
    assert "The provider stopped" in answer.text
    assert world.hits() == {"primary": 1}


def test_slow_but_alive_is_not_retried(world: World) -> None:
    """Headers that are out and a queue behind them are an answer that has begun."""
    world.primary.behaviour = Behaviour(queue=1.5)
    answer = world.chat("pair", stream=True)

    assert answer.headers["x-served-by"] == "primary"
    assert world.hits() == {"primary": 1}


def test_the_last_ones_error_is_the_answer(world: World, gpt: openai.OpenAI) -> None:
    """Where all fail with an answer of their own, the client gets the last one's, as its SDK knows it."""
    world.primary.behaviour = Behaviour(status=503)
    world.backup.behaviour = Behaviour(status=429, headers={"retry-after": "7"})
    with pytest.raises(openai.RateLimitError, match="backup answers 429") as caught:
        gpt.chat.completions.create(model="pair", messages=HI)

    assert caught.value.response.headers["retry-after"] == "7"
    assert world.line(call_id=call_id(caught.value.response))["provider"] == "backup"


def test_a_group_that_recovers_is_used_again(world: World) -> None:
    """No memory of failures: the next call begins with the first group."""
    world.primary.behaviour = Behaviour(status=503)
    assert [world.chat("pair").headers["x-served-by"] for _ in range(5)] == ["backup"] * 5

    world.primary.behaviour = Behaviour()
    assert [world.chat("pair").headers["x-served-by"] for _ in range(5)] == ["primary"] * 5


# --- Anthropic --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", ["reset", "429", "529", "silent"])
def test_fallback_of_messages(world: World, claude: anthropic.Anthropic, failure: str) -> None:
    """The other dialect falls back just so, each attempt with its own key and path."""
    world.claude.behaviour = FAILURES[failure]
    answer = claude.messages.create(model="claude-pair", max_tokens=9, messages=HI)

    assert answer.content[0].text == "Hello from claude-backup."
    first, second = world.seen("claude"), world.seen("claude-backup")
    assert (first.json["model"], second.json["model"]) == ("opus", "claude-pair")
    assert (first.path, second.path) == ("/v1/messages", "/anthropic/v1/messages")
    assert keys(first) == {"x-api-key": PROVIDER_KEYS["claude"]}
    assert keys(second) == {"x-api-key": PROVIDER_KEYS["claude-backup"]}
    assert first.headers["anthropic-version"] == second.headers["anthropic-version"]


def test_fallback_never_changes_the_dialect(world: World) -> None:
    """A route with targets of both dialects falls back only among those that speak the client's."""
    world.primary.behaviour = Behaviour(status=503)
    answer = world.chat("both")

    assert answer.status_code == 503
    assert world.hits() == {"primary": 1}


# --- all fail ---------------------------------------------------------------------------------------------------


def test_all_are_dead(world: World, gpt: openai.OpenAI) -> None:
    """503 in OpenAI's shape, which its SDK knows as a server's error."""
    with pytest.raises(openai.InternalServerError) as caught:
        gpt.chat.completions.create(model="all-dead", messages=HI)

    assert caught.value.status_code == 503
    assert caught.value.code == "provider_unavailable"
    line = world.line(call_id=call_id(caught.value.response))
    assert (line["how"], line["model"]) == ("failed", "all-dead")


def test_all_are_dead_in_messages(world: World, claude: anthropic.Anthropic) -> None:
    """And in Anthropic's."""
    with pytest.raises(anthropic.APIStatusError) as caught:
        claude.messages.create(model="claude-dead", max_tokens=9, messages=HI)

    assert caught.value.status_code == 503
    assert caught.value.body["type"] == "error"


@pytest.mark.parametrize("stream", [False, True])
def test_all_are_silent(world: World, stream: bool) -> None:
    """504 when the last one's time is over, and nobody is left waiting."""
    world.primary.behaviour = world.backup.behaviour = Behaviour(fault="silent")
    answer = world.chat("pair", stream=stream)

    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "provider_timeout"
    assert world.line(call_id=call_id(answer))["status"] == 504
    until(lambda: (world.primary.aborted, world.backup.aborted) == (1, 1), "both are let go")


@pytest.mark.parametrize("fault", ["reset", "garbage"])
def test_all_break(world: World, fault: Any) -> None:
    """A reset is 503; an answer that is no JSON passes, since a 200 is the provider's own word."""
    world.primary.behaviour = world.backup.behaviour = Behaviour(fault=fault)
    answer = world.chat("pair")

    assert answer.status_code == (503 if fault == "reset" else 200)
    assert call_id(answer)


# --- weights ----------------------------------------------------------------------------------------------------


def test_ninety_and_ten(world: World) -> None:
    """Four hundred calls are shared about as the weights say, each in its target's own words."""
    served = Counter(world.chat("split").headers["x-served-by"] for _ in range(400))

    # 40 expected; the chance that a fair 10 % falls outside is one in a million.
    assert 12 <= served["backup"] <= 72
    assert served["primary"] + served["backup"] == 400
    for request in world.primary.requests:
        assert_primary(world, request)
    for request in world.backup.requests:
        assert_backup(world, request)


def test_weight_zero_gets_nothing(world: World) -> None:
    """A target may be parked."""
    assert {world.chat("parked").headers["x-served-by"] for _ in range(50)} == {"primary"}


# --- an upstream that is not HTTP as we know it -------------------------------------------------------------------


@pytest.fixture(name="answering")
def _answering(world: World) -> Iterator[Any]:
    """Puts a raw server in the primary's place, which says these bytes and closes."""
    servers: list[socket.socket] = []
    world.run(world.primary.stop())

    def answering(said: bytes) -> None:
        server = socket.create_server(("127.0.0.1", world.primary.port))
        servers.append(server)

        def serve() -> None:
            try:
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(1 << 16)
                        connection.sendall(said)
            except OSError:
                return

        threading.Thread(target=serve, daemon=True).start()

    yield answering
    for server in servers:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
    world.run(world.primary.start())


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n",
    ],
)
def test_an_upstream_that_talks_nonsense(world: World, answering: Any, said: bytes) -> None:
    """What is no HTTP answer is a failed attempt."""
    answering(said)
    answer = world.chat("pair")

    assert answer.status_code == 200
    assert answer.headers["x-served-by"] == "backup"


def test_an_upstream_that_comes_back(world: World) -> None:
    """A provider that was restarted is called again, over a new connection."""
    world.chat("gpt")
    world.run(world.primary.stop())
    refused = world.chat("gpt")
    world.run(world.primary.start())
    again = world.chat("gpt")

    assert (refused.status_code, again.status_code) == (503, 200)
