"""Bounds around any judge: time, number, a circuit breaker; and a short memory of what it said."""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from time import monotonic
from typing import Final

from extproc.core.tasks import Tasks
from extproc.moderation.judges.opinions import merged, pieces, together
from extproc.moderation.types import Item, Judge, JudgeFailed, Opinion, QuestionRefused

Clock = Callable[[], float]
_OVERLAP: Final = 200  # characters that neighbouring pieces share, unless they are short


class Bounded:
    """A judge that answers within bounds, or raises JudgeFailed.

    - ``timeout`` seconds for each question, waiting for its turn included. A longer text than ``max_chars`` is several
      questions, asked at once as far as ``concurrency`` allows.
    - ``concurrency`` questions at once, and ``queue`` more that wait; beyond that: ``busy``.
    - ``breaker``: after so many failures in a row it is not asked for so many seconds (``open``); then one question is
      let through, and decides.
    - ``cache``: so many opinions are remembered for so many seconds. Equal questions at the same time are asked once.
    """

    def __init__(
        self,
        judge: Judge,
        *,
        timeout: float = 2.0,
        concurrency: int = 16,
        queue: int = 256,
        breaker: tuple[int, float] = (5, 10.0),
        cache: tuple[int, float] = (10_000, 300.0),
        clock: Clock = monotonic,
    ) -> None:
        self.name = judge.name
        self.max_chars = judge.max_chars
        self._judge = judge
        self._timeout = timeout
        self._concurrency = concurrency
        self._most = concurrency + queue
        self._slots = asyncio.Semaphore(concurrency)
        self._breaker = Breaker(*breaker, clock)
        self._memory = Memory(*cache, clock)
        self._questions: dict[bytes, _Question] = {}
        self._tasks = Tasks()

    async def judge(self, item: Item) -> Opinion:
        """Raises JudgeFailed."""
        parts = pieces(item.text, self.max_chars, min(_OVERLAP, self.max_chars // 4))
        if len(parts) == 1:
            return await self._ask(item)
        # So that one long text does not fill the queue by itself.
        turns = asyncio.Semaphore(self._concurrency)

        async def ask(start: int, text: str) -> tuple[int, Opinion]:
            async with turns:
                return start, await self._ask(replace(item, text=text, images=() if start else item.images))

        return merged(await together(ask(start, text) for start, text in parts))

    async def close(self) -> None:
        await self._tasks.cancel()
        await self._judge.close()

    async def _ask(self, item: Item) -> Opinion:
        key = _digest(item)
        if (known := self._memory.get(key)) is not None:
            return known
        question = self._questions.get(key) or self._open(key, item)
        question.askers += 1
        try:
            await asyncio.wait([question.task])
        finally:
            question.askers -= 1
            if not question.askers and not question.task.done():
                question.task.cancel()
                self._forget(key, question)
        if question.task.cancelled():
            raise JudgeFailed("error", "the judge is closed")
        return question.task.result()

    def _open(self, key: bytes, item: Item) -> "_Question":
        if self._breaker.is_open:
            raise JudgeFailed("open")
        if len(self._questions) >= self._most:
            raise JudgeFailed("busy")
        question = self._questions[key] = _Question(self._tasks.spawn(self._answer(key, item)))

        def ended(task: asyncio.Task[Opinion]) -> None:
            self._forget(key, question)
            # Nobody may be left to look at it.
            task.cancelled() or task.exception()

        question.task.add_done_callback(ended)
        return question

    def _forget(self, key: bytes, question: "_Question") -> None:
        if self._questions.get(key) is question:
            del self._questions[key]

    async def _answer(self, key: bytes, item: Item) -> Opinion:
        try:
            async with asyncio.timeout(self._timeout) as bound:
                async with self._slots:
                    if not self._breaker.admit():
                        raise JudgeFailed("open")
                    opinion = await self._watched(item, bound)
        except TimeoutError:
            raise JudgeFailed("busy") from None
        self._memory.put(key, opinion)
        return opinion

    async def _watched(self, item: Item, bound: asyncio.Timeout) -> Opinion:
        """Asks, and tells the breaker how it ended."""
        try:
            opinion = await self._judge.judge(item)
        except BaseException as error:
            failed = _failure(error, late=bound.expired())
            if failed is None or isinstance(failed, QuestionRefused) or failed.reason == "garbage":
                # A text can bring these about, and must not keep the judge from others.
                self._breaker.abandoned()
            else:
                self._breaker.failed()
            if failed is None:
                raise
            raise failed from None
        self._breaker.succeeded()
        return opinion


class _Question:
    """One that is being asked, and how many wait for the answer; the last to leave cancels it."""

    def __init__(self, task: asyncio.Task[Opinion]) -> None:
        self.task = task
        self.askers = 0


class Breaker:
    """Opens after ``failures`` in a row, for ``seconds``; then one is admitted, and its end closes or opens it."""

    def __init__(self, failures: int, seconds: float, clock: Clock) -> None:
        self._most = failures
        self._seconds = seconds
        self._clock = clock
        self._failures = 0
        self._until = float("-inf")
        self._probing = False

    @property
    def is_open(self) -> bool:
        """Nobody is admitted now."""
        return self._failures >= self._most and (self._probing or self._clock() < self._until)

    def admit(self) -> bool:
        """Whether to ask. Whoever is admitted reports how it ended."""
        if self.is_open:
            return False
        self._probing = self._failures >= self._most
        return True

    def succeeded(self) -> None:
        self._failures, self._probing = 0, False

    def failed(self) -> None:
        self._failures, self._probing = self._failures + 1, False
        self._until = self._clock() + self._seconds

    def abandoned(self) -> None:
        """It ended without saying anything about the judge."""
        self._probing = False


class Memory:
    """The last ``entries`` opinions, each for ``seconds``."""

    def __init__(self, entries: int, seconds: float, clock: Clock) -> None:
        self._entries = entries
        self._seconds = seconds
        self._clock = clock
        self._known: OrderedDict[bytes, tuple[float, Opinion]] = OrderedDict()

    def get(self, key: bytes) -> Opinion | None:
        until, opinion = self._known.get(key, (float("-inf"), None))
        if opinion is None or self._clock() >= until:
            self._known.pop(key, None)
            return None
        self._known.move_to_end(key)
        return opinion

    def put(self, key: bytes, opinion: Opinion) -> None:
        self._known[key] = (self._clock() + self._seconds, opinion)
        self._known.move_to_end(key)
        while len(self._known) > self._entries:
            self._known.popitem(last=False)


def _failure(error: BaseException, *, late: bool) -> JudgeFailed | None:
    """None: it was not the judge that ended it."""
    if late or isinstance(error, TimeoutError):
        return JudgeFailed("timeout")
    if isinstance(error, JudgeFailed):
        return error
    if isinstance(error, UnicodeError):
        return QuestionRefused("no Unicode text")
    # Its message may have the text in it.
    return JudgeFailed("error", type(error).__name__) if isinstance(error, Exception) else None


def _digest(item: Item) -> bytes:
    """Of all that an opinion may depend on. ``repr`` keeps fields apart, and knows texts that UTF-8 does not."""
    asked = (item.text, item.direction, item.role, [i.url for i in item.images], list(item.context), item.policy)
    return hashlib.blake2b(repr(asked).encode(), digest_size=32).digest()
