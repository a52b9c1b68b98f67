"""Arrows point one way (design.md, section 4): who may import whom."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "extproc"

# Part of extproc → the parts of ours that it may import, besides itself. The longest name that fits a module counts.
TABLE: dict[str, set[str] | None] = {
    "core": {"dialects"},
    "dialects": set(),
    "audit": {"core", "dialects", "stores.ports", "stores.journal"},
    "audit.record": set(),
    "accounts": {"core", "dialects", "stores.ports"},
    "moderation": {"core", "dialects", "stores.ports"},
    "stores": {"audit.record", "core", "dialects"},
    "stores.ports": set(),
    "providers": {"core", "dialects"},
    "filters": {"core", "dialects", "accounts", "audit.record", "moderation", "providers", "stores.ports"},
    "wire": {"core"},
    "wire.names": set(),
    "wire.driver": set(),
    "wire.judge": {"moderation.types", "wire.proto"},
    "wire.grpcio": {"wire.driver"},
    "wire.granian": {"wire.driver"},
    "config": {
        "audit.record",
        "moderation.types",
        "accounts.prices",
        "accounts.rules",
        "core",
        "dialects.endpoints",
        "providers",
        "stores.ports",
    },
    "envoyconf": {"config", "core", "dialects", "filters.routing", "providers", "wire.names"},
    "telemetry": {"core", "dialects", "stores.ports"},
    "admin": {"accounts.keys", "audit.record", "config", "dialects.endpoints", "stores.ports", "telemetry.log"},
    "commands": None,
    "process": None,  # None: anything
    "app": None,
    "auditing": {"audit", "config", "core"},
    "judging": {"config", "core", "moderation", "wire.judge"},
    "moderating": {"config", "core", "moderation"},
    "accounting": {"accounts", "config", "core", "filters.quota"},
    "cli": None,
    "demo": None,
    "__main__": {"cli"},
    "__init__": set(),
}

WIRE_ONLY = ("grpc", "grpc_health", "google", "envoy", "xds", "granian")
DATABASES = (
    "redis",
    "sqlalchemy",
    "sqlite3",
    "aiosqlite",
    "psycopg",
    "psycopg2",
    "asyncpg",
    "pg8000",
)


def modules() -> Iterator[str]:
    for file in sorted(ROOT.rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def source(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imports(module: str) -> set[str]:
    """Every module that this one imports, at its top or in a function, by its full name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source(module).read_text())):
        match node:
            case ast.Import(names=names):
                found |= {alias.name for alias in names}
            case ast.ImportFrom(level=0, module=str(base), names=names):
                # `from extproc.a import b` may name a module or a thing in one.
                found |= {f"{base}.{alias.name}" if is_module(f"{base}.{alias.name}") else base for alias in names}
            case ast.ImportFrom():
                raise AssertionError(f"{module} imports relatively: {ast.unparse(node)}")
    return found


def is_module(name: str) -> bool:
    head, _, rest = name.partition(".")
    path = ROOT.joinpath(*rest.split("."))
    return head == "extproc" and bool(rest) and (path.is_dir() or path.with_suffix(".py").exists())


def part_of(module: str) -> str:
    """The row of the table that rules this module."""
    rows = [row for row in TABLE if module == row or module.startswith(f"{row}.")]
    assert rows, f"{module} has no row in the table of imports"
    return max(rows, key=len)


MODULES = list(modules())


def test_the_table_is_whole() -> None:
    """Every part has its row, and every row is a part that is there."""
    assert {part_of(module) for module in MODULES} == set(TABLE)


@pytest.mark.parametrize("module", MODULES)
def test_arrows(module: str) -> None:
    """A module imports of ours what its row of the table allows, and nothing else."""
    row = part_of(module)
    allowed = TABLE[row]
    if allowed is None:
        return
    # A row within a package is a rule of its own: it may not use the rest of the package.
    ours = {name.removeprefix("extproc.") for name in imports(module) if name.startswith("extproc")}
    wrong = {name for name in ours if not any(name == part or name.startswith(f"{part}.") for part in {row, *allowed})}

    assert wrong == set()


@pytest.mark.parametrize("module", MODULES)
def test_grpc_and_protobuf_stay_in_wire(module: str) -> None:
    """Only the wire knows gRPC, protobuf and Envoy's messages."""
    foreign = {name for name in imports(module) if name.split(".")[0] in WIRE_ONLY}

    assert foreign == set() or module.split(".", maxsplit=1)[0] == "wire"


@pytest.mark.parametrize("module", MODULES)
def test_databases_stay_in_stores(module: str) -> None:
    """Only the stores know database drivers."""
    drivers = {name for name in imports(module) if name.split(".")[0] in DATABASES}

    assert drivers == set() or module.split(".", maxsplit=1)[0] == "stores"


@pytest.mark.parametrize("module", [name for name in MODULES if name.split(".")[0] in ("core", "dialects")])
def test_the_core_does_no_io(module: str) -> None:
    """The core has no clock, no socket, no file and no log of its own."""
    # Tasks are the one thing of asyncio that the core offers.
    banned = {"asyncio", "socket", "time", "os", "io", "pathlib", "logging", "structlog", "threading", "subprocess"}
    banned -= {"asyncio"} if module == "core.tasks" else set()

    assert {name.split(".")[0] for name in imports(module)} & banned == set()


def loaded_by(statement: str) -> set[str]:
    """The top names of all modules that a fresh Python has loaded after this statement."""
    script = f"{statement}\nimport sys\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60, cwd=ROOT.parent
    )
    return set(done.stdout.split())


HEAVY = {"grpc", "google", "envoy", "granian", "pydantic", "starlette", "uvicorn", "yaml", "structlog", "msgspec"}


def test_importing_the_package_is_cheap() -> None:
    """`import extproc` brings in nothing heavy."""
    assert loaded_by("import extproc") & (HEAVY | {"typer", "asyncio"}) == set()


def test_importing_the_commands_is_cheap() -> None:
    """Commands import what they need when they run, so that `--help` is quick."""
    assert loaded_by("import extproc.cli") & HEAVY == set()


def test_importing_the_core_brings_no_wire() -> None:
    """A filter can be tested with no gRPC, no configuration and no server installed."""
    assert (
        loaded_by("import extproc.core.exchange, extproc.core.attempt, extproc.filters.auth") & (HEAVY - {"msgspec"})
        == set()
    )
