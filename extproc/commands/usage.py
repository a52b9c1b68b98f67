"""`extproc usage`: what was used, by whom, of what."""

from typing import Annotated

import typer

from extproc.commands.common import DEFAULT, ConfigFile, FormatOption

_By = Annotated[str, typer.Option("--by", help="Some of consumer, team, model, provider, target, day, hour.")]


def usage(
    by: _By = "consumer,model,provider",
    since: Annotated[str | None, typer.Option(help="From then on: 7d ago, or a date or time.")] = None,
    until: Annotated[str | None, typer.Option(help="To just before: likewise.")] = None,
    consumer: Annotated[str | None, typer.Option(help="Of one consumer.")] = None,
    team: Annotated[str | None, typer.Option(help="Of one team.")] = None,
    model: Annotated[str | None, typer.Option(help="Of one public model.")] = None,
    provider: Annotated[str | None, typer.Option(help="Of one provider.")] = None,
    target: Annotated[str | None, typer.Option(help="Of one model of a provider.")] = None,
    timezone: Annotated[str | None, typer.Option(help="Whose days; that of the accounts if not set.")] = None,
    wide: Annotated[bool, typer.Option("--wide", help="A table with all sums, as JSON and CSV have them.")] = False,
    form: FormatOption = "table",
    config: ConfigFile = DEFAULT,
) -> None:
    """Report what was used, from the totals of the ledger."""
    from extproc.admin import reports
    from extproc.admin.bodies import UsageQuery
    from extproc.commands.output import print_lines
    from extproc.commands.session import session

    with session(config) as s:
        asked = {"consumer": consumer, "team": team, "model": model, "provider": provider, "target": target}
        query = UsageQuery.model_validate({"by": by, "since": since, "until": until, "timezone": timezone, **asked})
        columns, lines = reports.usage(s.ledger, query, s.config.accounts.timezone)
        if form == "table" and not wide:
            columns = [name for name in columns if name not in reports.MORE_SUMS]
        print_lines(lines, columns, form)
