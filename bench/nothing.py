"""A processor that does nothing, on our own drivers: ``python -m bench.nothing CONFIG`` serves until SIGTERM.

It answers the same six messages a call, at both stages, and changes nothing: what is left is Envoy, the transport
and protobuf. The difference to the real one is what our own work costs.
"""

import asyncio
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import uvloop

from extproc.config.load import parse
from extproc.config.schema import Config
from extproc.core.messages import PROCEED, BodyMode, Decision, Message, Proceed, ResponseHead
from extproc.process.worker import make_server
from extproc.wire.driver import OpenSession
from extproc.wire.session import Session

_WHOLE: Final = Proceed(response_mode=BodyMode.BUFFERED)


class Nothing:
    idle_timeout: float | None = None

    async def receive(self, message: Message) -> Decision:
        return _WHOLE if isinstance(message, ResponseHead) else PROCEED

    async def on_idle(self) -> Decision | None:
        return None

    async def close(self) -> None:
        return


def _open(_metadata: Mapping[str, str]) -> Session:
    return Session(Nothing())


async def serve(config: Config, open_session: OpenSession) -> None:
    """Until SIGTERM."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    server = make_server(config, 0, open_session)
    await server.start()
    await stopped.wait()
    await server.stop(0)


if __name__ == "__main__":
    file = Path(sys.argv[1])
    uvloop.run(serve(parse(file.read_bytes(), file).config, _open))
