"""Our own worker, with accounts or without: ``python -m bench.accounts CONFIG [without]`` serves until SIGTERM.

The product has no switch that turns them off. The difference between the two is what accounts cost.
"""

import gc
import sys
from dataclasses import replace
from pathlib import Path

import uvloop

from bench.nothing import serve
from extproc.app import App
from extproc.config.load import Loaded, parse
from extproc.filters.quota import QuotaPlugin
from extproc.process.services import WorkerServices
from extproc.stores.sql import open_database
from extproc.telemetry import log


async def run(loaded: Loaded, *, without: bool) -> None:
    open_database(loaded.config.database.url).migrate()
    services = await WorkerServices.open(loaded, 0)
    made = await services.build(loaded)
    if without:
        made = replace(made, plugins=[each for each in made.plugins if not isinstance(each, QuotaPlugin)])
    app = App(made)
    services.start(lambda: app.current)
    gc.collect()
    gc.freeze()
    await serve(loaded.config, app.open_session)
    await services.close()


if __name__ == "__main__":
    log.setup()
    file = Path(sys.argv[1])
    uvloop.run(run(parse(file.read_bytes(), file), without="without" in sys.argv[2:]))
