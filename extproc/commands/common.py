"""What commands share: options, and how they end."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from typing import NoReturn

    from extproc.config.load import Problem

ConfigFile = Annotated[Path, typer.Option("--config", "-c", help="The configuration file.")]
DEFAULT = Path("extproc.yaml")
Format = Literal["table", "json", "csv"]
FormatOption = Annotated[Format, typer.Option("--format", help="How it is printed.")]


def refused(file: Path, problems: "Sequence[Problem]") -> "NoReturn":
    """End with what is wrong with the configuration."""
    for problem in problems:
        typer.echo(f"{file}: {problem}", err=True)
    raise typer.Exit(2)


def fail(message: str, status: int = 1) -> "NoReturn":
    typer.echo(message, err=True)
    raise typer.Exit(status)
