"""Envoy's access log service: what we make of its entries, and that we hear them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy.data.accesslog.v3.accesslog_pb2 import (
    AccessLogType,
    DownstreamEnd,
    DownstreamPeriodic,
    HTTPAccessLogEntry,
    UpstreamEnd,
)
from envoy.service.accesslog.v3.als_pb2 import StreamAccessLogsMessage
from google.protobuf.json_format import ParseDict
from hypothesis import given
from hypothesis import strategies as st
from wire.rig import Certificates, certificates

from extproc.core.evidence import Ended, KeyRefused
from extproc.demo.gateway import free_port
from extproc.wire.accesslog import METHOD, AccessLogServer, decode
from extproc.wire.driver import Tls


def entry(kind: AccessLogType, *, common: dict[str, Any] | None = None, **parts: Any) -> HTTPAccessLogEntry:
    """An entry as Envoy's own JSON would write it."""
    said = {"common_properties": {**(common or {}), "access_log_type": kind}, **parts}
    return ParseDict(said, HTTPAccessLogEntry())


def message(*entries: HTTPAccessLogEntry) -> bytes:
    logs = StreamAccessLogsMessage.HTTPAccessLogEntries(log_entry=entries)
    data: bytes = StreamAccessLogsMessage(http_logs=logs).SerializeToString()
    return data


def broken(call_id: str = "call-1", **call: Any) -> HTTPAccessLogEntry:
    """A call that ended without our last word."""
    said = {"call_id": call_id, "consumer": "acme", "model": "m", "prompt_tokens": 12.0, **call}
    return entry(
        DownstreamEnd,
        common={
            "metadata": {"filter_metadata": {"extproc": said, "envoy.other": {"x": "y"}}},
            "custom_tags": {"provider": "p", "target": "deep/m"},
            "start_time": "2026-11-25T03:34:44.250Z",
            "duration": "1.5s",
            "upstream_request_attempt_count": 2,
            "response_flags": {"upstream_remote_reset": True, "local_reset": True},
            "time_to_first_upstream_tx_byte": "0.002s",
        },
        request={"request_body_bytes": 80, "path": "/v1/chat/completions"},
        response={"response_code": 200, "response_body_bytes": 1234, "response_code_details": "via_upstream"},
    )


def refused(key: str = "p/0a1b2c3d", status: int = 429, **headers: str) -> HTTPAccessLogEntry:
    said = {"x-extproc-provider-key": key, **headers}
    return entry(UpstreamEnd, response={"response_code": status, "response_headers": said})


# --- entries ----------------------------------------------------------------------------------------------------


def test_a_call_that_broke() -> None:
    """All that Envoy knows of it, in our words."""
    (ended,) = decode(message(broken()))

    assert ended == Ended(
        call={"call_id": "call-1", "consumer": "acme", "model": "m", "prompt_tokens": 12.0},
        provider="p",
        target="deep/m",
        attempts=2,
        status=200,
        details="via_upstream",
        flags=("local_reset", "upstream_remote_reset"),
        received=80,
        sent=1234,
        started=1795577684.25,
        seconds=1.5,
        upstream=True,
    )


def test_a_call_that_reached_nobody() -> None:
    """What is missing is empty."""
    bare = entry(DownstreamEnd, common={"metadata": {"filter_metadata": {"extproc": {"call_id": "call-1"}}}})

    assert list(decode(message(bare))) == [Ended(call={"call_id": "call-1"})]


def test_a_retry_that_did_not_get_out() -> None:
    """The attempt before it did: the call reached a provider."""
    again = broken()
    again.common_properties.ClearField("time_to_first_upstream_tx_byte")
    (ended,) = decode(message(again))

    assert isinstance(ended, Ended)
    assert ended.upstream


def test_a_key_that_was_refused() -> None:
    """Provider, key, status, and what the provider says of when to come back."""
    entries = refused("a/b c/0a1b2c3d", 401), refused(**{"retry-after": "30"})

    assert list(decode(message(*entries))) == [
        KeyRefused("a/b c", "0a1b2c3d", 401),
        KeyRefused("p", "0a1b2c3d", 429, "30"),
    ]


@pytest.mark.parametrize(
    "nothing",
    [
        entry(DownstreamEnd),
        entry(DownstreamEnd, common={"metadata": {"filter_metadata": {"other": {"call_id": "call-1"}}}}),
        broken(""),
        entry(UpstreamEnd),
        refused(""),
        refused("no-provider"),
        refused("p/"),
        entry(DownstreamPeriodic, common={"metadata": {"filter_metadata": {"extproc": {"call_id": "call-1"}}}}),
    ],
)
def test_what_is_none_of_ours(nothing: HTTPAccessLogEntry) -> None:
    """Entries without a call of ours, or a key of ours, say nothing; those beside them do."""
    assert [type(found) for found in decode(message(nothing, broken(), refused()))] == [Ended, KeyRefused]


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    """They are a message, or a ValueError."""
    try:
        list(decode(data))
    except ValueError:
        return


