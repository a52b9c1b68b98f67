"""Which admin tokens are no secret, and where that matters."""

import re
import secrets
from pathlib import Path
from typing import Any

import pytest
import yaml

from extproc.config.load import ConfigError, Loaded, parse
from extproc.config.tokens import weakness

DOCS = Path(__file__).parents[2]
STRONG = "9f2c51e7a80b4d6398be11fa6c0d27e4"
WELL_KNOWN = [
    "",
    "admin",
    "Administrator",
    "password",
    "secret",
    "changeme",
    "CHANGE_ME_change_me",
    "token",
    "test-test-test-test",
    "123456",
    "1234567890123456",
    "my-admin-token-example",
    "extproc-admin-secret-0123456789",
    "your_api_key_your_api_key",
    "aaaaaaaaaaaaaaaaaaaaaaaa",
    "abcabcabcabcabcabcabc",
]


def loaded(token: str, http: str) -> Loaded:
    document: dict[str, Any] = {"server": {"http": http}, "admin": {"tokens": [{"value": STRONG}, {"value": token}]}}
    return parse(yaml.safe_dump(document).encode(), Path("extproc.yaml"))


@pytest.mark.parametrize("token", WELL_KNOWN)
def test_well_known(token: str) -> None:
    """What anybody would try first is refused however long it is."""
    assert weakness(token).startswith("is well known")


@pytest.mark.parametrize("token", ["9f2c51e7a80b4d6", "k#9LqZ"])
def test_short(token: str) -> None:
    """What can be tried out is refused."""
    assert weakness(token).startswith("has less than 16 characters")


@pytest.mark.parametrize("make", [secrets.token_hex, secrets.token_urlsafe])
def test_random_ones_are_good(make: Any) -> None:
    """What the reason tells to make is taken, every time."""
    assert [token for _ in range(500) if weakness(token := make(24))] == []


@pytest.mark.parametrize("document", sorted(DOCS.glob("docs/*.md")), ids=lambda path: path.name)
def test_examples_of_the_documentation(document: Path) -> None:
    """A token that our own documentation shows guards nothing that others can reach."""
    shown = re.findall(r"Bearer ([\w-]+)|tokens: \[\{value: ([\w-]+)", document.read_text())
    tokens = {token for pair in shown for token in pair if token and token.upper() != token}

    assert [token for token in tokens if not weakness(token)] == []


@pytest.mark.parametrize("http", ["0.0.0.0:8081", ":8081", "10.1.2.3:8081", "[::]:8081", "127.0.0.1.example.com:81"])
@pytest.mark.parametrize("token", ["admin", "my-admin-token-example", "9f2c51e7a80b4d6"])
def test_refused_where_others_can_reach_it(token: str, http: str) -> None:
    """The problem names the token's place in the file and the reason, not the token."""
    with pytest.raises(ConfigError) as refused:
        loaded(token, http)

    (problem,) = refused.value.problems
    assert problem.path == "admin.tokens[1]"
    assert problem.message.startswith("server.http is not on loopback, and this token ")
    assert f"{token!r}" not in str(problem)


@pytest.mark.parametrize("http", ["127.0.0.1:8081", "127.8.8.8:8081", "localhost:8081", "[::1]:8081"])
def test_allowed_on_loopback(http: str) -> None:
    """Who can reach loopback is on this machine."""
    assert len(loaded("admin", http).admin_tokens) == 2


@pytest.mark.parametrize("http", ["127.0.0.1:8081", "0.0.0.0:8081"])
def test_an_empty_one_is_refused_everywhere(http: str) -> None:
    """An empty secret is a mistake in any place."""
    with pytest.raises(ConfigError) as refused:
        loaded("", http)

    assert [str(problem) for problem in refused.value.problems] == ["admin.tokens[1]: the secret is empty"]


def test_tokens_come_from_files_and_are_not_kept(tmp_path: Path) -> None:
    """Only digests stay in memory, and the file counts among those that are watched."""
    (tmp_path / "token").write_text(f"{STRONG}\n")

    found = parse(b"admin: {tokens: [{file: token}]}", tmp_path / "extproc.yaml")

    assert STRONG not in repr(found)
    assert found.admin_tokens == loaded(STRONG, "0.0.0.0:1").admin_tokens[:1]
    assert tmp_path / "token" in found.files
