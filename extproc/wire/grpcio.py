"""Driver on grpc.aio, the reference: ext_proc, health, and room for more services on the same port."""

from collections.abc import Sequence
from typing import Any, Final

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from extproc.wire.driver import (
    SERVICE,
    OpenSession,
    SocketFile,
    StreamError,
    Streams,
    Tls,
    metadata_of,
    placing,
    unix_path,
)

_CLEANUP: Final = 5.0  # seconds that a cut stream gets to notice
_LOOK: Final = 1.0  # seconds between looks whether the server has crashed: without them, open streams would hide it

_OPTIONS: Final = (
    ("grpc.so_reuseport", 0),  # a port in use is an error
    ("grpc.max_concurrent_streams", 2**31 - 1),
    ("grpc.server.max_pending_requests", 2**31 - 1),  # above 1,000, a burst of new streams is refused at random
    ("grpc.server.max_pending_requests_hard_limit", 2**31 - 1),
    ("grpc.http2.bdp_probe", 1),
    ("grpc.http2.lookahead_bytes", 256 * 1024),
    ("grpc.http2.max_frame_size", 256 * 1024),
    ("grpc.http2.max_ping_strikes", 0),  # Envoy may ping as often as its operator likes
    ("grpc.http2.min_ping_interval_without_data_ms", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)


class GrpcioServer:
    """ext_proc and health on ``unix:path`` or ``host:port``; messages up to ``max_message`` bytes."""

    def __init__(
        self,
        address: str,
        open_session: OpenSession,
        *,
        tls: Tls | None,
        max_message: int,
        handlers: Sequence[grpc.GenericRpcHandler] = (),
    ) -> None:
        self._address = address
        self._tls = tls
        self._max_message = max_message
        self._handlers = handlers
        self._streams = Streams(open_session)
        self._health = health.aio.HealthServicer()
        self._server: Any = None
        self._file: SocketFile | None = None

    @property
    def streams(self) -> int:
        return len(self._streams)

    async def start(self) -> None:
        limits = [(f"grpc.max_{way}_message_length", self._max_message) for way in ("receive", "send")]
        server = grpc.aio.server(options=[*_OPTIONS, *limits])
        process = grpc.stream_stream_rpc_method_handler(self._process)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Process": process}),))
        if self._handlers:
            server.add_generic_rpc_handlers(tuple(self._handlers))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        await self._health.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
        self._file = bind(server, self._address, self._tls)
        await server.start()
        self._server = server

    async def wait(self) -> None:
        while await self._server.wait_for_termination(_LOOK):
            pass

    async def drain(self) -> None:
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace: float) -> None:
        if self._server is None:
            return
        if self._file is not None:
            self._file.remove()
        await self._server.stop(grace)
        if not await self._streams.wait_empty(_CLEANUP):
            structlog.get_logger("extproc.wire").warning("streams do not end", streams=len(self._streams))
        await self._streams.settle()

    async def _process(self, _: object, context: Any) -> None:
        async def read() -> list[bytes] | None:
            message = await context.read()
            return None if message is grpc.aio.EOF else [message]

        async def write(messages: list[bytes]) -> None:
            for message in messages:
                await context.write(message)

        try:
            stream = self._streams.open(metadata_of(context.invocation_metadata() or ()), write)
            await stream.run(read)
        except StreamError as error:
            await context.abort(error.code, error.text)


def bind(server: Any, address: str, tls: Tls | None) -> SocketFile | None:
    """Have a server listen on ``unix:path`` or ``host:port``. Raises OSError or RuntimeError where it cannot."""
    path = unix_path(address)
    if path is None:
        _add_port(server, address, tls)
        return None
    with placing(path) as place:
        _add_port(server, f"unix:{place}", tls)
    return SocketFile.at(path)


def _add_port(server: Any, address: str, tls: Tls | None) -> None:
    if tls is None:
        server.add_insecure_port(address)
        return
    tls.check()
    ca = tls.client_ca
    credentials = grpc.ssl_server_credentials(
        [(tls.key.read_bytes(), tls.cert.read_bytes())],
        root_certificates=None if ca is None else ca.read_bytes(),
        require_client_auth=ca is not None,
    )
    server.add_secure_port(address, credentials)
