"""A worker process: one server of ext_proc, told what to do by its supervisor."""

import asyncio
import contextlib
import gc
import resource
import signal
import socket
from pathlib import Path

from extproc.app import App
from extproc.config.load import ConfigError, parse
from extproc.config.schema import Config
from extproc.core.evidence import Ended
from extproc.core.tasks import Tasks
from extproc.process.control import (
    COMMANDS,
    Answered,
    Ask,
    Drain,
    KeyCooling,
    Ready,
    Reload,
    Reloaded,
    open_channel,
    receive,
    send,
)
from extproc.process.services import WorkerServices
from extproc.stores.ports import DatabaseUnavailable, StateUnavailable
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
    loaded = await asyncio.to_thread(parse, first.content, file)
    config = loaded.config
    try:
        services = await WorkerServices.open(loaded, index)
    except (DatabaseUnavailable, StateUnavailable) as reason:
        _LOG.critical("the accounts cannot be kept, so no calls are taken", worker=index, error=str(reason))
        return 1
    app = App(await services.build(loaded))
    services.start(lambda: app.current)
    gc.collect()
    gc.freeze()  # what is here now stays; collections need not look at it again
    server = make_server(config, index, app.open_session)
    await server.start()
    await send(writer, Ready(app.digest))
    tasks = Tasks()
    told, ended = tasks.spawn(_obey(reader, writer, app, file, services)), tasks.spawn(server.wait())
    await asyncio.wait({told, ended}, return_when=asyncio.FIRST_COMPLETED)
    if ended.done():
        error = None if ended.cancelled() else ended.exception()
        _LOG.critical("the server has ended by itself", worker=index, error=repr(error))
        await server.stop(0)  # calls in flight are settled
        await tasks.cancel()
        await services.close()
        return 1
    drain = told.result()
    await server.drain()
    await asyncio.sleep(drain.notice)
    await server.stop(drain.grace)
    await tasks.cancel()
    await services.close()
    return 0


def _raise_file_limit() -> None:
    """A connection for each open call must fit; the usual soft limit of 1024 would not do."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _obey(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, app: App, file: Path, services: WorkerServices
) -> Drain:
    """Do what the supervisor says until it says drain, or is gone."""
    tasks = Tasks()
    while (command := await receive(reader, COMMANDS)) is not None:
        match command:
            case Drain():
                return command
            case Reload():
                await send(writer, await _reload(app, command.content, file, services))
            case Ended():
                services.on_ended(command, app.current)
            case KeyCooling():
                services.keys.cool(command.provider, command.key, command.seconds)
            case Ask():
                tasks.spawn(_answer(writer, command, app, services))
    return Drain(0, 0)


async def _answer(writer: asyncio.StreamWriter, ask: Ask, app: App, services: WorkerServices) -> None:
    try:
        lines = await services.numbers(ask.consumer, app.current)
    except (DatabaseUnavailable, StateUnavailable) as error:
        await send(writer, Answered(ask.number, problem=str(error)))
    else:
        await send(writer, Answered(ask.number, lines))


async def _reload(app: App, content: bytes, file: Path, services: WorkerServices) -> Reloaded:
    try:
        new = await services.build(await asyncio.to_thread(parse, content, file))
    except ConfigError as error:
        return Reloaded(app.digest, str(error))
    await services.retire(app.swap(new))
    return Reloaded(app.digest)
