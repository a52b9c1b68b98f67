"""The import table of the design: arrows between packages point one way."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "extproc"

ALLOWED = {
    "core": {"core", "dialects"},
    "dialects": {"dialects"},
    "accounts": {"accounts", "core", "dialects", "stores"},
    "providers": {"providers", "core", "dialects"},
    "filters": {"filters", "core", "dialects", "accounts", "providers", "stores"},
    "wire": {"wire", "core"},
    "config": {"config", "core", "dialects", "providers"},
    "envoyconf": {"envoyconf", "config", "core", "dialects", "filters", "providers", "wire"},
    "telemetry": {"telemetry", "core", "dialects"},
    "admin": {"admin", "config"},
    "process": None,
    "demo": None,
}
"""Package → packages of ours that it may import; None: any. Modules beside the packages may import any."""

WIRE_ONLY = ("grpc", "google", "envoy")


def modules() -> Iterator[tuple[str, Path]]:
    for file in sorted(ROOT.rglob("*.py")):
        parts = file.relative_to(ROOT).parts
        yield (parts[0] if len(parts) > 1 else ""), file


def imports(file: Path) -> Iterator[str]:
    """Every module that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield node.module or ""
            if node.module == "extproc":
                yield from (f"extproc.{alias.name}" for alias in node.names)


def test_every_package_is_in_the_table() -> None:
    """A new package says what it may import."""
    assert {package for package, _ in modules() if package} == set(ALLOWED)


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_arrows_point_one_way(package: str) -> None:
    """No package imports one that it may not know."""
    allowed = ALLOWED[package]
    wrong = [
        f"{file.relative_to(ROOT)} imports {name}"
        for owner, file in modules()
        if owner == package and allowed is not None
        for name in imports(file)
        if name.startswith("extproc.") and name.split(".")[1] not in allowed
    ]

    assert not wrong


def test_protobuf_stays_in_the_wire() -> None:
    """Only `wire` knows gRPC and protobuf."""
    wrong = [
        f"{file.relative_to(ROOT)} imports {name}"
        for owner, file in modules()
        if owner != "wire"
        for name in imports(file)
        if name.split(".")[0] in WIRE_ONLY
    ]

    assert not wrong


def test_envoyconf_knows_of_the_wire_only_its_names() -> None:
    """Rendering a configuration loads no protobuf."""
    used = {name for owner, file in modules() if owner == "envoyconf" for name in imports(file) if ".wire" in name}

    assert used == {"extproc.wire.names"}


@pytest.mark.parametrize("module", ["extproc", "extproc.cli"])
def test_imports_are_light(module: str) -> None:
    """`import extproc`, and what every command imports, load nothing heavy."""
    heavy = ("grpc", "pydantic", "starlette", "granian", "google.protobuf", "prometheus_client", "uvloop")
    code = f"import sys, {module}; print([m for m in {heavy!r} if m in sys.modules])"

    assert "[]" == subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
