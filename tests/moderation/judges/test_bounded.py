import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from judges import stub_judges

from extproc.core.secret import Secret
from extproc.moderation.judges.bounded import Bounded
from extproc.moderation.judges.openai import OpenAiModeration
from extproc.moderation.types import Image, Item, JudgeFailed, Match, Opinion, QuestionRefused

BAD = Opinion({"violence": 0.9})


@dataclass
class Scripted:
    """Answers with what it is told, when it is told."""

    answer: Callable[[Item], Coroutine[Any, Any, Opinion]] | Opinion | BaseException = BAD
    max_chars: int = 1000
    name: str = "scripted"
    asked: list[Item] = field(default_factory=list)
    now: int = 0
    most: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    closed: bool = False

    def __post_init__(self) -> None:
        self.gate.set()

    async def judge(self, item: Item) -> Opinion:
        self.asked.append(item)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await self.gate.wait()
            if isinstance(self.answer, BaseException):
                raise self.answer
            return self.answer if isinstance(self.answer, Opinion) else await self.answer(item)
        finally:
            self.now -= 1

    async def close(self) -> None:
        self.closed = True


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def item(text: str = "hello") -> Item:
    return Item(text, "request")


async def reason(judge: Bounded, question: Item) -> str:
    with pytest.raises(JudgeFailed) as failed:
        await judge.judge(question)
    return failed.value.reason


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_time() -> None:
    """A judge that does not answer in time is given up."""
    inner = Scripted()
    inner.gate.clear()
    judge = Bounded(inner, timeout=0.02)

    assert await reason(judge, item()) == "timeout"
    assert inner.now == 0


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (JudgeFailed("garbage"), "garbage"),
        (JudgeFailed("error"), "error"),
        (QuestionRefused("status 400"), "error"),
        (TimeoutError(), "timeout"),
        (ValueError("my secret text"), "error"),
    ],
)
async def test_errors(error: Exception, expected: str) -> None:
    """Whatever goes wrong in a judge is a JudgeFailed, and foreign messages stay out of it."""
    judge = Bounded(Scripted(error))
    with pytest.raises(JudgeFailed) as failed:
        await judge.judge(item())

    assert failed.value.reason == expected
    assert "secret" not in str(failed.value)


async def test_number() -> None:
    """No more questions at once than said; those above wait, and those above these are refused."""
    inner = Scripted()
    inner.gate.clear()
    judge = Bounded(inner, concurrency=2, queue=3)
    waiting = [asyncio.ensure_future(judge.judge(item(f"{n}"))) for n in range(5)]
    await settled()

    assert inner.now == 2
    assert await reason(judge, item("one more")) == "busy"
    inner.gate.set()
    assert await asyncio.gather(*waiting) == [BAD] * 5
    assert inner.most == 2


async def test_waiting_too_long() -> None:
    """A question whose turn does not come in time is `busy`, and no failure of the judge."""

    async def linger(_: Item) -> Opinion:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.2)
        return BAD

    inner = Scripted(linger)
    judge = Bounded(inner, timeout=0.05, concurrency=1, breaker=(2, 10.0))
    first = asyncio.ensure_future(reason(judge, item("first")))
    second = asyncio.ensure_future(reason(judge, item("second")))

    assert (await second, await first) == ("busy", "timeout")
    assert len(inner.asked) == 1
    inner.answer = BAD
    assert await judge.judge(item("third")) == BAD


async def test_breaker() -> None:
    """After so many failures in a row nobody is asked; later one question is, and decides."""
    clock, inner = Clock(), Scripted(JudgeFailed("error"))
    judge = Bounded(inner, breaker=(3, 10.0), clock=clock)
    assert [await reason(judge, item()) for _ in range(5)] == ["error", "error", "error", "open", "open"]
    assert len(inner.asked) == 3

    clock.now += 10
    inner.gate.clear()
    probe = asyncio.ensure_future(reason(judge, item("probe")))
    await settled()
    assert await reason(judge, item("meanwhile")) == "open"
    inner.gate.set()
    assert await probe == "error"
    assert await reason(judge, item()) == "open"

    clock.now += 10
    inner.answer = BAD
    assert await judge.judge(item()) == BAD
    inner.answer = JudgeFailed("error")
    assert [await reason(judge, item("again")) for _ in range(4)] == ["error", "error", "error", "open"]


