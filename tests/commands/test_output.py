"""Lines as people and programs read them."""

import csv
import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.commands.output import print_lines, print_one, table, width

Captured = pytest.CaptureFixture[str]
LINES: list[dict[str, Any]] = [
    {"name": "acme", "calls": 5, "money": "12.50", "note": None, "models": ["a", "b"], "on": True},
    {"name": "广州分公司", "calls": 12345, "money": "0.00", "note": "=1+1", "models": [], "on": False},
]
COLUMNS = ("name", "calls", "money", "note", "models", "on")


def test_table(capsys: Captured) -> None:
    """Columns stand below each other on a terminal, where a Chinese character is two wide; numbers on the right."""
    print_lines(LINES, COLUMNS, "table")

    assert capsys.readouterr().out == (
        "name        calls  money  note  models  on\n"
        "acme            5  12.50        a; b    true\n"
        "广州分公司  12345   0.00  =1+1          false\n"
    )


def test_csv(capsys: Captured) -> None:
    """The columns asked for, and no formulas."""
    print_lines(LINES, ("note", "name", "on"), "csv")

    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert rows == [["note", "name", "on"], ["", "acme", "true"], ["'=1+1", "广州分公司", "false"]]


def test_json(capsys: Captured) -> None:
    """Everything, as it is, readable."""
    print_lines(LINES, ("name",), "json")

    text = capsys.readouterr().out
    assert json.loads(text) == LINES
    assert "广州" in text


@pytest.mark.parametrize(
    ("form", "text"),
    [("table", "name  calls  money  note  models  on\n"), ("json", "[]\n"), ("csv", ",".join(COLUMNS) + "\n")],
)
def test_nothing(capsys: Captured, form: Any, text: str) -> None:
    """A head, or an empty list."""
    print_lines([], COLUMNS, form)

    assert capsys.readouterr().out == text


def test_one(capsys: Captured) -> None:
    """One thing has its fields one below the other, rules as they can be written."""
    consumer = {"name": "acme", "quota": [{"tokens": 10_000_000, "per": "month"}], "team": None}

    print_one(consumer, "table")
    as_table = capsys.readouterr().out
    print_one(consumer, "csv")
    as_csv = capsys.readouterr().out
    print_one(consumer, "json")

    assert as_table == "name   acme\nquota  10M tokens/month\nteam\n"
    assert as_csv == "name,quota,team\nacme,10M tokens/month,\n"
    assert json.loads(capsys.readouterr().out) == consumer


@pytest.mark.parametrize(("text", "cells"), [("", 0), ("abc", 3), ("中文", 4), ("Ａ", 2), ("é", 1), ("e\u0301", 1)])
def test_width(text: str, cells: int) -> None:
    """Wide and full-width characters take two cells, combining ones none."""
    assert width(text) == cells


def test_nothing_moves_the_cursor(capsys: Captured) -> None:
    """Names that clients made up cannot clear an operator's screen."""
    print_lines([{"model": "a\x1b[2J\nb\u202e"}], ("model",), "table")

    assert capsys.readouterr().out == "model\na\ufffd[2J\ufffdb\ufffd\n"


@given(st.lists(st.lists(st.text(st.sampled_from("ab中文é "), max_size=8), min_size=3, max_size=3), min_size=1))
def test_columns_begin_in_one_place(rows: list[list[str]]) -> None:
    """Whatever is in the cells, a last column on the right ends where the others do."""
    lines = table([[*row, "x"] for row in rows], [False, False, False, True]).splitlines()

    assert len({width(line) for line in lines}) == 1
