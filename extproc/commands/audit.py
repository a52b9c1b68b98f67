"""`extproc audit`: what was asked and answered, and what moderation made of it. Every look is noted."""

import getpass
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from extproc.commands.common import DEFAULT, ConfigFile, FormatOption, fail

if TYPE_CHECKING:
    from collections.abc import Mapping

    from extproc.admin.bodies import AuditQuery
    from extproc.admin.records import Records
    from extproc.commands.session import Session

app = typer.Typer(help="The audit: a record of every call. Who looks is noted.", no_args_is_help=True)
_COLUMNS = ("time", "call_id", "consumer", "model", "provider", "how", "status", "verdicts")
_READINGS = ("time", "who", "what", "asked", "found")
_PAUSE = 0.5  # seconds between two looks for what is new

Text = Annotated[str, typer.Argument(help="Words of the request or the answer; 'word*' is how one begins.")]
Since = Annotated[str | None, typer.Option(help="Began then or later: 7d ago, or a date or time.")]
Until = Annotated[str | None, typer.Option(help="Began before: likewise.")]
Consumer = Annotated[str | None, typer.Option(help="Those of one consumer.")]
Team = Annotated[str | None, typer.Option(help="Those of one team.")]
Person = Annotated[str | None, typer.Option(help="Those with this `user`, as the client sent it.")]
Model = Annotated[str | None, typer.Option(help="Those of one public model.")]
Provider = Annotated[str | None, typer.Option(help="Those that one provider answered.")]
How = Annotated[str | None, typer.Option(help="completed, replied, refused, aborted, failed or lost.")]
Status = Annotated[int | None, typer.Option(help="Those answered with this status.")]
Check = Annotated[str | None, typer.Option(help="Those in which this check or judge found something.")]
Category = Annotated[str | None, typer.Option(help="Those in which something of this category was found.")]
Action = Annotated[str | None, typer.Option(help="Those in which it was found and this was done: flag, mask, block.")]


@app.command("search")
def search(
    text: Text = "",
    since: Since = None,
    until: Until = None,
    consumer: Consumer = None,
    team: Team = None,
    person: Person = None,
    model: Model = None,
    provider: Provider = None,
    how: How = None,
    status: Status = None,
    check: Check = None,
    category: Category = None,
    action: Action = None,
    limit: Annotated[int, typer.Option(help="At most so many.", min=1, max=1000)] = 100,
    cursor: Annotated[str, typer.Option(help="Where to go on, as the search before has said.")] = "",
    form: FormatOption = "table",
    config: ConfigFile = DEFAULT,
) -> None:
    """List records without their texts, the newest first."""
    from extproc.commands.output import print_lines
    from extproc.commands.session import session

    query = {
        "text": text,
        "since": since,
        "until": until,
        "consumer": consumer,
        "team": team,
        "person": person,
        "model": model,
        "provider": provider,
        "how": how,
        "status": status,
        "check": check,
        "category": category,
        "action": action,
    }
    with session(config) as s:
        lines, following = _records(s).search(_who(), _query(query), limit=limit, cursor=cursor)
    shown = lines if form == "json" else [_short(line) for line in lines]
    print_lines(shown, _COLUMNS, form)
    if following:
        typer.echo(f"there are more: --cursor {following}", err=True)


@app.command("show")
def show(
    call_id: Annotated[str, typer.Argument(help="The call's id: `x-extproc-call-id` of its answer.")],
    form: FormatOption = "table",
    config: ConfigFile = DEFAULT,
) -> None:
    """Show the record of one call, with its texts as the policy keeps them."""
    from extproc.commands.output import print_one
    from extproc.commands.session import session

    with session(config) as s:
        line = _records(s).show(_who(), call_id)
    print_one(line if form == "json" else _flat(line), form)


@app.command("tail")
def tail(
    consumer: Consumer = None,
    model: Model = None,
    category: Category = None,
    action: Action = None,
    seconds: Annotated[float | None, typer.Option("--for", help="Stop after so many seconds.")] = None,
    config: ConfigFile = DEFAULT,
) -> None:
    """Print records as they come, a line of JSON each, without their texts."""
    import json

    from extproc.commands.session import session

    query = _query({"consumer": consumer, "model": model, "category": category, "action": action})
    end = None if seconds is None else time.monotonic() + seconds
    with session(config) as s:
        more = _records(s).tail(_who(), query)
        while True:
            for line in more():
                typer.echo(json.dumps(line, ensure_ascii=False))
            if end is not None and time.monotonic() >= end:
                return
            time.sleep(_PAUSE)


