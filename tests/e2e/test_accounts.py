"""Quotas, limits and the ledger, end to end: what is charged, whatever happens to a call."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from redis_server import RedisServer

from extproc.accounts import keys
from extproc.demo.gateway import Gateway
from extproc.demo.stub import Behaviour, StubProvider, running
from extproc.demo.waiting import until
from extproc.stores.ports import NANO, ConsumerRecord, KeyRecord, Row
from extproc.stores.sql import Database, open_database

pytestmark = pytest.mark.e2e

KEY = "sk-acme-example-1"
OTHER = "sk-globex-example"


@pytest.fixture(name="transport", params=["grpcio", "granian"])
def _transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(name="redis")
def _redis(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as server:
        yield server


class Site:
    """A gateway with accounts before two stubs, and its ledger."""

    def __init__(self, config: dict[str, Any], stubs: dict[str, StubProvider]) -> None:
        self.gateway = Gateway(config)
        self.stubs = stubs
        self.database: Database = open_database(f"sqlite:///{self.gateway.directory}/extproc.db", currency="CNY")

    def chat(self, *, key: str = KEY, model: str = "m", **more: Any) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "hello there"}], **more}
        return httpx.post(
            f"{self.gateway.base_url}/chat/completions",
            json=body,
            headers={"authorization": f"Bearer {key}"},
            timeout=60,
        )

    def rows(self, **fields: Any) -> list[Row]:
        rows = self.database.ledger.rows(limit=100_000)
        return [row for row in rows if all(getattr(row, name) == value for name, value in fields.items())]

    def row(self, call_id: str) -> Row:
        """The one row of a call, as soon as it is there."""
        until(lambda: self.rows(call_id=call_id), "the ledger has the call", seconds=30)
        (row,) = self.rows(call_id=call_id)
        return row

    def workers(self) -> list[int]:
        return [w["pid"] for w in self.gateway.health().get("workers", []) if w["state"] == "serving"]


@contextmanager
def site(**config: Any) -> Iterator[Site]:
    home, online = StubProvider("home"), StubProvider("online")
    with running(home, online):
        whole = {
            "providers": {"home": {"base_url": home.base_url}, "online": {"base_url": online.base_url}},
            "models": {
                "m": {
                    "route": [
                        [{"provider": "home", "model": "big"}],
                        [{"provider": "online", "model": "max", "price": {"input": 10, "output": 40}}],
                    ],
                    "price": {"input": 2, "output": 8},
                    "retry": {"first_byte": "5s", "idle": "3s"},
                }
            },
            "consumers": {"acme": {"keys": [{"value": KEY}]}, "globex": {"keys": [{"value": OTHER}]}},
            **config,
        }
        made = Site(whole, {"home": home, "online": online})
        with made.gateway:
            yield made
        made.database.close()


def consumers(**acme: Any) -> dict[str, Any]:
    return {"acme": {"keys": [{"value": KEY}], **acme}, "globex": {"keys": [{"value": OTHER}]}}


def test_a_call_is_charged(transport: str) -> None:
    """One row: tokens as reported, money by the price of the target that answered, also after a fallback."""
    with site(server={"transport": transport}) as place:
        first = place.chat()
        row = place.row(first.headers["x-extproc-call-id"])
        tokens = first.json()["usage"]
        assert (row.consumer, row.provider, row.target, row.how) == ("acme", "home", "big", "completed")
        assert (row.input, row.output) == (tokens["prompt_tokens"], tokens["completion_tokens"])
        assert row.cost * 1_000_000 == (row.input * 2 + row.output * 8) * NANO

        place.stubs["home"].behaviour = Behaviour(status=503)
        second = place.chat()
        row = place.row(second.headers["x-extproc-call-id"])
        assert (row.provider, row.attempts, row.how) == ("online", 2, "completed")
        assert row.cost * 1_000_000 == (row.input * 10 + row.output * 40) * NANO

        assert place.chat(key="sk-nobody-at-all").status_code == 401
        assert place.chat(model="other").status_code == 404
        until(lambda: len(place.rows()) == 3, "the refused call has its row, the stranger's has none")
        assert place.database.ledger.verify() == []
        assert [(line.calls, line.refusals, line.fallbacks) for line in place.database.ledger.usage([])] == [(3, 1, 1)]


@pytest.mark.parametrize("end", ["client", "provider", "stall"])
def test_a_stream_that_is_cut(transport: str, end: str) -> None:
    """A client that leaves, a provider that breaks off or falls silent: what passed is charged, once."""
    with site(server={"transport": transport}, consumers=consumers(quota=[{"tokens": "1M", "per": "day"}])) as place:
        fault = {"client": None, "provider": "reset_mid", "stall": "stall_mid"}[end]
        place.stubs["home"].behaviour = Behaviour(
            usage="none",
            events=200,
            text="word " * 200,
            pace=0.005,
            fault=fault,
            fault_after=50,  # type: ignore[arg-type]
        )
        url = f"{place.gateway.base_url}/chat/completions"
        body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hello"}]}
        with httpx.stream("POST", url, json=body, headers={"authorization": f"Bearer {KEY}"}, timeout=60) as answer:
            call_id = answer.headers["x-extproc-call-id"]
            seen = 0
            try:
                for piece in answer.iter_raw():
                    seen += len(piece)
                    if end == "client" and seen > 2000:
                        break
            except httpx.HTTPError:
                assert end == "provider"
        row = place.row(call_id)

        assert row.usage == "estimated"
        assert row.how == ("failed" if end == "stall" else "aborted")
        assert 5 < row.output < 120
        assert row.input > 0
        assert len(place.rows(call_id=call_id)) == 1


def test_limits_through_the_sdks(transport: str) -> None:
    """Two SDK clients use up a limit; one is refused in its dialect, the other's own retry waits and gets through."""
    limits = [{"requests": 3, "per": "second"}]
    models = {"m": {"route": [[{"provider": "home"}]]}, "c": {"route": [[{"provider": "claude"}]]}}
    claude = StubProvider("claude", "anthropic")
    with running(claude):
        home = StubProvider("home")
        with running(home):
            providers = {
                "home": {"base_url": home.base_url},
                "claude": {"base_url": claude.base_url, "dialect": "anthropic"},
            }
            with site(
                server={"transport": transport}, consumers=consumers(limits=limits), models=models, providers=providers
            ) as place:
                hasty = anthropic.Anthropic(base_url=place.gateway.url, api_key=KEY, max_retries=0)
                patient = openai.OpenAI(base_url=place.gateway.base_url, api_key=KEY, max_retries=4)
                said: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]

                def hurry() -> None:
                    for _ in range(8):
                        hasty.messages.create(model="c", max_tokens=10, messages=said)  # type: ignore[arg-type]

                with pytest.raises(anthropic.RateLimitError) as refused:
                    hurry()
                assert refused.value.response.json()["error"]["type"] == "rate_limit_error"
                assert refused.value.response.headers["retry-after"] == "1"
                assert refused.value.response.headers["x-ratelimit-remaining-requests"] == "0"

                began = time.monotonic()
                for _ in range(6):
                    patient.chat.completions.create(model="m", messages=said)  # type: ignore[arg-type]
                assert time.monotonic() - began > 1
                until(lambda: len(place.rows(how="completed")) >= 9, "all calls are booked")
                hasty.close()
                patient.close()


