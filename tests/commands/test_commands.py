"""The commands of accounts, from the shell to a real database and back."""

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from admin.office import row
from click.testing import Result
from typer.testing import CliRunner

from extproc.accounts.keys import digest, is_ours
from extproc.cli import app
from extproc.stores.sql import open_database

FILE_KEY = "sk-of-the-file-0123456789"
UNKNOWN = "sk-mxIvOKqaHgx7gMJPNt6UnDn8jFD6MqFHc2grOD1"
DOCUMENT: dict[str, Any] = {
    "database": {"url": "sqlite:///run/accounts.db"},
    "providers": {"p": {"base_url": "http://127.0.0.1:9/v1", "keys": [{"env": "NOT_SET_ON_THIS_MACHINE"}]}},
    "consumers": {"filed": {"keys": [{"value": FILE_KEY}], "quota": [{"tokens": "10M", "per": "month"}]}},
    "teams": {"listed": {}},
    "policies": {"strict": {}},
}

Run = Callable[..., Result]


@pytest.fixture(name="run")
def _run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in a directory with a configuration; what fails is an answer, never a traceback."""
    monkeypatch.chdir(tmp_path)
    Path("extproc.yaml").write_text(yaml.safe_dump(DOCUMENT))

    def run(*arguments: str, input: str | None = None) -> Result:  # noqa: A002 - as the runner calls it
        result = CliRunner().invoke(app, arguments, input=input)
        assert isinstance(result.exception, SystemExit | None), result.exception
        assert FILE_KEY not in result.output
        return result

    return run


def good(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.stdout


def lines(result: Result) -> Any:
    return json.loads(good(result))


def book(*rows: Any) -> None:
    database = open_database("sqlite:///run/accounts.db")
    database.migrate()
    database.ledger.add(rows)
    database.close()


# --- consumers and teams --------------------------------------------------------------------------------------


def test_the_life_of_a_consumer(run: Run) -> None:
    """Made with everything, shown, changed, disabled and deleted; what is done is said on standard error."""
    made = run(
        *("consumer", "create", "acme", "--team", "listed", "--model", "gpt-*", "--model", "o3", "--policy", "strict"),
        *("--quota", "10M tokens/month", "--quota", "500 money/month", "--limit", "60 requests/minute"),
        *("--limit", "8 concurrent", "--endpoint", "chat", "--note", "中文"),
    )
    shown = lines(run("consumer", "show", "acme", "--format", "json"))
    good(run("consumer", "update", "acme", "--quota", "", "--team", "", "--model", ""))
    changed = lines(run("consumer", "show", "acme", "--format", "json"))
    good(run("consumer", "disable", "acme"))
    disabled = lines(run("consumer", "list", "--format", "json"))[0]
    good(run("consumer", "enable", "acme"))
    enabled = lines(run("consumer", "list", "--format", "json"))[0]
    deleted = run("consumer", "delete", "acme")

    assert (made.exit_code, made.stdout, made.stderr) == (0, "", "consumer created: acme\n")
    assert shown == {
        "name": "acme",
        "source": "database",
        "models": ["gpt-*", "o3"],
        "endpoints": ["chat"],
        "policy": "strict",
        "quota": [{"tokens": 10_000_000, "per": "month"}, {"money": "500", "per": "month"}],
        "limits": [{"requests": 60, "per": "minute"}, {"concurrent": 8}],
        "created": shown["created"],
        "team": "listed",
        "disabled": False,
        "note": "中文",
    }
    assert changed == {**shown, "quota": [], "team": None, "models": ["*"]}
    assert (disabled["disabled"], enabled["disabled"]) == (True, False)
    assert (deleted.stdout, deleted.stderr) == ("", "consumer deleted: acme\n")
    assert run("consumer", "show", "acme").exit_code == 1


def test_the_life_of_a_team(run: Run) -> None:
    """A team with consumers stays; without, it goes."""
    good(run("team", "create", "growth", "--quota", "1M tokens/day", "--limit", "8 concurrent"))
    good(run("team", "update", "growth", "--model", "gpt-*"))
    good(run("consumer", "create", "acme", "--team", "growth"))
    shown = lines(run("team", "show", "growth", "--format", "json"))
    listed = lines(run("team", "list", "--format", "json"))
    of_team = lines(run("consumer", "list", "--team", "growth", "--format", "json"))
    kept = run("team", "delete", "growth")
    good(run("consumer", "delete", "acme"))
    good(run("team", "delete", "growth"))

    assert (shown["models"], shown["quota"]) == (["gpt-*"], [{"tokens": 1_000_000, "per": "day"}])
    assert [team["name"] for team in listed] == ["growth", "listed"]
    assert [consumer["name"] for consumer in of_team] == ["acme"]
    assert (kept.exit_code, kept.stdout) == (1, "")
    assert "acme" in kept.stderr


def test_tables(run: Run) -> None:
    """By default what people read: rules as they are written, those of the file too."""
    good(run("consumer", "create", "acme", "--limit", "60k tokens/minute model='gpt-*'"))

    head, acme, filed = good(run("consumer", "list")).splitlines()

    assert head.split()[:3] == ["name", "source", "team"]
    assert "60k tokens/minute model='gpt-*'" in acme
    assert ("file" in filed.split(), "10M tokens/month" in filed) == (True, True)


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        (["consumer", "create", "filed"], 1, "the consumer 'filed' is in the configuration file"),
        (["consumer", "update", "filed", "--note", "x"], 1, "is in the configuration file: change it there"),
        (["consumer", "delete", "filed"], 1, "is in the configuration file: change it there"),
        (["team", "delete", "listed"], 1, "is in the configuration file: change it there"),
        (["consumer", "disable", "nobody"], 1, "there is no consumer 'nobody'"),
        (["consumer", "create", "b", "--team", "nobody"], 1, "there is no team 'nobody'"),
        (["consumer", "create", "b", "--policy", "lax"], 1, "no policy is called 'lax'"),
        (["consumer", "create", "=b"], 2, "name: "),
        (["consumer", "create", "b", "--quota", "10M"], 2, "'10M' should look like 10M tokens/month"),
        (["consumer", "create", "b", "--quota", "x tokens/day"], 2, "quota[0].tokens: 'x' should look like 60k"),
        (["consumer", "create", "b", "--quota", "1 tokens/year"], 2, "quota[0].per: "),
        (["consumer", "create", "b", "--limit", "5 money/day"], 2, "'5 money/day' should have tokens/PERIOD"),
        (["consumer", "create", "b", "--endpoint", "images"], 2, "endpoints[0]: "),
        (["key", "create", "nobody"], 1, "there is no consumer 'nobody'"),
        (["key", "create", "filed", "--expires", "1999-01-01"], 2, "'1999-01-01' is over already"),
        (["key", "create", "filed", "--label", "a\nb"], 2, "label: has characters that cannot be shown"),
        (["key", "rotate", "key-none"], 1, "there is no key 'key-none'"),
        (["key", "rotate", "key-none", "--overlap", "soon"], 2, "overlap: 'soon' should look like 30s"),
        (["key", "revoke", "key-none"], 1, "there is no key 'key-none'"),
        (["key", "list", "nobody"], 1, "there is no consumer 'nobody'"),
        (["usage", "--by", "colour"], 2, "usage is not kept by 'colour'"),
        (["usage", "--since", "yesterday"], 2, "'yesterday' should look like 7d"),
        (["usage", "--timezone", "Mars"], 2, "timezone: there is no time zone 'Mars'"),
        (["ledger", "rows", "--limit", "0"], 2, "limit: "),
    ],
)
def test_what_cannot_be_done(run: Run, arguments: list[str], status: int, reason: str) -> None:
    """One line on standard error says why; 1 is for what does not fit, 2 for what was written wrong."""
    result = run(*arguments)

    assert (result.exit_code, result.stdout) == (status, "")
    (line,) = result.stderr.splitlines()
    assert reason in line


# --- keys -----------------------------------------------------------------------------------------------------


def test_a_key_is_printed_once(run: Run) -> None:
    """Alone on standard output, so that `KEY=$(extproc key create acme)` works, and never again."""
    good(run("consumer", "create", "acme"))

    made = run("key", "create", "acme", "--label", "=ci", "--expires", "90d")

    key = made.stdout.removesuffix("\n")
    assert is_ours(key)
    assert made.stderr.startswith("key created: key-")
    (listed,) = lines(run("key", "list", "acme", "--format", "json"))
    assert (listed["consumer"], listed["label"], listed["hint"]) == ("acme", "=ci", key[-4:])
    days = datetime.fromisoformat(listed["expires"]) - datetime.now(UTC)
    assert 89 <= days.days <= 90
    others = [run("key", "list"), run("key", "list", "--format", "csv"), run("consumer", "show", "acme")]
    assert not [result for result in others if key in result.output or digest(key).hex() in result.output]
    assert "'=ci" in others[1].stdout
    assert key.encode() not in b"".join(file.read_bytes() for file in Path("run").iterdir())


def test_keys_of_consumers_in_the_file(run: Run) -> None:
    """The file names the consumer, the database has more keys of it."""
    key = good(run("key", "create", "filed")).strip()

    (found,) = [lines(run("key", "find", "--format", "json", input=f"{key}\n"))]
    assert (found["consumer"], found["state"]) == ("filed", "active")


def test_rotation(run: Run) -> None:
    """The new key is printed, the old one ends after the overlap."""
    good(run("consumer", "create", "acme"))
    old = good(run("key", "create", "acme", "--label", "ci")).strip()
    (before,) = lines(run("key", "list", "--format", "json"))

    new = good(run("key", "rotate", before["id"], "--overlap", "2h")).strip()

    states = {key["hint"]: key for key in lines(run("key", "list", "--format", "json"))}
    assert is_ours(new)
    assert new != old
    assert (states[new[-4:]]["label"], states[new[-4:]]["expires"]) == ("ci", None)
    left = datetime.fromisoformat(states[old[-4:]]["expires"]) - datetime.now(UTC)
    assert left.total_seconds() == pytest.approx(7200, abs=60)


def test_revoking_and_deleting(run: Run) -> None:
    """A revoked key is still listed, a deleted one is not."""
    good(run("key", "create", "filed"))
    (key,) = lines(run("key", "list", "--format", "json"))

    good(run("key", "revoke", key["id"]))
    (revoked,) = lines(run("key", "list", "--format", "json"))
    again = run("key", "rotate", key["id"])
    good(run("key", "delete", key["id"]))

    assert revoked["state"] == "revoked"
    assert (again.exit_code, again.stderr) == (1, f"the key '{key['id']}' is revoked: create a new one\n")
    assert lines(run("key", "list", "--format", "json")) == []


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("sk-nonsense\n", "this is no key that extproc made, or it was mistyped or cut\n"),
        ("", "this is no key that extproc made, or it was mistyped or cut\n"),
        (UNKNOWN, "the database has no such key\n"),
    ],
)
def test_a_key_that_is_not_found(run: Run, key: str, reason: str) -> None:
    """A mistyped key is told from one that is not there; neither is repeated."""
    result = run("key", "find", input=key)

    assert (result.exit_code, result.stdout, result.stderr) == (1, "", reason)


# --- usage and ledger -----------------------------------------------------------------------------------------


def test_usage(run: Run) -> None:
    """By consumer, model and provider unless told otherwise; money is a decimal text."""
    book(row(1), row(2), row(3, consumer="other", cost=10**9))

    found = lines(run("usage", "--format", "json"))

    wanted = ("consumer", "model", "provider", "calls", "input_tokens", "output_tokens", "money")
    assert [tuple(line[name] for name in wanted) for line in found] == [
        ("acme", "m", "p", 2, 200, 40, "0.003"),
        ("other", "m", "p", 1, 100, 20, "1.00"),
    ]
    assert good(run("usage")).splitlines()[1].split() == ["acme", "m", "p", "2", "200", "40", "0.003", "CNY"]
    assert good(run("usage", "--format", "csv")).startswith(",".join(wanted))
    assert "refusals" in good(run("usage", "--wide"))
    assert "refusals" not in good(run("usage"))


def test_usage_narrowed(run: Run) -> None:
    """By day and team, of one consumer, between two days of a time zone."""
    book(row(0), row(86_400), row(2 * 86_400), row(86_400 + 1, consumer="other"))

    found = lines(
        run(
            *("usage", "--by", "day", "--consumer", "acme", "--since", "2026-01-02", "--until", "2026-01-03"),
            *("--timezone", "UTC", "--format", "json"),
        )
    )

    assert [(line["day"], line["calls"]) for line in found] == [("2026-01-02", 1)]


def test_ledger_rows(run: Run) -> None:
    """The newest first; every field in JSON and CSV."""
    book(row(1), row(2), row(3, consumer="other"))

    found = lines(run("ledger", "rows", "--consumer", "acme", "--limit", "1", "--format", "json"))
    table = good(run("ledger", "rows", "--since", "2026-01-01"))

    assert [(each["call_id"], each["money"]) for each in found] == [("call-0002", "0.0015")]
    assert [line.split()[1] for line in table.splitlines()] == ["call_id", "call-0003", "call-0002", "call-0001"]
    assert len(good(run("ledger", "rows", "--format", "csv")).splitlines()) == 4


def test_ledger_verify(run: Run) -> None:
    """Status 0 and a sentence where all agrees, 1 and the differences where not; `--repair` mends the totals."""
    book(row(1), row(2))
    before = run("ledger", "verify")
    connection = sqlite3.connect("run/accounts.db")
    with connection:
        connection.execute("UPDATE totals SET calls = calls + 1")
    connection.close()

    wrong = run("ledger", "verify", "--format", "json")
    shown = run("ledger", "verify")
    mended = run("ledger", "verify", "--repair")

    assert (before.exit_code, before.stdout) == (0, "the numbers agree with the rows\n")
    (difference,) = json.loads(wrong.stdout)
    assert (wrong.exit_code, difference["ledger"], difference["found"]) == (1, 2, 3)
    assert (shown.exit_code, len(shown.stdout.splitlines())) == (1, 2)
    assert (mended.exit_code, mended.stderr.splitlines()[0]) == (0, "totals made anew: 1")
    assert "no numbers are in use" in mended.stderr or "not compared" in mended.stderr
    assert good(run("ledger", "verify", "--format", "csv")) == "where,ledger,found\n"


# --- configuration and database -------------------------------------------------------------------------------


def test_the_database_is_made_on_first_use(run: Run) -> None:
    """Any command does, beside its directory."""
    assert not Path("run").exists()

    good(run("usage"))

    assert Path("run/accounts.db").exists()


@pytest.mark.parametrize(
    ("changes", "status", "reason"),
    [
        ({"database": {"url": "mysql://db"}}, 2, "extproc.yaml: database.url: "),
        ({"database": {"url": "sqlite:///"}}, 2, "extproc.yaml: database.url: the URL of the database looks like"),
        ({"database": {"url": "sqlite:////proc/none/x.db"}}, 1, "sqlite:////proc/none/x.db"),
        ({"database": {"url": "postgresql://me:hidden-word@127.0.0.1:9/x"}}, 1, "127.0.0.1"),
        ({"modles": {}}, 2, "extproc.yaml: modles: unknown key"),
    ],
)
@pytest.mark.parametrize("command", [["consumer", "list"], ["key", "create", "filed"], ["usage"], ["ledger", "verify"]])
def test_what_cannot_be_opened(run: Run, command: list[str], changes: dict[str, Any], status: int, reason: str) -> None:
    """One line says which setting or which database, without its password."""
    Path("extproc.yaml").write_text(yaml.safe_dump({**DOCUMENT, **changes}))

    result = run(*command)

    assert (result.exit_code, result.stdout) == (status, "")
    assert reason in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert "hidden-word" not in result.stderr


def test_another_file(run: Run) -> None:
    """`--config` names it; a file that is not there is named."""
    Path("other.yaml").write_text(yaml.safe_dump({"database": {"url": "sqlite:///other.db"}}))

    good(run("consumer", "create", "acme", "-c", "other.yaml"))
    missing = run("consumer", "list", "--config", "none.yaml")

    assert Path("other.db").exists()
    assert (missing.exit_code, missing.stderr) == (2, "none.yaml: cannot be read: No such file or directory\n")


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["consumer"], ["create", "update", "show", "list", "enable", "disable", "delete"]),
        (["team"], ["create", "update", "show", "list", "delete"]),
        (["key"], ["create", "list", "find", "rotate", "revoke", "delete"]),
        (["ledger"], ["verify", "rows"]),
        (["consumer", "create"], ["--team", "--model", "--endpoint", "--quota", "--limit", "--policy", "--config"]),
        (["key", "create"], ["--label", "--expires"]),
        (["key", "rotate"], ["--overlap"]),
        (["usage"], ["--by", "--since", "--until", "--consumer", "--timezone", "--format", "--wide"]),
        (["ledger", "verify"], ["--repair", "--format"]),
    ],
)
def test_help(run: Run, arguments: list[str], names: list[str]) -> None:
    """Every command explains itself with all that it takes."""
    text = good(run(*arguments, "--help"))

    assert [name for name in names if name not in text] == []


def test_as_a_program(tmp_path: Path) -> None:
    """In a shell: the key alone goes into the variable, and a second process finds it."""
    (tmp_path / "extproc.yaml").write_text(yaml.safe_dump(DOCUMENT))
    program = f"{sys.executable} -m extproc"
    script = f'KEY=$({program} key create filed 2>/dev/null) && printf "%s" "$KEY" | {program} key find --format json'

    done = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)

    assert json.loads(done.stdout)["consumer"] == "filed"
