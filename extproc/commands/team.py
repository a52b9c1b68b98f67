"""`extproc team`: groups of consumers that share quotas and limits."""

from typing import Annotated

import typer

from extproc.commands.common import DEFAULT, ConfigFile, FormatOption
from extproc.commands.options import Endpoints, Limits, Models, Policy, Quotas, settings

app = typer.Typer(help="Teams: groups of consumers that share quotas and limits.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="The team's name.")]
_COLUMNS = ("name", "source", "models", "policy", "quota", "limits")


@app.command("create")
def create(
    name: Name,
    model: Models = None,
    endpoint: Endpoints = None,
    quota: Quotas = None,
    limit: Limits = None,
    policy: Policy = None,
    config: ConfigFile = DEFAULT,
) -> None:
    """Make a team."""
    from extproc.admin.bodies import NewTeam
    from extproc.commands.session import session

    with session(config) as s:
        made = settings(model=model, endpoint=endpoint, quota=quota, limit=limit, policy=policy)
        s.operations.create_team(NewTeam.model_validate({"name": name, **made}))


@app.command("update")
def update(
    name: Name,
    model: Models = None,
    endpoint: Endpoints = None,
    quota: Quotas = None,
    limit: Limits = None,
    policy: Policy = None,
    config: ConfigFile = DEFAULT,
) -> None:
    """Change what is given; an empty text ('') sets it back."""
    from extproc.admin.bodies import TeamChange
    from extproc.commands.session import session

    with session(config) as s:
        made = settings(model=model, endpoint=endpoint, quota=quota, limit=limit, policy=policy)
        s.operations.update_team(name, TeamChange.model_validate(made))


@app.command("show")
def show(name: Name, form: FormatOption = "table", config: ConfigFile = DEFAULT) -> None:
    """Show one team."""
    from extproc.commands.output import print_one
    from extproc.commands.session import session

    with session(config) as s:
        print_one(s.operations.team(name).model_dump(), form)


@app.command("list")
def list_(form: FormatOption = "table", config: ConfigFile = DEFAULT) -> None:
    """List all teams, of the database and of the configuration file."""
    from extproc.commands.output import print_lines
    from extproc.commands.session import session

    with session(config) as s:
        print_lines([team.model_dump() for team in s.operations.teams()], _COLUMNS, form)


@app.command("delete")
def delete(name: Name, config: ConfigFile = DEFAULT) -> None:
    """Delete a team that has no consumers."""
    from extproc.commands.session import session

    with session(config) as s:
        s.operations.delete_team(name)
