"""`serve` and `up`: one life of the whole, from the first configuration to the last call."""

import asyncio
from pathlib import Path

from extproc.admin.http import AdminServer, application
from extproc.config.load import ConfigError, parse
from extproc.envoyconf.files import EnvoyFiles
from extproc.process.envoy import EnvoyMissingError, EnvoyProcess
from extproc.process.supervisor import Supervisor, stop_signals
from extproc.telemetry import log, metrics

_LOG = log.get()


async def run(file: Path, *, with_envoy: bool, render: bool) -> int:
    """Serve until SIGTERM or SIGINT, then drain. Returns the exit status: 2 for a configuration refused."""
    stopping = stop_signals()
    try:
        content = await asyncio.to_thread(file.read_bytes)
        loaded = parse(content, file)
        files = EnvoyFiles(loaded.config.gateway.directory) if render else None
        supervisor = Supervisor(loaded, content, files=files)
        envoy = _envoy(supervisor, files) if with_envoy and files else None
    except OSError as error:
        _LOG.error("configuration cannot be read", file=str(file), error=error.strerror)
        return 2
    except ConfigError as error:
        _LOG.error("configuration refused", file=str(file), problems=[str(p) for p in error.problems])
        return 2
    except EnvoyMissingError as error:
        _LOG.error("no envoy", error=str(error))
        return 1
    admin = AdminServer(application(supervisor, metrics.exposition), loaded.config.server.http)
    status = 0
    try:
        await admin.start()
        await supervisor.start()
        if envoy is not None:
            await envoy.start()
        _LOG.info("serving", gateway=str(loaded.config.gateway.listen), admin=str(loaded.config.server.http))
        status = await _until(stopping, envoy)
    except (OSError, RuntimeError) as error:
        _LOG.error("cannot start", error=str(error))
        status = 1
    finally:
        _LOG.info("draining")
        if envoy is not None:
            await envoy.stop(supervisor.config.server.drain)
        await supervisor.stop(notice=0 if envoy else supervisor.config.server.notice)
        await admin.stop()
    return status


def _envoy(supervisor: Supervisor, files: EnvoyFiles) -> EnvoyProcess:
    gateway = supervisor.config.gateway
    return EnvoyProcess(files.bootstrap, gateway.admin, concurrency=gateway.concurrency)


async def _until(stopping: asyncio.Event, envoy: EnvoyProcess | None) -> int:
    """Wait for a signal, or for Envoy's end."""
    loop = asyncio.get_running_loop()
    stop = loop.create_task(stopping.wait())
    if envoy is None:
        await stop
        return 0
    ended = loop.create_task(envoy.wait())
    await asyncio.wait({stop, ended}, return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if not ended.done():
        ended.cancel()
        return 0
    _LOG.error("envoy ended by itself", status=ended.result())
    return 1
