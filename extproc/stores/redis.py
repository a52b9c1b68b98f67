"""Hot state in Redis or Redis Cluster, for any number of workers: each step is one script, and one round trip."""

import asyncio
import contextlib
import hashlib
import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final, get_args
from urllib.parse import parse_qsl, urlencode, urlsplit

import msgspec
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import NoScriptError, ReadOnlyError, RedisClusterException, RedisError

from extproc.stores.ports import (
    BUCKETS,
    LEASE,
    Amounts,
    Counter,
    Granted,
    Loaded,
    Missing,
    Orphan,
    Reading,
    Short,
    StateUnavailable,
    Unit,
)

PREFIX: Final = "extproc:{accounts}:"
"""What the names of all keys begin with; the braces put them into one slot of a cluster, where one script sees them."""

_CONNECTIONS: Final = 64  # calls beyond that wait for one, which takes less than Redis would with more
_ORPHANS: Final = 256
_DOUBTFUL: Final = 4096  # no more commands than that are under way when an answer stays out
_RELEASES: Final = 500  # with one beat
_REASON: Final = 200  # characters of an error

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder().decode


@dataclass(frozen=True, slots=True)
class _Script:
    text: str
    digest: str


def _script(name: str) -> _Script:
    lua = resources.files("extproc.stores") / "lua"
    constants = f"local BUCKETS, LEASE = {BUCKETS}, {LEASE}\n"
    text = constants + (lua / "common.lua").read_text() + (lua / f"{name}.lua").read_text()
    return _Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


_RESERVE: Final = _script("reserve")
_SETTLE: Final = _script("settle")
_RELEASE: Final = _script("release")
_LOAD: Final = _script("load")
_FORGET: Final = _script("forget")
_READ: Final = _script("read")
_BEAT: Final = _script("beat")
_ALIVE: Final = _script("alive")
_ORPHANED: Final = _script("orphans")
_LEAVE: Final = _script("leave")


