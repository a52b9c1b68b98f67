"""The admin port: is it alive, is it ready, what does it count."""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any, Protocol

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from extproc.config.schema import Address


class Subject(Protocol):
    """What the admin port reports on."""

    @property
    def ready(self) -> bool: ...
    def report(self) -> dict[str, Any]:
        """Everything of `/healthz`, ready for JSON; `status` is `ok` or `degraded`."""
        ...


def application(subject: Subject, exposition: Callable[[], bytes]) -> Starlette:
    async def healthz(_: Request) -> Response:
        return JSONResponse(subject.report())

    async def readyz(_: Request) -> Response:
        return PlainTextResponse("ready\n") if subject.ready else PlainTextResponse("not ready\n", status_code=503)

    async def metrics(_: Request) -> Response:
        body = await asyncio.to_thread(exposition)
        return Response(body, media_type="text/plain; version=0.0.4; charset=utf-8")

    return Starlette(routes=[Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", metrics)])


class AdminServer:
    """Serves an application in this process's loop."""

    def __init__(self, app: Starlette, address: Address) -> None:
        self._address = address
        self._server = _Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off"))
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listens when it returns. Raises OSError where the address is taken."""
        family = socket.AF_INET6 if ":" in self._address.host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((self._address.host, self._address.port))
            listener.listen()
        except OSError as error:
            listener.close()
            raise OSError(error.errno, f"server.http: cannot listen on {self._address}: {error.strerror}") from error
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._server.serve(sockets=[listener]))

    async def stop(self) -> None:
        if self._task is not None:
            self._server.should_exit = True
            with contextlib.suppress(asyncio.CancelledError):
                await self._task


class _Server(uvicorn.Server):
    """Signals are the supervisor's business."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield
