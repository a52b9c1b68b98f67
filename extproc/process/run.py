"""`serve` and `up`: one life of the whole, from the first configuration to the last call."""

import asyncio
from functools import partial
from pathlib import Path

from extproc.admin.api import Backend
from extproc.admin.http import AdminServer, application
from extproc.config.load import ConfigError, parse
from extproc.envoyconf.files import EnvoyFiles
from extproc.process.envoy import EnvoyMissingError, EnvoyProcess
from extproc.process.supervisor import Supervisor, stop_signals
from extproc.stores.ports import DatabaseUnavailable, Difference
from extproc.stores.sql import Database, open_database
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
        database = open_database(loaded.config.database.url, currency=loaded.config.accounts.currency)
        await asyncio.to_thread(database.migrate)
    except OSError as error:
        _LOG.error("configuration cannot be read", file=str(file), error=error.strerror)
        return 2
    except ConfigError as error:
        _LOG.error("configuration refused", file=str(file), problems=[str(p) for p in error.problems])
        return 2
    except EnvoyMissingError as error:
        _LOG.error("no envoy", error=str(error))
        return 1
    except (DatabaseUnavailable, ValueError) as error:
        _LOG.error("no database", error=str(error))
        return 1
    exposition = partial(metrics.exposition, metrics.KeysAvailable(supervisor.pools))
    served = application(supervisor, exposition, _backend(supervisor, database))
    admin = AdminServer(served, loaded.config.server.http, loaded.config.admin.tls)
    status = 0
    try:
        await admin.start()
        await supervisor.start()
        if envoy is not None:
            await envoy.start()
        where = {"grpc": loaded.config.server.grpc} if envoy is None else {"gateway": str(loaded.config.gateway.listen)}
        _LOG.info("serving", **where, admin=str(loaded.config.server.http))
        status = await _until(stopping, envoy)
    except (OSError, RuntimeError) as error:
        _LOG.error("cannot start", error=str(error))
        status = 1
    finally:
        _LOG.info("draining")
        supervisor.drain()
        if envoy is not None:
            await envoy.stop(supervisor.config.server.drain)
        await supervisor.stop(notice=0 if envoy else supervisor.config.server.notice)
        await admin.stop()
        await asyncio.to_thread(database.close)
    return status


def _backend(supervisor: Supervisor, database: Database) -> Backend:
    async def verify() -> list[Difference]:
        found = await asyncio.to_thread(database.ledger.verify)
        return found + [Difference(**line) for line in await supervisor.ask()]

    return Backend(
        register=database.register,
        ledger=database.ledger,
        audit=database.audit,
        config=lambda: supervisor.config,
        tokens=lambda: supervisor.admin_tokens,
        pools=supervisor.pools,
        verify=verify,
        quota=supervisor.ask,
    )


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
