"""Both drivers, against gRPC's own client and against a real Envoy."""

import asyncio
import contextlib
import logging
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs
from wire.rig import (
    DRIVERS,
    Certificates,
    Envoy,
    Journal,
    certificates,
    envoy,
    free_port,
    leave,
    serving,
    until,
    upstream,
)

from extproc.envoyconf.clusters import STREAMS_PER_CONNECTION
from extproc.wire.driver import METHOD, SERVICE, Session, StreamError, Tls, metadata_of
from extproc.wire.granian import Frames, frame

STEPS = ["request_headers", "request_body", "response_headers", "response_body"]


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["unix", "tcp"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"unix:{tmp_path}/run/x.sock" if request.param == "unix" else f"127.0.0.1:{free_port()}"


@pytest.fixture
def journal() -> Journal:
    return Journal()


@pytest.fixture
def sock(tmp_path: Path) -> str:
    return f"unix:{tmp_path}/x.sock"


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("pem"))


@pytest.fixture(autouse=True)
def quiet() -> Any:
    """Expected tracebacks stay out of the output."""
    with capture_logs() as logs:
        yield logs


def dial(address: str, *options: tuple[str, Any], **more: Any) -> grpc.aio.Channel:
    # A subchannel pool of its own: no connection, and no reconnect pause, is inherited from another test.
    common = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    common += [("grpc.max_send_message_length", -1), ("grpc.default_authority", "localhost")]
    return grpc.aio.insecure_channel(address, options=[*common, *options], **more)


def process(channel: grpc.aio.Channel, **options: Any) -> Any:
    return channel.stream_stream(METHOD)(**options)


async def status(call: Any) -> grpc.StatusCode:
    """Read to the end, and say how it ended."""
    try:
        while await call.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        return error.code()
    return await call.code()


@contextlib.asynccontextmanager
async def gateway(tmp_path: Path, driver: str, address: str, open_session: Any, **options: Any) -> AsyncIterator[Any]:
    """Server, Envoy, upstream and an HTTP client."""
    async with (
        serving(driver, address, open_session, **options) as server,
        upstream() as port,
        envoy(tmp_path, address, port, streams=STREAMS_PER_CONNECTION[driver]) as ports,
        httpx.AsyncClient(timeout=20) as client,
    ):
        yield server, ports, client


