"""The admin port: is it alive, is it ready, what does it count; and the API, behind a lock."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import Any, Protocol

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from extproc.admin.api import Backend, api
from extproc.admin.guard import CERTIFIED, Guard
from extproc.config.schema import Address, AdminTls


class Subject(Protocol):
    """What the admin port reports on."""

    @property
    def ready(self) -> bool: ...
    def report(self) -> dict[str, Any]:
        """Everything of `/healthz`, ready for JSON; `status` is `ok`, `degraded` or `draining`."""
        ...


def application(subject: Subject, exposition: Callable[[], bytes], backend: Backend | None = None) -> Starlette:
    """Health, readiness and metrics for everybody; with a ``backend`` the API for those who may."""

    async def healthz(_: Request) -> Response:
        return JSONResponse(subject.report())

    async def readyz(_: Request) -> Response:
        return PlainTextResponse("ready\n") if subject.ready else PlainTextResponse("not ready\n", status_code=503)

    async def metrics(_: Request) -> Response:
        body = await asyncio.to_thread(exposition)
        return Response(body, media_type="text/plain; version=0.0.4; charset=utf-8")

    routes: list[BaseRoute] = [Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", metrics)]
    if backend is not None:
        tls = backend.config().admin.tls
        certificates = tls is not None and tls.client_ca is not None
        routes.append(Mount("/api", Guard(api(backend), backend.tokens, certificates=certificates)))
    return Starlette(routes=routes)


class AdminServer:
    """Serves an application in this process's loop. Clients may show a certificate, which must be good then."""

    def __init__(self, app: Starlette, address: Address, tls: AdminTls | None = None) -> None:
        self._address = address
        self._server = _Server(
            uvicorn.Config(
                app,
                http=_Protocol,
                ws="none",
                log_config=None,
                access_log=False,
                lifespan="off",
                **(_tls(tls) if tls else {}),
            )
        )
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listens when it returns. Raises OSError where the address is taken, or a certificate cannot be used."""
        try:
            self._server.config.load()
        except OSError as error:
            raise OSError(error.errno, f"admin.tls: {error.strerror or error}") from error
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


def _tls(tls: AdminTls) -> dict[str, Any]:
    asked = ssl.CERT_NONE if tls.client_ca is None else ssl.CERT_OPTIONAL
    return {
        "ssl_certfile": tls.cert,
        "ssl_keyfile": tls.key,
        "ssl_ca_certs": tls.client_ca,
        "ssl_cert_reqs": asked,
    }


class _Protocol(H11Protocol):
    """Tells the application whose certificate the client has shown. A bad one has ended the handshake."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, CERTIFIED: _subject(transport.get_extra_info("peercert"))}


def _subject(certificate: dict[str, Any] | None) -> str:
    """Its common name, else its serial number."""
    if not certificate:
        return ""
    names = dict(pair for group in certificate.get("subject", ()) for pair in group)
    return str(names.get("commonName") or certificate.get("serialNumber") or "without a name")


class _Server(uvicorn.Server):
    """Signals are the supervisor's business."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield
