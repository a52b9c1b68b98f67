"""`extproc consumer`: who may call."""

from typing import Annotated

import typer

from extproc.commands.common import DEFAULT, ConfigFile, FormatOption
from extproc.commands.options import Endpoints, Limits, Models, Policy, Quotas, settings

app = typer.Typer(help="Consumers: who may call, and how much.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="The consumer's name.")]
Team = Annotated[str | None, typer.Option("--team", help="The team that it belongs to.")]
Note = Annotated[str | None, typer.Option("--note", help="For people.")]
_COLUMNS = ("name", "source", "team", "disabled", "models", "policy", "quota", "limits", "note")


@app.command("create")
def create(
    name: Name,
    team: Team = None,
    model: Models = None,
    endpoint: Endpoints = None,
    quota: Quotas = None,
    limit: Limits = None,
    policy: Policy = None,
    note: Note = None,
    config: ConfigFile = DEFAULT,
) -> None:
    """Make a consumer; `extproc key create` makes its keys."""
    from extproc.admin.bodies import NewConsumer
    from extproc.commands.session import session

    with session(config) as s:
        made = settings(model=model, endpoint=endpoint, quota=quota, limit=limit, team=team, policy=policy, note=note)
        s.operations.create_consumer(NewConsumer.model_validate({"name": name, **made}))


@app.command("update")
def update(
    name: Name,
    team: Team = None,
    model: Models = None,
    endpoint: Endpoints = None,
    quota: Quotas = None,
    limit: Limits = None,
    policy: Policy = None,
    note: Note = None,
    config: ConfigFile = DEFAULT,
) -> None:
    """Change what is given; an empty text ('') sets it back."""
    from extproc.admin.bodies import ConsumerChange
    from extproc.commands.session import session

    with session(config) as s:
        made = settings(model=model, endpoint=endpoint, quota=quota, limit=limit, team=team, policy=policy, note=note)
        s.operations.update_consumer(name, ConsumerChange.model_validate(made))


@app.command("show")
def show(name: Name, form: FormatOption = "table", config: ConfigFile = DEFAULT) -> None:
    """Show one consumer."""
    from extproc.commands.output import print_one
    from extproc.commands.session import session

    with session(config) as s:
        print_one(s.operations.consumer(name).model_dump(), form)


@app.command("list")
def list_(
    team: Annotated[str | None, typer.Option("--team", help="Those of one team.")] = None,
    form: FormatOption = "table",
    config: ConfigFile = DEFAULT,
) -> None:
    """List all consumers, of the database and of the configuration file."""
    from extproc.commands.output import print_lines
    from extproc.commands.session import session

    with session(config) as s:
        print_lines([consumer.model_dump() for consumer in s.operations.consumers(team)], _COLUMNS, form)


@app.command("enable")
def enable(name: Name, config: ConfigFile = DEFAULT) -> None:
    """Let its keys work again."""
    from extproc.commands.session import session

    with session(config) as s:
        s.operations.enable_consumer(name)


@app.command("disable")
def disable(name: Name, config: ConfigFile = DEFAULT) -> None:
    """Let none of its keys work until it is enabled."""
    from extproc.commands.session import session

    with session(config) as s:
        s.operations.disable_consumer(name)


@app.command("delete")
def delete(name: Name, config: ConfigFile = DEFAULT) -> None:
    """Delete a consumer and its keys; its rows of the ledger stay."""
    from extproc.commands.session import session

    with session(config) as s:
        s.operations.delete_consumer(name)
