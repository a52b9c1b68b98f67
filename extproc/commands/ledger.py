"""`extproc ledger`: the calls themselves, and whether the numbers made of them are right."""

from typing import Annotated

import typer

from extproc.commands.common import DEFAULT, ConfigFile, FormatOption

app = typer.Typer(help="The ledger: one row a call, and whether the numbers agree with it.", no_args_is_help=True)
_COLUMNS = (
    *("started", "call_id", "consumer", "model", "provider", "target", "attempts"),
    *("how", "status", "code", "input", "output", "usage", "money", "currency"),
)


@app.command("verify")
def verify(
    repair: Annotated[bool, typer.Option("--repair", help="First make the totals anew from the rows.")] = False,
    form: FormatOption = "table",
    config: ConfigFile = DEFAULT,
) -> None:
    """Compare the totals, and the numbers in use, with the rows. The status is 1 where they differ."""
    from msgspec.structs import asdict

    from extproc.commands.hot import wrong_numbers
    from extproc.commands.output import print_lines
    from extproc.commands.session import session

    with session(config) as s:
        if repair:
            typer.echo(f"totals made anew: {s.ledger.repair()}", err=True)
        differences = s.ledger.verify() or wrong_numbers(s.config, config, s.database)
    if differences or form != "table":
        print_lines([asdict(difference) for difference in differences], ("where", "ledger", "found"), form)
    else:
        typer.echo("the numbers agree with the rows")
    if differences:
        raise typer.Exit(1)


@app.command("rows")
def rows(
    consumer: Annotated[str | None, typer.Option(help="Those of one consumer.")] = None,
    since: Annotated[str | None, typer.Option(help="Began then or later: 7d ago, or a date or time.")] = None,
    until: Annotated[str | None, typer.Option(help="Began before: likewise.")] = None,
    limit: Annotated[int, typer.Option(help="At most so many.")] = 100,
    form: FormatOption = "table",
    config: ConfigFile = DEFAULT,
) -> None:
    """List calls, the newest first."""
    from extproc.admin import reports
    from extproc.admin.bodies import RowsQuery
    from extproc.commands.output import print_lines
    from extproc.commands.session import session

    with session(config) as s:
        query = RowsQuery.model_validate({"consumer": consumer, "since": since, "until": until, "limit": limit})
        columns, lines = reports.calls(s.ledger, query, s.config.accounts.timezone)
        print_lines(lines, _COLUMNS if form == "table" else columns, form)
