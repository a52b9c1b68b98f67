"""Processes that die, start late, or are told to end: what the client then sees is decided here."""

import asyncio
import http.client
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from redis_server import RedisServer

from extproc.demo.client import Client
from extproc.demo.gateway import Gateway
from extproc.demo.stub import Behaviour, StubProvider, running
from extproc.demo.waiting import until

pytestmark = pytest.mark.e2e

KEY = "sk-acme-example"


@pytest.fixture(name="stub")
def _stub() -> Iterator[StubProvider]:
    stub = StubProvider("stub")
    with running(stub):
        yield stub


@pytest.fixture(name="redis")
def _redis(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as server:
        yield server


@pytest.fixture(name="transport", params=["grpcio", "granian"])
def _transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def configuration(stub: StubProvider, redis: RedisServer | None = None, **server: Any) -> dict[str, Any]:
    return {
        "server": server,
        "state": {"url": redis.url} if redis else {"url": "memory://"},
        "providers": {"stub": {"base_url": stub.base_url}},
        "models": {"m": {"route": [[{"provider": "stub"}]]}},
        "consumers": {"acme": {"keys": [{"value": KEY}]}},
    }


def worker_pids(gateway: Gateway) -> list[int]:
    return [w["pid"] for w in gateway.health()["workers"] if w["state"] == "serving"]


def kill_worker(gateway: Gateway, index: int = 0) -> None:
    os.kill(worker_pids(gateway)[index], signal.SIGKILL)


def test_the_only_worker_killed_under_load(stub: StubProvider, transport: str) -> None:
    """Calls of the gap get 503 `policy_unavailable`, none passes unchecked, and it is over within seconds."""
    stub.behaviour.delay = 0.01
    with Gateway(configuration(stub, transport=transport)) as gateway:
        seen: list[tuple[int, str]] = []
        stop = threading.Event()

        def load() -> None:
            client = Client(gateway.url, KEY)
            while not stop.is_set():
                answer = client.chat("m", "hi")
                seen.append((answer.status, (answer.json.get("error") or {}).get("code", "")))

        threads = [threading.Thread(target=load) for _ in range(8)]
        for thread in threads:
            thread.start()
        until(lambda: len(seen) > 50, "calls are answered")
        kill_worker(gateway)
        until(lambda: any(status != 200 for status, _ in seen), "the gap is seen")
        until(lambda: all(status == 200 for status, _ in seen[-40:]), "calls are answered again")
        stop.set()
        for thread in threads:
            thread.join(30)
        wrong = Client(gateway.url, "sk-wrong-key").chat("m", "hi")

    assert {(200, ""), (503, "policy_unavailable")} == set(seen)
    assert wrong.status == 401


def test_the_sdk_rides_over_a_killed_worker(stub: StubProvider, transport: str) -> None:
    """A 503 is what the openai SDK retries by itself, so an application does not notice."""
    with Gateway(configuration(stub, transport=transport)) as gateway:
        client = openai.OpenAI(base_url=gateway.base_url, api_key=KEY, max_retries=6)
        kill_worker(gateway)
        answer = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
        client.close()

    assert answer.choices[0].message.content == "Hello from stub."


def test_a_stream_whose_worker_dies_is_cut(stub: StubProvider, transport: str) -> None:
    """Nothing passes unjudged after the worker's death: the stream breaks, and the client can tell."""
    stub.behaviour = Behaviour(events=200, pace=0.02)
    with Gateway(configuration(stub, transport=transport)) as gateway:
        client = openai.OpenAI(base_url=gateway.base_url, api_key=KEY, max_retries=0)
        stream = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}], stream=True)
        begun = [next(stream) for _ in range(10)]
        kill_worker(gateway)
        with pytest.raises(openai.APIConnectionError):
            list(stream)
        client.close()

    assert len(begun) == 10


