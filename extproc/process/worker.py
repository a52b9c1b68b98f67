"""A worker process: one server of ext_proc, told what to do by its supervisor."""

import asyncio
import contextlib
import gc
import resource
import signal
import socket
from pathlib import Path

from extproc.app import App, Build, build
from extproc.config.load import ConfigError, parse
from extproc.config.schema import Config
from extproc.core.tasks import Tasks
from extproc.process.control import COMMANDS, Drain, Ready, Reload, Reloaded, open_channel, receive, send
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


async def run(file: Path, index: int, control: socket.socket) -> int:
    """Serve from the first configuration that the supervisor sends until it says drain, or is gone.

    Returns the exit status: 1 where the server ended by itself, and a new process has to take over.
    """
    _raise_file_limit()
    # The supervisor decides when to stop; a terminal's Ctrl-C reaches us as well.
    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, lambda: None)
    reader, writer = await open_channel(control)
    first = await receive(reader, COMMANDS)
    if not isinstance(first, Reload):
        return 0
    config, built = await asyncio.to_thread(_build, first.content, file)
    app = App(built)
    gc.collect()
    gc.freeze()  # what is here now stays; collections need not look at it again
    server = make_server(config, index, app.open_session)
    await server.start()
    await send(writer, Ready(app.digest))
    tasks = Tasks()
    told, ended = tasks.spawn(_obey(reader, writer, app, file)), tasks.spawn(server.wait())
    await asyncio.wait({told, ended}, return_when=asyncio.FIRST_COMPLETED)
    if ended.done():
        error = None if ended.cancelled() else ended.exception()
        _LOG.critical("the server has ended by itself", worker=index, error=repr(error))
        await server.stop(0)  # calls in flight are settled
        await tasks.cancel()
        return 1
    drain = told.result()
    await server.drain()
    await asyncio.sleep(drain.notice)
    await server.stop(drain.grace)
    await tasks.cancel()
    return 0


def _raise_file_limit() -> None:
    """A connection for each open call must fit; the usual soft limit of 1024 would not do."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _obey(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, app: App, file: Path) -> Drain:
    """Take new configurations until the supervisor says drain, or is gone."""
    while (command := await receive(reader, COMMANDS)) is not None:
        if isinstance(command, Drain):
            return command
        await send(writer, await _reload(app, command.content, file))
    return Drain(0, 0)


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
