"""What the tests of the drivers stand on: a scripted session, a real Envoy, a small upstream, certificates."""

import asyncio
import datetime as dt
import ipaddress
import json
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from extproc.wire.driver import Server, Tls
from extproc.wire.granian import GranianServer
from extproc.wire.grpcio import GrpcioServer

DRIVERS = {"grpcio": GrpcioServer, "granian": GranianServer}
ENVOY = Path(sys.executable).with_name("envoy")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Wait for a condition, at most ``seconds``."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "the deadline has passed"
        await asyncio.sleep(0.01)


@dataclass
class Journal:
    """What happened to all sessions of a server."""

    metadata: list[dict[str, str]] = field(default_factory=list)
    steps: Counter[str] = field(default_factory=Counter)
    closes: list[int] = field(default_factory=list)
    release: asyncio.Event = field(default_factory=asyncio.Event)

    def settled(self) -> bool:
        """Every session opened is closed."""
        return len(self.closes) == len(self.metadata)

    def open_echo(self, metadata: Mapping[str, str]) -> "Echo":
        self.metadata.append(dict(metadata))
        return Echo(self, len(self.metadata))

    def open_script(self, metadata: Mapping[str, str]) -> "Script":
        self.metadata.append(dict(metadata))
        return Script(self, len(self.metadata))


class Echo:
    """Answers each message with itself; ``hang``, ``raise`` and ``idle`` do as they say."""

    def __init__(self, journal: Journal, number: int) -> None:
        self.journal = journal
        self.number = number
        self.idle_timeout: float | None = None

    async def receive(self, messages: list[bytes]) -> list[bytes]:
        for message in messages:
            if message.startswith(b"idle"):
                self.idle_timeout = 0.05
                self.word = message
                return []
            self.journal.steps["received"] += 1
            await self.act(message.decode("latin-1")[:10])
        return list(messages)

    async def act(self, word: str) -> None:
        if word == "hang":
            await self.journal.release.wait()
        if word == "raise":
            raise RuntimeError("told to")

    async def on_idle(self) -> list[bytes]:
        self.idle_timeout = None
        if self.word == b"idle raise":
            raise RuntimeError("told to")
        return [b"silence"]

    async def close(self) -> None:
        await asyncio.sleep(0)
        self.journal.closes.append(self.number)


class Script(Echo):
    """Lets every call pass; the call's ``x-do: ACTION STEP`` hangs or raises at one of its steps."""

    do = ("", "")

    async def receive(self, messages: list[bytes]) -> list[bytes]:
        out = []
        for data in messages:
            message = pb.ProcessingRequest.FromString(data)
            step = message.WhichOneof("request")
            if step == "request_headers":
                headers = {h.key: h.raw_value.decode() for h in message.request_headers.headers.headers}
                action, _, when = headers.get("x-do", "").partition(" ")
                self.do = (action, when)
            self.journal.steps[step] += 1
            if self.do[1] == step:
                await self.act(self.do[0])
            out.append(self.answer(step, message))
        return out

    def answer(self, step: str, message: Any) -> bytes:
        if step.endswith("headers"):
            common = pb.CommonResponse()
            if step == "response_headers":
                common.header_mutation.set_headers.add().header.key = "x-seen"
                common.header_mutation.set_headers[0].header.raw_value = b"yes"
            return pb.ProcessingResponse(**{step: pb.HeadersResponse(response=common)}).SerializeToString()
        if step.endswith("trailers"):
            return pb.ProcessingResponse(**{step: pb.TrailersResponse()}).SerializeToString()
        body = getattr(message, step)
        common = pb.CommonResponse()
        if self.journal.metadata[self.number - 1].get("mode") == "duplex":
            streamed = pb.StreamedBodyResponse(body=body.body, end_of_stream=body.end_of_stream)
            common.body_mutation.streamed_response.CopyFrom(streamed)
        return pb.ProcessingResponse(**{step: pb.BodyResponse(response=common)}).SerializeToString()