async def test_breaker_counts_in_a_row() -> None:
    """A success in between starts the count anew."""
    inner = Scripted(JudgeFailed("error"))
    judge = Bounded(inner, breaker=(2, 10.0))
    for n in range(3):
        inner.answer = JudgeFailed("error")
        assert await reason(judge, item(f"bad {n}")) == "error"
        inner.answer = BAD
        assert await judge.judge(item(f"good {n}")) == BAD


@pytest.mark.parametrize("failed", [QuestionRefused("status 400"), JudgeFailed("garbage"), UnicodeError("\ud800")])
async def test_a_text_does_not_open_the_breaker(failed: Exception) -> None:
    """What a text can bring about does not keep the judge from other texts."""
    inner = Scripted(failed)
    judge = Bounded(inner, breaker=(2, 10.0))
    for n in range(5):
        assert await reason(judge, item(f"{n}")) in ("error", "garbage")
    inner.answer = BAD

    assert await judge.judge(item("fine")) == BAD


async def test_a_probe_that_is_abandoned() -> None:
    """When whoever asked on probation leaves, the next one is let through."""
    clock, inner = Clock(), Scripted(JudgeFailed("error"))
    judge = Bounded(inner, breaker=(1, 10.0), clock=clock)
    assert await reason(judge, item()) == "error"
    clock.now += 10
    inner.gate.clear()
    probe = asyncio.ensure_future(judge.judge(item("probe")))
    await settled()
    probe.cancel()
    await settled()
    inner.gate.set()
    inner.answer = BAD

    assert await judge.judge(item("next")) == BAD


async def test_memory() -> None:
    """What was asked a moment ago is not asked again, until its time is over or others took its place."""
    clock, inner = Clock(), Scripted()
    judge = Bounded(inner, cache=(2, 60.0), clock=clock)
    for _ in range(3):
        assert await judge.judge(item("a")) == BAD
    assert len(inner.asked) == 1

    clock.now += 60
    await judge.judge(item("a"))
    assert len(inner.asked) == 2
    await judge.judge(item("b"))
    await judge.judge(item("a"))
    await judge.judge(item("c"))
    await judge.judge(item("a"))
    assert [x.text for x in inner.asked[2:]] == ["b", "c"]
    await judge.judge(item("b"))
    assert len(inner.asked) == 5


async def test_failures_are_not_remembered() -> None:
    """After a failure the same question is asked again."""
    inner = Scripted(JudgeFailed("garbage"))
    judge = Bounded(inner)
    assert await reason(judge, item()) == "garbage"
    inner.answer = BAD

    assert await judge.judge(item()) == BAD


async def test_what_makes_questions_equal() -> None:
    """Everything that an opinion may depend on makes another question; the call does not."""
    inner = Scripted()
    judge = Bounded(inner)
    base = Item("ab", "request", context=[("user", "c")])
    others = [
        replace(base, text="abc"),
        replace(base, direction="response"),
        replace(base, role="tool"),
        replace(base, images=[Image("data:,x")]),
        replace(base, context=[("user", "cd")]),
        replace(base, context=[("assistant", "c")]),
        replace(base, context=()),
        replace(base, policy="strict"),
        replace(base, text="\ud800"),
    ]
    for question in (base, *others, replace(base, call_id="another"), replace(base, context=(("user", "c"),))):
        await judge.judge(question)

    assert inner.asked == [base, *others]


