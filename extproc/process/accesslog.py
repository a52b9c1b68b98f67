"""What Envoy tells the supervisor, who outlives its workers, and how that reaches those whom it concerns."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from extproc.config.schema import Server
from extproc.core.evidence import Ended, KeyRefused
from extproc.core.tasks import Tasks
from extproc.process.control import KeyCooling
from extproc.providers.pool import Pools, retry_after
from extproc.telemetry import log, metrics
from extproc.wire.accesslog import AccessLogServer
from extproc.wire.driver import Tls

_LOG = log.get()
_DELAY: Final = 3.0  # seconds for the call's own worker, if it lives, to account for it first
_TICK: Final = 0.25
_ROOM: Final = 5000  # calls that wait for a worker


class AccessLog:
    """Hears of broken calls and refused keys.

    ``tell_one`` hands a call to some worker, and says whether one took it; ``tell_all`` reaches every worker.
    """

    def __init__(
        self,
        settings: Server,
        keys: Pools,
        *,
        tell_one: Callable[[Ended], Awaitable[bool]],
        tell_all: Callable[[KeyCooling], Coroutine[Any, Any, None]],
    ) -> None:
        self._keys = keys
        self._tell_one = tell_one
        self._tell_all = tell_all
        self._waiting: deque[tuple[float, Ended]] = deque()
        self._tasks = Tasks()
        self._server = self._make(settings)

    def _make(self, settings: Server) -> AccessLogServer | None:
        address, tls = settings.log_address, settings.tls
        if address is None:
            return None
        secure = None
        if tls is not None and not address.startswith("unix:"):
            secure = Tls(tls.cert, tls.key, tls.ca if tls.client else None)
        return AccessLogServer(address, tls=secure, on_ended=self.ended, on_key_refused=self.key_refused)

    async def start(self) -> None:
        """Listen. Raises OSError or RuntimeError where the address does not work."""
        if self._server is None:
            _LOG.warning(
                "no access log service: refused keys are used on, and what a dying worker cuts is only estimated",
                mend="set server.access_log",
            )
            return
        await self._server.start()
        self._tasks.spawn(self._pass_on())

    async def stop(self) -> None:
        """Listen no more. What waited is handed on at once."""
        if self._server is not None:
            await self._server.stop()
        await self._tasks.cancel()
        await self._hand_on(until=float("inf"))

    def ended(self, call: Ended) -> None:
        if len(self._waiting) >= _ROOM:
            self._waiting.popleft()
            metrics.ENDED_DROPPED.inc()
        self._waiting.append((time.monotonic() + _DELAY, call))

    def key_refused(self, answer: KeyRefused) -> None:
        wait = retry_after(answer.retry_after, time.time())
        seconds = self._keys.failed(answer.provider, answer.key, answer.status, wait)
        if seconds is None:
            return
        metrics.counter(metrics.KEY_FAILURES, answer.provider, answer.key, str(answer.status)).inc()
        if seconds:
            _LOG.warning(
                "key refused", provider=answer.provider, key=answer.key, status=answer.status, seconds=round(seconds, 1)
            )
            self._tasks.spawn(self._tell_all(KeyCooling(answer.provider, answer.key, seconds)))

    async def _pass_on(self) -> None:
        while True:
            await asyncio.sleep(_TICK)
            await self._hand_on(until=time.monotonic())

    async def _hand_on(self, *, until: float) -> None:
        while self._waiting and self._waiting[0][0] <= until:
            first = self._waiting[0]
            if not await self._tell_one(first[1]):
                return
            if self._waiting and self._waiting[0] is first:  # room may have been made meanwhile
                self._waiting.popleft()
