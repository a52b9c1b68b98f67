"""Envoy's access log service (envoy.service.accesslog.v3): what Envoy tells us when calls and attempts are over."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final

import grpc
import structlog
from envoy.data.accesslog.v3.accesslog_pb2 import AccessLogCommon, DownstreamEnd, HTTPAccessLogEntry, UpstreamEnd
from envoy.service.accesslog.v3.als_pb2 import StreamAccessLogsMessage, StreamAccessLogsResponse

from extproc.core.evidence import Ended, KeyRefused
from extproc.wire.driver import SocketFile, Tls
from extproc.wire.grpcio import bind
from extproc.wire.names import KEY_HEADER, NAMESPACE

SERVICE: Final = "envoy.service.accesslog.v3.AccessLogService"
METHOD: Final = f"/{SERVICE}/StreamAccessLogs"
_MAX_MESSAGE: Final = 16 << 20  # bytes; Envoy sends what it has when that is 16 KiB
_GRACE: Final = 0.0  # seconds: Envoy's streams never end by themselves

_log = structlog.get_logger("extproc.wire")


class AccessLogServer:
    """Listens on ``unix:path`` or ``host:port``, and says what it hears: each thing once, in the order it came."""

    def __init__(
        self,
        address: str,
        *,
        tls: Tls | None,
        on_ended: Callable[[Ended], None],
        on_key_refused: Callable[[KeyRefused], None],
    ) -> None:
        self._address = address
        self._tls = tls
        self._on_ended = on_ended
        self._on_key_refused = on_key_refused
        self._server: Any = None
        self._file: SocketFile | None = None

    async def start(self) -> None:
        """Listen. Raises OSError or RuntimeError when the address or the TLS files do not work."""
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", _MAX_MESSAGE)])
        stream = grpc.stream_unary_rpc_method_handler(self._stream)
        handlers = grpc.method_handlers_generic_handler(SERVICE, {"StreamAccessLogs": stream})
        server.add_generic_rpc_handlers((handlers,))
        self._file = bind(server, self._address, self._tls)
        await server.start()
        self._server = server

    async def stop(self) -> None:
        """Does nothing where it was not started."""
        if self._server is None:
            return
        server, self._server = self._server, None
        if self._file is not None:
            self._file.remove()
        await server.stop(_GRACE)

    async def _stream(self, messages: AsyncIterator[bytes], _: object) -> bytes:
        async for message in messages:
            try:
                entries = list(decode(message))
            except ValueError:
                _log.exception("an access log entry that could not be read")
                continue
            for entry in entries:
                if isinstance(entry, Ended):
                    self._on_ended(entry)
                else:
                    self._on_key_refused(entry)
        answer: bytes = StreamAccessLogsResponse().SerializeToString()
        return answer


def decode(message: bytes) -> Iterator[Ended | KeyRefused]:
    """What a StreamAccessLogsMessage says. Raises ValueError where it is none."""
    try:
        entries = StreamAccessLogsMessage.FromString(message).http_logs.log_entry
    except Exception as error:  # upb raises DecodeError, an alias that differs by build
        raise ValueError("not a StreamAccessLogsMessage") from error
    for entry in entries:
        read = _READERS.get(entry.common_properties.access_log_type)
        found = read(entry) if read else None
        if found is not None:
            yield found


def _key_refused(entry: HTTPAccessLogEntry) -> KeyRefused | None:
    headers = entry.response.response_headers
    provider, slash, key = headers.get(KEY_HEADER, "").rpartition("/")
    if not slash or not key:
        return None
    return KeyRefused(provider, key, entry.response.response_code.value, headers.get("retry-after", ""))


def _ended(entry: HTTPAccessLogEntry) -> Ended | None:
    common = entry.common_properties
    if NAMESPACE not in common.metadata.filter_metadata:
        return None
    call = {
        name: value.number_value if value.HasField("number_value") else value.string_value
        for name, value in common.metadata.filter_metadata[NAMESPACE].fields.items()
    }
    if not call.get("call_id"):
        return None
    return Ended(
        call=call,
        provider=common.custom_tags.get("provider", ""),
        target=common.custom_tags.get("target", ""),
        attempts=common.upstream_request_attempt_count,
        status=entry.response.response_code.value,
        details=entry.response.response_code_details,
        flags=_flags(common),
        received=entry.request.request_body_bytes,
        sent=entry.response.response_body_bytes,
        started=common.start_time.seconds + common.start_time.nanos / 1e9,
        seconds=common.duration.seconds + common.duration.nanos / 1e9,
        upstream=common.HasField("time_to_first_upstream_tx_byte") or common.upstream_request_attempt_count > 1,
    )


def _flags(common: AccessLogCommon) -> tuple[str, ...]:
    return tuple(field.name for field, _ in common.response_flags.ListFields())


_READERS: Final[dict[int, Callable[[HTTPAccessLogEntry], Ended | KeyRefused | None]]] = {
    DownstreamEnd: _ended,
    UpstreamEnd: _key_refused,
}
