"""A gateway among stub providers, and what an end-to-end test asks of it."""

import http.client
import json
import socket
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
from prometheus_client.parser import text_string_to_metric_families

from extproc.demo.gateway import Gateway
from extproc.demo.stub import Behaviour, Received, StubProvider
from extproc.demo.waiting import until

CHAT = "/v1/chat/completions"
MESSAGES = "/v1/messages"
MAX_BODY = 8 << 20

ACME = "sk-acme-0b51c3aa7d"
GLOBEX = "sk-globex-77e1d2f04b"
LEAVER = "sk-leaver-4de80ba915"

PROVIDER_KEYS = {
    "primary": "pk-primary-5a0c81f6",
    "backup": "pk-backup-e72d19b4",
    "third": "pk-third-90bb6c2e",
    "claude": "pk-claude-31d7f58a",
    "claude-backup": "pk-spare-c4086e9d",
}


def chat(model: str, prompt: str = "hi", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": prompt}], **more}


def messages(model: str, prompt: str = "hi", **more: Any) -> dict[str, Any]:
    return {"model": model, "max_tokens": 100, "messages": [{"role": "user", "content": prompt}], **more}


def call_id(answer: httpx.Response) -> str:
    return str(answer.headers["x-extproc-call-id"])


@contextmanager
def refusing_port() -> Iterator[int]:
    """A port that refuses connections for as long as this lasts, since it is bound but nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@dataclass
class World:
    """``gateway`` runs, and so do ``stubs``; the stubs behave well and remember nothing when a test begins."""

    gateway: Gateway
    stubs: Mapping[str, StubProvider]
    run: Callable[[Coroutine[Any, Any, None]], None]
    """Runs a coroutine of a stub: ``world.run(world.primary.stop())``."""
    usual: dict[str, Behaviour] = field(default_factory=dict)
    """How a stub behaves when a test begins, where that is not the default."""
    _http: httpx.Client = field(init=False)
    _mark: int = 0

    def __enter__(self) -> Self:
        self.gateway.__enter__()
        self._http = httpx.Client(base_url=self.gateway.url, timeout=60)
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()
        self.gateway.__exit__(None, None, None)

    def reset(self) -> None:
        until(lambda: self.metric("extproc_streams_open") == 0, "the calls of the test before are over")
        for name, stub in self.stubs.items():
            stub.behaviour = self.usual.get(name) or Behaviour()
            stub.models.clear()
            stub.clear()
        self._mark = len(self.gateway.log())

    def __getattr__(self, name: str) -> StubProvider:
        try:
            return self.stubs[name.replace("_", "-")]
        except KeyError:
            raise AttributeError(name) from None

    # --- calls ------------------------------------------------------------------------------------------------

    def post(self, path: str, body: Any, *, key: str | None = ACME, headers: Any = None) -> httpx.Response:
        """One call, as plain as curl. ``body``: bytes as they are (or pieces of them, sent in chunks), or JSON."""
        content = json.dumps(body).encode() if isinstance(body, dict) else body
        fields = httpx.Headers({"content-type": "application/json"})
        if key is not None:
            fields["authorization"] = f"Bearer {key}"
        fields.update(headers or {})
        return self._http.post(path, content=content, headers=fields)

    def chat(
        self, model: str, prompt: str = "hi", *, key: str = ACME, headers: Any = None, **more: Any
    ) -> httpx.Response:
        return self.post(CHAT, chat(model, prompt, **more), key=key, headers=headers)

    def messages(self, model: str, prompt: str = "hi", *, headers: Any = None, **more: Any) -> httpx.Response:
        return self.post(MESSAGES, messages(model, prompt, **more), headers=headers)

    def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        return self._http.request(method, path, **more)

    @contextmanager
    def streaming(self, path: str, body: dict[str, Any], *, key: str = ACME) -> Iterator[httpx.Response]:
        """An answer whose body is still to come."""
        with self._http.stream("POST", path, json=body, headers={"authorization": f"Bearer {key}"}) as answer:
            yield answer

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.gateway.url)
        assert parts.hostname
        assert parts.port
        return parts.hostname, parts.port

    def connect(self) -> socket.socket:
        """A bare connection to the gateway."""
        return socket.create_connection(self.address, timeout=30)

    def raw(self, request: bytes) -> tuple[int, http.client.HTTPMessage, bytes]:
        """What the gateway answers to these bytes."""
        with self.connect() as connection:
            connection.sendall(request)
            with closing(http.client.HTTPResponse(connection)) as answer:
                answer.begin()
                return answer.status, answer.headers, answer.read()

    # --- what was seen ----------------------------------------------------------------------------------------

    def seen(self, stub: str) -> Received:
        """The one request that a stub received."""
        (request,) = self.stubs[stub].requests
        return request

    def hits(self) -> dict[str, int]:
        """How many requests each stub received, without those that had none."""
        return {name: stub.hits for name, stub in self.stubs.items() if stub.hits}

    def lines(self, **fields: Any) -> list[dict[str, Any]]:
        """The canonical log lines since the test began that have these fields."""
        lines = _json_lines(self.gateway.log()[self._mark :])
        return [line for line in lines if line.get("event") == "call" and fields.items() <= line.items()]

    def line(self, **fields: Any) -> dict[str, Any]:
        """The one such line, as soon as it is there."""
        until(lambda: self.lines(**fields), f"a log line has {fields}")
        (line,) = self.lines(**fields)
        return line

    def access_line(self, call_id: str) -> dict[str, Any]:
        """Envoy's own line of a call; it is flushed late."""

        def found() -> list[dict[str, Any]]:
            return [x for x in _json_lines(self.gateway.access_log()) if x.get("call_id") == call_id]

        until(found, "envoy's access log has the call")
        (line,) = found()
        return line

    def metric(self, name: str, **labels: str) -> float:
        """The sum over all samples of this name with these labels."""
        return sum(
            sample.value
            for family in text_string_to_metric_families(self.gateway.metrics())
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def published(self) -> dict[str, str]:
        """Everything that the run wrote or shows, by where it is: logs, metrics, health, Envoy's files and admin."""
        gateway = self.gateway
        pages = {
            "metrics": f"{gateway.http}/metrics",
            "healthz": f"{gateway.http}/healthz",
            "readyz": f"{gateway.http}/readyz",
            "config_dump": f"{gateway.envoy}/config_dump?include_eds",
            "clusters": f"{gateway.envoy}/clusters",
            "stats": f"{gateway.envoy}/stats",
        }
        shown = {name: (gateway.get(url) or b"").decode() for name, url in pages.items()}
        for file in sorted((gateway.directory / "envoy").iterdir()):
            shown[f"envoy/{file.name}"] = file.read_text()
        shown |= {"log": gateway.log(), "access log": gateway.access_log()}
        return shown


def _json_lines(log: str) -> list[dict[str, Any]]:
    """Those that are whole."""
    return [json.loads(line) for line in log.splitlines() if line.startswith("{") and line.endswith("}")]


def write_key(directory: Path, name: str) -> str:
    """A file that holds the provider's key, as a secret store mounts one."""
    file = directory / f"{name}.key"
    file.write_text(PROVIDER_KEYS[name] + "\n")
    return str(file)
