"""The life of a worker: what it serves, what it says to its supervisor, and with which status it ends."""

import asyncio
import json
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from envoy.config.core.v3.base_pb2 import HeaderMap, HeaderValue, Metadata
from envoy.service.ext_proc.v3.external_processor_pb2 import (
    HttpBody,
    HttpHeaders,
    ProcessingRequest,
    ProcessingResponse,
)
from google.protobuf.struct_pb2 import Struct
from grpc_health.v1 import health_pb2, health_pb2_grpc
from wire.rig import Certificates, certificates

from extproc.config.load import parse
from extproc.core.evidence import Ended
from extproc.core.secret import Secret
from extproc.demo.gateway import free_port
from extproc.process.control import (
    REPORTS,
    Command,
    Drain,
    KeyCooling,
    Ready,
    Reload,
    Reloaded,
    open_channel,
    receive,
    send,
)
from extproc.process.worker import make_server
from extproc.providers.pool import key_id
from extproc.stores.sql import open_database
from extproc.wire.driver import METHOD, SERVICE
from extproc.wire.names import ATTRIBUTES, STAGE, worker_address

KEY = "sk-acme-example"
PROVIDER_KEY = "pk-never-to-be-seen"

# The command `extproc worker`, in which SIGUSR1 ends granian from within, as a bug of its own would.
BREAKABLE = """
import asyncio, signal

def end(*_):
    for task in asyncio.all_tasks():
        if task.get_coro().__qualname__ == "Server._spawn_asgi_worker":
            task.cancel()

signal.signal(signal.SIGUSR1, end)
from extproc.cli import main
main()
"""


@dataclass
class Hired:
    """A worker process and its line to us, its supervisor."""

    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    address: str
    log_file: Path
    home: Path

    async def tell(self, command: Command) -> None:
        await send(self.writer, command)

    async def report(self) -> Ready | Reloaded | None:
        return await asyncio.wait_for(receive(self.reader, REPORTS), 20)

    async def status(self) -> int:
        """The status with which it ends, as soon as it does."""
        return await asyncio.wait_for(self.process.wait(), 20)

    def log(self) -> str:
        return self.log_file.read_text()

    async def ask(self, key: str = KEY) -> int:
        """Show the head of a call with this key. The status of an answer, 0 where the call may go on."""
        async with dial(self.address) as channel:
            stream = channel.stream_stream(METHOD)(metadata=((STAGE, "router"),))
            await stream.write(head(key))
            immediate = ProcessingResponse.FromString(await stream.read()).immediate_response
            await stream.done_writing()
            return int(immediate.status.code)

    async def attempt(self) -> str:
        """The authorization header of an attempt at provider ``p``."""
        async with dial(self.address) as channel:
            stream = channel.stream_stream(METHOD)(metadata=((STAGE, "upstream"),))
            for message in attempt_of("acme", "m", "p"):
                await stream.write(message)
                answer = ProcessingResponse.FromString(await stream.read())
            await stream.done_writing()
        mutation = answer.request_body.response.header_mutation
        return str({h.header.key: h.header.raw_value.decode() for h in mutation.set_headers}["authorization"])


def attempt_of(consumer: str, model: str, provider: str) -> Iterator[bytes]:
    """What Envoy says of an attempt: its head, with all that is known of it, and its body."""
    known, target = Struct(), Struct()
    known.update({"call_id": "call-1", "consumer": consumer, "model": model, "endpoint": "chat"})
    names = {name: expression for expression, name in ATTRIBUTES.items()}
    target.update({names["provider"]: provider, names["target"]: model, names["attempt"]: 1})
    yield ProcessingRequest(
        request_headers=HttpHeaders(headers=HeaderMap(headers=[HeaderValue(key=":method", raw_value=b"POST")])),
        metadata_context=Metadata(filter_metadata={"extproc": known}),
        attributes={"envoy.filters.http.ext_proc": target},
    ).SerializeToString()
    yield ProcessingRequest(request_body=HttpBody(body=b'{"model":"m"}', end_of_stream=True)).SerializeToString()


def head(key: str) -> bytes:
    fields = {":method": "POST", ":path": "/v1/chat/completions", "authorization": f"Bearer {key}"}
    headers = HeaderMap(headers=[HeaderValue(key=k, raw_value=v.encode()) for k, v in fields.items()])
    data: bytes = ProcessingRequest(request_headers=HttpHeaders(headers=headers)).SerializeToString()
    return data


def dial(address: str, credentials: grpc.ChannelCredentials | None = None) -> grpc.aio.Channel:
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.default_authority", "localhost")]
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=options)
    return grpc.aio.secure_channel(address, credentials, options=options)


