"""Lines as people and programs read them: a table, JSON or CSV."""

import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import typer

from extproc.admin.reports import csv_text
from extproc.commands.common import Format
from extproc.commands.rules import written

Line = Mapping[str, Any]


def print_lines(lines: Sequence[Line], columns: Sequence[str], form: Format) -> None:
    """One below the other. In JSON every field is there, else the ``columns``."""
    match form:
        case "json":
            typer.echo(json.dumps(lines, ensure_ascii=False, indent=2))
        case "csv":
            plain = [{name: _plain(name, line[name]) for name in columns} for line in lines]
            typer.echo(csv_text(plain, columns), nl=False)
        case "table":
            texts = [[_text(name, line[name]) for name in columns] for line in lines]
            numbers = [all(type(line[name]) is int or name == "money" for line in lines) for name in columns]
            typer.echo(table([columns, *texts], numbers), nl=False)


def print_one(line: Line, form: Format) -> None:
    """A single thing: its fields one below the other."""
    match form:
        case "json":
            typer.echo(json.dumps(line, ensure_ascii=False, indent=2))
        case "csv":
            print_lines([line], list(line), form)
        case "table":
            rows = [[name, _text(name, value)] for name, value in line.items()]
            typer.echo(table(rows, [False, False]), nl=False)


def table(rows: Sequence[Sequence[str]], numbers: Sequence[bool]) -> str:
    """Columns as wide as their widest cell on a terminal; ``numbers``: which of them stand on the right."""
    widths = [max(width(row[place]) for row in rows) for place in range(len(numbers))]
    lines = []
    for row in rows:
        cells = []
        for cell, room, right in zip(row, widths, numbers, strict=True):
            gap = " " * (room - width(cell))
            cells.append(gap + cell if right else cell + gap)
        lines.append("  ".join(cells).rstrip())
    return "".join(f"{line}\n" for line in lines)


def width(text: str) -> int:
    """Cells of a terminal: Chinese characters take two, combining ones none."""
    return sum(
        0 if unicodedata.combining(character) else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )


def _plain(name: str, value: object) -> object:
    if isinstance(value, (list, tuple)):
        return "; ".join(_items(name, value))
    return str(value).lower() if isinstance(value, bool) else value


def _text(name: str, value: object) -> str:
    text = "" if value is None else str(_plain(name, value))
    # What clients sent as a model's name must not move the cursor of an operator's terminal.
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def _items(name: str, values: Iterable[Any]) -> list[str]:
    return [written(value) if name in ("quota", "limits") else str(value) for value in values]
