"""What the documentation shows works: every configuration in it loads, and a real Envoy accepts what we make of it."""

import re
from pathlib import Path

import pytest

from extproc.app import check
from extproc.config.load import parse
from extproc.envoyconf.render import resources, static
from extproc.process.envoy import validate

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "envoy/README.md"]
BLOCKS = {
    f"{document.name}:{number}": block
    for document in DOCUMENTS
    for number, block in enumerate(re.findall(r"```yaml\n(.*?)```", document.read_text(), re.DOTALL))
    if "providers:" in block and "models:" in block
}


def test_there_are_some() -> None:
    """The front door and both scenarios show a whole configuration."""
    assert {name.partition(":")[0] for name in BLOCKS} >= {"README.md", "providers.md"}
    assert len([name for name in BLOCKS if name.startswith("providers.md")]) == 2


@pytest.mark.e2e
@pytest.mark.parametrize("name", BLOCKS)
def test_a_configuration(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It loads as it stands, with its variables set, and Envoy takes what is rendered from it."""
    for variable in re.findall(r"env: (\w+)", BLOCKS[name]):
        monkeypatch.setenv(variable, f"sk-{variable.lower()}-0123456789")
    loaded = parse(BLOCKS[name].encode(), ROOT / "extproc.yaml")
    built = check(loaded)

    text = static(loaded.config, resources(loaded.config, built.models, built.providers))
    assert not validate(text, tmp_path)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links(document: Path) -> None:
    """A link to a file of ours leads to one."""
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text())

    assert [target for target in targets if not (document.parent / target).exists()] == []
