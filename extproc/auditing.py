"""The audit, from its configuration."""

from collections.abc import Mapping

from extproc.audit.record import Retention
from extproc.audit.sinks import Sink
from extproc.config.audit import AuditSink
from extproc.config.load import ConfigError, Loaded, Problem
from extproc.config.schema import Config
from extproc.core.secret import Secret


def sinks(loaded: Loaded) -> list[Sink]:
    """Raises ConfigError for a sink whose library is not installed."""
    made, problems = [], []
    for place, (sink, secrets) in enumerate(zip(loaded.config.audit.sinks, loaded.sink_secrets, strict=True)):
        try:
            made.append(_sink(sink, secrets))
        except ModuleNotFoundError as error:
            problems.append(Problem(f"audit.sinks[{place}]", f"{error.name} is not installed: see docs/audit.md"))
    if problems:
        raise ConfigError(loaded.file, problems)
    return made


def retention(config: Config) -> Retention:
    own = {name: policy.audit.retention for name, policy in config.policies.items()}
    return Retention(config.audit.retention, {name: seconds for name, seconds in own.items() if seconds is not None})


def _sink(sink: AuditSink, secrets: Mapping[str, Secret]) -> Sink:
    # Each brings in a library of its own.
    if sink.file is not None:
        from extproc.audit.sinks.files import FileSink  # noqa: PLC0415

        return FileSink(sink.file.path, max_size=sink.file.max_size, max_age=sink.file.max_age, keep=sink.file.keep)
    if sink.otlp is not None:
        from extproc.audit.sinks.otlp import OtlpSink  # noqa: PLC0415

        return OtlpSink(sink.otlp.endpoint, secrets)
    if sink.sls is not None:
        from extproc.audit.sinks.sls import SlsSink  # noqa: PLC0415

        return SlsSink(
            endpoint=sink.sls.endpoint,
            project=sink.sls.project,
            logstore=sink.sls.logstore,
            key_id=secrets["key_id"],
            key_secret=secrets["key_secret"],
            topic=sink.sls.topic,
            region=sink.sls.region,
        )
    raise AssertionError("a sink is one of these")
