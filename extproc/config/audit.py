"""The parts that say what is kept of calls, for how long, and where."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from extproc.audit.record import TextForm
from extproc.config.parts import Part, Positive, SecretRef
from extproc.config.units import Size


class AuditPolicy(Part):
    """What is kept of a policy's calls for the audit."""

    text: TextForm = "masked"
    """Requests and answers: as they were (`full`), with what moderation masks (`masked`), the SHA-256 of each message
    (`digest`), or not at all (`none`)."""
    retention: Positive | None = None
    """How long, where that is not what `audit` says."""


class FileSink(Part):
    """A file with a line of JSON for each record."""

    path: Path
    """The file. What is put aside is beside it, with a number after its name."""
    max_size: Annotated[Size, Field(ge=1)] = 64 << 20
    """It is put aside before it grows larger."""
    max_age: Positive | None = 86400.0
    """It is put aside when it is so old; never, where not set."""
    keep: Annotated[int, Field(ge=0)] = 10
    """How many files that were put aside stay."""


class OtlpSink(Part):
    """An OpenTelemetry collector, by OTLP over HTTP."""

    endpoint: Annotated[str, StringConstraints(pattern=r"^https?://")]
    """Its URL, with the path: `http://collector:4318/v1/logs`."""
    headers: dict[str, SecretRef] = {}
    """Headers to send, such as `authorization`."""


class SlsSink(Part):
    """A logstore of Alibaba Cloud Log Service."""

    endpoint: str
    """Such as `cn-hangzhou.log.aliyuncs.com`."""
    project: str
    """The project."""
    logstore: str
    """The logstore."""
    key_id: SecretRef
    """AccessKey ID of a RAM user that may `log:PostLogStoreLogs`."""
    key_secret: SecretRef
    """AccessKey secret."""
    topic: str = ""
    """The topic of what is sent."""
    region: str = ""
    """Such as `cn-hangzhou`: then requests are signed by version 4."""


class AuditSink(Part):
    """Where records go besides the database: exactly one of the three."""

    file: FileSink | None = None
    """A file with a line of JSON for each record."""
    otlp: OtlpSink | None = None
    """An OpenTelemetry collector, by OTLP over HTTP."""
    sls: SlsSink | None = None
    """A logstore of Alibaba Cloud Log Service."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(x is not None for x in (self.file, self.otlp, self.sls)) != 1:
            raise ValueError("a sink is {file: …}, {otlp: …} or {sls: …}")
        return self


class Audit(Part):
    """The record of every call, in the database and elsewhere."""

    spill: Path = Path("run/audit")
    """Directory of records on their way to the database: what a killed worker leaves there, the next one writes."""
    spill_size: Annotated[Size, Field(ge=1 << 20)] = 1 << 30
    """So much may wait there for a database that is away, in each worker; what comes then is lost, and counted."""
    retention: Positive | None = 90 * 86400.0
    """How long records are kept, where their policy does not say; for ever, where not set."""
    sinks: list[AuditSink] = []
    """Where records go besides the database."""
