"""The generated reference says what the schema says."""

from pathlib import Path

import pytest

from extproc.config.reference import main, reference
from extproc.config.schema import json_schema

DOCS = Path(__file__).parents[2] / "docs"


def test_the_committed_files_are_up_to_date() -> None:
    """`make generate` would change nothing."""
    assert main(["--check", str(DOCS / "configuration.md"), str(DOCS / "extproc.schema.json")]) == 0


def test_every_key_is_there() -> None:
    """Each key of each part has a row, with its default."""
    schema = json_schema()
    text = reference(schema)

    for part in [schema, *(part for part in schema["$defs"].values() if "properties" in part)]:
        for key in part["properties"]:
            assert f"\n| `{key}` |" in text
    assert "| `max_body` | string or integer | `8388608` |" in text
    assert "| `route` |" in text
    assert "| required |" in text


def test_a_stale_file_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The check names it and what to do; generating mends it."""
    files = [str(tmp_path / "reference.md"), str(tmp_path / "schema.json")]
    assert main(["--check", *files]) == 1
    assert capsys.readouterr().err.count("make generate") == 2

    assert main(files) == 0
    assert main(["--check", *files]) == 0
    (tmp_path / "reference.md").write_text("old")
    assert main(["--check", *files]) == 1


@pytest.mark.parametrize("name", ["configuration.md", "extproc.schema.json"])
def test_nothing_of_the_machine(name: str) -> None:
    """What is generated is the same everywhere."""
    assert str(Path.home()) not in (DOCS / name).read_text()