def test_one_of_two_workers_killed(stub: StubProvider, transport: str, redis: RedisServer) -> None:
    """The other goes on; only calls that the dead one held are lost, and it is started again."""
    with Gateway(configuration(stub, redis, transport=transport, workers=2)) as gateway:
        assert len(worker_pids(gateway)) == 2
        client = Client(gateway.url, KEY)
        first = [client.chat("m", "hi").status for _ in range(20)]
        dead = worker_pids(gateway)[0]
        os.kill(dead, signal.SIGKILL)
        after = [client.chat("m", "hi").status for _ in range(60)]
        until(lambda: len(worker_pids(gateway)) == 2 and dead not in worker_pids(gateway), "it is started again")

    assert first == [200] * 20
    assert after.count(503) <= 4
    assert set(after) <= {200, 503}
    assert after[-30:] == [200] * 30


def test_each_worker_serves_any_attempt(stub: StubProvider, transport: str, redis: RedisServer) -> None:
    """With two workers the stages of a call meet different processes, and nothing is lost between them."""
    with Gateway(configuration(stub, redis, transport=transport, workers=2)) as gateway:
        client = Client(gateway.url, KEY)
        statuses = {client.chat("m", "hi").status for _ in range(60)}
        until(lambda: 'extproc_attempts_total{number="1",provider="stub",target="m"} 60.0' in gateway.metrics(), "60")

    assert {200} == statuses


def test_envoy_before_us(stub: StubProvider, transport: str) -> None:
    """An Envoy that runs while the server does not refuses every call, and serves as soon as the server is there."""
    server = Gateway(configuration(stub, transport=transport), command="serve")
    server.write(configuration(stub, transport=transport))
    with server.envoy_alone():
        answer = Client(server.url, KEY).chat("m", "hi")
        assert (answer.status, answer.json["error"]["code"]) == (503, "policy_unavailable")
        with server:
            until(lambda: Client(server.url, KEY).chat("m", "hi").status == 200, "calls are answered")
        assert Client(server.url, KEY).chat("m", "hi").status == 503


def test_sigterm_lets_open_streams_end(stub: StubProvider, transport: str) -> None:
    """A stream that ends within the grace period is not cut, and the exit status is 0."""
    stub.behaviour = Behaviour(events=60, pace=0.02)
    with Gateway(configuration(stub, transport=transport, drain="20s")) as gateway:
        results = []

        def stream() -> None:
            results.append(Client(gateway.url, KEY).chat("m", "hi", stream=True).events)

        thread = threading.Thread(target=stream)
        thread.start()
        until(lambda: stub.open_connections > 0, "the stream has begun")
        status = gateway.stop()
        thread.join(10)

        assert status == 0
        assert results[0][-1] == "[DONE]"
        assert '"how":"completed"' in gateway.log()


def test_sigterm_takes_nothing_new(stub: StubProvider, transport: str) -> None:
    """While a stream ends, connections are refused, one that is open ends with its next call, and we say not ready."""
    stub.behaviour = Behaviour(events=100, pace=0.03)
    body = json.dumps({"model": "m", "messages": []})
    with Gateway(configuration(stub, transport=transport, drain="20s")) as gateway:
        address = urlsplit(gateway.url)
        kept = http.client.HTTPConnection(str(address.hostname), address.port, timeout=10)
        kept.request("GET", "/v1/models", headers={"authorization": f"Bearer {KEY}"})
        assert kept.getresponse().read()
        thread = threading.Thread(target=lambda: Client(gateway.url, KEY).chat("m", "hi", stream=True))
        thread.start()
        until(lambda: stub.open_connections > 0, "the stream has begun")
        os.kill(gateway.pid, signal.SIGTERM)
        until(lambda: gateway.get(f"{gateway.http}/readyz") is None, "it says that it is not ready")
        report = gateway.health()
        until(lambda: refuses(gateway.url), "no connection is taken")
        stub.behaviour = Behaviour()
        kept.request("POST", "/v1/chat/completions", body, headers={"authorization": f"Bearer {KEY}"})
        answer = kept.getresponse()
        thread.join(10)
        status = gateway.stop()

    assert (report["status"], report["workers"][0]["state"]) == ("draining", "serving")
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert status == 0


