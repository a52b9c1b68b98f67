"""``python -m extproc.wire.generate``: compiles our own contracts; with ``--check``, says whether they are compiled."""

import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from grpc_tools import protoc

_ROOT: Final = Path(__file__).parent.parent.parent
_SOURCES: Final = ("extproc/moderation/v1/moderation.proto",)
_TARGET: Final = Path(__file__).parent / "proto"


def main(arguments: list[str]) -> int:
    with TemporaryDirectory() as directory:
        made = _compile(Path(directory))
        if "--check" not in arguments:
            for file in made:
                shutil.copy(file, _TARGET / file.name)
            return 0
        stale = [file.name for file in made if not _is_copy(_TARGET / file.name, file)]
    for name in stale:
        print(f"{name} is not what proto/ says: run `make generate`", file=sys.stderr)  # noqa: T201
    return 1 if stale else 0


def _compile(directory: Path) -> list[Path]:
    # No stubs of services: they would import our contract by its package, and that is where `extproc.moderation` is.
    options = [f"-I{_ROOT / 'proto'}", f"--python_out={directory}", f"--pyi_out={directory}"]
    if protoc.main(["protoc", *options, *_SOURCES]):
        raise SystemExit(1)
    return sorted(file for file in directory.rglob("*.py*") if file.is_file())


def _is_copy(file: Path, original: Path) -> bool:
    return file.exists() and file.read_bytes() == original.read_bytes()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
