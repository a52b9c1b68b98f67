"""A worker process: one server of ext_proc, told what to do by its supervisor."""

import asyncio
import signal
import socket
from pathlib import Path

from extproc.app import App, Build, build
from extproc.config.load import ConfigError, parse
from extproc.config.schema import Config
from extproc.process.control import Command, Drain, Ready, Reload, Reloaded, open_channel, receive, send
from extproc.telemetry import log
from extproc.wire.driver import OpenSession, Server, Tls
from extproc.wire.names import worker_address

_LOG = log.get()
_SPARE = 1 << 20  # bytes of a gRPC message beside its body


def make_server(config: Config, index: int, open_session: OpenSession) -> Server:
    """The server of worker ``index``, not yet started."""
    settings = config.server
    tls = None
    if settings.tls is not None:
        tls = Tls(settings.tls.cert, settings.tls.key, settings.tls.ca if settings.tls.client else None)
    address = worker_address(settings.grpc, index)
    limit = max(config.gateway.max_body, config.gateway.max_answer) + _SPARE
    if settings.transport == "granian":
        from extproc.wire.granian import GranianServer  # noqa: PLC0415 - each transport is heavy, and one is used

        return GranianServer(address, open_session, tls=tls, max_message=limit)
    from extproc.wire.grpcio import GrpcioServer  # noqa: PLC0415 - as above

    return GrpcioServer(address, open_session, tls=tls, max_message=limit)


async def run(file: Path, index: int, control: socket.socket) -> None:
    """Serve from the first configuration that the supervisor sends until it says drain, or is gone."""
    # The supervisor decides when to stop; a terminal's Ctrl-C reaches us as well.
    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, lambda: None)
    reader, writer = await open_channel(control)
    app: App | None = None
    server: Server | None = None
    grace = 0.0
    while (command := await receive(reader, Command)) is not None:  # type: ignore[arg-type]
        match command:
            case Reload() if app is None:
                config, first = await asyncio.to_thread(_build, command.content, file)
                app = App(first)
                server = make_server(config, index, app.open_session)
                await server.start()
                await send(writer, Ready(app.digest))
            case Reload():
                await send(writer, await _reload(app, command.content, file))
            case Drain():
                grace = command.grace
                break
    if server is not None:
        await server.drain()
        await server.stop(grace)


def _build(content: bytes, file: Path) -> tuple[Config, Build]:
    loaded = parse(content, file)
    return loaded.config, build(loaded)


async def _reload(app: App, content: bytes, file: Path) -> Reloaded:
    try:
        _, new = await asyncio.to_thread(_build, content, file)
    except ConfigError as error:
        return Reloaded(app.digest, str(error))
    app.swap(new)
    return Reloaded(app.digest)