class RedisState:
    """Hot state of one worker among several, which ``worker`` tells apart: it names one life of one process.

    ``url``: ``redis://`` or ``rediss://``; a cluster is recognised, or told by ``?cluster=true``. ``timeout``: seconds
    within which every method has its answer or raises StateUnavailable. Every step can be repeated, so the client may.
    A reservation or release whose answer stayed out is taken back with a later ``beat``.
    """

    def __init__(self, url: str, worker: str, *, timeout: float = 1.0) -> None:
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query))
        self._is_cluster = query.pop("cluster", "").lower() in {"true", "yes", "1"}
        self._url = parts._replace(query=urlencode(query)).geturl()
        try:
            parse_url(self._url)
        except ValueError:  # its text may hold part of a password
            raise ValueError("this is no URL of Redis; a password in it is to be percent-encoded") from None
        self._place = parts.netloc.rpartition("@")[2]
        self._worker = worker
        self._timeout = timeout
        # With RESP3 come announcements, which keep the client from noticing that a connection is closed; with a timeout
        # of sockets come tasks in which ours may get lost, when both end at once.
        self._client_options: dict[str, Any] = {
            "protocol": 2,
            "socket_timeout": None,
            "socket_connect_timeout": timeout,
        }
        self._client: Redis | RedisCluster | None = None
        self._connecting = asyncio.Lock()
        self._turns = asyncio.Semaphore(_CONNECTIONS)
        self._doubtful: dict[str, None] = {}

    async def start(self) -> None:
        await self.beat()

    async def beat(self) -> None:
        calls = list(itertools.islice(self._doubtful, _RELEASES))
        await self._run(_BEAT, {"worker": self._worker, "calls": calls})
        for call in calls:
            self._doubtful.pop(call, None)

    async def reserve(
        self, call_id: str, counters: Sequence[Counter], amounts: Amounts, note: bytes
    ) -> Granted | Short | Missing:
        step = {"worker": self._worker, "call": call_id, "counters": counters, "amounts": _texts(amounts)}
        try:
            reply = _decode(await self._run(_RESERVE, step, note))
        except BaseException:
            self._doubt(call_id)
            raise
        self._doubtful.pop(call_id, None)
        match reply:
            case ["granted", readings]:
                return Granted(_readings(readings))
            case ["short", readings, places]:
                return Short(places, _readings(readings))
            case [_, places]:
                return Missing(places)
        raise AssertionError(reply)

    async def settle(
        self,
        call_id: str,
        counters: Sequence[Counter],
        amounts: Amounts,
        row: bytes,
        *,
        worker: str = "",
        whole: bool = False,
    ) -> Missing | None:
        owner = worker or self._worker
        is_own = owner == self._worker
        step = {
            "worker": owner,
            "call": call_id,
            "counters": counters,
            "amounts": _texts(amounts),
            "own": is_own,
            "whole": whole or is_own,
        }
        places = _decode(await self._run(_SETTLE, step, row))
        return Missing(places) if places else None

    async def release(self, call_id: str, *, worker: str = "") -> None:
        owner = worker or self._worker
        try:
            await self._run(_RELEASE, {"worker": owner, "calls": [call_id]})
        except BaseException:
            if owner == self._worker:
                self._doubt(call_id)
            raise

    async def load(self, loaded: Sequence[Loaded]) -> None:
        numbers = [
            {"counter": one.counter, "used": str(one.used), "buckets": {n: str(a) for n, a in one.buckets.items()}}
            for one in loaded
        ]
        await self._run(_LOAD, {"loaded": numbers})

    async def forget(self, counters: Sequence[Counter]) -> None:
        await self._run(_FORGET, {"counters": counters})

    async def booked(self, call_ids: Sequence[str], *, worker: str = "") -> None:
        if call_ids:
            async with self._asking() as client:
                await client.execute_command("HDEL", f"{PREFIX}rows:{worker or self._worker}", *call_ids)

    async def read(self, counters: Sequence[Counter]) -> list[Reading]:
        return _readings(_decode(await self._run(_READ, {"counters": counters})))

    async def alive(self, worker: str) -> bool:
        return bool(await self._run(_ALIVE, {"worker": worker}))

    async def orphans(self) -> list[Orphan]:
        found = await self._run(_ORPHANED, {"most": _ORPHANS})
        return [Orphan(call.decode(), worker.decode(), note, row) for call, worker, note, row in found]

    async def stop(self) -> None:
        with contextlib.suppress(StateUnavailable):
            await self._run(_LEAVE, {"worker": self._worker})
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(RedisError, OSError):
                async with asyncio.timeout(self._timeout):
                    await client.aclose()

    def _doubt(self, call_id: str) -> None:
        if len(self._doubtful) < _DOUBTFUL:
            self._doubtful[call_id] = None

    async def _run(self, script: _Script, step: Mapping[str, Any], *blobs: bytes) -> Any:
        arguments: tuple[int | str | bytes, ...] = (1, PREFIX, _encode(step), *blobs)
        async with self._asking() as client:
            try:
                return await client.execute_command("EVALSHA", script.digest, *arguments)
            except NoScriptError:
                return await client.execute_command("EVAL", script.text, *arguments)

    @contextlib.asynccontextmanager
    async def _asking(self) -> AsyncIterator[Redis | RedisCluster]:
        """A client, for as long as an answer may take. Raises StateUnavailable whatever fails."""
        try:
            async with asyncio.timeout(self._timeout), self._turns:
                yield self._client or await self._connect()
        except TimeoutError as error:
            raise StateUnavailable(f"Redis at {self._place}: no answer within {self._timeout:g} s") from error
        except (RedisError, RedisClusterException, OSError) as error:
            reason = str(error).partition("\n")[0][:_REASON] or type(error).__name__
            raise StateUnavailable(f"Redis at {self._place}: {reason}") from error

    async def _connect(self) -> Redis | RedisCluster:
        async with self._connecting:
            if self._client is None:
                self._client = self._cluster() if self._is_cluster or await self._tells_cluster() else self._single()
            return self._client

    async def _tells_cluster(self) -> bool:
        async with self._single() as probe:
            return bool((await probe.info("cluster")).get("cluster_enabled"))

    def _single(self) -> Redis:
        # One that was made a replica answers READONLY: whoever took its name and place is found by connecting anew.
        return Redis.from_url(
            self._url, retry=Retry(NoBackoff(), 1), retry_on_error=[ReadOnlyError], **self._client_options
        )

    def _cluster(self) -> RedisCluster:
        return RedisCluster.from_url(
            self._url, retry=Retry(ExponentialBackoff(cap=0.1, base=0.01), 3), **self._client_options
        )


def _texts(amounts: Amounts) -> dict[str, str]:
    """Amounts by unit, which Lua cannot round."""
    return {unit: str(amounts.of(unit)) for unit in get_args(Unit)}


def _readings(found: Sequence[tuple[str | None, str, float]]) -> list[Reading]:
    return [Reading(int(used) if used else None, int(held), wait) for used, held, wait in found]