@asynccontextmanager
async def serving(
    driver: str,
    address: str,
    open_session: Callable[[Mapping[str, str]], Any],
    *,
    tls: Tls | None = None,
    max_message: int = 64 << 20,
) -> AsyncIterator[Server]:
    server = DRIVERS[driver](address, open_session, tls=tls, max_message=max_message)
    await server.start()
    try:
        yield server
    finally:
        await server.stop(0)


@dataclass
class Certificates:
    ca: Path
    cert: Path
    key: Path
    client_cert: Path
    client_key: Path


def certificates(folder: Path) -> Certificates:
    """A certificate authority, a server on localhost and 127.0.0.1, and a client."""
    now = dt.datetime.now(dt.UTC)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test ca")])

    def write(name: str, key: ec.EllipticCurvePrivateKey, *, ca: bool) -> tuple[Path, Path]:
        subject = ca_name if ca else x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(ca_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(minutes=5))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .sign(ca_key, hashes.SHA256())
        )
        cert_path, key_path = folder / f"{name}.pem", folder / f"{name}.key"
        cert_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        private = serialization.PrivateFormat.PKCS8
        key_path.write_bytes(
            key.private_bytes(serialization.Encoding.PEM, private, serialization.NoEncryption()),
        )
        return cert_path, key_path

    ca, _ = write("ca", ca_key, ca=True)
    cert, key = write("server", ec.generate_private_key(ec.SECP256R1()), ca=False)
    client_cert, client_key = write("client", ec.generate_private_key(ec.SECP256R1()), ca=False)
    return Certificates(ca, cert, key, client_cert, client_key)


@asynccontextmanager
async def upstream() -> AsyncIterator[int]:
    """An HTTP/1.1 server: ``/drip`` never ends, ``/big`` has 32 MiB, the rest says how long the request body was."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                size = 0
                if "transfer-encoding: chunked" in head:
                    while length := int(await reader.readuntil(), 16):
                        await reader.readexactly(length + 2)
                        size += length
                    await reader.readline()
                elif "content-length: " in head:
                    size = int(head.split("content-length: ")[1].split("\r\n")[0])
                    await reader.readexactly(size)
                path = head.split(" ")[1]
                await answer(path, size, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def answer(path: str, size: int, writer: asyncio.StreamWriter) -> None:
        if path == "/drip":
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            while True:
                writer.write(b"5\r\ndrop\n\r\n")
                await writer.drain()
                await asyncio.sleep(0.02)
        body = b"0123456789abcdef" * (2 << 20) if path == "/big" else f"got {size}".encode()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@dataclass
class Envoy:
    """A running Envoy: ``buffered`` and ``duplex`` are ports that differ in the processor's body mode."""

    buffered: int
    duplex: int
    admin: int

    def url(self, path: str = "/", *, duplex: bool = False) -> str:
        return f"http://127.0.0.1:{self.duplex if duplex else self.buffered}{path}"