def refuses(url: str) -> bool:
    address = urlsplit(url)
    try:
        socket.create_connection((str(address.hostname), address.port), timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False


def test_sigterm_ends_streams_that_last_longer(stub: StubProvider, transport: str) -> None:
    """The grace period is kept: after it the stream is cut, and the process ends in order."""
    stub.behaviour = Behaviour(events=3000, pace=0.02)
    with Gateway(configuration(stub, transport=transport, drain="1s")) as gateway:
        results = []

        def stream() -> None:
            try:
                Client(gateway.url, KEY).chat("m", "hi", stream=True)
            except (OSError, http.client.HTTPException) as error:
                results.append(error)

        thread = threading.Thread(target=stream)
        thread.start()
        until(lambda: stub.open_connections > 0, "the stream has begun")
        status = gateway.stop()
        thread.join(10)

        assert status == 0
        assert len(results) == 1


def test_two_thousand_calls_at_once(stub: StubProvider, transport: str) -> None:
    """Each holds a stream of ours, and none is refused: no breaker of Envoy's is left at its default."""
    from extproc.demo.crowd import crowd

    stub.behaviour = Behaviour(events=3, pace=0.5)
    with Gateway(configuration(stub, transport=transport)) as gateway:
        statuses = crowd(gateway.url, KEY, "m", calls=2000, stream=True)
        metrics = gateway.metrics()

    assert statuses == {200: 2000}
    assert "extproc_streams_open " in metrics


def test_a_crowd_that_hangs_up(stub: StubProvider, transport: str) -> None:
    """1,500 clients that leave as soon as they have asked break no stream of anybody else."""
    stub.behaviour = Behaviour(events=100, pace=0.05)
    with Gateway(configuration(stub, transport=transport)) as gateway:
        parts = urlsplit(gateway.url)
        body = b'{"model":"m","messages":[]}'
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
        request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body

        def listen(_: int) -> bool:
            return Client(gateway.url, KEY).chat("m", "go on", stream=True).events[-1] == "[DONE]"

        async def ask_and_leave() -> None:
            _, writer = await asyncio.open_connection(parts.hostname, parts.port)
            writer.write(request)
            await asyncio.sleep(0)
            writer.transport.abort()

        async def crowd() -> None:
            for _ in range(5):
                await asyncio.gather(*(ask_and_leave() for _ in range(300)))

        with ThreadPoolExecutor(50) as pool:
            listeners = pool.map(listen, range(50))
            until(lambda: "extproc_streams_open 50.0" in gateway.metrics(), "all of them listen")
            asyncio.run(crowd())
            assert all(listeners)
        until(lambda: "extproc_streams_open 0.0" in gateway.metrics(), "nothing stays open")


def test_nothing_is_left_running(stub: StubProvider, transport: str, redis: RedisServer) -> None:
    """When `up` ends, its workers and its Envoy have ended."""
    with Gateway(configuration(stub, redis, transport=transport, workers=2)) as gateway:
        pids = [*worker_pids(gateway), gateway.pid]
        assert all(_alive(pid) for pid in pids)
        gateway.stop()

        assert not any(_alive(pid) for pid in pids)
        assert gateway.get(f"{gateway.envoy}/ready") is None


def test_a_supervisor_killed_takes_its_workers_along(stub: StubProvider, transport: str) -> None:
    """Workers read the end of their line to the supervisor, and end: no orphan serves an old configuration."""
    with Gateway(configuration(stub, transport=transport), command="serve") as gateway:
        pids = worker_pids(gateway)
        assert all(_alive(pid) for pid in pids)
        os.kill(gateway.pid, signal.SIGKILL)

        until(lambda: not any(_alive(pid) for pid in pids), "the workers have ended")


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123 - a file of the kernel's
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
