"""A model provider that stands in for a real one."""

import asyncio
import ssl
from collections.abc import Callable, Mapping

import msgspec

from extproc.demo.stub import anthropic, openai
from extproc.demo.stub.behaviour import Behaviour
from extproc.demo.stub.connection import Connection
from extproc.demo.stub.http1 import Received
from extproc.demo.stub.script import Answer, OddRequestError, Script
from extproc.dialects.endpoints import DialectName

BACKLOG = 4096


class StubProvider:
    """An HTTP/1.1 server that answers as a provider of ``dialect`` would, from memory alone.

    ``behaviour`` says how, ``models`` how for a model that the body names. ``prefix`` is the path of ``base_url``
    (``/v1`` for openai, nothing for anthropic, where it is None). ``port`` 0 takes a free one at the first start and
    keeps it, so that a stopped stub can come back. ``requests`` are kept unless ``record`` is False. ``hits`` counts
    requests, ``aborted`` answers whose client left before their end.
    """

    def __init__(
        self,
        name: str,
        dialect: DialectName = "openai",
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        prefix: str | None = None,
        behaviour: Behaviour | None = None,
        tls: ssl.SSLContext | None = None,
        record: bool = True,
    ) -> None:
        self.name = name
        self.dialect = dialect
        self.host = host
        self.port = port
        self.prefix = ("/v1" if dialect == "openai" else "") if prefix is None else prefix.rstrip("/")
        self.behaviour = behaviour or Behaviour()
        self.models: dict[str, Behaviour] = {}
        self.requests: list[Received] = []
        self.hits = 0
        self.aborted = 0
        self.connections: set[Connection] = set()
        self._tls = tls
        self._record = record
        self._served = 0
        self._server: asyncio.Server | None = None
        self._endpoints: Mapping[str, Callable[[Script], Answer]] = (
            openai.ENDPOINTS if dialect == "openai" else anthropic.ENDPOINTS
        )

    @property
    def base_url(self) -> str:
        """Where clients call; its port is known once the stub has started."""
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://{self.host}:{self.port}{self.prefix}"

    @property
    def open_connections(self) -> int:
        return len(self.connections)

    async def start(self) -> None:
        """Listen. Raises OSError if the port is taken."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self), self.host, self.port, ssl=self._tls, backlog=BACKLOG
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and cut every connection. Does nothing if not started."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        await asyncio.gather(*(each.abort() for each in list(self.connections)))
        await server.wait_closed()

    def clear(self) -> None:
        """Forget what was received and counted."""
        self.requests.clear()
        self.hits = 0
        self.aborted = 0

    def answer(self, request: Received) -> tuple[Behaviour, Answer]:
        """The answer to a request, and how to deliver it."""
        self.hits += 1
        self._served += 1
        if self._record:
            self.requests.append(request)
        try:
            request.json = msgspec.json.decode(request.body) if request.body else None
        except msgspec.DecodeError:
            request.json = None
        behaviour = self.behaviour
        match request.json:
            case {"model": str(model)}:
                behaviour = self.models.get(model, behaviour)
        return behaviour, self._judge(request, behaviour)

    def error(self, status: int, message: str) -> Answer:
        """An error in the dialect's shape."""
        body = openai.error if self.dialect == "openai" else anthropic.error
        return Answer(body(status, message), status)

    def _judge(self, request: Received, behaviour: Behaviour) -> Answer:
        below = request.path.removeprefix(self.prefix) if request.path.startswith(self.prefix) else ""
        listing = self.dialect == "openai" and below == "/models"
        endpoint = self._endpoints.get(below)
        if endpoint is None and not listing:
            return self.error(404, f"{self.name} has nothing at {request.path}.")
        if request.method != ("GET" if listing else "POST"):
            return self.error(405, f"{self.name} does not take {request.method} at {request.path}.")
        if behaviour.key is not None and not self._knows(request, behaviour, behaviour.key):
            return self.error(401, f"{self.name} does not know this key.")
        if behaviour.status != 200:
            return self.error(behaviour.status, f"{self.name} answers {behaviour.status}.")
        if endpoint is None:
            return openai.models(self.name, list(self.models) or [self.name])
        if not isinstance(request.json, dict):
            return self.error(400, "The body is not a JSON object.")
        try:
            return endpoint(Script(self.name, self._served, request.json, behaviour))
        except OddRequestError as error:
            return self.error(400, str(error))

    def _knows(self, request: Received, behaviour: Behaviour, key: str) -> bool:
        sent = request.headers
        ways = {
            "bearer": ("authorization", f"Bearer {key}"),
            "raw-authorization": ("authorization", key),
            "api-key": ("api-key", key),
            "x-api-key": ("x-api-key", key),
        }
        # Anthropic documents x-api-key; its own SDK sends a bearer token from version 2 on.
        own = ("bearer",) if self.dialect == "openai" else ("x-api-key", "bearer")
        accepted = (behaviour.key_style,) if behaviour.key_style else own
        return any(sent.get(ways[style][0]) == ways[style][1] for style in accepted)