def configuration(server: dict[str, Any], *, key: str = KEY, **more: Any) -> bytes:
    return yaml.safe_dump(
        {
            "server": server,
            "providers": {"p": {"base_url": "http://127.0.0.1:9/v1", "keys": [{"value": PROVIDER_KEY}]}},
            "models": {"m": {"route": {"provider": "p"}}},
            "consumers": {"acme": {"keys": [{"value": key}]}},
            **more,
        }
    ).encode()


@pytest.fixture(name="transport", params=["grpcio", "granian"])
def _transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(name="server")
def _server(transport: str, tmp_path: Path) -> dict[str, Any]:
    return {"transport": transport, "grpc": f"unix:{tmp_path}/x.sock"}


@asynccontextmanager
async def hired(
    directory: Path, server: dict[str, Any], *, index: int = 0, program: tuple[str, ...] = ("-m", "extproc")
) -> AsyncIterator[Hired]:
    """A worker that was told nothing yet. It keeps its accounts in a directory of its own."""
    ours, theirs = socket.socketpair()
    home = Path(tempfile.mkdtemp(dir=directory))
    with closing(open_database(f"sqlite:///{home}/run/extproc.db")) as database:
        database.migrate()
    log_file = directory / f"log.{index}"
    with theirs, log_file.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, *program,
            "worker", "--config", str(directory / "extproc.yaml"), "--index", str(index),
            "--control", str(theirs.fileno()),
            pass_fds=(theirs.fileno(),),
            cwd=home,
            stderr=log,
        )  # fmt: skip
    reader, writer = await open_channel(ours)
    try:
        yield Hired(process, reader, writer, worker_address(server["grpc"], index), log_file, home)
    finally:
        writer.close()
        if process.returncode is None:
            process.kill()
        await process.wait()


@asynccontextmanager
async def serving(directory: Path, server: dict[str, Any], **options: Any) -> AsyncIterator[Hired]:
    """A worker that serves."""
    async with hired(directory, server, **options) as worker:
        await worker.tell(Reload(configuration(server)))
        assert isinstance(await worker.report(), Ready), worker.log()
        yield worker


async def test_it_listens_when_it_says_so(tmp_path: Path, server: dict[str, Any]) -> None:
    """It serves by the content that it was sent, and names that; it needs no file."""
    content = configuration(server)

    async with hired(tmp_path, server) as worker:
        await worker.tell(Reload(content))

        assert await worker.report() == Ready(parse(content, tmp_path / "extproc.yaml").digest)
        assert await worker.ask(KEY) == 0
        assert await worker.ask("sk-somebody-else") == 401


async def test_each_has_an_address_of_its_own(tmp_path: Path, server: dict[str, Any]) -> None:
    """Two workers of one configuration serve side by side, as Envoy expects them."""
    async with serving(tmp_path, server) as first, serving(tmp_path, server, index=1) as second:
        assert second.address == f"{first.address}.1"
        assert [await first.ask(), await second.ask()] == [0, 0]


async def test_a_new_configuration(tmp_path: Path, server: dict[str, Any]) -> None:
    """It is in force when the worker says so."""
    content = configuration(server, key="sk-another-key")

    async with serving(tmp_path, server) as worker:
        await worker.tell(Reload(content))

        assert await worker.report() == Reloaded(parse(content, tmp_path / "extproc.yaml").digest)
        assert [await worker.ask(KEY), await worker.ask("sk-another-key")] == [401, 0]


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (b"models: {m: [", "line 1"),
        (b"modles: {}", "modles: unknown key"),
        (configuration({}, models={"m": {"route": {"provider": "nobody"}}}), "models.m.route[0][0].provider"),
        (configuration({}, providers={"p": {"base_url": "ftp://p"}}), "providers.p: base_url"),
    ],
)
async def test_a_wrong_configuration(tmp_path: Path, wrong: bytes, problem: str) -> None:
    """It is refused with its reason, the one before stays in force, and no secret is in what is said about it."""
    server = {"transport": "grpcio", "grpc": f"unix:{tmp_path}/x.sock"}

    async with serving(tmp_path, server) as worker:
        await worker.tell(Reload(wrong))

        report = await worker.report()
        assert isinstance(report, Reloaded)
        assert problem in report.problem
        assert report.digest == parse(configuration(server), tmp_path / "extproc.yaml").digest
        assert await worker.ask(KEY) == 0
        assert not {secret for secret in (KEY, PROVIDER_KEY) if secret in report.problem + worker.log()}