class TestMessages:
    async def test_messages_come_back_in_order(self, driver: str, address: str, journal: Journal) -> None:
        """Each message reaches the session and its answers reach the peer, on Unix sockets and on TCP."""
        async with serving(driver, address, journal.open_echo) as server, dial(address) as channel:
            call = process(channel, metadata=[("stage", "router"), ("twice", "a"), ("twice", "b")])
            for size in (0, 1, 100_000):
                await call.write(b"x" * size)
                assert await call.read() == b"x" * size
            assert server.streams == 1
            for number in range(20):
                await call.write(b"%d" % number)
            assert [await call.read() for _ in range(20)] == [b"%d" % number for number in range(20)]
            await call.done_writing()
            await status(call)
            await until(journal.settled)

            assert server.streams == 0
            assert journal.metadata[0]["stage"] == "router"
            assert journal.metadata[0]["twice"] == "a,b"
            assert journal.closes == [1]

    async def test_grpcio_ends_with_ok(self, sock: str, journal: Journal) -> None:
        """With trailers, a stream that the peer has finished ends with OK."""
        async with serving("grpcio", sock, journal.open_echo), dial(sock) as channel:
            call = process(channel)
            await call.write(b"x")
            await call.done_writing()

            assert await status(call) == grpc.StatusCode.OK

    @pytest.mark.parametrize("mutual", [False, True])
    async def test_tls(self, driver: str, address: str, journal: Journal, pem: Certificates, mutual: bool) -> None:
        """TLS works on both kinds of address; with a client CA, nobody gets in without a certificate."""
        tls = Tls(pem.cert, pem.key, pem.ca if mutual else None)
        ca, key, cert = (path.read_bytes() for path in (pem.ca, pem.client_key, pem.client_cert))
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.ssl_target_name_override", "localhost")]

        async def echo(credentials: grpc.ChannelCredentials) -> bytes:
            async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
                call = process(channel, timeout=10)
                await call.write(b"x")
                return bytes(await call.read())

        async with serving(driver, address, journal.open_echo, tls=tls):
            assert await echo(grpc.ssl_channel_credentials(ca, key, cert)) == b"x"
            if mutual:
                with pytest.raises((grpc.aio.AioRpcError, asyncio.InvalidStateError)):
                    await echo(grpc.ssl_channel_credentials(ca))

    async def test_message_over_the_limit(self, driver: str, sock: str, journal: Journal) -> None:
        """A message over the limit ends the stream with an error; the session never sees it."""
        async with serving(driver, sock, journal.open_echo, max_message=1000) as _, dial(sock) as channel:
            call = process(channel)
            await call.write(b"x" * 1001)
            await call.done_writing()

            assert await status(call) == grpc.StatusCode.RESOURCE_EXHAUSTED
            await until(journal.settled)
            assert not journal.steps

    async def test_compressed_message_on_granian(self, sock: str, journal: Journal) -> None:
        """A compressed message is refused, not misread."""
        async with (
            serving("granian", sock, journal.open_echo),
            dial(sock, compression=grpc.Compression.Gzip) as channel,
        ):
            call = process(channel)
            await call.write(b"x" * 1000)

            assert await status(call) == grpc.StatusCode.UNIMPLEMENTED

    async def test_a_slow_session_holds_back_its_peer(self, driver: str, sock: str, journal: Journal) -> None:
        """While the session is busy only a little is read ahead, and other streams go on; nothing is lost."""
        async with serving(driver, sock, journal.open_echo), dial(sock) as channel:
            slow, quick = process(channel), process(channel)
            await slow.write(b"hang")
            await until(lambda: journal.steps["received"] == 1)
            piece, pieces = b"x" * 65536, 512
            writer = asyncio.ensure_future(_write(slow, piece, pieces))
            for number in range(20):
                await quick.write(b"x" * 100_000)
                assert len(await quick.read()) == 100_000, number
            assert not writer.done()
            assert journal.steps["received"] == 21

            journal.release.set()
            got = [await slow.read() for _ in range(pieces + 1)]
            await writer
            assert sum(map(len, got)) == pieces * len(piece) + 4

    async def test_two_thousand_streams_at_once(self, driver: str, sock: str, journal: Journal) -> None:
        """Two thousand streams of one connection are open at the same time, and each gets its answer."""
        async with serving(driver, sock, journal.open_echo) as server, dial(sock) as channel:
            calls = [process(channel) for _ in range(2000)]
            await asyncio.gather(*(call.write(b"hang") for call in calls))
            await until(lambda: server.streams == 2000, 30)
            journal.release.set()

            assert set(await asyncio.gather(*(call.read() for call in calls))) == {b"hang"}
            for call in calls:
                call.cancel()
            await until(journal.settled, 30)


async def _write(call: Any, piece: bytes, times: int) -> None:
    for _ in range(times):
        await call.write(piece)


class TestFailures:
    async def test_a_failing_session_is_an_error(self, driver: str, sock: str, journal: Journal) -> None:
        """An exception ends the stream with an error, at its first message as at a later one, and is closed once."""
        async with serving(driver, sock, journal.open_echo), dial(sock) as channel:
            first, later = process(channel), process(channel)
            await first.write(b"raise")
            assert await status(first) == grpc.StatusCode.INTERNAL
            await later.write(b"fine")
            assert await later.read() == b"fine"
            await later.write(b"raise")
            assert await status(later) != grpc.StatusCode.OK
            await until(journal.settled)

            assert sorted(journal.closes) == [1, 2]

    @pytest.mark.parametrize(
        ("error", "code"),
        [(ValueError("no such stage"), grpc.StatusCode.INVALID_ARGUMENT), (KeyError(), grpc.StatusCode.INTERNAL)],
    )
    async def test_refused_metadata(self, driver: str, sock: str, error: Exception, code: grpc.StatusCode) -> None:
        """A stream whose session cannot be opened ends with an error that says whose fault it is."""

        def refuse(_: Mapping[str, str]) -> Session:
            raise error

        async with serving(driver, sock, refuse) as server, dial(sock) as channel:
            assert await status(process(channel)) == code
            assert server.streams == 0

    async def test_close_may_fail(self, driver: str, sock: str, quiet: list[Any]) -> None:
        """A close that raises is logged, and hurts nobody else."""

        class Broken:
            idle_timeout = None

            async def receive(self, messages: list[bytes]) -> list[bytes]:
                return messages

            async def on_idle(self) -> list[bytes]:
                return []

            async def close(self) -> None:
                raise RuntimeError("told to")

        async with serving(driver, sock, lambda _: Broken()), dial(sock) as channel:
            for _ in range(2):
                call = process(channel)
                await call.write(b"x")
                assert await call.read() == b"x"
                call.cancel()
            await until(lambda: [entry["event"] for entry in quiet] == ["session not closed"] * 2)

    @pytest.mark.parametrize("moment", ["open", "answered", "hang"])
    async def test_peer_leaves(self, driver: str, sock: str, journal: Journal, moment: str) -> None:
        """A peer that cancels ends the session, even one that is at work; it is closed exactly once."""
        async with serving(driver, sock, journal.open_echo) as server, dial(sock) as channel:
            call = process(channel)
            await call.write(b"hang" if moment == "hang" else b"x")
            await until(lambda: journal.steps["received"] == 1)
            if moment == "answered":
                assert await call.read() == b"x"
            call.cancel()
            await until(journal.settled)

            assert journal.closes == [1]
            assert server.streams == 0

    async def test_peer_vanishes(self, driver: str, address: str, journal: Journal) -> None:
        """All streams of a connection that breaks are closed."""
        async with serving(driver, address, journal.open_echo):
            async with dial(address) as channel:
                for _ in range(5):
                    call = process(channel)
                    await call.write(b"x")
                    assert await call.read() == b"x"
                del call
            await until(journal.settled)

            assert sorted(journal.closes) == [1, 2, 3, 4, 5]