@app.command("export")
def export(
    out: Annotated[Path, typer.Option("--out", help="The file; `-` is standard output, for jsonl.")],
    form: Annotated[Literal["jsonl", "parquet"], typer.Option("--format", help="What kind of file.")] = "jsonl",
    text: Text = "",
    since: Since = None,
    until: Until = None,
    consumer: Consumer = None,
    person: Person = None,
    model: Model = None,
    category: Category = None,
    action: Action = None,
    config: ConfigFile = DEFAULT,
) -> None:
    """Write whole records to a file."""
    from extproc.audit import export as files
    from extproc.commands.session import session

    query = _query(
        {
            "text": text,
            "since": since,
            "until": until,
            "consumer": consumer,
            "person": person,
            "model": model,
            "category": category,
            "action": action,
        }
    )
    with session(config) as s:
        records = _records(s).export(_who(), query)
        try:
            if form == "parquet":
                count = files.parquet(records, out)
            elif str(out) == "-":
                count = files.jsonl(records, sys.stdout.buffer)
            else:
                with out.open("wb") as file:
                    count = files.jsonl(records, file)
        except ModuleNotFoundError:
            fail("Parquet needs pyarrow: pip install 'extproc[parquet]'")
        except OSError as error:
            fail(f"{out}: cannot be written: {error.strerror or error}")
    typer.echo(f"records written: {count}", err=True)


@app.command("delete")
def delete(
    consumer: Consumer = None,
    person: Person = None,
    before: Annotated[str | None, typer.Option(help="Began before: 90d ago, or a date or time.")] = None,
    config: ConfigFile = DEFAULT,
) -> None:
    """Delete records: all that is given must hold of them."""
    from extproc.commands.session import session

    with session(config) as s:
        query = _query({"consumer": consumer, "person": person, "until": before})
        typer.echo(f"records deleted: {_records(s).delete(_who(), query)}", err=True)


@app.command("readings")
def readings(
    limit: Annotated[int, typer.Option(help="At most so many.", min=1)] = 100,
    form: FormatOption = "table",
    config: ConfigFile = DEFAULT,
) -> None:
    """List who has looked at the audit or deleted from it, the newest first."""
    from extproc.commands.output import print_lines
    from extproc.commands.session import session

    with session(config) as s:
        print_lines(_records(s).readings(_who(), limit), _READINGS, form)


def _records(session: "Session") -> "Records":
    from extproc.admin.records import Records

    return Records(session.database.audit, lambda: session.config.accounts.timezone)


def _query(values: "Mapping[str, Any]") -> "AuditQuery":
    from pydantic import ValidationError

    from extproc.admin.bodies import AuditQuery
    from extproc.config.load import described

    try:
        return AuditQuery.model_validate(values)
    except ValidationError as error:
        fail("\n".join(str(problem) for problem in described(error.errors())), 2)


def _who() -> str:
    try:
        return f"user {getpass.getuser()}"
    except (KeyError, OSError):  # a container's user may have no name
        return f"user {os.getuid()}"


def _short(line: "Mapping[str, Any]") -> dict[str, Any]:
    """The verdicts as one text: `block politics, mask phone`."""
    found = dict.fromkeys(f"{verdict['action']} {verdict['category']}" for verdict in line["verdicts"])
    return {**line, "verdicts": ", ".join(found)}


def _flat(line: "Mapping[str, Any]") -> dict[str, Any]:
    """What was said, and what was found, one below the other."""
    flat = dict(line)
    for name in ("request", "answer"):
        for place, message in enumerate(flat.pop(name)):
            flat[f"{name}[{place}] {message['role']}"] = message.get("text") or f"sha256:{message.get('digest', '')}"
    for place, verdict in enumerate(flat.pop("verdicts")):
        where = f"{verdict.get('place', '')}[{verdict.get('start', 0)}:{verdict.get('end', 0)}]"
        flat[f"verdict[{place}]"] = (
            f"{verdict['action']} {verdict['category']} by {verdict['check']} at {where} {verdict.get('what', '')}"
        ).rstrip()
    return {name: value for name, value in flat.items() if value not in ("", None, [], {})}