async def test_a_key_to_leave_alone(tmp_path: Path, server: dict[str, Any]) -> None:
    """It uses the others, also after a change of the configuration, until the time is over."""
    keys = {"p": {"base_url": "http://127.0.0.1:9/v1", "keys": [{"value": "pk-one"}, {"value": "pk-two"}]}}
    async with hired(tmp_path, server) as worker:
        await worker.tell(Reload(configuration(server, providers=keys)))
        assert isinstance(await worker.report(), Ready), worker.log()
        assert {await worker.attempt() for _ in range(4)} == {"Bearer pk-one", "Bearer pk-two"}

        await worker.tell(KeyCooling("p", key_id(Secret("pk-one")), 3600))
        await worker.tell(KeyCooling("p", "unknown", 3600))
        await worker.tell(Reload(configuration(server, providers=keys, key="sk-another-key")))
        assert isinstance(await worker.report(), Reloaded)
        assert {await worker.attempt() for _ in range(4)} == {"Bearer pk-two"}

        await worker.tell(KeyCooling("p", key_id(Secret("pk-one")), 0))
        await worker.tell(Reload(configuration(server, providers=keys)))
        assert isinstance(await worker.report(), Reloaded)
        assert {await worker.attempt() for _ in range(4)} == {"Bearer pk-one", "Bearer pk-two"}


async def test_a_call_of_a_worker_that_died(tmp_path: Path, server: dict[str, Any]) -> None:
    """It accounts for the call that it is told of, with what passed."""
    call: dict[str, Any] = {
        "call_id": "call-9",
        "worker": "vm/0/dead",
        "consumer": "acme",
        "model": "m",
        "stream": "yes",
    }
    started = time.time() - 5
    ended = Ended(call=call, provider="p", target="m", status=200, sent=2000, started=started, upstream=True)
    async with serving(tmp_path, server) as worker:
        await worker.tell(ended)
        with closing(open_database(f"sqlite:///{worker.home}/run/extproc.db")) as database:
            async with asyncio.timeout(20):
                while not (rows := database.ledger.rows(limit=10)):
                    await asyncio.sleep(0.05)

    assert [(row.call_id, row.consumer, row.provider, row.code) for row in rows] == [
        ("call-9", "acme", "p", "worker_died")
    ]


async def test_drain_is_an_orderly_end(tmp_path: Path, server: dict[str, Any]) -> None:
    """Told to drain, it ends with 0 and takes its socket along."""
    async with serving(tmp_path, server) as worker:
        await worker.tell(Drain(notice=0, grace=0))

        assert await worker.status() == 0
        assert not (tmp_path / "x.sock").exists()


async def test_notice_is_for_health_checks(tmp_path: Path) -> None:
    """While they see it go, calls are served as before; only then it ends."""
    server = {"transport": "grpcio", "grpc": f"unix:{tmp_path}/x.sock"}
    async with serving(tmp_path, server) as worker, dial(worker.address) as channel:
        health = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        assert (await health.read()).status == health_pb2.HealthCheckResponse.SERVING

        await worker.tell(Drain(notice=2, grace=0))

        assert (await asyncio.wait_for(health.read(), 1.5)).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await worker.ask(KEY) == 0
        assert worker.process.returncode is None
        assert await worker.status() == 0


async def test_a_supervisor_that_is_gone(tmp_path: Path, server: dict[str, Any]) -> None:
    """The worker does not go on alone."""
    async with serving(tmp_path, server) as worker:
        worker.writer.close()

        assert await worker.status() == 0
        assert not (tmp_path / "x.sock").exists()


@pytest.mark.parametrize("first", [None, Drain(0, 0)])
async def test_an_end_before_the_beginning(tmp_path: Path, first: Drain | None) -> None:
    """A worker that is not wanted any more before it had a configuration ends without a word."""
    async with hired(tmp_path, {"grpc": f"unix:{tmp_path}/x.sock"}) as worker:
        if first is not None:
            await worker.tell(first)
        else:
            worker.writer.close()

        assert await worker.status() == 0
        assert worker.log() == ""


async def test_signals_are_the_supervisors_business(tmp_path: Path, server: dict[str, Any]) -> None:
    """Ctrl-C in a terminal reaches the workers too: they go on until they are told to drain."""
    async with serving(tmp_path, server) as worker:
        worker.process.send_signal(signal.SIGINT)
        worker.process.send_signal(signal.SIGTERM)

        await worker.tell(Reload(configuration(server, key="sk-another-key")))
        assert isinstance(await worker.report(), Reloaded)
        await worker.tell(Drain(0, 0))
        assert await worker.status() == 0


async def test_an_address_in_use(tmp_path: Path, server: dict[str, Any]) -> None:
    """It cannot serve, so it ends with an error that names the address, and never says "ready"."""
    async with serving(tmp_path, server), hired(tmp_path, server) as second:
        second.log_file = second.log_file.rename(tmp_path / "log.second")
        await second.tell(Reload(configuration(server)))

        assert await second.report() is None
        assert await second.status() == 1
        assert f"another server listens here: '{tmp_path}/x.sock'" in second.log()