async def test_equal_questions_in_flight() -> None:
    """Equal questions at the same time are asked once; one who leaves does not take the answer from the others."""
    inner = Scripted()
    inner.gate.clear()
    judge = Bounded(inner)
    first, second, third = (asyncio.ensure_future(judge.judge(item())) for _ in range(3))
    await settled()
    first.cancel()
    await settled()
    inner.gate.set()

    assert await second == await third == BAD
    assert first.cancelled()
    assert len(inner.asked) == 1


async def test_nobody_waits_any_more() -> None:
    """When the last asker leaves, the question is given up and its turn is free; whoever asks then asks anew."""
    inner = Scripted()
    inner.gate.clear()
    judge = Bounded(inner, concurrency=1)
    askers = [asyncio.ensure_future(judge.judge(item())) for _ in range(2)]
    await settled()
    for asker in askers:
        asker.cancel()
    await settled()
    assert inner.now == 0
    inner.gate.set()

    assert await judge.judge(item()) == BAD
    assert len(inner.asked) == 2


async def test_long_texts() -> None:
    """A long text is asked about in pieces with overlap; the worst counts, and spans stand in the whole text."""

    async def find(asked: Item) -> Opinion:
        await asyncio.sleep(0)
        at = asked.text.find("bomb")
        return Opinion() if at < 0 else Opinion({"violence": 0.9}, [Match(at, at + 4, "violence", 0.9)])

    inner = Scripted(find, max_chars=100)
    judge = Bounded(inner, concurrency=2, queue=0)
    images = (Image("https://example.com/x.png"),)
    text = "".join(f"早{n:05}" for n in range(200))[:998] + "bomb" + "晚" * 300
    opinion = await judge.judge(Item(text, "request", images=images))

    assert opinion == Opinion({"violence": 0.9}, (Match(998, 1002, "violence", 0.9),))
    assert text[998:1002] == "bomb"
    assert max(len(asked.text) for asked in inner.asked) == 100
    assert [asked.images for asked in inner.asked if asked.images] == [images]
    assert inner.most == 2


async def test_a_piece_that_fails() -> None:
    """If one piece could not be judged, the text was not."""

    async def fail(asked: Item) -> Opinion:
        if "x" in asked.text:
            raise JudgeFailed("garbage")
        return Opinion()

    assert await reason(Bounded(Scripted(fail, max_chars=100)), item("a" * 350 + "x")) == "garbage"


async def test_closing() -> None:
    """Closing ends what is being asked, and closes the judge."""
    inner = Scripted()
    inner.gate.clear()
    judge = Bounded(inner)
    asker = asyncio.ensure_future(reason(judge, item()))
    await settled()
    await judge.close()

    assert await asker == "error"
    assert inner.closed


async def test_over_the_network(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    """A real client within bounds: late, refused, broken, and well again; nothing of it is in a log."""
    caplog.set_level("INFO")
    key = Secret("sk-judge-1234567890")
    async with stub_judges() as stub:
        clock = Clock()
        judge = Bounded(
            OpenAiModeration("omni", f"{stub.url}/v1", key), timeout=2.0, concurrency=3, breaker=(3, 5.0), clock=clock
        )
        stub.delay = 30.0
        assert await reason(judge, item("my secret text")) == "timeout"
        stub.delay, stub.status = 0.0, 500
        assert await reason(judge, item("my secret text")) == "error"
        await stub.stop()
        assert await reason(judge, item("my secret text")) == "error"
        assert await reason(judge, item("my secret text")) == "open"
        await stub.start()
        stub.status, clock.now = 200, clock.now + 5
        assert (await judge.judge(item("my secret bomb"))).scores == {"violence": 0.93}
        stub.delay, stub.most_open = 0.02, 0
        await asyncio.gather(*(judge.judge(item(f"secret {n}")) for n in range(12)))
        assert stub.most_open == 3
        await judge.close()

    said = caplog.text + "".join(capfd.readouterr())
    assert "secret" not in said
    assert key.reveal() not in said
