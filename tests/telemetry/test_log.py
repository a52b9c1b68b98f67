"""Logs for machines and for people, and what must be in neither."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from extproc.core.secret import Secret
from extproc.telemetry import log

KEY = "sk-local-variable-1234"


@pytest.fixture(name="usual", autouse=True)
def _usual() -> Iterator[None]:
    """The configuration of structlog belongs to the process: it is as before when a test is over."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


class Output(io.TextIOWrapper):
    """A stream like standard error, which may say that it is a terminal."""

    def __init__(self, *, terminal: bool = False) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", write_through=True)
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal

    @property
    def text(self) -> str:
        written = self.buffer
        assert isinstance(written, io.BytesIO)
        return written.getvalue().decode()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]


def fail() -> None:
    key = KEY
    raise RuntimeError(f"no key of {len(key)} characters")


def test_one_json_line_an_event() -> None:
    """Each event is one line of JSON with its name, its level, its time in UTC and its fields."""
    out = Output()
    log.setup(out)

    log.get().info("first", answer=42, text="zwei\nZeilen", 中文="也行")
    log.get().error("second")

    first, second = out.lines
    assert {k: v for k, v in first.items() if k != "timestamp"} == {
        "event": "first",
        "level": "info",
        "answer": 42,
        "text": "zwei\nZeilen",
        "中文": "也行",
    }
    assert first["timestamp"].endswith("Z")
    assert (second["event"], second["level"]) == ("second", "error")


def test_details_for_debugging_are_left_out() -> None:
    """Nothing below the level `info` is written."""
    out = Output()
    log.setup(out)

    log.get().debug("detail")

    assert out.text == ""


def test_values_that_json_does_not_know() -> None:
    """They are written as they print, so a secret stays one."""
    out = Output()
    log.setup(out)

    log.get().info("odd", path=Path("a/b"), error=ValueError("wrong"), key=Secret(KEY))

    (line,) = out.lines
    assert (line["path"], line["error"]) == ("a/b", "wrong")
    assert KEY not in out.text


@pytest.mark.parametrize("pretty", [False, True])
def test_exceptions_come_with_their_traceback_and_no_local_variables(pretty: bool) -> None:
    """A traceback says where; the values of local variables, keys among them, stay out."""
    out = Output()
    log.setup(out, pretty=pretty)

    try:
        fail()
    except RuntimeError as error:
        log.get().error("unexpected", exc_info=error)

    assert "Traceback" in out.text
    assert "RuntimeError: no key of 22 characters" in out.text
    assert KEY not in out.text


def test_an_exception_is_on_the_line_of_its_event() -> None:
    """A traceback of many lines is one field, so that a collector keeps it with its event."""
    out = Output()
    log.setup(out)

    try:
        fail()
    except RuntimeError:
        log.get().exception("unexpected")

    (line,) = out.lines
    assert line["exception"].splitlines()[0] == "Traceback (most recent call last):"


@pytest.mark.parametrize("terminal", [False, True])
def test_text_for_people_is_for_terminals_only(terminal: bool) -> None:
    """A terminal gets readable text, anything else JSON."""
    out = Output(terminal=terminal)
    log.setup(out)

    log.get().info("serving", port=8080)

    assert out.text.startswith("{") is not terminal
    assert "serving" in out.text
    assert "8080" in out.text


def test_standard_error_where_nothing_else_is_said(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """Standard output stays free for what a command prints."""
    log.setup()

    log.get().info("serving")

    out, err = capsysbinary.readouterr()
    assert out == b""
    assert json.loads(err)["event"] == "serving"
