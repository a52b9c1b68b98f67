"""Records go elsewhere too, to real receivers, and what is slow or broken there is no call's business."""

import gzip
import hashlib
import hmac
import json
import os
import threading
import time
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from audit.records import NOON, Watch, record, verdict

from extproc.audit.record import Record, decode
from extproc.audit.sinks import SinkQueue
from extproc.audit.sinks.files import FileSink
from extproc.audit.sinks.otlp import OtlpSink
from extproc.audit.sinks.sls import SlsSink
from extproc.core.secret import Secret
from extproc.demo.waiting import until


class Receiver(ThreadingHTTPServer):
    """Remembers what it is sent: path, headers and body; answers with ``status``."""

    def __init__(self) -> None:
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        self.status = 200
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.got.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
        self.send_response(self.server.status)
        self.send_header("content-length", "0")
        self.send_header("x-log-requestid", "r-1")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture(name="receiver")
def _receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class Slow:
    """A sink that waits, and fails as often as it is told to."""

    name = "slow"

    def __init__(self) -> None:
        self.open = threading.Event()
        self.failures = 0
        self.got: list[str] = []
        self.closed = False

    def write(self, records: Sequence[Record]) -> None:
        self.open.wait(20)
        if self.failures:
            self.failures -= 1
            raise ConnectionError("no")
        self.got += [each.call_id for each in records]

    def close(self) -> None:
        self.closed = True


@contextmanager
def queue(sink: Any, watch: Watch, **more: Any) -> Iterator[SinkQueue]:
    made = SinkQueue(sink, watch, pause=0.01, **more)
    made.start()
    yield made
    made.stop()


# --- the queue ------------------------------------------------------------------------------------------------


def test_a_slow_sink_slows_nobody() -> None:
    """What does not fit into its queue is dropped and counted at once; the rest arrives in order."""
    sink, watch = Slow(), Watch()
    with queue(sink, watch, most=1000) as made:
        began = time.perf_counter()
        for n in range(50):
            made.put(record(f"{n:02}"), 100)
        spent = time.perf_counter() - began
        sink.open.set()

    assert spent < 0.5
    assert sink.got == [f"{n:02}" for n in range(10)]
    assert watch.lost == {"slow": 40}
    assert sink.closed


def test_a_sink_that_fails() -> None:
    """It is tried again; a batch that it never takes is dropped and counted, and what follows arrives."""
    sink, watch = Slow(), Watch()
    sink.failures = 6
    sink.open.set()
    with queue(sink, watch) as made:
        made.put(record("a"), 1)
        until(lambda: sink.failures == 1, "it is given up")
        made.put(record("b"), 1)
        until(lambda: sink.got, "the next one arrives")

    assert sink.got == ["b"]
    assert watch.lost == {"slow": 1}
    assert watch.troubles == ["slow: ConnectionError"] * 6


def test_a_sink_that_hangs() -> None:
    """It does not keep the process at its end."""
    sink, watch = Slow(), Watch()
    made = SinkQueue(sink, watch)
    made.start()
    made.put(record("a"), 1)
    made.stop(0.1)

    assert watch.lost == {"slow": 1}
    sink.open.set()


# --- files ----------------------------------------------------------------------------------------------------


def lines(path: Path) -> list[str]:
    return [decode(line).call_id for line in path.read_bytes().splitlines()]


def test_lines(tmp_path: Path) -> None:
    """A line of JSON for each record, for the owner's eyes only."""
    sink = FileSink(tmp_path / "logs" / "audit.jsonl")
    sink.write([record("a", said="你好\n"), record("b")])
    sink.write([record("c")])

    assert lines(tmp_path / "logs/audit.jsonl") == ["a", "b", "c"]
    assert (tmp_path / "logs/audit.jsonl").stat().st_mode & 0o777 == 0o600


def test_rotation_by_size(tmp_path: Path) -> None:
    """A file does not grow beyond its size; the newest of those put aside stay, and no line is cut."""
    path = tmp_path / "audit.jsonl"
    sink = FileSink(path, max_size=1000, keep=3)
    for n in range(60):
        sink.write([record(f"{n:02}", said="x" * 100)])
    aside = sorted(tmp_path.glob("audit.jsonl.*"))

    assert len(aside) == 3
    assert all(each.stat().st_size <= 1000 for each in [*aside, path])
    kept = [call_id for each in [*aside, path] for call_id in lines(each)]
    assert kept == [f"{n:02}" for n in range(60 - len(kept), 60)]


def test_rotation_by_age(tmp_path: Path) -> None:
    """A file that is old is put aside, as old as it is and not as its last line."""
    path = tmp_path / "audit.jsonl"
    sink = FileSink(path, max_age=3600)
    sink.write([record("a")])
    sink.write([record("b")])
    os.utime(tmp_path / ".audit.jsonl.lock", (time.time() - 4000,) * 2)
    sink.write([record("c")])

    (aside,) = tmp_path.glob("audit.jsonl.*")
    assert (lines(aside), lines(path)) == (["a", "b"], ["c"])


def test_several_writers(tmp_path: Path) -> None:
    """Workers share a file: every line is whole, and there once."""
    sinks = [FileSink(tmp_path / "audit.jsonl", max_size=5000, keep=1000) for _ in range(4)]

    def write(number: int) -> None:
        for n in range(50):
            sinks[number].write([record(f"{number}-{n}", said="x" * 50)])

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    found = [call_id for path in tmp_path.glob("audit.jsonl*") for call_id in lines(path)]
    assert sorted(found) == sorted(f"{number}-{n}" for number in range(4) for n in range(50))