async def test_a_server_that_ends_by_itself(tmp_path: Path, server: dict[str, Any], transport: str) -> None:
    """A worker without its server is of no use: it ends its streams and itself, so that a new one takes its place."""
    async with (
        serving(tmp_path, server, program=("-c", BREAKABLE)) as worker,
        dial(worker.address) as channel,
    ):
        stream = channel.stream_stream(METHOD)(metadata=((STAGE, "router"),))
        await stream.write(head(KEY))
        await stream.read()

        if transport == "granian":
            worker.process.send_signal(signal.SIGUSR1)
        else:
            await break_grpcio(tmp_path / "x.sock")

        assert await worker.status() == 1
        with pytest.raises(grpc.aio.AioRpcError):
            await stream.read()
        lines = [json.loads(line) for line in worker.log().splitlines() if line.startswith("{")]
        assert [x["level"] for x in lines if x["event"] == "the server has ended by itself"] == ["critical"]
        assert [(x["how"], x["consumer"]) for x in lines if x["event"] == "call"] == [("aborted", "acme")]


async def break_grpcio(path: Path) -> None:
    """Call a method whose name is not UTF-8: grpcio's accepting task fails with UnicodeDecodeError."""

    def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload

    fields = {":method": b"POST", ":scheme": b"http", ":path": b"/\xff", ":authority": b"x", "te": b"trailers"}
    fields["content-type"] = b"application/grpc"
    literal = b"".join(b"\0%c%b%c%b" % (len(k), k.encode(), len(v), v) for k, v in fields.items())
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + frame(1, 4, 1, literal))
    await asyncio.wait_for(reader.read(), 20)  # whoever leaves too early was not there
    writer.close()


async def refused(address: str, message: bytes) -> grpc.StatusCode:
    """How a stream ends that begins with this message."""
    async with dial(address) as channel:
        stream = channel.stream_stream(METHOD)(iter([message]), metadata=((STAGE, "router"),))
        return grpc.StatusCode(await stream.code())


class Refusing:
    """A session that cannot read what it gets."""

    idle_timeout = None

    async def receive(self, messages: list[bytes]) -> list[bytes]:
        raise ValueError(len(messages))

    async def on_idle(self) -> list[bytes]:
        return []

    async def close(self) -> None:
        pass


@pytest.mark.parametrize("larger", ["max_body", "max_answer"])
async def test_a_message_may_be_as_large_as_a_body(server: dict[str, Any], larger: str) -> None:
    """The larger of `gateway.max_body` and `gateway.max_answer` fits into one message, and not much more."""
    gateway = {"max_body": "64KiB", "max_answer": "64KiB", larger: "3MiB"}
    loaded = parse(configuration(server, gateway=gateway), Path("extproc.yaml"))
    made = make_server(loaded.config, 0, lambda _: Refusing())
    await made.start()
    try:
        assert await refused(server["grpc"], b"x" * (3 << 20)) == grpc.StatusCode.INTERNAL
        assert await refused(server["grpc"], b"x" * (5 << 20)) == grpc.StatusCode.RESOURCE_EXHAUSTED
    finally:
        await made.stop(0)


@pytest.fixture(name="pem", scope="module")
def _pem(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("pem"))


@pytest.mark.parametrize("mutual", [False, True])
async def test_tls(transport: str, pem: Certificates, mutual: bool) -> None:
    """`server.tls` makes it speak TLS; with `client` it demands a certificate."""
    tls: dict[str, Any] = {"cert": str(pem.cert), "key": str(pem.key), "ca": str(pem.ca)}
    if mutual:
        tls["client"] = {"cert": str(pem.client_cert), "key": str(pem.client_key)}
    server = {"transport": transport, "grpc": f"127.0.0.1:{free_port()}", "tls": tls}
    loaded = parse(configuration(server), Path("extproc.yaml"))
    made = make_server(loaded.config, 0, lambda _: Refusing())
    await made.start()

    async def asked(credentials: grpc.ChannelCredentials | None) -> grpc.StatusCode:
        async with dial(server["grpc"], credentials) as channel:
            stream = channel.stream_stream(METHOD)(iter([b"x"]), metadata=((STAGE, "router"),))
            return grpc.StatusCode(await stream.code())

    ca = pem.ca.read_bytes()
    try:
        shown = grpc.ssl_channel_credentials(ca, pem.client_key.read_bytes(), pem.client_cert.read_bytes())
        assert await asked(shown) == grpc.StatusCode.INTERNAL
        anonymous = grpc.StatusCode.UNAVAILABLE if mutual else grpc.StatusCode.INTERNAL
        assert await asked(grpc.ssl_channel_credentials(ca)) == anonymous
        assert await asked(None) == grpc.StatusCode.UNAVAILABLE
    finally:
        await made.stop(0)