def test_a_hundred_at_the_edge(transport: str, redis: RedisServer) -> None:
    """100 parallel calls of four workers do not overspend a quota, and the books are those of the providers."""
    quota = [{"tokens": 3000, "per": "month", "timezone": "Asia/Shanghai"}]
    with site(
        server={"transport": transport, "workers": 4}, state={"url": redis.url}, consumers=consumers(quota=quota)
    ) as place:
        place.stubs["home"].behaviour = Behaviour(delay=0.2, events=80, input_tokens=20)  # 100 tokens a call
        with ThreadPoolExecutor(100) as pool:
            answers = list(pool.map(lambda _: place.chat(max_tokens=80), range(100)))
        counts = Counter(answer.status_code for answer in answers)

        assert set(counts) == {200, 429}
        until(lambda: len(place.rows()) == 100, "every call has its row")
        used = sum(row.tokens for row in place.rows())
        error = sum(max(row.tokens - row.estimate, 0) for row in place.rows(how="completed"))
        assert 0.8 * 3000 < used <= 3000 + error
        assert place.stubs["home"].hits == counts[200]
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.json()["error"]["code"] == "insufficient_quota"
        assert int(refused.headers["retry-after"]) > 0
        assert place.chat(key=OTHER, max_tokens=80).status_code == 200
        assert place.database.ledger.verify() == []


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_killed_in_the_middle_of_streams(transport: str, workers: int, request: pytest.FixtureRequest) -> None:
    """Workers are killed while ten streams run: each has one row with what passed, and nothing stays held."""
    acme = consumers(limits=[{"concurrent": 10}], quota=[{"tokens": "1M", "per": "day"}])
    state = {"url": request.getfixturevalue("redis").url} if workers > 1 else {"url": "memory://"}
    with site(server={"transport": transport, "workers": workers}, state=state, consumers=acme) as place:
        place.stubs["home"].behaviour = Behaviour(usage="none", events=2000, text="word " * 2000, pace=0.01)
        ids: list[str] = []
        flowing = threading.Barrier(11)

        def stream() -> None:
            url = f"{place.gateway.base_url}/chat/completions"
            body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hello " * 10}]}
            with httpx.stream("POST", url, json=body, headers={"authorization": f"Bearer {KEY}"}, timeout=60) as answer:
                ids.append(answer.headers["x-extproc-call-id"])
                pieces = answer.iter_raw()
                for _ in range(20):
                    next(pieces)
                flowing.wait(30)
                with pytest.raises(httpx.HTTPError):
                    list(pieces)

        threads = [threading.Thread(target=stream) for _ in range(10)]
        for thread in threads:
            thread.start()
        flowing.wait(30)
        for worker in place.workers():
            os.kill(worker, signal.SIGKILL)
        for thread in threads:
            thread.join(30)
        rows = [place.row(call_id) for call_id in ids]

        assert len(ids) == 10
        assert {row.how for row in rows} == {"aborted"}
        assert all(row.output > 0 and row.input > 5 and row.provider == "home" for row in rows)
        place.stubs["home"].behaviour = Behaviour()
        until(lambda: place.chat().status_code == 200, "calls pass again", seconds=30)
        assert len(place.rows(code="worker_died")) == 10
        assert place.database.ledger.verify() == []