# --- OTLP -----------------------------------------------------------------------------------------------------


def test_otlp(receiver: Receiver) -> None:
    """A collector gets the record as the body of a log, and attributes in the words of the conventions."""
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

    sink = OtlpSink(f"http://{receiver.address}/v1/logs", {"authorization": Secret("Bearer x")})
    sent = record("a", said="你好", provider="openai", input=7, verdicts=[verdict("phone", "mask")])
    sink.write([sent, record("b")])
    sink.close()

    ((path, headers, body),) = receiver.got
    body = gzip.decompress(body) if headers.get("content-encoding") == "gzip" else body
    (group,) = ExportLogsServiceRequest.FromString(body).resource_logs
    first, second = group.scope_logs[0].log_records
    attributes = {each.key: each.value for each in first.attributes}
    assert (path, headers["authorization"]) == ("/v1/logs", "Bearer x")
    assert decode(first.body.string_value) == sent
    assert first.time_unix_nano == int(NOON) * 10**9
    assert first.event_name == "extproc.call"
    assert attributes["gen_ai.provider.name"].string_value == "openai"
    assert attributes["gen_ai.usage.input_tokens"].int_value == 7
    assert [each.string_value for each in attributes["extproc.categories"].array_value.values] == ["phone"]
    assert decode(second.body.string_value).call_id == "b"


def test_a_collector_that_refuses(receiver: Receiver) -> None:
    """It is an error, for the queue to try again."""
    receiver.status = 400
    sink = OtlpSink(f"http://{receiver.address}/v1/logs", {})

    with pytest.raises(ConnectionError):
        sink.write([record("a")])
    sink.close()


# --- Alibaba Cloud Log Service --------------------------------------------------------------------------------


@pytest.fixture(name="service")
def _service(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> Receiver:
    """Stands in for every host: as a proxy it needs no name of its own."""
    monkeypatch.setenv("http_proxy", f"http://{receiver.address}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    return receiver


def sls(**more: str) -> SlsSink:
    """A sink of the project `proj`."""
    keys = {"key_id": Secret("LTAI-id"), "key_secret": Secret("the-secret")}
    return SlsSink(endpoint="http://log.example", project="proj", logstore="calls", topic="t", **keys, **more)


def test_sls(service: Receiver) -> None:
    """The service gets PutLogs: signed, packed with LZ4, a protobuf with a content for each field."""
    import lz4.block
    from aliyun.log.log_logs_pb2 import LogGroup

    sent = record("a", said="你好", verdicts=[verdict("phone", "mask")])
    sls().write([sent, record("b", NOON + 1)])

    ((path, headers, body),) = service.got
    assert path == "http://proj.log.example:80/logstores/calls/shards/lb"
    assert headers["host"] == "proj.log.example"
    assert (headers["x-log-compresstype"], headers["content-type"]) == ("lz4", "application/x-protobuf")
    assert headers["authorization"] == f"LOG LTAI-id:{signature(headers, body)}"
    raw = lz4.block.decompress(body, uncompressed_size=int(headers["x-log-bodyrawsize"]))
    group = LogGroup.FromString(raw)
    first, second = group.Logs
    fields = {each.Key: each.Value for each in first.Contents}
    assert (group.Topic, first.Time, second.Time) == ("t", int(NOON), int(NOON) + 1)
    assert (fields["call_id"], fields["status"], fields["consumer"]) == ("a", "200", "acme")
    assert json.loads(fields["request"]) == [{"role": "user", "text": "你好"}]
    assert json.loads(fields["verdicts"])[0]["category"] == "phone"


def signature(headers: dict[str, str], body: bytes) -> str:
    """As the service computes it: HMAC-SHA1 over the method, the headers of `x-log-` and `x-acs-`, and the path."""
    named = sorted(name for name in headers if name.startswith(("x-log-", "x-acs-")) and name != "x-log-date")
    assert headers["content-md5"] == hashlib.md5(body).hexdigest().upper()  # noqa: S324
    text = "\n".join(
        [
            *("POST", headers["content-md5"], headers["content-type"], headers["date"]),
            *(f"{name}:{headers[name]}" for name in named),
            "/logstores/calls/shards/lb",
        ]
    )
    return b64encode(hmac.new(b"the-secret", text.encode(), "sha1").digest()).decode()


def test_sls_version_4(service: Receiver) -> None:
    """With a region, requests are signed by version 4."""
    sls(region="cn-hangzhou").write([record("a")])

    assert service.got[0][1]["authorization"].startswith("SLS4-HMAC-SHA256 Credential=LTAI-id/")


def test_large_batches(service: Receiver) -> None:
    """A request stays below what the service takes."""
    sls().write([record(str(n), said="x" * 1_000_000) for n in range(7)])

    assert [int(headers["x-log-bodyrawsize"]) < 4_000_000 for _, headers, _ in service.got] == [True] * 3


def test_a_service_that_refuses(service: Receiver) -> None:
    """It is an error that has no key in it."""
    service.status = 401

    with pytest.raises(Exception, match="r-1") as refused:
        sls().write([record("a")])
    assert "the-secret" not in str(refused.value)