# --- the service ------------------------------------------------------------------------------------------------


@dataclass
class Heard:
    """What a server has heard, in order."""

    things: list[Ended | KeyRefused] = field(default_factory=list)

    def server(self, address: str, tls: Tls | None = None) -> AccessLogServer:
        return AccessLogServer(address, tls=tls, on_ended=self.things.append, on_key_refused=self.things.append)

    async def wait(self, number: int) -> None:
        async with asyncio.timeout(10):
            while len(self.things) < number:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def serving(server: AccessLogServer) -> AsyncIterator[None]:
    await server.start()
    try:
        yield
    finally:
        await server.stop()


@asynccontextmanager
async def stream(address: str, credentials: grpc.ChannelCredentials | None = None) -> AsyncIterator[Any]:
    """Envoy's side of a stream."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.default_authority", "localhost")]
    if credentials is None:
        channel = grpc.aio.insecure_channel(address, options=options)
    else:
        channel = grpc.aio.secure_channel(address, credentials, options=options)
    async with channel:
        yield channel.stream_unary(METHOD)()


@pytest.fixture(name="address", params=["unix", "tcp"])
def _address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"unix:{tmp_path}/deep/log.sock" if request.param == "unix" else f"127.0.0.1:{free_port()}"


async def test_what_is_said_is_heard(address: str) -> None:
    """By both kinds of address, from several streams, however long they last."""
    heard = Heard()
    async with serving(heard.server(address)), stream(address) as one, stream(address) as other:
        await one.write(message(broken("call-1")))
        await heard.wait(1)
        await other.write(message(refused(), broken("call-2")))
        await heard.wait(3)
        await one.write(message(broken("call-3")))
        await heard.wait(4)
        await one.done_writing()
        assert await one == b""

    assert [getattr(thing, "call", {}).get("call_id", "key") for thing in heard.things] == [
        "call-1",
        "key",
        "call-2",
        "call-3",
    ]


async def test_what_cannot_be_read(address: str) -> None:
    """It is left out, and the stream goes on."""
    heard = Heard()
    async with serving(heard.server(address)), stream(address) as one:
        await one.write(b"\xff\xff\xff")
        await one.write(message(broken()))
        await heard.wait(1)


async def test_many_at_once(address: str) -> None:
    """A burst of a busy Envoy arrives whole."""
    heard = Heard()
    async with serving(heard.server(address)), stream(address) as one:
        for batch in range(10):
            await one.write(message(*(broken(f"call-{batch}-{n}") for n in range(500))))
        await heard.wait(5000)

    assert len({thing.call["call_id"] for thing in heard.things if isinstance(thing, Ended)}) == 5000


async def test_its_end(tmp_path: Path) -> None:
    """Stopping does not wait for streams that never end, leaves no socket, and is done once."""
    path = tmp_path / "log.sock"
    server = Heard().server(f"unix:{path}")
    await server.stop()
    await server.start()
    async with stream(f"unix:{path}") as one:
        await one.write(message(broken()))
        await asyncio.wait_for(server.stop(), 5)
        await server.stop()
        with pytest.raises(grpc.aio.AioRpcError):
            await one

    assert not path.exists()


async def test_an_address_in_use(address: str) -> None:
    """It is an error at the start."""
    async with serving(Heard().server(address)):
        with pytest.raises((OSError, RuntimeError)):
            await Heard().server(address).start()


@pytest.fixture(name="pki", scope="module")
def _pki(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("pki"))


async def test_tls(pki: Certificates) -> None:
    """With a client's authority, nobody without a certificate of its is heard."""
    address, heard = f"127.0.0.1:{free_port()}", Heard()
    tls = Tls(pki.cert, pki.key, pki.ca)
    known = grpc.ssl_channel_credentials(pki.ca.read_bytes(), pki.client_key.read_bytes(), pki.client_cert.read_bytes())
    stranger = grpc.ssl_channel_credentials(pki.ca.read_bytes())
    async with serving(heard.server(address, tls)):
        async with stream(address, stranger) as one:
            with pytest.raises(grpc.aio.AioRpcError):
                await one.write(message(broken("call-0")))
        async with stream(address, known) as one:
            await one.write(message(broken("call-1")))
            await heard.wait(1)

    assert [thing.call["call_id"] for thing in heard.things if isinstance(thing, Ended)] == ["call-1"]
