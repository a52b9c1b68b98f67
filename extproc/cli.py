"""The commands. Each imports what it needs when it runs, so that `extproc --help` is quick."""

import json
import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from extproc.commands import audit, consumer, key, ledger, team, usage
from extproc.commands.common import DEFAULT, ConfigFile, fail, refused

if TYPE_CHECKING:
    from extproc.config.load import Loaded
    from extproc.envoyconf.render import Resources

app = typer.Typer(
    name="extproc",
    help="An Envoy external processor that makes Envoy an AI gateway.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
envoy_app = typer.Typer(help="Envoy's configuration: render it, check it, read your own.", no_args_is_help=True)
config_app = typer.Typer(help="The configuration file.", no_args_is_help=True)
app.add_typer(envoy_app, name="envoy")
app.add_typer(config_app, name="config")
app.add_typer(consumer.app, name="consumer")
app.add_typer(team.app, name="team")
app.add_typer(key.app, name="key")
app.command("usage")(usage.usage)
app.add_typer(ledger.app, name="ledger")
app.add_typer(audit.app, name="audit")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"extproc {version('extproc')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    del version


@app.command()
def up(config: ConfigFile = DEFAULT) -> None:
    """Run the server and an Envoy with the configuration rendered from the same file."""
    _serve(config, with_envoy=True, render=True)


@app.command()
def serve(
    config: ConfigFile = DEFAULT,
    render: Annotated[bool, typer.Option(help="Keep the files of gateway.directory up to date for an Envoy.")] = False,
) -> None:
    """Run the server alone."""
    _serve(config, with_envoy=False, render=render)


@app.command(hidden=True)
def worker(
    config: Annotated[Path, typer.Option()],
    index: Annotated[int, typer.Option()],
    control: Annotated[int, typer.Option(help="File descriptor of the socket to the supervisor.")],
) -> None:
    """One worker process; the supervisor starts it."""
    import uvloop

    from extproc.process.worker import run
    from extproc.telemetry import log

    log.setup()
    raise typer.Exit(uvloop.run(run(config, index, socket.socket(fileno=control))))


@app.command()
def demo(
    keep: Annotated[bool, typer.Option(help="Keep everything running afterwards, for your own calls.")] = False,
) -> None:
    """Start stub providers, the server and an Envoy, and walk through what they do."""
    from extproc.demo.tour import run

    raise typer.Exit(run(keep=keep))


@envoy_app.command("render")
def envoy_render(
    config: ConfigFile = DEFAULT,
    out: Annotated[
        Path | None, typer.Option(help="Directory for the files that Envoy watches; without it one file is printed.")
    ] = None,
) -> None:
    """Write the Envoy configuration."""
    from extproc.envoyconf.files import EnvoyFiles
    from extproc.envoyconf.render import static

    loaded = _load(config)
    made = _resources(loaded, out)
    if out is None:
        typer.echo(static(loaded.config, made), nl=False)
        return
    files = EnvoyFiles(out)
    try:
        files.write_all(loaded.config, made, loaded.digest)
    except OSError as error:
        fail(f"{error.filename or out}: cannot be written: {error.strerror}")
    typer.echo(f"written; start it with: envoy -c {files.bootstrap}")


@envoy_app.command("check")
def envoy_check(config: ConfigFile = DEFAULT) -> None:
    """Render the Envoy configuration and have the real Envoy validate it."""
    from extproc.envoyconf.render import static
    from extproc.process.envoy import EnvoyMissingError, validate

    loaded = _load(config)
    text = static(loaded.config, _resources(loaded, None))
    with tempfile.TemporaryDirectory() as directory:
        try:
            complaint = validate(text, Path(directory))
        except EnvoyMissingError as error:
            fail(str(error))
    if complaint:
        fail(complaint)
    typer.echo("Envoy accepts it.")


@envoy_app.command("lint")
def envoy_lint(
    file: Annotated[Path, typer.Argument(help="Your own envoy.yaml.")],
    max_body: Annotated[str, typer.Option(help="The largest request body to expect.")] = "8MiB",
    format_: Annotated[Literal["table", "json"], typer.Option("--format")] = "table",
) -> None:
    """Say what in an Envoy configuration of your own would hurt, with path and reason."""
    from dataclasses import asdict

    from extproc.config.units import size
    from extproc.envoyconf.lint import lint

    try:
        findings = lint(file.read_text(), max_body=size(max_body), filename=str(file))
    except OSError as error:
        fail(f"{file}: cannot be read: {error.strerror}")
    except UnicodeDecodeError:
        fail(f"{file}: is not text")
    except ValueError as error:
        fail(f"--max-body: {error}")
    if format_ == "json":
        typer.echo(json.dumps([asdict(f) for f in findings], indent=2))
    else:
        for f in findings:
            typer.echo(f"{file}:{f.line or 1}: {f.severity}: {f.message} [{f.rule}]\n    at {f.path}\n    {f.fix}")
        typer.echo(f"{len(findings)} finding(s)" if findings else "nothing that would hurt")
    if any(f.severity == "error" for f in findings):
        raise typer.Exit(1)


@config_app.command("check")
def config_check(config: ConfigFile = DEFAULT) -> None:
    """Check the configuration file whole."""
    from extproc.app import check_moderation
    from extproc.config.load import ConfigError

    loaded = _load(config)
    _resources(loaded, None)
    try:
        check_moderation(loaded)
    except ConfigError as error:
        refused(error.file, error.problems)
    c = loaded.config
    typer.echo(f"ok: {len(c.providers)} providers, {len(c.models)} models, {len(c.consumers)} consumers")


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON Schema of the configuration file, for editors."""
    from extproc.config.schema import json_schema

    typer.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))


def _serve(config: Path, *, with_envoy: bool, render: bool) -> None:
    from extproc.telemetry.shared import metrics_directory

    # gRPC would prepare itself for children that go on after a fork; ours are other programs at once.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
    with metrics_directory():
        import uvloop

        from extproc.process.run import run
        from extproc.telemetry import log

        log.setup()
        raise typer.Exit(uvloop.run(run(config, with_envoy=with_envoy, render=render)))


def _load(config: Path) -> "Loaded":
    from extproc.config.load import ConfigError, load

    try:
        return load(config)
    except ConfigError as error:
        refused(error.file, error.problems)


def _resources(loaded: "Loaded", directory: Path | None) -> "Resources":
    from extproc.app import check
    from extproc.config.load import ConfigError
    from extproc.envoyconf.render import resources

    try:
        built = check(loaded)
        return resources(loaded.config, built.models, built.providers, directory=directory)
    except ConfigError as error:
        refused(error.file, error.problems)
    except FileNotFoundError as error:
        fail(str(error))


def main() -> None:
    sys.exit(app())
