"""`extproc audit`, from the shell to a real database and back."""

import getpass
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from audit.records import NOON, record, verdict
from click.testing import Result
from typer.testing import CliRunner

from extproc.audit.record import Search, decode
from extproc.cli import app
from extproc.stores.sql import open_database

Run = Callable[..., Result]


@pytest.fixture(name="run")
def _run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `extproc audit …` in a directory with a configuration and three records."""
    monkeypatch.chdir(tmp_path)
    Path("extproc.yaml").write_text(yaml.safe_dump({"database": {"url": "sqlite:///audit.db"}}))
    database = open_database("sqlite:///audit.db")
    database.migrate()
    database.audit.add(
        [
            record("a", NOON, "请用人工智能写合同", "好"),
            record("b", NOON + 1, "call me", user="ann", verdicts=[verdict("phone", "mask", "pii", what="cn-mobile")]),
            record("c", NOON + 2, consumer="beta", text="digest"),
        ]
    )
    database.close()

    def run(*arguments: str) -> Result:
        result = CliRunner().invoke(app, ("audit", *arguments))
        assert isinstance(result.exception, SystemExit | None), result.exception
        return result

    return run


def good(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.stdout


def found(result: Result) -> list[str]:
    return [line["call_id"] for line in json.loads(good(result))]


def test_search(run: Run) -> None:
    """By Chinese text and by verdict; a table says what was found in one cell."""
    assert found(run("search", "人工智能", "--format", "json")) == ["a"]
    assert found(run("search", "--action", "mask", "--category", "phone", "--format", "json")) == ["b"]
    assert found(run("search", "--since", "2025-03-03T12:00:01", "--format", "json")) == ["c", "b"]
    table = good(run("search", "--person", "ann")).splitlines()
    assert table[1].endswith("mask phone")
    assert good(run("search", "--format", "csv")).count("\n") == 4
    assert "--cursor" in run("search", "--limit", "2").stderr


def test_show(run: Run) -> None:
    """A record whole, with its texts; one that is not there is said to be so."""
    assert json.loads(good(run("show", "a", "--format", "json")))["request"][0]["text"] == "请用人工智能写合同"
    shown = good(run("show", "b"))
    assert "request[0] user" in shown
    assert "mask phone by pii" in shown
    assert run("show", "none").exit_code == 1


def test_tail(run: Run) -> None:
    """What comes is printed, and nothing of before."""
    assert good(run("tail", "--for", "0")) == ""


def test_jsonl(run: Run) -> None:
    """Whole records, as they can be read again; to a file or to standard output."""
    good(run("export", "--out", "all.jsonl"))
    written = [decode(line) for line in Path("all.jsonl").read_bytes().splitlines()]

    assert [each.call_id for each in written] == ["c", "b", "a"]
    assert written[1].verdicts[0].what == "cn-mobile"
    assert decode(good(run("export", "合同", "--out", "-"))).call_id == "a"
    assert run("export", "--out", "no/such/directory").exit_code == 1


def test_parquet(run: Run) -> None:
    """A row for each, with lists of what was said and of what was found."""
    from pyarrow.parquet import read_table

    good(run("export", "--format", "parquet", "--out", "all.parquet"))
    rows: list[dict[str, Any]] = read_table("all.parquet").to_pylist()

    assert [row["call_id"] for row in rows] == ["c", "b", "a"]
    assert rows[0]["time"].timestamp() == NOON + 2
    assert rows[1]["verdicts"][0]["category"] == "phone"
    assert rows[2]["request"] == [{"role": "user", "text": "请用人工智能写合同", "digest": ""}]


def test_parquet_is_an_extra(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the command says what to install."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    refused = run("export", "--format", "parquet", "--out", "all.parquet")

    assert refused.exit_code == 1
    assert "pip install 'extproc[parquet]'" in refused.stderr


def test_delete(run: Run) -> None:
    """By person, by consumer, by time; without any of them nothing is deleted."""
    assert "records deleted: 1" in run("delete", "--person", "ann").stderr
    assert "records deleted: 1" in run("delete", "--before", "2025-03-03T12:00:01").stderr
    assert run("delete").exit_code == 2
    assert found(run("search", "--format", "json")) == ["c"]
    assert "records deleted: 1" in run("delete", "--consumer", "beta").stderr


def test_readings(run: Run) -> None:
    """Every command is noted with the user of the system, an export also with its number."""
    run("search", "合同")
    run("show", "a")
    run("export", "--out", "x.jsonl", "--model", "m")
    run("tail", "--for", "0")
    run("delete", "--person", "ann")

    lines = json.loads(good(run("readings", "--format", "json")))

    assert {line["who"] for line in lines} == {f"user {getpass.getuser()}"}
    assert [(line["what"], line["found"]) for line in lines] == [
        *(("delete", 1), ("delete", 0), ("tail", 0), ("export", 3), ("export", 0)),
        *(("show", 1), ("show", 0), ("search", 1)),
    ]


def test_what_cannot_be_asked(run: Run) -> None:
    """A wrong action or time ends with status 2 and a reason."""
    for arguments in (("search", "--action", "kill"), ("search", "--since", "yesterday"), ("search", "--cursor", "x")):
        refused = run(*arguments)
        assert refused.exit_code == 2
        assert refused.stderr


def test_a_tail_follows(run: Run) -> None:
    """Records that come while it runs are printed, once."""
    from extproc.admin.bodies import AuditQuery
    from extproc.admin.records import Records

    database = open_database("sqlite:///audit.db")
    more = Records(database.audit, lambda: "UTC").tail("me", AuditQuery(consumer="acme"))
    database.audit.add([record("d"), record("e", consumer="beta")])

    assert [line["call_id"] for line in more()] == ["d"]
    assert more() == []
    assert database.audit.readings(1)[0].found == 1
    assert len(database.audit.search(Search()).records) == 5
    database.close()