def test_redis_stopped_and_started_under_load(transport: str, redis: RedisServer) -> None:
    """Without Redis calls are refused with the reason, or pass where the policy says so; it comes back by itself."""
    config = {
        "server": {"transport": transport, "workers": 2},
        "state": {"url": redis.url, "timeout": "500ms"},
        "consumers": consumers(policy="trusting", quota=[{"tokens": "1M", "per": "month"}])
        | {"globex": {"keys": [{"value": OTHER}], "quota": [{"tokens": "1M", "per": "month"}]}},
        "policies": {"trusting": {"quota": {"on_error": "allow"}}},
    }
    with site(**config) as place:
        seen: dict[str, list[tuple[int, str]]] = {KEY: [], OTHER: []}
        stop = threading.Event()

        def load(key: str) -> None:
            while not stop.is_set():
                answer = place.chat(key=key)
                seen[key].append((answer.status_code, answer.text))

        threads = [threading.Thread(target=load, args=(key,)) for key in (KEY, KEY, OTHER, OTHER)]
        for thread in threads:
            thread.start()
        until(lambda: all(len(x) > 20 for x in seen.values()), "calls are answered")
        redis.kill()
        until(lambda: any(status == 503 for status, _ in seen[OTHER]), "the strict consumer is refused")
        mark = len(seen[KEY])
        until(lambda: len(seen[KEY]) > mark + 3, "the trusted one goes on")
        redis.start()
        until(lambda: all(status == 200 for status, _ in seen[OTHER][-10:]), "it is back by itself", seconds=30)
        stop.set()
        for thread in threads:
            thread.join(30)

        assert {status for status, _ in seen[KEY]} == {200}
        refused = next(text for status, text in seen[OTHER] if status == 503)
        assert "policy_unavailable" in refused
        assert "cannot count this call" in refused
        total = len(seen[KEY]) + len(seen[OTHER])
        until(lambda: len(place.rows()) == total, "every call has one row", seconds=30)
        assert place.database.ledger.verify() == []
        answered = sum(status == 200 for x in seen.values() for status, _ in x)
        assert place.stubs["home"].hits == answered == len(place.rows(how="completed"))
        assert 'extproc_state_unavailable_total{action="allowed"}' in place.gateway.metrics()
        assert 'extproc_state_unavailable_total{action="refused"}' in place.gateway.metrics()


def test_replicas_share_their_numbers(transport: str, redis: RedisServer, tmp_path: Path) -> None:
    """Two gateways with one Redis and one database have one limit, one quota and one ledger."""
    shared = {
        "server": {"transport": transport},
        "state": {"url": redis.url},
        "database": {"url": f"sqlite:///{tmp_path}/shared.db"},
        "consumers": consumers(limits=[{"requests": 5, "per": "day"}]),
    }
    with site(**shared) as one, site(**shared) as other:
        statuses = [place.chat().status_code for _ in range(4) for place in (one, other)]

        assert statuses == [200] * 5 + [429] * 3
        ledger = open_database(shared["database"]["url"], currency="CNY")  # type: ignore[index]
        until(lambda: len(ledger.ledger.rows()) == 8, "both have booked all")
        assert ledger.ledger.verify() == []
        ledger.close()


def test_a_key_that_is_revoked_stops_within_a_second(transport: str, redis: RedisServer) -> None:
    """Consumers and keys made by the commands work within a second, on every worker, and stop when revoked."""
    with site(server={"transport": transport, "workers": 2}, state={"url": redis.url}) as place:
        register = place.database.register
        text = keys.new_key()
        register.create_consumer(ConsumerRecord(name="fresh", created=time.time()))
        register.create_key(KeyRecord(id="k1", consumer="fresh", digest=keys.digest(text), created=time.time()))
        made = time.monotonic()
        until(lambda: all(place.chat(key=text).status_code == 200 for _ in range(6)), "the key works everywhere")
        assert time.monotonic() - made < 5  # a second, and what a busy machine adds
        register.revoke_key("k1", time.time())
        revoked = time.monotonic()
        until(lambda: all(place.chat(key=text).status_code == 401 for _ in range(6)), "the key works nowhere")
        assert time.monotonic() - revoked < 5
        until(lambda: register.key("k1").last_used is not None, "its last use is known", seconds=15)
        assert {row.key for row in place.rows(consumer="fresh")} == {"k1"}