@asynccontextmanager
async def envoy(
    folder: Path,
    address: str,
    upstream_port: int,
    *,
    tls: Certificates | None = None,
    health: str | None = None,
    streams: int = 1,
) -> AsyncIterator[Envoy]:
    """Envoy with our processor at ``address`` in front of the upstream; ``health`` (grpc, http) turns checks on.

    ``streams``: how many share a connection.
    """
    ports = Envoy(free_port(), free_port(), free_port())
    document = _config(ports, address, upstream_port, tls, health, streams)
    config = folder / f"envoy-{ports.buffered}.json"
    config.write_text(json.dumps(document))
    log = config.with_suffix(".log")
    command = [ENVOY, "-c", config, "--use-dynamic-base-id", "--concurrency", "1", "--log-path", log]
    process = subprocess.Popen(  # noqa: ASYNC220 - a moment
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = asyncio.get_running_loop().time() + 20
        while not await _accepts(ports.duplex):
            assert process.poll() is None, log.read_text()[-3000:]
            assert asyncio.get_running_loop().time() < deadline, log.read_text()[-3000:]
            await asyncio.sleep(0.02)
        yield ports
    finally:
        process.kill()
        process.wait()


async def _accepts(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


def _address(address: str) -> dict[str, Any]:
    if address.startswith("unix:"):
        return {"pipe": {"path": address.removeprefix("unix:")}}
    host, _, port = address.rpartition(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}


def _cluster(name: str, address: str) -> dict[str, Any]:
    endpoint = {"lb_endpoints": [{"endpoint": {"address": _address(address)}}]}
    many = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests"), 1_000_000)
    return {
        "name": name,
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": [endpoint]},
        "circuit_breakers": {"thresholds": [many]},
    }


def _config(
    ports: Envoy, address: str, upstream_port: int, tls: Certificates | None, health: str | None, streams: int
) -> dict[str, Any]:
    processor = _cluster("processor", address)
    processor["typed_extension_protocol_options"] = {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {"max_concurrent_streams": streams}},
        }
    }
    if tls is not None:
        common: dict[str, Any] = {"validation_context": {"trusted_ca": {"filename": str(tls.ca)}}}
        pair = {
            "certificate_chain": {"filename": str(tls.client_cert)},
            "private_key": {"filename": str(tls.client_key)},
        }
        common["tls_certificates"] = [pair]
        processor["transport_socket"] = {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                "common_tls_context": {**common, "alpn_protocols": ["h2"]},
                "sni": "localhost",
            },
        }
    if health is not None:
        check = {
            "grpc": {"grpc_health_check": {"service_name": "envoy.service.ext_proc.v3.ExternalProcessor"}},
            "http": {"http_health_check": {"path": "/healthz", "codec_client_type": "HTTP2"}},
        }[health]
        times = {"timeout": "1s", "interval": "0.05s", "no_traffic_interval": "0.05s"}
        processor["health_checks"] = [{**times, "unhealthy_threshold": 1, "healthy_threshold": 1, **check}]
        processor["common_lb_config"] = {"healthy_panic_threshold": {"value": 0}}
    return {
        "admin": {"address": _address(f"127.0.0.1:{ports.admin}")},
        "static_resources": {
            "clusters": [processor, _cluster("upstream", f"127.0.0.1:{upstream_port}")],
            "listeners": [_listener(ports.buffered, "BUFFERED"), _listener(ports.duplex, "FULL_DUPLEX_STREAMED")],
        },
    }


def _listener(port: int, mode: str) -> dict[str, Any]:
    api = "type.googleapis.com/envoy.extensions.filters"
    duplex = mode == "FULL_DUPLEX_STREAMED"
    service: dict[str, Any] = {"envoy_grpc": {"cluster_name": "processor"}}
    service["initial_metadata"] = [{"key": "mode", "value": "duplex" if duplex else "buffered"}]
    trailers = dict.fromkeys(("request_trailer_mode", "response_trailer_mode"), "SEND" if duplex else "SKIP")
    extproc = {
        "@type": f"{api}.http.ext_proc.v3.ExternalProcessor",
        "grpc_service": service,
        "message_timeout": "60s",
        "processing_mode": {
            "request_header_mode": "SEND",
            "response_header_mode": "SEND",
            "request_body_mode": mode,
            "response_body_mode": mode,
            **trailers,
        },
    }
    route = {"match": {"prefix": "/"}, "route": {"cluster": "upstream", "timeout": "0s"}}
    manager = {
        "@type": f"{api}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": mode.lower(),
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {"name": "extproc", "typed_config": extproc},
            {"name": "router", "typed_config": {"@type": f"{api}.http.router.v3.Router"}},
        ],
    }
    return {
        "name": mode,
        "address": _address(f"127.0.0.1:{port}"),
        "per_connection_buffer_limit_bytes": 64 << 20,
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }


async def leave(port: int, request: bytes, when: Callable[[], bool], *, read: int = 0) -> None:
    """Send a request, read some of the answer, wait for ``when``, then cut the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    if read:
        await reader.readexactly(read)
    await until(when)
    writer.transport.abort()