class TestSilence:
    async def test_output_of_silence_arrives(self, driver: str, sock: str, journal: Journal) -> None:
        """After the session's idle time its output is sent, and the stream goes on."""
        async with serving(driver, sock, journal.open_echo), dial(sock) as channel:
            call = process(channel)
            await call.write(b"idle")
            assert await call.read() == b"silence"
            await call.write(b"x")
            assert await call.read() == b"x"
            await call.write(b"idle")
            assert await call.read() == b"silence"

    async def test_failing_in_silence_is_an_error(self, driver: str, sock: str, journal: Journal) -> None:
        """An exception of on_idle ends the stream with an error."""
        async with serving(driver, sock, journal.open_echo), dial(sock) as channel:
            call = process(channel)
            await call.write(b"idle raise")
            assert await status(call) == grpc.StatusCode.INTERNAL
            await until(journal.settled)
            assert journal.closes == [1]


class TestLife:
    async def test_drain_shows_in_health(self, driver: str, sock: str, journal: Journal) -> None:
        """After drain the health check says so, while streams old and new are served."""
        async with serving(driver, sock, journal.open_echo) as server, dial(sock) as channel:
            assert await _healthy(driver, sock, channel)
            old = process(channel)
            await old.write(b"x")
            await server.drain()
            assert not await _healthy(driver, sock, channel)
            for call in (old, process(channel)):
                await call.write(b"y")
                assert await call.read() is not grpc.aio.EOF

    async def test_stop_waits_for_streams(self, driver: str, sock: str, journal: Journal) -> None:
        """An open stream may finish within the grace, and new ones are refused meanwhile; close has run at the end."""
        async with serving(driver, sock, journal.open_echo) as server, dial(sock) as channel:
            call = process(channel)
            await call.write(b"x")
            assert await call.read() == b"x"
            stop = asyncio.ensure_future(server.stop(20))
            await asyncio.sleep(0.05)
            assert await status(process(channel)) == grpc.StatusCode.UNAVAILABLE
            await call.write(b"y")
            assert await call.read() == b"y"
            assert not stop.done()
            await call.done_writing()
            await stop

            assert journal.closes == [1]

    @pytest.mark.parametrize("word", [b"hang", b"x"])
    async def test_stop_cuts_streams(self, driver: str, sock: str, journal: Journal, word: bytes) -> None:
        """After the grace an open stream ends with an error, its session is closed, and the socket is gone."""
        async with serving(driver, sock, journal.open_echo) as server, dial(sock) as channel:
            call = process(channel)
            await call.write(word)
            await until(lambda: journal.steps["received"] == 1)
            await server.stop(0.05)

            assert journal.closes == [1]
            assert await status(call) != grpc.StatusCode.OK
            assert not Path(sock.removeprefix("unix:")).exists()

    async def test_sockets(
        self, driver: str, tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A relative path works, its folder is made, the socket is private; a stale one is replaced, a live one not."""
        monkeypatch.chdir(tmp_path)
        address, path = "unix:run/deep/x.sock", Path("run/deep/x.sock")
        async with serving(driver, address, journal.open_echo):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            with pytest.raises(OSError, match="another server"):
                await DRIVERS[driver](address, journal.open_echo, tls=None, max_message=1).start()
            stale = path.with_name("stale")
            stale.hardlink_to(path)
        stale.replace(path)
        async with serving(driver, address, journal.open_echo), dial(address) as channel:
            call = process(channel)
            await call.write(b"x")
            assert await call.read() == b"x"
        assert not list(path.parent.iterdir())
        path.write_text("precious")
        with pytest.raises(OSError, match="not a socket"):
            await DRIVERS[driver](address, journal.open_echo, tls=None, max_message=1).start()
        assert path.read_text() == "precious"

    async def test_port_in_use(self, driver: str, journal: Journal) -> None:
        """A port that another server has is an error at start."""
        address = f"127.0.0.1:{free_port()}"
        async with serving(driver, address, journal.open_echo):
            with pytest.raises((OSError, RuntimeError), match=address):
                await DRIVERS[driver](address, journal.open_echo, tls=None, max_message=1).start()

    async def test_tls_files_that_do_not_work(
        self, driver: str, sock: str, journal: Journal, pem: Certificates
    ) -> None:
        """Wrong TLS files are an error at start that names them."""
        tls = Tls(pem.cert, pem.client_key)
        with pytest.raises(OSError, match=r"server\.pem"):
            await DRIVERS[driver](sock, journal.open_echo, tls=tls, max_message=1).start()

    async def test_logging_is_left_alone(
        self, driver: str, sock: str, journal: Journal, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """Serving, failing and stopping write nothing by themselves and touch no logging handlers."""
        before = (list(logging.root.handlers), logging.root.level)
        async with serving(driver, sock, journal.open_echo), dial(sock) as channel:
            call = process(channel)
            await call.write(b"raise")
            await status(call)
        assert (list(logging.root.handlers), logging.root.level) == before
        out, err = capfd.readouterr()
        assert out == ""
        assert all("chttp2_transport" in line for line in err.splitlines())  # the client's, on being sent away


async def _healthy(driver: str, address: str, channel: grpc.aio.Channel) -> bool:
    if driver == "grpcio":
        stub = health_pb2_grpc.HealthStub(channel)
        answers = [await stub.Check(health_pb2.HealthCheckRequest(service=name)) for name in ("", SERVICE)]
        serving_now = {answer.status == health_pb2.HealthCheckResponse.SERVING for answer in answers}
        assert len(serving_now) == 1
        return serving_now.pop()
    status, text = await _curl(address, "/healthz")
    assert (status, text) in {("200", "SERVING"), ("503", "NOT_SERVING")}
    return status == "200"


async def _curl(address: str, path: str, *options: str) -> tuple[str, str]:
    """Curl speaks HTTP/2 over Unix sockets."""
    command = ["curl", "-s", "--http2-prior-knowledge", "-w", " %{http_code}", *options]
    command += ["--unix-socket", address.removeprefix("unix:"), f"http://localhost{path}"]
    curl = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    text, _, code = (await curl.communicate())[0].decode().rpartition(" ")
    return code, text


async def test_other_requests_on_granian(sock: str, journal: Journal) -> None:
    """What is neither ext_proc nor health gets a plain HTTP error."""
    async with serving("granian", sock, journal.open_echo):
        assert (await _curl(sock, "/nowhere"))[0] == "404"
        assert (await _curl(sock, METHOD))[0] == "405"
        assert (await _curl(sock, METHOD, "-X", "POST"))[0] == "415"
    assert journal.metadata == []


async def test_more_services_on_grpcio(sock: str, journal: Journal) -> None:
    """Another gRPC service can share the port."""

    async def hello(request: bytes, _: Any) -> bytes:
        return b"hello " + request

    more = grpc.method_handlers_generic_handler("more", {"Hello": grpc.unary_unary_rpc_method_handler(hello)})
    server = DRIVERS["grpcio"](sock, journal.open_echo, tls=None, max_message=100, handlers=[more])
    await server.start()
    async with dial(sock) as channel:
        assert await channel.unary_unary("/more/Hello")(b"you") == b"hello you"
    await server.stop(0)


def test_metadata_of() -> None:
    """Pseudo-headers and binary values are left out, repeated names are joined."""
    pairs = [(":path", "/"), ("a", "1"), ("x-bin", b"\x00"), ("a", b"2")]
    assert metadata_of(pairs) == {"a": "1,2"}


@given(messages=st.lists(st.binary(max_size=40)), cuts=st.lists(st.integers(0, 400)))
def test_frames_under_every_chunking(messages: list[bytes], cuts: list[int]) -> None:
    """However the bytes are cut, the same messages come out."""
    data = frame(messages)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    frames = Frames(40)
    got = [message for a, b in pairwise(edges) for message in frames.feed(data[a:b])]
    frames.finish()
    assert got == messages


def test_frames_cut_short() -> None:
    """An end inside a message is an error."""
    frames = Frames(40)
    frames.feed(frame([b"hello"])[:-1])
    with pytest.raises(StreamError):
        frames.finish()


@pytest.mark.e2e
class TestEnvoy:
    async def test_calls(self, driver: str, address: str, tmp_path: Path, journal: Journal) -> None:
        """Calls pass in both body modes, small and with 8 MiB and more, byte for byte."""
        async with gateway(tmp_path, driver, address, journal.open_script) as (_, ports, client):
            for duplex in (False, True):
                answer = await client.post(ports.url(duplex=duplex), content=b"hello")
                assert (answer.status_code, answer.text, answer.headers["x-seen"]) == (200, "got 5", "yes")
                assert journal.metadata[-1]["mode"] == ("duplex" if duplex else "buffered")
                answer = await client.post(ports.url(duplex=duplex), content=b"x" * (8 << 20))
                assert (answer.status_code, answer.text) == (200, f"got {8 << 20}")
                answer = await client.get(ports.url("/big", duplex=duplex))
                assert answer.content == b"0123456789abcdef" * (2 << 20)
            await until(journal.settled)
            assert sorted(journal.closes) == list(range(1, 7))

    async def test_tls(self, driver: str, address: str, tmp_path: Path, journal: Journal, pem: Certificates) -> None:
        """Envoy reaches us by mutual TLS with its defaults."""
        async with (
            serving(driver, address, journal.open_script, tls=Tls(pem.cert, pem.key, pem.ca)),
            upstream() as port,
            envoy(tmp_path, address, port, tls=pem) as ports,
            httpx.AsyncClient(timeout=20) as client,
        ):
            assert (await client.post(ports.url(), content=b"hello")).status_code == 200

    async def test_two_thousand_calls_at_once(self, driver: str, sock: str, tmp_path: Path, journal: Journal) -> None:
        """Two thousand calls are in our hands at the same time, and each gets its answer."""
        request = b"POST / HTTP/1.1\r\nhost: a\r\nx-do: hang request_headers\r\ncontent-length: 2\r\n\r\nhi"

        async def call(ports: Envoy) -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", ports.buffered)
            writer.write(request)
            line = await reader.readline()
            writer.transport.abort()
            return line

        async with gateway(tmp_path, driver, sock, journal.open_script) as (server, ports, _):
            calls = [asyncio.ensure_future(call(ports)) for _ in range(2000)]
            await until(lambda: server.streams == 2000, 30)
            journal.release.set()

            assert set(await asyncio.gather(*calls)) == {b"HTTP/1.1 200 OK\r\n"}
            await until(journal.settled, 30)

    async def test_client_leaves_at_every_step(self, driver: str, sock: str, tmp_path: Path, journal: Journal) -> None:
        """Wherever the client leaves, even while the session is at work, the session is closed exactly once."""
        async with gateway(tmp_path, driver, sock, journal.open_script) as (server, ports, _):

            def reached(step: str, times: int = 1) -> Any:
                before = journal.steps[step]
                return lambda: journal.steps[step] >= before + times

            head = "POST / HTTP/1.1\r\nhost: a\r\nx-do: {}\r\ncontent-length: 10\r\n\r\n"
            for step in STEPS:
                body = "" if step == "request_headers" else "0123456789"
                request = (head.format(f"hang {step}") + body).encode()
                await leave(ports.buffered, request, reached(step))
            half = (head.format("") + "01234").encode()
            await leave(ports.buffered, half, reached("request_headers"))
            await leave(ports.duplex, half, reached("request_body"))
            drip = b"GET /drip HTTP/1.1\r\nhost: a\r\n\r\n"
            await leave(ports.duplex, drip, reached("response_body", 5), read=100)
            hang = b"GET /drip HTTP/1.1\r\nhost: a\r\nx-do: hang response_body\r\n\r\n"
            await leave(ports.duplex, hang, reached("response_body"))
            await until(journal.settled)

            assert sorted(journal.closes) == list(range(1, 9))
            assert server.streams == 0

    async def test_failures_are_never_a_pass(self, driver: str, sock: str, tmp_path: Path, journal: Journal) -> None:
        """A session that raises at any step is a 500, or a broken answer when the answer had begun; closed once."""
        async with gateway(tmp_path, driver, sock, journal.open_script, max_message=1 << 20) as (_, ports, client):
            for step in STEPS:
                answer = await client.post(ports.url(), content=b"hello", headers={"x-do": f"raise {step}"})
                assert (step, answer.status_code) == (step, 500)
                if step != "response_body":
                    answer = await client.post(
                        ports.url(duplex=True), content=b"hello", headers={"x-do": f"raise {step}"}
                    )
                    assert (step, answer.status_code) == (step, 500)
            with pytest.raises(httpx.RemoteProtocolError):
                await client.get(ports.url("/big", duplex=True), headers={"x-do": "raise response_body"})
            assert (await client.post(ports.url(), content=b"x" * (2 << 20))).status_code == 500  # over max_message
            await until(journal.settled)

            assert sorted(journal.closes) == list(range(1, 10))

    async def test_refused_metadata(self, driver: str, sock: str, tmp_path: Path) -> None:
        """A session that cannot be opened is a 500."""

        def refuse(_: Mapping[str, str]) -> Session:
            raise ValueError("no such stage")

        async with gateway(tmp_path, driver, sock, refuse) as (_, ports, client):
            assert (await client.post(ports.url(), content=b"hello")).status_code == 500

    async def test_stop_fails_closed(self, driver: str, sock: str, tmp_path: Path, journal: Journal) -> None:
        """Stopping cuts a call in our hands with a 500, and the next one is a 500 too; never a pass."""
        async with gateway(tmp_path, driver, sock, journal.open_script) as (server, ports, client):
            hang = {"x-do": "hang response_headers"}
            call = asyncio.ensure_future(client.post(ports.url(), content=b"hello", headers=hang))
            await until(lambda: journal.steps["response_headers"] == 1)
            await server.stop(0.05)

            assert (await call).status_code == 500
            assert (await client.post(ports.url(), content=b"hello")).status_code == 500

    async def test_health_check(self, driver: str, sock: str, tmp_path: Path, journal: Journal) -> None:
        """Envoy's own health check sees us serving, and draining."""
        kind = "grpc" if driver == "grpcio" else "http"
        async with (
            serving(driver, sock, journal.open_script) as server,
            upstream() as port,
            envoy(tmp_path, sock, port, health=kind) as ports,
            httpx.AsyncClient(timeout=20) as client,
        ):

            async def healthy() -> bool:
                stats = await client.get(f"http://127.0.0.1:{ports.admin}/stats?filter=processor.membership_healthy")
                return stats.text.strip().endswith("1")

            async with asyncio.timeout(10):
                while not await healthy():
                    await asyncio.sleep(0.02)
                await server.drain()
                while await healthy():
                    await asyncio.sleep(0.02)

    async def test_killed_and_restarted(self, driver: str, sock: str, tmp_path: Path) -> None:
        """A killed server is a 500 for calls in its hands and for new ones; one at the same place serves again."""
        script = Path(__file__).with_name("server_process.py")

        def start() -> subprocess.Popen[str]:
            server = subprocess.Popen(
                [sys.executable, script, driver, sock], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            return server

        server = await asyncio.to_thread(start)
        try:
            async with (
                upstream() as port,
                envoy(tmp_path, sock, port) as ports,
                httpx.AsyncClient(timeout=20) as client,
            ):
                assert (await client.post(ports.url(), content=b"hello")).status_code == 200
                hang = {"x-do": "hang request_body"}
                call = asyncio.ensure_future(client.post(ports.url(), content=b"hello", headers=hang))
                async with asyncio.timeout(10):
                    while "_active: 1" not in await _stats(client, ports):
                        await asyncio.sleep(0.02)
                _end(server)
                assert (await call).status_code == 500
                assert (await client.post(ports.url(), content=b"hello")).status_code == 500
                server = await asyncio.to_thread(start)
                async with asyncio.timeout(10):
                    while (await client.post(ports.url(), content=b"hello")).status_code != 200:
                        await asyncio.sleep(0.02)
        finally:
            _end(server)


async def _stats(client: httpx.AsyncClient, ports: Envoy) -> str:
    return (await client.get(f"http://127.0.0.1:{ports.admin}/stats?filter=processor.upstream_rq_active")).text


def _end(server: "subprocess.Popen[str]") -> None:
    server.kill()
    server.wait()
    assert server.stdout is not None
    server.stdout.close()
