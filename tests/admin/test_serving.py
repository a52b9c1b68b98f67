"""The admin API of a whole server: opened by its configuration, closed by what is wrong in it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from extproc.demo.gateway import Gateway
from extproc.demo.waiting import until

FIRST, SECOND = "9f2c51e7a80b4d6398be11fa6c0d27e4", "51c0a7be92f84c0db6f3e8a94d72016f"
DOCUMENT: dict[str, Any] = {
    "providers": {"p": {"base_url": "http://127.0.0.1:9/v1", "keys": [{"value": "pk-never-to-be-seen"}]}},
    "models": {"m": {"route": {"provider": "p"}}},
    "consumers": {"filed": {}},
}


@pytest.fixture(name="token")
def _token(tmp_path: Path) -> Path:
    token = tmp_path / "token"
    token.write_text(FIRST)
    return token


@pytest.fixture(name="server")
def _server(tmp_path: Path, token: Path) -> Iterator[Gateway]:
    document = {**DOCUMENT, "admin": {"tokens": [{"file": str(token)}]}}
    with Gateway(document, command="serve", environment={"TMPDIR": str(tmp_path)}) as server:
        yield server


def ask(server: Gateway, path: str, token: str = FIRST, method: str = "GET", **body: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {token}"}
    return httpx.request(method, f"{server.http}/api{path}", headers=headers, json=body or None, timeout=20)


def test_a_consumer_and_its_key(server: Gateway) -> None:
    """What the API makes, the commands see, and no key or token is in the log."""
    ask(server, "/consumers", method="POST", name="acme")
    key = ask(server, "/consumers/acme/keys", method="POST", label="ci").json()["key"]

    command = [sys.executable, "-m", "extproc", "key", "list", "acme", "--format", "json", "-c", str(server.file)]
    listed = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)

    assert [(each["label"], each["hint"]) for each in listed] == [("ci", key[-4:])]
    assert [each["provider"] for each in ask(server, "/providers").json()] == ["p"]
    assert ask(server, "/ledger/verify").json() == []
    log = server.log()
    assert log.count('"event":"admin"') == 2
    assert not [secret for secret in (key, FIRST, "pk-never-to-be-seen") if secret in log]


def test_tokens_are_read_again(server: Gateway, token: Path) -> None:
    """A changed token file takes effect without a restart."""
    assert [ask(server, "/teams", t).status_code for t in (FIRST, SECOND)] == [200, 401]

    token.write_text(SECOND)
    until(lambda: ask(server, "/teams", SECOND).status_code == 200, "the new token is in force")

    assert ask(server, "/teams", FIRST).status_code == 401


@pytest.mark.parametrize("command", ["serve", "up", "config check"])
@pytest.mark.parametrize("token", ["changeme", "my-admin-token-example", "k7#Lq2x", ""])
def test_a_weak_token_where_others_can_reach_it(tmp_path: Path, command: str, token: str) -> None:
    """The server does not start, and the check says why before it is tried: path and reason, not the token."""
    file = tmp_path / "extproc.yaml"
    admin = {"tokens": [{"value": FIRST}, {"value": token}]}
    file.write_text(yaml.safe_dump({**DOCUMENT, "admin": admin, "server": {"http": "0.0.0.0:0"}}))

    done = subprocess.run(
        [sys.executable, "-m", "extproc", *command.split(), "--config", file],
        capture_output=True,
        check=False,
        timeout=60,
        text=True,
        cwd=tmp_path,
    )

    assert (done.returncode, done.stdout) == (2, "")
    assert "admin.tokens[1]: " in done.stderr
    assert not token or token not in done.stderr
    assert FIRST not in done.stderr
