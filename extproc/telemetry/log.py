"""Logs: one JSON line an event on standard error, readable text on a terminal."""

import sys
from typing import Any, TextIO

import msgspec
import structlog


def setup(stream: TextIO | None = None, *, pretty: bool | None = None) -> None:
    """Configure structlog for this process."""
    out = stream or sys.stderr
    pretty = out.isatty() if pretty is None else pretty
    common: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    if pretty:
        structlog.configure(
            processors=[
                *common[:-1],
                # The default one shows local variables, and those hold keys.
                structlog.dev.ConsoleRenderer(colors=out.isatty(), exception_formatter=structlog.dev.plain_traceback),
            ],
            logger_factory=structlog.PrintLoggerFactory(out),
            wrapper_class=structlog.make_filtering_bound_logger("info"),
            cache_logger_on_first_use=False,
        )
        return
    structlog.configure(
        processors=[*common, structlog.processors.JSONRenderer(serializer=_encode)],
        logger_factory=structlog.BytesLoggerFactory(out.buffer),
        wrapper_class=structlog.make_filtering_bound_logger("info"),
        cache_logger_on_first_use=True,
    )


def _encode(event: Any, **_: Any) -> bytes:
    return msgspec.json.encode(event, enc_hook=str)


def get() -> Any:
    return structlog.get_logger()
