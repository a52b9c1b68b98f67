"""Records as OpenTelemetry logs, by OTLP over HTTP: `pip install 'extproc[otlp]'`."""

from collections.abc import Mapping, Sequence
from typing import Any

from extproc.audit.record import Record, encode
from extproc.core.secret import Secret


class OtlpSink:
    """The body is the record as JSON. ``endpoint`` has its path: `http://collector:4318/v1/logs`."""

    name = "otlp"

    def __init__(self, endpoint: str, headers: Mapping[str, Secret], *, timeout: float = 10.0) -> None:
        """Raises ModuleNotFoundError without the extra."""
        from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter  # noqa: PLC0415 - an extra
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415

        self._resource = Resource.create({"service.name": "extproc"})
        shown = {name: secret.reveal() for name, secret in headers.items()}
        self._exporter: Any = OTLPLogExporter(endpoint=endpoint, headers=shown, timeout=timeout)

    def write(self, records: Sequence[Record]) -> None:
        """Raises ConnectionError."""
        from opentelemetry.sdk._logs.export import LogRecordExportResult  # noqa: PLC0415

        if self._exporter.export([self._log(record) for record in records]) is not LogRecordExportResult.SUCCESS:
            raise ConnectionError("the collector did not take the records")

    def close(self) -> None:
        self._exporter.shutdown()

    def _log(self, record: Record) -> Any:
        from opentelemetry._logs import LogRecord, SeverityNumber  # noqa: PLC0415
        from opentelemetry.sdk._logs import ReadableLogRecord  # noqa: PLC0415
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope  # noqa: PLC0415

        log = LogRecord(
            timestamp=int(record.time * 1_000_000_000),
            severity_number=SeverityNumber.INFO,
            severity_text="INFO",
            event_name="extproc.call",
            body=encode(record).decode(),
            attributes=_attributes(record),
        )
        return ReadableLogRecord(log, self._resource, InstrumentationScope("extproc.audit"))


def _attributes(record: Record) -> dict[str, Any]:
    """In the words of the semantic conventions (gen_ai) where they have one; what is empty is left out."""
    found = {
        "extproc.call_id": record.call_id,
        "extproc.consumer": record.consumer,
        "extproc.team": record.team,
        "extproc.policy": record.policy,
        "extproc.how": record.how,
        "extproc.code": record.code,
        "extproc.actions": sorted({verdict.action for verdict in record.verdicts}),
        "extproc.categories": sorted({verdict.category for verdict in record.verdicts}),
        "gen_ai.operation.name": record.endpoint,
        "gen_ai.request.model": record.model,
        "gen_ai.response.model": record.target,
        "gen_ai.provider.name": record.provider,
        "gen_ai.usage.input_tokens": record.input,
        "gen_ai.usage.output_tokens": record.output,
        "http.response.status_code": record.status,
        "enduser.id": record.user,
    }
    return {name: value for name, value in found.items() if value}
