"""`extproc key`: keys of consumers. A key is printed once, alone on standard output."""

import sys
from typing import Annotated

import typer

from extproc.commands.common import DEFAULT, ConfigFile, FormatOption, fail

app = typer.Typer(help="Keys of consumers.", no_args_is_help=True)
Consumer = Annotated[str, typer.Argument(help="The consumer's name.")]
Id = Annotated[str, typer.Argument(metavar="ID", help="The key's id, as in `extproc key list`.")]
_COLUMNS = ("id", "consumer", "label", "hint", "state", "created", "expires", "revoked", "last_used")


@app.command("create")
def create(
    consumer: Consumer,
    label: Annotated[str, typer.Option("--label", help="What it is for.")] = "",
    expires: Annotated[
        str | None, typer.Option("--expires", help="When it ends: 90d from now, or a date or time.")
    ] = None,
    config: ConfigFile = DEFAULT,
) -> None:
    """Make a key and print it: it is not shown again."""
    from extproc.admin.bodies import NewKey
    from extproc.commands.session import session

    with session(config) as s:
        typer.echo(s.operations.create_key(consumer, NewKey(label=label, expires=expires)).key)


@app.command("list")
def list_(
    consumer: Annotated[str | None, typer.Argument(help="Those of one consumer.")] = None,
    form: FormatOption = "table",
    config: ConfigFile = DEFAULT,
) -> None:
    """List the keys of the database, by id, with the last characters of each."""
    from extproc.commands.output import print_lines
    from extproc.commands.session import session

    with session(config) as s:
        print_lines([key.model_dump() for key in s.operations.keys(consumer)], _COLUMNS, form)


@app.command("find")
def find(form: FormatOption = "table", config: ConfigFile = DEFAULT) -> None:
    """Say whose key stands on standard input, where no history of commands keeps it."""
    from extproc.accounts.keys import is_ours
    from extproc.commands.output import print_one
    from extproc.commands.session import session

    key = sys.stdin.readline().strip()
    if not is_ours(key):
        fail("this is no key that extproc made, or it was mistyped or cut")
    with session(config) as s:
        print_one(s.operations.find_key(key).model_dump(), form)


@app.command("rotate")
def rotate(
    key_id: Id,
    overlap: Annotated[str, typer.Option("--overlap", help="How long the old one still works.")] = "24h",
    config: ConfigFile = DEFAULT,
) -> None:
    """Make the key that takes its place and print it; the old one ends after the overlap."""
    from extproc.admin.bodies import Rotation
    from extproc.commands.session import session

    with session(config) as s:
        typer.echo(s.operations.rotate_key(key_id, Rotation.model_validate({"overlap": overlap})).key)


@app.command("revoke")
def revoke(key_id: Id, config: ConfigFile = DEFAULT) -> None:
    """Let a key work no more. It stays in the list."""
    from extproc.commands.session import session

    with session(config) as s:
        s.operations.revoke_key(key_id)


@app.command("delete")
def delete(key_id: Id, config: ConfigFile = DEFAULT) -> None:
    """Let a key work no more, and take it out of the list."""
    from extproc.commands.session import session

    with session(config) as s:
        s.operations.delete_key(key_id)
