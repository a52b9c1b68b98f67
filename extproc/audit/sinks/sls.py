"""Records in Alibaba Cloud Log Service (SLS), by its official SDK: docs/audit.md says how to install it."""

import socket
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from extproc.audit.record import Record
from extproc.core.secret import Secret

_MOST: Final = 3 << 20
"""Bytes of one PutLogs request, before it is packed: the service takes ten megabytes."""


class SlsSink:
    """``endpoint``: `cn-hangzhou.log.aliyuncs.com`, by https. With ``region`` requests are signed by version 4."""

    name = "sls"

    def __init__(
        self,
        *,
        endpoint: str,
        project: str,
        logstore: str,
        key_id: Secret,
        key_secret: Secret,
        topic: str = "",
        region: str = "",
    ) -> None:
        """Raises ModuleNotFoundError without the SDK."""
        from aliyun.log import LogClient  # noqa: PLC0415 - heavy, and not installed everywhere

        self._project = project
        self._logstore = logstore
        self._topic = topic
        self._client = LogClient(
            endpoint if "://" in endpoint else f"https://{endpoint}",  # by itself the SDK would take http
            key_id.reveal(),
            key_secret.reveal(),
            source=socket.gethostname(),
            auth_version="v4" if region else "v1",
            region=region,
        )
        self._client.timeout = 10

    def write(self, records: Sequence[Record]) -> None:
        """Raises aliyun.log.LogException, which has no key in it."""
        from aliyun.log import LogItem, PutLogsRequest  # noqa: PLC0415

        for group in _groups(records):
            items = [LogItem(timestamp=int(record.time), contents=contents) for record, contents in group]
            self._client.put_logs(PutLogsRequest(self._project, self._logstore, self._topic, logitems=items))

    def close(self) -> None:
        """The SDK has nothing to close."""


def _groups(records: Sequence[Record]) -> Iterator[list[tuple[Record, list[tuple[str, str]]]]]:
    group: list[tuple[Record, list[tuple[str, str]]]] = []
    size = 0
    for record in records:
        contents = [(name, _text(value)) for name, value in msgspec.to_builtins(record).items()]
        length = sum(len(name) + len(value.encode()) for name, value in contents)
        if group and size + length > _MOST:
            yield group
            group, size = [], 0
        group.append((record, contents))
        size += length
    if group:
        yield group


def _text(value: Any) -> str:
    """A text as it is; all else as JSON."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
